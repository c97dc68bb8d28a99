"""The calendar jumps, summer time comes and goes, and the zone's file vanishes.

A library before libc moves CLOCK_REALTIME while the daemon runs; CLOCK_MONOTONIC, by
which everything is timed, goes on.  The dates expected come from zoneinfo.
"""

from __future__ import annotations

import datetime
import re
import time
import zoneinfo
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest
from running import Daemon, Syslog, running, until

from tests.faults.catalogue import Told
from tests.faults.inject import Crowd, Shim
from tests.system.test_surroundings import need_zone

ZONE = "America/Denver"  # both of its names have three letters
DAY = 86_400
_DATE = re.compile(rb"ready at ([^;(]+?) \(([A-Z]+)\);")


def date_of(daemon: Daemon) -> tuple[float, str, str]:
    """Of the banner: seconds since the epoch, the offset, the zone's name."""
    found = _DATE.search(daemon.banner())
    assert found
    text = found[1].decode()
    return parsedate_to_datetime(text).timestamp(), text[-5:], found[2].decode()


def follows(daemon: Daemon, ahead: float) -> float:
    """Seconds until the banner shows a clock that is so far ahead of ours."""
    began = time.monotonic()
    until(lambda: abs(date_of(daemon)[0] - time.time() - ahead) < 3, 5, "the new date")
    return time.monotonic() - began


@pytest.mark.parametrize(("fault", "ahead"), [("clock a day forward", DAY), ("clock a day back", -DAY)])  # fmt: skip
def test_a_clock_that_jumps(syslog: Syslog, shim: Shim, told: Told, fault: str, ahead: int) -> None:
    """Followed within a second; lines keep coming, rates stay true."""
    options = ("--interval", "1", "--log-connections", "capped:20")
    with running(syslog, *options, env=shim.env) as daemon:
        crowd = Crowd(daemon.port, 1.5, 200)
        time.sleep(0.3)
        shim.clock(ahead)
        took = follows(daemon, ahead)
        before = len(syslog.lines)
        until(
            lambda: (
                daemon.banner()
                and len([one for one in syslog.lines[before:] if "turned away" in one]) > 20
            ),
            what="more lines than one second has",
        )
        result = crowd.nobody_was_lost()
        day = datetime.datetime.fromtimestamp(time.time() + ahead).day
        assert re.match(rf"<\d+>\w{{3}} +{day} ", syslog.wait_for("interval: "))
        seconds = [int(re.search(r": (\d+) s,", line)[1]) for line in syslog.matching("interval:")]  # type: ignore[index]
        assert set(seconds) <= {1, 2}
        assert daemon.settled(result.started)["sent"] >= result.started
        assert daemon.stop() == 0
        totals = syslog.wait_for(r"stopped: SIGTERM; totals: \d+ s")
        assert int(re.search(r"totals: (\d+) s", totals)[1]) < 60  # type: ignore[index]
    assert took < 1.5
    told(fault, result, lost=f"nobody; the new date was said after {took:.1f} s", logged=[])


def change(summer_ends: bool) -> datetime.datetime:
    """The next change of ZONE, in UTC."""
    there = zoneinfo.ZoneInfo(ZONE)
    hour = datetime.timedelta(hours=1)
    moment = datetime.datetime.now(datetime.UTC).replace(minute=0, second=0, microsecond=0)
    for _ in range(366 * 24):
        moment += hour
        before, after = ((moment - one).astimezone(there).utcoffset() for one in (hour, 0 * hour))
        if before != after and (before > after) == summer_ends:  # type: ignore[operator]
            return moment
    raise AssertionError("no change within a year")


def over_the_change(daemon: Daemon, shim: Shim, moment: datetime.datetime) -> list[tuple[str, str]]:
    """Put the clock a second before a change; the (offset, zone) that were said."""
    ahead = int(moment.timestamp() - 1 - time.time())
    shim.clock(ahead)
    follows(daemon, ahead)
    said: list[tuple[str, str]] = []
    end = time.monotonic() + 2.5
    while len(said) < 2 and time.monotonic() < end:
        seconds, offset, zone = date_of(daemon)
        assert abs(seconds - time.time() - ahead) < 3  # the offset and the hour agree
        if (offset, zone) not in said:
            said.append((offset, zone))
        time.sleep(0.05)
    return said


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("summer time ends", [("-0600", "MDT"), ("-0700", "MST")]),
        ("summer time begins", [("-0700", "MST"), ("-0600", "MDT")]),
    ],
)
def test_summer_time(
    syslog: Syslog, shim: Shim, told: Told, fault: str, said: list[tuple[str, str]]
) -> None:
    need_zone(ZONE)
    with running(syslog, env={**shim.env, "TZ": ZONE}) as daemon:
        crowd = Crowd(daemon.port, 1.5, 200)
        assert over_the_change(daemon, shim, change(fault.endswith("ends"))) == said
        result = crowd.nobody_was_lost()
    words = " then ".join(f"{offset} ({zone})" for offset, zone in said)
    told(fault, result, lost=f"nobody; the banner said {words}", logged=[])


def test_the_zone_outlives_its_file(syslog: Syslog, shim: Shim, told: Told, tmp_path: Path) -> None:
    need_zone(ZONE)
    file = tmp_path / "zone"
    file.write_bytes(Path("/usr/share/zoneinfo", ZONE).read_bytes())
    file.chmod(0o644)
    with running(syslog, env={**shim.env, "TZ": f":{file}"}) as daemon:
        file.unlink()
        crowd = Crowd(daemon.port, 1.5, 200)
        said = over_the_change(daemon, shim, change(True))
        assert said == [("-0600", "MDT"), ("-0700", "MST")]
        result = crowd.nobody_was_lost()
    told(
        "time zone's file removed", result,
        lost="nobody; the zone and its next change are still known", logged=[],
    )  # fmt: skip
