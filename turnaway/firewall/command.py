"""`turnawayctl firewall`: its command line, and what it prints.

Owns: the options that make a plan, and one function for each command.  Text
for a firewall goes to standard output, everything else that is told to
standard error, so that `> FILE` holds nothing but rules.
"""

import argparse
import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from turnaway import lists
from turnaway.exits import (
    CANNOT_CREATE,
    CONFIGURATION,
    DATA,
    UNAVAILABLE,
    USAGE,
    Failure,
)
from turnaway.firewall import (
    ipfw,
    iptables,
    live,
    nftables,
    pf,
    plain,
    plan,
    programs,
    sources,
    surroundings,
    sysctls,
    trial,
)
from turnaway.firewall.plan import Network, Plan, Sources
from turnaway.lists.ranges import cidrs


class Kind(Protocol):
    """A firewall's syntax."""

    def rules(self, plan: Plan) -> str: ...
    def sets(self, plan: Plan, sources: Sources) -> str: ...


KINDS: dict[str, Kind] = {
    "nftables": nftables,
    "iptables": iptables,
    "pf-openbsd": pf.OPENBSD,
    "pf-freebsd": pf.FREEBSD,
    "ipfw": ipfw,
    "plain": plain,
}
DEFAULT_KIND = "nftables"

RATE = 1000  # refused connections a second that conntrack should bear
CONFIRM = 60  # seconds
MOST_FILE = 1 << 28  # octets of a rules file

Does = Callable[[argparse.Namespace], int]


def _tell(text: str) -> None:
    """One line on standard error, and nothing for a terminal to obey."""
    print("".join(letter if letter.isprintable() else "?" for letter in text), file=sys.stderr)


def planned(options: argparse.Namespace) -> Plan:
    """The plan that the options make.  Raises Failure with every mistake."""
    gateways = options.gateway or surroundings.gateways()
    return plan.make(
        role=options.role,
        mx=options.mx,
        lists=options.list,
        ports=options.port or ["25"],
        to=options.to,
        choose=options.choose,
        wan=options.wan,
        auto_port=options.auto_port,
        allow=options.allow,
        allowed=[one for path in options.allow_file for one in _allowed(path)],
        gateways=[one for one in gateways if one != "none"],
        ipv4=options.ipv4,
        ipv6=options.ipv6,
        lifetime_=options.lifetime,
        mark_=options.mark,
    )


def _allowed(path: str) -> list[Network]:
    """The networks of an allow list, in any format that lists have."""
    read = lists.read(path)
    if read.mistakes:
        raise Failure(DATA, *(f"allow list: {said}" for said in read.mistakes))
    return [
        plan.network(text) for version in (4, 6) for text in cidrs(read.ranges(version), version)
    ]


# Text that is printed


def rules(options: argparse.Namespace) -> int:
    print(KINDS[options.kind].rules(planned(options)), end="")
    return 0


def sets(options: argparse.Namespace) -> int:
    made = planned(options)
    gathered = sources.gather(made, options.leave_out)
    for note in gathered.notes:
        _tell(note)
    changed = [] if options.any_change else _changes(options, gathered)
    if changed:
        raise Failure(
            DATA,
            *changed,
            f"expected a change of at most {options.max_change} %; --any-change takes it",
        )
    text = KINDS[options.kind].sets(made, gathered.ranges)
    text += "".join(f"{line}\n" for line in sources.summary(gathered.ranges))
    if options.output is None:
        print(text, end="")
    else:
        _replace(options.output, text)
    return 0


def _changes(options: argparse.Namespace, gathered: sources.Gathered) -> list[str]:
    """Against the earlier file, or else what is loaded, if either is there to be seen."""
    before = {}
    if options.output is not None and os.path.exists(options.output):
        before = sources.earlier(_text(options.output))
    elif options.kind == DEFAULT_KIND and os.geteuid() == 0 and _loaded():
        before = live.sizes()
    return sources.changes(gathered.ranges, before, options.max_change)


def _loaded() -> bool:
    """Whether the table is there, as far as one is let see."""
    try:
        return programs.loaded()
    except Failure:
        return False


def _text(path: str) -> str:
    try:
        with open(path, "rb") as file:
            octets = file.read(MOST_FILE + 1)
    except OSError as error:
        raise Failure(UNAVAILABLE, f"{path}: {error.strerror or error}") from None
    if len(octets) > MOST_FILE:
        raise Failure(DATA, f"{path}: expected at most {MOST_FILE} octets")
    try:
        return octets.decode("utf-8")
    except UnicodeDecodeError:
        raise Failure(DATA, f"{path}: expected rules as text, in UTF-8") from None


def _replace(path: str, text: str) -> None:
    """The whole new file at once, or the old one."""
    folder, name = os.path.split(os.path.abspath(path))
    new = ""
    try:
        # A name that nobody could have put a link at.
        handle, new = tempfile.mkstemp(prefix=f".{name}.", dir=folder)
        with open(handle, "w") as file:
            file.write(text)
            file.flush()
            os.fchmod(file.fileno(), 0o644)
            os.fsync(file.fileno())
        os.replace(new, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(new)
        raise Failure(CANNOT_CREATE, f"{path}: {error.strerror or error}") from None


def sysctl(options: argparse.Namespace) -> int:
    print(sysctls.text(), end="")
    return 0


# Rules that are there


def check(options: argparse.Namespace) -> int:
    texts = [_text(path) for path in options.file]
    made = _heading(texts)
    _dry_run(options.file, texts)
    print(f"well: {' '.join(options.file)}: loads, and touches nothing but our table", flush=True)
    bad = 0
    for finding in surroundings.look(made, options.rate):
        bad += finding.state == "wrong"
        print(f"{finding.state}: {finding.said}", flush=True)
    return CONFIGURATION if bad else 0


def _heading(texts: Sequence[str]) -> Plan:
    """The plan in the first line that has one.  Raises Failure."""
    for text in texts:
        words = plan.recover(text)
        if words is not None:
            try:
                return planned(told(words))
            except argparse.ArgumentError as error:
                raise Failure(DATA, f"the line '{plan.HEADING}...': {error}") from None
    raise Failure(
        DATA, f"no line '{plan.HEADING}...': expected a file that `rules` printed, before others"
    )


def _dry_run(paths: Sequence[str], texts: Sequence[str]) -> None:
    """Load all, one after another, in a namespace of their own.  Raises Failure."""
    # nft takes nothing for well; it is what `rules >FILE` leaves after a mistake.
    empty = [path for path, text in zip(paths, texts, strict=True) if not text.strip()]
    if empty:
        raise Failure(DATA, *(f"{path}: expected rules, got nothing" for path in empty))
    complaints, tables = programs.tried(texts)
    said = [
        f"{path}: {line}" for path, lines in zip(paths, complaints, strict=True) for line in lines
    ]
    said += [
        f"{one['family']} {one['name']}: expected no table but inet {nftables.TABLE}"
        for one in tables
        if (one["family"], one["name"]) != ("inet", nftables.TABLE)
    ]
    if said:
        raise Failure(DATA, *said)


def apply(options: argparse.Namespace) -> int:
    texts = [_text(path) for path in options.file]
    # Sets by themselves go into the rules that are loaded.
    rules_at = next((at for at, text in enumerate(texts) if plan.recover(text) is not None), None)
    loaded = programs.table()
    if rules_at is not None and loaded is not None:
        leftover = live.forgotten(texts)
        texts[rules_at] = live.unhooked(_heading(texts)) + texts[rules_at]
    if loaded is None:
        _dry_run(options.file, texts)
    else:
        _dry_run(["what is loaded", *options.file], [loaded, *texts])
    if rules_at is not None and loaded is not None:
        texts.append(leftover)
    if options.confirm_within == 0:
        trial.load(texts)
        _tell("loaded")
        return 0
    trial.begin(texts, options.confirm_within, options.state)
    _tell(
        f"loaded; `turnawayctl firewall confirm` within {options.confirm_within} s keeps it, else"
        " what was there before comes back"
    )
    return 0


def confirm(options: argparse.Namespace) -> int:
    trial.confirm(options.state)
    _tell("confirmed")
    return 0


def add(options: argparse.Namespace) -> int:
    one, seconds = _value(live.single, options.address), _value(plan.lifetime, options.lifetime)
    live.add(one, seconds)
    return 0


def remove(options: argparse.Namespace) -> int:
    live.remove(_value(live.single, options.address))
    return 0


def _value(read: Callable[[str], Any], text: str) -> Any:
    try:
        return read(text)
    except ValueError as error:
        raise Failure(USAGE, str(error)) from None


def status(options: argparse.Namespace) -> int:
    rows = [("LIST", "FAMILY", "DIVERTED", "NETWORKS", "ADDRESSES")]
    for one in live.diverted():
        size = (str(one.size.networks), str(one.size.addresses))
        rows.append((one.name, f"IPv{one.version}", str(one.packets), *size))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [row[0].ljust(widths[0]), row[1].ljust(widths[1])]
        cells += [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
        print("  ".join(cells))
    for version, count in live.answered().items():
        print(f"answered: {count} of the IPv{version} connections, by way of this router")
    if found := live.conntrack():
        print(f"conntrack: {found[0]} flows of {found[1]} ({found[0] * 100 / found[1]:.1f} %)")
    if trial.pending(options.state):
        print("on trial: not confirmed yet")
    for setting, now in sysctls.differing():
        print(f"sysctl: {setting.name} is {now}; a diversion host may want {setting.value}")
    return 0


# The command line


def plan_options(to: argparse.ArgumentParser) -> None:
    """The options that describe what is to be diverted."""
    add: Callable[..., Any] = to.add_argument
    add("--role", metavar="ROLE", default="host", help="host, router or dsr (default: host)")
    add(
        "--mx",
        metavar="ADDRESS[,...]",
        action="append",
        default=[],
        help="the addresses that are called, of both families",
    )
    add(
        "--list",
        metavar="NAME=FILE:PORT",
        action="append",
        default=[],
        help="a list of sources, and the port where the daemon tells them why; earlier lists win",
    )
    add(
        "--port",
        metavar="PORT[,...]",
        action="append",
        default=[],
        help="the ports that are called (default: 25)",
    )
    add(
        "--to",
        metavar="ADDRESS[,...]",
        action="append",
        default=[],
        help="the diversion hosts, for the roles router and dsr",
    )
    add(
        "--choose",
        metavar="HOW",
        default="turn",
        help="which of several hosts: turn or source (default: turn)",
    )
    add("--wan", metavar="INTERFACE", help="divert only what comes in here")
    add(
        "--auto-port",
        metavar="PORT",
        help="where what `add`, fail2ban and CrowdSec list is sent (default: the first list's)",
    )
    add(
        "--allow",
        metavar="NETWORK[,...]",
        action="append",
        default=[],
        help="never diverted; own addresses, loopback, gateways and diversion hosts never are",
    )
    add(
        "--allow-file",
        metavar="FILE",
        action="append",
        default=[],
        help="networks that are never diverted, in any format that lists have",
    )
    add(
        "--gateway",
        metavar="ADDRESS[,...]|none",
        action="append",
        default=[],
        help="this network's gateways (default: those of this host's routes)",
    )
    add("--no-ipv4", dest="ipv4", action="store_false", help="the MX has no IPv4 address")
    add("--no-ipv6", dest="ipv6", action="store_false", help="the MX has no IPv6 address")
    add(
        "--lifetime",
        metavar="TIME",
        default=plan.LIFETIME,
        help=f"of what the firewall lists by itself (default: {plan.LIFETIME})",
    )
    add(
        "--mark",
        metavar="N",
        default=hex(plan.MARK),
        help=f"role dsr: the firewall mark and routing table (default: {plan.MARK:#x})",
    )


def kind_option(to: argparse.ArgumentParser) -> None:
    to.add_argument(
        "--for",
        dest="kind",
        metavar="FIREWALL",
        choices=tuple(KINDS),
        default=DEFAULT_KIND,
        help=f"whose syntax: {', '.join(KINDS)} (default: {DEFAULT_KIND})",
    )


def _number(least: int, most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"expected {least}..{most}, got {text!r}")
        return int(text)

    return read


def install(parser: argparse.ArgumentParser, make: type[argparse.ArgumentParser]) -> None:
    """Add the commands to `firewall`'s parser; `make` is ctl's kind of parser."""
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=make)

    def command(name: str, does: Does, help: str) -> argparse.ArgumentParser:
        one: argparse.ArgumentParser = commands.add_parser(
            name, help=help, description=help, allow_abbrev=False
        )
        one.set_defaults(does=does, offline=True)
        return one

    def state_option(to: argparse.ArgumentParser) -> None:
        to.add_argument(
            "--state",
            metavar="DIRECTORY",
            default=trial.DIRECTORY,
            help=f"where the former rules wait (default: {trial.DIRECTORY})",
        )

    one = command("rules", rules, "print the rules that divert")
    kind_option(one)
    plan_options(one)
    one = command("sets", sets, "print the sources of the lists, for the rules' sets")
    kind_option(one)
    plan_options(one)
    one.add_argument("-o", "--output", metavar="FILE", help="replace FILE, at once")
    one.add_argument(
        "--leave-out",
        action="store_true",
        help="go on without entries that are too wide, private or our own",
    )
    one.add_argument(
        "--max-change",
        metavar="PERCENT",
        type=_number(0, 100),
        default=sources.MOST_CHANGE,
        help=f"refuse to change a list by more (default: {sources.MOST_CHANGE})",
    )
    one.add_argument("--any-change", action="store_true", help="however much a list changes")
    one = command("check", check, "try rules where they do nothing, then look at this host")
    one.add_argument("file", metavar="FILE", nargs="+", help="as `rules` and `sets` printed them")
    one.add_argument(
        "--rate",
        metavar="N",
        type=_number(1, 10_000_000),
        default=RATE,
        help=f"refused connections a second that are expected (default: {RATE})",
    )
    one = command("apply", apply, "load rules; what was there comes back unless confirmed")
    one.add_argument("file", metavar="FILE", nargs="+", help="as `rules` and `sets` printed them")
    one.add_argument(
        "--confirm-within",
        metavar="SECONDS",
        type=_number(0, 86400),
        default=CONFIRM,
        help=f"time for `confirm`; 0: none is needed (default: {CONFIRM})",
    )
    state_option(one)
    state_option(command("confirm", confirm, "keep the rules that were applied"))
    what = "one address, or an IPv6 /64"
    one = command("add", add, "divert one address for a time")
    one.add_argument("address", metavar="ADDRESS", help=what)
    one.add_argument(
        "--for",
        dest="lifetime",
        metavar="TIME",
        default=plan.LIFETIME,
        help=f"such as 90s, 15m, 1h or 7d (default: {plan.LIFETIME})",
    )
    one = command("del", remove, "divert one address no more")
    one.add_argument("address", metavar="ADDRESS", help=what)
    state_option(command("status", status, "what was diverted, how full sets and conntrack are"))
    command("sysctl", sysctl, "print kernel settings for a diversion host, and why")


def told(argv: Sequence[str]) -> argparse.Namespace:
    """The options of a plan alone, as a file's heading has them."""
    one = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    plan_options(one)
    return one.parse_args(argv)
