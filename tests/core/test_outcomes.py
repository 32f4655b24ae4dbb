"""The verdict of a visit: accepted if any attempt was, in doubt if any is unknown, only else failed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.core.outcomes import PROVED_UNSENT, UNCOUNTED, Outcome, verdict

attempts = st.lists(st.sampled_from(Outcome), max_size=8)


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        ([Outcome.ACCEPTED], Outcome.ACCEPTED),
        ([Outcome.REPEAT], Outcome.ACCEPTED),
        ([Outcome.IN_DOUBT, Outcome.REPEAT], Outcome.ACCEPTED),
        ([Outcome.REJECTED, Outcome.ACCEPTED], Outcome.ACCEPTED),
        ([Outcome.IN_DOUBT, Outcome.REJECTED], Outcome.IN_DOUBT),
        ([Outcome.OPTED_OUT, Outcome.IN_DOUBT, Outcome.REFUSED], Outcome.IN_DOUBT),
        ([Outcome.NOT_SENT, Outcome.REJECTED], Outcome.REJECTED),
        ([Outcome.REJECTED, Outcome.OPTED_OUT], Outcome.OPTED_OUT),
        ([Outcome.THROTTLED, Outcome.EXPIRED, Outcome.CREDENTIALS], Outcome.REFUSED),
        ([], Outcome.REFUSED),
    ],
)
def test_the_verdict_of_a_visit(outcomes: list[Outcome], expected: Outcome) -> None:
    assert verdict(outcomes) is expected


@given(st.permutations(list(Outcome)), attempts)
def test_order_and_repetition_prove_nothing(order: list[Outcome], outcomes: list[Outcome]) -> None:
    shuffled = sorted(outcomes * 2, key=order.index)
    assert verdict(shuffled) is verdict(outcomes)


@given(attempts)
def test_a_refusal_after_an_unknown_attempt_proves_nothing(outcomes: list[Outcome]) -> None:
    assert verdict([Outcome.IN_DOUBT, *outcomes]) in (Outcome.IN_DOUBT, Outcome.ACCEPTED)


@given(attempts)
def test_a_visit_is_unsent_exactly_when_every_attempt_is_proved_unsent(outcomes: list[Outcome]) -> None:
    assert (verdict(outcomes) is Outcome.REFUSED) == PROVED_UNSENT.issuperset(outcomes)


def test_a_snooze_is_always_proved_unsent() -> None:
    assert PROVED_UNSENT > UNCOUNTED


def test_labels_and_numbers_are_what_ledgers_and_batches_hold() -> None:
    assert {outcome.label: int(outcome) for outcome in Outcome} == {
        "accepted": 0,
        "repeat": 1,
        "rejected": 2,
        "opted_out": 3,
        "refused": 4,
        "throttled": 5,
        "expired": 6,
        "credentials": 7,
        "in_doubt": 8,
        "not_sent": 9,
        "throttled_pair": 10,
        "throttled_account": 11,
        "quality": 12,
        "capped": 13,
        "service_window": 14,
        "content": 15,
    }
