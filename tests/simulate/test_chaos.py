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

DEVICES, LEADS = 100, 3000
TICK_S = 60.0
PHASES = ("quiet", "leased", "arrived")
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
    """Lets faults strike, group after group, each at its phase: ``quiet`` between two ticks, ``leased`` as soon as
    claims have committed, ``arrived`` as soon as the referee has messages that nobody has written yet.

    Args:
        url: the rehearsal database.
        groups: phase and the faults that strike together.
    """

    def __init__(self, url: str, groups: list[tuple[str, list[Fault]]]) -> None:
        self._url, self._groups, self.struck = url, groups, 0
        self._ambush: threading.Thread | None = None

    def __call__(self, progress: Progress) -> None:
        if self._ambush is not None and self._ambush.is_alive():
            return
        if self._groups:
            phase, faults = self._groups.pop(0)
            self._ambush = threading.Thread(target=self._lie_in_wait, args=(phase, [aim() for aim in faults]))
            self._ambush.start()
            if phase == "quiet":
                self._ambush.join()

    def end(self) -> None:
        if self._ambush is not None:
            self._ambush.join(60)

    def _lie_in_wait(self, phase: str, strikes: list[Strike]) -> None:
        if phase == "leased":
            asyncio.run(_until_leased(self._url))
        elif phase == "arrived":
            spools = Path(tempfile.gettempdir()).glob("dripline-*/receipts.bin")
            spool = max(spools, key=lambda path: path.stat().st_mtime)
            size, give_up_s = spool.stat().st_size, time.monotonic() + 30
            while spool.stat().st_size == size and time.monotonic() < give_up_s:
                time.sleep(0.0005)
        for strike in strikes:
            strike()
            self.struck += 1


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


def run(fragile: Any, groups: list[tuple[str, list[Fault]]]) -> Rehearsed:
    """A run through a storm, with everything that must hold after any of them."""
    faults = sum(len(group) for _, group in groups)
    storm = Storm(fragile.url, groups)
    try:
        done = fragile.rehearse(storm, devices=DEVICES, leads=LEADS, days=5, tick_s=TICK_S)
    finally:
        storm.end()
    assert storm.struck == faults
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


def test_a_shard_dies(fragile, kill):
    done = run(fragile, [(phase, [kill(f"shard-{turn}")]) for turn in (0, 1) for phase in PHASES])
    assert done.receipts.answered(Outcome.REPEAT).any()


def test_the_coordinator_dies(fragile, kill):
    run(fragile, [(phase, [kill("coordinator")]) for phase in PHASES * 2])


def test_the_database_crashes(fragile, crash):
    run(fragile, [(phase, [crash]) for phase in PHASES * 2])


def test_everything_dies_at_once(fragile, crash, kill):
    run(fragile, [(phase, [kill("shard-0"), kill("coordinator"), crash]) for phase in PHASES])
