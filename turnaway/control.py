"""The control socket: who may ask, how a request is read and a reply is written.

Owns: the socket's file, its clients, and the protocol.  A client sends one line,
a JSON object such as `{"v": 1, "do": "status"}`, and gets one line back:
`{"v": 1, "ok": true, ...}` or `{"v": 1, "ok": false, "status": 64, "reasons":
["..."]}`, the status being one of sysexits(3).  Then the daemon closes, but after
`tail`: that is followed by lines `{"record": "..."}` and `{"lost": 12}` for as long
as the client stays.  What the requests do stands in orders.py.

Promises: only root and the daemon's own user are answered; nothing waits for a
client; the memory of each is bounded, and so is their number and the time in which
they must have asked; nothing that a client sent is repeated to anybody.
"""

import errno
import json
import os
import re
import socket
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from turnaway._board import peer_user
from turnaway.exits import CANNOT_CREATE, NO_PERMISSION, RUNNING, USAGE, Failure
from turnaway.poller import READ, WRITE, Poller
from turnaway.settings import Identity

VERSION = 1
LINE_OCTETS = 4096  # of a request, its newline not counted
CLIENTS = 16
TAILS = 8  # of them, who stay; the others get their place sooner or later
BACKLOG = 128
ASK_SECONDS = 5.0  # to send the request, and to take the reply
TAIL_OCTETS = 1 << 16  # unread by a tail; what comes then is lost to it
RECORDS = 1500  # looked at for the tails, from one tick to the next
TOP_SECONDS = 60.0  # after a `top` in which another is to be expected
TAIL_TICK = 0.2  # seconds between two ticks while there is a tail


class Door:
    """The listening socket and the file by which it is found.

    The file of a daemon that was killed refuses connections, and is replaced.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.setblocking(False)
        mask = os.umask(0o177)
        try:
            try:
                self.socket.bind(path)
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                _remove_stale(path)
                self.socket.bind(path)
            self._file = os.lstat(path)
            self.socket.listen(BACKLOG)
        except OSError as error:
            raise _cannot(path, str(error.strerror or error)) from None
        finally:
            os.umask(mask)

    def give(self, identity: Identity) -> None:
        """Let whom we become have the file."""
        try:
            os.chown(self.path, identity.uid, identity.gid, follow_symlinks=False)
        except OSError as error:
            raise _cannot(self.path, str(error.strerror)) from None

    def remove(self) -> None:
        """On a clean stop, if it is still ours and we may; a file left behind is stale."""
        try:
            if os.path.samestat(os.lstat(self.path), self._file):
                os.unlink(self.path)
        except OSError:
            pass


def _cannot(path: str, why: str) -> Failure:
    return Failure(
        CANNOT_CREATE, f"{path}: cannot create the control socket: {why}; see --control PATH|none"
    )


def _remove_stale(path: str) -> None:
    """Remove a socket's file that nobody listens on; Failure for any other."""
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        raise _cannot(path, "something that is not a socket is there")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:
            pass  # somebody listens, and has much to do
    raise Failure(
        RUNNING, f"{path}: another daemon has this control socket; see --control PATH|none"
    )


_RECORD = re.compile(
    r"turned away from=\[([^]]*)\]:\d+ to=\[([^]]*)\]:(\d+) as=(\S*) persona=(\S*)"
)


@dataclass(frozen=True)
class Choice:
    """Which records a tail wants; None: any."""

    network: tuple[bytes, int] | None = None  # as packed() makes it, and bits
    persona: str | None = None
    name: str | None = None
    port: int | None = None
    address: str | None = None
    ipv6: bool | None = None

    def takes(self, record: str) -> bool:
        found = _RECORD.match(record)
        if found is None:
            return False
        if self.network is not None:
            octets, bits = self.network
            shift = len(octets) * 8 - bits
            source = packed(found[1])
            if len(source) != len(octets):
                return False
            if int.from_bytes(source) >> shift != int.from_bytes(octets) >> shift:
                return False
        return (
            self.persona in (None, found[5])
            and self.name in (None, found[4])
            and self.port in (None, int(found[3]))
            and self.address in (None, found[2])
            and self.ipv6 in (None, ":" in found[1])
        )


def packed(address: str) -> bytes:
    """An address as 4 or 16 octets.  Raises OSError for what is none."""
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


# A request -> the reply without `v` and `ok`, and for a tail its choice.
# Raises Failure for a request that cannot be met.
Order = Callable[[dict[str, Any], str], tuple[dict[str, Any], Choice | None]]


class Control:
    """The clients at the door.  `order` does what they ask for."""

    def __init__(self, door: Door, poller: Poller, order: Order) -> None:
        self._socket = door.socket
        self.poller = poller
        self.order = order
        self.clients: set[_Client] = set()
        self.top_until = 0.0
        self._users = (0, os.geteuid())
        poller.watch(self._socket.fileno(), self._admit)

    @property
    def tails(self) -> "list[_Client]":
        return [one for one in self.clients if one.choice is not None]

    def watched(self) -> bool:
        """Whether somebody wants records, if only to see who is busiest."""
        return bool(self.tails) or time.monotonic() < self.top_until

    def patience(self, seconds: float) -> float:
        """How long a tick may last that would last so long."""
        return min(seconds, TAIL_TICK) if any(one.choice for one in self.clients) else seconds

    def tick(self, records: list[str], unseen: int) -> None:
        """The records since the last tick, to whom they concern; and who has had
        their time."""
        # One that could not be accepted for want of descriptors still waits.
        self.poller.watch(self._socket.fileno(), self._admit)
        for one in self.tails:
            one.tell(records, unseen)
        late = time.monotonic() - ASK_SECONDS
        for one in [one for one in self.clients if one.choice is None and one.since < late]:
            one.late()

    def close(self) -> None:
        """The daemon ends; whoever listens to the end of it gets it."""
        self.poller.forget(self._socket.fileno())
        for one in list(self.clients):
            one.close()

    def _admit(self) -> None:
        for _ in range(BACKLOG):
            try:
                one = self._socket.accept()[0]
            except (BlockingIOError, ConnectionAbortedError, InterruptedError):
                return
            except OSError:
                # No descriptor, no memory: poll(2) would call again at once.
                self.poller.forget(self._socket.fileno())
                return
            client = _Client(self, one)
            uid = peer_user(one.fileno())
            if uid not in self._users:
                client.refuse(Failure(NO_PERMISSION, "only root and the daemon's user may ask"))
            elif len(self.clients) >= CLIENTS:
                client.refuse(Failure(RUNNING, f"{CLIENTS} others are asking; try again"))
            else:
                client.stay(uid)


class _Client:
    """One connection: a request is read, or a reply written; never both."""

    def __init__(self, control: Control, one: socket.socket) -> None:
        self.choice: Choice | None = None
        self.since = time.monotonic()
        self._control = control
        self._socket = one
        self._socket.setblocking(False)
        self._who = ""
        self._heard = b""
        self._unsent = bytearray()
        self._lost = 0

    def stay(self, uid: int) -> None:
        self._who = f"uid {uid}"
        self._control.clients.add(self)
        self._watch()

    def _watch(self) -> None:
        events = WRITE if self._unsent else READ
        self._control.poller.watch(self._socket.fileno(), self._ready, events)

    def _ready(self) -> None:
        if self._unsent:
            self._send()
        else:
            self._read()

    def _read(self) -> None:
        try:
            octets = self._socket.recv(LINE_OCTETS + 1)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            return self.close()
        if self.choice is not None:  # a tail has nothing more to say
            return None if octets else self.close()
        self._heard += octets
        line, end, _ = self._heard.partition(b"\n")
        try:
            if len(line) > LINE_OCTETS:
                raise Failure(USAGE, f"a request is at most {LINE_OCTETS} octets")
            if end:
                self._obey(line)
            elif not octets and line:
                raise Failure(USAGE, "the request ends before its newline")
            elif not octets:
                self.close()
        except Failure as failure:
            self.refuse(failure)

    def _obey(self, line: bytes) -> None:
        request = _request(line)
        if request.get("do") == "top":
            self._control.top_until = time.monotonic() + TOP_SECONDS
        reply, choice = self._control.order(request, self._who)
        if choice is not None and len(self._control.tails) >= TAILS:
            raise Failure(RUNNING, f"{TAILS} others tail already")
        self._put({"v": VERSION, "ok": True, **reply})
        self.choice = choice
        self._send()

    def refuse(self, failure: Failure) -> None:
        """One clear error, and the end."""
        self._put({"v": VERSION, "ok": False, "status": failure.status, "reasons": failure.reasons})
        self._send()

    def late(self) -> None:
        """Neither asked nor took the reply in time."""
        if not self._unsent:
            self._put(
                {
                    "v": VERSION,
                    "ok": False,
                    "status": USAGE,
                    "reasons": [f"no request came within {ASK_SECONDS:.0f} s"],
                }
            )
            self._send()
        self.close()

    def tell(self, records: list[str], unseen: int) -> None:
        """The records that were chosen, as far as there is room."""
        assert self.choice is not None
        self._lost += unseen
        for record in records:
            if not self.choice.takes(record):
                continue
            if len(self._unsent) > TAIL_OCTETS:
                self._lost += 1
                continue
            self._tell_lost()
            self._put({"record": record})
        if len(self._unsent) <= TAIL_OCTETS:
            self._tell_lost()
        if self._unsent:
            self._send()

    def _tell_lost(self) -> None:
        if self._lost:
            self._put({"lost": self._lost})
            self._lost = 0

    def _put(self, message: dict[str, Any]) -> None:
        self._unsent += json.dumps(message, separators=(",", ":")).encode("ascii") + b"\n"

    def _send(self) -> None:
        """As much as the client takes now; who was answered is let go."""
        try:
            del self._unsent[: self._socket.send(self._unsent)]
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            return self.close()
        known = self in self._control.clients
        if known and (self._unsent or self.choice is not None):
            self._watch()
        else:
            self.close()

    def close(self) -> None:
        if self._socket.fileno() < 0:
            return
        self._control.clients.discard(self)
        self._control.poller.forget(self._socket.fileno())
        self._socket.close()


def _request(line: bytes) -> dict[str, Any]:
    """A line as a request.  Raises Failure."""
    try:
        request = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        request = None
    if not isinstance(request, dict):
        raise Failure(USAGE, "a request is one JSON object on one line")
    version = request.pop("v", None)
    if type(version) is not int or version != VERSION:
        raise Failure(USAGE, f"expected version {VERSION} of the protocol, as v")
    return request
