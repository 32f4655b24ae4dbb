"""What the schema itself keeps true: the ledger, the queue of changes, one live enrolment, device load."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from dispatcher.core.moments import from_datetime
from dispatcher.store.stamp import stamp


async def column(connection: asyncpg.Connection, sql: str, *arguments: Any) -> list[Any]:
    return [row[0] for row in await connection.fetch(sql, *arguments)]


async def attempt(connection: asyncpg.Connection, number: int, outcome: str, **columns: Any) -> None:
    """A ledger row of enrolment 1, visit 1, at noon of 2026-01-01 unless ``columns`` say otherwise."""
    noon = datetime(2026, 1, 1, 12, tzinfo=UTC)
    row = {
        **dict.fromkeys(("enrolment_id", "sequence_id", "lead_id", "shard_epoch", "visit"), 1),
        **dict.fromkeys(("due_at", "reserved_at", "deadline_at"), noon),
        "device_id": uuid4(),
        "idempotency_key": uuid4(),
        "step_trigger": "start",
        "generation": 0,
        "attempt": number,
        "outcome": outcome,
        **columns,
    }
    await connection.copy_records_to_table("message_ledger", columns=[*row], records=[tuple(row.values())])


@pytest.fixture
async def ledger(connection: asyncpg.Connection) -> asyncpg.Connection:
    """A connection to a database whose ledger has room for 2026-01-01."""
    assert await connection.fetchval("SELECT dripline_ledger_partition('2026-01-01')") is True
    assert await connection.fetchval("SELECT dripline_ledger_partition('2026-01-01')") is False
    return connection


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM message_ledger",
        "UPDATE message_ledger SET outcome = 'not_sent'",
        "UPDATE message_ledger SET error = 'oops'",
        "TRUNCATE message_ledger",
        "TRUNCATE message_ledger_20260101",
        "DELETE FROM message_ledger_20260101",
    ],
)
async def test_the_ledger_is_append_only(ledger, statement):
    await attempt(ledger, 1, "accepted")
    with pytest.raises(asyncpg.RaiseError, match="the ledger is append-only"):
        await ledger.execute(statement)
    assert await column(ledger, "SELECT outcome FROM message_ledger") == ["accepted"]


async def test_what_a_gateway_said_may_be_wiped_and_nothing_with_it(ledger):
    await attempt(ledger, 1, "accepted", error="quotes a number", gateway_message_id="names one")
    with pytest.raises(asyncpg.RaiseError, match="the ledger is append-only"):
        await ledger.execute("UPDATE message_ledger SET error = NULL, gateway_message_id = NULL, lead_id = 2")
    await ledger.execute("UPDATE message_ledger SET error = NULL, gateway_message_id = NULL")
    assert await ledger.fetchval("SELECT (lead_id, outcome, error, gateway_message_id)::text FROM message_ledger") == (
        "(1,accepted,,)"
    )


async def test_what_was_in_doubt_may_become_known_once(ledger):
    await attempt(ledger, 1, "in_doubt")
    await ledger.execute("UPDATE message_ledger SET outcome = 'accepted', accepted_at = reserved_at")
    assert await column(ledger, "SELECT outcome FROM message_ledger") == ["accepted"]
    with pytest.raises(asyncpg.RaiseError):
        await ledger.execute("UPDATE message_ledger SET outcome = 'not_sent'")


@pytest.mark.parametrize("change", ["visit = 2", "attempt = 2", "device_id = gen_random_uuid()", "generation = 1"])
async def test_a_doubt_that_clears_stays_the_same_attempt(ledger, change):
    await attempt(ledger, 1, "in_doubt")
    with pytest.raises(asyncpg.RaiseError):
        await ledger.execute(f"UPDATE message_ledger SET outcome = 'not_sent', {change}")


async def test_a_doubt_that_clears_does_not_accept_a_visit_twice(ledger):
    await attempt(ledger, 1, "in_doubt")
    await attempt(ledger, 2, "accepted")
    with pytest.raises(asyncpg.UniqueViolationError):
        await ledger.execute("UPDATE message_ledger SET outcome = 'accepted' WHERE attempt = 1")


async def test_one_row_an_attempt_and_one_accepted_a_visit(ledger):
    await attempt(ledger, 1, "refused")
    await attempt(ledger, 2, "accepted")
    for number, outcome in ((1, "refused"), (3, "accepted")):
        with pytest.raises(asyncpg.UniqueViolationError):
            await attempt(ledger, number, outcome)
    await attempt(ledger, 3, "accepted", visit=2)
    await attempt(ledger, 3, "accepted", generation=1)


CHANGES = "SELECT leads, old_trigger, new_trigger, opted_out FROM lead_changes ORDER BY id"


async def test_changes_of_leads_are_queued(connection):
    await connection.execute(
        "INSERT INTO leads (id, phone, trigger) VALUES (1, '1', 'a'), (2, '2', ''), (3, '3', NULL)"
    )
    await connection.execute("UPDATE leads SET trigger = 'a,b' WHERE id IN (1, 3)")
    await connection.execute("UPDATE leads SET trigger = 'a,b', name = 'Ann' WHERE id = 1")
    await connection.execute("UPDATE leads SET opted_out_at = now() WHERE id = 2")
    await connection.execute("UPDATE leads SET opted_out_at = NULL, opted_in_at = now() WHERE id = 2")
    await connection.execute("DELETE FROM leads WHERE id IN (2, 3)")
    assert [tuple(row) for row in await connection.fetch(CHANGES)] == [
        ([1], None, None, False),
        ([1, 3], None, None, False),
        ([2], None, None, True),
        ([2], None, None, False),
        ([2], "", None, False),
        ([3], "a,b", None, False),
    ]


async def test_a_bulk_statement_queues_two_hundred_leads_that_changed_alike_a_row(connection):
    await connection.execute("INSERT INTO leads (phone, trigger) SELECT n, 'a' FROM generate_series(1, 500) n")
    await connection.execute("UPDATE leads SET trigger = trigger || ',' || id")
    await connection.execute("UPDATE leads SET trigger = CASE WHEN id <= 450 THEN 'b' END || ',' || trigger")
    await connection.execute("UPDATE leads SET trigger = 'c' WHERE id IN (7, 8)")
    rows = await connection.fetch("SELECT cardinality(leads), old_trigger, new_trigger FROM lead_changes ORDER BY id")
    assert [tuple(row) for row in rows[:6]] == [(200, None, None), (200, None, None), (100, None, None)] * 2
    taken_away = [(1, "b,a,7", "c"), (1, "b,a,8", "c"), *((1, f"a,{id_}", None) for id_ in range(451, 501))]
    assert [tuple(row) for row in rows[6:8]] == [(200, None, None)] * 2
    assert {tuple(row) for row in rows[8:]} == {(50, None, None), *taken_away}


async def test_the_completers_own_changes_are_not_queued(connection):
    await connection.execute("INSERT INTO leads (phone, trigger) VALUES ('1', 'a')")
    await connection.execute("DELETE FROM lead_changes")
    async with connection.transaction():
        await connection.execute("SET LOCAL dripline.completing = 'on'")
        await connection.execute("UPDATE leads SET trigger = NULL")
    assert await connection.fetch(CHANGES) == []
    await connection.execute("UPDATE leads SET trigger = 'b'")
    assert len(await connection.fetch(CHANGES)) == 1


async def test_a_rolled_back_change_is_not_queued(connection):
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute("INSERT INTO leads (phone, trigger) VALUES ('1', 'a')")
    await transaction.rollback()
    assert await connection.fetch(CHANGES) == []


@pytest.mark.parametrize(
    ("trigger_list", "tokens"),
    [
        (None, []),
        ("", []),
        (" , ,\t,\n", []),
        ("a", ["a"]),
        ("a,b", ["a", "b"]),
        (" a ,\tb\r\n,a", ["a", "b"]),
        ("A,a", ["A", "a"]),
        ("fitness_start_2,fitness_start", ["fitness_start", "fitness_start_2"]),
        ("two words,%_", ["%_", "two words"]),
        (",,x,,", ["x"]),
        ("'; DROP TABLE leads; --", ["'; DROP TABLE leads; --"]),
        ("é,日本", ["é", "日本"]),
    ],
)
async def test_tokens_of_a_trigger_list(connection, trigger_list, tokens):
    found = await column(connection, "SELECT dripline_tokens($1)", trigger_list)
    assert sorted(found) == sorted(tokens)


@pytest.mark.parametrize(
    ("trigger_list", "token", "left"),
    [
        (None, "a", None),
        ("", "a", None),
        ("a", "a", None),
        (" a ", "a", None),
        ("a,a, a", "a", None),
        ("a,b", "a", "b"),
        ("b,a", "a", "b"),
        ("b, a,c", "a", "b,c"),
        ("b , c,a", "a", "b , c"),
        ("ab,a_b,ba", "a", "ab,a_b,ba"),
        ("A", "a", "A"),
        ("a,,b,", "a", "b"),
        ("fitness_start_2,fitness_start", "fitness_start", "fitness_start_2"),
        ("a%,ab", "a%", "ab"),
    ],
)
async def test_one_token_is_taken_off_a_trigger_list(connection, trigger_list, token, left):
    assert await connection.fetchval("SELECT dripline_without($1, $2)", trigger_list, token) == left


async def enrol(connection: asyncpg.Connection, status: str, *, lead: int = 1, sequence: int = 1) -> int:
    return await connection.fetchval(
        "INSERT INTO sequence_contacts"
        " (sequence_id, lead_id, contact_phone, entry_trigger, current_trigger, status)"
        " VALUES ($1, $2, '1', 'a', 'a', $3) RETURNING id",
        sequence,
        lead,
        status,
    )


@pytest.mark.parametrize("first", ["active", "in_doubt"])
@pytest.mark.parametrize("second", ["active", "in_doubt"])
async def test_one_live_enrolment_for_a_sequence_and_a_lead(connection, first, second):
    await enrol(connection, first)
    with pytest.raises(asyncpg.UniqueViolationError):
        await enrol(connection, second)
    await enrol(connection, second, lead=2)
    await enrol(connection, second, sequence=2)


@pytest.mark.parametrize("ended", ["completed", "failed", "stopped"])
async def test_an_ended_enrolment_makes_room(connection, ended):
    first = await enrol(connection, "active")
    await connection.execute("UPDATE sequence_contacts SET status = $1 WHERE id = $2", ended, first)
    second = await enrol(connection, "active")
    with pytest.raises(asyncpg.UniqueViolationError):
        await connection.execute("UPDATE sequence_contacts SET status = 'active' WHERE id = $1", first)
    assert first != second


async def test_a_lease_belongs_to_a_live_row_and_carries_a_token(connection):
    await enrol(connection, "completed")
    await enrol(connection, "active")
    for change in (
        "processing_device_id = gen_random_uuid(), lease_token = 1 WHERE status = 'completed'",
        "processing_device_id = gen_random_uuid() WHERE status = 'active'",
        "lease_token = 1 WHERE status = 'completed'",
    ):
        with pytest.raises(asyncpg.CheckViolationError):
            await connection.execute(f"UPDATE sequence_contacts SET {change}")


async def test_a_sequence_with_enrolments_is_not_deleted(connection):
    sequence = await connection.fetchval("INSERT INTO sequences (name) VALUES ('s') RETURNING id")
    await enrol(connection, "completed", sequence=sequence)
    with pytest.raises(asyncpg.RaiseError, match="switch it off instead"):
        await connection.execute("DELETE FROM sequences")


async def test_quota_changes_are_kept(connection):
    await connection.execute("INSERT INTO devices (name) VALUES ('a')")
    await connection.execute("UPDATE devices SET quota_per_hour = 100")
    await connection.execute("UPDATE devices SET quota_per_hour = 100, health = 'draining'")
    await connection.execute("UPDATE devices SET quota_per_day = 1000")
    history = await connection.fetch(
        "SELECT quota_per_hour, quota_per_day FROM device_quota_history ORDER BY valid_from"
    )
    assert [tuple(row) for row in history] == [(80, 800), (100, 800), (100, 1000)]


async def test_load_of_a_device_in_a_rehearsal(ledger):
    """Noon of a virtual day whose hours last a minute: an hour reaches back to 11:59, a day to 11:36."""
    noon = datetime(2026, 1, 1, 12, tzinfo=UTC)
    await stamp(ledger, "rehearsal", hour_s=60.0, clock_us=from_datetime(noon))
    device = await ledger.fetchval(
        "INSERT INTO devices (name, quota_per_hour, in_flight_max) VALUES ('a', 4, 3) RETURNING id"
    )
    await ledger.execute("INSERT INTO devices (name, health) VALUES ('b', 'quarantined')")
    sends = [
        (1, "accepted"),
        (30, "in_doubt"),
        (50, "refused"),
        (60, "accepted"),
        (600, "rejected"),
        (1440, "accepted"),
    ]
    for enrolment, (seconds, outcome) in enumerate(sends, start=1):
        at = noon - timedelta(seconds=seconds)
        await attempt(ledger, 1, outcome, enrolment_id=enrolment, device_id=device, reserved_at=at)
    load = (
        "SELECT d.name, messages_hour, messages_today, is_available, current_processing"
        " FROM device_load_balance JOIN devices d ON d.id = device_id ORDER BY d.name"
    )
    assert [tuple(row) for row in await ledger.fetch(load)] == [("a", 2, 4, True, 0), ("b", 0, 0, False, 0)]

    for lead in (1, 2):
        await enrol(ledger, "active", lead=lead)
    await ledger.execute("UPDATE sequence_contacts SET home_device_id = $1, lease_token = 1", device)
    await ledger.execute("INSERT INTO claims VALUES (1, 1, now(), ARRAY (SELECT id FROM sequence_contacts))")
    assert [tuple(row) for row in await ledger.fetch(load)] == [("a", 2, 4, False, 2), ("b", 0, 0, False, 0)]

    await ledger.execute("UPDATE dripline_database SET clock = clock + interval '1 day'")
    assert [tuple(row) for row in await ledger.fetch(load)] == [("a", 0, 0, True, 2), ("b", 0, 0, False, 0)]
