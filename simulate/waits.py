"""What the messages of devices waited for: one definition, for the ideal schedule and for what really happened.

On its device the n-th message in the order of slots is set beside the n-th in the order of due moments. Between the
moment it was due and nothing stood before it any more, and its slot, the device had something due and did not send. Of
that span, what lies before the last of the limits let go belongs to that limit; what is left was free to leave.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from dispatcher.config import Settings
from dispatcher.core.batches import Columns, Indices, Int8s, Int64s
from dispatcher.core.fleet import Fleet
from dispatcher.core.group_log import Group
from dispatcher.core.moments import NEVER_US, span_us
from dispatcher.core.quota import HOURS_PER_DAY
from dispatcher.core.rings import LONG_AGO
from simulate.timelines import Limits

LIMITS: Final = ("none", "pacing", "hour", "day", "group hour", "group day", "in_flight")
"""By ``Waits.limit``; of limits that let go at the same moment the first one counts."""
_GROUP_HOUR: Final = LIMITS.index("group hour")
_IN_FLIGHT: Final = LIMITS.index("in_flight")


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


@dataclass(frozen=True, slots=True)
class Shared:
    """Limits that devices share."""

    group: Indices
    """Place of each device's group among the limits; -1 for none."""
    per_hour: Int64s
    """``NEVER_US`` where there is no limit."""
    per_day: Int64s
    hour_window_us: int
    day_window_us: int

    @classmethod
    def of(cls, fleet: Fleet, groups: Sequence[Group], settings: Settings) -> Self | None:
        """What the devices of ``fleet`` share; None: nothing.

        Groups' windows are longer by guard and deadline: the coordinator counts what it claims at its latest moment.
        """
        place = {group.name: n for n, group in enumerate(groups) if group.most_per_day is not None}
        if not any(name in place for name in fleet.group):
            return None
        guard_us = span_us(settings.guard_s + settings.deadline_s)
        return cls(
            np.array([place.get(name or "", -1) for name in fleet.group], np.intp),
            np.array([NEVER_US if g.quota_per_hour is None else g.quota_per_hour for g in groups], np.int64),
            np.array([NEVER_US if g.quota_per_day is None else g.quota_per_day for g in groups], np.int64),
            settings.hours_us(1) + guard_us,
            settings.hours_us(HOURS_PER_DAY) + guard_us,
        )

    def until(self, row: Indices, slot_us: Int64s, counted: NDArray[np.bool_]) -> tuple[Int64s, Int64s]:
        """When the hour and the day of its group let go of each message.

        Args:
            row: the device's row.
            slot_us: when each left.
            counted: which count against the limits.
        """
        until_us = np.full((2, len(row)), LONG_AGO, np.int64)
        group = self.group[row]
        for each in np.unique(group[group >= 0]).tolist():
            mine = np.flatnonzero(group == each)
            mine = mine[np.argsort(slot_us[mine], kind="stable")]
            before: Int64s = np.cumsum(counted[mine]) - counted[mine]
            quota_us = slot_us[mine][counted[mine]]
            limits = ((self.per_hour, self.hour_window_us), (self.per_day, self.day_window_us))
            for known_us, (quota, window_us) in zip(until_us, limits, strict=True):
                held = before >= quota[each]
                known_us[mine[held]] = quota_us[before[held] - quota[each]] + window_us
        return until_us[0], until_us[1]


def waits(
    row: Indices,
    due_us: Int64s,
    slot_us: Int64s,
    limits: Limits,
    *,
    charged: NDArray[np.bool_] | None = None,
    ticks: Ticks | None = None,
    shared: Shared | None = None,
) -> Waits:
    """What each message waited for.

    Args:
        row: the device's row, one entry a message, in any order.
        due_us: when each was due.
        slot_us: when each left.
        limits: of all devices; those with a message allow at least one.
        charged: which count against the quotas; all when None. Every one counts for the pacing.
        ticks: None where nothing is ever in flight.
        shared: None where devices share no limit.
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
    moments = dict(enumerate([window.until(quota_us, quota_at, quota_nth) for window in windows], 2))
    moments[1] = pacing.until(slot_us, at, nth)
    if shared is not None:
        moments |= enumerate(shared.until(row, slot_us, counted), _GROUP_HOUR)
    if ticks is not None:
        back = np.maximum(ticks.in_flight_max[row], 1)
        settled = ticks.border_after(slot_us[np.maximum(at - back, 0)])
        moments[_IN_FLIGHT] = np.where(nth >= back, settled, since_us)
    until_us, limit = since_us.copy(), np.zeros(len(row), np.int8)
    for number, moment_us in sorted(moments.items()):
        later = np.minimum(moment_us, slot_us) > until_us
        until_us[later] = np.minimum(moment_us, slot_us)[later]
        limit[later] = number
    return Waits(row, due_us, since_us, until_us, slot_us, limit)


def binding_limit(waited: Waits) -> str:
    """What messages waited for longest in sum; ``none`` where nothing held them."""
    waits_us = np.bincount(waited.limit, waited.until_us - waited.since_us, minlength=len(LIMITS))
    return LIMITS[1 + int(waits_us[1:].argmax())] if waits_us[1:].any() else LIMITS[0]


def by_device(row: Indices, moments_us: Int64s) -> Indices:
    """Sorts by device, then moment; as one number where that fits, which is much faster."""
    since_us = moments_us - moments_us.min(initial=2**62)
    span = int(since_us.max(initial=0)) + 1
    if span * (int(row.max(initial=0)) + 1) < 2**63:
        return np.argsort(row * span + since_us)
    return np.lexsort((since_us, row))
