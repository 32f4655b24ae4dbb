"""A lead is deleted with all that is personal, wherever the database holds it; enrolments and attempts stay as counts.

Everything goes in one transaction, and from its commit on nothing leaves: the last look misses the lead. What was under
way by then - an attempt that ends, a batch that enrols - may write some of it again. So the leads stay on a list, by
number only, and are swept again: by the command, and by the engine every day.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import Final

import asyncpg
import numpy as np

from dispatcher.store.bodies import packed, unpacked
from dispatcher.store.session import Connection
from dispatcher.store.statements import statements

CHUNK: Final = 10_000
"""Numbers of one transaction."""
_TRIES: Final = 5


@dataclass(frozen=True, slots=True)
class Erased:
    """What went, or would go."""

    leads: int
    enrolments: int
    """Kept, without number and texts."""
    stopped: int
    """Of these, those that lived."""
    attempts: int
    """Ledger rows kept, without what the gateway said."""
    replies: int
    listed: int
    """Numbers that left the suppression list, and are remembered as digests."""
    known: frozenset[str]
    """The numbers that something was found of."""


async def erase(connection: asyncpg.Connection, phones: list[str], actor: str, *, dry_run: bool = False) -> Erased:
    """Delete the leads of ``phones`` with all that is personal, in one transaction; ``sweep`` follows.

    Args:
        phones: as in ``leads.phone``, at most ``CHUNK``.
        actor: whose decision it is, for the operators' log.
        dry_run: count, and undo everything.
    """
    left = _TRIES
    while True:
        transaction = connection.transaction()
        await transaction.start()
        try:
            done = await _erase(connection, phones, actor)
        except asyncpg.DeadlockDetectedError:
            await transaction.rollback()  # with a batch of the engine, which locks its rows in another order
            left -= 1
            if not left:
                raise
        except BaseException:
            await transaction.rollback()
            raise
        else:
            await (transaction.rollback() if dry_run else transaction.commit())
            return done


async def _erase(connection: asyncpg.Connection, phones: list[str], actor: str) -> Erased:
    sql = statements("erase")
    leads = [row["id"] for row in await connection.fetch(sql["lock_leads"], phones)]
    found = await connection.fetch(sql["enrolments_of"], leads, phones)
    enrolments = [row["id"] for row in found]
    await connection.execute(sql["remember_erased"], leads, enrolments)
    replies = [row["phone"] for row in await connection.fetch(sql["forget_replies"], phones, leads)]
    deleted = [row["phone"] for row in await connection.fetch(sql["delete_leads"], leads)]
    listed = [row["phone"] for row in await connection.fetch(sql["forget_number"], phones)]
    await connection.execute(sql["forget_marks"], leads)
    wiped = await connection.fetchrow(sql["end_and_wipe"], enrolments)
    assert wiped is not None
    attempts = await connection.fetchval(sql["wipe_ledger"], enrolments)
    per_lead = Counter(dict.fromkeys(leads, 0))
    per_lead.update(row["lead_id"] for row in found)
    await connection.execute(
        statements("in_doubt")["log"],
        actor,
        "leads delete",
        [f"lead {lead}" for lead in per_lead] + ["database"] * bool(replies or listed),
        [json.dumps({"enrolments": count}) for count in per_lead.values()]
        + [json.dumps({"replies": len(replies), "suppressions": len(listed)})] * bool(replies or listed),
    )
    return Erased(
        leads=len(deleted),
        enrolments=wiped["enrolments"],
        stopped=wiped["stopped"],
        attempts=attempts,
        replies=len(replies),
        listed=len(listed),
        known=frozenset([*deleted, *replies, *listed, *(row["phone"] for row in found)]),
    )


async def sweep(connection: asyncpg.Connection | Connection) -> int:
    """Wipe what attempts and enrolments under way have written since their leads were erased, and what was said.

    Returns how many attempts are under way still; what those write is for the next sweep.
    """
    sql = statements("erase")
    async with connection.transaction():
        enrolments = [row["id"] for row in await connection.fetch(sql["left_over"])]
        if not enrolments:
            return 0
        await connection.fetchrow(sql["end_and_wipe"], enrolments)
        await connection.fetchval(sql["wipe_ledger"], enrolments)
        # What is leased needs its record: without one it would count as never sent.
        under_way = {row["id"] for row in await connection.fetch(sql["under_way"], enrolments)}
        await _unsay(connection, set(enrolments) - under_way)
        return len(under_way)


async def _unsay(connection: asyncpg.Connection | Connection, enrolments: set[int]) -> None:
    """Take what was said to ``enrolments`` out of the records of hand-overs; who was handed over stays on record."""
    sql = statements("erase")
    for row in await connection.fetch(sql["said"], sorted(enrolments)):
        said = unpacked(row["bodies"])
        kept = [each for each in said if each[0] not in enrolments]
        if len(kept) < len(said):
            ids, texts, media_urls = zip(*kept, strict=True) if kept else ((), (), ())
            bodies = packed(np.array(ids, np.int64), list(texts), list(media_urls))
            await connection.execute(sql["unsay"], row["place"], bodies)
