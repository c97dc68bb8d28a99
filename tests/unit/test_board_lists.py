"""What the board takes for lists and proxies, and what a loop makes of a list.

Owns: consult(), listed(), the groups of publish(), the proxies of describe() and the
reader's misdiverted().  A real loop in a thread answers on loopback.  How an address is
found stands in test_lists_table.py.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import threading
from collections.abc import Iterator
from ipaddress import ip_network

import pytest
from running import SECONDS, read_all, until

from turnaway import _epoll, lists
from turnaway._board import COUNTERS, LISTS, PROXIES, WORDS, Board
from turnaway._journal import Reader
from turnaway.lists.formats import Reading
from turnaway.lists.table import Table

LOCAL = bytes(10) + b"\xff\xff\x7f\0\0\1"  # ::ffff:127.0.0.1


def block(*networks: str) -> bytes:
    """A list for each network."""
    found = []
    for number, one in enumerate(map(ip_network, networks)):
        reading = Reading()
        line = reading.begin(f"/list{number}", 1)
        reading.add(int(one[0]), int(one[-1]), one.version, line, False)
        found.append(lists.Listed(reading, (None,)))
    return Table(found).block()


@contextlib.contextmanager
def loop(octets: bytes, allow: list[bool]) -> Iterator[tuple[Board, tuple[str, int]]]:
    """One worker with one listener; the board, and where it listens."""
    board = Board(1, 1, 64, 8, lists=len(allow))
    board.consult(octets, allow)
    reader, writer = os.pipe()
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listening:
        listening.setblocking(False)
        board.describe(0, LOCAL, listening.getsockname()[1], False)
        board.attach(0, 0, listening.fileno())
        board.attach_wake(0, reader)
        board.record(True)
        for group in range(len(allow) + 1):
            board.publish(0, "banner", b"421 list %d\r\n" % group, 0, group)
        thread = threading.Thread(target=_epoll.run, args=(board, 0), daemon=True)
        thread.start()
        until(lambda: board.states()[0][0] == "running", what="the loop")
        try:
            yield board, listening.getsockname()
        finally:
            board.stop()
            os.write(writer, b"\0")
            thread.join(SECONDS)
            os.close(reader)
            os.close(writer)


def told(place: tuple[str, int], source: str) -> bytes:
    with socket.create_connection(place, SECONDS, (source, 0)) as one:
        return read_all(one)


def count(board: Board, name: str) -> int:
    return board.counters(0, 0)[COUNTERS.index(name)]


def test_a_list_has_its_own_words() -> None:
    networks = block("127.1.0.0/16", "127.2.0.0/16", "2001:db8::/32")
    with loop(networks, [False] * 3) as (board, place):
        for source, group in (("127.1.2.3", 1), ("127.2.0.0", 2), ("127.3.0.1", 0)):
            assert told(place, source) == b"421 list %d\r\n" % group
        assert told(place, "127.1.2.4") == b"421 list 1\r\n"
        until(lambda: count(board, "sent") == 4)
        assert board.listed() == [2, 1, 0]


def test_who_is_on_an_allow_list_is_told_nothing() -> None:
    """And the reader says that there was such a client, once."""
    with loop(block("127.1.0.0/16", "127.2.0.0/16"), [False, True]) as (board, place):
        reader = Reader(board, [b""] * 3 * len(WORDS), [b""] * 3 * len(WORDS), 1)
        assert reader.misdiverted() is None
        assert [told(place, source) for source in ("127.2.9.9", "127.2.9.8")] == [b"", b""]
        assert told(place, "127.1.9.9") == b"421 list 1\r\n"
        until(lambda: count(board, "accepted") == 3)
        until(lambda: count(board, "sent") + count(board, "misdiverted") == 3)
        assert count(board, "misdiverted") == 2
        assert board.listed() == [1, 2]
        assert reader.pull(-1, "none", b"", [0, 0])[0] == 3
        assert reader.misdiverted() == (2, "127.2.9.8", 2)
        assert reader.misdiverted() is None


# --- what the board does not take -----------------------------------------------------


@pytest.mark.parametrize("number", [-1, LISTS + 1])
def test_more_lists_than_there_may_be(number: int) -> None:
    with pytest.raises(ValueError, match=re.escape(f"lists: expected 0..{LISTS}, got {number}")):
        Board(1, 1, lists=number)


def test_a_block_that_is_none() -> None:
    for octets in (b"", bytes(64), block("127.0.0.0/8")[:-1]):
        with pytest.raises(ValueError, match="lists: expected the block of a table"):
            Board(1, 1, lists=1).consult(octets, [False])


def test_a_block_of_too_many_lists() -> None:
    both = block("127.1.0.0/16", "127.2.0.0/16")
    with pytest.raises(ValueError, match="lists: expected a block of at most 1"):
        Board(1, 1, lists=1).consult(both, [False])
    Board(1, 1, lists=3).consult(both, [False] * 3)


@pytest.mark.parametrize("allow", [[], [False], [False] * 3])
def test_another_number_of_lists(allow: list[bool]) -> None:
    with pytest.raises(ValueError, match=f"lists: expected 2, got {len(allow)}"):
        Board(1, 1, lists=2).consult(block("127.0.0.0/8"), allow)


def test_a_second_block() -> None:
    board = Board(1, 1, lists=1)
    board.consult(block("127.0.0.0/8"), [False])
    with pytest.raises(ValueError, match="lists: expected one block, got a second"):
        board.consult(block("127.0.0.0/8"), [False])


@pytest.mark.parametrize("group", [-1, 3])
def test_words_of_a_list_that_is_not_there(group: int) -> None:
    with pytest.raises(IndexError, match=f"list {group} of 2"):
        Board(1, 1, lists=2).publish(0, "banner", b"", 0, group)


@pytest.mark.parametrize("proxy", [(bytes(4), 32), (bytes(17), 128), (LOCAL, 129), (LOCAL, -1)])
def test_a_proxy_that_is_no_network(proxy: tuple[bytes, int]) -> None:
    with pytest.raises(ValueError, match=r"proxies: expected 16 octets and 0\.\.128, got"):
        Board(1, 1).describe(0, LOCAL, 25, False, False, [proxy])


def test_more_proxies_than_there_is_room_for() -> None:
    Board(1, 1).describe(0, LOCAL, 25, False, False, [(LOCAL, 128)] * PROXIES)
    with pytest.raises(ValueError, match=f"proxies: at most {PROXIES}, got {PROXIES + 1}"):
        Board(1, 1).describe(0, LOCAL, 25, False, False, [(LOCAL, 128)] * (PROXIES + 1))
