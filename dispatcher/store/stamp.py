"""What a database is, for good: ``live`` (``simulate`` refuses it) or ``rehearsal`` (``run`` refuses it)."""

from __future__ import annotations

import re
from functools import cache
from typing import Final, Literal

import asyncpg

from dispatcher.errors import NotMigratedError, RefusedError
from dispatcher.store.migrate import migrate, migrations

Kind = Literal["live", "rehearsal"]

_STAMP: Final = """
INSERT INTO dripline_database (kind, hour_s, clock) VALUES ($1, $2, dripline_at($3))
ON CONFLICT (only_row) DO UPDATE SET kind = excluded.kind, hour_s = excluded.hour_s, clock = excluded.clock
"""
_HOLDS_DATA: Final = """
SELECT EXISTS (SELECT FROM leads) OR EXISTS (SELECT FROM sequences) OR EXISTS (SELECT FROM devices)
    OR EXISTS (SELECT FROM sequence_contacts) OR EXISTS (SELECT FROM message_ledger)
    OR EXISTS (SELECT FROM lead_changes) OR EXISTS (SELECT FROM epochs)
"""
# Tables that belong to an extension are nobody's data.
_FOREIGN_TABLES: Final = """
SELECT EXISTS (
    SELECT FROM pg_class c
    WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'f')
      AND c.relname <> 'schema_migrations'
      AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = c.oid AND d.deptype = 'e'))
"""
_CREATES: Final = re.compile(
    r"^CREATE (?:OR REPLACE |UNLOGGED )?(TABLE|VIEW|FUNCTION|SEQUENCE|DOMAIN) (\w+)", re.MULTILINE
)


async def stamp(conn: asyncpg.Connection, kind: Kind, *, hour_s: float = 3600.0, clock_us: int | None = None) -> None:
    """Stamp the database, or set hour and clock anew under the same stamp.

    Args:
        conn: a connection to a migrated database.
        kind: what the database is from now on.
        hour_s: length of an hour in delays and quotas.
        clock_us: where virtual time starts; None is the wall clock, the only one of a live database.

    Raises:
        RefusedError: the database is stamped otherwise.
        InputError: the database is not migrated.
    """
    if not await _migrated(conn):
        raise NotMigratedError
    try:
        await conn.execute(_STAMP, kind, hour_s, clock_us)
    except asyncpg.RaiseError:
        raise RefusedError("database", f"it is not a {kind} database", "choose another one") from None


async def read_kind(conn: asyncpg.Connection) -> Kind | None:
    """The stamp; None when there is none, or no table for it."""
    if not await _migrated(conn):
        return None
    kind: Kind | None = await conn.fetchval("SELECT kind FROM dripline_database")
    return kind


async def require_live(conn: asyncpg.Connection) -> None:
    """Make sure that this is a live database; one without a stamp becomes one.

    Raises:
        RefusedError: it is a rehearsal.
        InputError: it is not migrated.
    """
    kind = await read_kind(conn)
    if kind == "rehearsal":
        raise RefusedError("database", "it is a rehearsal, for good", "choose a live one")
    if kind is None:
        await stamp(conn, "live")


async def require_rehearsal(
    conn: asyncpg.Connection, reset: bool, *, hour_s: float = 3600.0, clock_us: int | None = None
) -> None:
    """Make this an empty, migrated rehearsal database with the given hour and clock.

    Raises:
        RefusedError: it is live, or holds data - which ``reset`` gives up, if it is a rehearsal's.
    """
    await check_rehearsal(conn, reset)
    if reset and await read_kind(conn) == "rehearsal":
        await wipe(conn)
    await migrate(conn)
    await stamp(conn, "rehearsal", hour_s=hour_s, clock_us=clock_us)


async def check_rehearsal(conn: asyncpg.Connection, reset: bool) -> None:
    """Refuse what ``require_rehearsal`` would refuse; writes nothing.

    Raises:
        RefusedError: it is live, or holds data - which ``reset`` gives up, if it is a rehearsal's.
    """
    kind = await read_kind(conn)
    if kind == "live":
        raise RefusedError("database", "it is live", "a rehearsal needs a database of its own")
    if kind == "rehearsal":
        if not reset and await conn.fetchval(_HOLDS_DATA):
            raise RefusedError("database", "it holds an earlier rehearsal", "give --reset to delete that")
    elif await conn.fetchval(_HOLDS_DATA if await _migrated(conn) else _FOREIGN_TABLES):
        raise RefusedError(
            "database", "it holds data that is no rehearsal's", "a rehearsal needs a database of its own"
        )


async def wipe(conn: asyncpg.Connection) -> None:
    """Drop everything Dripline created in a rehearsal database, the stamp included.

    Raises:
        RefusedError: the database is not a rehearsal.
    """
    async with conn.transaction():
        if await read_kind(conn) != "rehearsal":
            raise RefusedError("database", "it is not a rehearsal", "only a rehearsal is ever wiped")
        await conn.execute("SET LOCAL client_min_messages = warning")
        for kind, name in _created():
            await conn.execute(f"DROP {kind} IF EXISTS {name} CASCADE")


async def _migrated(conn: asyncpg.Connection) -> bool:
    return bool(await conn.fetchval("SELECT to_regclass('dripline_database') IS NOT NULL"))


@cache
def _created() -> tuple[tuple[str, str], ...]:
    """Kind and name of everything the migrations create that is not dropped with something else."""
    found = [match.groups() for migration in migrations() for match in _CREATES.finditer(migration.sql)]
    return (("TABLE", "schema_migrations"), *((kind, name) for kind, name in found))
