"""What a value may be, whoever gave it: the command line or a file.

Each function takes a text and returns the value, or raises ValueError saying
what would be right: `expected ..., got ...`.  Who calls it says where it stood.
"""

import ipaddress
import os
import re
from collections.abc import Collection
from typing import cast

from turnaway import banner
from turnaway._board import PROXIES
from turnaway.settings import (
    BINDS,
    CLOSES,
    DEFAULT_PORT,
    PROTOCOLS,
    SANDBOXES,
    SYSLOG_SOCKET,
    Bind,
    Close,
    Detail,
    Exposition,
    LogTarget,
    Sandboxing,
)

MOST_WORKERS = 64

_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*\.?|\[[A-Za-z0-9:.]+\]")
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")
_ZONE = re.compile(r"[A-Za-z0-9_.-]{1,15}")
_DETAIL = re.compile(r"(capped|sample):([1-9][0-9]{0,6})|(all|none)")


def _one_of(text: str, known: Collection[str]) -> ValueError:
    return ValueError(f"expected one of {', '.join(known)}, got {text!r}")


def place(text: str) -> tuple[str, int]:
    """ADDRESS[:PORT] -> (address, port).

    IPv4 with or without a port, IPv6 in brackets with or without one, or bare
    IPv6 on the default port.
    """
    bracketed = re.fullmatch(r"\[([^\]]*)\](?::(.*))?", text)
    if bracketed:
        host, port = bracketed[1], bracketed[2]
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    else:
        host, port = text, None
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        raise ValueError(
            f"{host!r} is not an address; expected such as 0.0.0.0, 192.0.2.25:587 or [2001:db8::1]:25"
        ) from None
    if bracketed and address.version == 4:
        raise ValueError(f"{text!r}: IPv4 stands without brackets; expected {host}:PORT")
    if address.version == 6:
        if address.ipv4_mapped:  # an IPv6 listener is IPv6 only
            raise ValueError(f"{host!r} is an IPv4 address; expected {address.ipv4_mapped}")
        if address.scope_id is not None and address.is_unspecified:
            raise ValueError(f"{host!r}: all addresses have no interface; expected ::")
        if address.scope_id is not None and not _ZONE.fullmatch(address.scope_id):
            raise ValueError(
                f"{host!r}: after the % expected an interface's name, such as fe80::1%eth0"
            )
    if port is None:
        return str(address), DEFAULT_PORT
    if not re.fullmatch(r"[0-9]{1,5}", port) or not 1 <= int(port) <= 65535:
        raise ValueError(f"port: expected 1..65535, got {port!r}")
    return str(address), int(port)


def network(text: str) -> str:
    """ADDRESS or ADDRESS/BITS -> the network, with its bits."""
    try:
        found = ipaddress.ip_network(text)
    except ValueError:
        try:
            hint = f"; expected {ipaddress.ip_network(text, strict=False)}?"
        except ValueError:
            hint = "; expected such as 192.0.2.7 or 2001:db8::/64"
        raise ValueError(f"{text!r} is not a network{hint}") from None
    if isinstance(found, ipaddress.IPv6Network) and found.network_address.ipv4_mapped:
        raise ValueError(f"{text!r} is IPv4 in IPv6; expected {found.network_address.ipv4_mapped}")
    return str(found)


def networks(text: str) -> tuple[str, ...]:
    """Several, between commas."""
    return proxies([one.strip() for one in text.split(",")])


def proxies(texts: list[str]) -> tuple[str, ...]:
    """Networks of proxies; a listener knows PROXIES at the most."""
    if len(texts) > PROXIES:
        raise ValueError(f"expected at most {PROXIES} networks, got {len(texts)}")
    return tuple(network(one) for one in texts)


def host_name(text: str) -> str:
    if not _NAME.fullmatch(text) or len(text) > 255:
        raise ValueError(f"expected a host name, such as mx.example.com, got {text!r}")
    return text


def _word(text: str, example: str) -> str:
    """It stands in lines of the log and in messages: no blanks, nothing to quote."""
    if not _WORD.fullmatch(text):
        raise ValueError(
            "expected 1..40 letters, digits, dots, hyphens or underscores, such as"
            f" {example}, got {text[:80]!r}"
        )
    return text


def list_name(text: str) -> str:
    return _word(text, "spamhaus-drop")


def persona_name(text: str) -> str:
    return _word(text, "listed")


def printable(text: str) -> str:
    if not text.strip() or not all(" " <= letter <= "~" for letter in text):
        raise ValueError(f"expected printable ASCII, such as 'Somecity, Earth', got {text!r}")
    return text


def number(text: str, least: int, most: int, also: str = "") -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text) or not least <= int(text) <= most:
        raise ValueError(f"expected {least}..{most}{also}, got {text!r}")
    return int(text)


def workers(text: str) -> int:
    if text == "auto":
        # OpenBSD, NetBSD and macOS bind no process to processors.
        ask = getattr(os, "sched_getaffinity", None)
        return min(len(ask(0)) if ask else os.cpu_count() or 1, MOST_WORKERS)
    return number(text, 1, MOST_WORKERS, " or auto")


def code(text: str) -> int:
    if not re.fullmatch(r"[0-9]{3}", text) or not banner.refuses(int(text)):
        raise ValueError(f"expected a reply code 4yz or 5yz (RFC 5321 4.2), got {text!r}")
    return int(text)


def close(text: str) -> Close:
    for known in CLOSES:
        if text == known:
            return known
    raise _one_of(text, CLOSES)


def sandbox(text: str) -> Sandboxing:
    for known in SANDBOXES:
        if text == known:
            return known
    raise _one_of(text, SANDBOXES)


def bind(text: str) -> Bind:
    for known in BINDS:
        if text == known:
            return known
    raise _one_of(text, BINDS)


def protocol(text: str) -> str:
    if text in PROTOCOLS or re.fullmatch(r"text:[a-z0-9]+", text):
        return text
    raise _one_of(text, (*PROTOCOLS, "text:KIND"))


def yes_or_no(text: str) -> bool:
    if text not in ("yes", "no"):
        raise ValueError(f"expected yes or no, got {text!r}")
    return text == "yes"


def log(text: str) -> tuple[LogTarget, str]:
    """syslog[:SOCKET], stderr, json[:PATH] or none -> (target, path).

    The path is that of the socket for syslog, of the file for json ("-": stderr).
    """
    target, colon, socket = text.partition(":")
    if "\0" in text:
        raise ValueError(f"expected a path without NUL, got {text!r}")
    if text in ("json", "json:-"):
        return "json", "-"
    if target == "json" and socket.startswith("/") and not socket.endswith("/"):
        return "json", socket
    if target == "syslog" and not colon:
        return "syslog", SYSLOG_SOCKET
    if target == "syslog" and socket.startswith("/"):
        if len(os.fsencode(socket)) > 107:  # sun_path, unix(7)
            raise ValueError(f"expected a socket's path of at most 107 octets, got {socket!r}")
        return "syslog", socket
    if text in ("stderr", "none"):
        return cast(LogTarget, text), SYSLOG_SOCKET
    raise ValueError(
        f"expected syslog, syslog:/SOCKET, stderr, json, json:/PATH or none, got {text!r}"
    )


def metrics(text: str) -> Exposition | None:
    """ADDRESS:PORT, unix:/PATH, file:/PATH.prom or none."""
    if text == "none":
        return None
    kind, _, path = text.partition(":")
    if "\0" in text:
        raise ValueError(f"expected a path without NUL, got {text!r}")
    if kind == "unix" and path.startswith("/"):
        if len(os.fsencode(path)) > 107:  # sun_path, unix(7)
            raise ValueError(f"expected a socket's path of at most 107 octets, got {path!r}")
        return Exposition("unix", path)
    # The textfile collector of the node exporter reads nothing but *.prom.
    if kind == "file" and path.startswith("/") and re.search(r"[^/]\.prom$", path):
        return Exposition("file", path)
    if kind in ("unix", "file") or not re.search(r"[0-9\]]:[0-9]+$", text):
        raise ValueError(
            "expected ADDRESS:PORT such as 127.0.0.1:9125, unix:/PATH, file:/PATH.prom or none,"
            f" got {text!r}"
        )
    address, port = place(text)
    return Exposition("tcp", address, port)


def detail(text: str) -> tuple[Detail, int]:
    """capped:N, sample:N, all or none -> (how, N or 0)."""
    found = _DETAIL.fullmatch(text)
    if found is None:
        raise ValueError(f"expected capped:N, sample:N (N 1..9999999), all or none, got {text!r}")
    return cast(Detail, found[1] or found[3]), int(found[2] or 0)


def absolute(text: str) -> str:
    if not os.path.isabs(text) or "\0" in text:
        raise ValueError(f"expected an absolute path, got {text!r}")
    return text


def path_or_none(text: str) -> str | None:
    if not text:
        raise ValueError("expected a path or none, got ''")
    return None if text == "none" else os.path.abspath(text)
