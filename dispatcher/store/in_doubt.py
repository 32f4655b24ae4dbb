"""A word about attempts in doubt - an operator's, or a receipt's - written as the answer that never came."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby
from types import MappingProxyType
from typing import Any, Final, NamedTuple, cast

import asyncpg
import numpy as np

from dispatcher.core.catalogue import Catalogue
from dispatcher.core.leases import Ends
from dispatcher.store import arrays
from dispatcher.store.ends import write_ends
from dispatcher.store.session import Connection
from dispatcher.store.statements import statements

PAGE_ROWS: Final = 1000
UNDER_WAY: Final = "under way"
"""The state of an enrolment whose resend is leased, or whose last attempt may still leave."""

_NO_LEASE: Final = 0


class Word(StrEnum):
    """What is known of the attempts in doubt of a visit."""

    ACCEPTED = "accepted"
    NOT_SENT = "not-sent"


@dataclass(frozen=True, slots=True)
class Which:
    """Enrolments with an attempt in doubt; None is no restriction."""

    enrolments: list[int] | None = None
    sequence: int | None = None
    older_than_h: float | None = None
    """Hours, of this installation's length, since the last hand-over in doubt."""


class Told(NamedTuple):
    """What a gateway told of a message."""

    at_us: int
    """When it had it at latest."""
    message_id: str | None


_NOTHING_TOLD: Final[Mapping[int, Told]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Resolved:
    """What one page of ``resolve`` did."""

    enrolments: list[int]
    """Those that moved on, ascending."""
    last: int | None
    """The last one looked at, where the next page begins; None when there are no more."""


async def list_in_doubt(
    connection: asyncpg.Connection, which: Which, *, after: int = 0, rows: int = PAGE_ROWS
) -> list[dict[str, Any]]:
    """Up to ``rows`` enrolments in doubt with an id above ``after``, ascending: the columns of ``in_doubt``.

    ``state`` is ``held``, ``resend`` (waiting to be sent again under its key) or ``under way``.
    """
    found = await connection.fetch(
        statements("in_doubt")["in_doubt"], after, which.enrolments, which.sequence, which.older_than_h, rows
    )
    return [dict(row) for row in found]


async def count_in_doubt(connection: asyncpg.Connection, which: Which) -> tuple[int, int]:
    """How many enrolments are in doubt, and how many of them are under way."""
    row = await connection.fetchrow(
        statements("in_doubt")["count_in_doubt"], which.enrolments, which.sequence, which.older_than_h
    )
    assert row is not None
    return row["found"], row["under_way"]


async def resolve(
    connection: asyncpg.Connection,
    which: Which,
    word: Word,
    catalogue: Catalogue,
    *,
    actor: str,
    due_us: int | None = None,
    after: int = 0,
    rows: int = PAGE_ROWS,
    told: Mapping[int, Told] = _NOTHING_TOLD,
) -> Resolved:
    """Settle one page of enrolments in doubt, in one transaction, with an entry of the operators' log for each.

    What is under way is left to its own end, and so is what was accepted at a step that is gone: where it leads is
    known once the step is back. Repeating a page changes nothing more.

    Args:
        catalogue: where an accepted message leads.
        actor: whose word it is.
        due_us: accepted: when the next step is due; None is the step's delay after the slot, or what was told.
        after: id after which the page begins.
        told: accepted: what gateways told, by enrolment.
    """
    async with connection.transaction():
        page = await list_in_doubt(connection, which, after=after, rows=rows)
        ready = [row["id"] for row in page if row["state"] != UNDER_WAY]
        free = await connection.fetch(statements("in_doubt")["lock_in_doubt"], ready)
        attempts = await connection.fetch(statements("in_doubt")["unknown_attempts"], [row["id"] for row in free])
        if word is Word.ACCEPTED:
            attempts = [row for row in attempts if row["step"] in catalogue.step]
        clock = await connection.fetchrow(statements("in_doubt")["clock"])
        assert clock is not None
        if attempts:
            ends = _ends(attempts, word, catalogue, clock["now_us"], clock["hour_us"], due_us, told)
            await arrays.announce(connection)
            await write_ends(cast(Connection, connection), ends, clock["now_us"], epoch=0, deadline_us=0)
            await _log(connection, attempts, word, actor)
    settled = sorted({row["enrolment"] for row in attempts})
    return Resolved(settled, page[-1]["id"] if len(page) == rows else None)


async def write_log(
    connection: asyncpg.Connection, actor: str, action: str, entries: Iterable[tuple[str, dict[str, Any]]]
) -> None:
    """Add entries to the operators' log: subject and detail of each."""
    subjects, details = zip(*((subject, json.dumps(detail)) for subject, detail in entries), strict=True)
    await connection.execute(statements("in_doubt")["log"], actor, action, subjects, details)


async def _log(connection: asyncpg.Connection, attempts: list[asyncpg.Record], word: Word, actor: str) -> None:
    entries = []
    for enrolment, group in groupby(attempts, key=lambda row: row["enrolment"]):
        rows = list(group)
        detail = {"as": word.value, "step": rows[0]["step"], "visit": rows[0]["visit"]}
        entries.append((f"enrolment {enrolment}", {**detail, "attempts": [row["attempt"] for row in rows]}))
    await write_log(connection, actor, "in-doubt resolve", entries)


def _ends(
    attempts: list[asyncpg.Record],
    word: Word,
    catalogue: Catalogue,
    now_us: int,
    hour_us: int,
    due_us: int | None,
    told: Mapping[int, Told],
) -> Ends:
    """The ends of these attempts as if their answers had come: of an accepted visit, its earliest unknown one."""
    accepted = word is Word.ACCEPTED
    if accepted:
        attempts = [next(group) for _, group in groupby(attempts, key=lambda row: row["enrolment"])]
    count = len(attempts)
    slot_us = np.array([row["slot_us"] for row in attempts], np.int64)
    at_us = np.array([_accepted_us(row, told.get(row["enrolment"])) for row in attempts], np.int64)
    step, zone = catalogue.indices([row["step"] for row in attempts]), [row["time_zone"] for row in attempts]
    next_trigger, next_due_us = catalogue.advance(step, at_us, zone, hour_us)
    nothing: list[str | None] = [None] * count
    enrolment = [row["enrolment"] for row in attempts]
    return Ends(
        enrolment=np.array(enrolment, np.int64),
        token=np.full(count, _NO_LEASE, np.int64),
        lead=np.array([row["lead"] for row in attempts], np.int64),
        visit=np.array([row["visit"] for row in attempts], np.int32),
        generation=np.array([row["generation"] for row in attempts], np.int32),
        attempt=np.array([row["attempt"] for row in attempts], np.int32),
        device=np.array([row["device"] for row in attempts], np.int32),
        slot_us=slot_us,
        due_us=np.array([row["due_us"] for row in attempts], np.int64),
        at_us=at_us if accepted else np.full(count, now_us, np.int64),
        step=[row["step"] for row in attempts],
        key=[row["key"].bytes for row in attempts],
        outcome=["accepted" if accepted else "not_sent"] * count,
        message_id=[told[id_].message_id if id_ in told else None for id_ in enrolment] if accepted else nothing,
        error=nothing if accepted else [row["error"] for row in attempts],
        next_trigger=next_trigger,
        next_due_us=next_due_us if due_us is None else np.full(count, due_us, np.int64),
        next=["waiting"] * count,
        counted=np.zeros(count, np.int32),
        pinned=np.zeros(count, np.bool_),
        handed=np.ones(count, np.bool_),
        text=nothing,
        media_url=nothing,
    )


def _accepted_us(attempt: asyncpg.Record, told: Told | None) -> int:
    """When an attempt was accepted: what was told comes after it arrived, and so does its deadline."""
    slot_us: int = attempt["slot_us"]
    return slot_us if told is None else max(slot_us, min(told.at_us, attempt["deadline_us"]))
