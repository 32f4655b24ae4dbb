"""``dripline run`` as an operator meets it: a process, real gateways on the loopback, and what may befall it.

Hours are seconds long here, so that quotas bind and steps follow each other within a minute. What reached the gateway
is judged by the gateway's own log.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import psutil
import pytest

from dispatcher.store.connect import connect
from dispatcher.store.stamp import stamp
from simulate.gateway import Arrival, GatewayProcess

CLEAN = {name: value for name, value in os.environ.items() if not name.startswith("DRIPLINE_")}
STEPS = ("fitness_start", "fitness_day2", "fitness_day3")
TAG = "UPDATE leads SET trigger = 'fitness_start' WHERE niche = 'fitness'"


@dataclass(frozen=True)
class World:
    """A live database with devices, a sequence and leads, and the gateway its devices use."""

    url: str
    gateway: GatewayProcess
    hour_s: float
    quota: int
    leads: int
    steps: int
    settings: dict[str, str]

    def rows(self, sql: str) -> list[asyncpg.Record]:
        async def body() -> list[asyncpg.Record]:
            connection = await connect(self.url)
            try:
                return await connection.fetch(sql)
            finally:
                await connection.close()

        return asyncio.run(body())

    def attempts(self) -> list[Arrival]:
        return [each for each in self.gateway.arrivals() if each.answer != "expired"]

    def wait_until(self, holds: Callable[[], bool], limit_s: float) -> None:
        give_up_s = time.monotonic() + limit_s
        while not holds():
            assert time.monotonic() < give_up_s, Counter(each.answer for each in self.gateway.arrivals())
            time.sleep(0.25)

    def completed(self) -> bool:
        [row] = self.rows("SELECT count(*) FROM sequence_contacts WHERE status = 'completed'")
        return bool(row[0] == self.leads)

    def violations(self) -> dict[str, list[Any]]:
        """Every promise that was broken, by the gateway's log; empty when all were kept."""
        step_of = {hashlib.sha256(step.encode()).hexdigest()[:16]: step for step in STEPS}
        attempts = self.attempts()
        of_lead, of_device = defaultdict(list), defaultdict(list)
        for each in attempts:
            of_device[each.device_id].append(each.arrived_at)
            if each.answer == "accepted":
                of_lead[each.to].append(each)
        hours = {
            device: [
                (first, last)
                for first, last in zip(times, times[self.quota :], strict=False)
                if last - first < self.hour_s
            ]
            for device, times in of_device.items()
        }
        ledger = self.rows(
            "SELECT l.idempotency_key::text AS key, l.device_id::text AS device, c.contact_phone AS phone,"
            " l.step_trigger AS step, l.outcome FROM message_ledger l JOIN sequence_contacts c ON c.id = l.enrolment_id"
            " WHERE l.outcome NOT IN ('not_sent', 'expired')"
        )
        logged = Counter(
            (each.key, each.device_id, each.to, step_of[each.text_sha256], each.answer) for each in attempts
        )
        found: dict[str, list[Any]] = {
            "steps": [
                (phone, steps)
                for phone, arrivals in of_lead.items()
                if (steps := [step_of[each.text_sha256] for each in arrivals]) != list(STEPS[: self.steps])
            ],
            "leads": [len(of_lead)] if len(of_lead) != self.leads else [],
            "early": [
                later.arrived_at - earlier.arrived_at
                for arrivals in of_lead.values()
                for earlier, later in pairwise(arrivals)
                if later.arrived_at - earlier.arrived_at < self.hour_s
            ],
            "devices": [phone for phone, all_ in of_lead.items() if len({each.device_id for each in all_}) > 1],
            "over quota": [(device, each) for device, all_ in hours.items() for each in all_],
            "ledger": list((logged - Counter(map(tuple, ledger))).elements())
            + list((Counter(map(tuple, ledger)) - logged).elements()),
            "unfinished": self.rows("SELECT * FROM sequence_contacts WHERE status <> 'completed'"),
            "triggers": self.rows("SELECT * FROM leads WHERE trigger IS NOT NULL"),
        }
        return {promise: broken for promise, broken in found.items() if broken}


class Running:
    """A ``dripline run`` under way, whose lines can be waited for."""

    def __init__(self, world: World, *arguments: str, log: str = "text") -> None:
        self._lines: queue.Queue[str] = queue.Queue()
        self.said: list[str] = []
        command = [sys.executable, "-c", "from dispatcher.cli.main import main; main()", "run", *arguments]
        self.process = subprocess.Popen(
            [*command, "--database-url", world.url],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            env={**CLEAN, **world.settings, "DRIPLINE_LOG": log},
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as lines:
            for line in lines:
                self._lines.put(line.rstrip())

    def wait_for(self, text: str, limit_s: float = 60) -> str:
        """The first new line with ``text`` in it."""
        give_up_s = time.monotonic() + limit_s
        while time.monotonic() < give_up_s:
            try:
                line = self._lines.get(timeout=1)
            except queue.Empty:
                assert self.process.poll() is None, self.said
                continue
            self.said.append(line)
            if text in line:
                return line
        raise AssertionError((text, self.said))

    def actors(self, kind: str) -> list[psutil.Process]:
        """The processes of this run's own actors of a kind, descendants of its driver."""
        below = psutil.Process(self.process.pid).children(recursive=True)
        return [each for each in below if _title(each).startswith(f"ray::{kind}")]

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait; returns the exit status."""
        self.process.send_signal(number)
        return self.process.wait(60)


@pytest.fixture
def new_world(database_url: str, tmp_path: Path) -> Iterator[Callable[..., World]]:
    """Makes a world; its gateway is stopped at the end."""
    gateways: list[GatewayProcess] = []

    def make(
        *,
        devices: int,
        leads: int,
        steps: int,
        quota: int,
        gap_s: float,
        gateway: Sequence[str] = (),
        **settings: float | str,
    ) -> World:
        process = GatewayProcess(tmp_path / "arrivals.jsonl", *gateway)
        gateways.append(process)
        asyncio.run(_populate(database_url, process.url, devices, leads, steps, quota, gap_s))
        given = {f"DRIPLINE_{name.upper()}": str(value) for name, value in settings.items()}
        given["DRIPLINE_GATEWAY_HOSTS"] = "127.0.0.1"
        return World(database_url, process, settings["hour_s"], quota, leads, steps, given)

    yield make
    for process in gateways:
        process.stop()


@contextmanager
def running(world: World, *arguments: str, log: str = "text") -> Iterator[Running]:
    """A run that is ready; killed at the end if it still goes on."""
    run = Running(world, *arguments, log=log)
    try:
        run.wait_for("ready:")
        yield run
    finally:
        run.process.kill()
        run.process.wait()


BRISK = {"deadline_s": 1, "skew_s": 0.5, "guard_s": 2, "heartbeat_s": 0.5, "leader_s": 4, "trust_s": 3, "cycle_s": 2}


@pytest.mark.slow
@pytest.mark.parametrize("kills", [0, 2])
def test_every_message_arrives_once_in_order_and_in_time_even_if_a_shard_is_killed(new_world, kills):
    world = new_world(devices=10, leads=60, steps=2, quota=6, gap_s=0.3, hour_s=5, **BRISK)
    with running(world, "--shards", "2", log="json") as run:
        assert "ready: 10 devices, 2 shards, 1 gateway" in run.said[-1]
        world.rows("UPDATE devices SET gateway_token = 's3cr3t'")
        world.rows(TAG)
        for kill in range(kills):
            world.wait_until(lambda at=10 + 60 * kill: len(world.attempts()) >= at, 30)
            victim = run.actors("DeviceShard")[0]
            victim.kill()
            victim.wait(10)
        world.wait_until(world.completed, 60)
        assert run.end() == 0
        run.wait_for("drained: 0 leases given back")
    assert world.violations() == {}
    assert world.rows("SELECT * FROM sequence_contacts WHERE lease_token IS NOT NULL") == []
    told = [json.loads(line) for line in run.said]
    events = {line["event"] for line in told}
    assert events >= {"started", "leads", "took_over", "ready", "standing", "drained"}
    assert {"at", "level", "event", "who", "message"} <= set.intersection(*(set(line) for line in told))
    assert sum(line["event"] == "took_over" for line in told) == 2 + kills
    log = "\n".join(run.said)
    found = [step for step in STEPS if step in log] + re.findall(r"601000000\d\d|s3cr3t", log)
    assert found == [], "texts (here the steps' names), whole numbers, secrets"


@pytest.mark.slow
def test_a_killed_driver_takes_its_actors_with_it_and_the_next_one_waits_for_its_leadership(new_world):
    world = new_world(devices=4, leads=40, steps=1, quota=10, gap_s=0.5, hour_s=8, **(BRISK | {"leader_s": 40}))
    with running(world) as run:
        world.rows(TAG)
        world.wait_until(lambda: len(world.attempts()) >= 8, 30)
        actors = run.actors("DeviceShard") + run.actors("Coordinator")
        assert len(actors) == 2
        run.process.kill()
        assert psutil.wait_procs(actors, timeout=20)[1] == []
        arrived = len(world.attempts())
    next_run = Running(world)
    try:
        assert next_run.wait_for("leads: waiting until it leaves").split()[1] == run.said[-1].split()[-1].rstrip(")")
        next_run.wait_for("ready:")
        assert arrived < 40
        world.wait_until(world.completed, 60)
        assert next_run.end() == 0
    finally:
        next_run.process.kill()
    assert world.violations() == {}


@pytest.mark.slow
def test_a_second_signal_ends_at_once(new_world):
    slow = {"deadline_s": 6, "guard_s": 7, "lease_s": 60}
    world = new_world(
        devices=2, leads=2, steps=1, quota=6, gap_s=1, hour_s=5, gateway=("--latency-ms", "5000"), **(BRISK | slow)
    )
    with running(world) as run:
        world.rows(TAG)
        world.wait_until(lambda: len(world.attempts()) == 2, 30)
        run.process.send_signal(signal.SIGTERM)
        run.wait_for("draining")
        begun_s = time.monotonic()
        assert run.end(signal.SIGINT) == 130
        assert time.monotonic() - begun_s < 2


@pytest.mark.slow
def test_a_drain_waits_for_what_is_under_way(new_world):
    world = new_world(
        devices=2, leads=2, steps=1, quota=6, gap_s=1, hour_s=5, gateway=("--latency-ms", "2500"),
        **(BRISK | {"deadline_s": 5, "guard_s": 6}),
    )  # fmt: skip
    with running(world) as run:
        world.rows(TAG)
        world.wait_until(lambda: len(world.attempts()) == 2, 30)
        assert run.end() == 0
    assert world.rows("SELECT * FROM sequence_contacts WHERE lease_token IS NOT NULL") == []
    assert world.rows("SELECT * FROM heartbeats WHERE name = 'coordinator' AND expires_at > now()") == []
    assert world.violations() == {}


@pytest.mark.slow
def test_what_a_gateway_hides_it_tells_afterwards_and_nobody_has_to_decide(new_world, monkeypatch):
    """No keys are honoured and a third of the answers say nothing: without receipts all of those were held."""
    monkeypatch.setenv("DRIPLINE_WEBHOOK_SECRET", "gateways-secret-hush")
    with socket.create_server(("127.0.0.1", 0)) as free:
        where = f"127.0.0.1:{free.getsockname()[1]}"
    hiding = ("--not-idempotent", "--fail", "lost=0.15,5xx=0.2", "--tell", f"http://{where}/webhooks/gateway")
    world = new_world(
        devices=5, leads=20, steps=2, quota=12, gap_s=0.2, hour_s=5, gateway=hiding, webhooks=where,
        webhook_secret="gateways-secret-hush", **BRISK,
    )  # fmt: skip
    world.rows("UPDATE devices SET gateway_idempotent = false")
    with running(world) as run:
        world.rows(TAG)
        world.wait_until(world.completed, 90)
        run.process.send_signal(signal.SIGTERM)
        run.wait_for("draining")
        assert httpx.get(f"http://{where}/healthz", trust_env=False).json() == {"status": "ok"}
        run.wait_for("in doubt settled")
        assert run.process.wait(60) == 0
    did = Counter(each.answer for each in world.attempts())
    assert did["accepted"] == 40
    assert did["failed"] > 0
    assert set(world.violations()) <= {"ledger"}  # which knows better than the answers in the gateway's log
    settled = world.rows("SELECT detail::jsonb ->> 'as' AS word FROM operator_log WHERE actor = 'a gateway''s receipt'")
    assert {row["word"] for row in settled} == {"accepted", "not-sent"}
    assert world.rows("SELECT * FROM sequence_contacts WHERE status <> 'completed'") == []
    assert "hush" not in " ".join(run.said)


def test_a_rehearsal_an_empty_database_and_short_hours_on_real_gateways_are_refused(database_url, empty_url):
    async def rehearse() -> None:
        connection = await connect(database_url)
        await stamp(connection, "rehearsal")
        await connection.close()

    asyncio.run(rehearse())
    assert refusal(database_url) == "error: database: it is a rehearsal, for good - choose a live one\n"
    assert refusal(empty_url) == "error: database: it is not migrated - run: dripline db migrate\n"


def test_short_hours_are_refused_for_a_real_gateway(database_url):
    asyncio.run(_populate(database_url, "https://gateway.example/x", 1, 0, 1, 6, 1))
    assert refusal(database_url, DRIPLINE_HOUR_S="30") == (
        "error: hour_s=30: gateway https://gateway.example/x is not on the loopback: its devices' real limits would be"
        " overrun - leave hour_s at 3600 for real gateways\n"
    )


def test_a_gateway_at_an_address_within_is_refused_unless_it_is_allowed(database_url):
    asyncio.run(_populate(database_url, "http://169.254.169.254/latest", 1, 0, 1, 6, 1))
    assert refusal(database_url, DRIPLINE_GATEWAY_HOSTS="127.0.0.0/8") == (
        "error: gateway_hosts: gateway http://169.254.169.254/latest is at an address that is not public, or not among"
        ' those allowed - to allow it, set gateway_hosts = "169.254.169.254"\n'
    )
    assert refusal(database_url, DRIPLINE_GATEWAY_HOSTS="a b") == (
        "error: DRIPLINE_GATEWAY_HOSTS: 'a b' is no host name, address or network\n"
    )


def refusal(url: str, **settings: str) -> str:
    """What ``dripline run`` says when it exits with status 2, having sent and started nothing."""
    command = [sys.executable, "-c", "from dispatcher.cli.main import main; main()", "run", "--database-url", url]
    done = subprocess.run(command, capture_output=True, text=True, env={**CLEAN, **settings}, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    return done.stderr


async def _populate(url: str, gateway_url: str, devices: int, leads: int, steps: int, quota: int, gap_s: float) -> None:
    connection = await connect(url)
    await connection.execute(
        "INSERT INTO devices (name, gateway_url, quota_per_hour, min_gap_s)"
        " SELECT 'd-' || n, $1, $2, $3 FROM generate_series(1, $4::integer) n",
        gateway_url, quota, gap_s, devices,
    )  # fmt: skip
    sequence = await connection.fetchval(
        "INSERT INTO sequences (name, trigger_prefix, is_active) VALUES ('30 Day Fitness', 'fitness_', true)"
        " RETURNING id"
    )
    await connection.executemany(
        "INSERT INTO sequence_steps"
        " (sequence_id, day_number, trigger, message_text, next_trigger, is_entry_point, trigger_delay_hours)"
        " VALUES ($1, $2, $3::varchar, $3::varchar, $4, $5, 1)",
        [
            (sequence, day, step, STEPS[day] if day < steps else None, day == 1)
            for day, step in enumerate(STEPS[:steps], 1)
        ],
    )
    await connection.execute(
        "INSERT INTO leads (phone, niche)"
        " SELECT (60100000000 + n)::text, 'fitness' FROM generate_series(1, $1::integer) n",
        leads,
    )
    await connection.close()


def _title(process: psutil.Process) -> str:
    try:
        return "".join(process.cmdline()[:1])
    except psutil.NoSuchProcess:
        return ""
