"""Sequences and devices as both services cache them, with the versions that tell when to read again."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import asyncpg
import numpy as np

from dispatcher.core.catalogue import Catalogue
from dispatcher.core.delays import hours_of
from dispatcher.core.fleet import Fleet, Terms, is_left
from dispatcher.core.goals import Goal
from dispatcher.core.graph import Sequence, Step, Template
from dispatcher.core.group_log import Group
from dispatcher.core.windows import DAYS, Blackout, Window
from dispatcher.ports import Versions
from dispatcher.store.session import Session
from dispatcher.store.statements import statements

_Blackouts = defaultdict[int | None, tuple[Blackout, ...]]


async def read_versions(session: Session) -> Versions:
    """The versions in force; cheap enough for every pass."""
    row = await session.row("versions")
    return Versions(row["sequences"], row["devices"], row["paused"])


async def read_catalogue(session: Session) -> Catalogue:
    """All sequences with their steps."""
    shut = _blackouts(await session.rows("blackouts"))
    return Catalogue.of(_sequences(await session.rows("sequences"), await session.rows("steps"), shut), shut[None])


async def read_whole_catalogue(connection: asyncpg.Connection) -> Catalogue:
    """The same, for a person's command."""
    shut = _blackouts(await connection.fetch(statements("catalogue")["blackouts"]))
    return Catalogue.of(await _read_sequences(connection, shut), shut[None])


async def read_sequences(connection: asyncpg.Connection) -> list[Sequence]:
    """All stored sequences with their steps, for a person's command."""
    return await _read_sequences(connection, _blackouts(await connection.fetch(statements("catalogue")["blackouts"])))


async def _read_sequences(connection: asyncpg.Connection, shut: _Blackouts) -> list[Sequence]:
    sql = statements("catalogue")
    return _sequences(await connection.fetch(sql["sequences"]), await connection.fetch(sql["steps"]), shut)


def _blackouts(rows: list[asyncpg.Record]) -> _Blackouts:
    """By sequence id; None: those of all sequences."""
    found: _Blackouts = defaultdict(tuple)
    for row in rows:
        found[row["sequence_id"]] += (Blackout(row["first_day"], row["last_day"]),)
    return found


def _sequences(rows: list[asyncpg.Record], step_rows: list[asyncpg.Record], shut: _Blackouts) -> list[Sequence]:
    steps: dict[int, list[Step]] = {}
    for row in step_rows:
        step = Step(
            trigger=row["trigger"],
            message_text=row["message_text"],
            next_trigger=row["next_trigger"],
            delay_h=hours_of(row["trigger_delay_hours"], row["trigger_delay_minutes"]),
            day_number=row["day_number"],
            is_entry=row["is_entry_point"],
            media_url=row["media_url"],
            template=_template(row),
            paused=row["paused_cause"],
            at=row["send_at"],
        )
        steps.setdefault(row["sequence_id"], []).append(step)
    return [_sequence(dict(row), tuple(steps.get(row["id"], ())), shut[row["id"]]) for row in rows]


def _template(row: asyncpg.Record) -> Template | None:
    if row["template_name"] is None:
        return None
    return Template(row["template_name"], row["template_language"], tuple(row["template_parameters"]))


def _sequence(row: dict[str, Any], steps: tuple[Step, ...], blackouts: tuple[Blackout, ...]) -> Sequence:
    opens, closes, days, zone = (row.pop(f"send_{column}") for column in ("from", "until", "days", "time_zone"))
    goal = Goal(row.pop("goal_trigger"), row.pop("goal_if"))
    row |= {"steps": steps, "blackouts": blackouts, "goal": None if goal == Goal() else goal}
    if opens is None:
        return Sequence(**row, time_zone=zone)
    window = Window(opens, closes, zone, tuple(day for day in DAYS if days is None or day in days))
    return Sequence(**row, send_window=window)


async def read_fleet(session: Session, shard: int | None = None) -> Fleet:
    """The devices of a shard; all if none is named."""
    return _fleet(await session.rows("devices", shard))


async def read_groups(session: Session, since_us: int) -> list[Group]:
    """All groups of devices, with those that are in them, or were since ``since_us``."""
    return groups_of(await session.rows("groups", since_us))


def groups_of(rows: list[asyncpg.Record]) -> list[Group]:
    """Groups from the rows of ``groups``."""
    return [
        Group(row["name"], row["quota_per_hour"], row["quota_per_day"], np.array(row["members"], np.int32))
        for row in rows
    ]


async def read_devices(connection: asyncpg.Connection) -> Fleet:
    """All devices, for a person's command."""
    return _fleet(await connection.fetch(statements("catalogue")["devices"], None))


def _fleet(rows: list[asyncpg.Record]) -> Fleet:
    column = {name: [row[name] for row in rows] for name in (rows[0].keys() if rows else ())}
    return Fleet(
        number=np.array(column.get("number", []), np.int32),
        shard=np.array([-1 if shard is None else shard for shard in column.get("shard_id", [])], np.int32),
        quota_per_hour=np.array(column.get("quota_per_hour", []), np.int32),
        quota_per_day=np.array(column.get("quota_per_day", []), np.int32),
        in_flight_max=np.array(column.get("in_flight_max", []), np.int32),
        min_gap_s=np.array(column.get("min_gap_s", []), np.float64),
        available=np.array(column.get("available", []), np.bool_),
        left=np.array(
            [
                is_left(*device)
                for device in zip(*(column.get(name, []) for name in ("health", "health_cause", "trips")), strict=True)
            ],
            np.bool_,
        ),
        trips=np.array(column.get("trips", []), np.int32),
        probe_us=np.array(column.get("probe_us", []), np.int64),
        idempotent=np.array(column.get("gateway_idempotent", []), np.bool_),
        device_id=column.get("id", []),
        name=column.get("name", []),
        gateway_url=column.get("gateway_url", []),
        gateway_token=column.get("gateway_token", []),
        group=column.get("group_name", []),
        terms=[
            Terms(row["gateway_kind"], row["gateway_phone_number_id"], row["gateway_account"], row["rest_until_us"])
            for row in rows
        ],
    )
