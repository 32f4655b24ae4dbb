"""What a batch costs in Python's memory, which no machine changes: the guard against objects and copies a message."""

from __future__ import annotations

import tracemalloc
from collections.abc import Awaitable

import pytest

from bench.accepting import Accepting

CONTACTS, DEVICES = 1000, 200
PEAK_BYTES = {"hand-over": 465_000, "completion": 665_000}
"""Of 1000 contacts, at most: about a seventh above what was measured."""


@pytest.fixture
async def peaks(new_world) -> dict[str, int]:
    """The peak of Python's allocations by step, above what was there before; of the second batch, caches being full."""
    world = await new_world(0)
    world.sender, world.shards.hand_over = Accepting(), False
    await world.execute("INSERT INTO devices (name) SELECT 'd-' || n FROM generate_series(1, $1::int) n", DEVICES)
    await world.fitness()
    await world.begin()
    shard, found = world.shards.shards[0], {}
    for batch in (1, 2):
        await world.execute(
            "INSERT INTO leads (phone, trigger) SELECT 999::text || $1::int || n, 'fitness_start' "
            "FROM generate_series(100001, 100000 + $2::int) n",
            batch, CONTACTS,
        )  # fmt: skip
        await world.tick(60)
        found["hand-over"] = await peak(shard.hand_over(world.now_us - 60_000_000, world.now_us))
        found["completion"] = await peak(shard.complete(world.now_us))
        assert await world.value("SELECT count(*) FROM message_ledger") == batch * CONTACTS
    return found


async def peak(step: Awaitable[object]) -> int:
    """Bytes that Python held at once for ``step``."""
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        await step
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def test_a_batch_allocates_so_much_and_no_more(peaks):
    assert {step: peak for step, peak in peaks.items() if not 0 < peak <= PEAK_BYTES[step]} == {}
