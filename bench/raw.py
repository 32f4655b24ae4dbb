"""The limit of the database: a raw asyncpg loop that makes the engine's writes and does nothing else.

The product's own schema and indexes, its population and its claim rule - per home device the longest overdue, in the
order of the slots - and for every send the same two changes of the enrolment, the ledger row and, after the last step,
the trigger off the lead. One connection claims, two complete, 5000 rows a statement, side by side.

Not here: Ray, epochs and fencing, row locks (nobody else claims), the last look, the record of hand-overs, quotas and
gateways, rendering, late and failed attempts, the search for what is due next. What the engine carries from the claim
to the completion, this loop reads from the row that it ends (``RETURNING old``: PostgreSQL 18); it finds rows by their
place (``ctid``), which it alone changes between the two.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import asyncpg
import numpy as np
from asyncpg.pgproto.pgproto import UUID

from bench.costs import Figures, Meter
from bench.databases import connected, temporary
from dispatcher.core.batches import Int32s, Int64s
from dispatcher.core.identity import idempotency_keys
from dispatcher.core.moments import SECOND_US, from_datetime
from dispatcher.intake.sequences import apply
from dispatcher.store.columns import int32s, int64s
from dispatcher.store.connect import open_pool
from dispatcher.store.embedded import EmbeddedServer
from dispatcher.store.migrate import migrate
from dispatcher.store.stamp import require_rehearsal
from simulate.examples import builtin
from simulate.population import DeviceGroup, create_devices, create_leads
from simulate.rehearsal import START

DATABASE: Final = "bench_raw"
STEPS: Final = 3
"""Of every sequence of the built-in example."""
DEVICES: Final = 3000
DEVICES_A_CLAIM: Final = 250
SLOTS: Final = 20
"""A device, in one claim."""
GAP_US: Final = 5 * SECOND_US
"""Between two slots of a device."""
COMPLETING: Final = 2
"""Connections."""
WAITING: Final = 2
"""Batches that are claimed and wait for a connection."""
START_US: Final = from_datetime(START)

POPULATE: Final = """
INSERT INTO sequence_contacts (id, sequence_id, lead_id, next_trigger_time, enrolled_at, home_device_id,
                               contact_phone, entry_trigger, current_trigger) OVERRIDING SYSTEM VALUE
SELECT l.id, s.sequence_id, l.id, at.due, at.due, d.id, l.phone, s.trigger, s.trigger
FROM leads l
JOIN sequence_steps s ON s.trigger = split_part(l.trigger, ',', 1)
JOIN devices d ON d.number = (l.id - 1) % $1 + 1
CROSS JOIN LATERAL (SELECT dripline_at($2) - CASE WHEN l.id <= $3 THEN interval '10 days' ELSE '1 day' END AS due) at
ORDER BY l.id
"""
CLAIM: Final = """
WITH due AS MATERIALIZED (
    SELECT c.tid, dripline_at(w.first_us + (c.rank - 1) * $4::bigint) AS slot
    FROM unnest($1::uuid[], $2::integer[], $3::bigint[]) w(device_id, slots, first_us)
    CROSS JOIN LATERAL (
        SELECT ctid AS tid, row_number() OVER (ORDER BY next_trigger_time, id) AS rank
        FROM sequence_contacts
        WHERE home_device_id = w.device_id AND status = 'active' AND NOT held
          AND next_trigger_time <= dripline_at($5::bigint) AND lease_token IS NULL
        ORDER BY next_trigger_time, id LIMIT w.slots) c
),
leased AS (
    UPDATE sequence_contacts c
    SET processing_started_at = d.slot, lease_deadline_at = d.slot + interval '30 s', lease_token = $6, lease_epoch = 1,
        attempt = c.attempt + 1
    FROM due d WHERE c.ctid = d.tid
    RETURNING c.ctid, c.id, c.visit, c.contact_phone, c.current_trigger
),
recorded AS (
    INSERT INTO claims (token, shard_epoch, enrolments) SELECT $6, 1, array_agg(id) FROM leased
)
SELECT array_agg(ctid)::text AS places, string_agg(int8send(id), '') AS enrolment,
       string_agg(int4send(visit), '') AS visit, array_agg(contact_phone) AS phone, array_agg(current_trigger) AS step
FROM leased
"""
COMPLETE: Final = """
WITH moved AS (
    UPDATE sequence_contacts c
    SET visit = c.visit + 1, attempt = 0, current_trigger = coalesce(a.next_trigger, c.current_trigger),
        next_trigger_time = CASE WHEN a.next_trigger IS NOT NULL THEN c.next_trigger_time + interval '24 hours' END,
        processing_started_at = NULL, lease_deadline_at = NULL, lease_token = NULL, lease_epoch = NULL,
        status = CASE WHEN a.next_trigger IS NULL THEN 'completed' ELSE 'active' END,
        finished_at = CASE WHEN a.next_trigger IS NULL THEN c.processing_started_at END
    FROM unnest($1::text::tid[], $2::uuid[], $3::text[], $4::text[]) a(place, key, message_id, next_trigger)
    WHERE c.ctid = a.place
    RETURNING old.id, old.sequence_id, old.lead_id, old.lease_epoch, old.next_trigger_time AS due,
              old.processing_started_at AS slot, old.lease_deadline_at AS deadline, old.home_device_id, old.visit,
              old.generation, old.attempt, old.current_trigger AS step, old.entry_trigger, new.status, a.key,
              a.message_id
),
written AS (
    INSERT INTO message_ledger (enrolment_id, sequence_id, lead_id, shard_epoch, due_at, reserved_at, deadline_at,
        accepted_at, device_id, idempotency_key, visit, generation, attempt, outcome, step_trigger, gateway_message_id)
    SELECT id, sequence_id, lead_id, lease_epoch, due, slot, deadline, slot, home_device_id, key, visit, generation,
        attempt, 'accepted', step, message_id FROM moved
),
taken_off AS (
    UPDATE leads l
    SET trigger = CASE WHEN l.trigger <> m.entry_trigger THEN dripline_without(l.trigger, m.entry_trigger) END
    FROM moved m WHERE m.status = 'completed' AND l.id = m.lead_id
),
closed AS (
    DELETE FROM claims WHERE token = $5
)
SELECT count(*) FROM moved
"""
CHECK: Final = """
SELECT (SELECT count(*) FROM message_ledger) AS ledger_rows, sum(c.visit - 1) AS visits,
       count(*) FILTER (WHERE c.status = 'completed') AS completed,
       count(*) FILTER (WHERE c.status = 'completed' AND c.entry_trigger NOT IN (
           SELECT dripline_tokens(l.trigger))) AS taken_off,
       count(c.lease_token) AS leased
FROM sequence_contacts c JOIN leads l ON l.id = c.lead_id
"""


@dataclass(frozen=True, slots=True)
class Batch:
    """A claim that has been committed."""

    token: int
    group: int
    places: str
    """As PostgreSQL writes them; they go back as they came."""
    enrolment: Int64s
    visit: Int32s
    step: list[str]


@dataclass(slots=True)
class Loop:
    """The loop over one loaded database.

    Args:
        pool: one connection that claims and ``COMPLETING`` others.
        device_id: the devices, in the order in which they were given enrolments.
        taking_part: how many enrolments are sent all their steps; the devices have equal shares.
        following: the step after each, None after the last.
    """

    pool: asyncpg.Pool
    device_id: list[UUID]
    taking_part: int
    following: dict[str, str | None]
    statements: int = 0
    sends: int = 0
    _ready: asyncio.Queue[Batch | None] = field(default_factory=lambda: asyncio.Queue(WAITING))
    _free: dict[int, asyncio.Event] = field(default_factory=dict)
    """By group: its last claim has been completed. Only then is it asked for more."""

    async def run(self) -> None:
        """Claim and complete until everything is sent."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._claim_all())
            for _ in range(COMPLETING):
                tasks.create_task(self._complete_all())

    def claims(self) -> Iterator[tuple[int, Int32s, Int32s, Int32s]]:
        """Group, devices, slots and what each device had before, of every claim: one group after the other."""
        share = np.bincount(np.arange(self.taking_part) % DEVICES, minlength=DEVICES).astype(np.int32)
        sent = np.zeros(DEVICES, np.int32)
        while (sent < STEPS * share).any():
            slots = np.minimum(np.minimum(SLOTS, share), STEPS * share - sent)
            for group, first in enumerate(range(0, DEVICES, DEVICES_A_CLAIM)):
                devices = (first + np.flatnonzero(slots[first : first + DEVICES_A_CLAIM])).astype(np.int32)
                if len(devices):
                    yield group, devices, slots[devices], sent[devices]
            sent += slots

    async def _claim_all(self) -> None:
        async with self.pool.acquire() as connection:
            statement = await connection.prepare(CLAIM)
            for token, (group, devices, slots, sent) in enumerate(self.claims(), 1):
                free = self._free.setdefault(group, asyncio.Event())
                if token > group + 1:
                    await free.wait()
                free.clear()
                first_us = START_US + sent.astype(np.int64) * GAP_US
                ids = [self.device_id[device] for device in devices.tolist()]
                row = await statement.fetchrow(ids, slots.tolist(), first_us.tolist(), GAP_US, START_US, token)
                assert row is not None
                self.statements += 1
                await self._ready.put(_batch(token, group, row))
        for _ in range(COMPLETING):
            await self._ready.put(None)

    async def _complete_all(self) -> None:
        async with self.pool.acquire() as connection:
            await connection.execute("SET dripline.completing = 'on'")
            statement = await connection.prepare(COMPLETE)
            message_id = [f"m{row}" for row in range(DEVICES_A_CLAIM * SLOTS)]
            while (batch := await self._ready.get()) is not None:
                keys = idempotency_keys(batch.enrolment, batch.visit, np.zeros_like(batch.visit))
                moved = await statement.fetchval(
                    batch.places,
                    [UUID(key) for key in keys],
                    message_id[: len(keys)],
                    [self.following[step] for step in batch.step],
                    batch.token,
                )
                self.sends += moved  # not before the await: two are at it
                self.statements += 1
                self._free[batch.group].set()


def _batch(token: int, group: int, row: asyncpg.Record) -> Batch:
    return Batch(token, group, row["places"], int64s(row["enrolment"]), int32s(row["visit"]), row["step"])


async def raw_loop(server: EmbeddedServer, enrolments: int, sends: int) -> Figures:
    """Send ``sends`` messages, rounded down to whole sequences, with ``enrolments`` live ones due at once.

    The database is made for the run and dropped; only the loop is measured, from the first claim to the last
    completion, after a checkpoint. The run is checked: as many ledger rows and visits as sends, every trigger off.
    """
    assert server.pid is not None
    async with temporary(server, DATABASE) as url, connected(url) as outside:
        await migrate(outside)
        pool = await open_pool(url, size=1 + COMPLETING)
        try:
            loop = await load(url, pool, enrolments, sends // STEPS)
            await outside.execute("CHECKPOINT")
            meter = await Meter.begin(outside, server.pid, [pool])
            await loop.run()
            figures = await meter.end(outside, loop.sends, loop.statements)
        finally:
            pool.terminate()
        await check(url, loop)
    return figures


async def load(url: str, pool: asyncpg.Pool, enrolments: int, taking_part: int) -> Loop:
    """Stamp an empty database and bring in devices, leads and enrolments, all due; the loop over them."""
    async with connected(url) as connection:
        await require_rehearsal(connection, False, clock_us=START_US)
        sequences = builtin()
        assert all(len(sequence.steps) == STEPS for sequence in sequences)
        await apply(connection, sequences)
        await create_devices(connection, DeviceGroup(DEVICES))
        await connection.execute("SET session_replication_role = replica")  # nothing is queued for the enroller
        entries = sorted(step.trigger for sequence in sequences for step in sequence.steps if step.is_entry)
        await create_leads(connection, enrolments, entries, 1)
        await connection.execute(POPULATE, DEVICES, START_US, taking_part)
        await connection.execute("SELECT dripline_ledger_partition($1)", START.date())
        await connection.execute("VACUUM (ANALYZE) leads, sequence_contacts")
        devices = await connection.fetch("SELECT id FROM devices ORDER BY number")
    following = {step.trigger: step.next_trigger for sequence in sequences for step in sequence.steps}
    return Loop(pool, [row["id"] for row in devices], taking_part, following)


async def check(url: str, loop: Loop) -> dict[str, Any]:
    """What the tables say of a finished run, which has to be what the loop says."""
    async with connected(url) as connection:
        row = await connection.fetchrow(CHECK)
    assert row is not None
    found = dict(row)
    sends, part = loop.sends, loop.taking_part
    wanted = {"ledger_rows": sends, "visits": sends, "completed": part, "taken_off": part, "leased": 0}
    assert found == wanted, f"{found}, not {wanted}"
    assert sends == STEPS * part
    return found
