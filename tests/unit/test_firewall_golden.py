"""What each firewall's generator prints, held against files that were read by a person.

Owns: tests/unit/golden/.  pf and ipfw cannot run here, so these files are all
that stands between a slip of the pen and somebody's firewall; for the others
they show what a change of the generator changes.  A difference is printed as
a diff; `UPDATE_GOLDEN=1 pytest tests/unit/test_firewall_golden.py` writes the
files anew, and `git diff` is then what is to be read.
"""

import difflib
import os
import subprocess
from pathlib import Path

import pytest
from running import need

from turnaway.exits import USAGE, Failure
from turnaway.firewall import plan
from turnaway.firewall.command import KINDS
from turnaway.firewall.plan import Plan
from turnaway.lists.ranges import Range

GOLDEN = Path(__file__).parent / "golden"
BOTH = "198.51.100.25,198.51.100.26,2001:db8:25::25"
HOSTS = "10.66.9.31,10.66.9.32,10.66.9.33,2001:db8:9::31,2001:db8:9::32"
LISTS = ["spam=/etc/turnaway/spam.txt:2525", "worms=/etc/turnaway/own worms.txt:2526"]

PLANS: dict[str, Plan] = {
    "host": plan.make(
        role="host", mx=[BOTH], lists=LISTS, allow=["198.51.100.0/24,2001:db8:25::/64"]
    ),
    # Another port for what has a lifetime, one family, more ports than one.
    "host-four": plan.make(
        role="host",
        mx=["198.51.100.25"],
        lists=LISTS[:1],
        ports=["25,26"],
        auto_port="2530",
        wan="wan0",
        ipv6=False,
    ),
    "router": plan.make(role="router", mx=[BOTH], lists=LISTS, to=[HOSTS], wan="wan0"),
    "router-source": plan.make(
        role="router", mx=[BOTH], lists=LISTS[:1], to=[HOSTS], wan="wan0", choose="source"
    ),
    "dsr": plan.make(
        role="dsr", mx=[BOTH], lists=["spam=/etc/turnaway/spam.txt:25"], to=[HOSTS], wan="wan0"
    ),
}
# 203.0.113.64/26 and one address; 2001:db8:bad::/64.
SOURCES: dict[str, tuple[list[Range], list[Range]]] = {
    "spam": (
        [(0xCB007107, 0xCB007107), (0xCB007140, 0xCB00717F)],
        [(0x20010DB80BAD << 80, (0x20010DB80BAD << 80) + (1 << 64) - 1)],
    ),
}


def same(name: str, text: str) -> None:
    """The file `name` has this text, or the test ends with the difference."""
    path = GOLDEN / name
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text)
    if not path.exists():
        pytest.fail(f"{path} is not there; UPDATE_GOLDEN=1 writes it")
    before = path.read_text()
    if text != before:
        diff = difflib.unified_diff(
            before.splitlines(), text.splitlines(), f"golden/{name}", "printed now", lineterm=""
        )
        pytest.fail("\n".join(["another text; UPDATE_GOLDEN=1 takes it:", *diff]), pytrace=False)


REFUSED = {
    ("pf-openbsd", "dsr"),
    ("pf-freebsd", "dsr"),
    ("ipfw", "router"),
    ("ipfw", "router-source"),
    *(("plain", name) for name in PLANS),
}
MADE = [(kind, name) for kind in KINDS for name in PLANS if (kind, name) not in REFUSED]
WITH_RULES = sorted({kind for kind, _ in MADE})


@pytest.mark.parametrize(("kind", "name"), MADE)
def test_rules_are_as_they_were_read(kind: str, name: str) -> None:
    same(f"{kind}.{name}.rules", KINDS[kind].rules(PLANS[name]))


@pytest.mark.parametrize(("kind", "name"), sorted(REFUSED))
def test_what_a_firewall_cannot_do_is_said(kind: str, name: str) -> None:
    with pytest.raises(Failure, match=f"--for {kind}: .*expected ") as caught:
        KINDS[kind].rules(PLANS[name])
    assert caught.value.status == USAGE


@pytest.mark.parametrize("name", ["host", "host-four"])
@pytest.mark.parametrize("kind", KINDS)
def test_sets_are_as_they_were_read(kind: str, name: str) -> None:
    same(f"{kind}.{name}.sets", KINDS[kind].sets(PLANS[name], SOURCES))


def test_every_golden_file_is_somebodys() -> None:
    rules = {f"{kind}.{name}.rules" for kind, name in MADE}
    sets = {f"{kind}.{name}.sets" for kind in KINDS for name in ("host", "host-four")}
    assert {path.name for path in GOLDEN.iterdir()} == rules | sets


@pytest.mark.parametrize("kind", WITH_RULES)
def test_a_plan_of_one_family_says_nothing_of_the_other(kind: str) -> None:
    """`fe80::` and `::1` are the plan's own words, in its heading and in a table for both."""
    text = KINDS[kind].rules(PLANS["host-four"]) + KINDS[kind].sets(PLANS["host-four"], SOURCES)
    rest = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    assert "2001:db8" not in rest
    assert "inet6" not in rest
    assert "ip6" not in rest


@pytest.mark.parametrize("kind", WITH_RULES)
def test_every_port_and_list_is_there(kind: str) -> None:
    text = KINDS[kind].rules(PLANS["host"])
    for word in ("2525", "2526", "spam", "worms", "198.51.100.26", "2001:db8:25::25"):
        assert word in text.replace(plan.heading(PLANS["host"]), ""), word


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*")), ids=lambda path: path.name)
def test_scripts_are_scripts(path: Path) -> None:
    """What begins with #!/bin/sh is read by sh, and by shellcheck."""
    if path.read_text().startswith("#!/bin/sh\n"):
        need("shellcheck")
        subprocess.run(["sh", "-n", path], check=True, timeout=20)
        subprocess.run(["shellcheck", path], check=True, timeout=60)


def test_many_hosts_by_source_are_more_than_a_cluster_match_takes() -> None:
    hosts = [f"10.66.9.{number}" for number in range(1, 34)]
    many = plan.make(
        role="router", mx=["198.51.100.25"], lists=LISTS, to=hosts, wan="wan0", choose="source",
        ipv6=False,
    )  # fmt: skip
    with pytest.raises(Failure, match="at most 32 hosts"):
        KINDS["iptables"].rules(many)
