"""Accepted messages move enrolments on: ledger, next step, completion and trigger together, whatever comes between."""

from __future__ import annotations

import asyncio

import asyncpg
import numpy as np
import pytest

from dispatcher.core.identity import idempotency_key
from dispatcher.errors import StoreUnavailableError
from dispatcher.ports import Fate
from dispatcher.store.connect import connect

HOUR_US = 3_600_000_000


async def claimed(world, *triggers: str, **columns):
    """Leads with these triggers, their first messages claimed and pending; returns the shard."""
    await world.begin()
    for trigger in triggers:
        await world.lead(trigger, **columns)
    world.shards.hand_over = False
    await world.tick()
    world.shards.hand_over = True
    return world.shards.shards[0]


async def hand_over(world, shard) -> None:
    await shard.hand_over(world.now_us - 60_000_000, world.now_us)


async def test_an_accepted_message_is_a_whole_ledger_row_and_the_next_step_a_day_later(world):
    await world.begin()
    lead = await world.lead("fitness_start")
    begun_us = world.now_us
    await world.tick()
    device = await world.value("SELECT id FROM devices")
    row = await world.connection.fetchrow(
        "SELECT *, dripline_us(due_at) AS due, dripline_us(reserved_at) AS reserved, "
        "dripline_us(deadline_at) AS deadline, dripline_us(accepted_at) AS accepted FROM message_ledger"
    )
    stamps = ("due_at", "reserved_at", "deadline_at", "accepted_at")
    assert {name: value for name, value in row.items() if name not in stamps} == {
        "enrolment_id": 1,
        "sequence_id": 1,
        "lead_id": lead,
        "shard_epoch": world.shards.shards[0].epoch,
        "device_id": device,
        "idempotency_key": asyncpg.pgproto.pgproto.UUID(idempotency_key(1, 1, 0)),
        "visit": 1,
        "generation": 0,
        "attempt": 1,
        "outcome": "accepted",
        "step_trigger": "fitness_start",
        "gateway_message_id": "m0",
        "error": None,
        "due": begun_us,
        "reserved": begun_us,
        "deadline": begun_us + 30_000_000,
        "accepted": begun_us,
    }
    assert await world.states() == [("999101", "fitness_day2", 2, "active", False, None)]
    assert await world.value("SELECT dripline_us(next_trigger_time) FROM sequence_contacts") == begun_us + 24 * HOUR_US


async def test_the_last_message_completes_and_takes_off_exactly_the_entry_token(new_world):
    world = await new_world()
    await world.sequence("Short", "short")
    await world.begin()
    await world.lead("shorter, short ,not_short,short")
    await world.tick()
    assert await world.states() == [("999101", "short", 2, "completed", False, None)]
    assert await world.rows("SELECT trigger FROM leads") == [("shorter,not_short",)]
    assert await world.value("SELECT next_trigger_time FROM sequence_contacts") is None
    assert await world.value("SELECT count(*) FROM lead_changes") == 0


async def test_two_enrolments_of_one_lead_finish_in_one_batch(new_world):
    world = await new_world(devices=1, complete_wait_s=0)
    await world.sequence("One", "one")
    await world.sequence("Two", "two")
    await world.begin()
    await world.lead("one,two,three")
    await world.tick()
    assert [row[3] for row in await world.states()] == ["completed", "completed"]
    assert await world.rows("SELECT trigger FROM leads") == [("three",)]


async def test_a_locked_lead_holds_up_neither_the_ledger_nor_the_end_of_the_lease(new_world):
    world = await new_world()
    await world.sequence("Short", "short")
    await world.begin()
    await world.lead("short,other")
    marketer = await connect(world.url)
    transaction = marketer.transaction()
    await transaction.start()
    await marketer.execute("UPDATE leads SET niche = 'bulk'")
    await world.tick()
    assert [row[4] for row in await world.attempts()] == ["accepted"]
    assert await world.states() == [("999101", "short", 2, "active", False, None)]
    await world.tick()
    assert await world.states() == [("999101", "short", 2, "active", False, None)]
    await transaction.commit()
    await marketer.close()
    done = await world.tick()
    assert done.balance.finished == 1
    assert await world.states() == [("999101", "short", 2, "completed", False, None)]
    assert await world.rows("SELECT trigger, niche FROM leads") == [("other", "bulk")]
    assert await world.value("SELECT count(*) FROM lead_changes") == 0


async def test_a_lead_that_changes_just_before_its_row_is_locked_still_loses_the_trigger(new_world):
    """A row policy holds the completing statement between its snapshot and its lock, while the lead changes."""
    world = await new_world()
    await world.sequence("Short", "short")
    await world.execute("ALTER TABLE leads ENABLE ROW LEVEL SECURITY")
    await world.execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO pg_write_all_data")
    await world.execute("GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO pg_write_all_data")
    shard = await claimed(world, "short,other")
    await hand_over(world, shard)
    name = await world.value("SELECT current_database()")
    await world.execute(f"ALTER DATABASE {name} SET role = 'pg_write_all_data'")
    ending = await world.shard_store()
    shard._completer._store = ending
    async with world.gate("CREATE POLICY gate ON leads USING (pass_gate())", returns="boolean"):
        writing = asyncio.create_task(shard.complete(world.now_us))
        await world.waiters(1)
        await world.execute("UPDATE leads SET niche = 'changed', trigger = 'short,other,new'")
    await writing
    assert await world.states() == [("999101", "short", 2, "completed", False, None)]
    assert await world.rows("SELECT trigger, niche FROM leads") == [("other,new", "changed")]


async def test_an_enrolment_marked_while_the_end_is_written_moves_on_all_the_same(world):
    shard = await claimed(world, "fitness_start")
    await hand_over(world, shard)
    marking = await connect(world.url)
    transaction = marking.transaction()
    await transaction.start()
    await marking.execute("UPDATE sequence_contacts SET stop_reason = 'trigger removed'")
    writing = asyncio.create_task(shard.complete(world.now_us))
    await world.waiters(1)
    await transaction.commit()
    await marking.close()
    await writing
    assert [row[4] for row in await world.attempts()] == ["accepted"]
    assert await world.states() == [("999101", "fitness_day2", 2, "stopped", False, "trigger removed")]


@pytest.mark.parametrize("outcome", ["refused", "in_doubt", "rejected"])
async def test_an_enrolment_marked_while_a_setback_is_written_ends_its_lease(world, answer, outcome):
    world.sender.script["999101"] = [answer(outcome, "why")]
    shard = await claimed(world, "fitness_start")
    await hand_over(world, shard)
    marking = await connect(world.url)
    transaction = marking.transaction()
    await transaction.start()
    await marking.execute("UPDATE sequence_contacts SET stop_reason = 'opted out'")
    writing = asyncio.create_task(shard.complete(world.now_us))
    await world.waiters(1)
    await transaction.commit()
    await marking.close()
    await writing
    assert [row[4] for row in await world.attempts()] == [outcome]
    status = {"refused": "stopped", "in_doubt": "in_doubt", "rejected": "failed"}[outcome]
    assert await world.states() == [("999101", "fitness_start", 1, status, False, "opted out")]


async def test_a_batch_whose_commit_answer_was_lost_changes_nothing_when_repeated(new_world, answer):
    world = await new_world()
    await world.fitness()
    await world.sequence("Short", "short")
    world.sender.script = {"999102": [answer("refused", "no")], "999103": [answer("in_doubt", "time-out")]}
    shard = await claimed(world, "short,fitness_start", "fitness_start", "fitness_start")
    await hand_over(world, shard)
    end = shard._store.end

    async def end_and_lose_the_answer(*arguments, **options):
        await end(*arguments, **options)
        shard._store.end = end
        await world_is_written(world)
        raise StoreUnavailableError("the answer was lost")

    shard._store.end = end_and_lose_the_answer
    await shard.complete(world.now_us)
    assert await everything(world) == world.written
    assert sorted(row[4] for row in await world.attempts()) == ["accepted", "accepted", "in_doubt", "refused"]


async def everything(world) -> list:
    return [
        await world.rows("SELECT * FROM sequence_contacts ORDER BY id"),
        await world.rows("SELECT * FROM message_ledger ORDER BY enrolment_id, visit, attempt"),
        await world.rows("SELECT id, trigger, opted_out_at FROM leads ORDER BY id"),
    ]


async def world_is_written(world) -> None:
    world.written = await everything(world)


async def test_ends_whose_write_fails_for_good_are_kept_and_stay_in_hand(world):
    shard = await claimed(world, "fitness_start")
    await hand_over(world, shard)
    await world.execute("ALTER TABLE sequence_contacts ADD CONSTRAINT broken CHECK (visit < 2)")
    with pytest.raises(asyncpg.CheckViolationError):
        await shard.complete(world.now_us)
    (token, epoch) = (await world.rows("SELECT lease_token, lease_epoch FROM sequence_contacts"))[0]
    assert shard.fate(np.array([token]), np.array([epoch]), np.array([1])).tolist() == [Fate.IN_HAND]
    await world.execute("ALTER TABLE sequence_contacts DROP CONSTRAINT broken")
    await shard.complete(world.now_us)
    assert await world.states() == [("999101", "fitness_day2", 2, "active", False, None)]
