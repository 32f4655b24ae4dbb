"""A live engine with nothing to do: how soon a message leaves once there is something, and what waiting costs.

`dripline run` with its defaults - 3000 devices, ten shards, Ray, durable PostgreSQL - and a gateway process on the same
machine. Leads are tagged one by one, by SQL, at random moments; what is taken is the time from sending the statement to
the arrival at the gateway, by the gateway's log. So are other moments that let a message leave at once: an opt-in that
a sequence waited for, a sequence that is resumed, a device that is back. Then everything rests for a minute, and the
processor time of that minute is read, of the engine, of Ray and of PostgreSQL. Linux only.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import asyncpg
import numpy as np
import psutil

from bench.bench import Bench
from bench.figures import Measure, Part, Ratio
from dispatcher.store.connect import connect
from dispatcher.store.migrate import migrate
from dispatcher.store.stamp import stamp
from simulate.chaos.engine import Engine
from simulate.gateway import GatewayProcess
from simulate.population import DeviceGroup, create_devices

DEVICES: Final = 3000
TAGS: Final = 300
OTHERS: Final = 30
"""Of each other cause."""
REST_S: Final = 60.0
ASKED_S: Final = 1.0
ASKED_SHARE: Final = 0.02
ENGINE: Final = "engine (run, coordinator, shards)"
RAY_INSIDE: Final = "Ray's own threads in these processes"
RAY: Final = "Ray's daemons and idle processes"
DATABASE: Final = "PostgreSQL"
_COMM: Final = 15
"""As much of a thread's name as Linux keeps."""
_GIVE_UP_S: Final = 40.0
_LOOK_S: Final = 0.25
_PAUSE_S: Final = (0.5, 1.5)
_SETTLED_S: Final = 5.0
_HELD_S: Final = 2.0
_TAG: Final = "UPDATE leads SET trigger = $2 WHERE phone = $1"
_SEQUENCES: Final = """
INSERT INTO sequences (name, is_active, requires_opt_in, sender_policy)
VALUES ('tagged', true, false, 'prefer'), ('opted', true, true, 'prefer'), ('paused', true, false, 'prefer'),
       ('strict', true, false, 'strict');
INSERT INTO sequence_steps (sequence_id, trigger, message_text, is_entry_point)
SELECT id, name, 'Hello!', true FROM sequences;
"""


@dataclass(slots=True)
class Scene:
    """The engine under way, and what people do to it."""

    connection: asyncpg.Connection
    gateway: GatewayProcess
    devices: int
    """Counted down by those that go and come back."""
    leads: int = 0

    async def lead(self) -> str:
        """A new lead's phone, without a trigger."""
        self.leads += 1
        phone = f"9991{self.leads:08d}"
        await self.connection.execute("INSERT INTO leads (phone) VALUES ($1)", phone)
        return phone

    async def took_s(self, phone: str, sql: str, *arguments: object) -> float:
        """Seconds from sending a statement to the arrival of the lead's message."""
        begun_s = time.time()
        await self.connection.execute(sql, *arguments)
        give_up_s = begun_s + _GIVE_UP_S
        while time.time() < give_up_s:
            await asyncio.sleep(_LOOK_S)
            for arrival in self.gateway.arrivals()[-3:]:
                if arrival.to == phone:
                    return arrival.arrived_at - begun_s
        raise RuntimeError(f"nothing arrived within {_GIVE_UP_S:g} s")

    async def tag(self) -> float:
        """A lead is tagged."""
        phone = await self.lead()
        return await self.took_s(phone, _TAG, phone, "tagged")

    async def opt_in(self) -> float:
        """A lead that has carried the trigger of a sequence for people who opted in does so."""
        phone = await self.lead()
        await self.connection.execute(_TAG, phone, "opted")
        await asyncio.sleep(_PAUSE_S[0])
        return await self.took_s(phone, "UPDATE leads SET opted_in_at = now() WHERE phone = $1", phone)

    async def resume(self) -> float:
        """A sequence that was paused with something due goes on."""
        phone, switch = await self.lead(), "UPDATE sequences SET is_active = $1 WHERE name = 'paused'"
        await self.connection.execute(_TAG, phone, "paused")
        await self.connection.execute(switch, False)
        # The message may have been faster than the pause: then another lead is enrolled while it lasts.
        await asyncio.sleep(_HELD_S)
        if any(arrival.to == phone for arrival in self.gateway.arrivals()[-3:]):
            await self.connection.execute(switch, True)
            return await self.resume()
        return await self.took_s(phone, switch, True)

    async def back(self) -> float:
        """A device that was offline, with something due that no other may send, is available again."""
        # Each time another one: the gap after its last message is nobody's reaction.
        phone, health = await self.lead(), f"UPDATE devices SET health = $1 WHERE number = {self.devices}"
        home = "UPDATE leads SET home_device_id = (SELECT id FROM devices WHERE number = $2) WHERE phone = $1"
        await self.connection.execute(home, phone, self.devices)
        self.devices -= 1
        await self.connection.execute(_TAG, phone, "strict")
        await self.connection.execute(health, "offline")
        await asyncio.sleep(_HELD_S)
        if any(arrival.to == phone for arrival in self.gateway.arrivals()[-3:]):
            await self.connection.execute(health, "available")
            return await self.back()
        return await self.took_s(phone, health, "available")


async def measure(bench: Bench) -> Part:
    """See the module."""
    part, whole = Part(), bench.scale >= 1
    devices = max(round(DEVICES * bench.scale), 10)
    async with running(bench, devices) as (scene, engine, server_pid):
        causes: dict[str, tuple[Callable[[], Awaitable[float]], int]] = {
            "a tag": (scene.tag, TAGS),
            "an opt-in": (scene.opt_in, OTHERS),
            "a sequence resumed": (scene.resume, OTHERS),
            "a device back": (scene.back, OTHERS),
        }
        draw = random.Random(1)
        for name, (cause, documented) in causes.items():
            times = max(round(documented * bench.scale), 3)
            took = []
            for turn in range(times):
                if turn % 50 == 0:
                    bench.say(f"{name}: {turn} of {times}")
                await asyncio.sleep(draw.uniform(*_PAUSE_S))
                took.append(await cause())
            p95, p99 = np.percentile(took, (95, 99)) * 1000
            note = f"{times} times, one after the other; p95 {p95:,.0f} ms, p99 {p99:,.0f} ms"
            values = tuple(each * 1000 for each in took)
            part.measures.append(Measure(f"first message after {name}", "ms", values, {}, note))
            part.ratios.append(Ratio(f"p99 after {name}, s", p99 / 1000, ASKED_S, 0.3, below=True, whole=whole))
        bench.say(f"rest of {REST_S:g} s")
        await asyncio.sleep(_SETTLED_S)
        await _rest(part, engine.pid, server_pid, whole)
    part.remarks.append(
        f"{devices:,} devices. A minute's processor time, as a share of one core, by thread: those that Ray runs inside"
        " the engine's processes are told apart."
    )
    return part


async def _rest(part: Part, run_pid: int, server_pid: int, whole: bool) -> None:
    """A minute of nothing."""
    before = _cpu_s(run_pid, server_pid)
    begun_s = time.monotonic()
    await asyncio.sleep(REST_S)
    took_s, after = time.monotonic() - begun_s, _cpu_s(run_pid, server_pid)
    share = {kind: (after[kind] - before[kind]) / took_s for kind in after}
    for kind, spent in share.items():
        part.measures.append(Measure(f"at rest: {kind}", "% of a core", (100 * spent,)))
    part.ratios.append(Ratio("engine at rest, share of a core", share[ENGINE], ASKED_SHARE, 0.01, True, whole))


def _cpu_s(run_pid: int, server_pid: int) -> dict[str, float]:
    """Processor seconds so far, apart by whose they are: Ray's threads inside the engine's processes are Ray's."""
    run, server = psutil.Process(run_pid), psutil.Process(server_pid)
    below = run.children(recursive=True)
    engine = [run, *(each for each in below if each.name().startswith(("ray::DeviceShard", "ray::Coordinator")))]
    spent: Counter[str] = Counter({ENGINE: 0, RAY_INSIDE: 0, RAY: 0, DATABASE: 0})
    for each in engine:
        own = each.name()[:_COMM]
        for name, seconds in _threads_s(each.pid):
            spent[ENGINE if name == own else RAY_INSIDE] += seconds
    for each in below:
        if each not in engine:
            spent[RAY] += sum(seconds for _, seconds in _threads_s(each.pid))
    for each in (server, *server.children(recursive=True)):
        spent[DATABASE] += sum(seconds for _, seconds in _threads_s(each.pid))
    return dict(spent)


def _threads_s(pid: int) -> list[tuple[str, float]]:
    """Name and processor seconds of each thread of a process, as Linux counts them."""
    threads = []
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):
            nanoseconds = int((thread / "schedstat").read_text().split()[0])
            threads.append(((thread / "comm").read_text().strip(), nanoseconds / 1e9))
    return threads


@asynccontextmanager
async def running(bench: Bench, devices: int) -> AsyncIterator[tuple[Scene, Engine, int]]:
    """The engine, ready, on a database of its own."""
    place = Path(bench.place)
    with bench.server() as server, GatewayProcess(place / "arrivals.jsonl") as gateway:
        connection = await connect(server.url())
        engine = Engine(place / "run.log", [], {"database_url": server.url(), "gateway_hosts": "127.0.0.0/8"})
        try:
            await migrate(connection)
            await stamp(connection, "live")
            await connection.execute(_SEQUENCES)
            await create_devices(connection, DeviceGroup(devices))
            await connection.execute("UPDATE devices SET gateway_url = $1", gateway.url)
            bench.say("starting the engine")
            await engine.start()
            await asyncio.sleep(_SETTLED_S)
            assert server.pid is not None
            yield Scene(connection, gateway, devices), engine, server.pid
            status = await engine.end()
            if status:
                print(f"wake: the engine ended with status {status}", file=sys.stderr)
        finally:
            engine.close()
            await connection.close()
