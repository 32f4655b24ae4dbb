"""Every SQL statement of the seed, verbatim, against the schema - and it does what the seed says."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest

ASSIGN_ONE = "UPDATE leads SET trigger = 'fitness_start' WHERE phone = '60123456789';"
ASSIGN_TWO = "UPDATE leads SET trigger = 'fitness_start,crypto_welcome' WHERE phone = '60123456789';"

INDEXES = """
CREATE INDEX idx_leads_trigger ON leads(trigger);
CREATE INDEX idx_seq_contacts_trigger ON sequence_contacts(current_trigger, next_trigger_time);
CREATE INDEX idx_seq_contacts_processing ON sequence_contacts(processing_device_id);
"""

CREATE_SEQUENCE = """
INSERT INTO sequences (name, trigger_prefix, is_active) 
VALUES ('30 Day Fitness', 'fitness_', true);
"""  # noqa: W291 - the seed's own space

ADD_STEPS = """
INSERT INTO sequence_steps (sequence_id, day_number, trigger, message_text, next_trigger, is_entry_point)
VALUES 
    (seq_id, 1, 'fitness_start', 'Welcome to fitness!', 'fitness_day2', true),
    (seq_id, 2, 'fitness_day2', 'Day 2 workout', 'fitness_day3', false),
    (seq_id, 3, 'fitness_day3', 'Keep going!', NULL, false);
"""  # noqa: W291 - the seed's own space

ASSIGN_NICHE = "UPDATE leads SET trigger = 'fitness_start' WHERE niche = 'fitness';"
ASSIGN_BY_ID = "UPDATE leads SET trigger = 'fitness_start,nutrition_start' WHERE id = ?;"

PROGRESS = """
SELECT 
    s.name,
    COUNT(*) as total_contacts,
    SUM(CASE WHEN sc.status = 'active' THEN 1 ELSE 0 END) as active,
    SUM(CASE WHEN sc.status = 'completed' THEN 1 ELSE 0 END) as completed
FROM sequences s
JOIN sequence_contacts sc ON sc.sequence_id = s.id
GROUP BY s.name;
"""  # noqa: W291 - the seed's own space

WORKLOAD = """
SELECT 
    device_id,
    messages_hour,
    messages_today,
    is_available
FROM device_load_balance
ORDER BY messages_hour ASC;
"""  # noqa: W291 - the seed's own space

PROCESSING = """
SELECT COUNT(*) FROM sequence_contacts 
WHERE processing_device_id IS NOT NULL;
"""  # noqa: W291 - the seed's own space

STUCK = """
SELECT COUNT(*) FROM sequence_contacts 
WHERE processing_device_id IS NOT NULL 
AND processing_started_at < NOW() - INTERVAL '5 minutes';
"""  # noqa: W291 - the seed's own space

RETRIES = """
SELECT contact_phone, retry_count, last_error 
FROM sequence_contacts 
WHERE retry_count > 0 
ORDER BY retry_count DESC;
"""  # noqa: W291 - the seed's own space

LEADS = [("60123456789", "fitness"), ("60123456790", "fitness"), ("60123456791", "crypto")]


@pytest.fixture
async def leads(connection: asyncpg.Connection) -> dict[str, int]:
    """Three leads without triggers: id by phone."""
    await connection.executemany("INSERT INTO leads (phone, niche) VALUES ($1, $2)", LEADS)
    return {row["phone"]: row["id"] for row in await connection.fetch("SELECT phone, id FROM leads")}


async def triggers(connection: asyncpg.Connection) -> dict[str, str | None]:
    return {row["phone"]: row["trigger"] for row in await connection.fetch("SELECT phone, trigger FROM leads")}


async def enrol(connection: asyncpg.Connection, sequence: int, lead: int, **columns: Any) -> int:
    """One row of ``sequence_contacts`` as the engine writes it, with ``columns`` on top."""
    values = {
        "sequence_id": sequence,
        "lead_id": lead,
        "contact_phone": f"6012345{lead:04}",
        "entry_trigger": "fitness_start",
        "current_trigger": "fitness_start",
        "next_trigger_time": datetime(2026, 1, 1, tzinfo=UTC),
        **columns,
    }
    numbers = ", ".join(f"${n}" for n in range(1, len(values) + 1))
    names = ", ".join(values)
    return await connection.fetchval(
        f"INSERT INTO sequence_contacts ({names}) VALUES ({numbers}) RETURNING id", *values.values()
    )


async def new_sequence(connection: asyncpg.Connection) -> int:
    await connection.execute(CREATE_SEQUENCE)
    return await connection.fetchval("SELECT max(id) FROM sequences")


async def test_triggers_are_assigned_to_leads(connection, leads):
    await connection.execute(ASSIGN_ONE)
    assert await triggers(connection) == {
        "60123456789": "fitness_start",
        "60123456790": None,
        "60123456791": None,
    }
    await connection.execute(ASSIGN_TWO)
    assert (await triggers(connection))["60123456789"] == "fitness_start,crypto_welcome"


async def test_triggers_are_assigned_to_a_niche_and_to_one_lead(connection, leads):
    await connection.execute(ASSIGN_NICHE)
    await connection.execute(ASSIGN_BY_ID.replace("?", "$1").rstrip(";"), leads["60123456791"])
    assert await triggers(connection) == {
        "60123456789": "fitness_start",
        "60123456790": "fitness_start",
        "60123456791": "fitness_start,nutrition_start",
    }


@pytest.mark.parametrize("statement", INDEXES.strip().splitlines())
async def test_the_seeds_indexes_exist_under_their_names(connection, statement):
    with pytest.raises(asyncpg.DuplicateTableError):
        await connection.execute(statement)
    _, _, name, _, table = statement.split("(")[0].split()
    found = await connection.fetchval("SELECT tablename FROM pg_indexes WHERE indexname = $1", name)
    assert found == table


async def test_a_sequence_with_its_steps(connection):
    sequence = await new_sequence(connection)
    await connection.execute(ADD_STEPS.replace("(seq_id,", f"({sequence},"))
    assert await connection.fetchrow("SELECT name, trigger_prefix, is_active FROM sequences") == (
        "30 Day Fitness",
        "fitness_",
        True,
    )
    assert [
        tuple(row)
        for row in await connection.fetch(
            "SELECT day_number, trigger, message_text, next_trigger, is_entry_point, trigger_delay_hours"
            " FROM sequence_steps WHERE sequence_id = $1 ORDER BY day_number",
            sequence,
        )
    ] == [
        (1, "fitness_start", "Welcome to fitness!", "fitness_day2", True, 24),
        (2, "fitness_day2", "Day 2 workout", "fitness_day3", False, 24),
        (3, "fitness_day3", "Keep going!", None, False, 24),
    ]


async def test_progress_of_a_sequence(connection):
    sequence = await new_sequence(connection)
    for lead, status in enumerate(("active", "active", "completed", "failed"), start=1):
        await enrol(connection, sequence, lead, status=status)
    assert [tuple(row) for row in await connection.fetch(PROGRESS)] == [("30 Day Fitness", 4, 2, 1)]


async def test_workload_of_the_devices(connection):
    names = {"busy": 80, "idle": 80, "spent": 1}
    devices = {
        name: await connection.fetchval(
            "INSERT INTO devices (name, quota_per_hour) VALUES ($1, $2) RETURNING id", name, quota
        )
        for name, quota in names.items()
    }
    await connection.execute(
        "SELECT dripline_ledger_partition((now() AT TIME ZONE 'UTC')::date - d) FROM generate_series(0, 2) d"
    )
    for attempt, (name, minutes) in enumerate((("busy", 1), ("busy", 59), ("busy", 61), ("spent", 5)), start=1):
        await record(connection, devices[name], attempt, minutes)
    found = {row["device_id"]: tuple(row)[1:] for row in await connection.fetch(WORKLOAD)}
    assert list(found) == [devices["idle"], devices["spent"], devices["busy"]]
    assert found == {
        devices["idle"]: (0, 0, True),
        devices["spent"]: (1, 1, False),
        devices["busy"]: (2, 3, True),
    }


async def record(connection: asyncpg.Connection, device: Any, attempt: int, minutes_ago: int) -> None:
    await connection.execute(
        """
        INSERT INTO message_ledger (
            enrolment_id, sequence_id, lead_id, shard_epoch, due_at, reserved_at, deadline_at, accepted_at,
            device_id, idempotency_key, visit, generation, attempt, outcome, step_trigger)
        SELECT $2, 1, 1, 1, at, at, at, at, $1, gen_random_uuid(), 1, 0, 1, 'accepted', 'fitness_start'
        FROM (SELECT now() - $3 * interval '1 minute' AS at) moment
        """,
        device,
        attempt,
        minutes_ago,
    )


async def test_active_and_stuck_processing(connection):
    sequence = await new_sequence(connection)
    device = await connection.fetchval("INSERT INTO devices (name) VALUES ('d') RETURNING id")
    now = await connection.fetchval("SELECT now()")
    minutes = {1: 0, 2: 4, 3: 6}
    for lead, ago in minutes.items():
        await enrol(connection, sequence, lead, processing_device_id=device, lease_token=lead)
        await connection.execute(
            "UPDATE sequence_contacts SET processing_started_at = $1::timestamptz - $2 * interval '1 minute'"
            " WHERE lead_id = $3",
            now,
            ago,
            lead,
        )
    await enrol(connection, sequence, 4)
    assert (await connection.fetchval(PROCESSING), await connection.fetchval(STUCK)) == (3, 1)


async def test_retry_failures_worst_first(connection):
    sequence = await new_sequence(connection)
    await enrol(connection, sequence, 1, retry_count=1, last_error="timeout")
    await enrol(connection, sequence, 2)
    await enrol(connection, sequence, 3, retry_count=4, last_error="connection refused")
    assert [tuple(row) for row in await connection.fetch(RETRIES)] == [
        ("60123450003", 4, "connection refused"),
        ("60123450001", 1, "timeout"),
    ]
