"""``dripline doctor``: one line a check, ``ok``, ``warn`` or ``fail``; exit status 1 when one fails."""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal

import asyncpg
import typer

from dispatcher.cli.common import DatabaseUrl, DataDir, database, out, run
from dispatcher.config import Settings, load_settings
from dispatcher.errors import DriplineError
from dispatcher.store.migrate import status
from dispatcher.store.stamp import read_kind

GIB: Final = 1 << 30
LEVELS: Final = {"ok": "green", "warn": "yellow", "fail": "red"}
DURABLE: Final = ("fsync", "synchronous_commit", "full_page_writes")
CONNECTIONS_WANTED: Final = 50

app = typer.Typer(help="Check this machine and the database.")


@dataclass(frozen=True, slots=True)
class Check:
    """What one check found."""

    level: Literal["ok", "warn", "fail"]
    subject: str
    text: str


@app.command(epilog="Example: dripline doctor --database-url postgresql://dripline@db.example/dripline")
def doctor(database_url: DatabaseUrl = None, data_dir: DataDir = None) -> None:
    """Check Python, Ray, disk and shared memory, then the database and what is in it."""

    async def body() -> bool:
        settings = load_settings(database_url=database_url, data_dir=data_dir)
        failed = False
        for check in check_machine(settings):
            failed |= _show(check)
        async for check in check_database(settings):
            failed |= _show(check)
        return failed

    if run(body()):
        raise typer.Exit(1)


def check_machine(settings: Settings) -> Iterator[Check]:
    """Everything but the database."""
    python = ".".join(map(str, sys.version_info[:3]))
    yield Check("ok" if sys.version_info >= (3, 11) else "fail", "python", python)
    yield _check_ray()
    place = next(
        path for path in (settings.data_dir.absolute(), *settings.data_dir.absolute().parents) if path.exists()
    )
    yield _check_room("disk", place, warn_below=5 * GIB, fail_below=GIB)
    memory = Path("/dev/shm")  # noqa: S108 - where Ray keeps its objects on Linux
    if memory.is_dir():
        yield _check_room("shared memory", memory, warn_below=GIB, fail_below=GIB // 8)


async def check_database(settings: Settings) -> AsyncIterator[Check]:
    """The database, as far as it can be reached."""
    if settings.database_url is None and not (settings.data_dir / "postgres").exists():
        yield Check("warn", "postgresql", f"no database yet: {settings.data_dir} is filled at first use")
        return
    try:
        async with database(settings.database_url, settings.data_dir) as connection:
            async for check in _check_connected(connection, settings):
                yield check
    except DriplineError as error:
        yield Check("fail", "postgresql", str(error))


async def _check_connected(connection: asyncpg.Connection, settings: Settings) -> AsyncIterator[Check]:
    yield Check("ok", "postgresql", await connection.fetchval("SHOW server_version"))
    lossy = [name for name in DURABLE if await connection.fetchval("SELECT current_setting($1)", name) == "off"]
    if lossy:
        yield Check("fail", "durability", f"{', '.join(lossy)} is off: a crash would send messages twice")
    else:
        yield Check("ok", "durability", f"{', '.join(DURABLE)} are on")
    connections = int(await connection.fetchval("SHOW max_connections"))
    enough = connections >= CONNECTIONS_WANTED
    yield Check("ok" if enough else "warn", "max_connections", f"{connections} ({CONNECTIONS_WANTED} wanted)")
    yield await _check_clock(connection, settings)
    yield await _check_migrations(connection)
    kind = await read_kind(connection)
    yield Check("ok" if kind else "warn", "stamp", kind or "none yet: the first run or rehearsal decides")


async def _check_migrations(connection: asyncpg.Connection) -> Check:
    try:
        found = await status(connection)
    except DriplineError as error:
        return Check("fail", "migrations", str(error))
    missing = [each.name for each in found if each.applied_at is None]
    if missing:
        return Check("warn", "migrations", f"{len(missing)} of {len(found)} missing - run: dripline db migrate")
    return Check("ok", "migrations", f"all {len(found)} applied")


async def _check_clock(connection: asyncpg.Connection, settings: Settings) -> Check:
    before = datetime.now(UTC)
    theirs: datetime = await connection.fetchval("SELECT clock_timestamp()")
    after = datetime.now(UTC)
    apart_s = max((before - theirs).total_seconds(), (theirs - after).total_seconds(), 0.0)
    level: Literal["ok", "warn", "fail"] = "ok"
    if apart_s > settings.skew_s:
        level = "fail"
    elif apart_s > settings.skew_s / 5:
        level = "warn"
    return Check(level, "clock", f"{apart_s:.1f} s from the database's (skew_s is {settings.skew_s:g})")


def _check_ray() -> Check:
    try:
        ray = importlib.import_module("ray")
    except ImportError as error:
        return Check("fail", "ray", str(error))
    return Check("ok", "ray", str(ray.__version__))


def _check_room(subject: str, place: Path, *, warn_below: int, fail_below: int) -> Check:
    free = shutil.disk_usage(place).free
    level: Literal["ok", "warn", "fail"] = "ok" if free >= warn_below else "warn" if free >= fail_below else "fail"
    return Check(level, subject, f"{free / GIB:.1f} GiB free at {place}")


def _show(check: Check) -> bool:
    out.print(f"[{LEVELS[check.level]}]{check.level:4}[/]", end=" ")
    out.out(f"{check.subject:15} {check.text}")
    return check.level == "fail"
