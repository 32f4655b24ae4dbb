"""A tiny world on real PostgreSQL: devices, sequences, leads, shards in this process, a sender that follows a script.

The test owns virtual time. ``tick`` is what the rehearsal's driver does: one stretch of time, claimed, handed over and
written before the next one starts.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, NamedTuple

import asyncpg
import numpy as np
import pytest

from dispatcher.config import Settings
from dispatcher.coordinator import Coordinator, Pass
from dispatcher.core.batches import DueSoon, Int8s, Int32s, Int64s, Leased, Outcomes, Outgoing, SlotOffer
from dispatcher.core.fleet import Gateway
from dispatcher.core.moments import from_datetime, span_us
from dispatcher.core.outcomes import Outcome
from dispatcher.errors import ShardUnavailableError
from dispatcher.rescuer import RescuePass, Rescuer
from dispatcher.shard import Shard
from dispatcher.store.connect import connect, open_pool
from dispatcher.store.coordinator_store import PostgresCoordinatorStore
from dispatcher.store.shard_store import PostgresShardStore
from dispatcher.store.stamp import stamp

START = datetime(2026, 1, 5, 8, tzinfo=UTC)
START_US = from_datetime(START)


KIND = (
    "ALTER TABLE dripline_database DISABLE TRIGGER dripline_keep_kind;"
    " UPDATE dripline_database SET kind = '{kind}', clock = NULL;"
    " ALTER TABLE dripline_database ENABLE TRIGGER dripline_keep_kind"
)

PASSED = {"trigger": "RETURN NEW;", "event_trigger": "", "boolean": "RETURN true;"}
"""What a gate's function says in the end, by its type."""


class Answer(NamedTuple):
    """What the gateway says to one request."""

    outcome: Outcome
    error: str | None = None
    retry_after_s: float = float("nan")


class Request(NamedTuple):
    """What reached the gateway."""

    to: str
    step: str
    device: int
    slot_us: int
    attempt: int
    text: str
    key: bytes


class DiedError(BaseException):
    """The process is gone. Nothing in it may catch this."""


class ScriptedSender:
    """Accepts everything the script says nothing about; answers at the slot's moment."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.templates: list[str | None] = []
        """Of every request: what it said instead of the text."""
        self.script: dict[str, list[Answer]] = {}
        self.gateways: Mapping[int, Gateway] = {}
        self.meanwhile: Callable[[], Awaitable[None]] | None = None
        """Runs once, between the hand-over and the answers."""

    async def send(self, batch: Outgoing) -> AsyncIterator[Outcomes]:
        """One answer a row, all at once."""
        columns = zip(
            batch.to, batch.step, batch.device, batch.slot_us, batch.attempt, batch.text, batch.key, strict=True
        )
        requests = [Request(to, step, int(n), int(us), int(a), text, key) for to, step, n, us, a, text, key in columns]
        first = len(self.requests)
        self.requests += requests
        self.templates += batch.template or [None] * len(batch)
        if self.meanwhile is not None:
            meanwhile, self.meanwhile = self.meanwhile, None
            await meanwhile()
        answers = [self._answer(request.to) for request in requests]
        yield Outcomes(
            row=np.arange(len(batch)),
            outcome=np.array([answer.outcome for answer in answers], np.int8),
            at_us=batch.slot_us,
            message_id=[
                f"m{first + row}" if answer.outcome <= Outcome.REPEAT else None for row, answer in enumerate(answers)
            ],
            error=[answer.error for answer in answers],
            retry_after_s=np.array([answer.retry_after_s for answer in answers]),
        )

    def _answer(self, phone: str) -> Answer:
        script = self.script.get(phone)
        return script.pop(0) if script else Answer(Outcome.ACCEPTED)

    def update(self, gateways: Mapping[int, Gateway]) -> None:
        """Remembers what it was told."""
        self.gateways = gateways

    async def close(self) -> None:
        """Nothing is kept open."""


class LocalShards:
    """The ``Shards`` port to shards in this process. ``hand_over`` off: claims stay pending until the test moves."""

    def __init__(self) -> None:
        self.shards: dict[int, Shard] = {}
        self.hand_over = True
        self.lose_routing = False
        self.silent: set[int] = set()
        self._now_us = self._until_us = 0

    async def offer(self, shard: int, now_us: int, horizon_us: int, devices: Int32s) -> SlotOffer:
        own = self._own(shard)
        await own.refresh()
        self._now_us, self._until_us = now_us, now_us + horizon_us
        return own.offer(now_us, horizon_us, devices)

    async def deliver(self, shard: int, offer: int, leased: Leased | None) -> DueSoon:
        own = self._own(shard)
        if self.lose_routing:
            raise ShardUnavailableError(f"shard-{shard}: the call was lost")
        own.deliver(offer, leased)
        if leased is not None and self.hand_over:
            await own.hand_over(self._now_us, self._until_us)
            await own.complete(self._until_us)
        return own.take_due()

    async def refresh(self, shard: int) -> None:
        await self._own(shard).refresh()

    async def fate(self, shard: int, token: Int64s, epoch: Int64s, enrolment: Int64s) -> Int8s:
        return self._own(shard).fate(token, epoch, enrolment)

    def _own(self, shard: int) -> Shard:
        if shard in self.silent:
            raise ShardUnavailableError(f"shard-{shard}: no answer")
        return self.shards[shard]


class World:
    """A database, a coordinator and its shards at one moment of virtual time."""

    def __init__(self, url: str, connection: asyncpg.Connection, settings: Settings) -> None:
        self.url, self.connection, self.settings = url, connection, settings
        self.now_us = START_US
        self.sender = ScriptedSender()
        self.shards = LocalShards()
        self.coordinator: Coordinator
        self._pools: list[asyncpg.Pool] = []
        self._leads = 0

    # Making it -----------------------------------------------------------------------------------------------

    async def devices(self, count: int, **columns: Any) -> None:
        """Add devices d-1, d-2, …"""
        known = await self.value("SELECT count(*) FROM devices")
        for number in range(known + 1, known + count + 1):
            await self._insert("devices", name=f"d-{number}", **columns)

    async def sequence(self, name: str, *triggers: str, entries: Iterable[str] = (), **columns: Any) -> int:
        """Add a sequence of ``triggers``, 24 hours apart; the first is the entry unless ``entries`` says otherwise."""
        id_ = await self._insert("sequences", name=name, **{"is_active": True, **columns})
        entries = list(entries) or triggers[:1]
        for trigger, following in zip(triggers, [*triggers[1:], None], strict=True):
            await self._insert(
                "sequence_steps",
                sequence_id=id_,
                trigger=trigger,
                message_text=f"text of {trigger}",
                next_trigger=following,
                is_entry_point=trigger in entries,
            )
        return id_

    async def fitness(self, **columns: Any) -> int:
        """The seed's sequence."""
        return await self.sequence("30 Day Fitness", "fitness_start", "fitness_day2", "fitness_day3", **columns)

    async def lead(self, trigger: str | None, **columns: Any) -> int:
        """Add a lead; the n-th one's phone is 99910 + n."""
        self._leads += 1
        return await self._insert("leads", phone=f"999{100 + self._leads}", trigger=trigger, **columns)

    async def _insert(self, table: str, **columns: Any) -> Any:
        places = ", ".join(f"${n}" for n in range(1, len(columns) + 1))
        sql = f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({places}) RETURNING id"
        return await self.connection.fetchval(sql, *columns.values())

    # Asking it -----------------------------------------------------------------------------------------------

    async def execute(self, sql: str, *arguments: Any) -> None:
        await self.connection.execute(sql, *arguments)

    async def value(self, sql: str, *arguments: Any) -> Any:
        return await self.connection.fetchval(sql, *arguments)

    async def rows(self, sql: str, *arguments: Any) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in await self.connection.fetch(sql, *arguments)]

    async def states(self) -> list[tuple[Any, ...]]:
        """Every enrolment, oldest first: phone, step, visit, status, whether leased, why stopped."""
        return await self.rows(
            "SELECT contact_phone, current_trigger, visit, status, lease_token IS NOT NULL, stop_reason "
            "FROM sequence_contacts ORDER BY id"
        )

    async def attempts(self) -> list[tuple[Any, ...]]:
        """The ledger in order of reservation: phone, step, visit, attempt, outcome."""
        return await self.rows(
            "SELECT c.contact_phone, m.step_trigger, m.visit, m.attempt, m.outcome FROM message_ledger m "
            "JOIN sequence_contacts c ON c.id = m.enrolment_id ORDER BY m.reserved_at, m.enrolment_id, m.attempt"
        )

    async def waiters(self, count: int) -> None:
        """Until so many statements wait for a lock."""
        for _ in range(250):
            if await self.value("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'") >= count:
                return
            await asyncio.sleep(0.02)
        raise AssertionError(f"fewer than {count} statements wait")

    @asynccontextmanager
    async def gate(self, passage: str, *, returns: str = "trigger") -> AsyncIterator[None]:
        """While this lasts, whatever calls ``pass_gate()`` waits.

        Args:
            passage: SQL that makes something call it.
            returns: type of the function that is called.
        """
        keeper = await connect(self.url)
        await keeper.execute("SELECT pg_advisory_lock(7)")
        await self.execute(
            f"CREATE FUNCTION pass_gate() RETURNS {returns} LANGUAGE plpgsql AS "
            f"$$BEGIN PERFORM pg_advisory_xact_lock_shared(7); {PASSED[returns]} END$$"
        )
        await self.execute(passage)
        try:
            yield
        finally:
            await keeper.close()

    def sent(self) -> list[tuple[str, str]]:
        """Phone and step of every request so far."""
        return [(request.to, request.step) for request in self.sender.requests]

    # Moving it -----------------------------------------------------------------------------------------------

    async def store(self) -> PostgresCoordinatorStore:
        """A coordinator's statements on connections of their own."""
        return PostgresCoordinatorStore(await self._pool(), "test")

    async def shard_store(self, shard: int = 0) -> PostgresShardStore:
        """A shard's statements on connections of their own."""
        return PostgresShardStore(await self._pool(), shard, "test")

    async def begin(self, shards: int = 1) -> None:
        """Put a coordinator and its shards to work."""
        self.coordinator = Coordinator(self.settings, await self.store(), self.shards)
        await self.coordinator.take_over(self.now_us, shards)
        for shard in range(shards):
            await self.restart(shard)

    async def restart(self, shard: int = 0) -> Shard:
        """A new incarnation of a shard; the one before it is left as it is."""
        own = Shard(shard, self.settings, await self.shard_store(shard), lambda _: self.sender)
        await own.take_over(self.now_us)
        self.shards.shards[shard] = own
        return own

    async def die_handing_over(self, shard: int = 0, *, reached: bool = True, until_us: int | None = None) -> None:
        """The shard looks once more and dies: before anything has left, or once everything has ``reached`` the gateway.

        It handed over what was pending for the last minute, or only ``until_us``; another incarnation is still to come.
        """

        async def die() -> None:
            raise DiedError

        before = len(self.sender.requests)
        self.sender.meanwhile = die
        with pytest.raises(DiedError):
            await self.shards.shards[shard].hand_over(self.now_us - span_us(60), until_us or self.now_us)
        if not reached:
            del self.sender.requests[before:]

    async def rescue(self) -> RescuePass:
        """One pass over the leases that have ended; nothing is claimed."""
        done = await Rescuer(await self.store(), self.settings, self.shards).run_once(self.now_us)
        await self.coordinator.probe()
        return done

    async def tick(self, seconds: float = 60) -> Pass:
        """Run ``seconds`` of virtual time; returns the first pass over it."""
        await self.execute("UPDATE dripline_database SET clock = dripline_at($1)", self.now_us)
        first = done = await self.coordinator.run_once(self.now_us, span_us(seconds))
        while done.more:
            done = await self.coordinator.run_once(self.now_us, span_us(seconds))
        self.now_us += span_us(seconds)
        return first

    async def pass_for(self, kind: str) -> None:
        """From here on a ``live`` database, whose time is ours; or a ``rehearsal`` again, that goes on from now."""
        if kind == "rehearsal":
            self.now_us = await self.value("SELECT dripline_us(now())")
        await self.execute(KIND.format(kind=kind))

    async def hours(self, hours: float) -> None:
        """Let time pass in which nothing runs."""
        self.now_us += span_us(hours * 3600)

    async def _pool(self) -> asyncpg.Pool:
        self._pools.append(await open_pool(self.url, size=2))
        return self._pools[-1]

    async def close(self) -> None:
        for pool in self._pools:
            pool.terminate()


@pytest.fixture
async def new_world(database_url: str) -> AsyncIterator[Callable[..., Awaitable[World]]]:
    """Makes the world: ``devices`` of them, settings by name."""
    connection = await connect(database_url)
    made: list[World] = []

    async def make(devices: int = 1, **settings: Any) -> World:
        await stamp(connection, "rehearsal", clock_us=START_US)
        world = World(database_url, connection, Settings(**settings))
        made.append(world)
        await world.devices(devices)
        return world

    yield make
    for world in made:
        await world.close()
    await connection.close()


@pytest.fixture
async def world(new_world: Callable[..., Awaitable[World]]) -> World:
    """One device and the seed's fitness sequence."""
    made = await new_world()
    await made.fitness()
    return made


@pytest.fixture
def heard_late(new_world: Callable[..., Awaitable[World]]) -> Callable[..., Awaitable[tuple[World, Shard]]]:
    """Makes one lead whose first attempt is in doubt, while its shard, superseded, has heard what the gateway said.

    It is ``held``, ``waiting`` for its resend, or ``leased`` to it. Gives the world and the superseded shard.
    """

    async def make(said: Answer, *, where: str) -> tuple[World, Shard]:
        world = await new_world(0)
        await world.devices(1, gateway_idempotent=where != "held")
        await world.fitness()
        await world.begin()
        await world.lead("fitness_start")
        world.shards.hand_over = False
        await world.tick()
        first = world.shards.shards[0]
        world.sender.script["999101"] = [said]
        await first.hand_over(world.now_us - span_us(60), world.now_us)
        await world.restart()
        if where == "leased":
            await world.tick()
        else:
            await world.rescue()
        assert [row[3:] for row in await world.attempts()] == [(1, "in_doubt")]
        return world, first

    return make


@pytest.fixture
def answer() -> Callable[..., Answer]:
    """What a gateway may say, by the outcome's name: ``answer("refused", "connection refused")``."""

    def make(outcome: str, error: str | None = None, retry_after_s: float = float("nan")) -> Answer:
        return Answer(Outcome[outcome.upper()], error, retry_after_s)

    return make
