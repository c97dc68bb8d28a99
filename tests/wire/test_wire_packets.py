"""What a client's network sees: every packet of a connection, both families.

Owns: the promise of one segment for banner and FIN, of six packets in all, and
that nobody who talks out of turn is met with a reset before the banner.
"""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator

import pytest
from running import read_all
from wire.cable import Cable
from wire.capture import Capture, Packet

BOTH = pytest.mark.parametrize("family", [0, 1], ids=["ipv4", "ipv6"])


@pytest.fixture
def capture(cable: Cable) -> Iterator[Capture]:
    with Capture(cable.server, "eth0") as one:
        yield one


def _me(client: socket.socket) -> tuple[str, int]:
    address, port = client.getsockname()[:2]
    return address, port


def _words(packets: list[Packet]) -> str:
    return " ".join(map(str, packets))


def _from_server(packets: list[Packet], cable: Cable) -> list[Packet]:
    return [one for one in packets if one.source[1] == cable.port]


def _one_segment(packets: list[Packet], cable: Cable, banner: bytes) -> None:
    """Banner and FIN are one segment of the server, and nothing of it comes twice."""
    served = _from_server(packets, cable)
    assert [one.octets for one in served if one.octets] == [banner]
    assert [str(one) for one in served if "F" in one.flags] == [f"FA({len(banner)})"]


@BOTH
def test_silent_client_costs_six_packets(cable: Cable, capture: Capture, family: int) -> None:
    """`S SA A FA(banner) FA A`.

    The client acknowledges our FIN with its own if it closes within the 40 ms
    of a delayed acknowledgment (RFC 1122 4.2.3.2).  On a busy machine it may
    not; that is a packet of its own making, so it gets five attempts.  What
    the server sends must be right each time.
    """
    seen = []
    for _ in range(5):
        with cable.client.connect(cable.addresses[family], cable.port) as one:
            banner, me = read_all(one), _me(one)
        packets = capture.of(me)
        _one_segment(packets, cable, banner)
        assert _words(_from_server(packets, cable)) == f"SA FA({len(banner)}) A"
        seen.append(_words(packets))
        if seen[-1] == f"S SA A FA({len(banner)}) FA A":
            return
    pytest.fail(f"never six packets: {seen}")


@BOTH
def test_many_at_once_cost_each_the_same(cable: Cable, capture: Capture, family: int) -> None:
    """A full batch: fifty that waited in the queue, answered in one turn."""
    cable.daemon.process.send_signal(signal.SIGSTOP)
    ones = [cable.client.connect(cable.addresses[family], cable.port) for _ in range(50)]
    cable.daemon.process.send_signal(signal.SIGCONT)
    banners = {}
    for one in ones:
        with one:
            banners[_me(one)] = read_all(one)
    for me, banner in banners.items():
        packets = capture.of(me, quiet=0.01)
        _one_segment(packets, cable, banner)
        assert _words(_from_server(packets, cable)) == f"SA FA({len(banner)}) A"


@BOTH
@pytest.mark.parametrize("octets", [b"EHLO spam.example\r\n", b"x" * 4096], ids=["ehlo", "4kb"])
def test_early_talker_meets_no_reset(
    cable: Cable, capture: Capture, family: int, octets: bytes
) -> None:
    """Who talks before the greeting gets banner and FIN in one segment, and no reset at all."""
    cable.daemon.process.send_signal(signal.SIGSTOP)
    with cable.client.connect(cable.addresses[family], cable.port) as one:
        me = _me(one)
        one.sendall(octets)
        cable.daemon.process.send_signal(signal.SIGCONT)
        banner = read_all(one)
    packets = capture.of(me)
    _one_segment(packets, cable, banner)
    assert [one for one in packets if "R" in one.flags] == [], _words(packets)
    # A clean end: the last packet acknowledges the client's FIN.
    assert str(packets[-1]) == "A", _words(packets)
    assert packets[-1] in _from_server(packets, cable)


@BOTH
def test_early_talker_who_goes_on_talking_meets_no_reset(
    cable: Cable, capture: Capture, family: int
) -> None:
    """Parked, it may say more after our FIN: thrown away, not reset."""
    cable.daemon.process.send_signal(signal.SIGSTOP)
    with cable.client.connect(cable.addresses[family], cable.port) as one:
        me = _me(one)
        one.sendall(b"EHLO spam.example\r\n")
        cable.daemon.process.send_signal(signal.SIGCONT)
        banner = read_all(one)
        for line in (b"MAIL FROM:<>\r\n", b"RCPT TO:<a@example.com>\r\n", b"DATA\r\n"):
            one.sendall(line)
    packets = capture.of(me)
    _one_segment(packets, cable, banner)
    assert [one for one in packets if "R" in one.flags] == [], _words(packets)


@BOTH
def test_quitter_is_reset_only_after_banner_and_fin(
    cable: Cable, capture: Capture, family: int
) -> None:
    """QUIT after the banner finds nobody: a reset is right, once all has been said."""
    with cable.client.connect(cable.addresses[family], cable.port) as one:
        me = _me(one)
        banner = read_all(one)
        one.sendall(b"QUIT\r\n")
    packets = capture.of(me)
    _one_segment(packets, cable, banner)
    words = [str(one) for one in packets]
    assert words[:4] == ["S", "SA", "A", f"FA({len(banner)})"]
    assert [one.octets for one in packets if one.octets] == [banner, b"QUIT\r\n"]
    assert len(words) <= 9, words


@BOTH
def test_half_closer_has_a_clean_end(cable: Cable, capture: Capture, family: int) -> None:
    """A client that has sent its FIN before we accept gets the banner, and no reset.

    Before, not meanwhile: a FIN that comes between our send and our shutdown
    pushes the banner out alone, and ours follows by itself.
    """
    cable.daemon.process.send_signal(signal.SIGSTOP)
    with cable.client.connect(cable.addresses[family], cable.port) as one:
        me = _me(one)
        one.shutdown(socket.SHUT_WR)
        cable.daemon.process.send_signal(signal.SIGCONT)
        banner = read_all(one)
    packets = capture.of(me)
    _one_segment(packets, cable, banner)
    assert [one for one in packets if "R" in one.flags] == [], _words(packets)


@BOTH
def test_window_is_small_from_the_start(cable: Cable, capture: Capture, family: int) -> None:
    """SO_RCVBUF of the listener: a chatterer is offered little, from SYN-ACK on."""
    with cable.client.connect(cable.addresses[family], cable.port) as one:
        me = _me(one)
        read_all(one)
    offers = [one for one in _from_server(capture.of(me), cable) if "S" in one.flags]
    assert [one.window <= 8192 for one in offers] == [True]
