"""Every statement is a point where a process can die or lose its connection; at each one it does, on real PostgreSQL.

A recording run lists the points of a small world: a routing call is lost, both shards are superseded while answers are
on their way, one dies with a claim it has not handed over, one with a message that has reached the gateway, a lead's
row is locked when its last step ends. Then the world runs once a point with a blow there, and has to drain: nothing
lost, nothing twice.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest

PHONES = ("999101", "999102", "999103")


async def verdict(stage, referee, undisturbed: dict[str, str] | None) -> None:
    """Nothing lost and nothing twice.

    Args:
        undisturbed: statuses by phone when nothing can have made more unknown; None when a death can have.
    """
    standing, ledger = await stage.standing(), await stage.ledger()
    statuses = {phone: status for phone, (status, _, _) in standing.items()}
    if undisturbed is not None:
        assert statuses == undisturbed
    completed = {phone for phone, status in statuses.items() if status == "completed"}
    assert set(statuses) == set(PHONES)
    assert completed == set(PHONES) if referee.idempotent else set(statuses.values()) <= {"completed", "in_doubt"}
    assert not any(leased for _, leased, _ in standing.values()), "every lease has ended"
    assert {phone for phone, (_, _, carries) in standing.items() if not carries} == completed
    assert set(referee.sent.values()) <= {0, 1}, "no recipient got anything twice"
    said = {(request.key, request.said) for request in referee.requests}
    assert len(said) == len({key for key, _ in said}), "one key, one device, one text"
    sent = {(request.phone, request.visit) for request in referee.requests if referee.sent[request.key]}
    first = [(phone, step) for phone, step, *_ in dict.fromkeys(request[:2] for request in referee.requests)]
    assert all((phone, "one") in first[: first.index((phone, "two"))] for phone, step in first if step == "two")
    accepted = Counter((phone, visit) for phone, visit, _, outcome in ledger if outcome == "accepted")
    unknown = {(phone, visit) for phone, visit, _, outcome in ledger if outcome == "in_doubt"}
    assert set(accepted.values()) <= {1}
    assert set(accepted) <= sent <= set(accepted) | unknown, "what was sent is accepted, or known to be unknown"
    assert {(phone, visit) for phone in completed for visit in (1, 2)} <= set(accepted)
    assert {phone for phone, visit in unknown if (phone, visit) not in accepted} == set(PHONES) - completed
    known = {(phone, visit, attempt) for phone, visit, attempt, _ in ledger}
    assert {(request.phone, request.visit, request.attempt) for request in referee.requests} <= known
    assert len(known) == len(ledger), "one row an attempt"


async def strike(stage, idempotent: bool, chosen: Callable[[Any], bool]) -> tuple[int, int]:
    """Record, then run once for every chosen blow; returns how many points there are and how many blows fell."""
    storm, referee = await stage.run(idempotent)
    undisturbed = {phone: status for phone, (status, _, _) in (await stage.standing()).items()}
    await verdict(stage, referee, undisturbed)
    fallen = [blow for blow in storm.blows() if chosen(blow)]
    for blow in fallen:
        try:
            struck, referee = await asyncio.wait_for(stage.run(idempotent, blow), 60)
            assert struck.struck, "the world came there again"
            deadly = blow.point.service != "coordinator" and not blow.lost
            await verdict(stage, referee, None if deadly else undisturbed)
        except BaseException as error:
            error.add_note(f"idempotent={idempotent}: {blow}")
            raise
    return len(storm.moments), len(fallen)


CHOSEN = {
    ("coordinator", "enrol", "uncommitted"),
    ("coordinator", "claim_due", "unanswered"),
    ("coordinator", "end_attempts", "unanswered"),
    ("shard-0", "raise_epoch", "unanswered"),
    ("shard-0", "last_look", "unanswered"),
    ("shard-0", "send", "unanswered"),
    ("shard-1", "COMMIT", "unanswered"),
    ("shard-1", "release_doubt", "uncommitted"),
}


@pytest.mark.parametrize("idempotent", [True, False], ids=["idempotent", "not idempotent"])
async def test_a_handful_of_deaths_and_lost_connections_lose_and_double_nothing(stage, idempotent):
    points, fallen = await strike(
        stage, idempotent, lambda blow: (*blow.point[:2], blow.moment) in CHOSEN and blow.point.hit == 1
    )
    print(f"{points} points, {fallen} blows")
    assert fallen == 2 * len(CHOSEN) - 1, "the gateway's line is no connection to PostgreSQL"


@pytest.mark.slow
@pytest.mark.parametrize("lost", [False, True], ids=["death", "lost connection"])
@pytest.mark.parametrize("idempotent", [True, False], ids=["idempotent", "not idempotent"])
async def test_a_blow_between_any_two_statements_loses_and_doubles_nothing(stage, idempotent, lost):
    # Every second blow with either gateway, in turns: between them all fall.
    turn = count(idempotent != lost)
    points, fallen = await strike(stage, idempotent, lambda blow: blow.lost == lost and next(turn) % 2 == 0)
    print(f"{points} points, {fallen} blows")
    assert points >= 240
