"""Databases for the parts that measure the stores: one fleet, made by SQL, copied where it is needed again."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import asyncpg
import numpy as np

from bench.bench import Bench
from dispatcher.core.batches import Int64s, Leased
from dispatcher.core.fleet import Fleet
from dispatcher.core.leases import Want
from dispatcher.core.moments import SECOND_US, from_datetime, span_us
from dispatcher.intake.sequences import apply
from dispatcher.store.connect import connect, open_pool
from dispatcher.store.coordinator_store import PostgresCoordinatorStore
from dispatcher.store.embedded import EmbeddedServer
from dispatcher.store.shard_store import PostgresShardStore
from dispatcher.store.stamp import require_rehearsal
from simulate.examples import builtin
from simulate.population import DeviceGroup, create_devices
from simulate.rehearsal import START

NOW_US: Final = from_datetime(START) + span_us(12 * 3600)
"""Noon: the last 24 hours lie in two partitions of the ledger."""
HOUR_US: Final = span_us(3600)
DEADLINE_US: Final = span_us(30)
SHARDS: Final = 10
DEVICES: Final = 300
"""Of a shard."""
_GAP_US: Final = 5 * SECOND_US
_PER_DEVICE: Final = 10 / 3
"""Slots a claim offers on a device: 1000 on 300."""


Load = Callable[[asyncpg.Connection, int, int], Awaitable[None]]


def devices_of(bench: Bench, least: int) -> int:
    """Devices of a shard, fewer where even the smallest table, of ``least`` rows, could not give each ten."""
    return min(DEVICES, max(round(DEVICES * bench.scale), least // (10 * SHARDS)))


def database_of(label: str) -> str:
    """The name of the database that holds what ``label`` says."""
    return "at_" + label.replace(" ", "_")


class Databases:
    """The databases of a server by name.

    Args:
        server: where they are.
        devices: of a shard.
    """

    def __init__(self, server: EmbeddedServer, devices: int) -> None:
        self._server, self._devices = server, devices

    def url(self, name: str) -> str:
        """Where it is."""
        return self._server.url(name)

    async def new(self, name: str) -> str:
        """An empty rehearsal with the fleet and the sequences of the examples; returns its URL."""
        await self.drop(name)
        await self._administer(f"CREATE DATABASE {name}")
        async with connected(self.url(name)) as connection:
            await require_rehearsal(connection, False, clock_us=NOW_US)
            await apply(connection, builtin())
            await create_devices(connection, DeviceGroup(SHARDS * self._devices))
            await connection.execute("UPDATE devices SET shard_id = (number - 1) % $1", SHARDS)
        return self.url(name)

    async def copied(self, source: str, name: str) -> str:
        """``source`` as it is, file by file, while nobody is connected to it; returns the copy's URL."""
        await self.drop(name)
        await self._administer(f"CREATE DATABASE {name} TEMPLATE {source} STRATEGY file_copy")
        return self.url(name)

    async def grow(self, name: str, sizes: Mapping[str, int], load: Load) -> None:
        """Load ``name`` up to each of ``sizes`` by label, the smallest first, and keep every size as a database.

        Args:
            load: called with a connection, the first and the last row that is wanted.
        """
        rows, label = 0, ""
        for larger, total in sorted(sizes.items(), key=lambda size: size[1]):
            if label:
                await self.copied(name, database_of(label))
            async with connected(self.url(name)) as connection:
                await load(connection, rows + 1, total)
                await connection.execute("VACUUM ANALYZE")
            rows, label = total, larger
        await self.drop(database_of(label))
        await self._administer(f"ALTER DATABASE {name} RENAME TO {database_of(label)}")

    async def drop(self, name: str) -> None:
        """Give the database up, if there is one."""
        await self._administer(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    async def _administer(self, sql: str) -> None:
        async with connected(self.url("postgres")) as connection:
            await connection.execute(sql)


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[asyncpg.Connection]:
    """A person's connection."""
    connection = await connect(url)
    try:
        yield connection
    finally:
        await connection.close()


@asynccontextmanager
async def temporary(server: EmbeddedServer, name: str) -> AsyncIterator[str]:
    """An empty database of that name, which is dropped again; its URL."""
    async with connected(server.url("postgres")) as connection:
        await connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        await connection.execute(f"CREATE DATABASE {name}")
        try:
            yield server.url(name)
        finally:
            await connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@dataclass(frozen=True, slots=True)
class Installation:
    """The stores of a coordinator and of all shards on one engine connection, with their epochs in force."""

    pool: asyncpg.Pool
    fleet: Fleet
    coordinator: PostgresCoordinatorStore
    epoch: int
    shards: list[PostgresShardStore]
    shard_epochs: list[int]
    next_due_us: Int64s
    """What was due first of each device at the takeover; nothing is due earlier since."""

    def want(self, shard: int) -> Want:
        """A thousand slots over the 300 devices of ``shard``, three or four on each, 5 s apart."""
        fleet = self.fleet.of_shard(shard)
        rows = round(len(fleet) * _PER_DEVICE)
        slots = np.full(len(fleet), rows // len(fleet), np.int32)
        slots[: rows - int(slots.sum())] += 1
        rank = np.arange(rows) - np.repeat(np.cumsum(slots) - slots, slots)
        slot_us = NOW_US + rank * _GAP_US
        since_us = np.minimum(self.next_due_us[self.fleet.rows(fleet.number)], NOW_US)
        return Want(shard, self.shard_epochs[shard], fleet.device_id, fleet.number, slots, slot_us, since_us)

    async def claim(self, want: Want) -> Leased | None:
        """What is due now, leased to the slots of ``want``."""
        return await self.coordinator.claim(want, NOW_US, epoch=self.epoch, deadline_us=DEADLINE_US, lead_fields=False)


@asynccontextmanager
async def installed(url: str) -> AsyncIterator[Installation]:
    """An installation that has just taken over."""
    pool = await open_pool(url, size=1)
    try:
        coordinator = PostgresCoordinatorStore(pool, "bench")
        shards = [PostgresShardStore(pool, shard, "bench") for shard in range(SHARDS)]
        epoch = await coordinator.seat.raise_epoch()
        await coordinator.begin_day(NOW_US, 1, 24 * HOUR_US)
        epochs = [await shard.seat.raise_epoch() for shard in shards]
        fleet = await coordinator.fleet()
        next_due_us = await coordinator.next_due(fleet.device_id)
        yield Installation(pool, fleet, coordinator, epoch, shards, epochs, next_due_us)
    finally:
        pool.terminate()
