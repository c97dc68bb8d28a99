"""The counters for Prometheus: over HTTP on a socket, or in a file.

Owns: the names of the metrics, the socket or directory from before the drop,
and the few clients of that socket.  Promises: everything is opened and imported
before the chroot and the drop; no label tells one client from another; counters
never fall while the process lives; a client of ours that does not speak, does
not read or never leaves costs a place for a second when others want it, never
the time of the tick.

A socket is bounded in clients, in octets of a request and in seconds, and what
it says is made at most four times a second.  A file is written beside its place
and renamed, at the start and then at every interval, 15 s at the most; what the
counters were is removed at a clean stop, so that nobody takes them for current.

Messages begin with the word `metrics`.
"""

import errno
import os
import re
import socket
import stat
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, cast

from turnaway import __version__
from turnaway.exits import (
    CANNOT_CREATE,
    CONFIGURATION,
    NO_PERMISSION,
    OS_ERROR,
    UNAVAILABLE,
    Failure,
)
from turnaway.outlet import ERROR, NOTICE
from turnaway.poller import READ, WRITE, Poller
from turnaway.settings import PROMETHEUS, Exposition, Settings
from turnaway.stats import ERRORS, OUTCOMES, REFUSALS, RESTING, Ledger, Row, Sums, Totals

if TYPE_CHECKING:
    from prometheus_client import Metric

CLIENTS = 8  # of the socket, at once
REQUEST_OCTETS = 8192
CLIENT_SECONDS = 5.0  # from connection to close
GRACE_SECONDS = 1.0  # before a client may be closed for another one
FRESH_SECONDS = 0.25  # in which a second client gets what was made for the first
FILE_SECONDS = 15.0

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
INDEX = (
    b"<!DOCTYPE html><html><head><title>Turnaway</title></head>"
    b'<body><p>Turnaway: <a href="/metrics">metrics</a></p></body></html>\n'
)
NETSTAT = "/proc/net/netstat"
# How a folder is opened to reach what is in it; without O_PATH it must be readable.
FOLDER = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY

# What other protocols than the banner's own are answered, and the counter.
OTHERS = {"http": "answered_http", "tls": "answered_tls", "socks": "answered_socks"}


class _Netstat:
    """The kernel's own counters of full queues, of our network namespace."""

    def __init__(self) -> None:
        try:
            self._fd = os.open(NETSTAT, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._fd = -1  # not Linux, or no /proc: then without

    def read(self) -> dict[str, int]:
        """The group TcpExt, proc(5); empty where there is none."""
        if self._fd < 0:
            return {}
        try:
            text = os.pread(self._fd, 1 << 16, 0).decode("ascii", "replace")
        except OSError:
            return {}
        rows = [line.split() for line in text.splitlines() if line.startswith("TcpExt:")]
        if len(rows) != 2:
            return {}
        return {
            name: int(count)
            for name, count in zip(*rows, strict=False)
            if count.removeprefix("-").isdecimal()
        }


class Collector:
    """The counters as Prometheus' families of metrics."""

    def __init__(self, ledger: Ledger, lost: Callable[[], int]) -> None:
        self._ledger = ledger
        self._lost = lost
        self._netstat = _Netstat()
        self._began = time.time()
        self._banners: dict[Row, int] = {}

    def text(self) -> bytes:
        from prometheus_client.exposition import generate_latest

        return generate_latest(cast(Any, self))

    def collect(self) -> "Iterator[Metric]":
        sums = self._ledger.sums()
        yield from self._of_listeners(sums)
        yield from self._of_held(sums)
        yield from self._of_process(sums)

    def _of_listeners(self, sums: Sums) -> "Iterator[Metric]":
        from prometheus_client.core import CounterMetricFamily as Counter
        from prometheus_client.core import GaugeMetricFamily as Gauge

        by_persona: dict[tuple[str, str], Totals] = {}
        by_place: dict[str, Totals] = {}
        for row, totals in sums.rows.items():
            key = row.place, row.persona
            by_persona[key] = totals.plus(by_persona.get(key, Totals()))
            by_place[row.place] = totals.plus(by_place.get(row.place, Totals()))

        accepted = Counter(
            "turnaway_accepted_connections",
            "Connections taken from the queue; without an outcome yet while they are held unanswered.",
            labels=("listener", "persona"),
        )
        connections = Counter(
            "turnaway_connections",
            "Connections that were turned away, by what became of the answer.",
            labels=("listener", "persona", "outcome"),
        )
        for (place, persona), totals in by_persona.items():
            accepted.add_metric((place, persona), totals["accepted"])
            for outcome in OUTCOMES:
                connections.add_metric((place, persona, outcome), totals[outcome])
        yield accepted
        yield connections

        if sums.listed:
            listed = Counter(
                "turnaway_listed_connections",
                "Connections whose client was on a list.",
                labels=("list",),
            )
            for name, count in sums.listed.items():
                listed.add_metric((name,), count)
            yield listed

        said = Counter(
            "turnaway_answers",
            "Answers handed to the kernel whole, by protocol.",
            labels=("listener", "protocol"),
        )
        for (place, protocol), count in sorted(self._answers(sums).items()):
            said.add_metric((place, protocol), count)
        yield said

        failures = Counter(
            "turnaway_accept_errors",
            "Errors of accept(2).",
            labels=("listener", "errno"),
        )
        for place, totals in by_place.items():
            for name in ERRORS:
                # Those that rest a listener always, so that an alert has a 0 to begin at.
                if totals[name] or name in RESTING:
                    failures.add_metric((place, name), totals[name])
        yield failures

        for name, counter, words in (
            ("turnaway_listener_rests", "rests", "Times a listener was rested after an error."),
            ("turnaway_early_talkers", "early", "Clients that talked before the greeting."),
            (
                "turnaway_requests_expired",
                "expired",
                "Clients that did not say in time what they want, and were answered then.",
            ),
            (
                "turnaway_drains_expired",
                "drain_expired",
                "Answered clients that were closed because they did not leave in time.",
            ),
            (
                "turnaway_held_sacrificed",
                "sacrificed",
                "Answered clients that were closed before they left, for their descriptor.",
            ),
        ):
            family = Counter(name, words, labels=("listener",))
            for place, totals in by_place.items():
                family.add_metric((place,), totals[counter])
            yield family

        commands = Counter(
            "turnaway_commands",
            "Commands in the dialogue of close policy quit, by the reply.",
            labels=("listener", "code"),
        )
        for place, totals in by_place.items():
            commands.add_metric((place, "221"), totals["quits"])
            commands.add_metric((place, "503"), totals["commands_wrong"])
        yield commands

        paused = Gauge(
            "turnaway_listener_paused",
            "1 while a listener takes no connections because an operator said so.",
            labels=("listener",),
        )
        for place, now in self._ledger.paused().items():
            paused.add_metric((place,), now)
        yield paused

    def _answers(self, sums: Sums) -> dict[tuple[str, str], int]:
        """By (place, protocol).  A banner is whatever was no other answer; as the
        loops count on while we read, that difference might fall: it does not."""
        found: dict[tuple[str, str], int] = {}
        for row, totals in sums.rows.items():
            # A difference of its own for each row: the sum of floors is a floor.
            others = sum(totals[counter] for counter in OTHERS.values())
            banners = max(totals["sent"] - others, self._banners.get(row, 0))
            self._banners[row] = banners
            for protocol, count in (
                (row.protocol, banners),
                *((protocol, totals[counter]) for protocol, counter in OTHERS.items()),
            ):
                if count or protocol == row.protocol:
                    at = row.place, protocol
                    found[at] = found.get(at, 0) + count
        return found

    def _of_held(self, sums: Sums) -> "Iterator[Metric]":
        from prometheus_client.core import CounterMetricFamily as Counter
        from prometheus_client.core import GaugeMetricFamily as Gauge

        held = self._ledger.held()
        yield Gauge("turnaway_held_sockets", "Sockets that are held now.", held)
        yield Gauge(
            "turnaway_held_sockets_limit",
            "Sockets that may be held.",
            self._ledger.settings.limits.held,
        )
        refusals = Counter(
            "turnaway_held_refusals",
            "Clients closed at once though they should have been held.",
            labels=("reason",),
        )
        for reason, counter in REFUSALS.items():
            refusals.add_metric((reason,), sum(row[counter] for row in sums.rows.values()))
        yield refusals
        yield Gauge(
            "turnaway_stress",
            "1 while so many sockets are held that no more are.",
            self._ledger.stressed(),
        )
        yield Counter("turnaway_stresses", "Times that stress began.", sums.stresses)

    def _of_process(self, sums: Sums) -> "Iterator[Metric]":
        from prometheus_client.core import CounterMetricFamily as Counter
        from prometheus_client.core import GaugeMetricFamily as Gauge
        from prometheus_client.core import HistogramMetricFamily as Histogram
        from prometheus_client.core import InfoMetricFamily as Info

        buckets = []
        below = 0
        for number, count in enumerate(sums.disposal):
            below += count
            last = number == len(sums.disposal) - 1
            buckets.append(("+Inf" if last else repr((16 << number) / 1_000_000), below))
        yield Histogram(
            "turnaway_disposal_seconds",
            "From the wakeup that brought a connection (of a held one: from its hold) to its answer.",
            buckets,
            sums.disposal_micros / 1_000_000,
        )
        yield Counter("turnaway_log_lines_lost", "Lines that the log did not take.", self._lost())
        yield Counter(
            "turnaway_records_dropped",
            "Connection records that found no room on their way to the log.",
            sums.dropped,
        )
        kernel = self._netstat.read()
        for name, key in (("overflows", "ListenOverflows"), ("drops", "ListenDrops")):
            if key in kernel:
                yield Counter(
                    f"turnaway_listen_{name}",
                    f"{key} of the kernel, over all listeners of the host or network namespace.",
                    kernel[key],
                )
        reloads = Counter("turnaway_reloads", "Reloads, by how they ended.", labels=("result",))
        for result, count in self._ledger.reloads.items():
            reloads.add_metric((result,), count)
        yield reloads
        turns = Counter("turnaway_worker_turns", "Wakeups of a worker's loop.", labels=("worker",))
        for worker, count in enumerate(sums.turns):
            turns.add_metric((str(worker),), count)
        yield turns
        yield Info("turnaway_build", "What is running.", {"version": __version__})
        yield Gauge("turnaway_start_time_seconds", "When the process began.", self._began)


class _Client:
    """One who wants the metrics."""

    def __init__(self, one: socket.socket, since: float) -> None:
        self.socket = one
        self.since = since
        self.heard = b""
        self.rest = b""  # of the answer
        self.answered = False


class _Server:
    """HTTP/1.1 as far as a scrape needs it."""

    def __init__(self, door: socket.socket, text: Callable[[], bytes]) -> None:
        self._door = door
        self._text = text
        self._clients: dict[int, _Client] = {}  # the oldest first
        self._open = False

    def begin(self, poller: Poller) -> None:
        self._poller = poller
        self._unlock()

    def _unlock(self) -> None:
        if not self._open:
            self._open = True
            self._poller.watch(self._door.fileno(), self._accept)

    def _lock(self) -> None:
        """Leave who comes in the queue until there is room."""
        self._open = False
        self._poller.forget(self._door.fileno())

    def tick(self, now: float) -> None:
        for client in list(self._clients.values()):
            if now - client.since > CLIENT_SECONDS:
                self._close(client)
        self._unlock()

    def end(self) -> None:
        for client in list(self._clients.values()):
            self._close(client)
        self._lock()
        self._door.close()

    def _accept(self) -> None:
        for _ in range(CLIENTS):
            now = time.monotonic()
            if len(self._clients) >= CLIENTS:
                oldest = next(iter(self._clients.values()))
                if now - oldest.since < GRACE_SECONDS:
                    self._lock()
                    return
                self._close(oldest)
            try:
                one, _ = self._door.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError:  # such as out of descriptors: the tick tries again
                self._lock()
                return
            one.setblocking(False)
            client = _Client(one, now)
            self._clients[one.fileno()] = client
            self._poller.watch(one.fileno(), lambda client=client: self._ready(client))  # type: ignore[misc]

    def _close(self, client: _Client) -> None:
        fd = client.socket.fileno()
        self._poller.forget(fd)
        del self._clients[fd]
        client.socket.close()
        self._unlock()

    def _ready(self, client: _Client) -> None:
        try:
            if client.rest:
                self._write(client)
            else:
                self._read(client)
        except BlockingIOError:
            pass
        except OSError:
            self._close(client)

    def _read(self, client: _Client) -> None:
        heard = client.socket.recv(REQUEST_OCTETS)
        if not heard:
            self._close(client)
            return
        if client.answered:
            return  # thrown away, until it closes or its time is over
        client.heard += heard
        if re.search(rb"\n\r?\n", client.heard):
            client.rest = self._answer(client.heard)
        elif len(client.heard) > REQUEST_OCTETS:
            client.rest = _response("431 Request Header Fields Too Large", b"too long\n")
        else:
            return
        client.answered = True
        client.heard = b""
        self._poller.watch(client.socket.fileno(), lambda: self._ready(client), WRITE)
        self._write(client)

    def _write(self, client: _Client) -> None:
        client.rest = client.rest[client.socket.send(client.rest) :]
        if not client.rest:
            # A close with unread input would be a reset, and might cost the answer.
            client.socket.shutdown(socket.SHUT_WR)
            self._poller.watch(client.socket.fileno(), lambda: self._ready(client), READ)

    def _answer(self, heard: bytes) -> bytes:
        line = re.match(rb"(?:\r?\n)*([!-~]+) ([!-~]+) HTTP/1\.[0-9]\r?\n", heard)
        if line is None:
            return _response("400 Bad Request", b"this is no HTTP/1 request\n")
        method = line[1]
        path = re.sub(rb"^https?://[^/]*", b"", line[2]).partition(b"?")[0]
        head = method == b"HEAD"
        if path not in (b"/metrics", b"/", b""):
            return _response("404 Not Found", b"there is /metrics here\n", head=head)
        if method not in (b"GET", b"HEAD"):
            said = b"GET or HEAD\n"
            return _response("405 Method Not Allowed", said, "text/plain", "Allow: GET, HEAD\r\n")
        if path == b"/metrics":
            return _response("200 OK", self._text(), CONTENT_TYPE, head=head)
        return _response("200 OK", INDEX, "text/html; charset=utf-8", head=head)


def _response(
    status: str, body: bytes, kind: str = "text/plain", more: str = "", head: bool = False
) -> bytes:
    fields = (
        f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
        f"{more}Cache-Control: no-store\r\nConnection: close\r\n\r\n"
    )
    return fields.encode("ascii") + (b"" if head else body)


class _File:
    """A file for the textfile collector of the node exporter."""

    def __init__(self, path: str, text: Callable[[], bytes]) -> None:
        self._path = path
        self._text = text
        self._name = os.path.basename(path)
        # The collector reads *.prom, so not this one.
        self._draft = f".{self._name}.tmp"
        self._failing = False
        self._due = 0.0
        try:
            self._folder = os.open(os.path.dirname(path), FOLDER)
        except OSError as error:
            said = f"--metrics file:{path}: {error.strerror}"
            raise Failure(CANNOT_CREATE, said) from None

    def begin(self) -> None:
        """After the drop: whether the user may write there is known only now."""
        try:
            self._write()
        except OSError as error:
            raise Failure(
                CANNOT_CREATE,
                f"--metrics file:{self._path}: {error.strerror}; the user of the daemon must be"
                " able to make files in that directory",
            ) from None

    def _write(self) -> None:
        try:
            os.unlink(self._draft, dir_fd=self._folder)
        except FileNotFoundError:
            pass
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(self._draft, flags, 0o644, dir_fd=self._folder)
        try:
            os.fchmod(fd, 0o644)  # whatever the umask: another user reads it
            rest = self._text()
            while rest:
                rest = rest[os.write(fd, rest) :]
        finally:
            os.close(fd)
        folder = self._folder
        os.rename(self._draft, self._name, src_dir_fd=folder, dst_dir_fd=folder)

    def tick(self, now: float, interval: float) -> Iterator[tuple[int, str]]:
        if now < self._due:
            return
        self._due = now + min(interval, FILE_SECONDS) - 0.5  # ticks come once a second
        try:
            self._write()
        except OSError as error:
            if not self._failing:
                self._failing = True
                yield ERROR, f"metrics: {self._path} cannot be written: {error.strerror}"
            return
        if self._failing:
            self._failing = False
            yield NOTICE, f"metrics: {self._path} is written again"

    def end(self) -> None:
        for name in (self._draft, self._name):
            try:
                os.unlink(name, dir_fd=self._folder)
            except OSError:
                pass


class Metrics:
    """Opened before the drop; `begin` after it, then `tick` about once a second."""

    def __init__(self, where: Exposition, ledger: Ledger, lost: Callable[[], int]) -> None:
        try:
            import prometheus_client.core
            import prometheus_client.exposition
        except ImportError as error:
            raise Failure(CONFIGURATION, f"--metrics: {PROMETHEUS} ({error})") from None
        # A chroot may hide what else would be imported at the first use.
        prometheus_client.exposition.generate_latest(
            prometheus_client.core.CollectorRegistry(auto_describe=False)
        )
        self._where = where
        self._ledger = ledger
        self._collector = Collector(ledger, lost)
        self._made = b""
        self._made_at = float("-inf")
        self._file: _File | None = None
        self._server: _Server | None = None
        self._folder = -1
        if where.kind == "file":
            self._file = _File(where.where, self._collector.text)
        else:
            self._server = _Server(_door(where), self._text)
            if where.kind == "unix":
                self._folder = os.open(os.path.dirname(where.where), FOLDER)

    def _text(self) -> bytes:
        """Made anew, but for who asks again at once."""
        now = time.monotonic()
        if now - self._made_at > FRESH_SECONDS:
            self._made, self._made_at = self._collector.text(), now
        return self._made

    def begin(self, poller: Poller) -> None:
        """The first board is followed.  Raises Failure."""
        if self._server:
            self._server.begin(poller)
        if self._file:
            self._file.begin()

    def tick(self) -> Iterator[tuple[int, str]]:
        """(severity, message) for what began or ended."""
        now = time.monotonic()
        if self._server:
            self._server.tick(now)
        if self._file:
            yield from self._file.tick(now, self._ledger.settings.limits.interval)

    def end(self) -> None:
        """A clean stop: nothing stays that looks alive, as far as the user may remove it."""
        if self._file:
            self._file.end()
        if self._server:
            self._server.end()
        if self._folder >= 0:
            try:
                os.unlink(os.path.basename(self._where.where), dir_fd=self._folder)
            except OSError:
                pass


def opened(settings: Settings, ledger: Ledger, lost: Callable[[], int]) -> Metrics | None:
    """What --metrics asks for, before the chroot and the drop.  Raises Failure."""
    return Metrics(settings.metrics, ledger, lost) if settings.metrics else None


def _door(where: Exposition) -> socket.socket:
    if where.kind == "unix":
        family, address = socket.AF_UNIX, where.where
    else:
        family = socket.AF_INET6 if ":" in where.where else socket.AF_INET
        address = socket.getaddrinfo(
            where.where, where.port, family, socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
        )[0][4]  # type: ignore[assignment]
    try:
        made = socket.socket(family, socket.SOCK_STREAM)
        made.setblocking(False)
        if family == socket.AF_UNIX:
            _unlink_stale(where.where)
            # As open as an address of loopback is; its directory can be narrower.
            mask = os.umask(0o111)
            try:
                made.bind(address)
            finally:
                os.umask(mask)
        else:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            made.bind(address)
        made.listen(64)
    except OSError as error:
        status, reason = {
            errno.EADDRINUSE: (UNAVAILABLE, "address in use"),
            errno.EADDRNOTAVAIL: (UNAVAILABLE, "no interface of this host has this address"),
            errno.EACCES: (NO_PERMISSION, "not permitted"),
            errno.EPERM: (NO_PERMISSION, "not permitted"),
            errno.ENOENT: (CANNOT_CREATE, "no such directory"),
        }.get(error.errno or 0, (OS_ERROR, error.strerror))
        raise Failure(status, f"--metrics {where.text}: {reason}") from None
    return made


def _unlink_stale(path: str) -> None:
    """Remove a socket on which nobody listens any more."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as one:
        one.setblocking(False)
        try:
            one.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        except OSError:
            pass  # it lives, or is another's: the bind says so
