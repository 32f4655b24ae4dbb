"""What devices share: dealt out over shards, kept over takeovers, given back where nothing was sent."""

from __future__ import annotations

from collections import Counter

import pytest

HOUR_S, GUARD_S = 3600, 90


@pytest.fixture
async def shared(new_world):
    """Makes a world whose devices share a limit, on two shards, with leads at home on them in turn."""

    async def make(devices: int = 4, leads: int = 12, **quotas):
        world = await new_world(0)
        values = [quotas.get("per_hour"), quotas.get("per_day")]
        await world.execute("INSERT INTO device_groups VALUES ('north', $1, $2)", *values)
        await world.devices(devices, group_name="north", min_gap_s=10)
        await world.sequence("one", "go")
        for _ in range(leads):
            await world.lead("go")
        await world.begin(2)
        return world

    return make


def by_device(world) -> dict[int, int]:
    return dict(sorted(Counter(request.device for request in world.sender.requests).items()))


def seconds(world, since: int = 0) -> list[float]:
    """Slots of all requests, in seconds since the first."""
    slots = [request.slot_us for request in world.sender.requests]
    return sorted((slot - slots[0]) / 1e6 for slot in slots[since:])


async def test_the_limit_holds_over_all_shards_and_every_device_has_its_turn(shared):
    world = await shared(per_hour=6)
    first = await world.tick()
    assert (len(world.sent()), by_device(world)) == (6, {1: 2, 2: 2, 3: 1, 4: 1})
    # Nothing is asked before the group is free again: that is the next moment there is.
    assert first.next_us == world.sender.requests[0].slot_us + (HOUR_S + GUARD_S) * 1_000_000
    await world.tick(HOUR_S)
    assert len(world.sent()) == 6
    await world.tick(300)
    assert (len(world.sent()), by_device(world)) == (12, {1: 3, 2: 3, 3: 3, 4: 3})
    assert seconds(world, since=6)[0] >= HOUR_S + GUARD_S


async def test_slots_are_taken_from_where_the_limit_opens(shared):
    """The group opens within the pass: the first slots of each device are passed over, and later ones are filled."""
    world = await shared(devices=2, leads=4, per_hour=2)
    await world.tick()
    world.now_us += (HOUR_S + GUARD_S - 60 - 25) * 1_000_000
    await world.tick()
    assert seconds(world) == [0, 0, HOUR_S + GUARD_S + 5, HOUR_S + GUARD_S + 5]
    assert [status for _, _, _, status, _, _ in await world.states()] == ["completed"] * 4


async def test_another_coordinator_counts_what_the_group_has_sent(shared):
    world = await shared(per_hour=6, leads=12)
    await world.tick()
    await world.begin(2)
    await world.tick()
    assert len(world.sent()) == 6
    await world.execute("UPDATE device_groups SET quota_per_hour = 8")
    await world.tick()
    assert len(world.sent()) == 8
    await world.execute("UPDATE device_groups SET quota_per_hour = 3")
    await world.tick()
    assert len(world.sent()) == 8


async def test_what_was_surely_not_sent_is_free_again_at_once(shared, answer):
    world = await shared(devices=2, leads=3, per_hour=3)
    world.sender.script["999101"] = [answer("refused")]
    await world.execute("UPDATE leads SET opted_out_at = now() WHERE phone = '999102'")
    await world.tick()
    await world.tick(600)
    assert Counter(to for to, _ in world.sent()) == {"999101": 2, "999103": 1}
    assert [status for _, _, _, status, _, _ in await world.states()] == ["completed", "completed"]
    for _ in range(3):
        await world.lead("go")
    await world.tick()
    # Three were to be sent in this hour, two have been: one more.
    assert len(world.sent()) == 4


async def test_a_claim_whose_answer_is_lost_counts_whole(shared, monkeypatch):
    world = await shared(devices=2, leads=2, per_hour=30)
    claim = world.coordinator._store.claim

    async def lost(*arguments, **named):
        await claim(*arguments, **named)
        raise ConnectionError

    monkeypatch.setattr(world.coordinator._store, "claim", lost)
    with pytest.raises(ConnectionError):
        await world.tick()
    # What each device had on offer in that minute, and may have got: six slots ten seconds apart.
    assert len(world.coordinator._groups._logs["north"]) == 12


async def test_who_leaves_is_free_and_who_joins_brings_what_it_has_sent(shared):
    world = await shared(devices=2, leads=8, per_hour=2)
    await world.tick()
    assert by_device(world) == {1: 1, 2: 1}
    await world.execute("UPDATE devices SET group_name = NULL WHERE number = 1")
    await world.tick()
    assert by_device(world) == {1: 4, 2: 1}
    await world.execute("INSERT INTO device_groups VALUES ('south', 6, NULL)")
    await world.execute("UPDATE devices SET group_name = 'south'")
    await world.tick()
    # Five of its six have been sent by those who are in it by then, wherever they were.
    assert by_device(world) == {1: 4, 2: 2}


async def test_leads_are_spread_by_what_groups_may_send(shared):
    world = await shared(devices=2, leads=0, per_day=80)
    await world.devices(1)
    for _ in range(22):
        await world.lead("go")
    await world.tick()
    homes = await world.rows("SELECT home_device_id::text, count(*) FROM sequence_contacts GROUP BY 1 ORDER BY 2")
    assert [count for _, count in homes] == [1, 1, 20]
