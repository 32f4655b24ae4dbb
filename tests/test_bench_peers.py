"""``bench.raw`` writes what production writes; ``bench.peers`` times others to their last row, or skips them."""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bench import peers, raw
from bench.accepting import accepted
from bench.bench import Bench
from dispatcher.completer import ends_of
from dispatcher.config import Settings
from dispatcher.core.identity import idempotency_keys
from dispatcher.core.leases import Want
from dispatcher.store.connect import connect, open_pool
from dispatcher.store.coordinator_store import PostgresCoordinatorStore
from dispatcher.store.shard_store import PostgresShardStore

pytestmark = pytest.mark.slow
DAY_US = 24 * 3600 * 1_000_000
DEADLINE_US = 30_000_000
TABLES = {
    "sequence_contacts": "home_device_id",
    "message_ledger": "device_id",
    "leads": "home_device_id",
}
EVERYTHING = """
SELECT (to_jsonb(t) - '{device}' - 'shard_epoch' || jsonb_build_object('device', d.number))::text
FROM {table} t LEFT JOIN devices d ON d.id = t.{device} ORDER BY 1
"""
PEER = """
import asyncio, sys
import asyncpg
from talk import go

async def main(what, url, number):
    connection = await asyncpg.connect(url)
    if what == "fill":
        await connection.execute(f"CREATE TABLE jobs AS SELECT generate_series(1, {int(number)}) AS n")
        return
    done = 0
    telling = await go(lambda: done)
    if number == "0":
        raise ValueError("no error in /some/where is as telling as this one")
    while taken := await connection.fetch(
        "DELETE FROM jobs WHERE n IN (SELECT n FROM jobs WHERE n > 1 LIMIT $1 FOR UPDATE SKIP LOCKED) RETURNING n",
        int(number),
    ):
        done += len(taken)
    done += 1  # the last one counts before its row is gone
    await asyncio.sleep(0.3)
    await connection.execute("DELETE FROM jobs")
    await asyncio.wait([telling])

asyncio.run(main(*sys.argv[1:]))
"""


# The raw loop --------------------------------------------------------------------------------------------------------


async def test_the_raw_loop_sends_everything_asked_for_and_leaves_no_database(server):
    figures = await raw.raw_loop(server, enrolments=1000, sends=902)
    assert figures.sends == 900
    # 300 devices in two groups, three steps: six claims and as many completions.
    assert figures.statements == pytest.approx(12 / 900 * 1000)
    assert figures.wal_bytes > 200
    connection = await connect(server.url("postgres"))
    names = await connection.fetch("SELECT datname FROM pg_database")
    await connection.close()
    assert raw.DATABASE not in [row["datname"] for row in names]


@pytest.fixture
def two_urls(new_database: Callable[..., str]) -> tuple[str, str]:
    """Two migrated databases."""
    return new_database(), new_database()


async def test_the_raw_loop_claims_and_writes_what_production_claims_and_writes(two_urls, monkeypatch):
    for size, value in {"DEVICES": 20, "DEVICES_A_CLAIM": 7, "SLOTS": 3}.items():
        monkeypatch.setattr(raw, size, value)
    found = []
    for url, way in zip(two_urls, (raw.Loop.run, production), strict=True):
        pool = await open_pool(url, size=3)
        loop = await raw.load(url, pool, enrolments=400, taking_part=350)
        await way(loop)
        connection = await connect(url)
        found.append({
            table: [row[0] for row in await connection.fetch(EVERYTHING.format(table=table, device=device))]
            for table, device in TABLES.items()
        })  # fmt: skip
        await connection.close()
        pool.terminate()
    for table, rows in (("sequence_contacts", 400), ("message_ledger", 1050), ("leads", 400)):
        assert len(found[0][table]) == rows
        assert found[0][table] == found[1][table]


async def production(loop: raw.Loop) -> None:
    """The same claims and ends through the stores."""
    coordinator = PostgresCoordinatorStore(loop.pool, "test")
    shard = PostgresShardStore(loop.pool, 0, "test")
    catalogue = await shard.catalogue()
    epoch, own = await coordinator.seat.raise_epoch(), await shard.seat.raise_epoch()
    for _, devices, slots, sent in loop.claims():
        rank = np.arange(slots.sum()) - np.repeat(np.cumsum(slots) - slots, slots)
        slot_us = raw.START_US + (np.repeat(sent, slots) + rank) * raw.GAP_US
        ids = [loop.device_id[device] for device in devices.tolist()]
        want = Want(0, own, ids, devices + 1, slots, slot_us, np.zeros(len(ids), np.int64))
        leased = await coordinator.claim(want, raw.START_US, epoch=epoch, deadline_us=DEADLINE_US, lead_fields=False)
        assert leased is not None
        keys = idempotency_keys(leased.enrolment, leased.visit, leased.generation)
        honoured = np.ones(len(leased), np.bool_)
        ends = ends_of(leased, keys, accepted(leased.slot_us), None, catalogue, honoured, Settings())
        # In the loop the next step is a day behind the last one's due moment, so that no clock has to move.
        ends = ends.replace(next_due_us=leased.due_us + DAY_US)
        await shard.end(ends, raw.START_US, epoch=own, deadline_us=DEADLINE_US)


def test_a_claim_never_asks_a_device_for_a_step_that_cannot_be_due_yet():
    loop = raw.Loop(None, [], taking_part=35 * raw.DEVICES + 7, following={})
    given = np.zeros(raw.DEVICES, np.int64)
    for _, devices, slots, sent in loop.claims():
        assert slots.min() > 0
        assert slots.max() <= raw.SLOTS
        assert slots.sum() <= raw.DEVICES_A_CLAIM * raw.SLOTS
        assert (given[devices] == sent).all()
        given[devices] += slots
    assert given.tolist() == [108] * 7 + [105] * (raw.DEVICES - 7)


# Peers ---------------------------------------------------------------------------------------------------------------


def stand_in(place: Path, number: int) -> peers.Installed:
    """A queue in one table."""
    (place / "drain_stand_in.py").write_text(PEER)
    shutil.copy(peers.SCRIPTS / "talk.py", place)
    script = str(place / "drain_stand_in.py")
    peer = peers.Peer("stand-in", (), "drain_stand_in.py", (number,), processes=2, jobs=0, unfinished="FROM jobs")
    return peers.Installed(peer, (sys.executable, script))


async def test_the_clock_of_a_peer_runs_until_its_last_row_is_gone(server, tmp_path):
    rate = await peers.drained(stand_in(tmp_path, 7), server, 200)
    assert 200 / rate >= 0.3
    connection = await connect(server.url("postgres"))
    left = await connection.fetch("SELECT datname FROM pg_database WHERE datname LIKE 'bench%'")
    await connection.close()
    assert left == []


async def test_a_peer_that_dies_says_why_without_a_path(server, tmp_path):
    with pytest.raises(peers.PeerError) as raised:
        await peers.drained(stand_in(tmp_path, 0), server, 10)
    assert str(raised.value) == "it does not run (ValueError: no error in ... is as telling as this one)"


async def test_what_cannot_be_installed_is_skipped_with_a_word(server, tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'ERROR: nothing found in /some/place' >&2\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    said: list[str] = []
    runs, skipped = await peers.peers(Bench(1, 0.01, tmp_path, said.append), server)
    assert runs == {}
    assert skipped == {
        "PgQueuer": "python fails (ERROR: nothing found in ...)",
        "procrastinate": "python fails (ERROR: nothing found in ...)",
        "graphile-worker": "there is no npm",
        "pg-boss": "there is no npm",
    }
    assert len(said) == len(peers.PEERS)


async def test_what_is_installed_is_not_installed_again(tmp_path, monkeypatch):
    called: list[str] = []

    async def call(*command: str, folder: Path | None = None) -> str:
        await asyncio.sleep(0)
        called.append(command[0])
        return ""

    monkeypatch.setattr(peers, "call", call)
    first = await peers.install(peers.PEERS[0], tmp_path)
    assert len(called) == 2
    assert await peers.install(peers.PEERS[0], tmp_path) == first
    assert len(called) == 2
    assert Path(first.program[1]).with_name("talk.py").exists()
