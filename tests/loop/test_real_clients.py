"""Real clients, and the reason as each of them reports it.

Owns: nothing of ours; curl, wget, openssl, swaks and Python's own clients are
the oracles.  Each is shown to tell its user why, in its own words.  With
`pytest -s` the commands and what they said are printed.
"""

from __future__ import annotations

import http.client
import re
import smtplib
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import NAME, Daemon, Syslog, free_port, need, running

REASON = "has taken over"  # of persona worm, in its page
SPOKEN = "infected host"  # of its banner
ALL = ("--max-held-source", "9999")


@pytest.fixture
def auto(syslog: Syslog) -> Iterator[Daemon]:
    """Persona worm as it comes: any protocol, on any port."""
    with running(syslog, "-p", "worm", *ALL) as one:
        yield one


@pytest.fixture(params=["auto", "http"])
def web(request: pytest.FixtureRequest, syslog: Syslog) -> Iterator[Daemon]:
    with running(syslog, "-p", "worm", "--protocol", request.param, *ALL) as one:
        yield one


def run(*command: str | Path, stdin: bytes = b"") -> tuple[int, str]:
    """(status, everything it said)."""
    ended = subprocess.run(
        [str(word) for word in command],
        input=stdin,
        capture_output=True,
        timeout=60,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C", "HOME": "/nonexistent"},
    )
    return ended.returncode, (ended.stdout + ended.stderr).decode("utf-8", "replace")


def shown(command: str, said: str, pattern: str) -> str:
    """The line of what a client said that has the reason."""
    line = next((line for line in said.splitlines() if re.search(pattern, line)), "")
    assert line, said
    print(f"\n$ {command}\n{line.strip()}")
    return line


CURL = ("curl", "-q", "-sS", "--max-time", "20")


def url(daemon: Daemon, scheme: str = "http") -> str:
    return f"{scheme}://{daemon.address}:{daemon.port}/"


# --- curl ----------------------------------------------------------------------------


def test_curl_get(web: Daemon) -> None:
    need("curl")
    status, said = run(*CURL, "-i", url(web))
    assert status == 0
    shown("curl -i http://HOST/", said, "HTTP/1.1 403 Forbidden")
    shown("curl http://HOST/", said, REASON)
    status, said = run(*CURL, "-f", url(web))
    assert status == 22
    shown("curl -f http://HOST/", said, "returned error: 403")


def test_curl_as_a_browser_gets_the_page(web: Daemon) -> None:
    need("curl")
    status, said = run(*CURL, "-H", "Accept: text/html", url(web))
    assert status == 0
    shown("curl -H 'Accept: text/html' http://HOST/", said, "<h1>Refused: infected host</h1>")


def test_curl_head(web: Daemon) -> None:
    need("curl")
    status, said = run(*CURL, "-I", url(web))
    assert status == 0
    shown("curl -I http://HOST/", said, "HTTP/1.1 403 Forbidden")
    assert REASON not in said


@pytest.mark.parametrize("expect", [(), ("-H", "Expect:")])
def test_curl_post_of_200_kb(web: Daemon, tmp_path: Path, expect: tuple[str, ...]) -> None:
    need("curl")
    body = tmp_path / "body"
    body.write_bytes(b"x" * 200_000)
    for _ in range(5):
        status, said = run(*CURL, *expect, "--data-binary", f"@{body}", url(web))
        assert status == 0, said
        assert REASON in said
    shown("curl --data-binary @200kB http://HOST/", said, REASON)


def test_curl_upload_of_200_kb(web: Daemon, tmp_path: Path) -> None:
    need("curl")
    body = tmp_path / "body"
    body.write_bytes(b"x" * 200_000)
    status, said = run(*CURL, "-T", body, url(web))
    assert status == 0, said
    shown("curl -T 200kB http://HOST/", said, REASON)


def test_curl_through_it_as_a_proxy(web: Daemon) -> None:
    need("curl")
    status, said = run(*CURL, "-v", "-x", url(web), "https://victim.example/")
    assert status == 56
    shown(
        "curl -x http://HOST https://victim.example/", said, "CONNECT tunnel failed, response 403"
    )
    status, said = run(*CURL, "-x", url(web), "http://victim.example/")
    assert status == 0
    shown("curl -x http://HOST http://victim.example/", said, REASON)


@pytest.mark.parametrize(
    ("scheme", "pattern"),
    [
        ("socks4", r"(?i)rejected or failed|91"),
        ("socks4a", r"(?i)rejected or failed|91"),
        ("socks5", r"(?i)no acceptable|No authentication method was acceptable|unable to"),
        ("socks5h", r"(?i)no acceptable|No authentication method was acceptable|unable to"),
    ],
)
@pytest.mark.parametrize("protocol", ["auto", "socks"])
def test_curl_through_socks(syslog: Syslog, scheme: str, pattern: str, protocol: str) -> None:
    need("curl")
    with running(syslog, "-p", "worm", "--protocol", protocol, *ALL) as daemon:
        status, said = run(*CURL, "-x", url(daemon, scheme), "http://127.0.0.1:9/")
    assert status == 97
    shown(f"curl -x {scheme}://HOST http://...", said, pattern)


@pytest.mark.parametrize("protocol", ["auto", "tls"])
def test_curl_https_openssl_and_wget_name_the_alert(syslog: Syslog, protocol: str) -> None:
    need("curl", "openssl", "wget")
    with running(syslog, "-p", "worm", "--protocol", protocol, *ALL) as daemon:
        place = f"{daemon.address}:{daemon.port}"
        status, said = run(*CURL, "-k", url(daemon, "https"))
        assert status == 35
        shown("curl https://HOST/", said, "alert access denied")
        status, said = run("openssl", "s_client", "-connect", place)
        assert status == 1
        shown("openssl s_client -connect HOST", said, "alert access denied.*SSL alert number 49")
        status, said = run("wget", "-O-", "--tries=1", "--no-hsts", url(daemon, "https"))
        assert status != 0
        shown("wget https://HOST/", said, "(?i)access.(was )?denied")


def test_curl_smtp(auto: Daemon) -> None:
    need("curl")
    status, said = run(*CURL, "-v", url(auto, "smtp"))
    assert status == 8
    shown("curl -v smtp://HOST/", said, SPOKEN)
    shown("curl smtp://HOST/", said, "Got unexpected smtp-server response: 554")


@pytest.mark.parametrize(
    ("kind", "pattern"), [("pop3", "Got unexpected pop3-server"), ("imap", "imap"), ("ftp", "421")]
)
def test_curl_pop3_imap_ftp(syslog: Syslog, kind: str, pattern: str) -> None:
    need("curl")
    with running(syslog, "-p", "worm", "--protocol", f"text:{kind}", *ALL) as daemon:
        status, said = run(*CURL, "-v", url(daemon, kind))
    assert status == (28 if kind == "ftp" else 8)  # curl takes any 421 for a time limit
    shown(f"curl -v {kind}://HOST/", said, "the machine at your address is infected")
    shown(f"curl {kind}://HOST/", said, pattern)


# --- wget ------------------------------------------------------------------------------


def test_wget(web: Daemon, tmp_path: Path) -> None:
    need("wget")
    base = ("wget", "-O-", "--tries=1", "--no-hsts", "--no-config")
    status, said = run(*base, url(web))
    assert status == 8
    shown("wget http://HOST/", said, "ERROR 403: Forbidden")
    status, said = run(*base, "--content-on-error", url(web))
    shown("wget --content-on-error http://HOST/", said, REASON)
    body = tmp_path / "body"
    body.write_bytes(b"x" * 200_000)
    status, said = run(*base, "--content-on-error", f"--post-file={body}", url(web))
    assert status == 8
    shown("wget --post-file=200kB http://HOST/", said, REASON)


# --- Python -----------------------------------------------------------------------------


def test_http_client(web: Daemon) -> None:
    one = http.client.HTTPConnection(web.address, web.port, timeout=10)
    for method, body in (("GET", None), ("POST", b"x" * 200_000), ("HEAD", None)):
        one.request(method, "/", body)
        answer = one.getresponse()
        text = answer.read().decode()
        assert (answer.status, answer.reason) == (403, "Forbidden")
        assert (REASON in text) is (method != "HEAD")
        assert one.sock is None  # it understood the close
    shown("http.client GET", text or f"{answer.status} {answer.reason}", "403 Forbidden")


def test_http_client_through_a_tunnel(web: Daemon) -> None:
    one = http.client.HTTPSConnection(web.address, web.port, timeout=10)
    one.set_tunnel("victim.example", 443)
    with pytest.raises(OSError, match="403 Forbidden") as caught:
        one.request("GET", "/")
    shown("http.client CONNECT", str(caught.value), "403")


@pytest.mark.parametrize("protocol", ["auto", "tls"])
def test_ssl_of_python_names_the_alert(syslog: Syslog, protocol: str) -> None:
    with running(syslog, "-p", "worm", "--protocol", protocol, *ALL) as daemon:
        context = ssl.create_default_context()
        with (
            socket.create_connection((daemon.address, daemon.port), 10) as one,
            pytest.raises(ssl.SSLError, match=r"(?i)access.denied") as caught,
        ):
            context.wrap_socket(one, server_hostname=NAME)
        shown("ssl.wrap_socket", str(caught.value), "(?i)access.denied")
        with pytest.raises(ssl.SSLError, match=r"(?i)access.denied"):
            smtplib.SMTP_SSL(daemon.address, daemon.port, timeout=10)


@pytest.mark.parametrize("close", ["now", "drain", "quit"])
def test_smtplib(syslog: Syslog, close: str) -> None:
    options = ("-p", "worm", "--protocol", "smtp", "--close", close, *ALL)
    with running(syslog, *options) as daemon:
        with pytest.raises(smtplib.SMTPConnectError, match=SPOKEN) as caught:
            smtplib.SMTP(daemon.address, daemon.port, timeout=10)
        assert caught.value.smtp_code == 554
        shown(f"smtplib.SMTP ({close})", str(caught.value), SPOKEN)


def test_smtplib_says_the_letter(syslog: Syslog) -> None:
    """A client that goes on after the 554, and quits as it should."""
    options = ("-p", "worm", "--protocol", "smtp", "--close", "quit", *ALL)
    with running(syslog, *options) as daemon:
        one = smtplib.SMTP(timeout=10)
        assert one.sock is None
        one.sock = one._get_socket(daemon.address, daemon.port, 10)  # type: ignore[attr-defined]
        assert one.getreply()[0] == 554
        assert one.docmd("EHLO", "a")[0] == 503
        assert one.docmd("MAIL", "FROM:<>") == (
            503,
            b"mx.example.com Bad sequence of commands; you are refused, see the greeting",
        )
        assert one.quit() == (221, b"mx.example.com Closing connection")


# --- swaks -----------------------------------------------------------------------------


@pytest.mark.parametrize("close", ["now", "drain", "quit"])
def test_swaks(syslog: Syslog, close: str) -> None:
    need("swaks")
    options = ("-p", "worm", "--protocol", "smtp", "--close", close, *ALL)
    with running(syslog, *options) as daemon:
        status, said = run(
            *("swaks", "--server", daemon.address, "--port", str(daemon.port)),
            *("--to", "root@example.com", "--from", "a@example.com"),
        )
    assert status == 21
    shown(f"swaks --server HOST ({close})", said, f"<\\*\\* 554-.*{SPOKEN}")
    assert ("<-  221 " in said) is (close == "quit")


def test_one_daemon_answers_them_all(syslog: Syslog) -> None:
    """On one port, one after the other: nobody is answered in another's tongue."""
    need("curl", "openssl", "swaks")
    port = free_port()
    with running(syslog, "-p", "abused", *ALL, port=port) as daemon:
        for _ in range(3):
            assert "open proxy or relay" in run(*CURL, url(daemon))[1]
            assert "access denied" in run(*CURL, "-k", url(daemon, "https"))[1]
            assert run(*CURL, "-x", url(daemon, "socks5"), "http://127.0.0.1:9/")[0] == 97
            assert "554" in run(*CURL, url(daemon, "smtp"))[1]
        counters = daemon.settled(12)
        assert counters["accepted"] == counters["sent"] == 12
        assert counters["answered_http"] == counters["answered_tls"] == 3
        assert counters["answered_socks"] == 3
