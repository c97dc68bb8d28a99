"""The command line -> Settings: the 2003 form, and options.

    turnaway-fast [options] LOCATION LISTENER [LISTENER ...]
    turnaway-fast [options] -c FILE

argparse splits options from the rest; values.py says what a value may be, so that
all mistakes of a line are reported together, each naming its argument and what
would be right.  Nothing is bound, written or forked.
"""

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from turnaway import __version__, config, personas, values
from turnaway.draft import DEFAULT_PERSONA, Asked, Draft, ListenerDraft, Mistakes, Settling
from turnaway.exits import CONFIGURATION, USAGE, Failure
from turnaway.settings import DEFAULT_PORT, Identity, Limits, Settings

DESCRIPTION = "Turn unwanted connections away: say why in one message, and close."
EPILOG = (
    "A LISTENER is 'ADDRESS[:PORT] NAME' as one argument or ADDRESS[:PORT] and NAME as two."
    " ADDRESS is IPv4 (0.0.0.0 = all) or IPv6 ([::]:25 = all, IPv6 only); PORT is 1..65535,"
    f" default {DEFAULT_PORT}; NAME is the host name shown to clients. Without any, the"
    " configuration file says it all. Exit statuses are those of sysexits(3)."
)
EXAMPLE = "turnaway-fast 'Somecity, Earth' '0.0.0.0 mx.example.com'"

# Options whose value can be judged by itself.
CHECKS: dict[str, Callable[[str], object]] = {
    "code": values.code,
    "protocol": values.protocol,
    "close": values.close,
    "timewait": values.yes_or_no,
    "contact": values.printable,
    "bind": values.bind,
    "proxy-from": values.networks,
    "pidfile": values.path_or_none,
    "control": values.path_or_none,
    "sandbox": values.sandbox,
    "workers": values.workers,
    "max-held": lambda text: values.number(text, 0, 1 << 17),
    "max-held-source": lambda text: values.number(text, 1, 1 << 17),
    "log": values.log,
    "metrics": values.metrics,
    "log-connections": values.detail,
    "interval": lambda text: values.number(text, 1, 86400),
}


@dataclass
class Command:
    """What the command line asks for: a daemon, or one of the things that end at once."""

    settings: Settings
    check: bool = False
    show_banner: bool = False
    print_config: bool = False
    reread: Callable[[], Settings] | None = None  # None: no file to read again
    sources: list[str] | None = None  # the files that it reads
    became: dict[Asked, Identity | None] = field(default_factory=dict)

    def configuration(self) -> str:
        """The settings as a file that reads back as the same."""
        from turnaway.dump import dump  # the daemon has no use for it

        return dump(self.settings)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise _Unusable(message)


class _Unusable(Exception):
    """What argparse itself could not make sense of."""


class _PrintUnit(argparse.Action):
    """--print-unit KIND: print it and end, as --version does."""

    def __call__(self, parser: argparse.ArgumentParser, *said: Any) -> None:
        from turnaway import units  # the daemon has no use for it

        if (kind := said[1]) not in units.KINDS:
            known = ", ".join(units.KINDS)
            parser.error(f"argument --print-unit: expected one of {known}, got {kind!r}")
        sys.stdout.write(units.print_unit(kind, sys.argv[0]))
        parser.exit()


def parser(program: str) -> argparse.ArgumentParser:
    """The options; positionals are taken apart by parse()."""
    made = _Parser(
        prog=program,
        usage="%(prog)s [options] LOCATION LISTENER [LISTENER ...]\n       %(prog)s [options] [-c FILE]",
        description=DESCRIPTION,
        epilog=EPILOG,
        allow_abbrev=False,
        add_help=False,
    )
    made.add_argument("words", nargs="*", metavar="LOCATION LISTENER", help=argparse.SUPPRESS)
    made.add_argument(
        "-c",
        "--config",
        metavar="FILE",
        help=f"configuration file (default, without a LISTENER: {config.DEFAULT})",
    )
    message = made.add_argument_group("what is said")
    message.add_argument(
        "-p",
        "--persona",
        metavar="NAME",
        help=f"{', '.join(personas.NAMES)} (default: by the command's name, else"
        f" {DEFAULT_PERSONA})",
    )
    message.add_argument("--code", metavar="NNN", help="another reply code for the persona")
    message.add_argument("--single-line", action="store_true", help="the persona's one-line form")
    message.add_argument(
        "--protocol",
        metavar="NAME",
        help="smtp, http, tls, socks, auto (recognise it), text (by the port) or text:pop3,"
        " text:imap, text:ftp (default: the persona's)",
    )
    message.add_argument(
        "--close",
        metavar="POLICY",
        help="now, drain, quit or reset (default: the persona's)",
    )
    message.add_argument(
        "--timewait",
        metavar="yes|no",
        help="no: leave no TIME-WAIT behind; every client is reset after its banner (default: yes)",
    )
    message.add_argument(
        "--contact", metavar="TEXT", help="a URL or an address, for personas that say {contact}"
    )
    way = made.add_argument_group("how connections come")
    way.add_argument(
        "--bind",
        metavar="HOW",
        help="plain; freebind: to an address that is not here yet; transparent: to any that a"
        " firewall's TPROXY brings (default: plain)",
    )
    way.add_argument(
        "--proxy-from",
        metavar="NETWORKS",
        help="a PROXY header comes first, from these addresses or networks, with commas between"
        " them; nobody else is answered (default: from none)",
    )
    process = made.add_argument_group("the process")
    process.add_argument("-f", "--foreground", action="store_true", help="do not detach")
    process.add_argument(
        "-u",
        "--user",
        metavar="NAME",
        help="whom to become when started as root (default: turnaway, else nobody)",
    )
    process.add_argument(
        "-g", "--group", metavar="NAME", help="group to become (default: the user's)"
    )
    process.add_argument(
        "--keep-bind",
        action="store_true",
        help="keep the right to bind any port, also below 1024, and no other, for a reload",
    )
    process.add_argument("--chroot", metavar="DIR", help="root directory after the start")
    process.add_argument(
        "--pidfile",
        metavar="PATH|none",
        help="default: /var/run/COMMAND.pid, or $XDG_RUNTIME_DIR/COMMAND.pid when not root",
    )
    process.add_argument(
        "--control",
        metavar="PATH|none",
        help="control socket (default: /var/run/COMMAND.ctl, or in $XDG_RUNTIME_DIR)",
    )
    process.add_argument(
        "--sandbox",
        metavar="HOW",
        help="give up everything but answering after the start: on where the kernel can, off, or"
        " require (default: on)",
    )
    process.add_argument(
        "-w",
        "--workers",
        metavar="N|auto",
        help="threads that answer (default: auto, one a core)",
    )
    process.add_argument(
        "--max-held",
        metavar="N",
        help="sockets held for clients that talk early or must be waited for, 0..131072"
        f" (default: {Limits().held})",
    )
    process.add_argument(
        "--max-held-source",
        metavar="N",
        help=f"of them, for one address or IPv6 /64, 1..131072 (default: {Limits().share})",
    )
    log = made.add_argument_group("the log")
    log.add_argument(
        "--log",
        metavar="TARGET",
        help="syslog[:SOCKET], stderr, json (lines on standard error), json:/PATH or none"
        " (default: syslog)",
    )
    log.add_argument(
        "--log-connections",
        metavar="HOW",
        help="a line for connections: capped:N (the first N of a second), sample:N (every Nth),"
        " all or none (default: capped:20)",
    )
    log.add_argument(
        "--interval",
        metavar="SECONDS",
        help="time between two lines of totals, 1..86400 (default: 60)",
    )
    log.add_argument(
        "--metrics",
        metavar="WHERE",
        help="counters for Prometheus: ADDRESS:PORT, unix:/PATH, file:/PATH.prom (for the node"
        " exporter's textfile collector) or none (default: none)",
    )
    ends = made.add_argument_group("things that end at once")
    ends.add_argument(
        "-t",
        "--check",
        action="store_true",
        help="check everything, bind nothing; the status says it",
    )
    ends.add_argument(
        "--show-banner", action="store_true", help="print each listener's exact bytes"
    )
    ends.add_argument(
        "--print-config",
        action="store_true",
        help="print what would be in force as a configuration file",
    )
    ends.add_argument(
        "--print-unit",
        metavar="KIND",
        action=_PrintUnit,
        help="print the unit or rc script of systemd, systemd-socket, freebsd or openbsd",
    )
    ends.add_argument("-V", "--version", action="version", version=f"turnaway {__version__}")
    ends.add_argument("-h", "--help", action="help", help="show this help")
    return made


def program_name(argv0: str) -> str:
    """The command's own name, from the path it was called by."""
    name = os.path.basename(argv0)
    return "turnaway-fast" if name in ("__main__.py", "-m", "-c", "") else name


def parse(
    argv: Sequence[str],
    root: bool | None = None,
    file: Path | None = None,
    became: dict[Asked, Identity | None] | None = None,
) -> Command:
    """argv, with the program's path first -> Command.

    Raises Failure with every mistake of the line.  Its status is that of the
    mistakes when all are of one kind, else USAGE.  Prints and exits for -h and
    -V, as argparse does.  `root`: whether we were started as root (default:
    whether we are); `file`: the configuration file, wherever we are now; `became`:
    for a reload, what the first command says of it.
    """
    if root is None:
        root = os.geteuid() == 0
    command, used = _Reading(program_name(argv[0]), list(argv[1:])).command(root, file, became)
    if used is not None:
        command.reread = lambda: parse(argv, root, used, command.became).settings
    return command


class _Reading:
    """One command line being read; every mistake is kept until the end."""

    def __init__(self, program: str, arguments: list[str]) -> None:
        self.program = program
        self.mistakes = Mistakes()
        self.options = self._split(arguments)

    def _split(self, arguments: list[str]) -> argparse.Namespace:
        """Options from the rest; an option without its value is told and left out."""
        made = parser(self.program)
        while True:
            try:
                options, unknown = made.parse_known_intermixed_args(arguments)
            except _Unusable as error:
                self.mistakes.add(str(error))
                arguments = _without_faulty(arguments, str(error))
                continue
            for word in unknown:
                if word.startswith("-"):
                    self.mistakes.add(f"{word}: unknown option; see {self.program} --help")
                else:  # after an unknown option argparse takes no more words
                    options.words.append(word)
            return options

    def command(
        self, root: bool, file: Path | None, became: dict[Asked, Identity | None] | None
    ) -> tuple[Command, Path | None]:
        """What is asked for, and the configuration file it came from."""
        options = self.options
        line = self._line()
        files = Draft()
        if file is None and options.config is not None:
            file = Path(options.config).absolute()
        elif file is None and not options.words and config.DEFAULT.exists():
            file = config.DEFAULT
        if file is not None:
            files = config.read(file, self.mistakes, root)
        if not options.words and not files.listeners and not self.mistakes.found:
            where = (
                f"{options.config}: no [[listener]]" if options.config else "LOCATION is missing"
            )
            self.mistakes.add(
                f"{where}, and a LISTENER; for example: {EXAMPLE}",
                CONFIGURATION if options.config else USAGE,
            )
        settling = Settling(self.program, line, files, self.mistakes, root, became)
        settings = settling.settings()
        command = Command(settings, options.check, options.show_banner, options.print_config)
        command.became[settling.asked] = settings.identity
        if file is not None:
            shipped = (str(personas.HOME / f"{name}.toml") for name in personas.NAMES)
            listed = (path for one in settings.lists for path in one.files)
            command.sources = [*files.sources, *shipped, *listed]
        return command, file

    def _line(self) -> Draft:
        """The options that were given, and the listeners."""
        draft = Draft()
        for key, check in CHECKS.items():
            text = getattr(self.options, key.replace("-", "_"))
            if text is None:
                continue
            try:
                draft.put(key, check(text), f"--{key}")
            except ValueError as error:
                self.mistakes.add(f"--{key}: {error}")
        for key in ("user", "group", "chroot", "persona"):
            if (text := getattr(self.options, key)) is not None:
                draft.put(key, text, f"--{key}")
        for key in ("foreground", "single-line", "keep-bind"):
            if getattr(self.options, key.replace("-", "_")):
                draft.put(key, True, f"--{key}")
        self._listeners(draft, self.options.words)
        return draft

    def _listeners(self, draft: Draft, words: list[str]) -> None:
        if not words:
            return
        try:
            draft.put("location", values.printable(words[0]), "LOCATION")
        except ValueError as error:
            self.mistakes.add(f"LOCATION {words[0]!r}: {error}")
            draft.put("location", "Earth", "LOCATION")
        if len(words) == 1:
            self.mistakes.add(f"a LISTENER is missing after LOCATION; for example: {EXAMPLE}")
        rest = list(enumerate(words[1:], 1))
        while rest:
            number, word = rest.pop(0)
            where = f"LISTENER argument {number} {word!r}"
            spot, _, name = word.strip(" \t").replace("\t", " ").partition(" ")
            name = name.strip(" ")
            if not name and rest and not re.search(r"[ \t]", rest[0][1]):
                number, name = rest.pop(0)
            place = None
            try:
                place = values.place(spot)
            except ValueError as error:
                self.mistakes.add(f"{where}: {error}")
            if not name and place:
                self.mistakes.add(f"{where}: its NAME is missing; expected 'ADDRESS[:PORT] NAME'")
            if name:
                try:
                    values.host_name(name)
                except ValueError as error:
                    self.mistakes.add(f"LISTENER argument {number} {name!r}: {error}")
                    name = ""
            if place:
                # A name that is wrong is told already; the rest can still be checked.
                draft.listeners.append(ListenerDraft(where, [place], name or "name.invalid"))


def _without_faulty(words: list[str], said: str) -> list[str]:
    """The words without the option that argparse complained of, and its alone.

    What is dropped is told already; what stays is looked at for more mistakes.
    """
    faulty = re.match(r"argument ([^:]+):", said)
    names = faulty[1].split("/") if faulty else []
    letters = [name[1] for name in names if len(name) == 2]
    for at, word in enumerate(words):
        valueless = at + 1 == len(words) or words[at + 1].startswith("-")
        together = re.match(r"-[A-Za-z]", word) and any(letter in word for letter in letters)
        if ("=" in word or valueless) and (word.partition("=")[0] in names or together):
            return words[:at] + words[at + 1 :]
    return [word for word in words if not word.startswith("-")]


def report(program: str, failure: Failure) -> int:
    """Tell why the program ends, one line a reason; returns the exit status."""
    for reason in failure.reasons:
        print(_visible(f"{program}: {reason}"), file=sys.stderr)
    return failure.status


def _visible(text: str) -> str:
    """On one line, and nothing for a terminal to obey: what arguments said may be in it."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii")
        for letter in text
    )
