"""Receipts, ledger rows and enrolments brought together: by key to a visit, by visit to an enrolment."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from dispatcher.core.batches import Indices, Int64s
from dispatcher.core.identity import idempotency_keys
from dispatcher.core.outcomes import Outcome
from dispatcher.store.columns import moments
from simulate.checker.paths import Paths
from simulate.evidence import STATUSES, Evidence
from simulate.receipts import Receipts

Flags = NDArray[np.bool_]
_NO_VISIT: Final = 2**62


@dataclass(frozen=True)
class Matched:
    """What the rules look at.

    A visit is an (enrolment, visit, generation) that the ledger, a lease, a person's word or a skip tells of; visits
    are numbered in that order. Receipts whose key nobody knows stand behind them, a number a key.
    """

    receipts: Receipts
    evidence: Evidence
    paths: Paths
    key: Int64s
    """Per receipt: the number of its key, equal keys equal numbers."""
    visit: Int64s
    """Per receipt."""
    ledger_key: Int64s
    ledger_visit: Int64s
    first_visit_of_key: Int64s
    enrolment: Int64s
    """Per visit."""
    number: Int64s
    """Per visit: the ``visit`` of enrolment and ledger."""
    generation: Int64s
    leased: Flags
    """Per visit: whether it may be under way; nothing is once the run has come to rest."""
    by_hand: Flags
    """Per visit."""
    skipped: Flags
    """Per visit: whether its step was passed over as too late."""

    @classmethod
    def of(cls, receipts: Receipts, evidence: Evidence) -> Self:
        """Match ``receipts`` with ``evidence``."""
        ledger, leases = evidence.ledger, _live_leases(evidence)
        hand = np.array(sorted(evidence.by_hand), np.int64).reshape(-1, 3)
        skip = np.array([each[:3] for each in evidence.skipped], np.int64).reshape(-1, 3)
        enrolment, number, generation = (
            np.concatenate([ledger[name], leases[source], hand[:, place], skip[:, place]]).astype(np.int64)
            for place, (name, source) in enumerate(
                (("enrolment", "id"), ("visit", "visit"), ("generation", "generation"))
            )
        )
        visit_of_row, first = _numbered(enrolment, number, generation)
        keyed = len(ledger) + len(leases)
        lease_keys = idempotency_keys(*(part[len(ledger) : keyed] for part in (enrolment, number, generation)))  # type: ignore[arg-type]
        leased_keys = np.frombuffer(b"".join(lease_keys), "V16")
        keys = _key_numbers(
            np.concatenate([_words(part) for part in (ledger["key"], leased_keys, receipts.rows["key"])])
        )
        count = len(first)
        first_visit = np.full(int(keys.max(initial=-1)) + 1, _NO_VISIT, np.int64)
        np.minimum.at(first_visit, keys[:keyed], visit_of_row[:keyed])
        visit = first_visit[keys[keyed:]]
        leased, by_hand, skipped = np.zeros((3, count), np.bool_)
        leased[visit_of_row[len(ledger) : keyed]] = True
        by_hand[visit_of_row[keyed : keyed + len(hand)]] = True
        skipped[visit_of_row[keyed + len(hand) :]] = True
        return cls(
            receipts=receipts,
            evidence=evidence,
            paths=Paths.of(evidence),
            key=keys[keyed:],
            visit=np.where(visit < _NO_VISIT, visit, count + keys[keyed:]),
            ledger_key=keys[: len(ledger)],
            ledger_visit=visit_of_row[: len(ledger)],
            first_visit_of_key=first_visit,
            enrolment=enrolment[first],
            number=number[first],
            generation=generation[first],
            leased=leased,
            by_hand=by_hand,
            skipped=skipped,
        )

    def __len__(self) -> int:
        """How many visits are known."""
        return len(self.enrolment)

    @cached_property
    def known(self) -> Flags:
        """Per receipt: whether its visit is."""
        return self.visit < len(self)

    @cached_property
    def rows(self) -> dict[str, Int64s]:
        """The receipts' columns that rules compare, apart from each other: three times faster than inside records."""
        names = ("slot_us", "arrived_us", "device", "answer")
        return {name: self.receipts.rows[name].astype(np.int64) for name in names}

    @cached_property
    def step(self) -> Indices:
        """Per receipt: the place of its step in ``paths``, -1 if nobody knows it."""
        index = self.paths.index
        code = np.array([index.get(trigger, -1) for _, trigger in self.receipts.steps] or [-1], np.intp)
        return np.asarray(code[self.receipts.rows["step"]])

    @cached_property
    def place(self) -> Indices:
        """Per visit: the row of its enrolment, -1 if there is none."""
        ids = self.evidence.enrolments["id"].astype(np.int64)
        top = max(int(ids.max(initial=0)), int(self.enrolment.max(initial=0)))
        row = np.full(top + 1, -1, np.intp)
        row[ids] = np.arange(len(ids))
        return row[self.enrolment]

    @cached_property
    def first_accepted(self) -> Indices:
        """Per visit and unknown key: the receipt that was accepted first, -1 without one."""
        rows = np.flatnonzero(self.rows["answer"] == Outcome.ACCEPTED)
        visit = self.visit[rows]
        found = np.full(int(self.visit.max(initial=len(self) - 1)) + 1, -1, np.intp)
        found[visit] = rows
        again = np.flatnonzero(np.bincount(visit, minlength=len(found))[visit] > 1)
        if len(again):
            doubled = rows[again][self.in_order(rows[again])][::-1]
            found[self.visit[doubled]] = doubled
        return found

    def in_order(self, rows: Indices) -> Indices:
        """Sorts receipts by arrival, ties by everything that tells them apart."""
        parts = self.rows
        keys = (self.receipts.rows["body"][rows], self.key[rows], parts["device"][rows], parts["slot_us"][rows])
        return np.lexsort((*keys, parts["arrived_us"][rows]))

    def ledger_rows(self, *outcomes: Outcome) -> Flags:
        """Which ledger rows have one of ``outcomes``."""
        labels = self.evidence.outcomes
        codes = [labels.index(outcome.label) + 1 for outcome in outcomes if outcome.label in labels]
        chosen = np.zeros(len(labels) + 1, np.bool_)
        chosen[codes] = True
        return np.asarray(chosen[self.evidence.ledger["outcome"]])

    def visits_with(self, *outcomes: Outcome) -> Flags:
        """Which visits have an attempt with one of ``outcomes`` in the ledger."""
        found = np.zeros(len(self), np.bool_)
        found[self.ledger_visit[self.ledger_rows(*outcomes)]] = True
        return found

    @cached_property
    def accepted(self) -> Flags:
        """Per visit: whether the ledger has it as accepted."""
        return self.visits_with(Outcome.ACCEPTED)

    @cached_property
    def in_doubt(self) -> Flags:
        """Per visit: whether an attempt is unknown in the ledger."""
        return self.visits_with(Outcome.IN_DOUBT)

    def enrolment_us(self, column: str) -> Int64s:
        """A moment column of the enrolments as microseconds since 1970."""
        return moments(np.ascontiguousarray(self.evidence.enrolments[column]).tobytes())

    def has_status(self, *names: str) -> Flags:
        """Which enrolments have one of these statuses."""
        status = self.evidence.enrolments["status"]
        found = np.zeros(len(status), np.bool_)
        for name in names:
            found |= status == STATUSES.index(name) + 1
        return found


def _live_leases(evidence: Evidence) -> NDArray[np.void]:
    """Enrolments whose request may be under way."""
    leased = evidence.enrolments["leased"] == 1
    return evidence.enrolments[:0] if evidence.drained else evidence.enrolments[leased]


def _numbered(enrolment: Int64s, number: Int64s, generation: Int64s) -> tuple[Int64s, Indices]:
    """The visit of every row, numbered in order, and a row of each visit."""
    widths = [int(part.max(initial=0)) + 1 for part in (enrolment, number, generation)]
    fits = math.prod(widths) < 2**63
    code = enrolment if fits else np.unique(enrolment, return_inverse=True)[1].astype(np.int64)
    code = (code * widths[1] + number) * widths[2] + generation
    order = np.argsort(code)
    starts, run = runs(code[order])
    visit = np.empty(len(order), np.int64)
    visit[order] = run
    return visit, order[starts]


def _key_numbers(words: NDArray[np.uint64]) -> Int64s:
    """A number for each pair of words, equal pairs equal numbers."""
    first, second = words[:, 0].copy(), words[:, 1].copy()
    order = np.argsort(first)
    same_first = first[order][1:] == first[order][:-1]
    if (same_first & (second[order][1:] != second[order][:-1])).any():  # two keys share a word: rare
        order = np.lexsort((second, first))
        same_first = first[order][1:] == first[order][:-1]
    new = np.ones(len(order), np.bool_)
    new[1:] = ~same_first | (second[order][1:] != second[order][:-1])
    number = np.empty(len(order), np.int64)
    number[order] = np.cumsum(new) - 1
    return number


def _words(keys: NDArray[np.void]) -> NDArray[np.uint64]:
    return np.ascontiguousarray(keys).view("<u8").reshape(-1, 2)


def runs(sorted_groups: Int64s) -> tuple[Indices, Int64s]:
    """Where runs of equal values start, and the run of every row."""
    new = np.ones(len(sorted_groups), np.bool_)
    new[1:] = sorted_groups[1:] != sorted_groups[:-1]
    return np.flatnonzero(new), np.cumsum(new) - 1
