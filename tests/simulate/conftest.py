"""Rehearsals in a tiny world: one Ray for all of them, a database each, hooks between ticks; bridges to be cut; and
runs told by hand, for what is made of them afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import numpy as np
import pytest
import ray

from actors.cluster import joined_ray
from dispatcher.config import Settings
from dispatcher.core.catalogue import Catalogue
from dispatcher.core.fleet import Fleet
from dispatcher.core.graph import Sequence, Step
from dispatcher.core.identity import idempotency_key
from dispatcher.core.outcomes import Outcome
from dispatcher.store.connect import connect
from simulate.checker import Violations
from simulate.driver import Fault, Progress
from simulate.evidence import ENROLMENT, LEDGER, NO_DUE, QUOTA, STATUSES, Evidence, stamps
from simulate.examples import builtin
from simulate.frame import Frame
from simulate.outcome import RunOutcome
from simulate.population import DeviceGroup
from simulate.receipts import RECEIPT, Receipts
from simulate.rehearsal import Plan, Rehearsed, rehearse
from simulate.watcher import Watcher

CLONE_NEWNET = 0x40000000


@pytest.fixture(scope="session", autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home directory of the tests' own: a local Ray writes a token into it."""
    home, before = tmp_path_factory.mktemp("home"), os.environ.get("HOME")
    os.environ["HOME"] = str(home)
    yield home
    if before is None:
        del os.environ["HOME"]
    else:
        os.environ["HOME"] = before


@pytest.fixture(scope="session")
def local_ray(own_home: Path) -> Iterator[None]:
    """One local Ray for every rehearsal of this directory; starting it takes seconds."""
    with joined_ray(None):
        yield


class Hook(Watcher):
    """Calls ``act`` after every tick.

    Args:
        act: gets the progress; it runs between two ticks.
    """

    def __init__(self, act: Callable[[Progress], None]) -> None:
        self._act = act

    def tick(self, progress: Progress) -> None:
        """A tick has gone by."""
        self._act(progress)


class World:
    """A database and what tests do with it.

    Args:
        url: an empty, migrated database.
    """

    def __init__(self, url: str) -> None:
        self.url = url

    def rehearse(self, act: Callable[[Progress], None] | None = None, **plan: Any) -> Rehearsed:
        """Rehearse a ``Plan`` with the seed's sequences, starting over if the database was used before."""
        watcher = Watcher() if act is None else Hook(act)
        settings = Settings(**plan.pop("settings", {}))
        kind = {name: plan.pop(name) for name in ("quota_per_hour", "quota_per_day", "min_gap_s") if name in plan}
        if "devices" in plan:
            plan["fleet"] = (DeviceGroup(plan.pop("devices"), **kind),)
        planned = Plan(**{"sequences": builtin(), "shards": 2, **plan})
        return self.play(planned, settings, watcher)

    def play(self, plan: Plan, settings: Settings | None = None, watcher: Watcher | None = None) -> Rehearsed:
        """Rehearse, starting over if the database was used before."""
        settings, watcher = settings or Settings(), watcher or Watcher()
        return asyncio.run(rehearse(plan, settings, self.url, reset=True, server_pid=None, watcher=watcher))

    def rows(self, sql: str, *arguments: Any) -> list[asyncpg.Record]:
        """What ``sql`` returns, by a connection of its own; also from inside a running loop."""

        async def fetch() -> list[asyncpg.Record]:
            connection = await connect(self.url)
            try:
                return await connection.fetch(sql, *arguments)
            finally:
                await connection.close()

        with ThreadPoolExecutor(1) as thread:
            return thread.submit(asyncio.run, fetch()).result()

    def value(self, sql: str, *arguments: Any) -> Any:
        """The first column of the first row."""
        return self.rows(sql, *arguments)[0][0]


@pytest.fixture
def world(database_url: str, local_ray: None) -> World:
    """A database on the shared server, and the shared Ray."""
    return World(database_url)


@pytest.fixture(scope="session")
def world_of(local_ray: None) -> Callable[[str], World]:
    """Makes the world of a database elsewhere."""
    return World


@pytest.fixture
def actor_pid() -> Callable[[str], int]:
    """Finds the process of the running rehearsal's actor of a name."""

    def find(name: str) -> int:
        found = [each for each in ray.util.list_named_actors(all_namespaces=True) if each["name"] == name]
        assert len(found) == 1, found
        actor = ray.get_actor(name, found[0]["namespace"])
        for _ in range(200):
            with contextlib.suppress(ray.exceptions.ActorUnavailableError):
                return int(ray.get(actor.pid.remote(), timeout=30))
            time.sleep(0.1)
        raise AssertionError(f"{name} does not come back")

    return find


class Bridge:
    """A bridge with ``HERE`` at one end and, ``THERE``, a network namespace at the other.

    Args:
        namespace: the far one; its end of the bridge has the same name.
        near: the namespace of bridge and ``HERE``; None: where everything else is.
    """

    HERE, THERE = "10.213.87.1", "10.213.87.2"

    def __init__(self, namespace: str, near: str | None) -> None:
        self.namespace, self.near = namespace, near
        self._near = () if near is None else ("-n", near)
        self._bridge = f"{namespace}b"

    def build(self) -> None:
        """Make everything; both namespaces exist."""
        ip(*self._near, "link", "add", self._bridge, "type", "bridge")
        ip(*self._near, "addr", "add", f"{self.HERE}/24", "dev", self._bridge)
        ip(*self._near, "link", "set", self._bridge, "up")
        ip(*self._near, "link", "add", self.namespace, "type", "veth", "peer", "name", "eth0", "netns", self.namespace)
        ip(*self._near, "link", "set", self.namespace, "master", self._bridge, "up")
        ip("-n", self.namespace, "addr", "add", f"{self.THERE}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            ip("-n", self.namespace, "link", "set", device, "up")

    def remove(self) -> None:
        """Remove what there is of it."""
        for link in (self.namespace, self._bridge):
            subprocess.run(["ip", *self._near, "link", "del", link], check=False, capture_output=True)

    def cut(self) -> None:
        """No packet passes any more, and nobody is told."""
        ip(*self._near, "link", "set", self.namespace, "nomaster")

    def heal(self) -> None:
        """Packets pass again."""
        ip(*self._near, "link", "set", self.namespace, "master", self._bridge)

    def listen(self, host: str, port: int) -> socket.socket:
        """A socket that listens in the far namespace, for use outside; call it in a thread of its own."""
        libc = ctypes.CDLL(None, use_errno=True)
        with open("/proc/thread-self/ns/net") as outside, open(f"/run/netns/{self.namespace}") as inside:
            assert libc.setns(inside.fileno(), CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
            try:
                return socket.create_server((host, port))
            finally:
                libc.setns(outside.fileno(), CLONE_NEWNET)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@contextmanager
def new_namespace() -> Iterator[str]:
    if shutil.which("ip") is None:
        pytest.skip("no network namespaces: the command ip is not installed")
    if os.geteuid() != 0:
        pytest.skip("no network namespaces: they take root")
    name = f"dl{secrets.token_hex(3)}"
    try:
        ip("netns", "add", name)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces: {error.stderr.strip()}")
    try:
        yield name
    finally:
        subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


@contextmanager
def built(bridge: Bridge) -> Iterator[Bridge]:
    try:
        try:
            bridge.build()
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no bridge between network namespaces: {error.stderr.strip()}")
        yield bridge
    finally:
        bridge.remove()


@pytest.fixture
def bridge() -> Iterator[Bridge]:
    """From where everything else is into a namespace."""
    with new_namespace() as namespace, built(Bridge(namespace, None)) as bridge:
        yield bridge


@pytest.fixture
def bridge_apart() -> Iterator[Bridge]:
    """Between two namespaces; nothing of it is outside them."""
    with new_namespace() as near, new_namespace() as namespace, built(Bridge(namespace, near)) as bridge:
        yield bridge


class Story:
    """A finished run told by hand: two devices of 2 messages an hour and 3 a day, 5 s apart; 5 h of virtual time.

    Moments are seconds from the start. Device 7 is ``seven``, device 9 ``nine``. Sequence ``name`` has the steps ``a``,
    which is the entry, and ``b``, 2 h later.
    """

    START_US, S, HOUR_US, GUARD_US = 1_767_571_200_000_000, 1_000_000, 3_600_000_000, 60_000_000

    def __init__(self) -> None:
        self.name = "Fitness"
        self.hours = 5.0
        self.health = {7: "available", 9: "quarantined"}
        self.faults: list[Fault] = []
        self.violations = Violations()
        self.replies: dict[str, int] | None = None
        self._receipts: list[tuple[Any, ...]] = []
        self._ledger: list[tuple[Any, ...]] = []
        self._enrolments: list[tuple[Any, ...]] = []

    def us(self, second: float) -> int:
        """A moment of the run."""
        return self.START_US + round(second * self.S)

    def message(
        self, device: int, due: float, slot: float, outcome: str = "accepted", *, enrolment: int = 1, visit: int = 1,
        attempt: int = 1,
    ) -> Story:  # fmt: skip
        """An attempt that reached the gateway half a second after its slot, and is in the ledger."""
        key, answer = idempotency_key(enrolment, visit, 0), Outcome[outcome.upper()]
        phone = b"99910000%04d" % enrolment
        self._receipts.append(
            (self.us(slot), self.us(slot + 0.5), device, visit - 1, visit, attempt, phone, key, answer, 0)
        )
        moments = stamps(np.array([self.us(due), self.us(slot), self.us(slot + 0.5)])).tolist()
        self._ledger.append((key, enrolment, *moments, visit, 0, attempt, device, answer + 1))
        return self

    def enrolment(self, number: int, device: int, status: str, step: int = 0, due: float | None = None) -> Story:
        """Where an enrolment stands: at step 1 or 2, or at none."""
        due_at = NO_DUE if due is None else int(stamps(np.array([self.us(due)]))[0])
        code = STATUSES.index(status) + 1
        self._enrolments.append(
            (number, number, int(stamps(np.array([self.START_US]))[0]), due_at, 1, step, code, step, 0, device, 0, 0)
        )
        return self

    def told(self) -> Rehearsed:
        """The run."""
        steps = (Step("a", "A", "b", delay_h=2, is_entry=True), Step("b", "B"))
        receipts = Receipts(np.array(self._receipts, RECEIPT), [(self.name, "a"), (self.name, "b")])
        enrolments = np.array(self._enrolments, ENROLMENT)
        evidence = Evidence(
            ledger=np.array(self._ledger, LEDGER), enrolments=enrolments,
            catalogue=Catalogue.of([Sequence(1, self.name, True, steps)]),
            outcomes=tuple(outcome.label for outcome in Outcome),
            quotas=np.array([(number, self.START_US, 2, 3) for number in (7, 9)], QUOTA),
            opted_out={}, missed=0, devices={7: ("id-7", "seven"), 9: ("id-9", "nine")}, hour_s=3600.0,
            health=self.health,
        )  # fmt: skip
        end_us = self.us(self.hours * 3600)
        frame = Frame(
            self.START_US, end_us, 30 * self.S, self.HOUR_US, self.GUARD_US, self._fleet(), tuple(self.faults)
        )
        return Rehearsed(self._outcome(receipts, enrolments), receipts, evidence, frame)

    def _outcome(self, receipts: Receipts, enrolments: np.ndarray) -> RunOutcome:
        counts = np.bincount(enrolments["status"], minlength=6)[1:].tolist()
        return RunOutcome(
            seed=1, devices=2, leads=len(enrolments), lead_file=None, shards=1, tick_s=30.0, pacing="burst",
            settings={"days": self.hours / 24, "sequences": [self.name]}, virtual_s=self.hours * 3600, wall_s=1.0,
            wall={}, enrolled=len(enrolments), sends=int(receipts.answered(Outcome.ACCEPTED).sum()),
            sends_per_wall_s=1.0, **dict(zip(STATUSES, counts, strict=True)), skipped=0, shifted=0,
            replies=self.replies, violations=self.violations, receipts_sha256="0" * 64,
            lateness_s={"p50": 1.0, "p95": 2.0, "p99": 3.0, "max": 4.0},
            optimality_gap_s={"mean": 0.5, "max": 1.5}, optimality_gap_missing=None,
            device_use={"mean": 0.5, "min": 0.25, "max": 0.75}, binding_limit="hour", peak_rss_mb=1.0,
            reruns=len(self.faults), http=None, pace=None,
            made={"at": "2026-01-05T00:00:00+00:00", "dripline": "0", "python": "3", "cores": 2},
        )  # fmt: skip

    @staticmethod
    def _fleet() -> Fleet:
        both = np.ones(2, np.int32)
        return Fleet(
            number=np.array([7, 9], np.int32), shard=0 * both, quota_per_hour=2 * both, quota_per_day=3 * both,
            in_flight_max=50 * both, min_gap_s=np.full(2, 5.0), available=np.array([True, False]),
            left=np.zeros(2, np.bool_), trips=0 * both, probe_us=np.zeros(2, np.int64),
            idempotent=np.ones(2, np.bool_), device_id=[UUID(int=7), UUID(int=9)],
            name=["seven", "nine"], gateway_url=[None, None], gateway_token=[None, None], group=[None, None],
        )  # fmt: skip


@pytest.fixture
def story() -> Story:
    """A run nothing has happened in yet."""
    return Story()
