"""`turnawayctl firewall` on hosts that are up: apply and its rollback, add, del, status, check.

Owns: the commands' effects, seen from the clients; what they say, and their
exit statuses.  All in namespaces of the test's own.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from namespaces import Lab, Namespace
from running import SECONDS, Syslog, need, until
from street import CTL, FAMILIES, FOUR, SIX, Recipe, begun, real, street, told_by

OTHER_NAT = """
table ip other {
	chain first {
		type nat hook prerouting priority -150; policy accept;
	}
	chain strict {
		type filter hook input priority 0; policy drop;
		ct state established,related accept
	}
}
"""


@pytest.fixture
def host(syslog: Syslog, tmp_path: Path) -> Iterator[Recipe]:
    with street(syslog, tmp_path) as made:
        yield begun("host", made)


@pytest.fixture
def router(syslog: Syslog, tmp_path: Path) -> Iterator[Recipe]:
    with street(syslog, tmp_path, 1) as made:
        yield begun("router", made)


def diverted(recipe: Recipe) -> bool:
    """Whether a listed source is diverted now; in both families alike."""
    greetings = [
        recipe.street.greeting(family.source("listed"), family.called) for family in FAMILIES
    ]
    found = {told_by(greeting) == "spam" for greeting in greetings}
    assert len(found) == 1, greetings
    assert all(told_by(greeting) or real(greeting) for greeting in greetings), greetings
    return found.pop()


def written(recipe: Recipe) -> list[str]:
    """The files of the rules and of the sets, with the sources listed, and not loaded."""
    one = recipe.street
    for name in ("spam", "bogons"):
        one.list_file(name).write_text("\n".join(family.lists[name] for family in FAMILIES))
    for command in ("rules", "sets"):
        text = one.ctl(recipe.where, command, *recipe.words).stdout
        (one.tmp / f"{command}.nft").write_text(text)
    return [str(one.tmp / "rules.nft"), str(one.tmp / "sets.nft")]


# apply


def test_rules_that_nobody_confirms_are_taken_back(host: Recipe) -> None:
    """Also when the terminal, and all that ran on it, is gone."""
    files, state = written(host), str(host.street.tmp / "state")
    argv = [CTL, "firewall", "apply", *files, "--confirm-within", "3", "--state", state]
    applying = subprocess.Popen([*host.where.enter(), *argv], start_new_session=True)
    assert applying.wait(SECONDS) == 0
    assert diverted(host)
    with pytest.raises(ProcessLookupError):  # nobody is left in its session
        os.killpg(applying.pid, signal.SIGKILL)
    until(lambda: not _trial_runs(state), 8, "the former rules")
    assert not diverted(host)
    assert host.where.run("nft", "list", "tables").stdout == ""
    late = host.street.ctl(host.where, "confirm", "--state", state, check=False)
    assert late.returncode == 69
    assert "the former ones may be back already" in late.stderr


def test_rules_that_are_confirmed_stay(host: Recipe) -> None:
    files, state = written(host), str(host.street.tmp / "state")
    host.street.ctl(host.where, "apply", *files, "--confirm-within", "60", "--state", state)
    assert _trial_runs(state)
    said = host.street.ctl(host.where, "status", "--state", state).stdout
    assert "on trial: not confirmed yet" in said
    host.street.ctl(host.where, "confirm", "--state", state)
    until(lambda: not _trial_runs(state), 8, "the end of the trial")
    assert diverted(host)
    assert "on trial" not in host.street.ctl(host.where, "status", "--state", state).stdout


def test_the_former_rules_come_back_with_their_sets_and_lifetimes(host: Recipe) -> None:
    files, state = written(host), str(host.street.tmp / "state")
    one = host.street
    one.ctl(host.where, "apply", *files, "--confirm-within", "0", "--state", state)
    one.ctl(host.where, "add", FOUR.source("unlisted"), "--for", "1h")
    before = _without_what_passes(host.where.run("nft", "list", "ruleset").stdout)
    assert told_by(one.greeting(FOUR.source("unlisted"), FOUR.called)) == "spam"
    # On trial: rules without lists, that let everybody pass.
    empty = Path(files[1])
    empty.write_text(re.sub(r"^add element[^}]*}$", "", empty.read_text(), flags=re.M))
    one.ctl(host.where, "apply", *files, "--confirm-within", "2", "--state", state)
    assert not diverted(host)
    again = one.ctl(host.where, "apply", *files, "--state", state, check=False)
    assert (again.returncode, "other rules are on trial" in again.stderr) == (75, True)
    until(lambda: not _trial_runs(state), 8, "the former rules")
    assert diverted(host)
    assert _without_what_passes(host.where.run("nft", "list", "ruleset").stdout) == before
    assert told_by(one.greeting(FOUR.source("unlisted"), FOUR.called)) == "spam"


def _trial_runs(state: str) -> bool:
    """Whether the process that would roll back is there."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().decode(errors="replace").split("\0")
            if "turnaway.firewall.trial" in words and state in words:
                return True
    return False


def _without_what_passes(listed: str) -> str:
    """A ruleset without its counts and the time that is left."""
    return re.sub(r" expires \w+|packets \d+ bytes \d+", "", listed)


def test_sets_are_applied_by_themselves(host: Recipe) -> None:
    """What a timer does each hour, on rules that are loaded already."""
    files = written(host)
    one = host.street
    alone = one.ctl(host.where, "apply", files[1], check=False)
    assert (alone.returncode, "No such file" in alone.stderr) == (65, True)
    one.ctl(host.where, "apply", files[0], "--confirm-within", "0")
    assert not diverted(host)
    one.ctl(host.where, "apply", files[1], "--confirm-within", "0")
    assert diverted(host)


def test_a_list_that_the_rules_no_longer_know_is_gone(host: Recipe) -> None:
    files = written(host)
    one = host.street
    one.ctl(host.where, "apply", *files, "--confirm-within", "0")
    assert "bogons" in one.ctl(host.where, "status").stdout
    words = [word for word in host.words if "bogons" not in word]
    del words[-1]  # its --list
    Path(files[0]).write_text(one.ctl(host.where, "rules", *words).stdout)
    one.ctl(host.where, "apply", files[0], "--confirm-within", "0")
    assert "bogons" not in host.where.run("nft", "list", "ruleset").stdout
    assert diverted(host)
    assert real(one.greeting(FOUR.source("other"), FOUR.called))


def test_another_role_replaces_the_one_that_is_loaded(host: Recipe) -> None:
    """Its chains are hooked elsewhere, which nft refuses to change; sources and lifetimes stay."""
    files = written(host)
    one = host.street
    one.ctl(host.where, "apply", *files, "--confirm-within", "0")
    one.ctl(host.where, "add", "203.0.113.200", "--for", "2h")
    before = _named(host)
    to = ["--wan", "lo", "--to", "198.51.100.77,198.51.100.78,2001:db8:25::77,2001:db8:25::78"]
    for role in ("router", "dsr", "host"):
        words = list(host.words)
        if role == "host":
            changed = words
        else:
            changed = [*words, "--role", role, *to]
        if role == "dsr":  # nothing is translated
            changed = [re.sub(r":\d{4}$", ":25", word) for word in changed]
            changed += ["--auto-port", "25"]
        Path(files[0]).write_text(one.ctl(host.where, "rules", *changed).stdout)
        one.ctl(host.where, "apply", files[0], "--confirm-within", "0")
        assert ("set hosts4" in _named(host)) == (role != "host")
        assert ("map pool4" in _named(host)) == (role == "router")
        assert "203.0.113.200 timeout 2h" in host.where.run("nft", "list", "ruleset").stdout
    assert _named(host) == before
    assert diverted(host)


def _named(recipe: Recipe) -> set[str]:
    """What the loaded table has, by kind and name."""
    listed = recipe.where.run("nft", "list", "ruleset").stdout
    return set(re.findall(r"^\t((?:set|map|counter|chain) \S+)", listed, re.MULTILINE))


def test_what_does_not_load_changes_nothing(host: Recipe) -> None:
    files = written(host)
    one = host.street
    one.ctl(host.where, "apply", *files, "--confirm-within", "0")
    for text, said in (
        ("add element inet turnaway refuse4_spam { 10.0.0.0/8, 10.1.0.0/16 }", "conflicting"),
        ("add element inet turnaway refuse4_nobody { 10.0.0.1 }", "No such file"),
        ("flush ruleset\ntable ip mine {\n}\n", "ip mine: expected no table but inet turnaway"),
        ("flush ruleset; include /etc/passwd\n", "syntax error"),
        ("", "wrong.nft: expected rules, got nothing"),
    ):
        wrong = one.tmp / "wrong.nft"
        wrong.write_text(f"{text}\n")
        done = one.ctl(host.where, "apply", files[0], str(wrong), check=False)
        assert done.returncode == 65, done
        assert said in done.stderr
        assert diverted(host)


def test_nobody_slips_through_while_rules_and_sets_are_loaded_again(host: Recipe) -> None:
    """Many at once, without a pause, while everything is replaced again and again."""
    files = written(host)
    one = host.street
    one.ctl(host.where, "apply", *files, "--confirm-within", "0")
    over = threading.Event()

    def call(number: int) -> list[str]:
        greetings = []
        family = FAMILIES[number % 2]
        while not over.is_set():
            greetings.append(one.greeting(family.source("listed", number % 9), family.called))
        return greetings

    texts = [Path(path).read_text() for path in files]
    with ThreadPoolExecutor(6) as pool:
        callers = [pool.submit(call, number) for number in range(6)]
        try:
            for _ in range(10):
                for text in texts:
                    host.where.firewall(text)
            one.ctl(host.where, "apply", *files, "--confirm-within", "0")
        finally:
            over.set()
    greetings = [greeting for caller in callers for greeting in caller.result()]
    assert len(greetings) > 200
    slipped = [greeting for greeting in greetings if told_by(greeting) != "spam"]
    assert slipped == []
    assert real(one.greeting(FOUR.source("unlisted"), FOUR.called))


# add, del, status


def test_one_address_is_diverted_for_its_time(host: Recipe) -> None:
    one, where = host.street, host.where
    one.apply(where, host.words)
    for family in FAMILIES:
        source, neighbour = family.source("unlisted", 1), family.source("unlisted", 2)
        one.ctl(where, "add", source, "--for", "1h")
        assert told_by(one.greeting(source, family.called)) == "spam"
        assert real(one.greeting(neighbour, family.called))
        # A second time: the lifetime begins anew, here a short one.
        one.ctl(where, "add", source, "--for", "1s")

        def over(source: str = source, called: str = family.called) -> bool:
            return real(one.greeting(source, called))

        until(over, what="the end of its lifetime")
        one.ctl(where, "add", source)
        one.ctl(where, "del", source)
        assert over()
    assert one.ctl(where, "del", source, check=False).returncode == 69


def test_a_64_is_diverted_as_one_address(host: Recipe) -> None:
    """CrowdSec cuts a range down to its first address, too."""
    one, where = host.street, host.where
    one.apply(where, host.words)
    one.ctl(where, "add", "2001:db8:bad:d::/64")
    for number in range(3):
        assert told_by(one.greeting(SIX.source("unlisted", number), SIX.called)) == "spam"
    one.ctl(where, "del", "2001:db8:bad:d::/64")
    assert real(one.greeting(SIX.source("unlisted"), SIX.called))


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("198.51.100.25", "is on the allow list"),
        ("127.0.0.1", "is on the allow list"),
        ("203.0.113.0/24", "wider networks belong in a list"),
        ("203.0.113.9; flush ruleset", "expected an address such as"),
        ("::ffff:203.0.113.9", "is an IPv4 address; expected 203.0.113.9"),
        ("fe80::1%eth0", "without an interface"),
        ("0.0.0.0", "expected the address of one host"),
    ],
)
def test_what_cannot_be_added(lone: Namespace, address: str, said: str) -> None:
    done = lone.run(CTL, "firewall", "add", address, check=False)
    assert (done.returncode, said in done.stderr) == (64, True), done


@pytest.fixture(scope="module")
def lone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Namespace]:
    """A host of its own, with rules and nobody around."""
    with Lab() as lab:
        made = lab.namespace("mx")
        file = tmp_path_factory.mktemp("lone") / "rules.nft"
        words = ["--mx", "198.51.100.25,2001:db8:25::25", "--list", "spam=/nowhere:2525"]
        file.write_text(made.run(CTL, "firewall", "rules", *words).stdout)
        made.run(CTL, "firewall", "apply", "--confirm-within", "0", str(file))
        yield made


@pytest.mark.parametrize("command", ["add", "del"])
def test_a_family_that_is_not_diverted_is_named(command: str, tmp_path: Path) -> None:
    with Lab() as lab:
        made = lab.namespace("mx")
        words = ["--mx", "198.51.100.25", "--no-ipv6", "--list", "spam=/nowhere:2525"]
        file = tmp_path / "rules.nft"
        file.write_text(made.run(CTL, "firewall", "rules", *words).stdout)
        made.run("nft", "-f", str(file))
        done = made.run(CTL, "firewall", command, "2001:db8:bad::1", check=False)
        assert (done.returncode, "IPv6 is not diverted" in done.stderr) == (69, True), done
        assert "auto6" not in made.run("nft", "list", "ruleset").stdout


def test_status_bears_the_comments_of_others(lone: Namespace) -> None:
    """fail2ban's and CrowdSec's elements may have some."""
    element = '{ 203.0.113.7 timeout 1h comment "a, b } c", 203.0.113.9 timeout 1h }'
    lone.run("nft", f"add element inet turnaway auto4 {element}")
    said = lone.run(CTL, "firewall", "status").stdout
    assert re.search(r"^auto +IPv4 +0 +2 +2$", said, re.MULTILINE), said
    lone.run(CTL, "firewall", "del", "203.0.113.9")
    lone.run(CTL, "firewall", "del", "203.0.113.7")


def test_status_without_rules_says_so() -> None:
    with Lab() as lab:
        done = lab.namespace("empty").run(CTL, "firewall", "status", check=False)
    assert done.returncode == 69
    assert "table inet turnaway is not loaded" in done.stderr


def test_status_tells_what_was_diverted(router: Recipe) -> None:
    one, where = router.street, router.where
    one.apply(where, router.words)
    one.refuse(where, router.words)
    for number in range(3):
        one.greeting(FOUR.source("listed", number), FOUR.called)
        one.greeting(SIX.source("other", number), SIX.called)
    said = one.ctl(where, "status").stdout
    assert re.search(r"^spam +IPv4 +3 +2 +36$", said, re.M), said
    assert re.search(r"^spam +IPv6 +0 +1 +1$", said, re.M)
    assert re.search(r"^bogons +IPv6 +3 +1 +1$", said, re.M)
    assert re.search(r"^answered: 3 of the IPv4 connections", said, re.M)
    assert re.search(r"^conntrack: \d+ flows of \d+ \(", said, re.M)
    assert re.search(r"^sysctl: net.ipv4.tcp_fin_timeout is 60; ", said, re.M)
    where.run("sysctl", "-qw", "net.ipv4.tcp_fin_timeout=15")
    assert "tcp_fin_timeout" not in one.ctl(where, "status").stdout


# check


def test_check_needs_no_root(tmp_path: Path) -> None:
    """An ordinary user's: what loads is told, what root alone may look at is named."""
    need("unshare", "nft")
    # In a network of nobody's, since what it would find here is the machine's.
    with Lab() as lab:
        plain = lab.namespace("plain")
        plain.address("lo", "198.51.100.25/32", "2001:db8:25::25/128")
        rules, wrong = tmp_path / "rules.nft", tmp_path / "wrong.nft"
        (tmp_path / "spam").write_text("203.0.113.7\n")
        words = ["--mx", "198.51.100.25,2001:db8:25::25", "--list", f"spam={tmp_path}/spam:2525"]
        rules.write_text(plain.run(CTL, "firewall", "rules", *words).stdout)
        user = [
            "unshare",
            "-U",
            "--map-user=1000",
            "--map-group=1000",
            "--",
            CTL,
            "firewall",
            "check",
        ]
        done = plain.run(*user, str(rules), check=False)
        assert done.stdout.startswith(f"well: {rules}: loads, and touches nothing but our table\n")
        assert "unseen: not looked at, needs root: Other chains of destination NAT" in done.stdout
        assert "wrong: nobody listens on port 2525 for 198.51.100.25" in done.stdout
        assert done.returncode == 78
        # nft --check takes this one; loading does not.
        text = rules.read_text().replace("type filter hook input", "type filter hook prerouting")
        wrong.write_text(text.replace("reject with tcp reset", "redirect to :2525"))
        done = plain.run(*user, str(wrong), check=False)
        assert done.returncode == 65
        assert done.stdout == ""
        assert str(wrong) in done.stderr


def test_check_finds_nothing_where_all_is_well(host: Recipe) -> None:
    done = host.street.ctl(host.where, "check", *written(host))
    assert "wrong" not in done.stdout
    assert "well: port 2526 is listened on for IPv6" in done.stdout


def test_check_finds_what_is_in_the_way_on_the_mx(host: Recipe) -> None:
    one, where = host.street, host.where
    files = written(host)
    where.firewall(OTHER_NAT)
    host.street.daemons[0].stop()
    where.address("eth0", "2001:db8:25::99/64")
    done = one.ctl(where, "check", *files, "--rate", "100000", check=False)
    assert done.returncode == 78
    for said in (
        r"nobody listens on port 2525 for 198\.51\.100\.25: .* expected the daemon on 0\.0\.0\.0:2525",
        r"nobody listens on port 2526 for 2001:db8:25::25: .* expected the daemon on \[::\]:2526",
        r"chain first of table ip other translates before us \(priority -150\)",
        r"chain strict of table ip other drops what it does not know.*ct status dnat accept",
        r"100000 refused connections a second make .* expected net\.netfilter\.nf_conntrack_max = \d+",
    ):
        assert re.search(rf"^wrong: {said}", done.stdout, re.M), (said, done.stdout)
    # The rules of another host, and half of the families.
    words = ["--mx", "198.51.100.99", "--no-ipv6", *host.words[2:]]
    Path(files[0]).write_text(one.ctl(where, "rules", *words).stdout)
    done = one.ctl(where, "check", files[0], check=False)
    assert "wrong: 198.51.100.99 (--mx) is no address of this host" in done.stdout
    assert re.search(r"^wrong: this host has the IPv6 address 2001:db8:25::25", done.stdout, re.M)
    with where.listen("127.0.0.1", 2525):
        done = one.ctl(where, "check", files[0], check=False)
    assert "wrong: port 2525 is listened on at 127.0.0.1 alone" in done.stdout


def test_check_finds_what_is_in_the_way_on_a_router(router: Recipe) -> None:
    one, where = router.street, router.where
    files = written(router)
    done = one.ctl(where, "check", *files)
    assert "well: [2001:db8:25::31]:2526 turns away" in done.stdout
    one.ctl(where, "apply", *files, "--confirm-within", "0")
    # The way back is another one: the answers never come here.
    one.hosts[0].run("ip", "route", "del", "default")
    with pytest.raises(TimeoutError):
        one.call(FOUR.source("listed"), FOUR.called, seconds=1.5)
    where.run("sysctl", "-qw", "net.ipv6.conf.all.forwarding=0")
    one.daemons[0].stop()
    done = one.ctl(where, "check", *files, check=False)
    assert done.returncode == 78
    for said in (
        "net.ipv6.conf.all.forwarding is 0: IPv6 is not forwarded; expected 1",
        "198.51.100.31:2525 does not answer",
        "IPv4: [12] connections were diverted and none was answered by way of this router",
    ):
        assert re.search(rf"^wrong: {said}", done.stdout, re.M), (said, done.stdout)
    text = Path(files[0]).read_text().replace("wan0", "wan9")
    Path(files[0]).write_text(text)
    done = one.ctl(where, "check", files[0], check=False)
    assert "wrong: there is no interface wan9 (--wan)" in done.stdout


def test_check_finds_missing_routes_of_dsr(syslog: Syslog, tmp_path: Path) -> None:
    with street(syslog, tmp_path, 2) as made:
        recipe = begun("dsr", made)
        file = made.tmp / "rules.nft"
        file.write_text(made.ctl(recipe.where, "rules", *recipe.words).stdout)
        done = made.ctl(recipe.where, "check", str(file), check=False)
        assert "wrong: IPv4: no rule sends the mark 0x19 to table 25" in done.stdout
        assert "wrong: IPv6: table 25 has no route: everybody reaches the MX" in done.stdout
        made.apply(recipe.where, recipe.words, commands=True)
        assert made.ctl(recipe.where, "check", str(file)).returncode == 0
