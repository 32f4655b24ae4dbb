"""A shard: what it may hand over, what it remembers, and devices that come and go."""

from __future__ import annotations

import numpy as np
import pytest

from dispatcher.core.batches import Int32s

MINUTE_US = 60_000_000


@pytest.fixture
async def pending(world):
    """One lead whose first message is claimed and pending in the shard; its slot is a minute old."""
    await world.begin()
    await world.lead("fitness_start")
    world.shards.hand_over = False
    await world.tick()
    return world


def everybody(shard) -> Int32s:
    return np.arange(1, 100, dtype=np.int32)


async def free_slots(world, horizon_us: int = 30 * MINUTE_US) -> dict[int, list[float]]:
    """Slots by device, in seconds from now; nothing is taken."""
    shard = world.shards.shards[0]
    await shard.refresh()
    offer = shard.offer(world.now_us, horizon_us, everybody(shard))
    shard.deliver(offer.offer, None)
    ends = np.cumsum(offer.slots)
    seconds = (offer.slot_us - world.now_us) / 1e6
    return {
        n: seconds[end - k : end].tolist() for n, k, end in zip(offer.number.tolist(), offer.slots, ends, strict=True)
    }


async def hand_over(world, since_us: int = MINUTE_US):
    done = await world.shards.shards[0].hand_over(world.now_us - since_us, world.now_us)
    return done.handed, done.given_back


async def test_a_new_incarnation_knows_every_moment_the_old_one_had_used(new_world):
    """Twenty devices near their cap, a message in flight on each: that counts at its deadline, the rest at its slot."""
    world = await new_world(0)
    await world.devices(20, quota_per_hour=6, quota_per_day=100, min_gap_s=60)
    await world.fitness()
    await world.begin()
    for _ in range(20 * 5):
        await world.lead("fitness_start")
    await world.tick(1200)
    assert await world.value("SELECT count(*) FROM message_ledger") == 100
    used = await free_slots(world, 60 * MINUTE_US)
    world.shards.hand_over = False
    for _ in range(20):
        await world.lead("fitness_start")
    in_flight_us = world.now_us
    await world.tick(60)
    assert await world.value("SELECT count(*) FROM sequence_contacts WHERE lease_token IS NOT NULL") == 20
    await world.die_handing_over()
    await world.restart()
    after = await free_slots(world, 60 * MINUTE_US)
    first_again_s = (in_flight_us - 1200 * 1e6 - world.now_us) / 1e6 + 3660
    assert used.keys() == after.keys() == set(range(1, 21))
    for device, slots in after.items():
        assert slots == [first_again_s + 60 * n for n in range(5) if first_again_s + 60 * n < 3600], device
    assert all(min(slots) == 0 and len(slots) > 1 for slots in used.values())


async def test_it_hands_over_what_it_was_given_once(pending):
    shard = pending.shards.shards[0]
    ((token, epoch),) = await pending.rows("SELECT lease_token, lease_epoch FROM sequence_contacts")
    leased = await shard._store.read_lease(epoch, token)
    shard.deliver(1, leased)
    assert await shard.adopt() == 0
    shard.deliver(2, leased.replace(token=token + 1, epoch=epoch - 1))
    assert await hand_over(pending, MINUTE_US) == (1, 0)
    assert pending.sent() == [("999101", "fitness_start")]
    await shard.complete(pending.now_us)
    assert await pending.states() == [("999101", "fitness_day2", 2, "active", False, None)]


async def test_nothing_leaves_before_its_slot_or_after_its_deadline(pending):
    shard = pending.shards.shards[0]
    slot_us = shard.next_slot_us
    assert (await shard.hand_over(slot_us - 1, slot_us - 1)).handed == 0
    before = await free_slots(pending)
    done = await shard.hand_over(slot_us + 30_000_001, pending.now_us)
    assert (done.handed, done.given_back, pending.sent()) == (0, 1, [])
    assert await pending.states() == [("999101", "fitness_start", 1, "active", False, None)]
    assert await pending.rows("SELECT attempt FROM sequence_contacts") == [(0,)]
    assert len((await free_slots(pending))[1]) == len(before[1]) + 1


async def test_nothing_leaves_once_trust_in_the_epoch_has_run_out(new_world):
    world = await new_world(trust_s=0.001)
    await world.fitness()
    await world.begin()
    await world.lead("fitness_start")
    await world.tick()
    assert await free_slots(world) == {1: []}
    shard = world.shards.shards[0]
    await shard.beat()
    assert await hand_over(world) == (0, 0)
    assert world.sent() == []


@pytest.mark.parametrize(
    ("sql", "after"),
    [
        ("UPDATE leads SET opted_out_at = now()", ("stopped", "opted out", True)),
        ("UPDATE sequences SET is_active = false", ("active", None, False)),
        ("UPDATE sequence_contacts SET stop_reason = 'operator'", ("stopped", "operator", True)),
        ("DELETE FROM leads", ("stopped", "trigger removed", False)),
    ],
)
async def test_the_last_look_before_the_hand_over_stops_it_and_gives_the_slot_back(pending, sql, after):
    before = await free_slots(pending)
    await pending.execute(sql)
    assert await hand_over(pending) == (0, 1)
    assert pending.sent() == []
    assert await pending.rows("SELECT status, stop_reason, trigger_kept FROM sequence_contacts") == [after]
    assert await pending.rows("SELECT lease_token, attempt FROM sequence_contacts") == [(None, 0)]
    assert len((await free_slots(pending))[1]) == len(before[1]) + 1


async def test_a_claim_whose_routing_call_was_lost_is_adopted_with_its_slots(world):
    await world.begin()
    await world.lead("fitness_start")
    world.shards.lose_routing = True
    assert (await world.tick()).silent == (0,)
    shard = world.shards.shards[0]
    assert await shard.adopt() == 1
    assert await hand_over(world) == (1, 0)
    await shard.complete(world.now_us)
    assert await world.states() == [("999101", "fitness_day2", 2, "active", False, None)]


async def test_what_is_in_hand_is_never_adopted_though_its_token_is_forgotten(new_world, monkeypatch):
    """Both messages are accepted and their ends wait to be written when the shard looks for lost claims."""
    monkeypatch.setattr("dispatcher.shard._TOKENS_KEPT", 1)
    world = await new_world(0)
    await world.devices(1, gateway_idempotent=False)
    await world.fitness()
    await world.begin()
    shard = world.shards.shards[0]
    world.shards.hand_over = False
    for _ in range(2):
        await world.lead("fitness_start")
        await world.tick()
        await hand_over(world)
    assert len(shard._seen) == 1
    assert (await shard.adopt(), shard.in_hand) == (0, 2)
    assert await hand_over(world) == (0, 0)
    await shard.complete(world.now_us)
    assert world.sent() == [("999101", "fitness_start"), ("999102", "fitness_start")]
    assert await world.states() == [(f"99910{n}", "fitness_day2", 2, "active", False, None) for n in (1, 2)]


async def test_a_claim_that_comes_after_its_offer_waits_again(world):
    await world.begin()
    await world.lead("fitness_start")
    world.shards.lose_routing = True
    await world.tick()
    shard = world.shards.shards[0]
    await free_slots(world)
    assert await shard.adopt() == 1
    assert await hand_over(world) == (0, 1)
    world.shards.lose_routing = False
    await world.tick()
    assert world.sent() == [("999101", "fitness_start")]


async def test_draining_gives_back_what_has_not_left(pending):
    assert await pending.shards.shards[0].drain(pending.now_us) == 1
    assert await pending.states() == [("999101", "fitness_start", 1, "active", False, None)]


async def test_a_superseded_incarnation_hands_over_nothing_that_is_claimed_again(pending):
    old = pending.shards.shards[0]
    await pending.restart()
    pending.shards.hand_over = True
    await pending.tick()
    await pending.tick()
    assert (await old.hand_over(pending.now_us - 2 * MINUTE_US, pending.now_us)).handed == 0
    assert [request.attempt for request in pending.sender.requests] == [1], "the old one's attempt is undone"


async def test_a_lowered_quota_binds_new_slots_and_new_devices_start_empty(world):
    await world.begin()
    for _ in range(3):
        await world.lead("fitness_start")
    await world.tick()
    await world.execute("UPDATE devices SET quota_per_hour = 4")
    await world.devices(1)
    await world.tick()
    slots = await free_slots(world)
    assert (len(slots[1]), len(slots[2])) == (1, 50)


async def test_a_device_that_joins_with_a_lower_number_brings_its_usage_and_disturbs_nobody(new_world):
    world = await new_world(0)
    await world.devices(3, quota_per_hour=5)
    await world.fitness()
    await world.execute("UPDATE devices SET shard_id = CASE name WHEN 'd-2' THEN 1 ELSE 0 END")
    await world.begin(2)
    homes = await world.rows("SELECT id FROM devices ORDER BY number")
    for device, messages in zip(homes, (1, 2, 3), strict=True):
        for _ in range(messages):
            await world.lead("fitness_start", home_device_id=device[0])
    await world.tick()
    assert {n: len(slots) for n, slots in (await free_slots(world)).items()} == {1: 4, 3: 2}
    await world.execute("UPDATE devices SET shard_id = 0")
    await world.tick()
    assert {n: len(slots) for n, slots in (await free_slots(world)).items()} == {1: 4, 2: 3, 3: 2}
    await world.execute("UPDATE devices SET shard_id = 1 WHERE name = 'd-1'")
    await world.restart(0)
    await world.restart(1)
    await world.lead("fitness_start", home_device_id=homes[0][0])
    await world.lead("fitness_start", home_device_id=homes[1][0])
    await world.tick()
    assert {n: len(slots) for n, slots in (await free_slots(world)).items()} == {2: 2, 3: 2}
    assert world.sender.requests[-1].device in (1, 2)
    assert await world.value("SELECT count(*) FROM message_ledger WHERE outcome = 'accepted'") == 8


async def test_a_claim_under_way_while_a_device_joins_waits_again(new_world):
    world = await new_world(0)
    await world.devices(2)
    await world.execute("UPDATE devices SET shard_id = CASE name WHEN 'd-1' THEN 1 ELSE 0 END")
    await world.fitness()
    await world.begin(2)
    shard = world.shards.shards[0]
    shard.offer(world.now_us, MINUTE_US, everybody(shard))
    await world.execute("UPDATE devices SET shard_id = 0")
    await shard.refresh()
    assert sorted(await free_slots(world)) == [1, 2]


async def test_an_unknown_attempt_stays_charged_whatever_becomes_of_it(world, answer):
    await world.execute("UPDATE devices SET quota_per_hour = 5")
    await world.begin()
    await world.lead("fitness_start")
    world.sender.script["999101"] = [answer("in_doubt", "time-out")]
    await world.tick()
    await world.tick()
    assert [row[3:] for row in await world.attempts()] == [(1, "not_sent"), (2, "accepted")]
    assert len((await free_slots(world))[1]) == 3
    await world.restart()
    assert len((await free_slots(world))[1]) == 3
