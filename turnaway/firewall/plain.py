"""The sources of a plan's lists as networks, one a line: for what has no generator.

Owns: the text from which a router's own commands are made (awk), and that
HAProxy and OpenWrt read as it is.  There are no rules to print.
"""

from turnaway.exits import USAGE, Failure
from turnaway.firewall.iptables import cidrs_of
from turnaway.firewall.plan import Plan, Sources


def rules(plan: Plan) -> str:
    raise Failure(USAGE, "--for plain: has no rules; expected `sets`, or another firewall")


def sets(plan: Plan, sources: Sources) -> str:
    """Each list under its name; a list that `sources` does not have is empty."""
    lines = []
    for one in plan.lists:
        lines += [f"# {one.name}", *cidrs_of(plan, sources, one.name)]
    return "\n".join([*lines, ""])
