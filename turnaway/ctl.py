"""`turnawayctl`: ask a running daemon, or tell it what to do.

Owns: the command's arguments, and how replies look on a terminal and in a pipe.
The protocol is control.py's; `firewall` is that of firewall/command.py, and asks
no daemon.  Exit statuses are those of sysexits(3): 64 for a wrong command line, 65
for lists or rules that are wrong, 69 when no daemon answers, 71 when a program that
was run failed, 73 when a file cannot be made, 75 when too many ask at once, 76 when
something else answers, 77 when not permitted, 78 for a refused reload or a host that
rules do not fit.
"""

import argparse
import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from turnaway import __version__
from turnaway.control import VERSION
from turnaway.exits import NO_PERMISSION, RUNNING, SOFTWARE, UNAVAILABLE, USAGE, Failure
from turnaway.firewall import command as firewall

if TYPE_CHECKING:
    from rich.console import RenderableType

PROGRAM = "turnawayctl"
COMMAND = "turnaway-fast"
PATIENCE = 10.0  # seconds for a reply; a reload may take them
RETRY_SECONDS = 5.0  # while too many ask at once
REPLY_OCTETS = 1 << 24
SOURCES = 10  # rows of `top`

Reply = dict[str, Any]


class Connection:
    """One request, and the lines that answer it."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._buffer = b""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(PATIENCE)
        try:
            self._socket.connect(path)
        except PermissionError:
            raise Failure(
                NO_PERMISSION, f"{path}: not permitted; be root or the daemon's user"
            ) from None
        except OSError as error:
            raise Failure(
                UNAVAILABLE,
                f"{path}: no daemon answers ({error.strerror or error}); is it running, and with"
                " this --control?",
            ) from None

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def ask(self, request: Reply) -> Reply:
        """The reply.  Raises Failure, also for what the daemon refuses."""
        with contextlib.suppress(OSError):  # whoever is turned away may still read why
            self._socket.sendall(json.dumps({"v": VERSION, **request}).encode("ascii") + b"\n")
        reply = self.line()
        if reply is None:
            raise Failure(UNAVAILABLE, f"{self.path}: the daemon went away without an answer")
        if reply.get("v") != VERSION:
            raise self._strange()
        if reply.get("ok") is not True:
            reasons, status = reply.get("reasons"), reply.get("status")
            if not isinstance(reasons, list) or not isinstance(status, int):
                raise self._strange()
            raise Failure(status, *map(str, reasons))
        return reply

    def stay(self) -> None:
        """What comes now may take as long as it likes."""
        self._socket.settimeout(None)

    def line(self) -> Reply | None:
        """The next line; None at the end."""
        while b"\n" not in self._buffer:
            try:
                octets = self._socket.recv(1 << 16)
            except TimeoutError:
                raise Failure(
                    UNAVAILABLE, f"{self.path}: no answer within {PATIENCE:.0f} s"
                ) from None
            except OSError:
                octets = b""
            if not octets:
                return None
            self._buffer += octets
            if len(self._buffer) > REPLY_OCTETS:
                raise self._strange()
        line, _, self._buffer = self._buffer.partition(b"\n")
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            raise self._strange() from None
        if not isinstance(found, dict):
            raise self._strange()
        return found

    def _strange(self) -> Failure:
        return Failure(os.EX_PROTOCOL, f"{self.path}: not the daemon this command knows")


def ask(path: str, do: str, **request: Any) -> Reply:
    """One request, again while too many others ask."""
    until = time.monotonic() + RETRY_SECONDS
    while True:
        try:
            with Connection(path) as one:
                return one.ask({"do": do, **request})
        except Failure as failure:
            if failure.status != RUNNING or time.monotonic() > until:
                raise
        time.sleep(0.1)


# What is printed


def say(text: str) -> None:
    """On one line, and nothing for a terminal to obey."""
    print("".join(letter if letter.isprintable() else "?" for letter in text), flush=True)


def span(seconds: float) -> str:
    """A time such as `3d 4h`, `12m 5s`, `8s`."""
    left = int(seconds)
    parts = []
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        if left >= length:
            parts.append(f"{left // length}{unit}")
            left %= length
    return " ".join(parts[:2]) or "0s"


def table(rows: Sequence[Sequence[object]], numbers: Sequence[int] = ()) -> list[str]:
    """Columns of one width each, two spaces apart; those in `numbers` to the right."""
    texts = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if column in numbers else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in texts
    ]


def status(options: argparse.Namespace) -> int:
    reply = ask(options.socket, "status")
    workers = reply["workers"]
    user = " with ".join([reply["user"], *reply["capabilities"]])
    say(f"{reply['program']} {reply['version']}, pid {reply['pid']}, user {user}")
    say(f"sandbox   {reply['sandbox']}")
    say(f"uptime    {span(reply['uptime'])}")
    states = [
        one["state"]
        + (f" ({one['resting']} resting)" if one["resting"] else "")
        + (" (stress)" if one["stress"] else "")
        for one in workers
    ]
    say(f"workers   {len(workers)}: {', '.join(states)}")
    if reply["retiring"]:
        say(f"retiring  {reply['retiring']} older generation(s), until nobody is held any more")
    say(f"held      {reply['held']} of {reply['held_most']} sockets")
    lost = f"{reply['lines_lost']} lines lost, {reply['records_dropped']} records dropped"
    say(f"log       {reply['log']}, connections {reply['log_connections']}; {lost}")
    if last := reply["reload"]:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(last["at"]))
        say(f"reload    {'done' if last['ok'] else 'REFUSED'} at {when}")
        for told in last["told"]:
            say(f"          {told}")
    else:
        say("reload    none yet")
    say("")
    rows = [["LISTENER", "NAME", "PERSONA", "PROTOCOL", "CODE", "CLOSE", "STATE", "SOCKET", "LOG"]]
    for one in reply["listeners"]:
        state = "paused" if one["paused"] else "open"
        rows.append(
            [one[key] for key in ("place", "name", "persona", "protocol", "code", "close")]
            + [state, one["socket"] or "own", one["log_connections"] or ""]
        )
    # What no listener has of its own needs no column.
    if not any(one["log_connections"] for one in reply["listeners"]):
        rows = [row[:-1] for row in rows]
    if not any(one["socket"] for one in reply["listeners"]):
        rows = [row[:7] + row[8:] for row in rows]
    for line in table(rows):
        say(line)
    return 0


def stats(options: argparse.Namespace) -> int:
    reply = ask(options.socket, "stats")
    if options.json:
        del reply["v"], reply["ok"]
        print(json.dumps(reply, indent=2))
        return 0
    columns = [*reply["listeners"], {"place": "total", "counters": reply["total"]}]
    names = [name for name, count in reply["total"].items() if count or name == "accepted"]
    rows = [["", *(one["place"] for one in columns)]]
    rows += [[name, *(one["counters"].get(name, 0) for one in columns)] for name in names]
    for line in table(rows, range(1, len(columns) + 1)):
        say(line)
    say(f"in {span(reply['uptime'])}; counters that are 0 everywhere are left out")
    say(f"log: {reply['lines_lost']} lines lost, {reply['records_dropped']} records dropped")
    return 0


class Rates:
    """Two replies to `top`, and what happened between them."""

    def __init__(self, before: Reply, now: Reply) -> None:
        self.now = now
        self.seconds = max(now["clock"] - before["clock"], 0.001)
        self._before = {_key(one): one for one in before["listeners"]}
        self.total = self._of(now["total"], before["total"])
        self.listeners = [
            (one, self._of(one, self._before.get(_key(one), {}))) for one in now["listeners"]
        ]
        self.personas: dict[str, dict[str, float]] = {}
        for one, rates in self.listeners:
            sums = self.personas.setdefault(one["persona"], dict.fromkeys(rates, 0.0))
            for name, rate in rates.items():
                sums[name] += rate

    def _of(self, now: Reply, before: Reply) -> dict[str, float]:
        # A daemon that was started anew counts from 0.
        return {
            name: max(0, now[name] - before.get(name, 0)) / self.seconds
            for name in ("connections", "sent", "early", "errors")
        }

    def line(self) -> str:
        """One line for an interval."""
        words = [time.strftime("%H:%M:%S")]
        words += [f"{name}={rate:.1f}/s" for name, rate in self.total.items()]
        words.append(f"held={self.now['held']}")
        if self.now["resting"]:
            words.append(f"resting={self.now['resting']}")
        if self.now["stress"]:
            words.append("stress")
        paused = [one["place"] for one, _ in self.listeners if one["paused"]]
        if paused:
            words.append(f"paused={','.join(paused)}")
        for name in ("sources", "networks"):
            if self.now[name]:
                key, count = self.now[name][0]
                words.append(f"busiest-{name[:-1]}=[{key}]:{count / self.now['seconds']:.1f}/s")
        return " ".join(words)


def _key(listener: Reply) -> tuple[str, str, str]:
    return listener["place"], listener["name"], listener["persona"]


def screen(rates: Rates, socket_path: str) -> "RenderableType":
    """The rates as tables; needs rich."""
    from rich.columns import Columns
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    now = rates.now
    head = Text.assemble(
        (PROGRAM, "bold"),
        f" {time.strftime('%H:%M:%S')}  ",
        (f"{rates.total['connections']:,.1f} connections/s", "bold"),
        f"  {now['total']['connections']:,} in all  held {now['held']:,} of {now['held_most']:,}",
        ("  STRESS" if now["stress"] else "", "bold red"),
        (f"  {now['resting']} resting" if now["resting"] else "", "bold red"),
        f"\n{socket_path}; Control-C ends",
    )

    def rated(title: str, rows: list[tuple[list[Text], dict[str, float]]], names: str) -> Table:
        made = Table(title=title, title_justify="left", box=None, pad_edge=False)
        for name in names.split():
            made.add_column(name)
        for name in ("conn/s", "sent/s", "early/s", "errors/s"):
            made.add_column(name, justify="right")
        for words, row in rows:
            made.add_row(*words, *(f"{rate:,.1f}" for rate in row.values()))
        return made

    listeners = rated(
        "by listener",
        [
            (
                [
                    Text(one["place"]),
                    Text(one["name"]),
                    Text(one["persona"]),
                    Text("paused", "yellow") if one["paused"] else Text("open"),
                ],
                row,
            )
            for one, row in rates.listeners
        ],
        "listener name persona state",
    )
    personas = rated(
        "by persona", [([Text(name)], row) for name, row in rates.personas.items()], "persona"
    )
    busiest = []
    for title in ("sources", "networks"):
        made = Table(
            title=f"busiest {title}, last {now['seconds']:.0f} s",
            title_justify="left",
            box=None,
            pad_edge=False,
        )
        made.add_column(title[:-1], min_width=20)
        made.add_column("count", justify="right")
        made.add_column("per s", justify="right")
        for name, count in now[title][:SOURCES]:
            made.add_row(Text(name), f"{count:,}", f"{count / max(now['seconds'], 1):,.1f}")
        busiest.append(made)
    return Group(head, "", listeners, "", personas, "", Columns(busiest, padding=(0, 4)))


def _samples(options: argparse.Namespace) -> Iterator[Rates]:
    """Rates over each interval, `count` of them or without end."""
    before = ask(options.socket, "top")
    made = 0
    while options.count is None or made < options.count:
        time.sleep(options.interval)
        now = ask(options.socket, "top")
        yield Rates(before, now)
        before = now
        made += 1


def top(options: argparse.Namespace) -> int:
    live = None
    if sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb" and not options.plain:
        with contextlib.suppress(ImportError):
            from rich.live import Live as live  # type: ignore[assignment]  # noqa: N813
    if live is None:
        for rates in _samples(options):
            say(rates.line())
        return 0
    with live(auto_refresh=False, screen=options.count is None) as view:
        first = ask(options.socket, "top")
        view.update(screen(Rates(first, first), options.socket), refresh=True)
        for rates in _samples(options):
            view.update(screen(rates, options.socket), refresh=True)
    return 0


def tail(options: argparse.Namespace) -> int:
    chosen = {
        key: value
        for key in ("source", "persona", "listener")
        if (value := getattr(options, key)) is not None
    }
    with Connection(options.socket) as one:
        one.ask({"do": "tail", **chosen})
        one.stay()
        while (message := one.line()) is not None:
            moment = time.strftime("%Y-%m-%dT%H:%M:%S")
            if "record" in message:
                say(f"{moment} {message['record']}")
            elif "lost" in message:
                sys.stdout.flush()
                print(f"{moment} {message['lost']} records lost", file=sys.stderr, flush=True)
    raise Failure(UNAVAILABLE, f"{options.socket}: the daemon ended")


def lookup(options: argparse.Namespace) -> int:
    reply = ask(options.socket, "lookup", address=options.address)
    address, name = reply["address"], reply["list"]
    if name is None:
        say(f"{address} is on no list")
    else:
        say(f"{address} is on {'allow ' if reply['allow'] else ''}list {name}: {reply['where']}")
    if reply["allow"]:
        say("It is wanted, and is told nothing; a connection from it was diverted by mistake.")
        return 0
    if not reply["told"]:
        say(f"No listener takes {'IPv6' if ':' in address else 'IPv4'}.")
    alike: dict[tuple[str, ...], list[str]] = {}
    for one in reply["told"]:
        key = tuple(one[word] for word in ("name", "persona", "protocol", "code", "text"))
        alike.setdefault(key, []).append(one["place"])
    for (host, persona, protocol, code, text), places in alike.items():
        say(f"{', '.join(places)} {host} as {persona}, {protocol} {code}:")
        for line in text.splitlines():
            say(f"    {line}")
    return 0


def reload(options: argparse.Namespace) -> int:
    for told in ask(options.socket, "reload")["told"]:
        say(told)
    say("reloaded")
    return 0


def pause(options: argparse.Namespace) -> int:
    return _pause(options, "pause", "paused")


def resume(options: argparse.Namespace) -> int:
    return _pause(options, "resume", "resumed")


def _pause(options: argparse.Namespace, do: str, done: str) -> int:
    reply = ask(options.socket, do, listener=options.listener)
    for place in reply["listeners"]:
        say(f"{done} {place}")
    return 0


def loglevel(options: argparse.Namespace) -> int:
    chosen = {
        key: value for key in ("how", "listener") if (value := getattr(options, key)) is not None
    }
    reply = ask(options.socket, "loglevel", **chosen)
    if "listener" not in chosen:
        say(reply["log_connections"])
    for line in table(list(reply["own"].items())):
        say(line)
    return 0


# The command line


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise Failure(USAGE, f"{message}; see {self.prog} --help")


def _interval(text: str) -> float:
    seconds = float(text)
    if not 0.1 <= seconds <= 86400:
        raise argparse.ArgumentTypeError(f"expected 0.1..86400, got {text!r}")
    return seconds


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {text!r}")
    return count


_interval.__name__, _count.__name__ = "number of seconds", "number"  # argparse names them so


def parser() -> argparse.ArgumentParser:
    where = _Parser(add_help=False)
    where.add_argument(
        "-s",
        "--socket",
        metavar="PATH",
        default=argparse.SUPPRESS,
        help="the daemon's control socket (default: where one answers of $XDG_RUNTIME_DIR, unless"
        " root, /var/run/COMMAND.ctl and /run/COMMAND/COMMAND.ctl)",
    )
    where.add_argument(
        "--name",
        metavar="COMMAND",
        default=argparse.SUPPRESS,
        help=f"the name that the daemon was started by (default: {COMMAND})",
    )
    made = _Parser(
        prog=PROGRAM,
        description="Ask a running turnaway-fast, or tell it what to do.",
        epilog="Exit statuses are those of sysexits(3): 69 no daemon answers, 77 not permitted,"
        " 78 reload refused.",
        parents=[where],
        allow_abbrev=False,
    )
    made.add_argument("-V", "--version", action="version", version=f"turnaway {__version__}")
    commands = made.add_subparsers(metavar="COMMAND", required=True)

    def command(
        name: str, does: Callable[[argparse.Namespace], int], help: str
    ) -> argparse.ArgumentParser:
        one: argparse.ArgumentParser = commands.add_parser(
            name, help=help, description=help, parents=[where], allow_abbrev=False
        )
        one.set_defaults(does=does)
        return one

    command("status", status, "how the daemon is: workers, listeners, log, last reload")
    one = command("stats", stats, "counters, for each listener and in all")
    one.add_argument("--json", action="store_true", help="every counter, as JSON")
    one = command("top", top, "rates, busiest sources and networks, as they change")
    one.add_argument(
        "-i", "--interval", metavar="SECONDS", type=_interval, default=1.0, help="default: 1"
    )
    one.add_argument("-n", "--count", metavar="N", type=_count, help="end after N intervals")
    one.add_argument("--plain", action="store_true", help="a line an interval, as in a pipe")
    one = command("tail", tail, "connection records as they come")
    one.add_argument("--source", metavar="ADDRESS[/BITS]", help="only from this address or network")
    one.add_argument("--persona", metavar="NAME", help="only those told this")
    one.add_argument("--listener", metavar="LISTENER", help="only at this place or name")
    one = command("lookup", lookup, "which list an address is on, and what it would be told")
    one.add_argument("address", metavar="ADDRESS", help="of IPv4 or IPv6")
    command("reload", reload, "read the configuration anew, and tell how that went")
    for name, does, help in (
        ("pause", pause, "take no connections on a listener; they wait in its queue"),
        ("resume", resume, "take connections on a listener again"),
    ):
        one = command(name, does, help)
        one.add_argument("listener", metavar="LISTENER", help="its place, or its name")
    one = command("loglevel", loglevel, "show which connections are logged, or change it")
    one.add_argument(
        "how",
        metavar="HOW",
        nargs="?",
        help="capped:N, sample:N, all or none, until a reload",
    )
    one.add_argument(
        "listener",
        metavar="LISTENER",
        nargs="?",
        help="for this place or name alone (default: all listeners without a setting of their own)",
    )
    says = "rules that divert listed sources to the daemon: made, checked, applied"
    one = commands.add_parser("firewall", help=says, description=says, allow_abbrev=False)
    firewall.install(one, _Parser)
    return made


def default_sockets(name: str) -> list[str]:
    """Where a daemon of this name may have its control socket: one of ours, one that
    was started as root, and one of the systemd unit."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    ours = os.geteuid() != 0 and os.path.isabs(runtime)
    return [
        *([os.path.join(runtime, f"{name}.ctl")] if ours else []),
        f"/var/run/{name}.ctl",
        f"/run/{name}/{name}.ctl",
    ]


def find_socket(name: str) -> str:
    """The one of them where a daemon answers.  Raises Failure for none and for two."""
    paths = default_sockets(name)
    answering, forbidden = [], []
    for path in paths:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as one:
            try:
                one.connect(path)
            except PermissionError:
                forbidden.append(path)
            except OSError:
                pass  # nothing there, or what a killed daemon left
            else:
                answering.append(path)
    if len(answering) > 1:
        raise Failure(
            USAGE, f"two daemons answer, at {' and '.join(answering)}; choose with --socket PATH"
        )
    if not answering and not forbidden:
        raise Failure(
            UNAVAILABLE,
            f"no {name} answers at {' or '.join(paths)}; is it running? With a --control of its"
            " own give --socket PATH, with another name --name COMMAND",
        )
    return (answering or forbidden)[0]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    try:
        options = parser().parse_args(argv)
        name = getattr(options, "name", COMMAND)
        if "/" in name:
            raise Failure(USAGE, "--name: expected the name of a command, without its path")
        if not hasattr(options, "offline"):  # what asks no daemon needs no socket
            options.socket = getattr(options, "socket", None) or find_socket(name)
        does: Callable[[argparse.Namespace], int] = options.does
        return does(options)
    except Failure as failure:
        for reason in failure.reasons:
            text = "".join(letter if letter.isprintable() else "?" for letter in reason)
            print(f"{PROGRAM}: {text}", file=sys.stderr)
        return failure.status
    except KeyboardInterrupt:
        return 0  # the way to end `top` and `tail`
    except BrokenPipeError:
        # `| head` has enough; nothing is left to be flushed at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        print(f"{PROGRAM}: a reply this command does not know: {error!r}", file=sys.stderr)
        return SOFTWARE
