"""The record of hand-overs: what a crash can have let out is known, and is said again byte for byte."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from dispatcher.rescuer import RescuePass
from dispatcher.store.bodies import unpacked

MINUTE_US = 60_000_000
STEP = "text of fitness_start"
WAITING = ("999101", "fitness_start", 1, "active", False, None)
ADVANCED = ("999101", "fitness_day2", 2, "active", False, None)


async def make(new_world, *, idempotent: bool = True):
    """One device, the first messages of two leads claimed and pending."""
    world = await new_world(0)
    await world.devices(1, gateway_idempotent=idempotent)
    await world.fitness()
    await world.begin()
    for _ in range(2):
        await world.lead("fitness_start")
    world.shards.hand_over = False
    await world.tick()
    world.shards.hand_over = True
    return world


async def leases(world) -> list[tuple]:
    """Of every enrolment: status, attempt, retry_count, pinned and what a resend says."""
    return await world.rows(
        "SELECT status, attempt, retry_count, pinned, resend_text FROM sequence_contacts ORDER BY id"
    )


@pytest.mark.parametrize("idempotent", [True, False])
async def test_what_died_before_the_last_look_waits_again_and_nothing_is_in_doubt(new_world, idempotent):
    world = await make(new_world, idempotent=idempotent)
    await world.restart()
    assert await world.rescue() == RescuePass(given_back=2)
    assert await leases(world) == [("active", 0, 0, False, None)] * 2
    assert await world.attempts() == []
    await world.tick()
    assert [(request.to, request.attempt) for request in world.sender.requests] == [("999101", 1), ("999102", 1)]


@pytest.mark.parametrize(
    ("idempotent", "rescued", "after"),
    [
        (True, RescuePass(resent=2), [("active", 1, 1, True, STEP)] * 2),
        (False, RescuePass(in_doubt=2), [("in_doubt", 1, 1, False, STEP)] * 2),
    ],
)
async def test_what_died_after_the_last_look_is_in_doubt_with_what_it_said(new_world, idempotent, rescued, after):
    world = await make(new_world, idempotent=idempotent)
    await world.die_handing_over()
    await world.restart()
    assert await world.rescue() == rescued
    assert await leases(world) == after
    assert [row[3:] for row in await world.attempts()] == [(1, "in_doubt")] * 2


async def test_what_nobody_rescued_for_days_keeps_its_record_and_is_in_doubt(new_world):
    world = await make(new_world)
    await world.die_handing_over()
    await world.restart()
    await world.hours(48)
    await world.tick()
    await world.tick()
    assert [row[3] for row in await world.states()] == ["in_doubt"] * 2
    assert [request.attempt for request in world.sender.requests] == [1, 1], (
        "its key is forgotten, and it is not resent"
    )
    await world.hours(48)
    await world.tick()
    assert await world.value("SELECT count(*) FROM handovers") == 0


async def test_only_what_passes_the_last_look_is_recorded(new_world):
    world = await make(new_world)
    await world.execute("UPDATE leads SET opted_out_at = now() WHERE phone = '999101'")
    await world.die_handing_over()
    ((enrolments, bodies),) = await world.rows("SELECT enrolments, bodies FROM handovers")
    assert enrolments == [2]
    assert [body for body in unpacked(bodies) if body[0] in enrolments] == [(2, STEP, None)]
    assert [request.to for request in world.sender.requests] == ["999102"]


async def edit(world, n: int) -> None:
    """Say something else to everybody from now on."""
    await world.execute(
        "UPDATE sequence_steps SET message_text = $1, media_url = $2 WHERE trigger = 'fitness_start'",
        f"edited {n}: {{{{ name }}}} {{{{ goal }}}}",
        f"https://example.org/{n}.jpg",
    )
    await world.execute("UPDATE leads SET name = $1, attributes = $2", f"Name {n}", f'{{"goal": "{n}"}}')


async def test_a_resend_says_byte_for_byte_what_was_said_however_often_the_text_is_edited(new_world, answer):
    world = await new_world()
    await world.fitness()
    await world.execute(
        "UPDATE sequence_steps SET message_text = 'Ahoy {{ name }}: {{ goal }} ✓', "
        "media_url = 'https://example.org/0.jpg' WHERE trigger = 'fitness_start'"
    )
    await world.begin()
    await world.lead("fitness_start", name="Zoë", attributes='{"goal": "10 km"}')
    world.shards.hand_over = False
    await world.tick()
    await world.die_handing_over()
    await edit(world, 1)
    await world.restart()
    await world.tick()
    await world.die_handing_over()
    await edit(world, 2)
    await world.restart()
    world.shards.hand_over = True
    world.sender.script["999101"] = [answer("in_doubt", "time-out"), answer("repeat")]
    for _ in range(3):
        await world.tick()
    assert [request.text for request in world.sender.requests] == ["Ahoy Zoë: 10 km ✓"] * 4
    assert await world.value("SELECT count(*) FROM handovers") == 4
    said = [unpacked(bodies) for (bodies,) in await world.rows("SELECT bodies FROM handovers")]
    assert said == [[(1, "Ahoy Zoë: 10 km ✓", "https://example.org/0.jpg")]] * 4
    assert len({request.key for request in world.sender.requests}) == 1
    assert await world.attempts() == [
        ("999101", "fitness_start", 1, 1, "accepted"),
        ("999101", "fitness_start", 1, 2, "in_doubt"),
        ("999101", "fitness_start", 1, 3, "in_doubt"),
        ("999101", "fitness_start", 1, 4, "repeat"),
    ]
    await world.hours(24)
    await world.tick()
    assert world.sender.requests[-1].text == "text of fitness_day2", "the next step is rendered anew"


async def test_a_superseded_incarnations_last_look_lets_nothing_leave(new_world):
    world = await make(new_world)
    old = world.shards.shards[0]
    ((token, epoch),) = await world.rows("SELECT DISTINCT lease_token, lease_epoch FROM sequence_contacts")
    leased = await old._store.read_lease(epoch, token)
    await (await world.shard_store()).seat.raise_epoch()
    assert await old._store.last_look(leased, [STEP] * 2, [None] * 2, world.now_us, 0) == {
        0: "superseded",
        1: "superseded",
    }
    done = await old.hand_over(world.now_us - MINUTE_US, world.now_us)
    assert (done.handed, done.given_back, world.sent()) == (0, 2, [])
    assert await world.value("SELECT count(*) FROM handovers") == 0


async def test_a_takeover_waits_for_a_last_look_under_way_and_counts_what_it_let_out(new_world):
    world = await make(new_world)
    old = world.shards.shards[0]
    async with world.gate("CREATE TRIGGER gate BEFORE INSERT ON handovers FOR EACH ROW EXECUTE FUNCTION pass_gate()"):
        looking = asyncio.create_task(old.hand_over(world.now_us - MINUTE_US, world.now_us))
        await world.waiters(1)
        taking_over = asyncio.create_task(world.restart())
        await world.waiters(2)
        assert not taking_over.done()
    assert (await looking).handed == 2
    await taking_over
    assert await used(world) == 2
    assert await world.value("SELECT count(*) FROM handovers WHERE shard_epoch = $1", old.epoch) == 1


async def used(world, shard: int = 0) -> int:
    """How many moments of the shard's devices count, for whoever takes them over now."""
    usage = await (await world.shard_store(shard)).usage(world.now_us - 25 * 3_600_000_000)
    return sum(len(part.at_us) for part in usage)


async def test_a_device_that_changes_hands_fences_its_former_owner_and_brings_what_that_one_sent(new_world):
    world = await new_world(0)
    await world.devices(2, quota_per_hour=3)
    await world.execute("UPDATE devices SET shard_id = CASE name WHEN 'd-1' THEN 0 ELSE 1 END")
    await world.fitness()
    await world.begin(2)
    home = await world.value("SELECT id FROM devices WHERE name = 'd-1'")
    for _ in range(2):
        await world.lead("fitness_start", home_device_id=home)
    await world.tick()
    world.shards.hand_over = False
    await world.lead("fitness_start", home_device_id=home)
    await world.tick()
    old, new = world.shards.shards[0], world.shards.shards[1]
    leased = old._pending[0]
    await world.execute("UPDATE devices SET shard_id = 1 WHERE name = 'd-1'")
    await new.refresh()
    assert await old._store.last_look(leased, [STEP], [None], world.now_us, 0) == {0: "superseded"}
    done = await old.hand_over(world.now_us - MINUTE_US, world.now_us)
    assert (done.handed, len(world.sender.requests)) == (0, 2)
    offer = new.offer(world.now_us, 30 * MINUTE_US, np.array([1, 2], np.int32))
    assert dict(zip(offer.number.tolist(), offer.slots.tolist(), strict=True)) == {1: 1, 2: 3}
    assert (await used(world, 0), await used(world, 1)) == (0, 2), "what it had not handed over counts no more"


@pytest.mark.parametrize("where", ["held", "waiting", "leased"])
@pytest.mark.parametrize(
    ("outcome", "after"),
    [
        ("accepted", ("fitness_day2", 2, "active", None, False)),
        ("refused", ("fitness_start", 1, "active", "why", False)),
        ("rejected", ("fitness_start", 1, "failed", "why", False)),
        ("opted_out", ("fitness_start", 1, "stopped", "why", True)),
    ],
)
async def test_a_late_answer_settles_an_attempt_in_doubt(heard_late, answer, outcome, after, where):
    world, first = await heard_late(answer(outcome, None if outcome == "accepted" else "why"), where=where)
    await first.complete(world.now_us)
    step, visit, status, error, opted_out = after
    leased = where == "leased" and outcome != "accepted"
    assert [row[3:] for row in await world.attempts()] == [(1, outcome)]
    assert await world.rows(
        "SELECT current_trigger, visit, status, last_error, opted_out_at IS NOT NULL, "
        "lease_token IS NOT NULL, pinned, resend_text, finished_at IS NOT NULL "
        "FROM sequence_contacts c JOIN leads l ON l.id = c.lead_id"
    ) == [
        (
            step,
            visit,
            "active" if leased else status,
            error,
            opted_out,
            leased,
            False,
            None,
            not leased and status in ("failed", "stopped"),
        )
    ]


@pytest.mark.parametrize(
    ("outcome", "sent", "ledger", "state"),
    [
        ("accepted", [1], ["accepted"], ADVANCED),
        ("refused", [1, 2], ["refused", "accepted"], ADVANCED),
        ("rejected", [1, 2], ["rejected", "accepted"], ADVANCED),
        ("opted_out", [1], ["opted_out"], ("999101", "fitness_start", 1, "stopped", False, "opted out")),
    ],
)
async def test_a_resend_under_way_is_left_to_its_own_end(heard_late, answer, outcome, sent, ledger, state):
    world, first = await heard_late(answer(outcome, "why"), where="leased")
    await first.complete(world.now_us)
    second = world.shards.shards[0]
    await second.hand_over(world.now_us - MINUTE_US, world.now_us)
    await second.complete(world.now_us)
    assert [request.attempt for request in world.sender.requests] == sent
    assert len({request.text for request in world.sender.requests}) == 1
    assert [row[4] for row in await world.attempts()] == ledger
    assert await world.states() == [state]


async def test_a_late_answer_releases_nothing_while_another_attempt_is_unknown(heard_late, answer):
    world, first = await heard_late(answer("refused", "why"), where="leased")
    await world.die_handing_over()
    await world.restart()
    await world.rescue()
    await first.complete(world.now_us)
    assert [row[3:] for row in await world.attempts()] == [(1, "refused"), (2, "in_doubt")]
    assert await leases(world) == [("active", 2, 2, True, STEP)]


async def test_a_text_that_cannot_be_said_leaves_no_trace_once_its_lease_is_gone(world):
    await world.execute("UPDATE sequence_steps SET message_text = '{{ nobody }}' WHERE is_entry_point")
    await world.begin()
    await world.lead("fitness_start")
    world.shards.hand_over = False
    await world.tick()
    first = world.shards.shards[0]
    await first.hand_over(world.now_us - MINUTE_US, world.now_us)
    await world.restart()
    await world.rescue()
    await first.complete(world.now_us)
    assert (await world.attempts(), await world.states()) == ([], [WAITING])
    assert await world.value("SELECT count(*) FROM handovers") == 0
    world.shards.hand_over = True
    await world.tick()
    assert [row[3:] for row in await world.attempts()] == [(1, "rejected")]
    assert (world.sent(), [row[3] for row in await world.states()]) == ([], ["failed"])
