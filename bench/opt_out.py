"""From the commit of an opt-out to silence, on the live loops, while 100,000 contacts are due.

The services and loops of production, ten shards in this process, real PostgreSQL; the gateway accepts at once and notes
when it was asked. Leads that are claimed already, or have their turn next, opt out: the worst moment. Every
message that leaves to one of them after the commit must come from a last look that began before it.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, Final, cast

import asyncpg
import numpy as np

from bench.bench import Bench
from bench.figures import Measure, Part, Ratio
from dispatcher.clock import DatabaseClock
from dispatcher.config import Settings, load_settings
from dispatcher.coordinator import Coordinator
from dispatcher.coordinator_loop import CoordinatorLoop
from dispatcher.core.batches import DueSoon, Int8s, Int32s, Int64s, Leased, Outcomes, Outgoing, SlotOffer
from dispatcher.core.fleet import Fleet, Gateway
from dispatcher.core.graph import Sequence as Steps
from dispatcher.core.graph import Step
from dispatcher.core.outcomes import Outcome
from dispatcher.intake.sequences import apply
from dispatcher.ports import ShardStore
from dispatcher.shard import Shard
from dispatcher.shard_loop import ShardLoop
from dispatcher.store.connect import connect, open_pool
from dispatcher.store.coordinator_store import PostgresCoordinatorStore
from dispatcher.store.embedded import EmbeddedServer
from dispatcher.store.migrate import migrate
from dispatcher.store.shard_store import PostgresShardStore
from dispatcher.store.stamp import stamp

LEADS: Final = 100_000
"""The documented size: all of them due at once."""
DEVICES: Final = 3000
SHARDS: Final = 10
CONNECTIONS: Final = 12
ROUNDS: Final = 40
"""Opt-outs by SQL: one transaction every quarter of a second."""
EACH: Final = 20
"""Leads a transaction, or a command: those whose turn comes next."""
EVERY_S: Final = 0.25
AREAS: Final = ("202", "212", "213", "305", "312", "404", "415", "503", "617", "702")
NAMED: Final = [f"1{area}55501{line:02}" for line in range(100) for area in AREAS]
"""Numbers that the command takes for valid, and that are kept for fiction."""
SETTLE_S: Final = 6.0
"""Longer than slots are offered ahead."""
SQL, COMMAND = "opt-out by SQL", "opt-out by command"

_NEXT: Final = """
SELECT contact_phone AS phone FROM sequence_contacts
WHERE status = 'active' AND next_trigger_time <= now() AND stop_reason IS NULL
  AND ($1::text IS NULL OR contact_phone LIKE $1) ORDER BY id LIMIT $2
"""
"""Devices take the longest overdue first, by number where all are due alike: these are claimed, or are next."""


@dataclass
class Witness:
    """What the gateway saw, and when last looks began; seconds of one monotonic clock."""

    looked: dict[int, float] = field(default_factory=dict)
    """By enrolment: the last look that let it pass, or did not."""
    left: dict[str, tuple[float, float]] = field(default_factory=dict)
    """By phone: when its message left, and when the look before it had begun."""
    enrolment: dict[str, int] = field(default_factory=dict)


class Watched:
    """A shard's store whose last looks are noted."""

    def __init__(self, store: PostgresShardStore, witness: Witness) -> None:
        self._store, self._witness = store, witness
        self.seat = store.seat

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def last_look(self, leased: Leased, *arguments: Any) -> Mapping[int, str]:
        """As ever; noted is when it began."""
        begun_s = time.perf_counter()
        found = await self._store.last_look(leased, *arguments)
        self._witness.looked.update(dict.fromkeys(leased.enrolment.tolist(), begun_s))
        self._witness.enrolment.update(zip(leased.phone, leased.enrolment.tolist(), strict=True))
        return found


class Gate:
    """A gateway that accepts everything at once."""

    def __init__(self, witness: Witness) -> None:
        self._witness = witness

    async def send(self, batch: Outgoing) -> AsyncIterator[Outcomes]:
        """Note what leaves, and accept it."""
        now_s, witness = time.perf_counter(), self._witness
        for phone in batch.to:
            witness.left[phone] = now_s, witness.looked[witness.enrolment[phone]]
        yield Outcomes(
            row=np.arange(len(batch)),
            outcome=np.full(len(batch), Outcome.ACCEPTED, np.int8),
            at_us=batch.slot_us,
            message_id=list(map(str, batch.to)),
            error=[None] * len(batch),
            retry_after_s=np.full(len(batch), np.nan),
        )

    def update(self, gateways: Mapping[int, Gateway]) -> None:
        """There is one gateway only."""

    async def close(self) -> None:
        """Nothing is kept open."""


class LoopShards:
    """The ``Shards`` port to the loops of this process."""

    def __init__(self) -> None:
        self.loops: list[ShardLoop] = []

    async def offer(self, shard: int, now_us: int, horizon_us: int, devices: Int32s) -> SlotOffer:
        """See ``ShardLoop.offer``."""
        return self.loops[shard].offer(now_us, horizon_us, devices)

    async def deliver(self, shard: int, offer: int, leased: Leased | None) -> DueSoon:
        """See ``ShardLoop.deliver``."""
        return self.loops[shard].deliver(offer, leased)

    async def take_due(self, shard: int) -> DueSoon:
        """See ``ShardLoop.take_due``."""
        return self.loops[shard].take_due()

    async def fate(self, shard: int, token: Int64s, epoch: Int64s, enrolment: Int64s) -> Int8s:
        """See ``ShardLoop.fate``."""
        return self.loops[shard].fate(token, epoch, enrolment)

    async def ping(self, shard: int) -> int:
        """The shard's epoch."""
        return self.loops[shard].epoch


@dataclass(frozen=True, slots=True)
class OptOut:
    """One number, in seconds of the witness' clock."""

    phone: str
    begun_s: float
    committed_s: float
    """When the commit was known: it had happened by then."""


async def measure(bench: Bench) -> Part:
    """The part ``opt_out``."""
    part = Part()
    with bench.server() as server:
        witness = Witness()
        by_sql, by_command = await opt_out(bench, server, witness, bench.size(LEADS), bench.size(DEVICES))
    for name, done in ((SQL, by_sql), (COMMAND, by_command)):
        late_ms = [max(0.0, (witness.left[each.phone][0] - each.committed_s) * 1e3)
                   if each.phone in witness.left else 0.0 for each in done]  # fmt: skip
        counts = {
            "opted out": len(done),
            "heard something after the commit": sum(ms > 0 for ms in late_ms),
            "by a look that began after it": len(broken(witness, done)),
        }
        part.measures.append(Measure(f"{name}: the last message after the commit", "ms", tuple(late_ms), counts))
        part.ratios.append(
            Ratio(f"{name}: seconds to silence", max(late_ms) / 1e3, 1.0, 0.1, below=True, whole=bench.scale >= 1)
        )
    took_ms = tuple((each.committed_s - each.begun_s) * 1e3 for each in by_sql)
    part.measures.append(Measure(f"{SQL}: the transaction itself", "ms", took_ms, note=f"{EACH} leads each"))
    part.remarks.append(
        "0 ms: nothing left after the commit. By command the commit is known when the process has ended, so that a "
        "message between the two counts as before it."
    )
    return part


def broken(witness: Witness, done: Sequence[OptOut]) -> list[str]:
    """Numbers that got a message whose last look had begun after their opt-out's commit was known."""
    return [
        each.phone for each in done if each.phone in witness.left and witness.left[each.phone][1] > each.committed_s
    ]


async def opt_out(
    bench: Bench, server: EmbeddedServer, witness: Witness, leads: int, devices: int
) -> tuple[list[OptOut], list[OptOut]]:
    """Bring the loops to work on everything that is due, and opt leads out; by SQL, and by command."""
    url = server.url()
    async with AsyncExitStack() as stack:
        connection = await connect(url)
        stack.push_async_callback(connection.close)
        await _fill(connection, leads, devices)
        bench.say(f"enrolling {leads:,} leads")
        coordinator, shards = await _alive(stack, url, witness)
        coordinator.start()
        for loop in shards.loops:
            loop.start()
        bench.say("opting out")
        await asyncio.sleep(SETTLE_S)
        by_sql = []
        for _ in range(ROUNDS):
            phones = [row["phone"] for row in await connection.fetch(_NEXT, None, EACH)]
            begun_s = time.perf_counter()
            await connection.execute("UPDATE leads SET opted_out_at = now() WHERE phone = ANY ($1::text[])", phones)
            by_sql += [OptOut(phone, begun_s, time.perf_counter()) for phone in phones]
            await asyncio.sleep(EVERY_S)
        by_command = []
        for _ in range(bench.repeat):
            phones = [row["phone"] for row in await connection.fetch(_NEXT, "1___55501__", EACH)]
            begun_s = time.perf_counter()
            await _command(url, phones)
            by_command += [OptOut(phone, begun_s, time.perf_counter()) for phone in phones]
        await asyncio.sleep(SETTLE_S)
        assert await connection.fetchval("SELECT count(*) FROM sequence_contacts WHERE next_trigger_time <= now()") > 0
    return by_sql, by_command


async def _fill(connection: asyncpg.Connection, leads: int, devices: int) -> None:
    await migrate(connection)
    await stamp(connection, "live")
    await apply(connection, [Steps(None, "Bench", True, (Step("bench_start", "Hello", None, 24, 1, True),))])
    await connection.execute(
        "INSERT INTO devices (name, gateway_url, min_gap_s)"  # not in step with each other
        " SELECT 'd-' || n, 'http://127.0.0.1:9/', 4 + 2.0 * n / $1 FROM generate_series(1, $1::integer) n",
        devices,
    )
    await connection.execute(
        "INSERT INTO leads (phone, trigger)"
        " SELECT coalesce(CASE WHEN n % $2 = 0 THEN ($3::text[])[n / $2] END, (99980000000 + n)::text), 'bench_start'"
        " FROM generate_series(1, $1::bigint) n",
        leads,
        max(leads // len(NAMED), 1),
        NAMED,
    )
    await connection.execute("ANALYZE leads")


async def _alive(stack: AsyncExitStack, url: str, witness: Witness) -> tuple[CoordinatorLoop, LoopShards]:
    """The coordinator's loop, and those of the shards, with everybody enrolled; they begin when they are told."""
    settings: Settings = load_settings(database_url=url)
    own, shared = await open_pool(url, size=3), await open_pool(url, size=CONNECTIONS)
    stack.callback(own.terminate)
    stack.callback(shared.terminate)
    store, shards = PostgresCoordinatorStore(own, "bench"), LoopShards()
    coordinator = Coordinator(settings, store, shards)
    clock = DatabaseClock(settings.skew_s)
    await clock.follow(store.seat.wall_us)
    await coordinator.take_over(clock.now_us(), SHARDS)
    for number in range(SHARDS):
        watched = cast(ShardStore, Watched(PostgresShardStore(shared, number, "bench"), witness))

        def gate(_: Fleet) -> Gate:
            return Gate(witness)

        shard = Shard(number, settings, watched, gate)
        await shard.take_over(clock.now_us())
        shards.loops.append(ShardLoop(shard, clock, settings))
        stack.push_async_callback(_end, shards.loops[-1])
    while (await coordinator.run_once(clock.now_us(), 0)).enrol.more:
        pass

    async def replace(shard: int) -> None:
        raise AssertionError(f"shard {shard} hangs")

    loop = CoordinatorLoop(coordinator, clock, settings, ping=shards.ping, replace=replace)
    stack.push_async_callback(_end, loop)
    return loop, shards


async def _end(loop: CoordinatorLoop | ShardLoop) -> None:
    loop.cancel()
    while loop.running:
        await asyncio.sleep(0.01)


async def _command(url: str, phones: Sequence[str]) -> None:
    """``dripline suppressions add``, as a person calls it."""
    code = "from dispatcher.cli.main import main; main()"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code, "suppressions", "add", *phones, "--database-url", url),
        stdout=asyncio.subprocess.DEVNULL,
    )
    assert await process.wait() == 0
