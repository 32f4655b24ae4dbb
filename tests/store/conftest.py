"""The same tiny worlds on PostgreSQL and on its twin: what people do, the stores, and every table as plain values."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import asdict
from typing import Any, Protocol
from uuid import UUID

import asyncpg
import numpy as np
import pytest

from dispatcher.core.batches import Leased
from dispatcher.core.delays import parts_of
from dispatcher.core.goals import Goal
from dispatcher.core.graph import Step
from dispatcher.core.identity import idempotency_keys
from dispatcher.core.leases import Ends, Want
from dispatcher.core.moments import to_datetime
from dispatcher.core.outcomes import Outcome
from dispatcher.core.windows import Blackout
from dispatcher.ports import CoordinatorStore, Enrolled, ShardStore
from dispatcher.store.bodies import unpacked
from dispatcher.store.connect import connect, open_pool
from dispatcher.store.coordinator_store import PostgresCoordinatorStore
from dispatcher.store.embedded import EmbeddedServer
from dispatcher.store.retry import Failures, retry
from dispatcher.store.shard_store import PostgresShardStore
from dispatcher.store.stamp import stamp
from simulate.evidence import Evidence, collect
from simulate.memory_store import MemoryCoordinatorStore, MemoryDatabase, MemoryShardStore, evidence
from simulate.memory_store.replying import receive

LABELS = tuple(outcome.label for outcome in Outcome)
START_US = 1_767_600_000_000_000
SEQUENCE_COLUMNS = {"max_lateness_h": "max_lateness_hours"}
REPLY_COLUMNS = {
    "lead": "lead_id",
    "received_us": "received_at",
    "message_id": "gateway_message_id",
    "device": "device_id",
}
AT_MOST_ONCE = "ON CONFLICT (gateway_message_id) DO NOTHING"
STEP_COLUMNS = {"is_entry": "is_entry_point", "at": "send_at", "paused": "paused_cause"}
MOMENTS = {"opted_in_us": "opted_in_at", "opted_out_us": "opted_out_at"}

Tables = dict[str, list[tuple[Any, ...]]]


class StoreWorld(Protocol):
    """A database that people and stores work on. ``now_us`` is its clock, moved by the test."""

    now_us: int

    async def add_device(self, name: str, /, **columns: Any) -> int: ...
    async def set_device(self, number: int, **columns: Any) -> None: ...
    async def remove_device(self, number: int) -> None: ...
    async def put_group(self, name: str, /, **quotas: int | None) -> None: ...
    async def add_sequence(self, name: str, steps: Iterable[Step], /, **columns: Any) -> int: ...
    async def set_sequence(self, sequence: int, **columns: Any) -> None: ...
    async def remove_sequence(self, sequence: int) -> None: ...
    async def edit_step(self, trigger: str, **columns: Any) -> None: ...
    async def set_blackouts(self, *blackouts: Blackout) -> None: ...
    async def add_lead(self, phone: str, trigger: str | None = None, /, **columns: Any) -> int: ...
    async def set_lead(self, lead: int, **columns: Any) -> None: ...
    async def delete_lead(self, lead: int) -> None: ...
    async def suppress(self, phone: str) -> None: ...
    async def lock_leads(self, leads: list[int]) -> None: ...
    async def reply(self, phone: str, text: str, /, **columns: Any) -> bool: ...
    async def pause_fleet(self, paused: bool) -> None: ...
    async def pause_lead(self, lead: int, until_us: int | None) -> None: ...
    async def retry(self) -> int: ...
    async def set_now(self, now_us: int) -> None: ...
    def coordinator(self, holder: str = "one") -> CoordinatorStore: ...
    def shard(self, shard: int = 0, holder: str = "one") -> ShardStore: ...
    async def tables(self) -> Tables: ...
    async def evidence(self) -> Evidence: ...


class MemoryWorld:
    """The twin."""

    def __init__(self) -> None:
        self.now_us = START_US
        self.database = MemoryDatabase(lambda: self.now_us)

    async def set_now(self, now_us: int) -> None:
        self.now_us = now_us

    async def add_device(self, name: str, /, **columns: Any) -> int:
        return self.database.add_device(name, **columns)

    async def set_device(self, number: int, **columns: Any) -> None:
        self.database.set_device(number, **columns)

    async def remove_device(self, number: int) -> None:
        self.database.remove_device(number)

    async def put_group(self, name: str, /, **quotas: int | None) -> None:
        self.database.put_group(name, **quotas)

    async def add_sequence(self, name: str, steps: Iterable[Step], /, **columns: Any) -> int:
        return self.database.add_sequence(name, steps, **columns)

    async def set_sequence(self, sequence: int, **columns: Any) -> None:
        self.database.set_sequence(sequence, **columns)

    async def remove_sequence(self, sequence: int) -> None:
        self.database.remove_sequence(sequence)

    async def edit_step(self, trigger: str, **columns: Any) -> None:
        self.database.edit_step(trigger, **columns)

    async def set_blackouts(self, *blackouts: Blackout) -> None:
        self.database.set_blackouts(*blackouts)

    async def add_lead(self, phone: str, trigger: str | None = None, /, **columns: Any) -> int:
        return self.database.add_lead(phone, trigger, **columns)

    async def set_lead(self, lead: int, **columns: Any) -> None:
        self.database.set_lead(lead, **columns)

    async def delete_lead(self, lead: int) -> None:
        self.database.delete_lead(lead)

    async def suppress(self, phone: str) -> None:
        self.database.suppress(phone)

    async def lock_leads(self, leads: list[int]) -> None:
        self.database.locked_leads = set(leads)

    async def reply(self, phone: str, text: str, /, **columns: Any) -> bool:
        return receive(self.database, phone, text, **columns)

    async def pause_fleet(self, paused: bool) -> None:
        self.database.pause_fleet(paused)

    async def pause_lead(self, lead: int, until_us: int | None) -> None:
        self.database.pause_lead(lead, until_us)

    async def retry(self) -> int:
        return sum(map(self.database.retry, list(self.database.enrolments)))

    async def evidence(self) -> Evidence:
        return evidence(self.database, LABELS)

    def coordinator(self, holder: str = "one") -> CoordinatorStore:
        return MemoryCoordinatorStore(self.database, holder)

    def shard(self, shard: int = 0, holder: str = "one") -> ShardStore:
        return MemoryShardStore(self.database, shard, holder)

    async def tables(self) -> Tables:
        base = self.database
        records = [record for records in base.handovers.values() for record in records]
        return {
            "enrolments": [
                (
                    *(row.id, row.sequence, row.lead, row.phone, row.entry, row.step, row.due_us, row.enrolled_us),
                    *(row.finished_us, row.home, row.status, row.visit, row.generation, row.attempt, row.retries),
                    *((row.device.number, row.slot_us, row.deadline_us) if row.device else (None, None, None)),
                    *((row.token, row.epoch) if row.device else (None, None)),
                    *(row.pinned, row.held, row.trigger_kept, row.resend_text, row.resend_media_url),
                    *(row.last_error, row.stop_reason),
                )
                for row in base.enrolments.values()
            ],
            "ledger": sorted(
                (
                    *(row.enrolment, row.visit, row.generation, row.attempt, row.outcome, row.sequence, row.lead),
                    *(row.epoch, row.due_us, row.slot_us, row.deadline_us, row.accepted_us, row.device),
                    *(UUID(bytes=row.key), row.step, row.message_id, row.error),
                )
                for row in base.ledger.rows
            ),
            "leads": [
                (row.id, row.trigger, row.home_device_id, row.opted_in_us, row.opted_out_us)
                for row in base.leads.values()
            ],
            "queue": [(list(change.leads), *change[1:]) for change in base.queue],
            "replies": [tuple(reply) for reply in base.replies],
            "exits": sorted((lead, id_) for id_, lead in base.exits.items()),
            "opt_outs": sorted(base.opt_outs.items()),
            "devices": [
                (row.number, row.id, row.shard_id, row.health, row.health_cause) for row in base.devices.values()
            ],
            "breakers": [
                (row.number, row.trips, row.probe_us, row.ramp_per_day, row.ramp_day) for row in base.devices.values()
            ],
            "rests": [(row.number, row.account_rests_until_us) for row in base.devices.values()],
            "paused steps": sorted(
                (step.trigger, step.paused) for row in base.sequences.values() for step in row.steps if step.paused
            ),
            "late_steps": sorted(map(tuple, base.late_steps)),
            "quotas": sorted(tuple(quota) for quota in base.quotas if quota.number in base.devices),
            "epochs": sorted((name, row.epoch, row.holder) for name, row in base.epochs.items()),
            "heartbeats": sorted(
                (name, row.holder, row.expires_us > self.now_us) for name, row in base.heartbeats.items()
            ),
            "problems": sorted(base.problems.items()),
            "entries": sorted(
                (row.trigger, row.sequence, row.opened_us, row.scanned_to, row.scan_done)
                for row in base.open_entries.values()
            ),
            "handovers": sorted(
                (row.token, row.epoch, row.handed_us, sorted(row.said), sorted(row.said.items())) for row in records
            ),
        }


TABLES = {
    "enrolments": """
        SELECT c.id, sequence_id, lead_id, contact_phone, entry_trigger, current_trigger,
               dripline_us(next_trigger_time), dripline_us(enrolled_at), dripline_us(finished_at), c.home_device_id,
               c.status, visit, generation, attempt, retry_count, d.number,
               dripline_us(processing_started_at), dripline_us(lease_deadline_at), lease_token, lease_epoch,
               pinned, held, trigger_kept, resend_text, resend_media_url, last_error, stop_reason
        FROM sequence_contacts c LEFT JOIN devices d ON d.id = c.home_device_id AND c.lease_token IS NOT NULL
        ORDER BY c.id""",
    "ledger": """
        SELECT enrolment_id, visit, generation, attempt, outcome, sequence_id, lead_id, shard_epoch,
               dripline_us(due_at), dripline_us(reserved_at), dripline_us(deadline_at),
               dripline_us(accepted_at), device_id, idempotency_key, step_trigger, gateway_message_id, error
        FROM message_ledger ORDER BY 1, 2, 3, 4, outcome COLLATE "C" """,
    "leads": """
        SELECT id, trigger, home_device_id, dripline_us(opted_in_at), dripline_us(opted_out_at)
        FROM leads ORDER BY id""",
    "queue": "SELECT leads, old_trigger, new_trigger, opted_out FROM lead_changes ORDER BY id",
    "replies": """
        SELECT phone, lead_id, text, dripline_us(received_at), gateway_message_id, device_id
        FROM replies ORDER BY id""",
    "exits": "SELECT lead_id, enrolment_id FROM exits ORDER BY 1, 2",
    "opt_outs": "SELECT lead_id, dripline_us(at) FROM opt_outs ORDER BY 1",
    "devices": "SELECT number, id, shard_id, health, health_cause FROM devices ORDER BY number",
    "breakers": """
        SELECT number, breaker_trips, dripline_us(probe_at), ramp_per_day, ramp_day - '1970-01-01'::date
        FROM devices ORDER BY number""",
    "rests": "SELECT number, dripline_us(account_rests_until) FROM devices ORDER BY number",
    "paused steps": """
        SELECT trigger, paused_cause FROM sequence_steps WHERE paused_cause IS NOT NULL
        ORDER BY trigger COLLATE "C" """,
    "late_steps": """
        SELECT enrolment_id, sequence_id, lead_id, visit, generation, step_trigger,
               dripline_us(due_at), dripline_us(at), dripline_us(shifted_to)
        FROM late_steps ORDER BY 1, 4, 5, 8""",
    "quotas": """
        SELECT d.number, dripline_us(h.valid_from), h.quota_per_hour, h.quota_per_day
        FROM device_quota_history h JOIN devices d ON d.id = h.device_id ORDER BY 1, 2, 3, 4""",
    "epochs": 'SELECT name, epoch, holder FROM epochs ORDER BY name COLLATE "C"',
    "heartbeats": 'SELECT name, holder, expires_at > clock_timestamp() FROM heartbeats ORDER BY name COLLATE "C"',
    "problems": "SELECT sequence_id, problem FROM sequence_problems ORDER BY 1",
    "entries": """
        SELECT trigger, sequence_id, dripline_us(opened_at), scanned_to, scan_done
        FROM open_entries ORDER BY trigger COLLATE "C" """,
}


class PostgresWorld:
    """The real one."""

    def __init__(self, connection: asyncpg.Connection, locker: asyncpg.Connection, pool: asyncpg.Pool) -> None:
        self.now_us = START_US
        self._connection, self._locker, self._pool = connection, locker, pool

    async def set_now(self, now_us: int) -> None:
        self.now_us = now_us
        await self._connection.execute("UPDATE dripline_database SET clock = $1", to_datetime(now_us))

    async def add_device(self, name: str, /, **columns: Any) -> int:
        number = 1 + await self._connection.fetchval("SELECT coalesce(max(number), 0) FROM devices")
        await self._insert("devices", name=name, **{"id": UUID(int=number), **columns})
        return int(number)

    async def set_device(self, number: int, **columns: Any) -> None:
        await self._update("devices", "number", number, columns)

    async def remove_device(self, number: int) -> None:
        await self._connection.execute("DELETE FROM devices WHERE number = $1", number)

    async def put_group(self, name: str, /, **quotas: int | None) -> None:
        await self._connection.execute(
            "INSERT INTO device_groups VALUES ($1, $2, $3) ON CONFLICT (name) DO UPDATE"
            " SET quota_per_hour = excluded.quota_per_hour, quota_per_day = excluded.quota_per_day",
            name,
            quotas.get("quota_per_hour"),
            quotas.get("quota_per_day"),
        )

    async def add_sequence(self, name: str, steps: Iterable[Step], /, **columns: Any) -> int:
        async with self._connection.transaction():
            id_ = await self._insert("sequences", name=name, **{"is_active": True, **_sequence_columns(columns)})
            for step in steps:
                await self._insert("sequence_steps", sequence_id=id_, **_step_columns(_given(asdict(step))))
        return int(id_)

    async def set_sequence(self, sequence: int, **columns: Any) -> None:
        if "blackouts" in columns:
            await self._shut(sequence, columns.pop("blackouts"))
        if columns:
            await self._update("sequences", "id", sequence, _sequence_columns(columns))

    async def set_blackouts(self, *blackouts: Blackout) -> None:
        await self._shut(None, blackouts)

    async def _shut(self, sequence: int | None, blackouts: Iterable[Blackout]) -> None:
        await self._connection.execute("DELETE FROM blackouts WHERE sequence_id IS NOT DISTINCT FROM $1", sequence)
        for each in blackouts:
            await self._insert("blackouts", sequence_id=sequence, first_day=each.first, last_day=each.last)

    async def remove_sequence(self, sequence: int) -> None:
        await self._connection.execute("DELETE FROM sequences WHERE id = $1", sequence)

    async def edit_step(self, trigger: str, **columns: Any) -> None:
        await self._update("sequence_steps", "trigger", trigger, _step_columns(columns))

    async def add_lead(self, phone: str, trigger: str | None = None, /, **columns: Any) -> int:
        return int(await self._insert("leads", phone=phone, trigger=trigger, **_lead_columns(columns)))

    async def set_lead(self, lead: int, **columns: Any) -> None:
        await self._update("leads", "id", lead, _lead_columns(columns))

    async def delete_lead(self, lead: int) -> None:
        await self._connection.execute("DELETE FROM leads WHERE id = $1", lead)

    async def suppress(self, phone: str) -> None:
        await self._connection.execute("INSERT INTO suppressions (phone) VALUES ($1)", phone)

    async def lock_leads(self, leads: list[int]) -> None:
        if self._locker.is_in_transaction():
            await self._locker.execute("ROLLBACK")
        if leads:
            await self._locker.execute("BEGIN")
            await self._locker.execute("SELECT FROM leads WHERE id = ANY ($1::bigint[]) FOR UPDATE", leads)

    async def reply(self, phone: str, text: str, /, **columns: Any) -> bool:
        named = {REPLY_COLUMNS[column]: value for column, value in columns.items() if value is not None}
        if "received_at" in named:
            named["received_at"] = to_datetime(named["received_at"])
        return await self._insert("replies", AT_MOST_ONCE, phone=phone, text=text, **named) is not None

    async def pause_fleet(self, paused: bool) -> None:
        await self._connection.execute("UPDATE fleet SET paused = $1", paused)

    async def pause_lead(self, lead: int, until_us: int | None) -> None:
        await self._connection.execute("DELETE FROM paused_leads WHERE lead_id = $1", lead)
        if until_us is not None:
            sql = "INSERT INTO paused_leads (lead_id, until) VALUES ($1, $2)"
            await self._connection.execute(sql, lead, to_datetime(until_us))

    async def retry(self) -> int:
        return (await retry(self._connection, Failures(), actor="story")).retried

    async def evidence(self) -> Evidence:
        return await collect(self._connection, LABELS)

    def coordinator(self, holder: str = "one") -> CoordinatorStore:
        return PostgresCoordinatorStore(self._pool, holder)

    def shard(self, shard: int = 0, holder: str = "one") -> ShardStore:
        return PostgresShardStore(self._pool, shard, holder)

    async def tables(self) -> Tables:
        found = {name: [tuple(row) for row in await self._connection.fetch(sql)] for name, sql in TABLES.items()}
        records = await self._connection.fetch(
            "SELECT token, shard_epoch, dripline_us(handed_at), enrolments, bodies FROM handovers"
        )
        found["handovers"] = sorted(
            (
                token,
                epoch,
                at_us,
                sorted(enrolments),
                sorted((id_, (text, url)) for id_, text, url in unpacked(bodies) if id_ in enrolments),
            )
            for token, epoch, at_us, enrolments, bodies in records
        )
        return found

    async def _insert(self, table: str, otherwise: str = "", /, **columns: Any) -> Any:
        places = ", ".join(f"${n}" for n in range(1, len(columns) + 1))
        sql = f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({places}) {otherwise} RETURNING id"
        return await self._connection.fetchval(sql, *columns.values())

    async def _update(self, table: str, key: str, id_: Any, columns: dict[str, Any]) -> None:
        named = ", ".join(f"{column} = ${n}" for n, column in enumerate(columns, 2))
        await self._connection.execute(f"UPDATE {table} SET {named} WHERE {key} = $1", id_, *columns.values())


def _given(columns: dict[str, Any]) -> dict[str, Any]:
    """What is not a column's default."""
    return {column: value for column, value in columns.items() if value}


def _step_columns(columns: dict[str, Any]) -> dict[str, Any]:
    named = {STEP_COLUMNS.get(column, column): value for column, value in columns.items()}
    if "delay_h" in named:
        named["trigger_delay_hours"], named["trigger_delay_minutes"] = parts_of(named.pop("delay_h"))
    return named


def _sequence_columns(columns: dict[str, Any]) -> dict[str, Any]:
    columns = {SEQUENCE_COLUMNS.get(column, column): value for column, value in columns.items()}
    named = {column: value for column, value in columns.items() if column not in ("send_window", "time_zone", "goal")}
    if "time_zone" in columns:
        named["send_time_zone"] = columns["time_zone"]
    if "goal" in columns:
        goal = columns["goal"] or Goal()
        named |= {"goal_trigger": goal.trigger, "goal_if": goal.condition}
    if "send_window" in columns:
        window = columns["send_window"]
        values = (None,) * 4 if window is None else (window.opens, window.closes, window.days, window.time_zone)
        named |= dict(zip(("send_from", "send_until", "send_days", "send_time_zone"), values, strict=True))
    return named


def _lead_columns(columns: dict[str, Any]) -> dict[str, Any]:
    named = {MOMENTS.get(column, column): value for column, value in columns.items()}
    for column in MOMENTS.values():
        if named.get(column) is not None:
            named[column] = to_datetime(named[column])
    if "attributes" in named:
        named["attributes"] = json.dumps(named["attributes"])
    return named


@pytest.fixture
async def new_postgres_world(
    new_database: Callable[..., str], server: EmbeddedServer
) -> AsyncIterator[Callable[[], Any]]:
    """Makes worlds on PostgreSQL, each on a database of its own, dropped as soon as the next one is made."""
    closing: list[Callable[[], Any]] = []

    async def make() -> PostgresWorld:
        await close()
        url = await asyncio.to_thread(new_database)
        connection, locker = await connect(url), await connect(url)
        pool = await open_pool(url, size=1)
        await stamp(connection, "rehearsal", clock_us=START_US)

        async def drop() -> None:
            pool.terminate()
            await locker.close()
            await connection.close()
            admin = await connect(server.url("postgres"))
            await admin.execute(f"DROP DATABASE {url.split('/')[3].split('?')[0]} WITH (FORCE)")
            await admin.close()

        closing.append(drop)
        return PostgresWorld(connection, locker, pool)

    async def close() -> None:
        while closing:
            await closing.pop()()

    yield make
    await close()


@pytest.fixture(params=["memory", "postgres"])
async def store_world(request: pytest.FixtureRequest, new_postgres_world: Callable[[], Any]) -> StoreWorld:
    """A world without anything in it, on either store."""
    return MemoryWorld() if request.param == "memory" else await new_postgres_world()


@pytest.fixture
def new_memory_world() -> Callable[[], StoreWorld]:
    """Makes worlds on the twin."""
    return MemoryWorld


STEPS = [Step("start", "one", "two", 1, 1, True), Step("two", "two", None, 24, 2)]
ONE = UUID(int=1)
SECOND_US, HOUR_US, DAY_US, DEADLINE_US = 1_000_000, 3_600_000_000, 86_400_000_000, 30_000_000


class Story:
    """Two devices of shard 0, a sequence of two steps, a coordinator and a shard in office."""

    def __init__(self, world: Any) -> None:
        self.world = world
        self.store, self.shard = world.coordinator(), world.shard()

    async def begin(self) -> None:
        for name in ("d-1", "d-2"):
            await self.world.add_device(name, shard_id=0)
        await self.world.add_sequence("fitness", STEPS)
        await self.store.begin_day(self.now_us, 2, DAY_US)
        self.epoch, self.shard_epoch = await self.store.seat.raise_epoch(), await self.shard.seat.raise_epoch()
        self.catalogue = await self.store.catalogue(self.now_us)

    @property
    def now_us(self) -> int:
        return int(self.world.now_us)

    async def wait(self, span_us: int) -> None:
        await self.world.set_now(self.now_us + span_us)

    async def leads(self, *triggers: str | None) -> None:
        """Leads by trigger list, enrolled on device 1."""
        for trigger in triggers:
            known = len((await self.world.tables())["leads"])
            await self.world.add_lead(f"99910{known + 1}", trigger)
        await self.enrol()

    async def enrol(self, rows: int = 100, epoch: int | None = None) -> Enrolled:
        return await self.store.enrol(
            self.catalogue,
            lambda leads: [ONE] * leads,
            self.now_us,
            epoch=epoch or self.epoch,
            rows=rows,
            hour_us=HOUR_US,
        )

    async def claim(self, slots: int = 9, shard_epoch: int | None = None, since_us: int = 0) -> Leased | None:
        """Claim for device 1, five seconds a slot; nothing that was due before ``since_us``."""
        want = Want(
            shard=0,
            epoch=shard_epoch or self.shard_epoch,
            device_id=[ONE],
            number=np.array([1], np.int32),
            slots=np.array([slots], np.int32),
            slot_us=self.now_us + 5 * SECOND_US * np.arange(slots, dtype=np.int64),
            since_us=np.array([since_us], np.int64),
        )
        return await self.store.claim(want, self.now_us, epoch=self.epoch, deadline_us=DEADLINE_US, lead_fields=True)

    async def look(self, leased: Leased) -> dict[int, str]:
        texts = [f"said to {id_}" for id_ in leased.enrolment.tolist()]
        return await self.shard.last_look(leased, texts, [None] * len(texts), self.now_us, self.now_us - DAY_US)

    async def end(self, leased: Leased, *outcomes: str, next_: str = "waiting") -> None:
        """One outcome a row; an attempt in doubt waits for its resend unless ``next_`` says otherwise."""
        rows, delay_us = len(leased), HOUR_US
        good = [outcome in ("accepted", "repeat") for outcome in outcomes]
        doubt = np.array([outcome == "in_doubt" for outcome in outcomes], np.bool_)
        after = {"rejected": "failed", "opted_out": "stopped"}
        ends = Ends(
            enrolment=leased.enrolment,
            token=np.full(rows, leased.token, np.int64),
            lead=leased.lead,
            visit=leased.visit,
            generation=leased.generation,
            attempt=leased.attempt,
            device=leased.device,
            slot_us=leased.slot_us,
            due_us=leased.due_us,
            at_us=leased.slot_us + SECOND_US,
            step=leased.step,
            key=idempotency_keys(leased.enrolment, leased.visit, leased.generation),
            outcome=list(outcomes),
            message_id=["m" if ok else None for ok in good],
            error=[None if ok else "why" for ok in good],
            next_trigger=["two" if step == "start" else None for step in leased.step],
            next_due_us=leased.slot_us + np.where(good, delay_us, 0),
            next=[after.get(outcome, next_) for outcome in outcomes],
            counted=doubt.astype(np.int32),
            pinned=doubt,
            handed=np.ones(rows, np.bool_),
            text=[f"said to {id_}" if unknown else None for id_, unknown in zip(leased.enrolment, doubt, strict=True)],
            media_url=[None] * rows,
        )
        await self.shard.end(ends, self.now_us, epoch=self.shard_epoch, deadline_us=DEADLINE_US)

    async def states(self) -> list[tuple[Any, ...]]:
        """Every enrolment: step, status, visit, attempt, whether leased, pinned, why stopped."""
        rows = (await self.world.tables())["enrolments"]
        return [(row[5], row[10], row[11], row[13], row[15] is not None, row[20], row[26]) for row in rows]

    async def attempts(self) -> list[tuple[Any, ...]]:
        """The ledger: enrolment, visit, attempt, outcome."""
        return [(row[0], row[1], row[3], row[4]) for row in (await self.world.tables())["ledger"]]

    async def triggers(self) -> list[str | None]:
        return [row[1] for row in (await self.world.tables())["leads"]]

    async def supersede(self) -> None:
        """Another incarnation of the shard takes over."""
        self.shard_epoch = await self.shard.seat.raise_epoch()


@pytest.fixture
async def story(store_world: StoreWorld) -> Story:
    """A story that has begun, on either store."""
    told = Story(store_world)
    await told.begin()
    return told
