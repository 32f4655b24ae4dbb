"""Two at once: on the same rows, whichever commits first, the other one sees what it left; and in the same seat."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest

from dispatcher.store.connect import connect

MINUTE_US = 60_000_000
LIMIT_S = 10.0
STEP = "text of fitness_start"
STOPPED = ("999101", "fitness_start", 1, "stopped", False, "opted out")
ADVANCED = ("fitness_day2", 2, "active", False, None)
STATE = "SELECT status, attempt, retry_count, pinned, resend_text, lease_token IS NOT NULL FROM sequence_contacts"


def held_back(world, what: str) -> AbstractAsyncContextManager[None]:
    """While this lasts, transactions that change enrolments so that ``what`` holds of OLD and NEW do not commit."""
    return world.gate(
        "CREATE CONSTRAINT TRIGGER gate AFTER UPDATE ON sequence_contacts DEFERRABLE INITIALLY DEFERRED "
        f"FOR EACH ROW WHEN ({what}) EXECUTE FUNCTION pass_gate()"
    )


@asynccontextmanager
async def locked_lead(world, phone: str) -> AsyncIterator[None]:
    """Somebody holds the lead's row as long as this lasts."""
    marketer = await connect(world.url)
    try:
        async with marketer.transaction():
            await marketer.execute("UPDATE leads SET niche = 'bulk' WHERE phone = $1", phone)
            yield
    finally:
        await marketer.close()


# Late answers ------------------------------------------------------------------------------------------------------


async def resend_ends_first(world, first, said) -> None:
    """The resend ends with ``said``; before that has committed, what ``first`` has heard is written too."""
    second = world.shards.shards[0]
    world.sender.script["999101"] = [said]
    await second.hand_over(world.now_us - MINUTE_US, world.now_us)
    async with held_back(world, "OLD.lease_token IS NOT NULL AND NEW.lease_token IS NULL"):
        writing = [asyncio.create_task(second.complete(world.now_us))]
        await world.waiters(1)
        writing.append(asyncio.create_task(first.complete(world.now_us)))
        await world.waiters(2)
    await asyncio.gather(*writing)


@pytest.mark.parametrize(
    ("late", "later", "ledger", "state"),
    [
        ("refused", "in_doubt", ["refused", "in_doubt"], ("active", 2, 2, True, STEP, False)),
        ("rejected", "in_doubt", ["rejected", "in_doubt"], ("active", 2, 2, True, STEP, False)),
        ("rejected", "refused", ["rejected", "refused"], ("failed", 2, 2, False, None, False)),
        ("rejected", "accepted", ["not_sent", "accepted"], ("active", 0, 0, False, None, False)),
    ],
)
async def test_a_late_answer_is_judged_by_what_its_resend_has_come_to_meanwhile(
    heard_late, answer, late, later, ledger, state
):
    world, first = await heard_late(answer(late, "why"), where="leased")
    await resend_ends_first(world, first, answer(later, "later"))
    assert [row[4] for row in await world.attempts()] == ledger
    assert await world.rows(STATE) == [state]


async def test_what_became_unknown_meanwhile_still_says_the_same_when_it_is_sent_again(heard_late, answer):
    world, first = await heard_late(answer("refused", "why"), where="leased")
    await resend_ends_first(world, first, answer("in_doubt", "time-out"))
    await world.execute("UPDATE sequence_steps SET message_text = 'something else'")
    world.shards.hand_over = True
    await world.hours(1)
    await world.coordinator.probe()
    await world.tick()
    assert [(request.attempt, request.text) for request in world.sender.requests] == [(1, STEP), (2, STEP), (3, STEP)]


@pytest.mark.parametrize("late", ["refused", "rejected", "opted_out"])
async def test_a_late_answer_leaves_a_resend_alone_that_is_being_claimed(heard_late, answer, late):
    world, first = await heard_late(answer(late, "why"), where="waiting")
    async with held_back(world, "OLD.lease_token IS NULL AND NEW.lease_token IS NOT NULL"):
        claiming = asyncio.create_task(world.coordinator.run_once(world.now_us, MINUTE_US))
        await world.waiters(1)
        writing = asyncio.create_task(first.complete(world.now_us))
        await world.waiters(2)
    assert (await claiming).claimed == 1
    await writing
    assert [row[4] for row in await world.attempts()] == [late]
    assert await world.rows(STATE) == [("active", 2, 1, False, None, True)]


# Opt-outs of locked leads ------------------------------------------------------------------------------------------


async def test_an_opt_out_of_a_locked_lead_stops_its_enrolment_at_once_and_holds_nobody_up(new_world, answer):
    world = await new_world()
    await world.fitness()
    await world.begin()
    for _ in range(3):
        await world.lead("fitness_start")
    world.sender.script["999101"] = [answer("opted_out", "STOP")]
    async with locked_lead(world, "999101"), asyncio.timeout(LIMIT_S):
        await world.tick()
        assert [row[4] for row in await world.attempts()] == ["opted_out", "accepted", "accepted"]
        assert await world.states() == [STOPPED, ("999102", *ADVANCED), ("999103", *ADVANCED)]
        await world.tick()
        assert await world.rows("SELECT lead_id FROM opt_outs") == [(1,)]
    await world.tick()
    assert await world.rows("SELECT phone, opted_out_at IS NOT NULL, niche FROM leads ORDER BY id") == [
        ("999101", True, "bulk"), ("999102", False, None), ("999103", False, None),
    ]  # fmt: skip
    assert await world.rows("SELECT lead_id FROM opt_outs") == []


async def test_nothing_leaves_to_a_lead_whose_opt_out_is_not_marked_yet(new_world, answer):
    world = await new_world()
    await world.fitness()
    await world.sequence("Yoga", "yoga", "yoga_day2")
    await world.begin()
    await world.lead("fitness_start,yoga")
    while (await world.coordinator.run_once(world.now_us, 0)).more:
        pass
    await world.execute(
        "UPDATE sequence_contacts SET next_trigger_time = next_trigger_time + interval '1 hour' "
        "WHERE current_trigger = 'yoga'"
    )
    world.sender.script["999101"] = [answer("opted_out", "STOP")]
    async with locked_lead(world, "999101"), asyncio.timeout(LIMIT_S):
        await world.tick()
        await world.hours(2)
        await world.coordinator.probe()
        await world.tick()
        assert world.sent() == [("999101", "fitness_start")]
        assert await world.states() == [STOPPED, ("999101", "yoga", 1, "stopped", False, "opted out")]


@pytest.mark.parametrize("where", ["held", "waiting"])
async def test_a_late_opt_out_of_a_locked_lead_waits_for_nobody_either(heard_late, answer, where):
    world, first = await heard_late(answer("opted_out", "STOP"), where=where)
    async with locked_lead(world, "999101"), asyncio.timeout(LIMIT_S):
        await first.complete(world.now_us)
        assert (await world.attempts(), await world.states()) == (
            [("999101", "fitness_start", 1, 1, "opted_out")],
            [STOPPED],
        )
        assert await world.value("SELECT opted_out_at FROM leads") is None
    await world.tick()
    assert await world.value("SELECT opted_out_at IS NOT NULL FROM leads")


async def test_an_opt_out_of_a_lead_that_is_deleted_before_it_is_marked_is_remembered(new_world, answer):
    world = await new_world()
    await world.fitness()
    await world.begin()
    await world.lead("fitness_start")
    world.sender.script["999101"] = [answer("opted_out", "STOP")]
    async with locked_lead(world, "999101"), asyncio.timeout(LIMIT_S):
        await world.tick()
    await world.execute("DELETE FROM leads")
    await world.tick()
    assert await world.value("SELECT count(*) FROM opt_outs") == 0
    assert await world.states() == [STOPPED]
    await world.execute("INSERT INTO leads (phone, trigger) VALUES ('999101', 'fitness_start')")
    await world.tick()
    assert await world.value("SELECT opted_out_at IS NOT NULL FROM leads")
    assert len(world.sent()) == 1


# Two coordinators --------------------------------------------------------------------------------------------------


async def test_two_coordinators_begin_a_day_at_once(new_world):
    """The first one's first partition is there and not committed when the second one comes."""
    world = await new_world()
    beginning = []
    async with world.gate(
        "CREATE EVENT TRIGGER gate ON ddl_command_end WHEN TAG IN ('CREATE TABLE') EXECUTE FUNCTION pass_gate()",
        returns="event_trigger",
    ):
        for coming in (1, 2):
            store = await world.store()
            beginning.append(asyncio.create_task(store.begin_day(world.now_us, 3, 0)))
            await world.waiters(coming)
    assert await asyncio.gather(*beginning) == [5, 0]


async def seats(world, ahead_s: float) -> tuple[bool, str]:
    """Whether somebody else gets leadership, and a shard's heartbeat, of a holder that renewed ``ahead_s`` from now."""
    await world.execute(
        "INSERT INTO heartbeats SELECT n, 'lost', clock_timestamp() + $1 * interval '1 second'"
        " FROM unnest('{coordinator,shard-0}'::text[]) n",
        ahead_s,
    )
    store = await world.store()
    shard = await world.shard_store()
    await shard.seat.beat(15)
    return await store.seat.lead(15), await world.value("SELECT holder FROM heartbeats WHERE name = 'shard-0'")


@pytest.mark.parametrize(
    ("ahead_s", "taken"), [(-1, (True, "test")), (15, (False, "lost")), (29, (False, "lost")), (3600, (True, "test"))]
)
async def test_a_heartbeat_from_before_the_clock_stepped_back_keeps_nobody_out(world, ahead_s, taken):
    assert await seats(world, ahead_s) == taken
