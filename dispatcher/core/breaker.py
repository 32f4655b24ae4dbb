"""Which devices rest because attempt after attempt failed, and when the next message of each may try.

A breaker opens after ``failures`` failures in a row. After a pause one message may leave: does that fail too, the next
pause is twice as long; any answer that shows the device at work closes the breaker. Only refusals and silence are
failures. A gateway that refuses a recipient, or asks to slow down, works.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from dispatcher.core.batches import Columns, Indices, Int8s, Int32s, Int64s
from dispatcher.core.moments import span_us
from dispatcher.core.outcomes import Outcome

LEFT_AFTER: Final = 6
"""Openings in a row after which what waits for a device moves to others: nobody is known to be mending it."""
_FAILED: Final = np.array([Outcome.REFUSED, Outcome.IN_DOUBT], np.int8)
_WORKED: Final = np.array([Outcome.ACCEPTED, Outcome.REPEAT, Outcome.REJECTED, Outcome.OPTED_OUT], np.int8)
_MOST_DOUBLINGS: Final = 30


@dataclass(frozen=True, slots=True)
class Turned(Columns):
    """Breakers that have opened, opened again or closed since this was asked last."""

    device: NDArray[np.signedinteger]
    trips: Int32s
    """Openings in a row; 0: closed."""
    probe_us: Int64s
    """From when on a message may try; 0 where closed."""


class Breakers:
    """The breakers of ``D`` devices, numbered as in a ``SlidingLog``.

    Args:
        failures: how many in a row open one; 0: none ever opens.
        base_s: the first pause; each one after a failed try is twice as long.
        cap_s: the longest pause.
    """

    def __init__(self, failures: int, base_s: float, cap_s: float) -> None:
        self._failures, self._base_us, self._cap_us = failures, span_us(base_s), span_us(cap_s)
        self._streak = self.trips = np.zeros(0, np.int32)
        self.probe_us = np.zeros(0, np.int64)
        self._turned = np.zeros(0, np.bool_)
        self._well = True

    @property
    def open(self) -> Indices:
        """Devices whose breaker is open, ascending."""
        return np.flatnonzero(self.trips)

    def add_devices(self, count: int) -> None:
        """Append devices nothing is known of."""
        self._streak, self.trips = np.pad(self._streak, (0, count)), np.pad(self.trips, (0, count))
        self.probe_us, self._turned = np.pad(self.probe_us, (0, count)), np.pad(self._turned, (0, count))

    def reorder(self, order: Indices) -> None:
        """Number the devices anew: what was device ``order[i]`` is ``i`` from now on."""
        self._streak, self.trips = self._streak[order], self.trips[order]
        self.probe_us, self._turned = self.probe_us[order], self._turned[order]

    def load(self, trips: Int32s, probe_us: Int64s) -> None:
        """Take over how all of them stand elsewhere, but for those that have turned here since."""
        known = ~self._turned
        self._streak[known & (self.trips > 0) & (trips == 0)] = 0
        self.trips, self.probe_us = np.where(known, trips, self.trips), np.where(known, probe_us, self.probe_us)
        self._well = not (self.trips.any() or self._streak.any())

    def book(self, device: Indices, slot_us: Int64s, outcome: Int8s, at_us: Int64s) -> Indices:
        """Take in outcomes, row by row, in any order; returns the devices whose breakers turned, ascending."""
        failed = np.isin(outcome, _FAILED)
        if self._well and not (self._failures and failed.any()):
            return np.zeros(0, np.intp)
        place = np.empty(len(device), np.intp)
        place[np.argsort(slot_us, kind="stable")] = np.arange(len(device))
        worked = np.isin(outcome, _WORKED)
        last = np.full(len(self.trips), -1)
        np.maximum.at(last, device[worked], place[worked])
        self._streak[last >= 0] = 0
        since = failed & (place > last[device])
        closed = np.flatnonzero((last >= 0) & (self.trips > 0))
        self._set(closed, np.zeros(len(closed), np.int32), np.zeros(len(closed), np.int64))
        # What left before the pause says nothing new of a breaker that is open.
        tried = since & (slot_us >= self.probe_us[device])
        np.add.at(self._streak, device[tried], 1)
        touched = np.unique(device[tried])
        opened = touched[(self._streak[touched] >= (self._failures or np.inf)) | (self.trips[touched] > 0)]
        ended_us = np.zeros(len(self.trips), np.int64)
        np.maximum.at(ended_us, device[tried], at_us[tried])
        trips = self.trips[opened] + 1
        pause_us = np.minimum(self._base_us << np.minimum(trips - 1, _MOST_DOUBLINGS).astype(np.int64), self._cap_us)
        self._set(opened, trips, ended_us[opened] + pause_us)
        self._streak[opened] = 0
        self._well = not (self.trips.any() or self._streak.any())
        return np.union1d(closed, opened)

    def take_turned(self) -> Turned:
        """Breakers that have turned since this was asked last, as they stand."""
        device = np.flatnonzero(self._turned)
        self._turned[device] = False
        return Turned(device, self.trips[device], self.probe_us[device])

    def _set(self, device: Indices, trips: Int32s, probe_us: Int64s) -> None:
        self.trips[device], self.probe_us[device], self._turned[device] = trips, probe_us, True
