"""Last looks, ends of attempts, takeovers: what the stores promise, told on PostgreSQL and on its twin alike."""

from __future__ import annotations

from uuid import UUID

import numpy as np
import pytest

from dispatcher.core.identity import idempotency_keys

SECOND_US = 1_000_000
HOUR_US = 3600 * SECOND_US
DAY_US = 24 * HOUR_US
DEADLINE_US = 30 * SECOND_US
ONE, TWO = UUID(int=1), UUID(int=2)
WAITING = ("start", "active", 1, 0, False, False, None)


# The last look ---------------------------------------------------------------------------------------------------


async def test_the_last_look_sees_every_reason_and_records_the_rest(story):
    await story.leads(*["start"] * 4)
    leased = await story.claim()
    await story.world.set_lead(1, opted_out_us=story.now_us)
    await story.world.delete_lead(2)
    await story.shard.give_back(
        np.array([3]), np.array([leased.token]), np.array([story.now_us]), [None], story.now_us, [False], [False]
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
    assert (
        await story.shard.give_back(leased.enrolment, token, np.array([now_us]), [None], now_us, [True], [False]) == 1
    )
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
    assert (once["devices"][0][3:], once["queue"]) == (("quarantined", "credentials"), [([3], None, None, True)])


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


# Whom an answer blames ----------------------------------------------------------------------------------------------


async def test_a_step_that_is_refused_is_paused_and_who_comes_to_it_is_set_aside(story):
    await story.leads(*["start"] * 4)
    first = await story.claim(slots=2)
    await story.end(first, "content", "quality")
    tables = await story.world.tables()
    assert tables["paused steps"] == [("start", "why")]
    assert tables["devices"][0][3:] == ("quarantined", "quality")
    leased = await story.claim(slots=2)
    assert await story.look(leased) == {0: "step paused", 1: "step paused"}
    token, due_us, no = np.full(2, leased.token), np.full(2, story.now_us), [False] * 2
    given = await story.shard.give_back(leased.enrolment, token, due_us, [None] * 2, story.now_us, no, [True, False])
    held = [row[21] for row in (await story.world.tables())["enrolments"]]
    assert (given, held.count(True)) == (2, 1)
    assert (await story.store.hold_step("two", 10), await story.store.hold_step("start", 10)) == (0, 3)
    assert (await story.store.held_sequences(), await story.store.unhold(1, 10, story.now_us)) == ([1], 0)
    await story.world.edit_step("start", paused=None)
    assert (await story.store.unhold(1, 10, story.now_us), await story.store.held_sequences()) == (4, [])


async def test_who_has_written_to_a_device_lately_has_its_window_open(story):
    await story.leads("start", "start", "start")
    await story.world.reply("9", "hi", lead=1, received_us=story.now_us - HOUR_US)
    await story.world.reply("9", "hi", lead=2, received_us=story.now_us - HOUR_US, device=ONE)
    await story.world.reply("9", "hi", lead=3, received_us=story.now_us - DAY_US)
    lead, since_us = np.array([1, 2, 2, 3, 9]), story.now_us - DAY_US
    device = np.array([1, 1, 2, 1, 1], np.int32)
    assert (await story.shard.open_windows(lead, device, since_us)).tolist() == [True, True, False, False, False]
    assert (await story.shard.open_windows(lead[:0], device[:0], since_us)).tolist() == []


async def test_devices_of_one_account_rest_together_and_are_told_once(story):
    for name, account in (("d-3", "a"), ("d-4", "a"), ("d-5", "b")):
        await story.world.add_device(name, gateway_account=account, shard_id=1)
    until_us = story.now_us + 60 * SECOND_US
    numbers = np.array([3, 1], np.int32)
    assert await story.shard.rest_accounts(numbers, np.array([until_us, until_us])) == 2
    assert await story.shard.rest_accounts(numbers, np.array([until_us - SECOND_US, until_us])) == 0
    rests = [(1, None), (2, None), (3, until_us), (4, until_us), (5, None)]
    assert (await story.world.tables())["rests"] == rests
    assert (await story.store.fleet()).rest_until_us.tolist() == [until or 0 for _, until in rests]
