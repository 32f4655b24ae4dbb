"""Sequences into the tables: what a file says against what is there, in one transaction or not at all."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence as Items
from dataclasses import dataclass, field, fields
from datetime import time

import asyncpg

from dispatcher.core.delays import parts_of
from dispatcher.core.goals import Goal
from dispatcher.core.graph import Sequence, Step
from dispatcher.errors import GraphError, InputError, RefusedError
from dispatcher.intake.sequence_file import ONE_TRIGGER, verify
from dispatcher.store.registry import read_sequences
from dispatcher.store.statements import statements


@dataclass(slots=True)
class Changes:
    """What an apply did, or would do: sequences and steps, a line each."""

    created: list[str] = field(default_factory=list)
    updated: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        """Sequences and steps looked at."""
        return len(self.created) + len(self.updated) + len(self.removed) + len(self.unchanged)


@dataclass(slots=True)
class Work:
    """One sequence: what it shall be and what it is."""

    wanted: Sequence
    stored: Sequence | None

    @property
    def there(self) -> dict[str, Step]:
        """Its stored steps by trigger."""
        return {} if self.stored is None else {step.trigger: step for step in self.stored.steps}

    @property
    def removed(self) -> list[str]:
        """Triggers of stored steps that it shall not have."""
        return sorted(self.there.keys() - {step.trigger for step in self.wanted.steps})

    @property
    def own(self) -> dict[str, tuple[object, object]]:
        """What differs beside the steps: field name, was, shall be."""
        return differences(self.stored, self.wanted, ("id", "steps"))


async def apply(connection: asyncpg.Connection, sequences: Items[Sequence]) -> Changes:
    """Make the stored sequences of these names say what ``sequences`` say; others stay as they are.

    A sequence is found by its name, a step by its trigger. Steps that ``sequences`` no longer have are
    deleted, unless a live enrolment stands at one. Applying the same twice changes nothing.

    Raises:
        InputError: see ``sequence_file.verify``; or a name or trigger is taken. Nothing is written.
        RefusedError: a step is gone at which enrolments stand. Nothing is written.
    """
    sql = statements("intake")
    async with connection.transaction():
        await connection.execute(sql["lock_sequences"])
        works = compare(sequences, await read_sequences(connection))
        for work in works:
            for refusal in await refusals(connection, work):
                raise refusal
        # Removals first: a trigger may move from one sequence to another.
        for work in works:
            if work.removed:
                await connection.execute(sql["delete_steps"], work.removed)
        for work in works:
            await _write(connection, work)
    return changes(works)


def compare(sequences: Items[Sequence], stored: Items[Sequence]) -> list[Work]:
    """Each of ``sequences`` beside the one of ``stored`` that it is to replace.

    Raises:
        InputError: as ``apply``.
    """
    verify(sequences)
    works = [_work(sequence, stored) for sequence in sequences]
    _check_triggers(works, stored)
    return works


def _work(wanted: Sequence, stored: Items[Sequence]) -> Work:
    found = [sequence for sequence in stored if sequence.name == wanted.name]
    if len(found) > 1:
        ids = " and ".join(str(sequence.id) for sequence in found)
        problem = f"{len(found)} sequences have this name in the database (ids {ids})"
        raise InputError(f"sequence {wanted.name!r}", problem, "rename all but one with UPDATE sequences SET name")
    return Work(wanted, found[0] if found else None)


def _check_triggers(works: list[Work], stored: Items[Sequence]) -> None:
    """Refuse triggers of steps of other sequences that stay."""
    freed = {trigger for work in works for trigger in work.removed}
    owner = {step.trigger: sequence for sequence in stored for step in sequence.steps}
    for work in works:
        for step in work.wanted.steps:
            other = owner.get(step.trigger)
            if other is not None and other is not work.stored and step.trigger not in freed:
                subject = f"sequence {work.wanted.name!r}, step {step.trigger!r}"
                raise GraphError(subject, f"sequence {other.name!r} has a step with this trigger", ONE_TRIGGER)


async def refusals(connection: asyncpg.Connection, work: Work) -> list[RefusedError]:
    """Steps that may not be removed, because enrolments stand at them."""
    return [
        RefusedError(
            f"sequence {work.wanted.name!r}, step {trigger!r}",
            f"it is gone from the file, but {live} live enrolments stand at it",
            "keep the step until they have moved on",
        )
        for trigger, live in (await standing(connection, work, work.removed)).items()
    ]


async def standing(connection: asyncpg.Connection, work: Work, triggers: list[str]) -> dict[str, int]:
    """Live enrolments that wait for, or are at, each of these stored steps; steps without any are absent."""
    if work.stored is None or not triggers:
        return {}
    rows = await connection.fetch(statements("intake")["standing_at"], work.stored.id, triggers)
    return {row["current_trigger"]: row["live"] for row in rows}


async def _write(connection: asyncpg.Connection, work: Work) -> None:
    sql, wanted, stored = statements("intake"), work.wanted, work.stored
    window, goal = wanted.send_window, wanted.goal or Goal()
    clock = (None, None, None, wanted.time_zone)
    row = (
        wanted.name,
        wanted.trigger_prefix,
        wanted.is_active,
        wanted.reentry,
        wanted.reentry_interval_h,
        wanted.sender_policy,
        wanted.requires_opt_in,
        wanted.exit_on_reply,
        wanted.max_lateness_h,
        wanted.when_late,
        *(clock if window is None else (window.opens, window.closes, window.days, window.time_zone)),
        goal.trigger,
        goal.condition,
    )
    if stored is None:
        id_ = await connection.fetchval(sql["insert_sequence"], *row)
    else:
        id_ = stored.id
        if work.own:
            await connection.execute(sql["update_sequence"], id_, *row)
    if wanted.blackouts != (() if stored is None else stored.blackouts):
        days = [each.first for each in wanted.blackouts], [each.last for each in wanted.blackouts]
        await connection.execute(sql["forget_blackouts"], id_)
        await connection.execute(sql["write_blackouts"], id_, *days)
    steps = [step for step in wanted.steps if work.there.get(step.trigger) != step]
    if steps:
        await connection.execute(
            sql["write_steps"],
            id_,
            [step.trigger for step in steps],
            [step.message_text for step in steps],
            [step.next_trigger for step in steps],
            *zip(*[parts_of(step.delay_h) for step in steps], strict=True),
            [step.day_number for step in steps],
            [step.is_entry for step in steps],
            [step.media_url for step in steps],
            [step.at for step in steps],
            [step.template and step.template.name for step in steps],
            [step.template and step.template.language for step in steps],
            [json.dumps(step.template.parameters if step.template else ()) for step in steps],
        )


def changes(works: Items[Work]) -> Changes:
    """What differs, told."""
    told = Changes()
    for work in works:
        _note(told, f"sequence {work.wanted.name!r}", work.stored, work.own)
        for step in work.wanted.steps:
            was = work.there.get(step.trigger)
            _note(told, f"step {step.trigger!r} of {work.wanted.name!r}", was, differences(was, step))
        told.removed += [f"step {trigger!r} of {work.wanted.name!r}" for trigger in work.removed]
    return told


def _note(told: Changes, what: str, was: Sequence | Step | None, differing: dict[str, tuple[object, object]]) -> None:
    if was is None:
        told.created.append(what)
    elif differing:
        details = ", ".join(f"{name}: {_shown(old)} -> {_shown(new)}" for name, (old, new) in differing.items())
        told.updated.append(f"{what} ({details})")
    else:
        told.unchanged.append(what)


def _shown(value: object) -> str:
    return f"{value:%H:%M}" if isinstance(value, time) else repr(value)


def differences(
    was: Sequence | Step | None, shall_be: Sequence | Step, ignored: tuple[str, ...] = ()
) -> dict[str, tuple[object, object]]:
    """The fields that change: was, shall be; none of what is new."""
    if was is None:
        return {}
    pairs = {
        each.name: (getattr(was, each.name), getattr(shall_be, each.name))
        for each in fields(shall_be)
        if each.compare and each.name not in ignored
    }
    return {name: (old, new) for name, (old, new) in pairs.items() if old != new}


async def count_enrolments(connection: asyncpg.Connection) -> dict[int, tuple[int, int]]:
    """Live and completed enrolments by sequence id."""
    rows = await connection.fetch(statements("intake")["sequence_counts"])
    return {row["sequence_id"]: (row["live"], row["completed"]) for row in rows}


async def switch(connection: asyncpg.Connection, name_or_id: str, active: bool) -> tuple[str, bool]:
    """Switch a sequence on or off: its name, and whether that was a change.

    Raises:
        InputError: no sequence, or several, are called so.
    """
    found = await find_sequence(connection, name_or_id)
    status = await connection.execute(statements("intake")["switch_sequence"], found.id, active)
    return found.name, status == "UPDATE 1"


async def resume_step(connection: asyncpg.Connection, trigger: str) -> str | None:
    """Let those who stand at a step go on; why it was paused, None when it was not.

    Raises:
        InputError: there is no such step.
    """
    async with connection.transaction():
        row = await connection.fetchrow(statements("intake")["lock_step"], trigger)
        if row is None:
            raise InputError(f"step {trigger!r}", "there is none", "see: dripline sequences list")
        cause: str | None = row["paused_cause"]
        if cause is not None:
            await connection.execute(statements("intake")["resume_step"], trigger)
        return cause


async def find_sequence(connection: asyncpg.Connection, name_or_id: str) -> Sequence:
    """The stored sequence that a person means by its name, or by its id where names repeat.

    Raises:
        InputError: no sequence, or several, are called so.
    """
    stored = await read_sequences(connection)
    found = [sequence for sequence in stored if sequence.name == name_or_id]
    found = found or [sequence for sequence in stored if str(sequence.id) == name_or_id]
    subject = f"sequence {name_or_id!r}"
    if not found:
        near = difflib.get_close_matches(name_or_id, [sequence.name for sequence in stored], 1)
        raise InputError(
            subject, "there is none", f"did you mean {near[0]!r}?" if near else "see: dripline sequences list"
        )
    if len(found) > 1:
        ids = ", ".join(str(sequence.id) for sequence in found)
        raise InputError(subject, f"{len(found)} sequences have this name", f"name it by its id: {ids}")
    return found[0]
