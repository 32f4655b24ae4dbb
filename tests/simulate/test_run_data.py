"""The tables of a run told by hand, read back whole."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pyarrow.parquet as pq
import pytest

from simulate.driver import Fault
from simulate.run_data import DEVICE_MINUTES, DEVICES, FAULTS, SENDS, SEQUENCE_MINUTES, write

DAY = datetime(2026, 1, 5, tzinfo=UTC)


def at(second: float) -> datetime:
    return DAY + timedelta(seconds=second)


def rows(path) -> list[tuple]:
    return [tuple(row.values()) for row in pq.read_table(path).to_pylist()]


@pytest.fixture
def tables(story, tmp_path):
    """Two messages accepted within a minute, one of them at the second attempt, and one an hour later."""
    story.message(7, 0, 10, "refused", enrolment=2).message(7, 20, 30, enrolment=2, attempt=2)
    story.message(9, 0, 4).message(9, 3600, 3601, visit=2)
    story.enrolment(1, 9, "completed").enrolment(2, 7, "active", 2, due=7230)
    story.faults = [Fault(story.us(90), "silent", "shard 1", "no answer within the tick")]
    write(tmp_path / "tables", story.told())
    return tmp_path / "tables"


def test_sends_are_the_accepted_messages_in_the_order_of_their_slots(tables):
    assert pq.read_schema(tables / "sends.parquet").names == SENDS.names
    assert rows(tables / "sends.parquet") == [
        (at(0), at(4), at(4.5), 4.0, "id-9", "nine", "999100000001", "Fitness", "a", 1, 1, 1),
        (at(20), at(30), at(30.5), 10.0, "id-7", "seven", "999100000002", "Fitness", "a", 2, 1, 2),
        (at(3600), at(3601), at(3601.5), 1.0, "id-9", "nine", "999100000001", "Fitness", "b", 1, 2, 1),
    ]


def test_minutes_count_what_was_accepted_and_what_was_not(tables):
    assert pq.read_schema(tables / "device_minutes.parquet").names == DEVICE_MINUTES.names
    assert rows(tables / "device_minutes.parquet") == [
        (at(0), "id-7", "seven", 1, 1, 10.0, 10.0),
        (at(0), "id-9", "nine", 1, 0, 4.0, 4.0),
        (at(3600), "id-9", "nine", 1, 0, 1.0, 1.0),
    ]
    assert pq.read_schema(tables / "sequence_minutes.parquet").names == SEQUENCE_MINUTES.names
    assert rows(tables / "sequence_minutes.parquet") == [
        (at(0), "Fitness", "a", 2, 1, 7.0, 10.0),
        (at(3600), "Fitness", "b", 1, 0, 1.0, 1.0),
    ]


def test_devices_have_the_limits_they_had_at_the_end(tables):
    assert pq.read_schema(tables / "devices.parquet") == DEVICES
    assert rows(tables / "devices.parquet") == [("id-7", "seven", 2, 3, 50, 5.0), ("id-9", "nine", 2, 3, 50, 5.0)]


def test_faults_have_a_moment_a_kind_and_a_subject(tables):
    assert rows(tables / "faults.parquet") == [(at(90), "silent", "shard 1", "no answer within the tick")]


def test_a_run_without_anything_has_empty_tables_of_the_same_columns(story, tmp_path):
    write(tmp_path, story.told())
    for name, schema in (("sends", SENDS), ("device_minutes", DEVICE_MINUTES), ("faults", FAULTS)):
        table = pq.read_table(tmp_path / f"{name}.parquet")
        assert (table.num_rows, table.schema.names) == (0, schema.names)


def test_a_message_the_ledger_does_not_know_has_no_due_moment(story, tmp_path):
    done = story.message(7, 0, 10).told()
    lost = replace(done, evidence=replace(done.evidence, ledger=done.evidence.ledger[:0]))
    write(tmp_path, lost)
    sent = pq.read_table(tmp_path / "sends.parquet").to_pylist()
    assert [(row["slot"], row["due"], row["late_s"], row["enrolment_id"]) for row in sent] == [
        (at(10), None, None, None)
    ]
    assert rows(tmp_path / "device_minutes.parquet") == [(at(0), "id-7", "seven", 1, 0, None, None)]
