"""What is left to the daemon once it has started, and how the rest is given up.

Owns: the list of what the settings still need then, and one function a platform
that gives up everything else, for this thread and all that it starts.  Called
after the drop, before the first loop; nothing ever opens the door again.

    Linux    Landlock: no file is opened, made, executed or removed, no TCP port
             bound, no TCP connection made, no abstract socket reached and no other
             process signalled, but for the list.  What the kernel's version of it
             does not know is not forbidden; version 7 knows neither UDP nor the
             sockets of paths, so syslog is found again.
    OpenBSD  unveil and pledge.  Binding cannot be told from answering there.
    FreeBSD  Capsicum's capability mode.  Sockets and directories that are open
             go on: answering, metrics, the rotation of a JSON log.  No path and no
             address can be named: a reload cannot read its file and says so, and
             a syslog daemon that was restarted is not found again.

The latter two were never run, and are written by their manuals alone.

With all of them no core of the process is written (RLIMIT_CORE, and
PR_SET_DUMPABLE, since a kernel that pipes its cores does not ask the limit);
nobody but root can trace it.  /proc/PID/fd, environ and the like are then root's.
"""

import errno
import os
import resource
import stat
import sys
from collections.abc import Iterable
from dataclasses import dataclass

from turnaway import _board
from turnaway.exits import CONFIGURATION, Failure
from turnaway.settings import Settings

READ = _board.MAY_READ
WRITE = _board.MAY_WRITE
MAKE = _board.MAY_MAKE
REMOVE = _board.MAY_REMOVE
# A descriptor that does no more than name a place: open(2).
_NAMED = getattr(os, "O_PATH", os.O_RDONLY) | os.O_CLOEXEC

# The first version of Landlock that knows bind(2) and connect(2), and the first
# that knows abstract sockets and signals.
_NETWORK, _SCOPES = 4, 6
_ABSENT = {
    errno.ENOSYS: "kernel without Landlock",
    errno.EOPNOTSUPP: "Landlock is not among the kernel's lsm=",
}


@dataclass(frozen=True, slots=True)
class _Need:
    """A file or directory, and what must still be done there: MAY_*, added."""

    path: str
    may: int
    fd: int = -1  # opened before a chroot; -1: look for the path


class Sandbox:
    """Made before the chroot, closed after the drop.

    `sources` are the files that a reload would read; None: there is nothing to
    reload.
    """

    def __init__(self, settings: Settings, sources: Iterable[str] | None) -> None:
        self._settings = settings
        self._sources = sources
        # A reload may bind another address, on the ports that the settings have; any
        # port only for who said so.
        self._ports: set[int] | None = {one.port for one in settings.listeners}
        if sources is None:
            self._ports = set()
        elif settings.keep_bind:
            self._ports = None
        self._held: list[_Need] = []
        self.in_force = "off"
        if settings.sandbox == "off":
            return
        if settings.log == "json" and settings.json_path != "-":
            self._hold(settings.json_path, WRITE | MAKE)
        where = settings.metrics
        if where is not None and where.kind != "tcp":
            self._hold(where.where, REMOVE | (WRITE | MAKE if where.kind == "file" else 0))

    def _hold(self, path: str, may: int) -> None:
        """The directory of `path`, since the file is replaced; a device is not."""
        try:
            replaced = not stat.S_ISCHR(os.stat(path).st_mode)
        except OSError:
            replaced = True
        where = os.path.dirname(path) if replaced else path
        try:
            self._held.append(_Need(where, may, os.open(where, _NAMED)))
        except OSError:
            pass  # whoever needs it has said so

    def _needs(self) -> list[_Need]:
        """All of them, by paths as they are inside the chroot."""
        settings = self._settings
        found: dict[str, int] = {}
        for source in self._sources or ():
            # An editor replaces a file, and a drop-in may come: their directories.
            # Landlock looks where symbolic links lead.
            for path in (source, os.path.realpath(source)):
                found[os.path.dirname(path)] = READ
        # What names a daemon that was root is removed by its janitor.
        leavings = [settings.control] if settings.identity is None or not settings.pidfile else []
        leavings += [settings.pidfile] if settings.identity is None else []
        for leaving in leavings:
            if leaving is not None and os.access(folder := os.path.dirname(leaving), os.W_OK):
                found[folder] = found.get(folder, 0) | REMOVE
        return [*self._held, *(_Need(path, may) for path, may in found.items())]

    def close(self) -> None:
        """Give up the rest; `in_force` says what that is.  Raises Failure when something
        must be, and cannot."""
        if self._settings.sandbox == "off":
            return
        try:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            _board.undumpable()
            self.in_force = self._give_up()
        except OSError as error:
            call = f"{error.strerror}: {os.strerror(error.errno or 0)}"
            why = _ABSENT.get(error.errno or 0, call)
            self.in_force = f"none: {why}"
            if self._settings.sandbox == "require":
                raise Failure(
                    CONFIGURATION,
                    f"--sandbox require: {why}; expected Linux 5.13 or newer with landlock among"
                    " its lsm=, or --sandbox on, which goes on without",
                ) from None
        finally:
            for need in self._held:
                os.close(need.fd)
            self._held.clear()

    def _give_up(self) -> str:
        if sys.platform.startswith("openbsd"):
            return self._openbsd()
        if sys.platform.startswith("freebsd"):
            return self._freebsd()
        return self._linux()

    def _linux(self) -> str:
        abi = _board.landlock_abi()
        rules, opened = [], []
        try:
            for need in self._needs():
                fd = need.fd
                if fd < 0:
                    try:
                        fd = os.open(need.path, _NAMED)
                    except OSError:
                        continue  # what is not there now, or hidden, needs a restart
                    opened.append(fd)
                rules.append((fd, need.may))
            _board.landlock(abi, rules, self._ports)
        finally:
            for fd in opened:
                os.close(fd)
        lacks = " (files only)" if abi < _NETWORK else " (files and TCP)" if abi < _SCOPES else ""
        return f"landlock ABI {abi}{lacks}"

    def _openbsd(self) -> str:
        settings = self._settings
        promises = ["stdio", "inet"]
        if settings.log == "syslog":
            self._unveil(settings.syslog_socket, "w")
        if settings.log == "syslog" or settings.control or settings.metrics:
            promises.append("unix")
        wanted = 0
        for need in self._needs():
            wanted |= need.may
            letters = ((READ, "r"), (WRITE, "w"), (MAKE | REMOVE, "c"))
            self._unveil(need.path, "".join(letter for may, letter in letters if need.may & may))
        # The textfile of metrics is made readable by fchmod(2).
        for may, promise in (
            (READ, "rpath"),
            (WRITE, "wpath"),
            (MAKE | REMOVE, "cpath"),
            (WRITE, "fattr"),
        ):
            if wanted & may:
                promises.append(promise)
        _board.unveil(None, "")
        _board.pledge(" ".join(promises))
        return f"pledge {' '.join(promises)}"

    def _unveil(self, path: str, permissions: str) -> None:
        try:
            _board.unveil(os.fsencode(path), permissions)
        except FileNotFoundError:
            pass  # what is not there now needs a restart

    def _freebsd(self) -> str:
        _board.capability_mode()
        return "capsicum"
