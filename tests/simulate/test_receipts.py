"""Receipts as files and as a hash, from three hand-made ones."""

from __future__ import annotations

import csv
from datetime import UTC, datetime

import numpy as np
import pyarrow.parquet as pq
import pytest

from dispatcher.core.outcomes import Outcome
from simulate.receipts import COLUMNS, RECEIPT, Receipts, body_sum, read

STEPS = [("Fitness", "fitness_start"), ("Crypto", "crypto_welcome")]
DEVICES = {3: ("id-of-three", "sim-b"), 8: ("id-of-eight", "sim-a")}
NAMES = {3: "sim-b", 8: "sim-a"}
START_US = 1_767_571_200_000_000
KEY = bytes(range(16))
ROWS = [
    (START_US + 5_000_000, START_US + 5_250_000, 3, 0, 1, 1, b"999100000001", KEY, Outcome.ACCEPTED, 7),
    (START_US, START_US + 1, 3, 1, 2, 1, b"999100000003", KEY, Outcome.REJECTED, 7),
    (START_US, START_US + 2, 8, 0, 1, 2, b"999100000002", KEY, Outcome.REPEAT, 7),
]
UUID_TEXT = "00010203-0405-0607-0809-0a0b0c0d0e0f"
DAY = datetime(2026, 1, 5, tzinfo=UTC)
TABLE = [
    (DAY, DAY.replace(microsecond=2), "id-of-eight", "sim-a", "999100000002", *STEPS[0], 1, UUID_TEXT, "repeat"),
    (DAY, DAY.replace(microsecond=1), "id-of-three", "sim-b", "999100000003", *STEPS[1], 2, UUID_TEXT, "rejected"),
    (
        DAY.replace(second=5), DAY.replace(second=5, microsecond=250_000), "id-of-three", "sim-b", "999100000001",
        *STEPS[0], 1, UUID_TEXT, "accepted",
    ),
]  # fmt: skip
"""The three by slot, then device name."""


@pytest.fixture
def receipts() -> Receipts:
    """The three, in the order of arrival."""
    return Receipts(np.array(ROWS, RECEIPT), STEPS)


def test_a_csv_file_has_the_documented_columns(receipts, tmp_path):
    receipts.write(tmp_path / "r.csv", DEVICES)
    with (tmp_path / "r.csv").open(newline="") as file:
        head, *rows = csv.reader(file)
    assert tuple(head) == COLUMNS
    assert " ".join(head) == "slot arrived_at device_id device phone sequence step_trigger visit key answer"
    assert rows == [
        [field.isoformat() if isinstance(field, datetime) else str(field) for field in row] for row in TABLE
    ]


def test_a_parquet_file_says_the_same(receipts, tmp_path):
    receipts.write(tmp_path / "r.parquet", DEVICES)
    table = pq.read_table(tmp_path / "r.parquet")
    assert tuple(table.column_names) == COLUMNS
    assert [tuple(row.values()) for row in table.to_pylist()] == TABLE


@pytest.mark.parametrize("name", ["r.csv", "r.parquet"])
def test_no_receipts_are_a_file_too(name, tmp_path):
    Receipts(np.zeros(0, RECEIPT), []).write(tmp_path / name, {})
    if name.endswith(".csv"):
        assert (tmp_path / name).read_text().strip() == ",".join(COLUMNS)
    else:
        assert pq.read_table(tmp_path / name).num_rows == 0


def test_the_hash_knows_what_happened_but_no_generated_id(receipts):
    first = receipts.sha256(NAMES)
    shuffled = Receipts(receipts.rows[::-1].copy(), STEPS)
    assert shuffled.sha256(NAMES) == first

    other_ids = receipts.rows.copy()
    other_ids["key"], other_ids["arrived_us"], other_ids["device"] = b"x" * 16, 0, [1, 1, 2]
    assert Receipts(other_ids, STEPS).sha256({1: "sim-b", 2: "sim-a"}) == first

    for column, value in (("slot_us", START_US + 1), ("phone", b"1"), ("step", 1), ("visit", 9), ("answer", 1)):
        changed = receipts.rows.copy()
        changed[column][0] = value
        assert Receipts(changed, STEPS).sha256(NAMES) != first, column
    assert receipts.sha256({3: "sim-a", 8: "sim-b"}) != first


def test_a_file_is_read_as_it_was_written(receipts, tmp_path):
    (tmp_path / "receipts.bin").write_bytes(receipts.rows.tobytes())
    assert read(tmp_path / "receipts.bin", STEPS).rows.tolist() == receipts.rows.tolist()


def test_the_sum_of_a_body_tells_text_and_media_apart():
    bodies = [("Hi Ann", None), ("Hi Ann", "http://x/a"), ("Hi Annhttp://x/a", None), ("Hi Bo", None)]
    assert len({body_sum(*body) for body in bodies}) == len(bodies)
    assert body_sum("Hi Ann", None) == body_sum("Hi Ann", "")
