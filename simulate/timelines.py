"""The slots of many devices under pacing and both rolling windows, with no latency and no ticks.

A message leaves when it is due, but not before its device's pacing has passed since the one before, and not before the
one that is an hour quota (a day quota) older has left the hour (the day): the rule of ``dispatcher.core.quota``, guard
included, for messages whose due moments are known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dispatcher.core.batches import Indices, Int64s
from dispatcher.core.fleet import Fleet
from dispatcher.core.moments import SECOND_US
from dispatcher.core.quota import HOURS_PER_DAY
from dispatcher.core.rings import LONG_AGO, ranges

_CELLS = 1 << 13
"""Messages that are placed by one round of array operations, at most: what the processor's cache holds."""


class Bound(NamedTuple):
    """A message leaves no earlier than ``span_us`` after the slot of the message ``back`` before it on its device."""

    back: Int64s
    span_us: Int64s

    def until(self, slot_us: Int64s, at: Indices, nth: Int64s) -> Int64s:
        """The earliest moments of messages by this bound alone.

        Args:
            slot_us: slots, those of a device side by side, in its order.
            at: where the message's own slot belongs.
            nth: how many messages its device has before it.
        """
        known = nth >= self.back
        if not known.any():
            return np.broadcast_to(np.int64(LONG_AGO), known.shape)
        until_us = slot_us.take(at - self.back, mode="clip")
        until_us += self.span_us
        until_us[~known] = LONG_AGO
        return until_us


@dataclass(frozen=True, slots=True)
class Limits:
    """What binds each device of a fleet: columns in its order, and the two windows."""

    per_hour: Int64s
    """Never more than ``per_day``; 0 means never."""
    per_day: Int64s
    gap_us: Int64s
    """At least 1."""
    hour_window_us: int
    day_window_us: int

    @classmethod
    def of(cls, fleet: Fleet, *, hour_us: int, guard_us: int) -> Limits:
        """Those of ``fleet``; the windows are longer than an hour and a day by the guard."""
        per_day = fleet.quota_per_day.astype(np.int64)
        return cls(
            np.minimum(fleet.quota_per_hour, per_day),
            per_day,
            np.maximum(np.rint(fleet.min_gap_s * SECOND_US).astype(np.int64), 1),
            hour_us + guard_us,
            HOURS_PER_DAY * hour_us + guard_us,
        )

    def bounds(self, rows: Indices) -> tuple[Bound, Bound, Bound]:
        """Pacing, hour and day of those rows, in their shape."""
        one = np.ones_like(rows)
        return (
            Bound(one, self.gap_us[rows]),
            Bound(self.per_hour[rows], one * self.hour_window_us),
            Bound(self.per_day[rows], one * self.day_window_us),
        )


class Timelines:
    """The slots of every device, in the order in which its messages were placed.

    Args:
        limits: of all devices; those that get a message must allow one.
        counts: how many messages each device will get.
    """

    def __init__(self, limits: Limits, counts: Indices) -> None:
        self._limits = limits
        self._start = np.cumsum(counts) - counts
        self._placed = np.zeros(len(counts), np.int64)
        self._slot_us = np.empty(int(counts.sum()), np.int64)

    def place(self, row: Indices, due_us: Int64s) -> Int64s:
        """The slot of each message, behind all that were placed before.

        Args:
            row: the device's row in the fleet, ascending.
            due_us: ascending within a row.
        """
        first = np.flatnonzero(np.diff(row, prepend=-1))
        rows, counts = row[first], np.diff(first, append=len(row))
        places = ranges(self._start[rows] + self._placed[rows], counts)
        while len(rows):
            # Among so many messages of a device none waits for another one to leave the hour: all are found at once.
            length = min(int(self._limits.per_hour[rows].min()), int(counts.max()))
            for begin in range(0, len(rows), max(_CELLS // length, 1)):
                some = slice(begin, begin + max(_CELLS // length, 1))
                self._extend(rows[some], due_us, first[some], np.minimum(counts[some], length))
            more = counts > length
            rows, first, counts = rows[more], first[more] + length, counts[more] - length
        return self._slot_us[places]

    def _extend(self, rows: Indices, due_us: Int64s, first: Indices, counts: Indices) -> None:
        """Place ``counts`` messages of each of the distinct rows, whose due moments begin at ``first``."""
        rank = np.arange(int(counts.max()))
        nth = self._placed[rows][:, None] + rank
        at = self._start[rows][:, None] + nth
        pacing, *windows = self._limits.bounds(rows[:, None])
        slot_us = due_us.take(first[:, None] + rank, mode="clip")  # beyond a row's count: not kept
        for window in windows:
            np.maximum(slot_us, window.until(self._slot_us, at, nth), out=slot_us)
        np.maximum(slot_us[:, :1], pacing.until(self._slot_us, at[:, :1], nth[:, :1]), out=slot_us[:, :1])
        # slot[k] = max(slot[k], slot[k - 1] + gap), for all k: a running maximum on a slope of one gap a message.
        slope = pacing.span_us * rank
        slot_us -= slope
        np.maximum.accumulate(slot_us, axis=1, out=slot_us)
        slot_us += slope
        kept = rank < counts[:, None]
        self._slot_us[at[kept]] = slot_us[kept]
        self._placed[rows] += counts
