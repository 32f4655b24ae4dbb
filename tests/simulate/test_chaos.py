"""Processes and the database die in the middle of ticks; nothing is lost, doubled, early or over a limit."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dispatcher.core.graph import Sequence, Step
from dispatcher.core.outcomes import Outcome
from dispatcher.store.connect import connect
from dispatcher.store.embedded import EmbeddedServer
from simulate.driver import Progress
from simulate.rehearsal import Rehearsed

DEVICES, LEADS = 100, 3000
TICK_S = 60.0
PHASES = ("quiet", "leased", "arrived")
LOCK_LEDGER = """BEGIN; DO $$ DECLARE part regclass; BEGIN
    FOR part IN SELECT inhrelid FROM pg_inherits WHERE inhparent = 'message_ledger'::regclass LOOP
        EXECUTE format('LOCK TABLE %s IN SHARE MODE', part);
    END LOOP;
END $$"""
LEASED = "SELECT EXISTS (SELECT FROM sequence_contacts WHERE lease_token IS NOT NULL)"
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
def fragile(crashing_server, world_of, tmp_path, monkeypatch):
    """The world of that server's only database; its referee writes below ``tmp_path``, where nobody else's does."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
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
    claims have committed, ``arrived`` when the referee has messages but nobody could write their outcomes yet, since
    the ledger is locked.

    Args:
        url: the rehearsal database.
        groups: phase and the faults that strike together.
        calm: how many ticks go by first.
    """

    def __init__(self, url: str, groups: list[tuple[str, list[Fault]]], calm: int) -> None:
        self._url, self._groups, self._calm, self.struck = url, groups, calm, 0
        self._ambush: threading.Thread | None = None

    def __call__(self, progress: Progress) -> None:
        if progress.ticks < self._calm or (self._ambush is not None and self._ambush.is_alive()):
            return
        if self._groups:
            phase, faults = self._groups.pop(0)
            set_up = threading.Event()
            body = self._strike(phase, [aim() for aim in faults], set_up)
            self._ambush = threading.Thread(target=asyncio.run, args=(body,))
            self._ambush.start()
            set_up.wait(60)

    def end(self) -> None:
        if self._ambush is not None:
            self._ambush.join(60)

    async def _strike(self, phase: str, strikes: list[Strike], set_up: threading.Event) -> None:
        connection = await connect(self._url)
        try:
            if phase == "leased":
                set_up.set()
                await _until(lambda: connection.fetchval(LEASED))
            elif phase == "arrived":
                arrived = _spool_size()
                await connection.execute(LOCK_LEDGER)
                set_up.set()
                await _until(lambda: asyncio.to_thread(lambda: _spool_size() > arrived))
                await asyncio.sleep(0.2)
            for strike in strikes:
                strike()
                self.struck += 1
        finally:
            connection.terminate()
            set_up.set()


def _spool_size() -> int:
    """Bytes in the running referee's file of receipts."""
    return sum(path.stat().st_size for path in Path(tempfile.gettempdir()).glob("dripline-*/receipts.bin"))


async def _until(true: Callable[[], Awaitable[bool]]) -> None:
    give_up_s = time.monotonic() + 30
    while not await true():
        assert time.monotonic() < give_up_s
        await asyncio.sleep(0.001)


def run(fragile: Any, groups: list[tuple[str, list[Fault]]], calm: int = 0, **plan: Any) -> Rehearsed:
    """A run through a storm that begins after ``calm`` ticks; all its faults struck."""
    faults = sum(len(group) for _, group in groups)
    storm = Storm(fragile.url, groups, calm)
    try:
        done = fragile.rehearse(storm, **{"devices": DEVICES, "leads": LEADS, "days": 5, "tick_s": TICK_S, **plan})
    finally:
        storm.end()
    assert storm.struck == faults
    return done


def wrong(done: Rehearsed, sends: int = 3) -> list[str]:
    """What does not hold after a run that must hold after any: ``sends`` messages an enrolment, ledger as receipts."""
    outcome, ledger, receipts = done.outcome, ledger_of(done), receipts_of(done)
    # Two attempts of one visit in doubt, then "accepted before": nobody outside the gateway can know which one it was.
    open_keys = {key for (key, _), row in ledger.items() if row[3] == "in_doubt"}
    found = [
        f"{attempt}: receipt {receipt}, ledger {ledger.get(attempt)}"
        for attempt, receipt in receipts.items()
        if (ledger.get(attempt, ())[:3] != receipt[:3] if attempt[0] in open_keys else ledger.get(attempt) != receipt)
    ]
    found += [
        f"{attempt}: {row[3]} without a receipt"
        for attempt, row in ledger.items()
        if attempt not in receipts and attempt[0] not in open_keys and row[3] != "not_sent"
    ]
    for name, rows in (("ledger", ledger), ("receipts", receipts)):
        accepted = [key for (key, _), row in rows.items() if row[3] == "accepted"]
        if not len(accepted) == len(set(accepted)) == outcome.sends:
            found.append(f"{name}: {len(accepted)} accepted, {len(set(accepted))} keys, {outcome.sends} sends")
    if not outcome.good:
        found.append(f"{outcome.violations}")
    if not outcome.completed == outcome.enrolled >= LEADS or outcome.sends != outcome.enrolled * sends:
        found.append(f"{outcome.enrolled} enrolled, {outcome.completed} completed, {outcome.sends} sends")
    return found


def ledger_of(done: Rehearsed) -> dict[tuple[bytes, int], tuple[int, int, int, str]]:
    """Device, slot, visit and outcome by key and attempt, as the ledger has them."""
    ledger = {
        (row["key"].tobytes(), int(row["attempt"])): (
            int(row["device"]), int(slot_us), int(row["visit"]), done.evidence.outcomes[row["outcome"] - 1],
        )
        for row, slot_us in zip(done.evidence.ledger, done.evidence.ledger_us("reserved"), strict=True)
    }  # fmt: skip
    assert len(ledger) == len(done.evidence.ledger)
    return ledger


def receipts_of(done: Rehearsed) -> dict[tuple[bytes, int], tuple[int, int, int, str]]:
    """The same as the receipts have it."""
    receipts = {
        (row["key"].tobytes(), int(row["attempt"])): (
            int(row["device"]), int(row["slot_us"]), int(row["visit"]), Outcome(row["answer"]).label,
        )
        for row in done.receipts.rows
    }  # fmt: skip
    assert len(receipts) == len(done.receipts)
    return receipts


@pytest.mark.slow
def test_a_shard_dies(fragile, kill):
    done = run(fragile, [("quiet", [kill("shard-1")]), ("leased", [kill("shard-0")]), ("arrived", [kill("shard-1")])])
    assert wrong(done) == []
    assert done.receipts.answered(Outcome.REPEAT).any(), "none died between arrival and ledger"


@pytest.mark.slow
def test_the_coordinator_dies(fragile, kill):
    assert wrong(run(fragile, [(phase, [kill("coordinator")]) for phase in PHASES])) == []


@pytest.mark.slow
def test_the_database_crashes(fragile, crash):
    assert wrong(run(fragile, [(phase, [crash]) for phase in PHASES * 2])) == []


@pytest.mark.slow
def test_everything_dies_at_once(fragile, crash, kill):
    database_last = [kill("shard-0"), kill("coordinator"), crash]
    database_first = [crash, kill("coordinator"), kill("shard-1"), kill("shard-0")]
    assert wrong(run(fragile, [(phase, database_last) for phase in PHASES])) == []
    assert wrong(run(fragile, [(phase, database_first) for phase in PHASES[::-1]])) == []


@pytest.mark.parametrize(
    ("phase", "victim"),
    [
        ("arrived", "shard-0"),
        pytest.param("leased", "coordinator", marks=pytest.mark.slow),
        pytest.param("arrived", "database", marks=pytest.mark.slow),
    ],
)
def test_a_fault_in_the_last_tick_is_not_overlooked(fragile, crash, kill, phase, victim):
    """Nothing is due after it that would keep virtual time going."""
    once = Sequence(None, "Once", True, (Step("once", "Hello!", is_entry=True),))
    fault = crash if victim == "database" else kill(victim)
    done = run(fragile, [(phase, [fault])], calm=2, sequences=[once])
    assert wrong(done, sends=1) == []
    told = {(fault.kind, fault.subject) for fault in done.frame.faults}
    # A crash of the database may be over before anything gives up on it.
    assert {"shard-0": {("silent", "shard 0")}, "coordinator": {("broken off", "the tick")}}.get(victim, set()) <= told
    assert done.outcome.reruns == len(done.frame.faults)


@pytest.mark.slow
def test_a_shard_hangs(fragile, actor_pid):
    """A stopped process dies of nothing: the coordinator misses it and has it replaced."""

    def aim() -> Strike:
        pid = actor_pid("shard-0")
        return lambda: os.kill(pid, signal.SIGSTOP)

    quick = {"heartbeat_s": 0.5, "trust_s": 2.0, "leader_s": 3.0}
    assert wrong(run(fragile, [("arrived", [aim])], settings=quick)) == []
