"""The life of an enrolment: every pair of state and event, and what holds along every path."""

from __future__ import annotations

import pickle
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.core.enrolment import (
    TRANSITIONS,
    Event,
    State,
    TransitionError,
    Write,
    next_state,
    transition,
)

W, L, D = State.WAITING, State.LEASED, State.IN_DOUBT
C, F, S = State.COMPLETED, State.FAILED, State.STOPPED

EXPECTED: dict[State, dict[str, State]] = {
    W: {
        "CLAIM": L,
        "ACCEPT": W,
        "ACCEPT_LAST": C,
        "ACCEPT_LAST_LOCKED": W,
        "FINISH": C,
        "SKIP": W,
        "SKIP_LAST": C,
        "STOP": S,
        "LATE": W,
    },
    L: {
        "ACCEPT": W,
        "ACCEPT_LAST": C,
        "ACCEPT_LAST_LOCKED": W,
        "SNOOZE": W,
        "DEFER": W,
        "RETRY": W,
        "EXHAUST": F,
        "REJECT": F,
        "OPT_OUT": S,
        "DOUBT": D,
        "STOP": L,
        "LATE": L,
    },
    D: {
        "ACCEPT": W,
        "ACCEPT_LAST": C,
        "ACCEPT_LAST_LOCKED": W,
        "NOT_SENT": W,
        "REJECT": F,
        "OPT_OUT": S,
        "RESEND": W,
        "STOP": D,
        "LATE": D,
    },
    C: {"LATE": C},
    F: {"ACCEPT": W, "ACCEPT_LAST": C, "ACCEPT_LAST_LOCKED": W, "REOPEN": W, "LATE": F},
    S: {"ACCEPT": S, "ACCEPT_LAST": S, "ACCEPT_LAST_LOCKED": S, "LATE": S},
}

ADVANCING = {Event.ACCEPT, Event.ACCEPT_LAST, Event.ACCEPT_LAST_LOCKED}


@pytest.mark.parametrize(("state", "event"), list(product(State, Event)), ids=lambda each: each.name)
def test_every_pair_leads_where_it_should_or_is_a_bug(state: State, event: Event) -> None:
    if event.name in EXPECTED[state]:
        assert next_state(state, event) is EXPECTED[state][event.name]
    else:
        with pytest.raises(TransitionError) as unknown:
            next_state(state, event)
        assert (unknown.value.state, unknown.value.event) == (state, event)


def test_an_unknown_event_says_so_and_crosses_processes_whole() -> None:
    error = pickle.loads(pickle.dumps(TransitionError(C, Event.CLAIM)))
    assert (error.state, error.event) == (C, Event.CLAIM)
    assert str(error) == "an enrolment that is completed cannot CLAIM"


def test_the_status_column_reads_as_the_seeds_queries_expect() -> None:
    assert {state.name: state.status for state in State} == {
        "WAITING": "active",
        "LEASED": "active",
        "IN_DOUBT": "in_doubt",
        "COMPLETED": "completed",
        "FAILED": "failed",
        "STOPPED": "stopped",
    }


def test_a_message_leaves_only_under_a_lease_and_a_lease_comes_only_from_a_claim() -> None:
    for (state, event), (following, writes) in TRANSITIONS.items():
        assert (Write.LEASE in writes) == (state is not L and following is L) == (event is Event.CLAIM)
        assert (Write.LEASE_END in writes) == (state is L and following is not L)


def test_the_trigger_leaves_the_lead_exactly_when_the_enrolment_completes() -> None:
    for (state, _), (following, writes) in TRANSITIONS.items():
        assert (Write.TRIGGER_OFF in writes) == (state is not C and following is C)


def test_what_is_known_of_an_attempt_always_reaches_the_ledger() -> None:
    silent = {event for (_, event), done in TRANSITIONS.items() if Write.LEDGER not in done.writes}
    assert silent == {
        Event.CLAIM,
        Event.FINISH,
        Event.SNOOZE,
        Event.RESEND,
        Event.SKIP,
        Event.SKIP_LAST,
        Event.STOP,
        Event.REOPEN,
    }


def test_whatever_waits_for_another_message_has_a_due_time() -> None:
    for (state, event), (following, writes) in TRANSITIONS.items():
        waits_anew = following is W and event not in {Event.LATE, Event.ACCEPT_LAST_LOCKED}
        assert (Write.DUE in writes) == waits_anew, (state, event)
        assert (Write.NO_DUE in writes) == (
            event in {Event.ACCEPT_LAST, Event.ACCEPT_LAST_LOCKED, Event.SKIP_LAST} and state is not S
        )


def test_a_new_key_needs_a_new_visit_or_an_operator() -> None:
    for (state, event), (_, writes) in TRANSITIONS.items():
        assert (Write.VISIT in writes) == (event in {Event.ACCEPT, Event.SKIP} and state is not S)
        assert (Write.GENERATION in writes) == (event is Event.REOPEN)


def test_only_counted_failures_count_and_only_reasons_stop() -> None:
    for (_, event), (following, writes) in TRANSITIONS.items():
        assert (Write.RETRIES in writes) == (event in {Event.RETRY, Event.EXHAUST, Event.DOUBT})
        assert (Write.REASON in writes) == (event in {Event.STOP, Event.OPT_OUT})
        assert following is not F or Write.ERROR in writes or event is Event.LATE


def test_doubt_ends_by_proof_or_under_the_same_key_never_by_itself() -> None:
    out = {event for (state, event), done in TRANSITIONS.items() if state is D and done.next is not D}
    assert out == ADVANCING | {Event.NOT_SENT, Event.REJECT, Event.OPT_OUT, Event.RESEND}
    assert Write.PIN in transition(D, Event.RESEND).writes


def test_the_end_is_the_end() -> None:
    assert {done.next for (state, _), done in TRANSITIONS.items() if state is C} == {C}
    assert {done.next for (state, _), done in TRANSITIONS.items() if state is S} == {S}


@given(st.lists(st.sampled_from(Event), max_size=60))
def test_along_every_path_leases_alternate_and_nothing_is_sent_after_the_end(events: list[Event]) -> None:
    state, leases, ended = W, 0, False
    for event in events:
        try:
            state, writes = transition(state, event)
        except TransitionError:
            continue
        leases += (Write.LEASE in writes) - (Write.LEASE_END in writes)
        ended = ended or state in (C, S)
        assert leases == (state is L)
        assert not ended or state in (C, S)
