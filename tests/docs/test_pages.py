"""What the README and the site's pages show is done here, command by command.

Owns: that each marked block of a page prints what the page says, and that no
block with a prompt is left out.  How a page is read and followed stands in
guides.py; the pages of docs/divert are followed in netns/test_guides.py.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from guides import GUIDES, ROOT, Alone, hosts, steps
from running import need

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RUN = [page for page in PAGES if steps(page.read_text())]
TOOLS = ("curl", "nc", "openssl")  # beside those of every system

_SESSION = re.compile(r"^(?P<mark>.*)\n```(?:console|sh)\n", re.M)
_ELSEWHERE = re.compile(r"<!-- elsewhere: (\S+) -->")


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", RUN, ids=name)
def test_a_page_does_what_it_says(page: Path) -> None:
    need(*TOOLS)
    with hosts(Alone) as alone:
        assert alone.follow(page) >= 2


def left_out(text: str) -> list[str]:
    """The lines before sessions that no test does, or that name no test that is there."""
    marks = [found["mark"] for found in _SESSION.finditer(text)]
    known = [
        mark for mark in marks if (found := _ELSEWHERE.match(mark)) and (ROOT / found[1]).exists()
    ]
    return [mark for mark in marks if mark != "<!-- run -->" and mark not in known]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_no_session_is_left_out(page: Path) -> None:
    assert left_out(page.read_text()) == []


def test_a_session_that_is_left_out_is_seen() -> None:
    text = (
        "text\n```sh\none\n```\n<!-- run -->\n```console\n$ two\n```\n"
        "<!-- elsewhere: tests/none.py -->\n```console\n$ three\n```\n"
        "<!-- elsewhere: tests/guides.py -->\n```console\n$ four\n```\n"
    )
    assert left_out(text) == ["text", "<!-- elsewhere: tests/none.py -->"]


def test_the_pages_that_show_commands_are_followed() -> None:
    shown = {"README", "index", "start", "choosing", "closing", "configuration", "operations"}
    assert shown <= {page.stem for page in RUN}
    assert not [page for page in RUN if GUIDES in page.parents]
