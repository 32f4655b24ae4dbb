"""Devices that fail, come, go and begin slowly, under a dispatcher at work."""

from __future__ import annotations

from collections import Counter

import pytest

from dispatcher.errors import InputError
from dispatcher.intake.devices import Remaining, drain_device, retire_device, write_device
from dispatcher.intake.devices import device as given


async def health(world) -> list[tuple[str, str | None]]:
    return await world.rows("SELECT health, health_cause FROM devices ORDER BY number")


async def homes(world) -> list[tuple[str, int]]:
    """Home device by lead."""
    return await world.rows(
        "SELECT c.contact_phone, d.number FROM sequence_contacts c JOIN devices d ON d.id = c.home_device_id ORDER BY 1"
    )


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_failing_device_rests_tries_one_message_at_a_time_and_is_back_with_the_first_that_gets_through(
    new_world, answer, restarted
):
    world = await new_world(1, breaker_failures=3, breaker_base_s=120, retry_base_s=10_000)
    await world.fitness()
    await world.begin()
    for number in range(1, 13):
        await world.lead("fitness_start")
        world.sender.script[f"999{100 + number}"] = [answer("refused", "connection refused")] if number < 5 else []
    await world.tick(16)  # four messages, 5 s apart: they were claimed together
    assert (len(world.sent()), await health(world)) == (4, [("quarantined", "failures")])
    if restarted:
        await world.restart()
    world.sender.script["999105"] = [answer("refused", "connection refused")]
    for _ in range(5):
        await world.tick(30)
    assert len(world.sent()) == 5, "one try after the pause"
    for _ in range(9):
        await world.tick(30)
    assert (await health(world))[0] == ("available", None)
    assert len(world.sent()) == 12, "the others follow"
    assert {row[4] for row in await world.attempts()} == {"refused", "accepted"}


async def test_what_waits_for_a_failing_device_stays_there_for_a_while_and_new_leads_go_elsewhere(new_world, answer):
    world = await new_world(2, breaker_failures=1, breaker_base_s=60, breaker_cap_s=60, retry_base_s=10_000)
    await world.fitness()
    await world.begin()
    for number in range(1, 5):
        await world.lead("fitness_start")
        world.sender.script[f"999{100 + number}"] = [answer("refused", "connection refused")] * 20
    await world.tick(1)
    failing = {device for device, (state, _) in enumerate(await health(world), 1) if state == "quarantined"}
    before = await homes(world)
    assert failing
    for _ in range(3):
        await world.tick(60)
    assert [home for home in await homes(world) if home[1] in failing] == [h for h in before if h[1] in failing]


async def test_a_new_device_takes_no_leads_from_others_and_one_that_leaves_gives_its_own_only(new_world):
    world = await new_world(4)
    await world.fitness()
    await world.begin(2)
    for _ in range(40):
        await world.lead("fitness_start")
    await world.tick()
    before = dict(await homes(world))
    assert Counter(before.values()) == {1: 10, 2: 10, 3: 10, 4: 10}
    await world.devices(1)
    await world.tick()
    assert dict(await homes(world)) == before, "nobody moves to a device because it is new"
    await drain_device(world.connection, "d-2", "SIM change")
    await world.tick()
    after = dict(await homes(world))
    moved = {phone for phone in before if before[phone] != after[phone]}
    assert moved == {phone for phone, home in before.items() if home == 2}
    assert (
        sorted(Counter(after.values()).items()) == [(1, 12), (3, 13), (4, 12), (5, 3)]
        or max(Counter(after.values()).values()) <= 13
    )
    await world.execute("UPDATE devices SET health = 'available', health_cause = NULL WHERE name = 'd-2'")
    await world.tick()
    assert dict(await homes(world)) == after, "nobody moves back"
    per_hour = Counter(request.device for request in world.sender.requests)
    assert max(per_hour.values()) <= 80
    assert len(world.sender.requests) == 40


async def test_a_ramp_binds_what_a_device_may_send_a_day_and_grows(new_world):
    world = await new_world(0)
    await world.devices(1, ramp_per_day=3, ramp_growth=2.0, min_gap_s=0.0)
    await world.fitness()
    await world.begin()
    for _ in range(12):
        await world.lead("fitness_start")
    sent = []
    for _ in range(3):
        await world.tick()
        sent.append(len(world.sent()))
        await world.hours(24.5)
    assert sent == [3, 9, 21], "3, 6 and 12 a day, second messages included"
    assert await world.rows("SELECT quota_per_day FROM device_quota_history ORDER BY valid_from") == [(3,), (6,), (12,)]


async def test_a_device_is_retired_once_nothing_is_left_on_it_and_for_good(new_world):
    world = await new_world(2)
    await world.fitness()
    await world.begin()
    for _ in range(4):
        await world.lead("fitness_start")
    await world.tick()
    assert await retire_device(world.connection, "d-1", "number given back") == Remaining(2, 0)
    assert await health(world) == [("draining", "number given back"), ("available", None)]
    await world.tick()
    assert await retire_device(world.connection, "d-1", None) is None
    assert await retire_device(world.connection, "d-1", None) is None
    assert await health(world) == [("retired", "number given back"), ("available", None)]
    for change in (
        drain_device(world.connection, "d-1", None),
        write_device(world.connection, given("device", {"name": "d-1", "health": "available"})),
    ):
        with pytest.raises(InputError, match="it is retired, for good"):
            await change
    with pytest.raises(InputError, match="device 'd-9': there is none"):
        await retire_device(world.connection, "d-9", None)
    await world.tick()
    assert {row[0] for row in await world.rows("SELECT device_id FROM message_ledger")} == {
        row[0] for row in await world.rows("SELECT id FROM devices")
    }, "what it has sent stays on record"
