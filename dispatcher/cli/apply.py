"""``dripline apply``: sequences from YAML files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dispatcher.cli.common import DatabaseUrl, DataDir, database, run
from dispatcher.cli.plan import plan, show_changes
from dispatcher.intake import sequences
from dispatcher.intake.sequence_file import load

app = typer.Typer()


@app.command(epilog="Example: dripline apply examples/fitness.yaml examples/crypto.yaml --dry-run")
def apply(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="YAML files with sequences.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="What sequences plan does: say what would change, and write nothing.")
    ] = False,
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
) -> None:
    """Make the database say what the files say: all of it, or nothing when anything is wrong.

    A sequence is found by its name, a step by its trigger. Steps gone from a file are removed, unless somebody still
    stands at one. A paused sequence is active again unless its file says active: false.
    """
    if dry_run:
        plan(files, database_url, data_dir)
        return
    wanted = [sequence for file in files for sequence in load(file)]

    async def body() -> sequences.Changes:
        async with database(database_url, data_dir) as connection:
            return await sequences.apply(connection, wanted)

    show_changes(run(body()))
