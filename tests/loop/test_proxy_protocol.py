"""Listeners behind a proxy: who really called, whatever the proxy and its clients do.

Owns: --proxy-from on real sockets.  What a good header is stands in
tests/unit/test_proxy_header.py; here: that the answer waits for it and goes to whom
it names, in every protocol and with every close policy; and that whoever sends none,
or may send none, is closed without a word and counted.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest
from proxyprotocol.result import ProxyResultIPv4, ProxyResultIPv6
from proxyprotocol.v1 import ProxyProtocolV1
from proxyprotocol.v2 import ProxyProtocolV2
from running import Daemon, Syslog, command, free_port, read_all, running, until

PROXY = "127.0.0.1"
CLIENTS = {"ipv4": ("203.0.113.7", "198.51.100.2"), "ipv6": ("2001:db8:bad::7", "2001:db8:25::25")}
LOCAL = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"
BOTH = pytest.mark.parametrize("family", CLIENTS)
VERSIONS = pytest.mark.parametrize("version", [1, 2])


def header(version: int, source: str, called: str = "", tlvs: bytes = b"") -> bytes:
    """From port 40025 to port 25, as the package writes it."""
    called = called or ("2001:db8:25::25" if ":" in source else "198.51.100.2")
    ends = (ip_address(source), 40025), (ip_address(called), 25)
    kind = ProxyResultIPv6 if ":" in source else ProxyResultIPv4
    pack = ProxyProtocolV1().pack if version == 1 else ProxyProtocolV2().pack
    octets = pack(kind(*ends, protocol=socket.SOCK_STREAM))  # type: ignore[arg-type]
    if not tlvs:
        return octets
    return octets[:14] + struct.pack("!H", len(octets) - 16 + len(tlvs)) + octets[16:] + tlvs


@contextlib.contextmanager
def proxied(syslog: Syslog, *options: str, **others: object) -> Iterator[Daemon]:
    lines = ("--log-connections", "all", "--proxy-from", PROXY)
    with running(syslog, *lines, *options, **others) as daemon:  # type: ignore[arg-type]
        yield daemon


def sent(daemon: Daemon, *chunks: bytes, pause: float = 0.0) -> bytes:
    """What is answered to these octets, each in a segment of its own."""
    with daemon.connect() as one:
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for chunk in chunks:
            one.sendall(chunk)
            time.sleep(pause)
        return read_all(one)


@BOTH
@VERSIONS
def test_banner_goes_to_whom_the_header_names(
    syslog: Syslog, tmp_path: Path, family: str, version: int
) -> None:
    """In one segment, and in single octets; the log has both addresses."""
    source, called = CLIENTS[family]
    octets = header(version, source, called)
    with proxied(syslog, "-p", "blocked") as daemon:
        assert sent(daemon, octets).startswith(b"554-mx.example.com ")
        line = syslog.wait_for("turned away ")
        assert f" from=[{source}]:40025 to=[{called}]:25 via=[{PROXY}]:{daemon.port} as=" in line, (
            line
        )
        assert line.endswith(" persona=blocked code=554 outcome=sent")
        single = [octets[at : at + 1] for at in range(len(octets))]
        assert sent(daemon, *single, pause=0.001).startswith(b"554-mx.example.com ")
        counters = daemon.settled(2)
    assert (counters["sent"], counters["proxied"]) == (2, 2)
    assert not {"early", "headless", "gone", "reset"} & counters.keys()


@VERSIONS
def test_a_header_in_two_pieces_wherever_it_is_cut(syslog: Syslog, version: int) -> None:
    """All of them at once, and each waits for its second piece."""
    octets = header(version, "203.0.113.7")
    with proxied(syslog, "-p", "blocked", "-w", "1") as daemon:
        ones = [daemon.connect() for _ in range(1, len(octets))]
        for cut, one in enumerate(ones, 1):
            one.sendall(octets[:cut])
        time.sleep(0.1)
        for one in ones:
            one.setblocking(False)
            with pytest.raises(BlockingIOError):
                one.recv(1)
        for cut, one in enumerate(ones, 1):
            one.setblocking(True)
            one.sendall(octets[cut:])
        for one in ones:
            with one:
                assert read_all(one).startswith(b"554-")
        assert daemon.settled(len(ones))["sent"] == len(ones)


def test_of_itself_and_of_nobody(syslog: Syslog) -> None:
    """LOCAL and UNKNOWN: the connection's own addresses, and no other way."""
    with proxied(syslog, "-p", "blocked") as daemon:
        for octets in (LOCAL, b"PROXY UNKNOWN ffff::1 ::1 1 2\r\n"):
            assert sent(daemon, octets).startswith(b"554-")
        until(lambda: len(syslog.matching("turned away ")) == 2)
        for line in syslog.matching("turned away "):
            assert re.search(rf"from=\[{PROXY}\]:\d+ to=\[{PROXY}\]:{daemon.port} as=", line), line


def test_the_longest_header_of_all(syslog: Syslog) -> None:
    """65,535 octets after the fixed part, TLVs most of them; and the client talks at once."""
    octets = header(2, "203.0.113.7", tlvs=b"\4" * (65535 - 12))
    assert len(octets) == 16 + 65535
    with proxied(syslog, "-p", "blocked") as daemon:
        assert sent(daemon, octets + b"EHLO spam.example\r\n").startswith(b"554-")
        counters = daemon.settled(1)
    assert (counters["sent"], counters["early"]) == (1, 1)


@pytest.mark.loops("kqueue")
@VERSIONS
def test_early_talk_behind_the_header(syslog: Syslog, version: int) -> None:
    """In the same segment: the banner arrives whole, a hundred times, and is counted early."""
    octets = header(version, "203.0.113.7") + b"EHLO spam.example\r\n" * 100
    with proxied(syslog, "-p", "blocked") as daemon:
        whole = sent(daemon, header(version, "203.0.113.7"))
        for _ in range(100):
            assert len(sent(daemon, octets)) == len(whole)
        counters = daemon.settled(101)
    assert (counters["early"], counters["sent"]) == (100, 101)


def test_who_hangs_up_before_or_in_the_header(syslog: Syslog) -> None:
    with proxied(syslog) as daemon:
        for start in (b"", b"PROXY TCP4 203.0.113.7"):
            with daemon.connect() as one:
                one.sendall(start)
                one.shutdown(socket.SHUT_WR)
                assert read_all(one) == b""
            with daemon.connect() as one:
                one.sendall(start)
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        counters = daemon.settled(4)
    assert (counters.get("gone"), counters.get("reset")) == (2, 2)
    assert "sent" not in counters


BAD = {
    "garbage": b"EHLO spam.example\r\n",
    "a request": b"GET / HTTP/1.1\r\n\r\n",
    "a port with a zero": b"PROXY TCP4 203.0.113.7 198.51.100.2 025 25\r\n",
    "108 octets and no CRLF": b"PROXY UNKNOWN " + b"x" * 94,
    "another version": LOCAL[:12] + b"\x31\x11\0\x0c" + bytes(12),
    "short of an octet": LOCAL[:12] + b"\x21\x11\0\x0b" + bytes(11),
}


def test_bad_headers_are_closed_without_a_word(syslog: Syslog) -> None:
    with proxied(syslog, "-p", "blocked") as daemon:
        for octets in BAD.values():
            began = time.monotonic()
            assert sent(daemon, octets + b"x" * 5000) == b""
            assert time.monotonic() - began < 1
        counters = daemon.settled(len(BAD))
        line = syslog.wait_for("outcome=headless")
    assert counters["headless"] == len(BAD)
    assert "sent" not in counters
    assert line.endswith(" persona=- code=- outcome=headless"), line


def test_silence_has_its_time_limit(syslog: Syslog, tmp_path: Path) -> None:
    """waits.proxy is over all octets of a header, not from one to the next."""
    file = tmp_path / "turnaway.toml"
    file.write_text("waits = { proxy = 0.5 }\n")
    file.chmod(0o644)
    with proxied(syslog, "-c", str(file)) as daemon:
        began = time.monotonic()
        with daemon.connect() as one, daemon.connect() as other:
            for octet in header(1, "203.0.113.7"):
                other.send(bytes([octet]))
                time.sleep(0.02)
                if time.monotonic() - began > 0.4:
                    break
            assert read_all(one) == read_all(other) == b""
        assert 0.4 < time.monotonic() - began < 2
        assert daemon.settled(2)["headless"] == 2


def test_strangers_are_closed_without_a_word(syslog: Syslog) -> None:
    """Also one that sends the best of headers."""
    with proxied(syslog) as daemon:
        for octets in (b"", header(2, "203.0.113.7")):
            with socket.create_connection((PROXY, daemon.port), 10, ("127.0.0.2", 0)) as one:
                with contextlib.suppress(OSError):
                    one.sendall(octets)
                assert read_all(one) == b""
        assert daemon.settled(2)["stranger"] == 2
        line = syslog.wait_for("outcome=stranger")
    assert " from=[127.0.0.2]:" in line
    assert line.endswith(" persona=- code=- outcome=stranger"), line


@pytest.mark.parametrize(
    ("trusted", "family", "answered"),
    [
        ("127.0.0.0/8", "127.0.0.1", True),
        ("127.0.0.0/31", "127.0.0.1", True),
        ("127.0.0.2/31", "127.0.0.1", False),
        ("0.0.0.0/0", "127.0.0.1", True),
        # All of IPv6 is not IPv4, though its v4-mapped form lies in there.
        ("::/0", "127.0.0.1", False),
        ("::/64", "127.0.0.1", False),
        ("::/0", "::1", True),
        ("::1", "::1", True),
        ("0.0.0.0/0", "::1", False),
        (",".join(["198.51.100.0/24"] * 31 + ["127.0.0.1"]), "127.0.0.1", True),
    ],
)
def test_networks_of_proxies(syslog: Syslog, trusted: str, family: str, answered: bool) -> None:
    with running(syslog, "--proxy-from", trusted, address=family) as daemon:
        with daemon.connect() as one:
            with contextlib.suppress(OSError):
                one.sendall(header(1, "203.0.113.7"))
            assert bool(read_all(one)) == answered
        assert daemon.settled(1)["sent" if answered else "stranger"] == 1


@pytest.mark.loops("kqueue")
@pytest.mark.parametrize(
    ("options", "says", "starts", "ends"),
    [
        (("--close", "now"), b"", b"554-", b"connection.\r\n"),
        (("--close", "drain"), b"", b"554-", b"connection.\r\n"),
        (("--close", "quit"), b"NOOP\r\nQUIT\r\n", b"554-", b"221 mx.example.com Closing"),
        (("--protocol", "auto"), b"GET / HTTP/1.0\r\n\r\n", b"HTTP/1.1 403 ", b""),
        (("--protocol", "auto"), b"EHLO a\r\n", b"554-", b""),
        (("--protocol", "auto"), b"", b"554-", b""),
        (("--protocol", "auto"), b"\5\1\0", b"\5\xff", b""),
        (("--protocol", "http"), b"GET / HTTP/1.0\r\n\r\n", b"HTTP/1.1 403 ", b""),
        (("--protocol", "http"), b"\0\r\n\r\n", b"HTTP/1.1 400 ", b""),
        (("--protocol", "socks"), b"\4\1\0\x19\1\1\1\1\0", b"\0\x5b", b""),
        (("--protocol", "text:pop3"), b"", b"-ERR ", b""),
    ],
)
def test_every_policy_and_protocol_behind_a_proxy(
    syslog: Syslog,
    options: tuple[str, ...],
    says: bytes,
    starts: bytes,
    ends: bytes,
) -> None:
    """What the client says comes in the header's segment, or after it."""
    octets = header(2, "203.0.113.7")
    with proxied(syslog, "-p", "blocked", *options) as daemon:
        for chunks in ((octets + says,), (octets, says)):
            told = sent(daemon, *chunks, pause=0.02)
            assert told.startswith(starts)
            assert ends in told
        assert daemon.settled(2)["proxied"] == 2
        assert "from=[203.0.113.7]:40025 to=[198.51.100.2]:25 " in syslog.wait_for("turned away ")


def test_a_reset_behind_a_proxy(syslog: Syslog) -> None:
    """No state is left, and the client may lose the message; the counters do not."""
    with proxied(syslog, "--close", "reset") as daemon:
        sent(daemon, header(1, "203.0.113.7"))
        assert daemon.settled(1)["sent"] == 1


def test_the_clients_address_in_what_it_is_told(syslog: Syslog, tmp_path: Path) -> None:
    """{client}, lists, the counters by list, `busiest`: all of the real source."""
    (tmp_path / "drop.txt").write_text("203.0.113.0/24\n2001:db8:bad::/48\n")
    file = tmp_path / "turnaway.toml"
    file.write_text(
        '[[list]]\nname = "drop"\nfiles = ["drop.txt"]\npersona = "own"\n'
        '[personas.own]\ncode = 554\nclose = "now"\nsingle = "no"\n'
        'lines = ["{name}: {client} is on {list}.", "Go."]\n'
    )
    for one in tmp_path.iterdir():
        one.chmod(0o644) if one.is_file() else None
    with proxied(syslog, "-c", str(file), "--interval", "1", "-w", "1") as daemon:
        for source in ("203.0.113.7", "2001:db8:bad::7", "203.0.113.255"):
            told = sent(daemon, header(2, source))
            assert told.startswith(f"554-mx.example.com: {source} is on drop.".encode())
        assert sent(daemon, header(2, "198.51.100.66")).startswith(b"421-")
        assert sent(daemon, LOCAL).startswith(b"421-")
        lines = until(lambda: len(found := syslog.matching("turned away ")) == 5 and found)
        syslog.wait_for(r"busiest .*\[2001:db8:bad::7\]=1")
    assert [("list=drop" in line, "persona=own" in line) for line in lines] == [
        *[(True, True)] * 3,
        *[(False, False)] * 2,
    ]


def test_lines_of_json(syslog: Syslog) -> None:
    program = [*command(), "-f", "--pidfile", "none", "--control", "none"]
    port = free_port()
    # One worker: the lines of two are in no order.
    program += ["-w", "1", "--log", "json:-", "--log-connections", "all", "--proxy-from", PROXY]
    with subprocess.Popen(
        [*program, "Earth", f"{PROXY}:{port} mx.example.com"], stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        lines = (json.loads(line) for line in process.stderr)
        next(line for line in lines if line["message"].startswith("started"))
        with socket.create_connection((PROXY, port), 10) as one:
            one.sendall(header(2, "2001:db8:bad::7"))
            read_all(one)
        with socket.create_connection((PROXY, port), 10) as one:
            one.sendall(b"garbage\r\n")
            read_all(one)
        found = [next(line for line in lines if line["event"] == "turned away") for _ in range(2)]
        process.terminate()
    assert (found[0]["from"], found[0]["from_port"]) == ("2001:db8:bad::7", 40025)
    assert (found[0]["to"], found[0]["to_port"]) == ("2001:db8:25::25", 25)
    assert (found[0]["via"], found[0]["via_port"]) == (PROXY, port)
    assert (found[1]["outcome"], found[1]["code"]) == ("headless", None)


def test_three_thousand_of_one_proxy_and_the_share_of_a_source(syslog: Syslog, many: None) -> None:
    """The proxy is nobody's source: its connections are limited by whom they are from."""
    limits = ("-w", "1", "--max-held", "3500", "--max-held-source", "8")
    with proxied(
        syslog, "-p", "blocked", "--close", "quit", *limits, "--log-connections", "none"
    ) as daemon:
        ones = [daemon.connect(timeout=30) for _ in range(3000)]
        time.sleep(0.2)
        assert "headless" not in daemon.counters()
        for number, one in enumerate(ones):
            # 2,900 of their own, and a hundred of one source.
            source = f"203.0.{number // 250}.{number % 250}" if number < 2900 else "198.51.100.66"
            one.sendall(header(2, source))
        for one in ones:
            assert one.recv(4096).startswith(b"554-")
        counters = until(
            lambda: (
                (now := daemon.counters()).get("held", 0) + now.get("held_share", 0) == 3000 and now
            )
        )
        assert counters["held_share"] == 100 - 8
        for one in ones:
            one.close()
        assert daemon.settled(3000)["sent"] == 3000


def test_without_a_place_the_headers_are_not_awaited(syslog: Syslog) -> None:
    """And no sooner: stress is for who was answered, who was answered gives way."""
    with proxied(
        syslog, "-p", "blocked", "--close", "drain", "-w", "1", "--max-held", "16"
    ) as daemon:
        drained = []
        for _ in range(15):  # stress begins above 14
            one = daemon.connect()
            one.sendall(header(1, "203.0.113.7"))
            assert read_all(one).startswith(b"554-")
            drained.append(one)
        syslog.wait_for("stress: ")
        ones = [daemon.connect() for _ in range(16)]  # the 14 drained have given way
        until(lambda: daemon.counters().get("sacrificed") == 14)
        with daemon.connect() as late:
            assert read_all(late) == b""
        for one in ones:
            one.sendall(header(1, "203.0.113.7"))
            assert read_all(one).startswith(b"554-")
            one.close()
        for one in drained:
            one.close()
        counters = daemon.settled(32)
        assert (counters["headless"], counters["held_full"]) == (1, 1)


def test_a_stop_waits_for_no_header(syslog: Syslog) -> None:
    with proxied(syslog) as daemon, daemon.connect() as one:
        time.sleep(0.05)
        began = time.monotonic()
        assert daemon.stop() == 0
        assert time.monotonic() - began < 1.5
        assert read_all(one) == b""
    assert "headless=1" in syslog.wait_for("stopped: ")
