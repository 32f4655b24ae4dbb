"""The schedule nobody can beat: for the due moments that really occurred, earliest due first on every home device,
under the same guard, pacing and quotas, with no latency and no ticks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dispatcher.core.batches import Int32s, Int64s
from dispatcher.core.fleet import Fleet
from dispatcher.core.moments import SECOND_US
from dispatcher.core.quota import HOURS_PER_DAY

_LONG_AGO = -(2**62)
_LIMITS = ("due", "pacing", "hour", "day")


@dataclass(frozen=True, slots=True)
class Gap:
    """How far the run's schedule is from the ideal one, and what bound the ideal one."""

    mean_s: float
    max_s: float
    binding_limit: str
    """What made devices of the ideal schedule wait longest in sum: ``hour``, ``day``, ``pacing``, or ``none``."""


def gap(device: Int32s, due_us: Int64s, slot_us: Int64s, fleet: Fleet, *, hour_us: int, guard_us: int) -> Gap:
    """Compare slots with the ideal schedule of the same due moments, the n-th of a device with its n-th.

    Args:
        device: device numbers, one entry a message.
        due_us: when each was due.
        slot_us: when each was sent.
        fleet: quotas and pacing.
        hour_us: length of an hour.
        guard_us: how much longer the windows are.
    """
    if not len(device):
        return Gap(0.0, 0.0, "none")
    row = fleet.rows(device)
    counts = np.bincount(row, minlength=len(fleet))
    start = np.cumsum(counts) - counts
    due = due_us[np.lexsort((due_us, row))]
    slot = slot_us[np.lexsort((slot_us, row))]
    ideal = np.empty_like(due)
    waits_us = np.zeros(len(_LIMITS))
    gap_us = np.maximum(np.rint(fleet.min_gap_s * SECOND_US).astype(np.int64), 1)
    windows = (
        (np.minimum(fleet.quota_per_hour, fleet.quota_per_day), hour_us + guard_us),
        (fleet.quota_per_day, HOURS_PER_DAY * hour_us + guard_us),
    )
    for nth in range(int(counts.max())):
        busy = np.flatnonzero(counts > nth)
        at = start[busy] + nth
        bounds = [due[at], np.where(nth > 0, ideal[np.maximum(at - 1, 0)] + gap_us[busy], _LONG_AGO)]
        for quota, window_us in windows:
            back = nth - quota[busy]
            bounds.append(np.where(back >= 0, ideal[np.maximum(at - quota[busy], 0)] + window_us, _LONG_AGO))
        stacked = np.stack(bounds)
        ideal[at] = stacked.max(axis=0)
        before = ideal[np.maximum(at - 1, 0)] if nth else due[at]
        waited_us = ideal[at] - np.maximum(due[at], before)
        waits_us += np.bincount(stacked.argmax(axis=0), waited_us, minlength=len(_LIMITS))
    late_s = (slot - ideal) / SECOND_US
    binding = _LIMITS[1 + int(waits_us[1:].argmax())] if waits_us[1:].any() else "none"
    return Gap(float(late_s.mean()), float(late_s.max()), binding)
