"""One embedded PostgreSQL for the whole run; every test that asks gets a fresh, migrated database."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import asyncpg
import pytest

from dispatcher.cli import main as command_line
from dispatcher.store.connect import connect
from dispatcher.store.embedded import EmbeddedServer
from dispatcher.store.migrate import migrate

TEMPLATE = "dripline_template"
MEMORY = Path("/dev/shm")
ROOM_BYTES = 4 << 30


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests go first: what waits for clocks and processes must not be left for the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def server() -> Iterator[EmbeddedServer]:
    """A running server; in memory where there is room, since creating a database is forty times faster there."""
    data_dir = _new_directory()
    embedded = EmbeddedServer(data_dir, shared_buffers_mb=64)
    try:
        embedded.start()
        asyncio.run(_execute(embedded.url("postgres"), "ALTER SYSTEM SET max_wal_size = '512MB'"))
        asyncio.run(_execute(embedded.url("postgres"), "SELECT pg_reload_conf()"))
        yield embedded
    finally:
        embedded.stop()
        shutil.rmtree(data_dir)


@pytest.fixture
def place() -> Iterator[Path]:
    """An empty directory for a server of its own: under a short path, and in memory where there is room."""
    directory = _new_directory()
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="session")
def new_database(server: EmbeddedServer) -> Callable[..., str]:
    """Creates a database, migrated unless ``template`` says otherwise, and returns its URL."""
    numbers = itertools.count(1)

    def create(template: str = TEMPLATE) -> str:
        name = f"test_{next(numbers)}"
        asyncio.run(_execute(server.url("postgres"), f"CREATE DATABASE {name} TEMPLATE {template}"))
        return server.url(name)

    asyncio.run(_execute(server.url("postgres"), f"CREATE DATABASE {TEMPLATE}"))
    asyncio.run(_migrate(server.url(TEMPLATE)))
    return create


@pytest.fixture
def database_url(new_database: Callable[..., str], server: EmbeddedServer) -> Iterator[str]:
    """A migrated database without a stamp and without data."""
    url = new_database()
    yield url
    asyncio.run(_drop(server, url))


@pytest.fixture
def empty_url(new_database: Callable[..., str], server: EmbeddedServer) -> Iterator[str]:
    """A database with nothing in it, not even our tables."""
    url = new_database("template1")
    yield url
    asyncio.run(_drop(server, url))


@pytest.fixture
async def connection(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection to ``database_url``."""
    opened = await connect(database_url)
    yield opened
    await opened.close()


def _new_directory() -> Path:
    roomy = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free >= ROOM_BYTES
    directory = Path(tempfile.mkdtemp(prefix="dl-", dir=MEMORY if roomy else None))
    directory.chmod(0o711)
    return directory


async def _execute(url: str, sql: str) -> None:
    opened = await connect(url)
    try:
        await opened.execute(sql)
    finally:
        await opened.close()


async def _migrate(url: str) -> None:
    opened = await connect(url)
    try:
        await migrate(opened)
    finally:
        await opened.close()


async def _drop(server: EmbeddedServer, url: str) -> None:
    name = url.split("/")[3].split("?")[0]
    await _execute(server.url("postgres"), f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def dripline(database_url, monkeypatch, capsys):
    """Runs a command on the test's database: exit status, stdout, stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dripline", *map(str, arguments), "--database-url", database_url])
        with pytest.raises(SystemExit) as ended:
            command_line.main()
        return (ended.value.code or 0, *capsys.readouterr())

    return run
