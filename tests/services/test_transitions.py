"""Every statement that moves an enrolment does what the table of transitions says, to the column."""

from __future__ import annotations

from uuid import UUID

import numpy as np
import pytest

from dispatcher.completer import ends_of
from dispatcher.core.batches import Leased, Outcomes
from dispatcher.core.enrolment import Event, State, Write, transition
from dispatcher.core.identity import idempotency_key
from dispatcher.core.leases import Ends
from dispatcher.core.outcomes import Outcome
from dispatcher.store.statements import statements

TOKEN, EPOCH = 77, 5
BEFORE = {
    State.WAITING: {"status": "active"},
    State.LEASED: {"status": "active", "attempt": 1},
    State.IN_DOUBT: {"status": "in_doubt", "attempt": 1},
    State.COMPLETED: {"status": "completed", "next_trigger_time": None},
    State.FAILED: {"status": "failed", "attempt": 1},
    State.STOPPED: {"status": "stopped", "stop_reason": "operator", "attempt": 1},
}
"""Columns that differ from a waiting row's."""

SAID = {
    Event.ACCEPT: ("one", Outcome.ACCEPTED),
    Event.ACCEPT_LAST: ("two", Outcome.ACCEPTED),
    Event.ACCEPT_LAST_LOCKED: ("two", Outcome.ACCEPTED),
    Event.DEFER: ("one", Outcome.THROTTLED),
    Event.RETRY: ("one", Outcome.REFUSED),
    Event.EXHAUST: ("one", Outcome.REFUSED),
    Event.REJECT: ("one", Outcome.REJECTED),
    Event.OPT_OUT: ("one", Outcome.OPTED_OUT),
    Event.DOUBT: ("one", Outcome.IN_DOUBT),
    Event.NOT_SENT: ("one", Outcome.REFUSED),
    Event.LATE: ("one", Outcome.REFUSED),
}
"""The step it stands at, and what the gateway says."""

LATE = (State.WAITING, State.IN_DOUBT, State.FAILED, State.STOPPED)
PAIRS = [
    *((State.LEASED, event) for event in SAID if event not in (Event.NOT_SENT, Event.LATE)),
    *((state, event) for state in LATE for event in (Event.ACCEPT, Event.ACCEPT_LAST_LOCKED)),
    *((State.IN_DOUBT, event) for event in (Event.NOT_SENT, Event.REJECT, Event.OPT_OUT)),
    *((state, Event.LATE) for state in (*LATE, State.LEASED, State.COMPLETED)),
    (State.WAITING, Event.CLAIM),
    (State.WAITING, Event.FINISH),
    (State.WAITING, Event.STOP),
    (State.LEASED, Event.STOP),
    (State.IN_DOUBT, Event.STOP),
    (State.LEASED, Event.SNOOZE),
]


@pytest.fixture
async def one(new_world):
    """One lead, one enrolment at the first of two steps, nothing begun."""
    world = await new_world()
    await world.sequence("Two", "one", "two")
    await world.begin()
    await world.lead("one")
    await world.execute("DELETE FROM lead_changes")
    return world


async def put(world, state: State, event: Event) -> None:
    device = await world.value("SELECT id FROM devices")
    columns = {"next_trigger_time": world.start, "visit": 1, **BEFORE[state]}
    if event is Event.EXHAUST:
        columns |= {"retry_count": world.settings.retry_limit}
    if event is Event.FINISH:
        columns |= {"next_trigger_time": None, "visit": 2}
    if state is State.LEASED:
        columns |= {
            "processing_device_id": device,
            "processing_started_at": world.start,
            "lease_deadline_at": world.start,
            "lease_token": TOKEN,
            "lease_epoch": EPOCH,
        }
    await world._insert(
        "sequence_contacts",
        sequence_id=1,
        lead_id=1,
        contact_phone="999101",
        entry_trigger="one",
        current_trigger=SAID.get(event, ("one",))[0],
        home_device_id=device,
        **columns,
    )
    if state is State.IN_DOUBT:
        await world.execute(
            "INSERT INTO message_ledger (enrolment_id, sequence_id, lead_id, shard_epoch, due_at, reserved_at, "
            "deadline_at, device_id, idempotency_key, visit, generation, attempt, outcome, step_trigger) "
            "SELECT 1, 1, 1, $1, $2, $2, $2, $3, $4, 1, 0, 1, 'in_doubt', 'one'",
            EPOCH,
            world.start,
            device,
            UUID(bytes=idempotency_key(1, 1, 0)),
        )


async def ends(world, state: State, event: Event) -> Ends:
    """What the completer makes of the end of an attempt, under the row's token or one that is gone.

    It is the one the row is about, or, too late for an enrolment in doubt, another one.
    """
    step, outcome = SAID[event]
    one, now_us = np.ones(1, np.int32), np.array([world.now_us])
    leased = Leased(
        token=TOKEN if state is State.LEASED and event is not Event.LATE else TOKEN - 1,
        epoch=EPOCH,
        enrolment=np.array([1]),
        lead=np.array([1]),
        visit=one,
        generation=0 * one,
        attempt=2 * one if (state, event) == (State.IN_DOUBT, Event.LATE) else one,
        retries=one * (world.settings.retry_limit if event is Event.EXHAUST else 0),
        device=one,
        slot_us=now_us,
        due_us=now_us,
        phone=["999101"],
        name=[None],
        attributes=[None],
        step=[step],
        resend_text=[None],
        resend_media_url=[None],
    )
    said = Outcomes(
        row=np.array([0]),
        outcome=np.array([outcome], np.int8),
        at_us=now_us,
        message_id=["m"],
        error=[None if outcome is Outcome.ACCEPTED or event is Event.NOT_SENT else "why"],
        retry_after_s=np.array([np.nan]),
    )
    catalogue = await world.shards.shards[0]._store.catalogue()
    key, bodies = [idempotency_key(1, 1, 0)], (["text"], [None])
    return ends_of(leased, key, said, bodies, catalogue, np.array([False]), world.settings)


async def happen(world, state: State, event: Event) -> None:
    """Run the statements that stand for ``event``."""
    shard = world.shards.shards[0]
    if event is Event.CLAIM:
        world.shards.hand_over = False
        await world.coordinator.probe()
        await world.coordinator._dispatch(world.now_us, 60_000_000)
    elif event is Event.FINISH:
        await (await world.store()).finish_waiting(10, world.now_us)
    elif event is Event.STOP:
        await world.execute("UPDATE leads SET trigger = 'other'")
        await world.connection.fetch(statements("enrol")["take_changes"], 10, world.now_us)
    elif event is Event.SNOOZE:
        due = np.array([world.now_us + 60_000_000])
        await shard._store.give_back(np.array([1]), np.array([TOKEN]), due, [None], world.now_us, [False], [False])
    else:
        await shard._store.end(await ends(world, state, event), world.now_us, epoch=EPOCH, deadline_us=30_000_000)


async def look(world) -> dict:
    row = dict(await world.connection.fetchrow("SELECT * FROM sequence_contacts"))
    row["ledger"] = await world.rows("SELECT outcome FROM message_ledger")
    row["lead"] = await world.value("SELECT trigger FROM leads")
    return row


def written(before: dict, after: dict) -> set[Write]:
    """Which writes can be seen in what changed."""
    changed = {name for name in before if before[name] != after[name]}
    seen = {
        Write.LEDGER: "ledger" in changed,
        Write.VISIT: {"visit", "current_trigger"} <= changed,
        Write.NO_DUE: "next_trigger_time" in changed and after["next_trigger_time"] is None,
        Write.DUE: bool({"next_trigger_time", "status"} & changed)
        and after["next_trigger_time"] is not None
        and after["status"] == "active",
        Write.RETRIES: after["retry_count"] == before["retry_count"] + 1,
        Write.ERROR: "last_error" in changed,
        Write.REASON: "stop_reason" in changed,
        Write.LEASE: before["lease_token"] is None and after["lease_token"] is not None,
        Write.LEASE_END: before["lease_token"] is not None and after["lease_token"] is None,
        Write.TRIGGER_OFF: "lead" in changed and after["lead"] is None,
    }
    return {write for write, is_seen in seen.items() if is_seen}


@pytest.mark.parametrize(("state", "event"), PAIRS, ids=lambda each: each.name)
async def test_the_statements_follow_the_table(one, state, event):
    one.start = await one.value("SELECT dripline_now()")
    await put(one, state, event)
    if event is Event.ACCEPT_LAST_LOCKED and state is State.LEASED:
        marketer = await one.store()
        async with marketer._session.transaction() as holding:
            await holding.execute("SELECT FROM leads FOR UPDATE")
            before = await look(one)
            await happen(one, state, event)
    else:
        before = await look(one)
        await happen(one, state, event)
    after = await look(one)
    expected = transition(state, event)
    assert after["status"] == expected.next.status
    assert (after["lease_token"] is not None) == (expected.next is State.LEASED)
    assert written(before, after) == expected.writes
    if Write.LEASE in expected.writes:
        assert after["attempt"] == before["attempt"] + 1
    assert isinstance(after["home_device_id"], UUID), "no event takes the home device away"
