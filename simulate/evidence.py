"""What the checker judges by: the ledger and the seed's tables, read as columns in one snapshot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import asyncpg
import numpy as np
from numpy.typing import NDArray

from dispatcher.core.graph import Catalogue
from dispatcher.store.columns import moments
from dispatcher.store.registry import read_sequences

LEDGER: Final = np.dtype(
    [
        ("key", "V16"),
        ("enrolment", ">i8"),
        ("due", ">i8"),
        ("reserved", ">i8"),
        ("accepted", ">i8"),
        ("visit", ">i4"),
        ("generation", ">i4"),
        ("attempt", ">i4"),
        ("device", ">i4"),
        ("outcome", ">i4"),
    ]
)
_LEDGER_SQL: Final = """
SELECT string_agg(uuid_send(l.idempotency_key) || int8send(l.enrolment_id) || timestamptz_send(l.due_at)
    || timestamptz_send(l.reserved_at) || timestamptz_send(coalesce(l.accepted_at, l.reserved_at))
    || int4send(l.visit) || int4send(l.generation) || int4send(l.attempt) || int4send(d.number)
    || int4send(array_position($1::text[], l.outcome)), '')
FROM message_ledger l JOIN devices d ON d.id = l.device_id
WHERE l.reserved_at >= $2 AND l.reserved_at < $3
"""
ENROLMENT: Final = np.dtype(
    [
        ("id", ">i8"),
        ("lead", ">i8"),
        ("enrolled", ">i8"),
        ("entry", ">i4"),
        ("status", ">i4"),
        ("visit", ">i4"),
        ("leased", ">i4"),
        ("carries", ">i4"),
    ]
)
STATUSES: Final = ("active", "completed", "failed", "stopped", "in_doubt")
_ENROLMENT_SQL: Final = """
SELECT string_agg(int8send(c.id) || int8send(c.lead_id) || timestamptz_send(c.enrolled_at)
    || int4send(coalesce(array_position($1::text[], c.entry_trigger::text), 0))
    || int4send(array_position($2::text[], c.status)) || int4send(c.visit)
    || int4send((c.processing_device_id IS NOT NULL)::integer)
    || int4send(CASE WHEN l.trigger IS NULL THEN 0 WHEN l.trigger = c.entry_trigger THEN 1
                ELSE EXISTS (SELECT FROM dripline_tokens(l.trigger) t(token) WHERE t.token = c.entry_trigger)::integer
                END), '')
FROM sequence_contacts c LEFT JOIN leads l ON l.id = c.lead_id
WHERE c.id >= $3 AND c.id < $4
"""
_MISSED_SQL: Final = """
SELECT count(*) FROM leads l
WHERE l.trigger <> '' AND l.opted_out_at IS NULL
  AND NOT EXISTS (SELECT FROM lead_changes q WHERE q.lead_id = l.id)
  AND EXISTS (SELECT FROM dripline_tokens(l.trigger) t(token) JOIN open_entries e ON e.trigger = t.token
              JOIN sequences s ON s.id = e.sequence_id AND (NOT s.requires_opt_in OR l.opted_in_at IS NOT NULL)
              WHERE NOT EXISTS (SELECT FROM sequence_contacts c WHERE c.lead_id = l.id
                                AND c.sequence_id = e.sequence_id AND c.status IN ('active', 'in_doubt'))
                AND NOT EXISTS (SELECT FROM sequence_contacts c WHERE c.lead_id = l.id
                                AND c.sequence_id = e.sequence_id AND c.status NOT IN ('active', 'in_doubt')))
"""
_CHUNK: Final = 500_000


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything the checker may look at besides the receipts."""

    ledger: NDArray[np.void]
    enrolments: NDArray[np.void]
    catalogue: Catalogue
    outcomes: tuple[str, ...]
    """Outcome labels: ``ledger["outcome"]`` counts from 1."""
    quotas: NDArray[np.int64]
    """Per device number: the largest hour and day quota that held, shape (numbers, 2)."""
    opted_out: dict[str, int]
    """Opt-out moment by phone."""
    missed: int
    """Leads that carry an open entry's trigger and never were enrolled by it."""
    devices: dict[int, tuple[str, str]]
    """Id and name by number."""
    hour_s: float

    def ledger_us(self, column: str) -> NDArray[np.int64]:
        """A moment column of the ledger as microseconds since 1970."""
        return moments(np.ascontiguousarray(self.ledger[column]).tobytes())


async def collect(connection: asyncpg.Connection, outcomes: tuple[str, ...]) -> Evidence:
    """Read the evidence."""
    # Autovacuum may not have looked at tables that were filled within minutes.
    await connection.execute("ANALYZE leads, sequence_contacts, message_ledger")
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        catalogue = Catalogue.of(await read_sequences(connection))
        quotas = await connection.fetch(
            """SELECT d.number, max(h.quota_per_hour), max(h.quota_per_day)
               FROM devices d JOIN device_quota_history h ON h.device_id = d.id GROUP BY d.number"""
        )
        limit = np.zeros((max((row[0] for row in quotas), default=0) + 1, 2), np.int64)
        for number, hour, day in quotas:
            limit[number] = hour, day
        devices = await connection.fetch("SELECT number, id::text, name FROM devices")
        opted_out = await connection.fetch(
            "SELECT phone, dripline_us(opted_out_at) AS at FROM leads WHERE opted_out_at IS NOT NULL"
        )
        return Evidence(
            ledger=await _ledger(connection, outcomes),
            enrolments=await _enrolments(connection, catalogue.triggers),
            catalogue=catalogue,
            outcomes=outcomes,
            quotas=limit,
            opted_out={row["phone"]: row["at"] for row in opted_out},
            missed=await connection.fetchval(_MISSED_SQL),
            devices={row["number"]: (row["id"], row["name"]) for row in devices},
            hour_s=await connection.fetchval("SELECT hour_s FROM dripline_database"),
        )


async def _ledger(connection: asyncpg.Connection, outcomes: tuple[str, ...]) -> NDArray[np.void]:
    span = await connection.fetchrow("SELECT min(reserved_at), max(reserved_at) FROM message_ledger")
    if span is None or span[0] is None:
        return np.zeros(0, LEDGER)
    parts = await connection.fetch(
        "SELECT s, s + interval '6 hours' FROM generate_series($1::timestamptz, $2::timestamptz, interval '6 hours') s",
        *span,
    )
    found = [await connection.fetchval(_LEDGER_SQL, list(outcomes), start, stop) for start, stop in parts]
    return np.frombuffer(b"".join(part for part in found if part), LEDGER)


async def _enrolments(connection: asyncpg.Connection, triggers: list[str]) -> NDArray[np.void]:
    last = await connection.fetchval("SELECT coalesce(max(id), 0) FROM sequence_contacts")
    found: list[Any] = [
        await connection.fetchval(_ENROLMENT_SQL, triggers, list(STATUSES), start, start + _CHUNK)
        for start in range(0, last + 1, _CHUNK)
    ]
    return np.frombuffer(b"".join(part for part in found if part), ENROLMENT)
