"""What a database is: which migrations it has, and whether it is live or a rehearsal."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import asyncpg
import pytest

from dispatcher.errors import InputError, RefusedError
from dispatcher.store import migrate as migrate_module
from dispatcher.store.connect import connect
from dispatcher.store.migrate import migrate, migrations, script, status
from dispatcher.store.stamp import read_kind, require_live, require_rehearsal, stamp, wipe

NAMES = [migration.name for migration in migrations()]

CREATED = """
SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace
UNION ALL SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace
"""


@pytest.fixture
async def empty(empty_url: str):
    opened = await connect(empty_url)
    yield opened
    await opened.close()


async def column(connection: asyncpg.Connection, sql: str, *arguments: Any) -> list[Any]:
    return [row[0] for row in await connection.fetch(sql, *arguments)]


async def test_migrating_twice_applies_once(empty):
    assert [found.applied_at for found in await status(empty)] == [None] * len(NAMES)
    assert await migrate(empty) == NAMES
    assert await migrate(empty) == []
    assert all(found.applied_at for found in await status(empty))


async def test_two_migrating_at_once_apply_each_file_once(empty_url):
    first, second = await asyncio.gather(connect(empty_url), connect(empty_url))
    applied = await asyncio.gather(migrate(first), migrate(second))
    assert sorted(applied[0] + applied[1]) == sorted(NAMES)
    await asyncio.gather(first.close(), second.close())


async def test_a_changed_file_is_refused(connection, monkeypatch):
    changed = (dataclasses.replace(migrations()[0], sql="SELECT 1"), *migrations()[1:])
    monkeypatch.setattr(migrate_module, "migrations", lambda: changed)
    for command in (migrate, status):
        with pytest.raises(InputError, match=r"^0001_schema\.sql: has changed since it was applied"):
            await command(connection)


async def test_a_database_from_the_future_is_refused(connection):
    await connection.execute("INSERT INTO schema_migrations VALUES (9999, 'flying_cars', '')")
    with pytest.raises(InputError, match="9999 flying_cars was applied by a newer Dripline"):
        await migrate(connection)


@pytest.mark.parametrize(
    ("theirs", "problem"),
    [
        ("CREATE TABLE schema_migrations (version varchar)", "is another program's"),
        ("CREATE TABLE leads (email text)", 'relation "leads" already exists'),
    ],
)
async def test_another_programs_tables_are_left_alone(empty, theirs, problem):
    await empty.execute(theirs)
    before = await column(empty, CREATED)
    with pytest.raises(InputError, match=problem):
        await migrate(empty)
    assert await column(empty, CREATED) == before


async def test_a_failed_migration_leaves_nothing_behind(empty, monkeypatch):
    broken = dataclasses.replace(migrations()[0], sql="CREATE TABLE half (x int); SELECT nonsense")
    monkeypatch.setattr(migrate_module, "migrations", lambda: (broken,))
    with pytest.raises(asyncpg.UndefinedColumnError):
        await migrate(empty)
    assert await column(empty, CREATED) == []


async def test_changes_queued_before_the_queue_held_many_leads_a_row_wait_on(empty, monkeypatch):
    earlier = tuple(migration for migration in migrations() if migration.version < 8)
    with monkeypatch.context() as patched:
        patched.setattr(migrate_module, "migrations", lambda: earlier)
        await migrate(empty)
    await empty.execute("INSERT INTO leads (phone, trigger) VALUES ('1', 'a'), ('2', 'a')")
    await empty.execute("UPDATE leads SET trigger = NULL WHERE id = 2")
    assert (await migrate(empty))[0] == "queue"
    await empty.execute("UPDATE leads SET trigger = 'a,b' WHERE id = 1")
    queued = await empty.fetch("SELECT leads, old_trigger, new_trigger FROM lead_changes ORDER BY id")
    assert [tuple(row) for row in queued] == [([1], None, "a"), ([2], None, "a"), ([2], "a", None), ([1], None, None)]


async def test_the_script_alone_migrates(empty):
    await empty.execute(script().removeprefix("\\set ON_ERROR_STOP on\n"))
    assert await migrate(empty) == []


async def test_an_unstamped_database_becomes_live_and_stays_it(connection):
    assert await read_kind(connection) is None
    await require_live(connection)
    await require_live(connection)
    assert await read_kind(connection) == "live"
    for reset in (False, True):
        with pytest.raises(RefusedError, match="it is live"):
            await require_rehearsal(connection, reset)
    with pytest.raises(RefusedError, match="it is not a rehearsal"):
        await wipe(connection)
    with pytest.raises(RefusedError, match="it is not a rehearsal database"):
        await stamp(connection, "rehearsal")


async def test_a_rehearsal_never_goes_live(connection):
    await require_rehearsal(connection, False)
    with pytest.raises(RefusedError, match="it is a rehearsal, for good"):
        await require_live(connection)


async def test_live_needs_a_migrated_database(empty):
    with pytest.raises(InputError, match="it is not migrated - run: dripline db migrate"):
        await require_live(empty)


@pytest.mark.parametrize("kind", ["live", "rehearsal"])
@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE dripline_database SET kind = CASE kind WHEN 'live' THEN 'rehearsal' ELSE 'live' END",
        "DELETE FROM dripline_database",
        "TRUNCATE dripline_database",
        "INSERT INTO dripline_database (kind) VALUES ('live') ON CONFLICT (only_row) DO UPDATE"
        " SET kind = CASE dripline_database.kind WHEN 'live' THEN 'rehearsal' ELSE 'live' END",
    ],
)
async def test_sql_does_not_change_the_stamp(connection, kind, statement):
    await stamp(connection, kind)
    with pytest.raises(asyncpg.RaiseError, match=f"stamped {kind} for good"):
        await connection.execute(statement)
    assert await read_kind(connection) == kind


async def test_only_a_rehearsal_has_a_clock(connection):
    await stamp(connection, "rehearsal", hour_s=60.0, clock_us=1_700_000_000_000_001)
    assert await connection.fetchval("SELECT dripline_us(dripline_now())") == 1_700_000_000_000_001
    assert await connection.fetchval("SELECT extract(epoch FROM dripline_hour())") == 60


async def test_a_live_database_refuses_a_clock(connection):
    with pytest.raises(asyncpg.CheckViolationError):
        await stamp(connection, "live", clock_us=0)


async def test_a_rehearsal_in_an_empty_database_needs_no_reset(empty):
    await require_rehearsal(empty, False, hour_s=1.0)
    await require_rehearsal(empty, False, hour_s=2.0)
    assert await empty.fetchrow("SELECT kind, hour_s FROM dripline_database") == ("rehearsal", 2.0)


async def test_reset_gives_up_a_rehearsal_with_data(empty):
    await require_rehearsal(empty, False)
    await empty.execute("INSERT INTO leads (phone) VALUES ('60123456789')")
    await empty.execute("SELECT dripline_ledger_partition('2026-01-01')")
    with pytest.raises(RefusedError, match="earlier rehearsal - give --reset"):
        await require_rehearsal(empty, False)
    await require_rehearsal(empty, True)
    assert await empty.fetchval("SELECT count(*) FROM leads") == 0
    assert await read_kind(empty) == "rehearsal"


@pytest.mark.parametrize("reset", [False, True])
async def test_data_without_a_stamp_is_never_a_rehearsals(connection, reset):
    await connection.execute("INSERT INTO leads (phone) VALUES ('60123456789')")
    with pytest.raises(RefusedError, match="no rehearsal's"):
        await require_rehearsal(connection, reset)
    assert await connection.fetchval("SELECT count(*) FROM leads") == 1


@pytest.mark.parametrize("reset", [False, True])
async def test_another_programs_database_is_never_a_rehearsals(empty, reset):
    await empty.execute("CREATE TABLE invoices (id int)")
    with pytest.raises(RefusedError, match="no rehearsal's"):
        await require_rehearsal(empty, reset)
    assert await column(empty, CREATED) == ["invoices"]


async def test_wipe_leaves_nothing_of_ours_and_all_of_theirs(empty):
    await require_rehearsal(empty, False)
    await empty.execute("CREATE TABLE notes (id int)")
    await wipe(empty)
    assert await column(empty, CREATED) == ["notes"]
