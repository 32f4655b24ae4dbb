"""What must hold before the engine may run on a database, and what its operator should know."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg

from dispatcher.config import Settings
from dispatcher.core.hosts import GatewayHosts
from dispatcher.errors import InputError, NotMigratedError, RefusedError, StoreError
from dispatcher.store.connect import connect, store_errors
from dispatcher.store.migrate import migrate, status
from dispatcher.store.recovery import check_lineage
from dispatcher.store.stamp import read_kind, require_live, stamp
from dispatcher.store.statements import statements

REAL_HOUR_S = 3600.0
_LOOK_S = 5.0
_AWAY = (StoreError, asyncpg.PostgresError, asyncpg.InterfaceError)


@dataclass(frozen=True, slots=True)
class Devices:
    """The devices a run starts with."""

    devices: int
    gateways: int
    """Different gateway addresses."""
    without_gateway: int
    warning: str | None = None
    """What the database does not tell of itself."""

    @property
    def remarks(self) -> list[str]:
        """What needs attention, a line each."""
        found = [] if self.warning is None else [self.warning]
        if not self.devices:
            found += ["there are no devices yet: nothing can be sent - add some with: dripline devices add"]
        elif self.without_gateway:
            found += [
                f"{self.without_gateway:,} of {self.devices:,} devices have no gateway_url: they send nothing -"
                " set it with: dripline devices set"
            ]
        return found


async def check_database(url: str, settings: Settings, *, embedded: bool) -> Devices:
    """Make sure that the engine may run here, and stamp the database live with this length of an hour.

    Args:
        embedded: our own server, whose schema is brought up to date instead of refused.

    Raises:
        InputError: the schema is not up to date.
        RefusedError: the database is a rehearsal or not the one it was, or hours are short and a gateway is real.
        StoreError: it cannot be reached.
    """
    connection = await connect(url, application_name="dripline run")
    try:
        with store_errors(url):
            if embedded and await read_kind(connection) != "rehearsal":
                await migrate(connection)
            elif any(each.applied_at is None for each in await status(connection)):
                raise NotMigratedError
            await require_live(connection)
            warning = await check_lineage(connection, settings.data_dir)
            devices = await read_devices(connection, settings.hour_s, GatewayHosts(settings.gateway_hosts))
            await stamp(connection, "live", hour_s=settings.hour_s)
            return replace(devices, warning=warning)
    finally:
        await connection.close(timeout=5)


@asynccontextmanager
async def watched(url: str, data_dir: Path, stop: asyncio.Event, say: Callable[[str], None]) -> AsyncIterator[None]:
    """Look every 5 s whether this still is the same database: one that is restored or promoted ends the engine.

    Args:
        stop: set when it is another one.
        say: shows a person one line.

    Raises:
        RefusedError: at the end, if it had to end because of that.
    """
    task = asyncio.create_task(_watch(url, data_dir, stop, say))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})
    if not task.cancelled():
        raise task.result()
    with contextlib.suppress(*_AWAY):
        await _look(url, data_dir)


async def _watch(url: str, data_dir: Path, stop: asyncio.Event, say: Callable[[str], None]) -> InputError:
    while True:
        await asyncio.sleep(_LOOK_S)
        try:
            await _look(url, data_dir)
        except InputError as error:
            say(f"draining: {error.subject}: {error.problem}")
            stop.set()
            return error
        except _AWAY:
            continue  # the engine waits for the database too, and says so


async def _look(url: str, data_dir: Path) -> None:
    connection = await connect(url, application_name="dripline run")
    try:
        with store_errors(url):
            await check_lineage(connection, data_dir)
    finally:
        await connection.close(timeout=5)


async def read_devices(connection: asyncpg.Connection, hour_s: float, hosts: GatewayHosts | None = None) -> Devices:
    """Count the devices.

    Args:
        hosts: where gateways may stand; None: not asked.

    Raises:
        RefusedError: hours are short, and a gateway is not on the loopback: real limits would be overrun. Or an
            address that is written out is none that requests may go to; names are resolved when they are used.
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
    for gateway_url in sorted(urls):
        address = _address(gateway_url)
        if hosts is not None and address is not None and not hosts.permits(*address):
            problem = f"gateway {gateway_url} is at an address that is not public, or not among those allowed"
            raise RefusedError("gateway_hosts", problem, f'to allow it, set gateway_hosts = "{address[1]}"')
    count = sum(row["devices"] for row in rows)
    return Devices(count, len(urls), sum(row["devices"] for row in rows if not row["gateway_url"]))


def _on_loopback(gateway_url: str) -> bool:
    address = _address(gateway_url)
    return address is not None and ip_address(address[1]).is_loopback


def _address(gateway_url: str) -> tuple[str, str] | None:
    """Host and address of a gateway whose address is written out; localhost counts as one."""
    try:
        host = urlsplit(gateway_url).hostname or ""
        return (host, "127.0.0.1") if host == "localhost" else (host, str(ip_address(host)))
    except ValueError:
        return None
