"""``dripline status`` and ``dripline explain``: what a person reads about a small world that stands still."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import asyncpg
import pytest

from dispatcher.cli.explain import read_facts, show
from dispatcher.store.coordinator_store import PostgresCoordinatorStore
from dispatcher.store.stamp import stamp
from dispatcher.store.statements import statements

CLEAN = {name: value for name, value in os.environ.items() if not name.startswith("DRIPLINE_")}
NOON_US = 1_767_700_800_000_000
"""2026-01-06 12:00 UTC, business time in every test."""

WORLD = """
INSERT INTO devices (name, gateway_url, quota_per_hour, health, health_cause) VALUES
    ('d-1', 'http://127.0.0.1:1', 4, 'available', NULL),
    ('d-2', 'http://127.0.0.1:1', 80, 'available', NULL),
    ('d-3', NULL, 80, 'quarantined', 'quality');
INSERT INTO sequences (name, trigger_prefix, is_active, reentry, requires_opt_in) VALUES
    ('30 Day Fitness', 'fitness_', true, 'after_exit', false),
    ('Crypto', 'crypto_', false, 'after_exit', false),
    ('Once', 'once_', true, 'never', false),
    ('Asked for', 'asked_', true, 'after_exit', true);
INSERT INTO sequence_steps (sequence_id, day_number, trigger, message_text, next_trigger, is_entry_point) VALUES
    (1, 1, 'fitness_start', 'Welcome to fitness!', 'fitness_day2', true),
    (1, 2, 'fitness_day2', 'Day 2 workout', NULL, false),
    (2, 1, 'crypto_start', 'Welcome to crypto!', NULL, true),
    (3, 1, 'once_start', 'Just once', NULL, true),
    (4, 1, 'asked_start', 'You asked for it', NULL, true);
INSERT INTO leads (phone, name, niche, trigger) VALUES
    ('60100000001', 'Ann', 'fitness', 'fitness_start,crypto_start'),
    ('60100000002', 'Bob', NULL, 'fitness_start, vip ,fitness_day2'),
    ('60100000003', NULL, NULL, 'fitness_start'),
    ('60100000004', NULL, NULL, 'once_start,asked_start'),
    ('60100000005', NULL, NULL, 'fitness_start'),
    ('60100000006', NULL, NULL, 'fitness_start'),
    ('60100000007', NULL, NULL, NULL),
    ('60100000008', NULL, NULL, 'fitness_start');
UPDATE leads SET opted_out_at = dripline_now() - interval '3 hours' WHERE id = 5;
DELETE FROM lead_changes;
INSERT INTO lead_changes (leads) VALUES ('{8}');
"""

ENROLMENTS = """
INSERT INTO sequence_contacts (sequence_id, lead_id, contact_phone, entry_trigger, current_trigger, home_device_id,
    enrolled_at, next_trigger_time, status, finished_at, retry_count, last_error, stop_reason, held, trigger_kept,
    processing_device_id, lease_token, processing_started_at, lease_deadline_at)
SELECT sequence, lead, '6010000000' || lead, entry, step, d.id, dripline_now() - interval '2 days',
       dripline_now() + due, status, dripline_now() + finished, retries, error, reason, held, kept,
       l.id, CASE WHEN l.id IS NOT NULL THEN 7 END, dripline_now() + slot, dripline_now() + slot + interval '30 seconds'
FROM (VALUES
    (1, 1, 'fitness_start', 'fitness_day2', 'd-1', interval '22 hours', 'active', NULL::interval, 0, NULL, NULL, false,
     false, NULL, NULL::interval),
    (1, 2, 'fitness_start', 'fitness_start', 'd-1', '-10 minutes', 'active', NULL, 2, 'HTTP 503', NULL, false,
     false, NULL, NULL),
    (1, 3, 'fitness_start', 'fitness_start', 'd-2', '-6 minutes', 'active', NULL, 0, NULL, NULL, false,
     false, 'd-2', '-6 minutes'),
    (3, 4, 'once_start', 'once_start', 'd-2', NULL, 'completed', '-1 day', 0, NULL, NULL, false, false, NULL, NULL),
    (1, 5, 'fitness_start', 'fitness_day2', 'd-2', NULL, 'stopped', '-3 hours', 0, NULL, 'opted out', false, true, NULL,
     NULL),
    (1, 6, 'fitness_start', 'fitness_day2', 'd-3', '-1 day', 'in_doubt', NULL, 1, 'no answer', NULL, false,
     false, NULL, NULL),
    (2, 7, 'crypto_start', 'crypto_start', 'd-2', '-1 day', 'active', NULL, 0, NULL, NULL, true, false, NULL, NULL)
) v(sequence, lead, entry, step, home, due, status, finished, retries, error, reason, held, kept, leased, slot)
JOIN devices d ON d.name = v.home LEFT JOIN devices l ON l.name = v.leased ORDER BY lead;
INSERT INTO claims (token, shard_epoch, enrolments)
SELECT 7, 1, array_agg(id) FROM sequence_contacts WHERE lease_token = 7;
INSERT INTO message_ledger (enrolment_id, sequence_id, lead_id, shard_epoch, due_at, reserved_at, deadline_at,
    accepted_at, device_id, idempotency_key, visit, generation, attempt, outcome, step_trigger, gateway_message_id)
SELECT 1, 1, 1, 1, t, t, t, t, d.id, gen_random_uuid(), 1, n, 1, 'accepted', 'fitness_start', 'm-' || n
FROM generate_series(1, 4) n, devices d, LATERAL (SELECT dripline_now() - n * interval '10 minutes' AS t)
WHERE d.name = 'd-1';
INSERT INTO message_ledger (enrolment_id, sequence_id, lead_id, shard_epoch, due_at, reserved_at, deadline_at,
    device_id, idempotency_key, visit, generation, attempt, outcome, step_trigger, error)
SELECT 2, 1, 2, 1, t, t, t, d.id, gen_random_uuid(), 1, 0, n, 'refused', 'fitness_start', 'HTTP 503'
FROM generate_series(1, 2) n, devices d, LATERAL (SELECT dripline_now() - n * interval '2 hours' AS t)
WHERE d.name = 'd-1';
INSERT INTO message_receipts (message, delivered_at, read_at, failed_at, error)
SELECT idempotency_key::text, reserved_at + interval '5 s', NULL::timestamptz, NULL::timestamptz, NULL
FROM message_ledger WHERE gateway_message_id = 'm-1'
UNION ALL SELECT 'm-1', dripline_now(), dripline_now(), NULL, NULL
UNION ALL SELECT 'm-2', NULL, NULL, dripline_now(), '131026: undeliverable';
"""


@pytest.fixture
async def world(connection: asyncpg.Connection, database_url: str) -> str:
    """Devices, sequences, leads and enrolments in many states, at noon; an installation leads."""
    await stamp(connection, "rehearsal", clock_us=NOON_US)
    await connection.execute(WORLD)
    async with asyncpg.create_pool(database_url, min_size=1, max_size=1) as pool:
        store = PostgresCoordinatorStore(pool, "host-1")
        await store.catalogue(NOON_US)
        await store.begin_day(NOON_US, 1, 0)
        await store.seat.lead(60)
    await connection.execute("UPDATE open_entries SET scan_done = true WHERE trigger <> 'once_start'")
    await connection.execute("UPDATE open_entries SET scanned_to = 2 WHERE trigger = 'once_start'")
    await connection.execute(ENROLMENTS)
    return database_url


def dripline(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from dispatcher.cli.main import main; main()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=CLEAN, timeout=60, check=False)


async def test_status_as_json_holds_every_figure(world):
    done = dripline("status", "--json", "--database-url", world)
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    nothing = dict.fromkeys(("total", "active", "completed", "failed", "stopped", "in_doubt", "due", "held"), 0)
    fitness = {"total": 5, "active": 3, "stopped": 1, "in_doubt": 1, "due": 1, "next_due": "2026-01-06 11:50:00+00:00"}
    assert told == {
        "kind": "rehearsal",
        "hour_s": 3600.0,
        "now": "2026-01-06 12:00:00+00:00",
        "leader": "host-1",
        "leader_alive": True,
        "shards_alive": 0,
        "sequences": [
            {"id": id_, "name": name, "is_active": id_ != 2, "problem": None, "next_due": None, **nothing, **figures}
            for id_, name, figures in [
                (1, "30 Day Fitness", fitness),
                (2, "Crypto", {"total": 1, "active": 1, "held": 1}),
                (3, "Once", {"total": 1, "completed": 1}),
                (4, "Asked for", {}),
            ]
        ],
        "due": 1,
        "paused_steps": [],
        "archived": [],
        "paused": [{"what": "sequence", "name": "Crypto", "since": None, "until": None, "reason": None, "count": 1}],
        "skipped": 0,
        "shifted": 0,
        "leased": 1,
        "stuck": 1,
        "held": 1,
        "in_doubt": 1,
        "retrying": 1,
        "most_retries": 2,
        "devices": [
            {"health": "available", "cause": None, "devices": 2},
            {"health": "quarantined", "cause": "quality", "devices": 1},
        ],
        "most_loaded": [
            _device("d-1", hour=4, of=4, free=False),
            _device("d-2", leased=1),
            _device("d-3", health="quarantined", free=False),
        ],
        "queued": 1,
        "searches": [{"trigger": "once_start", "sequence": "Once", "scanned_to": 2, "last": 8}],
        "unmatched_triggers": 5,
        "unmatched_leads": 5,
    }


def _device(name, *, hour=0, of=80, leased=0, health="available", free=True):
    return {
        "name": name, "health": health, "messages_hour": hour, "quota_per_hour": of, "messages_today": hour,
        "quota_per_day": 800, "current_processing": leased, "in_flight_max": 50, "is_available": free,
    }  # fmt: skip


async def test_status_for_people_is_one_line_a_fact(world):
    done = dripline("status", "--database-url", world)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "database\trehearsal; it is 2026-01-06 12:00:00 UTC there",
        "engine\thost-1 leads, 0 shards alive",
        "30 Day Fitness\tactive\t5\t3\t0\t0\t1\t1\t1\t10 min ago",
        "Crypto\tpaused\t1\t1\t0\t0\t0\t0\t0\t-",
        "Once\tactive\t1\t0\t1\t0\t0\t0\t0\t-",
        "Asked for\tactive\t0\t0\t0\t0\t0\t0\t0\t-",
        "paused\tsequence Crypto",
        "due now\t1",
        "leased\t1",
        "stuck\t1 leased for more than 5 minutes",
        "held\t1 of paused or broken sequences, or of paused leads",
        "in doubt\t1 sent or not: unknown",
        "retrying\t1, 2 tries at most",
        "health\t2 available, 1 quarantined (quality)",
        "d-1\tavailable\t4 of 4\t4 of 800\t0 of 50",
        "d-2\tavailable\t0 of 80\t0 of 800\t1 of 50",
        "d-3\tquarantined\t0 of 80\t0 of 800\t0 of 50",
        "queued\t1 changes wait for enrolment",
        "searching\t25% of the leads looked through for once_start (Once)",
        "unmatched\t5 triggers on 5 leads enrol nobody - see: dripline leads unmatched",
    ]


async def test_status_says_that_a_sequence_is_broken_and_that_nobody_leads(world, connection):
    await connection.execute("UPDATE sequence_steps SET next_trigger = 'nowhere' WHERE trigger = 'fitness_day2'")
    await connection.execute("INSERT INTO sequence_problems VALUES (1, 'it leads nowhere')")
    await connection.execute("UPDATE heartbeats SET expires_at = now() - interval '1 minute'")
    lines = dripline("status", "--database-url", world).stdout.splitlines()
    assert lines[1:3] == [
        "engine\tnobody leads (host-1 was the last), 0 shards alive",
        "30 Day Fitness\tbroken: it leads nowhere\t5\t3\t0\t0\t1\t1\t1\t10 min ago",
    ]


PAUSED = """
UPDATE fleet SET paused = true, pause_reason = 'maintenance';
UPDATE devices SET paused = true WHERE name = 'd-1';
UPDATE sequences SET is_active = NOT is_active WHERE name IN ('Crypto', 'Once');
INSERT INTO paused_leads (lead_id, until, reason) VALUES
    (1, dripline_now() + interval '1 hour', 'on holiday'), (2, 'infinity', NULL), (3, dripline_now(), NULL);
INSERT INTO late_steps VALUES
    (1, 1, 1, 1, 0, 'fitness_start', dripline_now() - interval '30 hours', dripline_now() - interval '1 hour', NULL),
    (2, 1, 2, 1, 0, 'fitness_start', dripline_now() - interval '30 hours', dripline_now(), 'infinity');
"""


async def test_what_is_paused_since_when_and_what_was_too_late_is_said(world, connection, capsys):
    await connection.execute(PAUSED)
    lines = dripline("status", "--database-url", world).stdout.splitlines()
    since = "since 2026-01-06 12:00:00 UTC (0 s ago)"
    assert [line for line in lines if line.startswith(("paused", "too late"))] == [
        f"paused\tthe whole fleet {since}: maintenance",
        f"paused\tsequence Once {since}",
        f"paused\tdevice d-1 {since}",
        f"paused\t2 leads {since}, the first until 2026-01-06 13:00:00 UTC",
        "too late\t1 steps skipped, 1 moved to a later day",
    ]
    assert not await connection.fetchval("SELECT bool_or(is_available) FROM device_load_balance")
    show(await read_facts(connection, "1"))
    page = capsys.readouterr().out
    assert "Nothing is sent at present: everything is paused since 2026-01-06 12:00:00 UTC (0 s ago)." in page
    assert (
        f"waiting for fitness_day2; the lead is paused {since} until 2026-01-06 13:00:00 UTC (in 60 min): on holiday"
        " (due 2026-01-07 10:00:00 UTC (in 22 h))"
    ) in page
    assert "fitness_start, due 2026-01-05 06:00:00 UTC: skipped 2026-01-06 11:00:00 UTC (60 min ago)" in page
    await connection.execute("DELETE FROM paused_leads; UPDATE fleet SET paused = false")
    assert await connection.fetchrow("SELECT pause_reason, paused_since FROM fleet") == (None, None)
    show(await read_facts(connection, "2"))
    assert "its device is paused since 2026-01-06 12:00:00 UTC" in capsys.readouterr().out


def test_status_of_a_database_that_is_not_migrated_is_refused(empty_url):
    done = dripline("status", "--database-url", empty_url)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: database: it is not migrated - run: dripline db migrate\n"


ANN = """\
Lead 1: phone 60100000001, name Ann, niche fitness

Triggers on the lead
fitness_start: opens '30 Day Fitness', enrolled
crypto_start: enrols nobody - sequence 'Crypto' is inactive

Enrolments
'30 Day Fitness', entered by fitness_start 2026-01-04 12:00:00 UTC (2.0 days ago): waiting for fitness_day2 until \
2026-01-07 10:00:00 UTC (in 22 h), then from d-1

Devices
d-1: available; 4 of 4 this hour, 4 of 800 today, 0 of 50 in progress; it has used up its hour

Last attempts
2026-01-06 11:50:00\tfitness_start\t1\td-1\taccepted\t\t\
delivered 2026-01-06 11:50:05, read 2026-01-06 12:00:00
2026-01-06 11:40:00\tfitness_start\t1\td-1\taccepted\t\tfailed 2026-01-06 12:00:00 (131026: undeliverable)
2026-01-06 11:30:00\tfitness_start\t1\td-1\taccepted\t\t
2026-01-06 11:20:00\tfitness_start\t1\td-1\taccepted\t\t
"""


@pytest.mark.parametrize("which", ["60100000001", "+60 10-000 0001", "1"])
async def test_a_lead_is_explained_on_one_page(world, which):
    done = dripline("explain", which, "--database-url", world)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", ANN)


@pytest.mark.parametrize(
    ("lead", "triggers", "enrolments"),
    [
        (
            2,
            [
                "fitness_start: opens '30 Day Fitness', enrolled",
                "vip: enrols nobody - unknown: no step has this trigger",
                "fitness_day2: enrols nobody - a step of sequence '30 Day Fitness', but no entry",
            ],
            [
                "waiting for fitness_start, due since 2026-01-06 11:50:00 UTC (10 min ago); its device has used up its"
                " hour (failed 2 times so far: HTTP 503)"
            ],
        ),
        (
            3,
            ["fitness_start: opens '30 Day Fitness', enrolled"],
            [
                "leased by d-2 for fitness_start, slot 2026-01-06 11:54:00 UTC (6.0 min ago), to leave at latest"
                " 11:54:30"
            ],
        ),
        (
            4,
            [
                "once_start: opens 'Once', but the sequence takes a lead once only",
                "asked_start: opens 'Asked for', but it requires an opt-in, which the lead has not given",
            ],
            ["completed 2026-01-05 12:00:00 UTC (24 h ago)"],
        ),
        (
            5,
            ["fitness_start: opens '30 Day Fitness', but the lead has opted out"],
            ["stopped 2026-01-06 09:00:00 UTC (3.0 h ago) at fitness_day2, because: opted out"],
        ),
        (
            6,
            ["fitness_start: opens '30 Day Fitness', enrolled"],
            [
                "in doubt at fitness_day2: sent or not is unknown (no answer); held for a receipt or an operator,"
                " never blindly sent again - settle it with: dripline in-doubt resolve 6"
            ],
        ),
        (
            7,
            ["none"],
            ["waiting for crypto_start; held, because the sequence is paused (due 2026-01-05 12:00:00 UTC (24 h ago))"],
        ),
        (8, ["fitness_start: opens '30 Day Fitness', waits for the enroller"], ["none, never"]),
    ],
)
async def test_every_reason_is_said_in_words(world, connection, capsys, lead, triggers, enrolments):
    show(await read_facts(connection, str(lead)))
    page = capsys.readouterr().out
    told = re.search(r"Triggers on the lead\n(.*)\n\nEnrolments\n(.*)\n\nDevices", page, re.DOTALL)
    assert told is not None
    assert told[1].splitlines() == triggers
    assert [line.rpartition(" ago): ")[2] if ": " in line and "entered" in line else line
            for line in _without_entry(told[2])] == enrolments  # fmt: skip


@pytest.mark.parametrize(
    ("zone", "due", "told"),
    [
        # It is noon in UTC, 20:00 in Kuala Lumpur and 13:00 in Berlin.
        (
            None,
            "2026-01-06 11:50",
            "waiting for fitness_day2; waits for the send window, 09:00-20:00 (Asia/Kuala_Lumpur), opens at 2026-01-07"
            " 01:00:00 UTC (in 13 h), then from d-1",
        ),
        (
            "Europe/Berlin",
            "2026-01-06 11:50",
            "waiting for fitness_day2, due since 2026-01-06 11:50:00 UTC (10 min ago)",
        ),
        (
            "Europe/Berlin",
            "2026-01-07 08:00",
            "waiting for fitness_day2; waits for the send window, 09:00-20:00 (Europe/Berlin), opens at 2026-01-07"
            " 08:00:00 UTC (in 20 h), then from d-1",
        ),
        ("Europe/Berlin", "2026-01-07 08:01", "waiting for fitness_day2 until 2026-01-07 08:01:00 UTC (in 20 h)"),
    ],
)
async def test_who_waits_for_a_send_window_is_told_when_it_opens_and_by_whose_clock(
    world, connection, capsys, zone, due, told
):
    await connection.execute(
        "UPDATE sequences SET send_from = '9:00', send_until = '20:00', send_time_zone = 'Asia/Kuala_Lumpur'"
    )
    await connection.execute("UPDATE leads SET time_zone = $1 WHERE id = 1", zone)
    await connection.execute(f"UPDATE sequence_contacts SET next_trigger_time = '{due} UTC' WHERE lead_id = 1")
    show(await read_facts(connection, "1"))
    assert told in capsys.readouterr().out.replace("\n", " ")


async def test_a_trigger_that_stayed_enrols_again_only_when_set_anew(world, connection):
    await connection.execute("UPDATE leads SET opted_out_at = NULL WHERE id = 5; DELETE FROM lead_changes")
    page = dripline("explain", "5", "--database-url", world).stdout
    assert page.splitlines()[3] == (
        "fitness_start: opens '30 Day Fitness', but stayed on the lead after that enrolment stopped: it enrols again"
        " once it has been taken off and set anew"
    )


async def test_what_devices_share_is_told_as_what_a_lead_waits_for(world, connection):
    await connection.execute("INSERT INTO device_groups VALUES ('north', 4, 900)")
    await connection.execute("UPDATE devices SET group_name = 'north', quota_per_hour = 80 WHERE name = 'd-1'")
    shown = dripline("explain", "2", "--database-url", world).stdout
    assert "(10 min ago); its device's group north has used up its hour" in shown
    assert "\ngroup north: 4 of 4 this hour, 4 of 900 today\n" in shown


async def test_an_unknown_lead_is_an_error_of_one_line(world):
    done = dripline("explain", "60999", "--database-url", world)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: lead '60999': there is none with this phone or id - write the phone as in leads.phone\n"
    )


@pytest.mark.parametrize(
    ("file", "name", "arguments"),
    [
        ("explain", "lead", ("60100000001", 1)),
        ("explain", "enrolments", (1,)),
        ("explain", "attempts", ([1],)),
        ("status", "leases", ()),
        ("status", "retries", ()),
    ],
)
async def test_what_need_not_be_scanned_has_an_index(world, connection, file, name, arguments):
    await connection.execute("SET enable_seqscan = off")
    plan = [row[0] for row in await connection.fetch(f"EXPLAIN {statements(file)[name]}", *arguments)]
    assert [line for line in plan if "Seq Scan" in line and "devices" not in line and "claims" not in line] == []


def _without_entry(enrolments: str) -> list[str]:
    return [re.sub(r"^'.*', entered by \w+ \S+ \S+ UTC \(.*? ago\): ", "", line) for line in enrolments.splitlines()]


async def test_what_is_put_off_rests_or_stands_at_a_paused_step_says_so(world, connection):
    async def said(sql: str) -> str:
        await connection.execute(sql)
        return dripline("explain", "1", "--database-url", world).stdout

    put_off = await said("UPDATE sequence_contacts SET last_error = '131049: capped' WHERE lead_id = 1")
    assert "(in 22 h), then from d-1 (not sent before: 131049: capped)\n" in put_off
    resting = await said("UPDATE devices SET account_rests_until = dripline_now() + interval '1 minute'")
    assert "; it rests: its account is asked to slow down\n" in resting
    paused = await said("UPDATE sequence_steps SET paused_cause = '132001: no such template'")
    advice = "put it right, then: dripline sequences resume-step fitness_day2"
    assert f"held, because the step is paused: 132001: no such template - {advice}" in paused
