"""All that is done as root: lock the pidfile, bind, chroot, drop.

Owns: the sockets and the pidfile between the command line and the first loop.
Promises: it accepts nobody, reads nothing a client sent, stops at the first
error with a Failure; after `drop` root cannot be regained, and after `shed` no
capability is left but the one that was asked for.
"""

import encodings.idna  # noqa: F401  # for getaddrinfo(3), whose first call may be a reload's
import errno
import fcntl
import os
import re
import resource
import socket
import stat
import struct
import sys
import time

from turnaway import _board
from turnaway._board import (
    SHARING,
    capabilities,
    keep_capabilities,
    limit_capabilities,
)
from turnaway.exits import (
    CANNOT_CREATE,
    CONFIGURATION,
    NO_PERMISSION,
    OS_ERROR,
    RUNNING,
    UNAVAILABLE,
    Failure,
)
from turnaway.settings import Identity, Listener

BACKLOG = 65535  # clamped by the kernel to net.core.somaxconn
# A client that vanishes after the handshake would hold its orphan for minutes;
# one that never closes, FIN-WAIT-2 for a minute; a chatterer, a big buffer.
# Accepted sockets inherit all three, so they cost nothing per connection.
#
# What stands in elsewhere is in net.h, under the name of the system's own option:
# - vanished: TCP_MAXUNACKTIME on FreeBSD, TCP_RXT_CONNDROPTIME on macOS.  OpenBSD
#   and NetBSD have none, and give up after a dozen retransmissions (minutes).
#   Keepalive would not help: it asks those who are idle, not who owes an ACK.
# - FIN-WAIT-2: no option but TCP_LINGER2, on Linux.  FreeBSD: for all sockets of
#   the host, sysctl net.inet.tcp.finwait2_timeout and fast_finwait2_recycle.
# - one segment: TCP_NOPUSH for TCP_CORK; NetBSD has neither and sends the banner
#   and the FIN apart, one packet more.
GIVE_UP_MILLIS = 10_000  # tcp(7) TCP_USER_TIMEOUT
FINWAIT_SECONDS = 3  # tcp(7) TCP_LINGER2; -1: no FIN-WAIT-2, no TIME-WAIT, but a reset
RECEIVE_OCTETS = 4096  # socket(7) SO_RCVBUF
NET_BIND_SERVICE = 10  # capabilities(7): its number
JANITOR_SECONDS = 0.3  # in which a janitor ends after its daemon


class Pidfile:
    """A pidfile whose lock is the truth: flock(2), held for the life of the process.

    A file that a killed process left behind is not locked, and so never blocks.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.janitor = self.janitor_pid = -1
        try:
            self.fd = self._lock()
        except OSError as error:
            what = f"{path}: cannot create the pidfile: {error.strerror}"
            raise Failure(CANNOT_CREATE, f"{what}; see --pidfile PATH|none") from None

    def _lock(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        patience = time.monotonic() + JANITOR_SECONDS
        while True:
            fd = os.open(self.path, flags, 0o644)
            # What is emptied now and removed later must be nothing but ours.
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise Failure(
                    CANNOT_CREATE,
                    f"{self.path}: not a regular file, so no pidfile; see --pidfile PATH|none",
                )
            held = os.pread(fd, 4096, 0).decode("ascii", "replace").strip()
            if held and not (held.isdecimal() and len(held) < 10):
                raise Failure(
                    CANNOT_CREATE,
                    f"{self.path}: holds something else than a pid; remove it if it is"
                    " a pidfile, else see --pidfile PATH|none",
                )
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if held and not _alive(int(held)) and time.monotonic() < patience:
                    os.close(fd)  # its janitor is about to end
                    time.sleep(0.005)
                    continue
                pid = held or "not yet written"
                raise Failure(RUNNING, f"already running, pid {pid} ({self.path})") from None
            try:
                same = os.path.samestat(os.fstat(fd), os.stat(self.path))
            except FileNotFoundError:
                same = False
            if same:
                return fd
            os.close(fd)  # removed by its last owner between open and lock

    def write(self, pid: int) -> None:
        """Called by the process that stays."""
        try:
            os.ftruncate(self.fd, 0)
            os.pwrite(self.fd, f"{pid}\n".encode("ascii"), 0)
        except OSError as error:  # such as a full disk
            what = f"{self.path}: cannot write the pidfile: {error.strerror}"
            raise Failure(CANNOT_CREATE, f"{what}; see --pidfile PATH|none") from None

    def leave_to_janitor(self, control: str = "") -> None:
        """Have the file removed although we shall not be root by then, and that of the
        control socket with it.

        A shell that does nothing but wait for one word or for our end; it keeps
        the lock until it has removed the file, and looks whether it is still ours.
        A supervisor that ends all our processes at once must not end it first.
        """
        try:
            reader, self.janitor = os.pipe()
            self.janitor_pid = os.fork()
        except OSError as error:
            raise Failure(OS_ERROR, f"cannot start the janitor: {error.strerror}") from None
        if self.janitor_pid == 0:
            try:
                os.setsid()
                os.chdir("/")
                os.dup2(reader, 0)
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, 1)
                os.dup2(null, 2)
                os.closerange(3, self.fd)
                os.closerange(self.fd + 1, 1 << 20)
                os.set_inheritable(self.fd, True)
                script = (
                    'trap "" HUP INT TERM; read -r word && [ "$word" = remove ]'
                    ' && read -r pid <"$1" && [ "$pid" = "$2" ]'
                    ' && { [ ! -S "$3" ] || rm -f -- "$3"; rm -f -- "$1"; }'
                )
                words = [self.path, str(os.getppid()), control]
                os.execv("/bin/sh", ["sh", "-c", script, "turnaway-pidfile", *words])
            finally:
                os._exit(OS_ERROR)
        os.close(reader)

    def remove(self) -> None:
        """On a clean stop.  Whoever finds it left behind finds it unlocked."""
        if self.janitor >= 0:
            try:
                os.write(self.janitor, b"remove\n")
            except BrokenPipeError:
                pass  # killed by somebody; the file stays, and is stale
            # Whoever sees us gone may start the next at once: free the lock first.
            patience = time.monotonic() + JANITOR_SECONDS
            try:
                while os.waitpid(self.janitor_pid, os.WNOHANG)[0] == 0:
                    if time.monotonic() > patience:
                        break
                    time.sleep(0.002)
            except OSError:
                # Whoever started us ignores SIGCHLD, and the kernel has waited for it; or
                # Capsicum lets us wait for nobody.
                pass
            return
        try:
            # Only ours: somebody may have removed it, and a successor made another.
            if os.path.samestat(os.fstat(self.fd), os.stat(self.path)):
                os.unlink(self.path)
        except OSError:
            pass


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def bind(
    listeners: tuple[Listener, ...], workers: int, inherited: "Inherited | None" = None
) -> list[list[socket.socket]]:
    """One listening socket per worker and listener: [worker][listener].

    The first socket of each address is bound, and listens, without SO_REUSEPORT,
    so that an address which another program has (or another Turnaway, even one
    that starts at this very moment) is an error and not quietly shared; the
    option is set afterwards, for our own other sockets.  A socket that a
    supervisor handed in is shared by all workers.

    FreeBSD's SO_REUSEPORT_LB counts only from before bind(2): there the first one
    is closed again, and the workers' are bound.  Where no option spreads the
    connections of an address, one socket is shared by all workers.
    """
    given = inherited.sockets if inherited else {}
    first = [given.get(one.place) or _bound(one, alone=True) for one in listeners]
    ours: list[Listener] = []
    for listener, one in zip(listeners, first, strict=True):
        if listener.place in given:
            _prepare(one, listener)
            _foreign(one, listener)
            continue
        if SHARING == "any time" and any(listener.port == other.port for other in ours):
            # All addresses, and one of them: both are ours.
            _board.share(one.fileno())
        _listen(one, listener)
        if SHARING == "any time":
            _board.share(one.fileno())
        ours.append(listener)
    if workers == 1 or SHARING == "never":
        return [list(first) for _ in range(workers)]
    bound = [first] if SHARING == "any time" else []
    if not bound:
        for listener, one in zip(listeners, first, strict=True):
            if listener.place not in given:
                one.close()
    while len(bound) < workers:
        row = [given.get(one.place) or _bound(one) for one in listeners]
        for listener, one in zip(listeners, row, strict=True):
            if listener.place not in given:
                _listen(one, listener)
        bound.append(row)
    return bound


def _listen(one: socket.socket, listener: Listener) -> None:
    try:
        one.listen(BACKLOG)
    except OSError as error:
        raise _unavailable(listener, error) from None


class Inherited:
    """The sockets that a supervisor handed in: sd_listen_fds(3)."""

    def __init__(self) -> None:
        self.sockets: dict[str, socket.socket] = {}
        self.names: dict[str, str] = {}  # the same places -> FileDescriptorName=
        count = os.environ.get("LISTEN_FDS", "")
        if os.environ.get("LISTEN_PID") != str(os.getpid()) or not count.isdecimal():
            return
        names = _descriptor_names(int(count))
        for fd in range(3, 3 + int(count)):
            what = f"descriptor {fd} of LISTEN_FDS ({names[fd - 3]})"
            try:
                one = socket.socket(fileno=fd)
                listening = one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            except OSError as error:
                raise Failure(OS_ERROR, f"{what}: {error.strerror}") from None
            if not listening or one.family not in (socket.AF_INET, socket.AF_INET6):
                raise Failure(
                    CONFIGURATION,
                    f"{what}: expected a listening TCP socket (Accept=no)",
                )
            address, port = one.getsockname()[:2]
            host = f"[{address}]" if ":" in address else address
            self.sockets[f"{host}:{port}"] = one
            self.names[f"{host}:{port}"] = names[fd - 3]

    def unclaimed(self, listeners: tuple[Listener, ...]) -> None:
        """Raise Failure for a socket that no listener describes."""
        places = {one.place for one in listeners}
        for place in self.sockets:
            if place not in places:
                raise Failure(
                    CONFIGURATION,
                    f"LISTEN_FDS: a socket for {place} ({self.names[place]}) was handed in, and no"
                    " listener is there;"
                    f" expected one of {', '.join(sorted(places))}",
                )


def _descriptor_names(count: int) -> list[str]:
    """One for each socket; `unknown`, as sd_listen_fds_with_names(3) has it, for those
    that have none.  They are shown, so that nothing but plain text is taken."""
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    if len(names) != count:
        return ["unknown"] * count
    return [name if re.fullmatch(r"[!-~]{1,255}", name) else "unknown" for name in names]


def tune(one: socket.socket, listener: Listener) -> None:
    """The options of a listening socket that depend on how it answers.

    Accepted sockets inherit them.  May be called again while it listens.
    """
    _board.finwait(one.fileno(), FINWAIT_SECONDS if listener.timewait else -1)
    resets = 1 if listener.close == "reset" else 0
    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", resets, 0))
    # MSG_MORE holds per call: a FIN of the client's between the banner and our own
    # would push the banner out alone.  The cork holds until our FIN.
    _board.cork(one.fileno(), listener.close in ("now", "drain"))


def _prepare(one: socket.socket, listener: Listener) -> None:
    """Every option that accepted sockets inherit."""
    one.setblocking(False)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_OCTETS)
    _board.give_up(one.fileno(), GIVE_UP_MILLIS)
    tune(one, listener)


def _bound(listener: Listener, alone: bool = False) -> socket.socket:
    family = socket.AF_INET6 if listener.ipv6 else socket.AF_INET
    try:
        made = socket.socket(family, socket.SOCK_STREAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if not alone:
            _board.share(made.fileno())
        if listener.ipv6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        _prepare(made, listener)
        _foreign(made, listener)
        host = socket.getaddrinfo(
            listener.address,
            listener.port,
            family,
            socket.SOCK_STREAM,
            flags=socket.AI_NUMERICHOST,
        )[0][4]
        made.bind(host)
    except OSError as error:
        raise _unavailable(listener, error) from None
    return made


def _foreign(one: socket.socket, listener: Listener) -> None:
    """Allow an address that this host does not have; root's capability, used here.

    IP_TRANSPARENT takes CAP_NET_ADMIN or CAP_NET_RAW, IP_FREEBIND nothing: ip(7).
    """
    if listener.bind == "plain":
        return
    names = {
        ("freebind", False): (socket.IPPROTO_IP, 15),
        ("freebind", True): (socket.IPPROTO_IPV6, 78),
        ("transparent", False): (socket.IPPROTO_IP, 19),
        ("transparent", True): (socket.IPPROTO_IPV6, 75),
    }
    if sys.platform != "linux":
        raise Failure(
            UNAVAILABLE, f"{listener.place}: bind {listener.bind} is Linux's; expected plain"
        )
    level, name = names[listener.bind, listener.ipv6]
    try:
        # A supervisor may have done it, and left us no capability for it.
        if not one.getsockopt(level, name):
            one.setsockopt(level, name, 1)
    except PermissionError:
        raise Failure(
            NO_PERMISSION,
            f"{listener.place}: bind {listener.bind} is not permitted; start as root, or give"
            " the process CAP_NET_ADMIN",
        ) from None


def _unavailable(listener: Listener, error: OSError) -> Failure:
    if error.errno in (errno.EACCES, errno.EPERM):
        return Failure(
            NO_PERMISSION,
            f"{listener.place}: not permitted; start as root, use a port above 1023, or give"
            " the process CAP_NET_BIND_SERVICE",
        )
    if error.errno == errno.EADDRINUSE:
        return Failure(UNAVAILABLE, f"{listener.place}: address in use; `ss -ltnp` shows by whom")
    if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.ENODEV):
        return Failure(UNAVAILABLE, f"{listener.place}: no interface of this host has this address")
    return Failure(OS_ERROR, f"{listener.place}: {error.strerror}")


def close_inherited() -> None:
    """Close what whoever started us left open: a daemon holds nobody's lock."""
    os.closerange(3, 1 << 20)


def allow_descriptors(needed: int) -> int:
    """Raise RLIMIT_NOFILE to `needed` if it may be raised; what it is then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed and os.geteuid() == 0:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, needed))
            hard = needed
        except (ValueError, OSError):
            pass  # above what the kernel or the container allows
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        except (ValueError, OSError):  # macOS: its own limit is lower than an unlimited one
            soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return needed if soft == resource.RLIM_INFINITY else soft


def enter_chroot(path: str) -> None:
    try:
        os.chroot(path)
        os.chdir("/")
    except OSError as error:
        raise Failure(OS_ERROR, f"chroot {path}: {error.strerror}") from None


def _become(uid: int, gid: int) -> None:
    """Real, effective and saved identity."""
    if hasattr(os, "setresuid"):
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    else:  # NetBSD and macOS: done by root, it sets all three, setuid(2)
        os.setgid(gid)
        os.setuid(uid)


def _identities() -> tuple[set[int], set[int]]:
    """The users and the groups that the process is or can be again, as far as told."""
    if hasattr(os, "getresuid"):
        return set(os.getresuid()), set(os.getresgid())
    return {os.getuid(), os.geteuid()}, {os.getgid(), os.getegid()}


def shed(keep_bind: bool) -> None:
    """Give up every capability, but with `keep_bind` that of binding ports below 1024.

    Who started us may have given some to an ordinary user, too.  Threads made from
    now on have no more than this one.  Raises OSError.
    """
    had = capabilities()
    if had:
        limit_capabilities(had & 1 << NET_BIND_SERVICE if keep_bind else 0)


def named_capabilities() -> list[str]:
    """What is left, as operators write it."""
    left = capabilities()
    return [
        "CAP_NET_BIND_SERVICE" if number == NET_BIND_SERVICE else f"capability {number}"
        for number in range(left.bit_length())
        if left >> number & 1
    ]


def drop(identity: Identity, keep_bind: bool = False) -> None:
    """Become `identity` for good, and prove it.  Groups first: afterwards is too late."""
    uid, gid = identity.uid, identity.gid
    try:
        keep_capabilities(keep_bind)
        os.setgroups([])
        _become(uid, gid)
        shed(keep_bind)
        keep_capabilities(False)
    except OSError as error:
        raise Failure(OS_ERROR, f"cannot become {identity.user}: {error.strerror}") from None
    # FreeBSD and macOS count the group of the process among the others: getgroups(2).
    if _identities() != ({uid}, {gid}) or set(os.getgroups()) - {gid}:
        raise Failure(OS_ERROR, f"could not become {identity.user} altogether; not serving")
    for regain in (os.setuid, os.seteuid, os.setgid):
        try:
            regain(0)
        except PermissionError:
            continue
        raise Failure(OS_ERROR, "root could be regained after the drop; not serving")
