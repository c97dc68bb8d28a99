"""The compiled parts through their Python side: board, slot, ring, pool, reader.

Owns: turnaway._board and turnaway._journal.  Records and parked sockets are
made by a real loop in a thread of this process, on loopback; nothing else can
make them.
"""

import contextlib
import errno
import itertools
import os
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from running import SECONDS, read_all, until

from turnaway import _epoll, stats
from turnaway._board import (
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
)
from turnaway._journal import KINDS, Reader

EXT = Path(__file__).parents[2] / "ext"
LOCAL = bytes(10) + b"\xff\xff\x7f\0\0\1"  # ::ffff:127.0.0.1
TAIL = b" as=mx.example.com persona=mail code=421"
LINE = re.compile(
    rb"turned away from=\[127\.0\.0\.1\]:\d+ to=\[127\.0\.0\.1\]:\d+ as=mx\.example\.com"
    rb" persona=mail code=421 outcome=(sent|early|full|reset|short|failed)"
)


class Loop:
    """One worker, one listener, running until the block ends."""

    def __init__(self, board: Board, listening: socket.socket) -> None:
        self.board = board
        self.address = listening.getsockname()

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, SECONDS)

    def banner(self) -> bytes:
        with self.connect() as one:
            return read_all(one)

    def count(self, name: str) -> int:
        return self.board.counters(0, 0)[COUNTERS.index(name)]


@contextlib.contextmanager
def loop(records: int = 64, held: int = 8, detail: str = "all", number: int = 0) -> Iterator[Loop]:
    board = Board(1, 1, records, held, 1 << 17)
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listening:
        listening.setblocking(False)
        board.describe(0, LOCAL, listening.getsockname()[1], False)
        board.attach(0, 0, listening.fileno())
        reader, writer = os.pipe()
        board.attach_wake(0, reader)
        board.publish(0, "banner", b"421 no\r\n")
        board.log_connections(detail, number, True)  # type: ignore[arg-type]
        thread = threading.Thread(target=_epoll.run, args=(board, 0), daemon=True)
        thread.start()
        until(lambda: board.states()[0][0] != "new", what="the loop")
        assert board.states()[0][:2] == ("running", 0)
        try:
            yield Loop(board, listening)
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
    assert board.states() == [("new", 0, 0, 0, 0, False, 0)] * 2
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


def test_a_way_of_logging_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="tuple"):
        Board(1, 1).log_connections("some", 0, True)  # type: ignore[arg-type]


@pytest.mark.parametrize("limits", [(), (1, 1, 1, 1), (1,) * 6, (1, 1, 0, 1, 1), (1, 1, 1, 1, -5)])
def test_time_limits_that_are_none(limits: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="limits: expected 5 times above 0"):
        Board(1, 1, limits=limits)


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
    return Reader(board, [TAIL] * (board.listeners * len(WORDS)), 1)


def test_empty_rings() -> None:
    reader = reader_of(Board(3, 2))
    for kind in KINDS:
        assert reader.pull(-1, kind, b"", 100) == (0, 0, 0, 0)
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
            assert reader.pull(ours.fileno(), "datagram", b"", 1000) == (8, 8, 0, 0)
            lines = [theirs.recv(4096) for _ in range(8)]
        # The oldest eight are there, in their order; the rest was dropped.
        assert [int(re.search(rb"\]:(\d+) to", line)[1]) for line in lines] == ports[:8]  # type: ignore[index]
        one.banner()
        until(lambda: one.count("accepted") == 21)
        assert reader.pull(-1, "none", b"", 0) == (1, 0, 0, 0)
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
            assert reader.pull(-1, "none", b"", 0)[0] == 1
        assert one.board.dropped() == 3


def test_nobody_reads_and_nothing_is_recorded() -> None:
    with loop(records=1) as one:
        one.board.log_connections("all", 0, False)
        for _ in range(5):
            one.banner()
        until(lambda: one.count("accepted") == 5)
        assert one.board.dropped() == 0
        assert reader_of(one.board).pull(-1, "none", b"", 9) == (0, 0, 0, 0)


def lines_of(
    one: Loop, reader: Reader, allowed: int = 1000, header: bytes = b"<22>x: "
) -> list[bytes]:
    """The lines of one pull, through a datagram socket."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        theirs.setblocking(False)
        got: list[bytes] = []
        seen, sent, lost, _ = reader.pull(ours.fileno(), "datagram", header, allowed)
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
        assert reader.pull(-1, "none", b"", 0)[0] == 0


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
            assert reader_of(one.board).pull(to_there, "stream", b"t[1]: ", 1000) == (
                300,
                300,
                0,
                0,
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
            seen, sent, lost, error = reader_of(one.board).pull(ours.fileno(), kind, b"", 1000)
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
            seen, sent, lost, error = reader.pull(ours.fileno(), kind, b"", 10_000)
            took = os.times().elapsed - began
        assert (seen, sent + lost, error) == (1000, 1000, errno.EAGAIN)
        assert lost > 0
        assert took < 1.0
        assert reader.pull(-1, "none", b"", 0) == (0, 0, 0, 0)


def test_busiest_sources() -> None:
    with loop() as one:
        for number in (1, 2, 2, 3, 3, 3):
            with socket.create_connection(one.address, SECONDS, (f"127.0.0.{number}", 0)) as client:
                read_all(client)
        until(lambda: one.count("accepted") == 6)
        reader = reader_of(one.board)
        reader.pull(-1, "none", b"", 0)
        assert reader.busiest(2) == [("127.0.0.3", 3), ("127.0.0.2", 2)]
        assert reader.busiest(0) == []
        reader.forget()
        assert reader.busiest(9) == []


@pytest.mark.parametrize("tails", [[], [TAIL], [TAIL] * len(WORDS), [TAIL] * 999])
def test_a_wrong_number_of_tails(tails: list[bytes]) -> None:
    with pytest.raises(ValueError, match=f"tails: expected {2 * len(WORDS)}, got {len(tails)}"):
        Reader(Board(1, 2), tails, 0)


def test_how_long_a_tail_may_be() -> None:
    Reader(Board(1, 1), [b"x" * 400] * len(WORDS), 0)
    with pytest.raises(ValueError, match="tail: at most 400 octets, got 401"):
        Reader(Board(1, 1), [*[b""] * (len(WORDS) - 1), b"x" * 401], 0)


def test_the_longest_name_fits_a_tail() -> None:
    from turnaway.journal import _tails
    from turnaway.personas import shipped
    from turnaway.settings import Listener

    one = Listener("192.0.2.1", 25, "n" * 255, "Earth", shipped("spammer"), 554, protocol="auto")
    Reader(Board(1, 1), _tails(one), 0)


def test_how_long_a_header_may_be() -> None:
    reader = reader_of(Board(1, 1))
    assert reader.pull(-1, "none", b"x" * 128, 0) == (0, 0, 0, 0)
    for length in (129, 4096):
        with pytest.raises(ValueError, match=f"header: at most 128 octets, got {length}"):
            reader.pull(-1, "none", b"x" * length, 0)


def test_a_reader_of_the_wrong_things() -> None:
    board = Board(1, 1)
    with pytest.raises(ValueError, match="tuple"):
        reader_of(board).pull(-1, "pipe", b"", 0)
    with pytest.raises(AttributeError):
        Reader(object(), [], 0)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        Reader(board, ["text"] * len(WORDS), 0)  # type: ignore[list-item]
    with pytest.raises(OverflowError):
        Reader(board, [b""] * len(WORDS), -1)


def test_a_reader_keeps_its_board_alive() -> None:
    reader = reader_of(Board(1, 1))
    assert reader.pull(-1, "none", b"", 0) == (0, 0, 0, 0)


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
    assert stats.of_all(board).words() == ""
