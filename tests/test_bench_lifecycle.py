"""What a send costs in counts, which no machine changes: the guard against a change that makes it dearer."""

from __future__ import annotations

import asyncio

import pytest

from bench.bench import Bench
from bench.local import send_all

LEADS, DEVICES = 4000, 200
STEPS = 3
WAL_BYTES = {"claim": 325, "last_look": 30, "end": 955}
"""A send, at most: about a twentieth above what was measured."""
CALLS = 15
"""A thousand sends, at most."""
READ = {"rows": 13.3, "entries": 14.8}
"""Rows of tables and entries of indexes a send, at most: about a seventh above what was measured."""


@pytest.fixture(scope="module")
def cost(tmp_path_factory):
    """Figures and statements of a lifecycle, one statement at a time."""
    place = tmp_path_factory.mktemp("bench")
    with Bench(1, 1, place, lambda _: None).server() as server:
        return asyncio.run(send_all(server, LEADS, DEVICES, alone=True))


def test_every_message_is_sent(cost):
    figures, _ = cost
    assert figures.sends % STEPS == 0
    assert figures.sends >= STEPS * LEADS


@pytest.mark.parametrize("statement", WAL_BYTES)
def test_the_log_grows_by_so_many_bytes_a_send(cost, statement):
    figures, tally = cost
    assert 0 < tally.costs[statement].wal_bytes / figures.sends <= WAL_BYTES[statement]


def test_statements_come_in_batches(cost):
    figures, tally = cost
    calls = {name: tally.costs[name].calls / figures.sends * 1000 for name in WAL_BYTES}
    assert {name: rate for name, rate in calls.items() if not 0 < rate <= CALLS} == {}


def test_so_many_rows_and_index_entries_are_read_for_a_send(cost):
    figures, _ = cost
    read = figures.read._asdict()
    assert {what: count for what, count in read.items() if not 1 <= count <= READ[what]} == {}
