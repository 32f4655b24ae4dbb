"""Who wakes the coordinator, and who does not."""

from __future__ import annotations

import asyncio

import pytest

from dispatcher.store.connect import connect


@pytest.fixture
async def woken(new_world):
    """A world with 500 leads, and the list of what has woken the coordinator so far."""
    world = await new_world(2)
    await world.fitness()
    await world.execute(
        "INSERT INTO leads (phone, niche) SELECT 999000000 + n, 'fitness' FROM generate_series(1, 500) n"
    )
    heard: list[str] = []
    listener = await connect(world.url)
    await listener.add_listener("dripline_wake", lambda *told: heard.append(told[3]))
    yield world, heard
    await listener.close()


async def told(heard: list[str]) -> list[str]:
    """What was heard since this was asked last."""
    await asyncio.sleep(0.1)
    there, heard[:] = list(heard), []
    return there


async def test_a_bulk_tag_wakes_once_and_so_does_what_lets_a_message_leave(woken):
    world, heard = woken
    for sql, reason in (
        ("UPDATE leads SET trigger = 'fitness_start' WHERE niche = 'fitness'", "lead_changes"),
        ("UPDATE leads SET opted_in_at = now() WHERE id = 1", "lead_changes"),
        ("UPDATE sequences SET is_active = true", "sequences"),
        ("UPDATE devices SET health = 'available'", "devices"),
    ):
        await world.execute(sql)
        assert await told(heard) == [reason], sql
    await world.execute("UPDATE leads SET name = 'Ann'")
    assert await told(heard) == [], "nothing can be due because of it"


async def test_passes_wake_nobody(woken):
    world, heard = woken
    await world.begin()
    await world.execute("UPDATE leads SET trigger = 'fitness_start' WHERE id <= 20")
    await world.tick()
    await world.hours(1)
    await told(heard)
    for _ in range(3):
        await world.tick()
    assert await told(heard) == [], "else an idle engine would never rest"
