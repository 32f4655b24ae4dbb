"""Processes and the database die in the middle of ticks; nothing is lost, doubled, early or over a limit."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from dispatcher.core.outcomes import Outcome
from dispatcher.store.connect import connect
from dispatcher.store.embedded import EmbeddedServer
from simulate.driver import Progress
from simulate.rehearsal import Rehearsed

DEVICES, LEADS = 100, 2500
TICK_S = 150.0
LEASED = "SELECT EXISTS (SELECT FROM sequence_contacts WHERE processing_device_id IS NOT NULL)"
Strike = Callable[[], None]
Fault = Callable[[], Strike]
"""Takes aim between two ticks; what it returns strikes."""


@pytest.fixture(scope="module")
def crashing_server() -> Iterator[EmbeddedServer]:
    """A server of this file's own: it is crashed."""
    memory = Path("/dev/shm")
    data_dir = Path(tempfile.mkdtemp(prefix="dl-", dir=memory if memory.is_dir() else None))
    data_dir.chmod(0o711)
    server = EmbeddedServer(data_dir, shared_buffers_mb=64)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(data_dir)


@pytest.fixture
def fragile(crashing_server, world_of):
    """The world of that server's only database."""
    return world_of(crashing_server.url())


@pytest.fixture
def crash(crashing_server) -> Fault:
    """The server dies without a checkpoint and recovers."""

    def strike() -> None:
        crashing_server.crash()
        crashing_server.start()

    return lambda: strike


@pytest.fixture
def kill(actor_pid) -> Callable[[str], Fault]:
    """``kill -9`` of an actor."""


    def kill_actor(name: str) -> Fault:
        def aim() -> Strike:
            pid = actor_pid(name)
            return lambda: os.kill(pid, signal.SIGKILL)

        return aim

    return kill_actor


class Storm:
    """Lets each fault strike once inside a tick: ``quiet`` between two ticks, ``leased`` as soon as claims have
    committed, ``arrived`` as soon as the referee has messages nobody has written yet.

    Args:
        url: the rehearsal database.
        plan: (tick number, phase, fault), by tick number.
    """

    def __init__(self, url: str, plan: list[tuple[int, str, Fault]]) -> None:
        self._url, self._plan, self.struck = url, plan, 0
        self._threads: list[threading.Thread] = []

    def __call__(self, progress: Progress) -> None:
        while self._plan and progress.ticks >= self._plan[0][0]:
            _, phase, fault = self._plan.pop(0)
            strike = fault()
            if phase == "quiet":
                self._strike(strike)
            else:
                self._threads.append(threading.Thread(target=self._ambush, args=(phase, strike)))
                self._threads[-1].start()

    def end(self) -> None:
        for thread in self._threads:
            thread.join(60)

    def _strike(self, strike: Strike) -> None:
        strike()
        self.struck += 1

    def _ambush(self, phase: str, strike: Strike) -> None:
        if phase == "leased":
            asyncio.run(_until_leased(self._url))
        else:
            spool = max(Path(tempfile.gettempdir()).glob("dripline-*/receipts.bin"), key=lambda path: path.stat().st_mtime)
            size, give_up_s = spool.stat().st_size, time.monotonic() + 30
            while spool.stat().st_size == size and time.monotonic() < give_up_s:
                time.sleep(0.0005)
        self._strike(strike)


async def _until_leased(url: str) -> None:
    connection = await connect(url)
    try:
        give_up_s = time.monotonic() + 30
        while not await connection.fetchval(LEASED) and time.monotonic() < give_up_s:
            await asyncio.sleep(0.001)
    except asyncpg.PostgresError:
        return
    finally:
        connection.terminate()


def run(fragile: Any, faults: list[tuple[int, str, Fault]]) -> Rehearsed:
    """A run through a storm, with everything that must hold after any of them."""
    storm = Storm(fragile.url, faults)
    count = len(faults)
    try:
        done = fragile.rehearse(storm, devices=DEVICES, leads=LEADS, days=5, tick_s=TICK_S)
    finally:
        storm.end()
    assert storm.struck == count
    assert done.outcome.good, done.outcome.violations
    assert done.outcome.completed == done.outcome.enrolled > LEADS
    assert done.outcome.sends == 3 * done.outcome.enrolled
    agree(done)
    return done


def agree(done: Rehearsed) -> None:
    """Receipts and ledger, row by row."""
    ledger = {
        (row["key"].tobytes(), int(row["attempt"])): (
            int(row["device"]), int(slot_us), int(row["visit"]), done.evidence.outcomes[row["outcome"] - 1],
        )
        for row, slot_us in zip(done.evidence.ledger, done.evidence.ledger_us("reserved"), strict=True)
    }  # fmt: skip
    assert len(ledger) == len(done.evidence.ledger)
    receipts = {
        (row["key"].tobytes(), int(row["attempt"])): (
            int(row["device"]), int(row["slot_us"]), int(row["visit"]), Outcome(row["answer"]).label,
        )
        for row in done.receipts.rows
    }  # fmt: skip
    assert len(receipts) == len(done.receipts)
    for attempt, receipt in receipts.items():
        assert ledger.get(attempt) == receipt
    assert {ledger[attempt][3] for attempt in ledger.keys() - receipts.keys()} <= {"not_sent"}


PHASES = ("quiet", "leased", "arrived")


def test_a_shard_dies(fragile, kill):
    done = run(fragile, [(tick, PHASES[tick % 3], kill(f"shard-{tick % 2}")) for tick in range(1, 7)])
    assert done.receipts.answered(Outcome.REPEAT).any()


def test_the_coordinator_dies(fragile, kill):
    run(fragile, [(tick, PHASES[tick % 3], kill("coordinator")) for tick in range(1, 7)])


def test_the_database_crashes(fragile, crash):
    run(fragile, [(tick, PHASES[tick % 3], crash) for tick in range(1, 7)])


def test_everything_dies_at_once(fragile, crash, kill):
    faults: list[tuple[int, str, Fault]] = []
    for tick in range(1, 4):
        faults += [(tick, PHASES[tick % 3], fault) for fault in (kill("shard-0"), kill("coordinator"), crash)]
    run(fragile, faults)
