"""How the program ends: the exit statuses, and the exception that carries one.

The statuses are those of sysexits(3); turnaway-fast(8) lists when each is used.
"""

import os

USAGE = os.EX_USAGE  # 64: the command line is wrong
DATA = os.EX_DATAERR  # 65: a persona or its banner is wrong
NO_USER = os.EX_NOUSER  # 67: no such user or group
UNAVAILABLE = os.EX_UNAVAILABLE  # 69: the address is in use, or not of this host
SOFTWARE = os.EX_SOFTWARE  # 70: a mistake of ours
OS_ERROR = os.EX_OSERR  # 71: a system call failed
CANNOT_CREATE = os.EX_CANTCREAT  # 73: the pidfile cannot be created
RUNNING = os.EX_TEMPFAIL  # 75: already running
NO_PERMISSION = os.EX_NOPERM  # 77: not permitted, and what to do about it
CONFIGURATION = os.EX_CONFIG  # 78: the configuration is wrong


class Failure(Exception):
    """The program cannot go on: an exit status and one line for each reason."""

    def __init__(self, status: int, *reasons: str) -> None:
        super().__init__(*reasons)
        self.status = status
        self.reasons = reasons
