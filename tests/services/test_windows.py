"""Send windows: what is due while they are open leaves, what comes to their end waits for the next opening."""

from __future__ import annotations

from datetime import time

import pytest

ZONE = "Asia/Kuala_Lumpur"
"""It is Monday, 8:00 UTC, and 16:00 there."""
SHUT = {"send_from": time(9), "send_until": time(15), "send_time_zone": ZONE}
UNTIL_FIVE = {"send_from": time(9), "send_until": time(17), "send_time_zone": ZONE}
SENT = "SELECT contact_phone, attempt, status, lease_token IS NOT NULL FROM sequence_contacts ORDER BY id"


async def open_world(new_world, **columns):
    """One device, one sequence with a window."""
    world = await new_world(retry_base_s=120)
    await world.fitness(**columns)
    await world.begin()
    return world


async def clocks(world) -> list[str]:
    """When enrolments are due, by UTC's clock, from the day virtual time began on."""
    return await world.value(
        "SELECT array_agg(to_char(next_trigger_time AT TIME ZONE 'UTC', 'DD HH24:MI') ORDER BY id) "
        "FROM sequence_contacts"
    )


async def test_the_next_step_and_a_retry_are_due_inside_the_window(new_world, answer):
    world = await open_world(new_world, **UNTIL_FIVE)
    await world.execute("UPDATE sequence_steps SET trigger_delay_hours = 2")
    world.sender.script["999102"] = [answer("refused", "no")]
    await world.lead("fitness_start")
    await world.lead("fitness_start")
    await world.lead("fitness_start", time_zone="Europe/Berlin")  # 9:00 there
    world.now_us += 59 * 60_000_000 - 30_000_000
    await world.tick(20)
    assert world.sent() == [(phone, "fitness_start") for phone in ("999101", "999102", "999103")]
    assert await clocks(world) == ["06 01:00", "06 01:00", "05 10:58"]
    assert [row[2] for row in await world.states()] == [2, 1, 2]


async def test_what_cannot_arrive_before_closing_goes_back_uncounted_and_takes_the_backlog_along(new_world):
    """Of thirty that are due, four have slots so far from closing that they arrive in time; six were claimed."""
    world = await open_world(new_world, **UNTIL_FIVE)
    for _ in range(30):
        await world.lead("fitness_start")
    world.now_us += 60 * 60_000_000 - 50_000_000
    await world.tick(30)
    assert [request.slot_us for request in world.sender.requests] == [
        world.now_us - 30_000_000 + second * 1_000_000 for second in (0, 5, 10, 15)
    ]
    assert (await clocks(world))[4:6] == ["06 01:00"] * 2
    done = await world.tick(30)
    assert done.claimed > 0
    assert (await clocks(world))[4:] == ["06 01:00"] * 26
    assert (await world.rows(SENT))[4:] == [(f"999{n}", 0, "active", False) for n in range(105, 131)]
    assert (await world.tick(30)).claimed == 0
    await world.hours(16)
    await world.tick(130)
    assert len(world.sender.requests) == 30


async def test_a_shut_backlog_costs_a_device_the_slots_of_one_claim(new_world):
    """Forty wait as their window is made to end; three of another sequence come after them."""
    world = await open_world(new_world, **UNTIL_FIVE)
    await world.sequence("Open", "open_start")
    for _ in range(40):
        await world.lead("fitness_start")
    await world.tick(0.001)
    await world.execute("UPDATE sequences SET send_until = '15:00' WHERE id = 1")
    for _ in range(3):
        await world.lead("open_start")
    del world.sender.requests[:]
    assert ((await world.tick(30)).claimed, world.sent()) == (6, [])
    assert ((await world.tick(30)).claimed, world.sent()) == (3, [(f"9991{n}", "open_start") for n in (41, 42, 43)])
    assert await clocks(world) == ["06 08:00", *["06 01:00"] * 39, *[None] * 3]


@pytest.mark.parametrize("window", [UNTIL_FIVE, SHUT])
async def test_a_lead_that_moves_before_the_hand_over_is_looked_at_where_it_is_by_then(new_world, window):
    """From a place where it is 9:00 to one where it is 2:00, or to Kuala Lumpur."""
    world = await open_world(new_world, **window)
    await world.lead("fitness_start", time_zone="Europe/Berlin")
    world.shards.hand_over = False
    await world.tick(30)
    assert [row[4] for row in await world.states()] == [True]
    zone, due = ("America/Chicago", "05 15:00") if window is UNTIL_FIVE else (None, "06 01:00")
    await world.execute("UPDATE leads SET time_zone = $1", zone)
    await world.shards.shards[0].hand_over(world.now_us, world.now_us)
    assert (world.sent(), await clocks(world)) == ([], [due])
    assert await world.rows(SENT) == [("999101", 0, "active", False)]
    assert await world.attempts() == []


async def test_a_lead_that_moves_to_where_it_is_open_is_sent_to_when_it_is_due(new_world):
    """Its due moment was made for where it was: moving does not bring it forward."""
    world = await open_world(new_world, **SHUT)
    await world.lead("fitness_start")
    await world.tick(30)
    await world.execute("UPDATE leads SET time_zone = 'Europe/Berlin'")
    await world.tick(30)
    assert (world.sent(), await clocks(world)) == ([], ["06 01:00"])
    await world.hours(17)
    await world.tick(30)
    assert (world.sent(), await clocks(world)) == ([], ["06 08:00"])


async def test_a_window_that_is_taken_away_or_broken_does_not_lose_what_waits(new_world):
    world = await open_world(new_world, **UNTIL_FIVE)
    await world.lead("fitness_start")
    await world.execute("UPDATE sequences SET send_time_zone = 'Nowhere/Land'")
    await world.tick(30)
    assert (world.sent(), await world.states()) == ([], [])
    await world.execute("UPDATE sequences SET send_from = NULL, send_until = NULL, send_time_zone = NULL")
    for _ in range(3):
        await world.tick(30)
    assert world.sent() == [("999101", "fitness_start")]


async def test_without_windows_nothing_more_is_asked_of_the_database(world):
    async def never(*_: object) -> None:
        raise AssertionError("a sequence without a window costs nothing")

    await world.begin()
    store = world.shards.shards[0]._windows.store
    store.time_zones = store.postpone = never
    await world.lead("fitness_start")
    await world.tick(30)
    assert world.sent() == [("999101", "fitness_start")]
