"""The claim by table size, behind churn and behind a blocked backlog.

A claim offers 1000 slots, three or four on each of the 300 devices of a shard, through the coordinator's store; what it
leased is given back by the rescuer's statement, so that every claim sees the same state. The texts read no fields of
leads. Six of ten enrolments are due, each device's spread over six hours and over the whole table.

*Fresh* tables are loaded by SQL and vacuumed. *Churn* is an hour of the fleet at its limit of 83/s: 300,000 claims and
accepted ends through the real statements, shard after shard, as fast as they go, so that autovacuum has a hundredth of
the time it has in life; during the second third somebody's report holds a snapshot. *Blocked* are ten of eleven
enrolments on the same devices: of a paused sequence and longer overdue than all others, before and after the engine's
passes have held them, or due tomorrow. Autovacuum is off on every table while it is measured: no state may change
between two rounds. The first claims of each connection, until PostgreSQL plans no more, are not counted.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Final

import asyncpg
import numpy as np

from bench.accepting import accepted
from bench.bench import Bench
from bench.databases import (
    DEADLINE_US,
    HOUR_US,
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
from dispatcher.completer import ends_of
from dispatcher.config import Settings, load_settings
from dispatcher.core.batches import Leased
from dispatcher.core.catalogue import Catalogue
from dispatcher.core.identity import idempotency_keys

SIZES: Final = {"100 thousand": 100_000, "1 million": 1_000_000, "5 million": 5_000_000, "10 million": 10_000_000}
CHURN: Final = 300_000
BLOCKED: Final = 1_000_000
CHURNED: Final = "1 million"
BACKLOGGED: Final = "100 thousand"
BEHIND: Final = {
    "paused": "behind 1 million of a paused sequence, not held yet",
    "held": "behind 1 million of a paused sequence, held",
    "future": "beside 1 million that are due tomorrow",
}
AFTER_CHURN: Final = "after an hour of churn, 1 million"
_CLAIMS: Final = 5
"""A round."""
_UNCOUNTED: Final = 6
_HOLD_ROWS: Final = 50_000
_FUTURE_LEADS: Final = 100_000_000
_FILL: Final = """
INSERT INTO sequence_contacts (sequence_id, lead_id, contact_phone, entry_trigger, current_trigger, home_device_id,
                               next_trigger_time)
SELECT s.sequence_id, n, '999' || n, s.trigger, s.trigger, d.id,
       dripline_at($4::bigint + floor($5::double precision * (place - floor(place)))::bigint)
FROM generate_series($2::bigint, $3::bigint) n
CROSS JOIN (SELECT count(*) AS devices FROM devices) f
JOIN devices d ON d.number = 1 + (n - 1) % f.devices
JOIN sequence_steps s ON s.trigger = $1
CROSS JOIN LATERAL (
    SELECT (n - 1) / f.devices * 0.6180339887498949::double precision + d.number * 0.4142135623730951::double precision
           AS place) p
"""
"""Enrolments $2 to $3 at the step $1, due from $4 on within $5 µs: evenly on each device, in no order of the table."""


async def measure(bench: Bench) -> Part:
    """Claims of all states, taking turns."""
    sizes = {name: bench.size(rows) for name, rows in SIZES.items()}
    with bench.server() as server:
        databases = Databases(server, devices_of(bench, min(sizes.values())))
        states = await fresh(bench, databases, sizes)
        churned = await churn(bench, databases, sizes[CHURNED])
        states |= {AFTER_CHURN: churned.url, **await blocked(bench, databases)}
        async with AsyncExitStack() as stack:
            claims = {name: await stack.enter_async_context(claiming(url)) for name, url in states.items()}
            found = await bench.interleaved({name: claim.round for name, claim in claims.items()})
            counts = {name: await claim.counts() for name, claim in claims.items()}
    part = Part(
        [
            Measure(name, "ms", tuple(ms for round_ms in rounds for ms in round_ms), counts[name])
            for name, rounds in found.items()
        ]
    )
    part.measures.append(churned.beside_snapshot)
    part.ratios += _ratios(part)
    part.remarks.append(
        f"Enrolments {', '.join(f'{rows:,}' for rows in sizes.values())}; churn of {churned.rows:,}; "
        f"{bench.size(BLOCKED):,} blocked, measured against {BACKLOGGED} fresh ones. The ratio behind blocked contacts "
        "is that of the slowest of the three."
    )
    return part


def _ratios(part: Part) -> list[Ratio]:
    def share(name: str, of: str) -> float:
        return part.of(name).median / part.of(of).median

    return [
        Ratio("claim of 1000 at 10 M rows ÷ at 1 M", share("10 million", "1 million"), 1.3, 1.1, below=True),
        Ratio("claim after an hour of churn ÷ fresh", share(AFTER_CHURN, CHURNED), 1.5, 1.2, below=True),
        Ratio(
            "claim behind 1 M blocked contacts ÷ without",
            max(share(name, BACKLOGGED) for name in BEHIND.values()),
            1.5,
            1.2,
            below=True,
        ),
    ]


# States --------------------------------------------------------------------------------------------------------------


async def fresh(bench: Bench, databases: Databases, sizes: dict[str, int]) -> dict[str, str]:
    """One database grown from size to size, with a copy of each on the way; URLs by size."""

    async def load(connection: asyncpg.Connection, first: int, last: int) -> None:
        bench.say(f"loading {last:,} enrolments")
        await connection.execute(_FILL, "fitness_start", first, last, NOW_US - 6 * HOUR_US, 10 * HOUR_US)

    await databases.new("grown")
    await databases.grow("grown", sizes, load)
    return {name: databases.url(database_of(name)) for name in sizes}


@dataclass(frozen=True, slots=True)
class Churned:
    """A database after its hour."""

    url: str
    rows: int
    """Claims and ends."""
    beside_snapshot: Measure


async def churn(bench: Bench, databases: Databases, rows: int) -> Churned:
    """Claims and ends on a copy of the fresh table; at most half of what is due, as at the documented size."""
    url = await databases.copied(database_of(CHURNED), "churned")
    goal = min(bench.size(CHURN), rows * 3 // 10)
    bench.say(f"{goal:,} claims and ends")
    took_ms: list[float] = []
    done = 0
    async with installed(url) as installation:
        life = Life(installation, await installation.shards[0].catalogue(), load_settings())
        for third in range(3):
            async with snapshot(url) if third == 1 else nullcontext():
                while True:
                    claim_ms, ended = await life.run_once()
                    done += ended
                    if third == 1:
                        took_ms.append(claim_ms)
                    if done >= goal * (third + 1) // 3:
                        break
    note = f"the churn's own {len(took_ms)} claims"
    return Churned(url, done, Measure("during the churn, beside an open snapshot", "ms", tuple(took_ms), note=note))


@dataclass
class Life:
    """Claims and their ends, shard after shard."""

    installation: Installation
    catalogue: Catalogue
    settings: Settings
    _turn: int = field(default=0)

    async def run_once(self) -> tuple[float, int]:
        """One claim, all accepted at their slots: the claim's milliseconds and its rows."""
        shard = self._turn % SHARDS
        self._turn += 1
        begun_s = time.perf_counter()
        leased = await self.installation.claim(self.installation.want(shard))
        claim_ms = (time.perf_counter() - begun_s) * 1000
        assert leased is not None, "the churn has claimed more than was due"
        keys = idempotency_keys(leased.enrolment, leased.visit, leased.generation)
        idempotent = np.ones(len(leased), np.bool_)
        ends = ends_of(leased, keys, accepted(leased.slot_us), None, self.catalogue, idempotent, self.settings)
        await self.installation.shards[shard].end(ends, NOW_US, epoch=leased.epoch, deadline_us=DEADLINE_US)
        return claim_ms, len(leased)


@asynccontextmanager
async def snapshot(url: str) -> AsyncIterator[None]:
    """Somebody's long report: whatever ends meanwhile cannot be cleaned away."""
    async with connected(url) as connection, connection.transaction(isolation="repeatable_read", readonly=True):
        await connection.fetchval("SELECT count(*) FROM sequences")
        yield


async def blocked(bench: Bench, databases: Databases) -> dict[str, str]:
    """The smallest table with a backlog that may not be sent; URLs by state."""
    rows = bench.size(BLOCKED)
    bench.say(f"loading {rows:,} blocked enrolments, twice")
    states = {name: await databases.copied(database_of(BACKLOGGED), name) for name in ("paused", "future")}
    async with connected(states["paused"]) as connection:
        await connection.execute(_FILL, "crypto_welcome", 1, rows, NOW_US - 48 * HOUR_US, 24 * HOUR_US)
        await connection.execute("UPDATE sequences SET is_active = false WHERE trigger_prefix = 'crypto_'")
        await connection.execute("VACUUM ANALYZE")
    async with connected(states["future"]) as connection:
        leads = _FUTURE_LEADS + 1, _FUTURE_LEADS + rows
        await connection.execute(_FILL, "fitness_start", *leads, NOW_US + 24 * HOUR_US, 24 * HOUR_US)
        await connection.execute("VACUUM ANALYZE")
    states["held"] = await databases.copied("paused", "held")
    async with installed(states["held"]) as installation:
        catalogue = await installation.coordinator.catalogue(NOW_US)
        (sequence,) = set(catalogue.sequences) - catalogue.usable
        while await installation.coordinator.hold(sequence, _HOLD_ROWS) == _HOLD_ROWS:
            pass
    return {label: states[name] for name, label in BEHIND.items()}


# Claims --------------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def claiming(url: str) -> AsyncIterator[Claiming]:
    """A claimant of one database, warm."""
    async with connected(url) as connection:
        await connection.execute("ALTER TABLE sequence_contacts SET (autovacuum_enabled = false)")
    async with installed(url) as installation:
        claiming = Claiming(installation)
        for _ in range(_UNCOUNTED):
            await claiming.once()
        yield claiming


class Claiming:
    """Claims of the first shard that are given back.

    Args:
        installation: the stores of one database.
    """

    def __init__(self, installation: Installation) -> None:
        self._installation, self._want = installation, installation.want(0)

    async def round(self) -> list[float]:
        """Milliseconds of each claim."""
        return [await self.once() for _ in range(_CLAIMS)]

    async def once(self) -> float:
        """Milliseconds from the offered slots to the leased rows, committed."""
        begun_s = time.perf_counter()
        leased = await self._installation.claim(self._want)
        took_ms = (time.perf_counter() - begun_s) * 1000
        await self._give_back(leased)
        return took_ms

    async def counts(self) -> dict[str, float]:
        """Of one claim."""
        leased: list[Leased | None] = []

        async def claim() -> None:
            leased.append(await self._installation.claim(self._want))

        runs = await heard(self._installation.pool, claim)
        await self._give_back(leased[0])
        await self._installation.pool.execute("DELETE FROM claims")  # the same claim once more, token and all
        found = await counted(self._installation.pool, runs)
        assert leased[0] is not None
        return {"rows": len(leased[0]), **found}

    async def _give_back(self, leased: Leased | None) -> None:
        assert leased is not None, "nothing is due"
        token = np.full(len(leased), leased.token, np.int64)
        await self._installation.coordinator.return_leases(leased.enrolment, token, 0, NOW_US)
