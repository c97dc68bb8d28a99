"""Turnaway: completes the handshake, says why in one message, and closes.

The version stands here and nowhere else.
"""

__version__ = "0.2.0"
