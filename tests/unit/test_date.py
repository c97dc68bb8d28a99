"""The date in a banner: right in every zone, at every second, in any locale.

Owns: banner.date_text.  Zones are set as an operator sets them, by TZ and
tzset(3), and set back afterwards.
"""

import email.utils
import locale
import os
import re
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from turnaway.banner import LONGEST_DATE, date_text

FORM = re.compile(
    r"(Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d\d"
    r" (Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) \d{4}"
    r" \d\d:\d\d:\d\d [+-]\d{4}( \([A-Za-z0-9+-]{1,8}\))?"
)

Zone = Callable[[str], None]


@pytest.fixture
def zone() -> Iterator[Zone]:
    """Sets TZ; what it was comes back."""
    before = os.environ.get("TZ")

    def put(name: str) -> None:
        os.environ["TZ"] = name
        time.tzset()

    yield put
    os.environ.pop("TZ", None)
    if before is not None:
        os.environ["TZ"] = before
    time.tzset()


def moment(*utc: int) -> int:
    return int(datetime(*utc, tzinfo=UTC).timestamp())  # type: ignore[arg-type]


def test_the_date_of_2003(zone: Zone) -> None:
    zone("America/Denver")
    assert date_text(1062423017) == "Mon, 01 Sep 2003 07:30:17 -0600 (MDT)"


CHANGES = [
    ("Europe/Berlin", moment(2026, 3, 29, 1), "+0100 (CET)", "+0200 (CEST)"),
    ("Europe/Berlin", moment(2026, 10, 25, 1), "+0200 (CEST)", "+0100 (CET)"),
    ("America/Denver", moment(2026, 3, 8, 9), "-0700 (MST)", "-0600 (MDT)"),
    ("America/Denver", moment(2026, 11, 1, 8), "-0600 (MDT)", "-0700 (MST)"),
    ("Australia/Lord_Howe", moment(2026, 4, 4, 15), "+1100 (+11)", "+1030 (+1030)"),
]


@pytest.mark.parametrize(("name", "change", "before", "after"), CHANGES)
def test_second_by_second_across_a_daylight_saving_change(
    zone: Zone, name: str, change: int, before: str, after: str
) -> None:
    """One process, TZ read once, as the daemon does it."""
    zone(name)
    for now in range(change - 90, change + 91):
        local = datetime.fromtimestamp(now, ZoneInfo(name))
        text = date_text(now)
        assert text.endswith(f" {before if now < change else after}")
        assert text.startswith(local.strftime("%a, %d %b %Y %H:%M:%S %z"))
        parsed = email.utils.parsedate_to_datetime(text)
        assert int(parsed.timestamp()) == now


def test_both_changes_of_a_year_in_one_process(zone: Zone) -> None:
    zone("Europe/Berlin")
    offsets = [
        date_text(moment(2026, month, 15, 12)).partition(" (")[0][-5:] for month in range(1, 13)
    ]
    assert offsets == ["+0100"] * 3 + ["+0200"] * 7 + ["+0100"] * 2


def test_a_second_begins_with_its_second(zone: Zone) -> None:
    zone("UTC")
    assert date_text(1062423017.999999) == date_text(1062423017.0)
    assert date_text(1062423018.0) != date_text(1062423017.0)


@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("UTC", "+0000 (UTC)"),
        ("America/Sao_Paulo", "-0300 (-03)"),
        ("Asia/Kathmandu", "+0545 (+0545)"),
        ("Asia/Kolkata", "+0530 (IST)"),
        ("America/St_Johns", "-0330 (NST)"),
        ("Pacific/Marquesas", "-0930 (-0930)"),
        ("Pacific/Kiritimati", "+1400 (+14)"),
        ("Pacific/Niue", "-1100 (-11)"),
        ("<+0330>-3:30", "+0330 (+0330)"),
        ("ABC0:30", "-0030 (ABC)"),
        ("<ABCDEFGH>-1", "+0100 (ABCDEFGH)"),
        ("<ABCDEFGHI>-1", "+0100"),  # nine: one too many
    ],
)
def test_zones(zone: Zone, name: str, end: str) -> None:
    zone(name)
    text = date_text(moment(2026, 1, 15, 12))
    assert FORM.fullmatch(text)
    assert text.endswith(f" {end}")
    assert len(text) <= len(LONGEST_DATE)


@pytest.mark.parametrize("name", ["A)B", "(x)", "A B", "A\r\nX", "\x1b[2J", "é", "", "A.B", "A:B"])
def test_a_zone_name_that_may_not_be_sent_is_left_out(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    local = time.struct_time(
        (2026, 1, 15, 12, 0, 0, 3, 15, 0), {"tm_zone": name, "tm_gmtoff": -3600}
    )
    monkeypatch.setattr(time, "localtime", lambda moment: local)
    assert date_text(0) == "Thu, 15 Jan 2026 12:00:00 -0100"


@pytest.mark.parametrize("wanted", ["de_DE.UTF-8", "ja_JP.UTF-8", "fa_IR", "ar_EG.UTF-8"])
def test_english_in_any_locale(zone: Zone, wanted: str) -> None:
    before = locale.setlocale(locale.LC_ALL)
    try:
        locale.setlocale(locale.LC_ALL, wanted)
    except locale.Error:
        reason = f"needs the locale {wanted} (package locales-all)"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    try:
        zone("America/Denver")
        months = [date_text(moment(2026, month, month, 12)) for month in range(1, 13)]
        abroad = time.strftime("%a %b", time.localtime(moment(2026, 5, 5, 12)))
    finally:
        locale.setlocale(locale.LC_ALL, before)
    assert abroad != "Tue May"  # the locale is indeed another
    assert all(FORM.fullmatch(text) for text in months)
    assert months == [date_text(moment(2026, month, month, 12)) for month in range(1, 13)]
    assert months[4] == "Tue, 05 May 2026 06:00:00 -0600 (MDT)"


@given(now=st.integers(0, moment(2100, 1, 1)), hours=st.integers(-12, 14))
@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_moment_is_read_back_by_another_program(zone: Zone, now: int, hours: int) -> None:
    zone(f"<X>{-hours}")
    text = date_text(now)
    assert FORM.fullmatch(text)
    assert int(email.utils.parsedate_to_datetime(text).timestamp()) == now
