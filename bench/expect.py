"""What every octet of an answer has to be.

Owns the idea of a right answer: a template taken from the first plain
connection (or supplied), of which only the date may change. The shape is
judged here, once, in Python; the load generator then compares octet for octet
in C, so a connection that passes has the shape too. Raises `ValueError` with
the reason when a template is not a reply at all.
"""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass

DATE = re.compile(
    rb"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun), [0-9]{2} "
    rb"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) [0-9]{4} "
    rb"[0-9]{2}:[0-9]{2}:[0-9]{2} [+-][0-9]{4}(?: \([A-Za-z0-9+-]{1,8}\))?"
)
LINE = re.compile(rb"([2-5][0-5][0-9])([- ])([\t -~]*)\r\n")
LARGEST = 16_384

EQUAL, DIGIT, LETTER = 0, 1, 2


@dataclass(frozen=True)
class Expect:
    """A template and, octet by octet, how far it may change."""

    template: bytes
    freedom: bytes

    @classmethod
    def nothing(cls) -> Expect:
        """The server closes without a word."""
        return cls(b"", b"")

    @classmethod
    def exactly(cls, template: bytes) -> Expect:
        """Any octets (an alert, a SOCKS reply): all of them, unchanged."""
        return cls(template, bytes(len(template)))

    @classmethod
    def reply(cls, template: bytes, *, code: int | None = None, name: str | None = None) -> Expect:
        """An SMTP reply in which nothing but the date may change."""
        _check_shape(template, code, name)
        freedom = bytearray(len(template))
        for date in DATE.finditer(template):
            for at in range(*date.span()):
                octet = template[at : at + 1]
                freedom[at] = DIGIT if octet.isdigit() else LETTER if octet.isalpha() else EQUAL
        return cls(template, bytes(freedom))

    @classmethod
    def learn(
        cls,
        address: str,
        port: int,
        *,
        code: int | None = None,
        name: str | None = None,
        timeout: float = 5.0,
    ) -> Expect:
        """Take the template from one plain connection."""
        answer = bytearray()
        with socket.create_connection((address, port), timeout=timeout) as plain:
            while len(answer) <= LARGEST:
                piece = plain.recv(4096)
                if not piece:
                    break
                answer += piece
        return cls.reply(bytes(answer), code=code, name=name) if answer else cls.nothing()


def _check_shape(template: bytes, code: int | None, name: str | None) -> None:
    lines = template.splitlines(keepends=True)
    if not lines or len(template) > LARGEST:
        raise ValueError(f"not a reply: {len(template)} octets")
    codes = set()
    for number, line in enumerate(lines, 1):
        shape = LINE.fullmatch(line)
        if shape is None:
            raise ValueError(f"line {number} is not CODE, text, CRLF: {line!r}")
        codes.add(int(shape[1]))
        if (shape[2] == b" ") != (number == len(lines)):
            raise ValueError(f"line {number} of {len(lines)} has the wrong separator: {line!r}")
    if len(codes) != 1:
        raise ValueError(f"more than one code: {sorted(codes)}")
    if code is not None and codes != {code}:
        raise ValueError(f"code {codes.pop()}, expected {code}")
    first = lines[0][4:].split(None, 1)[:1]
    if name is not None and first != [name.encode()]:
        raise ValueError(f"first word {first}, expected {name!r}")
