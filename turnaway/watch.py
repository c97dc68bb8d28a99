"""One board being watched: its records, its counters, and what changes in them.

Owns: the reading end of a board's rings, and the memory of what its counters
said at the last look, so that a change is told once.  A reload makes a second
one while the first still ends.
"""

import json
import os
import time
from collections.abc import Iterator
from dataclasses import replace

from turnaway import answers, stats
from turnaway._board import WORDS, Board
from turnaway._journal import Reader
from turnaway.outlet import ERROR, NOTICE, WARNING
from turnaway.settings import Detail, List, Listener, Settings

_UNLIMITED = 1 << 62


def _tails(listener: Listener, lists: tuple[List, ...]) -> Iterator[tuple[bytes, bytes]]:
    """The end of a connection line, and the same as members of a JSON object: for who
    is on no list and for each list, for each of the words of the board."""
    for one, speaks in zip((None, *lists), answers.groups(listener, lists), strict=True):
        codes = answers.codes(speaks or listener)
        for words in WORDS:
            protocol, code = codes[words]
            if speaks is None:
                yield _tail(listener, "-", one, protocol, "-")
            else:
                yield _tail(listener, speaks.persona.name, one, protocol, code)


def _untold(listener: Listener) -> tuple[bytes, bytes]:
    """The same for who was told nothing, for nobody knows who it is."""
    return _tail(listener, "-", None, "smtp", "-")


def _tail(
    listener: Listener, persona: str, listed: List | None, protocol: str, code: str
) -> tuple[bytes, bytes]:
    members: dict[str, str | int | None] = {"as": listener.name, "persona": persona}
    text = f" as={listener.name} persona={persona}"
    if listed is not None:
        members["list"] = listed.name
        text += f" list={listed.name}"
    members |= {"proto": protocol, "code": int(code) if code.isdecimal() else None}
    text += f"{'' if protocol == 'smtp' else f' proto={protocol}'} code={code}"
    return text.encode(), json.dumps(members, separators=(",", ":"))[1:-1].encode("ascii")


def _cap(detail: tuple[str, int] | tuple[str, int, bool]) -> int:
    """How many lines a second a --log-connections lets through at the most."""
    return detail[1] if detail[0] == "capped" else _UNLIMITED


class Watch:
    def __init__(self, settings: Settings, board: Board) -> None:
        self.settings = settings
        self.board = board
        tails = [tail for one in settings.listeners for tail in _tails(one, settings.lists)]
        self.reader = Reader(
            board,
            [text for text, _ in tails],
            [members for _, members in tails],
            int.from_bytes(os.urandom(8)),
            [_untold(one) for one in settings.listeners],
        )
        self._second = 0
        self._allowed: list[int] = []
        self._errors = [stats.of_listener(board, one) for one in range(board.listeners)]
        self._stumbled: set[int] = set()
        self._stressed = False
        self._stresses = 0

    def pull(
        self, fd: int, kind: str, header: bytes, wanted: int = 0
    ) -> tuple[int, int, int, int, list[str]]:
        """Read the rings into the log: see Reader.pull.  The cap of a second is
        kept here, over all workers."""
        if int(time.time()) != self._second:
            self._second = int(time.time())
            self._allowed = [
                _cap((self.settings.detail, self.settings.detail_number)),
                *(_cap(self.board.logs_connections(one)) for one in range(self.board.listeners)),
            ]
        seen, sent, lost, error, self._allowed, text = self.reader.pull(
            fd, kind, header, self._allowed, wanted
        )
        return seen, sent, lost, error, text

    def log_connections(self, detail: Detail, number: int) -> None:
        """Another --log-connections, over all listeners that have none of their own."""
        for index in range(self.board.listeners):
            if not self.board.logs_connections(index)[2]:
                self.board.log_connections(index, detail, number, False)
        self.settings = replace(self.settings, detail=detail, detail_number=number)
        self._second = 0  # the new cap, now

    def changes(self) -> Iterator[tuple[int, str]]:
        """(severity, message) for whatever began or ended since the last look."""
        yield from self._misdiverted()
        yield from self._stumbles()
        yield from self._stress()

    def _misdiverted(self) -> Iterator[tuple[int, str]]:
        """Loudly: somebody who is wanted is being turned away."""
        if (found := self.reader.misdiverted()) is not None:
            count, source, listed = found
            yield (
                WARNING,
                f"misdiverted: {count} connections from allow list"
                f" {self.settings.lists[listed - 1].name}, the last from [{source}]; wanted senders"
                " are diverted here, look at the firewall's rules",
            )

    def _stumbles(self) -> Iterator[tuple[int, str]]:
        """One line when a listener begins to fail at accept, one when it is well again."""
        for index, before in enumerate(self._errors):
            now = stats.of_listener(self.board, index)
            fresh = [
                f"{name} {now[name] - before[name]} times"
                for name in stats.RESTING
                if now[name] != before[name]
            ]
            place = self.settings.listeners[index].place
            if fresh and index not in self._stumbled:
                self._stumbled.add(index)
                yield (
                    ERROR,
                    f"accept on {place} fails: {', '.join(fresh)}; resting it and trying again",
                )
            elif not fresh and index in self._stumbled and now["accepted"] != before["accepted"]:
                self._stumbled.discard(index)
                yield NOTICE, f"accept on {place} works again"
            self._errors[index] = now

    def _stress(self) -> Iterator[tuple[int, str]]:
        """One line when too many sockets are held, one when it is over."""
        states = self.board.states()
        stressed = any(state[5] for state in states)
        stresses = sum(state[6] for state in states)
        held = sum(state[4] for state in states)
        if not self._stressed and stresses != self._stresses:
            self._stressed = True
            yield (
                WARNING,
                f"stress: {held} sockets are held, of {self.settings.limits.held} at the most;"
                " whoever would be held is now closed at once",
            )
        if self._stressed and not stressed:
            self._stressed = False
            yield NOTICE, f"stress is over: {held} sockets are held"
        self._stresses = stresses
