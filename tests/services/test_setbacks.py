"""Everything a gateway may say that is no acceptance, and what comes too late."""

from __future__ import annotations

import asyncio

import pytest

WAITING = ("999101", "fitness_start", 1, "active", False, None)


async def progress(world) -> tuple:
    """Of the one enrolment: retry_count, last_error, pinned, and seconds from the moment it was enrolled to its due."""
    return (
        await world.rows(
            "SELECT retry_count, last_error, pinned, extract(epoch FROM next_trigger_time - enrolled_at)::float8 "
            "FROM sequence_contacts"
        )
    )[0]


async def outcomes(world) -> list[tuple]:
    return await world.rows("SELECT attempt, outcome FROM message_ledger ORDER BY attempt")


@pytest.fixture
async def begun(world):
    """One lead at its first step, nothing sent yet."""
    await world.begin()
    await world.lead("fitness_start")
    return world


async def test_a_refusal_is_counted_and_waits_a_backoff_that_grows(begun, answer):
    begun.sender.script["999101"] = [answer("refused", "no route")] * 2
    await begun.tick()
    retries, error, pinned, first_s = await progress(begun)
    assert (retries, error, pinned, await begun.states()) == (1, "no route", False, [WAITING])
    assert 30 <= first_s <= 60
    await begun.hours(1)
    began_us = begun.now_us
    await begun.tick()
    due_us = await begun.value("SELECT dripline_us(next_trigger_time) FROM sequence_contacts")
    assert 210e6 <= due_us - began_us <= 420e6
    await begun.hours(1)
    await begun.tick()
    assert await outcomes(begun) == [(1, "refused"), (2, "refused"), (3, "accepted")]
    assert await begun.states() == [("999101", "fitness_day2", 2, "active", False, None)]
    assert (await progress(begun))[:2] == (0, None)


async def test_after_the_last_retry_it_has_failed_and_the_trigger_stays(new_world, answer):
    world = await new_world(retry_limit=1)
    await world.fitness()
    await world.begin()
    await world.lead("fitness_start")
    world.sender.script["999101"] = [answer("refused", "no route")] * 5
    for _ in range(4):
        await world.tick()
        await world.hours(1)
    assert await world.states() == [("999101", "fitness_start", 1, "failed", False, None)]
    assert (await progress(world))[:2] == (2, "no route")
    assert await world.rows("SELECT trigger FROM leads") == [("fitness_start",)]
    assert len(world.sender.requests) == 2


@pytest.mark.parametrize(
    ("outcome", "after_s", "wait_s"), [("throttled", 90.0, 90.0), ("throttled", None, 60.0), ("expired", 7.0, 7.0)]
)
async def test_what_is_not_the_contacts_fault_is_not_counted(begun, answer, outcome, after_s, wait_s):
    begun.sender.script["999101"] = [answer(outcome, "later", float("nan") if after_s is None else after_s)]
    await begun.tick(1)
    assert await progress(begun) == (0, "later", False, wait_s)
    assert await begun.states() == [WAITING]
    await begun.hours(1)
    await begun.tick()
    assert await outcomes(begun) == [(1, outcome), (2, "accepted")]


async def test_what_came_too_late_waits_a_backoff_that_is_not_counted(begun, answer):
    begun.sender.script["999101"] = [answer("expired", "too late")] * 2
    waits_s = []
    for _ in range(2):
        slot_us = begun.now_us
        await begun.tick()
        waits_s.append(
            (await begun.value("SELECT dripline_us(next_trigger_time) FROM sequence_contacts") - slot_us) / 1e6
        )
        await begun.hours(1)
    assert [30 <= wait_s <= 60 for wait_s in waits_s] == [True, True]
    assert (await progress(begun))[:3] == (0, "too late", False)
    await begun.tick()
    assert await outcomes(begun) == [(1, "expired"), (2, "expired"), (3, "accepted")]


async def test_refused_credentials_quarantine_the_device_and_its_contacts_move(new_world, answer):
    world = await new_world(devices=2)
    await world.fitness()
    await world.begin()
    first = await world.value("SELECT id FROM devices WHERE name = 'd-1'")
    await world.lead("fitness_start", home_device_id=first)
    world.sender.script["999101"] = [answer("credentials", "401")]
    await world.tick()
    await world.tick()
    assert await world.rows("SELECT name, health, health_cause FROM devices ORDER BY name") == [
        ("d-1", "quarantined", "credentials"),
        ("d-2", "available", None),
    ]
    assert [(request.device, request.attempt) for request in world.sender.requests] == [(1, 1), (2, 2)]
    assert await outcomes(world) == [(1, "credentials"), (2, "accepted")]


async def test_an_invalid_number_fails(begun, answer):
    begun.sender.script["999101"] = [answer("rejected", "invalid_recipient: no such number")]
    await begun.tick()
    assert await begun.states() == [("999101", "fitness_start", 1, "failed", False, None)]
    assert (await progress(begun))[:2] == (0, "invalid_recipient: no such number")


async def test_a_recipient_who_wants_no_messages_gets_none_from_any_sequence(world, answer):
    await world.sequence("Crypto", "crypto_welcome", "crypto_day2")
    await world.begin()
    await world.lead("crypto_welcome")
    await world.tick()
    await world.execute("UPDATE leads SET trigger = 'crypto_welcome,fitness_start'")
    world.sender.script["999101"] = [answer("opted_out", "recipient said STOP")]
    await world.tick()
    await world.tick()
    assert await world.states() == [
        ("999101", "crypto_day2", 2, "stopped", False, "opted out"),
        ("999101", "fitness_start", 1, "stopped", False, "opted out"),
    ]
    assert await world.value("SELECT opted_out_at IS NOT NULL FROM leads")


async def test_an_unknown_attempt_is_sent_again_with_the_same_key_from_the_same_device(new_world, answer):
    world = await new_world(devices=2)
    await world.fitness()
    await world.begin()
    await world.lead("fitness_start")
    world.sender.script["999101"] = [answer("in_doubt", "time-out"), answer("repeat")]
    await world.tick(1)
    assert await progress(world) == (1, "time-out", True, 35.0)
    home = world.sender.requests[0].device
    await world.execute("UPDATE devices SET health = 'draining' WHERE number = $1", home)
    await world.hours(1)
    await world.tick()
    assert len(world.sender.requests) == 1, "its device may not send, and no other may"
    await world.execute("UPDATE devices SET health = 'available'")
    await world.tick()
    first, second = world.sender.requests
    assert (second.device, second.key, second.text) == (home, first.key, first.text)
    assert await outcomes(world) == [(1, "accepted"), (2, "repeat")], "the first had arrived"
    assert await world.states() == [("999101", "fitness_day2", 2, "active", False, None)]


async def test_a_fresh_acceptance_proves_that_the_unknown_attempt_never_arrived(begun, answer):
    begun.sender.script["999101"] = [answer("in_doubt", "time-out")]
    await begun.tick(1)
    await begun.hours(1)
    await begun.tick()
    assert await outcomes(begun) == [(1, "not_sent"), (2, "accepted")]


async def test_accepted_before_without_a_known_attempt_is_the_acceptance(begun, answer):
    begun.sender.script["999101"] = [answer("repeat")]
    await begun.tick()
    assert await outcomes(begun) == [(1, "accepted")]


@pytest.mark.parametrize("outcome", ["rejected", "opted_out"])
async def test_no_refusal_proves_anything_about_an_unknown_attempt(begun, answer, outcome):
    begun.sender.script["999101"] = [answer("in_doubt", "time-out"), answer(outcome, "no")]
    await begun.tick(1)
    await begun.hours(1)
    await begun.tick()
    assert await outcomes(begun) == [(1, "in_doubt"), (2, outcome)]
    reason = "opted out" if outcome == "opted_out" else None
    assert await begun.states() == [("999101", "fitness_start", 1, "in_doubt", False, reason)]


async def test_a_gateway_that_forgets_keys_leaves_it_in_doubt(new_world, answer):
    world = await new_world(0)
    await world.devices(1, gateway_idempotent=False)
    await world.fitness()
    await world.begin()
    await world.lead("fitness_start")
    world.sender.script["999101"] = [answer("in_doubt", "time-out")]
    await world.tick()
    await world.hours(48)
    await world.tick()
    assert await world.states() == [("999101", "fitness_start", 1, "in_doubt", False, None)]
    assert len(world.sender.requests) == 1


@pytest.mark.parametrize("claimed", [False, True])
async def test_a_gateway_that_no_longer_honours_keys_gets_no_resend(begun, answer, claimed):
    """It honoured them when the attempt became unknown; the resend waits, or is claimed already."""
    begun.sender.script["999101"] = [answer("in_doubt", "time-out")]
    await begun.tick()
    begun.shards.hand_over = not claimed
    await begun.hours(0.1)
    if claimed:
        await begun.tick()
    await begun.execute("UPDATE devices SET gateway_idempotent = false")
    if claimed:
        await begun.shards.shards[0].hand_over(begun.now_us - 60_000_000, begun.now_us)
    for _ in range(2):
        await begun.tick()
    assert await begun.states() == [("999101", "fitness_start", 1, "in_doubt", False, None)]
    assert await outcomes(begun) == [(1, "in_doubt")]
    assert [request.attempt for request in begun.sender.requests] == [1]


async def test_resends_of_an_unknown_attempt_are_bounded(new_world, answer):
    world = await new_world(resend_limit=2)
    await world.fitness()
    await world.begin()
    await world.lead("fitness_start")
    world.sender.script["999101"] = [answer("in_doubt", "time-out")] * 9
    for _ in range(5):
        await world.tick()
        await world.hours(1)
    assert await outcomes(world) == [(1, "in_doubt"), (2, "in_doubt"), (3, "in_doubt")]
    assert await world.states() == [("999101", "fitness_start", 1, "in_doubt", False, None)]


async def end_the_lease(world) -> None:
    """What a second incarnation and a rescue do while the first one waits for its answer."""
    first = world.shards.shards[0]
    await world.restart()
    await world.coordinator.run_once(world.now_us, 1)
    world.shards.shards[0] = first


@pytest.mark.parametrize(
    ("said", "ledger", "state"),
    [
        ("accepted", "accepted", ("999101", "fitness_day2", 2, "active", False, None)),
        ("refused", "refused", WAITING),
        ("in_doubt", "in_doubt", WAITING),
    ],
)
async def test_an_outcome_after_the_lease_has_ended_reaches_the_ledger_and_an_acceptance_the_row(
    begun, answer, said, ledger, state
):
    begun.sender.script["999101"] = [answer(said, None if said == "accepted" else "late")]
    begun.sender.meanwhile = lambda: end_the_lease(begun)
    await begun.tick()
    assert await outcomes(begun) == [(1, ledger)]
    assert await begun.states() == [state]


async def test_an_acceptance_of_a_visit_that_is_accepted_already_is_a_repetition(begun):
    """The first attempt's answer comes while the resend is under way; both say accepted."""
    begun.shards.hand_over = False
    await begun.tick()
    first, answered = begun.shards.shards[0], asyncio.Event()

    async def wait() -> None:
        await answered.wait()

    async def hear_the_first() -> None:
        answered.set()
        await sending
        await first.complete(begun.now_us)

    begun.sender.meanwhile = wait
    sending = asyncio.create_task(first.hand_over(begun.now_us - 60_000_000, begun.now_us))
    while not begun.sender.requests:
        await asyncio.sleep(0.01)
    await begun.restart()
    begun.sender.meanwhile = hear_the_first
    begun.shards.hand_over = True
    await begun.tick()
    assert await outcomes(begun) == [(1, "accepted"), (2, "repeat")]
    assert await begun.states() == [("999101", "fitness_day2", 2, "active", False, None)]


async def test_an_acceptance_brings_back_what_had_failed(begun, answer):
    async def fail() -> None:
        await begun.execute(
            "UPDATE sequence_contacts SET status = 'failed', trigger_kept = true, processing_device_id = NULL, "
            "lease_token = NULL, finished_at = dripline_now()"
        )

    begun.sender.meanwhile = fail
    await begun.tick()
    assert await begun.states() == [("999101", "fitness_day2", 2, "active", False, None)]
    assert await begun.rows("SELECT finished_at, trigger_kept FROM sequence_contacts") == [(None, False)]


async def test_what_an_acceptance_brings_back_after_its_device_was_deleted_gets_another_device(begun):
    async def fail_and_delete_the_device() -> None:
        await begun.execute(
            "UPDATE sequence_contacts SET status = 'failed', processing_device_id = NULL, lease_token = NULL"
        )
        await begun.devices(1)
        await begun.execute("DELETE FROM devices WHERE name = 'd-1'")

    begun.sender.meanwhile = fail_and_delete_the_device
    await begun.tick()
    await begun.tick()
    await begun.hours(24)
    await begun.tick()
    assert [(request.step, request.device) for request in begun.sender.requests] == [
        ("fitness_start", 1),
        ("fitness_day2", 2),
    ]


async def test_a_reason_to_stop_that_comes_while_leased_follows_the_outcome(begun, answer):
    async def stop() -> None:
        await begun.execute("UPDATE sequence_contacts SET stop_reason = 'opted out'")

    begun.sender.script["999101"] = [answer("throttled", "slow down")]
    begun.sender.meanwhile = stop
    await begun.tick()
    assert await begun.states() == [("999101", "fitness_start", 1, "stopped", False, "opted out")]
    assert await begun.value("SELECT finished_at IS NOT NULL AND trigger_kept FROM sequence_contacts")


async def test_completion_after_an_opt_out_lets_a_new_tag_in_later(new_world):
    world = await new_world()
    await world.sequence("Short", "short")
    await world.begin()
    await world.lead("short")

    async def mark() -> None:
        await world.execute("UPDATE sequence_contacts SET stop_reason = 'opted out', trigger_kept = true")

    world.sender.meanwhile = mark
    await world.tick()
    assert [row[3] for row in await world.states()] == ["completed"]
    await world.execute("UPDATE leads SET trigger = 'short'")
    await world.tick()
    assert [row[3] for row in await world.states()] == ["completed", "completed"]


async def test_a_sender_that_breaks_off_leaves_its_messages_in_doubt(begun):
    async def break_off() -> None:
        raise RuntimeError("a bug")

    begun.sender.meanwhile = break_off
    await begun.tick()
    assert await outcomes(begun) == [(1, "in_doubt")]
    assert await begun.states() == [WAITING]


async def test_who_stands_at_a_removed_step_waits_a_minute_at_a_time_and_holds_nobody_up(new_world):
    world = await new_world(0)
    await world.devices(1, min_gap_s=25.0)
    await world.fitness()
    await world.begin()
    await world.lead("fitness_start")
    await world.tick(30)
    await world.execute("DELETE FROM sequence_steps WHERE trigger = 'fitness_day2'")
    await world.execute("UPDATE sequence_steps SET next_trigger = NULL WHERE trigger = 'fitness_start'")
    await world.hours(24)
    await world.tick(30)
    assert (await progress(world))[3] == pytest.approx(24 * 3600 + 30 + 60, abs=1)
    await world.lead("fitness_start")
    await world.tick(30)
    await world.tick(30)
    assert world.sent() == [("999101", "fitness_start"), ("999102", "fitness_start")]
    await world.sequence("The rest", "fitness_day2", "fitness_day4")
    await world.tick(60)
    await world.tick(60)
    assert world.sent()[2:] == [("999101", "fitness_day2")]


async def test_a_message_whose_step_is_removed_while_it_is_out_still_leads_on(world, answer):
    await world.begin()
    await world.lead("fitness_start")

    async def remove_step() -> None:
        await world.execute("DELETE FROM sequence_steps WHERE trigger = 'fitness_start'")
        await world.execute("UPDATE sequence_steps SET is_entry_point = true WHERE trigger = 'fitness_day2'")
        await world.shards.shards[0].refresh()

    world.sender.meanwhile = remove_step
    await world.tick()
    assert await world.states() == [("999101", "fitness_day2", 2, "active", False, None)]
