"""The coordinator: asks shards for free slots, claims what is due for them, routes it; enrols, rescues, rebalances.

It keeps two moments for each device - when something is due next and when the device is free next - and asks only for
devices where both have come, and of those in a group when the group is free as well. Everything in its memory can be
rebuilt from PostgreSQL; two coordinators at once are harmless.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Coroutine
from dataclasses import dataclass

import numpy as np

from dispatcher.config import Settings
from dispatcher.core.batches import DueSoon, Indices, Int64s, Leased
from dispatcher.core.fleet import Fleet
from dispatcher.core.leases import Want
from dispatcher.core.moments import NEVER_US, span_us
from dispatcher.core.routing import assign, shard_count
from dispatcher.enroller import Enroller, EnrolPass
from dispatcher.errors import FencedError, ShardUnavailableError
from dispatcher.groups import Free, Groups
from dispatcher.ports import CoordinatorStore, Shards
from dispatcher.rebalancer import BalancePass, Rebalancer
from dispatcher.rescuer import RescuePass, Rescuer

_log = logging.getLogger(__name__)
_PARTITION_DAYS = 3
_PROBE_ROWS = 300


@dataclass(frozen=True, slots=True)
class Pass:
    """Summary of one run."""

    claimed: int
    enrol: EnrolPass
    rescue: RescuePass
    balance: BalancePass
    next_us: int
    """The next moment something can happen, as far as the coordinator knows; ``NEVER_US`` when nothing waits."""
    ask_us: int
    """From when on a pass that looks as far ahead finds a slot for it: a horizon before it, once it is due."""
    silent: tuple[int, ...]
    """Shards that did not answer."""

    @property
    def more(self) -> bool:
        """Whether another run at once would find work."""
        return self.enrol.more or self.balance.changed


class Coordinator:
    """The coordinator's passes.

    Args:
        settings: deadlines, batch sizes.
        store: its statements.
        shards: the way to the shards.
    """

    def __init__(self, settings: Settings, store: CoordinatorStore, shards: Shards) -> None:
        self._settings, self._store, self._shards = settings, store, shards
        self._enroller = Enroller(store, settings)
        self._rescuer = Rescuer(store, settings, shards)
        self._rebalancer = Rebalancer(store, settings)
        self._groups = Groups(store, settings)
        self.epoch = 0
        self.quiet = False
        """Whether the shards had nothing to say when they were heard last, and no device waits for what they say."""
        self._partitioned_day = -1
        self._claims = asyncio.Semaphore(settings.claims_at_once)

    async def take_over(self, now_us: int, shards: int | None = None) -> int:
        """Raise the epoch and load what is known; devices without a shard get one.

        Args:
            shards: how many shards there are; None: as many as the devices need.

        Returns the number of shards.
        """
        self.epoch = await self._store.seat.raise_epoch()
        self._enroller = Enroller(self._store, self._settings)
        self._groups = Groups(self._store, self._settings)
        self._versions = await self._store.versions()
        await self._begin_day(now_us)
        self._catalogue = await self._store.catalogue(now_us)
        fleet = await self._store.fleet()
        self.shards = shards or shard_count(len(fleet), self._settings.devices_per_shard)
        await self._load_fleet(fleet, now_us)
        await self.probe()
        return self.shards

    async def probe(self) -> None:
        """Look every device's next due moment up again: what was written from outside is seen at latest now."""
        everything = np.arange(len(self._fleet))
        self._ask_again(everything)
        for start in range(0, len(everything), _PROBE_ROWS):
            await self._look_up(everything[start : start + _PROBE_ROWS])

    async def run_once(self, now_us: int, horizon_us: int) -> Pass:
        """Run every pass once; claims fill slots within ``horizon_us``.

        Raises:
            FencedError: another coordinator has taken over.
            StoreUnavailableError: PostgreSQL did not answer; run again.
        """
        await self._begin_day(now_us)
        await self._refresh(now_us)
        rescue = await self._rescuer.run_once(now_us)
        balance = await self._rebalancer.run_once(now_us, self._catalogue, self._homes)
        enrol = await self._enroller.run_once(now_us, self.epoch, self._catalogue, self._homes)
        enrolled = np.isin(self._fleet.number, enrol.number)
        self._next_due[enrolled] = np.minimum(self._next_due[enrolled], now_us)
        if rescue != RescuePass() or balance.changed:
            await self.probe()
        claimed, silent = await self._dispatch(now_us, horizon_us)
        return Pass(claimed, enrol, rescue, balance, self._next_us(), self._next_us(horizon_us - 1), silent)

    async def hear(self, now_us: int) -> int:
        """Take in what became due and whose slots became free meanwhile; returns the next moment of work.

        In production messages end between passes; a shard that does not answer is heard later.
        """
        self.quiet = True
        answers = await asyncio.gather(
            *(self._shards.take_due(shard) for shard in range(self.shards)), return_exceptions=True
        )
        for answer in answers:
            if isinstance(answer, DueSoon):
                self.quiet &= not len(answer)
                self._note_due(answer)
            elif not isinstance(answer, ShardUnavailableError):
                raise answer
        full = self._fleet.sends & (self._next_due <= now_us) & (self._next_free >= NEVER_US)
        self.quiet &= not full.any()
        return self._next_us()

    # Dispatch ------------------------------------------------------------------------------------------------

    async def _dispatch(self, now_us: int, horizon_us: int) -> tuple[int, tuple[int, ...]]:
        if self._versions.paused:
            return 0, ()
        asked = (self._fleet.shard >= 0) & (self._next_due <= now_us) & (self._free_us < now_us + horizon_us)
        shards = np.flatnonzero(np.bincount(self._fleet.shard[asked])).tolist()
        offers = [
            self._ask(shard, np.flatnonzero(asked & (self._fleet.shard == shard)), now_us, horizon_us)
            for shard in shards
        ]
        if self._groups.hold(asked):
            answers = await self._fill_shared(offers, now_us)
        else:
            answers = await asyncio.gather(*(self._fill(offer, now_us) for offer in offers), return_exceptions=True)
        claimed, silent = 0, []
        for shard, answer in zip(shards, answers, strict=True):
            if isinstance(answer, ShardUnavailableError):
                _log.warning("shard %d is left out of this pass: %s", shard, answer, extra={"event": "shard_silent"})
                silent.append(shard)
            elif isinstance(answer, BaseException):
                raise answer
            else:
                claimed += answer
        return claimed, tuple(silent)

    async def _fill_shared(self, offers: list[Coroutine[None, None, Free]], now_us: int) -> list[int | BaseException]:
        """Offers of all shards first, dealt out by what their groups allow, then the claims."""
        answers = await asyncio.gather(*offers, return_exceptions=True)
        dealt = iter(self._groups.deal([free for free in answers if isinstance(free, Free)]))
        offered = [next(dealt) if isinstance(free, Free) else free for free in answers]
        return await asyncio.gather(*(self._fill(_known(free), now_us) for free in offered), return_exceptions=True)

    async def _ask(self, shard: int, rows: Indices, now_us: int, horizon_us: int) -> Free:
        """What one shard offers for these devices."""
        offer = await self._shards.offer(shard, now_us, horizon_us, self._fleet.number[rows])
        self._note_due(offer.due)
        rows = self._fleet.rows(offer.number)
        self._next_free[rows] = offer.free_us
        with_slots = np.flatnonzero(offer.slots)
        return Free(shard, offer, rows[with_slots], offer.slots[with_slots], offer.slot_us)

    async def _fill(self, offered: Awaitable[Free], now_us: int) -> int:
        """Claim and route for what one shard offers; returns how many were claimed."""
        free = await offered
        if not len(free.rows):
            if len(free.offer.slot_us):
                self._note_due(await self._shards.deliver(free.shard, free.offer.offer, None))
            return 0
        want = Want(
            shard=free.shard,
            epoch=free.offer.epoch,
            device_id=[self._fleet.device_id[row] for row in free.rows.tolist()],
            number=self._fleet.number[free.rows],
            slots=free.slots,
            slot_us=free.slot_us,
            since_us=self._next_due[free.rows],
        )
        async with self._claims:
            leased = await self._claim(want, now_us)
            due = await self._shards.deliver(free.shard, free.offer.offer, leased)
        await self._note_claim(free.rows, want, leased)
        self._note_due(due)
        return 0 if leased is None else len(leased)

    async def _claim(self, want: Want, now_us: int) -> Leased | None:
        try:
            leased = await self._store.claim(
                want,
                now_us,
                epoch=self.epoch,
                deadline_us=span_us(self._settings.deadline_s),
                lead_fields=self._reads_lead_fields,
            )
        except BaseException:
            # Whether it was made is unknown: all that it may have leased counts.
            self._groups.charge(np.repeat(want.number, want.slots), want.slot_us)
            raise
        if leased is not None:
            self._groups.charge(leased.device, leased.slot_us)
        return leased

    async def _note_claim(self, rows: Indices, want: Want, leased: Leased | None) -> None:
        """After a claim: where slots stayed empty nothing more is due now; where all filled, more may be.

        What is left is due no earlier than what was claimed.
        """
        filled, last_due_us = np.zeros(len(rows), np.int64), np.zeros(len(rows), np.int64)
        if leased is not None:
            place = np.searchsorted(want.number, leased.device)
            np.add.at(filled, place, 1)
            if not leased.around:
                np.maximum.at(last_due_us, place, leased.due_us)
        self._next_due[rows] = np.maximum(self._next_due[rows], last_due_us)
        first = np.cumsum(want.slots) - want.slots
        last = np.maximum(filled - 1, 0)
        gap_us = span_us(1) * self._fleet.min_gap_s[rows]
        self._next_free[rows] = np.where(filled > 0, want.slot_us[first + last] + gap_us, want.slot_us[first]).astype(
            np.int64
        )
        emptied = rows[filled < want.slots]
        if len(emptied):
            await self._look_up(emptied)

    def _note_due(self, due: DueSoon) -> None:
        known = np.isin(due.number, self._fleet.number)
        rows = self._fleet.rows(due.number[known])
        self._next_due[rows] = np.minimum(self._next_due[rows], due.due_us[known])
        self._ask_again(rows)
        if due.freed is not None:
            self._groups.release(due.freed)

    def _ask_again(self, rows: Indices) -> None:
        """A device that was full of messages in flight, or unavailable, may have free slots again."""
        self._next_free[rows[self._next_free[rows] >= NEVER_US]] = 0

    async def _look_up(self, rows: Indices) -> None:
        self._next_due[rows] = await self._store.next_due([self._fleet.device_id[row] for row in rows.tolist()])

    @property
    def _free_us(self) -> Int64s:
        """When each device is free next, its group included."""
        return self._groups.not_before(self._next_free)

    def _next_us(self, ahead_us: int = 0) -> int:
        if self._versions.paused:
            return NEVER_US
        free_us = self._free_us
        able = (self._fleet.shard >= 0) & self._fleet.sends & (free_us < NEVER_US)
        return int(np.maximum(self._next_due, free_us - ahead_us)[able].min(initial=NEVER_US))

    # Registry ------------------------------------------------------------------------------------------------

    async def _refresh(self, now_us: int) -> None:
        versions = await self._store.versions()
        if versions == self._versions:
            return
        if versions.sequences != self._versions.sequences:
            self._catalogue = await self._store.catalogue(now_us)
        if versions.devices != self._versions.devices:
            await self._load_fleet(await self._store.fleet(), now_us)
            await self._refresh_shards()
        # As read before the rest: what has changed since then is seen by the next pass.
        self._versions = versions
        await self.probe()

    async def _refresh_shards(self) -> None:
        """Shards know of a device that is back before they are asked for its slots; a silent one looks later."""
        calls = (self._shards.refresh(shard) for shard in range(self.shards))
        for answer in await asyncio.gather(*calls, return_exceptions=True):
            if isinstance(answer, BaseException) and not isinstance(answer, ShardUnavailableError):
                raise answer

    async def _load_fleet(self, fleet: Fleet, now_us: int) -> None:
        shard = assign(fleet.shard, self.shards)
        moved = np.flatnonzero(shard != fleet.shard)
        if len(moved):
            await self._store.assign_shards(fleet.number[moved], shard[moved])
        await self._groups.load(fleet, now_us)
        self._fleet = fleet.replace(shard=shard)
        self._homes = self._groups.shares(self._fleet)
        self._next_due = np.zeros(len(fleet), np.int64)
        self._next_free = np.zeros(len(fleet), np.int64)

    @property
    def _reads_lead_fields(self) -> bool:
        return any("{" in text for step in self._catalogue.step.values() for text in step.texts)

    async def _begin_day(self, now_us: int) -> None:
        day = now_us // span_us(86_400)
        if day != self._partitioned_day:
            await self._store.begin_day(now_us, _PARTITION_DAYS, span_us(self._settings.key_retention_s))
            self._partitioned_day = day

    # Leadership ----------------------------------------------------------------------------------------------

    async def beat(self) -> int:
        """Renew the leadership; returns the database's clock.

        Raises:
            FencedError: another coordinator leads.
        """
        if not await self._store.seat.lead(self._settings.leader_s):
            raise FencedError("coordinator", self.epoch)
        beat = await self._store.seat.beat(self._settings.leader_s)
        if beat.epoch != self.epoch:
            raise FencedError("coordinator", self.epoch)
        return beat.wall_us

    async def lead(self) -> bool:
        """Try to become the leader; False while another installation leads."""
        return await self._store.seat.lead(self._settings.leader_s)

    async def leader(self) -> str | None:
        """Who leads."""
        return await self._store.seat.leader()

    async def leave(self) -> None:
        """Give leadership up and close the connections."""
        await self._store.seat.leave()
        await self._store.close()


async def _known(answer: Free | BaseException) -> Free:
    """What was answered already."""
    if isinstance(answer, BaseException):
        raise answer
    return answer
