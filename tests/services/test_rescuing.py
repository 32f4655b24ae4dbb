"""Leases that end without an outcome, and enrolments whose device cannot send."""

from __future__ import annotations

import asyncpg
import numpy as np
import pytest

from dispatcher.rescuer import RescuePass


async def leased(world, leads: int = 1, **columns) -> None:
    """Leads with their first message claimed and pending in the shard."""
    await world.begin()
    for _ in range(leads):
        await world.lead("fitness_start", **columns)
    world.shards.hand_over = False
    await world.tick()
    assert await world.value("SELECT count(*) FROM sequence_contacts WHERE lease_token IS NOT NULL") == leads


@pytest.mark.parametrize(("reached", "outcomes"), [(True, ["accepted", "repeat"]), (False, ["not_sent", "accepted"])])
async def test_what_a_superseded_incarnation_had_handed_over_is_in_doubt_and_sent_again_by_the_next(
    world, answer, reached, outcomes
):
    await leased(world)
    await world.die_handing_over(reached=reached)
    await world.restart()
    assert await world.rescue() == RescuePass(resent=1)
    assert await world.states() == [("999101", "fitness_start", 1, "active", False, None)]
    assert await world.rows("SELECT pinned, retry_count, last_error FROM sequence_contacts") == [
        (True, 1, "no answer before the lease ended")
    ]
    assert [row[3:] for row in await world.attempts()] == [(1, "in_doubt")]
    world.sender.script["999101"] = [answer("repeat" if reached else "accepted")]
    world.shards.hand_over = True
    await world.tick()
    assert [row[3:] for row in await world.attempts()] == list(enumerate(outcomes, 1))


async def test_without_idempotency_it_is_held(new_world):
    world = await new_world(0)
    await world.devices(1, gateway_idempotent=False)
    await world.fitness()
    await leased(world)
    await world.die_handing_over()
    await world.restart()
    assert await world.rescue() == RescuePass(in_doubt=1)
    assert await world.states() == [("999101", "fitness_start", 1, "in_doubt", False, None)]


async def test_nothing_is_resent_under_a_key_the_gateway_has_forgotten(world):
    await leased(world)
    await world.die_handing_over(reached=False)
    await world.restart()
    assert await world.rescue() == RescuePass(resent=1)
    world.shards.hand_over = True
    await world.hours(23)
    await world.tick()
    assert await world.states() == [("999101", "fitness_start", 1, "in_doubt", False, None)]
    assert [row[3:] for row in await world.attempts()] == [(1, "in_doubt")]
    assert world.sent() == []


async def test_a_lease_its_live_owner_never_saw_waits_again_and_its_late_delivery_is_refused(world):
    await world.begin()
    await world.lead("fitness_start")
    world.shards.lose_routing = True
    await world.tick()
    shard = world.shards.shards[0]
    ((token, epoch),) = await world.rows("SELECT lease_token, lease_epoch FROM sequence_contacts")
    late = await shard._store.read_lease(epoch, token)
    await world.hours(0.1)
    assert await world.rescue() == RescuePass(given_back=1)
    assert await world.states() == [("999101", "fitness_start", 1, "active", False, None)]
    assert await world.rows("SELECT attempt, pinned FROM sequence_contacts") == [(0, False)]
    shard.deliver(1, late)
    done = await shard.hand_over(world.now_us, world.now_us)
    assert (done.handed, world.sent()) == (0, [])


@pytest.mark.parametrize(
    ("idempotent", "handed", "rescued", "attempts"),
    [
        (True, True, RescuePass(resent=1), [1, 2]),
        (False, True, RescuePass(in_doubt=1), [1]),
        (True, False, RescuePass(given_back=1), [1]),
    ],
)
async def test_a_successor_does_not_vouch_for_its_predecessors_leases(new_world, idempotent, handed, rescued, attempts):
    """Their epoch is in force when the rescuer reads the lease, and superseded when the shard is asked."""
    world = await new_world(0)
    await world.devices(1, gateway_idempotent=idempotent)
    await world.fitness()
    await leased(world)
    if handed:
        await world.die_handing_over()
    await world.hours(0.1)
    before = await world.rows("SELECT * FROM sequence_contacts")
    fate = world.shards.fate

    async def replaced_before_the_question_comes(shard, *lease):
        world.shards.fate = fate
        await world.restart(shard)
        return await fate(shard, *lease)

    world.shards.fate = replaced_before_the_question_comes
    assert await world.rescue() == RescuePass()
    assert await world.rows("SELECT * FROM sequence_contacts") == before
    assert await world.rescue() == rescued
    if handed:
        await world.execute("UPDATE sequence_steps SET message_text = 'something else'")
    world.shards.hand_over = True
    await world.tick()
    assert [(request.attempt, request.text) for request in world.sender.requests] == [
        (attempt, "text of fitness_start") for attempt in attempts
    ]


async def test_a_lease_whose_hand_over_is_on_record_is_not_returned_whatever_its_owner_says(world):
    """Two leases of one claim, and only the first one's slot has come."""
    await leased(world, leads=2)
    await world.die_handing_over(until_us=world.now_us - 60_000_000)
    assert world.sent() == [("999101", "fitness_start")]
    enrolment, token = np.array(await world.rows("SELECT id, lease_token FROM sequence_contacts ORDER BY id")).T
    assert await (await world.store()).return_leases(enrolment, token, world.now_us, world.now_us) == 1
    assert await world.states() == [
        ("999101", "fitness_start", 1, "active", True, None),
        ("999102", "fitness_start", 1, "active", False, None),
    ]
    assert await world.rows("SELECT attempt FROM sequence_contacts ORDER BY id") == [(1,), (0,)]


async def test_what_the_owner_has_in_hand_is_left_to_it_and_a_silent_owner_is_waited_for(world):
    await leased(world)
    await world.hours(0.1)
    before = await world.rows("SELECT * FROM sequence_contacts")
    assert await world.rescue() == RescuePass()
    world.shards.silent = {0}
    assert await world.rescue() == RescuePass()
    assert await world.rows("SELECT * FROM sequence_contacts") == before


async def homes(world) -> dict[str, int]:
    """Active enrolments by device."""
    return dict(
        await world.rows(
            "SELECT d.name, count(*) FROM sequence_contacts c JOIN devices d ON d.id = c.home_device_id "
            "WHERE c.status = 'active' GROUP BY 1 ORDER BY 1"
        )
    )


@pytest.mark.parametrize(
    ("health", "cause", "after"),
    [
        ("draining", None, {"d-2": 6, "d-3": 6}),
        ("offline", None, {"d-2": 6, "d-3": 6}),
        ("quarantined", "credentials", {"d-2": 6, "d-3": 6}),
        ("quarantined", "quality", {"d-1": 4, "d-2": 4, "d-3": 4}),
    ],
)
async def test_what_waits_for_a_device_that_cannot_send_moves_balanced_but_never_for_quality(
    new_world, health, cause, after
):
    world = await new_world(devices=3)
    await world.fitness()
    await world.begin()
    for _ in range(12):
        await world.lead("fitness_start")
    await world.tick()
    assert await homes(world) == {"d-1": 4, "d-2": 4, "d-3": 4}
    await world.execute("UPDATE devices SET health = $1, health_cause = $2 WHERE name = 'd-1'", health, cause)
    await world.tick()
    assert await homes(world) == after


async def test_what_moves_bit_by_bit_is_balanced_too(new_world):
    world = await new_world(devices=3)
    await world.fitness()
    await world.begin()
    await world.execute("UPDATE devices SET health = 'offline' WHERE name = 'd-1'")
    first = await world.value("SELECT id FROM devices WHERE name = 'd-1'")
    for _ in range(4):
        await world.lead("fitness_start")
        await world.tick()
        await world.execute(
            "UPDATE sequence_contacts SET home_device_id = $1 WHERE id = (SELECT max(id) FROM sequence_contacts)", first
        )
        await world.tick()
    assert await homes(world) == {"d-2": 2, "d-3": 2}


async def test_pinned_and_strict_enrolments_wait_for_their_device(new_world, answer):
    world = await new_world(devices=2)
    await world.fitness()
    await world.sequence("Viewings", "view", "view_2", sender_policy="strict")
    await world.begin()
    first = await world.value("SELECT id FROM devices WHERE name = 'd-1'")
    for trigger in ("fitness_start", "view", "fitness_start"):
        await world.lead(trigger, home_device_id=first)
    world.sender.script["999101"] = [answer("in_doubt", "time-out")]
    await world.tick()
    await world.execute("UPDATE devices SET health = 'offline' WHERE name = 'd-1'")
    await world.tick()
    assert await world.rows(
        "SELECT c.contact_phone, d.name FROM sequence_contacts c JOIN devices d ON d.id = c.home_device_id ORDER BY 1"
    ) == [("999101", "d-1"), ("999102", "d-1"), ("999103", "d-2")]


async def test_a_device_with_live_enrolments_is_not_deleted_before_it_has_drained(new_world):
    world = await new_world(devices=2)
    await world.fitness()
    await world.begin()
    await world.lead("fitness_start")
    await world.tick()
    with pytest.raises(asyncpg.RaiseError, match="device d-1 has live enrolments: set its health to draining first"):
        await world.execute("DELETE FROM devices WHERE name = 'd-1'")
    await world.execute("UPDATE devices SET health = 'draining' WHERE name = 'd-1'")
    await world.tick()
    await world.execute("DELETE FROM devices WHERE name = 'd-1'")
    await world.hours(24)
    await world.tick()
    assert [(request.step, request.device) for request in world.sender.requests] == [
        ("fitness_start", 1),
        ("fitness_day2", 2),
    ]


async def test_nobody_is_enrolled_with_a_device_that_was_deleted_since_the_coordinator_looked(new_world):
    world = await new_world(devices=2)
    await world.fitness()
    await world.begin()
    await world.tick()  # the coordinator knows both devices, and has nothing to read anew
    for _ in range(2):
        await world.lead("fitness_start")
    store = world.coordinator._store
    versions = store.versions

    async def versions_before_it_is_deleted():
        found = await versions()
        store.versions = versions
        await world.execute("DELETE FROM devices WHERE name = 'd-1'")
        return found

    store.versions = versions_before_it_is_deleted
    await world.tick()
    await world.tick()
    assert await homes(world) == {"d-2": 2}
    assert sorted((request.to, request.step, request.device) for request in world.sender.requests) == [
        ("999101", "fitness_start", 2),
        ("999102", "fitness_start", 2),
    ]


async def test_nobody_moves_to_a_device_that_was_deleted_since_the_coordinator_looked(new_world):
    """The only other device is gone by the time the enrolments of a draining one are moved to it."""
    world = await new_world(devices=1)
    await world.fitness()
    await world.begin()
    for _ in range(2):
        await world.lead("fitness_start")
    await world.tick()
    await world.devices(1)
    await world.execute("UPDATE devices SET health = 'draining' WHERE name = 'd-1'")
    store = world.coordinator._store
    misplaced = store.misplaced

    async def misplaced_before_it_is_deleted(*arguments):
        found = await misplaced(*arguments)
        store.misplaced = misplaced
        await world.execute("DELETE FROM devices WHERE name = 'd-2'")
        return found

    store.misplaced = misplaced_before_it_is_deleted
    await world.tick()
    assert await homes(world) == {"d-1": 2}
    await world.devices(1)
    await world.hours(24)
    await world.tick()
    assert await homes(world) == {"d-2": 2}
    assert [request.step for request in world.sender.requests[2:]] == ["fitness_day2"] * 2
