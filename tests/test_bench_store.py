"""``python -m bench claims enrolment restart``, tiny: the same work on every side, and what statements read."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dispatcher.store.connect import connect, open_pool
from dispatcher.store.embedded import EmbeddedServer

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
CLAIMED, SHARDS = 33, 10
"""Slots of a claim on the ten devices a shard has at this scale."""


@pytest.fixture
async def bench(monkeypatch, server: EmbeddedServer, tmp_path) -> AsyncIterator[Any]:
    """A run of one round at a five hundredth of the sizes, on the tests' own server; its databases go afterwards."""
    monkeypatch.syspath_prepend(str(ROOT))
    from bench.bench import Bench

    class Here(Bench):
        @contextmanager
        def server(self) -> Iterator[EmbeddedServer]:
            yield server

    before = await databases(server)
    yield Here(repeat=1, scale=0.002, place=tmp_path, say=lambda _: None)
    admin = await connect(server.url("postgres"))
    for name in await databases(server) - before:
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await admin.close()


async def databases(server: EmbeddedServer) -> set[str]:
    admin = await connect(server.url("postgres"))
    found = {row["datname"] for row in await admin.fetch("SELECT datname FROM pg_database")}
    await admin.close()
    return found


async def row(server: EmbeddedServer, database: str, sql: str) -> tuple[Any, ...]:
    connection = await connect(server.url(database))
    (found,) = await connection.fetch(sql)
    await connection.close()
    return tuple(found)


ENROLMENTS = """
SELECT count(*), count(*) FILTER (WHERE held), count(*) FILTER (WHERE visit > 1), count(processing_device_id),
       sum(attempt), (SELECT count(*) FROM message_ledger)
FROM sequence_contacts
"""


async def test_claims_lease_the_same_in_every_state_and_leave_it_as_it_was(bench, server):
    from bench import claims

    part = await claims.measure(bench)
    *measured, beside_snapshot = part.measures
    assert [measure.name for measure in measured] == [*claims.SIZES, claims.AFTER_CHURN, *claims.BEHIND.values()]
    assert {(measure.counts["rows"], len(measure.values)) for measure in measured} == {(CLAIMED, 5)}
    read = {measure.counts["rows read"] for measure in measured}
    assert len(read) == 1, "what may not be sent, and what has gone, is passed over inside the index"
    assert read.pop() <= 2 * CLAIMED + 10, "once to choose, once to write"
    assert part.of("10 million").counts["buffers"] <= 2 * part.of("1 million").counts["buffers"]
    assert all(measure.counts["WAL B"] > 0 for measure in measured)
    assert beside_snapshot.values
    assert [(ratio.name, ratio.asked, ratio.stretch, ratio.below) for ratio in part.ratios] == [
        ("claim of 1000 at 10 M rows ÷ at 1 M", 1.3, 1.1, True),
        ("claim after an hour of churn ÷ fresh", 1.5, 1.2, True),
        ("claim behind 1 M blocked contacts ÷ without", 1.5, 1.2, True),
    ]
    churned = 627  # 19 claims: as soon as 30 % of 2000 have been reached
    assert {
        name: await row(server, name, ENROLMENTS)
        for name in ("at_100_thousand", "at_10_million", "churned", "paused", "held", "future")
    } == {
        "at_100_thousand": (1000, 0, 0, 0, 0, 0),
        "at_10_million": (20_000, 0, 0, 0, 0, 0),
        "churned": (2000, 0, churned, 0, 0, churned),
        "paused": (3000, 0, 0, 0, 0, 0),
        "held": (3000, 2000, 0, 0, 0, 0),
        "future": (3000, 0, 0, 0, 0, 0),
    }


async def test_six_of_ten_enrolments_are_due_on_every_device(bench, server):
    from bench import claims
    from bench.databases import NOW_US, Databases

    await claims.fresh(bench, Databases(server, 10), {"100 thousand": 1000})
    due = f"""
    SELECT count(*), min(due), max(due) FROM (
        SELECT count(*) FILTER (WHERE next_trigger_time <= dripline_at({NOW_US})) AS due
        FROM sequence_contacts GROUP BY home_device_id) d
    """
    devices, least, most = await row(server, "at_100_thousand", due)
    assert devices == 10 * SHARDS
    assert 5 <= least <= most <= 7


async def test_a_report_holds_a_snapshot_that_no_cleaning_passes(database_url, bench, connection):
    from bench import claims

    held = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND backend_xmin IS NOT NULL"
    alone = await connection.fetchval(held)
    async with claims.snapshot(database_url):
        assert await connection.fetchval(held) == alone + 1
    assert await connection.fetchval(held) == alone


async def test_engine_and_bare_statement_enrol_the_same_leads_and_an_idle_pass_reads_nothing(bench, server):
    from bench import enrolment

    part = await enrolment.measure(bench)
    for size, leads in (("1 million", 2000), ("5 million", 10_000)):
        engine, bare = part.of(f"engine, {size}"), part.of(f"bare INSERT ... SELECT, {size}")
        assert engine.note == bare.note == f"{leads:,} leads"
        assert min(engine.counts["WAL B an enrolment"], bare.counts["WAL B an enrolment"]) > 100
    small, large = (part.of(f"idle pass at {size} leads") for size in ("100 thousand", "10 million"))
    assert len(small.values) == len(large.values) == 20
    assert large.counts["rows read"] == small.counts["rows read"] < 10
    assert large.counts["statements"] == small.counts["statements"] > 1
    assert large.counts["buffers"] <= small.counts["buffers"] + 5 < 50
    assert [(ratio.name, ratio.asked, ratio.stretch, ratio.below) for ratio in part.ratios] == [
        ("bulk enrolment ÷ the bare INSERT … SELECT with the same indexes", 0.7, 0.9, False),
        ("idle enrol pass at 10 M leads ÷ at 100 thousand", 1.2, 1.0, True),
    ]
    assert await row(server, "at_10_million", "SELECT count(*), count(trigger) FROM leads") == (20_000, 0)


async def test_contenders_that_did_not_do_the_same_work_are_refused(bench, server):
    from bench import enrolment
    from bench.databases import Databases, connected

    made = Databases(server, 1)
    await enrolment.load(bench, made, {"1 million": 1000})
    async with connected(made.url("at_1_million")) as connection:
        await connection.execute("UPDATE leads SET niche = 'other' WHERE id = 1")
    with pytest.raises(AssertionError, match="999 enrolled"):
        await enrolment.by_statement(made, "1 million")


async def test_a_takeover_reads_its_own_devices_and_every_lease_is_rescued(bench):
    from bench import restart

    part = await restart.measure(bench)
    ready, *rescues = part.measures
    assert ready.note == f"10 devices, {10 * SHARDS * restart.SENT:,} rows in the ledger"
    assert 0 <= ready.counts["rows read"] - 10 * restart.SENT < 500, "the ledger of its own devices, once"
    assert [measure.name for measure in rescues] == list(restart.CASES)
    assert all(measure.note.startswith("1,000 leases in ") for measure in rescues)
    assert all(measure.counts["passes"] == 2 for measure in rescues), "one that resolves all, one that finds none"
    assert all(measure.counts["WAL B a lease"] > 50 for measure in rescues)


async def test_what_a_statement_writes_counts_whether_its_result_is_read_or_not(bench, connection, database_url):
    from bench.plans import counted

    pool = await open_pool(database_url, size=1)
    insert = "INSERT INTO opt_outs SELECT n, now() FROM generate_series(1, 100) n"
    unread = (f"WITH w AS ({insert}) SELECT 1", ())
    read = (f"WITH w AS ({insert} RETURNING 1) SELECT count(*) FROM w", ())
    await counted(pool, [unread])
    found = [await counted(pool, [run]) for run in (unread, read)]
    pool.terminate()
    assert found[0]["WAL B"] == pytest.approx(found[1]["WAL B"], rel=0.2)
    assert min(found[0]["WAL B"], found[0]["buffers"]) > 100
    assert await connection.fetchval("SELECT count(*) FROM opt_outs") == 0, "nothing stays"
