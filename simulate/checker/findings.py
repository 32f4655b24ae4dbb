"""Breaches in words, for people who look for the cause."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from dispatcher.core.batches import Indices
from dispatcher.core.moments import to_datetime
from dispatcher.core.outcomes import Outcome
from simulate.checker.breaches import Breach
from simulate.checker.matched import Matched
from simulate.evidence import STATUSES


def lines(matched: Matched, breaches: Iterable[Breach], limit: int) -> list[str]:
    """One line a breach, at most ``limit``, by rule and then in the order of time or of enrolments."""
    said: list[str] = []
    for breach in sorted(breaches, key=lambda breach: breach.rule):
        head = f"rule {breach.rule}, {breach.violation}: {breach.what}"
        if breach.table == "leads":
            said += [f"{head}: {len(breach.rows)} leads"] * bool(len(breach.rows))
            continue
        tell = {"receipts": _receipt, "ledger": _attempt, "enrolments": _enrolment}[breach.table]
        rows = _sorted(matched, breach)[: limit - len(said)]
        said += [f"{head}: {tell(matched, row)}" for row in rows.tolist()]
        if len(said) >= limit:
            break
    return said[:limit]


def _sorted(matched: Matched, breach: Breach) -> Indices:
    rows = breach.rows
    if breach.table == "receipts":
        return rows[matched.in_order(rows)]
    if breach.table == "enrolments":
        return rows[np.argsort(matched.evidence.enrolments["id"][rows])]
    ledger = matched.evidence.ledger[rows]
    return rows[np.lexsort((ledger["attempt"], ledger["visit"], ledger["enrolment"], ledger["reserved"]))]


def _receipt(matched: Matched, row: int) -> str:
    receipt, visit = matched.receipts.rows[row], int(matched.visit[row])
    sequence, trigger = matched.receipts.steps[int(receipt["step"])]
    return ", ".join(
        [
            receipt["phone"].decode(),
            *([f"enrolment {matched.enrolment[visit]}"] if visit < len(matched) else []),
            f"{sequence!r} {trigger}",
            f"visit {receipt['visit']}, attempt {receipt['attempt']}",
            _device(matched, int(receipt["device"])),
            f"slot {_moment(receipt['slot_us'])}, arrived {_moment(receipt['arrived_us'])}",
            Outcome(receipt["answer"]).label,
        ]
    )


def _attempt(matched: Matched, row: int) -> str:
    evidence = matched.evidence
    attempt = evidence.ledger[row]
    return ", ".join(
        [
            *_phone(matched, int(attempt["enrolment"])),
            f"enrolment {attempt['enrolment']}",
            f"visit {attempt['visit']}, generation {attempt['generation']}, attempt {attempt['attempt']}",
            _device(matched, int(attempt["device"])),
            f"due {_moment(evidence.ledger_us('due')[row])}, slot {_moment(evidence.ledger_us('reserved')[row])}",
            evidence.outcomes[int(attempt["outcome"]) - 1],
        ]
    )


def _enrolment(matched: Matched, row: int) -> str:
    enrolment, triggers = matched.evidence.enrolments[row], [*matched.paths.index, "an unknown step"]
    due_us = int(matched.enrolment_us("due")[row])
    return ", ".join(
        [
            *_phone(matched, int(enrolment["id"])),
            f"enrolment {enrolment['id']} of lead {enrolment['lead']} by {triggers[int(enrolment['entry']) - 1]}",
            f"{STATUSES[int(enrolment['status']) - 1]} at {triggers[int(enrolment['step']) - 1]}",
            f"visit {enrolment['visit']}, generation {enrolment['generation']}",
            _device(matched, int(enrolment["device"])),
            f"due {_moment(due_us)}" if due_us > 0 else "nothing due",
        ]
    )


def _phone(matched: Matched, enrolment: int) -> list[str]:
    """The phone as the gateway knows it; nothing where no message of the enrolment has arrived."""
    theirs = np.flatnonzero(matched.known)
    theirs = theirs[matched.enrolment[matched.visit[theirs]] == enrolment]
    return [min(matched.receipts.rows["phone"][theirs].tolist()).decode()] if len(theirs) else []


def _device(matched: Matched, number: int) -> str:
    return f"device {matched.evidence.devices.get(number, ('', str(number)))[1]}"


def _moment(moment_us: int) -> str:
    return to_datetime(int(moment_us)).isoformat().replace("+00:00", "Z")
