"""The driver alone owns virtual time and passes it in every call.

Time advances when every shard has reported the tick or a new incarnation has taken its place; ticks in which nothing
can happen are jumped over. Whatever dies - a shard, the coordinator, the database - the tick is run again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import asyncpg
import ray

from actors.cluster import Cluster
from dispatcher.coordinator import Pass
from dispatcher.core.moments import NEVER_US
from dispatcher.errors import StoreError, StoreUnavailableError
from dispatcher.store.connect import connect
from simulate.speed import Pace
from simulate.timetable import Timetable

_log = logging.getLogger(__name__)
_PAUSE_S = 0.2
_LOOK_S = 0.05
_GIVE_UP_S = 120.0
_LOST = (ray.exceptions.RayError, StoreError, asyncpg.PostgresConnectionError, asyncpg.InterfaceError, OSError)


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that broke, or was broken, at a moment of virtual time."""

    at_us: int
    kind: str
    """``silent``: a shard did not answer the tick and was replaced; ``broken off``: the tick ended in an error."""
    subject: str
    """What it struck."""
    detail: str
    """In words."""


@dataclass(slots=True)
class Progress:
    """How far the run is."""

    now_us: int
    claimed: int = 0
    enrolled: int = 0
    ticks: int = 0
    behind_s: float = 0.0
    """How far the wall clock is ahead where a pace is kept."""
    faults: list[Fault] = field(default_factory=list)
    """Why ticks were run again, one entry each time."""

    @property
    def reruns(self) -> int:
        """Ticks that were run again."""
        return len(self.faults)


class Driver:
    """Runs virtual time over a cluster.

    Args:
        cluster: the actors.
        url: the rehearsal database, whose clock follows.
        start_us: where virtual time starts.
        end_us: where it ends at latest.
        tick_us: the width of a tick.
        answer_s: how long an actor may take to work off what it has in hand.
        on_tick: called after every tick.
        timetable: what else happens at tick borders.
        pace: what virtual time waits for; None: for nothing.
    """

    def __init__(
        self,
        cluster: Cluster,
        url: str,
        *,
        start_us: int,
        end_us: int,
        tick_us: int,
        answer_s: float,
        on_tick: Callable[[Progress], None],
        timetable: Timetable | None = None,
        pace: Pace | None = None,
    ) -> None:
        self._cluster, self._url, self._on_tick = cluster, url, on_tick
        self._start_us, self._end_us, self._tick_us = start_us, end_us, tick_us
        self._answer_s, self._timetable, self._pace = answer_s, timetable, pace
        self._connection: asyncpg.Connection | None = None
        self.progress = Progress(start_us)

    async def open(self) -> None:
        """Wait until all actors are ready, and no entry is searched for any more: leads to come stand in the queue."""
        await self._cluster.wait_ready(self._start_us)
        while (await self._pass(self._start_us, self._start_us)).more:
            pass

    async def enrol(self, complete: asyncio.Event) -> None:
        """Enrol who comes in before virtual time begins, until all are ``complete``; nothing is sent."""
        while True:
            last = complete.is_set()
            done = await self._pass(self._start_us, self._start_us)
            if not done.more:
                if last:
                    return
                await asyncio.sleep(_LOOK_S)

    async def run(self) -> Progress:
        """Run until nothing waits or virtual time ends."""
        now_us = self._start_us
        if self._pace is not None:
            self._pace.begin()
        while now_us < self._end_us:
            await self._reach(now_us)
            await self._act(now_us)
            done = await self._pass(now_us, now_us + self._tick_us)
            self.progress.claimed += done.claimed
            self.progress.now_us = now_us
            if done.silent:
                shards = ", ".join(map(str, done.silent))
                self.progress.faults.append(Fault(now_us, "silent", f"shard {shards}", "no answer within the tick"))
                await self._revive(now_us)
                continue
            self.progress.ticks += 1
            self._on_tick(self.progress)
            if not done.more:
                ask_us = done.ask_us if done.next_us < NEVER_US else NEVER_US
                if self._timetable is not None:
                    ask_us = min(ask_us, await self._timetable.next_us())
                if ask_us >= NEVER_US:
                    break
                now_us = self._border_after(now_us, ask_us)
        await self._reach(self.progress.now_us + self._tick_us)
        if self._connection is not None:
            await self._connection.close()
        return self.progress

    async def _reach(self, moment_us: int) -> None:
        """Wait for this moment where a pace is kept."""
        if self._pace is not None:
            await self._pace.reach(moment_us)
            self.progress.behind_s = self._pace.behind_s

    async def _act(self, now_us: int) -> None:
        """What happens at this border, again until it went through."""
        give_up_s = time.monotonic() + _GIVE_UP_S
        while self._timetable is not None and await self._timetable.next_us() <= now_us:
            try:
                if await self._timetable.act(await self._set_clock(now_us), now_us):
                    await self._revive(now_us)
            except _LOST as error:
                if time.monotonic() > give_up_s:
                    raise StoreError(f"virtual time stands still: {_last_line(error)}") from None
                await asyncio.sleep(_PAUSE_S)

    def _border_after(self, now_us: int, ask_us: int) -> int:
        """The first tick border after ``now_us`` that does not precede ``ask_us``."""
        ticks = -(-(max(ask_us, now_us + 1) - self._start_us) // self._tick_us)
        return self._start_us + ticks * self._tick_us

    async def _pass(self, now_us: int, until_us: int) -> Pass:
        """One pass of the coordinator; run again until it went through."""
        give_up_s = time.monotonic() + _GIVE_UP_S
        while True:
            try:
                # People who write meanwhile stamp the tick's end: what they change takes effect at its border.
                await self._set_clock(until_us)
                done: Pass = await self._cluster.coordinator.tick.remote(now_us, until_us)
                self.progress.enrolled += done.enrol.enrolled
                return done
            except _LOST as error:
                if time.monotonic() > give_up_s:
                    raise StoreError(f"virtual time stands still: {_last_line(error)}") from None
                _log.warning("tick broken off: %s", error)
                self.progress.faults.append(Fault(now_us, "broken off", "the tick", _last_line(error)))
                await asyncio.sleep(_PAUSE_S)
                await self._revive(now_us)

    async def _revive(self, now_us: int) -> None:
        """Wait until coordinator and shards have incarnations that own what is theirs.

        The coordinator goes first: once it leads, no claim of an earlier one can commit any more, and the shards find
        all there are. It goes last too: what they work off moves due moments that it has just looked up.
        """
        give_up_s = time.monotonic() + self._answer_s
        for actor in (self._cluster.coordinator, *self._cluster.shards, self._cluster.coordinator):
            while True:
                try:
                    await asyncio.wait_for(actor.ready.remote(now_us), self._answer_s)
                    break
                except (ray.exceptions.RayError, TimeoutError) as error:
                    if time.monotonic() > give_up_s:
                        raise StoreError(f"an actor did not come back: {_last_line(error)}") from None
                    await asyncio.sleep(_PAUSE_S)

    async def _set_clock(self, now_us: int) -> asyncpg.Connection:
        if self._connection is None or self._connection.is_closed():
            self._connection = await connect(self._url, application_name="dripline driver")
        try:
            await self._connection.execute("UPDATE dripline_database SET clock = dripline_at($1)", now_us)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            self._connection.terminate()
            raise StoreUnavailableError(str(error)) from error
        return self._connection


def _last_line(error: BaseException) -> str:
    """What a person needs of an error that may carry another process's traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
