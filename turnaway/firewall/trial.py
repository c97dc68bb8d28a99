"""Rules on trial: what was there before comes back unless somebody confirms in time.

Owns: loading files into this host's ruleset, and the directory where the
former rules wait.  The rollback is a process in a session of its own, there
before anything is loaded: a lost terminal does not end it.  Confirming and
rolling back both begin with renaming one file, so exactly one of them happens.

    python -m turnaway.firewall.trial DIRECTORY SECONDS    is that process
"""

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import syslog
import time
from collections.abc import Iterator, Sequence

from turnaway.exits import CANNOT_CREATE, NO_PERMISSION, RUNNING, SOFTWARE, UNAVAILABLE, Failure
from turnaway.firewall import programs
from turnaway.firewall.nftables import TABLE

DIRECTORY = "/run/turnaway-firewall"
# Nothing of our table, whether it was there or not (nft 1.0.6 knows no `destroy`).
NOTHING = f"table inet {TABLE} {{\n}}\ndelete table inet {TABLE}\n"
TICK = 0.1  # seconds
START = 10.0  # seconds that the rollback may take to stand ready


def load(texts: Sequence[str]) -> None:
    """Each text in a transaction of its own; with none, nothing is left of our table."""
    for text in texts:
        programs.nft("-f", "-", text=text)


def begin(texts: Sequence[str], seconds: int, directory: str = DIRECTORY) -> None:
    """Load `texts`; after `seconds` without `confirm` the former table comes back."""
    with _locked(directory):
        if pending(directory):
            raise Failure(
                RUNNING,
                "other rules are on trial: expected `turnawayctl firewall confirm` first, or"
                " patience until they are gone",
            )
        former = NOTHING + (programs.table(elements=True) or "")
        programs.nft("--check", "-f", "-", text=former)  # it can come back
        _write(_former(directory), former)
        _write(_pending(directory), "")
        try:
            _start(directory, seconds)
            load(texts)
        except BaseException:
            # What was loaded before the mistake goes again, now or by the rollback.
            if _take(directory):
                programs.nft("-f", "-", text=former)
            raise


def confirm(directory: str = DIRECTORY) -> None:
    """The rules on trial stay."""
    if not _take(directory):
        raise Failure(UNAVAILABLE, "no rules are on trial; the former ones may be back already")


def pending(directory: str = DIRECTORY) -> bool:
    """Whether rules are on trial."""
    return os.path.exists(_pending(directory))


def _former(directory: str) -> str:
    return os.path.join(directory, "former.nft")


def _pending(directory: str) -> str:
    return os.path.join(directory, "pending")


def _take(directory: str) -> bool:
    """End the trial; False when somebody else has."""
    try:
        os.rename(_pending(directory), os.path.join(directory, "over"))
    except FileNotFoundError:
        return False
    except PermissionError:
        raise Failure(NO_PERMISSION, f"{directory}: not permitted; be root") from None
    return True


@contextlib.contextmanager
def _locked(directory: str) -> Iterator[None]:
    """One at a time; the directory is ours alone, since root loads what lies in it."""
    try:
        os.makedirs(directory, 0o700, exist_ok=True)
        status = os.lstat(directory)
        if status.st_uid != os.geteuid() or status.st_mode & 0o7022:
            raise Failure(
                CANNOT_CREATE, f"{directory}: expected a directory that is ours alone to write"
            )
        lock = os.open(
            os.path.join(directory, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
    except PermissionError:
        raise Failure(NO_PERMISSION, f"{directory}: not permitted; be root") from None
    except OSError as error:
        raise Failure(CANNOT_CREATE, f"{directory}: {error.strerror or error}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _write(path: str, text: str) -> None:
    """The whole file or none."""
    new = f"{path}.new"
    with open(
        new, "w", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, 0o600)
    ) as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.rename(new, path)


def _start(directory: str, seconds: int) -> None:
    """The rollback, waiting in a session of its own."""
    process = subprocess.Popen(
        [sys.executable, "-I", "-m", "turnaway.firewall.trial", directory, str(seconds)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd="/",
        start_new_session=True,
    )
    assert process.stdout is not None
    with process.stdout as ready:
        if ready.readline() != b"ready\n":
            process.kill()
            raise Failure(SOFTWARE, "the rollback did not start; nothing was loaded")
    process.returncode = 0  # it outlives us; nobody waits for it


def _roll_back(directory: str, seconds: float) -> None:
    """Wait, and bring the former table back unless the trial is over by then."""
    hurry = False

    def end(*_: object) -> None:
        nonlocal hurry
        hurry = True

    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, end)  # the machine stops, or somebody is in a hurry
    with open(_former(directory)) as file:
        former = file.read()
    syslog.openlog("turnawayctl", syslog.LOG_PID, syslog.LOG_AUTH)
    os.write(1, b"ready\n")
    os.close(1)
    # Time that the machine sleeps counts.
    until = time.clock_gettime(time.CLOCK_BOOTTIME) + seconds
    while time.clock_gettime(time.CLOCK_BOOTTIME) < until and not hurry:
        if not pending(directory):
            return
        time.sleep(TICK)
    if not _take(directory):
        return
    try:
        programs.nft("-f", "-", text=former)
        syslog.syslog(syslog.LOG_WARNING, "firewall rules not confirmed: the former are back")
    except Failure as failure:
        syslog.syslog(syslog.LOG_ERR, f"firewall rules not confirmed: {failure.reasons[0]}")
        with contextlib.suppress(Failure):  # without our table nobody is diverted
            programs.nft("-f", "-", text=NOTHING)


if __name__ == "__main__":
    _roll_back(sys.argv[1], float(sys.argv[2]))
