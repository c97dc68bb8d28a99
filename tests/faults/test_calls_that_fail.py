"""System calls of the loops that fail, or do half of what they should.

Clients come at a fixed rate all the while.  What a loop does when descriptors really
run out, and who gives way then, stands in tests/system/test_out_of_descriptors.py.
"""

from __future__ import annotations

import time

import pytest
from running import Daemon, Syslog, running, until

from tests.faults.catalogue import Told
from tests.faults.inject import Crowd, Shim, injected, rest
from tests.system.background import threads


@pytest.mark.parametrize(
    "fault",
    [
        "accept4: EMFILE",
        "accept4: ENFILE",
        "accept4: ENOBUFS",
        "accept4: ENOMEM",
        "accept4: ECONNABORTED",
    ],
)
def test_accept_that_fails_loses_nobody(
    daemon: Daemon, syslog: Syslog, told: Told, fault: str
) -> None:
    """Whoever came while nobody was accepted waits in the queue, and is answered."""
    error = fault.split()[1]
    crowd = Crowd(daemon.port, 0.9)
    began = time.monotonic()
    rest(0.1, began)
    with injected(daemon, "accept4", f"error={error}") as done:
        rest(0.7, began)
    result = crowd.nobody_was_lost()
    counters = daemon.settled(result.started)
    # Not a spin: a batch is 128 calls, a rest half a second, and there are two loops.
    assert 0 < done.count <= (6 * 128 if error == "ECONNABORTED" else 10)
    assert counters[error] == done.count
    assert counters["rests"] <= 6
    lines = []
    if error != "ECONNABORTED":  # the client's own doing: counted, and no line
        # Said with the first tick after the last error in which somebody was accepted.
        until(
            lambda: daemon.banner() and syslog.matching("accept on .* works again"),
            what="the word that it works again",
        )
        lines = syslog.matching("accept on ")
        assert [f"fails: {error}" in line for line in lines] == [True, False]
    told(fault, result, lost="nobody; the queue waits up to 0.5 s longer", logged=lines)


def test_epoll_wait_interrupted(daemon: Daemon, told: Told) -> None:
    crowd = Crowd(daemon.port, 0.6)
    with injected(daemon, "epoll_wait", "error=EINTR:when=1+2") as done:
        result = crowd.nobody_was_lost()
    assert done.count > 10
    told("epoll_wait: EINTR", result, lost="nobody", logged=[])


def test_close_range_forbidden(daemon: Daemon, told: Told) -> None:
    """Then each is closed by itself, and none is kept."""
    crowd = Crowd(daemon.port, 0.5, 2000)
    with injected(daemon, "close_range", "error=EPERM") as done:
        result = crowd.nobody_was_lost()
    assert done.count > 5
    told("close_range: EPERM", result, lost="nobody", logged=[])


def test_send_that_takes_a_part(syslog: Syslog, shim: Shim, told: Told) -> None:
    """It is counted, that client sees a torn banner, and no other."""
    with running(syslog, "--log-connections", "all", env=shim.env) as daemon:
        crowd = Crowd(daemon.port, 0.6)
        shim.cut(10)
        result = crowd.result()
        shim.cut(0)
        counters = daemon.settled(result.started)
        assert shim.cuts > 20
        assert counters["short"] == result.counts["short"] == shim.cuts
        assert counters["sent"] == result.counts["complete"] + 1
        line = syslog.wait_for("outcome=short")
    told("send takes a part", result, lost="the rest of the banner, of whom it befell", logged=line)


@pytest.mark.parametrize("fault", ["send: EPIPE", "send: ENOBUFS"])
def test_send_that_fails(syslog: Syslog, told: Told, fault: str) -> None:
    error = fault.split()[1]
    outcome = "reset" if error == "EPIPE" else "failed"
    with running(syslog, "--log-connections", "all") as daemon:
        crowd = Crowd(daemon.port, 0.6)
        with injected(daemon, "sendto", f"error={error}:when=1+10") as done:
            result = crowd.result()
        counters = daemon.settled(result.started)
        assert done.count > 20
        assert counters[outcome] == done.count
        assert result.started - result.counts["complete"] == done.count
        line = syslog.wait_for(f"outcome={outcome}")
    told(fault, result, lost="the banner, of whom it befell", logged=line)


def test_a_worker_stuck(daemon: Daemon, syslog: Syslog, told: Told) -> None:
    """The other goes on; whoever the kernel gave to the stuck one waits in its queue."""
    loops = sorted(set(threads(daemon.pid)) - {daemon.pid})
    assert len(loops) == 2
    crowd = Crowd(daemon.port, 1.3)
    with injected(daemon, "epoll_wait", "delay_exit=1000000:when=1", only=loops[0]) as done:
        result = crowd.nobody_was_lost()
    assert done.count == 1
    late = [count for micros, count in result.values() if micros > 100_000]
    assert 0 < sum(late) < 0.7 * result.started  # a half each, in the mean, while it lasts
    told("a worker stuck", result, lost="nobody; half of the clients wait", logged=[])
