"""The invariants, judged from receipts, ledger and the seed's tables only, never from internals.

duplicate      a key or a visit accepted more than once, or asked for again from another device than accepted it
early          before its slot, before its due moment, or before its predecessor's acceptance and delay
over_hour/day  more arrivals of one device in some rolling window than its quota, by the referee's own clock
out_of_order   a visit whose step does not follow from the visit before, or that arrived before it
after_opt_out  a slot after the lead's opt-out
outside_window a slot outside the lead's send window
lost           accepted but not in the ledger, in the ledger but never arrived, completed without every step accepted,
               a lease that never ended, a trigger on or off the lead against rule 7, a lead never enrolled
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from dispatcher.core.batches import Int64s
from dispatcher.core.outcomes import Outcome
from simulate.evidence import STATUSES, Evidence
from simulate.receipts import Receipts

_COMPLETED = STATUSES.index("completed") + 1
_ACTIVE = STATUSES.index("active") + 1


@dataclass(frozen=True, slots=True)
class Violations:
    """How often each rule was broken."""

    duplicate: int = 0
    early: int = 0
    over_hour: int = 0
    over_day: int = 0
    out_of_order: int = 0
    after_opt_out: int = 0
    outside_window: int = 0
    lost: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return sum(asdict(self).values())


def check(receipts: Receipts, evidence: Evidence) -> Violations:
    """Judge a run."""
    accepted = receipts.rows[receipts.answered(Outcome.ACCEPTED)]
    joined = _Joined.of(receipts, accepted, evidence)
    reached = receipts.rows[~receipts.answered(Outcome.THROTTLED) & ~receipts.answered(Outcome.REFUSED)]
    hour_us = round(evidence.hour_s * 1e6)
    return Violations(
        duplicate=_duplicates(accepted, evidence) + _strayed(receipts, accepted),
        early=joined.early(evidence) + int((receipts.rows["arrived_us"] < receipts.rows["slot_us"]).sum()),
        over_hour=_over(reached, evidence.quotas[:, 0], hour_us),
        over_day=_over(reached, evidence.quotas[:, 1], 24 * hour_us),
        out_of_order=joined.out_of_order(evidence),
        after_opt_out=_after_opt_out(accepted, evidence.opted_out),
        lost=joined.lost + _unfinished(joined, evidence) + evidence.missed,
    )


def _duplicates(accepted: NDArray[np.void], evidence: Evidence) -> int:
    keys = _Keys.of(accepted["key"]).repeated
    ledger = evidence.ledger[evidence.ledger["outcome"] == evidence.outcomes.index("accepted") + 1]
    visits = np.stack([ledger["enrolment"].astype(np.int64), ledger["visit"], ledger["generation"]], axis=1)
    order = np.lexsort(visits.T)
    return keys + int((np.diff(visits[order], axis=0) == 0).all(axis=1).sum())


def _strayed(receipts: Receipts, accepted: NDArray[np.void]) -> int:
    """Repetitions of an accepted message by another device."""
    again = receipts.rows[receipts.answered(Outcome.REPEAT)]
    found = _Keys.of(accepted["key"]).find(again["key"])
    return int((accepted["device"][found] != again["device"])[found >= 0].sum()) if len(accepted) else 0


def _over(reached: NDArray[np.void], quota: Int64s, window_us: int) -> int:
    """Arrivals that had ``quota`` others of their device within the window before them."""
    order = np.lexsort((reached["arrived_us"], reached["device"]))
    device, arrived_us = reached["device"][order], reached["arrived_us"][order]
    earlier = np.arange(len(order)) - quota[device]
    there = earlier >= 0
    same = np.zeros(len(order), np.bool_)
    same[there] = device[earlier[there]] == device[there]
    close = np.zeros(len(order), np.bool_)
    close[same] = arrived_us[same] - arrived_us[earlier[same]] < window_us
    return int(close.sum())


def _after_opt_out(accepted: NDArray[np.void], opted_out: dict[str, int]) -> int:
    if not opted_out:
        return 0
    phones = np.array(sorted(opted_out), "S16")
    moments_us = np.array([opted_out[phone.decode()] for phone in phones.tolist()], np.int64)
    place = np.minimum(np.searchsorted(phones, accepted["phone"]), len(phones) - 1)
    concerned = phones[place] == accepted["phone"]
    return int((concerned & (accepted["slot_us"] > moments_us[place])).sum())


@dataclass(frozen=True, slots=True)
class _Joined:
    """Accepted receipts, the first of each key, with the ledger row of that key; sorted by enrolment and visit."""

    enrolment: Int64s
    visit: Int64s
    step: Int64s
    """Index into the catalogue; -1 for a step it does not have."""
    arrived_us: Int64s
    slot_us: Int64s
    due_us: Int64s
    lost: int
    """Accepted receipts without an accepted ledger row, and accepted ledger rows without an accepted receipt."""

    @classmethod
    def of(cls, receipts: Receipts, accepted: NDArray[np.void], evidence: Evidence) -> _Joined:
        good = evidence.ledger["outcome"] == evidence.outcomes.index("accepted") + 1
        ledger, due_us = evidence.ledger[good], evidence.ledger_us("due")[good]
        found = _Keys.of(ledger["key"]).find(accepted["key"])
        known = found >= 0
        rows, first = np.unique(found[known], return_index=True)
        kept = accepted[known][first]
        lost = int((~known).sum()) + len(ledger) - len(rows)
        catalogue = evidence.catalogue
        code = np.array([catalogue.index.get(trigger, -1) for _, trigger in receipts.steps] or [-1], np.int64)
        enrolment, visit = ledger["enrolment"][rows].astype(np.int64), ledger["visit"][rows].astype(np.int64)
        sort = np.lexsort((visit, enrolment))
        return cls(
            enrolment[sort],
            visit[sort],
            code[kept["step"]][sort],
            kept["arrived_us"][sort],
            kept["slot_us"][sort],
            due_us[rows][sort],
            lost,
        )

    @property
    def _follows(self) -> NDArray[np.bool_]:
        """Whether row n + 1 is a later visit of row n's enrolment."""
        return np.equal(self.enrolment[1:], self.enrolment[:-1])

    def early(self, evidence: Evidence) -> int:
        delay_us = np.rint(evidence.catalogue.delay_h * evidence.hour_s * 1e6).astype(np.int64)
        enrolments = evidence.enrolments
        order = np.argsort(enrolments["id"])
        place = order[np.searchsorted(enrolments["id"], self.enrolment, sorter=order)]
        ready_us = np.maximum(self.due_us, _moments(enrolments["enrolled"])[place])
        after_us = self.arrived_us[:-1] + delay_us[self.step[:-1]]
        ready_us[1:] = np.where(self._follows, np.maximum(ready_us[1:], after_us), ready_us[1:])
        return int((self.slot_us < ready_us).sum())

    def out_of_order(self, evidence: Evidence) -> int:
        follows = self._follows
        wrong_step = (evidence.catalogue.next_index[self.step[:-1]] != self.step[1:]) | (self.step[1:] < 0)
        wrong_visit = self.visit[1:] != self.visit[:-1] + 1
        back = self.arrived_us[1:] <= self.arrived_us[:-1]
        first = np.ones(len(self.enrolment), np.bool_)
        first[1:] = ~follows
        entry = np.array([step.is_entry for step in evidence.catalogue.step.values()] + [False])
        wrong_first = ~entry[self.step[first]] | (self.visit[first] != 1)
        return int((follows & (wrong_step | wrong_visit | back)).sum()) + int(wrong_first.sum())


def _unfinished(joined: _Joined, evidence: Evidence) -> int:
    """Completions without every step accepted, leases that never ended, triggers against rule 7."""
    enrolments, catalogue = evidence.enrolments, evidence.catalogue
    completed = enrolments["status"] == _COMPLETED
    ids = enrolments["id"].astype(np.int64)
    accepted = np.bincount(joined.enrolment, minlength=int(ids.max(initial=0)) + 1)[ids]
    length = np.array([0] + [_path_length(catalogue.next_index, index) for index in range(len(catalogue.triggers))])
    incomplete = completed & (accepted != length[enrolments["entry"]])
    leased = enrolments["leased"] == 1
    carries = enrolments["carries"] == 1
    newest = _newest_of_lead(enrolments)
    kept = completed & carries & newest
    taken = (enrolments["status"] == _ACTIVE) & ~carries
    return int(incomplete.sum()) + int(leased.sum()) + int(kept.sum()) + int(taken.sum())


def _newest_of_lead(enrolments: NDArray[np.void]) -> NDArray[np.bool_]:
    """Whether an enrolment is its lead's last by its entry trigger: an earlier one's trigger may have come anew."""
    order = np.lexsort((enrolments["id"], enrolments["entry"], enrolments["lead"]))
    last = np.ones(len(order), np.bool_)
    lead, entry = enrolments["lead"][order], enrolments["entry"][order]
    last[:-1] = (lead[1:] != lead[:-1]) | (entry[1:] != entry[:-1])
    newest = np.zeros(len(order), np.bool_)
    newest[order] = last
    return newest


def _path_length(next_index: NDArray[np.intp], start: int) -> int:
    length, at = 0, start
    while at >= 0 and length <= len(next_index):
        length, at = length + 1, int(next_index[at])
    return length


@dataclass(frozen=True, slots=True)
class _Keys:
    """16-byte keys, sorted as pairs of words: much faster than as bytes."""

    order: NDArray[np.intp]
    first: NDArray[np.uint64]
    second: NDArray[np.uint64]

    @classmethod
    def of(cls, keys: NDArray[np.void]) -> _Keys:
        first, second = _words(keys)
        order = np.lexsort((second, first))
        return cls(order, first[order], second[order])

    @property
    def repeated(self) -> int:
        """How many keys stand again."""
        return int(((self.first[1:] == self.first[:-1]) & (self.second[1:] == self.second[:-1])).sum())

    def find(self, keys: NDArray[np.void]) -> NDArray[np.intp]:
        """Row of each of ``keys``, -1 for those that are not there."""
        first, second = _words(keys)
        found = np.full(len(keys), -1, np.intp)
        if not len(self.order):
            return found
        place = np.searchsorted(self.first, first)
        open_ = np.arange(len(keys))
        while len(open_):  # again only for different keys with equal first words
            at = np.minimum(place[open_], len(self.first) - 1)
            same = self.first[at] == first[open_]
            hit = same & (self.second[at] == second[open_])
            found[open_[hit]] = self.order[at[hit]]
            open_ = open_[same & ~hit & (at + 1 < len(self.first))]
            place[open_] += 1
        return found


def _words(keys: NDArray[np.void]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    words = np.ascontiguousarray(keys).view(">u8").reshape(-1, 2).astype(np.uint64)
    return words[:, 0].copy(), words[:, 1].copy()


def _moments(column: NDArray[np.int64]) -> Int64s:
    return column.astype(np.int64) + 946_684_800_000_000
