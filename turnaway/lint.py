"""What may be configured and is yet a mistake as a rule: the warnings of --check.

Owns: every warning, and what each is founded on.  It is the operator's choice: no
warning changes an exit status, and the daemon itself never asks.  A warning begins
with file, line and key where what it is about came from a file, else with the listener.
"""

import re
import socket
from collections.abc import Iterable

from turnaway import answers, banner, page, personas
from turnaway.exits import Failure
from turnaway.settings import Line, Listener, Settings

# What fits one segment on every path: the least MTU of IPv6 (RFC 8200 5), 1280,
# without the headers of IPv6 and TCP.
SEGMENT = 1280 - 40 - 20

# Taken for an enhanced status code (RFC 3463) by nullmailer(7) wherever it stands,
# and then it cannot write its bounce: 1.2.3, and every IPv4 address.
_DOTTED = re.compile(r"[0-9]+(?:\.[0-9]+){2,}")
# A text that begins with a status code of its own is understood.
_STATUS = re.compile(r"[45]\.[0-9]{1,3}\.[0-9]{1,3} ")
_FIELD = re.compile(r"\{[^{}]*\}")
# What every greeting has, and what says nothing about why.
_EMPTY = re.compile(
    r"an?|and|at|bye|channel|clos(?:ed?|ing)|connections?|email|esmtp|for|goodbye|here|host|in|is|it"
    r"|mail|name|of|on|or|our|please|ready|sendmail|server|service|smtp|so|the|this|to|transmission"
    r"|turnaway|we|your?",
    re.I,
)


def warnings(settings: Settings) -> list[str]:
    """Every warning about the listeners, in their order."""
    said: list[str] = []
    for listener in settings.listeners:
        said += _policy(listener)
        listed = [one for one in settings.lists if not one.allow]
        for voice in (listener, *(answers.told(listener, one) for one in listed)):
            said += [*_reason(voice), *_dotted(voice), *_segment(voice)]
        said += _overlap(listener, settings.listeners)
    return list(dict.fromkeys(said))


def _at(listener: Listener, *keys: str) -> str:
    """Where the first of these keys stood that a file gave, or else the listener's place."""
    return next((listener.wheres[key] for key in keys if key in listener.wheres), listener.place)


def _speaks(listener: Listener) -> bool:
    return listener.protocol in ("smtp", "auto")


def _policy(listener: Listener) -> Iterable[str]:
    """Where code and close policy disagree with the RFCs.

    Of 554 without QUIT nothing is said where a shipped persona stays as it is: that
    was weighed when it was written, see docs/choosing.md.
    """
    at = _at(listener, "code", "close", "persona", "address")
    chosen = not _shipped(listener) or (listener.code, listener.close) != (
        listener.persona.code,
        listener.persona.close,
    )
    if chosen and _speaks(listener) and listener.code == 554 and listener.close != "quit":
        yield (
            f"{at}: after a 554 greeting a server waits for QUIT (RFC 5321 3.1);"
            f" close policy {listener.close} does not, --close quit does, and 421 need not"
        )
    if _speaks(listener) and listener.code == 521 and listener.persona.name != "mail":
        yield (
            f"{at}: 521 is for hosts that never accept mail (RFC 7504 3), persona"
            f" {listener.persona.name} refuses some clients only; 554 says that"
        )
    at = _at(listener, "timewait", "close", "address")
    if not listener.timewait and listener.close in ("drain", "quit"):
        yield (
            f"{at}: timewait no spares only clients that are closed first; with close"
            f" policy {listener.close} most close themselves, and leave a TIME-WAIT all the same"
        )
    if not listener.timewait and not hasattr(socket, "TCP_LINGER2"):
        yield f"{at}: timewait no has no effect on this system"
    if _speaks(listener) and listener.close == "reset":
        yield (
            f"{_at(listener, 'close', 'persona', 'address')}: close policy reset loses messages;"
            " clients see an error instead"
        )


def _shipped(listener: Listener) -> bool:
    """Whether the words are those of a shipped persona: the words of 2003 stay as they are."""
    if listener.persona.name not in personas.NAMES:
        return False
    try:
        return listener.persona == personas.shipped(listener.persona.name)
    except Failure:
        return False


def says_why(line: Line) -> bool:
    """Whether a line has a word that is not in every greeting, or says where to ask."""
    if "{contact}" in line.text or re.search(r"[a-z]://|@", line.text):
        return True
    words = re.findall(r"[A-Za-z]{2,}", _FIELD.sub(" ", line.text))
    return any(not _EMPTY.fullmatch(word) for word in words)


def _reason(listener: Listener) -> Iterable[str]:
    """Some clients show their users one line only."""
    if not _speaks(listener) or _shipped(listener):
        return
    first, last = listener.lines[0], listener.lines[-1]
    if not says_why(first):
        yield (
            f"{first.where}: the first line does not say why; the log and the"
            " bounce of sendmail and nullmailer's bounce show no other; say it there, or {contact}"
        )
    if last is not first and not says_why(last):
        yield (
            f"{last.where}: the last line does not say why; some clients, such"
            " as sSMTP, show no other; say it there again, or {contact}"
        )


def _dotted(listener: Listener) -> Iterable[str]:
    """Three dotted numbers in what SMTP clients are told."""
    if not _speaks(listener) or _STATUS.match(listener.lines[0].text):
        return
    why = (
        "three dotted numbers are taken for a status code by nullmailer, which then sends no bounce"
    )
    spoken = "".join(line.text for line in listener.lines)
    for key, text in (
        ("name", listener.name),
        ("location", listener.location),
        ("contact", listener.contact),
    ):
        found = _DOTTED.search(text)
        if found and f"{{{key}}}" in spoken:
            at = listener.wheres.get(key, f"{listener.place}: {key}")
            yield f"{at}: {found[0]} in what clients are told: {why}"
    for line in listener.lines:
        if found := _DOTTED.search(line.text):
            yield f"{line.where}: {found[0]} in what clients are told: {why}"
        elif "{client}" in line.text and not listener.ipv6:
            yield f"{line.where}: {{client}} is an IPv4 address: {why}"


def _segment(listener: Listener) -> Iterable[str]:
    """A greeting has its own limit, below this; a page of HTML may have several."""
    if listener.protocol not in ("http", "auto"):
        return
    said = page.render(listener, 0.0, banner.LONGEST_DATE)
    octets = max(len(octets) for words, (octets, _) in said.items() if words != "html")
    if octets > SEGMENT:
        yield (
            f"{listener.persona.page.title.where}: the answer in plain text may"
            f" be {octets} octets long; {SEGMENT} fit one segment on every path"
        )


def _overlap(listener: Listener, others: Iterable[Listener]) -> Iterable[str]:
    """All addresses of a port, and one of them beside."""
    if listener.wildcard:
        return
    for other in others:
        if other.wildcard and (other.port, other.ipv6) == (listener.port, listener.ipv6):
            yield (
                f"{_at(listener, 'address')}: {listener.place} and {other.place} are both listeners;"
                f" connections to {listener.address} get {listener.place} ({listener.name}), all"
                f" others {other.place} ({other.name})"
            )
