"""Sources of lists: what may not be diverted, who is in which list, how much may change.

Owns: turnaway.firewall.sources on real files, and `turnawayctl firewall sets`
and `sysctl` as far as no firewall is needed.
"""

import re
from pathlib import Path

import pytest

from turnaway import ctl
from turnaway.exits import DATA, Failure
from turnaway.firewall import plan, sources, sysctls
from turnaway.firewall.plan import Plan
from turnaway.firewall.sources import Size
from turnaway.lists.ranges import cidrs

MX = "198.51.100.25,2001:db8:25::25"


def planned(tmp_path: Path, allow: str = "", **lists: str) -> Plan:
    words = []
    for number, (name, text) in enumerate(lists.items()):
        (tmp_path / f"{name}.txt").write_text(text)
        words.append(f"{name}={tmp_path}/{name}.txt:{2525 + number}")
    return plan.make(role="host", mx=[MX], lists=words, allow=[allow] if allow else [])


def texts(gathered: sources.Gathered) -> dict[str, list[str]]:
    return {name: cidrs(four, 4) + cidrs(six, 6) for name, (four, six) in gathered.ranges.items()}


def refused(made: Plan) -> tuple[str, ...]:
    with pytest.raises(Failure) as failure:
        sources.gather(made)
    assert failure.value.status == DATA
    return failure.value.reasons


def test_sources_are_aggregated(tmp_path: Path) -> None:
    made = planned(
        tmp_path, spam="203.0.113.0/25\n203.0.113.128/25\n203.0.113.7\n2001:db8:bad::/64\n"
    )
    assert texts(sources.gather(made)) == {"spam": ["203.0.113.0/24", "2001:db8:bad::/64"]}


def test_a_source_is_in_one_list_the_longest_prefix_counts_then_the_earlier_list(
    tmp_path: Path,
) -> None:
    made = planned(
        tmp_path,
        one="203.0.113.0/24\n2001:db8:1::/48\n",
        two="203.0.113.0/24\n203.0.113.8/29\n2001:db8::/43\n",
    )
    found = texts(sources.gather(made))
    assert found["two"][0] == "203.0.113.8/29"
    assert "203.0.113.8/29" not in found["one"]
    assert "203.0.113.0/29" in found["one"]
    assert found["one"][-1] == "2001:db8:1::/48"
    assert "2001:db8:1::/48" not in found["two"]


def test_an_exclusion_takes_from_its_own_list_alone(tmp_path: Path) -> None:
    zone = "$SOA 1 a b 1 2 3 4 5\n:127.0.0.2:x\n203.0.113.0/28\n!203.0.113.0/29\n"
    made = planned(tmp_path, zone=zone, plain="203.0.113.0/24\n")
    found = texts(sources.gather(made))
    assert found["zone"] == ["203.0.113.8/29"]
    assert "203.0.113.0/29" in found["plain"]


def test_the_allow_list_is_subtracted(tmp_path: Path) -> None:
    made = planned(tmp_path, allow="203.0.113.128/25", spam="203.0.113.0/24\n")
    gathered = sources.gather(made)
    assert texts(gathered) == {"spam": ["203.0.113.0/25"]}
    assert gathered.notes == ["list spam: 128 IPv4 addresses are allowed"]


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ("0.0.0.0/0", "0.0.0.0/0: expected /8 or longer for IPv4"),
        ("198.0.0.0/7", "198.0.0.0/7: expected /8 or longer for IPv4"),
        ("2001::/18", "2001::/18: expected /19 or longer for IPv6"),
        ("::/0", "::/0: expected /19 or longer for IPv6"),
        ("10.0.0.0/8", "10.0.0.0/8: holds private or reserved addresses"),
        ("192.168.7.7", "192.168.7.7: holds private or reserved addresses"),
        ("224.0.0.1", "224.0.0.1: holds private or reserved addresses"),
        ("fd00::/32", "fd00::/32: holds private or reserved addresses"),
        ("::1", "::1: holds private or reserved addresses"),
        ("198.51.100.0/24", "198.51.100.0/24: holds one of our own addresses"),
        ("2001:db8:25::/48", "2001:db8:25::/48: holds one of our own addresses"),
    ],
)
def test_what_is_never_diverted_is_refused(tmp_path: Path, entry: str, reason: str) -> None:
    made = planned(tmp_path, spam=f"# one\n203.0.113.7\n{entry}\n2001:db8:bad::7\n")
    first, last = refused(made)
    assert first == f"{tmp_path}/spam.txt:3: {reason}"
    assert "--leave-out" in last
    gathered = sources.gather(made, leave_out=True)
    found = texts(gathered)["spam"]
    assert "203.0.113.7" in found or "203.0.113.0/24" in found
    assert "2001:db8:bad::7" in found
    assert not {"198.51.100.25", "10.0.0.0/8", "2001:db8:25::25", entry} & set(found)
    assert "1 entries left out" in gathered.notes[0]


def test_of_many_that_are_refused_twenty_are_told(tmp_path: Path) -> None:
    made = planned(tmp_path, spam="".join(f"10.0.{n}.0/24\n" for n in range(50)))
    reasons = refused(made)
    assert len(reasons) == 22
    assert reasons[20] == "and 30 more"


def test_a_list_with_mistakes_is_not_used(tmp_path: Path) -> None:
    reasons = refused(planned(tmp_path, spam="203.0.113.7\n}; flush ruleset\n"))
    assert reasons[0].startswith(f"list spam: {tmp_path}/spam.txt:2: expected")


def test_a_list_that_is_not_there(tmp_path: Path) -> None:
    made = plan.make(role="host", mx=[MX], lists=[f"spam={tmp_path}/none:2525"])
    assert f"{tmp_path}/none" in refused(made)[0]


# How much may change


def before(tmp_path: Path, text: str) -> dict[tuple[str, int], Size]:
    gathered = sources.gather(planned(tmp_path, spam=text))
    return sources.earlier("\n".join(sources.summary(gathered.ranges)))


def test_a_summary_tells_what_was_there(tmp_path: Path) -> None:
    assert before(tmp_path, "203.0.113.0/24\n203.0.112.9\n2001:db8:bad::/48\n") == {
        ("spam", 4): Size(2, 257),
        ("spam", 6): Size(1, 1 << 16),
    }


def many(count: int) -> str:
    return "".join(f"203.0.{n // 128}.{n % 128 * 2}\n" for n in range(count))


@pytest.mark.parametrize(
    ("was", "now", "changed"),
    [
        (many(100), many(100), False),
        (many(100), many(51), False),
        (many(100), many(49), True),
        (many(100), many(149), False),
        (many(100), many(151), True),
        (many(4), many(12), False),  # few
        (many(4), "", True),  # nothing left is never a small change
        ("", many(1000), False),  # a first time
        ("203.0.113.1\n", "203.0.113.1\n203.128.0.0/9\n", True),  # one entry, many addresses
    ],
)
def test_a_list_may_change_by_half(tmp_path: Path, was: str, now: str, changed: bool) -> None:
    earlier = before(tmp_path, was)
    gathered = sources.gather(planned(tmp_path, spam=now))
    assert bool(sources.changes(gathered.ranges, earlier, 50)) is changed
    assert sources.changes(gathered.ranges, {}, 50) == []


# The commands


def test_sets_replaces_its_file_unless_too_much_changes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, file = tmp_path / "spam.txt", tmp_path / "sets.nft"
    words = ["firewall", "sets", "--mx", MX, "--list", f"spam={source}:2525", "--gateway", "none"]
    words += ["--output", str(file)]
    source.write_text(many(100))
    assert ctl.main(words) == 0
    text = file.read_text()
    assert text.count("203.0.0.2,") == 1
    source.write_text(many(10))
    assert ctl.main(words) == 65
    assert "list spam: IPv4: 100 networks, 100 addresses before, 10 networks" in (
        capsys.readouterr().err
    )
    assert file.read_text() == text
    assert ctl.main([*words, "--max-change", "95"]) == 0
    source.write_text("")
    assert ctl.main(words) == 65
    assert ctl.main([*words, "--any-change"]) == 0
    assert "add element" not in file.read_text()
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["sets.nft", "spam.txt"]


def test_an_allow_file_is_read_as_a_list_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    allow = tmp_path / "allow.txt"
    allow.write_text("203.0.113.9 # a friend\n2001:db8:f::/48\n")
    words = ["firewall", "rules", "--mx", MX, "--list", "spam=/x:2525", "--gateway", "none"]
    assert ctl.main([*words, "--allow-file", str(allow)]) == 0
    text = capsys.readouterr().out
    assert "203.0.113.9" in text
    assert "2001:db8:f::/48" in text
    allow.write_text("friends\n")
    assert ctl.main([*words, "--allow-file", str(allow)]) == 65


def test_sysctl_gives_a_reason_for_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert ctl.main(["firewall", "sysctl"]) == 0
    parts = capsys.readouterr().out.split("\n\n")[1:]
    assert len(parts) == len(sysctls.PROFILE) == 8
    for part in parts:
        assert re.fullmatch(r"(# .+\n)+[a-z0-9._]+ = \d+\n?", part), part


def test_every_sysctl_is_one_of_this_kernel() -> None:
    for one in sysctls.PROFILE:
        if "netfilter" not in one.name:
            assert one.now() is not None, one.name


def test_more_is_enough_where_more_is_better() -> None:
    by_name = {one.name: one for one in sysctls.PROFILE}
    assert by_name["net.core.somaxconn"].fits(1 << 20)
    assert not by_name["net.core.somaxconn"].fits(128)
    assert not by_name["net.ipv4.tcp_syncookies"].fits(2)
