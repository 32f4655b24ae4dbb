"""A mock gateway that refuses, throttles, rejects and loses answers: every message still comes to its right end."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from dispatcher.core.outcomes import Outcome
from simulate.referee import Behaviour
from simulate.rehearsal import Rehearsed

LEADS = 400
STATES = """
SELECT c.status, c.visit, c.retry_count, c.last_error, c.trigger_kept,
       EXISTS (SELECT FROM dripline_tokens(l.trigger) t(token) WHERE t.token = c.entry_trigger) AS carries, count(*)
FROM sequence_contacts c JOIN leads l ON l.id = c.lead_id
GROUP BY 1, 2, 3, 4, 5, 6 ORDER BY 1, 2
"""
ATTEMPTS = """
SELECT enrolment_id, visit, array_agg(outcome ORDER BY attempt) AS outcomes,
       array_agg(attempt ORDER BY attempt) AS attempts,
       count(DISTINCT device_id) AS devices, count(DISTINCT idempotency_key) AS keys
FROM message_ledger GROUP BY 1, 2
"""


def rehearse(world: Any, shards: int = 1, **shares: float) -> Rehearsed:
    done = world.rehearse(devices=60, leads=LEADS, days=10, shards=shards, behaviour=Behaviour(**shares))
    assert done.outcome.good, done.outcome.violations
    return done


def conserve(world: Any, done: Rehearsed) -> None:
    """Every enrolment is in one state, every visit has one verdict, every request one ledger row."""
    states = ("completed", "active", "failed", "stopped", "in_doubt")
    assert sum(getattr(done.outcome, state) for state in states) == done.outcome.enrolled
    assert done.outcome.active == done.outcome.stopped == 0
    visits = world.rows(ATTEMPTS)
    verdicts = Counter(
        "accepted" if "accepted" in row["outcomes"] else "in_doubt" if "in_doubt" in row["outcomes"] else "failed"
        for row in visits
    )
    assert verdicts["accepted"] == done.outcome.sends
    assert verdicts["failed"] == done.outcome.failed
    assert sum(len(row["outcomes"]) for row in visits) == len(done.receipts)
    for row in visits:
        assert row["attempts"] == list(range(1, len(row["attempts"]) + 1))
        assert row["keys"] == row["devices"] == 1


@pytest.mark.slow
def test_a_rejected_message_fails_its_enrolment_and_keeps_the_trigger(world):
    done = rehearse(world, rejected=0.1)
    conserve(world, done)
    rejected = int(done.receipts.answered(Outcome.REJECTED).sum())
    assert done.outcome.failed == rejected > 20
    for row in world.rows(STATES):
        failed = row["status"] == "failed"
        expected = (0, "mock: rejected", True, True) if failed else (0, None, False, False)
        assert (row["retry_count"], row["last_error"], row["trigger_kept"], row["carries"]) == expected
        assert failed or row["visit"] == 4


@pytest.mark.slow
def test_throttled_and_refused_messages_are_sent_later(world):
    done = rehearse(world, throttled=0.1, refused=0.1)
    conserve(world, done)
    assert done.outcome.completed == done.outcome.enrolled
    assert done.receipts.answered(Outcome.THROTTLED).sum() > 50 < done.receipts.answered(Outcome.REFUSED).sum()
    for row in world.rows(ATTEMPTS):
        assert row["outcomes"][-1] == "accepted"
        assert set(row["outcomes"][:-1]) <= {"throttled", "refused"}


@pytest.mark.slow
def test_a_lost_answer_is_asked_for_again_under_the_same_key(world):
    done = rehearse(world, lost=0.1)
    conserve(world, done)
    assert done.outcome.completed == done.outcome.enrolled
    repeats = int(done.receipts.answered(Outcome.REPEAT).sum())
    assert repeats > 50
    for row in world.rows(ATTEMPTS):
        # Told nothing twice, nobody knows whether the second request arrived too.
        first, *middle, last = row["outcomes"] * 2 if len(row["outcomes"]) == 1 else row["outcomes"]
        assert (first, set(middle) <= {"in_doubt"}) == ("accepted", True)
        assert last == ("accepted" if len(row["outcomes"]) == 1 else "repeat")
    assert world.value("SELECT count(*) FROM message_ledger WHERE outcome = 'accepted'") == done.outcome.sends


def test_all_of_it_at_once(world):
    done = rehearse(world, shards=2, rejected=0.05, throttled=0.05, refused=0.05, lost=0.05)
    conserve(world, done)
    assert done.outcome.completed + done.outcome.failed == done.outcome.enrolled
