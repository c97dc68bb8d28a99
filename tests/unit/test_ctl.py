"""turnawayctl's arguments, what it prints, whom it believes; the choice of records;
the completion files."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnaway import control, ctl, orders
from turnaway.control import Choice, packed
from turnaway.exits import Failure

ROOT = Path(__file__).parents[2]
COMMANDS = ("status", "stats", "top", "tail", "lookup", "reload", "pause", "resume", "loglevel")
LINE = (
    "turned away from=[{}]:51322 to=[198.51.100.2]:25 as=mx.example.com persona=mail"
    " code=421 outcome=sent"
)


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        ctl.main([*([name] if name else []), "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith("usage: turnawayctl")
    assert "--socket" in said


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["dance"],
        ["status", "--bogus"],
        ["pause"],
        ["top", "-i", "0"],
        ["top", "-i", "nan"],
        ["top", "-n", "none"],
        ["status", "--name", "a/b"],
    ],
)
def test_wrong_command_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert ctl.main(words) == os.EX_USAGE
    said = capsys.readouterr().err
    assert said.startswith("turnawayctl: ")
    assert said.count("\n") == 1


def test_socket_is_taken_before_and_after_the_command(tmp_path: Path) -> None:
    for words in (["-s", "X", "status"], ["status", "-s", "X"], ["status", "--socket=X"]):
        assert ctl.parser().parse_args(words).socket == "X"


def test_default_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    of_root = ["/var/run/turnawayworm.ctl", "/run/turnawayworm/turnawayworm.ctl"]
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert ctl.default_sockets("turnawayworm") == of_root
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert ctl.default_sockets("turnawayworm") == ["/run/user/1000/turnawayworm.ctl", *of_root]
    monkeypatch.setenv("XDG_RUNTIME_DIR", "relative")
    assert ctl.default_sockets("turnawayworm") == of_root


@pytest.fixture
def stranger(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """Something else on the socket, that says what the test wants."""
    path = str(tmp_path / "ctl")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(path)
        listening.listen()

        def serve() -> None:
            one, _ = listening.accept()
            with one:
                one.recv(4096)
                one.sendall(request.param)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield path
        thread.join(5)


@pytest.mark.parametrize(
    ("stranger", "status"),
    [
        (b"", os.EX_UNAVAILABLE),
        (b"220 mx.example.com\r\n", os.EX_PROTOCOL),
        (b"[]\n", os.EX_PROTOCOL),
        (b"[" * 5000 + b"\n", os.EX_PROTOCOL),
        (b'{"v":2,"ok":true}\n', os.EX_PROTOCOL),
        (b'{"v":1,"ok":false}\n', os.EX_PROTOCOL),
        (b'{"v":1,"ok":true}\n', os.EX_SOFTWARE),
        (b'{"v":1,"ok":false,"status":77,"reasons":["\\u001b[2J"]}\n', 77),
    ],
    indirect=["stranger"],
)
def test_stranger_on_the_socket(
    stranger: str, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ctl.main(["-s", stranger, "status"]) == status
    said = capsys.readouterr().err
    assert said.startswith("turnawayctl: ")
    assert "\x1b" not in said


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.9, "59s"), (61, "1m 1s"), (86400 * 3 + 3600 * 4 + 5, "3d 4h")],
)
def test_span(seconds: float, text: str) -> None:
    assert ctl.span(seconds) == text


def test_rates_never_fall_below_zero() -> None:
    """The daemon was started anew between two looks."""

    def reply(clock: float, count: int) -> dict[str, object]:
        brief = {"connections": count, "sent": count, "early": 0, "errors": 0}
        named = {"place": "0.0.0.0:25", "name": "mx", "persona": "mail", "paused": False}
        return {
            **{"clock": clock, "total": brief, "listeners": [{**named, **brief}]},
            **{"held": 0, "held_most": 1, "resting": 0, "stress": False},
            **{"seconds": 1.0, "sources": [], "networks": []},
        }

    assert ctl.Rates(reply(10, 900), reply(12, 950)).total["connections"] == 25
    assert ctl.Rates(reply(10, 900), reply(0.5, 3)).total["connections"] == 0
    assert " connections=25.0/s " in ctl.Rates(reply(10, 900), reply(12, 950)).line()


# --- what the daemon does with a request


def test_networks_of_sources() -> None:
    assert orders._network("192.0.2.77") == "192.0.2.0/24"
    assert orders._network("2001:db8:1:2::3") == "2001:db8:1::/48"
    assert orders._network("::1") == "::/48"


@given(st.ip_addresses(), st.integers(0, 128))
def test_source_takes_what_ipaddress_takes(address: object, bits: int) -> None:
    import ipaddress

    most = 32 if isinstance(address, ipaddress.IPv4Address) else 128
    text = f"{address}/{bits}"
    if bits > most:
        with pytest.raises(Failure):
            orders._source(text)
        return
    network = ipaddress.ip_network(text, strict=False)
    choice = Choice(network=orders._source(text))
    for source in (network[0], network[-1]):
        assert choice.takes(LINE.format(source))
    for source in ("203.0.113.9", "2001:db8::9"):
        other = ipaddress.ip_address(source)
        assert choice.takes(LINE.format(source)) == (
            other.version == network.version and other in network
        )


@given(st.text(max_size=40))
def test_source_never_fails_otherwise(text: str) -> None:
    try:
        octets, bits = orders._source(text)
    except Failure:
        return
    assert len(octets) in (4, 16)
    assert 0 <= bits <= len(octets) * 8


@given(st.binary(max_size=200))
def test_request_of_any_octets(octets: bytes) -> None:
    try:
        request = control._request(octets)
    except Failure:
        return
    assert isinstance(request, dict)


def test_choices() -> None:
    line = LINE.format("192.0.2.9")
    assert Choice().takes(line)
    assert Choice(persona="mail", name="mx.example.com", port=25).takes(line)
    assert not Choice(persona="worm").takes(line)
    assert not Choice(name="mx").takes(line)
    assert not Choice(port=26).takes(line)
    assert not Choice(address="198.51.100.3").takes(line)
    assert not Choice(ipv6=True).takes(line)
    assert not Choice().takes("something else")
    assert packed("::1") == bytes(15) + b"\1"


def test_daemon_does_not_load_the_command() -> None:
    code = "import sys, turnaway.__main__; print([n for n in sys.modules if 'ctl' in n or n == 'ipaddress'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "turnaway.ctl" not in json.loads(done.stdout.replace("'", '"'))


# --- completions


def made() -> dict[str, str]:
    pytest.importorskip("shtab")
    path = ROOT / "contrib" / "completions" / "make.py"
    spec = importlib.util.spec_from_file_location("completions", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: dict[str, str] = module.files()
    return found


def test_completion_files_are_up_to_date() -> None:
    for name, text in made().items():
        file = ROOT / "contrib" / "completions" / name
        assert file.read_text() == text, f"{name}: run contrib/completions/make.py"


def test_bash_completes_a_command() -> None:
    file = ROOT / "contrib" / "completions" / "bash" / "turnawayctl"
    script = (
        f"source {file}; COMP_WORDS=(turnawayctl re); COMP_CWORD=1;"
        " _shtab_turnawayctl turnawayctl re turnawayctl; echo ${COMPREPLY[@]}"
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert done.stdout.split() == ["reload", "resume"]
