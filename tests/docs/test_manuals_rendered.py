"""The manual pages as the site shows them: nothing is lost on the way.

Owns: that what docs/conf.py makes of mandoc's output has every heading, every
option and every example of the page.  That the site is well as a whole is
`make docs`, where a warning is an error.
"""

from __future__ import annotations

import html
import importlib.util
import re
import subprocess

import pytest
from guides import ROOT
from running import need

from turnaway import cli


def _manual(page: str) -> str:
    spec = importlib.util.spec_from_file_location("conf", ROOT / "docs" / "conf.py")
    assert spec is not None
    assert spec.loader is not None
    conf = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(conf)
    assert {path.name for path in (ROOT / "man").iterdir()} == set(conf.MANUALS)
    return str(conf.manual(page))


PAGES = sorted(path.name for path in (ROOT / "man").iterdir())


@pytest.mark.parametrize("page", PAGES)
def test_every_word_of_a_page_is_shown(page: str) -> None:
    need("mandoc")
    assert (ROOT / "docs" / "reference" / f"{page}.md").exists()
    shown = re.sub(r"^(?:#+ |`{6}.*)|<[^>]*>", "", _manual(page), flags=re.M)
    plain = subprocess.run(
        ["mandoc", "-T", "html", ROOT / "man" / page], capture_output=True, text=True, check=True
    ).stdout
    body = plain.partition('<div class="manual-text">')[2].partition('<table class="foot">')[0]
    wanted = re.sub(r"<[^>]*>", "", body)
    assert html.unescape(shown).split() == html.unescape(wanted).split()


@pytest.mark.parametrize("page", PAGES)
def test_headings_are_those_of_the_site(page: str) -> None:
    need("mandoc")
    text = _manual(page)
    source = (ROOT / "man" / page).read_text()
    assert len(re.findall(r"^##+ ", text, re.M)) == len(re.findall(r"^\.S[hs] ", source, re.M))
    assert "<h1" not in text
    assert "<section" not in text
    ids = re.findall(r'href="#([^"]+)"', text)
    headings = {
        re.sub(r"[^\w -]", "", one).lower().replace(" ", "-")
        for one in re.findall(r"^##+ (.*)$", text, re.M)
    }
    assert [one for one in ids if f'id="{one}"' not in text and one not in headings] == []


def test_every_option_of_the_daemon_can_be_linked_to() -> None:
    need("mandoc")
    text = re.sub(r"<[^>]*>", "", _manual("turnaway-fast.8"))
    options = [flag for one in cli.parser("turnaway-fast")._actions for flag in one.option_strings]
    assert len(options) > 30
    assert [flag for flag in options if not re.search(rf"(?<![\w-]){flag}(?![\w-])", text)] == []
