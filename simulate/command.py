"""``dripline simulate``: rehearse before going live."""

from __future__ import annotations

import json
import time
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from dispatcher.cli.common import DataDir, err, out, require_writable, run
from dispatcher.errors import InputError

app = typer.Typer()


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
Json = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the figures here.")]
ReceiptFile = Annotated[Path | None, typer.Option(metavar="FILE.csv|.parquet", help="Write every receipt here.")]
Keep = Annotated[bool, typer.Option("--keep", help="Leave the embedded database for inspection (dripline db url).")]


@app.command(name="simulate", epilog="Example: dripline simulate --leads 1000000 --days 4 --json run.json")
def simulate(
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
    start: Start = None,
    database_url: OwnDatabase = None,
    reset: Annotated[bool, typer.Option("--reset", help="Give up an earlier rehearsal in that database.")] = False,
    json_file: Json = None,
    receipts: ReceiptFile = None,
    keep: Keep = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Only the verdict, by the exit status.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Rehearse on real PostgreSQL and real Ray with a mock sender, in virtual time, and check every invariant.

    Exit status 0 only if every invariant held; 1 if one did not; 2 for bad input.
    """
    from simulate.examples import builtin, load_all

    begun_s = time.monotonic()
    given = load_all(sequences) if sequences else builtin()
    require_writable("--json", json_file, leads_csv, *(sequences or ()))
    require_writable("--receipts", receipts, leads_csv, *(sequences or ()))
    if receipts is not None and receipts.suffix not in (".csv", ".parquet"):
        raise InputError("--receipts", f"{receipts.name} ends neither in .csv nor in .parquet", "rename it")
    if leads_csv is None and (columns or triggers or region):
        raise InputError("--map, --trigger, --region", "they say how to read --leads-csv", "give --leads-csv FILE too")

    from dispatcher.config import load_settings
    from simulate.rehearsal import START, Plan

    settings = load_settings(data_dir=data_dir, database_url=None)
    bring = None if leads_csv is None else _lead_file(leads_csv, columns or [], triggers or [], region, given)
    begin = START if start is None else start.replace(tzinfo=UTC)
    plan = Plan(given, devices, leads, days, shards, seed, tick, begin, bring_leads=bring)
    if not quiet:
        err.print(f"seed {seed}: {devices:,} devices, {shards} shards, ticks of {tick:g} s")
    done = run(_rehearse(plan, settings, database_url, reset=reset, keep=keep, quiet=quiet, begun_s=begun_s))
    if json_file is not None:
        json_file.write_text(json.dumps(done.outcome.as_json(), indent=2) + "\n", encoding="utf-8")
    if receipts is not None:
        done.receipts.write(receipts, done.evidence.devices)
    if not quiet:
        from simulate.outcome import table

        out.print(table(done.outcome))
    if not done.outcome.good:
        raise typer.Exit(1)


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


def _lead_file(path: Path, columns: list[str], triggers: list[str], region: str | None, sequences: list[Any]) -> Any:
    """What brings the leads of a file, checked before anything is started."""
    from dispatcher.intake.csv_file import CsvFile
    from dispatcher.intake.lead_file import LeadReader
    from dispatcher.intake.leads import LeadImport
    from dispatcher.intake.mapping import parse_mapping

    mapping = parse_mapping(columns)
    entries = [step.trigger for sequence in sequences for step in sequence.steps if step.is_entry]
    tags = triggers or entries[:1]
    with CsvFile(path) as opened:
        LeadReader(opened, mapping, tags=tags, region=region)

    async def bring(connection: Any) -> int:
        with CsvFile(path) as opened:
            reader = LeadReader(opened, mapping, tags=tags, region=region)
            counts = await LeadImport(connection, reader, dry_run=False, on_reject=lambda *_: None).run(opened)
        return counts.imported

    return bring
