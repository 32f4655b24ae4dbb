"""Triggers on leads that enrol nobody: none of them is silent."""

from __future__ import annotations

from dataclasses import dataclass

import asyncpg

from dispatcher.core.catalogue import Catalogue
from dispatcher.store.registry import read_sequences
from dispatcher.store.statements import statements


@dataclass(frozen=True, slots=True)
class Unmatched:
    """A trigger, how many leads carry it in vain, and why."""

    trigger: str
    leads: int
    why: str


async def find_unmatched(connection: asyncpg.Connection) -> list[Unmatched]:
    """Every such trigger, most leads first. Reads all leads that carry triggers."""
    catalogue = Catalogue.of(await read_sequences(connection))
    found: list[Unmatched] = []
    for row in await connection.fetch(statements("intake")["tagged"]):
        token = row["token"]
        closed = why_closed(catalogue, token)
        if closed is not None and _ended_by(catalogue, token) and token not in catalogue.step:
            continue
        if closed is not None:
            found.append(Unmatched(token, row["leads"], closed))
            continue
        if row["opted_out"]:
            found.append(Unmatched(token, row["opted_out"], "lead opted out"))
        sequence = catalogue.sequence_of[token]
        if sequence.requires_opt_in and row["not_opted_in"]:
            why = f"lead never opted in, which sequence {sequence.name!r} requires"
            found.append(Unmatched(token, row["not_opted_in"], why))
    return sorted(found, key=lambda unmatched: (-unmatched.leads, unmatched.trigger))


def _ended_by(catalogue: Catalogue, token: str) -> list[str]:
    """Names of the sequences that have ``token`` for a goal."""
    return [catalogue.sequences[id_].name for id_, goal in catalogue.goals.items() if goal.trigger == token]


def why_closed(catalogue: Catalogue, token: str) -> str | None:
    """Why nobody is enrolled by ``token``; None when it opens a sequence."""
    if token in catalogue.entries:
        return None
    sequence = catalogue.sequence_of.get(token)
    if sequence is None:
        ended = ", ".join(repr(name) for name in _ended_by(catalogue, token))
        return f"the goal that ends {ended}" if ended else "unknown: no step has this trigger"
    assert sequence.id is not None, "a catalogue holds stored sequences"
    if not catalogue.step[token].is_entry:
        return f"a step of sequence {sequence.name!r}, but no entry"
    if problems := catalogue.problems.get(sequence.id):
        return f"sequence {sequence.name!r} is broken: {problems[0]}"
    return f"sequence {sequence.name!r} is inactive"
