"""From the trigger to the enrolment, and a pass with nothing to do.

*Bulk*: all leads of a niche are tagged by one statement, the seed's, and the coordinator's passes run until the last of
them is enrolled: the services of production without Ray, with shards that have no slots to offer. The clock starts when
the tagging has committed, since nothing can be enrolled before; what the tagging takes, with and without the engine's
triggers on the table, stands beside it. The *bare* contender is one INSERT ... SELECT into the same table with the same
indexes, from leads tagged in the same way: exact tokens, home devices round about, nobody enrolled before, no queue, no
look at who may be enrolled, no batches. Every turn runs on a fresh copy of the same database.

*Idle*: passes of the enroller over an empty queue, beside leads nobody has tagged.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Final

import asyncpg
import numpy as np

from bench.bench import Bench
from bench.costs import wal_position
from bench.databases import (
    NOW_US,
    SHARDS,
    Databases,
    Installation,
    connected,
    database_of,
    devices_of,
    installed,
)
from bench.figures import Measure, Part, Ratio
from bench.plans import counted, heard
from dispatcher.config import load_settings
from dispatcher.coordinator import Coordinator
from dispatcher.core.batches import DueSoon, Int8s, Int32s, Int64s, Leased, SlotOffer
from dispatcher.core.catalogue import Catalogue
from dispatcher.core.moments import NEVER_US
from dispatcher.enroller import Enroller

BULK: Final = {"1 million": 1_000_000, "5 million": 5_000_000}
IDLE: Final = {"100 thousand": 100_000, "10 million": 10_000_000}
_PASSES: Final = 20
"""A round."""
_UNCOUNTED: Final = 6
_LEADS: Final = """
INSERT INTO leads (phone, name, niche)
SELECT '999' || lpad(n::text, 9, '0'), 'Aisyah', 'fitness' FROM generate_series($1::bigint, $2::bigint) n
"""
_TAG: Final = "UPDATE leads SET trigger = 'fitness_start' WHERE niche = 'fitness'"
_BARE: Final = """
INSERT INTO sequence_contacts (sequence_id, lead_id, contact_phone, entry_trigger, current_trigger, next_trigger_time,
                               enrolled_at, home_device_id)
SELECT e.sequence_id, l.id, l.phone, e.trigger, e.trigger, dripline_at($2::bigint), dripline_at($2::bigint),
       ($1::uuid[])[1 + l.id % array_length($1::uuid[], 1)]
FROM leads l
CROSS JOIN LATERAL unnest(string_to_array(l.trigger, ',')) t(token)
JOIN sequence_steps e ON e.trigger = t.token AND e.is_entry_point
"""


_ENROLLED: Final = """
SELECT (SELECT count(*) FROM leads) AS leads, count(*) AS enrolments, count(DISTINCT lead_id) AS leads_enrolled
FROM sequence_contacts WHERE status = 'active' AND home_device_id IS NOT NULL
"""


class Resting:
    """The ``Shards`` port to shards without free slots."""

    async def offer(self, shard: int, now_us: int, horizon_us: int, devices: Int32s) -> SlotOffer:
        """Nothing."""
        never_us = np.full(len(devices), NEVER_US, np.int64)
        due = await self.take_due(shard)
        return SlotOffer(0, 0, devices, np.zeros(len(devices), np.int32), np.zeros(0, np.int64), never_us, due)

    async def deliver(self, shard: int, offer: int, leased: Leased | None) -> DueSoon:
        """Nothing was claimed."""
        raise AssertionError("a claim without a slot")

    async def take_due(self, shard: int) -> DueSoon:
        """Nothing has ended."""
        return DueSoon(np.zeros(0, np.int32), np.zeros(0, np.int64))

    async def refresh(self, shard: int) -> None:
        """Nothing is kept."""

    async def fate(self, shard: int, token: Int64s, epoch: Int64s, enrolment: Int64s) -> Int8s:
        """Nothing is leased."""
        raise AssertionError("a lease without a claim")


@dataclass(frozen=True, slots=True)
class Bulk:
    """One turn of one contender."""

    enrolled: int
    tagging_s: float
    enrolling_s: float
    wal_bytes: int
    """Of the enrolling."""
    transactions: int

    @property
    def rate(self) -> float:
        """Enrolments a second."""
        return self.enrolled / self.enrolling_s


async def measure(bench: Bench) -> Part:
    """Bulk enrolment against the bare statement, and idle passes."""
    sizes = {name: bench.size(rows) for name, rows in (IDLE | BULK).items()}
    part = Part()
    with bench.server() as server:
        databases = Databases(server, devices_of(bench, min(sizes.values())))
        await load(bench, databases, sizes)
        turns: dict[str, Callable[[], Awaitable[Bulk]]] = {}
        for name in BULK:
            turns[_engine(name)] = partial(by_engine, databases, name)
            turns[_bare(name)] = partial(by_statement, databases, name)
        for name, found in (await bench.interleaved(turns)).items():
            part.measures += _bulk_measures(name, found)
        part.measures += await idle(bench, databases)
    part.ratios += _ratios(part)
    loaded = ", ".join(f"{rows:,}" for rows in sorted(sizes.values()))
    part.remarks.append(f"Leads: {loaded}. The ratio of bulk enrolment is that of the size where it is smaller.")
    return part


async def load(bench: Bench, databases: Databases, sizes: dict[str, int]) -> None:
    """One database grown from size to size, with a copy of each; entries are open and searched for."""
    await databases.new("grown")
    async with installed(databases.url("grown")) as installation:
        await quiet(await coordinating(installation))

    async def load_leads(connection: asyncpg.Connection, first: int, last: int) -> None:
        bench.say(f"loading {last:,} leads")
        await connection.execute("ALTER TABLE leads DISABLE TRIGGER USER")
        await connection.execute(_LEADS, first, last)
        await connection.execute("ALTER TABLE leads ENABLE TRIGGER USER")

    await databases.grow("grown", sizes, load_leads)


async def coordinating(installation: Installation) -> Coordinator:
    """The coordinator's service, in charge; its shards rest."""
    coordinator = Coordinator(load_settings(), installation.coordinator, Resting())
    await coordinator.take_over(NOW_US, SHARDS)
    return coordinator


async def quiet(coordinator: Coordinator) -> tuple[int, int]:
    """Passes until nothing more can be enrolled: how many enrolments, in how many passes."""
    enrolled = passes = 0
    more = True
    while more:
        done = (await coordinator.run_once(NOW_US, 1)).enrol
        enrolled, passes, more = enrolled + done.enrolled, passes + 1, done.more
    return enrolled, passes


# Bulk ----------------------------------------------------------------------------------------------------------------


async def by_engine(databases: Databases, size: str) -> Bulk:
    """Tagging with the queue, then the coordinator's passes."""
    url = await databases.copied(database_of(size), "turn")
    async with installed(url) as installation, connected(url) as connection:
        coordinator = await coordinating(installation)
        tagging_s = await _timed(connection.execute(_TAG))
        before = await wal_position(connection)
        begun_s = time.perf_counter()
        enrolled, passes = await quiet(coordinator)
        enrolling_s = time.perf_counter() - begun_s
        wal_bytes = await wal_position(connection) - before
        await _require(connection, enrolled)
    await databases.drop("turn")
    return Bulk(enrolled, tagging_s, enrolling_s, wal_bytes, passes)


async def by_statement(databases: Databases, size: str) -> Bulk:
    """Tagging without the queue, then one statement."""
    async with connected(await databases.copied(database_of(size), "turn")) as connection:
        await connection.execute("ALTER TABLE leads DISABLE TRIGGER USER")
        tagging_s = await _timed(connection.execute(_TAG))
        devices = await connection.fetchval("SELECT array_agg(id ORDER BY number) FROM devices")
        before = await wal_position(connection)
        begun_s = time.perf_counter()
        done = await connection.execute(_BARE, devices, NOW_US)
        enrolling_s = time.perf_counter() - begun_s
        wal_bytes = await wal_position(connection) - before
        enrolled = int(done.rsplit(" ", 1)[1])
        await _require(connection, enrolled)
    await databases.drop("turn")
    return Bulk(enrolled, tagging_s, enrolling_s, wal_bytes, 1)


async def _timed(statement: Awaitable[object]) -> float:
    begun_s = time.perf_counter()
    await statement
    return time.perf_counter() - begun_s


async def _require(connection: asyncpg.Connection, enrolled: int) -> None:
    """Both contenders must have done the same work."""
    (found,) = await connection.fetch(_ENROLLED)
    assert tuple(found) == (enrolled,) * 3, f"{enrolled} enrolled, but {found}"


def _bulk_measures(name: str, found: list[Bulk]) -> list[Measure]:
    last = found[-1]
    counts = {"WAL B an enrolment": last.wal_bytes / last.enrolled, "transactions": last.transactions}
    rates = tuple(bulk.rate for bulk in found)
    tagged = tuple(bulk.enrolled / bulk.tagging_s for bulk in found)
    return [
        Measure(name, "enrolments/s", rates, counts, f"{last.enrolled:,} leads"),
        Measure(f"{name}: tagging before", "leads/s", tagged),
    ]


def _engine(size: str) -> str:
    return f"engine, {size}"


def _bare(size: str) -> str:
    return f"bare INSERT ... SELECT, {size}"


# Idle ----------------------------------------------------------------------------------------------------------------


async def idle(bench: Bench, databases: Databases) -> list[Measure]:
    """Passes over an empty queue, by number of leads."""
    async with AsyncExitStack() as stack:
        passes = {}
        for name in IDLE:
            installation = await stack.enter_async_context(installed(databases.url(database_of(name))))
            passes[_idle(name)] = await Idling.warm(installation)
        found = await bench.interleaved({name: each.round for name, each in passes.items()})
        counts = {name: await each.counts() for name, each in passes.items()}
    return [
        Measure(name, "ms", tuple(ms for round_ms in rounds for ms in round_ms), counts[name])
        for name, rounds in found.items()
    ]


@dataclass(frozen=True, slots=True)
class Idling:
    """The enroller where nothing is to be done."""

    installation: Installation
    enroller: Enroller
    catalogue: Catalogue

    @classmethod
    async def warm(cls, installation: Installation) -> Idling:
        """After the passes that read the load of the devices and that PostgreSQL still plans."""
        store = installation.coordinator
        idling = cls(installation, Enroller(store, load_settings()), await store.catalogue(NOW_US))
        for _ in range(_UNCOUNTED):
            await idling.once()
        return idling

    async def round(self) -> list[float]:
        """Milliseconds of each pass."""
        return [await self.once() for _ in range(_PASSES)]

    async def once(self) -> float:
        """Milliseconds of one pass."""
        begun_s = time.perf_counter()
        installation = self.installation
        done = await self.enroller.run_once(NOW_US, installation.epoch, self.catalogue, installation.fleet)
        assert (done.taken, done.enrolled, done.more) == (0, 0, False), done
        return (time.perf_counter() - begun_s) * 1000

    async def counts(self) -> dict[str, float]:
        """Of one pass."""
        runs = await heard(self.installation.pool, self.once)
        return {"statements": len(runs), **await counted(self.installation.pool, runs)}


def _idle(size: str) -> str:
    return f"idle pass at {size} leads"


def _ratios(part: Part) -> list[Ratio]:
    bulk = min(part.of(_engine(size)).median / part.of(_bare(size)).median for size in BULK)
    small, large = (part.of(_idle(size)).median for size in IDLE)
    return [
        Ratio("bulk enrolment ÷ the bare INSERT … SELECT with the same indexes", bulk, 0.7, 0.9),
        Ratio("idle enrol pass at 10 M leads ÷ at 100 thousand", large / small, 1.2, 1.0, below=True),
    ]
