"""Messages at a time of day and days on which nothing leaves, played with the services of production."""

from __future__ import annotations

import zoneinfo
from collections import Counter
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

import pytest

from dispatcher.core.goals import Goal
from dispatcher.core.graph import Sequence, Step
from dispatcher.core.moments import to_datetime
from dispatcher.core.windows import Blackout, Window
from simulate.sequence_test.gateway import Attempt
from simulate.sequence_test.schema import CaseKeys, DeviceKeys, EventKeys, LeadKeys
from simulate.sequence_test.world import Played, play

NINE = time(9)
COURSE = Sequence(
    None,
    "Course",
    True,
    (
        Step("hello", "Hello", "again", at=NINE, is_entry=True),
        Step("again", "Again", "bye", at=NINE),
        Step("bye", "Bye", at=NINE),
    ),
    time_zone="Asia/Kuala_Lumpur",
)


def case(start: datetime, leads: list[LeadKeys], *events: EventKeys) -> CaseKeys:
    """A test in which only what happens is of interest."""
    return CaseKeys.model_construct(
        **{name: field.default for name, field in CaseKeys.model_fields.items()}
        | {"name": "clocks", "start": start, "leads": leads, "events": list(events)}
    )


def moments(played: Played) -> dict[str, list[datetime]]:
    """When messages arrived, by the lead's name."""
    return {
        person.said.name or "": [to_datetime(attempt.at_us) for attempt in played.attempts(person)]
        for person in played.people
    }


@pytest.mark.parametrize(
    "start",
    [
        datetime(2026, 3, 27, 12, tzinfo=UTC),
        pytest.param(datetime(2026, 10, 31, 1, 30, tzinfo=UTC), marks=pytest.mark.slow),
    ],
)
def test_a_lead_in_each_zone_gets_its_nine_oclock_message_at_nine_across_a_change_of_clocks(start: datetime) -> None:
    """Three mornings around the days on which Europe and on which America change their clocks."""
    zones = sorted(zoneinfo.available_timezones())
    assert len(zones) > 590
    leads = [LeadKeys(name=zone, triggers=["hello"], time_zone=zone) for zone in zones]
    played = play(case(start, leads), [COURSE])
    shifted = 0
    for zone, arrived in moments(played).items():
        clock = ZoneInfo(zone)
        local = [each.astimezone(clock) for each in arrived]
        begun = start.astimezone(clock)
        day = begun.date() + timedelta(days=begun.time() > NINE)
        assert [each.date() for each in local] == [day + timedelta(days=n) for n in range(3)], zone
        for each in local:
            assert timedelta() <= each.replace(tzinfo=None) - datetime.combine(each.date(), NINE) < timedelta(minutes=1)
        shifted += len({each.utcoffset() for each in local}) > 1
    assert shifted > 50


def only(played: Played) -> list[str]:
    """Step and arrival of every message, by UTC's clock."""
    attempts = [each for each in played.story if isinstance(each, Attempt)]
    return [f"{each.step} {to_datetime(each.at_us):%d %H:%M}" for each in attempts]


def test_nothing_leaves_on_a_blackout_and_what_waits_goes_at_its_time_on_the_next_day() -> None:
    """Kuala Lumpur is eight hours ahead. Christmas of 2026 is a Friday; the window shuts the weekend after it."""
    workdays = Window(time(8), time(20), "Asia/Kuala_Lumpur", ("mon", "tue", "wed", "thu", "fri"))
    christmas = Blackout(date(2026, 12, 25), date(2026, 12, 25))
    lead = LeadKeys(triggers=["hello"])
    start = datetime(2026, 12, 23, 12, tzinfo=UTC)
    assert only(play(case(start, [lead]), [COURSE])) == ["hello 24 01:00", "again 25 01:00", "bye 26 01:00"]
    shut = replace(COURSE, blackouts=(christmas,))
    assert only(play(case(start, [lead]), [shut])) == ["hello 24 01:00", "again 26 01:00", "bye 27 01:00"]
    both = replace(COURSE, blackouts=(christmas,), send_window=workdays, time_zone=None)
    assert only(play(case(start, [lead]), [both])) == ["hello 24 01:00", "again 28 01:00", "bye 29 01:00"]


def test_a_backlog_that_a_blackout_cuts_off_goes_when_its_days_are_over() -> None:
    """Five an hour, twelve leads, and two hours to midnight in Kuala Lumpur: two are left for after Christmas."""
    steps = (Step("hello", "Hello", is_entry=True), Step("late", "Late", at=NINE, is_entry=True))
    shut = replace(COURSE, steps=steps, blackouts=(Blackout(date(2026, 12, 25), date(2026, 12, 26)),))
    leads = [LeadKeys(name=f"{n}", triggers=["hello"]) for n in range(12)]
    slow = case(datetime(2026, 12, 24, 14, tzinfo=UTC), leads).model_copy(
        update={"device": DeviceKeys(quota_per_hour=5)}
    )
    assert Counter(only(play(slow, [shut]))) == {"hello 24 14:00": 5, "hello 24 15:01": 5, "hello 26 16:00": 2}


def test_a_goal_ends_the_course_and_is_told() -> None:
    course = replace(COURSE, goal=Goal("bought", "plan == 'pro'"))
    leads = [LeadKeys(name=name, triggers=["hello"]) for name in ("tagged", "changed", "neither")]
    buys = EventKeys(at="30h", lead="tagged", tag="bought")
    plans = EventKeys(at="2d", lead="changed", attributes={"plan": "pro"})
    played = play(case(datetime(2026, 1, 5, 0, tzinfo=UTC), leads, buys, plans), [course])
    assert {name: len(arrived) for name, arrived in moments(played).items()} == {
        "tagged": 2,
        "changed": 2,
        "neither": 3,
    }
    ends = {person.said.name: (row.status, row.stop_reason) for person in played.people for row in person.enrolments}
    left = ("stopped", "goal reached")
    assert ends == {"tagged": left, "changed": left, "neither": ("completed", None)}
    assert [person.trigger for person in played.people] == ["hello,bought", "hello", None]
