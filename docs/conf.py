"""The documentation site: Sphinx, furo, MyST.  `make docs` builds it.

Owns: how pages become a site.  Pages are Markdown that also reads well where
Markdown is shown as it is; what only the site needs is added here: the manual
pages, rendered by mandoc(1) as they are read, and below each
folder's index, in the sidebar, the pages it links to in that order.  A warning is an error, a link that leads nowhere is
a warning.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pygments.lexers.shell import BashSessionLexer

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from turnaway import __version__  # noqa: E402

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "Turnaway"
author = "The Turnaway developers"
copyright = f"2026, {author}"
version = release = __version__

extensions = ["myst_parser"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 4
nitpicky = True
# A session with a program in quotes over several lines is more than Pygments can read.
suppress_warnings = ["misc.highlighting_failure"]

html_theme = "furo"
html_title = f"Turnaway {release}"
html_logo = "images/turnaway.svg"
html_favicon = "images/turnaway.ico"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#b3261e", "color-brand-content": "#a8241c"},
    "dark_css_variables": {"color-brand-primary": "#ff8a65", "color-brand-content": "#ff9a78"},
}

MANUALS = ("turnaway-fast.8", "turnawayctl.8", "turnaway.toml.5")


class Session(BashSessionLexer):
    """Sessions with the prompts of our pages: `$`, `mx#`, `listed$`, `other$`."""

    _ps1rgx = re.compile(r"^((?:(?:mx|listed|other)[#$]|\$) )(.*\n?)")


_HEADING = re.compile(
    r"""<h(?P<level>[12])\ class="S[hs]"[^>]*><a[^>]*>(?P<title>.*?)</a></h[12]>""",
    re.S | re.X,
)
_REFERENCE = re.compile(r'<a class="Xr">(?P<page>[\w.-]+)\((?P<section>\d)\)</a>')
_SECTION = re.compile(r'(?<=<a class="Sx" href="#)[^"]*(?=")')


def manual(page: str) -> str:
    """A manual page as MyST: headings of Markdown, between them mandoc's HTML."""
    html = subprocess.run(
        ["mandoc", "-T", "html", "-O", "fragment", ROOT / "man" / page],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    html = re.sub(r'<table class="(?:head|foot)">.*?</table>', "", html, flags=re.S)
    html = re.sub(r'</?section[^>]*>|<div class="manual-text">|</div>\s*\Z', "", html)
    html = _REFERENCE.sub(_referred, html)
    html = _SECTION.sub(lambda found: found[0].lower().replace("_", "-"), html)
    parts = _HEADING.split(html)
    text = ""
    for level, title, body in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        plain = " ".join(re.sub("<[^>]*>", "", title).split())
        text += f"\n{'#' * (int(level) + 1)} {plain}\n"
        if body.strip():
            text += f"\n``````{{raw}} html\n<div class='manual'>{body}</div>\n``````\n"
    return text


def _referred(found: re.Match[str]) -> str:
    name = f"{found['page']}.{found['section']}"
    shown = f"{found['page']}({found['section']})"
    return f'<a class="Xr" href="{name}.html">{shown}</a>' if name in MANUALS else shown


def complete(app: Sphinx, name: str, source: list[str]) -> None:
    """What a page says only here: a manual page, or the pages below an index."""
    folder, _, page = name.rpartition("/")
    if folder == "reference" and page in MANUALS:
        source[0] += manual(page)
    if folder and page == "index":
        linked = dict.fromkeys(re.findall(r"\]\((\w[\w.-]*)\.md[)#]", source[0]))
        source[0] += "\n\n```{toctree}\n:hidden:\n\n" + "\n".join(linked) + "\n```\n"


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", complete)
    app.add_lexer("console", Session)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
