"""Rules 1 and 2: what gateway and ledger say of each visit, and that nothing was sent twice or altered."""

from __future__ import annotations

from typing import Final

import numpy as np

from dispatcher.core.batches import Indices, Int64s
from dispatcher.core.outcomes import Outcome
from simulate.checker.breaches import Breach
from simulate.checker.matched import Flags, Matched, runs

_MAYBE_SENT: Final = (Outcome.ACCEPTED, Outcome.REPEAT, Outcome.IN_DOUBT, Outcome.NOT_SENT)
"""What a gateway did when the message was sent, or its sender cannot know that it was not."""
_NEVER_US: Final = 2**62


def judge(matched: Matched) -> list[Breach]:
    """Lost, twice and altered messages."""
    return [*_lost(matched), *_twice(matched), *_two_identities(matched), *_asked_again(matched)]


def _lost(matched: Matched) -> list[Breach]:
    """Acceptances that only one of gateway and ledger has; requests that nobody knows."""
    first, count = matched.first_accepted, len(matched)
    arrived = first[:count] >= 0
    open_ = matched.accepted | matched.in_doubt | matched.leased | matched.by_hand
    unheard = np.flatnonzero(matched.accepted & ~arrived & ~matched.by_hand)
    row = np.full(count, -1, np.intp)
    accepted = np.flatnonzero(matched.ledger_rows(Outcome.ACCEPTED))
    row[matched.ledger_visit[accepted]] = accepted
    strays = np.flatnonzero(~matched.known)
    homeless = np.flatnonzero(matched.place < 0)
    return [
        Breach(1, "lost", "accepted, and the ledger says otherwise", "receipts", first[:count][arrived & ~open_]),
        Breach(1, "lost", "a request under a key that neither ledger nor a lease knows", "receipts", strays),
        Breach(1, "lost", "accepted in the ledger, and never arrived", "ledger", row[unheard]),
        Breach(1, "lost", "an enrolment that is gone", "ledger", _any_row(matched, homeless)),
    ]


def _any_row(matched: Matched, visits: Indices) -> Indices:
    """A ledger row of each of these visits that have one."""
    row = np.full(len(matched), -1, np.intp)
    row[matched.ledger_visit[::-1]] = np.arange(len(matched.ledger_visit))[::-1]
    return row[visits][row[visits] >= 0]


def _twice(matched: Matched) -> list[Breach]:
    """Acceptances beyond the first of a visit, at the gateway and in the ledger."""
    rows = np.flatnonzero(matched.rows["answer"] == Outcome.ACCEPTED)
    again = rows[matched.first_accepted[matched.visit[rows]] != rows]
    accepted = np.flatnonzero(matched.ledger_rows(Outcome.ACCEPTED))
    order = np.lexsort((matched.evidence.ledger["attempt"][accepted], matched.ledger_visit[accepted]))
    visit = matched.ledger_visit[accepted][order]
    return [
        Breach(2, "duplicate", "accepted again", "receipts", again),
        Breach(2, "duplicate", "accepted again in the ledger", "ledger", accepted[order][1:][visit[1:] == visit[:-1]]),
    ]


def _two_identities(matched: Matched) -> list[Breach]:
    """Visits with two keys, and keys with two visits."""
    visit, key = matched.ledger_visit, matched.ledger_key
    several = np.flatnonzero(np.bincount(visit, minlength=1)[visit] > 1)
    order = several[np.lexsort((matched.evidence.ledger["attempt"][several], visit[several]))]
    starts, run = runs(visit[order])
    other_key = order[key[order] != key[order][starts][run]] if len(order) else order
    other_visit = np.flatnonzero(matched.first_visit_of_key[key] != visit)
    return [
        Breach(2, "duplicate", "another key for the same visit", "ledger", other_key),
        Breach(2, "duplicate", "a key that another visit has", "ledger", other_visit),
    ]


def _asked_again(matched: Matched) -> list[Breach]:
    """Requests that differ from an earlier one of their visit that was, or may have been, sent."""
    unknown_us, unknown_device = _unknown_attempts(matched)
    rows = np.flatnonzero(_may_differ(matched, unknown_us))
    if not len(rows):
        return []
    columns = matched.rows
    rows = rows[matched.in_order(rows)]
    rows = rows[np.lexsort((columns["slot_us"][rows], matched.visit[rows]))]
    visit, slot_us, device = matched.visit[rows], columns["slot_us"][rows], columns["device"][rows]
    starts, run = runs(visit)
    place = np.arange(len(rows))
    maybe = np.isin(columns["answer"][rows], _MAYBE_SENT) | (slot_us >= unknown_us[visit])
    anchor = np.minimum.reduceat(np.where(maybe, place, len(rows)), starts)[run]
    after = place > anchor
    anchor = np.minimum(anchor, len(rows) - 1)
    # The attempt that is unknown may never have arrived: then already the first request that did is another one.
    earlier = (unknown_us[visit] < slot_us[anchor]) & (unknown_device[visit] > 0)
    right_device = np.where(earlier, unknown_device[visit], device[anchor])
    strayed = (place >= anchor) & (after | earlier) & (device != right_device)
    other_key = after & (matched.key[rows] != matched.key[rows][anchor])
    body = matched.receipts.rows["body"][rows]
    first = matched.first_accepted[visit]
    counted = (columns["answer"][rows] == Outcome.ACCEPTED) & (first != rows)
    return [
        Breach(2, "duplicate", "asked for again from another device", "receipts", rows[strayed & ~counted]),
        Breach(2, "duplicate", "asked for again under another key", "receipts", rows[other_key & ~strayed & ~counted]),
        Breach(2, "altered", "asked for again with another body", "receipts", rows[after & (body != body[anchor])]),
    ]


def _unknown_attempts(matched: Matched) -> tuple[Int64s, Int64s]:
    """Per visit, slot and device of the first attempt that the engine had no answer of; never and 0 without one."""
    since_us, device = np.full(len(matched), _NEVER_US, np.int64), np.zeros(len(matched), np.int64)
    rows = np.flatnonzero(matched.ledger_rows(Outcome.IN_DOUBT, Outcome.NOT_SENT))
    if len(rows):
        slot_us = matched.evidence.ledger_us("reserved")[rows]
        latest_first = np.argsort(-slot_us, kind="stable")
        visit = matched.ledger_visit[rows][latest_first]
        since_us[visit] = slot_us[latest_first]
        device[visit] = matched.evidence.ledger["device"][rows][latest_first]
    return since_us, device


def _may_differ(matched: Matched, unknown_us: Int64s) -> Flags:
    """Receipts that are not the only request of their visit, or whose visit has an unknown attempt."""
    several = np.bincount(matched.visit[matched.known], minlength=len(matched)) > 1
    wanted = (several | (unknown_us < _NEVER_US)) & ~matched.by_hand
    found = np.zeros(len(matched.visit), np.bool_)
    found[matched.known] = wanted[matched.visit[matched.known]]
    return found
