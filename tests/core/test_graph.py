"""Sequence graphs: every broken thing is found and named; the catalogue follows the steps."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from dispatcher.core.batches import Coded, Indices
from dispatcher.core.catalogue import Catalogue
from dispatcher.core.goals import Goal
from dispatcher.core.graph import Sequence, Step
from dispatcher.core.moments import SECOND_US, from_datetime
from dispatcher.core.soundness import check, problems
from dispatcher.core.windows import Blackout, Window
from dispatcher.errors import GraphError

HOUR_US = 3600 * SECOND_US
FITNESS = Sequence(
    1,
    "30 Day Fitness",
    True,
    (
        Step("fitness_start", "Welcome to fitness!", "fitness_day2", is_entry=True),
        Step("fitness_day2", "Day 2 workout", "fitness_day3", delay_h=48),
        Step("fitness_day3", "Keep going!"),
    ),
)


def sequence(*steps: Step, id_: int | None = 9, name: str = "S", is_active: bool = True) -> Sequence:
    return Sequence(id_, name, is_active, steps)


def entry(trigger: str, next_trigger: str | None = None) -> Step:
    return Step(trigger, "Hi", next_trigger, is_entry=True)


def step(trigger: str, next_trigger: str | None = None) -> Step:
    return Step(trigger, "Hi", next_trigger)


def advance(catalogue: Catalogue, step_index: Indices) -> tuple[Coded[str | None], NDArray[np.float64]]:
    """Next trigger, and hours until it is due."""
    moment_us = np.zeros(len(step_index), np.int64)
    following, due_us = catalogue.advance(step_index, moment_us, [None] * len(step_index), HOUR_US)
    return following, due_us / HOUR_US


def test_the_seeds_sequence_is_sound() -> None:
    assert problems(FITNESS) == []
    check(FITNESS)


@pytest.mark.parametrize(
    ("broken", "expected"),
    [
        (sequence(), ["it has no steps"]),
        (sequence(step("a", "b"), step("b")), ["it has no entry step"]),
        (sequence(entry("a", "x")), ["step 'a': its next trigger 'x' is no step of this sequence"]),
        (sequence(entry("a", "")), ["step 'a': its next trigger '' is no step of this sequence"]),
        (
            sequence(entry("a", "b"), step("b", "c"), step("c", "b")),
            ["step 'b': its steps go round in a circle: 'b' -> 'c' -> 'b'"],
        ),
        (sequence(entry("a", "a")), ["step 'a': its steps go round in a circle: 'a' -> 'a'"]),
        (sequence(entry("a"), step("a")), ["step 'a': 2 steps have this trigger"]),
        (sequence(replace(entry("a"), delay_h=0)), ["step 'a': its delay is 0 hours"]),
        (sequence(replace(entry("a"), delay_h=87_841)), ["step 'a': its delay is 87841 hours"]),
        (sequence(replace(entry("a"), message_text=" \n")), ["step 'a': its message text is empty"]),
        (sequence(entry("")), ["step '': its trigger is empty"]),
        (sequence(entry("a ")), ["step 'a ': its trigger has white space around it"]),
        (sequence(entry("a,b")), ["step 'a,b': its trigger contains a comma"]),
        (sequence(entry("a" * 256)), [f"step '{'a' * 57}...': its trigger has 256 characters"]),
    ],
)
def test_a_broken_thing_is_named_with_its_step(broken: Sequence, expected: list[str]) -> None:
    assert problems(broken) == expected


def test_all_problems_are_told_at_once() -> None:
    broken = sequence(
        replace(entry("a", "x"), delay_h=-1),
        step("b", "c"),
        step("c", "b"),
        replace(step("d"), message_text=""),
    )
    assert problems(broken) == [
        "step 'a': its delay is -1 hours",
        "step 'd': its message text is empty",
        "step 'a': its next trigger 'x' is no step of this sequence",
        "step 'b': its steps go round in a circle: 'b' -> 'c' -> 'b'",
    ]


def test_a_long_circle_is_told_in_one_short_line() -> None:
    ring = sequence(entry("s0", "s1"), *(step(f"s{n}", f"s{(n + 1) % 500}") for n in range(1, 500)))
    (line,) = problems(ring)
    assert line.endswith("'s18' -> 's19' -> 480 more -> 's0'")


def test_check_raises_for_the_first_problem_with_sequence_step_and_advice() -> None:
    with pytest.raises(GraphError) as refused:
        check(sequence(entry("a", "x"), step("b"), name="Crypto"))
    assert str(refused.value) == (
        "sequence 'Crypto', step 'a': its next trigger 'x' is no step of this sequence"
        " - add that step, or leave the next trigger out to end here"
    )
    with pytest.raises(GraphError) as refused:
        check(sequence(name="Empty"))
    assert str(refused.value) == "sequence 'Empty': it has no steps - add at least one entry step"


def test_two_entries_may_share_a_tail() -> None:
    assert problems(sequence(entry("a", "c"), entry("b", "c"), step("c"))) == []


@st.composite
def graphs(draw: st.DrawFn) -> Sequence:
    names = [f"t{n}" for n in range(draw(st.integers(1, 7)))]
    targets = st.none() | st.sampled_from([*names, "elsewhere"])
    return sequence(*(Step(name, "Hi", draw(targets), is_entry=draw(st.booleans())) for name in names))


@given(graphs())
def test_a_sequence_is_sound_exactly_when_it_has_an_entry_and_every_walk_ends(drawn: Sequence) -> None:
    following = {each.trigger: each.next_trigger for each in drawn.steps}
    ends = True
    for start in following:
        at: str | None = start
        for _ in following:
            if at in following:
                at = following[at]
        ends = ends and at is None
    assert (problems(drawn) == []) == (ends and any(each.is_entry for each in drawn.steps))


@given(graphs())
def test_every_step_of_every_circle_is_named(drawn: Sequence) -> None:
    following = {each.trigger: each.next_trigger for each in drawn.steps}
    told = " ".join(line for line in problems(drawn) if "circle" in line)
    for start in following:
        at = following[start]
        for _ in following:
            if at != start:
                at = following.get(at or "")
        assert (f"{start!r} ->" in told) == (at == start)


def test_the_catalogue_opens_the_entries_of_active_sound_sequences_only() -> None:
    paused = sequence(entry("paused_start", "paused_day2"), step("paused_day2"), id_=2, is_active=False)
    broken = sequence(entry("broken_start", "nowhere"), id_=3)
    catalogue = Catalogue.of([FITNESS, paused, broken])
    assert catalogue.entries == {"fitness_start": 1}
    assert catalogue.usable == {1}
    assert catalogue.problems == {3: ["step 'broken_start': its next trigger 'nowhere' is no step of this sequence"]}
    assert catalogue.sequences == {1: FITNESS, 2: paused, 3: broken}
    assert catalogue.step["paused_day2"] == paused.steps[1]
    assert catalogue.sequence_of["broken_start"] is broken


def test_a_batch_advances_by_index_and_a_dangling_trigger_stays_visible() -> None:
    catalogue = Catalogue.of([FITNESS, sequence(entry("broken_start", "nowhere"))])
    at = ["fitness_day2", "fitness_day3", "broken_start", "deleted_step", "fitness_start"]
    index = catalogue.indices(at)
    assert index.tolist() == [1, 2, 3, -1, 0]
    with pytest.raises(ValueError, match="leads nowhere"):
        advance(catalogue, index)
    known = index[index >= 0]
    next_trigger, delay_h = advance(catalogue, known)
    assert next_trigger.tolist() == ["fitness_day3", None, "nowhere", "fitness_day2"]
    assert delay_h.tolist() == [48.0, 24.0, 24.0, 24.0]
    assert catalogue.next_index[known].tolist() == [2, -1, -1, 1]
    assert [catalogue.triggers[i] for i in index if i >= 0] == [t for t in at if t in catalogue.index]


def test_an_empty_catalogue_knows_nothing() -> None:
    catalogue = Catalogue.of([])
    next_trigger, delay_h = advance(catalogue, catalogue.indices([]))
    assert (next_trigger.tolist(), delay_h.tolist(), catalogue.entries) == ([], [], {})
    assert catalogue.indices(["a"]).tolist() == [-1]


def test_a_trigger_belongs_to_one_step() -> None:
    with pytest.raises(GraphError, match="sequence 'Copy', step 'fitness_start': sequence '30 Day Fitness' has"):
        Catalogue.of([FITNESS, sequence(entry("fitness_start"), name="Copy")])
    with pytest.raises(ValueError, match="'S' is not stored yet"):
        Catalogue.of([sequence(entry("a"), id_=None)])


@given(st.lists(graphs(), max_size=3))
def test_the_columns_say_what_the_steps_say(drawn: list[Sequence]) -> None:
    named = [
        replace(
            each,
            id=number,
            steps=tuple(
                replace(
                    s,
                    trigger=f"{number}{s.trigger}",
                    next_trigger=s.next_trigger and f"{number}{s.next_trigger}",
                )
                for s in each.steps
            ),
        )
        for number, each in enumerate(drawn)
    ]
    catalogue = Catalogue.of(named)
    steps = [s for each in named for s in each.steps]
    next_trigger, delay_h = advance(catalogue, np.arange(len(steps)))
    assert catalogue.triggers == [s.trigger for s in steps]
    assert next_trigger.tolist() == [s.next_trigger for s in steps]
    assert delay_h.tolist() == [float(s.delay_h) for s in steps]
    assert catalogue.next_index.tolist() == [catalogue.index.get(s.next_trigger or "", -1) for s in steps]
    assert set(catalogue.problems) == {each.id for each in named if problems(each)}


# Clocks and goals ---------------------------------------------------------------------------------------------------

BERLIN = "Europe/Berlin"


def timed(delay_h: float = 24, at: time = time(9), **columns: Any) -> Catalogue:
    """A message, and a second one at nine o'clock."""
    steps = (Step("a", "Hi", "b", delay_h, is_entry=True), Step("b", "Hi", at=at))
    return Catalogue.of([Sequence(1, "S", True, steps, **({"time_zone": BERLIN} | columns))])


def due(catalogue: Catalogue, accepted: str, zone: str | None = None, hour_us: int = HOUR_US) -> str:
    """When the second message is due, by UTC's clock."""
    accepted_us = np.array([from_datetime(datetime.fromisoformat(accepted).replace(tzinfo=UTC))])
    _, due_us = catalogue.advance(np.array([0]), accepted_us, [zone], hour_us)
    opened_us = catalogue.next_open(np.array([1]), [zone], due_us)
    return f"{datetime.fromtimestamp(int(opened_us[0]) / 1e6, UTC):%d %H:%M}"


@pytest.mark.parametrize(
    ("delay_h", "accepted", "expected"),
    [
        # A day is a midnight: tomorrow at nine, whatever the time of day. Berlin is an hour ahead.
        (24, "2026-01-05T07:00", "06 08:00"),
        (24, "2026-01-05T09:00", "06 08:00"),
        (24, "2026-01-05T22:59", "06 08:00"),
        (24, "2026-01-05T23:01", "07 08:00"),
        (48, "2026-01-05T09:00", "07 08:00"),
        # Hours pass first: four of them, and then the next nine o'clock.
        (4, "2026-01-05T03:59", "05 08:00"),
        (4, "2026-01-05T04:00", "05 08:00"),
        (4, "2026-01-05T04:01", "06 08:00"),
        (36, "2026-01-05T09:00", "06 08:00"),
        (36, "2026-01-05T19:00", "07 08:00"),
        (1.5, "2026-01-05T06:31", "06 08:00"),
    ],
)
def test_a_day_is_a_midnight_and_hours_pass_first(delay_h: float, accepted: str, expected: str) -> None:
    assert due(timed(delay_h), accepted) == expected


def test_nothing_is_due_within_an_hour_of_the_message_before() -> None:
    at_midnight = timed(at=time(0))
    assert due(at_midnight, "2026-01-05T22:00") == "05 23:00"
    assert due(at_midnight, "2026-01-05T22:01") == "06 23:00"
    # Hours of delays may be shorter, those of clocks are not.
    assert due(at_midnight, "2026-01-05T22:58", hour_us=60 * SECOND_US) == "05 23:00"


def test_the_clock_is_the_leads_and_of_unknown_zones_the_sequences() -> None:
    catalogue = timed()
    at = "2026-01-05T12:00"
    assert [due(catalogue, at, zone) for zone in ("Asia/Tokyo", "America/New_York", None, "Nowhere/Land")] == [
        "06 00:00",
        "06 14:00",
        "06 08:00",
        "06 08:00",
    ]
    assert catalogue.by_clock.tolist() == [True, True, False]


def test_a_time_of_day_on_a_shut_day_is_that_of_the_next_open_one() -> None:
    weekdays = Window(time(8), time(20), BERLIN, ("mon", "tue", "wed", "thu", "fri"))
    christmas = (Blackout(date(2026, 1, 6), date(2026, 1, 7)),)
    assert due(timed(send_window=weekdays, time_zone=None), "2026-01-09T09:00") == "12 08:00"
    assert due(timed(blackouts=christmas), "2026-01-05T09:00") == "08 08:00"
    assert due(timed(send_window=weekdays, time_zone=None, blackouts=christmas), "2026-01-05T09:00") == "08 08:00"
    nights = Window(time(22), time(2), BERLIN, ("fri",))
    assert due(timed(at=time(1), send_window=nights, time_zone=None), "2026-01-05T09:00") == "10 00:00"


def test_an_entry_with_a_time_of_day_is_due_when_the_clock_shows_it() -> None:
    first = Step("a", "Hi", at=time(9), is_entry=True)
    catalogue = Catalogue.of([Sequence(1, "S", True, (first,), time_zone=BERLIN), replace(FITNESS, id=2)])
    now_us = from_datetime(datetime(2026, 1, 5, 8, 0, tzinfo=UTC))
    assert catalogue.entry_dues(["Asia/Tokyo", None], now_us) == {"a": {"Asia/Tokyo": now_us + 16 * HOUR_US}}
    assert catalogue.entry_dues([BERLIN], now_us + 1) == {"a": {BERLIN: now_us + 24 * HOUR_US}}
    assert Catalogue.of([FITNESS]).entry_dues([BERLIN], now_us) == {}


def test_what_waits_behind_a_shut_window_goes_at_the_opening_or_at_its_time() -> None:
    window = Window(time(8), time(20), BERLIN)
    catalogue = timed(send_window=window, time_zone=None)
    now_us = from_datetime(datetime(2026, 1, 5, 19, 0, tzinfo=UTC))
    assert catalogue.openings(1, [None, "America/New_York"], now_us, 0) == {
        "": {"": now_us + 12 * HOUR_US},
        "b": {"": now_us + 13 * HOUR_US},
    }


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ({"time_zone": None}, "it has times or days by the clock, and no time zone for leads whose own is unknown"),
        ({"time_zone": "Nowhere/Land"}, "it has the unknown time zone 'Nowhere/Land'"),
        (
            {"send_window": Window(time(10), time(20), "UTC")},
            "step 'b': its time 09:00 is not within the send window 10:00-20:00 (UTC), 15 minutes before it shuts at"
            " the latest",
        ),
        (
            {"blackouts": (Blackout(date(2026, 2, 1), date(2026, 1, 1)),)},
            "its blackout from 2026-02-01 to 2026-01-01 has -30 days",
        ),
        ({"goal": Goal("a")}, "step 'a': its trigger is the goal, too: whoever enters leaves"),
        (
            {"goal": Goal(None, "a.b")},
            "its goal 'a.b' cannot be read: 'Getattr' is not allowed in a message",
        ),
        ({"goal": Goal(None, "a %}no")}, "its goal 'a %}no' cannot be read: it is more than a condition"),
    ],
)
def test_clocks_and_goals_that_make_no_sense_are_problems(columns: dict[str, Any], problem: str) -> None:
    assert timed(**columns).problems == {1: [problem]}


def test_a_window_holds_a_time_that_leaves_a_quarter_of_an_hour() -> None:
    steps = (Step("a", "Hi", is_entry=True, at=time(19, 45)),)
    for closes, sound in ((time(20), True), (time(19, 59), False), (time(8), True)):
        window = Window(time(8), closes, "UTC")
        assert (problems(Sequence(1, "S", True, steps, send_window=window)) == []) == sound


def test_fleet_wide_blackouts_shut_every_sound_sequence() -> None:
    christmas = Blackout(date(2026, 12, 25), date(2026, 12, 26))
    own = Blackout(date(2026, 5, 1), date(2026, 5, 1))
    others = sequence(entry("x"), id_=2)
    catalogue = Catalogue.of([replace(FITNESS, blackouts=(own,), time_zone=BERLIN), others], [christmas])
    always = Window(time(), time(), "UTC")
    assert catalogue.windows == [
        replace(always, time_zone=BERLIN, blackouts=(own, christmas)),
        replace(always, blackouts=(christmas,)),
    ]
    assert catalogue.window.tolist() == [0, 0, 0, 1, -1]
    assert Catalogue.of([FITNESS]).windows == []
