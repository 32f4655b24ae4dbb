"""The slots of a shard's devices: its sliding logs by device number, what is on offer, and what came of it.

Everything here is memory only and can be rebuilt from ledger and leases.
"""

from __future__ import annotations

import logging
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dispatcher.config import Settings
from dispatcher.core.batches import Freed, Indices, Int32s, Int64s, Leased, Outcomes
from dispatcher.core.breaker import Breakers, Turned
from dispatcher.core.fleet import Fleet
from dispatcher.core.leases import Usage
from dispatcher.core.moments import SECOND_US, span_us, to_datetime
from dispatcher.core.outcomes import CONSEQUENCES, QUARANTINES, UNCHARGED, Outcome
from dispatcher.core.quota import Offer, SlidingLog

_log = logging.getLogger(__name__)
_UNCHARGED: Final = np.array([int(outcome) for outcome in UNCHARGED])
_QUARANTINES: Final = np.array([int(outcome) for outcome in QUARANTINES])
_RESTS: Final = [outcome for outcome, what in CONSEQUENCES.items() if what.rests]


class Slots(NamedTuple):
    """What is on offer; the first four columns of ``SlotOffer``'s."""

    offer: int
    number: Int32s
    slots: Int32s
    slot_us: Int64s
    free_us: Int64s


class SlotBook:
    """Books slots for a shard's devices.

    Args:
        fleet: the shard's devices.
        usage: what they have reserved already.
        settings: length of an hour, guard, deadline.
    """

    def __init__(self, fleet: Fleet, usage: list[Usage], settings: Settings) -> None:
        self._settings = settings
        self._log = SlidingLog(
            fleet.quota_per_hour,
            fleet.quota_per_day,
            fleet.in_flight_max,
            _gap_us(fleet),
            hour_us=settings.hours_us(1),
            guard_us=span_us(settings.guard_s),
        )
        self._fleet, self._owned = fleet, fleet.number
        self._breakers = Breakers(settings.breaker_failures, settings.breaker_base_s, settings.breaker_cap_s)
        self._breakers.add_devices(len(fleet))
        self._breakers.load(fleet.trips, fleet.probe_us)
        self._bound(np.arange(len(fleet)))
        self._windowed = fleet.windowed
        self._rest_until_us = fleet.rest_until_us.copy()
        self._offer: Offer | None = None
        self._freed: list[Freed] = []
        self._note_groups()
        self._load_usage(usage, fleet.number)

    # Devices -------------------------------------------------------------------------------------------------

    def joins(self, fleet: Fleet) -> bool:
        """Whether devices are among ``fleet`` that were not owned before: their usage is needed."""
        return not np.isin(fleet.number, self._owned).all()

    def load(self, fleet: Fleet, usage: list[Usage]) -> None:
        """Take in the devices as they are now: those that left become unavailable, those that join bring their usage.

        One that comes back is charged twice for what this incarnation sent: rather too little than too much.
        """
        joined = np.setdiff1d(fleet.number, self._owned)
        self._owned = fleet.number
        if len(joined):
            # Rows may move: an offer that is open names rows. What is claimed for it waits again.
            self.withdraw()
        gone = np.setdiff1d(self._fleet.number, fleet.number)
        if len(gone):
            rows = self._fleet.rows(gone.astype(np.int32))
            self._log.set_limits(rows, available=False)
            kept = self._fleet.take(rows)
            none = np.zeros(len(kept), np.int32)
            kept = kept.replace(available=none.astype(np.bool_), trips=none, probe_us=none.astype(np.int64))
            fleet = Fleet.join([fleet, kept])
            fleet = fleet.take(np.argsort(fleet.number))
        rows = np.flatnonzero(~np.isin(fleet.number, self._fleet.number))
        new = fleet.take(rows)
        self._log.add_devices(new.quota_per_hour, new.quota_per_day, new.in_flight_max, _gap_us(new))
        order = np.argsort(np.concatenate([self._fleet.number, new.number]))
        if len(joined):
            self._log.reorder(order)
        self._rest_until_us = np.maximum(np.pad(self._rest_until_us, (0, len(new)))[order], fleet.rest_until_us)
        self._breakers.add_devices(len(new))
        self._breakers.reorder(order)
        self._breakers.load(fleet.trips, fleet.probe_us)
        self._log.set_limits(
            quota_per_hour=fleet.quota_per_hour, quota_per_day=fleet.quota_per_day, min_gap_us=_gap_us(fleet)
        )
        self._fleet, self._windowed = fleet, fleet.windowed
        self._note_groups()
        self._bound(np.arange(len(fleet)))
        self._load_usage(usage, joined)

    def _bound(self, rows: Indices) -> None:
        """Who may send and how many at a time: through an open breaker one message, to see what becomes of it."""
        tries = self._breakers.trips[rows] > 0
        most = self._fleet.in_flight_max[rows]
        self._log.set_limits(
            rows,
            in_flight_max=np.where(tries, np.minimum(most, 1), most),
            available=self._fleet.available[rows] | tries,
        )

    def take_turned(self) -> Turned | None:
        """Devices, by number, whose breakers have turned since this was asked last; None where none has."""
        turned = self._breakers.take_turned()
        return turned.replace(device=self._fleet.number[turned.device]) if len(turned) else None

    def _note_groups(self) -> None:
        self._grouped = np.array([name is not None for name in self._fleet.group], np.bool_)
        self._groups = bool(self._grouped.any())

    def _load_usage(self, usage: list[Usage], numbers: Int32s) -> None:
        for part in usage:
            if part.number in numbers:
                row = int(self._fleet.rows(np.array([part.number], np.int32))[0])
                self._log.load(np.full(len(part.at_us), row, np.intp), part.at_us)

    def idempotent(self, device: Int32s) -> NDArray[np.bool_]:
        """Whether the gateways of these devices honour idempotency keys."""
        return self._fleet.idempotent[self._fleet.rows(device)]

    def windowed(self, device: Int32s) -> NDArray[np.bool_]:
        """Which of these devices may send free text only to those who have written to them lately."""
        return self._windowed[self._fleet.rows(device)]

    # Offers --------------------------------------------------------------------------------------------------

    def offer(self, now_us: int, horizon_us: int, devices: Int32s) -> Slots:
        """Free slots of ``devices`` (numbers, ascending) within the horizon; an earlier offer is withdrawn."""
        self.withdraw()
        known = devices[np.isin(devices, self._fleet.number)]
        rows = self._fleet.rows(known)
        rest_us = np.maximum(self._rest_until_us[rows], self._breakers.probe_us[rows])
        offer = self._log.offer(now_us, horizon_us, rows[rest_us <= now_us])
        slots = np.zeros(len(rows), np.int32)
        slots[np.searchsorted(rows, offer.devices)] = offer.counts
        free_us = np.maximum(self._log.next_free_us(rows), rest_us)
        free_us[slots > 0] = offer.slot_us[np.cumsum(offer.counts) - offer.counts]
        self._offer = offer
        return Slots(offer.number, known, slots, offer.slot_us, free_us)

    def withdraw(self, offer: int | None = None) -> None:
        """Take back the open offer, if it is ``offer`` (any when None): none of its slots was filled."""
        if self._offer is not None and offer in (None, self._offer.number):
            self._log.answer(self._offer, np.zeros(len(self._offer.devices), np.int64))
            self._offer = None

    def fill(self, leased: Leased) -> bool:
        """Answer the open offer with a claim; False if the claim's slots are not on offer.

        They are the first ones of each device, unless a group's limit had something against those.
        """
        offer = self._offer
        if offer is None:
            return False
        rows = self._fleet.rows(leased.device)
        order = np.lexsort((leased.slot_us, rows))
        filled = np.bincount(rows, minlength=len(self._fleet))[offer.devices]
        if int(filled.sum()) != len(rows) or (filled > offer.counts).any():
            return False
        rank = np.arange(len(offer)) - np.repeat(np.cumsum(offer.counts) - offer.counts, offer.counts)
        if (offer.slot_us[rank < np.repeat(filled, offer.counts)] != leased.slot_us[order]).any():
            taken = _among(offer, rows, leased.slot_us)
            if np.count_nonzero(taken) != len(rows):
                return False
            offer = self._log.reduce(offer, taken)
            filled = offer.counts
        self._log.answer(offer, filled)
        self._offer = None
        return True

    # What came of them ---------------------------------------------------------------------------------------

    def give_back(self, device: Int32s, slot_us: Int64s) -> None:
        """Slots of messages that surely did not leave: free again, and no longer in flight."""
        self._log.settle(self._fleet.rows(device))
        self.release(device, slot_us)

    def release(self, device: Int32s, slot_us: Int64s) -> None:
        """Slots that were not used: free again."""
        rows = self._fleet.rows(device)
        self._log.release(rows, slot_us)
        if self._groups and self._grouped[rows].any():
            theirs = np.flatnonzero(self._grouped[rows])
            self._freed.append(Freed(device[theirs], slot_us[theirs]))

    def take_freed(self) -> Freed | None:
        """Slots of devices in groups that became free since this was asked last."""
        freed, self._freed = self._freed, []
        return Freed.join(freed) if freed else None

    def book(self, leased: Leased, outcomes: Outcomes, *, handed: bool) -> None:
        """Book outcomes, row by row of ``leased``.

        Args:
            handed: whether they were handed over; what was not says nothing of the device.
        """
        rows = self._fleet.rows(leased.device)
        self._log.settle(rows)
        unsent = np.isin(outcomes.outcome, _UNCHARGED)
        if unsent.any():
            self.release(leased.device[unsent], leased.slot_us[unsent])
        unknown = outcomes.outcome == Outcome.IN_DOUBT
        if unknown.any():
            slot_us = leased.slot_us[unknown]
            self._log.postpone(rows[unknown], slot_us, slot_us + span_us(self._settings.deadline_s))
        for outcome in _RESTS:
            throttled = outcomes.outcome == outcome
            if throttled.any():
                until_us = rest_until_us(outcome, outcomes.at_us[throttled], outcomes.retry_after_s[throttled])
                self._rest(outcome, rows[throttled], until_us)
        refused = np.isin(outcomes.outcome, _QUARANTINES)
        if refused.any():
            # The device is quarantined with the batch; until that is read back, nothing more goes there.
            self._log.set_limits(np.unique(rows[refused]), available=False)
            for row in np.unique(rows[refused]).tolist():
                _log.warning("device %s: its gateway refuses it, it is quarantined", self._fleet.name[row],
                             extra={"event": "device_quarantined"})  # fmt: skip
        if handed:
            turned = self._breakers.book(rows, leased.slot_us, outcomes.outcome, outcomes.at_us)
            if len(turned):
                self._bound(turned)
                self._tell(turned)

    def _tell(self, turned: Indices) -> None:
        for row in turned.tolist():
            name, trips = self._fleet.name[row], int(self._breakers.trips[row])
            if trips:
                _log.warning("device %s fails, it is quarantined: a message may try from %s on (pause %d)", name,
                             to_datetime(int(self._breakers.probe_us[row])).strftime("%H:%M:%S UTC"), trips,
                             extra={"event": "device_quarantined"})  # fmt: skip
            else:
                _log.warning("device %s works again", name, extra={"event": "device_back"})

    def _rest(self, outcome: Outcome, rows: Indices, until_us: Int64s) -> None:
        np.maximum.at(self._rest_until_us, rows, until_us)
        if CONSEQUENCES[outcome].rests == "account":
            for row, until in zip(rows.tolist(), until_us.tolist(), strict=True):
                together = self._fleet.of_account(row)
                self._rest_until_us[together] = np.maximum(self._rest_until_us[together], until)


def rest_until_us(outcome: Outcome, at_us: Int64s, asked_s: NDArray[np.float64]) -> Int64s:
    """Until when nothing more is sent after ``outcome``: as long as the gateway asked for, else as is usual."""
    wait_s = np.nan_to_num(asked_s, nan=CONSEQUENCES[outcome].wait_s or 0.0)
    until_us: Int64s = at_us + np.rint(wait_s * SECOND_US).astype(np.int64)
    return until_us


def _among(offer: Offer, rows: Indices, slot_us: Int64s) -> NDArray[np.bool_]:
    """Which slots of an offer are these, given as rows of devices and moments."""
    wanted = set(zip(rows.tolist(), slot_us.tolist(), strict=True))
    offered = zip(offer.device.tolist(), offer.slot_us.tolist(), strict=True)
    return np.array([slot in wanted for slot in offered], np.bool_)


def _gap_us(fleet: Fleet) -> Int64s:
    return np.rint(fleet.min_gap_s * SECOND_US).astype(np.int64)
