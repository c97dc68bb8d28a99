"""Personas: why a client is turned away, in which words, as TOML files.

One file a persona; those shipped stand beside this module.  A file has

    code, close, protocol   SMTP reply code, and the defaults it is made for
    lines                   the SMTP text, one string a line, without reply codes
    single                  the same in one line
    [http] title, text      the same as a page, one string a paragraph
    [text.NAME] ports, line the refusal of another protocol whose server speaks
                            first (POP3, IMAP, FTP), as it goes over the wire

What the text may contain is banner.py's business; here it is only read, and
every mistake is told with file and line.
"""

import functools
from pathlib import Path

from turnaway import banner
from turnaway.exits import DATA
from turnaway.settings import CLOSES, PROTOCOLS, Close, Line, Page, Persona, Refusal
from turnaway.tables import Document, Table, octets_of

NAMES = ("mail", "blocked", "spammer", "abused", "worm")
HOME = Path(__file__).parent


def read(path: Path, name: str | None = None, guarded: bool = False) -> Persona:
    """The persona in a file, named after it if not otherwise; `guarded` as octets_of()
    has it.  Raises Failure with every mistake."""
    document = Document(str(path), octets_of(path, DATA, guarded), DATA)
    persona = from_table(name or path.stem, document.root)
    document.finish()
    assert persona is not None  # else there were mistakes, and finish() has raised
    return persona


def from_table(name: str, table: Table) -> Persona | None:
    """The persona in a table of any document; None when the document has mistakes."""
    code = table.number("code", 400, 599, required=True)
    if code is not None and not banner.refuses(code):
        table.wrong("code", f"expected 4yz or 5yz (RFC 5321 4.2), got {code}")
    close = table.choice("close", CLOSES, required=True)
    protocol = table.choice("protocol", PROTOCOLS) or "smtp"
    lines = table.list_of("lines", str, "string", required=True)
    single = table.string("single", required=True)
    page = None
    if (http := table.table("http")) is not None:
        title = http.string("title", required=True)
        text = http.list_of("text", str, "string", required=True)
        if title is not None and text is not None:
            page = Page(
                Line(title, http.where("title")),
                tuple(Line(one, http.where("text", at)) for at, one in enumerate(text)),
            )
    refusals = []
    if (texts := table.table("text")) is not None:
        for kind in texts.data:
            if (one := texts.table(kind)) is None:
                continue
            ports = one.list_of("ports", int, "number", required=True)
            line = one.string("line", required=True)
            if ports is not None and line is not None:
                refusals.append(Refusal(kind, tuple(ports), Line(line, one.where("line"))))
    if code is None or close is None or lines is None or single is None:
        return None
    spoken = tuple(Line(line, table.where("lines", at)) for at, line in enumerate(lines))
    alone = Line(single, table.where("single"))
    return Persona(
        name=name,
        code=code,
        lines=spoken,
        single=alone,
        close=_close(close),
        protocol=protocol,
        page=page or Page(Line("Refused", alone.where), (alone,)),
        refusals=tuple(refusals),
    )


def _close(name: str) -> Close:
    return next(close for close in CLOSES if close == name)


@functools.cache
def shipped(name: str) -> Persona:
    """One of NAMES; read once, for a chroot has none of them."""
    return read(HOME / f"{name}.toml")
