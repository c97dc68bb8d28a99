"""Links in docs/: each file and each heading that is linked to is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
WRITTEN = [page for page in sorted(DOCS.rglob("*.md")) if "_build" not in page.parts]
PAGES = [ROOT / "README.md", *WRITTEN]

_CODE = re.compile(r"^```.*?^```$|`[^`\n]*`", re.M | re.S)
_LINK = re.compile(r"\]\(([^)\s]+)\)")


def anchors(text: str) -> set[str]:
    """Of the headings, as GitHub makes them."""
    found = set()
    for heading in re.findall(
        r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S), re.M
    ):
        plain = re.sub(r"[`*]", "", heading).lower()
        found.add(re.sub(r"[^\w\- ]", "", plain).replace(" ", "-"))
    return found


def broken(page: Path, text: str) -> list[str]:
    """Links of this text to what is not there."""
    wrong = []
    for target in _LINK.findall(_CODE.sub("", text)):
        path, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        there = (page.parent / path).resolve() if path else page
        if not there.exists() or (
            anchor and anchor not in anchors(there.read_text() if path else text)
        ):
            wrong.append(target)
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    assert broken(page, page.read_text()) == []


def test_a_broken_link_is_seen() -> None:
    text = "# One `two`: three\n[a](#one-two-three) [b](#four) [c](no.md) `[d](no.md)` [e](README.md)\n"
    assert broken(ROOT / "README.md", text) == ["#four", "no.md"]


def test_every_guide_is_in_the_index() -> None:
    index = (DOCS / "divert" / "index.md").read_text()
    for page in (DOCS / "divert").glob("*.md"):
        assert page.stem == "index" or f"]({page.name}" in index
