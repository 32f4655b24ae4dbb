"""``dripline forecast``: when will it finish, what limits it, how many devices would do?"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from dispatcher.cli.common import (
    DatabaseUrl,
    DataDir,
    database,
    err,
    moment_us,
    out,
    progress,
    require_writable,
    run,
    sigterm_ends,
)
from dispatcher.errors import InputError

app = typer.Typer()

_LINE_EVERY_S: Final = 5.0

ScenarioFile = Annotated[
    Path | None,
    typer.Argument(metavar="[FILE]", help="A scenario (YAML); without one, the database as it stands.", envvar=[]),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="A key of the scenario, such as devices.count=300; repeatable."),
]
By = Annotated[
    str | None,
    typer.Option(
        metavar="MOMENT", help="When everything is to be sent, in UTC.", show_default="the end of the scenario"
    ),
]
Needed = Annotated[
    bool, typer.Option("--devices-needed", help="Search for the smallest fleet also where there are enough devices.")
]
Json = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", envvar="DRIPLINE_JSON_FILE", help="Write the figures here.")
]


@app.command(name="forecast", epilog="Example: dripline forecast examples/first_wave.yaml --set devices.count=300")
def forecast(
    scenario: ScenarioFile = None,
    sets: Set = None,
    by: By = None,
    devices_needed: Needed = False,
    json_file: Json = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Only the exit status.")] = False,
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
) -> None:
    """Tell in seconds what a scenario, or the database as it stands, will come to: nothing is sent or written.

    Every message is placed on its device under the engine's own limits, as a rehearsal would place it.

    Exit status 0 if everything is sent, by the deadline where there is one; 1 if not; 2 for bad input.
    """
    require_writable("--json", json_file, scenario)
    deadline_us = None if by is None else moment_us("--by", by)
    if scenario is None and (sets or devices_needed):
        raise InputError("--set, --devices-needed", "they are about a scenario", "name its file")
    with sigterm_ends():
        if scenario is None:
            world = run(_live(database_url, data_dir, deadline_us))
            outlook, needed = _played(world, quiet), None
        else:
            outlook, needed = _planned(scenario, sets or [], deadline_us, devices_needed, quiet)

    from simulate.forecast.shown import as_json, shown

    if json_file is not None:
        json_file.write_text(json.dumps(as_json(outlook, needed), indent=2) + "\n", encoding="utf-8")
    if not quiet:
        out.print(shown(outlook, needed))
    raise typer.Exit(0 if outlook.feasible else 1)


async def _live(url: str | None, data_dir: Path | None, deadline_us: int | None) -> Any:
    from dispatcher.config import load_settings
    from simulate.forecast.live import world_of

    async with database(url, data_dir) as connection:
        world = await world_of(connection, load_settings(data_dir=data_dir, database_url=url), deadline_us)
    if deadline_us is not None and deadline_us <= world.start_us:
        raise InputError("--by", "this moment has passed", "name a later one")
    return world


def _planned(path: Path, sets: list[str], deadline_us: int | None, search: bool, quiet: bool) -> tuple[Any, int | None]:
    """The outlook of a scenario, and the devices it needs."""
    from dataclasses import replace

    from dispatcher.config import load_settings
    from simulate.forecast.needed import devices_needed, hopeless, with_devices
    from simulate.forecast.planned import leads_of, world_of
    from simulate.scenario.load import load
    from simulate.scenario.overrides import parse
    from simulate.scenario.planned import plan

    loaded = load(path, [parse(each) for each in sets])
    settings, leads = load_settings(database_url=None), leads_of(loaded)

    def world_with(count: int | None) -> Any:
        resized = loaded if count is None else with_devices(loaded, count)
        world = world_of(plan(resized, None), settings, leads)
        return world if deadline_us is None else replace(world, deadline_us=deadline_us)

    world = world_with(None)
    if world.deadline_us <= world.start_us:
        raise InputError("--by", f"the scenario begins later, on {loaded.scenario.start:%Y-%m-%d}", "name a later one")
    if not quiet and loaded.scenario.title is not None:
        err.print(loaded.scenario.title, markup=False)
    outlook = _played(world, quiet)
    if hopeless(outlook) or (outlook.feasible and not search):
        return outlook, None
    with _tries(quiet) as tried:
        return outlook, devices_needed(outlook, world_with, tried)


def _played(world: Any, quiet: bool) -> Any:
    from simulate.forecast.outlook import forecast as play

    if quiet:
        return play(world)
    expected = int(world.steps.remaining()[world.enrolments.step].sum())
    with progress(expected, "messages placed") as show:
        return play(world, show)


@contextmanager
def _tries(quiet: bool) -> Iterator[Callable[[int], None]]:
    """How the search goes: a live line in a terminal, a plain line now and then elsewhere."""
    if quiet or not err.is_terminal:
        shown_s = time.monotonic()

        def say(count: int) -> None:
            nonlocal shown_s
            if not quiet and time.monotonic() - shown_s >= _LINE_EVERY_S:
                shown_s = time.monotonic()
                err.out(f"would {count:,} devices do?")

        yield say
        return
    with err.status("would fewer devices do?") as status:
        yield lambda count: status.update(f"would {count:,} devices do?")
