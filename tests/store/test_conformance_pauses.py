"""Pauses, what comes too late, and failures tried again: told on PostgreSQL and on its twin alike."""

from __future__ import annotations

from datetime import time

import numpy as np

from dispatcher.core.catalogue import Catalogue
from dispatcher.core.graph import Sequence
from dispatcher.core.lateness import moves_of
from dispatcher.core.windows import DAYS, Window

HOUR_US = 3_600_000_000
DAY_US = 24 * HOUR_US


async def give_back(story, leased):
    """Everything of a claim, due as it was."""
    token, rows = np.full(len(leased), leased.token), len(leased)
    stop, no = [None] * rows, [False] * rows
    await story.shard.give_back(leased.enrolment, token, leased.due_us, stop, story.now_us, no, no)


async def held(story):
    return [row[21] for row in (await story.world.tables())["enrolments"]]


async def test_the_last_look_sees_whatever_is_paused(story):
    await story.leads("start", "start")
    leased = await story.claim()
    await story.world.pause_fleet(True)
    assert (await story.shard.versions()).paused
    assert await story.look(leased) == {0: "paused", 1: "paused"}
    await story.world.pause_fleet(False)
    await story.world.pause_lead(2, story.now_us + 1)
    assert await story.look(leased) == {1: "paused"}
    await story.world.set_device(1, paused=True)
    assert (await story.store.fleet()).available.tolist() == [False, True]
    assert not (await story.store.fleet()).left.any(), "what waits on a paused device stays there"
    assert await story.look(leased) == {0: "paused", 1: "paused"}
    await story.world.set_device(1, paused=False)
    await story.wait(1)
    assert await story.look(leased) == {}, "the lead's pause is over"


async def test_what_waits_for_a_paused_lead_leaves_the_claims_way_until_it_is_resumed(story):
    await story.leads("start", "start")
    leased = await story.claim()
    await story.world.pause_lead(1, story.now_us + HOUR_US)
    await give_back(story, leased)
    assert await held(story) == [True, False]
    again = await story.claim()
    assert again.enrolment.tolist() == [2]
    await give_back(story, again)
    assert await story.store.unhold(1, 10, story.now_us) == 0
    await story.wait(HOUR_US)
    assert await story.store.unhold(1, 10, story.now_us) == 1
    due = (await story.claim()).due_us
    assert (due == story.now_us - HOUR_US).all(), "it is as late as it is"


def limited(story, when_late, **columns):
    """The story's sequence with a limit of two hours."""
    steps = story.catalogue.sequences[1].steps
    return Catalogue.of([Sequence(1, "fitness", True, steps, max_lateness_h=2.0, when_late=when_late, **columns)])


async def move(story, catalogue):
    late = await story.shard.late({1: story.now_us - 2 * HOUR_US}, 10)
    return await story.shard.move_late(moves_of(late, catalogue, story.now_us, HOUR_US), story.now_us)


async def test_a_step_that_is_too_late_is_skipped_and_the_next_one_keeps_its_time(story):
    await story.leads("start", "x,start")
    begin_us = story.now_us
    leased = await story.claim(slots=1)
    await story.wait(2 * HOUR_US + 1)
    assert await move(story, limited(story, "skip")) == 1, "not what is leased"
    assert await story.states() == [
        ("start", "active", 1, 1, True, False, None),
        ("two", "active", 2, 0, False, False, None),
    ]
    await give_back(story, leased)
    assert await move(story, limited(story, "skip")) == 1
    told = [(id_, 1, id_, 1, 0, "start", begin_us, story.now_us, None) for id_ in (1, 2)]
    assert (await story.world.tables())["late_steps"] == told
    await story.wait(HOUR_US)  # "two" was due an hour after "start"
    assert await move(story, limited(story, "skip")) == 2
    assert await story.store.finish_waiting(10, story.now_us) == 2
    assert [state[:3] for state in await story.states()] == [("two", "completed", 3)] * 2
    assert await story.triggers() == [None, "x"]


async def test_a_step_that_is_too_late_is_shifted_to_the_same_time_of_a_later_day(story):
    await story.leads("start")
    await story.world.set_lead(1, time_zone="Asia/Kuala_Lumpur")
    due_us = story.now_us
    await story.wait(50 * HOUR_US)
    window = Window(time(0), time(0), "UTC", tuple(day for day in DAYS if day != "thu"))
    late = await story.shard.late({1: story.now_us}, 10)
    moves = moves_of(late, limited(story, "shift", send_window=window), story.now_us, HOUR_US)
    assert await story.shard.move_late(moves, story.now_us) == 1
    assert await story.shard.move_late(moves, story.now_us) == 0, "it does not wait as it did"
    (row,) = (await story.world.tables())["enrolments"]
    # Monday 8:00 UTC is 16:00 there; on Thursday that has come again, and Friday there begins 8 hours later.
    assert (row[5], row[6], row[11]) == ("start", due_us + 3 * DAY_US + 8 * HOUR_US, 1)
    assert (await story.world.tables())["late_steps"][0][-1] == row[6]


async def test_nothing_with_an_attempt_in_doubt_is_too_late(story):
    await story.leads("start")
    await story.end(await story.claim(), "in_doubt")
    await story.wait(DAY_US)
    assert len(await story.shard.late({1: story.now_us}, 10)) == 0


async def test_what_has_failed_is_tried_again_under_a_new_key_but_not_for_everybody(story):
    await story.leads(*["start"] * 6)
    await story.end(await story.claim(), *["rejected"] * 6)
    await story.world.set_lead(2, opted_out_us=story.now_us)
    await story.world.set_lead(3, trigger=None)
    await story.world.delete_lead(4)
    await story.world.set_lead(5, trigger=None)
    await story.enrol()
    await story.world.set_lead(5, trigger="start")
    await story.enrol()
    await story.world.lock_leads([6])
    assert await story.world.retry() == 1
    await story.world.lock_leads([])
    assert (await story.world.retry(), await story.world.retry()) == (1, 0)
    rows = (await story.world.tables())["enrolments"]
    assert [(row[2], row[10], row[12], row[13]) for row in rows] == [
        (1, "active", 1, 0),
        *((lead, "failed", 0, 1) for lead in (2, 3, 4, 5)),
        (6, "active", 1, 0),
        (5, "active", 0, 0),
    ]
    assert await story.store.unhold(1, 10, story.now_us) == 2, "a pass of the engine lets them in"
    leased = await story.claim()
    assert sorted(zip(leased.enrolment.tolist(), leased.generation.tolist(), strict=True)) == [(1, 1), (6, 1), (7, 0)]
    await story.end(leased, *["accepted"] * 3)
    assert [row[:3] for row in await story.attempts() if row[0] == 1] == [(1, 1, 1), (1, 1, 1)]
