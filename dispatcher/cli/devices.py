"""``dripline devices``: the numbers that messages leave from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dispatcher.cli.common import DatabaseUrl, DataDir, database, err, out, run, show_table
from dispatcher.core.fleet import GatewayKind
from dispatcher.intake.csv_file import CsvFile
from dispatcher.intake.devices import (
    Device,
    Health,
    Written,
    add_device,
    change_device,
    device,
    import_devices,
    list_devices,
)

app = typer.Typer(
    help="List, add, import and change devices.",
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
Gap = Annotated[float | None, typer.Option("--min-gap-s", min=0, show_default="5", help="Seconds apart.")]


@app.command("list", epilog="Example: dripline devices list")
def list_(database_url: DatabaseUrl = None, data_dir: DataDir = None) -> None:
    """List the devices with their health, what they have sent, and their quotas."""

    async def body() -> list[dict[str, Any]]:
        async with database(database_url, data_dir) as connection:
            return await list_devices(connection)

    rows = [
        (
            row["name"],
            row["phone"] or "-",
            row["health"] + (f" ({row['health_cause']})" if row["health_cause"] else ""),
            f"{row['messages_hour']}/{row['quota_per_hour']}",
            f"{row['messages_today']}/{row['quota_per_day']}",
            f"{row['current_processing']}/{row['in_flight_max']}",
            f"{row['min_gap_s']:g}",
            row["gateway_kind"],
            row["gateway_url"] or "-",
        )
        for row in run(body())
    ]
    show_table(("name", "phone", "health", "hour", "day", "in flight", "gap s", "speaks", "gateway"), rows)


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
    name: Annotated[str, typer.Argument(metavar="NAME")],
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


def _given(context: typer.Context) -> Device:
    """The device that the command's parameters describe; they are called as its columns."""
    values = {name: value for name, value in context.params.items() if name in Device.model_fields}
    return device(f"device {values['name']!r}", values)
