"""The guides do what they say: each page that was run is run here, word for word.

Owns: which pages those are, and what every page must say about itself.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from guides import GUIDES, Step, Street, hosts, matches, steps
from running import need

from tests.netns.mail import Postbox

RUN = {
    "nftables": ("nft",),
    "iptables": ("iptables", "ipset", "nfct"),
    "firewalld": ("nft", "firewalld", "firewall-cmd", "dbus-daemon"),
    "ufw": ("nft", "ufw"),
    "shorewall": ("shorewall", "shorewall6", "ipset"),
    "haproxy": ("haproxy",),
    "fail2ban": ("nft", "fail2ban-server"),
    "crowdsec": ("nft", "crowdsec", "cscli", "crowdsec-firewall-bouncer"),
}
PAGES = sorted(GUIDES.glob("*.md"))


@pytest.mark.parametrize("name", RUN)
def test_a_page_does_what_it_says(name: str) -> None:
    need(*RUN[name])
    with hosts(Street) as made:
        # Behind HAProxy the mail server has moved to a place of its own.
        where = ("127.0.0.1",) if name == "haproxy" else ("0.0.0.0", "::")
        boxes = [Postbox(made.hosts["mx"], address) for address in where]
        try:
            assert made.follow(GUIDES / f"{name}.md") >= 5
        finally:
            for box in boxes:
                box.server_close()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_says_whether_it_was_run(page: Path) -> None:
    """Near its top, and the truth."""
    head = "\n".join(page.read_text().splitlines()[:8])
    run = re.search(r"\*\*Run in our tests\*\*", head)
    told = re.search(r"\*\*Not run in our tests\*\*", head)
    if page.stem == "index":
        return
    assert bool(run) == (page.stem in RUN), page
    assert bool(told) == (page.stem not in RUN), page
    assert bool(steps(page.read_text())) == (page.stem in RUN), page


# What is typed on no router: a list made into the router's own commands.
CONVERSIONS = {
    "cisco-ios": [" permit tcp 203.0.113.64 0.0.0.63 host 198.51.100.25 eq smtp"],
    "juniper": [
        "set security nat destination rule-set TURNAWAY rule R4 match source-address 203.0.113.7/32",
        "set security nat destination rule-set TURNAWAY rule R6 match source-address"
        " 2001:db8:bad::/64",
    ],
    "mikrotik": [
        "/ip firewall address-list add list=turnaway address=203.0.113.64/26",
        "/ipv6 firewall address-list add list=turnaway address=2001:db8:bad::/64",
    ],
    "vyos": [
        "set firewall group network-group TURNAWAY network 203.0.113.7/32",
        "set firewall group ipv6-network-group TURNAWAY6 network 2001:db8:bad::/64",
    ],
}


@pytest.mark.parametrize("name", CONVERSIONS)
def test_a_list_becomes_a_routers_commands(name: str, tmp_path: Path) -> None:
    """The page's own pipeline, up to the file it would write."""
    spam = tmp_path / "spam.txt"
    spam.write_text("203.0.113.64/26 ; SBL1\n203.0.113.7\n2001:db8:bad::/64\n")
    found = re.findall(
        r"^\$ (turnawayctl firewall sets --for plain [^']*'.*?')(?: >+turnaway\.\w+)?$",
        (GUIDES / f"{name}.md").read_text(),
        re.M | re.S,
    )
    assert found
    plan = f"--gateway none --mx 198.51.100.25,2001:db8:25::25 --list spam={spam}:2525"
    done = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", "\n".join(found)],
        env={"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PLAN": plan},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert set(CONVERSIONS[name]) <= set(lines)
    assert not [line for line in lines if "#" in line or "list spam" in line]


def test_a_block_is_read_as_it_is_meant() -> None:
    text = (
        "<!-- file: /etc/x -->\n```ini\n[a]\n```\n\ntext\n\n<!-- run -->\n```console\n"
        "mx# one \\\n    two\nfirst\n...\nlast\nlisted$ three\n```\n\n```console\nmx# not this\n```\n"
    )
    assert steps(text) == [
        Step(3, "mx", "[a]\n", path="/etc/x"),
        Step(10, "mx", "one \\\n    two", ("first", "...", "last")),
        Step(15, "listed", "three"),
    ]
    assert steps("<!-- run -->\n```console\n$ one\n# two\n```\n") == [
        Step(3, "here", "one", ("# two",))
    ]


@pytest.mark.parametrize(
    ("expected", "printed", "same"),
    [
        (["a", "b"], "a\nb\n", True),
        (["a"], "a\nb\n", False),
        (["a", "..."], "a\nb\nc\n", True),
        (["a", "..."], "a\n", True),
        (["...", "c"], "a\nb\n", False),
        (["at ... (UTC);"], "at Sun, 22 Nov (UTC);\n", True),
        (["at ... (UTC);"], "at Sun, 22 Nov\n", False),
        (
            ["at Sun, 22 Nov 2026 16:37:22 +0000 (UTC);"],
            "at Mon, 23 Nov 2026 01:02:03 -0600 (MDT);\n",
            True,
        ),
        (["at Sun, 22 Nov 2026 16:37:22 +0000 (UTC);"], "at 22 Nov 2026;\n", False),
        (["from=[127.0.0.1]:51322 to"], "from=[127.0.0.1]:4 to\n", True),
        (["from=[127.0.0.1]:51322 to"], "from=[127.0.0.1] to\n", False),
        ([], "", True),
        ([], "a\n", False),
    ],
)
def test_what_a_page_prints_is_held_against_what_was_printed(
    expected: list[str], printed: str, same: bool
) -> None:
    assert matches(expected, printed) is same
