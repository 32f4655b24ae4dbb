"""Rehearsals in a tiny world: one Ray for all of them, a database each, hooks between ticks; bridges to be cut."""

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

import asyncpg
import pytest
import ray

from actors.cluster import joined_ray
from dispatcher.config import Settings
from dispatcher.store.connect import connect
from simulate.driver import Progress
from simulate.examples import builtin
from simulate.population import DeviceGroup
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
