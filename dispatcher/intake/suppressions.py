"""Suppression lists: files of numbers that must never be messaged, in and out.

A list is read record by record and written in chunks: what is there already stays as it is, so that an import can be
broken off and run again. An export can be imported again, here or elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Final

import asyncpg

from dispatcher.errors import InputError
from dispatcher.intake.csv_file import CsvFile, Record, RejectedError
from dispatcher.intake.lead_file import read_moment
from dispatcher.intake.leads import CHUNK_ROWS, Counts
from dispatcher.intake.phones import check_region, read_phone
from dispatcher.store.statements import statements

FIELDS: Final = ("phone", "reason", "at", "source")
"""The columns of a list; only ``phone`` has to be there."""
NO_MOMENT: Final = "at: not a date and time (ISO 8601)"
_MAP: Final = "--map"


@dataclass(frozen=True, slots=True)
class Suppression:
    """A number on the list; what is missing is None."""

    phone: str
    """E.164 digits without the plus."""
    reason: str | None = None
    at: datetime | None = None
    source: str | None = None


class ListReader:
    """Reads the records of a file as suppressions. Columns are found by the names of ``FIELDS``, or told.

    Args:
        file: where the columns stand.
        columns: column name by field.
        region: where numbers without a country code are dialled.
        reason, source: for records that do not say.

    Raises:
        InputError: a field, column or region is wrong, or there is no column of numbers.
    """

    def __init__(
        self,
        file: CsvFile,
        columns: Mapping[str, str],
        *,
        region: str | None = None,
        reason: str | None = None,
        source: str | None = None,
    ) -> None:
        unknown = [name for name in columns if name not in FIELDS]
        if unknown:
            raise InputError(_MAP, f"unknown field {unknown[0]!r}", f"one of {', '.join(FIELDS)}")
        there = {column.casefold() for column in file.columns}
        wanted = {name: columns.get(name, name) for name in FIELDS}
        self._at = {
            name: file.column(column, _MAP) if name == "phone" or name in columns or name in there else None
            for name, column in wanted.items()
        }
        self._region, self._reason, self._source = check_region(region), reason, source

    def read(self, record: Record) -> Suppression:
        """The suppression in ``record``.

        Raises:
            RejectedError: its number or moment cannot be read, with the reason.
        """
        if record.reason is not None:
            raise RejectedError(record.reason)
        phone, reason, at, source = (
            None if place is None else record.cells[place].strip() or None for place in self._at.values()
        )
        return Suppression(
            read_phone(phone or "", self._region),
            reason or self._reason,
            None if at is None else read_moment(at, NO_MOMENT),
            source or self._source,
        )


async def import_list(
    connection: asyncpg.Connection,
    file: CsvFile,
    reader: ListReader,
    *,
    on_reject: Callable[[Record, str], None],
    chunk_rows: int = CHUNK_ROWS,
    stopped: Callable[[], bool] = lambda: False,
    on_progress: Callable[[Counts], None] = lambda counts: None,
) -> Counts:
    """Put the numbers of ``file`` on the list, until its end or until ``stopped`` answers true between two chunks.

    ``imported`` are new on the list, ``merged`` were there. Rejects are told once their chunk has committed.
    """
    counts, records = Counts(), file.records()
    while not stopped():
        chunk = list(islice(records, chunk_rows))
        if not chunk:
            counts.finished = True
            break
        taken: list[Suppression] = []
        rejected: list[tuple[Record, str]] = []
        for record in chunk:
            try:
                taken.append(reader.read(record))
            except RejectedError as error:
                rejected.append((record, error.reason))
        new = await add(connection, taken)
        counts.imported += new
        counts.merged += len(taken) - new
        for record, reason in rejected:
            counts.rejected += 1
            counts.reasons[reason] += 1
            on_reject(record, reason)
        on_progress(counts)
    return counts


async def add(connection: asyncpg.Connection, numbers: list[Suppression]) -> int:
    """Put ``numbers`` on the list, in one transaction; their leads are opted out with it. Returns how many are new."""
    done = await connection.execute(
        statements("suppressions")["add_suppressions"],
        [each.phone for each in numbers],
        [each.reason for each in numbers],
        [each.at for each in numbers],
        [each.source for each in numbers],
    )
    return int(done.rsplit(" ", 1)[1])


async def remove(connection: asyncpg.Connection, phones: list[str]) -> set[str]:
    """Take ``phones`` off the list, also where only a digest is remembered; returns those that stood there."""
    return {row["phone"] for row in await connection.fetch(statements("suppressions")["remove_suppressions"], phones)}


async def export(connection: asyncpg.Connection, path: Path) -> int:
    """Write the list and the numbers of opted-out leads to ``path`` as CSV; returns how many rows it has.

    The file appears when it is whole.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        done = await connection.copy_from_query(
            statements("suppressions")["export_suppressions"], output=partial, format="csv", header=True
        )
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return int(done.rsplit(" ", 1)[1])
