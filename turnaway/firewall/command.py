"""`turnawayctl firewall`: its command line, and what it prints.

Owns: the options that make a plan, and one function for each command.  Text
for a firewall goes to standard output, everything else that is told to
standard error, so that `> FILE` holds nothing but rules.
"""

import argparse
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from turnaway.firewall import nftables, plan
from turnaway.firewall.plan import Plan

# Each has rules(plan) and sets(plan, sources), which return text.
KINDS: dict[str, ModuleType] = {"nftables": nftables}
DEFAULT_KIND = "nftables"

Does = Callable[[argparse.Namespace], int]


def planned(options: argparse.Namespace) -> Plan:
    """The plan that the options make.  Raises Failure with every mistake."""
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
        gateways=[one for one in options.gateway if one != "none"],
        ipv4=options.ipv4,
        ipv6=options.ipv6,
        lifetime_=options.lifetime,
        mark_=options.mark,
    )


def rules(options: argparse.Namespace) -> int:
    print(KINDS[options.kind].rules(planned(options)), end="")
    return 0


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


def install(parser: argparse.ArgumentParser, make: type[argparse.ArgumentParser]) -> None:
    """Add the commands to `firewall`'s parser; `make` is ctl's kind of parser."""
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=make)

    def command(name: str, does: Does, help: str) -> argparse.ArgumentParser:
        one: argparse.ArgumentParser = commands.add_parser(
            name, help=help, description=help, allow_abbrev=False
        )
        one.set_defaults(does=does, offline=True)
        return one

    one = command("rules", rules, "print the rules that divert")
    kind_option(one)
    plan_options(one)


def kind_option(to: argparse.ArgumentParser) -> None:
    to.add_argument(
        "--for",
        dest="kind",
        metavar="FIREWALL",
        choices=tuple(KINDS),
        default=DEFAULT_KIND,
        help=f"whose syntax: {', '.join(KINDS)} (default: {DEFAULT_KIND})",
    )


def told(argv: Sequence[str]) -> argparse.Namespace:
    """The options of a plan alone, as a file's heading has them."""
    one = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    plan_options(one)
    return one.parse_args(argv)
