"""Networks of the tests' own: namespaces, the links between them, and a way in.

Owns: a `Lab` of network namespaces, made by the test that needs it and gone
when it ends: each is held by a small process that ends when the socket to its
test is closed, be it by the kernel.  (A program left running inside keeps its
network: whoever starts one ends it.)  Nothing outside is touched: links are
made inside, addresses and firewalls belong to the lab.

Promises: root is not needed (an ordinary user gets one user namespace for the
whole lab); a missing tool or a forbidding system is a skip, and in CI a
failure.  Sockets of a namespace can be had in the test's own process, so that
a client or a capture is there at once and needs no program of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import ip_interface
from pathlib import Path
from types import TracebackType

import pytest
from running import SECONDS, need

# Lives in the namespace: makes sockets there and hands them out (unix(7)
# SCM_RIGHTS), until the other end is closed.
_HOLDER = """
import socket, sys
test = socket.socket(fileno=int(sys.argv[1]))
test.send(b"here")
while wish := test.recv(64):
    try:
        with socket.socket(*map(int, wish.split())) as made:
            socket.send_fds(test, [b"0"], [made.fileno()])
    except OSError as error:
        test.send(str(error.errno).encode())
"""

# enum tcp_state of the kernel's include/net/tcp_states.h, from 1.
_STATES = [
    "ESTABLISHED",
    "SYN-SENT",
    "SYN-RECV",
    "FIN-WAIT-1",
    "FIN-WAIT-2",
    "TIME-WAIT",
    "CLOSE",
    "CLOSE-WAIT",
    "LAST-ACK",
    "LISTEN",
    "CLOSING",
    "NEW-SYN-RECV",
]


@dataclass(frozen=True)
class Connection:
    """A line of /proc/net/tcp or tcp6: what the kernel still keeps."""

    state: str
    local: tuple[str, int]
    peer: tuple[str, int]
    orphan: bool  # no process holds it


def _place(text: str) -> tuple[str, int]:
    """`0100007F:09DD`: words of 32 bits in the machine's order (proc_net_tcp)."""
    address, port = text.split(":")
    words = (int(address[at : at + 8], 16) for at in range(0, len(address), 8))
    octets = b"".join(word.to_bytes(4, sys.byteorder) for word in words)
    family = socket.AF_INET if len(octets) == 4 else socket.AF_INET6
    return socket.inet_ntop(family, octets), int(port, 16)


class Namespace:
    """One network namespace with its loopback up; made by `Lab.namespace`."""

    def __init__(self, name: str, ways_in: list[str], prefix: list[str]) -> None:
        self.name = name
        self._ways_in = ways_in
        self._lock = threading.Lock()
        self._home, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._home.settimeout(SECONDS)
        with theirs:
            holder = [sys.executable, "-I", "-S", "-c", _HOLDER, str(theirs.fileno())]
            self._holder = subprocess.Popen(
                [*prefix, *holder],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
        self.pid = self._holder.pid
        if self._home.recv(64) != b"here":
            assert self._holder.stderr is not None
            said = self._holder.stderr.read().decode(errors="replace").strip()
            self.close()
            if os.environ.get("CI"):
                pytest.fail(f"no namespaces in CI: {said}")
            pytest.skip(f"no namespaces here: {said}")

    def close(self) -> None:
        self._home.close()
        try:
            self._holder.wait(SECONDS)
        except subprocess.TimeoutExpired:
            self._holder.kill()
            self._holder.wait()
        if self._holder.stderr is not None:
            self._holder.stderr.close()

    # Programs inside

    def enter(self) -> list[str]:
        """What to put before a command; the process keeps its pid (nsenter(1))."""
        return ["nsenter", "-t", str(self.pid), *self._ways_in, "-n", "--"]

    def daemon(self) -> list[str]:
        """`enter` for the daemon, which must not find itself a root that it cannot cease to be.

        Real root enters as root.  The root of a user namespace has nobody to
        drop to, so there the daemon starts as an ordinary user.
        """
        if not self._ways_in:
            return self.enter()
        return [*self.enter(), "unshare", "-U", "--map-user=65534", "--"]

    def start(self, *argv: str) -> subprocess.Popen[str]:
        """A program in the namespace, with pipes for all that it says and hears."""
        pipe = subprocess.PIPE
        return subprocess.Popen(
            [*self.enter(), *argv], stdin=pipe, stdout=pipe, stderr=pipe, text=True
        )

    def inhabit(self) -> None:
        """This thread of the test lives in the namespace from now on (setns(2); root only).

        Give it a thread of its own, which ends there.
        """
        libc = ctypes.CDLL(None, use_errno=True)
        with open(f"/proc/{self.pid}/ns/net") as network:
            if libc.setns(network.fileno(), 0) != 0:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def run(
        self, *argv: str, text: str = "", check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """A program in the namespace, to its end, with `text` as its input."""
        done = subprocess.run(
            [*self.enter(), *argv],
            input=text,
            capture_output=True,
            text=True,
            timeout=SECONDS * 3,
            check=False,
        )
        if check and done.returncode != 0:
            pytest.fail(f"{self.name}: {argv} ended with {done.returncode}: {done.stderr}")
        return done

    # The network inside

    def ip(self, *commands: str) -> None:
        """Lines for ip(8), all in one run."""
        self.run("ip", "-batch", "-", text="\n".join(commands))

    def address(self, interface: str, *addresses: str) -> None:
        """Give addresses, as `198.51.100.25/24`, usable at once (no DAD, RFC 4862 5.4)."""
        lines = [f"address add {one} dev {interface}" for one in addresses]
        self.ip(*(line + " nodad" if ":" in line else line for line in lines))

    def route(self, via: str, *networks: str) -> None:
        """Send what goes to `networks` (`default` without any) to the neighbour `via`."""
        option = "-6" if ip_interface(via).version == 6 else "-4"
        for network in networks or ("default",):
            self.run("ip", option, "route", "add", network, "via", via)

    def firewall(self, text: str) -> None:
        """Load `text` with nft(8), in one transaction."""
        self.run("nft", "-f", "-", text=text)

    def counted(self, counter: str, table: str = "inet turnaway") -> int:
        """Packets of a named nftables counter."""
        listed = self.run("nft", "list", "counter", *table.split(), counter).stdout
        found = re.search(r"packets (\d+)", listed)
        assert found, listed
        return int(found[1])

    def connections(self, port: int) -> list[Connection]:
        """What TCP keeps for local `port` here, both families, listeners left out."""
        found = []
        for table in ("tcp", "tcp6"):
            for line in Path(f"/proc/{self.pid}/net/{table}").read_text().splitlines()[1:]:
                words = line.split()
                state = _STATES[int(words[3], 16) - 1]
                local, peer = _place(words[1]), _place(words[2])
                if local[1] == port and state != "LISTEN":
                    found.append(Connection(state, local, peer, orphan=words[9] == "0"))
        return found

    # Sockets inside, held by the test

    def open_socket(
        self, family: int, kind: int = socket.SOCK_STREAM, protocol: int = 0
    ) -> socket.socket:
        """A socket of this namespace, in the test's process."""
        with self._lock:
            self._home.send(f"{int(family)} {int(kind)} {protocol}".encode())
            answer, fds, _, _ = socket.recv_fds(self._home, 64, 1)
        if not fds:
            raise OSError(int(answer), os.strerror(int(answer)))
        made = socket.socket(fileno=fds[0])
        made.set_inheritable(False)
        return made

    def connect(self, address: str, port: int, source: str = "") -> socket.socket:
        """A client here, connected; from the address `source` if one is named."""
        made = self.open_socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        try:
            made.settimeout(SECONDS)
            if source:
                made.bind((source, 0))
            made.connect((address, port))
        except BaseException:
            made.close()
            raise
        return made

    def listen(self, address: str, port: int) -> socket.socket:
        """A listening socket here; an IPv6 one takes IPv6 only."""
        made = self.open_socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        if made.family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((address, port))
        made.listen(128)
        return made


@dataclass
class Lab:
    """Some namespaces and the cables between them: `with Lab() as lab: ...`."""

    _closing: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    _world: Namespace | None = None

    def __enter__(self) -> Lab:
        need("unshare", "nsenter", "ip", "nft")
        if os.geteuid() != 0:
            # One user namespace owns all the networks of the lab: only so may
            # a cable go from one to another.
            self._world = Namespace("world", [], ["unshare", "-U", "--map-root-user", "--"])
            self._closing.callback(self._world.close)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closing.close()

    def namespace(self, name: str) -> Namespace:
        """A new network namespace; `name` is for messages and has no meaning outside."""
        prefix = ["unshare", "-n", "--"]
        ways_in = []
        if self._world is not None:
            ways_in = ["-U", "--preserve-credentials"]
            prefix = ["nsenter", "-t", str(self._world.pid), *ways_in, "--", *prefix]
        made = Namespace(name, ways_in, prefix)
        self._closing.callback(made.close)
        made.ip("link set lo up")
        return made

    def link(
        self, one: Namespace, two: Namespace, at_one: str = "eth0", at_two: str = "eth0"
    ) -> None:
        """A cable (veth(4)) between two namespaces, up at both ends.

        Without link-local addresses, so that nothing but what a test sends is
        on the wire, neighbour discovery aside.
        """
        one.ip(f"link add {at_one} type veth peer name {at_two} netns {two.pid}")
        for end, interface in ((one, at_one), (two, at_two)):
            end.ip(f"link set {interface} addrgenmode none", f"link set {interface} up")


@contextlib.contextmanager
def ended(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """A started program, certainly ended and its pipes closed after the block."""
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()
