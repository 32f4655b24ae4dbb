"""Who is enrolled, when, how often, and where they call home."""

from __future__ import annotations

import asyncio

import pytest

from dispatcher.intake.unmatched import find_unmatched
from dispatcher.store.connect import connect


async def enrolled(world) -> list[tuple]:
    """Lead and entry trigger of every enrolment, oldest first."""
    return await world.rows("SELECT lead_id, entry_trigger FROM sequence_contacts ORDER BY id")


async def finish_everything(world) -> None:
    """Three days of messages."""
    for _ in range(3):
        await world.tick()
        await world.hours(24)


async def test_only_exact_tokens_enrol_and_what_enrols_nobody_is_listed(world):
    await world.sequence("Crypto", "crypto_welcome")
    await world.begin()
    both = await world.lead(" fitness_start ,crypto_welcome,,")
    await world.lead("fitness_starter, my_fitness_start,fitness_star")
    await world.lead("fitness_day2")
    await world.lead("newsletter,newsletter , ")
    twice = await world.lead("crypto_welcome,crypto_welcome")
    done = await world.tick()
    assert (done.enrol.taken, done.enrol.enrolled) == (5, 3)
    assert sorted(await enrolled(world)) == [
        (both, "crypto_welcome"),
        (both, "fitness_start"),
        (twice, "crypto_welcome"),
    ]
    assert [(each.trigger, each.leads, each.why) for each in await find_unmatched(world.connection)] == [
        ("fitness_day2", 1, "a step of sequence '30 Day Fitness', but no entry"),
        ("fitness_star", 1, "unknown: no step has this trigger"),
        ("fitness_starter", 1, "unknown: no step has this trigger"),
        ("my_fitness_start", 1, "unknown: no step has this trigger"),
        ("newsletter", 1, "unknown: no step has this trigger"),
    ]


@pytest.mark.parametrize(
    ("policy", "interval_h", "rows"), [("after_exit", None, 2), ("never", None, 1), ("after_interval", 100.0, 1)]
)
async def test_a_new_tag_after_completion_enters_again_as_the_policy_allows(new_world, policy, interval_h, rows):
    world = await new_world()
    await world.fitness(reentry=policy, reentry_interval_h=interval_h)
    await world.begin()
    lead = await world.lead("fitness_start")
    await finish_everything(world)
    assert await world.states() == [("999101", "fitness_day3", 4, "completed", False, None)]
    await world.execute("UPDATE leads SET trigger = 'fitness_start'")
    await world.tick()
    assert await enrolled(world) == [(lead, "fitness_start")] * rows


async def test_an_interval_that_has_passed_lets_a_new_tag_in(new_world):
    world = await new_world()
    await world.fitness(reentry="after_interval", reentry_interval_h=100)
    await world.begin()
    lead = await world.lead("fitness_start")
    await finish_everything(world)
    await world.hours(101)
    await world.execute("UPDATE leads SET trigger = 'fitness_start'")
    await world.tick()
    assert await enrolled(world) == [(lead, "fitness_start")] * 2


async def test_a_token_that_stayed_after_a_failure_enrols_only_when_it_comes_anew(world, answer):
    await world.begin()
    lead = await world.lead("fitness_start")
    world.sender.script["999101"] = [answer("rejected", "invalid_recipient")]
    await world.tick()
    await world.execute("UPDATE leads SET trigger = 'fitness_start,other', opted_in_at = now()")
    await world.tick()
    assert [(row[3], row[5]) for row in await world.states()] == [("failed", None)]
    await world.execute("UPDATE leads SET trigger = 'other'")
    await world.execute("UPDATE leads SET trigger = 'other,fitness_start'")
    await world.tick()
    assert [row[3] for row in await world.states()] == ["failed", "active"]
    assert await enrolled(world) == [(lead, "fitness_start")] * 2


async def test_a_trigger_taken_off_by_hand_stops_a_waiting_enrolment_with_its_reason(world):
    await world.begin()
    await world.lead("fitness_start,other")
    await world.tick()
    await world.execute("UPDATE leads SET trigger = 'other'")
    assert (await world.tick()).enrol.stopped == 1
    assert await world.states() == [("999101", "fitness_day2", 2, "stopped", False, "trigger removed")]
    await world.execute("UPDATE leads SET trigger = 'other,fitness_start'")
    await world.tick()
    assert [row[3] for row in await world.states()] == ["stopped", "active"]


async def test_a_leased_enrolment_is_only_marked_and_not_handed_over(world):
    await world.begin()
    await world.lead("fitness_start")
    world.shards.hand_over = False
    await world.tick()
    await world.execute("UPDATE leads SET trigger = NULL")
    await world.tick()
    assert await world.states() == [("999101", "fitness_start", 1, "active", True, "trigger removed")]
    done = await world.shards.shards[0].hand_over(world.now_us - 60_000_000, world.now_us)
    assert (done.handed, done.given_back, world.sent()) == (0, 1, [])
    assert await world.states() == [("999101", "fitness_start", 1, "stopped", False, "trigger removed")]


async def test_a_trigger_that_is_back_before_the_attempt_ended_goes_on(world):
    await world.begin()
    await world.lead("fitness_start")

    async def off_and_on() -> None:
        await world.execute("UPDATE leads SET trigger = NULL")
        store = await world.store()
        epoch = world.coordinator.epoch
        await store.enrol(await store.catalogue(0), lambda leads: [], world.now_us, epoch=epoch, rows=10, hour_us=1)
        await world.execute("UPDATE leads SET trigger = 'fitness_start'")
        await store.enrol(await store.catalogue(0), lambda leads: [], world.now_us, epoch=epoch, rows=10, hour_us=1)

    world.sender.meanwhile = off_and_on
    await world.tick()
    assert await world.states() == [("999101", "fitness_day2", 2, "active", False, None)]


async def test_a_sequence_activated_after_the_tagging_finds_its_leads_a_bounded_stretch_a_pass(new_world, monkeypatch):
    monkeypatch.setattr("dispatcher.enroller._SEARCH_ROWS", 2)
    world = await new_world()
    sequence = await world.fitness(is_active=False)
    for n in range(5):
        await world.lead("fitness_start" if n != 2 else "not_fitness_start")
    await world.begin()
    await world.tick()
    assert await enrolled(world) == []
    await world.execute("UPDATE sequences SET is_active = true WHERE id = $1", sequence)
    progress = []
    for _ in range(4):
        done = await world.coordinator.run_once(world.now_us, 1)
        progress.append((done.enrol.enrolled, await world.value("SELECT scanned_to FROM open_entries"), done.more))
    assert progress == [(0, 2, True), (2, 4, True), (1, 5, True), (1, 5, False)]
    assert [lead for lead, _ in await enrolled(world)] == [1, 2, 4, 5]


async def test_a_deleted_lead_stops_and_an_opt_out_stops_everything(world):
    await world.sequence("Crypto", "crypto_welcome", "crypto_day2")
    await world.begin()
    await world.lead("fitness_start")
    await world.lead("fitness_start,crypto_welcome")
    await world.tick()
    await world.execute("DELETE FROM leads WHERE phone = '999101'")
    await world.execute("UPDATE leads SET opted_out_at = dripline_now() WHERE phone = '999102'")
    await world.tick()
    assert sorted(await world.states()) == [
        ("999101", "fitness_day2", 2, "stopped", False, "trigger removed"),
        ("999102", "crypto_day2", 2, "stopped", False, "opted out"),
        ("999102", "fitness_day2", 2, "stopped", False, "opted out"),
    ]
    await world.execute("UPDATE leads SET opted_out_at = NULL")
    await world.tick()
    assert len(await world.states()) == 3, "the tokens had stayed"


async def test_an_opt_out_and_a_removed_trigger_at_once_let_a_new_tag_in(world):
    await world.begin()
    await world.lead("fitness_start")
    await world.tick()
    await world.execute("UPDATE leads SET opted_out_at = dripline_now(), trigger = NULL")
    await world.tick()
    await world.execute("UPDATE leads SET opted_out_at = NULL, trigger = 'fitness_start'")
    await world.tick()
    assert [row[3] for row in await world.states()] == ["stopped", "active"]


async def test_a_sequence_that_demands_an_opt_in_waits_for_the_stamp(new_world):
    world = await new_world()
    await world.fitness(requires_opt_in=True)
    await world.begin()
    lead = await world.lead("fitness_start")
    await world.tick()
    assert await enrolled(world) == []
    await world.execute("UPDATE leads SET opted_in_at = dripline_now()")
    await world.tick()
    assert await enrolled(world) == [(lead, "fitness_start")]


async def test_nobody_enters_a_broken_graph_until_it_is_mended(world):
    await world.execute("UPDATE sequence_steps SET next_trigger = 'nowhere' WHERE trigger = 'fitness_day2'")
    await world.begin()
    lead = await world.lead("fitness_start")
    await world.tick()
    assert await enrolled(world) == []
    problem = "step 'fitness_day2': its next trigger 'nowhere' is no step of this sequence"
    assert await world.rows("SELECT problem FROM sequence_problems") == [(problem,)]
    await world.execute("UPDATE sequence_steps SET next_trigger = 'fitness_day3' WHERE trigger = 'fitness_day2'")
    await world.tick()
    assert await world.rows("SELECT problem FROM sequence_problems") == []
    assert await enrolled(world) == [(lead, "fitness_start")]


async def test_two_entry_triggers_of_one_sequence_make_one_enrolment(new_world):
    world = await new_world()
    await world.sequence("Two doors", "door_a", "door_b", entries=("door_a", "door_b"))
    await world.begin()
    lead = await world.lead("door_b,door_a")
    await world.tick()
    assert await enrolled(world) == [(lead, "door_a")]


async def test_homes_are_the_leads_own_the_earlier_one_or_the_least_loaded_for_its_quota(new_world):
    world = await new_world(devices=2)
    await world.execute("UPDATE devices SET quota_per_day = 400 WHERE name = 'd-2'")
    await world.sequence("Crypto", "crypto_welcome")
    await world.fitness()
    await world.begin()
    own = await world.value("SELECT id FROM devices WHERE name = 'd-2'")
    for _ in range(6):
        await world.lead("fitness_start,crypto_welcome")
    await world.lead("fitness_start", home_device_id=own)
    await world.tick()
    homes = await world.rows(
        "SELECT c.lead_id, array_agg(DISTINCT d.name) FROM sequence_contacts c "
        "JOIN devices d ON d.id = c.home_device_id GROUP BY 1 ORDER BY 1"
    )
    assert [names for _, names in homes] == [["d-1"], ["d-1"], ["d-2"], ["d-1"], ["d-1"], ["d-2"], ["d-2"]]
    await finish_everything(world)
    await world.execute("UPDATE leads SET trigger = 'fitness_start' WHERE id <= 3")
    await world.tick()
    again = await world.rows(
        "SELECT d.name FROM sequence_contacts c JOIN devices d ON d.id = c.home_device_id "
        "WHERE c.status = 'active' ORDER BY c.lead_id"
    )
    assert again == [("d-1",), ("d-1",), ("d-2",)]


async def test_a_change_that_commits_late_is_not_lost(world):
    await world.begin()
    late = await connect(world.url)
    transaction = late.transaction()
    await transaction.start()
    await late.execute("INSERT INTO leads (phone, trigger) VALUES ('999001', 'fitness_start')")
    await world.lead("fitness_start")
    done = await world.tick()
    assert (done.enrol.enrolled, [row[0] for row in await world.states()]) == (1, ["999101"])
    await transaction.commit()
    await late.close()
    await asyncio.wait_for(world.tick(), 10)
    assert [row[0] for row in await world.states()] == ["999101", "999001"]


async def test_somebody_elses_enrolment_of_the_same_moment_is_the_one(world):
    await world.begin()
    first, second = await world.lead("fitness_start"), await world.lead("fitness_start")
    operator = await connect(world.url)
    transaction = operator.transaction()
    await transaction.start()
    await operator.execute(
        "INSERT INTO sequence_contacts (sequence_id, lead_id, contact_phone, entry_trigger, current_trigger)"
        " VALUES (1, $1, '999101', 'fitness_start', 'fitness_start')",
        first,
    )
    passing = asyncio.create_task(world.coordinator.run_once(world.now_us, 1))
    await world.waiters(1)
    await transaction.commit()
    await operator.close()
    assert (await passing).enrol.enrolled == 1
    assert await world.rows("SELECT lead_id, status FROM sequence_contacts ORDER BY lead_id") == [
        (first, "active"),
        (second, "active"),
    ]


async def test_an_enrolment_that_ends_while_its_trigger_is_taken_off_has_ended(world):
    await world.begin()
    await world.lead("fitness_start")
    await world.tick()
    completer = await connect(world.url)
    transaction = completer.transaction()
    await transaction.start()
    await completer.execute("UPDATE sequence_contacts SET status = 'completed', finished_at = dripline_now()")
    await world.execute("UPDATE leads SET trigger = NULL")
    passing = asyncio.create_task(world.coordinator.run_once(world.now_us, 1))
    await world.waiters(1)
    await transaction.commit()
    await completer.close()
    assert (await passing).enrol.stopped == 0
    assert await world.states() == [("999101", "fitness_day2", 2, "completed", False, None)]
