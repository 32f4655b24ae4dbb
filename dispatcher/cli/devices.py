"""``dripline devices``: the numbers that messages leave from."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any

import typer

from dispatcher.cli.common import By, DatabaseUrl, DataDir, actor, database, err, out, progress, run, show_table
from dispatcher.cli.pause import Reason
from dispatcher.core.fleet import GatewayKind
from dispatcher.intake.csv_file import CsvFile
from dispatcher.intake.devices import (
    Device,
    Health,
    Remaining,
    Written,
    add_device,
    change_device,
    device,
    device_group,
    drain_device,
    import_devices,
    list_devices,
    list_groups,
    retire_device,
    write_group,
)
from dispatcher.intake.pauses import pause_device

_LOOK_S = 1.0

app = typer.Typer(
    help="List, add, import, change, pause, drain and retire devices.",
    no_args_is_help=True,
    epilog="Example: dripline devices list",
)

Name = Annotated[str, typer.Option("--name", help="Unique.")]
Phone = Annotated[str | None, typer.Option("--phone", help="Its number.")]
GatewayUrl = Annotated[str | None, typer.Option("--gateway-url", help="http(s) address of its gateway.")]
GatewayToken = Annotated[
    str | None, typer.Option("--gateway-token", help="Bearer token; rather by DRIPLINE_GATEWAY_TOKEN.")
]
Idempotent = Annotated[
    bool | None,
    typer.Option("--idempotent/--not-idempotent", help="Whether the gateway honours idempotency keys."),
]
Kind = Annotated[
    GatewayKind | None,
    typer.Option("--gateway-kind", help="What the gateway speaks.", show_default="http"),
]
PhoneNumberId = Annotated[
    str | None, typer.Option("--gateway-phone-number-id", help="What the WhatsApp Cloud API calls the number.")
]
Account = Annotated[
    str | None, typer.Option("--gateway-account", help="Devices of one account rest together when it is throttled.")
]
PerHour = Annotated[int | None, typer.Option("--quota-per-hour", min=0, show_default="80")]
PerDay = Annotated[int | None, typer.Option("--quota-per-day", min=0, show_default="800")]
InFlight = Annotated[int | None, typer.Option("--in-flight-max", min=0, show_default="50")]
Group = Annotated[
    str | None, typer.Option("--group", help="Whose limit it shares; - for none. See: dripline devices group.")
]
RampPerDay = Annotated[
    int | None, typer.Option("--ramp-per-day", min=0, help="What a new device may send a day at first; 0: no ramp.")
]
RampGrowth = Annotated[
    float | None, typer.Option("--ramp-growth", show_default="1.5", help="How much more every day, up to its quota.")
]
Cause = Annotated[str | None, typer.Option("--cause", help="Why.")]
Named = Annotated[str, typer.Argument(metavar="NAME")]
Gap = Annotated[float | None, typer.Option("--min-gap-s", min=0, show_default="5", help="Seconds apart.")]


@app.command("list", epilog="Example: dripline devices list")
def list_(database_url: DatabaseUrl = None, data_dir: DataDir = None) -> None:
    """List the devices with their health, what they have sent, and their quotas (of a ramp: today's in brackets)."""

    async def body() -> list[dict[str, Any]]:
        async with database(database_url, data_dir) as connection:
            return await list_devices(connection)

    rows = [
        (
            row["name"],
            row["phone"] or "-",
            row["health"] + (f" ({row['health_cause']})" if row["health_cause"] else "") + _paused(row),
            f"{row['messages_hour']}/{row['quota_per_hour']}",
            f"{row['messages_today']}/{row['quota_per_day']}"
            + (f" ({row['ramp_per_day']})" if row["ramp_per_day"] else ""),
            f"{row['current_processing']}/{row['in_flight_max']}",
            f"{row['min_gap_s']:g}",
            row["gateway_kind"],
            row["gateway_url"] or "-",
            row["group_name"] or "-",
        )
        for row in run(body())
    ]
    show_table(("name", "phone", "health", "hour", "day", "in flight", "gap s", "speaks", "gateway", "group"), rows)


@app.command(epilog="Example: dripline devices groups")
def groups(database_url: DatabaseUrl = None, data_dir: DataDir = None) -> None:
    """List the groups of devices with what all of theirs have sent, and their limits."""

    async def body() -> list[dict[str, Any]]:
        async with database(database_url, data_dir) as connection:
            return await list_groups(connection)

    rows = [
        (
            row["name"],
            row["devices"],
            f"{row['messages_hour']}/{_limit(row['quota_per_hour'])}",
            f"{row['messages_today']}/{_limit(row['quota_per_day'])}",
        )
        for row in run(body())
    ]
    show_table(("name", "devices", "hour", "day"), rows)


def _limit(quota: int | None) -> int | str:
    return "-" if quota is None else quota


@app.command(epilog="Example: dripline devices group portfolio-1 --per-hour 2000 --per-day 10000")
def group(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    quota_per_hour: Annotated[
        int | None, typer.Option("--per-hour", min=0, help="In any rolling hour.", show_default="no limit")
    ] = None,
    quota_per_day: Annotated[
        int | None, typer.Option("--per-day", min=0, help="In any rolling 24 hours.", show_default="no limit")
    ] = None,
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
) -> None:
    """Say what the devices of a group may send together, above their own limits. What is left out is no limit.

    Devices join it with --group, or by a file's column. A lower limit binds what is sent from now on.
    """
    given = device_group(name, quota_per_hour, quota_per_day)

    async def body() -> bool | None:
        async with database(database_url, data_dir) as connection:
            return await write_group(connection, given)

    became = run(body())
    out.out(f"{given.name}: {'unchanged' if became is None else 'created' if became else 'changed'}")


@app.command(epilog="Example: dripline devices add --name d-1 --phone 60123456789 --gateway-url https://gw.example/d-1")
def add(
    context: typer.Context,
    name: Name,
    phone: Phone = None,
    gateway_url: GatewayUrl = None,
    gateway_token: GatewayToken = None,
    gateway_idempotent: Idempotent = None,
    gateway_kind: Kind = None,
    gateway_phone_number_id: PhoneNumberId = None,
    gateway_account: Account = None,
    quota_per_hour: PerHour = None,
    quota_per_day: PerDay = None,
    in_flight_max: InFlight = None,
    min_gap_s: Gap = None,
    ramp_per_day: RampPerDay = None,
    ramp_growth: RampGrowth = None,
    group: Group = None,
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
) -> None:
    """Add one device."""
    given = _given(context)

    async def body() -> None:
        async with database(database_url, data_dir) as connection:
            await add_device(connection, given)

    run(body())
    out.out(f"added {given.name}")


@app.command("import", epilog="Example: dripline devices import devices.csv")
def import_(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help=f"CSV; its columns are called {', '.join(Device.model_fields)}."),
    ],
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
) -> None:
    """Add the devices of a CSV file, or change those of the same name; empty cells keep what is there."""

    async def body() -> Written:
        with CsvFile(file) as opened:
            async with database(database_url, data_dir) as connection:
                return await import_devices(connection, opened)

    written = run(body())
    for line, problem in written.rejected:
        err.out(f"{file}, line {line}: {problem}")
    out.out(
        f"{written.rows} rows: {written.created} created, {written.updated} updated, "
        f"{written.unchanged} unchanged, {len(written.rejected)} rejected"
    )


@app.command("set", epilog="Example: dripline devices set d-1 --health draining --cause 'SIM change'")
def set_(
    context: typer.Context,
    name: Named,
    phone: Phone = None,
    gateway_url: GatewayUrl = None,
    gateway_token: GatewayToken = None,
    gateway_idempotent: Idempotent = None,
    gateway_kind: Kind = None,
    gateway_phone_number_id: PhoneNumberId = None,
    gateway_account: Account = None,
    quota_per_hour: PerHour = None,
    quota_per_day: PerDay = None,
    in_flight_max: InFlight = None,
    min_gap_s: Gap = None,
    ramp_per_day: RampPerDay = None,
    ramp_growth: RampGrowth = None,
    group: Group = None,
    health: Annotated[Health | None, typer.Option("--health")] = None,
    health_cause: Annotated[str | None, typer.Option("--cause", help="Why, with --health.")] = None,
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
) -> None:
    """Change a device. A lower quota binds what is sent from now on."""
    given = _given(context)

    async def body() -> bool:
        async with database(database_url, data_dir) as connection:
            return await change_device(connection, given)

    out.out(f"{given.name}: {'changed' if run(body()) else 'unchanged'}")


@app.command(epilog="Example: dripline devices drain d-1 --cause 'SIM change'")
def drain(name: Named, health_cause: Cause = None, database_url: DatabaseUrl = None, data_dir: DataDir = None) -> None:
    """Let nothing new leave from a device; what waits for it moves to others. Back: devices set --health available."""

    async def body() -> Remaining:
        async with database(database_url, data_dir) as connection:
            return await drain_device(connection, name, health_cause)

    out.out(f"{name}: draining, {_to_leave(run(body()))}")


@app.command(epilog="Example: dripline devices retire d-1 --cause 'number given back' --wait")
def retire(
    name: Named,
    health_cause: Cause = None,
    wait: Annotated[bool, typer.Option("--wait", help="Until nothing is left on it: the engine must run.")] = False,
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
) -> None:
    """Drain a device and, once nothing is left on it, close it for good; what it has sent stays on record.

    Without --wait a device that is not empty yet is only drained: say it again later.
    """

    async def body() -> Remaining | None:
        async with database(database_url, data_dir) as connection:
            left = await retire_device(connection, name, health_cause)
            if left is None or not wait:
                return left
            with progress(left.live, "have left") as show:
                total = left.live
                while left is not None:
                    await asyncio.sleep(_LOOK_S)
                    left = await retire_device(connection, name, health_cause)
                    show(total - (left.live if left is not None else 0))
            return None

    left = run(body())
    if left is None:
        out.out(f"{name}: retired")
        return
    out.out(f"{name}: draining, {_to_leave(left)}; then say it again")


def _to_leave(left: Remaining) -> str:
    doubt = f" and {left.in_doubt:,} in doubt (dripline in-doubt list)" if left.in_doubt else ""
    return f"{left.active:,} enrolments{doubt} still call it home"


@app.command(epilog="Example: dripline devices pause d-1 --reason 'owner is travelling'")
def pause(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    reason: Reason = None,
    by: By = None,
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
) -> None:
    """Stop a device's hand-overs; what it is home to waits for it. To move that elsewhere, set --health draining."""
    _switch(name, True, reason, by, database_url, data_dir)


@app.command(epilog="Example: dripline devices resume d-1")
def resume(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    by: By = None,
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
) -> None:
    """Go on with a paused device; what is overdue is spread over its quota."""
    _switch(name, False, None, by, database_url, data_dir)


def _switch(
    name: str, paused: bool, reason: str | None, by: str | None, database_url: DatabaseUrl, data_dir: DataDir
) -> None:
    async def body() -> bool:
        async with database(database_url, data_dir) as connection:
            return await pause_device(connection, name, paused, reason, actor=actor(by))

    changed = run(body())
    out.out(f"{name}: {'' if changed else 'already '}{'paused' if paused else 'not paused'}")


def _paused(row: dict[str, Any]) -> str:
    if not row["paused"]:
        return ""
    return ", paused" + (f" ({row['pause_reason']})" if row["pause_reason"] else "")


def _given(context: typer.Context) -> Device:
    """The device that the command's parameters describe; they are called as its columns."""
    values = {name: value for name, value in context.params.items() if name in Device.model_fields}
    return device(f"device {values['name']!r}", values)
