"""The command line -> Settings: the 2003 form, and options.

    turnaway-fast [options] LOCATION LISTENER [LISTENER ...]

argparse splits options from the rest; what a value may be is decided here, so
that all mistakes of a line are reported together, each naming its argument and
what would be right.  Nothing is bound, written or forked.
"""

import argparse
import grp
import ipaddress
import os
import pwd
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn, cast

from turnaway import __version__, answers, banner, personas
from turnaway.exits import DATA, NO_PERMISSION, NO_USER, USAGE, Failure
from turnaway.settings import (
    CLOSES,
    DEFAULT_PORT,
    PROTOCOLS,
    SYSLOG_SOCKET,
    Close,
    Detail,
    Identity,
    Limits,
    Listener,
    LogTarget,
    Persona,
    Settings,
)

DESCRIPTION = "Turn unwanted connections away: say why in one message, and close."
EPILOG = (
    "A LISTENER is 'ADDRESS[:PORT] NAME' as one argument or ADDRESS[:PORT] and NAME as two."
    " ADDRESS is IPv4 (0.0.0.0 = all) or IPv6 ([::]:25 = all, IPv6 only); PORT is 1..65535,"
    f" default {DEFAULT_PORT}; NAME is the host name shown to clients. Exit statuses are those"
    " of sysexits(3)."
)
EXAMPLE = "turnaway-fast 'Somecity, Earth' '0.0.0.0 mx.example.com'"
DEFAULT_PERSONA = "mail"  # 421: the one that loses nothing when it was a mistake
MOST_WORKERS = 64

_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*\.?|\[[A-Za-z0-9:.]+\]")
_ZONE = re.compile(r"[A-Za-z0-9_.-]{1,15}")  # IFNAMSIZ with its NUL is 16
_DETAIL = re.compile(r"(capped|sample):([1-9][0-9]{0,6})|(all|none)")


@dataclass
class Command:
    """What the command line asks for: a daemon, or one of the things that end at once."""

    settings: Settings
    check: bool = False
    show_banner: bool = False


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise _Unusable(message)


class _Unusable(Exception):
    """What argparse itself could not make sense of."""


def parser(program: str) -> argparse.ArgumentParser:
    """The options; positionals are taken apart by parse()."""
    made = _Parser(
        prog=program,
        usage="%(prog)s [options] LOCATION LISTENER [LISTENER ...]",
        description=DESCRIPTION,
        epilog=EPILOG,
        allow_abbrev=False,
        add_help=False,
    )
    made.add_argument("words", nargs="*", metavar="LOCATION LISTENER", help=argparse.SUPPRESS)
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
        default="yes",
        help="no: leave no TIME-WAIT behind; every client is reset after its banner (default: yes)",
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
    process.add_argument("--chroot", metavar="DIR", help="root directory after the start")
    process.add_argument(
        "--pidfile",
        metavar="PATH|none",
        help="default: /var/run/COMMAND.pid, or $XDG_RUNTIME_DIR/COMMAND.pid when not root",
    )
    process.add_argument(
        "-w",
        "--workers",
        metavar="N|auto",
        default="auto",
        help="threads that answer (default: auto, one a core)",
    )
    process.add_argument(
        "--max-held",
        metavar="N",
        default=str(Limits().held),
        help="sockets held for clients that talk early or must be waited for, 0..131072"
        f" (default: {Limits().held})",
    )
    process.add_argument(
        "--max-held-source",
        metavar="N",
        default=str(Limits().share),
        help=f"of them, for one address or IPv6 /64, 1..131072 (default: {Limits().share})",
    )
    log = made.add_argument_group("the log")
    log.add_argument(
        "--log",
        metavar="TARGET",
        default="syslog",
        help="syslog[:SOCKET], stderr or none (default: syslog)",
    )
    log.add_argument(
        "--log-connections",
        metavar="HOW",
        default="capped:20",
        help="a line for connections: capped:N (the first N of a second), sample:N (every Nth),"
        " all or none (default: capped:20)",
    )
    log.add_argument(
        "--interval",
        metavar="SECONDS",
        default="60",
        help="time between two lines of totals, 1..86400 (default: 60)",
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
    ends.add_argument("-V", "--version", action="version", version=f"turnaway {__version__}")
    ends.add_argument("-h", "--help", action="help", help="show this help")
    return made


def program_name(argv0: str) -> str:
    """The command's own name, from the path it was called by."""
    name = os.path.basename(argv0)
    return "turnaway-fast" if name in ("__main__.py", "-m", "-c", "") else name


def parse(argv: Sequence[str]) -> Command:
    """argv, with the program's path first -> Command.

    Raises Failure with every mistake of the line.  Its status is that of the
    mistakes when all are of one kind, else USAGE.  Prints and exits for -h and
    -V, as argparse does.
    """
    return _Reading(program_name(argv[0]), list(argv[1:])).command()


class _Reading:
    """One command line being read; every mistake is kept until the end."""

    def __init__(self, program: str, arguments: list[str]) -> None:
        self.program = program
        self.mistakes: list[tuple[int, str]] = []
        self.options = self._split(arguments)

    def wrong(self, said: str, status: int = USAGE) -> None:
        self.mistakes.append((status, said))

    def _split(self, arguments: list[str]) -> argparse.Namespace:
        """Options from the rest; an option without its value is told and left out."""
        made = parser(self.program)
        while True:
            try:
                options, unknown = made.parse_known_intermixed_args(arguments)
            except _Unusable as error:
                self.wrong(str(error))
                arguments = _without_faulty(arguments, str(error))
                continue
            for word in unknown:
                if word.startswith("-"):
                    self.wrong(f"{word}: unknown option; see {self.program} --help")
                else:  # after an unknown option argparse takes no more words
                    options.words.append(word)
            return options

    def command(self) -> Command:
        options = self.options
        persona = self._persona()
        code = self._code(persona)
        listeners = self._listeners(options.words, persona, code)
        for listener in listeners:
            for said in answers.mistakes(listener):
                if (DATA, said) not in self.mistakes:  # once, however many listeners
                    self.wrong(said, DATA)
        identity = self._identity()
        workers = self._workers(options.workers)
        foreground = options.foreground or "NOTIFY_SOCKET" in os.environ
        target, socket = self._log(options.log)
        if target == "stderr" and not foreground:
            self.wrong(
                "--log stderr: a daemon in the background has no standard error;"
                " expected --foreground with it, or --log syslog"
            )
        detail, number = self._detail(options.log_connections)
        limits = Limits(
            held=self._number("--max-held", options.max_held, 0, 1 << 17, 0),
            share=self._number("--max-held-source", options.max_held_source, 1, 1 << 17, 1),
            interval=self._number("--interval", options.interval, 1, 86400, 60),
        )
        if options.chroot is not None:
            self._chroot(options.chroot)
        pidfile = self._pidfile(options.pidfile)
        if self.mistakes:
            kinds = {status for status, _ in self.mistakes}
            status = kinds.pop() if len(kinds) == 1 else USAGE
            raise Failure(status, *(said for _, said in self.mistakes))
        return Command(
            Settings(
                program=self.program,
                listeners=tuple(listeners),
                workers=workers,
                foreground=foreground,
                identity=identity,
                chroot=options.chroot,
                pidfile=pidfile,
                log=target,
                syslog_socket=socket,
                detail=detail,
                detail_number=number,
                limits=limits,
            ),
            check=options.check,
            show_banner=options.show_banner,
        )

    def _persona(self) -> Persona | None:
        name = self.options.persona
        if name is None:
            name = next(
                (kind for kind in personas.NAMES if self.program.startswith(f"turnaway{kind}")),
                DEFAULT_PERSONA,
            )
        if name not in personas.NAMES:
            self.wrong(f"--persona: expected one of {', '.join(personas.NAMES)}, got {name!r}")
            return None
        try:
            return personas.shipped(name)
        except Failure as failure:
            for reason in failure.reasons:
                self.wrong(reason, failure.status)
            return None

    def _code(self, persona: Persona | None) -> int:
        text = self.options.code
        if text is None:
            return persona.code if persona else 0
        if not re.fullmatch(r"[0-9]{3}", text) or not banner.refuses(int(text)):
            self.wrong(f"--code: expected a reply code 4yz or 5yz (RFC 5321 4.2), got {text!r}")
            return persona.code if persona else 0
        return int(text)

    def _close(self) -> Close | None:
        name = self.options.close
        if name is None:
            return None
        for close in CLOSES:
            if close == name:
                return close
        self.wrong(f"--close: expected one of {', '.join(CLOSES)}, got {name!r}")
        return None

    def _protocol(self) -> str | None:
        name: str | None = self.options.protocol
        if name is None or name in PROTOCOLS or re.fullmatch(r"text:[a-z0-9]+", name):
            return name
        self.wrong(f"--protocol: expected one of {', '.join(PROTOCOLS)} or text:KIND, got {name!r}")
        return None

    def _timewait(self) -> bool:
        if self.options.timewait not in ("yes", "no"):
            self.wrong(f"--timewait: expected yes or no, got {self.options.timewait!r}")
        return bool(self.options.timewait != "no")

    def _listeners(self, words: list[str], persona: Persona | None, code: int) -> list[Listener]:
        if not words:
            self.wrong(f"LOCATION is missing, and a LISTENER; for example: {EXAMPLE}")
            return []
        location = words[0]
        if not location.strip() or not all(" " <= letter <= "~" for letter in location):
            self.wrong(
                f"LOCATION {location!r}: expected printable ASCII, such as 'Somecity, Earth'"
            )
            location = "Earth"
        if len(words) == 1:
            self.wrong(f"a LISTENER is missing after LOCATION; for example: {EXAMPLE}")
        close, protocol, timewait = self._close(), self._protocol(), self._timewait()
        listeners: list[Listener] = []
        rest = list(enumerate(words[1:], 1))
        while rest:
            number, word = rest.pop(0)
            where = f"LISTENER argument {number} {word!r}"
            place, _, name = word.strip(" \t").replace("\t", " ").partition(" ")
            name = name.strip(" ")
            if not name and rest and not re.search(r"[ \t]", rest[0][1]):
                number, name = rest.pop(0)
            address, port = "", 0
            try:
                address, port = parse_place(place)
            except ValueError as error:
                self.wrong(f"{where}: {error}")
            if not name and address:
                self.wrong(f"{where}: its NAME is missing; expected 'ADDRESS[:PORT] NAME'")
            if name and (not _NAME.fullmatch(name) or len(name) > 255):
                self.wrong(
                    f"LISTENER argument {number} {name!r}: expected a host name, such as mx.example.com"
                )
                name = ""
            if not address:
                continue
            name = name or "name.invalid"  # told already; the rest can still be checked
            if persona is None:
                continue
            listener = Listener(
                address,
                port,
                name,
                location,
                persona,
                code,
                self.options.single_line,
                close or persona.close,
                protocol or persona.protocol,
                timewait,
            )
            if any(other.place == listener.place for other in listeners):
                self.wrong(f"{where}: {listener.place} is given twice; once is enough")
            listeners.append(listener)
        return listeners

    def _identity(self) -> Identity | None:
        user, group = self.options.user, self.options.group
        if os.geteuid() != 0:
            mine = pwd.getpwuid(os.geteuid()).pw_name if _known(os.geteuid()) else None
            for option, value, same in (("--user", user, mine), ("--group", group, None)):
                if value is not None and value != same:
                    self.wrong(
                        f"{option} {value}: only root can become somebody else; start as root,"
                        " or leave it out",
                        NO_PERMISSION,
                    )
            return None
        entry = None
        for name in (user,) if user is not None else ("turnaway", "nobody"):
            try:
                entry = pwd.getpwnam(name)
                break
            except (KeyError, ValueError):  # ValueError: not even text
                continue
        if entry is None:
            self.wrong(
                f"--user {user}: no such user; create it, or name another"
                if user is not None
                else "--user: neither turnaway nor nobody exists; create one, or name another",
                NO_USER,
            )
            return None
        gid = entry.pw_gid
        if group is not None:
            try:
                gid = grp.getgrnam(group).gr_gid
            except (KeyError, ValueError):
                self.wrong(f"--group {group}: no such group; create it, or name another", NO_USER)
        if entry.pw_uid == 0 or gid == 0:
            self.wrong(
                f"--user {entry.pw_name}: refusing to serve as root; name a user and a group"
                " without privileges, such as nobody"
            )
        return Identity(entry.pw_name, entry.pw_uid, gid)

    def _workers(self, text: str) -> int:
        if text == "auto":
            return min(len(os.sched_getaffinity(0)), MOST_WORKERS)
        return int(self._number("--workers", text, 1, MOST_WORKERS, 1, " or auto"))

    def _number(
        self, option: str, text: str, least: int, most: int, otherwise: int, also: str = ""
    ) -> int:
        if re.fullmatch(r"[0-9]{1,9}", text) and least <= int(text) <= most:
            return int(text)
        self.wrong(f"{option}: expected {least}..{most}{also}, got {text!r}")
        return otherwise

    def _log(self, text: str) -> tuple[LogTarget, str]:
        target, colon, socket = text.partition(":")
        if target == "syslog" and not colon:
            return "syslog", SYSLOG_SOCKET
        if target == "syslog" and socket.startswith("/"):
            if len(os.fsencode(socket)) > 107:  # sun_path, unix(7)
                self.wrong(f"--log: expected a socket's path of at most 107 octets, got {socket!r}")
            return "syslog", socket
        if text in ("stderr", "none"):
            return cast(LogTarget, text), SYSLOG_SOCKET
        self.wrong(f"--log: expected syslog, syslog:/SOCKET, stderr or none, got {text!r}")
        return "none", SYSLOG_SOCKET

    def _detail(self, text: str) -> tuple[Detail, int]:
        found = _DETAIL.fullmatch(text)
        if found is None:
            self.wrong(
                f"--log-connections: expected capped:N, sample:N (N 1..9999999), all or none,"
                f" got {text!r}"
            )
            return "none", 0
        return cast(Detail, found[1] or found[3]), int(found[2] or 0)

    def _chroot(self, path: str) -> None:
        if os.geteuid() != 0:
            self.wrong(
                f"--chroot {path}: only root can; start as root, or leave it out", NO_PERMISSION
            )
        elif not os.path.isabs(path) or not os.path.isdir(path):
            self.wrong(f"--chroot {path}: expected the absolute path of a directory")

    def _pidfile(self, text: str | None) -> str | None:
        if text == "none":
            return None
        if text == "":
            self.wrong("--pidfile: expected a path or none, got ''")
        if text is not None:
            return os.path.abspath(text)
        if os.geteuid() == 0:
            return f"/var/run/{self.program}.pid"
        runtime = os.environ.get("XDG_RUNTIME_DIR")
        if runtime is None or not os.path.isabs(runtime):  # as the XDG specification says
            return None
        return os.path.join(runtime, f"{self.program}.pid")


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


def _known(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def parse_place(text: str) -> tuple[str, int]:
    """ADDRESS[:PORT] -> (address, port).

    IPv4 with or without a port, IPv6 in brackets with or without one, or bare
    IPv6 on the default port.  Raises ValueError saying what would be right.
    """
    bracketed = re.fullmatch(r"\[([^\]]*)\](?::(.*))?", text)
    if bracketed:
        host, port = bracketed[1], bracketed[2]
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    else:
        host, port = text, None
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        raise ValueError(
            f"{host!r} is not an address; expected such as 0.0.0.0, 192.0.2.25:587 or [2001:db8::1]:25"
        ) from None
    if bracketed and address.version == 4:
        raise ValueError(f"{text!r}: IPv4 stands without brackets; expected {host}:PORT")
    if address.version == 6:
        if address.ipv4_mapped:  # an IPv6 listener is IPv6 only
            raise ValueError(f"{host!r} is an IPv4 address; expected {address.ipv4_mapped}")
        if address.scope_id is not None and not _ZONE.fullmatch(address.scope_id):
            raise ValueError(
                f"{host!r}: after the % expected an interface's name, such as fe80::1%eth0"
            )
    if port is None:
        return str(address), DEFAULT_PORT
    if not re.fullmatch(r"[0-9]{1,5}", port) or not 1 <= int(port) <= 65535:
        raise ValueError(f"port: expected 1..65535, got {port!r}")
    return str(address), int(port)


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
