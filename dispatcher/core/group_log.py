"""A limit that many devices share: the moments at which any of them may have sent, against an hour and a day.

A slot ``s`` is free when fewer than the limit's messages are later than a window before ``s``, those ahead of ``s``
included: so slots may come in any order, and whichever window is looked at afterwards, it holds no more than the limit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dispatcher.core.batches import Indices, Int32s, Int64s
from dispatcher.core.moments import NEVER_US
from dispatcher.core.quota import HOURS_PER_DAY
from dispatcher.core.rings import LONG_AGO


@dataclass(frozen=True, slots=True)
class Group:
    """Devices with a limit above their own."""

    name: str
    quota_per_hour: int | None
    """Of all its devices together, in any rolling hour; None: no limit."""
    quota_per_day: int | None
    members: Int32s
    """Numbers of the devices whose messages count: those in it, and those that were within a day."""

    @property
    def most_per_day(self) -> int | None:
        """What it can send in a day; None: no limit."""
        limits = [self.quota_per_day, None if self.quota_per_hour is None else HOURS_PER_DAY * self.quota_per_hour]
        return min((limit for limit in limits if limit is not None), default=None)


def shares(
    quota_per_day: NDArray[np.integer], available: NDArray[np.bool_], group: Indices, limits: Sequence[int | None]
) -> Int64s:
    """The day quota of each device, or its part of what its group may send in a day where that is less.

    Args:
        quota_per_day: the devices' own.
        available: which of them can send: they alone share.
        group: the place of each device's group in ``limits``; -1 for none.
        limits: what each group may send in a day.
    """
    shared = quota_per_day.astype(np.int64)
    for place, limit in enumerate(limits):
        theirs = (group == place) & available
        asked = int(shared[theirs].sum())
        if limit is not None and limit < asked:
            shared[theirs] = -(-shared[theirs] * limit // asked)
    return shared


class GroupLog:
    """What one group has sent, or may have, within a day: a moment and a device each.

    Args:
        hour_us: length of an hour; a day has 24.
        guard_us: how much longer than an hour and a day the windows are.
    """

    def __init__(self, *, hour_us: int, guard_us: int) -> None:
        self._windows_us = (hour_us + guard_us, HOURS_PER_DAY * hour_us + guard_us)
        self._kept_us = sum(self._windows_us)  # more than a day: business time may be set back
        self._limits: list[tuple[int, int]] = []
        self._buffer = np.empty((2, 64), np.int64)  # moments, ascending, and device numbers
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def set_limits(self, quota_per_hour: int | None, quota_per_day: int | None) -> None:
        """Change the limits; None: there is none. New ones bind new slots."""
        quotas = zip((quota_per_hour, quota_per_day), self._windows_us, strict=True)
        self._limits = [(quota, window_us) for quota, window_us in quotas if quota is not None]

    @property
    def next_free_us(self) -> int:
        """From when on another message may leave; ``NEVER_US`` when none ever may."""
        return int(self._opens_us(1)[0])

    def fit(self, slot_us: Int64s) -> Indices:
        """Which of these moments are free, counted against each other: as many as can be, the earliest ones.

        Args:
            slot_us: ascending.
        """
        ranks = np.arange(len(slot_us))
        # The k-th taken stands where the k-th opening has come, and behind the one taken before it.
        place = np.searchsorted(slot_us, self._opens_us(len(slot_us))) - ranks
        place = np.maximum.accumulate(place) + ranks
        return place[place < len(slot_us)]

    def charge(self, slot_us: Int64s, number: Int32s) -> None:
        """Count messages at these moments, in any order, each with its device."""
        if not len(slot_us):
            return
        held = self._buffer[:, : self._size]
        place = int(np.searchsorted(held[0], slot_us.min()))
        tail = np.concatenate((held[:, place:], np.stack((slot_us, number.astype(np.int64)))), axis=1)
        self._put(place, tail[:, np.argsort(tail[0], kind="stable")])

    def release(self, slot_us: Int64s, number: Int32s) -> int:
        """Take messages back that surely were not sent; returns how many counted.

        (Device, slot) names an attempt: one released before, or never charged, changes nothing.
        """
        moments_us, numbers = self._buffer[:, : self._size]
        gone: set[int] = set()
        for moment_us, device in zip(slot_us.tolist(), number.tolist(), strict=True):
            low, high = np.searchsorted(moments_us, (moment_us, moment_us + 1)).tolist()
            theirs = (low + np.flatnonzero(numbers[low:high] == device)).tolist()
            gone.update([place for place in theirs if place not in gone][:1])
        if gone:
            first = min(gone)
            left = np.setdiff1d(np.arange(first, self._size), list(gone))
            self._put(first, self._buffer[:, left])
        return len(gone)

    def _opens_us(self, count: int) -> Int64s:
        """From when on the first, the second, ... of ``count`` further messages may leave; ascending."""
        opens_us = np.full(count, LONG_AGO, np.int64)
        moments_us, ranks = self._buffer[0, : self._size], np.arange(count)
        for quota, window_us in self._limits:
            before = self._size - quota + ranks
            waits = (before >= 0) & (ranks < quota)
            opens_us[waits] = np.maximum(opens_us[waits], moments_us[before[waits]] + window_us)
            opens_us[quota:] = NEVER_US
        return opens_us

    def _put(self, place: int, tail: Int64s) -> None:
        """Exchange everything from ``place`` on. Room is made by forgetting what no window can reach any more."""
        size = place + tail.shape[1]
        if size > self._buffer.shape[1]:
            held = np.concatenate((self._buffer[:, :place], tail), axis=1)
            held = held[:, np.searchsorted(held[0], held[0, -1] - self._kept_us) :]
            self._buffer = np.empty((2, 2 * held.shape[1] + 64), np.int64)
            self._size = held.shape[1]
            self._buffer[:, : self._size] = held
            return
        self._buffer[:, place:size] = tail
        self._size = size
