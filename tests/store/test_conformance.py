"""Epochs, caches, enrolling, claims: what the stores promise, told on PostgreSQL and on its twin alike."""

from __future__ import annotations

from uuid import UUID

import numpy as np
import pytest

from dispatcher.core.graph import Step
from dispatcher.core.moments import NEVER_US
from dispatcher.errors import FencedError
from dispatcher.ports import Enrolled, Search

SECOND_US = 1_000_000
HOUR_US = 3600 * SECOND_US
DAY_US = 24 * HOUR_US
ONE, TWO = UUID(int=1), UUID(int=2)
WAITING, LEASED = ("start", "active", 1, 0, False, False, None), ("start", "active", 1, 1, True, False, None)


# Who may act -----------------------------------------------------------------------------------------------------


async def test_epochs_rise_over_all_seats_and_a_beat_reads_the_one_in_force(story):
    later = story.world.shard(1)
    assert (await later.seat.beat(10.0)).epoch is None
    raised = [
        await later.seat.raise_epoch(),
        await story.shard.seat.raise_epoch(),
        await story.store.seat.raise_epoch(),
    ]
    assert story.shard_epoch < raised[0] < raised[1] < raised[2]
    assert [(await seat.beat(10.0)).epoch for seat in (later.seat, story.shard.seat, story.store.seat)] == raised
    assert (later.seat.name, story.store.seat.name, await later.seat.wall_us() > 0) == ("shard-1", "coordinator", True)


async def test_one_leads_until_it_leaves_or_its_time_is_over(story):
    one, two = story.world.coordinator("one").seat, story.world.coordinator("two").seat
    assert (await one.leader(), await one.lead(1e6), await two.lead(1e6), await two.leader()) == (
        None,
        True,
        False,
        "one",
    )
    await two.leave()
    assert await two.lead(1e6) is False
    await one.leave()
    assert (await two.lead(-1.0), await one.lead(1e6), await one.leader()) == (True, True, "one")


async def test_a_heartbeat_from_before_the_clock_stepped_back_has_ended(story):
    assert await story.world.coordinator("one").seat.lead(1000.0)
    assert (await story.world.coordinator("two").seat.lead(600.0), await story.store.seat.leader()) == (False, "one")
    assert (await story.world.coordinator("two").seat.lead(10.0), await story.store.seat.leader()) == (True, "two")


# What the caches read --------------------------------------------------------------------------------------------


async def test_versions_tell_of_sequences_and_devices_apart(story):
    begun = await story.store.versions()
    await story.world.edit_step("two", message_text="other")
    edited = await story.shard.versions()
    await story.world.set_device(1, health="draining")
    drained = await story.store.versions()
    assert (edited.sequences > begun.sequences, edited.devices) == (True, begun.devices)
    assert (drained.sequences, drained.devices > edited.devices) == (edited.sequences, True)
    assert (await story.shard.catalogue()).step["two"].message_text == "other"
    assert (await story.store.fleet()).available.tolist() == [False, True]


async def test_a_broken_sequence_is_recorded_and_its_entries_close(story):
    await story.world.edit_step("two", next_trigger="start")
    catalogue = await story.store.catalogue(story.now_us)
    tables = await story.world.tables()
    assert (catalogue.entries, [row[0] for row in tables["problems"]], tables["entries"]) == ({}, [1], [])
    await story.world.edit_step("two", next_trigger=None)
    await story.store.catalogue(story.now_us + 1)
    tables = await story.world.tables()
    assert (tables["problems"], tables["entries"]) == ([], [("start", 1, story.now_us + 1, 0, False)])


async def test_a_device_that_moves_supersedes_its_owner(story):
    await story.store.assign_shards(np.array([1, 2], np.int32), np.array([0, 1], np.int32))
    assert (await story.shard.seat.beat(10.0)).epoch > story.shard_epoch
    assert (await story.shard.fleet()).number.tolist() == [1]
    assert (await story.world.shard(1).fleet()).number.tolist() == [2]


async def test_a_day_opens_its_partitions_once(story):
    assert await story.store.begin_day(story.now_us, 2, DAY_US) == 0
    assert await story.store.begin_day(story.now_us + DAY_US, 2, DAY_US) == 1


async def test_what_enrolments_stand_on_cannot_be_deleted(story):
    await story.leads("start")
    with pytest.raises(Exception, match="live enrolments"):
        await story.world.remove_device(1)
    with pytest.raises(Exception, match="has enrolments"):
        await story.world.remove_sequence(1)


# Enrolling -------------------------------------------------------------------------------------------------------


async def test_exact_tokens_enrol_once(story):
    for number, trigger in enumerate([" start ,x,start", "starts", "two", None, "x"], 1):
        await story.world.add_lead(f"99910{number}", trigger)
    assert await story.enrol() == Enrolled(4, 0, {ONE: 1})
    assert await story.enrol() == Enrolled(0, 0, {})
    assert (await story.states(), await story.store.home_load()) == ([WAITING], {ONE: 1})


async def test_a_superseded_coordinator_enrols_nobody(story):
    await story.world.add_lead("999101", "start")
    await story.store.seat.raise_epoch()
    with pytest.raises(FencedError):
        await story.enrol()
    tables = await story.world.tables()
    assert (tables["enrolments"], tables["queue"]) == ([], [([1], None, None, False)])


async def test_a_home_device_of_the_leads_own_comes_first_while_it_is_available(story):
    await story.world.add_lead("999101", "start", home_device_id=TWO)
    assert (await story.enrol()).home == {TWO: 1}
    await story.world.set_device(2, health="offline")
    await story.world.add_lead("999102", "start", home_device_id=TWO)
    assert (await story.enrol()).home == {ONE: 1}


async def test_a_trigger_taken_off_stops_and_one_put_back_enters_anew(story):
    await story.leads("start")
    await story.world.set_lead(1, trigger=None)
    assert await story.enrol() == Enrolled(1, 1, {})
    await story.world.set_lead(1, trigger="start")
    assert await story.enrol() == Enrolled(1, 0, {ONE: 1})
    assert await story.states() == [("start", "stopped", 1, 0, False, False, "trigger removed"), WAITING]


async def test_a_trigger_that_comes_back_while_an_attempt_is_under_way_never_left(story):
    await story.leads("start")
    leased = await story.claim()
    await story.world.set_lead(1, trigger=None)
    await story.enrol()
    assert (await story.states(), await story.look(leased)) == ([(*LEASED[:6], "trigger removed")], {0: "stopped"})
    await story.world.set_lead(1, trigger="start")
    await story.enrol()
    assert (await story.states(), await story.look(leased)) == ([LEASED], {})


async def test_an_opt_out_stops_and_the_kept_trigger_does_not_enrol_again(story):
    await story.leads("start")
    await story.world.set_lead(1, opted_out_us=story.now_us)
    await story.enrol()
    await story.world.set_lead(1, opted_out_us=None)
    assert await story.enrol() == Enrolled(1, 0, {})
    assert await story.states() == [("start", "stopped", 1, 0, False, False, "opted out")]


async def test_an_entry_that_opens_later_finds_its_leads_in_stretches(story):
    for number, trigger in enumerate(["later", "laters", "x,later"], 1):
        await story.world.add_lead(f"99910{number}", trigger)
    await story.enrol()
    while await story.store.search_entries(10):
        pass
    await story.world.add_sequence("later", [Step("later", "text", None, 1, 1, True)])
    story.catalogue = await story.store.catalogue(story.now_us)
    found = [await story.store.search_entries(2) for _ in range(3)]
    assert found == [Search("later", 1, False), Search("later", 1, True), None]
    assert (await story.enrol()).home == {ONE: 2}


# Claims ----------------------------------------------------------------------------------------------------------


async def test_the_longest_overdue_take_the_first_slots(story):
    await story.leads("start")
    await story.wait(HOUR_US)
    await story.leads("start", "start")
    leased = await story.claim(slots=2)
    assert leased is not None
    assert (sorted(leased.enrolment.tolist()), leased.attempt.tolist(), leased.epoch) == (
        [1, 2],
        [1, 1],
        story.shard_epoch,
    )
    assert (leased.slot_us - story.now_us)[np.argsort(leased.enrolment)].tolist() == [0, 5 * SECOND_US]
    assert await story.states() == [LEASED, LEASED, WAITING]
    assert (await story.store.next_due([ONE, TWO])).tolist() == [story.now_us, NEVER_US]


async def test_a_claim_begins_where_it_is_told_that_nothing_is_due_before(story):
    await story.leads("start")
    await story.wait(HOUR_US)
    await story.leads("start")
    for since_us, expected in ((story.now_us + 1, None), (story.now_us, [2]), (story.now_us - HOUR_US, [1])):
        leased = await story.claim(since_us=since_us)
        assert (leased and leased.enrolment.tolist()) == expected


async def test_a_superseded_shard_or_coordinator_claims_nothing(story):
    await story.leads("start")
    assert await story.claim(shard_epoch=story.shard_epoch + 100) is None
    await story.store.seat.raise_epoch()
    assert (await story.claim(), await story.states()) == (None, [WAITING])


async def test_what_is_held_paused_or_broken_is_not_claimed(story):
    await story.leads("start")
    assert (await story.store.hold(1, 10), await story.store.held_sequences(), await story.claim()) == (1, [1], None)
    assert (await story.store.unhold(1, 10, story.now_us), await story.store.held_sequences()) == (1, [])
    await story.world.set_sequence(1, is_active=False)
    assert (await story.claim(), (await story.store.next_due([ONE])).tolist()) == (None, [NEVER_US])
    await story.world.set_sequence(1, is_active=True)
    await story.world.edit_step("two", next_trigger="gone")
    await story.store.catalogue(story.now_us)
    assert await story.claim() is None


async def test_a_claim_that_no_call_brought_is_read_as_it_stands(story):
    await story.world.add_lead("999101", "start", name="Ann", attributes={"city": "X", "b": 1})
    await story.enrol()
    leased = await story.claim()
    assert await story.shard.leased_tokens(story.shard_epoch) == [leased.token]
    read = await story.shard.read_lease(story.shard_epoch, leased.token)
    assert (read.enrolment.tolist(), read.slot_us.tolist(), read.name, read.attributes, read.step) == (
        leased.enrolment.tolist(),
        leased.slot_us.tolist(),
        ["Ann"],
        ['{"b": 1, "city": "X"}'],
        ["start"],
    )
    assert await story.shard.read_lease(story.shard_epoch, leased.token + 1) is None


async def test_waiting_enrolments_move_and_leased_ones_stay(story):
    await story.leads("start", "start")
    await story.claim(slots=1)
    moved = await story.store.misplaced([ONE], 10)
    assert (moved.tolist(), await story.store.rehome(np.array([1, 2]), [TWO, TWO])) == ([2], 1)
    assert await story.store.home_load() == {ONE: 1, TWO: 1}
