"""The live coordinator: keeps leading, makes a pass at every next moment of work, and watches over the shards."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from dispatcher.clock import DatabaseClock, liveness_s
from dispatcher.config import Settings
from dispatcher.coordinator import Coordinator
from dispatcher.core.moments import SECOND_US, span_us
from dispatcher.errors import FencedError, ShardUnavailableError, StoreUnavailableError
from dispatcher.loops import Loops, woken_by

_log = logging.getLogger(__name__)
_PAUSE_S = 0.5
_LEAST_S = 0.05
_QUIET = 8
"""How many times more seldom shards are heard that have nothing to say: a call costs more than all else they do."""


class CoordinatorLoop:
    """One incarnation of a live coordinator.

    Args:
        coordinator: leads already.
        clock: has been set; renewals of the leadership keep it so.
        settings: how often to renew, to look everything up again, and when a shard hangs.
        ping: a shard's epoch, 0 while it has none, -1 when its incarnation has ended. Raises
            ``ShardUnavailableError``, because of a ``TimeoutError`` if the shard is silent.
        replace: ends a shard's incarnation, so that the next one starts.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        clock: DatabaseClock,
        settings: Settings,
        *,
        ping: Callable[[int], Awaitable[int]],
        replace: Callable[[int], Awaitable[None]],
    ) -> None:
        self._coordinator, self._clock, self._settings = coordinator, clock, settings
        self._ping, self._replace = ping, replace
        self._tasks = Loops("the coordinator")
        self._passes: asyncio.Task[None] | None = None
        self._woken = asyncio.Event()
        self._pass_us = 0
        self._probed_s = self._passed_s = 0.0
        self._hear_s = settings.hear_s
        self._draining = False
        self.enrolled = self.claimed = 0
        """So far."""

    # Life ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to live."""
        self.keep_leading()
        self._passes = self._tasks.start(self._live())

    def keep_leading(self) -> None:
        """Only renew the leadership and watch the shards: for whoever owns time and says when a pass is made."""
        self._tasks.start(self._keep_leading())
        self._tasks.start(self._watch_shards())

    def wake(self) -> None:
        """Make a pass at once: something may have become due."""
        self._woken.set()

    def cancel(self) -> None:
        """End every task, as if the process had died; nothing is written."""
        self._tasks.cancel()

    async def drain(self) -> None:
        """Make no more passes; one under way ends first. Leadership stays."""
        self._draining = True
        self.wake()
        if self._passes is not None:
            await asyncio.wait({self._passes})

    async def leave(self) -> None:
        """End every task and give leadership up."""
        self.cancel()
        if not self.broken:
            await self._coordinator.leave()

    @property
    def broken(self) -> bool:
        """Whether this incarnation has ended: fenced, or broken off by a bug. Another one has to start."""
        return self._tasks.broken

    @property
    def running(self) -> int:
        """How many tasks have not ended."""
        return self._tasks.running

    @property
    def epoch(self) -> int:
        """The epoch it leads with; -1 when this incarnation has ended."""
        return -1 if self.broken else self._coordinator.epoch

    @property
    def own(self) -> Coordinator:
        """The coordinator.

        Raises:
            RuntimeError: it does not lead any more.
        """
        if self.broken:
            raise RuntimeError("this coordinator does not lead")
        return self._coordinator

    @property
    def ahead_s(self) -> float:
        """Seconds until the next pass, as far as is known."""
        return 0.0 if self.broken else max(self._pass_us - self._clock.now_us(), 0) / SECOND_US

    # Leadership ----------------------------------------------------------------------------------------------

    async def _keep_leading(self) -> None:
        while not self.broken:
            try:
                await self._clock.follow(self._coordinator.beat)
            except StoreUnavailableError as error:
                _log.warning("leadership not renewed: %s", error, extra={"event": "database_away"})
            except FencedError as error:
                self._stop(error)
            await asyncio.sleep(self._settings.heartbeat_s)

    def _stop(self, error: FencedError) -> None:
        _log.error("%s: this coordinator stops", error, extra={"event": "superseded"})
        self._tasks.broken = True
        self.wake()

    # Passes --------------------------------------------------------------------------------------------------

    async def _live(self) -> None:
        """Passes at the next moment of work, when woken, and at latest after a cycle."""
        wait_s, self._probed_s = 0.0, liveness_s()
        while True:
            woken = await woken_by(self._woken, liveness_s() + wait_s)
            if woken:
                # Whoever tags leads one by one, hundreds a second, gets a pass for many of them.
                await asyncio.sleep(self._passed_s + _LEAST_S - liveness_s())
                self._woken.clear()
            if self._draining or self.broken:
                return
            self._passed_s = liveness_s()
            if woken or not self._clock.trusted:
                self._pass_us = 0
            try:
                wait_s = await self._work() if self._clock.trusted else _PAUSE_S
            except StoreUnavailableError as error:
                _log.warning("pass broken off: %s", error, extra={"event": "database_away"})
                wait_s, self._pass_us = _PAUSE_S, 0
            except FencedError as error:
                self._stop(error)

    async def _work(self) -> float:
        """A pass if it is time for one, else only news; returns how many seconds nothing needs to be done."""
        now_us = self._clock.now_us()
        if now_us < self._pass_us:
            self._pass_us = min(self._pass_us, await self._coordinator.hear(now_us))
            least_s = self._settings.hear_s
            self._hear_s = min(2 * self._hear_s, _QUIET * least_s) if self._coordinator.quiet else least_s
        else:
            if liveness_s() - self._probed_s >= self._settings.cycle_s:
                self._probed_s = liveness_s()
                await self._coordinator.probe()
            done = await self._coordinator.run_once(now_us, span_us(self._settings.horizon_s))
            self.enrolled += done.enrol.enrolled
            self.claimed += done.claimed
            if done.claimed:
                self._hear_s = self._settings.hear_s
            if done.more:
                self._pass_us = 0
                return 0.0
            self._pass_us = min(done.next_us, now_us + span_us(self._settings.cycle_s))
            if done.silent:
                self._pass_us = max(self._pass_us, now_us + span_us(_PAUSE_S))
        ahead_s = (self._pass_us - self._clock.now_us()) / SECOND_US
        return min(max(ahead_s, _LEAST_S), self._hear_s)

    # Shards --------------------------------------------------------------------------------------------------

    async def _watch_shards(self) -> None:
        """Replace shards that have ended or hang: a process that has died is started again from outside."""
        shards = range(self._coordinator.shards)
        heard_s = [liveness_s() for _ in shards]
        while not (self._draining or self.broken):
            await asyncio.sleep(self._settings.heartbeat_s)
            answers = await asyncio.gather(*map(self._ping, shards), return_exceptions=True)
            for shard, answer in enumerate(answers):
                if isinstance(answer, BaseException) and not isinstance(answer, ShardUnavailableError):
                    raise answer
                # A dead one is being restarted, however long that takes; only silence is suspicious.
                silent = isinstance(answer, ShardUnavailableError) and isinstance(answer.__cause__, TimeoutError)
                heard_s[shard] = heard_s[shard] if silent else liveness_s()
                if answer == -1 or liveness_s() - heard_s[shard] >= self._settings.hung_s:
                    why = "has ended" if answer == -1 else "does not answer"
                    _log.error("shard %d %s: replaced", shard, why, extra={"event": "shard_replaced"})
                    heard_s[shard] = liveness_s()
                    await self._replace(shard)
