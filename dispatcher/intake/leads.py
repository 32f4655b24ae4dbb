"""Lead files into the table: each chunk of records is merged with what is there, in one transaction.

Every record ends as imported (a new lead), merged (its phone was there, in the table or earlier in the file)
or rejected. Merging adds triggers and fills what is empty; nothing is overwritten, an opt-out stays, and a
lead to which nothing is new is not touched. So an import can be broken off and run again.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final

import asyncpg

from dispatcher.intake.csv_file import CsvFile, Record, RejectedError
from dispatcher.intake.lead_file import Lead, LeadReader
from dispatcher.store.statements import statements

CHUNK_ROWS: Final = 10_000

_COLUMNS: Final = ("phone", "name", "niche", "trigger", "time_zone", "opted_in_at", "attributes")


@dataclass(slots=True)
class Counts:
    """What became of the records so far; ``rows`` is the sum of the other three."""

    imported: int = 0
    merged: int = 0
    rejected: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    finished: bool = False
    """False when the import was stopped before the end of the file."""

    @property
    def rows(self) -> int:
        """Records seen."""
        return self.imported + self.merged + self.rejected

    def as_json(self) -> dict[str, int]:
        """The sum and its parts."""
        return {name: getattr(self, name) for name in ("rows", "imported", "merged", "rejected")}


@dataclass(slots=True)
class _Wish:
    """What the records of a chunk say about one phone."""

    lead: Lead
    records: list[Record]


@dataclass(slots=True)
class _Plan:
    new: list[Lead] = field(default_factory=list)
    changed: list[tuple[int | None, Lead]] = field(default_factory=list)
    merged: int = 0
    rejected: list[tuple[Record, str]] = field(default_factory=list)


class LeadImport:
    """One import of one file.

    Args:
        connection: a connection outside any transaction.
        reader: reads the file's records as leads.
        dry_run: count everything as the import would, and leave the table alone.
        on_reject: called with every rejected record and the reason, once its chunk is committed.
    """

    def __init__(
        self,
        connection: asyncpg.Connection,
        reader: LeadReader,
        *,
        dry_run: bool = False,
        on_reject: Callable[[Record, str], None],
    ) -> None:
        self._connection = connection
        self._reader = reader
        self._dry_run = dry_run
        self._on_reject = on_reject
        self._sql = statements("intake")
        self.counts = Counts()

    async def run(
        self,
        file: CsvFile,
        *,
        chunk_rows: int = CHUNK_ROWS,
        stopped: Callable[[], bool] = lambda: False,
        on_progress: Callable[[Counts], None] = lambda counts: None,
    ) -> Counts:
        """Import ``file`` to its end, or until ``stopped`` answers true between two chunks."""
        if self._dry_run:
            await self._connection.execute(self._sql["make_tried_leads"])
        try:
            records = file.records()
            while not stopped():
                chunk = list(islice(records, chunk_rows))
                if not chunk:
                    self.counts.finished = True
                    break
                await self._take(chunk)
                on_progress(self.counts)
        finally:
            if self._dry_run:
                await self._connection.execute(self._sql["drop_tried_leads"])
        return self.counts

    async def _take(self, chunk: list[Record]) -> None:
        wishes, rejected = self._gather(chunk)
        while True:
            try:
                plan = await self._merge(wishes)
                break
            except asyncpg.UniqueViolationError:
                continue  # someone else has just inserted one of these phones; now it is there to merge with
        counts = self.counts
        counts.imported += len(plan.new)
        counts.merged += plan.merged
        for record, reason in sorted(rejected + plan.rejected, key=lambda reject: reject[0].line):
            counts.rejected += 1
            counts.reasons[reason] += 1
            self._on_reject(record, reason)

    def _gather(self, chunk: list[Record]) -> tuple[dict[str, _Wish], list[tuple[Record, str]]]:
        wishes: dict[str, _Wish] = {}
        rejected: list[tuple[Record, str]] = []
        for record in chunk:
            try:
                lead = self._reader.read(record)
                wish = wishes.get(lead.phone)
                if wish is None:
                    wishes[lead.phone] = _Wish(lead, [record])
                else:
                    wish.lead = wish.lead.filled_from(lead)
                    wish.records.append(record)
            except RejectedError as error:
                rejected.append((record, error.reason))
        return wishes, rejected

    async def _merge(self, wishes: dict[str, _Wish]) -> _Plan:
        async with self._connection.transaction():
            await self._connection.execute(self._sql["settings"])
            if self._dry_run:
                plan = _plan(wishes, await self._find("find_tried", wishes))
                await self._try(plan)
                return plan
            there = await self._find("find", wishes)
            plan = _plan(wishes, there)
            if plan.changed:
                # What will be written is read again under locks; a lock on the rest would be a write too.
                changed = [lead.phone for _, lead in plan.changed]
                for phone in changed:
                    del there[phone]
                plan = _plan(wishes, there | await self._find("find_locked", changed))
                await self._update(plan.changed)
            await self._insert("leads", plan.new)
            return plan

    async def _find(self, statement: str, phones: Iterable[str]) -> dict[str, tuple[int | None, Lead]]:
        return {
            row["phone"]: (
                row["id"],
                _lead(row),
            )
            for row in await self._connection.fetch(self._sql[statement], list(phones))
        }

    async def _try(self, plan: _Plan) -> None:
        leads = [*plan.new, *(lead for _, lead in plan.changed)]
        await self._connection.execute(self._sql["forget_tried"], [lead.phone for lead in leads])
        await self._insert("dripline_tried_leads", leads)

    async def _insert(self, table: str, leads: list[Lead]) -> None:
        if leads:
            await self._connection.copy_records_to_table(table, records=map(_row, leads), columns=_COLUMNS)

    async def _update(self, changed: list[tuple[int | None, Lead]]) -> None:
        if not changed:
            return
        columns: Iterator[Any] = zip(*((id_, *_row(lead)[1:]) for id_, lead in changed), strict=True)
        await self._connection.execute(self._sql["update"], *map(list, columns))


def _lead(row: asyncpg.Record) -> Lead:
    fields = {name: row[name] for name in _COLUMNS}
    return Lead(**fields | {"attributes": json.loads(row["attributes"])})


def _row(lead: Lead) -> tuple[Any, ...]:
    attributes = json.dumps(lead.attributes, ensure_ascii=False)
    return (lead.phone, lead.name, lead.niche, lead.trigger, lead.time_zone, lead.opted_in_at, attributes)


def _plan(wishes: dict[str, _Wish], there: dict[str, tuple[int | None, Lead]]) -> _Plan:
    """What has to be written so that the table says what ``wishes`` say, given the leads that are there."""
    plan = _Plan()
    for phone, wish in wishes.items():
        if phone not in there:
            plan.new.append(wish.lead)
            plan.merged += len(wish.records) - 1
            continue
        id_, lead = there[phone]
        try:
            filled = lead.filled_from(wish.lead)
        except RejectedError as error:
            plan.rejected += [(record, error.reason) for record in wish.records]
            continue
        plan.merged += len(wish.records)
        if filled is not lead:
            plan.changed.append((id_, filled))
    return plan
