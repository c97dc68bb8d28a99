"""The guides do what they say: each page that was run is run here, word for word.

Owns: which pages those are, and what every page must say about itself.
"""

from __future__ import annotations

import re
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
    "fail2ban": ("nft", "fail2ban-server"),
    "crowdsec": ("nft", "crowdsec", "cscli", "crowdsec-firewall-bouncer"),
}
PAGES = sorted(GUIDES.glob("*.md"))


@pytest.mark.parametrize("name", RUN)
def test_a_page_does_what_it_says(name: str) -> None:
    need(*RUN[name])
    with hosts(Street) as made:
        boxes = [Postbox(made.hosts["mx"], address) for address in ("0.0.0.0", "::")]
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
