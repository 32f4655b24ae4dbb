"""``dripline retry``: what has failed is tried again."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import asyncpg
import typer

from dispatcher.cli.common import (
    By,
    DatabaseUrl,
    DataDir,
    actor,
    confirm,
    database,
    err,
    out,
    progress,
    run,
    show_table,
)
from dispatcher.errors import InputError
from dispatcher.intake.pauses import find_lead
from dispatcher.intake.sequences import find_sequence
from dispatcher.store.retry import Failures, Page, count_failed, retry

app = typer.Typer(help="Try again what has failed.")

_SHOWN = 10
_LONGEST = 60


@app.command(name="retry", epilog='Example: dripline retry --sequence "30 Day Fitness" --error "no route" --dry-run')
def retry_(
    sequence: Annotated[
        str | None, typer.Option("--sequence", metavar="NAME_OR_ID", help="Only of this sequence.", envvar=[])
    ] = None,
    step: Annotated[str | None, typer.Option("--step", help="Only at the step of this trigger.", envvar=[])] = None,
    lead: Annotated[str | None, typer.Option("--lead", metavar="PHONE", help="Only of this lead.", envvar=[])] = None,
    error: Annotated[
        str | None, typer.Option("--error", metavar="TEXT", help="Only with this in the last error.", envvar=[])
    ] = None,
    outcome: Annotated[
        Literal["rejected", "refused"] | None,
        typer.Option("--outcome", help="Only if the last attempt ended so.", envvar=[]),
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="All that has failed.", envvar=[])] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be tried.", envvar=[])] = False,
    yes: Annotated[bool, typer.Option("--yes", envvar=[], help="Do not ask.")] = False,
    by: By = None,
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
) -> None:
    """Let failed enrolments wait again at their step, under a new key; devices send them as their quotas allow.

    Left as they are: leads that have opted out, whose trigger was taken off, or that have entered the sequence anew.
    What is in doubt has not failed: see dripline in-doubt.
    """
    if (any(given is not None for given in (sequence, step, lead, error, outcome))) == all_:
        raise InputError("retry", "which ones?", "give --sequence, --step, --lead, --error or --outcome, or only --all")

    async def body() -> Page:
        async with database(database_url, data_dir) as connection:
            which = Failures(
                sequence=None if sequence is None else (await find_sequence(connection, sequence)).id,
                step=step,
                lead=None if lead is None else await find_lead(connection, lead),
                error=error,
                outcome=outcome,
            )
            if not dry_run and not yes and lead is None:
                would = await _all(connection, which, by, dry_run=True)
                if would.retried:
                    confirm("retry", f"{would.retried:,} enrolments?")
            return await _all(connection, which, by, dry_run=dry_run)

    done = run(body())
    rows: list[tuple[Any, ...]] = [
        (f"{count:,}", step, error if len(error) <= _LONGEST else f"{error[: _LONGEST - 3]}...")
        for (step, error), count in done.steps.most_common(_SHOWN)
    ]
    if rows:
        show_table(("enrolments", "step", "error"), rows)
    out.out(f"{done.retried:,} {'would be' if dry_run else 'are'} tried again")
    for reason, count in done.left.most_common():
        err.out(f"{count:,} stay as they are: {reason}")


async def _all(connection: asyncpg.Connection, which: Failures, by: str | None, *, dry_run: bool) -> Page:
    """All pages together."""
    total, after, seen = Page(), 0, 0
    with progress(await count_failed(connection), "failed enrolments looked at") as show:
        while True:
            page = await retry(connection, which, actor=actor(by), after=after, dry_run=dry_run)
            total.retried += page.retried
            total.left.update(page.left)
            total.steps.update(page.steps)
            seen += page.retried + page.left.total()
            show(seen)
            if page.last is None:
                return total
            after = page.last
