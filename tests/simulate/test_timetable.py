"""What happens at a tick border may be done twice: nothing comes of the second time."""

from __future__ import annotations

from typing import Any

import asyncpg
import numpy as np
from numpy.typing import NDArray

from dispatcher.core.moments import NEVER_US
from simulate.population import DeviceGroup, copy_leads, create_devices
from simulate.timetable import DeviceChange, Event, OptOut, Switch, Tag, Timetable, Wave, choose

HOUR_US = 3_600_000_000
NAMES = tuple(DeviceGroup(20).names)
EVENTS: tuple[Event, ...] = (
    OptOut(2 * HOUR_US, 0.2),
    Tag(3 * HOUR_US, 0.5, "crypto_welcome"),
    Switch(4 * HOUR_US, "30 Day Fitness", False),
    DeviceChange(4 * HOUR_US, choose(NAMES, 5, 1, 0), "offline", "power cut", quota_per_hour=40),
    Switch(6 * HOUR_US, "30 Day Fitness", True),
)


async def copy(connection: asyncpg.Connection, numbers: NDArray[np.int64]) -> None:
    await copy_leads(connection, numbers, ["fitness_start"], 1)


def timetable(*waves: Wave, events: tuple[Event, ...] = EVENTS) -> Timetable:
    return Timetable(waves, events, first_lead=10, copy=copy, actors={}, referee=None, seed=1)


async def state(connection: asyncpg.Connection) -> list[Any]:
    return [
        [tuple(row) for row in await connection.fetch(sql)]
        for sql in (
            "SELECT phone, trigger, opted_out_at FROM leads ORDER BY phone",
            "SELECT name, health, health_cause, quota_per_hour FROM devices ORDER BY name",
        )
    ]


async def test_what_a_broken_commit_hid_is_not_done_twice(connection):
    await create_devices(connection, DeviceGroup(20))
    wave = Wave(0, 2 * HOUR_US, 400)
    await timetable(wave).act(connection, 5 * HOUR_US)
    once = await state(connection)
    again = timetable(wave)
    await again.act(connection, 5 * HOUR_US)
    assert await state(connection) == once

    leads, devices = once
    assert [phone for phone, *_ in leads] == [f"9991{n:08d}" for n in range(10, 410)]
    assert 50 < sum(opted_out_at is not None for *_, opted_out_at in leads) < 110
    tagged = [trigger for _, trigger, _ in leads if "crypto_welcome" in trigger]
    assert 120 < len(tagged) == len(again.retriggered) < 200
    assert {trigger.replace(" ", "").removesuffix(",newsletter") for trigger in tagged} <= {
        "fitness_start,crypto_welcome", "fitness_start,newsletter,crypto_welcome",
    }  # fmt: skip
    changed = {name for name, *rest in devices if rest == ["offline", "power cut", 40]}
    assert len(changed) == 5
    assert {tuple(rest) for name, *rest in devices if name not in changed} == {("available", None, 80)}


async def test_leads_come_evenly_and_every_moment_is_a_stop(connection):
    coming = timetable(Wave(HOUR_US, 0, 2), Wave(0, HOUR_US, 4), events=())
    seen = []
    while (now_us := await coming.next_us()) < NEVER_US:
        await coming.act(connection, now_us)
        seen.append((now_us / HOUR_US, await connection.fetchval("SELECT count(*) FROM leads")))
    assert seen == [(0.0, 1), (0.25, 2), (0.5, 3), (0.75, 4), (1.0, 6)]


async def test_a_pause_lasts_from_border_to_border(connection):
    await connection.execute("INSERT INTO sequences (name, is_active) VALUES ('30 Day Fitness', true)")
    pauses = timetable()
    for hour in (4.5, 6.5):
        await pauses.act(connection, round(hour * HOUR_US))
    assert pauses.paused({"30 Day Fitness": 7}) == {7: [(round(4.5 * HOUR_US), round(6.5 * HOUR_US))]}
    assert pauses.fleet_paused == []
    everything = timetable(events=[Switch(HOUR_US, None, False), Switch(2 * HOUR_US, None, True)])
    for hour, paused in ((1, True), (2, False)):
        await everything.act(connection, hour * HOUR_US)
        assert await connection.fetchval("SELECT paused FROM fleet") is paused
    assert (everything.paused({}), everything.fleet_paused) == ({}, [(HOUR_US, 2 * HOUR_US)])
    forever = timetable(events=EVENTS[2:3])
    await forever.act(connection, 5 * HOUR_US)
    assert forever.paused({"30 Day Fitness": 7}) == {7: [(5 * HOUR_US, NEVER_US)]}
