"""The slots of many devices under pacing and both rolling windows, with no latency and no ticks.

A message leaves when it is due, but not before its device's pacing has passed since the one before, and not before the
one that is an hour quota (a day quota) older has left the hour (the day): the rule of ``dispatcher.core.quota``, guard
included, for messages whose due moments are known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dispatcher.core.batches import Indices, Int8s, Int64s
from dispatcher.core.fleet import Fleet
from dispatcher.core.moments import NEVER_US, SECOND_US
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


class Placed(NamedTuple):
    """Where messages were placed: one entry each."""

    slot_us: Int64s
    """``NEVER_US`` where none was found in time."""
    since_us: Int64s
    """When it was due and nothing stood before it on its device any more."""
    limit: Int8s
    """What it waited for between then and its slot, by ``simulate.waits.LIMITS``."""


class Timelines:
    """The slots of every device, in the order in which its messages were placed.

    Args:
        limits: of all devices; those that get a message must allow one.
        counts: how many messages each device will get; None: room is made on the way, and what no window can see any
            more is forgotten.
        keep: with ``counts`` None, how many of a device's latest slots are never forgotten; None: its day quota.
    """

    def __init__(self, limits: Limits, counts: Indices | None = None, *, keep: Int64s | None = None) -> None:
        self.limits = limits
        room = np.zeros(len(limits.per_day), np.int64) if counts is None else counts
        self._keep = limits.per_day if keep is None else keep
        self._start = np.cumsum(room) - room
        self._end = self._start + room
        self._placed = np.zeros(len(room), np.int64)
        self._last_us = np.full(len(room), LONG_AGO, np.int64)
        self._slot_us = np.empty(int(room.sum()), np.int64)

    def last_us(self, row: Indices) -> Int64s:
        """The latest slot of each row."""
        return self._last_us[row]

    def place(
        self, row: Indices, due_us: Int64s, *, until_us: int = NEVER_US, charged: NDArray[np.bool_] | None = None
    ) -> Int64s:
        """The slot of each message, behind all that were placed before.

        Args:
            row: the device's row in the fleet, ascending.
            due_us: ascending within a row.
            until_us: slots from then on are not taken: such a message gets ``NEVER_US``.
            charged: which count against the quotas; all when None. Every one counts for the pacing.
        """
        slot_us = np.full(len(row), NEVER_US, np.int64)
        self._place(_Messages(row, due_us, charged, until_us), slot_us, None)
        return slot_us

    def explain(
        self, row: Indices, due_us: Int64s, *, until_us: int = NEVER_US, charged: NDArray[np.bool_] | None = None
    ) -> Placed:
        """As ``place``, and what each message waited for."""
        slot_us = np.full(len(row), NEVER_US, np.int64)
        placed = Placed(slot_us, due_us.copy(), np.zeros(len(row), np.int8))
        self._place(_Messages(row, due_us, charged, until_us), slot_us, placed)
        return placed

    def record(self, row: Indices, slot_us: Int64s) -> None:
        """Messages that were sent before all others.

        Args:
            row: ascending.
            slot_us: ascending within a row.
        """
        first = np.flatnonzero(np.diff(row, prepend=-1))
        rows, counts = row[first], np.diff(first, append=len(row))
        self._make_room(rows, counts)
        self._slot_us[ranges(self._start[rows] + self._placed[rows], counts)] = slot_us
        self._placed[rows] += counts
        self._last_us[rows] = slot_us[first + counts - 1]

    def _place(self, messages: _Messages, slot_us: Int64s, placed: Placed | None) -> None:
        first = np.flatnonzero(np.diff(messages.row, prepend=-1))
        rows, counts = messages.row[first], np.diff(first, append=len(messages.row))
        self._make_room(rows, counts)
        while len(rows):
            # Among so many messages of a device none waits for another one to leave the hour: all are found at once.
            length = min(int(self.limits.per_hour[rows].min()), int(counts.max()))
            in_time = np.zeros(len(rows), np.bool_)
            for begin in range(0, len(rows), max(_CELLS // length, 1)):
                some = slice(begin, begin + max(_CELLS // length, 1))
                part = _Part(rows[some], first[some], np.minimum(counts[some], length))
                in_time[some] = self._extend(messages, part, slot_us, placed)
            more = (counts > length) & in_time
            rows, first, counts = rows[more], first[more] + length, counts[more] - length

    def _extend(self, messages: _Messages, part: _Part, slots_us: Int64s, placed: Placed | None) -> NDArray[np.bool_]:
        """Place some of the messages; returns of which rows all found a slot in time."""
        rows = part.rows
        rank = np.arange(int(part.counts.max()))
        message = part.first[:, None] + rank
        kept = rank < part.counts[:, None]
        counted, before = kept, rank
        if messages.charged is not None:
            counted = kept & messages.charged.take(message, mode="clip")
            before = np.cumsum(counted, axis=1) - counted
        nth = self._placed[rows][:, None] + before
        at = self._start[rows][:, None] + nth
        pacing, *windows = self.limits.bounds(rows[:, None])
        due_us = messages.due_us.take(message, mode="clip")  # beyond a row's count: not kept
        slot_us, last_us = due_us.copy(), self._last_us[rows][:, None]
        until_us = [window.until(self._slot_us, at, nth) for window in windows]
        for each in until_us:
            np.maximum(slot_us, each, out=slot_us)
        np.maximum(slot_us[:, :1], last_us + pacing.span_us, out=slot_us[:, :1])
        # slot[k] = max(slot[k], slot[k - 1] + gap), for all k: a running maximum on a slope of one gap a message.
        slope = pacing.span_us * rank
        slot_us -= slope
        np.maximum.accumulate(slot_us, axis=1, out=slot_us)
        slot_us += slope
        if messages.until_us < NEVER_US:
            kept = kept & (slot_us < messages.until_us)
            counted = counted & kept
        slots_us[message[kept]] = slot_us[kept]
        if placed is not None:
            before_us = np.concatenate([last_us, slot_us[:, :-1]], axis=1)
            since_us = np.maximum(due_us, before_us)
            limit = np.where(slot_us == until_us[0], _HOUR, _DAY)
            limit[slot_us == before_us + pacing.span_us] = _PACING
            limit[slot_us == since_us] = _NOTHING
            placed.since_us[message[kept]], placed.limit[message[kept]] = since_us[kept], limit[kept]
        self._slot_us[at[counted]] = slot_us[counted]
        self._placed[rows] += np.count_nonzero(counted, axis=1)
        found = np.count_nonzero(kept, axis=1)
        self._last_us[rows] = np.where(found, slot_us[np.arange(len(rows)), found - 1], last_us[:, 0])
        return np.asarray(found == part.counts)

    def _make_room(self, rows: Indices, counts: Indices) -> None:
        """See that each row has room for so many more."""
        if (self._start[rows] + self._placed[rows] + counts <= self._end[rows]).all():
            return
        kept = np.minimum(self._placed, self._keep)
        room = kept.copy()
        room[rows] += 2 * counts
        start = np.cumsum(room) - room
        slot_us = np.empty(int(room.sum()), np.int64)
        slot_us[ranges(start, kept)] = self._slot_us[ranges(self._start + self._placed - kept, kept)]
        self._start, self._end, self._placed, self._slot_us = start, start + room, kept, slot_us


_NOTHING, _PACING, _HOUR, _DAY = range(4)
"""By ``Placed.limit``; as in ``simulate.waits.LIMITS``."""


class _Messages(NamedTuple):
    """As the arguments of ``Timelines.place``."""

    row: Indices
    due_us: Int64s
    charged: NDArray[np.bool_] | None
    until_us: int


class _Part(NamedTuple):
    """Some messages of some distinct rows."""

    rows: Indices
    first: Indices
    """Where each row's begin among the messages."""
    counts: Indices
