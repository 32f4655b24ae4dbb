"""The schedule nobody can beat: for the due moments that really occurred, earliest due first on every home device,
under the same guard, pacing and quotas, with no latency and no ticks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dispatcher.core.batches import Columns, Indices, Int32s, Int64s
from dispatcher.core.fleet import Fleet
from dispatcher.core.moments import SECOND_US
from simulate.timelines import Limits, Timelines
from simulate.waits import binding_limit, by_device, waits


@dataclass(frozen=True, slots=True)
class Gap:
    """How far the run's schedule is from the ideal one, and what bound the ideal one."""

    mean_s: float
    max_s: float
    binding_limit: str
    """What made devices of the ideal schedule wait longest in sum: ``hour``, ``day``, ``pacing``, or ``none``."""


@dataclass(frozen=True, slots=True)
class Beside(Columns):
    """The run's schedule beside the ideal one: by device, the n-th message of each in a row."""

    row: Indices
    """The device's, in the fleet."""
    due_us: Int64s
    slot_us: Int64s
    ideal_us: Int64s

    @property
    def late_s(self) -> NDArray[np.float64]:
        """How far each slot is behind the ideal one."""
        return (self.slot_us - self.ideal_us) / SECOND_US


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
    both = beside(fleet.rows(device), due_us, slot_us, fleet, hour_us=hour_us, guard_us=guard_us)
    waited = waits(both.row, both.due_us, both.ideal_us, allowed(fleet, hour_us=hour_us, guard_us=guard_us))
    return Gap(float(both.late_s.mean()), float(both.late_s.max()), binding_limit(waited))


def beside(row: Indices, due_us: Int64s, slot_us: Int64s, fleet: Fleet, *, hour_us: int, guard_us: int) -> Beside:
    """The two schedules; the arguments are those of ``gap``, with rows of the fleet for devices."""
    order = by_device(row, due_us)
    due, slot, row = due_us[order], slot_us[by_device(row, slot_us)], row[order]
    counts = np.bincount(row, minlength=len(fleet))
    return Beside(row, due, slot, Timelines(allowed(fleet, hour_us=hour_us, guard_us=guard_us), counts).place(row, due))


def allowed(fleet: Fleet, *, hour_us: int, guard_us: int) -> Limits:
    """The limits of ``fleet``. What was sent was allowed: a quota that is 0 has been lowered since, and counts as 1."""
    fleet = fleet.replace(
        quota_per_hour=np.maximum(fleet.quota_per_hour, 1), quota_per_day=np.maximum(fleet.quota_per_day, 1)
    )
    return Limits.of(fleet, hour_us=hour_us, guard_us=guard_us)
