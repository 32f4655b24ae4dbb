"""What gateways tell of messages nobody knows the fate of: it settles them, whichever comes first."""

from __future__ import annotations

import asyncio
import json
import time
from uuid import UUID

import httpx
import pytest

from dispatcher.config import Settings
from dispatcher.core.moments import span_us
from dispatcher.core.receipts import Heard, Receipt
from dispatcher.store.connect import open_pool
from dispatcher.store.receipts import PostgresReceiptStore
from dispatcher.webhooks.listening import listen
from dispatcher.webhooks.server import serving
from dispatcher.webhooks.settler import Settler
from dispatcher.webhooks.signatures import SIGNATURE, TIMESTAMP, sign

SECRET = "gateways-secret-hush"


@pytest.fixture
async def receipts(database_url):
    pool = await open_pool(database_url, size=2)
    store = PostgresReceiptStore(pool, skew_s=5)
    yield store
    await store.close()


async def told(store, world, kind: str, *, request: int = 0, at_us: int | None = None, message_id: str | None = None):
    """A gateway tells ``kind`` of the message of a request, at this moment unless told otherwise."""
    await set_clock(world)
    key = str(UUID(bytes=world.sender.requests[request].key))
    moment = {f"{kind}_us": world.now_us if at_us is None else at_us}
    heard = Heard()
    heard.add_receipt(key, Receipt(**moment, message_id=message_id))
    await store.take(heard)


async def settle(world, store, **options: int) -> int:
    """One round at this moment; returns how many it settled."""
    await set_clock(world)
    return await Settler(store).run_once(**options)


async def set_clock(world) -> None:
    await world.execute("UPDATE dripline_database SET clock = dripline_at($1)", world.now_us)


async def forgetful(new_world, *, idempotent: bool = False):
    """One device whose gateway may honour keys, the seed's sequence, and one lead."""
    world = await new_world(0)
    await world.devices(1, gateway_idempotent=idempotent)
    await world.fitness()
    await world.begin()
    await world.lead("fitness_start")
    return world


@pytest.mark.parametrize("kind", ["accepted", "delivered", "read"])
async def test_whoever_has_got_a_message_in_doubt_moves_on(new_world, answer, receipts, kind):
    world = await forgetful(new_world)
    world.sender.script["999101"] = [answer("in_doubt", "no answer in time")]
    await world.tick()
    assert (await world.states())[0][3] == "in_doubt"
    await told(receipts, world, kind, message_id="wire-7")
    assert await settle(world, receipts) == 1
    deadline = await world.value("SELECT deadline_at FROM message_ledger")
    assert await world.rows("SELECT outcome, accepted_at, gateway_message_id, idempotency_key FROM message_ledger") == [
        ("accepted", deadline, "wire-7", UUID(bytes=world.sender.requests[0].key))
    ]
    assert await world.states() == [("999101", "fitness_day2", 2, "active", False, None)]
    assert await world.rows("SELECT actor, action, subject, detail::jsonb ->> 'as' FROM operator_log") == [
        ("a gateway's receipt", "in-doubt resolve", "enrolment 1", "accepted")
    ]
    assert await settle(world, receipts) == 0


@pytest.mark.parametrize(("told_s", "counts_s"), [(-1, 0), (0, 0), (7, 7), (31, 30)])
async def test_the_next_delay_counts_from_when_it_had_surely_arrived(new_world, answer, receipts, told_s, counts_s):
    world = await forgetful(new_world)
    world.sender.script["999101"] = [answer("in_doubt", "no answer in time")]
    await world.tick()
    slot_us = await world.value("SELECT dripline_us(reserved_at) FROM message_ledger")
    await told(receipts, world, "accepted", at_us=slot_us + span_us(told_s))
    await told(receipts, world, "read", at_us=slot_us + span_us(40))
    assert await settle(world, receipts) == 1
    at_us = slot_us + span_us(counts_s)
    assert await world.value("SELECT dripline_us(accepted_at) FROM message_ledger") == at_us
    due_us = await world.value("SELECT dripline_us(next_trigger_time) FROM sequence_contacts")
    assert due_us == at_us + span_us(24 * 3600)


async def test_a_receipt_that_comes_before_the_answer_is_kept_until_it_is_needed(new_world, answer, receipts):
    world = await forgetful(new_world)
    world.sender.script["999101"] = [answer("in_doubt", "no answer in time")]
    seen = []

    async def meanwhile() -> None:
        await told(receipts, world, "delivered")
        seen.append((await settle(world, receipts), (await world.states())[0][3:5]))

    world.sender.meanwhile = meanwhile
    await world.tick()
    assert seen == [(0, ("active", True))]  # leased: the shard's own answer comes first
    assert (await world.states())[0][3] == "in_doubt"
    assert await settle(world, receipts) == 1
    assert await world.attempts() == [("999101", "fitness_start", 1, 1, "accepted")]


async def test_a_receipt_beside_an_answer_changes_nothing(new_world, receipts):
    world = await forgetful(new_world)
    await world.tick()
    before = await world.states(), await world.attempts()
    await told(receipts, world, "delivered")
    assert await settle(world, receipts) == 0
    assert (await world.states(), await world.attempts()) == before


async def test_what_was_surely_not_sent_waits_again(new_world, answer, receipts):
    world = await forgetful(new_world)
    world.sender.script["999101"] = [answer("in_doubt", "no answer in time")]
    await world.tick()
    await told(receipts, world, "not_sent")
    assert await settle(world, receipts) == 1
    assert await world.attempts() == [("999101", "fitness_start", 1, 1, "not_sent")]
    await world.coordinator.probe()
    await world.tick()
    assert [row[2:] for row in await world.attempts()] == [(1, 1, "not_sent"), (1, 2, "accepted")]
    assert len(world.sent()) == 2


async def test_while_a_message_may_still_leave_nothing_is_settled(new_world, answer, receipts):
    world = await forgetful(new_world)
    world.sender.script["999101"] = [answer("in_doubt", "no answer in time")]
    await world.tick()
    world.now_us = await world.value("SELECT dripline_us(deadline_at) - 1 FROM message_ledger")
    await told(receipts, world, "delivered")
    assert await settle(world, receipts) == 0
    world.now_us += 1
    assert await settle(world, receipts) == 1


async def test_failed_settles_nothing(new_world, answer, receipts):
    world = await forgetful(new_world)
    world.sender.script["999101"] = [answer("in_doubt", "no answer in time")]
    await world.tick()
    await told(receipts, world, "failed")
    assert await settle(world, receipts) == 0
    assert (await world.states())[0][3] == "in_doubt"


async def test_what_was_said_of_an_attempt_is_not_said_of_a_later_one(new_world, answer, receipts):
    world = await forgetful(new_world, idempotent=True)
    world.sender.script["999101"] = [answer("in_doubt", "no answer in time")] * 2
    await world.tick()
    before_us = world.now_us
    await world.hours(1)
    await world.tick()
    assert [row[2:] for row in await world.attempts()] == [(1, 1, "in_doubt"), (1, 2, "in_doubt")]
    await told(receipts, world, "not_sent", at_us=before_us)
    assert await settle(world, receipts) == 0
    last_us = await world.value("SELECT dripline_us(max(deadline_at)) FROM message_ledger")
    await world.hours(1)
    await told(receipts, world, "not_sent", at_us=last_us + span_us(5))
    assert await settle(world, receipts) == 0
    await told(receipts, world, "not_sent", at_us=last_us + span_us(6))
    assert await settle(world, receipts) == 1
    assert [row[4] for row in await world.attempts()] == ["not_sent", "not_sent"]


async def test_that_it_arrived_counts_more_than_that_it_was_not_sent(new_world, answer, receipts):
    world = await forgetful(new_world)
    world.sender.script["999101"] = [answer("in_doubt", "no answer in time")]
    await world.tick()
    await told(receipts, world, "not_sent")
    await told(receipts, world, "read")
    assert await settle(world, receipts) == 1
    assert (await world.attempts())[0][4] == "accepted"


async def test_a_resend_under_way_is_left_to_its_end(new_world, answer, receipts):
    world = await forgetful(new_world, idempotent=True)
    world.sender.script["999101"] = [answer("in_doubt", "no answer in time"), answer("repeat")]
    await world.tick()
    await told(receipts, world, "delivered")
    await world.hours(1)
    seen = []

    async def meanwhile() -> None:
        seen.append(await settle(world, receipts))

    world.sender.meanwhile = meanwhile
    await world.tick()
    assert seen == [0]
    assert await world.states() == [("999101", "fitness_day2", 2, "active", False, None)]
    assert sorted(row[4] for row in await world.attempts()) == ["accepted", "repeat"]


async def test_all_that_is_in_doubt_is_looked_at_however_small_the_pages(new_world, answer, receipts):
    world = await forgetful(new_world)
    for _ in range(4):
        await world.lead("fitness_start")
    world.sender.script = {f"99910{n}": [answer("in_doubt", "no answer in time")] for n in range(1, 6)}
    await world.tick()
    for request in (1, 3, 4):
        await told(receipts, world, "delivered", request=request)
    assert await settle(world, receipts, rows=2) == 3
    assert sorted(row[3] for row in await world.states()) == ["active"] * 3 + ["in_doubt"] * 2


async def test_from_the_gateways_request_to_the_next_step(new_world, answer, monkeypatch):
    """The whole way: signed over a socket, written, and settled by what runs beside the server."""
    monkeypatch.setattr("dispatcher.webhooks.settler.EVERY_S", 60)
    world = await forgetful(new_world)
    world.sender.script["999101"] = [answer("in_doubt", "no answer in time")]
    await world.tick()
    settings = Settings(webhook_secret=SECRET)
    listening, said = listen("127.0.0.1:0", settings), []
    port = listening.getsockname()[1]
    await set_clock(world)
    key = str(UUID(bytes=world.sender.requests[0].key))
    event = {"type": "delivered", "at": "2026-01-05T08:01:00Z", "idempotency_key": key}
    body, stamp = json.dumps(event).encode(), str(int(time.time()))
    headers = {"Content-Type": "application/json", TIMESTAMP: stamp, SIGNATURE: sign(SECRET, stamp, body)}
    async with serving(listening, world.url, settings, said.append), httpx.AsyncClient(trust_env=False) as client:
        url = f"http://127.0.0.1:{port}/webhooks/gateway"
        assert (await client.post(url, content=body, headers=headers)).status_code == 200
        async with asyncio.timeout(10):
            while (await world.states())[0][3] == "in_doubt":
                await asyncio.sleep(0.05)
    assert await world.states() == [("999101", "fitness_day2", 2, "active", False, None)]
    assert said == ["webhooks: 1 events taken, 1 in doubt settled"]
