"""Times of day at which messages are due, by the clock on the lead's wall.

A day's moment is the first at which the clock has reached the time: where clocks jump over it, the moment they jump;
of two that show it, the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import time
from functools import lru_cache
from typing import Final

import numpy as np

from dispatcher.core.batches import Coded, Indices, Int64s
from dispatcher.core.moments import NEVER_US
from dispatcher.core.windows import BLOCK_DAYS, BLOCK_US, DAY_US, by_zone, of_day_us, offsets

_MARGIN_DAYS: Final = 1
"""A day lies in the block of the day before it: the first hours of a block are not worked out everywhere."""


@dataclass(frozen=True, slots=True)
class TimeOfDay:
    """When messages of a step are due."""

    at: time
    time_zone: str
    """IANA name, for leads whose own zone is unknown."""


def next_at(
    times: Sequence[TimeOfDay],
    which: Indices,
    time_zone: Coded[str | None],
    moment_us: Int64s,
    midnights: Int64s,
    least_us: Int64s,
) -> Int64s:
    """For each row the first moment of a time of day, so many midnights after ``moment_us`` and from ``least_us`` on.

    Args:
        which: which of ``times`` counts; -1: the row stays at ``moment_us``.
        time_zone: the leads'.
        midnights: 0 is the day of ``moment_us``.
        least_us: at most a day after the moment of that day.
    """
    found = moment_us.copy()
    for number, zone, rows in by_zone(which, time_zone, [each.time_zone for each in times]):
        at, day = times[number].at, day_of(moment_us[rows], zone) + midnights[rows]
        moments_us = on_day(day, zone, at)
        late = moments_us < least_us[rows]
        moments_us[late] = on_day(day[late] + 1, zone, at)
        found[rows] = moments_us
    return found


def day_of(moment_us: Int64s, zone: str) -> Int64s:
    """The day that a clock in ``zone`` shows, counted from 1970-01-01."""
    found = np.empty(len(moment_us), np.int64)
    block = moment_us // BLOCK_US
    for number in np.unique(block).tolist():
        rows = block == number
        since_us, offset_us = offsets(zone, number)
        place = np.searchsorted(since_us, moment_us[rows], side="right") - 1
        found[rows] = (moment_us[rows] + offset_us[place]) // DAY_US
    return found


def on_day(day: Int64s, zone: str, at: time) -> Int64s:
    """When a clock in ``zone`` first shows ``at``, or a later time, on each day."""
    found = np.empty(len(day), np.int64)
    block = (day - _MARGIN_DAYS) // BLOCK_DAYS
    for number in np.unique(block).tolist():
        rows = block == number
        found[rows] = _moments(zone, at, number)[day[rows] - number * BLOCK_DAYS - _MARGIN_DAYS]
    return found


@lru_cache(maxsize=4096)
def _moments(zone: str, at: time, block: int) -> Int64s:
    since_us, offset_us = offsets(zone, block)
    shown_us = (block * BLOCK_DAYS + _MARGIN_DAYS + np.arange(BLOCK_DAYS)) * DAY_US + of_day_us(at)
    found = np.full(BLOCK_DAYS, NEVER_US, np.int64)
    stretches = list(zip(since_us[:-1].tolist(), since_us[1:].tolist(), offset_us.tolist(), strict=True))
    for from_us, to_us, offset in reversed(stretches):
        reached_us = np.maximum(shown_us - offset, from_us)
        found = np.where(reached_us < to_us, reached_us, found)
    return found
