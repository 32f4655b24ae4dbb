"""``DeviceShard``: the process of one shard."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray

from actors.loops import Loops
from dispatcher.clock import READINGS, DatabaseClock
from dispatcher.completer import persistently
from dispatcher.config import Settings
from dispatcher.core.batches import DueSoon, Int8s, Int32s, Int64s, Leased, SlotOffer
from dispatcher.core.fleet import Fleet
from dispatcher.errors import FencedError, ShardUnavailableError, StoreError, StoreUnavailableError
from dispatcher.ports import Sender
from dispatcher.shard import Shard
from dispatcher.store.connect import open_pool
from dispatcher.store.shard_store import ShardStore

_log = logging.getLogger(__name__)
_PAUSE_S = 0.5
_TICK_S = 0.05
_LOOK_S = 1.0
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
    """A shard with its clock and loops. The constructor touches nothing outside: an exception there would be final.

    Args:
        shard: its number.
        settings: with the database's URL.
        holder: names the installation.
        sender_of: makes the sender.
        virtual: whether business time comes with every call (a rehearsal) instead of from the database.
    """

    def __init__(self, shard: int, settings: Settings, holder: str, sender_of: SenderOf, virtual: bool) -> None:
        logging.basicConfig(level=logging.WARNING)
        logging.getLogger("asyncpg").setLevel(logging.ERROR)  # whoever needs a lost connection says so in one line
        self._number, self._settings, self._holder = shard, settings, holder
        self._sender_of, self._virtual = sender_of, virtual
        self._clock = DatabaseClock(settings.skew_s)
        self._now_us = self._until_us = 0
        self._shard: Shard | None = None
        self._loop: asyncio.Task[None] | None = None
        self._loops = Loops(f"shard {shard}")
        self._completion: asyncio.Task[Any] | None = None
        self._outcomes: Counter[str] = Counter()
        self._draining = False
        self._starting = asyncio.Lock()

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
            while self._shard is None:
                try:
                    await self._start(now_us)
                except StoreError as error:
                    _log.warning("shard %d waits for the database: %s", self._number, error)
                    await asyncio.sleep(_PAUSE_S)
        if self._virtual:
            await self._own.adopt()
            await self._hand_over_all()
            while self._own.in_hand:
                await asyncio.sleep(_TICK_S)
        return self._own.epoch

    async def _start(self, now_us: int | None) -> None:
        assert self._settings.database_url is not None
        name = f"dripline shard {self._number}"
        pool = await open_pool(
            self._settings.database_url, size=_CONNECTIONS, application_name=name, planner_hints=True
        )
        store = ShardStore(pool, self._number, self._holder)
        shard = Shard(self._number, self._settings, store, lambda fleet: self._sender_of(fleet, self._business_us))
        try:
            if now_us is None:
                await self._clock.follow(store.seat.wall_us, READINGS)
            await shard.take_over(self._clock.now_us() if now_us is None else now_us)
        except BaseException:
            await store.close()
            raise
        self._now_us = self._until_us = now_us or 0
        self._shard = shard
        self._loop = self._loops.start(self._keep_epoch() if self._virtual else self._live())

    def _business_us(self) -> int:
        return self._until_us if self._virtual else self._clock.now_us()

    @property
    def _own(self) -> Shard:
        if self._shard is None or self._loops.broken:
            raise ShardUnavailableError(f"shard {self._number} does not own its devices")
        return self._shard

    async def ping(self) -> int:
        """The epoch, 0 while there is none; starts taking over when nobody has asked for it yet.

        -1: this incarnation has ended and waits to be replaced.
        """
        if self._loops.broken:
            return -1
        if self._shard is None and not (self._virtual or self._draining or self._starting.locked()):
            self._loops.start(self.ready())
        return self._shard.epoch if self._shard is not None else 0

    def pid(self) -> int:
        """The process, for those who test what happens when it dies."""
        return os.getpid()

    async def figures(self) -> ShardFigures:
        """What this incarnation has done so far, for those who watch."""
        in_hand = self._shard.in_hand if self._shard is not None else 0
        return ShardFigures(await self.ping(), in_hand, dict(self._outcomes))

    # Calls ---------------------------------------------------------------------------------------------------

    async def offer(self, now_us: int, horizon_us: int, devices: Int32s) -> SlotOffer:
        """Free slots; see ``Shard.offer``."""
        if self._virtual:
            self._now_us, self._until_us = now_us, now_us + horizon_us
            await self._renew()
            await self._own.refresh()
        elif not self._clock.trusted or self._draining:
            devices = devices[:0]
        return self._own.offer(now_us, horizon_us, devices)

    async def deliver(self, offer: int, leased: Leased | None) -> DueSoon:
        """Take a claim. In a rehearsal everything is handed over and written before this returns."""
        self._own.deliver(offer, leased)
        if self._virtual and leased is not None:
            await self._hand_over_all()
        return self._own.take_due()

    async def _hand_over_all(self) -> None:
        """In a rehearsal: hand over and write everything that was delivered."""
        try:
            await self._renew()
            await self._own.hand_over(self._now_us, self._until_us)
        finally:
            await self._own.complete(self._until_us)

    async def _renew(self) -> None:
        """In a rehearsal trust that a slow machine let run out is renewed before virtual time goes on."""
        while not self._own.trusted:
            await asyncio.sleep(_TICK_S)
            await self._beat()

    async def take_due(self) -> DueSoon:
        """What became due again; see ``Shard.take_due``."""
        return self._own.take_due()

    async def fate(self, token: Int64s, enrolment: Int64s) -> Int8s:
        """What became of leases; see ``Shard.fate``."""
        return self._own.fate(token, enrolment)

    async def drain(self) -> int:
        """Stop: give back what has not left, write every end, close. Returns how many leases were given back."""
        self._draining = True
        if self._loop is not None:
            self._loop.cancel()
        shard, self._shard = self._shard, None
        if shard is None or self._loops.broken:
            return 0
        if not self._virtual:
            await persistently(shard.adopt)
        given_back = await shard.drain(self._business_us())
        await shard.close()
        return given_back

    # Loops ---------------------------------------------------------------------------------------------------

    async def _keep_epoch(self) -> None:
        while not self._loops.broken:
            await self._beat()
            await asyncio.sleep(self._settings.heartbeat_s)

    async def _beat(self) -> None:
        try:
            await self._clock.follow(self._own.beat)
        except StoreUnavailableError as error:
            _log.warning("shard %d could not renew its epoch: %s", self._number, error)
        except FencedError as error:
            _log.error("%s: this incarnation stops", error)
            self._loops.broken = True

    async def _live(self) -> None:
        beaten_s = looked_s = time.monotonic()
        while not self._loops.broken:
            now_s = time.monotonic()
            try:
                if now_s - beaten_s >= self._settings.heartbeat_s:
                    beaten_s = now_s
                    await self._beat()
                    continue
                if now_s - looked_s >= _LOOK_S:
                    looked_s = now_s
                    await self._own.adopt()
                    await self._own.refresh()
                await self._work()
            except StoreUnavailableError as error:
                _log.warning("shard %d: %s", self._number, error)
                await asyncio.sleep(_PAUSE_S)
            await asyncio.sleep(_TICK_S)

    async def _work(self) -> None:
        now_us = self._clock.now_us()
        next_us = self._own.next_slot_us
        if next_us is not None and next_us <= now_us and self._clock.trusted:
            self._loops.start(self._hand_over(now_us))
        if self._own.ripe and (self._completion is None or self._completion.done()):
            self._completion = self._loops.start(self._own.complete(now_us))

    async def _hand_over(self, now_us: int) -> None:
        done = await self._own.hand_over(now_us, now_us)
        self._outcomes.update(done.outcomes)


RemoteShard = ray.remote(max_restarts=-1, max_task_retries=0, num_cpus=0)(DeviceShard)
