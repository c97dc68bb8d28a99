"""The table as it is loaded: who is on its sets, what it diverted.

Owns: `add`, `del` and `status`, which change or read elements and counters of
`table inet turnaway` and nothing else.  Addresses were parsed before they come
here, so what nft(8) reads is of our making.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv6Network
from typing import Any

from turnaway.exits import OS_ERROR, UNAVAILABLE, USAGE, Failure
from turnaway.firewall import programs
from turnaway.firewall.nftables import TABLE, hooks
from turnaway.firewall.plan import Address, Plan, address
from turnaway.firewall.sources import Size
from turnaway.firewall.sources import size as size_of
from turnaway.lists.formats import span
from turnaway.lists.ranges import merge

CONNTRACK = "/proc/sys/net/netfilter/nf_conntrack_"
_COUNTER = re.compile(r"(?:(auto_)?refused|(answered))([46])(?:_([a-z0-9-]+))?")
_COMMENT = re.compile(r' comment "[^"]*"')  # anybody's, with whatever in it
_OURS = re.compile(
    r"(?:mx|allow|auto|hosts|pool|answered)[46]|(?:auto_)?refused?[46](?:_[a-z0-9-]+)?"
)
_SET = re.compile(r"(?:refuse([46])_([a-z0-9-]+)|auto([46]))")


def single(text: str) -> Address:
    """What a set with lifetimes can hold: one address, or an IPv6 /64 by its first one.

    Raises ValueError.
    """
    if text.endswith("/64"):
        try:
            return IPv6Network(text).network_address
        except ValueError:
            raise ValueError(
                f"expected an IPv6 network such as 2001:db8::/64, got {text!r}"
            ) from None
    if "/" in text:
        raise ValueError(
            f"expected one address, or an IPv6 /64, got {text!r}; wider networks belong in a list"
        )
    return address(text)


def add(one: Address, seconds: int) -> None:
    """Divert `one` for so long; a lifetime that is running begins anew."""
    if has(f"allow{one.version}", one):
        raise Failure(USAGE, f"{one} is on the allow list, and would not be diverted")
    name = f"auto{one.version}"
    text = ""
    if has(name, one):
        # The kernel keeps the old lifetime of an element that is there already.
        where = f"element inet {TABLE} {name} {{ {one} }}\n"
        text = f"add {where}delete {where}"
    # As part of a table, not as `add element`, for which nft 1.0.6 first reads
    # every set of networks: 13 s with 444,000 of them.
    text += (
        f"table inet {TABLE} {{\n\tset {name} {{\n\t\ttype ipv{one.version}_addr; flags timeout;"
        f" elements = {{ {one} timeout {seconds}s }}\n\t}}\n}}\n"
    )
    programs.nft("-f", "-", text=text)


def remove(one: Address) -> None:
    """Divert `one` no more.  Raises Failure if it was not listed so."""
    if not has(f"auto{one.version}", one):
        raise Failure(
            UNAVAILABLE, f"{one} is not in auto{one.version}; a list's sources are its file's"
        )
    programs.nft("delete", "element", "inet", TABLE, f"auto{one.version}", f"{{ {one} }}")


def need() -> None:
    """Raise Failure unless the table is loaded."""
    if not programs.loaded():
        raise Failure(UNAVAILABLE, f"table inet {TABLE} is not loaded; `rules` makes it")


def has(name: str, one: Address) -> bool:
    """Whether a set holds an address."""
    # nft reads every set of the table for `get element`, and this one for `list set`.
    if programs.run("nft", "list", "set", "inet", TABLE, name).returncode != 0:
        need()
        raise Failure(
            UNAVAILABLE,
            f"the rules that are loaded have no {name}: IPv{one.version} is not diverted"
            f" (--no-ipv{one.version})",
        )
    return any(first <= int(one) <= last for first, last in _elements(name))


# What is there


@dataclass(frozen=True, slots=True)
class Diverted:
    """One list's part, or that of the single addresses (`auto`)."""

    name: str
    version: int
    packets: int  # first packets, so connections
    size: Size


def diverted() -> list[Diverted]:
    """By list and family, in the order of names."""
    need()
    counted = packets()
    found = []
    for name, version in sorted(_sets()):
        set_name = f"auto{version}" if name == "auto" else f"refuse{version}_{name}"
        size = size_of(merge(_elements(set_name)), version)
        found.append(Diverted(name, version, counted.get((name, version), 0), size))
    return found


def packets() -> dict[tuple[str, int], int]:
    """First packets that were diverted, so connections, by list and family."""
    return {(name, version): count for (name, version), count in _counters() if name is not None}


def answered() -> dict[int, int]:
    """Roles router and dsr: how many diverted flows had an answer, by family."""
    return {version: count for (name, version), count in _counters() if name is None}


def forgotten(texts: Iterable[str]) -> str:
    """Text that removes the sets, maps and counters of lists, hosts and families that none of
    `texts` knows any more."""
    known = {word for text in texts for word in text.split()}
    return "".join(
        f"delete {kind} inet {TABLE} {one['name']}\n"
        for kind in ("set", "map", "counter")
        for one in _objects(kind)
        if one["name"] not in known and _OURS.fullmatch(one["name"])
    )


def unhooked(plan: Plan) -> str:
    """Text that removes our chains if they are hooked as another role has them; in one
    transaction with the rules nobody slips through."""
    loaded = {one["name"]: (one.get("type"), one.get("hook")) for one in _objects("chain")}
    if all(loaded.get(name, hook) == hook for name, hook in hooks(plan).items()):
        return ""
    ours = [name for name in ("divert", "guard", "choose") if name in loaded]
    return "".join(
        f"{verb} chain inet {TABLE} {name}\n" for verb in ("flush", "delete") for name in ours
    )


def sizes() -> dict[tuple[str, int], Size]:
    """Each list's sources as they are loaded."""
    return {
        (name, version): size_of(merge(_elements(f"refuse{version}_{name}")), version)
        for name, version in _sets()
        if name != "auto"
    }


def _objects(kind: str) -> Iterator[dict[str, Any]]:
    """What of one kind is in our table, apart from the elements of sets."""
    for one in programs.listed():
        if kind in one and (one[kind]["family"], one[kind]["table"]) == ("inet", TABLE):
            yield one[kind]


def _sets() -> Iterator[tuple[str, int]]:
    for one in _objects("set"):
        if found := _SET.fullmatch(one["name"]):
            yield found[2] or "auto", int(found[1] or found[3])


def _counters() -> Iterator[tuple[tuple[str | None, int], int]]:
    """((list, family), packets); the list is None for answers."""
    for one in _objects("counter"):
        if found := _COUNTER.fullmatch(one["name"]):
            name = None if found[2] else "auto" if found[1] else found[4]
            yield (name, int(found[3])), int(one["packets"])


def _elements(name: str) -> Iterator[tuple[int, int]]:
    """The ranges of a set."""
    # As text, not as JSON, which takes nft gigabytes for a large set.
    listed = _COMMENT.sub("", programs.nft("list", "set", "inet", TABLE, name))
    _, there, rest = listed.partition("elements = {")
    if not there:
        return
    for element in rest.partition("}")[0].split(","):
        words = element.split()
        if words:
            _, first, last = span(words[0])
            yield first, last


def conntrack() -> tuple[int, int] | None:
    """(flows known, flows it may know); None where conntrack is not in use."""
    try:
        with open(f"{CONNTRACK}count") as now, open(f"{CONNTRACK}max") as most:
            return int(now.read()), int(most.read())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Failure(OS_ERROR, f"{CONNTRACK}count: {error.strerror}") from None
