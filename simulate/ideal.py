"""The schedule nobody can beat: for the due moments that really occurred, earliest due first on every home device,
under the same guard, pacing and quotas, with no latency and no ticks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dispatcher.core.batches import Int32s, Int64s
from dispatcher.core.fleet import Fleet
from dispatcher.core.moments import SECOND_US
from simulate.timelines import Limits, Timelines

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
    order = np.lexsort((due_us, row))
    due, slot, row = due_us[order], slot_us[np.lexsort((slot_us, row))], row[order]
    counts = np.bincount(row, minlength=len(fleet))
    # What was sent was allowed: a quota that is 0 now has been lowered since.
    fleet = fleet.replace(
        quota_per_hour=np.maximum(fleet.quota_per_hour, 1), quota_per_day=np.maximum(fleet.quota_per_day, 1)
    )
    limits = Limits.of(fleet, hour_us=hour_us, guard_us=guard_us)
    ideal = Timelines(limits, counts).place(row, due)
    at = np.arange(len(row))
    nth = at - (np.cumsum(counts) - counts)[row]
    bound_by = np.zeros(len(row), np.int8)
    for number, bound in reversed(list(enumerate(limits.bounds(row), 1))):
        bound_by[bound.until(ideal, at, nth) == ideal] = number
    bound_by[due == ideal] = 0
    before = np.where(nth > 0, np.roll(ideal, 1), due)
    waits_us = np.bincount(bound_by, ideal - np.maximum(due, before), minlength=len(_LIMITS))
    late_s = (slot - ideal) / SECOND_US
    binding = _LIMITS[1 + int(waits_us[1:].argmax())] if waits_us[1:].any() else "none"
    return Gap(float(late_s.mean()), float(late_s.max()), binding)
