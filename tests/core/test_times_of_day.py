"""Times of day against a plain reading of the clock on the wall, quarter of an hour by quarter."""

from __future__ import annotations

import zoneinfo
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.core.batches import Coded
from dispatcher.core.moments import SECOND_US, from_datetime, span_us, to_datetime
from dispatcher.core.times_of_day import TimeOfDay, day_of, next_at, on_day

DAY_US = span_us(86_400)
QUARTER_US = span_us(900)
DAY_0 = date(1970, 1, 1)
TIMES = [time(0), time(0, 30), time(1, 45), time(2), time(2, 30), time(3), time(9), time(23, 45)]


def at_utc(text: str) -> int:
    return from_datetime(datetime.fromisoformat(text).replace(tzinfo=UTC))


def day(text: str) -> int:
    return (date.fromisoformat(text) - DAY_0).days


def first(text: str, zone: str, at: time) -> str:
    """The first moment of a day at which the clock has reached a time, by UTC's clock."""
    return f"{to_datetime(int(on_day(np.array([day(text)]), zone, at)[0])):%Y-%m-%d %H:%M}"


def weeks_of_changes() -> list[tuple[str, datetime]]:
    """Zone and begin of every week of 2026 and 2027 with a change of clocks; of zones that change alike the first."""
    weeks = [datetime(2026, 1, 1, tzinfo=UTC) + timedelta(weeks=week) for week in range(106)]
    alike: dict[tuple[object, ...], tuple[str, datetime]] = {}
    for name in sorted(zoneinfo.available_timezones()):
        shown = [week.astimezone(ZoneInfo(name)).utcoffset() for week in weeks]
        for week, before, after in zip(weeks, shown, shown[1:], strict=False):
            if before != after:
                alike.setdefault((week, before, after), (name, week))
    return list(alike.values())


def test_every_change_of_clocks_of_two_years_in_every_zone() -> None:
    """In the week of each the clock is read every quarter of an hour."""
    found = weeks_of_changes()
    assert len(found) > 80
    for name, week in found:
        zone, begin_us = ZoneInfo(name), from_datetime(week)
        grid_us = np.arange(begin_us - DAY_US, begin_us + 9 * DAY_US, QUARTER_US)
        shown = [to_datetime(moment).astimezone(zone).replace(tzinfo=UTC) for moment in grid_us.tolist()]
        reached_us = np.maximum.accumulate(np.array([from_datetime(each) for each in shown]))
        days = [week.date() + timedelta(days=number) for number in range(8)]
        for at in TIMES:
            wanted_us = [from_datetime(datetime.combine(each, at, UTC)) for each in days]
            expected_us = grid_us[np.searchsorted(reached_us, wanted_us)]
            given_us = on_day(np.array([(each - DAY_0).days for each in days]), name, at)
            assert given_us.tolist() == expected_us.tolist(), (name, week, at)


@given(
    st.sampled_from(sorted(zoneinfo.available_timezones())), st.datetimes(datetime(2020, 1, 1), datetime(2035, 1, 1))
)
def test_the_day_is_that_of_the_clock_on_the_wall(name: str, moment: datetime) -> None:
    aware = moment.replace(tzinfo=UTC)
    shown = aware.astimezone(ZoneInfo(name)).date()
    assert day_of(np.array([from_datetime(aware)]), name).tolist() == [(shown - DAY_0).days]


def test_a_time_that_clocks_jump_over_is_the_moment_they_jump() -> None:
    """In Berlin 2:00 to 3:00 did not come on 29 March 2026; in Samoa 30 December 2011 did not."""
    assert first("2026-03-29", "Europe/Berlin", time(2, 30)) == "2026-03-29 01:00"
    assert first("2026-03-29", "Europe/Berlin", time(3)) == "2026-03-29 01:00"
    assert first("2026-03-29", "Europe/Berlin", time(9)) == "2026-03-29 07:00"
    assert first("2011-12-30", "Pacific/Apia", time(9)) == "2011-12-30 10:00"
    assert first("2011-12-31", "Pacific/Apia", time(9)) == "2011-12-30 19:00"


def test_of_a_time_that_comes_twice_the_first_counts() -> None:
    """In Berlin 2:00 to 3:00 comes twice on 25 October 2026: from 0:00 UTC and from 1:00 UTC."""
    assert first("2026-10-25", "Europe/Berlin", time(2, 30)) == "2026-10-25 00:30"
    assert first("2026-10-25", "Europe/Berlin", time(3)) == "2026-10-25 02:00"
    moments_us = np.array([at_utc("2026-10-25T00:30"), at_utc("2026-10-25T00:31"), at_utc("2026-10-25T01:10")])
    nobody, none = Coded.same(None, 3), np.zeros(3, np.int64)
    found = next_at(
        [TimeOfDay(time(2, 30), "Europe/Berlin")], np.zeros(3, np.intp), nobody, moments_us, none, moments_us
    )
    assert found.tolist() == [moments_us[0], *[at_utc("2026-10-26T01:30")] * 2]


def test_days_far_from_each_other_are_worked_out_apart() -> None:
    days = np.array([day("2026-01-05"), day("2031-07-05"), day("1999-07-05")])
    found = on_day(days, "America/New_York", time(9))
    assert [f"{to_datetime(each):%Y %H}" for each in found.tolist()] == ["2026 14", "2031 13", "1999 13"]


@pytest.mark.parametrize("zone", ["Pacific/Kiritimati", "Etc/GMT+12", "Pacific/Apia", "UTC"])
def test_no_day_is_lost_between_blocks(zone: str) -> None:
    """Every midnight of four years, at the ends of the earth."""
    days = np.arange(day("2025-01-01"), day("2029-01-01"))
    found = on_day(days, zone, time())
    assert (day_of(found, zone) == days).all()
    assert (np.diff(found) == DAY_US).all()
    assert (day_of(found - SECOND_US, zone) == days - 1).all()
