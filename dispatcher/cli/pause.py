"""``dripline pause`` and ``dripline resume``: nothing more is handed over, and everything goes on."""

from __future__ import annotations

from typing import Annotated

import typer

from dispatcher.cli.common import By, DatabaseUrl, DataDir, actor, database, out, run
from dispatcher.intake.pauses import pause_fleet

pausing = typer.Typer(help="Stop every hand-over.")
resuming = typer.Typer(help="Go on after a pause of everything.")

Reason = Annotated[str | None, typer.Option("--reason", help="Why, for status and the operators' log.", envvar=[])]


@pausing.command(name="pause", epilog='Example: dripline pause --reason "gateway maintenance"')
def pause(reason: Reason = None, by: By = None, database_url: DatabaseUrl = None, data_dir: DataDir = None) -> None:
    """Stop every hand-over at once, of all devices; everybody keeps their place, and enrolling goes on."""
    _switch(True, reason, by, database_url, data_dir)


@resuming.command(name="resume", epilog="Example: dripline resume")
def resume(by: By = None, database_url: DatabaseUrl = None, data_dir: DataDir = None) -> None:
    """Go on; what is overdue is spread over the devices' quotas. What is paused by itself stays so."""
    _switch(False, None, by, database_url, data_dir)


def _switch(paused: bool, reason: str | None, by: str | None, database_url: DatabaseUrl, data_dir: DataDir) -> None:
    async def body() -> bool:
        async with database(database_url, data_dir) as connection:
            return await pause_fleet(connection, paused, reason, actor=actor(by))

    changed = run(body())
    out.out(f"fleet: {'' if changed else 'already '}{'paused' if paused else 'running'}")
