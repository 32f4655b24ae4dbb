"""Retention: what has long finished goes to Parquet files and leaves the database; nothing personal goes along.

Each file is written whole under a name that nobody reads, forced to disk and read again; then one transaction takes
its rows out of the database and puts the file on record; then it gets its name. So wherever this is broken off, every
row is in the database or in a file on record, never in both or in none; the next run names what has no name yet.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import asyncpg
import pyarrow as pa
import pyarrow.parquet as pq

from dispatcher.errors import InputError, RefusedError, StoreError
from dispatcher.store.statements import statements

ENROLMENT_ROWS: Final = 100_000
"""Enrolments of one file and one transaction, at most."""
_FETCH_ROWS: Final = 20_000
_LOCK_TRIES: Final = 10
_PARTIAL: Final = ".partial"
_STAMP: Final = pa.timestamp("us", tz="UTC")
_NAME: Final = pa.dictionary(pa.int32(), pa.string())
ENROLMENTS: Final = pa.schema(
    [
        ("enrolment_id", pa.int64()), ("lead_id", pa.int64()), ("sequence_id", pa.int64()), ("sequence", _NAME),
        ("entry_trigger", _NAME), ("step", _NAME), ("status", _NAME), ("stop_reason", _NAME), ("enrolled_at", _STAMP),
        ("finished_at", _STAMP), ("visit", pa.int32()), ("generation", pa.int32()), ("home_device_id", _NAME),
    ]
)  # fmt: skip
LEDGER: Final = pa.schema(
    [
        ("enrolment_id", pa.int64()), ("lead_id", pa.int64()), ("sequence_id", pa.int64()), ("sequence", _NAME),
        ("step", _NAME), ("visit", pa.int32()), ("generation", pa.int32()), ("attempt", pa.int32()),
        ("outcome", _NAME), ("due_at", _STAMP), ("reserved_at", _STAMP), ("deadline_at", _STAMP),
        ("accepted_at", _STAMP), ("device_id", _NAME), ("idempotency_key", pa.string()),
    ]
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Filed:
    """A file that was written."""

    name: str
    rows: int


@dataclass(frozen=True, slots=True)
class KeptDay:
    """A day of the ledger that is old enough, and stays."""

    day: str
    living: int
    """Enrolments that live and have an attempt there."""
    example: int
    """One of them."""


@asynccontextmanager
async def archiving(connection: asyncpg.Connection, directory: Path) -> AsyncIterator[None]:
    """Be the only one who archives; what an earlier run has left half done is brought to its end first.

    Raises:
        RefusedError: the database is a rehearsal, or somebody else archives.
        InputError: a file that is on record is not where it was written.
    """
    sql = statements("archive")
    if await connection.fetchval("SELECT kind FROM dripline_database") == "rehearsal":
        raise RefusedError("database", "it is a rehearsal", "its checker needs everything: only a live one is archived")
    if not await connection.fetchval(sql["one_archive"]):
        raise RefusedError("archive", "somebody else is archiving this database", "wait until that has ended")
    try:
        for row in await connection.fetch(sql["unpublished"]):
            await _publish(connection, row["id"], Path(row["directory"]), row["name"])
        _clear(directory)
        yield
    finally:
        await connection.execute(sql["end_archive"])


async def archive_enrolments(
    connection: asyncpg.Connection, directory: Path, before: datetime, *, rows: int = ENROLMENT_ROWS
) -> AsyncIterator[Filed]:
    """Archive what finished before that moment, a file and a transaction a batch of ``rows``; yields each file.

    Args:
        directory: its absolute path, which is kept on record.
    """
    sql, last = statements("archive"), 0
    while True:
        async with connection.transaction():
            found = await connection.fetch(sql["finished"], last, before, rows)
            if not found:
                return
            last = found[-1]["enrolment_id"]
            name = await connection.fetchval(sql["next_name"])
            with _Writer(directory / name, ENROLMENTS) as writer:
                writer.add(found)
            writer.verify()
            ids = [row["enrolment_id"] for row in found]
            gone = await connection.fetchval(sql["forget_finished"], ids)
            assert gone == len(found), "they were locked"
            finished = [row["finished_at"] for row in found]
            span = (min(finished), max(finished))
            file = await connection.fetchval(sql["record_file"], "enrolments", str(directory), name, len(found), *span)
        await _publish(connection, file, directory, name)
        yield Filed(name, len(found))


async def old_days(connection: asyncpg.Connection, before: datetime) -> tuple[list[Any], list[KeptDay]]:
    """Days of the ledger that were over before that moment: those that can go, and those that have to stay."""
    days = await connection.fetch(statements("archive")["old_days"], before)
    kept = [KeptDay(f"{row['day']}", row["living"], row["example"]) for row in days if row["living"]]
    return [row for row in days if not row["living"]], kept


async def archive_day(
    connection: asyncpg.Connection, directory: Path, day: Any, show: Callable[[int], None] = lambda rows: None
) -> Filed:
    """Archive one of ``old_days`` and drop its partition.

    Args:
        directory: its absolute path, which is kept on record.
        show: told how many rows have been written so far.

    Raises:
        StoreError: others read or write the ledger all the time; the day stays as it was.
    """
    sql, name = statements("archive"), f"ledger_{day['day']:%Y%m%d}.parquet"
    with _Writer(directory / name, LEDGER) as writer:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            cursor = await connection.cursor(sql["attempts_of"], day["begins"], day["ends"])
            while found := await cursor.fetch(_FETCH_ROWS):
                writer.add(found)
                show(writer.rows)
    writer.verify()
    for _ in range(_LOCK_TRIES):
        try:
            async with connection.transaction():
                # The engine waits as long as this does.
                await connection.execute("SET LOCAL lock_timeout = '1s'")
                if not await connection.fetchval(sql["drop_day"], day["day"], writer.rows):
                    break
                file = await connection.fetchval(
                    sql["record_file"],
                    "ledger",
                    str(directory),
                    name,
                    writer.rows,
                    day["begins"],
                    day["ends"],
                )
            await _publish(connection, file, directory, name)
            return Filed(name, writer.rows)
        except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError):
            await asyncio.sleep(1)
    raise StoreError(f"{day['day']}: the ledger is in use, or this day has changed meanwhile - archive again later")


class _Writer:
    """A Parquet file in the making, under its name with ``.partial``; a context manager.

    Args:
        path: what it will be called.
        schema: names are those of the rows that come.

    Raises:
        InputError: there is such a file already, of another database or of a time that this one has forgotten.
    """

    def __init__(self, path: Path, schema: Any) -> None:
        if path.exists():
            raise InputError("--to", f"{path} is there already, and not of this database", "name another directory")
        self._path, self._schema = path.with_name(path.name + _PARTIAL), schema
        self.rows = self._sum = 0

    def __enter__(self) -> _Writer:
        self._file = self._path.open("wb")
        self._parquet = pq.ParquetWriter(self._file, self._schema)
        return self

    def __exit__(self, *error: object) -> None:
        self._parquet.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        _keep(self._path.parent)

    def add(self, rows: Sequence[Any]) -> None:
        """Append ``rows``, which have the schema's columns in its order."""
        columns = zip(*rows, strict=True)
        arrays = [pa.array(column, kind) for column, kind in zip(columns, self._schema.types, strict=True)]
        self._parquet.write_table(pa.Table.from_arrays(arrays, schema=self._schema))
        self.rows += len(rows)
        self._sum += sum(row["enrolment_id"] for row in rows)

    def verify(self) -> None:
        """Read the file again.

        Raises:
            StoreError: it does not hold what was written.
        """
        rows = total = 0
        for batch in pq.ParquetFile(self._path).iter_batches(columns=["enrolment_id"]):
            rows, total = rows + len(batch), total + sum(batch.column(0).to_pylist())
        if (rows, total) != (self.rows, self._sum):
            raise StoreError(f"{self._path} does not hold what was written to it: nothing was deleted")


async def _publish(connection: asyncpg.Connection, file: int, directory: Path, name: str) -> None:
    """Give a file on record its name."""
    _rename(directory / f"{name}{_PARTIAL}", directory / name)
    await connection.execute(statements("archive")["publish"], file)


def _rename(partial: Path, path: Path) -> None:
    if partial.exists():
        partial.rename(path)
        _keep(path.parent)
    elif not path.exists():
        advice = "archive from the machine that wrote it, or bring it back"
        raise InputError("archive", f"{path} is on record and not there", advice)


def _clear(directory: Path) -> None:
    """Files without a name whose rows never left the database."""
    for stray in directory.glob(f"*.parquet{_PARTIAL}"):
        stray.unlink()


def _keep(directory: Path) -> None:
    """Force the names in a directory to disk."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
