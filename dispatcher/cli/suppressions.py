"""``dripline suppressions``: numbers that must never be messaged, whether or not they are leads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from dispatcher.cli.common import (
    By,
    DatabaseUrl,
    DataDir,
    actor,
    database,
    err,
    out,
    require_writable,
    run,
    show_table,
)
from dispatcher.cli.import_leads import INTERRUPTED, FileProgress, stop_on_interrupt
from dispatcher.errors import InputError
from dispatcher.intake import suppressions
from dispatcher.intake.csv_file import CsvFile, RejectedError
from dispatcher.intake.leads import Counts
from dispatcher.intake.mapping import parse_mapping
from dispatcher.intake.phones import check_region, read_phone
from dispatcher.intake.rejects_file import RejectsFile
from dispatcher.store.statements import statements

app = typer.Typer(
    help="Numbers that must never be messaged: import, export, add, remove and list them.",
    no_args_is_help=True,
    epilog="Example: dripline suppressions add 60123456789",
)

Region = Annotated[
    str | None,
    typer.Option(help="Where numbers without a country code are dialled, such as US; without it, none are."),
]
Phones = Annotated[list[str], typer.Argument(metavar="PHONE...", help="With the country code, or give --region.")]
Reason = Annotated[str | None, typer.Option(show_default="must not be messaged", help="Why, for whoever asks later.")]


@app.command(
    "import", epilog='Example: dripline suppressions import complaints.csv --map phone="Phone 1" --reason complaint'
)
def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="CSV with a header line, of any size.")],
    columns: Annotated[
        list[str] | None,
        typer.Option("--map", metavar="FIELD=COLUMN", help="phone, reason, at or source; found by these names."),
    ] = None,
    region: Region = None,
    reason: Reason = None,
    rejects_file: Annotated[
        Path | None,
        typer.Option("--rejects", metavar="FILE", show_default="FILE.rejects.csv", help="Where rejected rows go."),
    ] = None,
    encoding: Annotated[str | None, typer.Option(show_default="found out", help="Such as cp1252.")] = None,
    delimiter: Annotated[str | None, typer.Option(show_default="found out", help="One character.")] = None,
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
) -> None:
    """Put the numbers of a file on the list; leads that have one of them are opted out.

    What is on the list already stays as it is. Ctrl-C stops after the rows in hand; importing again goes on.
    """
    with CsvFile(file, encoding=encoding, delimiter=delimiter) as opened:
        reader = suppressions.ListReader(
            opened, parse_mapping(columns or ()), region=region, reason=reason, source=file.name
        )

        async def body(rejects: RejectsFile) -> Counts:
            stop = stop_on_interrupt()
            async with database(database_url, data_dir) as connection:
                with FileProgress(opened) as progress:
                    return await suppressions.import_list(
                        connection,
                        opened,
                        reader,
                        on_reject=rejects.write,
                        stopped=stop.is_set,
                        on_progress=progress.show,
                    )

        with RejectsFile(rejects_file or Path(f"{file}.rejects.csv"), opened) as rejects:
            counts = run(body(rejects))
    out.out(f"{counts.rows} rows: {counts.imported} new, {counts.merged} were there, {counts.rejected} rejected")
    for why, times in counts.reasons.most_common():
        out.out(f"{times:>9}  {why}")
    if counts.rejected:
        out.out(f"rejected rows: {rejects.path}")
    if not counts.finished:
        err.out("interrupted: these rows stay; importing the file again goes on from here")
        raise typer.Exit(INTERRUPTED)


@app.command(epilog="Example: dripline suppressions export suppressions.csv")
def export(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="CSV: phone, reason, at, source.")],
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
) -> None:
    """Write the list, with the numbers of the leads that have opted out, to a file that can be imported again."""
    require_writable("FILE", file)

    async def body() -> tuple[int, int]:
        async with database(database_url, data_dir) as connection:
            rows = await suppressions.export(connection, file)
            return rows, (await _counts(connection))["remembered"]

    rows, remembered = run(body())
    out.out(f"{rows:,} numbers: {file}")
    if remembered:
        err.out(f"{remembered:,} more are of deleted leads: they are recognised when they come again, and not known")


@app.command(epilog="Example: dripline suppressions add 60123456789 60198765432 --reason complaint")
def add(
    phones: Phones,
    region: Region = None,
    reason: Reason = None,
    by: By = None,
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
) -> None:
    """Put numbers on the list: nothing leaves to them from then on, and their leads are opted out."""
    numbers = [suppressions.Suppression(phone, reason, None, actor(by)) for phone in read_phones(phones, region)]

    async def body() -> int:
        async with database(database_url, data_dir) as connection:
            return await suppressions.add(connection, numbers)

    new = run(body())
    out.out(f"{new} new, {len(numbers) - new} were there")


@app.command(epilog="Example: dripline suppressions remove 60123456789")
def remove(
    phones: Phones,
    region: Region = None,
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
) -> None:
    """Take numbers off the list, for people who want messages again. A lead that is opted out stays so."""
    numbers = read_phones(phones, region)

    async def body() -> set[str]:
        async with database(database_url, data_dir) as connection:
            return await suppressions.remove(connection, numbers)

    removed = run(body())
    out.out(f"{len(removed)} removed")
    for phone in sorted(set(numbers) - removed):
        err.out(f"{phone}: is not on the list")


@app.command("list", epilog="Example: dripline suppressions list --limit 20")
def list_(
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many, the latest first.")] = 100,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
) -> None:
    """List the numbers on the list, and count who else has opted out."""

    async def body() -> tuple[list[dict[str, Any]], dict[str, int]]:
        async with database(database_url, data_dir) as connection:
            found = await connection.fetch(statements("suppressions")["list_suppressions"], limit)
            return [dict(row) for row in found], await _counts(connection)

    rows, counts = run(body())
    if as_json:
        typer.echo(json.dumps({**counts, "numbers": rows}, indent=2, default=str))
        return
    show_table(
        ("phone", "since", "reason", "source"),
        [(row["phone"], f"{row['at']:%Y-%m-%d %H:%M:%SZ}", row["reason"], row["source"] or "-") for row in rows],
    )
    err.out(
        f"{counts['listed']:,} on the list, {counts['opted_out']:,} leads have opted out,"
        f" {counts['remembered']:,} of deleted leads are remembered"
    )


def read_phones(phones: list[str], region: str | None) -> list[str]:
    """The numbers as the tables have them, each once.

    Raises:
        InputError: one of them cannot be read.
    """
    region = check_region(region)
    found: dict[str, None] = {}
    for phone in phones:
        try:
            found[read_phone(phone, region)] = None
        except RejectedError as error:
            raise InputError(f"phone {phone!r}", error.reason.removeprefix("phone: "), "such as 60123456789") from None
    return list(found)


async def _counts(connection: Any) -> dict[str, int]:
    return dict(await connection.fetchrow(statements("suppressions")["count_suppressions"]))
