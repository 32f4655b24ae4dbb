"""The checker fails: a good run, one thing of it corrupted, and exactly that violation is counted."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from dispatcher.core.outcomes import Outcome
from simulate.checker import Violations, check
from simulate.evidence import STATUSES, Evidence
from simulate.receipts import RECEIPT, Receipts
from simulate.rehearsal import Rehearsed

HOUR_US = 3_600_000_000
LATER_US = 2_000_000_000_000_000
"""Years after the run."""


@pytest.fixture(scope="module")
def good(new_database, local_ray, world_of) -> Rehearsed:
    """Twelve leads, three steps each."""
    done = world_of(new_database()).rehearse(devices=3, leads=12, days=4, shards=1)
    assert done.outcome.good
    assert done.outcome.completed == done.outcome.enrolled >= 12
    return done


class Case:
    """A copy of the run that may be written to, and where its first enrolment's three messages stand."""

    def __init__(self, good: Rehearsed) -> None:
        self.receipts, self.evidence = good.receipts, good.evidence
        self.rows = good.receipts.rows.copy()
        self.ledger = good.evidence.ledger.copy()
        self.enrolments = good.evidence.enrolments.copy()
        self.mine = np.flatnonzero(self.ledger["enrolment"] == self.enrolments["id"][0])
        self.mine = self.mine[np.argsort(self.ledger["visit"][self.mine])]
        keys = [key.tobytes() for key in self.rows["key"]]
        self.sent = [keys.index(self.ledger["key"][row].tobytes()) for row in self.mine]
        assert len(self.sent) == 3

    def violations(self, **evidence: Any) -> Violations:
        """The verdict on what the copy has become, with other parts of the evidence replaced."""
        changed = {"ledger": self.ledger, "enrolments": self.enrolments, **evidence}
        return check(Receipts(self.rows, self.receipts.steps), dataclasses.replace(self.evidence, **changed))

    def arrive(self, *arrived_us: int, device: int = 1) -> None:
        """More requests of a device reach the referee, and it rejects them."""
        extra = np.zeros(len(arrived_us), RECEIPT)
        extra["slot_us"] = extra["arrived_us"] = arrived_us
        extra["device"], extra["answer"] = device, Outcome.REJECTED
        self.rows = np.concatenate([self.rows, extra])

    def quotas(self, hour: int, day: int) -> np.ndarray:
        """Device 1 has these quotas, the others the usual ones."""
        quotas = self.evidence.quotas.copy()
        quotas[1] = hour, day
        return quotas


@pytest.fixture
def case(good) -> Case:
    """A fresh copy."""
    return Case(good)


def test_a_good_run_is_good(case):
    assert case.violations() == Violations()


def test_a_receipt_the_ledger_does_not_know_and_its_completion_without_it(case):
    case.ledger = np.delete(case.ledger, case.mine[2])
    assert case.violations() == Violations(lost=2)


def test_a_ledger_row_that_never_arrived_and_its_completion_without_it(case):
    case.rows = np.delete(case.rows, case.sent[2])
    assert case.violations() == Violations(lost=2)


def test_a_message_that_was_taken_twice(case):
    case.rows = np.concatenate([case.rows, case.rows[case.sent[1:2]]])
    assert case.violations() == Violations(duplicate=1)


def test_a_visit_the_ledger_has_accepted_twice(case):
    again = case.ledger[case.mine[1:2]].copy()
    again["attempt"], again["key"] = 2, b"another key 16 B"
    case.ledger = np.concatenate([case.ledger, again]).astype(case.ledger.dtype)
    assert case.violations() == Violations(duplicate=1, lost=1)


@pytest.mark.parametrize(("moved", "strayed"), [(0, 0), (1, 1)])
def test_a_repetition_comes_from_the_same_device(case, moved, strayed):
    again = case.rows[case.sent[2:]].copy()
    again["answer"], again["device"] = Outcome.REPEAT, (again["device"] - 1 + moved) % 3 + 1
    again["slot_us"] += HOUR_US
    again["arrived_us"] += HOUR_US
    case.rows = np.concatenate([case.rows, again])
    assert case.violations() == Violations(duplicate=strayed)


@pytest.mark.parametrize("visit", [0, 1, 2])
def test_a_slot_before_its_due_moment(case, visit):
    row = case.sent[visit]
    case.rows["slot_us"][row] = case.evidence.ledger_us("due")[case.mine[visit]] - 1
    assert case.violations() == Violations(early=1)


def test_a_due_moment_before_the_delay_has_passed(case):
    case.ledger["due"][case.mine[1]] -= HOUR_US
    case.rows["slot_us"][case.sent[1]] -= HOUR_US
    assert case.violations() == Violations(early=1)


def test_an_arrival_before_its_slot(case):
    row = case.sent[2]
    case.rows["arrived_us"][row] = case.rows["slot_us"][row] - 1
    assert case.violations() == Violations(early=1)


@pytest.mark.parametrize(
    ("last_us", "over"), [(HOUR_US - 1, 1), (HOUR_US, 0)], ids=["within the hour", "an hour later"]
)
def test_three_arrivals_where_two_an_hour_are_allowed(case, last_us, over):
    case.rows = case.rows[case.rows["device"] != 1][:0]
    case.ledger, case.enrolments = case.ledger[:0], case.enrolments[:0]
    case.arrive(LATER_US, LATER_US + 1, LATER_US + last_us)
    case.arrive(LATER_US, LATER_US + 2, device=2)
    assert case.violations(quotas=case.quotas(2, 800)) == Violations(over_hour=over)


@pytest.mark.parametrize(("last_us", "over"), [(24 * HOUR_US - 1, 1), (24 * HOUR_US, 0)])
def test_three_arrivals_where_two_a_day_are_allowed(case, last_us, over):
    case.rows, case.ledger, case.enrolments = case.rows[:0], case.ledger[:0], case.enrolments[:0]
    case.arrive(LATER_US, LATER_US + 2 * HOUR_US, LATER_US + last_us)
    assert case.violations(quotas=case.quotas(80, 2)) == Violations(over_day=over)


def test_requests_that_were_throttled_or_refused_do_not_count(case):
    case.rows, case.ledger, case.enrolments = case.rows[:0], case.ledger[:0], case.enrolments[:0]
    case.arrive(LATER_US, LATER_US + 1, LATER_US + 2, LATER_US + 3)
    case.rows["answer"][:2] = Outcome.THROTTLED, Outcome.REFUSED
    assert case.violations(quotas=case.quotas(2, 2)) == Violations()
    assert case.violations(quotas=case.quotas(1, 1)) == Violations(over_hour=1, over_day=1)


def test_steps_that_changed_places(case):
    second, third = case.sent[1:]
    case.rows["step"][[second, third]] = case.rows["step"][[third, second]]
    assert case.violations() == Violations(out_of_order=2)


def test_a_step_nobody_knows(case):
    case.receipts = Receipts(case.rows, [*case.receipts.steps, ("No Sequence", "no_step")])
    case.rows["step"][case.sent[2]] = len(case.receipts.steps) - 1
    assert case.violations() == Violations(out_of_order=1)


def test_a_message_after_the_opt_out(case):
    row = case.rows[case.sent[2]]
    phone, slot_us = row["phone"].decode(), int(row["slot_us"])
    assert case.violations(opted_out={phone: slot_us}) == Violations()
    assert case.violations(opted_out={phone: slot_us - 1}) == Violations(after_opt_out=1)


Spoil = Callable[[Case], None]


def spoil(**columns: int) -> Spoil:
    """Other values in the first enrolment's row."""

    def change(case: Case) -> None:
        for name, value in columns.items():
            case.enrolments[name][0] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(spoil(carries=1), id="completed, but the trigger is still on the lead"),
        pytest.param(spoil(leased=1), id="a lease that never ended"),
        pytest.param(spoil(status=STATUSES.index("active") + 1), id="active without its trigger"),
    ],
)
def test_an_enrolment_that_did_not_end_well(case, change):
    change(case)
    assert case.violations() == Violations(lost=1)


def test_a_lead_that_never_was_enrolled(case):
    assert case.violations(missed=1) == Violations(lost=1)


def test_nothing_at_all_is_good(case):
    case.rows, case.ledger, case.enrolments = case.rows[:0], case.ledger[:0], case.enrolments[:0]
    assert case.violations() == Violations()
    assert isinstance(case.evidence, Evidence)
