"""From a listener and a moment to the bytes that are sent.

The only place that knows SMTP reply syntax (RFC 5321 4.2, 4.2.1) and the form
of the date.  `mistakes` tells before the start what could ever be wrong with a
listener's banner; `render` then cannot fail.
"""

import re
import time

from turnaway import __version__
from turnaway.settings import Line, Listener

LINE_OCTETS = 512  # a reply line with code and CRLF, RFC 5321 4.5.3.1.5
TOTAL_OCTETS = 1000  # dma(8) cuts a greeting after 1024
# Two numbers only: nullmailer(7) takes three dotted ones for a status code
# (RFC 3463) and then cannot write its bounce.
VERSION = ".".join(__version__.split(".")[:2])

DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_ZONE = re.compile(r"[A-Za-z0-9+-]{1,8}")
_FIELD = re.compile(r"\{([^{}]*)\}")
_FIELDS = ("name", "version", "date", "location", "contact", "list", "client")
# The place of the client's address: the loop fills it in, for each client.
CLIENT = "\0"
_LONGEST_CLIENT = "0000:0000:0000:0000:0000:ffff:255.255.255.255"
CLIENTS = 4  # places in one answer
# As long as a date can be: every banner must fit at any moment.
LONGEST_DATE = "Mon, 01 Sep 2003 07:30:17 -0600 (ABCDEFGH)"


def date_text(moment: float) -> str:
    """A moment (seconds since 1970) as RFC 5322 3.3 date-time, local time.

    `Mon, 01 Sep 2003 07:30:17 -0600 (MDT)`: English names whatever the locale;
    the zone's name is a mere comment and left out unless it is 1 to 8 letters,
    digits, plus or minus.
    """
    local = time.localtime(moment)
    minutes = abs(local.tm_gmtoff) // 60
    sign = "-" if local.tm_gmtoff < 0 else "+"
    text = (
        f"{DAYS[local.tm_wday]}, {local.tm_mday:02} {MONTHS[local.tm_mon - 1]} {local.tm_year:04}"
        f" {local.tm_hour:02}:{local.tm_min:02}:{local.tm_sec:02}"
        f" {sign}{minutes // 60:02}{minutes % 60:02}"
    )
    return f"{text} ({local.tm_zone})" if _ZONE.fullmatch(local.tm_zone) else text


def fill(text: str, listener: Listener, date: str, client: str = CLIENT) -> str:
    """A persona's text with its fields filled in."""
    values = {
        "name": listener.name,
        "version": VERSION,
        "date": date,
        "location": listener.location,
        "contact": listener.contact,
        "list": listener.listed,
        "client": client,
    }
    return _FIELD.sub(lambda field: values[field[1]], text)


def refuses(code: int) -> bool:
    """Whether a reply code may stand in place of the 220: 4yz or 5yz, y up to 5
    (RFC 5321 4.2)."""
    return 400 <= code <= 599 and code // 10 % 10 <= 5


def render(listener: Listener, date: str) -> bytes:
    """The reply: CRLF lines, one code, a hyphen on all lines but the last."""
    lines = listener.lines
    last = len(lines) - 1
    return "".join(
        f"{listener.code}{' ' if number == last else '-'}{fill(line.text, listener, date)}\r\n"
        for number, line in enumerate(lines)
    ).encode("ascii")


def dialogue(listener: Listener) -> dict[str, bytes]:
    """The replies of close policy `quit` (RFC 5321 3.1, 4.2.2)."""
    name = listener.name
    return {
        "wrong": f"503 {name} Bad sequence of commands; you are refused, see the greeting\r\n".encode(),
        "bye": f"221 {name} Closing connection\r\n".encode(),
        "late": f"421 {name} Timeout or shutdown; closing connection\r\n".encode(),
    }


def refusal(listener: Listener, date: str) -> bytes:
    """The one line of protocol `text`."""
    assert listener.refusal is not None  # mistakes() has told otherwise
    return (fill(listener.refusal.line.text, listener, date) + "\r\n").encode("ascii")


def mistakes(listener: Listener) -> list[str]:
    """Why this listener's banner may not be sent, each with the persona's file and line."""
    found: list[str] = []
    if (text_line := listener.refusal) is not None and listener.protocol.startswith("text"):
        return _spoken_mistakes((text_line.line,), listener, 0)
    if not refuses(listener.code):
        file = listener.lines[0].where.rpartition(":")[0]
        found.append(f"{file}: code: expected 4yz or 5yz (RFC 5321 4.2), got {listener.code}")
    return found + _spoken_mistakes(listener.lines, listener, len("554-"))


def _spoken_mistakes(lines: tuple[Line, ...], listener: Listener, code_octets: int) -> list[str]:
    found = []
    total = 0
    for line in lines:
        wrong = field_mistakes(line, listener)
        if not wrong:
            text = fill(line.text, listener, LONGEST_DATE, _LONGEST_CLIENT)
            octets = code_octets + len(text) + 2
            total += octets
            wrong = _text_mistakes(text, octets)
        found += [f"{line.where}: {reason}" for reason in wrong]
    if sum(line.text.count("{client}") for line in lines) > CLIENTS:
        found.append(f"{lines[0].where}: {{client}} more than {CLIENTS} times in one reply")
    if total > TOTAL_OCTETS:
        found.append(
            f"{lines[0].where}: the reply for {listener.name} may be {total} octets long;"
            f" at most {TOTAL_OCTETS} reach every client"
        )
    return found


def field_mistakes(line: Line, listener: Listener) -> list[str]:
    """What is wrong with the fields of a persona's line."""
    wrong = [
        f"unknown field {{{name}}}; known are {', '.join(f'{{{field}}}' for field in _FIELDS)}"
        for name in _FIELD.findall(line.text)
        if name not in _FIELDS
    ]
    if "{contact}" in line.text and not listener.contact:
        wrong.append("{contact} is not set; set contact in the configuration, or --contact")
    if "{list}" in line.text and not listener.listed:
        wrong.append("{list} is for the persona of a [[list]], which no listener has for itself")
    if re.search(r"[{}]", _FIELD.sub("", line.text)):
        wrong.append("a brace outside a field such as {name}")
    return wrong


def _text_mistakes(text: str, octets: int) -> list[str]:
    wrong = []
    bad = sorted({character for character in text if not " " <= character <= "~"})
    if bad:
        wrong.append(
            f"only printable ASCII may be sent (RFC 5321 4.2), got {', '.join(map(ascii, bad))}"
        )
    if not text:
        wrong.append("an empty line; a reply line needs text (RFC 5321 4.2)")
    if octets > LINE_OCTETS:
        wrong.append(
            f"the line may be {octets} octets long; at most {LINE_OCTETS} are allowed"
            " with code and CRLF (RFC 5321 4.5.3.1.5)"
        )
    return wrong
