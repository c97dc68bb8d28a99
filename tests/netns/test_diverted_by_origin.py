"""The whole of it: a firewall diverts by origin, and a real mail client is turned away.

Owns: an MX with a mail server on port 25, turnaway-fast on port 2525 and an
nftables table that sends the listed there; a network of clients, listed and
not; and Python's own smtplib as the client, in a process of its own.  Nothing
but the namespaces is the test's: the rules are an administrator's.
"""

from __future__ import annotations

import re
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from namespaces import Lab, Namespace, ended
from running import Daemon, Syslog, running

NAME = "mx.example.com"


@dataclass(frozen=True)
class Family:
    """The addresses of one family.

    The MX has two, and is called by the one that a `redirect` would not have
    named: that names the first IPv4 address, but the last IPv6 address.
    """

    name: str  # the digit of its sets and counters
    called: str
    listed: str
    unlisted: str
    origin: str  # what an administrator lists
    prefix: int


FOUR = Family(
    name="4",
    called="198.51.100.26",
    listed="203.0.113.66",
    unlisted="203.0.113.10",
    origin="203.0.113.64/26",
    prefix=24,
)
SIX = Family(
    name="6",
    called="2001:db8:25::25",
    listed="2001:db8:bad::66",
    unlisted="2001:db8:900d::10",
    origin="2001:db8:bad::/64",
    prefix=64,
)
BOTH = pytest.mark.parametrize("family", [FOUR, SIX], ids=["ipv4", "ipv6"])

# A table of our own, which may be loaded again at any time: what is ours is
# flushed and filled, lists and counters stay.  SYN only, so what is open stays
# open; `dnat to :PORT` leaves the called address readable; the guard keeps
# strangers from the port; what is refused is forgotten by conntrack in seconds.
RULES = """
table inet turnaway {
	set mx4 { type ipv4_addr; }
	set mx6 { type ipv6_addr; }
	set allow4 { type ipv4_addr; flags interval; }
	set allow6 { type ipv6_addr; flags interval; }
	set refuse4 { type ipv4_addr; flags interval; }
	set refuse6 { type ipv6_addr; flags interval; }
	set auto4 { type ipv4_addr; flags timeout; }
	set auto6 { type ipv6_addr; flags timeout; }
	counter refused4 { }
	counter refused6 { }
	counter auto_refused4 { }
	counter auto_refused6 { }
	ct timeout goaway4 {
		protocol tcp
		l3proto ip
		policy = { syn_sent : 20, syn_recv : 20, established : 120, fin_wait : 10, close_wait : 10, last_ack : 10, time_wait : 5, close : 2 }
	}
	ct timeout goaway6 {
		protocol tcp
		l3proto ip6
		policy = { syn_sent : 20, syn_recv : 20, established : 120, fin_wait : 10, close_wait : 10, last_ack : 10, time_wait : 5, close : 2 }
	}
	chain short_lived { type filter hook prerouting priority mangle; policy accept; }
	chain divert { type nat hook prerouting priority dstnat - 5; policy accept; }
	chain guard { type filter hook input priority filter - 5; policy accept; }
}
flush set inet turnaway mx4
flush set inet turnaway mx6
flush set inet turnaway allow4
flush set inet turnaway allow6
flush chain inet turnaway short_lived
flush chain inet turnaway divert
flush chain inet turnaway guard
add element inet turnaway mx4 { 198.51.100.25, 198.51.100.26 }
add element inet turnaway mx6 { 2001:db8:25::25, 2001:db8:25::26 }
add element inet turnaway allow4 { 127.0.0.0/8, 198.51.100.0/24 }
add element inet turnaway allow6 { ::1, fe80::/10, 2001:db8:25::/64 }
table inet turnaway {
	chain short_lived {
		tcp dport 25 tcp flags syn / fin,syn,rst,ack ip  daddr @mx4 ip  saddr @refuse4 ct timeout set "goaway4"
		tcp dport 25 tcp flags syn / fin,syn,rst,ack ip6 daddr @mx6 ip6 saddr @refuse6 ct timeout set "goaway6"
		tcp dport 25 tcp flags syn / fin,syn,rst,ack ip  daddr @mx4 ip  saddr @auto4 ct timeout set "goaway4"
		tcp dport 25 tcp flags syn / fin,syn,rst,ack ip6 daddr @mx6 ip6 saddr @auto6 ct timeout set "goaway6"
	}
	chain divert {
		tcp dport != 25 return
		tcp flags & (fin | syn | rst | ack) != syn return
		ip  daddr != @mx4 return
		ip6 daddr != @mx6 return
		ip  saddr @allow4 return
		ip6 saddr @allow6 return
		ip  saddr @refuse4 tcp dport 25 counter name refused4 dnat to :2525
		ip6 saddr @refuse6 tcp dport 25 counter name refused6 dnat to :2525
		ip  saddr @auto4 tcp dport 25 counter name auto_refused4 dnat to :2525
		ip6 saddr @auto6 tcp dport 25 counter name auto_refused6 dnat to :2525
	}
	chain guard {
		tcp dport 2525 iifname != "lo" ct status & dnat == 0 reject with tcp reset
	}
}
"""

# argv: own address, own port, the MX.  A line on standard input lets it go on
# after EHLO; what smtplib raises goes to standard error, as it would.
CLIENT = """
import smtplib, sys
own, port, mx = sys.argv[1:]
with smtplib.SMTP(mx, 25, "client.example.net", 10, (own, int(port))) as one:
    one.ehlo()
    print("open", flush=True)
    sys.stdin.readline()
    one.sendmail("a@example.net", ["b@example.com"], "Subject: hello\\r\\n\\r\\nfrom " + own)
    print("delivered", flush=True)
"""


class _Session(socketserver.StreamRequestHandler):
    """A mail server's side of RFC 5321, as far as smtplib goes when all is well."""

    server: Postbox

    def handle(self) -> None:
        self._say(f"220 {NAME} ESMTP the real one")
        while line := self.rfile.readline():
            word = line[:4].upper()
            if word == b"QUIT":
                return self._say("221 Bye")
            if word == b"DATA":
                self._say("354 Go ahead")
                letter = b""
                while (line := self.rfile.readline()) and line != b".\r\n":
                    letter += line
                self.server.letters.append(letter.decode("ascii"))
            self._say("250 OK")
        return None

    def _say(self, line: str) -> None:
        self.wfile.write(f"{line}\r\n".encode("ascii"))


class Postbox(socketserver.ThreadingTCPServer):
    """The mail server on port 25 of one family; keeps what was delivered."""

    daemon_threads = True

    def __init__(self, where: Namespace, address: str) -> None:
        super().__init__((address, 25), _Session, bind_and_activate=False)
        self.socket.close()
        self.socket = where.listen(address, 25)
        self.letters: list[str] = []
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def server_close(self) -> None:
        self.shutdown()
        super().server_close()


@dataclass
class Mail:
    """The MX, what runs on it, and the network that its clients are in."""

    mx: Namespace
    clients: Namespace
    boxes: list[Postbox]
    daemon: Daemon

    def letters(self) -> list[str]:
        return [letter for box in self.boxes for letter in box.letters]

    def element(self, verb: str, name: str, element: str) -> None:
        """What an administrator, or fail2ban, does to a list."""
        self.mx.run("nft", verb, "element", "inet", "turnaway", name, f"{{ {element} }}")

    def refuse(self, family: Family) -> None:
        self.element("add", f"refuse{family.name}", family.origin)

    def client(self, own: str, called: str, port: int = 0) -> subprocess.Popen[str]:
        """smtplib, calling from the address `own`."""
        return self.clients.start(sys.executable, "-I", "-c", CLIENT, own, str(port), called)


@pytest.fixture
def mail(syslog: Syslog) -> Iterator[Mail]:
    with Lab() as lab:
        mx, clients = lab.namespace("mx"), lab.namespace("clients")
        lab.link(mx, clients)
        mx.address("eth0", "198.51.100.25/24", "198.51.100.26/24")
        mx.address("eth0", "2001:db8:25::25/64", "2001:db8:25::26/64")
        clients.address("eth0", "198.51.100.1/24", "2001:db8:25::1/64")
        for family in (FOUR, SIX):
            for own in (family.listed, family.unlisted):
                clients.address("eth0", f"{own}/{family.prefix}")
        mx.route("198.51.100.1")
        mx.route("2001:db8:25::1")
        boxes = [Postbox(mx, "0.0.0.0"), Postbox(mx, "::")]
        places = [f"{place}:2525 {NAME}" for place in ("0.0.0.0", "[::]")]
        options = ("-p", "blocked", "--log-connections", "all")
        try:
            with running(
                syslog, *options, port=2525, listeners=places, wrapper=mx.daemon()
            ) as daemon:
                yield Mail(mx, clients, boxes, daemon)
        finally:
            for box in boxes:
                box.server_close()


def _turned_away(mail: Mail, own: str, called: str, port: int = 0) -> str:
    """Call, be turned away, and return what smtplib raised, as it printed it."""
    with ended(mail.client(own, called, port)) as client:
        said, complained = client.communicate(timeout=20)
    assert client.returncode == 1, complained
    assert said == ""
    return complained.strip().splitlines()[-1]


def _delivered(mail: Mail, own: str, called: str) -> None:
    """Call, and deliver a letter to the real server."""
    before = mail.letters()
    with ended(mail.client(own, called)) as client:
        said, complained = client.communicate("go on\n", timeout=20)
    assert (client.returncode, said) == (0, "open\ndelivered\n"), complained
    assert mail.letters()[len(before) :] == [f"Subject: hello\r\n\r\nfrom {own}\r\n"]


@BOTH
def test_listed_client_is_told_why_and_delivers_nothing(mail: Mail, family: Family) -> None:
    mail.mx.firewall(RULES)
    mail.refuse(family)
    raised = _turned_away(mail, family.listed, family.called, port=40_025)
    assert raised.startswith(f"smtplib.SMTPConnectError: (554, b'{NAME} ESMTP TurnAway v")
    assert "forwarding of viri and/or bogus virus reports and/or bounces" in raised
    assert raised.endswith("while the ACTUAL forger is still connected.  Closing connection.')")
    assert mail.letters() == []
    assert mail.mx.counted(f"refused{family.name}") == 1
    # From the true client to the address it called; the port is where the
    # firewall sent it.
    from_ = rf"from=\[{re.escape(family.listed)}\]:40025"
    to = rf"to=\[{re.escape(family.called)}\]:2525"
    line = mail.daemon.syslog.wait_for("turned away ")
    assert re.search(
        rf"turned away {from_} {to} as={re.escape(NAME)} persona=blocked code=554 outcome=\w+$",
        line,
    ), line


@BOTH
def test_unlisted_client_reaches_the_mail_server(mail: Mail, family: Family) -> None:
    """Also while others are listed, and the daemon never hears of it."""
    mail.mx.firewall(RULES)
    mail.refuse(FOUR)
    mail.refuse(SIX)
    _delivered(mail, family.unlisted, family.called)
    assert mail.daemon.counters().get("accepted", 0) == 0
    assert mail.mx.counted(f"refused{family.name}") == 0


@BOTH
def test_listed_and_unlisted_call_by_turns(mail: Mail, family: Family) -> None:
    mail.mx.firewall(RULES)
    mail.refuse(family)
    for _ in range(3):
        assert "(554, b'" in _turned_away(mail, family.listed, family.called)
        _delivered(mail, family.unlisted, family.called)
    assert mail.daemon.counters()["accepted"] == 3


@BOTH
@pytest.mark.parametrize("when", ["listed", "loaded"])
def test_open_session_survives_its_listing(mail: Mail, family: Family, when: str) -> None:
    """Open before the origin is listed, or before the rules themselves are loaded.

    In the second case conntrack meets the session in its middle and takes it
    for a new one; only the match of the SYN saves it from a reset.
    """
    if when == "listed":
        mail.mx.firewall(RULES)
    with ended(mail.client(family.listed, family.called)) as early:
        assert early.stdout is not None
        assert early.stdout.readline() == "open\n"
        if when == "loaded":
            mail.mx.firewall(RULES)
        mail.refuse(family)
        assert "(554, b'" in _turned_away(mail, family.listed, family.called)
        said, complained = early.communicate("go on\n", timeout=20)
    assert (early.returncode, said) == (0, "delivered\n"), complained
    assert mail.letters() == [f"Subject: hello\r\n\r\nfrom {family.listed}\r\n"]


@BOTH
def test_delisted_client_reaches_the_mail_server_again(mail: Mail, family: Family) -> None:
    mail.mx.firewall(RULES)
    mail.refuse(family)
    assert "(554, b'" in _turned_away(mail, family.listed, family.called)
    mail.element("delete", f"refuse{family.name}", family.origin)
    _delivered(mail, family.listed, family.called)


@BOTH
def test_banned_client_is_turned_away_until_its_pardon(mail: Mail, family: Family) -> None:
    """A single address with a lifetime, as fail2ban and CrowdSec list them."""
    mail.mx.firewall(RULES)
    mail.element("add", f"auto{family.name}", f"{family.listed} timeout 1h")
    assert "(554, b'" in _turned_away(mail, family.listed, family.called)
    assert mail.mx.counted(f"auto_refused{family.name}") == 1
    mail.element("delete", f"auto{family.name}", family.listed)
    _delivered(mail, family.listed, family.called)


@BOTH
def test_rules_loaded_again_keep_the_list(mail: Mail, family: Family) -> None:
    """Also under an open session of a listed origin, which they must not touch."""
    with ended(mail.client(family.listed, family.called)) as early:
        assert early.stdout is not None
        assert early.stdout.readline() == "open\n"
        mail.mx.firewall(RULES)
        mail.refuse(family)
        for _ in range(2):
            mail.mx.firewall(RULES)
            assert "(554, b'" in _turned_away(mail, family.listed, family.called)
        said, complained = early.communicate("go on\n", timeout=20)
    assert (early.returncode, said) == (0, "delivered\n"), complained
    assert mail.mx.counted(f"refused{family.name}") == 2


@BOTH
def test_stranger_cannot_call_the_diversion_port(mail: Mail, family: Family) -> None:
    """Listed or not: port 2525 is for what the firewall sends there."""
    mail.mx.firewall(RULES)
    mail.refuse(family)
    for own in (family.listed, family.unlisted):
        with pytest.raises(ConnectionRefusedError):
            mail.clients.connect(family.called, 2525, source=own)
    assert mail.daemon.counters().get("accepted", 0) == 0


@BOTH
def test_daemon_down_is_a_refusal_not_a_way_in(mail: Mail, family: Family) -> None:
    """Fail closed: without the daemon the listed still do not reach the mail server."""
    mail.mx.firewall(RULES)
    mail.refuse(family)
    assert mail.daemon.stop() == 0
    raised = _turned_away(mail, family.listed, family.called)
    assert raised.startswith("ConnectionRefusedError: ")
    _delivered(mail, family.unlisted, family.called)
