"""The engine's log: a JSON object a line, and nothing in it that is nobody's business."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime

import pytest

from actors.screen import Screen
from dispatcher import logs
from dispatcher.errors import InputError

AT = datetime(2026, 1, 5, 9, 0, 0, 250_000, UTC)


@pytest.fixture
def configured():
    """Configures logging for a test, and puts back what was there."""
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield logs.configure
    root.handlers[:] = before
    root.setLevel(level)


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("lead 60123456789 opted out", "lead 6012345**** opted out"),
        ("to +60123456789: refused", "to +6012345****: refused"),
        ("epoch 1234567, 5000 rows, 127.0.0.1:54321", "epoch 1234567, 5000 rows, 127.0.0.1:54321"),
        ("lease 0191d2c4-12345678-aaaa", "lease 0191d2c4-12345678-aaaa"),
        ("postgresql://dripline:hunter2@db.example/x", "postgresql://dripline:***@db.example/x"),
        ("Authorization: Bearer s3cr3t-t0ken", "Authorization: Bearer ***"),
        ("null value\nDETAIL:  Failing row contains (Hello Ann, 601).\nhere", "null value\nhere"),
    ],
)
def test_numbers_passwords_tokens_and_rows_are_masked(said, shown):
    assert logs.masked(said) == shown


def test_a_line_for_people_and_one_for_machines():
    given = (AT, "shard 3", "warning", "device_quarantined", "device d-7 fails", {"trips": 1})
    assert logs.line("text", *given).endswith("  shard 3: device d-7 fails")
    assert json.loads(logs.line("json", *given)) == {
        "at": "2026-01-05T09:00:00.250Z", "level": "warning", "event": "device_quarantined", "who": "shard 3",
        "message": "device d-7 fails", "trips": 1,
    }  # fmt: skip


def test_what_a_process_logs_is_told_with_its_event_once_in_a_while_and_a_bug_with_its_traceback(configured, capfd):
    configured("json", "coordinator")
    log = logging.getLogger("dispatcher.test")
    for _ in range(5):
        log.warning("waits for %s", "60123456789", extra={"event": "database_away"})
    log.info("leads")
    logging.getLogger("elsewhere").info("not ours")
    try:
        raise ValueError("call 60123456789")
    except ValueError:
        log.exception("broke off")
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert [(line["level"], line["event"], line["message"]) for line in lines] == [
        ("warning", "database_away", "waits for 6012345****"),
        ("info", "note", "leads"),
        ("error", "note", "broke off"),
    ]  # fmt: skip
    assert lines[2]["traceback"].endswith("ValueError: call 6012345****")


def test_a_run_says_what_its_processes_write_and_why_it_ended(capfd):
    screen = Screen(False, 60.0, "json")
    assert not screen.failed(InputError("x", "y")), "the command line says what is wrong before it begins"
    with screen:
        screen.news("ready: 3 devices", "ready", devices=3)
        screen.standing("5 accepted", outcomes={"accepted": 5})
        screen.standing("6 accepted", outcomes={"accepted": 6})
        said = logs.line("json", AT, "shard 0", "info", "took_over", "took its devices over")
        screen.forwarded({"lines": [said, "", "Fatal: 60123456789"], "actor_name": "shard-0", "pid": 7, "is_err": True})
        assert screen.failed(InputError("database", "it went away"))
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert [(line["who"], line["event"], line["message"]) for line in lines] == [
        ("run", "ready", "ready: 3 devices"),
        ("run", "standing", "5 accepted"),
        ("shard 0", "took_over", "took its devices over"),
        ("shard-0 7", "output", "Fatal: 6012345****"),
        ("run", "failed", "database: it went away"),
    ]
    assert (lines[0]["devices"], lines[1]["outcomes"]) == (3, {"accepted": 5})
