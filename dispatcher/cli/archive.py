"""``dripline archive``: what has long finished goes to Parquet files and leaves the database."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Final

import typer

from dispatcher.cli.common import DatabaseUrl, DataDir, database, err, out, progress, require_directory, run
from dispatcher.errors import InputError
from dispatcher.store.archive import KeptDay, archive_day, archive_enrolments, archiving, old_days

app = typer.Typer()

LEAST_DAYS: Final = 2
"""Quotas look 24 hours back, and a guard; gateways remember keys for a day."""
_SPAN: Final = re.compile(r"(\d{1,5})\s*d")


@app.command(name="archive", epilog="Example: dripline archive --older-than 90d --to archive")
def archive(
    older_than: Annotated[str, typer.Option("--older-than", metavar="DAYS", help="Such as 90d; at least 2d.")],
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="Where the files go; made if need be.")],
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
) -> None:
    """Move finished enrolments and days of the ledger that are older into Parquet files, nothing personal among it.

    A day of the ledger stays whole while an enrolment that lives, or is in doubt, has an attempt there. The engine may
    run meanwhile. Broken off at any point, it loses and doubles nothing; called again, it goes on.
    """
    days = _days(older_than)
    require_directory("--to", to)
    to.mkdir(exist_ok=True)
    directory = to.absolute()

    async def body() -> list[KeptDay]:
        async with database(database_url, data_dir) as connection:
            now: datetime = await connection.fetchval("SELECT now()")
            before = now - timedelta(days=days)
            async with archiving(connection, directory):
                rows = 0
                async for filed in archive_enrolments(connection, directory, before):
                    rows += filed.rows
                    err.out(f"{filed.name}: {filed.rows:,} enrolments")
                gone, kept = await old_days(connection, before)
                attempts = 0
                with progress(len(gone), "days of the ledger") as show:
                    for done, day in enumerate(gone, 1):
                        filed = await archive_day(connection, directory, day)
                        attempts += filed.rows
                        err.out(f"{filed.name}: {filed.rows:,} attempts")
                        show(done)
                out.out(f"{rows:,} enrolments and {attempts:,} attempts of {len(gone):,} days archived to {to}")
                return kept

    kept = run(body())
    for day in kept[:10]:
        err.out(f"{day.day}: stays, {day.living:,} enrolments live, such as {day.example}")
    if len(kept) > 10:
        err.out(f"{len(kept) - 10:,} more days stay")


def _days(text: str) -> int:
    match = _SPAN.fullmatch(text.strip())
    if match is None:
        raise InputError("--older-than", f"{text!r} is no number of days", "such as 90d")
    if int(match[1]) < LEAST_DAYS:
        raise InputError("--older-than", f"{text} is too short", f"quotas look back a day: at least {LEAST_DAYS}d")
    return int(match[1])
