"""Times of day and blackouts on PostgreSQL: enrolled, sent, put off and settled by hand at the lead's own clock."""

from __future__ import annotations

from dispatcher.store.in_doubt import Which, Word, resolve
from dispatcher.store.registry import read_whole_catalogue

CLOCKS = (
    "SELECT array_agg(to_char(next_trigger_time AT TIME ZONE 'UTC', 'DD HH24:MI') ORDER BY id) FROM sequence_contacts"
)
KUALA_LUMPUR = {"send_time_zone": "Asia/Kuala_Lumpur"}
"""It is Monday, 8:00 UTC, and 16:00 there."""


async def opened(new_world):
    """One device, and a sequence whose second message is due at half past nine."""
    world = await new_world(retry_base_s=120)
    await world.fitness(**KUALA_LUMPUR)
    await world.execute("UPDATE sequence_steps SET send_at = '09:30' WHERE trigger = 'fitness_day2'")
    await world.begin()
    return world


async def test_the_next_message_is_due_at_its_time_by_the_leads_clock(new_world):
    world = await opened(new_world)
    await world.lead("fitness_start")
    await world.lead("fitness_start", time_zone="America/New_York")
    await world.tick(20)
    assert await world.value(CLOCKS) == ["06 01:30", "06 14:30"]
    await world.execute("INSERT INTO blackouts (first_day) VALUES ('2026-01-06')")
    await world.hours(18)
    await world.tick(20)
    # Due while a blackout lasts that came since: looked at before it leaves, and put off to its time of day.
    assert (len(world.sent()), await world.value(CLOCKS)) == (2, ["07 01:30", "06 14:30"])
    await world.hours(24)
    await world.tick(20)
    assert world.sent()[2:] == [("999101", "fitness_day2")]


async def test_an_entry_waits_for_its_time_of_day(new_world):
    world = await opened(new_world)
    await world.execute("UPDATE sequence_steps SET send_at = '17:00' WHERE trigger = 'fitness_start'")
    await world.lead("fitness_start")
    await world.tick(20)
    assert (world.sent(), await world.value(CLOCKS)) == ([], ["05 09:00"])
    await world.hours(1)
    await world.tick(20)
    assert world.sent() == [("999101", "fitness_start")]


async def test_what_an_operator_calls_accepted_goes_on_at_its_time_of_day(new_world, answer):
    world = await opened(new_world)
    await world.execute("UPDATE devices SET gateway_idempotent = false")
    await world.tick()
    world.sender.script = {"999101": [answer("in_doubt", "no answer in time")]}
    await world.lead("fitness_start", time_zone="Europe/Berlin")
    await world.tick()
    await world.hours(1)
    await world.execute("UPDATE dripline_database SET clock = dripline_at($1)", world.now_us)
    catalogue = await read_whole_catalogue(world.connection)
    settled = await resolve(world.connection, Which(), Word.ACCEPTED, catalogue, actor="ann")
    assert (len(settled.enrolments), await world.value(CLOCKS)) == (1, ["06 08:30"])
