"""One listening socket for all workers: handed in by a supervisor, or for want of
an option that spreads the connections of an address (OpenBSD, NetBSD, macOS).
"""

import os
import socket
import sys
import threading

import pytest
from running import NAME, Syslog, read_all, running

pytestmark = pytest.mark.loops("kqueue", "kqueue-bare")

CLIENTS, EACH = 8, 100
HAND_IN = """
import os, sys
fd, *command = sys.argv[1:]
os.dup2(int(fd), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
os.execvp(command[0], command)
"""


@pytest.mark.parametrize("close", ["now", "drain"])
def test_every_connection_is_answered_once_by_one_of_them(syslog: Syslog, close: str) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as held:
        port = held.getsockname()[1]
        with running(
            *(syslog, "-w", "3", "--close", close, "--max-held-source", "999"),
            port=port,
            listeners=[f"127.0.0.1:{port} {NAME}"],
            wrapper=(sys.executable, "-c", HAND_IN, str(held.fileno())),
            pass_fds=(held.fileno(), 3),
            env=dict(os.environ),
        ) as daemon:
            answers: list[bytes] = []

            def ask() -> None:
                for _ in range(EACH):
                    with daemon.connect() as one:
                        answers.append(read_all(one))

            threads = [threading.Thread(target=ask) for _ in range(CLIENTS)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            counters = daemon.settled(CLIENTS * EACH)
    assert len(answers) == CLIENTS * EACH
    assert all(answer.startswith(b"421-mx.example.com ") for answer in answers)
    assert counters["accepted"] == counters["sent"] == CLIENTS * EACH
    assert not {name for name in counters if name.startswith("E")}
