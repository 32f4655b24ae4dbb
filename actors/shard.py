"""``DeviceShard``: the process of one shard."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass

import ray

from dispatcher import logs
from dispatcher.clock import READINGS, DatabaseClock
from dispatcher.config import Settings
from dispatcher.core.batches import DueSoon, Int8s, Int32s, Int64s, Leased, SlotOffer
from dispatcher.core.fleet import Fleet
from dispatcher.errors import ShardUnavailableError, StoreError
from dispatcher.loops import Loops
from dispatcher.ports import Sender
from dispatcher.shard import Shard
from dispatcher.shard_loop import ShardLoop
from dispatcher.store.connect import open_pool
from dispatcher.store.shard_store import PostgresShardStore

_log = logging.getLogger(__name__)
_PAUSE_S = 0.5
_TICK_S = 0.05
_CONNECTIONS = 3

SenderOf = Callable[[Fleet, Callable[[], int]], Sender]
"""Makes a sender for a shard's devices, given business time."""


@dataclass(frozen=True, slots=True)
class ShardFigures:
    """What one incarnation of a shard has done so far."""

    epoch: int
    in_hand: int
    """Leases without a written end."""
    outcomes: dict[str, int]
    """Attempts by outcome."""


class DeviceShard:
    """A shard's process. The constructor touches nothing outside: an exception there would be final.

    Args:
        shard: its number.
        settings: with the database's URL.
        holder: names the installation.
        sender_of: makes the sender.
        virtual: whether business time comes with every call (a rehearsal) instead of from the database.
    """

    def __init__(self, shard: int, settings: Settings, holder: str, sender_of: SenderOf, virtual: bool) -> None:
        logs.configure("text" if settings.log == "auto" else settings.log, f"shard {shard}")
        self._number, self._settings, self._holder = shard, settings, holder
        self._sender_of, self._virtual = sender_of, virtual
        self._clock = DatabaseClock(settings.skew_s)
        self._now_us = self._until_us = 0
        self._loop: ShardLoop | None = None
        self._starts = Loops(f"shard {shard}")
        self._starting = asyncio.Lock()
        self._draining = False

    # Life ----------------------------------------------------------------------------------------------------

    async def ready(self, now_us: int | None = None) -> int:
        """Take the shard over, trying until PostgreSQL answers; returns the epoch. Repeating it changes nothing.

        In a rehearsal a shard that owns its devices already works off what a tick that was broken off left with it.

        Args:
            now_us: virtual time, in a rehearsal.

        Raises:
            ShardUnavailableError: this incarnation has ended.
            StoreUnavailableError: PostgreSQL did not answer, in a rehearsal.
        """
        async with self._starting:
            while self._loop is None:
                try:
                    await self._start(now_us)
                except StoreError as error:
                    _log.warning("waits for the database: %s", error, extra={"event": "database_away"})
                    await asyncio.sleep(_PAUSE_S)
        own = self._owning.own
        if self._virtual:
            await own.adopt()
            await self._hand_over_all()
            while own.in_hand:
                await asyncio.sleep(_TICK_S)
        return own.epoch

    async def _start(self, now_us: int | None) -> None:
        assert self._settings.database_url is not None
        name = f"dripline shard {self._number}"
        pool = await open_pool(
            self._settings.database_url, size=_CONNECTIONS, application_name=name, planner_hints=True
        )
        store = PostgresShardStore(pool, self._number, self._holder)
        shard = Shard(self._number, self._settings, store, lambda fleet: self._sender_of(fleet, self._business_us))
        try:
            if now_us is None:
                await self._clock.follow(store.seat.wall_us, READINGS)
            await shard.take_over(self._clock.now_us() if now_us is None else now_us)
        except BaseException:
            await store.close()
            raise
        self._now_us = self._until_us = now_us or 0
        _log.info("took its devices over, epoch %d", shard.epoch, extra={"event": "took_over"})
        self._loop = ShardLoop(shard, self._clock, self._settings)
        if self._virtual:
            self._loop.keep_epoch()
        else:
            self._loop.start()

    def _business_us(self) -> int:
        return self._until_us if self._virtual else self._clock.now_us()

    @property
    def _owning(self) -> ShardLoop:
        if self._loop is None:
            raise ShardUnavailableError(f"shard {self._number} does not own its devices")
        return self._loop

    async def ping(self) -> int:
        """The epoch, 0 while there is none; starts taking over when nobody has asked for it yet.

        -1: this incarnation has ended and waits to be replaced.
        """
        if self._starts.broken:
            return -1
        if self._loop is None and not (self._virtual or self._draining or self._starting.locked()):
            self._starts.start(self.ready())
        return self._loop.epoch if self._loop is not None else 0

    def pid(self) -> int:
        """The process, for those who test what happens when it dies."""
        return os.getpid()

    async def figures(self) -> ShardFigures:
        """What this incarnation has done so far, for those who watch."""
        epoch, loop = await self.ping(), self._loop
        if loop is None:
            return ShardFigures(epoch, 0, {})
        return ShardFigures(epoch, loop.in_hand, dict(loop.outcomes))

    async def drain(self) -> int:
        """Stop: give back what has not left, write every end, close. Returns how many leases were given back."""
        self._draining = True
        loop, self._loop = self._loop, None
        if loop is None or loop.broken:
            return 0
        if not self._virtual:
            return await loop.drain()
        shard = loop.own
        loop.stop()
        given_back = await shard.drain(self._until_us)
        await shard.close()
        return given_back

    # Calls ---------------------------------------------------------------------------------------------------

    async def offer(self, now_us: int, horizon_us: int, devices: Int32s) -> SlotOffer:
        """Free slots; see ``ShardLoop.offer``."""
        if not self._virtual:
            return self._owning.offer(now_us, horizon_us, devices)
        self._now_us, self._until_us = now_us, now_us + horizon_us
        await self._renew()
        await self._owning.own.refresh()
        return self._owning.own.offer(now_us, horizon_us, devices)

    async def deliver(self, offer: int, leased: Leased | None) -> DueSoon:
        """Take a claim. In a rehearsal everything is handed over and written before this returns."""
        if not self._virtual or leased is None:
            return self._owning.deliver(offer, leased)
        self._owning.own.deliver(offer, leased)
        await self._hand_over_all()
        return self._owning.take_due()

    async def take_due(self) -> DueSoon:
        """What became due again; see ``Shard.take_due``."""
        return self._owning.take_due()

    async def refresh(self) -> None:
        """See ``ShardLoop.refresh``; in a rehearsal every offer begins with it."""
        if not self._virtual:
            await self._owning.refresh()

    async def fate(self, token: Int64s, epoch: Int64s, enrolment: Int64s) -> Int8s:
        """What became of leases; see ``Shard.fate``."""
        return self._owning.fate(token, epoch, enrolment)

    # Rehearsals ----------------------------------------------------------------------------------------------

    async def _hand_over_all(self) -> None:
        """Hand over and write everything that was delivered."""
        try:
            await self._renew()
            await self._owning.own.hand_over(self._now_us, self._until_us)
        finally:
            await self._owning.own.complete(self._until_us)

    async def _renew(self) -> None:
        """Trust that a slow machine let run out is renewed before virtual time goes on."""
        while not self._owning.own.trusted:
            await asyncio.sleep(_TICK_S)
            await self._owning.beat()


RemoteShard = ray.remote(max_restarts=-1, max_task_retries=0, num_cpus=0)(DeviceShard)
