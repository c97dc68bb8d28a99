"""From a listener and a moment to an HTTP answer.

The only place that knows HTTP (RFC 9110, RFC 9112).  Four answers: 403 as plain
text, 403 as a small page, 400 to what is not HTTP, 408 to who does not finish a
request in time.  Each closes the connection and may not be stored.
"""

import html
import time

from turnaway.banner import DAYS, LONGEST_DATE, MONTHS, field_mistakes, fill
from turnaway.settings import Line, Listener

ANSWER_OCTETS = 4064  # a slot of the loop's

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="us-ascii">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ max-width: 36em; margin: 4em auto; padding: 0 1em; font: 1.1em/1.5 sans-serif;
color: #222; background: #fff; overflow-wrap: anywhere }}
h1 {{ font-size: 1.6em; line-height: 1.2; border-bottom: .15em solid #c30; padding-bottom: .4em }}
footer {{ margin-top: 3em; color: #666; font-size: .8em }}
@media (prefers-color-scheme: dark) {{ body {{ color: #ddd; background: #181818 }}
footer {{ color: #999 }} }}
</style>
</head>
<body>
<h1>{title}</h1>
{paragraphs}
<footer>{footer}</footer>
</body>
</html>
"""


def http_date(moment: float) -> str:
    """IMF-fixdate, RFC 9110 5.6.7: `Mon, 01 Sep 2003 13:30:17 GMT`."""
    utc = time.gmtime(moment)
    return (
        f"{DAYS[utc.tm_wday]}, {utc.tm_mday:02} {MONTHS[utc.tm_mon - 1]} {utc.tm_year:04}"
        f" {utc.tm_hour:02}:{utc.tm_min:02}:{utc.tm_sec:02} GMT"
    )


_PHRASES = {400: "Bad Request", 403: "Forbidden", 408: "Request Timeout"}


def _answer(status: int, moment: float, kind: str, body: str) -> tuple[bytes, int]:
    octets = body.encode("ascii")
    head = (
        f"HTTP/1.1 {status} {_PHRASES[status]}\r\n"
        f"Date: {http_date(moment)}\r\n"
        f"Content-Type: {kind}; charset=us-ascii\r\n"
        f"Content-Length: {len(octets)}\r\n"
        "Cache-Control: no-store\r\n"
        "Connection: close\r\n\r\n"
    ).encode("ascii")
    return head + octets, len(head)


def render(listener: Listener, moment: float, date: str) -> dict[str, tuple[bytes, int]]:
    """{"plain": (octets, length of the head), "html": ..., "bad": ..., "timeout": ...}

    `date` is the listener's date of this moment, for texts that show one.
    """
    page = listener.persona.page
    title = fill(page.title.text, listener, date)
    text = [fill(paragraph.text, listener, date) for paragraph in page.text]
    plain = "\n\n".join([title, *text]) + "\n"
    document = _PAGE.format(
        title=html.escape(title),
        paragraphs="\n".join(f"<p>{html.escape(paragraph)}</p>" for paragraph in text),
        footer=html.escape(f"{listener.name}, {listener.location}. {date}"),
    )
    return {
        "plain": _answer(403, moment, "text/plain", plain),
        "html": _answer(403, moment, "text/html", document),
        "bad": _answer(400, moment, "text/plain", f"This is not HTTP.\n\n{plain}"),
        "timeout": _answer(408, moment, "text/plain", f"The request took too long.\n\n{plain}"),
    }


def mistakes(listener: Listener) -> list[str]:
    """Why this listener's HTTP answers may not be sent, each with file and line."""
    page = listener.persona.page
    found = []
    for line in (page.title, *page.text):
        found += [f"{line.where}: {reason}" for reason in _line_mistakes(line, listener)]
    if not found:
        longest = max(len(octets) for octets, _ in render(listener, 0.0, LONGEST_DATE).values())
        if longest > ANSWER_OCTETS:
            found.append(
                f"{page.title.where}: the page for {listener.name} may be {longest} octets long;"
                f" at most {ANSWER_OCTETS} are allowed"
            )
    return found


def _line_mistakes(line: Line, listener: Listener) -> list[str]:
    wrong = field_mistakes(line, listener)
    if "{client}" in line.text:
        wrong.append("{client} is for SMTP lines; an HTTP answer has a fixed length")
    bad = sorted({character for character in line.text if not " " <= character <= "~"})
    if bad:
        wrong.append(f"only printable ASCII may be sent, got {', '.join(map(ascii, bad))}")
    return wrong
