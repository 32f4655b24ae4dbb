"""What the checker judges by, read from the database of a rehearsal."""

from __future__ import annotations

import asyncio

from dispatcher.core.outcomes import Outcome
from dispatcher.store.connect import connect
from simulate.checker import Violations, check
from simulate.evidence import NO_DUE, Evidence, collect

LABELS = tuple(outcome.label for outcome in Outcome)


def test_a_rehearsed_run_is_clean_and_an_operators_word_is_evidence(world):
    done = world.rehearse(devices=3, leads=12, days=4, shards=1)
    assert check(done.receipts, done.evidence) == Violations()
    assert done.outcome.completed == done.outcome.enrolled >= 12
    assert (done.receipts.rows["body"] != 0).all()
    assert done.evidence.by_hand == frozenset()
    assert done.evidence.ready == {1, 2, 3}
    assert done.evidence.enrolments["due"].tolist() == [NO_DUE] * done.outcome.enrolled

    first = int(done.evidence.enrolments["id"].min())
    world.rows(
        """INSERT INTO operator_log (actor, action, subject, detail)
           VALUES ('ann', 'in-doubt resolve', 'enrolment ' || $1::bigint, '{"visit": 2, "attempts": [1]}')""",
        first,
    )

    async def again() -> Evidence:
        connection = await connect(world.url)
        try:
            return await collect(connection, LABELS)
        finally:
            await connection.close()

    assert asyncio.run(again()).by_hand == {(first, 2, 0)}
