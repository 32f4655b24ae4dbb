"""``dripline leads``: pausing them, and what stands on them."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from dispatcher.cli.common import By, DatabaseUrl, DataDir, actor, database, moment_us, out, run, show_table
from dispatcher.cli.pause import Reason
from dispatcher.intake.pauses import pause_lead, resume_lead
from dispatcher.intake.unmatched import Unmatched, find_unmatched

app = typer.Typer(
    help="Pause and resume leads, and look up what stands on them.",
    no_args_is_help=True,
    epilog="Example: dripline leads unmatched --limit 20",
)


@app.callback()
def leads() -> None:
    """Pause and resume leads, and look up what stands on them."""


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
