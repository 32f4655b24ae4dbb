"""Exact sliding-window quotas: who may send, and at which exact moment.

A ``SlidingLog`` keeps the moments every device of a shard has reserved, and hands out free slots. A slot
``s`` is free when fewer than ``quota_per_hour`` reservations are younger than the hour window at ``s``, fewer
than ``quota_per_day`` younger than the day window, the pacing since the device's last reservation has passed,
and the device has room in flight. A reservation leaves a window when it is as old as the window is long. The
windows are longer than the limits' own by ``guard_us``, because arrivals trail slots.

A device's slots only grow, whatever ``now_us`` it is asked with, and pacing is at least one microsecond. So
(device, slot) names an attempt, and a release that comes twice never frees the slot of another one.

Devices are numbered 0 … D - 1 here; the shard knows their names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dispatcher.core.batches import Indices, Int32s, Int64s
from dispatcher.core.moments import NEVER_US
from dispatcher.core.rings import LONG_AGO, Rings, ranges

HOURS_PER_DAY: Final = 24


@dataclass(frozen=True, slots=True)
class Offer:
    """Free slots, held until the offer is answered: rows ascending by device, then time."""

    number: int
    """Which offer this is; an answer to another one is refused."""
    devices: Indices
    """The offered devices, ascending, each with at least one slot."""
    counts: Indices
    """How many slots each of ``devices`` has."""
    device: Int32s
    """The device of each slot."""
    slot_us: Int64s
    """The moment each slot may be used at."""

    def __len__(self) -> int:
        return len(self.slot_us)


class SlidingLog:
    """Reservations of ``D`` devices against an hour quota, a day quota, a pacing and an in-flight bound each.

    Args:
        quota_per_hour: shape (D,); 0 means never.
        quota_per_day: shape (D,); 0 means never.
        in_flight_max: shape (D,).
        min_gap_us: shape (D,), between two slots of a device.
        hour_us: length of an hour; a day has 24.
        guard_us: how much longer than an hour and a day the windows are.

    Memory: 8 bytes x D x (largest day quota + what may be in flight).
    """

    def __init__(
        self,
        quota_per_hour: ArrayLike,
        quota_per_day: ArrayLike,
        in_flight_max: ArrayLike,
        min_gap_us: ArrayLike,
        *,
        hour_us: int,
        guard_us: int,
    ) -> None:
        self._hour_us, self._day_us = hour_us, HOURS_PER_DAY * hour_us
        self._hour_window_us, self._day_window_us = self._hour_us + guard_us, self._day_us + guard_us
        none = np.empty(0, np.int64)
        self._quota_per_hour, self._quota_per_day, self._in_flight_max, self._gap_us = none, none, none, none
        self._available = np.empty(0, np.bool_)
        self._hour_limit, self._open = none, self._available  # what follows from the limits
        self._last_us = none  # the latest moment ever reserved: a release does not bring it back
        self._in_flight = none
        self._offer_of = none  # the number of the unanswered offer; 0 when there is none
        self._postponed = np.empty(0, np.bool_)  # whether a reservation moved since that offer
        self._offers = 0
        self._rings = Rings(0, 1)
        self.add_devices(quota_per_hour, quota_per_day, in_flight_max, min_gap_us)

    def __len__(self) -> int:
        return len(self._available)

    def add_devices(
        self,
        quota_per_hour: ArrayLike,
        quota_per_day: ArrayLike,
        in_flight_max: ArrayLike,
        min_gap_us: ArrayLike,
    ) -> None:
        """Append devices that have reserved nothing; columns as for the constructor."""
        old, new = len(self), np.size(quota_per_hour)
        self._quota_per_hour = np.pad(self._quota_per_hour, (0, new))
        self._quota_per_day = np.pad(self._quota_per_day, (0, new))
        self._in_flight_max = np.pad(self._in_flight_max, (0, new))
        self._gap_us = np.pad(self._gap_us, (0, new), constant_values=1)
        self._available = np.pad(self._available, (0, new), constant_values=True)
        self._last_us = np.pad(self._last_us, (0, new), constant_values=LONG_AGO)
        self._in_flight = np.pad(self._in_flight, (0, new))
        self._offer_of = np.pad(self._offer_of, (0, new))
        self._postponed = np.pad(self._postponed, (0, new))
        self._rings.add_rows(new)
        self.set_limits(
            np.arange(old, old + new),
            quota_per_hour=quota_per_hour,
            quota_per_day=quota_per_day,
            in_flight_max=in_flight_max,
            min_gap_us=min_gap_us,
        )

    def reorder(self, order: Indices) -> None:
        """Number the devices anew: what was device ``order[i]`` is ``i`` from now on.

        Raises:
            ValueError: an offer is unanswered, or ``order`` is no permutation; nothing is changed.
        """
        self._refuse_offered(np.arange(len(self)))
        if not np.array_equal(np.sort(order), np.arange(len(self))):
            raise ValueError("the order must name every device once")
        self._quota_per_hour, self._quota_per_day = self._quota_per_hour[order], self._quota_per_day[order]
        self._in_flight_max, self._gap_us = self._in_flight_max[order], self._gap_us[order]
        self._available, self._last_us = self._available[order], self._last_us[order]
        self._in_flight, self._offer_of = self._in_flight[order], self._offer_of[order]
        self._postponed = self._postponed[order]
        self._hour_limit, self._open = self._hour_limit[order], self._open[order]
        self._rings.reorder(order)

    def set_limits(
        self,
        devices: Indices | None = None,
        *,
        quota_per_hour: ArrayLike | None = None,
        quota_per_day: ArrayLike | None = None,
        in_flight_max: ArrayLike | None = None,
        min_gap_us: ArrayLike | None = None,
        available: ArrayLike | None = None,
    ) -> None:
        """Change what is given, for ``devices`` (all when None); values have their shape or are scalars.

        New limits bind new slots: what is reserved or on offer stays. An unavailable device is offered none.

        Raises:
            ValueError: a limit is negative or beyond every moment; nothing is changed.
        """
        rows = self._asked(devices)
        changes = [
            (self._quota_per_hour, quota_per_hour),
            (self._quota_per_day, quota_per_day),
            (self._in_flight_max, in_flight_max),
            (self._gap_us, min_gap_us),
            (self._available, available),
        ]
        given = [(column, np.asarray(values)) for column, values in changes if values is not None]
        if any((values < 0).any() or (values > NEVER_US // 2).any() for _, values in given):
            raise ValueError("a limit is negative or beyond every moment")
        for column, values in given:
            column[rows] = values
        self._gap_us = np.maximum(self._gap_us, 1)
        self._hour_limit = np.minimum(self._quota_per_hour, self._quota_per_day)
        self._open = self._available & (self._hour_limit > 0)
        # Reservations ahead of now stand in the rings too; with room for them ``usage`` sees a whole day.
        ahead = np.minimum(self._in_flight_max, self._quota_per_day)
        self._rings.lengthen(int(np.max(self._quota_per_day + ahead, initial=1)))

    def offer(self, now_us: int, horizon_us: int, devices: Indices | None = None, limit: int | None = None) -> Offer:
        """Hold every free slot with now <= slot < now + horizon, each as early as its device allows.

        The slots count against each other, as reserved and in flight, until ``answer`` says which were taken.

        Args:
            now_us: the present; even when it goes back, no slot precedes a device's last reservation.
            horizon_us: how far ahead slots are offered.
            devices: ascending and distinct; all when None.
            limit: at most so many slots, the earliest ones.

        Raises:
            ValueError: a device has an unanswered offer, or ``devices`` is not ascending.
        """
        asked = self._asked(devices)
        self._refuse_offered(asked)
        ready = asked[np.maximum(self._earliest(asked), now_us) < now_us + horizon_us]
        slots, free = self._free_slots(ready, now_us, horizon_us)
        counts = free.sum(axis=1)
        slot_us = slots[free]
        if limit is not None and limit < len(slot_us):
            earliest = np.zeros(len(slot_us), np.bool_)
            earliest[np.argsort(slot_us, kind="stable")[:limit]] = True
            counts = np.bincount(np.repeat(np.arange(len(ready)), counts)[earliest], minlength=len(ready))
            slot_us = slot_us[earliest]
            ready, counts = ready[counts > 0], counts[counts > 0]
        self._offers += 1
        self._offer_of[ready] = self._offers
        self._postponed[ready] = False
        self._in_flight[ready] += counts
        return Offer(self._offers, ready, counts, np.repeat(ready.astype(np.int32), counts), slot_us)

    def answer(self, offer: Offer, filled: Indices) -> None:
        """Say how many slots of each of ``offer.devices`` were taken, its first ones; the rest go back.

        Raises:
            ValueError: the offer has been answered already, or ``filled`` is outside 0 … ``offer.counts``.
        """
        devices, counts = offer.devices, offer.counts
        if (self._offer_of[devices] != offer.number).any():
            raise ValueError(f"offer {offer.number} has been answered already")
        if filled.shape != counts.shape or (filled < 0).any() or (filled > counts).any():
            raise ValueError(f"offer {offer.number} does not have the slots that were filled")
        self._offer_of[devices] = 0
        self._in_flight[devices] -= counts - filled
        first = np.cumsum(counts) - counts
        if (filled == 0).any():
            used = np.flatnonzero(filled)
            devices, first, filled = devices[used], first[used], filled[used]
        self._last_us[devices] = np.maximum(self._last_us[devices], offer.slot_us[first + filled - 1])
        moved = self._postponed[devices]
        if moved.any():
            for row, start, count in zip(devices[moved], first[moved], filled[moved], strict=True):
                self._insert(row, offer.slot_us[start : start + count])
            devices, first, filled = devices[~moved], first[~moved], filled[~moved]
        self._rings.extend(devices, filled, offer.slot_us[ranges(first, filled)])

    def reduce(self, offer: Offer, kept: NDArray[np.bool_]) -> Offer:
        """Take slots of an unanswered ``offer`` back; what it has left is to be answered.

        Raises:
            ValueError: the offer has been answered already.
        """
        devices = offer.devices
        if (self._offer_of[devices] != offer.number).any():
            raise ValueError(f"offer {offer.number} has been answered already")
        counts = np.add.reduceat(kept, np.cumsum(offer.counts) - offer.counts, dtype=np.int64)
        self._in_flight[devices] -= offer.counts - counts
        self._offer_of[devices[counts == 0]] = 0
        return Offer(offer.number, devices[counts > 0], counts[counts > 0], offer.device[kept], offer.slot_us[kept])

    def next_free_us(self, devices: Indices | None = None) -> Int64s:
        """The earliest moment each device could send; 0 when that was always, ``NEVER_US`` when it cannot.

        It cannot while it is unavailable, on offer or full of messages in flight, or has a quota of 0.
        """
        asked = self._asked(devices)
        earliest = np.maximum(self._earliest(asked), 0)
        earliest[self._offer_of[asked] > 0] = NEVER_US
        return earliest

    def settle(self, device: Indices, count: ArrayLike = 1) -> None:
        """``count`` messages of each ``device`` (which may repeat) are no longer in flight.

        Raises:
            ValueError: more would be settled than is in flight; nothing is changed.
        """
        left = self._in_flight.copy()
        np.subtract.at(left, device, count)
        if (left < 0).any():
            raise ValueError(f"device {int(np.argmin(left))} has fewer messages in flight than were settled")
        self._in_flight = left

    def release(self, device: Indices, slot_us: Int64s) -> int:
        """Take back reservations of attempts proved unsent: their quota is free again, their moment is not.

        Returns how many were there. One released before, or older than the day window, changes nothing.
        """
        return sum(self._replace(row, old, LONG_AGO) for row, old in zip(device, slot_us, strict=True))

    def postpone(self, device: Indices, from_us: Int64s, to_us: Int64s) -> int:
        """Count attempts of unknown fate at the latest moment they can have been sent, not at their slot.

        Returns how many were there. One released before, or older than the day window, changes nothing.

        Raises:
            ValueError: a moment would become earlier; nothing is changed.
        """
        if (to_us < from_us).any():
            raise ValueError("a reservation can only be postponed")
        found = 0
        for row, old, new in zip(device, from_us, to_us, strict=True):
            if self._replace(row, old, new):
                self._last_us[row] = max(self._last_us[row], new)
                self._postponed[row] = True
                found += 1
        return found

    def load(self, device: Indices, at_us: Int64s, in_flight: NDArray[np.bool_] | None = None) -> None:
        """Add reservations known from elsewhere, in any order; those marked ``in_flight`` are in flight too.

        Raises:
            ValueError: a device has an unanswered offer; nothing is changed.
        """
        self._refuse_offered(device)
        if in_flight is not None:
            np.add.at(self._in_flight, device[in_flight], 1)
        order = np.argsort(device, kind="stable")
        device, at_us = device[order], at_us[order]
        rows, first, counts = np.unique(device, return_index=True, return_counts=True)
        for row, start, count in zip(rows, first, counts, strict=True):
            times = at_us[start : start + count]
            self._last_us[row] = max(self._last_us[row], times.max())
            self._insert(row, times)

    def usage(self, now_us: int) -> tuple[Int64s, Int64s, Int64s]:
        """Per device: reservations in (now - hour, now] and in (now - 24 hours, now], messages in flight.

        Without the guard: this is what people read. Slots on offer are in flight, and counted once answered.
        """
        ahead = self._rings.count_after(now_us)
        hour = self._rings.count_after(now_us - self._hour_us) - ahead
        return hour, self._rings.count_after(now_us - self._day_us) - ahead, self._in_flight.copy()

    def _earliest(self, devices: Indices) -> Int64s:
        """When each device's next slot is free; it may lie in the past."""
        hour = np.maximum(self._hour_limit[devices], 1)
        day = np.maximum(self._quota_per_day[devices], 1)
        earliest = self._rings.nth_newest(devices, hour) + self._hour_window_us
        np.maximum(earliest, self._rings.nth_newest(devices, day) + self._day_window_us, out=earliest)
        np.maximum(earliest, self._last_us[devices] + self._gap_us[devices], out=earliest)
        shut = ~self._open[devices] | (self._in_flight[devices] >= self._in_flight_max[devices])
        earliest[shut] = NEVER_US
        return earliest

    def _free_slots(self, devices: Indices, now_us: int, horizon_us: int) -> tuple[Int64s, NDArray[np.bool_]]:
        """Candidates, shape (devices, k), ascending in each row, and which are free: a row's first."""
        gap = self._gap_us[devices]
        hour, day = self._hour_limit[devices], self._quota_per_day[devices]
        most = np.minimum(self._in_flight_max[devices] - self._in_flight[devices], -(-horizon_us // gap))
        np.minimum(most, hour * -(-horizon_us // self._hour_window_us), out=most)
        slots = np.empty((len(devices), int(most.max(initial=0))), np.int64)
        # Inside one hour window no slot waits for another of the same offer to leave: all are found at once.
        step = slots.shape[1] if horizon_us <= self._hour_window_us else int(hour.min(initial=NEVER_US))
        not_before = np.maximum(self._last_us[devices] + gap, now_us)
        for start in range(0, slots.shape[1], max(step, 1)):
            rank = np.arange(start, min(start + step, slots.shape[1]))
            at = self._leaving(devices, hour, rank, slots) + self._hour_window_us
            np.maximum(at, self._leaving(devices, day, rank, slots) + self._day_window_us, out=at)
            np.maximum(at[:, 0], not_before, out=at[:, 0])
            # at[k] = max(at[k], at[k - 1] + gap), for all k: a running maximum on a slope of one gap a slot.
            slope = gap[:, None] * (rank - start)
            at = np.maximum.accumulate(at - slope, axis=1) + slope
            slots[:, rank] = at
            not_before = at[:, -1] + gap
        free = (slots < now_us + horizon_us) & (np.arange(slots.shape[1]) < most[:, None])
        return slots, free

    def _leaving(self, devices: Indices, quota: Int64s, rank: Indices, slots: Int64s) -> Int64s:
        """The reservation that leaves a window before the ``rank``-th new slot, shape (devices, ranks).

        Ranks beyond a device's quota wait for its own new slots, of which those before ``rank[0]`` are known.
        """
        nth = quota[:, None] - rank
        times = self._rings.nth_newest(devices, np.maximum(nth, 1))
        if rank[0] == 0:
            return times
        return np.where(nth > 0, times, np.take_along_axis(slots, np.maximum(-nth, 0), axis=1))

    def _insert(self, row: int, times_us: Int64s) -> None:
        self._rings.merge(row, times_us, int(self._last_us[row]) - self._day_window_us)

    def _replace(self, row: int, old_us: int, new_us: int) -> bool:
        counts = old_us > self._last_us[row] - self._day_window_us
        return bool(counts) and self._rings.replace(row, old_us, new_us)

    def _refuse_offered(self, devices: Indices) -> None:
        offered = devices[self._offer_of[devices] > 0]
        if offered.size:
            raise ValueError(f"device {offered[0]} has an unanswered offer")

    def _asked(self, devices: Indices | None) -> Indices:
        if devices is None:
            return np.arange(len(self))
        if (devices[1:] <= devices[:-1]).any():
            raise ValueError("devices must be ascending and distinct")
        return devices
