"""``dripline leads``: what stands on leads, leads that pause, and leads that are deleted with all that is personal."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Annotated, Final

import typer

from dispatcher.cli.common import (
    By,
    DatabaseUrl,
    DataDir,
    actor,
    confirm,
    database,
    err,
    moment_us,
    out,
    progress,
    run,
    show_table,
)
from dispatcher.cli.pause import Reason
from dispatcher.errors import InputError
from dispatcher.intake.csv_file import CsvFile, RejectedError
from dispatcher.intake.pauses import pause_lead, resume_lead
from dispatcher.intake.phones import NOT_A_NUMBER, check_region, read_phone
from dispatcher.intake.unmatched import Unmatched, find_unmatched
from dispatcher.store.erasure import CHUNK, Erased, erase, sweep

app = typer.Typer(
    help="Look up what stands on leads; pause, resume and delete leads.",
    no_args_is_help=True,
    epilog="Example: dripline leads unmatched --limit 20",
)

_PATIENCE_S: Final = 30
_LEFT_STATUS: Final = 1


@app.callback()
def leads() -> None:
    """Look up what stands on leads; pause and resume leads, and delete them with all that is personal."""


Phone = Annotated[str, typer.Argument(metavar="PHONE", help="As in leads.phone.")]


@app.command(epilog="Example: dripline leads pause 60123456789 --until 2026-01-05T09:00:00Z")
def pause(
    phone: Phone,
    until: Annotated[
        str | None,
        typer.Option(
            "--until",
            envvar=[],
            metavar="MOMENT",
            show_default="until resumed",
            help="When it goes on by itself; ISO 8601, without a time zone UTC.",
        ),
    ] = None,
    reason: Reason = None,
    by: By = None,
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
) -> None:
    """Send a lead nothing for a while; it keeps its places in its sequences."""
    until_us = None if until is None else moment_us("--until", until)

    async def body() -> bool:
        async with database(database_url, data_dir) as connection:
            return await pause_lead(connection, phone, until_us, reason, actor=actor(by))

    out.out(f"{phone}: {'' if run(body()) else 'already '}paused{'' if until is None else f' until {until}'}")


@app.command(epilog="Example: dripline leads resume 60123456789")
def resume(phone: Phone, by: By = None, database_url: DatabaseUrl = None, data_dir: DataDir = None) -> None:
    """Go on with a paused lead; what is overdue leaves as its device has slots."""

    async def body() -> bool:
        async with database(database_url, data_dir) as connection:
            return await resume_lead(connection, phone, actor=actor(by))

    out.out(f"{phone}: {'' if run(body()) else 'already '}not paused")


@app.command(epilog="Example: dripline leads unmatched --limit 20")
def unmatched(
    limit: Annotated[int, typer.Option(min=1, help="Triggers shown, those on most leads first.")] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
) -> None:
    """List the triggers on leads that enrol nobody, and why."""

    async def body() -> list[Unmatched]:
        async with database(database_url, data_dir) as connection:
            return await find_unmatched(connection)

    found = run(body())
    if as_json:
        typer.echo(json.dumps([asdict(each) for each in found[:limit]], indent=2))
        return
    show_table(("trigger", "leads", "why"), [(each.trigger, each.leads, each.why) for each in found[:limit]])
    if len(found) > limit:
        out.out(f"{len(found) - limit} more: --limit {len(found)}")


@app.command(epilog="Example: dripline leads delete 60123456789 --dry-run")
def delete(
    phones: Annotated[list[str] | None, typer.Argument(metavar="[PHONE]...", help="As in leads.phone.")] = None,
    file: Annotated[
        Path | None, typer.Option("--file", metavar="FILE", help="A CSV with a header line.", envvar=[])
    ] = None,
    column: Annotated[
        str, typer.Option("--column", metavar="NAME", help="The column of the file that has the numbers.", envvar=[])
    ] = "phone",
    region: Annotated[
        str | None,
        typer.Option(help="Where numbers without a country code are dialled, such as US; without it, none are."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count, and delete nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", envvar=[], help="Do not ask.")] = False,
    by: By = None,
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
) -> None:
    """Delete leads with all that is personal: numbers, names, attributes, texts, replies, what gateways said.

    Enrolments and attempts are kept as counts. Nothing leaves from the commit on; what is under way ends. Who had opted
    out is recognised should the number come again. The exit status is 1 if nothing is known of a number.
    """
    found: dict[str, None] = {}
    unread: list[str] = []
    for place, text in [*(("", phone) for phone in phones or ()), *(_listed(file, column) if file else ())]:
        try:
            found[_number(text, check_region(region))] = None
        except RejectedError as error:
            unread.append(f"{place}{text!r}: {error.reason.removeprefix('phone: ')}")
    if not found and not unread:
        raise InputError("leads delete", "which ones?", "name phones, or give --file")
    for each in unread:
        err.out(f"left out: {each}")
    if found and not dry_run and not yes:
        confirm("leads delete", f"Delete all that is personal of {len(found):,} numbers, for good?")
    numbers = list(found)

    async def body() -> tuple[list[Erased], int]:
        async with database(database_url, data_dir) as connection:
            done = []
            with progress(len(numbers), "numbers") as show:
                for at in range(0, len(numbers), CHUNK):
                    part = numbers[at : at + CHUNK]
                    done.append(await erase(connection, part, actor(by), dry_run=dry_run))
                    show(at + len(part))
            left = 0 if dry_run else await sweep(connection)
            for _ in range(_PATIENCE_S if left else 0):
                await asyncio.sleep(1)
                if not (left := await sweep(connection)):
                    break
            return done, left

    done, left = run(body())
    _report(done, dry_run)
    if left:
        err.out(f"{left:,} attempts are under way still: the engine wipes what they write, within a day")
    unknown = [number for number in numbers if not any(number in each.known for each in done)]
    for number in unknown:
        err.out(f"{number}: nothing is known of it")
    if unknown or unread:
        raise typer.Exit(_LEFT_STATUS)


def _listed(file: Path, column: str) -> Iterator[tuple[str, str]]:
    """Where each number stands in the file, and the number."""
    with CsvFile(file) as opened:
        place = opened.column(column, "--column")
        for record in opened.records():
            yield f"line {record.line}, ", record.cells[place] if record.reason is None else record.cells[0]


def _number(text: str, region: str | None) -> str:
    """A number as the tables may have it: as it is dialled, else its digits, since SQL may have brought in anything."""
    try:
        return read_phone(text, region)
    except RejectedError:
        digits = "".join(char for char in text if char.isascii() and char.isdigit())
        if not digits:
            raise RejectedError(NOT_A_NUMBER) from None
        return digits


def _report(done: list[Erased], dry_run: bool) -> None:
    total = {
        field.name: sum(getattr(each, field.name) for each in done) for field in fields(Erased) if field.name != "known"
    }
    would = "would be " if dry_run else ""
    out.out(
        f"{total['leads']:,} leads {would}deleted, {total['stopped']:,} live enrolments {would}stopped;"
        f" {total['enrolments']:,} enrolments and {total['attempts']:,} attempts {would}kept without what is personal"
    )
    if total["replies"] or total["listed"]:
        out.out(
            f"{total['replies']:,} replies {would}deleted, {total['listed']:,} numbers on the suppression list"
            f" {would}kept as digests only"
        )
