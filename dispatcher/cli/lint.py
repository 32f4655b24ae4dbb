"""``dripline sequences lint``: what is wrong or doubtful about sequence files."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from dispatcher.cli.common import DatabaseUrl, DataDir, database, err, out, require_writable, run
from dispatcher.errors import InputError
from dispatcher.intake.lint import Attributes, Remark, sequence_files
from dispatcher.intake.lint import lint as remarks_on
from dispatcher.store.statements import statements


def lint(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Sequence files, or folders with some.")],
    strict: Annotated[bool, typer.Option("--strict", help="Warnings count as errors.")] = False,
    with_leads: Annotated[
        bool, typer.Option("--with-leads", help="Hold variables against the attributes of the leads in the database.")
    ] = False,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", envvar="DRIPLINE_JSON_FILE", help="Write the remarks here, too."),
    ] = None,
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
) -> None:
    """Say all that is wrong or doubtful about sequence files, with file, line and key.

    Errors are what apply refuses; warnings are variables that leads may lack, texts near the longest that is sent,
    steps that no lead comes to, and delays of more than a year. Without --with-leads no database is needed. Exit status
    0 when there is nothing but warnings, 1 with an error (--strict: or a warning), 2 if a file cannot be read.
    """
    require_writable("--json", json_file, *files)
    read, unreadable, others = sequence_files(files)
    for path in others:
        err.out(f"{path}: no sequence file")
    attributes = run(_attributes(database_url, data_dir)) if with_leads else None
    remarks = remarks_on(read, attributes)
    for error in unreadable:
        out.out(f"error: {error}")
    for remark in remarks:
        out.out(str(remark))
    errors = sum(remark.level == "error" for remark in remarks)
    warnings = len(remarks) - errors
    if json_file is not None:
        said = {"errors": errors, "warnings": warnings, "unreadable": list(map(str, unreadable))}
        json_file.write_text(json.dumps({**said, "remarks": list(map(_plain, remarks))}, indent=2) + "\n", "utf-8")
    out.out(f"{len(read)} files: {errors} errors, {warnings} warnings")
    raise typer.Exit(2 if unreadable else 1 if errors or (strict and warnings) else 0)


async def _attributes(database_url: str | None, data_dir: Path | None) -> Attributes:
    async with database(database_url, data_dir) as connection:
        err.out("reading the attributes of all leads")
        rows = await connection.fetch(statements("intake")["lead_attributes"])
    if not rows:
        raise InputError("--with-leads", "there are no leads in the database", "leave it out, or import leads first")
    having = {row["key"]: row["leads"] for row in rows}
    return Attributes(leads=having.pop(None), having=having)


def _plain(remark: Remark) -> dict[str, object]:
    return {**asdict(remark), "path": str(remark.path)}
