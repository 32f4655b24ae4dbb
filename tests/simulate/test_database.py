"""What a run leaves in its database, asked in plain SQL."""

from __future__ import annotations

import asyncpg
import pytest

from dispatcher.intake.leads import Counts

QUOTAS = """
SELECT max(hour) AS hour, max(day) AS day FROM (
    SELECT count(*) OVER (PARTITION BY device_id ORDER BY reserved_at
                          RANGE BETWEEN interval '3599.999999 seconds' PRECEDING AND CURRENT ROW) AS hour,
           count(*) OVER (PARTITION BY device_id ORDER BY reserved_at
                          RANGE BETWEEN interval '86399.999999 seconds' PRECEDING AND CURRENT ROW) AS day
    FROM message_ledger) windows
"""
PROGRESS = """
SELECT
    s.name,
    COUNT(*) as total_contacts,
    SUM(CASE WHEN sc.status = 'active' THEN 1 ELSE 0 END) as active,
    SUM(CASE WHEN sc.status = 'completed' THEN 1 ELSE 0 END) as completed
FROM sequences s
JOIN sequence_contacts sc ON sc.sequence_id = s.id
GROUP BY s.name;
"""
WORKLOAD = """
SELECT
    device_id,
    messages_hour,
    messages_today,
    is_available
FROM device_load_balance
ORDER BY messages_hour ASC;
"""
STUCK = """
SELECT COUNT(*) FROM sequence_contacts
WHERE processing_device_id IS NOT NULL
AND processing_started_at < NOW() - INTERVAL '5 minutes';
"""
RETRIES = """
SELECT contact_phone, retry_count, last_error
FROM sequence_contacts
WHERE retry_count > 0
ORDER BY retry_count DESC;
"""
LEADS = """
INSERT INTO leads (phone, name, trigger)
SELECT '999100' || n, 'Lead ' || n, (ARRAY['fitness_start', 'crypto_welcome'])[1 + n % 2] || ', vip ,x'
FROM generate_series(1000, 1299) n
"""
LATER_CRYPTO = "SELECT trigger FROM sequence_steps WHERE trigger LIKE 'crypto_%' AND NOT is_entry_point"


async def three_hundred(connection: asyncpg.Connection) -> Counts:
    await connection.execute(LEADS)
    return Counts(imported=300)


@pytest.fixture
def narrow(world):
    """300 leads x 3 steps over 10 devices with 10 an hour and 25 a day: both limits bind."""
    done = world.rehearse(devices=10, shards=1, days=30, quota_per_hour=10, quota_per_day=25, bring_leads=three_hundred)
    assert done.outcome.good
    assert done.outcome.completed == 300
    return done


@pytest.mark.slow
def test_after_a_run_the_database_tells_the_same_story(world, narrow):
    highest = world.rows(QUOTAS)[0]
    assert (highest["hour"], highest["day"]) == (10, 25)
    assert narrow.outcome.binding_limit == "day"
    assert narrow.outcome.device_use["max"] > 0.8

    assert {tuple(row) for row in world.rows(PROGRESS)} == {
        ("30 Day Fitness", 150, 0, 150),
        ("Crypto Basics", 150, 0, 150),
    }
    workload = world.rows(WORKLOAD)
    assert len(workload) == 10
    in_last_day = "SELECT count(*) FROM message_ledger WHERE reserved_at > dripline_now() - interval '24 hours'"
    assert sum(row["messages_today"] for row in workload) == world.value(in_last_day) > 0
    assert world.value(STUCK) == 0
    assert world.rows(RETRIES) == []

    assert {row["trigger"] for row in world.rows("SELECT trigger FROM leads")} == {" vip ,x"}
    steps = world.rows("SELECT step_trigger, outcome, count(*) FROM message_ledger GROUP BY 1, 2")
    assert {tuple(row) for row in steps} == {
        (trigger, "accepted", 150)
        for trigger in (
            "fitness_start",
            "fitness_day2",
            "fitness_day3",
            "crypto_welcome",
            *(row["trigger"] for row in world.rows(LATER_CRYPTO)),
        )
    }
