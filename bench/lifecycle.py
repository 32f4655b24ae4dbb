"""What a send costs, statement by statement: ``python -m bench.lifecycle``.

The services of production on a scratch PostgreSQL with durable settings, in this process and without Ray; every message
is accepted at once. The first table comes from one statement at a time, so that wall time and WAL are the statement's
own; the last lines from a run of its own with the shards side by side, as they are in production.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, cast

import asyncpg
import numpy as np
import psutil

from dispatcher.config import Settings, load_settings
from dispatcher.coordinator import Coordinator
from dispatcher.core.batches import DueSoon, Int8s, Int32s, Int64s, Leased, Outcomes, Outgoing, SlotOffer
from dispatcher.core.fleet import Fleet, Gateway
from dispatcher.core.moments import NEVER_US, from_datetime
from dispatcher.core.outcomes import Outcome
from dispatcher.intake.sequences import apply
from dispatcher.ports import CoordinatorStore, ShardStore
from dispatcher.shard import Shard
from dispatcher.store.connect import connect, open_pool
from dispatcher.store.coordinator_store import PostgresCoordinatorStore
from dispatcher.store.embedded import EmbeddedServer
from dispatcher.store.shard_store import PostgresShardStore
from dispatcher.store.stamp import require_rehearsal
from simulate.examples import builtin
from simulate.population import create_devices, create_leads
from simulate.rehearsal import START
from simulate.scratch import scratch_server

START_US: Final = from_datetime(START)
TICK_US: Final = 30_000_000
SHARDS: Final = 10
CONNECTIONS: Final = 3
PER_SEND: Final = ("claim", "last_look", "end")
"""The statements of a send; the others are shown together."""


@dataclass
class Cost:
    """Of one statement."""

    calls: int = 0
    seconds: float = 0.0
    wal_bytes: int = 0


@dataclass
class Meter:
    """Counts statements; with a ``connection`` they come one at a time, and their WAL is counted too."""

    connection: asyncpg.Connection | None
    costs: defaultdict[str, Cost] = field(default_factory=lambda: defaultdict(Cost))
    one: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def run(self, name: str, call: Callable[[], Awaitable[Any]]) -> Any:
        """``call``, counted under ``name``."""
        cost = self.costs[name]
        if self.connection is None:
            cost.calls += 1
            return await call()
        async with self.one:
            before = await wal_position(self.connection)
            started = time.perf_counter()
            found = await call()
            cost.seconds += time.perf_counter() - started
            cost.wal_bytes += await wal_position(self.connection) - before
            cost.calls += 1
            return found


class Metered:
    """A store whose statements a meter sees."""

    def __init__(self, store: Any, meter: Meter) -> None:
        self._store, self._meter = store, meter
        self.seat = store.seat

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        method = getattr(self._store, name)

        async def call(*arguments: Any, **named: Any) -> Any:
            return await self._meter.run(name, lambda: method(*arguments, **named))

        return call


class Accepting:
    """The ``Sender`` port to a gateway that accepts everything at its slot."""

    async def send(self, batch: Outgoing) -> AsyncIterator[Outcomes]:
        """All at once."""
        rows = len(batch)
        nothing: list[str | None] = [None] * rows
        ids: list[str | None] = [f"m{row}" for row in range(rows)]
        accepted = np.full(rows, int(Outcome.ACCEPTED), np.int8)
        yield Outcomes(np.arange(rows), accepted, batch.slot_us, ids, nothing, np.full(rows, np.nan))

    def update(self, gateways: Mapping[int, Gateway]) -> None:
        """There is one gateway."""

    async def close(self) -> None:
        """Nothing is kept open."""


class LocalShards:
    """The ``Shards`` port to shards in this process, as a rehearsal drives them."""

    def __init__(self, shards: list[Shard]) -> None:
        self.shards = shards
        self.handed = 0
        self._now_us = self._until_us = 0

    async def offer(self, shard: int, now_us: int, horizon_us: int, devices: Int32s) -> SlotOffer:
        """See ``Shard.offer``."""
        own = self.shards[shard]
        await own.refresh()
        self._now_us, self._until_us = now_us, now_us + horizon_us
        while not own.trusted:
            await own.beat()
        return own.offer(now_us, horizon_us, devices)

    async def deliver(self, shard: int, offer: int, leased: Leased | None) -> DueSoon:
        """Hand over and write everything before this returns."""
        own = self.shards[shard]
        own.deliver(offer, leased)
        if leased is not None:
            done = await own.hand_over(self._now_us, self._until_us)
            self.handed += done.handed
            await own.complete(self._until_us)
        return own.take_due()

    async def take_due(self, shard: int) -> DueSoon:
        """See ``Shard.take_due``."""
        return self.shards[shard].take_due()

    async def fate(self, shard: int, token: Int64s, epoch: Int64s, enrolment: Int64s) -> Int8s:
        """See ``Shard.fate``."""
        return self.shards[shard].fate(token, epoch, enrolment)


@dataclass(frozen=True)
class Figures:
    """Of one run."""

    sends: int
    wall_s: float
    postgresql_cpu_us: float
    """A send."""
    process_cpu_us: float
    """A send, of this process: coordinator and shards."""
    wal_bytes: float
    """A send."""
    statements: float
    """A thousand sends."""


async def wal_position(connection: asyncpg.Connection) -> int:
    """Bytes of WAL written so far."""
    return int(await connection.fetchval("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn"))


def cpu_s(pid: int) -> float:
    """CPU seconds of the server so far, its ended children included."""
    server = psutil.Process(pid)
    times = [process.cpu_times() for process in (server, *server.children())]
    own = server.cpu_times()
    return sum(each.user + each.system for each in times) + own.children_user + own.children_system


async def lifecycle(server: EmbeddedServer, leads: int, devices: int, alone: bool) -> tuple[Figures, Meter]:
    """Send everything ``leads`` carry, from the first enrolment's due moment to the last completion."""
    url = server.url()
    async with AsyncExitStack() as stack:
        connection = await connect(url)
        stack.push_async_callback(connection.close)
        await require_rehearsal(connection, True, hour_s=3600, clock_us=START_US)
        sequences = builtin()
        await apply(connection, sequences)
        await create_devices(connection, devices)
        meter = Meter(connection if alone else None)
        settings = load_settings(database_url=url, horizon_s=TICK_US / 1e6)
        coordinator, shards = await _services(stack, url, settings, meter)
        entries = sorted(step.trigger for sequence in sequences for step in sequence.steps if step.is_entry)
        now_us = START_US
        while (await coordinator.run_once(now_us, 1)).enrol.more:
            pass  # entries are open before the first lead comes
        await create_leads(connection, leads, entries, 1, lambda _: None)
        await connection.execute("ANALYZE leads")
        while (done := await coordinator.run_once(now_us, 1)).enrol.more:
            pass
        await connection.execute("CHECKPOINT")
        meter.costs.clear()
        assert server.pid is not None
        before = await wal_position(connection), cpu_s(server.pid), time.process_time(), time.perf_counter()
        while True:
            done = await coordinator.run_once(now_us, TICK_US)
            if done.next_us >= NEVER_US:
                break
            now_us = START_US + -(-(max(done.next_us, now_us + 1) - START_US) // TICK_US) * TICK_US
        sends = shards.handed
        wall_s, process_s = time.perf_counter() - before[3], time.process_time() - before[2]
        figures = Figures(
            sends=sends,
            wall_s=round(wall_s, 2),
            postgresql_cpu_us=round((cpu_s(server.pid) - before[1]) / sends * 1e6, 2),
            process_cpu_us=round(process_s / sends * 1e6, 2),
            wal_bytes=round((await wal_position(connection) - before[0]) / sends, 1),
            statements=round(sum(cost.calls for cost in meter.costs.values()) / sends * 1000, 2),
        )
    return figures, meter


async def _services(
    stack: AsyncExitStack, url: str, settings: Settings, meter: Meter
) -> tuple[Coordinator, LocalShards]:
    async def pool() -> asyncpg.Pool:
        opened = await open_pool(url, size=CONNECTIONS)
        stack.callback(opened.terminate)
        return opened

    def sender(_: Fleet) -> Accepting:
        return Accepting()

    store = Metered(PostgresCoordinatorStore(await pool(), "bench"), meter)
    shared = await pool()
    shards = LocalShards(
        [
            Shard(n, settings, cast(ShardStore, Metered(PostgresShardStore(shared, n, "bench"), meter)), sender)
            for n in range(SHARDS)
        ]
    )
    coordinator = Coordinator(settings, cast(CoordinatorStore, store), shards)
    await coordinator.take_over(START_US, SHARDS)
    for shard in shards.shards:
        await shard.take_over(START_US)
    return coordinator, shards


def show(figures: Figures, meter: Meter) -> None:
    """The table of a run with one statement at a time."""
    print(f"{'':24}{'calls':>8}{'µs a send':>12}{'WAL B a send':>14}")
    others = Cost()
    for name, cost in sorted(meter.costs.items(), key=lambda item: -item[1].seconds):
        if name in PER_SEND:
            _line(name, cost, figures.sends)
        else:
            others.calls, others.seconds = others.calls + cost.calls, others.seconds + cost.seconds
            others.wal_bytes += cost.wal_bytes
    _line("all others", others, figures.sends)


def _line(name: str, cost: Cost, sends: int) -> None:
    print(f"{name:24}{cost.calls:8,}{cost.seconds / sends * 1e6:12.2f}{cost.wal_bytes / sends:14.0f}")


async def main() -> None:
    """Both runs, each on a server of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--leads", type=int, default=100_000)
    parser.add_argument("--devices", type=int, default=3000)
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    found: dict[str, Any] = {}
    for alone in (True, False):
        with (
            tempfile.TemporaryDirectory(prefix="dripline-") as place,
            scratch_server(Path(place), keep=False) as server,
        ):
            figures, meter = await lifecycle(server, options.leads, options.devices, alone)
        if alone:
            show(figures, meter)
            found["statements"] = {name: asdict(cost) for name, cost in meter.costs.items()}
        else:
            found["side_by_side"] = asdict(figures)
            print(
                f"\nside by side: {figures.sends:,} sends in {figures.wall_s} s,"
                f" {figures.sends / figures.wall_s:,.0f} a second; a send: {figures.postgresql_cpu_us} µs CPU of"
                f" PostgreSQL and {figures.process_cpu_us} µs of this process, {figures.wal_bytes:,} B of WAL;"
                f" {figures.statements} statements a thousand sends"
            )
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    asyncio.run(main())
