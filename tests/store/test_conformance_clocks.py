"""Times of day, blackouts and goals: what the stores promise of them, told on PostgreSQL and on its twin alike."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, time
from typing import Any

import numpy as np

from dispatcher.core.goals import Goal
from dispatcher.core.windows import Blackout, Window

HOUR_US = 3_600_000_000
BERLIN = "Europe/Berlin"
"""It is Monday, 5 January 2026, 8:00 UTC: 9:00 in Berlin, 17:00 in Tokyo."""
TODAY = Blackout(date(2026, 1, 5), date(2026, 1, 5))
MIDWEEK = Blackout(date(2026, 1, 7), date(2026, 1, 8))


async def changed(story: Any, **columns: Any) -> None:
    """The sequence is edited, and the coordinator has seen it."""
    await story.world.set_sequence(1, **columns)
    story.catalogue = await story.store.catalogue(story.now_us)


async def enrolments(story: Any, *columns: int) -> list[tuple[Any, ...]]:
    """Some columns of every enrolment."""
    return [tuple(row[column] for column in columns) for row in (await story.world.tables())["enrolments"]]


async def dues(story: Any) -> list[float]:
    """Hours from now, enrolment by enrolment."""
    return [(due - story.now_us) / HOUR_US for (due,) in await enrolments(story, 6)]


async def fates(story: Any) -> list[tuple[Any, ...]]:
    """Status, end, whether the trigger is kept, and why, enrolment by enrolment."""
    return await enrolments(story, 10, 8, 22, 26)


async def test_what_is_written_is_what_is_read(story):
    goal = Goal("bought", "plan == 'pro'")
    begun = await story.store.versions()
    await story.world.set_sequence(1, time_zone=BERLIN, goal=goal, blackouts=(TODAY, MIDWEEK))
    await story.world.edit_step("two", at=time(9), delay_h=25.5)
    await story.world.set_blackouts(MIDWEEK)
    assert (await story.store.versions()).sequences > begun.sequences
    for catalogue in (await story.store.catalogue(story.now_us), await story.shard.catalogue()):
        [sequence] = catalogue.sequences.values()
        assert (sequence.time_zone, sequence.goal, sequence.blackouts) == (BERLIN, goal, (TODAY, MIDWEEK))
        assert (sequence.steps[1].at, sequence.steps[1].delay_h) == (time(9), 25.5)
        assert catalogue.windows == [Window(time(), time(), BERLIN, blackouts=(TODAY, MIDWEEK))]
        assert (catalogue.goals, catalogue.blackouts) == ({1: goal}, (MIDWEEK,))
    await story.world.set_sequence(1, goal=None, blackouts=())
    await story.world.set_blackouts()
    emptied = await story.shard.catalogue()
    assert (emptied.windows, emptied.goals) == ([], {})


async def test_an_entry_is_due_at_its_time_of_day_and_not_on_a_blackout(story):
    await story.world.edit_step("start", at=time(9))
    await changed(story, time_zone=BERLIN)
    for number, zone in enumerate((None, "Asia/Tokyo", "America/New_York", "Nowhere/Land"), 1):
        await story.world.add_lead(f"99910{number}", "start", time_zone=zone)
    await story.enrol()
    assert await dues(story) == [0, 16, 6, 0]
    await story.world.set_blackouts(TODAY)
    await changed(story, blackouts=(MIDWEEK,))
    await story.world.add_lead("99920", "start", time_zone="America/New_York")
    await story.wait(24 * HOUR_US)
    await story.world.add_lead("99921", "start", time_zone="Asia/Tokyo")
    await story.world.add_lead("99922", "start")
    await story.enrol()
    assert (await dues(story))[4:] == [6, 64, 0]


async def test_steps_with_a_time_of_their_own_are_postponed_to_it(story):
    await story.leads("start", "start")
    await story.world.set_lead(2, time_zone=BERLIN)
    await story.world.edit_step("start", at=time(9))
    opens_us = story.now_us + HOUR_US
    found = {"": {"": opens_us, BERLIN: opens_us}, "start": {BERLIN: opens_us + HOUR_US}, "two": {"": opens_us * 2}}
    assert await story.shard.postpone({1: found}, story.now_us, 100) == 2
    assert await dues(story) == [1, 2]


async def test_who_gets_the_goals_trigger_leaves_and_keeps_the_entry_trigger(story):
    await changed(story, goal=Goal("bought"))
    await story.leads("start", "start", "start,bought", "start")
    assert await fates(story) == [
        ("active", None, False, None),
        ("active", None, False, None),
        ("stopped", story.now_us, True, "goal reached"),
        ("active", None, False, None),
    ]
    await story.world.set_lead(1, trigger="start, bought")
    await story.world.set_lead(2, trigger="start,bought_it")
    await story.world.set_lead(4, trigger="bought")
    done = await story.enrol()
    assert (done.taken, done.stopped) == (3, 2)
    assert await fates(story) == [
        ("stopped", story.now_us, True, "goal reached"),
        ("active", None, False, None),
        ("stopped", story.now_us, True, "goal reached"),
        ("stopped", story.now_us, False, "trigger removed"),
    ]
    await story.world.set_lead(1, trigger="start")
    assert (await story.enrol()).home == {}


async def test_a_leased_enrolment_is_marked_and_its_message_does_not_leave(story):
    await changed(story, goal=Goal("bought"))
    await story.leads("start", "start")
    leased = await story.claim()
    await story.world.set_lead(2, trigger="start,bought")
    assert (await story.enrol()).stopped == 1
    assert (await fates(story))[1] == ("active", None, True, "goal reached")
    assert await story.shard.last_look(leased, ["x", "y"], [None, None], story.now_us, 0) == {1: "stopped"}
    await story.end(leased.take(np.array([1])), "refused")
    assert (await fates(story))[1] == ("stopped", story.now_us, True, "goal reached")


async def test_attributes_are_looked_at_only_where_a_goal_reads_them(story):
    await story.leads("start", "start")
    await story.world.set_lead(1, attributes={"plan": "pro"})
    assert (await story.world.tables())["queue"] == []
    await changed(story, goal=Goal(None, "plan == 'pro'"))
    # Who has reached it before it was the goal leaves, too.
    assert (await story.world.tables())["queue"] == [([1, 2], None, None, False)]
    assert (await story.enrol()).stopped == 1
    await story.world.set_lead(2, attributes={"plan": "free"})
    assert (await story.enrol()).stopped == 0
    await story.world.set_lead(2, attributes={"plan": "pro"}, name="Bo")
    assert (await story.enrol()).stopped == 1
    assert [row[0] for row in await fates(story)] == ["stopped", "stopped"]


async def test_a_goal_counts_while_its_sequence_is_paused_or_broken(story):
    goal = Goal("bought")
    await changed(story, goal=goal)
    await story.leads("start", "start")
    await changed(story, is_active=False)
    await story.world.set_lead(1, trigger="start,bought")
    assert (await story.enrol()).stopped == 1
    await story.world.edit_step("two", delay_h=0)
    await changed(story, is_active=True)
    assert story.catalogue.problems.keys() == {1}
    await story.world.set_lead(2, trigger="start,bought")
    assert (await story.enrol()).stopped == 1
    assert story.catalogue.goals == {1: goal}
    assert story.catalogue.sequences[1] == replace(story.catalogue.sequences[1], goal=goal)
