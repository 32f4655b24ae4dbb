"""``dripline sequences``: what there is, switching it off and on, and looking at files before they are applied."""

from __future__ import annotations

from typing import Annotated

import typer

from dispatcher.cli.common import DatabaseUrl, DataDir, database, out, run, show_table
from dispatcher.cli.lint import lint
from dispatcher.cli.plan import plan
from dispatcher.cli.preview import preview
from dispatcher.core.graph import Sequence
from dispatcher.core.soundness import problems
from dispatcher.intake import sequences
from dispatcher.intake.sequences import count_enrolments, switch
from dispatcher.store.registry import read_sequences

app = typer.Typer(
    help="Check, list, pause and resume sequences.",
    no_args_is_help=True,
    epilog="Example: dripline sequences list",
)

app.command(epilog="Example: dripline sequences lint examples --strict")(lint)
app.command(epilog="Example: dripline sequences preview examples/crypto.yaml --set name=Ann --set city=Paris")(preview)
app.command(epilog="Example: dripline sequences plan examples/fitness.yaml examples/crypto.yaml")(plan)

Which = Annotated[str, typer.Argument(metavar="NAME_OR_ID", help="Its name, or its id where names repeat.")]


@app.command("list", epilog="Example: dripline sequences list")
def list_(database_url: DatabaseUrl = None, data_dir: DataDir = None) -> None:
    """List the sequences: active or not, steps, enrolments live and completed, send window, and what is broken."""

    async def body() -> list[tuple[object, ...]]:
        async with database(database_url, data_dir) as connection:
            counts = await count_enrolments(connection)
            return [
                (
                    sequence.id,
                    sequence.name,
                    "active" if sequence.is_active else "paused",
                    len(sequence.steps),
                    *counts.get(sequence.id or 0, (0, 0)),
                    sequence.window() or "",
                    "; ".join([*problems(sequence), *_paused(sequence)]),
                )
                for sequence in await read_sequences(connection)
            ]

    show_table(("id", "name", "state", "steps", "live", "completed", "send window", "problem"), run(body()))


def _paused(sequence: Sequence) -> list[str]:
    return [f"step {step.trigger!r} is paused: {step.paused}" for step in sequence.steps if step.paused is not None]


@app.command(epilog='Example: dripline sequences pause "30 Day Fitness"')
def pause(which: Which, database_url: DatabaseUrl = None, data_dir: DataDir = None) -> None:
    """Stop hand-overs of a sequence within one pass; everybody keeps their place."""
    _switch(which, False, database_url, data_dir)


@app.command(epilog='Example: dripline sequences resume "30 Day Fitness"')
def resume(which: Which, database_url: DatabaseUrl = None, data_dir: DataDir = None) -> None:
    """Go on with a paused sequence; what is overdue is spread over the devices' quotas."""
    _switch(which, True, database_url, data_dir)


@app.command("resume-step", epilog="Example: dripline sequences resume-step fitness_day2")
def resume_step(
    trigger: Annotated[str, typer.Argument(metavar="TRIGGER", help="The step's.")],
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
) -> None:
    """Go on with a step that is paused because a gateway refused what it says: put that right first."""

    async def body() -> str | None:
        async with database(database_url, data_dir) as connection:
            return await sequences.resume_step(connection, trigger)

    cause = run(body())
    out.out(f"{trigger}: {'it was not paused' if cause is None else f'goes on; it was paused because of {cause}'}")


def _switch(which: str, active: bool, database_url: DatabaseUrl, data_dir: DataDir) -> None:
    async def body() -> tuple[str, bool]:
        async with database(database_url, data_dir) as connection:
            return await switch(connection, which, active)

    name, changed = run(body())
    out.out(f"{name}: {'' if changed else 'already '}{'active' if active else 'paused'}")
