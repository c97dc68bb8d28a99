"""Runs one of the small servers written here: `python -m bench.peers.serve plain --port N`.

Owns their listening socket and their banner. Ends by signal only.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import socket
import time

BACKLOG = 65_535

# The 2003 text of the blocked persona, so that all peers send the same octets.
BANNER = (
    "554-{name} ESMTP TurnAway v0.1.6 at {date};\r\n"
    "554-in Somecity, Earth.  Your mailserver connection is being denied.  Abusive\r\n"
    "554-forwarding of viri and/or bogus virus reports and/or bounces from this host\r\n"
    "554-are the reason.  You have been running a common, but broken mail setup.\r\n"
    "554-Please do NOT send these to forged addresses.  Rather, reject such\r\n"
    "554 while the ACTUAL forger is still connected.  Closing connection.\r\n"
)


def banner(name: str = "mx.example.com") -> bytes:
    """The 554 banner with the date of now."""
    date = time.strftime("%a, %d %b %Y %H:%M:%S +0000 (UTC)", time.gmtime())
    return BANNER.format(name=name, date=date).encode("ascii")


def listener(port: int) -> socket.socket:
    """A listening socket on 127.0.0.1 with as long a queue as the kernel allows."""
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.setblocking(False)
    made.bind(("127.0.0.1", port))
    made.listen(BACKLOG)
    return made


async def serve_asyncio(port: int) -> None:
    """What one writes in an afternoon."""
    text = banner()

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(text)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", port, backlog=BACKLOG)
    await server.serve_forever()


def main() -> None:
    """Read the arguments and serve for ever."""
    parser = argparse.ArgumentParser(prog="python -m bench.peers.serve")
    parser.add_argument("server", choices=("plain", "floor", "asyncio"))
    parser.add_argument("--port", type=int, required=True)
    chosen = parser.parse_args()
    if chosen.server == "asyncio":
        asyncio.run(serve_asyncio(chosen.port))
        return
    module = importlib.import_module(f"bench.peers.{chosen.server}")
    listening = listener(chosen.port)
    if chosen.server == "plain":
        module.serve(listening.fileno(), banner())
    else:
        module.serve(listening.fileno())


if __name__ == "__main__":
    main()
