"""The claim: the longest overdue of each device, once, for whoever may act."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from dispatcher.core.leases import Want
from dispatcher.errors import FencedError
from dispatcher.store.connect import connect
from dispatcher.store.coordinator_store import PostgresCoordinatorStore

SECOND_US = 1_000_000
LEASED = "SELECT contact_phone, dripline_us(processing_started_at) FROM sequence_contacts WHERE lease_token IS NOT NULL"


async def claim(store, world, slots: dict[int, list[float]], *, epoch=None, shard_epoch=None):
    """Claim for slots (seconds from now) by device number."""
    shard = world.shards.shards[0]
    moments = [world.now_us + round(second * SECOND_US) for part in slots.values() for second in part]
    want = Want(
        shard=0,
        epoch=shard.epoch if shard_epoch is None else shard_epoch,
        device_id=[world.device_ids[number] for number in slots],
        number=np.array(list(slots), np.int32),
        slots=np.array([len(part) for part in slots.values()], np.int32),
        slot_us=np.array(moments, np.int64),
        since_us=np.zeros(len(slots), np.int64),
    )
    epoch = world.coordinator.epoch if epoch is None else epoch
    return await store.claim(want, world.now_us, epoch=epoch, deadline_us=30 * SECOND_US, lead_fields=False)


async def taken(world, leased) -> list[tuple]:
    """Phone, device and slot (seconds from now), in the order of slots."""
    if leased is None:
        return []
    rows = zip(leased.phone, leased.device.tolist(), (leased.slot_us - world.now_us).tolist(), strict=True)
    return sorted(((phone, device, us / SECOND_US) for phone, device, us in rows), key=lambda row: row[1:])


@pytest.fixture
async def waiting(new_world):
    """Two devices; ten enrolments, by turns on each, due an hour ago and every ten minutes from then: 999101 first."""
    world = await new_world(devices=2)
    await world.fitness()
    await world.begin()
    for _ in range(10):
        await world.lead(None)
    await world.execute(
        "INSERT INTO sequence_contacts (sequence_id, lead_id, contact_phone, entry_trigger, current_trigger, "
        "home_device_id, next_trigger_time) SELECT 1, l.id, l.phone, 'fitness_start', 'fitness_start', d.id, "
        "dripline_at($1) + ((l.id - 1) * 10 - 60) * interval '1 minute' "
        "FROM leads l JOIN devices d ON d.number = 2 - l.id % 2 ORDER BY l.id DESC",
        world.now_us,
    )
    world.device_ids = dict(await world.rows("SELECT number, id FROM devices"))
    return world


async def test_each_device_gives_its_first_slots_to_its_longest_overdue_and_never_before_due(waiting):
    store = await waiting.store()
    leased = await claim(store, waiting, {1: [1, 6], 2: [2, 7, 12, 17, 22]})
    assert await taken(waiting, leased) == [
        ("999101", 1, 1.0),
        ("999103", 1, 6.0),
        ("999102", 2, 2.0),
        ("999104", 2, 7.0),
        ("999106", 2, 12.0),
    ], "999108 and 999110 are not due yet"
    rows = await waiting.rows(LEASED)
    assert len(rows) == 5
    assert await taken(waiting, await claim(store, waiting, {1: [20, 25, 30]})) == [
        ("999105", 1, 20.0),
        ("999107", 1, 25.0),
    ]


async def test_enrolments_that_somebody_holds_are_stepped_over_and_soon_without_waiting(waiting):
    store = await waiting.store()
    marketer = await connect(waiting.url)
    try:
        async with marketer.transaction():
            await marketer.execute("UPDATE sequence_contacts SET last_error = 'mine' WHERE contact_phone = '999103'")
            leased = await claim(store, waiting, {1: [1, 6]})
            assert await taken(waiting, leased) == [("999101", 1, 1.0), ("999105", 1, 6.0)]
            await marketer.execute("UPDATE sequence_contacts SET last_error = 'mine' WHERE contact_phone = '999102'")
            async with asyncio.timeout(0.15):
                leased = await claim(store, waiting, {2: [11]})
            assert await taken(waiting, leased) == [("999104", 2, 11.0)]
    finally:
        await marketer.close()


@pytest.mark.parametrize(
    "change",
    [
        "status = 'stopped', stop_reason = 'trigger removed'",
        "stop_reason = 'trigger removed'",
        "next_trigger_time = dripline_now() + interval '100 years'",
        "held = true",
        "home_device_id = gen_random_uuid()",
    ],
)
async def test_what_changes_while_the_claim_waits_for_it_is_not_leased(waiting, change, monkeypatch):
    monkeypatch.setattr("dispatcher.store.coordinator_store._QUICK_LOCK_S", 5.0)
    store = await waiting.store()
    marketer = await connect(waiting.url)
    try:
        async with marketer.transaction():
            await marketer.execute(f"UPDATE sequence_contacts SET {change} WHERE contact_phone = '999103'")
            claiming = asyncio.create_task(claim(store, waiting, {1: [1, 6]}))
            await waiting.waiters(1)
        assert await taken(waiting, await claiming) == [("999101", 1, 1.0)]
    finally:
        await marketer.close()


async def test_two_coordinators_at_once_never_lease_one_enrolment_twice(waiting):
    stores = [await waiting.store(), await waiting.store()]
    parts = await asyncio.gather(*(claim(store, waiting, {1: [1, 6], 2: [1, 6]}) for store in stores * 3))
    rest = await claim(stores[0], waiting, {1: [9, 14, 19, 24], 2: [9, 14, 19, 24]})
    phones = [phone for part in (*parts, rest) if part is not None for phone in part.phone]
    assert sorted(phones) == [f"9991{n:02d}" for n in range(1, 8)], "all seven that are due, each once"
    assert len(await waiting.rows(LEASED)) == 7


async def test_a_claim_skips_what_another_transaction_holds(waiting):
    other = await connect(waiting.url)
    transaction = other.transaction()
    await transaction.start()
    await other.execute("SELECT FROM sequence_contacts WHERE contact_phone = '999101' FOR UPDATE")
    leased = await asyncio.wait_for(claim(await waiting.store(), waiting, {1: [1]}), 3)
    assert await taken(waiting, leased) == [("999103", 1, 1.0)]
    await transaction.rollback()
    await other.close()


async def test_a_search_begins_where_the_last_claim_ended_unless_it_went_around_a_row(waiting, monkeypatch):
    began_min, claimed, claim = [], [], PostgresCoordinatorStore.claim

    async def noting(self, want, *arguments, **named):
        began_min.append(((want.since_us - waiting.now_us) // (60 * SECOND_US)).tolist())
        leased = await claim(self, want, *arguments, **named)
        claimed.append(sorted(leased.phone))
        return leased

    monkeypatch.setattr(PostgresCoordinatorStore, "claim", noting)
    monkeypatch.setattr("dispatcher.store.coordinator_store._CAREFUL_S", 0.0)
    await waiting.coordinator.probe()
    marketer = await connect(waiting.url)
    try:
        async with marketer.transaction():
            await marketer.execute("UPDATE sequence_contacts SET last_error = 'mine' WHERE contact_phone = '999101'")
            await waiting.coordinator.run_once(waiting.now_us, 1)
        for horizon_s in (5, 10):
            await waiting.coordinator.run_once(waiting.now_us, horizon_s * SECOND_US + 1)
    finally:
        await marketer.close()
    assert claimed == [["999102", "999103"], ["999101", "999104"], ["999105", "999106"]]
    assert began_min == [[-60, -50], [-60, -50], [-60, -30]]


@pytest.mark.parametrize("stale", ["coordinator", "shard"])
async def test_a_stale_epoch_claims_nothing(waiting, stale):
    store = await waiting.store()
    epoch, shard_epoch = waiting.coordinator.epoch, waiting.shards.shards[0].epoch
    if stale == "coordinator":
        await (await waiting.store()).seat.raise_epoch()
    else:
        await (await waiting.shard_store()).seat.raise_epoch()
    assert await claim(store, waiting, {1: [1]}, epoch=epoch, shard_epoch=shard_epoch) is None
    assert await waiting.rows(LEASED) == []


async def test_a_pass_says_from_when_on_the_next_one_finds_a_slot(new_world):
    """Whoever makes passes a horizon apart comes in time for a slot that is free in between."""
    world = await new_world(0)
    await world.devices(1, min_gap_s=45)
    await world.fitness()
    await world.begin()
    for _ in range(3):
        await world.lead("fitness_start")
    begun_us = world.now_us
    await world.coordinator.run_once(begun_us, 1)  # enrols, and sends the first at once
    done = await world.coordinator.run_once(begun_us, 30 * SECOND_US)
    assert (done.claimed, done.next_us - begun_us) == (0, 45 * SECOND_US)
    assert done.ask_us - begun_us == 15 * SECOND_US + 1
    assert (await world.coordinator.run_once(done.ask_us - 1, 30 * SECOND_US)).claimed == 0
    assert (await world.coordinator.run_once(done.ask_us, 30 * SECOND_US)).claimed == 1


async def test_a_superseded_coordinator_enrols_nobody(waiting):
    await (await waiting.store()).seat.raise_epoch()
    await waiting.lead("fitness_start")
    with pytest.raises(FencedError):
        await waiting.coordinator.run_once(waiting.now_us, 1)
    assert await waiting.value("SELECT count(*) FROM lead_changes") == 1, "the change stays for the successor"


@pytest.mark.parametrize("name", ["coordinator", "shard-0"])
async def test_raising_an_epoch_waits_for_the_claim_under_way_and_the_next_claim_fails(waiting, name):
    store = await waiting.store()
    seat = (await waiting.store()).seat if name == "coordinator" else (await waiting.shard_store()).seat
    epoch, shard_epoch = waiting.coordinator.epoch, waiting.shards.shards[0].epoch
    async with waiting.gate(
        "CREATE TRIGGER gate BEFORE UPDATE ON sequence_contacts FOR EACH ROW EXECUTE FUNCTION pass_gate()"
    ):
        claiming = asyncio.create_task(claim(store, waiting, {1: [1]}, epoch=epoch, shard_epoch=shard_epoch))
        await waiting.waiters(1)
        raising = asyncio.create_task(seat.raise_epoch())
        await waiting.waiters(2)
        assert not raising.done()
    assert (await claiming).phone == ["999101"]
    assert await raising > (epoch if name == "coordinator" else shard_epoch)
    assert await claim(store, waiting, {1: [1]}, epoch=epoch, shard_epoch=shard_epoch) is None


async def test_a_paused_sequence_is_not_claimed_and_leaves_the_index_a_bounded_number_a_pass(new_world):
    world = await new_world(bulk_rows=3)
    await world.fitness()
    await world.sequence("Crypto", "crypto_welcome", "crypto_day2")
    await world.begin()
    for _ in range(7):
        await world.lead("fitness_start")
    await world.tick()
    await world.hours(24)
    await world.lead("crypto_welcome")
    await world.execute("UPDATE sequences SET is_active = false WHERE name = '30 Day Fitness'")
    passes = [(await world.coordinator.run_once(world.now_us, 60 * SECOND_US)).balance.held for _ in range(4)]
    assert passes == [3, 3, 1, 0]
    assert [step for _, step in world.sent()] == ["fitness_start"] * 7 + ["crypto_welcome"]
    await world.execute("UPDATE sequences SET is_active = true")
    first = await world.tick(300)
    assert first.balance.unheld == 3
    assert [step for _, step in world.sent()][8:] == ["fitness_day2"] * 7


async def test_a_change_between_reading_the_catalogue_and_the_end_of_the_refresh_is_seen_by_the_next_pass(world):
    await world.begin()
    store = world.coordinator._store
    read = store.catalogue

    async def read_and_be_overtaken(now_us):
        catalogue = await read(now_us)
        store.catalogue = read
        await world.execute("UPDATE sequences SET is_active = false")
        return catalogue

    store.catalogue = read_and_be_overtaken
    await world.execute("UPDATE sequences SET name = 'Renamed'")
    await world.coordinator.run_once(world.now_us, 1)
    await world.coordinator.run_once(world.now_us, 1)
    assert await world.rows("SELECT * FROM open_entries") == []
