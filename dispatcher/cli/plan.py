"""``dripline sequences plan``, which is also ``dripline apply --dry-run``: what applying files would do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dispatcher.cli.common import DatabaseUrl, DataDir, database, out, run
from dispatcher.intake.plan import Plan
from dispatcher.intake.plan import plan as plan_of
from dispatcher.intake.sequence_file import load
from dispatcher.intake.sequences import Changes


def plan(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="YAML files with sequences.")],
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
) -> None:
    """Say what applying the files would change and what becomes of leads under way, and write nothing.

    Named are sequences and steps that would be created, updated and removed, the live enrolments that stand at them,
    and leads that would be enrolled at once. Exit status 0 if apply would take the files, 2 if it would refuse them.
    """
    wanted = [sequence for file in files for sequence in load(file)]

    async def body() -> Plan:
        async with database(database_url, data_dir) as connection:
            return await plan_of(connection, wanted)

    found = run(body())
    show_changes(found.changes, "would be ")
    for line in found.consequences:
        out.out(f"leads: {line}")
    for refusal in found.refusals:
        out.out(f"would be refused: {refusal}")
    if found.refusals:
        raise typer.Exit(found.refusals[0].exit_code)


def show_changes(changes: Changes, mood: str = "") -> None:
    """A line for each change."""
    for verb in ("created", "updated", "removed"):
        for line in getattr(changes, verb):
            out.out(f"{mood}{verb}: {line}")
    out.out(f"unchanged: {len(changes.unchanged)} of {changes.total} sequences and steps")
