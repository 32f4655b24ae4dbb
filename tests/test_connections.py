"""How the database is reached: named statements, connections and their errors, the embedded server."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Iterator
from pathlib import Path

import pytest

from dispatcher.errors import InputError, StoreError
from dispatcher.store.connect import connect, open_pool
from dispatcher.store.embedded import EmbeddedServer
from dispatcher.store.statements import parse


def test_statements_go_by_name():
    text = "-- What this file is for.\n\n-- name: one\nSELECT 1;\n\n--name:two\n-- why\nSELECT 2\n"
    assert parse(text, "f.sql") == {"one": "SELECT 1;", "two": "-- why\nSELECT 2"}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("SELECT 1\n-- name: one\nSELECT 1", "f.sql: SQL before the first"),
        ("-- name: one\nSELECT 1\n-- name: one\nSELECT 2", "f.sql: 'one' stands twice"),
        ("-- name: one\n-- name: two\nSELECT 2", "f.sql: 'one' has no statement"),
        ("-- name: on-e\nSELECT 1", "f.sql: 'on-e' is no identifier"),
        ("SELECT 1", "f.sql: SQL before the first"),
    ],
)
def test_statements_without_one_clear_name_are_refused(text, problem):
    with pytest.raises(ValueError, match=problem):
        parse(text, "f.sql")


async def test_engine_connections_give_up_before_they_are_distrusted(database_url):
    pool = await open_pool(database_url, size=2, application_name="shard-7", statement_timeout_s=3)
    names = [
        "lock_timeout",
        "idle_in_transaction_session_timeout",
        "statement_timeout",
        "enable_seqscan",
        "jit",
    ]
    async with pool.acquire() as one:
        settings = [await one.fetchval("SELECT current_setting($1)", name) for name in names]
        name = await one.fetchval("SELECT application_name FROM pg_stat_activity WHERE pid = pg_backend_pid()")
    await pool.close()
    assert (settings, name) == (["5s", "10s", "3s", "off", "off"], "shard-7")


@pytest.mark.parametrize(
    ("change", "error", "problem"),
    [
        (lambda url: url.replace("/test_", "/nowhere_"), StoreError, "there is no such database"),
        (lambda url: url.replace("postgres@", "ghost:hush@"), StoreError, 'role "ghost" does not exist'),
        (lambda url: url + "/nowhere", StoreError, "no server listens in that directory"),
        (lambda url: "postgresql://u:hush@127.0.0.1:1/db", StoreError, "nothing accepts connections there"),
        (lambda url: "postgresql://u:hu@sh@127.0.0.1:1/db", StoreError, "nothing accepts connections there"),
        (lambda url: url + "&nonsense=1", InputError, "unrecognized configuration parameter"),
        (lambda url: "postgresql://u:hush/x@h/db", InputError, "not a PostgreSQL URL"),
        (lambda url: "mysql://u:hush@h/db", InputError, "not a PostgreSQL URL"),
        (lambda url: "u:hush@h/db", InputError, "not a PostgreSQL URL"),
    ],
)
async def test_what_keeps_us_out_is_one_line_without_the_password(database_url, change, error, problem):
    for attempt_to_open in (connect, lambda url: open_pool(url, size=1)):
        with pytest.raises(error, match=problem) as raised:
            await attempt_to_open(change(database_url))
        assert "hu" not in str(raised.value)
        assert "\n" not in str(raised.value)


async def test_parameters_of_libpq_itself_do_no_harm(database_url):
    opened = await connect(database_url + "&connect_timeout=3&keepalives=1&gssencmode=disable&port=5432")
    assert await opened.fetchval("SHOW timezone") == "UTC"
    await opened.close()


@pytest.fixture
def data_dir(place: Path) -> Iterator[Path]:
    """A directory for a server of its own, which is stopped at the end."""
    yield place
    EmbeddedServer(place).stop()


def start(data_dir: Path) -> str:
    return EmbeddedServer(data_dir, shared_buffers_mb=16).start()


async def count(url: str) -> int:
    opened = await connect(url)
    try:
        await opened.execute("CREATE TABLE IF NOT EXISTS kept (at timestamptz)")
        await opened.execute("INSERT INTO kept VALUES (now())")
        return await opened.fetchval("SELECT count(*) FROM kept")
    finally:
        await opened.close()


def test_processes_share_one_server_and_a_crash_loses_nothing(data_dir):
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        first, second = pool.map(start, [data_dir, data_dir])
    server = EmbeddedServer(data_dir, shared_buffers_mb=16)
    assert first == second == server.url()
    assert server.running()
    assert asyncio.run(count(first)) == 1

    server.crash()
    assert not server.running()
    with pytest.raises(StoreError):
        asyncio.run(connect(first))
    assert asyncio.run(count(server.start())) == 2

    server.stop()
    server.stop()
    assert not server.running()


def test_a_path_no_socket_fits_in_is_no_obstacle(data_dir):
    server = EmbeddedServer(data_dir / ('it\'s a "long" $way, ' * 6) / "d", shared_buffers_mb=16)
    try:
        assert asyncio.run(count(server.start())) == 1
    finally:
        server.stop()


def test_a_data_directory_that_cannot_be_used_is_one_line(data_dir):
    cluster = data_dir / "other" / "postgres"
    cluster.mkdir(parents=True)
    with pytest.raises(StoreError, match="not a PostgreSQL data directory"):
        start(cluster.parent)
    (cluster / "PG_VERSION").write_text("9\n")
    with pytest.raises(StoreError, match=r"written by PostgreSQL 9, but here is postgres \(PostgreSQL\) 1"):
        start(cluster.parent)
    (data_dir / "file").touch()
    for path in (data_dir / "file", data_dir / "file" / "below"):
        with pytest.raises(StoreError, match="not a directory"):
            start(path)


def test_a_server_that_does_not_start_says_why(data_dir):
    with pytest.raises(StoreError, match="outside the valid range"):
        EmbeddedServer(data_dir, shared_buffers_mb=0).start()
