"""Pauses through the services on real PostgreSQL: quiet within one pass, nothing moved or ended, and all goes on."""

from __future__ import annotations

from itertools import pairwise

import pytest

DUE = "SELECT array_agg(next_trigger_time ORDER BY id) FROM sequence_contacts"
PAUSES = {
    "fleet": ("UPDATE fleet SET paused = true", "UPDATE fleet SET paused = false"),
    "device": ("UPDATE devices SET paused = true", "UPDATE devices SET paused = false"),
    "lead": ("INSERT INTO paused_leads (lead_id) SELECT id FROM leads", "DELETE FROM paused_leads"),
}


@pytest.mark.parametrize("what", PAUSES)
async def test_a_pause_holds_at_the_last_look_and_its_end_spreads_what_is_overdue(new_world, what):
    """Six of eight are claimed, one of them has left, as the pause comes; an hour later six have slots at once."""
    world = await new_world()
    await world.fitness()
    await world.begin()
    for _ in range(8):
        await world.lead("fitness_start")
    pause, resume = PAUSES[what]
    world.shards.hand_over = False
    await world.tick(30)
    shard = world.shards.shards[0]
    await shard.hand_over(world.now_us, world.now_us - 30_000_000)
    await world.execute(pause)
    await shard.hand_over(world.now_us, world.now_us)
    await shard.complete(world.now_us)
    assert len(world.sent()) == 1
    due, states = await world.value(DUE), await world.states()
    world.shards.hand_over = True
    for _ in range(3):
        assert (await world.tick(30)).balance.moved == 0
    assert len(world.sent()) == 1
    assert (await world.tick(30)).claimed == 0, "what is paused does not stand in the claim's way"
    assert (await world.value(DUE), await world.states()) == (due, states), "everybody keeps their place"
    await world.hours(1)
    await world.execute(resume)
    assert (await world.tick(30)).claimed == 6
    await world.tick(30)
    assert sorted(set(world.sent())) == [(f"99910{n}", "fitness_start") for n in range(1, 9)]
    slots = [request.slot_us for request in world.sender.requests]
    assert min(later - earlier for earlier, later in pairwise(slots)) >= 5_000_000


async def test_a_backlog_that_is_too_late_costs_a_device_the_slots_of_one_claim(new_world):
    """Forty are too late for the first step, as a pause ends; three of another sequence come after them."""
    world = await new_world()
    await world.fitness(max_lateness_hours=2, when_late="skip")
    await world.sequence("Open", "open_start")
    await world.begin()
    await world.execute("UPDATE sequences SET is_active = false WHERE id = 1")
    await world.tick(0.001)
    await world.execute("UPDATE sequences SET is_active = true WHERE id = 1; UPDATE fleet SET paused = true")
    for _ in range(40):
        await world.lead("fitness_start")
    await world.tick(30)
    await world.hours(3)
    for _ in range(3):
        await world.lead("open_start")
    await world.execute("UPDATE fleet SET paused = false")
    assert ((await world.tick(30)).claimed, world.sent()) == (6, [])
    assert ((await world.tick(30)).claimed, len(world.sent())) == (3, 3)
    assert await world.value("SELECT count(*) FROM late_steps WHERE shifted_to IS NULL AND visit = 1") == 40
    assert {row[1:4] for row in (await world.states())[:40]} == {("fitness_day2", 2, "active")}
