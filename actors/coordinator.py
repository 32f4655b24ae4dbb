"""``Coordinator``: the coordinator's process, which also watches over the shards."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from dataclasses import dataclass

import asyncpg
import ray

from actors.shards import RayShards
from dispatcher import coordinator as service
from dispatcher import logs
from dispatcher.clock import READINGS, DatabaseClock
from dispatcher.config import Settings
from dispatcher.coordinator import Pass
from dispatcher.coordinator_loop import CoordinatorLoop
from dispatcher.errors import StoreError
from dispatcher.loops import Loops
from dispatcher.store.connect import connect, open_pool
from dispatcher.store.coordinator_store import PostgresCoordinatorStore

_log = logging.getLogger(__name__)
_PAUSE_S = 0.5
_CONNECTIONS = 4


@dataclass(frozen=True, slots=True)
class ShardNames:
    """How the coordinator finds its shards."""

    namespace: str
    names: list[str]
    answer_s: float
    """How long one may take to answer."""


@dataclass(frozen=True, slots=True)
class CoordinatorFigures:
    """What one incarnation of the coordinator has done so far."""

    epoch: int
    """0 while it does not lead, -1 when this incarnation has ended."""
    enrolled: int
    claimed: int
    ahead_s: float
    """Until the next pass, as far as is known."""


class Coordinator:
    """The coordinator's process. The constructor touches nothing outside.

    Args:
        settings: with the database's URL.
        holder: names the installation; its leadership survives a restart of this process.
        shards: where the shards are.
        virtual: whether business time comes with every call (a rehearsal) instead of from the database.
    """

    def __init__(self, settings: Settings, holder: str, shards: ShardNames, virtual: bool) -> None:
        logs.configure("text" if settings.log == "auto" else settings.log, "coordinator")
        self._settings, self._holder, self._names, self._virtual = settings, holder, shards, virtual
        self._shards = RayShards(shards.names, shards.namespace, shards.answer_s)
        self._clock = DatabaseClock(settings.skew_s)
        self._loop: CoordinatorLoop | None = None
        self._beside = Loops("the coordinator")
        self._busy = asyncio.Lock()
        self._starting = asyncio.Lock()
        self._draining = False

    # Life ----------------------------------------------------------------------------------------------------

    async def ready(self, now_us: int | None = None) -> int:
        """Lead, trying until PostgreSQL answers and no other installation leads; returns the epoch.

        In a rehearsal a coordinator that leads already looks every due moment up again.

        Args:
            now_us: virtual time, in a rehearsal.

        Raises:
            StoreUnavailableError: PostgreSQL did not answer, in a rehearsal.
        """
        async with self._starting:
            if self._virtual and self._loop is not None:
                await self._loop.own.probe()
            while self._loop is None:
                try:
                    await self._start(now_us)
                except StoreError as error:
                    _log.warning("waits for the database: %s", error, extra={"event": "database_away"})
                    await asyncio.sleep(_PAUSE_S)
        return self._loop.epoch

    async def _start(self, now_us: int | None) -> None:
        assert self._settings.database_url is not None
        pool = await open_pool(
            self._settings.database_url,
            size=_CONNECTIONS,
            application_name="dripline coordinator",
            planner_hints=True,
        )
        store = PostgresCoordinatorStore(pool, self._holder)
        coordinator = service.Coordinator(self._settings, store, self._shards)
        try:
            while not await coordinator.lead():
                await asyncio.sleep(_PAUSE_S)
            if now_us is None:
                await self._clock.follow(store.seat.wall_us, READINGS)
            await coordinator.take_over(self._clock.now_us() if now_us is None else now_us, len(self._names.names))
        except BaseException:
            await store.close()
            raise
        self._loop = CoordinatorLoop(
            coordinator, self._clock, self._settings, ping=self._ping_shard, replace=self._replace_shard
        )
        _log.info("leads, epoch %d, %d shards", coordinator.epoch, coordinator.shards, extra={"event": "leads"})
        if self._virtual:
            self._loop.keep_leading()
        else:
            self._loop.start()
            self._beside.start(self._listen(self._loop))

    async def _ping_shard(self, shard: int) -> int:
        return await self._shards.ping(shard, self._settings.heartbeat_s)

    async def _replace_shard(self, shard: int) -> None:
        with contextlib.suppress(ValueError):  # there is nobody of that name to end
            await self._shards.replace(shard)

    async def ping(self) -> int:
        """The epoch; 0 while it does not lead, -1 when this incarnation has ended and waits to be replaced."""
        if self._beside.broken:
            return -1
        if self._loop is None and not (self._virtual or self._draining or self._starting.locked()):
            self._beside.start(self.ready())
        return self._loop.epoch if self._loop is not None else 0

    async def figures(self) -> CoordinatorFigures:
        """What this incarnation has done so far, for those who watch."""
        epoch, loop = await self.ping(), self._loop
        if loop is None:
            return CoordinatorFigures(epoch, 0, 0, 0.0)
        return CoordinatorFigures(epoch, loop.enrolled, loop.claimed, loop.ahead_s)

    def pid(self) -> int:
        """The process, for those who test what happens when it dies."""
        return os.getpid()

    async def tick(self, now_us: int, until_us: int) -> Pass:
        """One pass over virtual time: everything claimed has been sent and written when this returns."""
        async with self._busy:
            if self._loop is None:
                raise RuntimeError("this coordinator does not lead")
            return await self._loop.own.run_once(now_us, until_us - now_us)

    async def drain(self) -> None:
        """Stop claiming; a pass under way ends first. Leadership stays, so that nobody takes the shards over yet."""
        self._draining = True
        if self._loop is not None:
            await self._loop.drain()
        async with self._busy:
            return

    async def leave(self) -> None:
        """Give leadership up."""
        self._beside.cancel()
        loop, self._loop = self._loop, None
        if loop is not None:
            await loop.leave()

    async def _listen(self, loop: CoordinatorLoop) -> None:
        """Wake on NOTIFY; what is missed is seen after a cycle."""
        assert self._settings.database_url is not None
        while True:
            try:
                connection = await connect(self._settings.database_url, application_name="dripline wake")
                try:
                    await connection.add_listener("dripline_wake", lambda *_: loop.wake())
                    loop.wake()
                    while not connection.is_closed():
                        await asyncio.sleep(_PAUSE_S)
                finally:
                    connection.terminate()
            except (StoreError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
                _log.warning(
                    "not listening, wakes after a cycle at latest: %s", error, extra={"event": "not_listening"}
                )
            await asyncio.sleep(_PAUSE_S)


RemoteCoordinator = ray.remote(max_restarts=-1, max_task_retries=0, num_cpus=0)(Coordinator)
