"""Limits that devices share, judged from receipts: which messages count for a group, and by which limit."""

from __future__ import annotations

import numpy as np
import pytest

from dispatcher.core.catalogue import Catalogue
from dispatcher.core.outcomes import Outcome
from simulate.checker import limits, progress
from simulate.checker.findings import lines
from simulate.checker.matched import Matched
from simulate.evidence import ENROLMENT, LEDGER, MEMBERSHIP, QUOTA, STATUSES, UNLIMITED, Evidence, stamps
from simulate.receipts import RECEIPT, Receipts

S = 1_000_000
HOUR, DAY = 3600 * S, 24 * 3600 * S
LABELS = tuple(outcome.label for outcome in Outcome)
IN, OUT = 1, 0
BOTH = ((1, IN, 0), (2, IN, 0))


def judged(
    *messages, memberships=((1, IN, 0), (2, IN, 0)), quotas=((0, 3, 5),), **evidence
) -> list[tuple[str, str, int]]:
    """What is over a limit - violation, words, how many - of messages by device and slot, which arrive at once."""
    rows = np.zeros(len(messages), RECEIPT)
    for row, (device, slot_us, *answer) in zip(rows, messages, strict=True):
        row["device"], row["slot_us"], row["arrived_us"] = device, slot_us, slot_us
        row["answer"], row["phone"] = (answer or [Outcome.ACCEPTED])[0], b"1"
    matched = Matched.of(Receipts(rows, [("One", "a")]), told(memberships, quotas, **evidence))
    found = [breach for breach in limits.judge(matched) if len(breach.rows)]
    for breach, line in zip(found, lines(matched, found, 9), strict=False):
        assert breach.what in line
    return [(breach.violation, breach.what, len(breach.rows)) for breach in found]


def told(memberships, quotas, **evidence) -> Evidence:
    base = {
        "ledger": np.zeros(0, LEDGER),
        "enrolments": np.zeros(0, ENROLMENT),
        "catalogue": Catalogue.of([]),
        "outcomes": LABELS,
        "quotas": np.array([(device, 0, 99, 999) for device in (1, 2, 3)], QUOTA),
        "groups": ("north",),
        "group_quotas": np.array([(1, *held) for held in quotas], QUOTA),
        "memberships": np.array(list(memberships), MEMBERSHIP),
        "opted_out": {},
        "missed": 0,
        "devices": {1: ("id-1", "d-1"), 2: ("id-2", "d-2"), 3: ("id-3", "d-3")},
        "hour_s": 3600.0,
    }
    return Evidence(**(base | evidence))


OVER = ("over_hour", "over the hour's limit of group 'north'", 1)


def test_all_devices_of_a_group_count_together_and_no_others():
    assert judged((1, 0), (2, 1), (1, 2), (2, HOUR - 1)) == [OVER]
    assert judged((1, 0), (2, 1), (1, 2), (2, HOUR)) == []
    assert judged((1, 0), (2, 1), (3, 2), (2, HOUR - 1)) == []
    assert judged((1, 0), (2, 1), (1, 2, Outcome.REFUSED), (2, HOUR - 1)) == []


def test_the_day_has_a_limit_of_its_own():
    six = [(1 + n % 2, n * 4 * HOUR) for n in range(6)]
    assert judged(*six) == [("over_day", "over the day's limit of group 'north'", 1)]
    assert judged(*six, quotas=((0, 3, UNLIMITED),)) == []


@pytest.mark.parametrize(("since", "over"), [(20 * S, []), (40 * S, [OVER])])
def test_a_limit_holds_from_when_it_was_changed(since, over):
    quotas = ((0, 3, 9), (since, 4, 9))
    assert judged((1, 0), (2, 1), (1, 2), (2, 30 * S), quotas=quotas) == over


def test_a_message_counts_for_the_group_its_device_was_in():
    left = ((1, IN, 0), (2, IN, 0), (2, OUT, 10 * S))
    four = ((1, 0), (1, 1), (2, 9 * S), (1, 30 * S))
    assert judged(*four, memberships=left) == [OVER]
    assert judged((1, 0), (1, 1), (2, 10 * S), (1, 30 * S), memberships=left) == []
    # Whoever had to hear of the change, or whose message was on its way, may have counted it for either.
    assert judged(*four, memberships=left, look_us=2 * S) == []
    assert judged(*four, memberships=((1, IN, 0), (2, IN, 8 * S)), refresh_us=2 * S) == []


def stuck(*sent: int, group: int = IN) -> list[int]:
    """Enrolments of device 1 found stuck at midnight, when device 2 has sent at these moments."""
    ledger = np.zeros(len(sent), LEDGER)
    ledger["device"], ledger["outcome"], ledger["reserved"] = 2, 1, stamps(np.array(sent, np.int64))
    enrolments = np.zeros(1, ENROLMENT)
    enrolments["id"], enrolments["device"], enrolments["status"] = 1, 1, 1 + STATUSES.index("active")
    enrolments["due"], enrolments["visit"], enrolments["entry"], enrolments["step"] = stamps(np.int64(S)), 1, 1, 1
    evidence = told(
        ((1, group, 0), (2, IN, 0)), ((0, 3, 5),), ledger=ledger, enrolments=enrolments,
        ready=frozenset({1, 2}), stuck_us=HOUR, now_us=DAY,
    )  # fmt: skip
    return [*progress._idle_devices(Matched.of(Receipts(np.zeros(0, RECEIPT), []), evidence))[1:3]]


def test_a_device_whose_group_is_at_its_limit_is_not_idle():
    assert stuck() == [True, True]
    assert stuck(DAY - 3 * HOUR + S, DAY - 2 * HOUR - S, DAY - 2 * HOUR) == [False, False]
    assert stuck(DAY - 3 * HOUR + S, DAY - 2 * HOUR - S, DAY - 2 * HOUR, group=OUT) == [True, False]
    assert stuck(DAY - 2 * HOUR) == [True, True]
    assert stuck(*range(S, 6 * S, S)) == [False, False]
