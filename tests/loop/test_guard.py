"""What a connection may cost, in counts that do not depend on the machine's mood.

System calls at saturation, packets on the wire, and allocations after the start
(none).  Times stand in bench/.
"""

import os
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from running import NAME, Syslog, need, need_root, running

from bench import build

build.build()  # the load generator, when it is not compiled yet

from bench import blast, counts  # noqa: E402
from bench.expect import Expect  # noqa: E402

CONNECTIONS = 4000


@dataclass
class Server:
    address: str
    port: int
    pid: int
    expect: Expect


def _server(address: str, port: int, pid: int) -> Server:
    return Server(address, port, pid, Expect.learn(address, port, code=421, name=NAME))


def not_the_librarys(loop: str) -> None:
    if loop == "libkqueue":
        pytest.skip("the library allocates, and makes calls of its own")


@pytest.mark.loops("kqueue")
def test_system_calls_per_connection(syslog: Syslog, loop: str) -> None:
    """accept4, send, shutdown, recv, and a part of a close_range."""
    not_the_librarys(loop)
    need("strace")
    need_root()
    with running(syslog, "-w", "1") as daemon:
        counted = counts.syscalls_per_connection(
            _server(daemon.address, daemon.port, daemon.pid), connections=CONNECTIONS
        )
    assert counted.result.complete == CONNECTIONS
    for call in ("sendto", "shutdown", "recvfrom"):
        assert counted.of(call) == pytest.approx(1, abs=0.01), counted.kinds
    closes = counted.of("close") + counted.of("close_range")
    if loop != "epoll":
        # Its event says how many wait: none is spent on an empty queue.  Closed one
        # by one, for the descriptors are not its own.
        assert counted.of("accept4") == 1, counted.kinds
        assert closes == pytest.approx(1, abs=0.01), counted.kinds
        assert counted.per_connection < 5.1, counted.kinds
    else:
        assert counted.of("accept4") < 1.05, counted.kinds
        assert closes < 0.1, counted.kinds
        assert counted.per_connection < 4.3, counted.kinds


@pytest.mark.loops("kqueue")
def test_packets_per_connection(syslog: Syslog) -> None:
    """SYN, SYN-ACK, ACK; banner and FIN in one; FIN, ACK of the client: six."""
    need_root()
    with running(syslog, "-w", "1") as daemon:
        counted = counts.packets_per_connection(
            _server(daemon.address, daemon.port, daemon.pid), connections=500
        )
    assert counted.result.complete == 500
    # A client delayed by others sends its ACK and its FIN apart.
    assert 6 <= counted.per_connection < 6.1, counted.kinds


@pytest.mark.loops("kqueue")
def test_nothing_is_allocated_after_the_start(syslog: Syslog, tmp_path: Path, loop: str) -> None:
    """Silent, talking and quitting clients: the loop never calls malloc."""
    not_the_librarys(loop)
    need("gcc")
    library = tmp_path / "allocations.so"
    subprocess.run(
        [
            "gcc",
            "-shared",
            "-fPIC",
            "-O1",
            "-o",
            library,
            Path(__file__).with_name("allocations.c"),
        ],
        check=True,
    )
    tally = tmp_path / "tally"
    tally.write_bytes(bytes(16))
    tally.chmod(0o666)
    environment = {**os.environ, "LD_PRELOAD": str(library), "ALLOCATIONS": str(tally)}
    with running(syslog, "-w", "1", env=environment) as daemon:
        expect = _server(daemon.address, daemon.port, daemon.pid).expect
        before, others = struct.unpack("QQ", tally.read_bytes())
        for behaviour in ("silent", "early", "quit"):
            result = blast.closed(
                daemon.address,
                daemon.port,
                connections=CONNECTIONS,
                concurrency=64,
                behaviour=behaviour,
                expect=expect,
            )
            assert result.complete == CONNECTIONS
        after, _ = struct.unpack("QQ", tally.read_bytes())
    assert others > 1000  # it does count
    assert after == before
