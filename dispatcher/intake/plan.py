"""What applying sequences would do, to the tables and to the leads under way; nothing is written."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import cast

import asyncpg

from dispatcher.core.delays import told
from dispatcher.core.graph import Sequence
from dispatcher.core.soundness import problems
from dispatcher.errors import RefusedError
from dispatcher.intake.sequences import (
    Changes,
    Work,
    changes,
    compare,
    count_enrolments,
    differences,
    refusals,
    standing,
)
from dispatcher.store.registry import read_sequences
from dispatcher.store.statements import statements


@dataclass(frozen=True, slots=True)
class Plan:
    """What there is to know before an apply."""

    changes: Changes
    consequences: list[str]
    """What becomes of leads, a line each."""
    refusals: list[RefusedError]
    """Why it would be refused; empty: it would not."""


async def plan(connection: asyncpg.Connection, sequences: Items[Sequence]) -> Plan:
    """What ``apply`` of ``sequences`` would do at this moment. Reads every lead once for each entry that opens.

    Raises:
        InputError: as ``apply``; enrolments that stand at steps to be removed are no error here.
    """
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        works = compare(sequences, await read_sequences(connection))
        live = {id_: counts[0] for id_, counts in (await count_enrolments(connection)).items()}
        consequences: list[str] = []
        refused: list[RefusedError] = []
        for work in works:
            refused += await refusals(connection, work)
            consequences += _of_switching(work, 0 if work.stored is None else live.get(work.stored.id or 0, 0))
            consequences += _of_goals(work, 0 if work.stored is None else live.get(work.stored.id or 0, 0))
            consequences += [line async for line in _of_steps(connection, work)]
            consequences += [line async for line in _of_entries(connection, work)]
    return Plan(changes(works), consequences, refused)


def _of_switching(work: Work, live: int) -> Iterator[str]:
    was = work.stored
    if was is None or was.is_active == work.wanted.is_active or not live:
        return
    what = f"the {live:,} live enrolments of {work.wanted.name!r}"
    if was.is_active:
        yield f"{what} keep their place, and get nothing until it is active again"
    else:
        yield f"{what} go on; what is overdue is spread over the devices' quotas"


def _of_goals(work: Work, live: int) -> Iterator[str]:
    if "goal" in work.own and work.wanted.goal is not None and live:
        yield f"of the {live:,} live enrolments of {work.wanted.name!r} those who have reached the goal leave at once"


async def _of_steps(connection: asyncpg.Connection, work: Work) -> AsyncIterator[str]:
    """What becomes of those who stand at a step: it is the next that they get."""
    changed = {
        step.trigger: found for step in work.wanted.steps if (found := differences(work.there.get(step.trigger), step))
    }
    for trigger, live in (await standing(connection, work, list(changed))).items():
        if fates := list(_fates(changed[trigger])):
            yield f"{live:,} live enrolments stand at step {trigger!r} and {', '.join(fates)}"


def _fates(changed: dict[str, tuple[object, object]]) -> Iterator[str]:
    if "message_text" in changed or "media_url" in changed:
        yield "get the new text, but for those whose message is on its way"
    if "template" in changed:
        yield "get the new template where free text may not be sent"
    if "delay_h" in changed:
        before_h, after_h = (cast(float, delay_h) for delay_h in changed["delay_h"])
        yield f"wait {told(after_h)} after it instead of {told(before_h)}"
    if "at" in changed:
        yield "keep the time at which they are due"
    if "next_trigger" in changed:
        was, shall_be = changed["next_trigger"]
        instead = "instead of ending there" if was is None else f"instead of to {was!r}"
        yield f"end after it instead of going on to {was!r}" if shall_be is None else f"go on to {shall_be!r} {instead}"


async def _of_entries(connection: asyncpg.Connection, work: Work) -> AsyncIterator[str]:
    wanted, open_, shut = work.wanted, _entries(work.wanted), _entries(work.stored)
    for trigger in [trigger for trigger in open_ if trigger not in shut]:
        enrolled = await connection.fetchval(
            statements("intake")["would_enrol"],
            trigger,
            None if work.stored is None else work.stored.id,
            wanted.requires_opt_in,
            wanted.reentry,
            wanted.reentry_interval_h,
        )
        yield f"entry {trigger!r} of {wanted.name!r} opens: {enrolled:,} leads carry it and are enrolled at once"
    for trigger in [trigger for trigger in shut if trigger not in open_]:
        yield f"entry {trigger!r} of {wanted.name!r} closes: leads that get it from then on are not enrolled"


def _entries(sequence: Sequence | None) -> list[str]:
    """Triggers that enrol."""
    if sequence is None or not sequence.is_active or problems(sequence):
        return []
    return [step.trigger for step in sequence.steps if step.is_entry]
