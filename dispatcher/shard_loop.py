"""The live shard: renews its epoch, looks for claims, hands over when slots come, and writes what came of it.

Event by event: it sleeps until the next of these moments, or until something comes that has to leave or to be written.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter

from dispatcher.clock import DatabaseClock, liveness_s
from dispatcher.completer import persistently
from dispatcher.config import Settings
from dispatcher.core.batches import DueSoon, Int8s, Int32s, Int64s, Leased, SlotOffer
from dispatcher.core.moments import SECOND_US
from dispatcher.errors import FencedError, ShardUnavailableError, StoreUnavailableError
from dispatcher.loops import Loops, woken_by
from dispatcher.shard import Shard

_log = logging.getLogger(__name__)
_GATHER_S = 0.05
"""Slots that come within so short a time leave together: each hand-over costs a last look."""


class ShardLoop:
    """One incarnation of a live shard, and the calls it answers meanwhile.

    Args:
        shard: owns its devices already.
        clock: has been set; renewals of the epoch keep it so.
        settings: how often to renew and to look.
    """

    def __init__(self, shard: Shard, clock: DatabaseClock, settings: Settings) -> None:
        self._shard, self._clock, self._settings = shard, clock, settings
        self._tasks = Loops(f"shard {shard.shard}")
        self._lasting: list[asyncio.Task[None]] = []
        self._draining = self._completing = self._fenced = False
        self._next_hand_over_s = -math.inf
        self.outcomes: Counter[str] = Counter()
        """Attempts so far, by outcome."""

    # Life ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to live."""
        self.keep_epoch()
        self._lasting.append(self._tasks.start(self._live()))

    def keep_epoch(self) -> None:
        """Only renew the epoch: for whoever owns time and says when everything else happens."""
        self._lasting.append(self._tasks.start(self._keep_epoch()))

    def wake(self) -> None:
        """Have it see at once what there is to do."""
        self._shard.woken.set()

    def cancel(self) -> None:
        """End every task, as if the process had died; nothing is written."""
        self._tasks.cancel()

    async def drain(self) -> int:
        """Stop: give back what has not left, write every end, close; returns how many leases were given back."""
        self.stop()
        if self._tasks.broken:
            return 0
        await persistently(self._shard.adopt)
        given_back = await self._shard.drain(self._clock.now_us())
        await self._shard.close()
        return given_back

    def stop(self) -> None:
        """Begin nothing more and answer no calls; what is under way goes on."""
        self._draining = True
        for task in self._lasting:
            task.cancel()

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
        """The epoch it took its devices over with; 0 once that is superseded, -1 when this incarnation has ended."""
        if self.broken:
            return -1
        return 0 if self._fenced else self._shard.epoch

    @property
    def in_hand(self) -> int:
        """Leases without a written end."""
        return self._shard.in_hand

    @property
    def own(self) -> Shard:
        """The shard.

        Raises:
            ShardUnavailableError: it does not own its devices any more.
        """
        if self.broken or self._draining or self._fenced:
            raise ShardUnavailableError(f"shard {self._shard.shard} does not own its devices")
        return self._shard

    # Calls ---------------------------------------------------------------------------------------------------

    def offer(self, now_us: int, horizon_us: int, devices: Int32s) -> SlotOffer:
        """Free slots; none while the clock is not trusted. See ``Shard.offer``."""
        return self.own.offer(now_us, horizon_us, devices if self._clock.trusted else devices[:0])

    def deliver(self, offer: int, leased: Leased | None) -> DueSoon:
        """Take a claim; returns what became due again. See ``Shard.deliver``."""
        self.own.deliver(offer, leased)
        return self.own.take_due()

    def take_due(self) -> DueSoon:
        """See ``Shard.take_due``."""
        return self.own.take_due()

    async def refresh(self) -> None:
        """See at once what has changed of sequences and devices; what fails is seen within a second."""
        try:
            await self.own.refresh()
        except StoreUnavailableError as error:
            _log.warning("shard %d: %s", self._shard.shard, error, extra={"event": "database_away"})

    def fate(self, token: Int64s, epoch: Int64s, enrolment: Int64s) -> Int8s:
        """See ``Shard.fate``."""
        return self.own.fate(token, epoch, enrolment)

    # Loops ---------------------------------------------------------------------------------------------------

    async def _keep_epoch(self) -> None:
        while not (self.broken or self._fenced):
            await self.beat()
            await asyncio.sleep(self._settings.heartbeat_s)

    async def beat(self) -> None:
        """Renew the epoch and the clock once; fenced, this incarnation ends."""
        try:
            await self._clock.follow(self._shard.beat)
        except StoreUnavailableError as error:
            _log.warning(
                "shard %d could not renew its epoch: %s", self._shard.shard, error, extra={"event": "database_away"}
            )
        except FencedError as error:
            if not self._fenced:
                _log.error("%s: this incarnation stops", error, extra={"event": "superseded"})
                self._fenced = True
                self._tasks.start(self._settle())
        # Trust may have come back, and the clock may have moved: slots may have come.
        self.wake()

    async def _settle(self) -> None:
        """Superseded: what is out still gets its ends before somebody takes this one's place."""
        await self._shard.settle(self._clock.now_us(), self._settings.deadline_s)
        self._tasks.broken = True

    async def _live(self) -> None:
        look_s = liveness_s() + self._settings.look_s
        while not (self.broken or self._fenced):
            if liveness_s() >= look_s:
                await self._look()
                look_s = liveness_s() + self._settings.look_s
            await woken_by(self._shard.woken, min(look_s, self._hand_over_ready(), self._complete_ripe()))

    async def _look(self) -> None:
        """Find claims that no call brought, and what has changed of sequences and devices."""
        try:
            await self._shard.adopt()
            await self._shard.refresh()
        except StoreUnavailableError as error:
            _log.warning("shard %d: %s", self._shard.shard, error, extra={"event": "database_away"})

    def _hand_over_ready(self) -> float:
        """Begin a hand-over if a slot has come; returns when, in liveness time, to ask again unless woken."""
        next_us = self._shard.next_slot_us
        if next_us is None or not (self._clock.trusted and self._shard.trusted):
            return math.inf
        now_us, now_s = self._clock.now_us(), liveness_s()
        if next_us > now_us:
            return max(now_s + (next_us - now_us) / SECOND_US, self._next_hand_over_s)
        if now_s >= self._next_hand_over_s:
            self._next_hand_over_s = now_s + _GATHER_S
            self._tasks.start(self._hand_over(now_us))
        return self._next_hand_over_s

    async def _hand_over(self, now_us: int) -> None:
        done = await self._shard.hand_over(now_us, now_us)
        self.outcomes.update(done.outcomes)

    def _complete_ripe(self) -> float:
        """Begin to write ends if they are ripe; returns when, in liveness time, to ask again unless woken."""
        if self._completing:
            return math.inf
        ripe_s = self._shard.ripe_s
        if ripe_s > liveness_s():
            return ripe_s
        self._completing = True
        self._tasks.start(self._complete())
        return math.inf

    async def _complete(self) -> None:
        await self._shard.complete(self._clock.now_us())
        self._completing = False
