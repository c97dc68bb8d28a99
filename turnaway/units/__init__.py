"""Units and rc scripts for the supervisors of three systems, printed on request.

Owns: the files beside this module, the only copies there are, so that an
installed wheel can print them too.  Each is usable as it stands, for a command
at /usr/local/bin/turnaway-fast; what is printed has the path and the name of
the command that was asked.
"""

import os
import re
import shutil
import sys
from pathlib import Path

HOME = Path(__file__).parent
KINDS = {
    "systemd": "turnaway-fast.service",
    "systemd-socket": "turnaway-fast.socket",
    "freebsd": "turnaway_fast.freebsd",
    "openbsd": "turnaway_fast.openbsd",
}

_NAME = "turnaway-fast"
_PATH = f"/usr/local/bin/{_NAME}"


def print_unit(kind: str, argv0: str) -> str:
    """The text of one of KINDS for the command that was called as `argv0`."""
    command = _command(argv0)
    name = os.path.basename(command)
    parts = (HOME / KINDS[kind]).read_text("ascii").split(_PATH)
    return command.join(_named(part, name) for part in parts)


def _command(argv0: str) -> str:
    """The absolute path of the running command."""
    if os.path.basename(argv0) == "__main__.py":  # python -m turnaway
        return os.path.join(os.path.dirname(os.path.abspath(sys.executable)), _NAME)
    return os.path.abspath(shutil.which(argv0) or argv0)


def _named(text: str, name: str) -> str:
    """The text for a command of this name; manual pages keep theirs."""
    text = re.sub(rf"{_NAME}(?!\()", name, text)
    return text.replace(_NAME.replace("-", "_"), re.sub(r"\W", "_", name))
