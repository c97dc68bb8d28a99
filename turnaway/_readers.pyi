"""Types of ext/readers.pyx; what its names mean stands there."""

from collections.abc import Iterable
from typing import Final, Literal

GUESSES: Final = ("more", "none", "smtp", "http", "tls", "socks4", "socks5")
READINGS: Final = ("more", "done", "bad")

def probe(
    octets: bytes,
) -> Literal["more", "none", "smtp", "http", "tls", "socks4", "socks5"]: ...
def http(chunks: Iterable[bytes]) -> tuple[Literal["more", "done", "bad"], bool, bool, int]: ...
def dialogue(chunks: Iterable[bytes]) -> list[Literal["wrong", "quit"]]: ...
def find(block: bytes, addresses: Iterable[bytes]) -> list[int]: ...
