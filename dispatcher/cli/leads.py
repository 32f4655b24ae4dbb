"""``dripline leads``: what stands on leads."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from dispatcher.cli.common import DatabaseUrl, DataDir, database, out, run, show_table
from dispatcher.intake.unmatched import Unmatched, find_unmatched

app = typer.Typer(
    help="Look up what stands on leads.",
    no_args_is_help=True,
    epilog="Example: dripline leads unmatched --limit 20",
)


@app.callback()
def leads() -> None:
    """Look up what stands on leads."""


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
