"""The services of production on one PostgreSQL, with the referee of a rehearsal, in this process and without Ray."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, AsyncExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

import asyncpg

from bench.costs import Figures, Meter, wal_position
from dispatcher.config import Settings, load_settings
from dispatcher.coordinator import Coordinator
from dispatcher.core.batches import DueSoon, Int8s, Int32s, Int64s, Leased, SlotOffer
from dispatcher.core.fleet import Fleet
from dispatcher.core.moments import NEVER_US, from_datetime
from dispatcher.intake.sequences import apply
from dispatcher.ports import CoordinatorStore, ShardStore
from dispatcher.shard import Shard
from dispatcher.store.connect import connect, open_pool
from dispatcher.store.coordinator_store import PostgresCoordinatorStore
from dispatcher.store.embedded import EmbeddedServer
from dispatcher.store.shard_store import PostgresShardStore
from dispatcher.store.stamp import require_rehearsal
from simulate.examples import builtin
from simulate.population import DeviceGroup, create_devices, create_leads
from simulate.referee import Answers, Behaviour, Referee, Requests
from simulate.rehearsal import START, rehearsing
from simulate.sender import RefereeSender

START_US: Final = from_datetime(START)
TICK_US: Final = 30_000_000
SHARDS: Final = 10
CONNECTIONS: Final = 3


@dataclass
class Cost:
    """Of one statement."""

    calls: int = 0
    seconds: float = 0.0
    wal_bytes: int = 0


@dataclass
class Tally:
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
    """A store whose statements are counted."""

    def __init__(self, store: Any, tally: Tally) -> None:
        self._store, self._tally = store, tally
        self.seat = store.seat

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        method = getattr(self._store, name)

        async def call(*arguments: Any, **named: Any) -> Any:
            return await self._tally.run(name, lambda: method(*arguments, **named))

        return call


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

    async def refresh(self, shard: int) -> None:
        """See ``Shard.refresh``."""
        await self.shards[shard].refresh()

    async def fate(self, shard: int, token: Int64s, epoch: Int64s, enrolment: Int64s) -> Int8s:
        """See ``Shard.fate``."""
        return self.shards[shard].fate(token, epoch, enrolment)


async def send_all(
    server: EmbeddedServer, leads: int, devices: int, alone: bool, around: AbstractContextManager[None] | None = None
) -> tuple[Figures, Tally]:
    """Send everything ``leads`` carry, from the first enrolment's due moment to the last completion.

    Args:
        alone: one statement at a time.
        around: entered for the sending alone, when everything stands and all connections are open.
    """
    url = server.url()
    async with AsyncExitStack() as stack:
        connection = await connect(url)
        stack.push_async_callback(connection.close)
        await require_rehearsal(connection, True, hour_s=3600, clock_us=START_US)
        sequences = builtin()
        await apply(connection, sequences)
        await create_devices(connection, DeviceGroup(devices))
        tally = Tally(connection if alone else None)
        settings = rehearsing(load_settings(), url, TICK_US / 1e6)
        coordinator, shards, pools = await _services(stack, url, settings, tally)
        entries = sorted(step.trigger for sequence in sequences for step in sequence.steps if step.is_entry)
        now_us = START_US
        while (await coordinator.run_once(now_us, 1)).enrol.more:
            pass  # entries are open before the first lead comes
        await create_leads(connection, leads, entries, 1)
        await connection.execute("ANALYZE leads")
        while (done := await coordinator.run_once(now_us, 1)).enrol.more:
            pass
        await connection.execute("CHECKPOINT")
        tally.costs.clear()
        assert server.pid is not None
        meter = await Meter.begin(connection, server.pid, pools)
        with around or nullcontext():
            while (done := await coordinator.run_once(now_us, TICK_US)).next_us < NEVER_US:
                now_us = START_US + -(-(max(done.ask_us, now_us + 1) - START_US) // TICK_US) * TICK_US
        statements = sum(cost.calls for cost in tally.costs.values())
        figures = await meter.end(connection, shards.handed, statements)
    return figures, tally


async def _services(
    stack: AsyncExitStack, url: str, settings: Settings, tally: Tally
) -> tuple[Coordinator, LocalShards, Sequence[asyncpg.Pool]]:
    pools = [await open_pool(url, size=CONNECTIONS) for _ in range(2)]
    for pool in pools:
        stack.callback(pool.terminate)
    own, shared = pools

    spool = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dripline-"))) / "receipts.bin"
    referee = Referee(1, spool, Behaviour())

    async def submit(requests: Requests) -> Answers:
        return referee.submit(requests)

    def sender(_: Fleet) -> RefereeSender:
        return RefereeSender(submit)

    store = Metered(PostgresCoordinatorStore(own, "bench"), tally)
    shards = LocalShards(
        [
            Shard(n, settings, cast(ShardStore, Metered(PostgresShardStore(shared, n, "bench"), tally)), sender)
            for n in range(SHARDS)
        ]
    )
    coordinator = Coordinator(settings, cast(CoordinatorStore, store), shards)
    await coordinator.take_over(START_US, SHARDS)
    for shard in shards.shards:
        await shard.take_over(START_US)
    return coordinator, shards, pools
