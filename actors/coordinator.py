"""``Coordinator``: the coordinator's process, which also watches over the shards."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from dataclasses import dataclass

import ray

from actors.shards import RayShards
from dispatcher import coordinator as service
from dispatcher.clock import DatabaseClock
from dispatcher.config import Settings
from dispatcher.coordinator import Pass
from dispatcher.core.moments import SECOND_US, span_us
from dispatcher.errors import FencedError, ShardUnavailableError, StoreError, StoreUnavailableError
from dispatcher.store.connect import connect, open_pool
from dispatcher.store.coordinator_store import CoordinatorStore

_log = logging.getLogger(__name__)
_PAUSE_S = 0.5
_CONNECTIONS = 4
_MISSES = 3


@dataclass(frozen=True, slots=True)
class ShardNames:
    """How the coordinator finds its shards."""

    namespace: str
    names: list[str]
    answer_s: float
    """How long one may take to answer."""


class Coordinator:
    """The coordinator with its clock and loops. The constructor touches nothing outside.

    Args:
        settings: with the database's URL.
        holder: names the installation; its leadership survives a restart of this process.
        shards: where the shards are.
        virtual: whether business time comes with every call (a rehearsal) instead of from the database.
    """

    def __init__(self, settings: Settings, holder: str, shards: ShardNames, virtual: bool) -> None:
        logging.basicConfig(level=logging.WARNING)
        self._settings, self._holder, self._names, self._virtual = settings, holder, shards, virtual
        self._shards = RayShards(shards.names, shards.namespace, shards.answer_s)
        self._clock = DatabaseClock(settings.skew_s)
        self._service: service.Coordinator | None = None
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._busy = asyncio.Lock()
        self._starting = asyncio.Lock()
        self._draining = False
        self._fenced = False

    # Life ----------------------------------------------------------------------------------------------------

    async def ready(self, now_us: int | None = None) -> int:
        """Lead, trying until PostgreSQL answers and no other installation leads; returns the epoch.

        Args:
            now_us: virtual time, in a rehearsal.
        """
        async with self._starting:
            while self._service is None:
                try:
                    await self._start(now_us)
                except StoreError as error:
                    _log.warning("the coordinator waits for the database: %s", error)
                    await asyncio.sleep(_PAUSE_S)
        assert self._service is not None
        return self._service.epoch

    async def _start(self, now_us: int | None) -> None:
        assert self._settings.database_url is not None
        pool = await open_pool(
            self._settings.database_url,
            size=_CONNECTIONS,
            application_name="dripline coordinator",
            planner_hints=True,
        )
        store = CoordinatorStore(pool, self._holder)
        coordinator = service.Coordinator(self._settings, store, self._shards)
        try:
            while not await coordinator.lead():
                _log.warning("%s leads; this installation waits", await coordinator.leader())
                await asyncio.sleep(_PAUSE_S)
            if now_us is None:
                self._clock.observe((await store.seat.beat(self._settings.leader_s)).wall_us)
            await coordinator.take_over(self._clock.now_us() if now_us is None else now_us, len(self._names.names))
        except BaseException:
            await store.close()
            raise
        self._service = coordinator
        loops = [self._keep_leading(), self._watch_shards()]
        if not self._virtual:
            loops += [self._live(), self._listen()]
        self._tasks = [asyncio.create_task(loop) for loop in loops]

    @property
    def _own(self) -> service.Coordinator:
        if self._service is None or self._fenced:
            raise RuntimeError("this coordinator does not lead")
        return self._service

    async def ping(self) -> int:
        """The epoch; 0 while it does not lead, -1 once another has taken over."""
        if self._fenced:
            return -1
        if self._service is None and not self._virtual and not self._starting.locked():
            self._tasks.append(asyncio.create_task(self._lead_again()))
        return self._service.epoch if self._service is not None else 0

    async def _lead_again(self) -> None:
        await self.ready()

    def pid(self) -> int:
        """The process, for those who test what happens when it dies."""
        return os.getpid()

    async def tick(self, now_us: int, until_us: int) -> Pass:
        """One pass over virtual time: everything claimed has been sent and written when this returns."""
        async with self._busy:
            return await self._own.run_once(now_us, until_us - now_us)

    async def drain(self) -> None:
        """Stop claiming and give leadership up."""
        self._draining = True
        for task in self._tasks:
            task.cancel()
        async with self._busy:
            if self._service is not None and not self._fenced:
                await self._service.leave()

    # Loops ---------------------------------------------------------------------------------------------------

    async def _keep_leading(self) -> None:
        while not self._fenced:
            try:
                self._clock.observe(await self._own.beat())
            except StoreUnavailableError as error:
                _log.warning("leadership not renewed: %s", error)
            except FencedError as error:
                _log.error("%s: this coordinator stops", error)
                self._fenced = True
            await asyncio.sleep(self._settings.heartbeat_s)

    async def _live(self) -> None:
        probed_s = time.monotonic()
        while not (self._draining or self._fenced):
            wait_s = _PAUSE_S
            try:
                async with self._busy:
                    if self._clock.trusted:
                        if time.monotonic() - probed_s >= self._settings.cycle_s:
                            probed_s = time.monotonic()
                            await self._own.probe()
                        wait_s = await self._pass()
            except StoreUnavailableError as error:
                _log.warning("pass broken off: %s", error)
            except FencedError as error:
                _log.error("%s: this coordinator stops", error)
                self._fenced = True
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), wait_s)
            self._wake.clear()

    async def _pass(self) -> float:
        """One pass over real time; returns how long nothing can happen, as far as is known."""
        now_us = self._clock.now_us()
        done = await self._own.run_once(now_us, span_us(self._settings.horizon_s))
        if done.more:
            return 0.0
        ahead_s = (done.next_us - self._clock.now_us()) / SECOND_US
        return min(max(ahead_s, 0.02), self._settings.cycle_s)

    async def _listen(self) -> None:
        """Wake on NOTIFY; what is missed is seen after a cycle."""
        assert self._settings.database_url is not None
        while True:
            try:
                connection = await connect(self._settings.database_url, application_name="dripline wake")
                await connection.add_listener("dripline_wake", lambda *_: self._wake.set())
                while not connection.is_closed():
                    await asyncio.sleep(_PAUSE_S)
            except StoreError as error:
                _log.warning("not listening: %s", error)
            await asyncio.sleep(_PAUSE_S)

    async def _watch_shards(self) -> None:
        """Replace shards that hang: Ray notices a dead process, never a stopped one."""
        misses = [0] * len(self._names.names)
        while not (self._draining or self._fenced):
            await asyncio.sleep(self._settings.heartbeat_s)
            for shard in range(len(misses)):
                try:
                    alive = await self._shards.ping(shard, self._settings.heartbeat_s) >= 0
                except ShardUnavailableError:
                    alive = False
                misses[shard] = 0 if alive else misses[shard] + 1
                if misses[shard] >= _MISSES:
                    _log.error("shard %d does not answer: replaced", shard)
                    misses[shard] = 0
                    with contextlib.suppress(ValueError):
                        await self._shards.replace(shard)


RemoteCoordinator = ray.remote(max_restarts=-1, max_task_retries=0, num_cpus=0)(Coordinator)
