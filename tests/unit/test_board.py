"""The compiled parts through their Python side: board, slot, ring, pool, reader.

Owns: turnaway._board and turnaway._journal.  Records and parked sockets are
made by a real loop in a thread of this process, on loopback; nothing else can
make them.
"""

import contextlib
import errno
import itertools
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from running import SECONDS, read_all, until

from turnaway import _epoll, stats
from turnaway._board import (
    ANSWER_MARKS,
    ANSWER_OCTETS,
    COUNTERS,
    DETAILS,
    EXPECTED,
    MANNERS,
    QUEUES,
    STATES,
    WORDS,
    Board,
    accept_policy,
    capabilities,
)
from turnaway._journal import KINDS, Reader

EXT = Path(__file__).parents[2] / "ext"
FIFOS = int(re.findall(r"^    FIFOS = (\d+)", (EXT / "pool.pxd").read_text(), re.M)[0])
LOCAL = bytes(10) + b"\xff\xff\x7f\0\0\1"  # ::ffff:127.0.0.1
TAIL = b" as=mx.example.com persona=mail code=421"
MEMBERS = rb'"as":"mx.example.com","persona":"odd \"name\\"'
LINE = re.compile(
    rb"turned away from=\[127\.0\.0\.1\]:\d+ to=\[127\.0\.0\.1\]:\d+ as=mx\.example\.com"
    rb" persona=mail code=421 outcome=(sent|early|full|reset|short|failed)"
)


class Loop:
    """One worker, one listener, running until the block ends."""

    def __init__(self, board: Board, listening: socket.socket, waker: int) -> None:
        self.board = board
        self.waker = waker
        self.address = listening.getsockname()

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address[:2], SECONDS)

    def wake(self) -> None:
        """Make the loop turn, and wait until it has."""
        before = self.board.states()[0][2]
        os.write(self.waker, b"\0")
        until(
            lambda: self.board.states()[0][2] > before or self.board.states()[0][0] != "running",
            what="a turn",
        )

    def banner(self) -> bytes:
        with self.connect() as one:
            return read_all(one)

    def count(self, name: str) -> int:
        return self.board.counters(0, 0)[COUNTERS.index(name)]


@contextlib.contextmanager
def loop(
    records: int = 64,
    held: int = 8,
    detail: str = "all",
    number: int = 0,
    host: str = "127.0.0.1",
    bell: int = -1,
) -> Iterator[Loop]:
    board = Board(1, 1, records, held, 1 << 17)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family, backlog=128) as listening:
        listening.setblocking(False)
        board.describe(0, LOCAL, listening.getsockname()[1], False)
        board.attach(0, 0, listening.fileno())
        reader, writer = os.pipe()
        board.attach_wake(0, reader)
        board.attach_bell(bell)
        board.publish(0, "banner", b"421 no\r\n")
        board.record(True)
        board.log_connections(0, detail, number, False)  # type: ignore[arg-type]
        thread = threading.Thread(target=_epoll.run, args=(board, 0), daemon=True)
        thread.start()
        until(lambda: board.states()[0][0] != "new", what="the loop")
        assert board.states()[0][:2] == ("running", 0)
        try:
            yield Loop(board, listening, writer)
        finally:
            board.stop()
            os.write(writer, b"\0")
            thread.join(SECONDS)
            os.close(reader)
            os.close(writer)
        assert board.states()[0][:2] == ("stopped", 0)


# --- the errno table ----------------------------------------------------------

ERRNOS = [name for name in COUNTERS if name.startswith("E")]


@pytest.mark.parametrize("name", ERRNOS)
def test_every_errno_with_a_counter_moves_its_own(name: str) -> None:
    rest = name in ("EMFILE", "ENFILE", "ENOBUFS", "ENOMEM")
    assert accept_policy(getattr(errno, name)) == (name, "rest" if rest else "next")


def test_what_accept4_may_return_has_a_name() -> None:
    """accept(2), ERRORS, without those that say the call itself was wrong."""
    documented = """ECONNABORTED EINTR EMFILE ENFILE ENOBUFS ENOMEM EPROTO EPERM ENETDOWN
        ENOPROTOOPT EHOSTDOWN ENONET EHOSTUNREACH EOPNOTSUPP ENETUNREACH ETIMEDOUT"""
    assert set(documented.split()) | {"ECONNRESET"} == set(ERRNOS)


def test_unknown_errnos_rest_and_never_spin() -> None:
    known = {getattr(errno, name) for name in ERRNOS}
    for number in (*range(-1, 200), 1 << 20, -(1 << 31), (1 << 31) - 1):
        if number not in known:
            assert accept_policy(number) == ("other", "rest")


def test_an_empty_queue_is_no_error() -> None:
    assert not {"EAGAIN", "EWOULDBLOCK"} & set(COUNTERS)


def test_those_that_rest_stand_last() -> None:
    """stats.RESTING is cut off the end of COUNTERS."""
    policies = [accept_policy(getattr(errno, name))[1] for name in ERRNOS]
    assert policies == sorted(policies)  # next before rest
    assert stats.RESTING == ("EMFILE", "ENFILE", "ENOBUFS", "ENOMEM", "other")


def test_names_are_those_of_the_enum_in_its_order() -> None:
    text = (EXT / "counters.pxd").read_text()
    body = text.partition("cdef enum Counter:\n")[2].partition("cdef enum")[0]
    names = re.findall(r"^    ([A-Z_]+)\b", body, re.M)
    assert names.pop() == "COUNTERS"
    assert [
        name.removeprefix("ERR_") if name.startswith("ERR_E") else name.removeprefix("ERR_").lower()
        for name in names
    ] == list(COUNTERS)


def test_names_of_states_and_details_are_those_of_the_enums() -> None:
    text = (EXT / "listeners.pxd").read_text()
    assert [name.lower() for name in re.findall(r"^    STATE_([A-Z]+)", text, re.M)] == list(STATES)
    assert [name.lower() for name in re.findall(r"^    DETAIL_([A-Z]+)", text, re.M)] == list(
        DETAILS
    )


@pytest.mark.parametrize(
    ("file", "prefix", "names"),
    [
        ("slot.pxd", "WORDS_", WORDS),
        ("pool.pxd", "QUEUE_", QUEUES),
        ("listeners.pxd", "MANNER_", MANNERS),
        ("listeners.pxd", "EXPECTED_", EXPECTED),
    ],
)
def test_names_of_what_is_said_and_held_are_those_of_the_enums(
    file: str, prefix: str, names: tuple[str, ...]
) -> None:
    text = (EXT / file).read_text()
    assert (
        tuple(one.lower() for one in re.findall(rf"^    {prefix}([A-Z0-9]+)", text, re.M)) == names
    )


# --- the board ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("workers", "listeners", "records", "held", "said"),
    [
        (0, 1, 1, 0, "workers: expected 1..1024, got 0"),
        (-1, 1, 1, 0, "workers"),
        (1025, 1, 1, 0, "workers"),
        (1, 0, 1, 0, "listeners: expected 1..4096, got 0"),
        (1, 4097, 1, 0, "listeners"),
        (1, 1, 0, 0, "records: expected 1..1048576, got 0"),
        (1, 1, (1 << 20) + 1, 0, "records"),
        (1, 1, 1, -1, "held: expected 0..131072, got -1"),
        (1, 1, 1, (1 << 17) + 1, "held"),
    ],
)
def test_a_board_out_of_range(
    workers: int, listeners: int, records: int, held: int, said: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        Board(workers, listeners, records, held)


def test_numbers_that_are_no_int_of_c() -> None:
    with pytest.raises(OverflowError):
        Board(1 << 40, 1)
    with pytest.raises(TypeError):
        Board("1", 1)  # type: ignore[arg-type]


def test_a_board_before_its_loops() -> None:
    board = Board(2, 3)
    assert (board.workers, board.listeners) == (2, 3)
    assert board.states() == [("new", 0, 0, 0, 0, False, 0, False)] * 2
    assert board.dropped() == 0
    for worker, listener in itertools.product(range(2), range(3)):
        assert board.counters(worker, listener) == (0,) * len(COUNTERS)


def test_boards_come_and_go() -> None:
    for _ in range(200):
        assert Board(4, 4, 1024, 64).workers == 4


@pytest.mark.parametrize("index", [-1, 3, 1 << 30])
def test_a_listener_that_is_not_there(index: int) -> None:
    board = Board(2, 3)
    for act in (
        lambda: board.describe(index, LOCAL, 25, False),
        lambda: board.attach(0, index, 0),
        lambda: board.publish(index, "banner", b""),
        lambda: board.counters(0, index),
        lambda: board.log_connections(index, "all", 0, False),
        lambda: board.pause(index, True),
        lambda: board.paused(index),
        lambda: board.behave(index, "now", "any", "banner", "park", False),
        lambda: board.retire([index]),
        lambda: board.released(index),
    ):
        with pytest.raises(IndexError, match=f"listener {index} of 3"):
            act()


@pytest.mark.parametrize("index", [-1, 2, 1 << 30])
def test_a_worker_that_is_not_there(index: int) -> None:
    board = Board(2, 3)
    for act in (
        lambda: board.attach(index, 0, 0),
        lambda: board.attach_wake(index, 0),
        lambda: board.counters(index, 0),
    ):
        with pytest.raises(IndexError, match=f"worker {index} of 2"):
            act()


@pytest.mark.parametrize("local", [b"", bytes(4), bytes(15), bytes(17)])
def test_an_address_that_is_not_16_octets(local: bytes) -> None:
    with pytest.raises(ValueError, match=f"expected 16 octets, got {len(local)}"):
        Board(1, 1).describe(0, local, 25, False)


def test_a_way_of_logging_is_read_back() -> None:
    board = Board(2, 3)
    board.log_connections(1, "capped", 9, True)
    board.log_connections(2, "all", 0, False)
    assert board.logs_connections(1) == ("capped", 9, True)
    assert board.logs_connections(2) == ("all", 0, False)
    with pytest.raises(IndexError):
        board.logs_connections(3)


def test_capabilities_of_this_thread() -> None:
    """As the kernel tells them; what gives them up is tested with the daemon."""
    status = Path("/proc/thread-self/status").read_text()
    assert capabilities() == int(re.search(r"CapPrm:\s+(\w+)", status)[1], 16)  # type: ignore[index]


def test_a_way_of_logging_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="tuple"):
        Board(1, 1).log_connections(0, "some", 0, True)  # type: ignore[arg-type]


@pytest.mark.parametrize("waits", [(), (0,), (-5,), (1, 0, 1), (1,) * (FIFOS + 1)])
def test_time_limits_that_are_none(waits: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=f"waits: expected 1..{FIFOS} times above 0"):
        Board(1, 1, waits=waits)
    Board(1, 1, waits=(1,) * FIFOS)


@pytest.mark.parametrize("fifos", [(), (0,) * 5, (0,) * 7, (0, 0, 0, 0, 0, 2), (0, -1, 0, 0, 0, 0)])
def test_time_limits_of_a_listener_are_among_the_boards(fifos: tuple[int, ...]) -> None:
    board = Board(1, 1, waits=(5, 7))
    with pytest.raises(ValueError, match=r"fifos: expected 6 of 0\.\.1"):
        board.behave(0, "now", "any", "banner", "park", False, fifos)
    board.behave(0, "now", "any", "banner", "park", False, (0, 1, 1, 0, 1, 0))


@pytest.mark.parametrize("share", [0, -1])
def test_a_share_of_nothing(share: int) -> None:
    with pytest.raises(ValueError, match=f"share: expected at least 1, got {share}"):
        Board(1, 1, share=share)


@pytest.mark.parametrize(
    "how",
    [
        ("later", "any", "banner", "park"),
        ("ask", "gopher", "banner", "park"),
        ("ask", "any", "welcome", "park"),
        ("ask", "any", "banner", "forever"),
    ],
)
def test_a_behaviour_that_is_not_there(how: tuple[str, str, str, str]) -> None:
    with pytest.raises(ValueError, match="tuple"):
        Board(1, 1).behave(0, *how, False)


@pytest.mark.parametrize("head", [-1, 3, 1 << 20])
def test_a_head_longer_than_the_answer(head: int) -> None:
    with pytest.raises(ValueError, match="a head within"):
        Board(1, 1).publish(0, "plain", b"ab", head)


def test_words_that_are_not_there() -> None:
    with pytest.raises(ValueError, match="tuple"):
        Board(1, 1).publish(0, "welcome", b"")


def test_a_loop_without_sockets_is_broken_and_says_so() -> None:
    board = Board(1, 1)
    thread = threading.Thread(target=_epoll.run, args=(board, 0))
    thread.start()
    thread.join(SECONDS)
    assert board.states()[0][:2] == ("broken", errno.EBADF)


def test_a_loop_without_a_poller_is_broken_and_says_so() -> None:
    """In a process of its own, which has no descriptor left."""
    code = """
import resource
from turnaway import _epoll
from turnaway._board import Board
board = Board(1, 1)
resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
_epoll.run(board, 0)
print(*board.states()[0][:2])
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ended.stdout == f"broken {errno.EMFILE}\n", ended.stderr


@pytest.mark.parametrize("worker", [-1, 2])
def test_a_loop_of_a_worker_that_is_not_there(worker: int) -> None:
    with pytest.raises(IndexError, match=f"worker {worker} of 2"):
        _epoll.run(Board(2, 1), worker)


def test_a_listener_that_is_paused_before_its_loop() -> None:
    board = Board(1, 1)
    reader, writer = os.pipe()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        board.attach(0, 0, listening.fileno())
        board.attach_wake(0, reader)
        board.publish(0, "banner", b"421 no\r\n")
        board.pause(0, True)
        thread = threading.Thread(target=_epoll.run, args=(board, 0), daemon=True)
        thread.start()
        with socket.create_connection(listening.getsockname(), 0.3) as one:
            with pytest.raises(TimeoutError):
                one.recv(1)
            one.settimeout(SECONDS)
            board.pause(0, False)
            os.write(writer, b"\0")
            assert read_all(one) == b"421 no\r\n"
        board.stop()
        os.write(writer, b"\0")
        thread.join(SECONDS)
    os.close(reader)
    os.close(writer)
    assert board.states()[0][:2] == ("stopped", 0)


# --- the slot -------------------------------------------------------------------


@pytest.mark.parametrize("length", [ANSWER_OCTETS + 1, 8192, 1 << 20])
def test_a_banner_that_is_too_long_changes_nothing(length: int) -> None:
    with loop() as one:
        with pytest.raises(ValueError, match=f"at most {ANSWER_OCTETS} octets .*, got {length}, 0"):
            one.board.publish(0, "banner", b"x" * length)
        assert one.banner() == b"421 no\r\n"


def test_a_banner_must_be_bytes() -> None:
    for wrong in ("421 no\r\n", bytearray(b"421 no\r\n"), None):
        with pytest.raises(TypeError):
            Board(1, 1).publish(0, "banner", wrong)  # type: ignore[arg-type]


def test_every_banner_published_is_the_next_one_sent() -> None:
    """Three times round the slots, each of another length, and the longest."""
    with loop() as one:
        for number in range(24):
            banner = bytes([65 + number]) * (number * 173 % ANSWER_OCTETS + 1)
            one.board.publish(0, "banner", banner)
            assert one.banner() == banner
        one.board.publish(0, "banner", b"x" * ANSWER_OCTETS)
        assert one.banner() == b"x" * ANSWER_OCTETS


def test_no_half_of_a_banner_is_ever_sent_while_it_is_renewed() -> None:
    """A renewal every 10 ms: a hundred times as often as the daemon does it."""
    whole = {bytes([letter]) * 900 for letter in range(65, 91)}
    over = threading.Event()

    def renew(board: Board) -> None:
        for banner in itertools.cycle(sorted(whole)):
            board.publish(0, "banner", banner)
            if over.wait(0.01):
                return

    with loop(records=4096) as one:
        one.board.publish(0, "banner", b"A" * 900)
        thread = threading.Thread(target=renew, args=(one.board,))
        thread.start()
        try:
            seen = {one.banner() for _ in range(1500)}
        finally:
            over.set()
            thread.join()
    assert seen <= whole
    assert len(seen) > 5


# --- the ring and its reader ----------------------------------------------------


def reader_of(board: Board) -> Reader:
    several = board.listeners * len(WORDS)
    return Reader(board, [TAIL] * several, [MEMBERS] * several, 1)


def test_records_as_json() -> None:
    """The time is the record's own, and what stands there is JSON whatever the address."""
    with loop(detail="all") as one:
        reader = reader_of(one.board)
        before = time.time()
        one.banner()
        until(lambda: one.count("accepted") == 1)
        fd = os.memfd_create("lines")
        time.sleep(0.2)  # the record is older than the pull
        seen, sent, *_ = reader.pull(fd, "json", b"<6>", allow(one.board, 9))
        assert (seen, sent) == (1, 1)
        text = os.pread(fd, 4096, 0)
        os.close(fd)
    assert text.startswith(b"<6>{")
    assert text.endswith(b"}\n")
    fields = json.loads(text[3:])
    assert list(fields) == [
        "ts", "event", "from", "from_port", "to", "to_port", "as", "persona", "outcome",
    ]  # fmt: skip
    moment = datetime.fromisoformat(fields["ts"]).timestamp()
    assert before - 0.002 <= moment <= before + 0.15
    assert (fields["from"], fields["outcome"]) == ("127.0.0.1", "sent")
    assert fields["persona"] == 'odd "name\\'


def allow(board: Board, count: int) -> list[int]:
    """A pull's budget: so many lines for all listeners without a count of their own."""
    return [count, *[0] * board.listeners]


def skim(one: Loop, reader: Reader) -> int:
    """Read the rings for no log; how many records there were."""
    seen, *rest = reader.pull(-1, "none", b"", allow(one.board, 0))
    assert rest == [0, 0, 0, allow(one.board, 0), []]
    return seen


def test_empty_rings() -> None:
    reader = reader_of(Board(3, 2))
    for kind in KINDS:
        error = errno.ENOTCONN if kind == "absent" else 0
        assert reader.pull(-1, kind, b"", [100, 1, 2], 9) == (0, 0, 0, error, [100, 1, 2], [])
    assert reader.busiest(5) == []
    reader.forget()


def test_a_full_ring_drops_counts_and_overwrites_nothing() -> None:
    with loop(records=8) as one:
        ports = []
        for _ in range(20):
            with one.connect() as client:
                ports.append(client.getsockname()[1])
                read_all(client)
        until(lambda: one.count("accepted") == 20)
        assert one.board.dropped() == 12
        reader = reader_of(one.board)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        with ours, theirs:
            assert reader.pull(ours.fileno(), "datagram", b"", [1000, 0]) == (
                *(8, 8, 0, 0),
                [992, 0],
                [],
            )
            lines = [theirs.recv(4096) for _ in range(8)]
        # The oldest eight are there, in their order; the rest was dropped.
        assert [int(re.search(rb"\]:(\d+) to", line)[1]) for line in lines] == ports[:8]  # type: ignore[index]
        one.banner()
        until(lambda: one.count("accepted") == 21)
        assert skim(one, reader) == 1
        assert one.board.dropped() == 12


def test_records_is_rounded_up_to_a_power_of_two() -> None:
    with loop(records=5) as one:
        for _ in range(20):
            one.banner()
        until(lambda: one.count("accepted") == 20)
        assert one.board.dropped() == 12


def test_a_ring_of_one() -> None:
    with loop(records=1) as one:
        reader = reader_of(one.board)
        for _ in range(3):
            before = one.count("accepted")
            one.banner()
            one.banner()
            until(lambda before=before: one.count("accepted") == before + 2)
            assert skim(one, reader) == 1
        assert one.board.dropped() == 3


def test_nobody_reads_and_nothing_is_recorded() -> None:
    with loop(records=1) as one:
        one.board.record(False)
        for _ in range(5):
            one.banner()
        until(lambda: one.count("accepted") == 5)
        assert one.board.dropped() == 0
        assert skim(one, reader_of(one.board)) == 0


def lines_of(
    one: Loop, reader: Reader, allowed: int = 1000, header: bytes = b"<22>x: "
) -> list[bytes]:
    """The lines of one pull, through a datagram socket."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        theirs.setblocking(False)
        got: list[bytes] = []
        seen, sent, lost, _, left, _ = reader.pull(
            ours.fileno(), "datagram", header, allow(one.board, allowed)
        )
        assert left == allow(one.board, allowed - sent if allowed > 0 else allowed)
        with contextlib.suppress(BlockingIOError):
            while True:
                got.append(theirs.recv(4096))
        assert len(got) == sent
        assert sent + lost <= seen
        return got


def test_a_line_as_the_log_shows_it() -> None:
    with loop() as one:
        with one.connect() as client:
            port = client.getsockname()[1]
            read_all(client)
        until(lambda: one.count("accepted") == 1)
        assert lines_of(one, reader_of(one.board)) == [
            b"<22>x: turned away from=[127.0.0.1]:%d to=[127.0.0.1]:%d"
            b" as=mx.example.com persona=mail code=421 outcome=sent" % (port, one.address[1])
        ]


def test_the_called_address_of_a_wildcard_is_asked_of_the_kernel() -> None:
    with loop() as one:
        one.board.describe(0, bytes(16), 0, True)
        one.banner()
        until(lambda: one.count("accepted") == 1)
        (line,) = lines_of(one, reader_of(one.board))
        assert b" to=[127.0.0.1]:%d as" % one.address[1] in line


def test_ipv6_addresses_are_written_as_rfc_5952_has_them() -> None:
    with loop() as one:
        one.board.describe(0, socket.inet_pton(socket.AF_INET6, "2001:db8::1:0:0:1"), 587, False)
        one.banner()
        until(lambda: one.count("accepted") == 1)
        (line,) = lines_of(one, reader_of(one.board))
        assert b" to=[2001:db8::1:0:0:1]:587 as" in line


@pytest.mark.parametrize(
    ("detail", "number", "lines"),
    [("none", 0, 0), ("all", 0, 9), ("sample", 3, 3), ("sample", 1, 9), ("sample", 10, 0)],
)
def test_which_connections_become_lines(detail: str, number: int, lines: int) -> None:
    with loop(detail=detail, number=number) as one:
        for _ in range(9):
            one.banner()
        until(lambda: one.count("accepted") == 9)
        assert len(lines_of(one, reader_of(one.board))) == lines


def test_the_cap_begins_anew_with_every_second() -> None:
    with loop(detail="capped", number=2) as one:
        for _ in range(9):
            one.banner()
        until(lambda: one.count("accepted") == 9)
        assert len(lines_of(one, reader_of(one.board))) in (2, 4)  # the second may have changed


@pytest.mark.parametrize(("allowed", "lines"), [(-1, 0), (0, 0), (4, 4), (9, 9), (1 << 62, 9)])
def test_no_more_lines_than_allowed_and_all_records_read(allowed: int, lines: int) -> None:
    with loop() as one:
        for _ in range(9):
            one.banner()
        until(lambda: one.count("accepted") == 9)
        reader = reader_of(one.board)
        assert len(lines_of(one, reader, allowed)) == lines
        assert skim(one, reader) == 0


def test_a_stream_gets_whole_lines() -> None:
    with loop(records=512) as one:
        for _ in range(300):
            one.banner()
        until(lambda: one.count("accepted") == 300)
        from_here, to_there = os.pipe()
        got: list[bytes] = []

        def read() -> None:
            with os.fdopen(from_here, "rb") as pipe:
                got.extend(pipe.readlines())

        thread = threading.Thread(target=read)
        thread.start()
        try:
            assert reader_of(one.board).pull(to_there, "stream", b"t[1]: ", [1000, 7]) == (
                *(300, 300, 0, 0),
                [700, 7],
                [],
            )
        finally:
            os.close(to_there)
            thread.join()
        assert len(got) == 300
        assert all(LINE.fullmatch(line.removeprefix(b"t[1]: ").rstrip(b"\n")) for line in got)


@pytest.mark.parametrize("kind", ["datagram", "stream"])
def test_a_log_that_hangs_up_costs_its_lines_only(kind: str) -> None:
    with loop() as one:
        for _ in range(5):
            one.banner()
        until(lambda: one.count("accepted") == 5)
        ours, theirs = socket.socketpair(
            socket.AF_UNIX, socket.SOCK_DGRAM if kind == "datagram" else socket.SOCK_STREAM
        )
        theirs.close()
        with ours:
            seen, sent, lost, error, _, _ = reader_of(one.board).pull(
                ours.fileno(), kind, b"", [1000, 0]
            )
        assert (seen, sent, lost) == (5, 0, 5)
        assert error in (errno.EPIPE, errno.ECONNREFUSED, errno.ENOTCONN, errno.EAGAIN)


@pytest.mark.parametrize("kind", ["datagram", "stream"])
def test_a_log_that_never_reads_takes_a_tenth_of_a_second_and_no_more(kind: str) -> None:
    with loop(records=4096) as one:
        for _ in range(1000):
            one.banner()
        until(lambda: one.count("accepted") == 1000)
        ours, theirs = socket.socketpair(
            socket.AF_UNIX, socket.SOCK_DGRAM if kind == "datagram" else socket.SOCK_STREAM
        )
        with ours, theirs:
            ours.setblocking(False)
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
            reader = reader_of(one.board)
            began = os.times().elapsed
            seen, sent, lost, error, _, _ = reader.pull(ours.fileno(), kind, b"", [10_000, 0])
            took = os.times().elapsed - began
        assert (seen, sent + lost, error) == (1000, 1000, errno.EAGAIN)
        assert lost > 0
        assert took < 1.0
        assert skim(one, reader) == 0


def test_busiest_sources() -> None:
    with loop() as one:
        for number in (1, 2, 2, 3, 3, 3):
            with socket.create_connection(one.address, SECONDS, (f"127.0.0.{number}", 0)) as client:
                read_all(client)
        until(lambda: one.count("accepted") == 6)
        reader = reader_of(one.board)
        assert skim(one, reader) == 6
        assert reader.busiest(2) == [("127.0.0.3", 3), ("127.0.0.2", 2)]
        assert reader.busiest(0) == []
        reader.forget()
        assert reader.busiest(9) == []


# --- the client's address in its banner -------------------------------------------


@pytest.mark.parametrize("address", ["127.0.0.1", "127.1.22.133", "::1"])
@pytest.mark.parametrize("marks", [1, 2, ANSWER_MARKS])
def test_the_client_reads_its_own_address(address: str, marks: int) -> None:
    banner = b"421 " + b" and ".join([b"\0"] * marks) + b" no\r\n"
    with loop(host=address if ":" in address else "127.0.0.1") as one:
        one.board.publish(0, "banner", banner)
        for early in (b"", b"EHLO spam.example\r\n"):
            with socket.create_connection(one.address[:2], SECONDS, (address, 0)) as client:
                client.sendall(early)
                assert read_all(client) == banner.replace(b"\0", address.encode())
        one.board.publish(0, "banner", b"421 no\r\n")
        assert one.banner() == b"421 no\r\n"


@pytest.mark.parametrize(
    "banner", [b"\0", b"\0\0\0\0", b"421 \0", b"\0 no\r\n", b"x" * (ANSWER_OCTETS - 1) + b"\0"]
)
def test_a_place_for_the_address_may_stand_anywhere(banner: bytes) -> None:
    with loop() as one:
        one.board.publish(0, "banner", banner)
        assert one.banner() == banner.replace(b"\0", b"127.0.0.1")


def test_too_many_places_for_the_address_change_nothing() -> None:
    with loop() as one:
        one.board.publish(0, "banner", b"421 \0\r\n")
        for many in (ANSWER_MARKS + 1, 99):
            with pytest.raises(ValueError, match="banner"):
                one.board.publish(0, "banner", b"\0" * many)
            assert one.banner() == b"421 127.0.0.1\r\n"


@pytest.mark.parametrize("words", WORDS[1:])
def test_only_a_banner_has_places_for_the_address(words: str) -> None:
    """Alerts of TLS and answers of SOCKS hold NULs of their own."""
    Board(1, 1).publish(0, words, b"\0" * 99)


# --- pause, retire, times of disposal ----------------------------------------------


def test_a_paused_listener_keeps_its_queue() -> None:
    with loop() as one:
        assert not one.board.paused(0)
        for _ in range(3):
            one.board.pause(0, True)
            one.wake()
            assert one.board.paused(0)
            before = one.count("accepted")
            clients = [one.connect() for _ in range(5)]
            clients[0].settimeout(0.1)
            with pytest.raises(TimeoutError):
                clients[0].recv(1)
            clients[0].settimeout(SECONDS)
            assert one.count("accepted") == before
            one.board.pause(0, False)
            one.wake()
            assert [read_all(client) for client in clients] == [b"421 no\r\n"] * 5
            assert not one.board.paused(0)
            for client in clients:
                client.close()


@pytest.mark.parametrize("leaves", [False, True])
def test_a_retired_loop_ends_and_answers_the_queue_of_who_leaves(leaves: bool) -> None:
    with loop(held=64) as one:
        one.board.pause(0, True)
        one.wake()
        clients = [one.connect() for _ in range(20)]
        one.board.pause(0, False)
        assert not one.board.released(0)
        one.board.retire([0] if leaves else [])
        one.wake()
        until(lambda: one.board.released(0), what="the loop to let go of its listener")
        if leaves:
            assert [read_all(client) for client in clients] == [b"421 no\r\n"] * 20
        until(lambda: one.board.states()[0][0] == "stopped", what="the end of the loop")
        assert one.count("accepted") == (20 if leaves else 0)
        if not leaves:  # they are still in the queue, for whoever has the socket
            for client in clients:
                client.settimeout(0.05)
                with pytest.raises(TimeoutError):
                    client.recv(1)
        for client in clients:
            client.close()


def test_a_retired_loop_goes_on_with_whom_it_holds() -> None:
    with loop() as one:
        one.board.behave(0, "drain", "any", "banner", "drain", False)
        with one.connect() as client:
            assert read_all(client) == b"421 no\r\n"
            until(lambda: one.board.states()[0][4] == 1, what="the client to be held")
            one.board.retire([0])
            one.wake()
            client.settimeout(0.2)
            assert one.board.states()[0][0] == "running"
            client.sendall(b"still here")  # and is not reset
            assert one.board.states()[0][4] == 1
        until(lambda: one.board.states()[0][0] == "stopped", what="the end of the loop")
        assert one.board.states()[0][4] == 0


def test_every_connection_that_is_over_has_a_time_of_disposal() -> None:
    assert Board(2, 2).disposal()[1] == 0
    assert set(Board(2, 2).disposal()[0]) == {0}
    with loop() as one:
        for _ in range(25):
            one.banner()
        until(lambda: one.count("accepted") == 25)
        until(lambda: sum(one.board.disposal()[0]) == 25, what="times")
        counts, micros = one.board.disposal()
        # A bucket n ends at 16 << n microseconds.
        least = sum(count * (8 << n if n else 0) for n, count in enumerate(counts))
        assert least <= micros
        if not counts[-1]:
            assert micros <= sum(count * (16 << n) for n, count in enumerate(counts))


# --- budgets of listeners' own, copies, an absent log --------------------------------


@pytest.mark.parametrize(
    ("own", "allowed", "sent", "left"),
    [
        (True, [100, 4], 4, [100, 0]),
        (True, [0, 4], 4, [0, 0]),
        (True, [100, 0], 0, [100, 0]),
        (False, [4, 100], 4, [0, 100]),
        (False, [0, 100], 0, [0, 100]),
        (True, [3, 100], 9, [3, 91]),
        (False, [100, 3], 9, [91, 3]),
    ],
)
def test_a_count_of_its_own(own: bool, allowed: list[int], sent: int, left: list[int]) -> None:
    with loop() as one:
        one.board.log_connections(0, "all", 0, own)
        for _ in range(9):
            one.banner()
        until(lambda: one.count("accepted") == 9)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        with ours, theirs:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            got = reader_of(one.board).pull(ours.fileno(), "datagram", b"", allowed)
        assert got == (9, sent, 0, 0, left, [])


@pytest.mark.parametrize("kind", ["none", "absent"])
@pytest.mark.parametrize(("wanted", "copied"), [(-1, 0), (0, 0), (1, 1), (4, 4), (9, 9), (99, 9)])
def test_copies_for_who_watches(kind: str, wanted: int, copied: int) -> None:
    """The first that come, whatever the log is and lets through."""
    with loop(detail="none") as one:
        ports = []
        for _ in range(9):
            with one.connect() as client:
                ports.append(client.getsockname()[1])
                read_all(client)
        until(lambda: one.count("accepted") == 9)
        reader = reader_of(one.board)
        seen, sent, lost, _, _, text = reader.pull(-1, kind, b"<22>", [5, 5], wanted)
        assert (seen, sent, lost) == (9, 0, 0)
        assert len(text) == copied
        for line, port in zip(text, ports, strict=False):
            assert LINE.fullmatch(line.encode())
            assert f"from=[127.0.0.1]:{port} " in line
        assert reader.pull(-1, kind, b"", [5, 5], wanted)[5] == []


def test_more_copies_than_there_is_room_for_are_left_out() -> None:
    with loop(records=8192) as one:
        for _ in range(3000):
            one.banner()
        until(lambda: one.count("accepted") == 3000)
        seen, *_, text = reader_of(one.board).pull(-1, "none", b"", [0, 0], 1 << 20)
        assert seen == 3000
        assert 1000 < len(text) < 3000
        assert all(LINE.fullmatch(line.encode()) for line in text)


def test_to_an_absent_log_every_line_is_lost() -> None:
    with loop() as one:
        for _ in range(9):
            one.banner()
        until(lambda: one.count("accepted") == 9)
        reader = reader_of(one.board)
        lost = reader.pull(-1, "absent", b"", [4, 0])
        assert lost == (9, 0, 4, errno.ENOTCONN, [0, 0], [])
        one.banner()
        until(lambda: one.count("accepted") == 10)
        assert len(lines_of(one, reader)) == 1  # the log is there again


@pytest.mark.parametrize("tails", [[], [TAIL], [TAIL] * len(WORDS), [TAIL] * 999])
def test_a_wrong_number_of_tails(tails: list[bytes]) -> None:
    with pytest.raises(ValueError, match=f"tails: expected {2 * len(WORDS)}, got {len(tails)}"):
        Reader(Board(1, 2), tails, [b""] * 2 * len(WORDS), 0)
    with pytest.raises(ValueError, match=f"tails: expected {2 * len(WORDS)}, got {len(tails)}"):
        Reader(Board(1, 2), [b""] * 2 * len(WORDS), tails, 0)


def test_how_long_a_tail_may_be() -> None:
    longest = [b"x" * 500] * len(WORDS)
    Reader(Board(1, 1), longest, longest, 0)
    with pytest.raises(ValueError, match="tail: at most 500 octets, got 501"):
        Reader(Board(1, 1), [*[b""] * (len(WORDS) - 1), b"x" * 501], longest, 0)


def test_the_longest_name_fits_a_tail() -> None:
    from turnaway.personas import shipped
    from turnaway.settings import List, Listener
    from turnaway.watch import _tails

    one = Listener("192.0.2.1", 25, "n" * 255, "Earth", shipped("spammer"), 554, protocol="auto")
    listed = List("l" * 40, ("file",), None, None, "", False)
    tails = list(_tails(one, (listed,)))
    assert len(tails) == 2 * len(WORDS)
    Reader(Board(1, 1, lists=1), [text for text, _ in tails], [json for _, json in tails], 0)


def test_how_long_a_header_may_be() -> None:
    reader = reader_of(Board(1, 1))
    assert reader.pull(-1, "none", b"x" * 128, [0, 0]) == (0, 0, 0, 0, [0, 0], [])
    for length in (129, 4096):
        with pytest.raises(ValueError, match=f"header: at most 128 octets, got {length}"):
            reader.pull(-1, "none", b"x" * length, [0, 0])


def test_a_reader_of_the_wrong_things() -> None:
    board = Board(1, 1)
    with pytest.raises(ValueError, match="tuple"):
        reader_of(board).pull(-1, "pipe", b"", [0, 0])
    for wrong in ([], [0], [0, 0, 0]):
        with pytest.raises(ValueError, match=f"allowed: expected 2, got {len(wrong)}"):
            reader_of(board).pull(-1, "none", b"", wrong)
    with pytest.raises(AttributeError):
        Reader(object(), [], [], 0)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        Reader(board, ["text"] * len(WORDS), [b""] * len(WORDS), 0)  # type: ignore[list-item]
    with pytest.raises(OverflowError):
        Reader(board, [b""] * len(WORDS), [b""] * len(WORDS), -1)


def test_the_busiest_of_more_sources_than_there_is_room_for() -> None:
    """1,024 counts, in sets of 8: of 1,500 sources some take over another's."""
    with loop(records=4096) as one:
        reader = reader_of(one.board)
        for number in range(1500):
            for source in (f"127.1.{number // 250}.{number % 250 + 1}", "127.0.0.1"):
                with socket.create_connection(one.address[:2], SECONDS, (source, 0)) as client:
                    read_all(client)
        until(lambda: one.count("accepted") == 3000)
        assert reader.pull(-1, "none", b"", [0, 0])[0] == 3000
        busiest = reader.busiest(2000)
        assert busiest[0] == ("127.0.0.1", 1500)
        assert sum(count for _, count in busiest) == 3000
        assert 800 < len(busiest) <= 1024


def test_the_bell_rings_when_a_ring_is_half_full() -> None:
    bell, ringer = os.pipe()
    os.set_blocking(bell, False)
    with loop(records=8, bell=ringer) as one:
        for _ in range(3):
            one.banner()
        one.wake()
        with pytest.raises(BlockingIOError):
            os.read(bell, 9)
        one.banner()
        one.wake()
        assert os.read(bell, 9) == b"\0"
    os.close(bell)
    os.close(ringer)


def test_a_reader_keeps_its_board_alive() -> None:
    reader = reader_of(Board(1, 1))
    assert reader.pull(-1, "none", b"", [0, 0]) == (0, 0, 0, 0, [0, 0], [])


# --- the pool -------------------------------------------------------------------


def talk(one: Loop, count: int) -> list[socket.socket]:
    """Clients that talked first and stay."""
    clients = []
    for _ in range(count):
        client = one.connect()
        client.sendall(b"EHLO spam.example\r\n" * 10)
        clients.append(client)
    return clients


@pytest.mark.parametrize("parked", [0, 1, 3])
def test_never_more_parked_than_there_is_room(parked: int) -> None:
    with loop(held=parked) as one:
        clients = talk(one, 12)
        assert [read_all(client) for client in clients] == [b"421 no\r\n"] * 12
        until(lambda: one.count("accepted") == 12)
        assert one.board.states()[0][4] <= parked
        assert one.count("parked") + one.count("park_full") == one.count("early")
        assert one.count("sent") == 12
        for client in clients:
            client.close()
        until(lambda: one.board.states()[0][4] == 0, what="the parked to leave")


def test_a_place_is_taken_again_and_again() -> None:
    """Leaving from the middle of the FIFO, then the ends, many times over."""
    with loop(records=1024, held=4) as one:
        for _ in range(20):
            clients = talk(one, 4)
            for client in (clients[1], clients[3], clients[0], clients[2]):
                assert read_all(client) == b"421 no\r\n"
                client.close()
            until(lambda: one.board.states()[0][4] == 0, what="the parked to leave")
        assert one.count("sent") == one.count("accepted") == 80


@given(st.integers(1, 40), st.integers(0, 3))
def test_boards_of_any_size_read_back_empty(workers: int, extra: int) -> None:
    board = Board(workers, extra + 1, extra + 1, extra)
    assert len(board.states()) == workers
    for listener in range(board.listeners):
        assert stats.of_listener(board, listener).words() == ""


def test_the_sum_of_a_place_is_that_of_all_its_personas() -> None:
    """A line that names no persona must not fall when a reload gives another one."""
    from turnaway.personas import shipped
    from turnaway.settings import Listener

    def row(place: str, name: str, persona: str) -> stats.Row:
        return stats.Row(place, name, persona, "smtp")

    now = Listener("192.0.2.1", 25, "mx", "Earth", shipped("spammer"), 554)
    counted = {
        row("192.0.2.1:25", "mx", "mail"): stats.Totals(sent=5),
        row("192.0.2.1:25", "mx", "spammer"): stats.Totals(sent=2),
        row("192.0.2.1:25", "other", "mail"): stats.Totals(sent=40),
        row("192.0.2.2:25", "mx", "mail"): stats.Totals(sent=80),
    }
    sums = stats.Sums(counted)
    assert (sums.at(now)["sent"], sums.of(now)["sent"]) == (7, 2)
