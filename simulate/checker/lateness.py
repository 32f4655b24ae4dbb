"""Rules 1 and 4: what was skipped was too late and not sent, and what was sent was not too late."""

from __future__ import annotations

import numpy as np

from dispatcher.core.outcomes import Outcome
from simulate.checker.breaches import Breach
from simulate.checker.matched import Flags, Matched

_ALWAYS_US = -(2**62)


def judge(matched: Matched) -> list[Breach]:
    """Steps passed over for no reason, or sent all the same, and messages that are later than their sequence allows."""
    place = (
        {int(id_): row for row, id_ in enumerate(matched.evidence.enrolments["id"])} if matched.skipped.any() else {}
    )
    least_us, index = matched.paths.least_late_us, matched.paths.index
    early = [
        place.get(each.enrolment, 0)
        for each in matched.evidence.skipped
        if not each.at_us - each.due_us > least_us[index.get(each.step, -1)]
    ]
    sent = np.flatnonzero(matched.skipped & matched.accepted)
    return [
        Breach(1, "lost", "a step was skipped that was not too late", "enrolments", np.array(early, np.intp)),
        Breach(1, "lost", "a step was skipped, and accepted", "enrolments", matched.place[sent]),
        Breach(4, "outside_window", "later than its sequence allows", "receipts", np.flatnonzero(_too_late(matched))),
    ]


def _too_late(matched: Matched) -> Flags:
    """Receipts of visits without an attempt that was unknown: those are asked about again, however late."""
    due_us = np.full(len(matched), _ALWAYS_US, np.int64)
    np.maximum.at(due_us, matched.ledger_visit, matched.evidence.ledger_us("due"))
    known = matched.known.copy()
    unknown = matched.visits_with(Outcome.IN_DOUBT, Outcome.NOT_SENT, Outcome.REPEAT) | (due_us == _ALWAYS_US)
    known[known] = ~unknown[matched.visit[known]]
    rows = np.flatnonzero(known)
    late_us = matched.rows["slot_us"][rows] - due_us[matched.visit[rows]]
    found = np.zeros(len(matched.visit), np.bool_)
    found[rows] = late_us > matched.paths.most_late_us[matched.step[rows]]
    return found
