"""Send windows against a plain reading of the clock on the wall, minute by minute."""

from __future__ import annotations

import zoneinfo
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from dispatcher.config import Settings
from dispatcher.core.batches import Coded
from dispatcher.core.moments import from_datetime, span_us, to_datetime
from dispatcher.core.windows import DAYS, MIN_OPEN_S, Blackout, Window, is_zone, next_open, next_open_of, next_shut

_STEP_US = span_us(300)
DAYTIME = Window(time(9), time(20), "Asia/Kuala_Lumpur")
OVERNIGHT = Window(time(22, 30), time(1, 30), "UTC", ("fri", "sat"))
WORKDAYS = Window(time(0), time(0), "UTC", ("mon", "tue", "wed", "thu", "fri"))

CHANGES = (Blackout(date(2026, 3, 29), date(2026, 3, 29)), Blackout(date(2027, 10, 30), date(2027, 11, 7)))
"""Days around which Europe and America change their clocks."""


def is_open(window: Window, zone: ZoneInfo, moment_us: int) -> bool:
    """What the clock on the wall says."""
    local = to_datetime(moment_us).astimezone(zone)
    if any(shut.first <= local.date() <= shut.last for shut in window.blackouts):
        return False
    clock, day = local.time(), local.weekday()
    if window.opens < window.closes:
        return window.opens <= clock < window.closes and DAYS[day] in window.days
    if clock >= window.opens:
        return DAYS[day] in window.days
    return clock < window.closes and DAYS[day - 1] in window.days


def first_open(window: Window, zone: ZoneInfo, moment_us: int) -> int:
    """The first open moment from ``moment_us`` on, in steps: windows and changes of clocks lie on them."""
    while not is_open(window, zone, moment_us):
        moment_us = moment_us // _STEP_US * _STEP_US + _STEP_US
    return moment_us


def moments_us(*texts: str) -> np.ndarray:
    return np.array([from_datetime(datetime.fromisoformat(text).replace(tzinfo=UTC)) for text in texts])


def changes_us(name: str) -> list[int]:
    """Days of 2026 and 2027 on which a zone changes its clocks."""
    zone, start = ZoneInfo(name), datetime(2026, 1, 1, tzinfo=UTC)

    def changes(moments: list[datetime]) -> Iterator[datetime]:
        offsets = [moment.astimezone(zone).utcoffset() for moment in moments]
        return (moments[n] for n in range(len(moments) - 1) if offsets[n] != offsets[n + 1])

    weeks = list(changes([start + timedelta(weeks=week) for week in range(106)]))
    return [from_datetime(day) for week in weeks for day in changes([week + timedelta(days=day) for day in range(8)])]


@pytest.fixture(scope="module")
def changing() -> list[tuple[str, int]]:
    """Zone and day of every change of clocks in two years; of zones that change alike the first one's."""
    alike: dict[tuple[int, ...], tuple[str, int]] = {}
    for name in sorted(zoneinfo.available_timezones()):
        for day_us in changes_us(name):
            around = (day_us - span_us(86_400), day_us + span_us(2 * 86_400))
            offsets = (to_datetime(at).astimezone(ZoneInfo(name)).utcoffset().total_seconds() for at in around)
            alike.setdefault((day_us, *map(int, offsets)), (name, day_us))
    assert len(alike) > 80
    return list(alike.values())


@pytest.mark.parametrize(
    "window",
    [
        DAYTIME,
        Window(time(2, 15), time(2, 45), "UTC"),
        Window(time(1, 30), time(3), "UTC", ("sat", "sun")),
        Window(time(23), time(2, 30), "UTC"),
        OVERNIGHT,
        WORKDAYS,
        replace(DAYTIME, blackouts=CHANGES),
        Window(time(23), time(2, 30), "UTC", blackouts=CHANGES),
        Window(time(0), time(0), "UTC", blackouts=CHANGES),
    ],
    ids=repr,
)
def test_every_change_of_clocks_of_two_years(window: Window, changing: list[tuple[str, int]]) -> None:
    """The clock is read every five minutes of the days around each change."""
    for name, day_us in changing:
        zone = ZoneInfo(name)
        grid_us = np.arange(day_us - span_us(86_400), day_us + span_us(2 * 86_400), _STEP_US)
        opened = np.array([is_open(window, zone, moment) for moment in grid_us.tolist()])
        known = np.flatnonzero(opened)
        until = known[-1] + 1 if len(known) else 0
        found_us = next_open(grid_us, name, window)
        expected_us = grid_us[known[np.searchsorted(known, np.arange(until))]]
        assert found_us[:until].tolist() == expected_us.tolist(), (name, to_datetime(day_us))
        assert (found_us[until:] > grid_us[-1]).all()


@given(
    st.sampled_from(
        ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu", "Africa/Casablanca"]
    ),
    st.integers(0, 287),
    st.integers(3, 288),
    st.sets(st.sampled_from(DAYS), min_size=1),
    st.datetimes(datetime(2025, 6, 1), datetime(2029, 6, 1)),
)
def test_any_window_at_any_moment(name: str, opens: int, steps: int, days: set[str], moment: datetime) -> None:
    def clock(step: int) -> time:
        return time(step % 288 // 12, step % 12 * 5)

    window = Window(clock(opens), clock(opens + steps), "UTC", tuple(day for day in DAYS if day in days))
    moment_us = from_datetime(moment.replace(tzinfo=UTC))
    found_us = int(next_open(np.array([moment_us]), name, window)[0])
    assert found_us == first_open(window, ZoneInfo(name), moment_us)


def test_a_time_that_clocks_jump_over_opens_as_they_jump() -> None:
    """In Berlin 2:00 to 3:00 did not come on 29 March 2026."""
    window = Window(time(2, 30), time(5), "Europe/Berlin")
    asked = moments_us("2026-03-29T00:50", "2026-03-30T00:10")
    assert (next_open(asked, "Europe/Berlin", window) == moments_us("2026-03-29T01:00", "2026-03-30T00:30")).all()
    gap = Window(time(2, 15), time(2, 45), "Europe/Berlin")
    assert next_open(moments_us("2026-03-29T00:00"), "Europe/Berlin", gap) == moments_us("2026-03-30T00:15")


def test_a_time_that_comes_twice_is_inside_both_times() -> None:
    """In Berlin 2:00 to 3:00 comes twice on 25 October 2026: from 0:00 UTC and from 1:00 UTC."""
    window = Window(time(2), time(2, 30), "Europe/Berlin")
    asked = moments_us("2026-10-25T00:10", "2026-10-25T00:30", "2026-10-25T01:10", "2026-10-25T01:30")
    opened = moments_us("2026-10-25T00:10", "2026-10-25T01:00", "2026-10-25T01:10", "2026-10-26T01:00")
    assert (next_open(asked, "Europe/Berlin", window) == opened).all()


def test_what_cannot_arrive_before_it_closes_waits_for_the_next_opening() -> None:
    closes = moments_us("2026-01-05T12:00")  # 20:00 in Kuala Lumpur
    deadline_us = span_us(30)
    asked = np.concatenate([closes - deadline_us - 1, closes - deadline_us, closes - 1, closes])
    opens = moments_us("2026-01-06T01:00")[0]
    found = next_open(asked, "Asia/Kuala_Lumpur", DAYTIME, deadline_us)
    assert found.tolist() == [asked[0], opens, opens, opens]
    assert next_open(asked, "Asia/Kuala_Lumpur", DAYTIME).tolist() == [*asked[:3], opens]


@pytest.mark.parametrize("window", [DAYTIME, OVERNIGHT, WORKDAYS, replace(WORKDAYS, blackouts=CHANGES)])
@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "Australia/Lord_Howe"])
def test_a_window_is_open_until_it_shuts(window: Window, zone: str) -> None:
    """Every quarter of an hour of the weeks in which Berlin changes its clocks: one walk from border to border."""
    for start in moments_us("2026-03-27", "2026-10-22"):
        for moment in range(int(start), int(start) + span_us(6 * 86_400), span_us(900)):
            shuts = next_shut(moment, zone, window)
            assert (shuts == moment) == (not is_open(window, ZoneInfo(zone), moment))
            if shuts > moment:
                assert is_open(window, ZoneInfo(zone), shuts - 1)
                assert not is_open(window, ZoneInfo(zone), shuts)
    opens = int(moments_us("2026-03-27T01:00")[0])
    assert next_shut(opens, "Asia/Kuala_Lumpur", DAYTIME, 30) == opens + span_us(11 * 3600) - 30


def test_a_week_with_nights_in_it_opens_on_its_own_days_only() -> None:
    asked = moments_us("2026-01-09T22:00", "2026-01-10T01:00", "2026-01-11T01:29", "2026-01-11T22:40")
    opened = moments_us("2026-01-09T22:30", "2026-01-10T01:00", "2026-01-11T01:29", "2026-01-16T22:30")
    assert (next_open(asked, "UTC", OVERNIGHT) == opened).all()


def test_a_window_that_never_closes_on_its_days_has_no_seam_at_midnight() -> None:
    midnight = moments_us("2026-01-06T00:00")
    asked = np.concatenate([midnight - 1, midnight, moments_us("2026-01-10T00:00")])
    monday = moments_us("2026-01-12T00:00")[0]
    assert next_open(asked, "UTC", WORKDAYS, span_us(60)).tolist() == [*asked[:2], monday]


def test_each_row_goes_by_its_own_window_and_zone_and_unknown_zones_by_the_windows() -> None:
    at = moments_us("2026-01-05T22:00")[0]  # 6:00 in Kuala Lumpur, 17:00 in New York
    zones: list[str | None] = ["Asia/Kuala_Lumpur", "America/New_York", None, "Nowhere/Land", "America/New_York"]
    which = np.array([0, 0, 0, 0, -1])
    found = next_open_of([DAYTIME], which, Coded.of(zones), np.full(5, at))
    morning = moments_us("2026-01-06T01:00")[0]
    assert found.tolist() == [morning, at, morning, morning, at]


def test_every_window_is_open_for_longer_than_a_message_may_take_to_leave() -> None:
    with pytest.raises(ValidationError):
        Settings(deadline_s=MIN_OPEN_S)
    shortest = Window(time(2), time(2, 15), "Europe/Berlin", ("sun",))
    assert shortest.length_us == span_us(MIN_OPEN_S)
    longest_us = span_us(MIN_OPEN_S) - 1
    # The last Sunday in March has no 2:00, so there is nothing for two weeks.
    found = next_open(moments_us("2026-03-22T01:00:01"), "Europe/Berlin", shortest, longest_us)
    assert found == moments_us("2026-04-05T00:00")


def test_what_is_a_zone() -> None:
    assert is_zone("Europe/Berlin")
    assert not any(
        map(is_zone, ("", "Nowhere/Land", "../../etc/passwd", "Europe", "Europe/Berlin\0", "/etc/localtime"))
    )


def test_a_window_opens_after_a_year_of_blackouts() -> None:
    year = tuple(Blackout(date(2026, month, 1), date(2026, month, 28)) for month in range(1, 13))
    rest = (Blackout(date(2026, 1, 1), date(2026, 12, 31)), Blackout(date(2027, 1, 1), date(2027, 12, 31)))
    asked = moments_us("2026-01-05T12:00", "2026-02-28T12:00", "2026-03-29T00:30")
    monthly = next_open(asked, "UTC", Window(time(9), time(20), "UTC", blackouts=year))
    assert (monthly == moments_us("2026-01-29T09:00", "2026-03-29T09:00", "2026-03-29T09:00")).all()
    never = Window(time(9), time(20), "UTC", ("mon",), rest)
    assert (next_open(asked, "Asia/Tokyo", never) == moments_us(*["2028-01-03T00:00"] * 3)).all()
    assert next_shut(int(asked[0]), "UTC", never) == asked[0]
