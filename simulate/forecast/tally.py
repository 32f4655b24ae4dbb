"""What is counted on the way: sends by hour and step, waits by hour and limit, moments by wave and step."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from dispatcher.core.batches import Indices, Int64s
from dispatcher.core.moments import NEVER_US
from simulate.axis import Axis
from simulate.timelines import Placed

REASONS: Final = ("pacing", "hour", "day", "group hour", "group day")
"""Rows of ``Tally.waited_us``: ``Placed.limit`` less one."""


class Tally:
    """Counts of one forecast.

    Args:
        start_us: where hours count from.
        hour_us: length of an hour.
        waves: how many waves there are.
        steps: how many steps there are.
        deadline_us: when everything is to be over; None: there is no such moment.
    """

    def __init__(self, start_us: int, hour_us: int, waves: int, steps: int, deadline_us: int | None) -> None:
        self._deadline_us = NEVER_US if deadline_us is None else deadline_us
        self.overdue = 0
        """Messages that left at the deadline or later."""
        self._start_us, self._hour_us, self._steps = start_us, hour_us, steps
        self.sent = np.zeros((0, steps), np.int64)
        """Messages of each step in each hour."""
        self.waited_us = np.zeros((len(REASONS), 0), np.int64)
        """How long devices had something due and a limit held it, in each hour."""
        shape = waves * steps
        self._first_us, self._last_us = np.full(shape, NEVER_US, np.int64), np.full(shape, -NEVER_US, np.int64)
        self._count, self._late_us = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        self._shape = (waves, steps)

    def add(self, wave: Indices, step: Indices, due_us: Int64s, slot_us: Int64s) -> None:
        """Messages that are sent."""
        if not len(slot_us):
            return
        self.overdue += int(np.count_nonzero(slot_us >= self._deadline_us))
        hour = (slot_us - self._start_us) // self._hour_us
        self._reach(int(hour.max()) + 1)
        low = int(hour.min())
        counts = np.bincount((hour - low) * self._steps + step)
        rows = -(-len(counts) // self._steps)
        counts.resize(rows * self._steps)
        self.sent[low : low + rows] += counts.reshape(rows, self._steps)
        code = wave * self._steps + step
        self._count += np.bincount(code, minlength=len(self._count))
        np.minimum.at(self._first_us, code, slot_us)
        np.maximum.at(self._last_us, code, slot_us)
        np.maximum.at(self._late_us, code, slot_us - due_us)

    def add_waits(self, placed: Placed) -> None:
        """What messages waited for."""
        for number in range(1, len(REASONS) + 1):
            held = placed.limit == number
            if held.any():
                until_us = placed.slot_us[held]
                self._reach(int((until_us.max() - self._start_us) // self._hour_us) + 1)
                hours = self.waited_us.shape[1]
                axis = Axis(self._start_us, self._start_us + hours * self._hour_us, self._hour_us)
                self.waited_us[number - 1] += axis.covered(placed.since_us[held], until_us)

    @property
    def first_us(self) -> Int64s:
        """When the first message of each wave and step left; ``NEVER_US`` where none did."""
        return self._first_us.reshape(self._shape)

    @property
    def last_us(self) -> Int64s:
        """When the last one did; ``-NEVER_US`` where none did."""
        return self._last_us.reshape(self._shape)

    @property
    def count(self) -> NDArray[np.int64]:
        """How many did."""
        return self._count.reshape(self._shape)

    @property
    def late_us(self) -> Int64s:
        """By how much the latest one was late."""
        return self._late_us.reshape(self._shape)

    def _reach(self, hours: int) -> None:
        more = hours - len(self.sent)
        if more > 0:
            more = max(more, len(self.sent))
            self.sent = np.pad(self.sent, ((0, more), (0, 0)))
            self.waited_us = np.pad(self.waited_us, ((0, 0), (0, more)))
