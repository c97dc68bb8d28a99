"""An MX and the network that its clients are in, for tests of firewalls.

Owns: the MX with a mail server on port 25 and turnaway-fast on port 2525; a
network of clients, listed and not; and Python's own smtplib as the client, in
a process of its own.  What diverts is the test's.
"""

from __future__ import annotations

import contextlib
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


@contextlib.contextmanager
def mail_lab(syslog: Syslog) -> Iterator[Mail]:
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


def turned_away(mail: Mail, own: str, called: str, port: int = 0) -> str:
    """Call, be turned away, and return what smtplib raised, as it printed it."""
    with ended(mail.client(own, called, port)) as client:
        said, complained = client.communicate(timeout=20)
    assert client.returncode == 1, complained
    assert said == ""
    return complained.strip().splitlines()[-1]


def delivered(mail: Mail, own: str, called: str) -> None:
    """Call, and deliver a letter to the real server."""
    before = mail.letters()
    with ended(mail.client(own, called)) as client:
        said, complained = client.communicate("go on\n", timeout=20)
    assert (client.returncode, said) == (0, "open\ndelivered\n"), complained
    assert mail.letters()[len(before) :] == [f"Subject: hello\r\n\r\nfrom {own}\r\n"]
