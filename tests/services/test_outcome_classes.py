"""Every class of outcome through the real services: what becomes of the enrolment, its device and its neighbours."""

from __future__ import annotations

from datetime import timedelta

import pytest

from dispatcher.core.moments import to_datetime
from dispatcher.core.outcomes import CONSEQUENCES, Outcome

CLASSES = [
    "throttled", "throttled_pair", "throttled_account", "quality", "capped", "rejected", "opted_out", "service_window",
    "credentials", "refused", "in_doubt",
]  # fmt: skip
RESTING = {"throttled", "throttled_account", "quality"}
"""Whose device sends nothing else for now. Credentials move the device's enrolments elsewhere."""


async def test_each_class_of_outcome_does_what_it_says_and_touches_nobody_else(new_world, answer):
    world = await new_world(devices=0, retry_base_s=7200)
    await world.fitness()
    await world.devices(len(CLASSES), in_flight_max=1, gateway_idempotent=False)
    await world.devices(1, in_flight_max=1, gateway_account="shared")
    await world.execute("UPDATE devices SET gateway_account = 'shared' WHERE number = 3")
    await world.begin()
    device = {n: await world.value("SELECT id FROM devices WHERE number = $1", n) for n in range(1, len(CLASSES) + 2)}
    for number, outcome in enumerate(CLASSES, 1):
        world.sender.script[f"999{100 + number}"] = [answer(outcome, "why")]
        await world.lead("fitness_start", home_device_id=device[number])
    for number in device:
        await world.lead("fitness_start", home_device_id=device[number])
    await world.tick(0.5)
    first = {to: outcome for to, _, _, _, outcome in await world.attempts()}
    beside = f"999{100 + 2 * len(CLASSES) + 1}"
    assert first == {beside: "accepted"} | {f"999{100 + number}": outcome for number, outcome in enumerate(CLASSES, 1)}
    await world.lead("fitness_start", home_device_id=device[len(CLASSES) + 1])
    await world.tick(50)
    later = {request.to: request.device for request in world.sender.requests[len(first) :]}
    second = {name: f"999{100 + len(CLASSES) + number}" for number, name in enumerate(CLASSES, 1)}
    assert {name for name, phone in second.items() if phone not in later} - {"credentials"} == RESTING
    assert f"999{100 + 2 * len(CLASSES) + 2}" not in later, "the other device of the account rests too"
    home = "SELECT home_device_id FROM sequence_contacts WHERE contact_phone = $1"
    kept = {name for number, name in enumerate(CLASSES, 1) if await world.value(home, second[name]) == device[number]}
    assert kept == set(CLASSES) - {"credentials"}

    rows = await world.rows(
        """SELECT status, retry_count, last_error, stop_reason, extract(epoch FROM next_trigger_time - $1)::float
           FROM sequence_contacts ORDER BY id LIMIT $2""",
        to_datetime(world.now_us) - timedelta(seconds=50.5),
        len(CLASSES),
    )
    found = dict(zip(CLASSES, rows, strict=True))
    assert {name: row[:2] for name, row in found.items()} == {
        **dict.fromkeys(CLASSES, ("active", 0)),
        "rejected": ("failed", 0),
        "opted_out": ("stopped", 0),
        "refused": ("active", 1),
        "in_doubt": ("in_doubt", 1),
    }
    assert {row[2] for row in rows} == {"why"}
    for name in ("throttled", "throttled_pair", "throttled_account", "capped", "service_window"):
        assert found[name][4] == CONSEQUENCES[Outcome[name.upper()]].wait_s, name
    assert 3600 <= found["refused"][4] <= 7200
    assert await world.rows(
        "SELECT number, health_cause FROM devices WHERE health = 'quarantined' ORDER BY number"
    ) == [
        (CLASSES.index("quality") + 1, "quality"),
        (CLASSES.index("credentials") + 1, "credentials"),
    ]


async def test_an_account_that_is_throttled_rests_in_every_shard(new_world, answer):
    world = await new_world(devices=2)
    await world.fitness()
    await world.execute("UPDATE devices SET gateway_account = 'shared'")
    await world.begin(shards=2)
    shards = await world.rows("SELECT shard_id FROM devices ORDER BY number")
    assert shards[0] != shards[1]
    for number in (1, 2):
        home = await world.value("SELECT id FROM devices WHERE number = $1", number)
        await world.lead("fitness_start", home_device_id=home)
    await world.execute("UPDATE leads SET trigger = NULL WHERE phone = '999102'")
    world.sender.script["999101"] = [answer("throttled_account", "slow down", 120.0)]
    await world.tick(1)
    await world.execute("UPDATE leads SET trigger = 'fitness_start' WHERE phone = '999102'")
    await world.tick(60)
    assert world.sent() == [("999101", "fitness_start")]
    await world.tick(60)
    await world.tick(60)
    assert sorted(world.sent()[1:]) == [("999101", "fitness_start"), ("999102", "fitness_start")]


async def test_what_a_step_says_is_refused_and_only_its_leads_wait(new_world, answer):
    world = await new_world(devices=0)
    await world.devices(1, in_flight_max=1)
    await world.fitness()
    await world.sequence("Crypto", "crypto_welcome")
    await world.begin()
    for _ in range(3):
        await world.lead("fitness_start")
    world.sender.script["999101"] = [answer("accepted"), answer("content", "132015: Template is paused")]
    await world.tick()
    await world.hours(24)
    await world.tick()
    paused = "SELECT trigger, paused_cause FROM sequence_steps WHERE paused_cause IS NOT NULL"
    assert await world.rows(paused) == [("fitness_day2", "132015: Template is paused")]
    before = len(world.sender.requests)

    await world.lead("fitness_start")
    await world.lead("crypto_welcome")
    await world.tick(600)
    await world.hours(24)
    for _ in range(3):
        await world.tick(600)
    assert world.sent()[before:] == [("999104", "fitness_start"), ("999105", "crypto_welcome")]
    standing = "SELECT contact_phone, held, retry_count FROM sequence_contacts WHERE status = 'active' ORDER BY id"
    assert await world.rows(standing) == [(f"99910{number}", True, 0) for number in (1, 2, 3, 4)]

    await world.execute("UPDATE sequence_steps SET paused_cause = NULL WHERE trigger = 'fitness_day2'")
    for _ in range(4):
        await world.tick(60)
    told = {to for to, step in world.sent() if step == "fitness_day2"}
    assert told == {"999101", "999102", "999103", "999104"}
    [refused] = [row for row in await world.attempts() if row[4] == "content"]
    assert refused == ("999101", "fitness_day2", 2, 1, "content")


async def test_a_quality_signal_moves_nobody_to_other_numbers(new_world, answer):
    world = await new_world(devices=2)
    await world.fitness()
    await world.begin()
    home = await world.value("SELECT id FROM devices WHERE number = 1")
    for _ in range(2):
        await world.lead("fitness_start", home_device_id=home)
    world.sender.script["999101"] = [answer("quality", "131048: Spam rate limit hit")]
    await world.tick(3)
    await world.hours(2)
    await world.tick(600)
    assert {request.device for request in world.sender.requests} == {1}
    assert await world.rows("SELECT DISTINCT home_device_id, status FROM sequence_contacts") == [(home, "active")]
    await world.execute("UPDATE devices SET health = 'available', health_cause = NULL")
    await world.tick(600)
    assert [row[4] for row in await world.attempts()] == ["quality", "accepted", "accepted"]


# The service window ------------------------------------------------------------------------------------------------


@pytest.fixture
async def whatsapp(new_world):
    """Two leads of a device that speaks to the Cloud API; the first has written an hour ago, the second never."""
    world = await new_world(devices=0)
    await world.devices(1, gateway_kind="whatsapp", gateway_phone_number_id="1066")
    await world.devices(1)
    await world.fitness()
    home = await world.value("SELECT id FROM devices WHERE number = 1")
    for name in ("Ann", None):
        lead = await world.lead("fitness_start", home_device_id=home, name=name)
        if name:
            await world.execute(
                "INSERT INTO replies (phone, lead_id, text, received_at) VALUES ('999101', $1, 'hi', dripline_at($2))",
                lead, world.now_us - 3_600_000_000,
            )  # fmt: skip
    return world


async def test_outside_the_service_window_a_lead_waits_for_its_own_word_or_for_a_template(whatsapp):
    await whatsapp.begin()
    await whatsapp.tick()
    assert whatsapp.sent() == [("999101", "fitness_start")]
    assert await whatsapp.rows("SELECT outcome, error FROM message_ledger ORDER BY enrolment_id") == [
        ("accepted", None),
        ("service_window", "the lead has not written in the last 24 hours, and the step has no template"),
    ]
    await whatsapp.hours(6)
    await whatsapp.execute(
        """UPDATE sequence_steps SET template_name = 'hello', template_language = 'en',
                  template_parameters = '{"{{ name | default(''friend'') }}"}' WHERE trigger = 'fitness_start'"""
    )
    await whatsapp.tick()
    assert whatsapp.sent() == [("999101", "fitness_start"), ("999102", "fitness_start")]
    assert whatsapp.sender.templates == [None, '{"name": "hello", "language": "en", "parameters": ["friend"]}']


async def test_a_template_that_lacks_a_leads_field_fails_that_lead_only(whatsapp):
    await whatsapp.execute(
        """UPDATE sequence_steps SET template_name = 'hello', template_language = 'en',
                  template_parameters = '{"{{ name }}"}'"""
    )
    await whatsapp.execute("DELETE FROM replies")
    await whatsapp.begin()
    await whatsapp.tick()
    assert whatsapp.sender.templates == ['{"name": "hello", "language": "en", "parameters": ["Ann"]}']
    states = await whatsapp.rows("SELECT status, last_error FROM sequence_contacts ORDER BY id")
    assert states == [("active", None), ("failed", "content: template parameter 1: 'name' is undefined")]


async def test_what_is_in_doubt_at_the_cloud_api_is_never_sent_again(whatsapp, answer):
    await whatsapp.begin()
    whatsapp.sender.script["999101"] = [answer("in_doubt", "no answer before the deadline")]
    await whatsapp.tick()
    await whatsapp.hours(5)
    await whatsapp.tick()
    assert whatsapp.sent() == [("999101", "fitness_start")]
    assert (await whatsapp.states())[0][3] == "in_doubt"
