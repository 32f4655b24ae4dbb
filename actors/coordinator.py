"""``Coordinator``: the coordinator's process, which also watches over the shards."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from dataclasses import dataclass
from typing import Any

import asyncpg
import ray

from actors.loops import Loops
from actors.shards import RayShards
from dispatcher import coordinator as service
from dispatcher.clock import READINGS, DatabaseClock
from dispatcher.config import Settings
from dispatcher.coordinator import Pass
from dispatcher.core.moments import SECOND_US, span_us
from dispatcher.errors import FencedError, ShardUnavailableError, StoreError, StoreUnavailableError
from dispatcher.store.connect import connect, open_pool
from dispatcher.store.coordinator_store import CoordinatorStore

_log = logging.getLogger(__name__)
_PAUSE_S = 0.5
_LEAST_S = 0.05
_HEAR_S = 1.0
_CONNECTIONS = 4
HUNG_S = 15.0
"""An actor that has not answered for so long is replaced."""


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
    """The coordinator with its clock and loops. The constructor touches nothing outside.

    Args:
        settings: with the database's URL.
        holder: names the installation; its leadership survives a restart of this process.
        shards: where the shards are.
        virtual: whether business time comes with every call (a rehearsal) instead of from the database.
    """

    def __init__(self, settings: Settings, holder: str, shards: ShardNames, virtual: bool) -> None:
        logging.basicConfig(level=logging.WARNING)
        logging.getLogger("asyncpg").setLevel(logging.ERROR)  # whoever needs a lost connection says so in one line
        self._settings, self._holder, self._names, self._virtual = settings, holder, shards, virtual
        self._shards = RayShards(shards.names, shards.namespace, shards.answer_s)
        self._clock = DatabaseClock(settings.skew_s)
        self._service: service.Coordinator | None = None
        self._wake = asyncio.Event()
        self._loops = Loops("the coordinator")
        self._passes: asyncio.Task[Any] | None = None
        self._pass_us = 0
        self._probed_s = 0.0
        self._enrolled = self._claimed = 0
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
            if self._virtual and self._service is not None:
                await self._own.probe()
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
                _log.info("%s leads; this installation waits", await coordinator.leader())
                await asyncio.sleep(_PAUSE_S)
            if now_us is None:
                await self._clock.follow(store.seat.wall_us, READINGS)
            await coordinator.take_over(self._clock.now_us() if now_us is None else now_us, len(self._names.names))
        except BaseException:
            await store.close()
            raise
        self._service = coordinator
        self._loops.start(self._keep_leading())
        self._loops.start(self._watch_shards())
        if not self._virtual:
            self._loops.start(self._listen())
            self._passes = self._loops.start(self._live())

    @property
    def _own(self) -> service.Coordinator:
        if self._service is None or self._loops.broken:
            raise RuntimeError("this coordinator does not lead")
        return self._service

    async def ping(self) -> int:
        """The epoch; 0 while it does not lead, -1 when this incarnation has ended and waits to be replaced."""
        if self._loops.broken:
            return -1
        if self._service is None and not (self._virtual or self._draining or self._starting.locked()):
            self._loops.start(self.ready())
        return self._service.epoch if self._service is not None else 0

    async def figures(self) -> CoordinatorFigures:
        """What this incarnation has done so far, for those who watch."""
        epoch = await self.ping()
        ahead_s = max(self._pass_us - self._clock.now_us(), 0) / SECOND_US if epoch > 0 else 0.0
        return CoordinatorFigures(epoch, self._enrolled, self._claimed, ahead_s)

    def pid(self) -> int:
        """The process, for those who test what happens when it dies."""
        return os.getpid()

    async def tick(self, now_us: int, until_us: int) -> Pass:
        """One pass over virtual time: everything claimed has been sent and written when this returns."""
        async with self._busy:
            return await self._own.run_once(now_us, until_us - now_us)

    async def drain(self) -> None:
        """Stop claiming; a pass under way ends first. Leadership stays, so that nobody takes the shards over yet."""
        self._draining = True
        self._wake.set()
        if self._passes is not None:
            await asyncio.wait({self._passes})
        async with self._busy:
            return

    async def leave(self) -> None:
        """Give leadership up."""
        self._loops.cancel()
        service, self._service = self._service, None
        if service is not None and not self._loops.broken:
            await service.leave()

    # Loops ---------------------------------------------------------------------------------------------------

    async def _keep_leading(self) -> None:
        while not self._loops.broken:
            try:
                await self._clock.follow(self._own.beat)
            except StoreUnavailableError as error:
                _log.warning("leadership not renewed: %s", error)
            except FencedError as error:
                _log.error("%s: this coordinator stops", error)
                self._loops.broken = True
            await asyncio.sleep(self._settings.heartbeat_s)

    async def _live(self) -> None:
        """Passes at the next moment of work, when woken, and at latest after a cycle."""
        wait_s = 0.0
        while not (self._draining or self._loops.broken):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), wait_s)
            woken = self._wake.is_set()
            self._wake.clear()
            if woken or not self._clock.trusted:
                self._pass_us = 0
            try:
                wait_s = await self._work() if self._clock.trusted and not self._draining else _PAUSE_S
            except StoreUnavailableError as error:
                _log.warning("pass broken off: %s", error)
                wait_s, self._pass_us = _PAUSE_S, 0
            except FencedError as error:
                _log.error("%s: this coordinator stops", error)
                self._loops.broken = True

    async def _work(self) -> float:
        """A pass if it is time for one, else only news; returns how many seconds nothing needs to be done."""
        now_us = self._clock.now_us()
        if now_us < self._pass_us:
            self._pass_us = min(self._pass_us, await self._own.hear())
        else:
            if time.monotonic() - self._probed_s >= self._settings.cycle_s:
                self._probed_s = time.monotonic()
                await self._own.probe()
            done = await self._own.run_once(now_us, span_us(self._settings.horizon_s))
            self._enrolled += done.enrol.enrolled
            self._claimed += done.claimed
            if done.more:
                self._pass_us = 0
                return 0.0
            self._pass_us = min(done.next_us, now_us + span_us(self._settings.cycle_s))
            if done.silent:
                self._pass_us = max(self._pass_us, now_us + span_us(_PAUSE_S))
        ahead_s = (self._pass_us - self._clock.now_us()) / SECOND_US
        return min(max(ahead_s, _LEAST_S), _HEAR_S)

    async def _listen(self) -> None:
        """Wake on NOTIFY; what is missed is seen after a cycle."""
        assert self._settings.database_url is not None
        while True:
            try:
                connection = await connect(self._settings.database_url, application_name="dripline wake")
                try:
                    await connection.add_listener("dripline_wake", lambda *_: self._wake.set())
                    self._wake.set()
                    while not connection.is_closed():
                        await asyncio.sleep(_PAUSE_S)
                finally:
                    connection.terminate()
            except (StoreError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
                _log.warning("not listening: %s", error)
            await asyncio.sleep(_PAUSE_S)

    async def _watch_shards(self) -> None:
        """Replace shards that have ended or hang: Ray notices a dead process, never a stopped one."""
        shards = range(len(self._names.names))
        heard_s = [time.monotonic() for _ in shards]
        while not (self._draining or self._loops.broken):
            await asyncio.sleep(self._settings.heartbeat_s)
            pings = (self._shards.ping(shard, self._settings.heartbeat_s) for shard in shards)
            answers = await asyncio.gather(*pings, return_exceptions=True)
            for shard, answer in enumerate(answers):
                if isinstance(answer, BaseException) and not isinstance(answer, ShardUnavailableError):
                    raise answer
                # A dead one is being restarted by Ray, however long that takes; only silence is suspicious.
                silent = isinstance(answer, ShardUnavailableError) and isinstance(answer.__cause__, TimeoutError)
                heard_s[shard] = heard_s[shard] if silent else time.monotonic()
                if answer == -1 or time.monotonic() - heard_s[shard] >= HUNG_S:
                    _log.error("shard %d %s: replaced", shard, "has ended" if answer == -1 else "does not answer")
                    heard_s[shard] = time.monotonic()
                    with contextlib.suppress(ValueError):
                        await self._shards.replace(shard)


RemoteCoordinator = ray.remote(max_restarts=-1, max_task_retries=0, num_cpus=0)(Coordinator)
