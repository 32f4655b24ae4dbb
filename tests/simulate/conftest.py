"""Rehearsals in a tiny world: one Ray for all of them, a database each, hooks between ticks."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
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
from simulate.rehearsal import Plan, Rehearsed, rehearse
from simulate.watcher import Watcher


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
        planned = Plan(**{"sequences": builtin(), "shards": 2, **plan})
        return asyncio.run(rehearse(planned, settings, self.url, reset=True, server_pid=None, watcher=watcher))

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
