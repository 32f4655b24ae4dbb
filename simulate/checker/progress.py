"""Rules 1 and 4 to 7: steps come neither early nor out of order, and every enrolment is where its visits say."""

from __future__ import annotations

from typing import Final

import numpy as np

from dispatcher.core.batches import Indices, Int64s
from dispatcher.core.outcomes import PROVED_UNSENT, Outcome
from simulate.checker.breaches import Breach
from simulate.checker.matched import Flags, Matched
from simulate.evidence import NO_DUE

_NEVER_US: Final = 2**62


def judge(matched: Matched) -> list[Breach]:
    """What came early or out of order, and enrolments that did not end well."""
    before = predecessors(matched)
    return [
        *_early(matched, before),
        *_out_of_order(matched, before),
        *_misplaced(matched),
        *_unproved(matched),
        *_unended(matched),
        *_triggers(matched),
    ]


def predecessors(matched: Matched) -> Int64s:
    """Per visit: the receipt of the visit before it in its enrolment, the first that was accepted; -1 without one."""
    first, count = matched.first_accepted[: len(matched)], len(matched)
    latest = np.maximum.accumulate(np.where(first >= 0, np.arange(count), -1)) if count else np.zeros(0, np.int64)
    before = np.append(-1, latest[:-1])[:count]
    follows = (matched.enrolment[before] == matched.enrolment) & (matched.number[before] + 1 == matched.number)
    return np.where((before >= 0) & follows, first[before], -1)


def _early(matched: Matched, before: Int64s) -> list[Breach]:
    evidence, columns = matched.evidence, matched.rows
    due_us = np.full(len(matched), _NEVER_US, np.int64)
    ledger_due_us = evidence.ledger_us("due")
    np.minimum.at(due_us, matched.ledger_visit, ledger_due_us)
    due_us[due_us == _NEVER_US] = NO_DUE
    there = matched.place >= 0
    due_us[there] = np.maximum(due_us[there], matched.enrolment_us("enrolled")[matched.place[there]])
    after_us = np.full(len(matched), NO_DUE, np.int64)
    later = np.flatnonzero(before >= 0)
    delay_us = matched.paths.delay_us[matched.step[before[later]]]
    after_us[later] = columns["arrived_us"][before[later]] + delay_us - evidence.skew_us
    ready_us = np.maximum(due_us, after_us)
    slot_us = columns["slot_us"]
    early = columns["arrived_us"] < slot_us - evidence.skew_us
    early[matched.known] |= slot_us[matched.known] < ready_us[matched.visit[matched.known]]
    counted = np.zeros(len(matched), np.bool_)
    counted[matched.visit[matched.known & early]] = True
    booked = (evidence.ledger_us("reserved") < ledger_due_us) & ~counted[matched.ledger_visit]
    return [
        Breach(4, "early", "before its slot or before it was due", "receipts", np.flatnonzero(early)),
        Breach(4, "early", "a slot before it was due", "ledger", np.flatnonzero(booked)),
    ]


def _out_of_order(matched: Matched, before: Int64s) -> list[Breach]:
    paths, arrived_us = matched.paths, matched.rows["arrived_us"]
    mine = matched.first_accepted[: len(matched)]
    pairs = np.flatnonzero((before >= 0) & (mine >= 0))
    earlier, later = before[pairs], mine[pairs]
    wrong = ~paths.follows(matched.step[earlier], matched.step[later])
    wrong |= arrived_us[later] <= arrived_us[earlier] - matched.evidence.skew_us
    firsts = np.flatnonzero((mine >= 0) & (matched.number == 1) & (matched.place >= 0))
    entry = matched.evidence.enrolments["entry"].astype(np.int64)[matched.place[firsts]] - 1
    step = matched.step[mine[firsts]]
    off = np.where(entry >= 0, step != entry, ~paths.entry[step])
    return [
        Breach(5, "out_of_order", "does not follow from the step before", "receipts", later[wrong]),
        Breach(5, "out_of_order", "begins at a step that is not its entry", "receipts", mine[firsts[off]]),
    ]


def _misplaced(matched: Matched) -> list[Breach]:
    """Enrolments that stand at another visit than their accepted ones lead to."""
    enrolments = matched.evidence.enrolments
    visit, step = enrolments["visit"].astype(np.int64), enrolments["step"].astype(np.int64) - 1
    passed = _accepted_numbers(matched, matched.accepted | matched.by_hand | matched.skipped)
    place, number = matched.place[passed], matched.number[passed]
    before = np.bincount(place[number < visit[place]], minlength=len(enrolments))
    at = np.flatnonzero(matched.accepted & (matched.place >= 0))
    # What stopped or failed may learn of an acceptance when nothing can follow from it any more.
    ahead = np.zeros(len(enrolments), np.int64)
    np.maximum.at(ahead, matched.place[at], matched.number[at])
    over = matched.has_status("failed", "stopped")
    completed = matched.has_status("completed")
    unended = completed & (before == visit - 1) & ~matched.paths.ends(step) & (step >= 0)
    return [
        Breach(1, "lost", "an earlier step was never accepted", "enrolments", np.flatnonzero(before != visit - 1)),
        Breach(
            1, "lost", "completed before its last step", "enrolments", np.flatnonzero(unended | completed & (visit < 2))
        ),
        Breach(1, "lost", "stands at a step that was accepted", "enrolments", np.flatnonzero(ahead >= visit + over)),
    ]


def _accepted_numbers(matched: Matched, passed: Flags) -> Indices:
    """The visits among ``passed``, of several generations of one only the first."""
    rows = np.flatnonzero(passed & (matched.place >= 0))
    new = np.ones(len(rows), np.bool_)
    same = matched.enrolment[rows][1:] == matched.enrolment[rows][:-1]
    new[1:] = ~same | (matched.number[rows][1:] != matched.number[rows][:-1])
    return rows[new]


def _unproved(matched: Matched) -> list[Breach]:
    """Enrolments in doubt or failed whose current visit's attempts say something else."""
    enrolments = matched.evidence.enrolments
    doubtful, failed = matched.has_status("in_doubt"), matched.has_status("failed")
    if not (doubtful | failed).any():
        return []
    refused = matched.visits_with(Outcome.REJECTED, *(PROVED_UNSENT - {Outcome.NOT_SENT}))
    current = np.flatnonzero(matched.place >= 0)
    row = matched.place[current]
    same = (enrolments["visit"][row] == matched.number[current]) & (
        enrolments["generation"][row] == matched.generation[current]
    )
    current, row = current[same], row[same]
    unknown, known_bad, by_hand = (np.zeros(len(enrolments), np.bool_) for _ in range(3))
    unknown[row], known_bad[row], by_hand[row] = matched.in_doubt[current], refused[current], matched.by_hand[current]
    late = np.zeros(len(enrolments), np.bool_)
    late[row] = matched.accepted[current]
    doubtful, failed = doubtful & ~by_hand, failed & ~by_hand & ~late
    wrong = {
        "in doubt without an attempt in doubt": doubtful & ~unknown,
        "failed although an attempt is unknown": failed & unknown,
        "failed without a refusal": failed & ~unknown & ~known_bad,
    }
    return [Breach(1, "lost", what, "enrolments", np.flatnonzero(flags)) for what, flags in wrong.items()]


def _unended(matched: Matched) -> list[Breach]:
    """Leases and due moments that nobody saw to, once everything had come to rest."""
    evidence, enrolments = matched.evidence, matched.evidence.enrolments
    if not evidence.drained:
        return []
    leased = enrolments["leased"] == 1
    found = [Breach(6, "lost", "a lease that never ended", "enrolments", np.flatnonzero(leased))]
    if evidence.stuck_us is not None:
        waiting = matched.has_status("active") & ~leased
        finishing = waiting & (enrolments["due"] == NO_DUE)
        due = waiting & ~finishing & (matched.enrolment_us("due") <= evidence.now_us - evidence.stuck_us)
        due &= _idle_devices(matched)[enrolments["device"]]
        due &= ~np.isin(enrolments["lead"].astype(np.int64), list(evidence.resting))
        due &= matched.paths.usable[enrolments["step"].astype(np.int64) - 1]
        found += [
            Breach(6, "stuck", "due for long, and its device is idle", "enrolments", np.flatnonzero(due)),
            Breach(6, "stuck", "all accepted, and never completed", "enrolments", np.flatnonzero(finishing)),
        ]
    return found


def _idle_devices(matched: Matched) -> Flags:
    """By number, whether a device could have sent for all of ``stuck_us``, and sent nothing."""
    evidence, ledger = matched.evidence, matched.evidence.ledger
    stuck_us, hour_us = evidence.stuck_us or 0, round(evidence.hour_s * 1e6)
    top = (
        int(max(ledger["device"].max(initial=0), evidence.enrolments["device"].max(initial=0), *evidence.ready, 0)) + 1
    )
    idle = np.zeros(top, np.bool_)
    idle[list(evidence.ready)] = True
    device, reserved_us = ledger["device"].astype(np.int64), evidence.ledger_us("reserved")
    quota = np.zeros((2, top), np.int64)
    for each in np.sort(evidence.quotas, order="from_us"):
        if each["device"] < top:
            quota[:, each["device"]] = each["per_hour"], each["per_day"]
    # An hour more: our own windows are longer than the limit's by the guard.
    for span_us, most in ((0, np.ones(top)), (2 * hour_us, quota[0]), (25 * hour_us, quota[1])):
        lately = reserved_us > evidence.now_us - stuck_us - span_us
        idle &= np.bincount(device[lately], minlength=top) < most
    if evidence.groups:
        idle &= ~_limited_by_group(matched, top)
    return idle


def _limited_by_group(matched: Matched, top: int) -> Flags:
    """By number, whether a device was in a group at the end that may have been at its limit for all of ``stuck_us``."""
    evidence, ledger = matched.evidence, matched.evidence.ledger
    stuck_us, hour_us = evidence.stuck_us or 0, round(evidence.hour_s * 1e6)
    group = np.zeros(top + 1, np.int64)
    for stay in evidence.memberships:
        group[min(stay["device"], top)] = stay["group"]
    quota = np.zeros((2, len(evidence.groups) + 1), np.int64)
    for each in np.sort(evidence.group_quotas, order="from_us"):
        quota[:, each["device"]] = each["per_hour"], each["per_day"]
    of, reserved_us = group[ledger["device"].astype(np.int64)], evidence.ledger_us("reserved")
    full = np.zeros(len(evidence.groups) + 1, np.bool_)
    for span_us, most in ((2 * hour_us, quota[0]), (25 * hour_us, quota[1])):
        lately = reserved_us > evidence.now_us - stuck_us - span_us
        full |= np.bincount(of[lately], minlength=len(full)) >= most
    full[0] = False
    return np.asarray(full[group[:top]])


def _triggers(matched: Matched) -> list[Breach]:
    """Rule 7: the trigger is off the lead exactly when its enrolment has completed."""
    evidence, enrolments = matched.evidence, matched.evidence.enrolments
    carries = enrolments["carries"] == 1
    kept = np.flatnonzero(matched.has_status("completed") & carries & _newest_of_lead(matched))
    if len(kept) and evidence.retriggered:
        codes = {(lead, matched.paths.index.get(trigger, -1) + 1) for lead, trigger in evidence.retriggered}
        pairs = zip(enrolments["lead"][kept].tolist(), enrolments["entry"][kept].tolist(), strict=True)
        kept = kept[[pair not in codes for pair in pairs]]
    found = [
        Breach(7, "lost", "completed, and the trigger is still on the lead", "enrolments", kept),
        Breach(
            1, "lost", "carries an open entry's trigger and was never enrolled", "leads", np.arange(evidence.missed)
        ),
        Breach(7, "lost", "a trigger is gone that nobody took off", "leads", np.arange(evidence.stripped)),
    ]
    if evidence.drained:
        taken = np.flatnonzero(matched.has_status("active") & ~carries)
        found.append(Breach(7, "lost", "active, and the trigger is off the lead", "enrolments", taken))
    return found


def _newest_of_lead(matched: Matched) -> Flags:
    """Whether an enrolment is its lead's last by its entry trigger: an earlier one's trigger may have come anew."""
    enrolments = matched.evidence.enrolments
    order = np.lexsort((enrolments["id"], enrolments["entry"], enrolments["lead"]))
    last = np.ones(len(order), np.bool_)
    lead, entry = enrolments["lead"][order], enrolments["entry"][order]
    last[:-1] = (lead[1:] != lead[:-1]) | (entry[1:] != entry[:-1])
    newest = np.zeros(len(order), np.bool_)
    newest[order] = last
    return newest
