"""``dripline status``: the seed's monitoring at a glance."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Annotated, Any

import asyncpg
import typer

from dispatcher.cli.common import DatabaseUrl, DataDir, database, out, run, show_table
from dispatcher.intake.pauses import list_paused
from dispatcher.intake.unmatched import find_unmatched
from dispatcher.store.statements import statements

app = typer.Typer(help="The seed's monitoring at a glance.")

_MOST_LOADED = 5


@dataclass(frozen=True, slots=True)
class Standing:
    """How things stand; lists of columns by name, as the statements return them."""

    kind: str | None
    """``live`` or ``rehearsal``; None before the first run."""
    hour_s: float
    now: datetime
    """Business time."""
    leader: str | None
    """Who leads, or led last."""
    leader_alive: bool
    shards_alive: int
    sequences: list[dict[str, Any]]
    due: int
    paused_steps: list[dict[str, Any]]
    """Steps that wait for somebody to put right what a gateway refused."""
    paused: list[dict[str, Any]]
    """The fleet, sequences, devices, and leads together: since when, until when, and why."""
    skipped: int
    """Steps passed over because they were too late."""
    shifted: int
    """Steps moved to a later day because they were too late."""
    leased: int
    stuck: int
    """Leased for more than the seed's 5 minutes."""
    held: int
    in_doubt: int
    retrying: int
    most_retries: int
    devices: list[dict[str, Any]]
    """By health and cause."""
    most_loaded: list[dict[str, Any]]
    queued: int
    """Lead changes that wait for the enroller."""
    searches: list[dict[str, Any]]
    """Entries whose leads are still being looked for."""
    unmatched_triggers: int
    unmatched_leads: int
    unmatched_replies: int
    """Replies of phones that no lead has."""
    archived: list[dict[str, Any]]
    """Enrolments and attempts that have left the database, by kind."""


@app.command(name="status", epilog="Example: dripline status --json")
def status(
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
) -> None:
    """Show who leads, the sequences, what is due, leased, stuck, held and in doubt, the devices, and the intake."""

    async def body() -> Standing:
        async with database(database_url, data_dir) as connection:
            return await read_standing(connection)

    standing = run(body())
    if as_json:
        typer.echo(json.dumps(asdict(standing), indent=2, default=str))
    else:
        show(standing)


async def read_standing(connection: asyncpg.Connection) -> Standing:
    """How things stand. Every part is read by itself: no snapshot is held for long."""
    sql = statements("status")
    stamp = await connection.fetchrow(sql["stamp"])
    leader = await connection.fetchrow(sql["leader"])
    sequences = _rows(await connection.fetch(sql["enrolments"]))
    leases = await connection.fetchrow(sql["leases"])
    retries = await connection.fetchrow(sql["retries"])
    late = await connection.fetchrow(sql["late_steps"])
    unmatched = await find_unmatched(connection)
    assert stamp is not None
    assert leases is not None
    assert retries is not None
    assert late is not None
    return Standing(
        kind=stamp["kind"],
        hour_s=stamp["hour_s"],
        now=stamp["now"],
        leader=leader["holder"] if leader else None,
        leader_alive=bool(leader and leader["alive"]),
        shards_alive=await connection.fetchval(sql["shards_alive"]),
        sequences=sequences,
        due=sum(row["due"] for row in sequences),
        paused_steps=_rows(await connection.fetch(sql["paused_steps"])),
        paused=await list_paused(connection),
        skipped=late["skipped"],
        shifted=late["shifted"],
        leased=leases["leased"],
        stuck=leases["stuck"],
        held=sum(row["held"] for row in sequences),
        in_doubt=sum(row["in_doubt"] for row in sequences),
        retrying=retries["retrying"],
        most_retries=retries["most"] or 0,
        devices=_rows(await connection.fetch(sql["health"])),
        most_loaded=_rows(await connection.fetch(sql["most_loaded"], _MOST_LOADED)),
        queued=await connection.fetchval(sql["queued"]),
        searches=_rows(await connection.fetch(sql["searches"])),
        unmatched_triggers=len({each.trigger for each in unmatched}),
        unmatched_leads=sum(each.leads for each in unmatched),
        unmatched_replies=await connection.fetchval(sql["unmatched_replies"]),
        archived=_rows(await connection.fetch(statements("archive")["archived"])),
    )


def show(standing: Standing) -> None:
    """One screen in a terminal, plain lines elsewhere."""
    kind = standing.kind or "not stamped yet: the first run or rehearsal decides"
    hour = "" if standing.hour_s == 3600 else f", an hour lasts {standing.hour_s:g} s"
    _line("database", f"{kind}{hour}; it is {standing.now:%Y-%m-%d %H:%M:%S %Z} there")
    _line("engine", _engine(standing), "" if standing.leader_alive else "yellow")
    _heading("sequences")
    show_table(
        ("sequence", "state", "total", "active", "completed", "failed", "stopped", "in doubt", "due now", "next due"),
        [_sequence_row(row, standing.now) for row in standing.sequences],
    )
    for row in standing.paused_steps:
        text = f"step {row['trigger']} ({row['sequence']}): {row['cause']}"
        _line("paused", f"{text} - put it right, then: dripline sequences resume-step", "yellow")
    _heading("sending")
    for row in standing.paused:
        _line("paused", _paused(row, standing.now), "yellow")
    _line("due now", f"{standing.due:,}")
    _line("leased", f"{standing.leased:,}")
    _line("stuck", f"{standing.stuck:,} leased for more than 5 minutes", "red" if standing.stuck else "")
    _line("held", f"{standing.held:,} of paused or broken sequences, or of paused leads")
    _line("in doubt", f"{standing.in_doubt:,} sent or not: unknown", "yellow" if standing.in_doubt else "")
    if standing.skipped or standing.shifted:
        _line("too late", f"{standing.skipped:,} steps skipped, {standing.shifted:,} moved to a later day")
    worst = f", {standing.most_retries} tries at most" if standing.retrying else ""
    _line("retrying", f"{standing.retrying:,}{worst}", "yellow" if standing.retrying else "")
    _heading("devices")
    _line("health", ", ".join(_health(row) for row in standing.devices) or "there are none")
    show_table(
        ("most loaded", "health", "this hour", "today", "in progress"),
        [
            (
                row["name"],
                row["health"],
                f"{row['messages_hour']} of {row['quota_per_hour']}",
                f"{row['messages_today']} of {row['quota_per_day']}",
                f"{row['current_processing']} of {row['in_flight_max']}",
            )
            for row in standing.most_loaded
        ],
    )
    _heading("leads")
    _line("queued", f"{standing.queued:,} changes wait for enrolment")
    for row in standing.searches:
        share = row["scanned_to"] / row["last"] if row["last"] else 1.0
        _line("searching", f"{share:.0%} of the leads looked through for {row['trigger']} ({row['sequence']})")
    if standing.unmatched_triggers:
        text = f"{standing.unmatched_triggers:,} triggers on {standing.unmatched_leads:,} leads enrol nobody"
        _line("unmatched", f"{text} - see: dripline leads unmatched", "yellow")
    else:
        _line("unmatched", "none: every trigger on a lead enrols it")
    if standing.unmatched_replies:
        _line("replies", f"{standing.unmatched_replies:,} came from phones that no lead has", "yellow")
    if standing.archived:
        _heading("archive")
    for row in standing.archived:
        what = "enrolments finished" if row["kind"] == "enrolments" else "attempts"
        text = f"{row['rows']:,} {what} until {row['last_at']:%Y-%m-%d}, {row['files']:,} files"
        _line("archived", f"{text}, the last ones in {row['directory']}")


def _engine(standing: Standing) -> str:
    shards = f"{standing.shards_alive} shard{'' if standing.shards_alive == 1 else 's'} alive"
    if standing.leader_alive:
        return f"{standing.leader} leads, {shards}"
    return f"nobody leads{f' ({standing.leader} was the last)' if standing.leader else ''}, {shards}"


def _sequence_row(row: dict[str, Any], now: datetime) -> tuple[object, ...]:
    state = "active" if row["is_active"] else "paused"
    if row["problem"]:
        state = f"broken: {row['problem']}"
    counts = [f"{row[name]:,}" for name in ("total", "active", "completed", "failed", "stopped", "in_doubt", "due")]
    return (row["name"], state, *counts, ahead(row["next_due"], now))


def ahead(moment: datetime | None, now: datetime) -> str:
    """When something is, seen from ``now``: ``in 3.2 h``, ``5 min ago``, ``-`` for never."""
    if moment is None:
        return "-"
    seconds = (moment - now).total_seconds()
    span = _span(abs(seconds))
    return f"in {span}" if seconds > 0 else f"{span} ago"


def _span(seconds: float) -> str:
    for size, unit in ((86_400.0, "days"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}" if seconds >= 10 * size else f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def _paused(row: dict[str, Any], now: datetime) -> str:
    names = {"fleet": "the whole fleet", "leads": f"{row['count']:,} leads"}
    what = names.get(row["what"], f"{row['what']} {row['name']}")
    since = "" if row["since"] is None else f" since {row['since']:%Y-%m-%d %H:%M:%S %Z} ({ahead(row['since'], now)})"
    until = "" if row["until"] is None else f", the first until {row['until']:%Y-%m-%d %H:%M:%S %Z}"
    return f"{what}{since}{until}{': ' + row['reason'] if row['reason'] else ''}"


def _health(row: dict[str, Any]) -> str:
    cause = f" ({row['cause']})" if row["cause"] else ""
    return f"{row['devices']:,} {row['health']}{cause}"


def _heading(text: str) -> None:
    if out.is_terminal:
        out.print(f"\n[bold]{text}[/]")


def _line(name: str, text: str, style: str = "") -> None:
    if not out.is_terminal:
        typer.echo(f"{name}\t{text}")
        return
    out.print(f"[dim]{name:10}[/] ", end="")
    out.print(text, style=style or None, markup=False)


def _rows(records: list[asyncpg.Record]) -> list[dict[str, Any]]:
    return [dict(record) for record in records]
