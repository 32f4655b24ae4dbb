"""What has long finished leaves the database for files: nothing is lost or doubled, no rule forgets what it needs."""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from dispatcher.errors import InputError, RefusedError
from dispatcher.store import archive
from dispatcher.store.archive import archive_day, archive_enrolments, archiving, old_days


async def run(world, directory: Path, *, rows: int = archive.ENROLMENT_ROWS):
    """Archives what is older than 90 days; the files with their rows, and the days that stay."""
    before = await world.value("SELECT now()") - timedelta(days=90)
    async with archiving(world.connection, directory):
        files = [filed async for filed in archive_enrolments(world.connection, directory, before, rows=rows)]
        gone, kept = await old_days(world.connection, before)
        files += [await archive_day(world.connection, directory, day) for day in gone]
    return [(filed.name, filed.rows) for filed in files], [(day.day, day.living) for day in kept]


def read(directory: Path, kind: str, *columns: str) -> list[tuple]:
    """The rows of all files of a kind."""
    tables = [pq.read_table(path, columns=list(columns)) for path in sorted(directory.glob(f"{kind}_*.parquet"))]
    return sorted(tuple(row.values()) for table in tables for row in table.to_pylist())


ENROLMENTS = "SELECT id, lead_id, entry_trigger, status FROM sequence_contacts ORDER BY 1"
ATTEMPTS = "SELECT enrolment_id, visit, attempt, outcome FROM message_ledger ORDER BY 1, 2, 3"
SETTLED = "UPDATE sequence_contacts SET status = 'stopped', finished_at = '2026-01-06' WHERE status = 'in_doubt'"
E_COLUMNS = ("enrolment_id", "lead_id", "entry_trigger", "status")
L_COLUMNS = ("enrolment_id", "visit", "attempt", "outcome")


@pytest.fixture
async def old(new_world, answer):
    """A live database whose three leads have been through two sequences months ago; one attempt is in doubt."""
    world = await new_world(0)
    await world.devices(2, gateway_idempotent=False)
    await world.sequence("Once", "once", reentry="never")
    await world.sequence("Again", "again")
    await world.begin()
    for trigger in ("once,again", "once,again", "again"):
        await world.lead(trigger)
    world.sender.script["999103"] = [answer("in_doubt", "lost")]
    for _ in range(3):
        await world.tick()
    assert [row[3] for row in await world.states()] == ["completed"] * 4 + ["in_doubt"]
    await world.pass_for("live")
    return world


async def test_every_row_is_in_the_database_or_in_a_file(old, tmp_path):
    await old.execute("INSERT INTO leads (phone, trigger) VALUES ('999104', 'again')")
    await old.execute(
        "INSERT INTO sequence_contacts (sequence_id, lead_id, contact_phone, entry_trigger, current_trigger, status,"
        " finished_at, trigger_kept) SELECT 2, id, phone, 'again', 'again', 'failed', '2026-01-06', true FROM leads"
        " WHERE phone = '999104'"
    )
    enrolments, attempts = await old.rows(ENROLMENTS), await old.rows(ATTEMPTS)
    files, kept = await run(old, tmp_path, rows=3)
    assert files == [("enrolments_000001.parquet", 3), ("enrolments_000002.parquet", 1), *files[2:]]
    assert kept == [("2026-01-05", 1)], "an attempt in doubt keeps its day"
    assert await old.rows(ENROLMENTS) == enrolments[4:], "in doubt, or kept from entering again by its trigger"
    assert read(tmp_path, "enrolments", *E_COLUMNS) == enrolments[:4]
    assert await old.rows(ATTEMPTS) == attempts

    await old.execute(SETTLED)
    files, kept = await run(old, tmp_path)
    assert (files[0], ("ledger_20260105.parquet", 5) in files, kept) == (("enrolments_000003.parquet", 1), True, [])
    assert (read(tmp_path, "ledger", *L_COLUMNS), await old.rows(ATTEMPTS)) == (attempts, [])
    assert await old.rows("SELECT kind, sum(rows) FROM archive_files WHERE published GROUP BY 1 ORDER BY 1") == [
        ("enrolments", 5), ("ledger", 5),
    ]  # fmt: skip
    columns = {name for path in tmp_path.iterdir() for name in pq.read_schema(path).names}
    assert not columns & {"contact_phone", "last_error", "resend_text", "error", "gateway_message_id"}, (
        "nothing personal"
    )
    assert await run(old, tmp_path) == ([], []), "once"


async def test_who_was_archived_enters_again_only_where_the_rule_lets_them_and_from_the_same_number(old, tmp_path):
    homes = "SELECT lead_id, home_device_id FROM sequence_contacts WHERE lead_id IN (1, 2) ORDER BY 1, id DESC"
    before = dict(await old.rows(homes))
    await run(old, tmp_path)
    await old.pass_for("rehearsal")
    await old.execute("UPDATE leads SET trigger = 'once,again' WHERE id IN (1, 2)")
    await old.tick()
    found = await old.rows(
        "SELECT lead_id, entry_trigger, home_device_id FROM sequence_contacts WHERE status <> 'in_doubt' ORDER BY 1"
    )
    assert found == [(1, "again", before[1]), (2, "again", before[2])]


@pytest.mark.parametrize("point", ["written", "committed"])
async def test_broken_off_anywhere_nothing_is_lost_or_doubled(old, tmp_path, monkeypatch, point):
    await old.execute(SETTLED)
    enrolments, attempts = await old.rows(ENROLMENTS), await old.rows(ATTEMPTS)

    def breaks(*_):
        raise KeyboardInterrupt

    files = 0
    while (tmp_path / "done").exists() is False:
        with monkeypatch.context() as patch:
            calls = []
            own = archive._Writer.verify if point == "written" else archive._rename

            def sometimes(*arguments, own=own, calls=calls):
                calls.append(1)
                return own(*arguments) if len(calls) < 2 else breaks()

            patch.setattr(*((archive._Writer, "verify") if point == "written" else (archive, "_rename")), sometimes)
            try:
                await run(old, tmp_path, rows=2)
                (tmp_path / "done").touch()
            except KeyboardInterrupt:
                files += 1
        held = [await old.rows(ENROLMENTS), await old.rows(ATTEMPTS)]
        named = [read(tmp_path, "enrolments", *E_COLUMNS), read(tmp_path, "ledger", *L_COLUMNS)]
        both = [set(rows) & set(filed) for rows, filed in zip(held, named, strict=True)]
        assert both == [set(), set()], "never in both"
    assert files > 2, "it was broken off"
    assert named == [enrolments, attempts]
    assert [path.name for path in tmp_path.glob("*.partial")] == []


async def test_a_day_stays_while_something_leased_was_to_leave_then(old, tmp_path):
    await old.execute(SETTLED)
    await old.execute(
        "INSERT INTO sequence_contacts (sequence_id, lead_id, contact_phone, entry_trigger, current_trigger,"
        " next_trigger_time, lease_token, processing_started_at) VALUES (2, 9, '9', 'again', 'again', now(), 77,"
        " '2026-01-05 09:00Z')"
    )
    await old.execute(
        "INSERT INTO claims (token, shard_epoch, enrolments) SELECT 77, 1, array_agg(id) FROM sequence_contacts"
    )
    files, _ = await run(old, tmp_path)
    assert not [name for name, _ in files if name >= "ledger_20260105"]
    assert await old.value("SELECT count(*) FROM message_ledger") == 5


async def test_a_file_that_is_on_record_and_gone_stops_the_archive(old, tmp_path):
    await run(old, tmp_path)
    (tmp_path / "enrolments_000001.parquet").unlink()
    await old.execute("UPDATE archive_files SET published = false")
    with pytest.raises(InputError, match="is on record and not there"):
        await run(old, tmp_path)


async def test_a_file_of_another_database_is_never_replaced(old, tmp_path):
    (tmp_path / "enrolments_000001.parquet").write_text("theirs")
    with pytest.raises(InputError, match="is there already, and not of this database"):
        await run(old, tmp_path)
    assert (tmp_path / "enrolments_000001.parquet").read_text() == "theirs"
    assert await old.value("SELECT count(*) FROM sequence_contacts") == 5


async def test_a_rehearsal_is_never_archived(world, tmp_path):
    with pytest.raises(RefusedError, match="rehearsal"):
        await run(world, tmp_path)


async def test_the_command_and_what_status_and_explain_say_of_it(old, tmp_path):
    def dripline(*arguments: str) -> subprocess.CompletedProcess[str]:
        code = "from dispatcher.cli.main import main; main()"
        return subprocess.run(
            [sys.executable, "-c", code, *arguments, "--database-url", old.url],
            capture_output=True, text=True, check=False, cwd=tmp_path,
        )  # fmt: skip

    short = dripline("archive", "--older-than", "1d", "--to", "away")
    assert short.stderr == "error: --older-than: 1d is too short - quotas look back a day: at least 2d\n"
    done = dripline("archive", "--older-than", "90d", "--to", "away")
    assert done.stdout.startswith("4 enrolments and 0 attempts of ")
    assert "2026-01-05: stays, 1 enrolments live, such as 5\n" in done.stderr
    assert "archived\t4 enrolments finished until 2026-01-05, 1 files, the last ones in " in dripline("status").stdout
    assert "'Once': 1 earlier, archived; the last one finished 2026-01-05" in dripline("explain", "999101").stdout
