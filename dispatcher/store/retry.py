"""Failures tried again at an operator's word: the same visit in a new generation, so under a new key."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Final

import asyncpg

from dispatcher.store.in_doubt import write_log
from dispatcher.store.statements import statements

PAGE_ROWS: Final = 1000
LOCKED: Final = "somebody holds the lead: try again"


@dataclass(frozen=True, slots=True)
class Failures:
    """Enrolments that have failed; None is no restriction."""

    sequence: int | None = None
    step: str | None = None
    lead: int | None = None
    error: str | None = None
    """Part of the last error, in whatever case."""
    outcome: str | None = None
    """How the last attempt ended: ``rejected``, ``refused``."""


@dataclass(slots=True)
class Page:
    """What one page of ``retry`` did, or would do."""

    retried: int = 0
    left: Counter[str] = field(default_factory=Counter)
    """How many stay failed, by reason."""
    steps: Counter[tuple[str, str]] = field(default_factory=Counter)
    """How many are retried, by step and error."""
    last: int | None = None
    """The last one looked at, where the next page begins; None when there are no more."""


async def retry(
    connection: asyncpg.Connection,
    which: Failures,
    *,
    actor: str,
    after: int = 0,
    rows: int = PAGE_ROWS,
    dry_run: bool = False,
) -> Page:
    """Let one page of failed enrolments wait again, in one transaction, with an entry of the operators' log for each.

    Never of leads that have opted out, have entered the sequence anew, or do not carry the trigger any more.

    Args:
        actor: whose word it is.
        after: id after which the page begins.
        dry_run: only say what would become of them.
    """
    try:
        return await _retry(connection, which, actor, after, rows, dry_run)
    except asyncpg.UniqueViolationError:
        # A lead of the page was enrolled anew at the same moment: that is seen now.
        return await _retry(connection, which, actor, after, rows, dry_run)


async def _retry(
    connection: asyncpg.Connection, which: Failures, actor: str, after: int, rows: int, dry_run: bool
) -> Page:
    sql, page = statements("retry"), Page()
    asked = (which.sequence, which.step, which.lead, which.error, which.outcome)
    async with connection.transaction():
        found = await connection.fetch(sql["failed"], after, *asked, rows)
        page.last = found[-1]["id"] if len(found) == rows else None
        ready = {row["id"] for row in found if row["reason"] is None}
        if ready and not dry_run:
            free = {row["id"] for row in await connection.fetch(sql["lock_leads"], list(ready))}
            page.left[LOCKED] += len(ready - free)
            again = await connection.fetch(sql["failed"], after, *asked, rows)  # as it is behind the locks
            ready = free & {row["id"] for row in again if row["reason"] is None}
            reopened = await connection.fetch(sql["reopen"], sorted(ready))
            ready = {row["id"] for row in reopened}
            if reopened:
                await write_log(
                    connection,
                    actor,
                    "retry",
                    [(f"enrolment {r['id']}", {"visit": r["visit"], "generation": r["generation"]}) for r in reopened],
                )
                await connection.execute(sql["wake"])
    page.retried = len(ready)
    page.left.update(row["reason"] for row in found if row["reason"] is not None)
    page.left = +page.left
    page.steps.update((row["step"], row["error"] or "unknown") for row in found if row["id"] in ready)
    return page


async def count_failed(connection: asyncpg.Connection) -> int:
    """How many enrolments have failed: the most that a retry looks at."""
    return int(await connection.fetchval("SELECT count(*) FROM sequence_contacts WHERE status = 'failed'"))
