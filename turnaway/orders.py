"""What the requests at the control socket do: `status`, `stats`, `top`, `tail`,
`lookup`, `reload`, `pause`, `resume`, `loglevel`.

Owns: the form of every reply's contents.  Each order is a function of the daemon
and the request; one that cannot be met raises Failure, and has then done nothing.
"""

import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Collection
from typing import Any, Protocol

from turnaway import __version__, answers, banner, stats, values
from turnaway._board import Board
from turnaway.control import Choice, packed
from turnaway.exits import CONFIGURATION, UNAVAILABLE, USAGE, Failure
from turnaway.journal import Journal
from turnaway.outlet import NOTICE
from turnaway.privileged import named_capabilities
from turnaway.sandbox import Sandbox
from turnaway.settings import Detail, Listener, Settings

MAPPED = bytes(10) + b"\xff\xff"  # before an IPv4 address, RFC 4291 2.5.5.2
MOST = 20  # sources, and networks, in a reply to `top`

Reply = dict[str, Any]


class Subject(Protocol):
    """What the orders need of the daemon."""

    settings: Settings
    journal: Journal
    ledger: stats.Ledger
    user: str
    sandbox: Sandbox
    began: float  # steady clock
    handed_in: dict[str, str]  # place -> name of the socket that a supervisor handed in
    reloaded: Reply | None  # the last reload: when, whether, and what was told

    @property
    def boards(self) -> list[Board]:
        """The board in force last, and before it those that retire."""

    def reload(self) -> tuple[bool, list[str]]: ...

    def pause(self, listener: int, paused: bool) -> None: ...

    def log_connections(
        self, detail: Detail, number: int, places: Collection[str] = ()
    ) -> None: ...


def status(daemon: Subject, request: Reply) -> Reply:
    settings, board = daemon.settings, daemon.boards[-1]
    states = board.states()
    return {
        "program": settings.program,
        "pid": os.getpid(),
        "version": __version__,
        "user": daemon.user,
        "capabilities": named_capabilities(),
        "sandbox": daemon.sandbox.in_force,
        "uptime": round(time.monotonic() - daemon.began, 1),
        "workers": [
            {"state": state[0], "resting": state[3], "held": state[4], "stress": state[5]}
            for state in states
        ],
        "retiring": len(daemon.boards) - 1,
        "listeners": [
            {**_named(one), "code": one.code, "close": one.close, "protocol": one.protocol}
            | {"paused": board.paused(index), "socket": daemon.handed_in.get(one.place)}
            | {"log_connections": _own_detail(board, index)}
            for index, one in enumerate(settings.listeners)
        ],
        **_held(daemon),
        "log": settings.log,
        "log_connections": _detail(daemon),
        "lines_lost": daemon.journal.lost(),
        "records_dropped": daemon.ledger.sums().dropped,
        "reload": daemon.reloaded,
    }


def counters(daemon: Subject, request: Reply) -> Reply:
    sums = daemon.ledger.sums()
    return {
        "uptime": round(time.monotonic() - daemon.began, 1),
        "listeners": [
            {**_named(one), "counters": sums.of(one).plus(stats.Totals())}
            for one in daemon.settings.listeners
        ],
        "lists": sums.listed,
        "total": sums.total().plus(stats.Totals()),
        "lines_lost": daemon.journal.lost(),
        "records_dropped": sums.dropped,
    }


def top(daemon: Subject, request: Reply) -> Reply:
    board = daemon.boards[-1]
    sums = daemon.ledger.sums()
    sources, seconds = daemon.journal.sources()
    networks: Counter[str] = Counter()
    for source, count in sources.items():
        networks[_network(source)] += count
    return {
        "clock": time.monotonic(),
        "listeners": [
            {**_named(one), **_brief(sums.of(one)), "paused": board.paused(index)}
            for index, one in enumerate(daemon.settings.listeners)
        ],
        "total": _brief(sums.total()),
        **_held(daemon),
        "seconds": round(seconds, 1),
        "sources": sources.most_common(MOST),
        "networks": networks.most_common(MOST),
    }


def tail(daemon: Subject, request: Reply) -> Choice:
    persona = _text(request, "persona")
    known = sorted({one.persona.name for one in daemon.settings.listeners})
    if persona is not None and persona not in known:
        raise Failure(USAGE, f"persona: expected one of {', '.join(known)}")
    network = _text(request, "source")
    choice = Choice(persona=persona, network=None if network is None else _source(network))
    wanted = _text(request, "listener")
    if wanted is None:
        return choice
    listener = daemon.settings.listeners[_listeners(daemon, wanted)[0]]
    if wanted == listener.name:
        return Choice(choice.network, persona, listener.name)
    # A record without a line in the log need not say where it was called: the
    # address is looked at only where nothing else tells two listeners apart.
    alike = [one for one in daemon.settings.listeners if _voice(one) == _voice(listener)]
    return Choice(
        choice.network,
        listener.persona.name if persona is None else persona,
        listener.name,
        listener.port if len(alike) > 1 else None,
        listener.address if len(alike) > 1 and not listener.wildcard else None,
        listener.ipv6,
    )


def _voice(listener: Listener) -> tuple[str, str, bool]:
    return listener.name, listener.persona.name, listener.ipv6


def lookup(daemon: Subject, request: Reply) -> Reply:
    """Which list an address is on, and what each listener would tell it."""
    text = _text(request, "address")
    try:
        octets = packed(text or "")
    except (OSError, ValueError):
        raise Failure(USAGE, "address: expected an IPv4 or IPv6 address") from None
    if octets.startswith(MAPPED):
        octets = octets[len(MAPPED) :]
    six = len(octets) == 16
    address = socket.inet_ntop(socket.AF_INET6 if six else socket.AF_INET, octets)
    settings = daemon.settings
    found = settings.lookup.find(octets if six else MAPPED + octets) if settings.lookup else None
    reply: Reply = {"address": address, "list": None, "where": None, "allow": False, "told": []}
    listed = None
    if found is not None:
        listed = settings.lists[found[0]]
        reply |= {"list": listed.name, "where": found[1], "allow": listed.allow}
        if listed.allow:
            return reply
    moment = time.time()
    for one in settings.listeners:
        if one.ipv6 == six:  # a listener of IPv6 takes no IPv4
            speaker = answers.told(one, listed) if listed else one
            words = answers.behaviour(one).blind
            protocol, code = answers.codes(speaker)[words]
            said, head = answers.render(speaker, moment)[words]
            spoken = protocol not in ("tls", "socks5")
            letters = said[head:].decode("ascii") if spoken else ""
            reply["told"].append(
                {**_named(speaker), "protocol": protocol, "code": code}
                | {"text": letters.replace(banner.CLIENT, address)}
            )
    return reply


def reload(daemon: Subject, request: Reply) -> Reply:
    done, told = daemon.reload()
    if not done:
        raise Failure(CONFIGURATION, *told)
    return {"told": told}


def pause(daemon: Subject, request: Reply) -> Reply:
    return _pause(daemon, request, True)


def resume(daemon: Subject, request: Reply) -> Reply:
    return _pause(daemon, request, False)


def _pause(daemon: Subject, request: Reply, paused: bool) -> Reply:
    wanted = _text(request, "listener")
    if wanted is None:
        raise Failure(USAGE, "listener: expected a place or a name")
    places = []
    for index in _listeners(daemon, wanted):
        daemon.pause(index, paused)
        places.append(daemon.settings.listeners[index].place)
    return {"listeners": places}


def loglevel(daemon: Subject, request: Reply) -> Reply:
    how, wanted = _text(request, "how"), _text(request, "listener")
    indices = [] if wanted is None else _listeners(daemon, wanted)
    if how is not None:
        try:
            detail, number = values.detail(how)
        except ValueError:
            raise Failure(USAGE, "how: expected capped:N, sample:N, all or none") from None
        if daemon.settings.log == "none":
            raise Failure(UNAVAILABLE, "there is no log: it was started with --log none")
        places = [daemon.settings.listeners[index].place for index in indices]
        daemon.log_connections(detail, number, places)
    own = {
        one.place: _own_detail(daemon.boards[-1], index)
        for index, one in enumerate(daemon.settings.listeners)
        if wanted is None or index in indices
    }
    return {
        "log_connections": _detail(daemon),
        "own": {place: detail for place, detail in own.items() if detail is not None},
    }


# By name: the keys of the request, whether the log should tell of it, the function.
ORDERS: dict[str, tuple[tuple[str, ...], bool, Callable[[Subject, Reply], Reply | Choice]]] = {
    "status": ((), False, status),
    "stats": ((), False, counters),
    "top": ((), False, top),
    "tail": (("source", "persona", "listener"), False, tail),
    "lookup": (("address",), False, lookup),
    "reload": ((), True, reload),
    "pause": (("listener",), True, pause),
    "resume": (("listener",), True, resume),
    "loglevel": (("how", "listener"), True, loglevel),
}


def obey(daemon: Subject, request: Reply, who: str) -> tuple[Reply, Choice | None]:
    """Do what a request asks for.  Raises Failure."""
    name = request.get("do")
    if not isinstance(name, str) or name not in ORDERS:
        raise Failure(USAGE, f"do: expected one of {', '.join(ORDERS)}")
    keys, told, order = ORDERS[name]
    if not request.keys() <= {"do", *keys}:
        expected = f"expected no keys but {', '.join(keys)}" if keys else "expected no keys"
        raise Failure(USAGE, f"{name}: {expected}, beside v and do")
    reply = order(daemon, request)
    if isinstance(reply, Choice):
        return {}, reply
    if told and (name != "loglevel" or "how" in request):
        what = " ".join(reply.get("listeners", ()))
        if name == "loglevel":
            what = " ".join([str(request["how"]), *(reply["own"] if "listener" in request else ())])
        daemon.journal.say(NOTICE, f"control: {f'{name} {what}'.strip()} ({who})")
    return reply, None


def _named(listener: Listener) -> Reply:
    return {"place": listener.place, "name": listener.name, "persona": listener.persona.name}


def _held(daemon: Subject) -> Reply:
    states = [state for board in daemon.boards for state in board.states()]
    return {
        "held": sum(state[4] for state in states),
        "held_most": daemon.settings.limits.held,
        "resting": sum(state[3] for state in states),
        "stress": any(state[5] for state in states),
    }


def _brief(totals: stats.Totals) -> Reply:
    return {
        "connections": totals["accepted"],
        "sent": totals["sent"],
        "early": totals["early"],
        "errors": sum(totals[name] for name in stats.ERRORS),
    }


def _detail(daemon: Subject) -> str:
    return _spelt(daemon.settings.detail, daemon.settings.detail_number)


def _own_detail(board: Board, index: int) -> str | None:
    """A listener's own --log-connections; None where it goes with the others."""
    detail, number, own = board.logs_connections(index)
    return _spelt(detail, number) if own else None


def _spelt(detail: Detail, number: int) -> str:
    return f"{detail}:{number}" if detail in ("capped", "sample") else detail


def _network(source: str) -> str:
    """The /24 of an IPv4 address, the /48 of an IPv6 address."""
    if ":" not in source:
        return f"{source.rpartition('.')[0]}.0/24"
    return f"{socket.inet_ntop(socket.AF_INET6, packed(source)[:6] + bytes(10))}/48"


def _text(request: Reply, key: str) -> str | None:
    text = request.get(key)
    if text is not None and (not isinstance(text, str) or not text):
        raise Failure(USAGE, f"{key}: expected a text")
    return text


def _listeners(daemon: Subject, wanted: str) -> list[int]:
    """The listeners of this place or name.  Raises Failure when there is none."""
    listeners = daemon.settings.listeners
    found = [index for index, one in enumerate(listeners) if wanted in (one.place, one.name)]
    if not found:
        known = " ".join(f"{one.place} ({one.name})" for one in listeners[:MOST])
        raise Failure(USAGE, f"listener: expected one of {known}")
    return found


def _source(text: str) -> tuple[bytes, int]:
    """ADDRESS or ADDRESS/BITS."""
    address, slash, bits = text.partition("/")
    try:
        octets = packed(address)
        number = int(bits) if slash else len(octets) * 8
        if not bits.isascii() or (slash and not bits.isdecimal()):
            raise ValueError
        if not 0 <= number <= len(octets) * 8:
            raise ValueError
    except (OSError, ValueError):
        raise Failure(USAGE, "source: expected ADDRESS or ADDRESS/BITS") from None
    return octets, number
