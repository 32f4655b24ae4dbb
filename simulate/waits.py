"""What the messages of devices waited for: one definition, for the ideal schedule and for what really happened.

On its device the n-th message in the order of slots is set beside the n-th in the order of due moments. Between the
moment it was due and nothing stood before it any more, and its slot, the device had something due and did not send. Of
that span, what lies before the last of the limits let go belongs to that limit; what is left was free to leave.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from dispatcher.core.batches import Columns, Indices, Int8s, Int64s
from simulate.timelines import Limits

LIMITS: Final = ("none", "pacing", "hour", "day", "in_flight")
"""By ``Waits.limit``; of limits that let go at the same moment the first one counts."""


@dataclass(frozen=True, slots=True)
class Waits(Columns):
    """One entry a message, by device, then slot. The spans of a device do not overlap."""

    row: Indices
    """The device's, in the fleet."""
    due_us: Int64s
    since_us: Int64s
    """When it was due and the message before it had left."""
    until_us: Int64s
    """When the last limit let go; ``since_us`` where none held it."""
    slot_us: Int64s
    limit: Int8s
    """Index into ``LIMITS``."""


@dataclass(frozen=True, slots=True)
class Ticks:
    """When messages in flight are settled: at the border of the tick they left in."""

    start_us: int
    width_us: int
    in_flight_max: Int64s
    """Of each device."""

    def border_after(self, slot_us: Int64s) -> Int64s:
        """The first border after each slot."""
        return self.start_us + ((slot_us - self.start_us) // self.width_us + 1) * self.width_us


def waits(
    row: Indices,
    due_us: Int64s,
    slot_us: Int64s,
    limits: Limits,
    *,
    charged: NDArray[np.bool_] | None = None,
    ticks: Ticks | None = None,
) -> Waits:
    """What each message waited for.

    Args:
        row: the device's row, one entry a message, in any order.
        due_us: when each was due.
        slot_us: when each left.
        limits: of all devices; those with a message allow at least one.
        charged: which count against the quotas; all when None. Every one counts for the pacing.
        ticks: None where nothing is ever in flight.
    """
    by_due, by_slot = by_device(row, due_us), by_device(row, slot_us)
    row, due_us, slot_us = row[by_slot], due_us[by_due], slot_us[by_slot]
    counted = np.ones(len(row), np.bool_) if charged is None else charged[by_slot]
    at = np.arange(len(row))
    counts = np.bincount(row)
    first = np.repeat(np.cumsum(counts) - counts, counts)
    nth = at - first
    since_us = np.where(nth > 0, np.maximum(due_us, np.roll(slot_us, 1)), due_us)
    before = np.cumsum(counted) - counted
    quota_at, quota_nth, quota_us = before, before - before[first], slot_us[counted]
    pacing, *windows = limits.bounds(row)
    moments = [pacing.until(slot_us, at, nth)]
    moments += [window.until(quota_us, quota_at, quota_nth) for window in windows]
    if ticks is not None:
        back = np.maximum(ticks.in_flight_max[row], 1)
        settled = ticks.border_after(slot_us[np.maximum(at - back, 0)])
        moments.append(np.where(nth >= back, settled, since_us))
    until_us, limit = since_us.copy(), np.zeros(len(row), np.int8)
    for number, moment_us in enumerate(moments, 1):
        later = np.minimum(moment_us, slot_us) > until_us
        until_us[later] = np.minimum(moment_us, slot_us)[later]
        limit[later] = number
    return Waits(row, due_us, since_us, until_us, slot_us, limit)


def by_device(row: Indices, moments_us: Int64s) -> Indices:
    """Sorts by device, then moment; as one number where that fits, which is much faster."""
    since_us = moments_us - moments_us.min(initial=2**62)
    span = int(since_us.max(initial=0)) + 1
    if span * (int(row.max(initial=0)) + 1) < 2**63:
        return np.argsort(row * span + since_us)
    return np.lexsort((since_us, row))
