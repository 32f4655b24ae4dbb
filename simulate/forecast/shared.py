"""Limits that devices share, in a forecast: whoever's device is free stands in line for its group."""

from __future__ import annotations

import copy
from typing import Final

import numpy as np
from numpy.typing import NDArray

from dispatcher.core.batches import Indices, Int8s, Int64s
from dispatcher.core.moments import NEVER_US
from dispatcher.core.rings import LONG_AGO
from simulate.timelines import Placed, Timelines
from simulate.waits import LIMITS, Shared

_ROUNDS: Final = 6
_HOUR, _DAY = LIMITS.index("group hour"), LIMITS.index("group day")


class Lines:
    """One line a group, and what each has let through.

    Args:
        shared: the limits.
    """

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._sent_us = [np.zeros(0, np.int64) for _ in shared.per_hour]

    def record(self, row: Indices, slot_us: Int64s) -> None:
        """Messages that count, by the row of their device in the fleet."""
        group = self._shared.group[row]
        for each in np.unique(group[group >= 0]).tolist():
            sent_us = np.sort(np.concatenate((self._sent_us[each], slot_us[group == each])))
            self._sent_us[each] = sent_us[-max(quota for quota, _ in self._limits(each)) :]

    def explain(
        self,
        timelines: Timelines,
        low: int,
        row: Indices,
        due_us: Int64s,
        *,
        until_us: int,
        charged: NDArray[np.bool_] | None,
    ) -> Placed:
        """As ``Timelines.explain``, for rows of the fleet from ``low`` on.

        A message stands in line from when its device could send it, and its device then sends it when it can. What that
        puts off stands in line once more; every round only makes messages later.
        """
        counted = np.ones(len(row), np.bool_) if charged is None else charged
        group, last_us, ready_us = self._shared.group[row + low], timelines.last_us(row), due_us
        limit = np.zeros(len(row), np.int8)
        for _ in range(_ROUNDS):
            trial = copy.deepcopy(timelines)
            free_us = np.minimum(trial.place(row, ready_us, until_us=until_us, charged=charged), until_us)
            opened_us, held_by = self._opened(group, free_us, counted, until_us)
            later = opened_us > free_us
            if not later.any():
                break
            ready_us, limit = np.maximum(ready_us, opened_us), np.where(later, held_by, limit)
        placed = timelines.explain(row, ready_us, until_us=until_us, charged=charged)
        there = placed.slot_us < until_us
        self.record((row + low)[there & counted], placed.slot_us[there & counted])
        before_us = np.where(np.diff(row, prepend=-1) == 0, np.roll(placed.slot_us, 1), last_us)
        mine = there & (limit > 0) & (placed.slot_us == ready_us)
        since_us = np.where(mine, np.maximum(due_us, before_us), placed.since_us)
        return Placed(placed.slot_us, since_us, np.where(mine, limit, placed.limit))

    def _limits(self, group: int) -> list[tuple[int, int]]:
        """Each limit there is, with its window."""
        shared = self._shared
        both = ((shared.per_hour, shared.hour_window_us), (shared.per_day, shared.day_window_us))
        return [(int(quota[group]), window_us) for quota, window_us in both if quota[group] < NEVER_US]

    def _opened(
        self, group: Int64s, free_us: Int64s, counted: NDArray[np.bool_], until_us: int
    ) -> tuple[Int64s, Int8s]:
        """When groups let messages through, in the order in which their devices are free, and what held each."""
        opened_us, held_by = free_us.copy(), np.zeros(len(group), np.int8)
        for each in np.unique(group[group >= 0]).tolist():
            mine = np.flatnonzero(group == each)
            mine = mine[np.argsort(free_us[mine], kind="stable")]
            opened_us[mine], held_by[mine] = self._line(each, free_us[mine], counted[mine], until_us)
        return opened_us, held_by

    def _line(self, group: int, free_us: Int64s, counted: NDArray[np.bool_], until_us: int) -> tuple[Int64s, Int8s]:
        limits, sent_us = self._limits(group), self._sent_us[group]
        size, have, last_us = min(quota for quota, _ in limits), len(sent_us), sent_us[-1:].max(initial=LONG_AGO)
        before: Int64s = np.cumsum(counted) - counted
        let_us = np.concatenate((sent_us, np.full(int(counted.sum()), LONG_AGO)))
        opened_us, held_by = np.full(len(free_us), until_us, np.int64), np.zeros(len(free_us), np.int8)
        low, at_us = 0, LONG_AGO
        # Among so many messages none waits for another one to leave a window: all are found at once.
        while low < len(free_us) and at_us < until_us:
            high = int(np.searchsorted(before, before[low] + size))
            part_us, nth = free_us[low:high].copy(), have + before[low:high]
            for quota, window_us in limits:
                opens_us = np.where(nth >= quota, let_us[np.maximum(nth - quota, 0)] + window_us, LONG_AGO)
                code = _HOUR if window_us == self._shared.hour_window_us else _DAY
                held_by[low:high] = np.where(opens_us > part_us, code, held_by[low:high])
                np.maximum(part_us, opens_us, out=part_us)
            part_us[0] = max(part_us[0], at_us)
            np.maximum.accumulate(part_us, out=part_us)
            counts = counted[low:high]
            let_us[nth[counts]] = np.maximum(part_us[counts], last_us)
            opened_us[low:high] = np.minimum(part_us, until_us)
            low, at_us = high, int(part_us[-1])
        return opened_us, held_by
