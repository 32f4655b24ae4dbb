"""What must hold before the engine may run on a database, and what its operator should know."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

import asyncpg

from dispatcher.config import Settings
from dispatcher.errors import InputError, RefusedError
from dispatcher.store.connect import connect, store_errors
from dispatcher.store.migrate import migrate, status
from dispatcher.store.stamp import read_kind, require_live, stamp
from dispatcher.store.statements import statements

REAL_HOUR_S = 3600.0


@dataclass(frozen=True, slots=True)
class Devices:
    """The devices a run starts with."""

    devices: int
    gateways: int
    """Different gateway addresses."""
    without_gateway: int

    @property
    def remarks(self) -> list[str]:
        """What needs attention, a line each."""
        if not self.devices:
            return ["there are no devices yet: nothing can be sent - add some with: dripline devices add"]
        if self.without_gateway:
            return [
                f"{self.without_gateway:,} of {self.devices:,} devices have no gateway_url: they send nothing -"
                " set it with: dripline devices set"
            ]
        return []


async def check_database(url: str, settings: Settings, *, embedded: bool) -> Devices:
    """Make sure that the engine may run here, and stamp the database live with this length of an hour.

    Args:
        embedded: our own server, whose schema is brought up to date instead of refused.

    Raises:
        InputError: the schema is not up to date.
        RefusedError: the database is a rehearsal, or hours are short and a gateway is a real one.
        StoreError: it cannot be reached.
    """
    connection = await connect(url, application_name="dripline run")
    try:
        with store_errors(url):
            if embedded and await read_kind(connection) != "rehearsal":
                await migrate(connection)
            elif any(each.applied_at is None for each in await status(connection)):
                raise InputError("database", "it is not migrated", "run: dripline db migrate")
            await require_live(connection)
            devices = await read_devices(connection, settings.hour_s)
            await stamp(connection, "live", hour_s=settings.hour_s)
            return devices
    finally:
        await connection.close(timeout=5)


async def read_devices(connection: asyncpg.Connection, hour_s: float) -> Devices:
    """Count the devices.

    Raises:
        RefusedError: hours are short, and a gateway is not on the loopback: real limits would be overrun.
    """
    rows = await connection.fetch(statements("status")["gateways"])
    urls = {row["gateway_url"] for row in rows if row["gateway_url"]}
    if hour_s != REAL_HOUR_S:
        for gateway_url in sorted(urls):
            if not _on_loopback(gateway_url):
                raise RefusedError(
                    f"hour_s={hour_s:g}",
                    f"gateway {gateway_url} is not on the loopback: its devices' real limits would be overrun",
                    "leave hour_s at 3600 for real gateways",
                )
    count = sum(row["devices"] for row in rows)
    return Devices(count, len(urls), sum(row["devices"] for row in rows if not row["gateway_url"]))


def _on_loopback(gateway_url: str) -> bool:
    try:
        host = urlsplit(gateway_url).hostname or ""
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
