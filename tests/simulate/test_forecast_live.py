"""A forecast of a database in which no engine has run yet, and of what only a database can say."""

from __future__ import annotations

import asyncpg
import pytest

from dispatcher.config import Settings
from dispatcher.intake.sequence_file import load
from dispatcher.intake.sequences import apply
from simulate.forecast.live import world_of
from simulate.forecast.outlook import Outlook, forecast

COURSE = """
sequences:
  - name: Course
    steps: [{trigger: a, text: A}, {trigger: b, text: B}]
  - name: Asked For
    requires_opt_in: true
    steps: [{trigger: c, text: C}]
"""


@pytest.fixture
async def database(connection: asyncpg.Connection, tmp_path) -> asyncpg.Connection:
    """Two sequences and two devices, ten messages an hour each; nobody has come yet."""
    (tmp_path / "course.yaml").write_text(COURSE)
    await apply(connection, load(tmp_path / "course.yaml"))
    await connection.execute(
        """INSERT INTO devices (name, gateway_url, quota_per_hour, quota_per_day)
           SELECT 'd-' || n, 'http://127.0.0.1:9/', 10, 50 FROM generate_series(1, 2) n"""
    )
    return connection


async def told(connection: asyncpg.Connection) -> Outlook:
    return forecast(await world_of(connection, Settings(database_url=None), None))


async def bring(connection: asyncpg.Connection, count: int, trigger: str) -> None:
    await connection.execute(
        "INSERT INTO leads (phone, trigger) SELECT 60123400000 + n, $2 FROM generate_series(1, $1::int) n",
        count,
        trigger,
    )


async def test_leads_that_nobody_has_enrolled_yet_count(database):
    await bring(database, 30, "newsletter, a")
    outlook = await told(database)
    assert [(wave.sequence, wave.wave, wave.leads) for wave in outlook.waves] == [("Course", "not enrolled yet", 30)]
    assert (outlook.messages, outlook.completed, outlook.feasible) == (60, 30, True)
    assert outlook.sent.sum(axis=1)[:2].tolist() == [20, 10]


async def test_who_may_not_enter_does_not_count(database):
    await bring(database, 6, "a,c")
    await database.execute("UPDATE leads SET opted_in_at = now() WHERE id % 3 = 0")
    await database.execute("UPDATE leads SET opted_out_at = now() WHERE id % 3 = 1")
    outlook = await told(database)
    assert {wave.sequence: wave.leads for wave in outlook.waves} == {"Course": 4, "Asked For": 2}


async def test_what_waits_where_no_device_can_send_is_left(database):
    await bring(database, 3, "a")
    await database.execute("UPDATE devices SET health = 'offline'")
    outlook = await told(database)
    assert (outlook.messages, outlook.left, outlook.feasible) == (0, 3, False)


async def test_an_empty_database_has_nothing_to_send(database):
    outlook = await told(database)
    assert (outlook.messages, outlook.enrolled, outlook.waves, outlook.feasible) == (0, 0, [], True)


async def test_everybody_by_the_clock_on_their_own_wall(database):
    await database.execute(
        """UPDATE sequences SET send_from = '09:00', send_until = '10:00', send_time_zone = 'UTC',
               send_days = '{mon,tue,wed,thu,fri,sat,sun}'"""
    )
    await bring(database, 2, "a")
    await database.execute("UPDATE leads SET time_zone = 'Asia/Kuala_Lumpur' WHERE id = (SELECT min(id) FROM leads)")
    outlook = await told(database)
    hours = {
        (outlook.world.start_us // 3_600_000_000 + int(hour)) % 24 for hour in outlook.sent.sum(axis=1).nonzero()[0]
    }
    assert hours <= {0, 1, 8, 9}  # hours count from now on, so each may reach into the one before
    assert len(hours) == 2
    assert outlook.completed == 2


async def test_what_devices_share_holds_in_the_database_too(database):
    await bring(database, 30, "a")
    await database.execute("INSERT INTO device_groups VALUES ('north', 8, NULL)")
    await database.execute("UPDATE devices SET group_name = 'north'")
    outlook = await told(database)
    assert outlook.sent.sum(axis=1)[:4].tolist() == [8, 8, 8, 6]
    assert {span.limit for span in outlook.spans} == {"group hour", "none"}
