"""The clients of a flood: a program of its own, which lives in the mob's namespace.

Owns each way of coming too often. `python -m bench.floods.mob KIND ADDRESS PORT COUNT
[SECONDS]` prints `ready` when the flood is complete or under way, and one line of JSON
with what it did when its standard input ends or its time is over. Bounded by count and
time. Sources are the addresses of 203.0.113.0/24, and must be this namespace's, or,
for `syn`, nobody's.
"""

from __future__ import annotations

import contextlib
import json
import random
import resource
import select
import socket
import struct
import sys
import time
from collections.abc import Iterator

from bench import blast
from bench.expect import Expect

SOURCES = [f"203.0.113.{host}" for host in range(1, 251)]
MEGABYTES = 4 << 20
BURST = 200  # SYNs between two looks at the clock


def over(seconds: float = 0.0) -> bool:
    """Whether standard input has ended, within so many seconds."""
    return bool(select.select([sys.stdin], [], [], seconds)[0])


def _sum16(octets: bytes) -> int:
    return sum(struct.unpack(f"!{len(octets) // 2}H", octets))


def syn(address: str, port: int, count: int, seconds: float) -> dict[str, float]:
    """`count` SYNs (RFC 9293 3.1) from any address of 203.0.113.0/24, spread over `seconds`."""
    there = socket.inet_aton(address)
    rng = random.Random(7)
    base = _sum16(there) + socket.IPPROTO_TCP + 20 + port + 0x5002 + 0xFFFF
    sent = 0
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        print("ready", flush=True)
        began = time.monotonic()
        while sent < count and time.monotonic() < began + 3 * seconds:
            for _ in range(BURST):
                source = bytes((203, 0, 113, rng.randrange(1, 255)))
                mine, number = rng.randrange(1024, 65536), rng.getrandbits(32)
                total = base + _sum16(source) + mine + (number >> 16) + (number & 0xFFFF)
                total = (total & 0xFFFF) + (total >> 16)
                total = (total & 0xFFFF) + (total >> 16)
                # The kernel fills in length and checksum of the IP header (raw(7)).
                raw.sendto(
                    struct.pack("!BBHHHBBH4s4s", 0x45, 0, 0, 0, 0, 64, 6, 0, source, there)
                    + struct.pack(
                        "!HHIIHHHH", mine, port, number, 0, 0x5002, 0xFFFF, ~total & 0xFFFF, 0
                    ),
                    (address, 0),
                )
            sent += BURST
            late = began + seconds * sent / count - time.monotonic()
            if late > 0:
                time.sleep(late)
        took = time.monotonic() - began
    return {"syns": sent, "a second": round(sent / took)}


def stay(address: str, port: int, count: int, seconds: float) -> dict[str, float]:
    """`count` connections that read nothing and never close, until the input ends."""
    held = blast.Fill(
        address, port, connections=count, sources=SOURCES, expect=Expect.nothing(), timeout=8
    )
    print("ready", flush=True)
    over(seconds)
    return {"connections": held.opened}


@contextlib.contextmanager
def connected(address: str, port: int, count: int) -> Iterator[list[socket.socket]]:
    ones = []
    for number in range(count):
        one = socket.socket()
        one.bind((SOURCES[number % len(SOURCES)], 0))
        one.settimeout(8)
        with contextlib.suppress(OSError):
            one.connect((address, port))
            one.setblocking(False)
            ones.append(one)
    yield ones
    for one in ones:
        one.close()


def pour(address: str, port: int, count: int, seconds: float) -> dict[str, float]:
    """`count` at once that talk from the start, megabytes each, again and again."""
    octets = bytes(1 << 16)
    poured = made = 0
    until = time.monotonic() + seconds
    print("ready", flush=True)
    while time.monotonic() < until and not over():
        with connected(address, port, count) as ones:
            made += len(ones)
            left = dict.fromkeys(ones, MEGABYTES)
            while left and time.monotonic() < until:
                for one in select.select([], list(left), [], 0.1)[1]:
                    try:
                        sent = one.send(octets)
                        poured += sent
                        left[one] -= sent
                    except BlockingIOError:
                        continue
                    except OSError:
                        left[one] = 0
                    if left[one] <= 0:
                        del left[one]
    return {"connections": made, "MiB": poured >> 20}


def churn(address: str, port: int, count: int, seconds: float) -> dict[str, float]:
    """One source, `count` connections at once, each followed by the next."""
    expect = Expect.learn(address, port)
    print("ready", flush=True)
    done = blast.closed(
        address, port, seconds=seconds, concurrency=count, sources=SOURCES[:1], expect=expect
    )
    return {"connections": done.started, "a second": round(done.rate), "whole": done.complete}


def drip(address: str, port: int, count: int, seconds: float) -> dict[str, float]:
    """`count` clients that say an octet a second of what never becomes a request."""
    words = b"GET / HTTP/1.1\r\nX-"
    sent = 0
    with connected(address, port, count) as ones:
        print("ready", flush=True)
        began = time.monotonic()
        for turn in range(int(seconds)):
            for one in ones:
                with contextlib.suppress(OSError):
                    sent += one.send(words[turn % len(words) :][:1])
            if over(max(0.0, began + turn + 1 - time.monotonic())):
                break
        return {"connections": len(ones), "octets": sent}


KINDS = {one.__name__: one for one in (syn, stay, pour, churn, drip)}


def main(kind: str, address: str, port: str, count: str, seconds: str = "60") -> None:
    """Be one of KINDS."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    print(json.dumps(KINDS[kind](address, int(port), int(count), float(seconds))), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
