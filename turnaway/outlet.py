"""Where the log goes: the local syslog daemon, standard error, JSON, or nowhere.

Owns: the socket to syslog, the file of JSON lines, and the form of a line.
Promises: `write` waits no longer than it is told, and never raises: a log that
is absent or full costs the line.

A line of JSON is one object.  Of a connection it has the fields of the text
grammar; of a message its first word as the event, and the whole as `message`:

    {"ts":"2026-01-02T03:04:05.678Z","event":"turned away","from":"192.0.2.9",
     "from_port":51322,"to":"198.51.100.2","to_port":25,"as":"mx.example.com",
     "persona":"blocked","proto":"smtp","code":554,"outcome":"sent"}
    {"ts":"2026-01-02T03:04:05.678Z","event":"started","severity":"notice",
     "program":"turnaway-fast","pid":4711,"message":"started: version ..."}

`ts` of a connection is when its loop wrote its record, not when the line was
written.  `code` is null where the protocol has none.

The file is opened as root, before the chroot and the drop.  If it is new it is
given to the user of the daemon, who opens it again on SIGHUP, beside what a
chroot allows: after a rotation the user must be able to write the file or, if
there is none, to make one in its directory (logrotate: `create 0640 turnaway
adm`).  Where that fails, the old file is kept and the log says so.
"""

import json
import os
import re
import select
import socket
import stat
import time

from turnaway.exits import CANNOT_CREATE, Failure
from turnaway.settings import Identity, Settings

# syslog(3): facility mail, and the severities used.
FACILITY = 2 << 3
ERROR, WARNING, NOTICE, INFO = 3, 4, 5, 6

SEVERITIES = ("emerg", "alert", "crit", "err", "warning", "notice", "info", "debug")

# write(2) of so much into a pipe that poll(2) called writable does not block.
PIECE = 4096  # POSIX PIPE_BUF on Linux

# How a folder is opened to reach what is in it; without O_PATH it must be readable.
FOLDER = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def _nowhere() -> int:
    """A file in memory, or where the system has none, one without a name."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("turnaway-lines", os.MFD_CLOEXEC)
    from tempfile import TemporaryFile

    with TemporaryFile() as file:
        return os.dup(file.fileno())


def _writable(fd: int, seconds: float) -> bool:
    poller = select.poll()
    poller.register(fd, select.POLLOUT)
    return any(event & select.POLLOUT for _, event in poller.poll(max(0.0, seconds * 1000)))


class Syslog:
    """Datagrams to the local syslog daemon, RFC 3164 as its socket expects them."""

    kind = "datagram"

    def __init__(self, program: str, path: str) -> None:
        self._tag = program
        self._path = path
        self._socket: socket.socket | None = None
        self.revive()

    def revive(self) -> None:
        """Connect, if not connected: the daemon may be absent, or come back."""
        if self._socket is not None:
            return
        try:
            made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        except OSError:
            return  # no descriptor left
        made.setblocking(False)
        try:
            made.connect(self._path)
        except OSError:
            made.close()
        else:
            self._socket = made

    def hang_up(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def reopen(self) -> str:
        """As after a restart of the syslog daemon; returns what went wrong.

        Inside a chroot the path may lead nowhere: then the old way is kept.
        """
        before, self._socket = self._socket, None
        self.revive()
        if self._socket is None:
            self._socket = before
        elif before is not None:
            before.close()
        return ""

    def fileno(self) -> int:
        return -1 if self._socket is None else self._socket.fileno()

    def header(self, severity: int, moment: float) -> bytes:
        local = time.localtime(moment)
        return (
            f"<{FACILITY | severity}>{_MONTHS[local.tm_mon - 1]} {local.tm_mday:2}"
            f" {local.tm_hour:02}:{local.tm_min:02}:{local.tm_sec:02}"
            f" {self._tag[:40]}[{os.getpid()}]: "
        ).encode("ascii", "replace")

    def write(self, line: bytes, patience: float) -> bool:
        if self._socket is None:
            return False
        try:
            try:
                self._socket.send(line)
            except BlockingIOError:
                # The queue is short (unix(7), often 10): full is normal for a moment.
                if not _writable(self._socket.fileno(), patience):
                    return False
                self._socket.send(line)
        except BlockingIOError:
            return False
        except OSError:
            self.hang_up()
            return False
        return True


def under_journald() -> bool:
    """Whether standard error goes to systemd's journal: systemd.exec(5), JOURNAL_STREAM."""
    try:
        status = os.fstat(2)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


class Stderr:
    """Lines on standard error, for a terminal or a supervisor that keeps them.

    The journal knows who writes; it wants the priority instead, sd-daemon(3).
    """

    kind = "stream"

    def __init__(self, program: str) -> None:
        self._tag = program
        self._journald = under_journald()

    def revive(self) -> None:
        pass

    def hang_up(self) -> None:
        pass

    def reopen(self) -> str:
        return ""

    def fileno(self) -> int:
        return 2

    def header(self, severity: int, moment: float) -> bytes:
        if self._journald:
            return b"<%d>" % severity
        return f"{self._tag[:40]}[{os.getpid()}]: ".encode("ascii", "replace")

    def write(self, line: bytes, patience: float) -> bool:
        try:
            # A pipe that nobody reads would hold up the tick, and signals with it.
            return _writable(2, patience) and os.write(2, line + b"\n") > 0
        except OSError:
            return False


def _stamp(moment: float) -> str:
    """ISO 8601 in UTC with milliseconds."""
    millis = int(moment * 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(millis // 1000))}.{millis % 1000:03}Z"


class Json:
    """One JSON object a line, on standard error or in a file.

    The Reader writes its lines into memory; deliver() writes them where they belong.
    """

    kind = "json"

    def __init__(self, program: str, path: str, identity: Identity | None) -> None:
        self._tag = program
        self._path = path
        self._fd = 2
        self._folder = -1
        self._journald = path == "-" and under_journald()
        self._torn = False  # the last line is not whole
        self._memory = _nowhere()
        if path != "-":
            try:
                self._folder = os.open(os.path.dirname(path), FOLDER)
                self._fd = self._opened(identity)
            except OSError as error:
                said = f"--log json:{path}: cannot write there: {error.strerror}"
                raise Failure(CANNOT_CREATE, said) from None

    def _opened(self, identity: Identity | None = None) -> int:
        """The file, made if need be; relative to its directory, which a chroot may hide."""
        name = os.path.basename(self._path)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            made = os.open(name, flags | os.O_CREAT | os.O_EXCL, 0o640, dir_fd=self._folder)
        except FileExistsError:
            fd = os.open(name, flags, dir_fd=self._folder)
            status = os.fstat(fd)
            # Its directory may be the user's, who could put there a name of another's file.
            alone = stat.S_ISREG(status.st_mode) and status.st_nlink == 1
            if not alone and not stat.S_ISCHR(status.st_mode):
                os.close(fd)
                raise OSError(0, "neither a regular file with one name nor a device") from None
            return fd
        if identity:
            os.fchown(made, identity.uid, identity.gid)
        return made

    def revive(self) -> None:
        pass

    def hang_up(self) -> None:
        pass

    def reopen(self) -> str:
        """After a rotation; the old file is kept where the new cannot be had."""
        if self._path == "-":
            return ""
        try:
            fresh = self._opened()
        except OSError as error:
            return f"{self._path}: {error.strerror}; the old file is kept"
        os.close(self._fd)
        self._fd = fresh
        self._torn = False
        return ""

    def fileno(self) -> int:
        """Where the Reader writes."""
        return self._memory

    def header(self, severity: int, moment: float) -> bytes:
        """What stands before the object: under journald the priority, else nothing."""
        return b"<%d>" % severity if self._journald else b""

    def say(self, severity: int, moment: float, text: str, patience: float) -> bool:
        """A message of our own."""
        fields = {
            "ts": _stamp(moment),
            "event": re.split(r"[^A-Za-z]", text, maxsplit=1)[0].lower(),
            "severity": SEVERITIES[severity],
            "program": self._tag,
            "pid": os.getpid(),
            "message": text,
        }
        line = self.header(severity, moment) + json.dumps(fields, separators=(",", ":")).encode(
            "ascii"
        )
        return self._put(line + b"\n", patience) == 1

    def deliver(self, patience: float) -> tuple[int, int]:
        """The lines that the Reader wrote since: (written, lost)."""
        size = os.lseek(self._memory, 0, os.SEEK_CUR)
        if size == 0:
            return 0, 0
        text = os.pread(self._memory, size, 0)
        os.ftruncate(self._memory, 0)
        os.lseek(self._memory, 0, os.SEEK_SET)
        # Where memory ran out the last line is not whole, and the Reader has counted it.
        whole = text[: text.rfind(b"\n") + 1]
        lines = whole.count(b"\n")
        written = self._put(whole, patience)
        return written, lines - written

    def _put(self, lines: bytes, patience: float) -> int:
        """Write whole lines; how many the file or pipe took."""
        until = time.monotonic() + patience
        taken = 0
        whole = b"\n" + lines if self._torn else lines
        try:
            while taken < len(whole):
                if not _writable(self._fd, until - time.monotonic()):
                    break
                # Whole lines, so that whoever reads along sees no half of one.
                end = whole.rfind(b"\n", taken, taken + PIECE) + 1 or taken + PIECE
                taken += os.write(self._fd, whole[taken:end])
        except OSError:
            pass  # a full disk, a closed pipe
        taken_lines = whole[:taken].count(b"\n") - self._torn
        if taken > 0:
            self._torn = whole[taken - 1 : taken] != b"\n"
            if self._torn:
                self._mend(taken - 1 - whole.rfind(b"\n", 0, taken))
        return max(0, taken_lines)

    def _mend(self, octets: int) -> None:
        """Take the beginning of a line back; where that cannot be, the next begins anew."""
        try:
            status = os.fstat(self._fd)
            if stat.S_ISREG(status.st_mode):
                os.ftruncate(self._fd, status.st_size - octets)
                self._torn = False
        except OSError:
            pass


class Nowhere:
    kind = "none"

    def revive(self) -> None:
        pass

    def hang_up(self) -> None:
        pass

    def reopen(self) -> str:
        return ""

    def fileno(self) -> int:
        return -1

    def header(self, severity: int, moment: float) -> bytes:
        return b""

    def write(self, line: bytes, patience: float) -> bool:
        return True


Outlet = Syslog | Stderr | Json | Nowhere


def outlet(settings: Settings) -> Outlet:
    """The outlet for a --log TARGET.  Raises Failure when a file cannot be opened."""
    if settings.log == "syslog":
        return Syslog(settings.program, settings.syslog_socket)
    if settings.log == "json":
        return Json(settings.program, settings.json_path, settings.identity)
    return Stderr(settings.program) if settings.log == "stderr" else Nowhere()
