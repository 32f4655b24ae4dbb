"""The HTTP sender of one shard against a local gateway: sends a second beside raw httpx, and memory in flight.

All contenders hand the same messages of 300 devices to the same gateway process, which judges and logs every one, over
128 connections at most. Raw httpx does nothing but post: bodies and headers are made before its clock starts; no
deadline is watched, no answer is read for its meaning. It comes in two forms: one client, as it is usually written, and
clients of 8 connections each, which is how the sender holds them.
"""

from __future__ import annotations

import asyncio
import gc
import json
import time
import tracemalloc
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Final
from uuid import UUID

import httpx
import numpy as np

from bench.bench import Bench
from bench.figures import Measure, Part
from dispatcher.core.batches import Outgoing
from dispatcher.core.fleet import Gateway
from dispatcher.core.hosts import GatewayHosts
from dispatcher.core.moments import SECOND_US, to_datetime
from dispatcher.core.outcomes import Outcome
from dispatcher.sender.http import IDLE_S, POOL_CONNECTIONS, HttpSender
from simulate.gateway import GatewayProcess

DEVICES, CONNECTIONS, DEADLINE_S = 300, 128, 600
MESSAGES, IN_FLIGHT = 3_000, 100_000
SENDER, ONE_CLIENT, MANY_CLIENTS = "HTTP sender", "raw httpx", f"raw httpx, {POOL_CONNECTIONS} connections a client"
LOOPBACK: Final = GatewayHosts("127.0.0.0/8")
LONG_MS: Final = str(DEADLINE_S * 1000)

_batches = count(1)


@dataclass(frozen=True)
class Ran:
    """One run of a contender."""

    seconds: float
    cpu_s: float
    """Of this process."""
    accepted: int


def now_us() -> int:
    """The wall clock."""
    return time.time_ns() // 1000


def gateways(url: str) -> dict[int, Gateway]:
    """The devices of a shard, all behind one gateway."""
    return {number: Gateway(number, f"device-{number}", url, None, True) for number in range(1, DEVICES + 1)}


def messages(size: int) -> Outgoing:
    """So many messages, round the devices, with keys nobody has seen."""
    batch, now = next(_batches), now_us()
    return Outgoing(
        device=np.arange(size, dtype=np.int32) % DEVICES + 1,
        slot_us=np.full(size, now),
        deadline_us=np.full(size, now + DEADLINE_S * SECOND_US),
        visit=np.ones(size, np.int32),
        attempt=np.ones(size, np.int32),
        to=[f"9998{row:08d}" for row in range(size)],
        text=[f"Day 2, number {row}: your workout is ready" for row in range(size)],
        media_url=[None] * size,
        key=[UUID(int=(batch << 64) + row).bytes for row in range(size)],
        sequence=["30 Day Fitness"] * size,
        step=["fitness_day2"] * size,
    )


async def sender(url: str, size: int) -> Ran:
    """The ``HttpSender`` of production, given everything at once."""
    given, accepted = messages(size), 0
    own = HttpSender(gateways(url), now_us, LOOPBACK, connections=CONNECTIONS)
    gc.collect()
    cpu_s, begun = time.process_time(), time.perf_counter()
    async for outcomes in own.send(given):
        accepted += int(np.count_nonzero(outcomes.outcome == Outcome.ACCEPTED))
    ran = Ran(time.perf_counter() - begun, time.process_time() - cpu_s, accepted)
    await own.close()
    return ran


async def raw(url: str, size: int, a_client: int) -> Ran:
    """httpx alone: as many tasks as there are connections, each posting what is next; ``a_client`` connections each."""
    posts = iter(requests(messages(size)))
    accepted, tls = 0, httpx.create_ssl_context()
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(
                httpx.AsyncClient(
                    limits=httpx.Limits(max_connections=a_client, keepalive_expiry=IDLE_S),
                    timeout=None,
                    trust_env=False,
                    verify=tls,
                )
            )
            for _ in range(CONNECTIONS // a_client)
        ]

        async def post(client: httpx.AsyncClient) -> None:
            nonlocal accepted
            for body, headers in posts:
                answer = await client.post(f"{url}/messages", content=body, headers=headers)
                accepted += answer.status_code == httpx.codes.CREATED

        gc.collect()
        cpu_s, begun = time.process_time(), time.perf_counter()
        await asyncio.gather(*(post(clients[task // a_client]) for task in range(CONNECTIONS)))
        return Ran(time.perf_counter() - begun, time.process_time() - cpu_s, accepted)


def requests(batch: Outgoing) -> list[tuple[bytes, dict[str, str]]]:
    """Body and headers of every message, as the contract has them."""
    made = []
    for row in range(len(batch)):
        key = str(UUID(bytes=batch.key[row]))
        message = {
            "device_id": f"device-{batch.device[row]}",
            "to": batch.to[row],
            "text": batch.text[row],
            "media_url": batch.media_url[row],
            "idempotency_key": key,
        }
        not_after = to_datetime(int(batch.deadline_us[row])).isoformat().replace("+00:00", "Z")
        headers = {"Content-Type": "application/json", "Idempotency-Key": key, "Not-After": not_after}
        made.append((json.dumps(message).encode(), headers))
    return made


async def held_mb(place: Path, size: int) -> float:
    """Megabytes that ``size`` messages take while the gateway answers none of them; the batch itself not counted."""
    with GatewayProcess(place, "--latency-ms", LONG_MS) as silent:
        given, own = messages(size), HttpSender(gateways(silent.url), now_us, LOOPBACK, connections=CONNECTIONS)
        gc.collect()
        tracemalloc.start()
        try:
            outcomes = own.send(given)
            first = asyncio.ensure_future(anext(outcomes))
            while len(silent.arrivals()) < min(size, CONNECTIONS):
                await asyncio.sleep(0.1)
            gc.collect()
            taken = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
        first.cancel()
        with suppress(asyncio.CancelledError):
            await first
        await own.close()
    return taken / 1e6


async def measure(bench: Bench) -> Part:
    """See the module.

    Raises:
        RuntimeError: a contender has not had every message accepted.
    """
    size, part = bench.size(MESSAGES), Part()
    with GatewayProcess(bench.place / "arrivals.jsonl", "--latency-ms", "0") as gateway:
        contenders: dict[str, Callable[[], Awaitable[Ran]]] = {
            SENDER: partial(sender, gateway.url, size),
            ONE_CLIENT: partial(raw, gateway.url, size, CONNECTIONS),
            MANY_CLIENTS: partial(raw, gateway.url, size, POOL_CONNECTIONS),
        }
        found = await bench.interleaved(contenders)
        if any(ran.accepted != size for runs in found.values() for ran in runs):
            raise RuntimeError("not every message was accepted")
        arrived = len({arrival.key for arrival in gateway.arrivals()})
    for name, runs in found.items():
        cpu_us = float(np.median([ran.cpu_s for ran in runs])) / size * 1e6
        rates = tuple(size / ran.seconds for ran in runs)
        part.measures.append(Measure(name, "sends/s", rates, {"µs CPU a send": cpu_us}))
    for name in (ONE_CLIENT, MANY_CLIENTS):
        times = tuple(other.seconds / own.seconds for own, other in zip(found[SENDER], found[name], strict=True))
        part.measures.append(Measure(f"{SENDER} ÷ {name}", "x", times))
    part.measures.append(await memory(bench))
    part.remarks.append(
        f"{size:,} messages of {DEVICES} devices a run, {CONNECTIONS} connections at most; the gateway, a process of "
        f"its own on the same machine, logged {arrived:,} different keys: every message of every run. Where the CPU of "
        "a send makes up most of its time, this process is the limit and not the gateway."
    )
    return part


async def memory(bench: Bench) -> Measure:
    """What a hundred thousand messages in flight take."""
    waiting = bench.size(IN_FLIGHT)
    bench.say(f"memory of {waiting:,} messages in flight")
    found = await held_mb(bench.place / "silent.jsonl", waiting) / waiting * IN_FLIGHT
    note = f"Python's allocations; {CONNECTIONS} wait for the answer, the others for a connection"
    if waiting != IN_FLIGHT:
        note += f"; from {waiting:,}, in proportion"
    return Measure(f"memory of {IN_FLIGHT:,} messages in flight", "MB", (found,), note=note)
