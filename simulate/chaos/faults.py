"""What may strike, by name. A fault aims, strikes, and waits until what it broke on purpose is back."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import Random
from typing import Final

import psutil

from simulate.chaos.nodes import proceed
from simulate.chaos.stage import Stage

_AIM_S: Final = 30.0
_REPLACED_S: Final = 40.0
_COMMIT_S: Final = 20.0


@dataclass(frozen=True, slots=True)
class Fault:
    """One kind of fault."""

    name: str
    weight: int
    """How often it is drawn, compared with others."""
    strike: Callable[[Stage, Random], Awaitable[bool]]
    """Returns whether it struck: False when there was nothing to strike at."""


def kill(kind: str) -> Callable[[Stage, Random], Awaitable[bool]]:
    """``kill -9`` of an actor."""

    async def strike(stage: Stage, rng: Random) -> bool:
        process = await _aim(stage, kind, rng)
        if process is None:
            return False
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
            return True
        return False

    return strike


def stop(kind: str) -> Callable[[Stage, Random], Awaitable[bool]]:
    """SIGSTOP of an actor; it goes on after some seconds, or when another process has taken its place."""

    async def strike(stage: Stage, rng: Random) -> bool:
        process = await _aim(stage, kind, rng)
        if process is None:
            return False
        there = {each.pid for each in await asyncio.to_thread(stage.nodes.actors, kind)}
        with contextlib.suppress(psutil.NoSuchProcess):
            stage.stopped.add(process)
            process.send_signal(signal.SIGSTOP)
        brief_s = rng.uniform(1.0, 12.0) if rng.random() < 0.5 else _REPLACED_S
        give_up_s = time.monotonic() + brief_s
        while time.monotonic() < give_up_s and process.is_running():
            await asyncio.sleep(0.5)
            if {each.pid for each in await asyncio.to_thread(stage.nodes.actors, kind)} - there:
                break
        proceed(process)
        stage.stopped.discard(process)
        return True

    return strike


async def kill_run(stage: Stage, _rng: Random) -> bool:
    """``kill -9`` of ``dripline run``, which takes its actors with it; the next one waits for its leadership."""
    stage.engine.kill()
    return True


async def end_run(stage: Stage, _rng: Random) -> bool:
    """SIGTERM to ``dripline run``, as before an upgrade: it drains, ends, and is started again."""
    return await stage.engine.end_once()


async def kill_node(stage: Stage, _rng: Random) -> bool:
    """``kill -9`` of a raylet and all its actors; a new node joins."""
    async with stage.nodes_busy:
        await asyncio.to_thread(stage.nodes.kill_one)
    return True


async def crash_database(stage: Stage, rng: Random) -> bool:
    """PostgreSQL stops as if the power had failed, and recovers."""
    async with stage.server_busy:
        await asyncio.to_thread(stage.server.crash)
        await asyncio.sleep(rng.uniform(0.0, 2.0))
        await asyncio.to_thread(stage.server.start)
    return True


async def cut_connections(stage: Stage, _rng: Random) -> bool:
    """Every connection between the engine and PostgreSQL is reset."""
    return stage.proxy.cut() > 0


async def lose_commit_answer(stage: Stage, _rng: Random) -> bool:
    """A COMMIT reaches PostgreSQL; its answer does not come back."""
    return await stage.proxy.lose_answer(_COMMIT_S)


async def stall_database(stage: Stage, rng: Random) -> bool:
    """Nothing passes between the engine and PostgreSQL for seconds; nothing is lost."""
    await stage.proxy.stall(rng.uniform(0.5, 6.0))
    return True


async def kill_gateway(stage: Stage, _rng: Random) -> bool:
    """The gateway dies in the middle of requests, and comes back with its log."""
    async with stage.gateway_busy:
        await stage.restart_gateway()
    return True


async def hang_gateway(stage: Stage, rng: Random) -> bool:
    """The gateway stops: it still takes connections and says nothing, and reads on later what came meanwhile."""
    async with stage.gateway_busy:
        process = psutil.Process(stage.gateway.pid)
        stage.stopped.add(process)
        process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(rng.uniform(0.5, 5.0))
        proceed(process)
        stage.stopped.discard(process)
    return True


def storm(fault: str) -> Callable[[Stage, Random], Awaitable[bool]]:
    """Many of the gateway's answers go wrong in one way, for seconds."""

    async def strike(stage: Stage, rng: Random) -> bool:
        async with stage.storm_busy:
            stage.storm({fault: round(rng.uniform(0.2, 0.9), 2)})
            await asyncio.sleep(rng.uniform(0.5, 4.0))
            stage.storm({})
        return True

    return strike


async def _aim(stage: Stage, kind: str, rng: Random) -> psutil.Process | None:
    """A process of a live actor; waits for one that is being started again."""
    give_up_s = time.monotonic() + _AIM_S
    while time.monotonic() < give_up_s:
        found = [each for each in await asyncio.to_thread(stage.nodes.actors, kind) if each not in stage.stopped]
        if found:
            return rng.choice(sorted(found, key=lambda process: process.pid))
        await asyncio.sleep(0.5)
    return None


CUTS: Final = (
    Fault("shard killed", 6, kill("DeviceShard")),
    Fault("coordinator killed", 3, kill("Coordinator")),
    Fault("run killed", 1, kill_run),
    Fault("run told to end", 1, end_run),
    Fault("node killed", 2, kill_node),
    Fault("database crashed", 2, crash_database),
    Fault("connections cut", 5, cut_connections),
    Fault("commit's answer lost", 5, lose_commit_answer),
    Fault("gateway killed", 3, kill_gateway),
    Fault("shard stopped", 2, stop("DeviceShard")),
    Fault("coordinator stopped", 1, stop("Coordinator")),
)
"""Kills and cuts."""

TROUBLES: Final = (
    Fault("database stalled", 2, stall_database),
    Fault("gateway stopped", 2, hang_gateway),
    Fault("gateway never answers", 2, storm("hang")),
    Fault("gateway closes, message taken", 2, storm("lost")),
    Fault("gateway closes, message not taken", 1, storm("drop")),
    Fault("gateway says 500", 1, storm("5xx")),
    Fault("gateway says 503", 1, storm("refuse")),
    Fault("gateway says 429", 1, storm("throttle")),
    Fault("gateway talks garbage", 1, storm("garbage")),
)
"""What passes by itself."""
