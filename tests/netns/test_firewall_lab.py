"""Each generated nftables rule set, tried on real mail: who is diverted, and who is not.

Owns: the table of the lab, recipe by family.  The rules are those that
`turnawayctl firewall` prints and loads; the servers and the clients are real.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest
from running import Syslog, until
from street import FAMILIES, PORTS, RECIPES, Family, Recipe, begun, real, street, told_by

TABLE: list[tuple[str, ...]] = []


@pytest.fixture(params=RECIPES)
def recipe(request: pytest.FixtureRequest, syslog: Syslog, tmp_path: Path) -> Iterator[Recipe]:
    hosts = {"host": 0, "router": 1}.get(request.param, 2)
    with street(syslog, tmp_path, hosts) as made:
        yield begun(request.param, made)


def test_the_lab(recipe: Recipe) -> None:
    """One street, everything that a recipe promises, in both families."""
    one, where = recipe.street, recipe.where
    # Open before the rules are there at all, and before the source is listed.
    early = {
        (family.version, "loaded"): one.call(family.source("listed", 0), family.called)
        for family in FAMILIES
    }
    one.apply(where, recipe.words, commands=True)
    for family in FAMILIES:
        early[family.version, "listed"] = one.call(family.source("listed", 1), family.called)
        assert real(one.greeting(family.source("listed", 2), family.called)), "listed already"
    one.refuse(where, recipe.words)
    for family in FAMILIES:
        _diverted(recipe, family)
        assert real(one.greeting(family.source("unlisted"), family.called))
        _refused_flows_are_forgotten(recipe, family)
        for when in ("loaded", "listed"):
            session = early[family.version, when]
            assert real(session.greeting)
            assert session.say("EHLO client.example.net").startswith("250")
            assert session.say("MAIL FROM:<a@example.net>").startswith("250"), when
            assert session.say("QUIT").startswith("221")
            session.close()
        _ports_are_guarded(recipe, family)
        known = _called_address_known(recipe, family)
        assert known is (recipe.name in ("host", "dsr"))
        TABLE.append(
            (
                recipe.name,
                f"IPv{family.version}",
                "yes",
                "yes",
                "survives",
                "yes" if known else "no",
            )
        )


def _diverted(recipe: Recipe, family: Family) -> None:
    """Every listed source gets the banner of its list, every time."""
    one, hosts = recipe.street, set()
    for number in range(9):
        for kind, name in (("listed", "spam"), ("other", "bogons")):
            greeting = one.greeting(family.source(kind, number), family.called)
            # Nothing tells lists apart where the port stays.
            expected = "spam" if recipe.name == "dsr" else name
            assert told_by(greeting) == expected, (kind, number, greeting)
            hosts |= set(re.findall(r"\w+\.(mx|host\d) ", greeting))
    assert hosts == set(recipe.daemons)
    for name in PORTS:
        counted = recipe.where.counted(f"refused{family.version}_{name}")
        assert counted == 9, name


def _refused_flows_are_forgotten(recipe: Recipe, family: Family) -> None:
    """By conntrack in seconds, while it keeps others for their two minutes."""

    def lasting(source: str) -> int:
        """Seconds that a closed flow of this source has left at the most."""
        listed = recipe.where.run("cat", "/proc/net/nf_conntrack").stdout
        text = ip_address(source).exploded
        found = re.findall(rf" tcp +6 (\d+) TIME_WAIT src={text} ", listed)
        return max(map(int, found), default=0)

    assert all(lasting(family.source("other", number)) <= 5 for number in range(9))
    # The MX may take its time to close.
    until(lambda: lasting(family.source("unlisted")) > 60, what="its TIME_WAIT")


def _ports_are_guarded(recipe: Recipe, family: Family) -> None:
    """Listed or not, nobody calls the daemon by its own port, or a diversion host."""
    one = recipe.street
    if recipe.name == "host":
        called, ports = [family.called], list(PORTS.values())
    else:
        net = "198.51.100." if family.version == 4 else "2001:db8:25::"
        called = [f"{net}{31 + number}" for number in range(len(recipe.daemons))]
        ports = [25] if recipe.name == "dsr" else list(PORTS.values())
    for address in called:
        for port in ports:
            for kind in ("listed", "unlisted"):
                assert one.greeting(family.source(kind), address, port) == "refused", (
                    address,
                    port,
                )


def _called_address_known(recipe: Recipe, family: Family) -> bool:
    """Whether the daemon's own record has the address that the client called."""
    # A busy log may lose lines (and counts them): those that came must agree.
    sources = "|".join(re.escape(family.source("listed", number)) for number in range(9))
    pattern = rf"turned away from=\[({sources})\]"
    recipe.street.syslog.wait_for(pattern)
    lines = recipe.street.syslog.matching(pattern)
    return all(f"to=[{family.called}]" in line for line in lines)


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    """What the tests above found."""
    if len(TABLE) != len(RECIPES) * len(FAMILIES):
        pytest.skip("not all recipes were tried")
    head = ("recipe", "family", "diverted", "others reach the MX", "open session", "called known")
    with capsys.disabled():
        print()
        for row in (head, *TABLE):
            print(
                "  ".join(
                    cell.ljust(width) for cell, width in zip(row, map(len, head), strict=True)
                )
            )
