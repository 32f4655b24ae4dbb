"""``dripline simulate``: rehearse before going live."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from dispatcher.cli.common import DataDir, err, out, require_directory, require_writable, run
from dispatcher.errors import InputError
from simulate.pacing import Pacing
from simulate.scenario.sender import Over

app = typer.Typer()

_SCREEN_S = 5.0
_WITH_CHAOS = frozenset({
    "devices", "leads", "sequences", "shards", "json_file", "keep", "quiet", "data_dir",
    "chaos", "chaos_strikes", "chaos_only", "chaos_idempotent",
})  # fmt: skip
"""Parameters a chaos run honours."""

Days = Annotated[float, typer.Option(min=0.001, max=3660, help="Virtual days at most; ends earlier when all is done.")]
SequenceFiles = Annotated[
    list[Path] | None,
    typer.Option(metavar="FILE", help="Sequences (YAML); may be repeated.", show_default="the built-in example"),
]
LeadFile = Annotated[Path | None, typer.Option(metavar="FILE", help="Leads from a file instead of made ones.")]
Columns = Annotated[
    list[str] | None, typer.Option("--map", metavar="FIELD=COLUMN", help="For --leads-csv, as in dripline import.")
]
Triggers = Annotated[
    list[str] | None,
    typer.Option(
        "--trigger", help="For --leads-csv: a trigger every lead gets.", show_default="the first entry step's"
    ),
]
Region = Annotated[str | None, typer.Option(help="For --leads-csv: where numbers without a country code are dialled.")]
Pace = Annotated[
    Pacing, typer.Option(help="Messages of a device: as early as its limits allow, or spread evenly over the hour.")
]
Speed = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        help="Play virtual time X times as fast as life: 1 is life, 60 an hour a minute.",
        show_default="as fast as the machine allows",
    ),
]
SenderOver = Annotated[
    Over, typer.Option(help="How messages get to the mock gateway; over HTTP, the way of production carries the load.")
]
Start = Annotated[
    datetime | None,
    typer.Option(
        formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"], help="Where virtual time starts (UTC).", show_default="2026-01-05"
    ),
]
OwnDatabase = Annotated[
    str | None,
    typer.Option(
        envvar=[], help="A database of its own for the rehearsal; everything stays in it.", show_default="embedded"
    ),
]
Json = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", envvar="DRIPLINE_JSON_FILE", help="Write the figures here.")
]
ReceiptFile = Annotated[Path | None, typer.Option(metavar="FILE.csv|.parquet", help="Write every receipt here.")]
ReportFile = Annotated[Path | None, typer.Option("--report", metavar="FILE.html", help="Write the report here.")]
RunData = Annotated[
    Path | None, typer.Option("--parquet", metavar="DIR", help="Write tables here: sends, minutes, devices, faults.")
]
Chaos = Annotated[
    int | None,
    typer.Option(
        metavar="SEED",
        min=0,
        help="Instead, run the live engine on Ray nodes and a gateway of its own through a storm of faults.",
        show_default="a rehearsal",
    ),
]
ChaosStrikes = Annotated[int, typer.Option(min=0, max=10_000, help="With --chaos: how many kills and cuts.")]
ChaosOnly = Annotated[
    list[str] | None,
    typer.Option(metavar="FAULT", help="With --chaos: only this kind of fault, such as 'run killed'; repeatable."),
]
ChaosGateway = Annotated[
    bool,
    typer.Option(
        "--chaos-idempotent/--chaos-not-idempotent", help="With --chaos: whether the gateway honours idempotency keys."
    ),
]
Keep = Annotated[bool, typer.Option("--keep", help="Leave the embedded database for inspection (dripline db url).")]
ScenarioFile = Annotated[
    Path | None,
    typer.Argument(metavar="[FILE]", help="A scenario (YAML): docs/scenarios.md has its keys. Flags stand before it."),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="A key of the scenario, such as sender.throttled=0.1; repeatable."),
]


@app.command(name="simulate", epilog="Example: dripline simulate --leads 1000000 --days 4 --json run.json")
def simulate(
    context: typer.Context,
    scenario: ScenarioFile = None,
    devices: Annotated[int, typer.Option(min=1, max=1_000_000, help="How many devices.")] = 3000,
    leads: Annotated[int, typer.Option(min=0, help="How many leads, each with at least one entry trigger.")] = 100_000,
    days: Days = 3.0,
    sequences: SequenceFiles = None,
    leads_csv: LeadFile = None,
    columns: Columns = None,
    triggers: Triggers = None,
    region: Region = None,
    shards: Annotated[int, typer.Option(min=1, max=200, help="How many shard actors.")] = 10,
    seed: Annotated[int, typer.Option(help="The same seed gives the same receipts.")] = 1,
    tick: Annotated[float, typer.Option(min=1, max=150, help="Seconds of virtual time per step.")] = 30.0,
    pacing: Pace = Pacing.BURST,
    speed: Speed = None,
    sender: SenderOver = Over.DIRECT,
    start: Start = None,
    sets: Set = None,
    database_url: OwnDatabase = None,
    reset: Annotated[bool, typer.Option("--reset", help="Give up an earlier rehearsal in that database.")] = False,
    json_file: Json = None,
    receipts: ReceiptFile = None,
    report: ReportFile = None,
    parquet: RunData = None,
    keep: Keep = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Only the verdict, by the exit status.")] = False,
    data_dir: DataDir = None,
    chaos: Chaos = None,
    chaos_strikes: ChaosStrikes = 30,
    chaos_only: ChaosOnly = None,
    chaos_idempotent: ChaosGateway = True,
) -> None:
    """Rehearse on real PostgreSQL and real Ray with a mock sender, in virtual time, and check every invariant.

    With --chaos: the live engine over real HTTP, while processes are killed and connections cut; judged by the gateway.

    Exit status 0 only if every invariant held; 1 if one did not; 2 for bad input.
    """
    begun_s = time.monotonic()
    _check_together(context, chaos is not None)
    if leads_csv is None and (columns or triggers or region):
        raise InputError("--map, --trigger, --region", "they say how to read --leads-csv", "give --leads-csv FILE too")

    from simulate.scenario.load import load

    loaded = load(scenario, _said(context, sets or [], chaos is not None))
    _check_outputs({"--json": json_file, "--receipts": receipts, "--report": report}, parquet, loaded.inputs)

    from dispatcher.config import load_settings

    settings = load_settings(data_dir=data_dir, database_url=None)
    if chaos is not None:
        _play_chaos(context, loaded.sequences, settings)
        return
    bring = None if loaded.csv is None else _lead_file(loaded)

    from simulate.outcome import table
    from simulate.publish import command_line, publish
    from simulate.scenario.planned import plan as planned

    plan = planned(loaded, bring)
    if not quiet:
        _announce(plan, loaded.scenario.title)
    done = run(_rehearse(plan, settings, database_url, reset=reset, keep=keep, quiet=quiet, begun_s=begun_s))
    if receipts is not None:
        done.receipts.write(receipts, done.evidence.devices)
    publish(done, report, parquet, command_line(context), quiet=quiet)
    _show(done.outcome, table, json_file, quiet)


_KEYS = {
    "devices": "devices.count", "leads": "leads.count", "days": "days", "shards": "shards", "seed": "seed",
    "tick": "tick_s", "pacing": "pacing", "speed": "speed", "sender": "sender.over", "start": "start",
}  # fmt: skip
"""Key of the scenario by parameter."""


def _said(context: typer.Context, sets: list[str], chaos: bool) -> list[Any]:
    """What the command line says over the scenario: its flags, then --set; of a chaos run, only its sequences."""
    from dispatcher.intake.mapping import parse_mapping
    from simulate.scenario.overrides import Override, parse

    values = context.params
    said = []
    if values["sequences"]:
        files = [str(path.absolute()) for path in values["sequences"]]
        said.append(Override(("sequences",), files, "--sequences"))
    if chaos:
        return said
    if values["leads_csv"]:
        csv = {
            "file": str(values["leads_csv"].absolute()),
            "map": parse_mapping(values["columns"] or []),
            "region": values["region"],
            "triggers": values["triggers"] or [],
        }
        said.append(Override(("leads",), {"csv": csv}, "--leads-csv"))
    for name, key in _KEYS.items():
        if _source(context, name) != "DEFAULT":
            said.append(Override(tuple(key.split(".")), values[name], f"--{name}"))
    return [*said, *map(parse, sets)]


def _announce(plan: Any, title: str | None) -> None:
    """The seed comes first, so that every run can be run again."""
    paced = ", evenly paced" if plan.pacing is Pacing.EVEN else ""
    err.print(f"seed {plan.seed}: {plan.devices:,} devices{paced}, {plan.shards} shards, ticks of {plan.tick_s:g} s")
    if title is not None:
        err.print(title, markup=False)


def _check_outputs(files: dict[str, Path | None], parquet: Path | None, inputs: tuple[Path, ...]) -> None:
    """Refuse what cannot be written before anything is started."""
    receipts = files["--receipts"]
    if receipts is not None and receipts.suffix not in (".csv", ".parquet"):
        raise InputError("--receipts", f"{receipts.name} ends neither in .csv nor in .parquet", "rename it")
    for flag, path in files.items():
        require_writable(flag, path, *inputs)
    require_directory("--parquet", parquet)


def _check_together(context: typer.Context, chaos: bool) -> None:
    """Refuse flags that mean nothing to the kind of run that was asked for."""
    for parameter in context.command.params:
        flag = max(parameter.opts, key=len)
        foreign = parameter.name not in _WITH_CHAOS if chaos else flag.startswith("--chaos-")
        if foreign and _source(context, parameter.name or "") == "COMMANDLINE":
            without, advice = ("a chaos run", "leave it out") if chaos else ("a rehearsal", "give --chaos SEED too")
            raise InputError(flag, f"it means nothing to {without}", advice)


def _source(context: typer.Context, name: str) -> str:
    """Where a parameter's value comes from; by name, since typer carries a click of its own."""
    source = context.get_parameter_source(name)
    return "DEFAULT" if source is None else source.name


def _show(outcome: Any, table: Callable[[Any], Any], json_file: Path | None, quiet: bool) -> None:
    """Write and print what came out; exit status 1 unless it is good."""
    if json_file is not None:
        json_file.write_text(json.dumps(outcome.as_json(), indent=2) + "\n", encoding="utf-8")
    if not quiet:
        out.print(table(outcome))
    if not outcome.good:
        raise typer.Exit(1)


def _play_chaos(context: typer.Context, sequences: list[Any], settings: Any) -> None:
    """Run a storm instead of a rehearsal, and show what came out."""
    from simulate.chaos.faults import CUTS, TROUBLES
    from simulate.chaos.outcome import table
    from simulate.chaos.plan import ChaosPlan

    given = context.params
    sizes = {name: given[name] for name in ("devices", "leads", "shards") if _source(context, name) != "DEFAULT"}
    only = tuple(given["chaos_only"] or ())
    known = [fault.name for fault in (*CUTS, *TROUBLES)]
    for name in only:
        if name not in known:
            raise InputError("--chaos-only", f"there is no fault {name!r}", f"known: {', '.join(known)}")
    plan = ChaosPlan(
        sequences,
        given["chaos"],
        strikes=given["chaos_strikes"],
        only=only,
        idempotent=given["chaos_idempotent"],
        **sizes,
    )
    _show(_storm(plan, settings, keep=given["keep"], quiet=given["quiet"]), table, given["json_file"], given["quiet"])


def _storm(plan: Any, settings: Any, *, keep: bool, quiet: bool) -> Any:
    """A chaos run's outcome."""
    from actors.screen import Screen
    from simulate.chaos.run import run_chaos

    with Screen(quiet, _SCREEN_S) as screen:
        return run(run_chaos(plan, settings.data_dir, keep=keep, screen=screen))


async def _rehearse(
    plan: Any, settings: Any, database_url: str | None, *, reset: bool, keep: bool, quiet: bool, begun_s: float
) -> Any:
    """Start what a rehearsal needs, rehearse, and end it again."""
    from actors.cluster import joined_ray
    from simulate.rehearsal import rehearse
    from simulate.scratch import scratch_server
    from simulate.watcher import Screen, Watcher

    async with AsyncExitStack() as stack:
        watcher = Watcher() if quiet else stack.enter_context(Screen(plan.start))
        url, pid = database_url, None
        if url is None:
            watcher.phase("starting PostgreSQL")
            server = stack.enter_context(scratch_server(settings.data_dir, keep=keep))
            url, pid, reset = server.url(), server.pid, True
        else:
            await _check_database(url, reset)
        watcher.phase("starting Ray")
        stack.enter_context(joined_ray(settings.ray_address))
        return await rehearse(plan, settings, url, reset=reset, server_pid=pid, watcher=watcher, begun_s=begun_s)


async def _check_database(url: str, reset: bool) -> None:
    """Refuse a database before anything is started: Ray takes seconds."""
    from dispatcher.store.connect import connect
    from dispatcher.store.stamp import check_rehearsal

    connection = await connect(url)
    try:
        await check_rehearsal(connection, reset)
    finally:
        await connection.close()


def _lead_file(loaded: Any) -> Any:
    """What brings the leads of a file."""
    from dispatcher.intake.csv_file import CsvFile
    from dispatcher.intake.leads import Counts, LeadImport

    async def bring(connection: Any) -> Counts:
        with CsvFile(loaded.csv) as opened:
            reader = loaded.lead_reader(opened)
            return await LeadImport(connection, reader, on_reject=lambda *_: None).run(opened)

    return bring
