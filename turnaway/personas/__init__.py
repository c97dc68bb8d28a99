"""Personas: why a client is turned away, in which words, as TOML files.

One file a persona; those shipped stand beside this module.  A file has `code`
(the SMTP reply code), `close` (the close policy it is made for), `lines` (the
text, one string a line, without reply codes) and `single` (the same in one
line, for clients that choke on a multi-line greeting).  What the text may
contain is banner.py's business; here it is only read, and every mistake is
told with file and line.
"""

import re
import tomllib
from pathlib import Path

from turnaway.exits import DATA, Failure
from turnaway.locate import locate
from turnaway.settings import Line, Persona

NAMES = ("mail", "blocked", "spammer", "abused", "worm")
CLOSES = ("now",)
HOME = Path(__file__).parent

_KEYS = {"code": int, "close": str, "lines": list, "single": str}
_KINDS = {int: "a number", str: "a string", list: "a list of strings"}


def read(path: Path) -> Persona:
    """The persona in a file, named after it.  Raises Failure with every mistake."""
    try:
        octets = path.read_bytes()
    except OSError as error:
        raise Failure(DATA, f"{path}: {error.strerror}") from None
    try:
        text = octets.decode("utf-8")
        data = tomllib.loads(text)
    except UnicodeDecodeError as error:
        line = octets.count(b"\n", 0, error.start) + 1
        raise Failure(DATA, f"{path}:{line}: expected UTF-8, got {error.reason}") from None
    except tomllib.TOMLDecodeError as error:
        # "Invalid value (at line 3, column 8)", or "(at end of document)"
        said, _, place = str(error).removesuffix(")").rpartition(" (at ")
        stated = re.match(r"line (\d+)", place)
        line = int(stated[1]) if stated else text.count("\n") + 1
        raise Failure(DATA, f"{path}:{line}: {said or place}") from None
    lines = locate(text)
    mistakes = []

    def wrong(key: tuple[str | int, ...], said: str) -> None:
        mistakes.append(f"{path}:{lines.get(key, 1)}: {said}")

    for key in data:
        if key not in _KEYS:
            wrong((key,), f"{key}: unknown key; known are {', '.join(_KEYS)}")
    for key, kind in _KEYS.items():
        value = data.get(key)
        if type(value) is not kind:
            got = "nothing" if value is None else repr(value)
            wrong((key,), f"{key}: expected {_KINDS[kind]}, got {got}")
        elif isinstance(value, list):
            if not value:
                wrong((key,), f"{key}: expected at least one line")
            for number, line in enumerate(value):
                if not isinstance(line, str):
                    wrong((key, number), f"{key}[{number}]: expected a string, got {line!r}")
    if not mistakes and data["close"] not in CLOSES:
        wrong(("close",), f"close: expected one of {', '.join(CLOSES)}, got {data['close']!r}")
    if mistakes:
        raise Failure(DATA, *mistakes)
    return Persona(
        name=path.stem,
        code=data["code"],
        lines=tuple(
            Line(line, f"{path}:{lines[('lines', number)]}")
            for number, line in enumerate(data["lines"])
        ),
        single=Line(data["single"], f"{path}:{lines[('single',)]}"),
        close=data["close"],
    )


def shipped(name: str) -> Persona:
    """One of NAMES."""
    return read(HOME / f"{name}.toml")
