"""Types of ext/readers.pyx; what its names mean stands there."""

from collections.abc import Iterable
from typing import Final, Literal

GUESSES: Final = ("more", "none", "smtp", "http", "tls", "socks4", "socks5")
READINGS: Final = ("more", "done", "bad")
PROXIED: Final = ("more", "bad", "itself", "known")

_Address = tuple[bytes, int]

def probe(
    octets: bytes,
) -> Literal["more", "none", "smtp", "http", "tls", "socks4", "socks5"]: ...
def http(chunks: Iterable[bytes]) -> tuple[Literal["more", "done", "bad"], bool, bool, int]: ...
def dialogue(chunks: Iterable[bytes]) -> list[Literal["wrong", "quit"]]: ...
def proxy(
    chunks: Iterable[bytes],
) -> tuple[Literal["more", "bad", "itself", "known"], int, _Address | None, _Address | None]: ...
def find(block: bytes, addresses: Iterable[bytes]) -> list[int]: ...
