"""What the limits of device groups leave of what shards offer.

Every slot passes through the coordinator, so it alone keeps what each group has sent: it deals the free slots of a pass
out among all shards at once, before the claims, and counts what was claimed. Everything here is memory only and can be
rebuilt from ledger and leases.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dispatcher.config import Settings
from dispatcher.core.batches import Freed, Indices, Int32s, Int64s, SlotOffer
from dispatcher.core.fleet import Fleet
from dispatcher.core.group_log import Group, GroupLog, shares
from dispatcher.core.moments import span_us
from dispatcher.core.quota import HOURS_PER_DAY
from dispatcher.ports import CoordinatorStore


class Free(NamedTuple):
    """Slots that a claim may fill, of one shard."""

    shard: int
    offer: SlotOffer
    rows: Indices
    """Rows in the fleet of the devices that have slots, ascending."""
    slots: Int32s
    """How many each has."""
    slot_us: Int64s
    """All of them, device after device, ascending within one."""

    def only(self, kept: NDArray[np.bool_]) -> Free:
        """Reduced to those slots."""
        rows, slots = np.unique(np.repeat(self.rows, self.slots)[kept], return_counts=True)
        return self._replace(rows=rows, slots=slots.astype(np.int32), slot_us=self.slot_us[kept])


class Groups:
    """The groups' usage under one coordinator.

    Their windows are longer than the limits' own by the guard and the deadline: so every message counts at the latest
    moment it can have been sent, whatever becomes of it.

    Args:
        store: where it is rebuilt from.
        settings: length of an hour, guard, deadline.
    """

    def __init__(self, store: CoordinatorStore, settings: Settings) -> None:
        self._store = store
        self._hour_us = settings.hours_us(1)
        self._guard_us = span_us(settings.guard_s + settings.deadline_s)
        self._logs: dict[str, GroupLog] = {}
        self._loaded: dict[str, Int32s] = {}
        self._limits: list[Group] = []
        self._names: list[str] = []
        self._code = np.zeros(0, np.intp)  # by row of the fleet: place in the names; -1 for no group
        self._number = np.zeros(0, np.int32)
        self._served_us = np.zeros(0, np.int64)

    async def load(self, fleet: Fleet, now_us: int) -> None:
        """Take in devices and limits as they are now; what those have sent that join a group is read."""
        names = sorted({name for name in fleet.group if name is not None})
        limits: list[Group] = []
        if names:
            since_us = now_us - HOURS_PER_DAY * self._hour_us - self._guard_us
            limits = [group for group in await self._store.groups(since_us) if group.name in names]
            await self._load_usage(limits, since_us)
        self._limits = limits
        self._names = [group.name for group in limits]
        place = {name: code for code, name in enumerate(self._names)}
        self._code = np.array([-1 if name is None else place.get(name, -1) for name in fleet.group], np.intp)
        self._number, self._served_us = fleet.number, np.zeros(len(fleet), np.int64)

    async def _load_usage(self, limits: list[Group], since_us: int) -> None:
        none = np.zeros(0, np.int32)
        joined = {
            group.name: np.setdiff1d(group.members, self._loaded.get(group.name, none)).astype(np.int32)
            for group in limits
        }
        numbers = np.unique(np.concatenate([none, *joined.values()]))
        usage = await self._store.usage(numbers, since_us) if len(numbers) else []
        for group in limits:
            log = self._logs.setdefault(group.name, GroupLog(hour_us=self._hour_us, guard_us=self._guard_us))
            log.set_limits(group.quota_per_hour, group.quota_per_day)
            for part in usage:
                if part.number in joined[group.name]:
                    log.charge(part.at_us, np.full(len(part.at_us), part.number, np.int32))
            self._loaded[group.name] = np.union1d(self._loaded.get(group.name, none), group.members)

    def shares(self, fleet: Fleet) -> Fleet:
        """The fleet with each device's part of what its group may send in a day: what leads are spread by."""
        if not self._limits:
            return fleet
        most = [group.most_per_day for group in self._limits]
        quota_per_day = shares(fleet.quota_per_day, fleet.available, self._code, most)
        return fleet.replace(quota_per_day=quota_per_day.astype(np.int32))

    def hold(self, asked: NDArray[np.bool_]) -> bool:
        """Whether some of the ``asked`` rows of the fleet share a limit."""
        return bool(self._limits) and bool((self._code[asked] >= 0).any())

    def not_before(self, free_us: Int64s) -> Int64s:
        """When each device is free and its group too, given the moments that the devices are."""
        if not self._limits:
            return free_us
        group_us = [self._logs[name].next_free_us for name in self._names]
        return np.maximum(free_us, np.array([*group_us, 0], np.int64)[self._code])

    def deal(self, offers: Sequence[Free]) -> list[Free]:
        """What the groups' limits leave of the offers of one pass, the earliest slots; of equal ones those of the
        devices that have been dealt none for the longest."""
        rows = [np.repeat(free.rows, free.slots) for free in offers]
        row = np.concatenate([np.zeros(0, np.intp), *rows])
        slot_us = np.concatenate([np.zeros(0, np.int64), *(free.slot_us for free in offers)])
        code = self._code[row]
        kept = code < 0
        for each in np.unique(code[~kept]).tolist():
            some = np.flatnonzero(code == each)
            some = some[np.lexsort((row[some], self._served_us[row[some]], slot_us[some]))]
            taken = some[self._logs[self._names[each]].fit(slot_us[some])]
            np.maximum.at(self._served_us, row[taken], slot_us[taken])
            kept[taken] = True
        parts = np.split(kept, np.cumsum([len(part) for part in rows]))[:-1]
        return [free.only(part) for free, part in zip(offers, parts, strict=True)]

    def charge(self, number: Int32s, slot_us: Int64s) -> None:
        """Messages that leave, or may, at these moments."""
        for log, mine in self._by_group(number):
            log.charge(slot_us[mine], number[mine])

    def release(self, freed: Freed) -> None:
        """Messages that surely were not sent."""
        for log, mine in self._by_group(freed.number):
            log.release(freed.slot_us[mine], freed.number[mine])

    def _by_group(self, number: Int32s) -> list[tuple[GroupLog, Indices]]:
        """The logs of these devices' groups, each with the places of its devices."""
        if not self._limits:
            return []
        row = np.minimum(np.searchsorted(self._number, number), len(self._number) - 1)
        code = np.where(self._number[row] == number, self._code[row], -1)
        return [(self._logs[self._names[each]], np.flatnonzero(code == each)) for each in np.unique(code) if each >= 0]
