"""A small town on real PostgreSQL whose processes die, or lose their connection, at any statement that is named."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import asyncpg
import numpy as np
import pytest

from dispatcher import completer
from dispatcher.config import Settings
from dispatcher.coordinator import Coordinator
from dispatcher.core.batches import DueSoon, Int8s, Int32s, Int64s, Leased, Outcomes, Outgoing, SlotOffer
from dispatcher.core.fleet import Gateway
from dispatcher.core.outcomes import Outcome
from dispatcher.errors import ShardUnavailableError, StoreUnavailableError
from dispatcher.shard import Shard
from dispatcher.store.connect import connect, open_pool
from dispatcher.store.coordinator_store import PostgresCoordinatorStore
from dispatcher.store.shard_store import PostgresShardStore
from dispatcher.store.stamp import stamp
from dispatcher.store.statements import statements

START_US = 1_767_600_000_000_000
MINUTE_US = 60_000_000
SHARDS = (0, 1)
ROUNDS = 60
SETTINGS = Settings(trust_s=600, leader_s=700)
FILES = ("epochs", "catalogue", "enrol", "claim", "rescue", "complete", "shard")
NAME_OF = {sql: name for file in FILES for name, sql in statements(file).items()}
WRITES = re.compile(r"\b(UPDATE|INSERT|DELETE|nextval|dripline_ledger_partition)\b")
MADE = f"""
INSERT INTO sequences (name, is_active, send_from, send_until, send_time_zone)
VALUES ('Two', true, '07:00', '08:00:32', 'UTC');
INSERT INTO sequence_steps (sequence_id, trigger, message_text, next_trigger, is_entry_point)
VALUES (1, 'one', 'text of one for {{{{ name }}}}', 'two', true), (1, 'two', 'text of two', NULL, false);
INSERT INTO devices (name, shard_id) VALUES ('d-1', 0), ('d-2', 1);
SELECT dripline_ledger_partition((dripline_at({START_US}) AT TIME ZONE 'UTC')::date + day)
FROM generate_series(-1, 8) day;
"""
EMPTIED = """
SET session_replication_role = replica;
TRUNCATE message_ledger, sequence_contacts, leads, lead_changes, open_entries, epochs, heartbeats, handovers
RESTART IDENTITY;
SET session_replication_role = origin;
"""
PEOPLED = """
INSERT INTO leads (phone, name, trigger, home_device_id)
SELECT '99910' || n, 'lead ' || n, 'one,other', (SELECT id FROM devices WHERE number = 1 + (n = 2)::integer)
FROM generate_series(1, 3) n
"""
STANDING = """
SELECT (SELECT count(*) FROM sequence_contacts WHERE status = 'active')
           + (SELECT coalesce(sum(cardinality(leads)), 0) FROM lead_changes)
           + 3 - (SELECT count(*) FROM sequence_contacts) AS open,
       (SELECT count(*) FROM sequence_contacts WHERE lease_token IS NOT NULL) AS leased,
       (SELECT dripline_us(min(next_trigger_time)) FROM sequence_contacts WHERE status = 'active') AS due_us
"""


class DeathError(BaseException):
    """A process has died. Nothing in the product catches it."""


class Point(NamedTuple):
    """Where something can happen: the ``hit``-th time that a service, in whatever incarnation, comes to it."""

    service: str
    name: str
    hit: int


class Blow(NamedTuple):
    """What happens there: before it was sent, executed but not committed, or committed but not answered."""

    point: Point
    moment: str
    lost: bool
    """The connection is lost and the process lives; otherwise the process dies."""


class Storm:
    """Counts what every service comes to, and strikes once."""

    def __init__(self, blow: Blow | None) -> None:
        self.blow, self.struck = blow, False
        self.moments: dict[Point, tuple[str, ...]] = {}
        self._hits: Counter[tuple[str, str]] = Counter()

    def moment(self, service: str, name: str, moments: tuple[str, ...]) -> str | None:
        """What strikes here, None almost always."""
        self._hits[service, name] += 1
        point = Point(service, name, self._hits[service, name])
        self.moments[point] = moments
        if self.blow is None or self.blow.point != point:
            return None
        self.struck = True
        return self.blow.moment

    def blows(self) -> list[Blow]:
        """Every way to die, and to lose the connection, which leaves the same behind before a statement and undone."""
        deaths = [Blow(point, moment, False) for point, some in self.moments.items() for moment in some]
        lost = [
            Blow(point, moment, True)
            for point, some in self.moments.items()
            for moment in some
            if point.name != "send" and (moment != "before" or "uncommitted" not in some)
        ]
        return deaths + lost


class Process:
    """One incarnation of a service, as PostgreSQL and the gateway see it; its stores take it for their pool."""

    def __init__(self, service: str, pool: asyncpg.Pool, storm: Storm) -> None:
        self.service, self.dead = service, False
        self._pool, self._storm = pool, storm
        self._busy: list[Any] = []

    @asynccontextmanager
    async def acquire(self) -> AsyncIterator[Wire]:
        """A connection of its own while it lasts."""
        async with self._pool.acquire() as connection:
            self._busy.append(connection)
            try:
                yield Wire(self, connection)
            finally:
                self._busy.remove(connection)

    async def come_to(self, name: str, moments: tuple[str, ...], act: Callable[[], Awaitable[Any]], wire: Any) -> Any:
        """Do what ``name`` says, unless the blow falls here."""
        if self.dead:
            raise DeathError
        moment = self._storm.moment(self.service, name, moments)
        if moment == "before":
            self._fall(wire)
        if moment == "uncommitted" and "unanswered" in moments:
            await wire.transaction().start()
        answer = await act()
        if moment is not None:
            self._fall(wire)
        return answer

    def _fall(self, wire: Any) -> None:
        assert self._storm.blow is not None
        if self._storm.blow.lost:
            wire.terminate()
            raise asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation")
        self.die()

    def die(self) -> None:
        """Its connections break; what it had not committed is undone."""
        self.dead = True
        for connection in self._busy:
            connection.terminate()
        raise DeathError


class Wire:
    """A process's connection: what the stores call of asyncpg's."""

    def __init__(self, process: Process, connection: Any) -> None:
        self._process, self._connection = process, connection
        self._inside = False

    async def _run(self, method: str, sql: str, arguments: tuple[Any, ...]) -> Any:
        moments = ("before", "uncommitted") if self._inside else ("before", "uncommitted", "unanswered")
        if not WRITES.search(sql):
            moments = moments[:1]  # what only reads leaves the same behind, whenever it ends
        call = getattr(self._connection, method)
        name = NAME_OF.get(sql, sql)
        return await self._process.come_to(name, moments, lambda: call(sql, *arguments), self._connection)

    async def execute(self, sql: str, *arguments: Any) -> Any:
        return await self._run("execute", sql, arguments)

    async def fetch(self, sql: str, *arguments: Any) -> Any:
        return await self._run("fetch", sql, arguments)

    async def fetchrow(self, sql: str, *arguments: Any) -> Any:
        return await self._run("fetchrow", sql, arguments)

    async def fetchval(self, sql: str, *arguments: Any) -> Any:
        return await self._run("fetchval", sql, arguments)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        transaction = self._connection.transaction()
        await transaction.start()
        self._inside = True
        try:
            yield
            await self._process.come_to("COMMIT", ("before", "unanswered"), transaction.commit, self._connection)
        except BaseException:
            if not self._connection.is_closed():
                await transaction.rollback()
            raise
        finally:
            self._inside = False


class Request(NamedTuple):
    """What reached the gateway."""

    phone: str
    step: str
    attempt: int
    visit: int
    key: bytes
    said: tuple[int, str]
    """Device and text."""


class Referee:
    """The gateway: outlives every process, and forgets nothing."""

    def __init__(self, idempotent: bool) -> None:
        self.idempotent = idempotent
        self.requests: list[Request] = []
        self.sent: Counter[bytes] = Counter()
        """How often the recipient may have got a message, by key."""
        self._refuses, self._is_silent, self._outlives = {("999102", "one")}, {("999103", "one")}, {("999101", "two")}

    def take(self, request: Request, process: Process) -> Outcome:
        """Refuses one request, answers one too late, and sees one sender die."""
        self.requests.append(request)
        what = (request.phone, request.step)
        if what in self._refuses:
            self._refuses.remove(what)
            return Outcome.REFUSED
        known = self.idempotent and self.sent[request.key] > 0
        self.sent[request.key] += not known
        if what in self._outlives:
            self._outlives.remove(what)
            process.die()
        if what in self._is_silent:
            self._is_silent.remove(what)
            return Outcome.IN_DOUBT
        return Outcome.REPEAT if known else Outcome.ACCEPTED


class Line:
    """The ``Sender`` port of one process."""

    def __init__(self, referee: Referee, process: Process) -> None:
        self._referee, self._process = referee, process

    async def send(self, batch: Outgoing) -> AsyncIterator[Outcomes]:
        """All rows together; the process may die before anything has left, or before it hears an answer."""

        async def hand_over() -> list[Outcome]:
            said = zip(batch.device.tolist(), batch.text, strict=True)
            rows = zip(batch.to, batch.step, batch.attempt.tolist(), batch.visit.tolist(), batch.key, said, strict=True)
            return [self._referee.take(Request(*row), self._process) for row in rows]

        answers = await self._process.come_to("send", ("before", "unanswered"), hand_over, None)
        yield Outcomes(
            row=np.arange(len(batch)),
            outcome=np.array(answers, np.int8),
            at_us=batch.slot_us,
            message_id=["m"] * len(batch),
            error=[None if answer <= Outcome.REPEAT else answer.label for answer in answers],
            retry_after_s=np.full(len(batch), np.nan),
        )

    def update(self, gateways: Mapping[int, Gateway]) -> None:
        """Nothing to learn."""

    async def close(self) -> None:
        """Nothing is open."""


class Town:
    """Coordinator and shards, each a process; also the ``Shards`` port between them. The test owns time."""

    def __init__(self, pool: asyncpg.Pool, person: asyncpg.Connection, referee: Referee, storm: Storm) -> None:
        self._pool, self._person, self._referee, self._storm = pool, person, referee, storm
        self._now_us = START_US
        self._shards: dict[int, Shard] = {}
        self._late: list[Shard] = []
        self._superseded: set[int] = set()
        self._dropped = self._locked = self._routed = False

    async def offer(self, shard: int, now_us: int, horizon_us: int, devices: Int32s) -> SlotOffer:
        return self._own(shard).offer(now_us, horizon_us, devices)

    async def deliver(self, shard: int, offer: int, leased: Leased | None) -> DueSoon:
        if shard == 1 and leased is not None and not self._routed:
            self._routed = True
            raise ShardUnavailableError("the first routing call to it is lost")
        self._own(shard).deliver(offer, leased)
        return self._own(shard).take_due()

    async def fate(self, shard: int, token: Int64s, epoch: Int64s, enrolment: Int64s) -> Int8s:
        return self._own(shard).fate(token, epoch, enrolment)

    def _own(self, shard: int) -> Shard:
        if shard not in self._shards:
            raise ShardUnavailableError(f"shard-{shard}: no answer")
        return self._shards[shard]

    async def live(self) -> None:
        """Until nothing is active any more."""
        await self._start_coordinator()
        for _ in range(ROUNDS):
            standing = await self._person.fetchrow(STANDING)
            if not standing["open"] and not self._late:
                return
            if not standing["leased"]:
                self._now_us = max(self._now_us, standing["due_us"] or 0)
            await self._person.execute("UPDATE dripline_database SET clock = dripline_at($1)", self._now_us)
            late, self._late = self._late, []
            await self._coordinate()
            for shard in late:
                await self._survive(shard.complete(self._now_us))
            for number in SHARDS:
                if await self._survive(self._serve(number)) is DeathError:
                    self._shards.pop(number, None)
            self._now_us += MINUTE_US
        raise AssertionError(f"it does not drain: {await self._person.fetch('SELECT * FROM sequence_contacts')}")

    async def _survive(self, act: Awaitable[Any]) -> type[BaseException] | None:
        """Run a process's part; the others live on whatever becomes of it, and it tries again unless it is dead."""
        try:
            await act
        except (DeathError, StoreUnavailableError) as error:
            return type(error)
        return None

    async def _start_coordinator(self) -> None:
        process = Process("coordinator", self._pool, self._storm)
        self._coordinator = Coordinator(SETTINGS, PostgresCoordinatorStore(process, "test"), self)
        while ended := await self._survive(self._coordinator.take_over(self._now_us, len(SHARDS))):
            if ended is DeathError:
                await self._start_coordinator()
                return

    async def _coordinate(self) -> None:
        async def run() -> None:
            done = await self._coordinator.run_once(self._now_us, MINUTE_US)
            while done.more:
                done = await self._coordinator.run_once(self._now_us, MINUTE_US)
            await self._coordinator.probe()

        if await self._survive(run()) is DeathError:
            await self._start_coordinator()

    async def _start_shard(self, number: int) -> Shard:
        process = Process(f"shard-{number}", self._pool, self._storm)
        store = PostgresShardStore(process, number, "test")
        shard = Shard(number, SETTINGS, store, lambda _: Line(self._referee, process))
        await shard.take_over(self._now_us)
        self._shards[number] = shard
        return shard

    async def _serve(self, number: int) -> None:
        """What a shard does in a round, and what the story does to it."""
        shard = self._shards.get(number) or await self._start_shard(number)
        await shard.refresh()
        await shard.adopt()
        if number == 1 and not self._dropped and any("two" in part.step for part in shard._pending):
            self._dropped = True
            del self._shards[number]
            await self._start_shard(number)
            return
        done = await shard.hand_over(self._now_us, self._now_us + MINUTE_US)
        if done.handed and number not in self._superseded:
            self._superseded.add(number)
            self._late.append(shard)
            del self._shards[number]
            await self._start_shard(number)
            return
        if not self._locked and ("999102", "two") in {request[:2] for request in self._referee.requests}:
            self._locked = True
            async with self._person.transaction():
                await self._person.execute("SELECT FROM leads WHERE id = 2 FOR UPDATE")
                await shard.complete(self._now_us + MINUTE_US)
            return
        await shard.complete(self._now_us + MINUTE_US)


class Stage:
    """One database, emptied for every run."""

    def __init__(self, pool: asyncpg.Pool, person: asyncpg.Connection) -> None:
        self._pool, self._person = pool, person

    async def run(self, idempotent: bool, blow: Blow | None = None) -> tuple[Storm, Referee]:
        """One life of the world."""
        await self._person.execute(EMPTIED)
        await self._person.execute("UPDATE dripline_database SET clock = dripline_at($1)", START_US)
        await self._person.execute("UPDATE devices SET gateway_idempotent = $1", idempotent)
        await self._person.execute(PEOPLED)
        storm, referee = Storm(blow), Referee(idempotent)
        await Town(self._pool, self._person, referee, storm).live()
        return storm, referee

    async def standing(self) -> dict[str, tuple[str, bool, bool]]:
        """Every enrolment by phone: status, whether leased, whether its lead still carries the trigger."""
        rows = await self._person.fetch(
            "SELECT contact_phone, status, lease_token IS NOT NULL, "
            "l.trigger = 'one,other' FROM sequence_contacts c JOIN leads l ON l.id = c.lead_id "
            "WHERE l.trigger IN ('other', 'one,other')"
        )
        found = {phone: (status, leased, carries) for phone, status, leased, carries in rows}
        assert len(found) == len(rows), "a lead was enrolled twice"
        return found

    async def ledger(self) -> list[tuple[str, int, int, str]]:
        """Every attempt: phone, visit, attempt, outcome."""
        rows = await self._person.fetch(
            "SELECT contact_phone, m.visit, m.attempt, m.outcome FROM message_ledger m "
            "JOIN sequence_contacts c ON c.id = m.enrolment_id"
        )
        return [tuple(row) for row in rows]


@pytest.fixture
async def stage(database_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stage]:
    """A world without leads."""
    monkeypatch.setattr(completer, "_RETRY_PAUSE_S", 0.0)
    monkeypatch.setattr(logging.getLogger("dispatcher"), "disabled", True)
    person = await connect(database_url)
    await stamp(person, "rehearsal", clock_us=START_US)
    await person.execute(MADE)
    pool = await open_pool(database_url, size=6)
    yield Stage(pool, person)
    pool.terminate()
    await person.close()
