"""Breakers and ramps of devices: what the stores promise, told on PostgreSQL and on its twin alike."""

from __future__ import annotations

import numpy as np

from dispatcher.core.breaker import Turned

DAY_US, PROBE_US = 86_400_000_000, 1_767_600_030_000_000


async def breakers(story, *turned: tuple[int, int, int]) -> int:
    """Write number, trips and next try of each; returns how many were written."""
    number, trips, probe_us = np.array(turned, np.int64).T
    return await story.shard.set_breakers(Turned(number, trips.astype(np.int32), probe_us))


async def seen(story) -> list[tuple[bool, bool, int, int]]:
    """Per device: available, left, trips, next try."""
    fleet = await story.shard.fleet()
    columns = (fleet.available, fleet.left, fleet.trips, fleet.probe_us)
    return list(zip(*(column.tolist() for column in columns), strict=True))


async def test_an_open_breaker_quarantines_until_it_closes_and_everybody_hears_of_it(story):
    before = await story.store.versions()
    assert await breakers(story, (1, 1, PROBE_US)) == 1
    assert await seen(story) == [(False, False, 1, PROBE_US), (True, False, 0, 0)]
    assert (await story.store.versions()).devices > before.devices
    assert await breakers(story, (1, 6, PROBE_US)) == 1
    assert (await seen(story))[0] == (False, True, 6, PROBE_US)
    assert await breakers(story, (1, 0, 0)) == 1
    assert (await story.world.tables())["devices"][0][3:] == ("available", None)
    assert (await story.world.tables())["breakers"][0] == (1, 0, None, None, None)


async def test_what_people_say_of_a_device_stands(story):
    await story.world.set_device(1, health="quarantined", health_cause="quality")
    await story.world.set_device(2, health="draining")
    assert await breakers(story, (1, 1, PROBE_US), (2, 1, PROBE_US), (1, 0, 0)) == 0
    assert [row[3:] for row in (await story.world.tables())["devices"]] == [
        ("quarantined", "quality"),
        ("draining", None),
    ]


async def test_one_that_was_opened_counts_no_more_once_somebody_says_that_the_device_is_well(story):
    await breakers(story, (1, 3, PROBE_US))
    await story.world.set_device(1, health="available", health_cause=None)
    assert (await seen(story))[0] == (True, False, 0, 0)


async def test_a_ramp_grows_by_a_step_a_day_up_to_the_quota_and_what_held_is_kept(story):
    await story.world.set_device(1, ramp_per_day=20, ramp_growth=10.0)
    assert (await story.shard.fleet()).quota_per_day.tolist() == [20, 800]
    for days in (0, 1, 0, 3, 1):
        await story.wait(days * DAY_US)
        await story.store.begin_day(story.now_us, 2, DAY_US)
    assert (await story.shard.fleet()).quota_per_day.tolist() == [800, 800]
    assert (await story.world.tables())["breakers"][0][3:] == (None, None)
    held = [(quota[1] - story.now_us, *quota[2:]) for quota in (await story.world.tables())["quotas"] if quota[0] == 1]
    assert held == [(-5 * DAY_US, 80, 20), (-5 * DAY_US, 80, 800), (-4 * DAY_US, 80, 200), (-1 * DAY_US, 80, 800)]


async def test_a_ramp_that_is_set_anew_begins_today(story):
    await story.world.set_device(1, ramp_per_day=20)
    await story.wait(DAY_US)
    await story.world.set_device(1, ramp_per_day=40)
    await story.store.begin_day(story.now_us, 2, DAY_US)
    assert (await story.shard.fleet()).quota_per_day.tolist() == [40, 800]
    await story.world.set_device(1, ramp_per_day=None)
    assert (await story.world.tables())["breakers"][0][3:] == (None, None)
