"""The HTML page in a real browser: what it shows, light, dark and narrow.

Owns: nothing of ours; headless Chromium is the oracle.  TURNAWAY_SCREENSHOTS
names a folder to keep the pictures in (docs/images has one of them).
"""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
import zlib
from pathlib import Path

import pytest
from running import Daemon, Syslog, need, running

pytestmark = pytest.mark.timeout(300)


def chromium(profile: Path, *options: str, page: str) -> str:
    """What it wrote to standard output.  It calls nobody else."""
    ended = subprocess.run(
        [
            *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
            *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
            *("--disable-sync", "--hide-scrollbars", f"--user-data-dir={profile}"),
            *options,
            page,
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def url(daemon: Daemon) -> str:
    return f"http://{daemon.address}:{daemon.port}/"


def pixels(path: Path) -> tuple[int, int, list[bytes]]:
    """(width, height, rows of RGB or RGBA) of a PNG as Chromium writes it."""
    octets = path.read_bytes()
    assert octets.startswith(b"\x89PNG\r\n\x1a\n")
    at, data = 8, b""
    width = height = depth = 0
    while at < len(octets):
        length, kind = struct.unpack(">I4s", octets[at : at + 8])
        body = octets[at + 8 : at + 8 + length]
        if kind == b"IHDR":
            width, height, _, colour = struct.unpack(">IIBB", body[:10])
            depth = {2: 3, 6: 4}[colour]
        elif kind == b"IDAT":
            data += body
        at += 12 + length
    return width, height, unfiltered(zlib.decompress(data), width * depth, depth)


def unfiltered(data: bytes, stride: int, depth: int) -> list[bytes]:
    """PNG's five row filters (PNG 9.2), undone."""
    rows: list[bytes] = []
    above = bytearray(stride)
    for start in range(0, len(data), stride + 1):
        kind, row = data[start], bytearray(data[start + 1 : start + 1 + stride])
        for x in range(stride):
            left = row[x - depth] if x >= depth else 0
            corner = above[x - depth] if x >= depth else 0
            row[x] = (row[x] + predicted(kind, left, above[x], corner)) & 255
        rows.append(bytes(row))
        above = row
    return rows


def predicted(kind: int, left: int, above: int, corner: int) -> int:
    if kind < 4:
        return (0, left, above, (left + above) // 2)[kind]
    guess = left + above - corner
    return min((left, above, corner), key=lambda one: abs(guess - one))


def test_the_page_says_why(syslog: Syslog, tmp_path: Path) -> None:
    need("chromium")
    with running(syslog, "-p", "abused") as daemon:
        said = chromium(tmp_path / "profile", "--dump-dom", page=url(daemon))
    assert "<title>Refused: open proxy or relay</title>" in said
    assert "<h1>Refused: open proxy or relay</h1>" in said
    assert "Please restrict who may use it" in said
    assert re.search(r"<footer>mx\.example\.com, Somecity, Earth", said)


@pytest.mark.parametrize(
    ("name", "size", "options", "light"),
    [
        ("refusal-page.png", (900, 620), (), True),
        ("refusal-page-dark.png", (900, 620), ("--blink-settings=preferredColorScheme=0",), False),
        ("refusal-page-narrow.png", (500, 800), (), True),
    ],
)
def test_a_picture_of_the_page(
    syslog: Syslog,
    tmp_path: Path,
    name: str,
    size: tuple[int, int],
    options: tuple[str, ...],
    light: bool,
) -> None:
    """Text on a plain ground, within the window, light or dark as the reader has it."""
    need("chromium")
    picture = tmp_path / name
    with running(syslog, "-p", "abused") as daemon:
        chromium(
            tmp_path / "profile",
            *(f"--screenshot={picture}", f"--window-size={size[0]},{size[1]}"),
            *options,
            page=url(daemon),
        )
    width, height, rows = pixels(picture)
    assert (width, height) == size
    depth = len(rows[0]) // width
    ground = rows[0][:3]
    assert (sum(ground) > 600) is light
    inked = [
        row for row in rows if any(row[x : x + 3] != ground for x in range(0, len(row), depth))
    ]
    assert 80 < len(inked) < height * 0.8  # some lines of text, and room around them
    for row in rows:  # nothing runs out at the right
        assert row[-depth : -depth + 3 if depth > 3 else None] == ground
    if folder := os.environ.get("TURNAWAY_SCREENSHOTS"):
        shutil.copy(picture, folder)
