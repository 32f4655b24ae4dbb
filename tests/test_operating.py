"""An operator stops everything, a device or a lead, lets them go on, and tries again what has failed: the commands."""

from __future__ import annotations

import asyncio

import asyncpg


def ask(url: str, sql: str) -> list[tuple]:
    """The rows of the last statement."""

    async def body() -> list[tuple]:
        connection = await asyncpg.connect(url)
        try:
            *before, last = filter(str.strip, sql.split(";"))
            for statement in before:
                await connection.execute(statement)
            return [tuple(row) for row in await connection.fetch(last)]
        finally:
            await connection.close()

    return asyncio.run(body())


def test_everything_a_device_and_a_lead_are_paused_and_resumed(dripline, database_url):
    dripline("devices", "add", "--name", "d-1", "--gateway-url", "http://127.0.0.1:1")
    told = [
        (("pause", "--reason", "maintenance", "--by", "ann"), "fleet: paused\n"),
        (("pause",), "fleet: already paused\n"),
        (("resume",), "fleet: running\n"),
        (("devices", "pause", "d-1"), "d-1: paused\n"),
        (("devices", "list"), "d-1\t-\tavailable, paused\t0/80\t0/800\t0/50\t5\thttp\thttp://127.0.0.1:1\t-\n"),
        (("devices", "resume", "d-1"), "d-1: not paused\n"),
        (("leads", "pause", "+60 12345", "--until", "2030-01-05T09:00", "--by", "bob"), None),
        (
            ("leads", "pause", "6012345", "--until", "2030-01-05T09:00"),
            "6012345: already paused until 2030-01-05T09:00\n",
        ),
        (("leads", "resume", "6012345"), "6012345: not paused\n"),
        (("leads", "resume", "6012345"), "6012345: already not paused\n"),
    ]
    ask(database_url, "INSERT INTO leads (phone) VALUES ('6012345')")
    for arguments, line in told:
        status, shown, complaint = dripline(*arguments)
        assert (status, complaint) == (0, "")
        assert line is None or shown == line
    assert dripline("devices", "pause", "d-2")[2] == "error: device 'd-2': there is none - did you mean 'd-1'?\n"
    assert dripline("leads", "pause", "999")[0] == 2
    logged = ask(database_url, "SELECT action, subject, detail FROM operator_log ORDER BY id")
    assert logged == [
        ("pause", "fleet", '{"reason": "maintenance"}'),
        ("resume", "fleet", "{}"),
        ("pause", "device d-1", "{}"),
        ("resume", "device d-1", "{}"),
        ("pause", "lead 1", '{"until": "2030-01-05T09:00:00+00:00"}'),
        ("resume", "lead 1", "{}"),
    ]


FAILED = """
INSERT INTO sequences (name, is_active) VALUES ('Course', true);
INSERT INTO sequence_steps (sequence_id, trigger, message_text, is_entry_point) VALUES (1, 'hello', 'Hello', true);
INSERT INTO leads (phone, trigger, opted_out_at)
SELECT 6012340 + n, 'hello', CASE WHEN n = 3 THEN now() END FROM generate_series(1, 4) n;
INSERT INTO sequence_contacts (sequence_id, lead_id, contact_phone, entry_trigger, current_trigger, status, last_error,
                               trigger_kept)
SELECT 1, id, phone, 'hello', 'hello', 'failed', CASE id WHEN 4 THEN 'HTTP 503' ELSE 'no route' END, true FROM leads;
"""


def test_what_has_failed_is_tried_again(dripline, database_url):
    ask(database_url, FAILED)
    some = ("retry", "--sequence", "Course", "--error", "NO ROUTE")
    assert dripline(*some, "--dry-run") == (
        0,
        "2\thello\tno route\n2 would be tried again\n",
        "1 stay as they are: opted out\n",
    )
    assert dripline(*some)[2] == "error: retry: 2 enrolments? Nobody can be asked here - give --yes\n"
    assert dripline(*some, "--yes", "--by", "ann")[1] == "2\thello\tno route\n2 are tried again\n"
    assert dripline("retry", "--outcome", "refused", "--yes")[1] == "0 are tried again\n"
    assert dripline("retry", "--lead", "6012344")[1] == "1\thello\tHTTP 503\n1 are tried again\n"
    assert dripline("retry", "--step", "hello", "--all")[0] == 2
    rows = ask(database_url, "SELECT status, generation, held, last_error FROM sequence_contacts ORDER BY id")
    assert rows == [
        *[("active", 1, True, None)] * 2, ("failed", 0, False, "no route"), ("active", 1, True, None)
    ]  # fmt: skip
    logged = ask(database_url, "SELECT actor, action, subject, detail FROM operator_log ORDER BY id LIMIT 1")
    assert logged == [("ann", "retry", "enrolment 1", '{"visit": 1, "generation": 1}')]
