"""What the stores promise their services, told on PostgreSQL and on its twin alike."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import numpy as np
import pytest

from dispatcher.core.batches import Leased
from dispatcher.core.graph import Step
from dispatcher.core.identity import idempotency_keys
from dispatcher.core.leases import Ends, Want
from dispatcher.core.moments import NEVER_US
from dispatcher.errors import FencedError
from dispatcher.ports import Enrolled, Search

SECOND_US = 1_000_000
HOUR_US = 3600 * SECOND_US
DAY_US = 24 * HOUR_US
DEADLINE_US = 30 * SECOND_US
STEPS = [Step("start", "one", "two", 1, 1, True), Step("two", "two", None, 24, 2)]
ONE, TWO = UUID(int=1), UUID(int=2)


class Story:
    """Two devices of shard 0, a sequence of two steps, a coordinator and a shard in office."""

    def __init__(self, world: Any) -> None:
        self.world = world
        self.store, self.shard = world.coordinator(), world.shard()

    async def begin(self) -> None:
        for name in ("d-1", "d-2"):
            await self.world.add_device(name, shard_id=0)
        await self.world.add_sequence("fitness", STEPS)
        await self.store.begin_day(self.now_us, 2, DAY_US)
        self.epoch, self.shard_epoch = await self.store.seat.raise_epoch(), await self.shard.seat.raise_epoch()
        self.catalogue = await self.store.catalogue(self.now_us)

    @property
    def now_us(self) -> int:
        return int(self.world.now_us)

    async def wait(self, span_us: int) -> None:
        await self.world.set_now(self.now_us + span_us)

    async def leads(self, *triggers: str | None) -> None:
        """Leads by trigger list, enrolled on device 1."""
        for trigger in triggers:
            known = len((await self.world.tables())["leads"])
            await self.world.add_lead(f"99910{known + 1}", trigger)
        await self.enrol()

    async def enrol(self, rows: int = 100, epoch: int | None = None) -> Enrolled:
        return await self.store.enrol(
            self.catalogue, [ONE] * rows, self.now_us, epoch=epoch or self.epoch, rows=rows, hour_us=HOUR_US
        )

    async def claim(self, slots: int = 9, shard_epoch: int | None = None) -> Leased | None:
        """Claim for device 1, five seconds a slot."""
        want = Want(
            shard=0,
            epoch=shard_epoch or self.shard_epoch,
            device_id=[ONE],
            number=np.array([1], np.int32),
            slots=np.array([slots], np.int32),
            slot_us=self.now_us + 5 * SECOND_US * np.arange(slots, dtype=np.int64),
        )
        return await self.store.claim(want, self.now_us, epoch=self.epoch, deadline_us=DEADLINE_US, lead_fields=True)

    async def look(self, leased: Leased) -> dict[int, str]:
        texts = [f"said to {id_}" for id_ in leased.enrolment.tolist()]
        return await self.shard.last_look(leased, texts, [None] * len(texts), self.now_us, self.now_us - DAY_US)

    async def end(self, leased: Leased, *outcomes: str, next_: str = "waiting") -> None:
        """One outcome a row; an attempt in doubt waits for its resend unless ``next_`` says otherwise."""
        rows, delay_us = len(leased), HOUR_US
        good = [outcome in ("accepted", "repeat") for outcome in outcomes]
        doubt = np.array([outcome == "in_doubt" for outcome in outcomes], np.bool_)
        after = {"rejected": "failed", "opted_out": "stopped"}
        ends = Ends(
            enrolment=leased.enrolment,
            token=np.full(rows, leased.token, np.int64),
            lead=leased.lead,
            visit=leased.visit,
            generation=leased.generation,
            attempt=leased.attempt,
            device=leased.device,
            slot_us=leased.slot_us,
            due_us=leased.due_us,
            at_us=leased.slot_us + SECOND_US,
            step=leased.step,
            key=idempotency_keys(leased.enrolment, leased.visit, leased.generation),
            outcome=list(outcomes),
            message_id=["m" if ok else None for ok in good],
            error=[None if ok else "why" for ok in good],
            next_trigger=["two" if step == "start" else None for step in leased.step],
            next_due_us=leased.slot_us + np.where(good, delay_us, 0),
            next=[after.get(outcome, next_) for outcome in outcomes],
            counted=doubt.astype(np.int32),
            pinned=doubt,
            handed=np.ones(rows, np.bool_),
            text=[f"said to {id_}" if unknown else None for id_, unknown in zip(leased.enrolment, doubt, strict=True)],
            media_url=[None] * rows,
        )
        await self.shard.end(ends, self.now_us, epoch=self.shard_epoch, deadline_us=DEADLINE_US)

    async def states(self) -> list[tuple[Any, ...]]:
        """Every enrolment: step, status, visit, attempt, whether leased, pinned, why stopped."""
        rows = (await self.world.tables())["enrolments"]
        return [(row[5], row[10], row[11], row[13], row[15] is not None, row[20], row[26]) for row in rows]

    async def attempts(self) -> list[tuple[Any, ...]]:
        """The ledger: enrolment, visit, attempt, outcome."""
        return [(row[0], row[1], row[3], row[4]) for row in (await self.world.tables())["ledger"]]

    async def triggers(self) -> list[str | None]:
        return [row[1] for row in (await self.world.tables())["leads"]]

    async def supersede(self) -> None:
        """Another incarnation of the shard takes over."""
        self.shard_epoch = await self.shard.seat.raise_epoch()


WAITING, LEASED = ("start", "active", 1, 0, False, False, None), ("start", "active", 1, 1, True, False, None)


@pytest.fixture
async def story(store_world):
    told = Story(store_world)
    await told.begin()
    return told


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
    assert (tables["enrolments"], tables["queue"]) == ([], [(1, None, "start", False)])


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


async def test_a_superseded_shard_or_coordinator_claims_nothing(story):
    await story.leads("start")
    assert await story.claim(shard_epoch=story.shard_epoch + 100) is None
    await story.store.seat.raise_epoch()
    assert (await story.claim(), await story.states()) == (None, [WAITING])


async def test_what_is_held_paused_or_broken_is_not_claimed(story):
    await story.leads("start")
    assert (await story.store.hold(1, 10), await story.store.held_sequences(), await story.claim()) == (1, [1], None)
    assert (await story.store.unhold(1, 10), await story.store.held_sequences()) == (1, [])
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


# The last look ---------------------------------------------------------------------------------------------------


async def test_the_last_look_sees_every_reason_and_records_the_rest(story):
    await story.leads(*["start"] * 4)
    leased = await story.claim()
    await story.world.set_lead(1, opted_out_us=story.now_us)
    await story.world.delete_lead(2)
    await story.shard.give_back(
        np.array([3]), np.array([leased.token]), np.array([story.now_us]), [None], story.now_us, [False]
    )
    assert await story.look(leased) == {0: "opted out", 1: "trigger removed", 2: "gone"}
    record = (leased.token, story.shard_epoch, story.now_us, [4], [(4, ("said to 4", None))])
    assert (await story.world.tables())["handovers"] == [record]
    await story.world.set_sequence(1, is_active=False)
    assert (await story.look(leased))[3] == "paused"
    await story.supersede()
    assert await story.look(leased) == dict.fromkeys(range(4), "superseded")


async def test_a_resend_whose_key_is_forgotten_does_not_leave(story):
    await story.leads("start")
    await story.end(await story.claim(), "in_doubt")
    await story.wait(2 * DAY_US)
    leased = await story.claim()
    assert (leased.resend_text, await story.look(leased)) == (["said to 1"], {0: "key forgotten"})
    token, now_us = np.array([leased.token]), story.now_us
    assert await story.shard.give_back(leased.enrolment, token, np.array([now_us]), [None], now_us, [True]) == 1
    assert await story.states() == [("start", "in_doubt", 1, 1, False, True, None)]


# Ends ------------------------------------------------------------------------------------------------------------


async def test_an_acceptance_moves_on_and_the_last_one_takes_the_trigger_off(story):
    await story.leads("x,start", "start,start")
    await story.end(await story.claim(), "accepted", "accepted")
    assert await story.states() == [("two", "active", 2, 0, False, False, None)] * 2
    await story.wait(2 * HOUR_US)
    await story.world.lock_leads([2])
    last = await story.claim()
    await story.end(last, "accepted", "accepted")
    assert [state[1] for state in await story.states()] == ["completed", "active"]
    assert (await story.store.finish_waiting(10, story.now_us), await story.triggers()) == (0, ["x", "start,start"])
    await story.world.lock_leads([])
    assert (await story.store.finish_waiting(10, story.now_us), await story.triggers()) == (1, ["x", None])
    assert (await story.world.tables())["queue"] == []


async def test_every_other_outcome_is_written_once_however_often_it_is_told(story):
    await story.leads(*["start"] * 5)
    leased = await story.claim()
    told = ("refused", "rejected", "opted_out", "in_doubt", "credentials")
    await story.end(leased, *told)
    once = await story.world.tables()
    await story.end(leased, *told)
    assert await story.attempts() == [(id_, 1, 1, outcome) for id_, outcome in enumerate(told, 1)]
    assert await story.states() == [
        ("start", "active", 1, 1, False, False, None),
        ("start", "failed", 1, 1, False, False, None),
        ("start", "stopped", 1, 1, False, False, "opted out"),
        ("start", "active", 1, 1, False, True, None),
        ("start", "active", 1, 1, False, False, None),
    ]
    assert await story.world.tables() == once
    assert (once["devices"][0][3:], once["queue"]) == (("quarantined", "credentials"), [(3, "start", "start", True)])


async def test_a_late_acceptance_counts_for_its_own_attempt_only(story):
    await story.leads("start")
    first = await story.claim()
    await story.end(first, "in_doubt")
    await story.wait(HOUR_US)
    second = await story.claim()
    await story.end(second, "in_doubt")
    await story.end(second, "accepted")
    assert await story.attempts() == [(1, 1, 1, "not_sent"), (1, 1, 2, "accepted")]
    assert await story.states() == [("two", "active", 2, 0, False, False, None)]


async def test_a_repetition_credits_the_first_unknown_attempt_once_though_the_commit_is_repeated(story):
    await story.leads("start")
    for outcome in ("in_doubt", "in_doubt", "repeat"):
        leased = await story.claim()
        await story.end(leased, outcome)
        await story.wait(HOUR_US)
    await story.end(leased, "repeat")
    assert await story.attempts() == [(1, 1, 1, "accepted"), (1, 1, 2, "in_doubt"), (1, 1, 3, "repeat")]
    assert [state[:3] for state in await story.states()] == [("two", "active", 2)]


async def test_a_refusal_after_an_unknown_attempt_proves_nothing(story):
    await story.leads("start")
    await story.end(await story.claim(), "in_doubt")
    await story.wait(HOUR_US)
    await story.end(await story.claim(), "rejected")
    assert await story.attempts() == [(1, 1, 1, "in_doubt"), (1, 1, 2, "rejected")]
    assert await story.states() == [("start", "in_doubt", 1, 2, False, True, None)]


async def test_what_moves_on_late_is_no_longer_held(story):
    await story.leads("start")
    leased = await story.claim()
    await story.end(leased, "in_doubt")
    await story.store.hold(1, 10)
    await story.end(leased, "accepted")
    assert ([state[:3] for state in await story.states()], await story.store.held_sequences()) == (
        [("two", "active", 2)],
        [],
    )


async def test_a_lead_stays_with_the_device_it_heard_from_last(story):
    await story.leads("start")
    for home in (TWO, ONE, TWO):
        await story.store.rehome(np.array([len(await story.states())]), [home])
        await story.world.set_lead(1, trigger=None)
        await story.enrol()
        await story.world.set_lead(1, trigger="start")
        assert (await story.enrol()).home == {home: 1}


@pytest.mark.parametrize(
    ("proof", "state"),
    [
        ("not_sent", ("start", "active", 1, 1, False, False, None)),
        ("rejected", ("start", "failed", 1, 1, False, False, None)),
        ("opted_out", ("start", "stopped", 1, 1, False, False, "opted out")),
    ],
)
async def test_a_proof_that_nothing_was_sent_releases_what_was_in_doubt(story, proof, state):
    await story.leads("start")
    leased = await story.claim()
    await story.end(leased, "in_doubt", next_="in_doubt")
    assert await story.states() == [("start", "in_doubt", 1, 1, False, True, None)]
    await story.end(leased, proof)
    assert (await story.attempts(), await story.states()) == ([(1, 1, 1, proof)], [state])


# Rescue and takeover ---------------------------------------------------------------------------------------------


async def test_of_a_superseded_shard_only_what_was_handed_over_is_in_doubt(story):
    await story.leads("start", "start")
    leased = await story.claim()
    await story.look(leased.take(np.flatnonzero(leased.enrolment == 1)))
    assert len(await story.store.ended_leases(story.now_us, 10)) == 0
    await story.supersede()
    ended = await story.store.ended_leases(story.now_us, 10)
    ended = ended.take(np.argsort(ended.enrolment))
    assert (ended.superseded.tolist(), ended.handed.tolist(), ended.text) == (
        [True, True],
        [True, False],
        ["said to 1", None],
    )
    unknown, unsent = ended.take(np.array([0])), ended.take(np.array([1]))
    keys = idempotency_keys(unknown.enrolment, unknown.visit, unknown.generation)
    due_us, now_us = unknown.deadline_us, story.now_us
    assert await story.store.doubt(unknown, keys, np.array([True]), due_us, now_us) == 1
    assert await story.store.return_leases(unsent.enrolment, unsent.token, now_us, now_us) == 1
    assert await story.states() == [("start", "active", 1, 1, False, True, None), WAITING]
    usage = await story.shard.usage(now_us - HOUR_US)
    assert [(each.number, each.at_us.tolist()) for each in usage] == [(1, due_us.tolist())]
    await story.wait(HOUR_US)
    again = await story.claim()
    assert sorted(zip(again.enrolment.tolist(), again.resend_text, strict=True)) == [(1, "said to 1"), (2, None)]


async def test_a_live_shards_lease_over_time_is_named_with_its_owner(story):
    await story.leads("start")
    leased = await story.claim()
    await story.look(leased)
    await story.wait(HOUR_US)
    ended = await story.store.ended_leases(story.now_us - 300 * SECOND_US, 10)
    assert (ended.shard.tolist(), ended.handed.tolist(), ended.token.tolist()) == ([0], [False], [leased.token])


async def test_usage_counts_what_was_or_may_be_sent_at_its_latest_moment(story):
    await story.leads(*["start"] * 4)
    slot_us = story.now_us + 5 * SECOND_US * np.arange(4)
    leased = await story.claim()
    leased = leased.take(np.argsort(leased.enrolment))
    await story.look(leased.take(np.array([3])))
    await story.end(leased.take(np.array([0, 1])), "accepted", "in_doubt")
    in_force = [slot_us[0], slot_us[1] + DEADLINE_US, slot_us[2] + DEADLINE_US, slot_us[3] + DEADLINE_US]
    (usage,) = await story.shard.usage(story.now_us - HOUR_US)
    assert sorted(usage.at_us.tolist()) == in_force
    await story.supersede()
    (usage,) = await story.shard.usage(story.now_us - HOUR_US)
    assert sorted(usage.at_us.tolist()) == [in_force[0], in_force[1], in_force[3]]


async def test_a_record_of_what_is_leased_still_outlives_a_long_standstill(story):
    await story.leads("start", "start")
    leased = await story.claim(slots=1)
    await story.look(leased)
    other = await story.claim(slots=1)
    await story.look(other)
    await story.end(other, "accepted")
    await story.wait(3 * DAY_US)
    await story.store.begin_day(story.now_us, 2, DAY_US)
    await story.supersede()
    ended = await story.store.ended_leases(story.now_us, 10)
    assert (ended.enrolment.tolist(), ended.handed.tolist()) == (leased.enrolment.tolist(), [True])
    assert [row[0] for row in (await story.world.tables())["handovers"]] == [leased.token]
