"""The daemon with lists: who is told what, on every listener, and through reloads.

Owns: [[list]] from a file of addresses to the octets that a client is sent, the
lines and counters of it, and half a million networks read anew under load.  How
files are read stands in tests/unit/test_lists.py, how an address is looked up in
tests/unit/test_lists_table.py.
"""

from __future__ import annotations

import contextlib
import json
import random
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import COMMAND, Daemon, Syslog, command, free_port, read_all, until

OWN = (
    '[personas.own]\ncode = 550\nclose = "now"\nsingle = "no"\n'
    'lines = ["{name}: {client} is on {list}, ask {contact}.", "Go."]\n'
)
LISTS = (
    '[[list]]\nname = "wide"\nfiles = ["wide.txt"]\npersona = "spammer"\n'
    '[[list]]\nname = "near"\nfiles = ["near.txt"]\npersona = "own"\ncontact = "near@example.com"\n'
    '[[list]]\nname = "plain"\nfiles = ["plain.txt"]\n'
    '[[list]]\nname = "wanted"\nfiles = ["wanted.txt"]\nallow = true\n'
)
FILES = {
    "wide.txt": "127.0.0.0/16\n::/0\n",
    "near.txt": "127.0.2.0/24\n::1\n",  # longer, though its list comes later
    "plain.txt": "127.0.2.0/24\n127.0.3.0/24\n",
    "wanted.txt": "127.0.4.1\n",
}


def written(folder: Path, **files: str) -> None:
    for name, text in files.items():
        new = folder / f"{name}.new"
        new.write_text(text)
        new.chmod(0o644)
        new.rename(folder / name.replace("_", "."))


def configuration(ports: list[int], lists: str = LISTS) -> str:
    one, two, web = ports
    return (
        f'location = "Earth"\nlog-connections = "all"\nworkers = 2\n{OWN}{lists}'
        f'[[listener]]\naddress = ["127.0.0.1:{one}", "[::1]:{one}"]\nname = "one.example.com"\n'
        f'[[listener]]\naddress = "127.0.0.1:{two}"\nname = "two.example.com"\n'
        'persona = "blocked"\ncontact = "two@example.com"\n'
        f'[[listener]]\naddress = "127.0.0.1:{web}"\nname = "web.example.com"\n'
        'persona = "blocked"\nprotocol = "http"\n'
    )


@contextlib.contextmanager
def listed(
    syslog: Syslog, folder: Path, *options: str, lists: str = LISTS
) -> Iterator[tuple[Daemon, list[int]]]:
    ports = [free_port() for _ in range(3)]
    for name, text in FILES.items():
        written(folder, **{name.replace(".", "_"): text})
    written(folder, turnaway_toml=configuration(ports, lists))
    argv = ["-f", "--pidfile", "none", "--control", str(folder / "ctl")]
    argv += ["--log", f"syslog:{syslog.path}", "-c", str(folder / "turnaway.toml"), *options]
    with subprocess.Popen(command(*argv), stderr=subprocess.PIPE, text=True) as process:
        try:
            until(
                lambda: syslog.matching("started:") or process.poll() is not None, what="the start"
            )
            assert process.poll() is None, process.stderr and process.stderr.read()
            yield Daemon(process, "127.0.0.1", ports[0], syslog), ports
        finally:
            process.terminate()
            process.wait(10)


def told(port: int, source: str, says: bytes = b"") -> bytes:
    family = "::1" if ":" in source else "127.0.0.1"
    with socket.create_connection((family, port), 10, (source, 0)) as one:
        one.sendall(says)
        return read_all(one)


def ctl(folder: Path, *words: str) -> str:
    done = subprocess.run(
        [COMMAND.with_name("turnawayctl"), "-s", folder / "ctl", *words],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_each_list_in_its_own_words_on_every_listener(syslog: Syslog, tmp_path: Path) -> None:
    """Longest prefix, then the earlier list; both families; code, contact, {list}."""
    with listed(syslog, tmp_path) as (daemon, (one, two, web)):
        near = b"550-%s.example.com: %s is on near, ask near@example.com.\r\n550 Go.\r\n"
        assert told(one, "127.0.2.7") == near % (b"one", b"127.0.2.7")
        assert told(one, "::1") == near % (b"one", b"::1")
        assert told(two, "127.0.2.7") == near % (b"two", b"127.0.2.7")
        assert told(one, "127.0.1.7").startswith(b"554-one.example.com ")
        assert told(two, "127.0.3.7") == told(two, "127.1.0.1")  # its own words
        request = b"GET / HTTP/1.0\r\n\r\n"
        page = told(web, "127.0.2.7", request)
        assert page.startswith(b"HTTP/1.1 403 ")
        assert page != told(web, "127.1.0.1", request)
        counters = daemon.settled(8)
        assert counters["sent"] == counters["accepted"] == 8
        lines = until(lambda: len(found := syslog.matching("turned away ")) == 8 and found)
        found = re.findall(
            r"from=\[(.*?)\]:\d+ .*? persona=(\S+)( list=\S+)?.* code=(\d+)", "\n".join(lines)
        )
        assert sorted(found) == [
            ("127.0.1.7", "spammer", " list=wide", "554"),
            ("127.0.2.7", "own", " list=near", "403"),
            *[("127.0.2.7", "own", " list=near", "550")] * 2,
            ("127.0.3.7", "blocked", " list=plain", "554"),
            *[("127.1.0.1", "blocked", "", "403"), ("127.1.0.1", "blocked", "", "554")],
            ("::1", "own", " list=near", "550"),
        ]
        counts = json.loads(ctl(tmp_path, "stats", "--json"))["lists"]
        assert counts == {"wide": 1, "near": 4, "plain": 1, "wanted": 0}
        said = ctl(tmp_path, "lookup", "127.0.2.7")
        assert f"127.0.2.7 is on list near: {tmp_path}/near.txt:1" in said
        assert "550-two.example.com: 127.0.2.7 is on near, ask near@example.com." in said


def test_who_is_on_an_allow_list_is_told_nothing_and_we_are_told_loudly(
    syslog: Syslog, tmp_path: Path
) -> None:
    with listed(syslog, tmp_path, "-w", "1") as (daemon, (one, two, web)):
        for port in (one, two, web):
            for _ in range(5):
                assert told(port, "127.0.4.1") == b""
        counters = daemon.settled(15)
        assert (counters["misdiverted"], counters.get("sent", 0)) == (15, 0)
        until(lambda: _warned(syslog) == 15, what="the warnings")
        warnings = syslog.matching("misdiverted: ")
        assert all(
            "from allow list wanted, the last from [127.0.4.1]; wanted" in one for one in warnings
        )
        assert all(one.startswith("<20>") for one in warnings)  # mail.warning
        assert len(warnings) <= 5  # one a tick
        lines = syslog.matching("turned away ")
        assert all(
            one.endswith(" list=wanted code=- outcome=misdiverted")
            or one.endswith(" list=wanted proto=http code=- outcome=misdiverted")
            for one in lines
        ), lines


def _warned(syslog: Syslog) -> int:
    return sum(int(one) for one in re.findall(r"misdiverted: (\d+) ", "\n".join(syslog.lines)))


def test_lines_of_json_name_the_list(syslog: Syslog, tmp_path: Path) -> None:
    log = tmp_path / "lines"
    log.touch()
    log.chmod(0o666)
    with listed(syslog, tmp_path) as _:
        toml = (tmp_path / "turnaway.toml").read_text()
    port = free_port()
    written(tmp_path, turnaway_toml=re.sub(r"\[\[listener\]\].*", "", toml, flags=re.S))
    argv = command("-f", "--pidfile", "none", "--control", "none", "--log", "json:-")
    argv += ["-c", str(tmp_path / "turnaway.toml"), "Earth", f"127.0.0.1:{port} mx.example.com"]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        lines = (json.loads(line) for line in process.stderr)
        next(line for line in lines if "started" in line.get("message", ""))
        for source in ("127.0.2.7", "127.0.4.1", "127.1.0.1"):
            told(port, source)
        found = {}
        while len(found) < 3:
            line = next(lines)
            if line["event"] == "turned away":
                found[line["from"]] = line
        process.terminate()
    assert [found[one].get("list") for one in sorted(found)] == ["near", "wanted", None]
    assert found["127.0.2.7"]["code"] == 550
    assert (found["127.0.4.1"]["code"], found["127.0.4.1"]["outcome"]) == (None, "misdiverted")


def test_too_many_words(tmp_path: Path) -> None:
    """Each list has answers in each listener: that is memory, and is bounded."""
    text = 'location = "Earth"\n'
    for name in range(60):
        text += f'[[list]]\nname = "l{name}"\nfiles = ["drop.txt"]\n'
    ports = ", ".join(f'"127.0.0.1:{port}"' for port in range(1025, 1125))
    text += f'[[listener]]\naddress = [{ports}]\nname = "mx.example.com"\n'
    written(tmp_path, turnaway_toml=text, drop_txt="203.0.113.7\n")
    file = tmp_path / "turnaway.toml"
    done = subprocess.run(
        command("-t", "-c", str(file)), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 78
    assert (
        f"{file}:2: list[0]: 60 lists for 100 listeners, each with words of its own for each:"
        " 6100; at most 4096 are possible, so fewer lists or fewer listeners" in done.stderr
    )


class Callers:
    """Clients without end, from listed and other addresses; whom they lost."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.answered = 0
        self.lost: list[bytes] = []
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._call, args=(one,)) for one in range(4)]

    def _call(self, number: int) -> None:
        while not self._over.is_set():
            said = told(self.port, f"127.0.{number}.7")
            if re.match(rb"(421|554|550)-.*\r\n$", said, re.S):
                self.answered += 1
            else:
                self.lost.append(said)
            time.sleep(0.002)

    def __enter__(self) -> Callers:
        for one in self._threads:
            one.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for one in self._threads:
            one.join()


def test_lists_that_change_under_load_lose_nobody(syslog: Syslog, tmp_path: Path) -> None:
    with listed(syslog, tmp_path) as (_, (one, *_)), Callers(one) as callers:
        for turn in range(8):
            ways = ("127.0.0.0/16\n", "127.0.1.0/24\n127.0.3.0/24\n")
            written(tmp_path, wide_txt=ways[turn % 2])
            ctl(tmp_path, "reload")
            expected = (b"421-", b"554-")[turn % 2 == 0]
            assert told(one, "127.0.9.9").startswith(expected)
        assert callers.answered > 50
    assert callers.lost == []


def half_a_million(seed: int) -> str:
    rng = random.Random(seed)
    four = (
        f"{rng.randrange(1, 120)}.{rng.randrange(256)}.{rng.randrange(256)}.{rng.randrange(256)}\n"
        for _ in range(250_000)
    )
    six = (
        f"2001:{rng.randrange(65536):x}:{rng.randrange(65536):x}:{rng.randrange(65536):x}::/64\n"
        for _ in range(250_000)
    )
    return "".join(four) + "".join(six)


def test_half_a_million_networks_read_again_under_load(
    syslog: Syslog, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody is lost, memory levels off, and the second does not stand still."""
    figures = []
    with listed(syslog, tmp_path) as (daemon, (one, *_)):
        written(tmp_path, plain_txt=half_a_million(1))
        with Callers(one) as callers:
            for _ in range(6):
                began = time.monotonic()
                ctl(tmp_path, "reload")
                took = time.monotonic() - began
                time.sleep(1.2)  # those that retire are buried
                figures.append((took, daemon.memory() // 1024))
        assert callers.lost == []
        assert callers.answered > 200
        assert told(one, "127.0.2.7").startswith(b"550-")
    with capsys.disabled():
        print("\nreloads of 500,000 networks (s, MiB):", *(f"{a:.2f}/{b}" for a, b in figures))
    sizes = [size for _, size in figures]
    assert max(sizes[3:]) <= max(sizes[:3]) + 12, figures


def test_the_order_to_stop_is_not_kept_waiting_by_a_reload(syslog: Syslog, tmp_path: Path) -> None:
    with listed(syslog, tmp_path) as (daemon, _):
        written(tmp_path, plain_txt=half_a_million(2))
        daemon.process.send_signal(signal.SIGHUP)
        time.sleep(0.2)
        began = time.monotonic()
        assert daemon.stop() == 0
        took = time.monotonic() - began
    syslog.wait_for("stopped: SIGTERM")
    assert took < 5  # a second, where nobody else is at work
