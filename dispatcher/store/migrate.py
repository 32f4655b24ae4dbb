"""Forward-only migrations: plain ``NNNN_name.sql`` files, each applied once, in order, in one transaction."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from importlib.resources import files
from typing import Final

import asyncpg

from dispatcher.errors import InputError, StoreError
from dispatcher.store.connect import MINIMUM_MAJOR

_TABLE: Final = """
CREATE TABLE IF NOT EXISTS schema_migrations (
    version    integer PRIMARY KEY,
    name       text NOT NULL,
    checksum   text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
)"""
_RECORD: Final = "INSERT INTO schema_migrations (version, name, checksum) VALUES"
_LOCK: Final = "SELECT pg_advisory_xact_lock(hashtextextended('dripline migrations', 0))"
_FILE: Final = re.compile(r"(\d{4})_(\w+)\.sql")


@dataclass(frozen=True, slots=True)
class Migration:
    """One file of ``dispatcher/store/migrations``."""

    version: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        """SHA-256 of the SQL, in hex."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class MigrationStatus:
    """Whether one migration is in force; ``applied_at`` is None while it is not."""

    version: int
    name: str
    applied_at: datetime | None


@cache
def migrations() -> Sequence[Migration]:
    """The migrations this program brings, oldest first."""
    found = []
    for file in files("dispatcher.store").joinpath("migrations").iterdir():
        match = _FILE.fullmatch(file.name)
        if match:
            found.append(Migration(int(match[1]), match[2], file.read_text(encoding="utf-8")))
    found.sort(key=lambda migration: migration.version)
    if [migration.version for migration in found] != list(range(1, len(found) + 1)):
        raise ValueError("migrations are not numbered 0001, 0002, …")
    return tuple(found)


async def migrate(conn: asyncpg.Connection) -> list[str]:
    """Apply what is missing; returns the names of what was applied. Two at once are harmless.

    Args:
        conn: an asyncpg connection outside a transaction.

    Raises:
        InputError: an applied file has changed, or the database was written by a newer Dripline or by others.
        StoreError: PostgreSQL is too old.
    """
    major = conn.get_server_version().major
    if major < MINIMUM_MAJOR:
        raise StoreError(f"PostgreSQL {major} is too old, Dripline needs {MINIMUM_MAJOR} or newer")
    applied = []
    for migration in migrations():
        async with conn.transaction():
            await conn.execute("SET LOCAL lock_timeout = '60s'")
            await conn.execute(_LOCK)
            await conn.execute("SET LOCAL client_min_messages = warning")
            await conn.execute(_TABLE)
            if migration.version in await _applied(conn):
                continue
            await _apply(conn, migration)
            applied.append(migration.name)
    return applied


async def status(conn: asyncpg.Connection) -> list[MigrationStatus]:
    """Every migration this program brings, oldest first, and when it was applied.

    Raises:
        InputError: an applied file has changed, or the database was written by a newer Dripline.
    """
    exists = await conn.fetchval("SELECT to_regclass('schema_migrations') IS NOT NULL")
    applied = await _applied(conn) if exists else {}
    return [MigrationStatus(m.version, m.name, applied.get(m.version)) for m in migrations()]


def script() -> str:
    """All migrations as one psql script for an empty database; afterwards ``migrate`` finds nothing to do."""
    parts = ["\\set ON_ERROR_STOP on", "BEGIN;", f"{_LOCK};", f"{_TABLE.strip()};"]
    for migration in migrations():
        values = f"({migration.version}, '{migration.name}', '{migration.checksum}')"
        parts += [
            f"\n-- {migration.version:04} {migration.name}\n\n{migration.sql.strip()}\n",
            f"{_RECORD} {values};",
        ]
    return "\n".join([*parts, "COMMIT;"]) + "\n"


async def _apply(conn: asyncpg.Connection, migration: Migration) -> None:
    try:
        await conn.execute(migration.sql)
    except (
        asyncpg.DuplicateTableError,
        asyncpg.DuplicateFunctionError,
        asyncpg.DuplicateObjectError,
    ) as error:
        raise InputError(
            "database",
            f"migration {migration.version:04} {migration.name} cannot be applied: {error}",
            "what is there is not Dripline's: choose another database",
        ) from None
    await conn.execute(f"{_RECORD} ($1, $2, $3)", migration.version, migration.name, migration.checksum)


async def _applied(conn: asyncpg.Connection) -> dict[int, datetime]:
    """When each version was applied; every one of them is known and unchanged."""
    ours = {migration.version: migration for migration in migrations()}
    try:
        rows = await conn.fetch("SELECT version, name, checksum, applied_at FROM schema_migrations")
    except asyncpg.UndefinedColumnError:
        raise InputError(
            "database", "its table schema_migrations is another program's", "choose another database"
        ) from None
    for row in rows:
        migration = ours.get(row["version"])
        if migration is None:
            raise InputError(
                "database",
                f"migration {row['version']:04} {row['name']} was applied by a newer Dripline",
                "update this program",
            )
        if migration.checksum != row["checksum"]:
            raise InputError(
                f"{migration.version:04}_{migration.name}.sql",
                "has changed since it was applied to this database",
                "restore the file; a change to the schema is a new migration",
            )
    return {row["version"]: row["applied_at"] for row in rows}
