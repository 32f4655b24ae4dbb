"""A database that was restored, promoted or copied: the engine notices, and what may have been sent is held."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from actors.preflight import watched
from dispatcher.core.catalogue import Catalogue
from dispatcher.core.identity import idempotency_key
from dispatcher.errors import InputError, RefusedError
from dispatcher.store import recovery
from dispatcher.store.connect import connect
from dispatcher.store.embedded import EmbeddedServer
from dispatcher.store.in_doubt import Which, Word, list_in_doubt, resolve
from dispatcher.store.migrate import migrate
from dispatcher.store.recovery import ID_GAP, LOST, Lost, Recovered, check_lineage, foresee, recover
from dispatcher.store.registry import read_sequences

CLEAN = {name: value for name, value in os.environ.items() if not name.startswith("DRIPLINE_")}
ADVICE = "run: dripline db recovered --since <when what is lost begins>"


async def lost(world, **changes: Any) -> Lost:
    """From the beginning of the world until now."""
    now_us = await world.value("SELECT dripline_us(now())")
    return Lost(**{"since_us": world.now_us, "until_us": now_us, "resend": False, "actor": "ann", **changes})


async def recovered(world, **changes: Any) -> Recovered:
    told: list[int] = []
    done = await recover(world.connection, await lost(world, **changes), leader_s=15, report=told.append, rows=2)
    assert told == sorted(told)
    return done


def dripline(url: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from dispatcher.cli.main import main; main()", *arguments, "--database-url", url],
        capture_output=True, text=True, cwd=cwd, env=CLEAN, timeout=60, check=False,
    )  # fmt: skip


@pytest.fixture
async def waiting(world):
    """Three leads at their first step, nothing sent; a live database from here on."""
    await world.begin()
    for _ in range(3):
        await world.lead("fitness_start")
    while (await world.coordinator.run_once(world.now_us, 0)).more:
        pass
    await world.pass_for("live")
    return world


# What is held ------------------------------------------------------------------------------------------------------


async def test_what_was_due_is_held_with_an_attempt_that_counts_now(waiting):
    before = await waiting.value("SELECT now()")
    assert await recovered(waiting) == Recovered(held=3)
    assert await waiting.rows(
        "SELECT contact_phone, status, attempt, pinned, last_error FROM sequence_contacts ORDER BY id"
    ) == [(f"99910{n}", "in_doubt", 1, False, LOST) for n in (1, 2, 3)]
    row = await waiting.connection.fetchrow("SELECT * FROM message_ledger WHERE enrolment_id = 2")
    assert before <= row["reserved_at"] == row["deadline_at"]
    kept = ("visit", "generation", "attempt", "outcome", "step_trigger", "error")
    assert [row[name] for name in kept] == [1, 0, 1, "in_doubt", "fitness_start", LOST]
    assert row["idempotency_key"].bytes == idempotency_key(2, 1, 0)
    assert await waiting.value("SELECT messages_today FROM device_load_balance") == 3


async def test_what_is_due_later_or_was_done_with_is_left_alone(waiting):
    await waiting.execute("UPDATE sequence_contacts SET next_trigger_time = now() + interval '1 hour' WHERE id = 1")
    await waiting.execute("UPDATE sequence_contacts SET status = 'stopped' WHERE id = 2")
    assert await recovered(waiting) == Recovered(held=1)
    assert [row[3] for row in await waiting.states()] == ["active", "stopped", "in_doubt"]


async def test_a_backlog_that_was_due_before_may_have_been_sent_too(waiting):
    """It still waited when what is lost began: any of it can have had its turn since."""
    now_us = await waiting.value("SELECT dripline_us(now())")
    assert await recovered(waiting, since_us=now_us - 1_000_000) == Recovered(held=3)


async def test_until_spares_what_became_due_after_the_last_message(waiting):
    due_us = await waiting.value("SELECT dripline_us(min(next_trigger_time)) FROM sequence_contacts")
    await waiting.execute("UPDATE sequence_contacts SET next_trigger_time = now() WHERE id > 1")
    assert await recovered(waiting, until_us=due_us + 1_000_000) == Recovered(held=1)


async def test_nothing_is_held_where_nothing_is_lost(waiting):
    now = await lost(waiting)
    assert await recovered(waiting, since_us=now.until_us, until_us=now.until_us) == Recovered()
    assert {row[3] for row in await waiting.states()} == {"active"}


async def test_a_lease_keeps_its_attempt_and_what_was_handed_over_keeps_its_words(world):
    await world.begin()
    await world.lead("fitness_start")
    world.shards.hand_over = False
    await world.tick()
    await world.die_handing_over()
    assert await world.value("SELECT count(*) FROM handovers") == 1
    await world.execute("UPDATE sequence_steps SET message_text = 'another text'")
    await world.pass_for("live")
    assert await recovered(world, resend=True) == Recovered(resent=1)
    assert await world.rows(
        "SELECT status, attempt, pinned, resend_text, lease_token, processing_device_id FROM sequence_contacts"
    ) == [("active", 1, True, "text of fitness_start", None, None)]


async def test_a_resend_goes_out_once_under_the_same_key_and_to_gateways_that_honour_keys_only(waiting, answer):
    await waiting.devices(1, gateway_idempotent=False)
    await waiting.execute(
        "UPDATE sequence_contacts SET home_device_id = (SELECT id FROM devices WHERE name = 'd-2') WHERE id = 3"
    )
    assert await foresee(waiting.connection, await lost(waiting, resend=True), leader_s=15) == Recovered(1, 2)
    assert await recovered(waiting, resend=True) == Recovered(held=1, resent=2)
    assert await recovered(waiting, resend=True) == Recovered()  # repeated, it finds nothing more to do
    await waiting.pass_for("rehearsal")
    waiting.sender.script = {"999101": [answer("repeat")]}
    await waiting.begin()
    await waiting.tick()
    assert sorted((request.to, request.key) for request in waiting.sender.requests) == [
        ("999101", idempotency_key(1, 1, 0)),
        ("999102", idempotency_key(2, 1, 0)),
    ]
    assert [row[:4] for row in await waiting.states()] == [
        ("999101", "fitness_day2", 2, "active"),
        ("999102", "fitness_day2", 2, "active"),
        ("999103", "fitness_start", 1, "in_doubt"),
    ]
    outcomes = await waiting.rows("SELECT enrolment_id, attempt, outcome FROM message_ledger ORDER BY 1, 2")
    assert outcomes == [
        (1, 1, "accepted"), (1, 2, "repeat"), (2, 1, "not_sent"), (2, 2, "accepted"), (3, 1, "in_doubt"),
    ]  # fmt: skip


async def test_no_number_is_given_out_twice_and_whoever_acted_acts_no_more(waiting):
    token = await waiting.value("SELECT last_value FROM lease_tokens")
    epochs = await waiting.rows("SELECT name, epoch FROM epochs")
    await recovered(waiting)
    assert len(epochs) == 2
    assert all(epoch > ID_GAP + token for _, epoch in await waiting.rows("SELECT name, epoch FROM epochs"))
    for table in ("leads", "sequences", "sequence_contacts"):
        before = await waiting.value(f"SELECT max(id) FROM {table}")
        assert await waiting.value(f"SELECT nextval('{table}_id_seq')") == before + ID_GAP + 1, table


async def test_what_was_queued_is_told_because_it_may_be_enrolled_twice(waiting):
    await waiting.lead("fitness_start")
    assert await recovered(waiting) == Recovered(held=3, queued=1)


async def test_it_is_on_record(waiting):
    told = await lost(waiting)
    await recovered(waiting)
    [(actor, action, subject, detail)] = await waiting.rows("SELECT actor, action, subject, detail FROM operator_log")
    assert (actor, action, subject) == ("ann", "db recovered", "database")
    assert json.loads(detail) == {
        "since": recovery._written(told.since_us),
        "until": json.loads(detail)["until"],
        "held": 3,
        "resent": 0,
        "queued": 0,
    }
    with pytest.raises(asyncpg.RaiseError, match="append-only"):
        await waiting.execute("DELETE FROM operator_log")


# What is refused ---------------------------------------------------------------------------------------------------


async def test_a_rehearsal_and_a_running_engine_are_refused(world):
    with pytest.raises(RefusedError, match="it is a rehearsal"):
        await recovered(world)
    await world.pass_for("live")
    store = await world.store()
    assert await store.seat.lead(15)
    for attempt in (recovered(world), foresee(world.connection, await lost(world), leader_s=15)):
        with pytest.raises(RefusedError, match="test is running on it - end that engine first"):
            await attempt
    await store.seat.leave()
    assert await recovered(world) == Recovered()
    assert await store.seat.lead(15)  # and the engine need not wait afterwards


async def test_a_recovery_that_was_broken_off_keeps_the_engine_out(waiting, tmp_path):
    def break_off(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await recover(waiting.connection, await lost(waiting), leader_s=15, report=break_off, rows=2)
    with pytest.raises(RefusedError, match="its recovery was broken off - run again: dripline db recovered --since 2"):
        await check_lineage(waiting.connection, tmp_path)
    assert await recovered(waiting) == Recovered(held=1)
    assert await check_lineage(waiting.connection, tmp_path) is None


async def test_no_engine_leads_while_a_database_is_recovered(waiting, monkeypatch):
    """An engine tries to lead before every page."""
    led: list[bool] = []
    engine, hold_page = await waiting.store(), recovery._hold_page

    async def try_to_lead(*arguments):
        led.append(await engine.seat.lead(waiting.settings.leader_s))
        return await hold_page(*arguments)

    monkeypatch.setattr(recovery, "_hold_page", try_to_lead)
    assert await recovered(waiting) == Recovered(held=3)
    assert (led, await engine.seat.lead(waiting.settings.leader_s)) == ([False, False], True)


async def test_a_recovery_that_has_lost_the_leadership_to_an_engine_ends_and_keeps_that_engine_out(
    waiting, tmp_path, monkeypatch
):
    """The first page took longer than a leadership lasts."""
    engine, hold_page = await waiting.store(), recovery._hold_page

    async def too_slowly(*arguments):
        page = await hold_page(*arguments)
        await waiting.execute("UPDATE heartbeats SET expires_at = now() - interval '1 second'")
        assert await engine.seat.lead(waiting.settings.leader_s)
        return page

    monkeypatch.setattr(recovery, "_hold_page", too_slowly)
    with pytest.raises(RefusedError, match="test is running on it - end that engine first"):
        await recovered(waiting)
    assert [row[3] for row in await waiting.states()] == ["in_doubt", "in_doubt", "active"]
    assert await waiting.value("SELECT holder FROM heartbeats WHERE expires_at > now()") == "test"
    with pytest.raises(RefusedError, match="its recovery was broken off"):
        await check_lineage(waiting.connection, tmp_path)


@pytest.mark.parametrize("column", ["system_identifier", "database_oid"])
async def test_another_database_is_refused_until_it_was_recovered(waiting, tmp_path, column):
    assert await check_lineage(waiting.connection, tmp_path) is None
    await waiting.execute(f"UPDATE dripline_database SET {column} = 7")
    with pytest.raises(RefusedError) as refused:
        await check_lineage(waiting.connection, tmp_path)
    problem = "it is a copy of the database that 'dripline run' saw last, restored or moved"
    assert str(refused.value) == f"database: {problem} - {ADVICE}"
    assert (await recovered(waiting)).held == 3
    assert await check_lineage(waiting.connection, tmp_path) is None


async def test_run_refuses_a_promoted_database_until_the_command_recovered_it(waiting, tmp_path):
    problem = "it was restored or promoted since 'dripline run' saw it last (timeline 7, now 1)"
    assert await check_lineage(waiting.connection, tmp_path) is None
    await waiting.execute("UPDATE dripline_database SET timeline_id = 7")
    refused = dripline(waiting.url, "run", cwd=tmp_path)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == f"error: database: {problem} - {ADVICE}\n"

    since = ("db", "recovered", "--since", "2026-01-01")
    counted = dripline(waiting.url, *since, "--dry-run", cwd=tmp_path)
    would = "3 enrolments would be held as in doubt, 0 would be sent again under their keys\n"
    assert (counted.returncode, counted.stdout, counted.stderr) == (0, would, "")
    with pytest.raises(RefusedError):
        await check_lineage(waiting.connection, tmp_path)

    done = dripline(waiting.url, *since, cwd=tmp_path)
    held = "3 enrolments held as in doubt, 0 sent again under their keys\nsee: dripline in-doubt list\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, held, "")
    assert await check_lineage(waiting.connection, tmp_path) is None


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--since", "yesterday"), "--since: 'yesterday' is no moment - write it like 2026-01-05T09:00:00Z"),
        (("--since", "2999-01-01"), "--since: it lies in the future - the database's clock decides"),
        (("--since", "2026-01-02", "--until", "2026-01-01"), "--until: it lies before --since - swap them"),
        (
            ("--since", "2026-01-02", "--resend"),
            "--resend: gateways may have forgotten keys since then (key_retention_s) - leave it out, and resolve",
        ),
    ],
)
async def test_what_cannot_be_meant_is_refused_in_one_line(waiting, tmp_path, arguments, line):
    done = dripline(waiting.url, "db", "recovered", *arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: {line}\n")


async def test_a_database_that_may_not_tell_what_it_is_gets_a_remark(waiting, tmp_path):
    await waiting.execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO pg_write_all_data")
    await waiting.execute("GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO pg_write_all_data")
    await waiting.execute("REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC")
    await waiting.execute("SET ROLE pg_write_all_data")
    remark = await check_lineage(waiting.connection, tmp_path)
    assert remark is not None
    assert remark.startswith("this PostgreSQL does not tell which database it is: ")
    await waiting.execute("RESET ROLE")
    assert await check_lineage(waiting.connection, tmp_path) is None


async def test_what_is_remembered_outside_must_be_readable(waiting, tmp_path):
    assert await check_lineage(waiting.connection, tmp_path) is None
    [file] = (tmp_path / "seen").iterdir()
    file.write_text('{"wal": 1')
    with pytest.raises(InputError, match="it is damaged - remove it if the database was not restored"):
        await check_lineage(waiting.connection, tmp_path)


async def test_a_dump_that_was_put_back_into_the_same_database_is_noticed_by_its_tokens(waiting, tmp_path):
    assert await check_lineage(waiting.connection, tmp_path) is None
    token = await waiting.value("SELECT last_value FROM lease_tokens")
    await waiting.execute("SELECT setval('lease_tokens', $1)", token - 1)
    with pytest.raises(RefusedError, match="it was restored: it is behind what it was at 2"):
        await check_lineage(waiting.connection, tmp_path)


async def test_an_engine_ends_when_its_database_becomes_another_one(waiting, tmp_path, monkeypatch):
    monkeypatch.setattr("actors.preflight._LOOK_S", 0.1)
    assert await check_lineage(waiting.connection, tmp_path) is None
    stop, said = asyncio.Event(), []

    async def engine() -> None:
        async with watched(waiting.url, tmp_path, stop, said.append):
            await asyncio.sleep(0.5)
            assert not stop.is_set()
            await waiting.execute("UPDATE dripline_database SET timeline_id = 7")
            await asyncio.wait_for(stop.wait(), 10)

    with pytest.raises(RefusedError, match="timeline 7, now 1"):
        await engine()
    assert said == [
        "draining: database: it was restored or promoted since 'dripline run' saw it last (timeline 7, now 1)"
    ]


# Servers that really go back ---------------------------------------------------------------------------------------


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory for servers of their own: ``a`` and ``b`` in it are stopped at the end."""
    directory = Path(tempfile.mkdtemp(prefix="dl-"))
    directory.chmod(0o711)
    yield directory
    for name in ("a", "b"):
        EmbeddedServer(directory / name).stop()
    shutil.rmtree(directory)


@pytest.fixture
def own(place) -> EmbeddedServer:
    """A server of one's own, migrated."""
    server = EmbeddedServer(place / "a", shared_buffers_mb=32)

    async def make(url: str) -> None:
        connection = await connect(url)
        await migrate(connection)
        await connection.close()

    asyncio.run(make(server.start()))
    return server


def copied(source: Path, target: Path) -> None:
    """As a snapshot of the disk would have it: owners and modes too."""
    subprocess.run(["cp", "-a", str(source), str(target)], check=True)


class TestAServerOfItsOwn:
    @pytest.fixture
    def database_url(self, own) -> str:
        """The world's database: on a server that can be stopped."""
        return own.url()

    async def test_a_snapshot_that_is_put_back_is_noticed_and_nobody_gets_a_message_twice(self, world, own, place):
        """Three leads got a message each after the snapshot; two had got it before, one is at a later step."""
        outside = place / "outside"
        await world.begin()
        for _ in range(3):
            await world.lead("fitness_start")
        await world.tick()
        assert await check_lineage(world.connection, outside) is None
        await world.close()
        await world.connection.close()
        own.stop()
        copied(place / "a/postgres", place / "snapshot")

        world = await self.again(world, own)
        await world.hours(24)
        await world.begin()
        await world.tick()
        assert sorted(world.sent()[3:]) == [(f"99910{n}", "fitness_day2") for n in (1, 2, 3)]
        assert await check_lineage(world.connection, outside) is None
        await world.close()
        await world.connection.close()
        own.stop()
        shutil.rmtree(place / "a/postgres")
        copied(place / "snapshot", place / "a/postgres")

        world = await self.again(world, own)
        with pytest.raises(RefusedError, match="it was restored: it is behind what it was at 2"):
            await check_lineage(world.connection, outside)
        await world.pass_for("live")
        assert await recovered(world) == Recovered(held=3)
        assert await check_lineage(world.connection, outside) is None
        catalogue = Catalogue.of(await read_sequences(world.connection))
        assert {row["why"] for row in await list_in_doubt(world.connection, Which())} == {LOST}
        await resolve(world.connection, Which(), Word.ACCEPTED, catalogue, actor="ann")
        await world.pass_for("rehearsal")
        await world.hours(24)
        await world.begin()
        await world.tick()
        steps = ("fitness_start", "fitness_day2", "fitness_day3")
        assert sorted(world.sent()) == sorted((f"99910{n}", step) for n in (1, 2, 3) for step in steps)
        await world.close()
        await world.connection.close()

    async def again(self, world, own):
        """The same world after its server has started anew; gateways keep what they have got."""
        url = own.start()
        anew = type(world)(url, await connect(url), world.settings)
        anew.sender, anew.now_us, anew._leads = world.sender, world.now_us, world._leads
        return anew

    async def test_a_promoted_standby_is_noticed(self, world, own, place):
        await world.pass_for("live")
        assert await check_lineage(world.connection, place / "outside") is None
        await world.connection.close()
        own.stop()
        (place / "b").mkdir()
        copied(place / "a/postgres", place / "b/postgres")
        signal_file = place / "b/postgres/standby.signal"
        signal_file.touch()
        signal_file.chmod(0o666)
        standby = EmbeddedServer(place / "b", shared_buffers_mb=32)
        connection = await connect(standby.start())
        with pytest.raises(RefusedError, match="it is a standby, where nothing can be written - name the primary"):
            await check_lineage(connection, place / "outside")
        assert await connection.fetchval("SELECT pg_promote()")
        with pytest.raises(RefusedError, match=r"it was restored or promoted .* \(timeline 1, now 2\)"):
            await check_lineage(connection, place / "outside")
        moment_us = await recovery.now_us(connection)
        nothing = Lost(moment_us, moment_us, resend=False, actor="ann")
        assert await recover(connection, nothing, leader_s=15, report=print) == Recovered()
        assert await check_lineage(connection, place / "outside") is None
        await connection.close()
