"""An operator stops everybody, a device or a lead, and lets them go on; each is written into the operators' log."""

from __future__ import annotations

import difflib
from typing import Any

import asyncpg

from dispatcher.core.moments import to_datetime
from dispatcher.errors import InputError
from dispatcher.store.in_doubt import write_log
from dispatcher.store.statements import statements


async def pause_fleet(connection: asyncpg.Connection, paused: bool, reason: str | None, *, actor: str) -> bool:
    """Stop every hand-over, or go on; whether that was a change."""
    return await _noted(connection, "fleet", paused, {"reason": reason}, "pause_fleet", paused, reason, actor=actor)


async def pause_device(
    connection: asyncpg.Connection, name: str, paused: bool, reason: str | None, *, actor: str
) -> bool:
    """Stop a device, or let it go on; whether that was a change. What it is home to stays.

    Raises:
        InputError: there is none of this name.
    """
    sql = statements("pauses")
    if await connection.fetchval(sql["device"], name) is None:
        near = difflib.get_close_matches(name, [row["name"] for row in await connection.fetch(sql["devices"])], 1)
        advice = f"did you mean {near[0]!r}?" if near else "see: dripline devices list"
        raise InputError(f"device {name!r}", "there is none", advice)
    detail = {"reason": reason}
    return await _noted(connection, f"device {name}", paused, detail, "pause_device", name, paused, reason, actor=actor)


async def pause_lead(
    connection: asyncpg.Connection, phone: str, until_us: int | None, reason: str | None, *, actor: str
) -> bool:
    """Send a lead nothing until then, or until it is resumed; whether that was a change.

    Raises:
        InputError: there is none with this phone.
    """
    lead = await find_lead(connection, phone)
    detail = {"until": None if until_us is None else to_datetime(until_us).isoformat(), "reason": reason}
    return await _noted(connection, f"lead {lead}", True, detail, "pause_lead", lead, until_us, reason, actor=actor)


async def resume_lead(connection: asyncpg.Connection, phone: str, *, actor: str) -> bool:
    """Let a lead go on; whether that was a change.

    Raises:
        InputError: there is none with this phone.
    """
    lead = await find_lead(connection, phone)
    return await _noted(connection, f"lead {lead}", False, {}, "resume_lead", lead, actor=actor)


async def list_paused(connection: asyncpg.Connection) -> list[dict[str, Any]]:
    """What is paused at present: columns of ``paused``."""
    return [dict(row) for row in await connection.fetch(statements("pauses")["paused"])]


async def find_lead(connection: asyncpg.Connection, phone: str) -> int:
    """The id of the lead with this phone.

    Raises:
        InputError: there is none.
    """
    digits = "".join(char for char in phone if char.isascii() and char.isdigit())
    lead: int | None = await connection.fetchval(statements("pauses")["lead"], digits)
    if lead is None:
        raise InputError(f"lead {phone!r}", "there is none with this phone", "write the phone as in leads.phone")
    return lead


async def _noted(
    connection: asyncpg.Connection,
    subject: str,
    paused: bool,
    detail: dict[str, Any],
    statement: str,
    *arguments: object,
    actor: str,
) -> bool:
    """Run a statement and log it, in one transaction, if it changed anything."""
    async with connection.transaction():
        done: str = await connection.execute(statements("pauses")[statement], *arguments)
        changed = not done.endswith(" 0")
        if changed:
            given = {name: value for name, value in detail.items() if paused and value is not None}
            await write_log(connection, actor, "pause" if paused else "resume", [(subject, given)])
    return changed
