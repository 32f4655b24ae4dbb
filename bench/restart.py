"""A shard near its limits is ready again; expired leases are rescued.

*Ready*: the takeover by a new incarnation of a shard's service, from raising the epoch to slots on offer, on
connections that are open already (what Ray takes to start a process is not in it). The shard's 300 devices have sent
799 of their 800 messages within the last 24 hours, and so have all others: 2.4 million rows of the ledger in two
partitions. Every takeover must end with exactly one slot a device.

*Rescue*: the rescuer's passes until 100,000 leases without an outcome are resolved, claimed by the real statement in
claims of 1000, each turn on a fresh copy of the same database: leases of superseded incarnations that were never handed
over wait again; those on record as handed over are in doubt, and what they said is kept for a resend; leases over time
whose owner lives are given back once the owner says that it never saw them.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Final, cast

from bench.bench import Bench
from bench.costs import wal_position
from bench.databases import (
    HOUR_US,
    NOW_US,
    Databases,
    Installation,
    connected,
    devices_of,
    installed,
)
from bench.figures import Measure, Part
from bench.plans import counted, heard
from dispatcher.config import load_settings
from dispatcher.core.batches import Int8s, Int64s
from dispatcher.core.fleet import Fleet
from dispatcher.core.moments import span_us
from dispatcher.ports import Sender, Shards
from dispatcher.rescuer import RescuePass, Rescuer
from dispatcher.shard import Shard

SENT: Final = 799
"""Of 800 a day, by every device."""
LEASES: Final = 100_000
READY: Final = "shard is ready"
_SPACING_US: Final = span_us(108)
"""24 hours hold 799 of these, and a little."""
_HORIZON_US: Final = span_us(60)
_LEDGER: Final = """
INSERT INTO message_ledger (enrolment_id, sequence_id, lead_id, shard_epoch, due_at, reserved_at, deadline_at,
    accepted_at, device_id, idempotency_key, visit, generation, attempt, outcome, step_trigger, gateway_message_id)
SELECT n * 1000000 + d.number, s.sequence_id, n * 1000000 + d.number, 1, at, at, at + interval '30 seconds', at, d.id,
       gen_random_uuid(), 1, 0, 1, 'accepted', s.trigger, 'm' || n
FROM generate_series($1::bigint, 1, -1) n
CROSS JOIN devices d
CROSS JOIN LATERAL (SELECT dripline_at($2::bigint - n * $3::bigint) AS at) t
JOIN sequence_steps s ON s.trigger = 'fitness_start'
"""
_LEADS: Final = """
INSERT INTO leads (id, phone, name, trigger)
SELECT n, '999' || n, 'Aisyah', 'fitness_start' FROM generate_series(1, $1::bigint) n
"""
_WAITING: Final = """
INSERT INTO sequence_contacts (sequence_id, lead_id, contact_phone, entry_trigger, current_trigger, home_device_id,
                               next_trigger_time)
SELECT s.sequence_id, n, '999' || n, s.trigger, s.trigger, d.id, dripline_at($2::bigint)
FROM generate_series(1, $1::bigint) n
CROSS JOIN (SELECT count(*) AS devices FROM devices) f
JOIN devices d ON d.number = 1 + (n - 1) % f.devices
JOIN sequence_steps s ON s.trigger = 'fitness_start'
"""


async def measure(bench: Bench) -> Part:
    """Takeovers and rescues, taking turns."""
    leases = bench.size(LEASES)
    part = Part()
    with bench.server() as server:
        databases = Databases(server, devices_of(bench, leases))
        ledger_rows = await load(bench, databases, leases)
        async with installed(databases.url("usage")) as installation:
            ready = partial(taken_over, installation)
            await ready()  # the first one finds cold buffers
            took = await bench.interleaved({READY: ready})
            counts = await counted(installation.pool, await heard(installation.pool, ready))
            note = f"{len(installation.fleet.of_shard(0))} devices, {ledger_rows:,} rows in the ledger"
        part.measures.append(Measure(READY, "ms", tuple(took[READY]), counts, note))
        turns = {name: partial(rescue, databases, case, leases) for name, case in CASES.items()}
        part.measures += [rescued(name, found) for name, found in (await bench.interleaved(turns)).items()]
    return part


async def load(bench: Bench, databases: Databases, leases: int) -> int:
    """A database with a day's ledger, and one with enrolments that are due; returns the rows of the ledger."""
    bench.say("loading the ledger")
    for name in ("usage", "waiting"):
        async with installed(await databases.new(name)):
            pass  # the coordinator makes the ledger's partitions
    async with connected(databases.url("usage")) as connection:
        done = await connection.execute(_LEDGER, SENT, NOW_US, _SPACING_US)
        await connection.execute("VACUUM ANALYZE message_ledger")
    async with connected(databases.url("waiting")) as connection:
        await connection.execute("ALTER TABLE leads DISABLE TRIGGER USER")
        await connection.execute(_LEADS, leases)
        await connection.execute("ALTER TABLE leads ENABLE TRIGGER USER")
        await connection.execute(_WAITING, leases, NOW_US - HOUR_US)
        await connection.execute("VACUUM ANALYZE")
    return int(done.rsplit(" ", 1)[1])


async def taken_over(installation: Installation) -> float:
    """Milliseconds until the first shard has slots on offer again."""
    begun_s = time.perf_counter()
    shard = Shard(0, load_settings(), installation.shards[0], _no_sender)
    await shard.take_over(NOW_US)
    devices = installation.fleet.of_shard(0).number
    offer = shard.offer(NOW_US, _HORIZON_US, devices)
    took_ms = (time.perf_counter() - begun_s) * 1000
    assert (offer.slots == 1).all(), "every device has one message left of its day"
    return took_ms


def _no_sender(fleet: Fleet) -> Sender:
    """Nothing is handed over here."""
    return cast(Sender, None)


# Rescue --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rescue:
    """One turn."""

    leases: int
    seconds: float
    wal_bytes: int
    passes: int


Case = Callable[[Installation], Awaitable[tuple[Shards, int, RescuePass]]]
"""Leases everything, lets it expire, and returns the owners, the moment of the rescue and what it has to come to."""


async def rescue(databases: Databases, case: Case, leases: int) -> Rescue:
    """Passes until nothing is leased any more."""
    url = await databases.copied("waiting", "turn")
    async with installed(url) as installation, connected(url) as connection:
        owners, now_us, expected = await case(installation)
        leased = "SELECT count(*) FROM sequence_contacts WHERE lease_token IS NOT NULL"
        assert await connection.fetchval(leased) == leases, "every enrolment is leased"
        rescuer = Rescuer(installation.coordinator, load_settings(), owners)
        before = await wal_position(connection)
        begun_s = time.perf_counter()
        passes: list[RescuePass] = []
        while not passes or passes[-1] != RescuePass():
            passes.append(await rescuer.run_once(now_us))
        seconds = time.perf_counter() - begun_s
        wal_bytes = await wal_position(connection) - before
        total = RescuePass(*(sum(getattr(each, name) for each in passes) for name in RescuePass.__slots__))
        assert total == expected, total
        assert await connection.fetchval(leased) == 0
    await databases.drop("turn")
    return Rescue(leases, seconds, wal_bytes, len(passes))


async def superseded(installation: Installation) -> tuple[Shards, int, RescuePass]:
    """Incarnations that died between claim and hand-over."""
    leased = await lease(installation, record=False)
    await _supersede(installation)
    return _nobody(), NOW_US, RescuePass(given_back=leased)


async def handed_over(installation: Installation) -> tuple[Shards, int, RescuePass]:
    """Incarnations that died between hand-over and outcome."""
    leased = await lease(installation, record=True)
    await _supersede(installation)
    return _nobody(), NOW_US, RescuePass(resent=leased)


async def never_seen(installation: Installation) -> tuple[Shards, int, RescuePass]:
    """Owners that live, and calls that never reached them."""
    settings = load_settings()
    owners = Owners([Shard(n, settings, store, _no_sender) for n, store in enumerate(installation.shards)])
    for number, owner in enumerate(owners.shards):
        installation.shard_epochs[number] = await owner.take_over(NOW_US)
    leased = await lease(installation, record=False)
    return cast(Shards, owners), NOW_US + HOUR_US + span_us(settings.lease_s), RescuePass(given_back=leased)


class Owners:
    """What a rescuer asks of the ``Shards`` port, answered by shards in this process."""

    def __init__(self, shards: list[Shard]) -> None:
        self.shards = shards

    async def fate(self, shard: int, token: Int64s, epoch: Int64s, enrolment: Int64s) -> Int8s:
        """See ``Shard.fate``."""
        return self.shards[shard].fate(token, epoch, enrolment)


async def lease(installation: Installation, *, record: bool) -> int:
    """Everything that is due, in claims of 1000, shard after shard; with ``record`` also handed over."""
    leased = 0
    for shard, store in enumerate(installation.shards):
        while (claim := await installation.claim(installation.want(shard))) is not None:
            leased += len(claim)
            if record:
                texts: list[str | None] = ["Welcome to fitness!"] * len(claim)
                kept = await store.last_look(claim, texts, [None] * len(claim), NOW_US, NOW_US - HOUR_US)
                assert not kept, kept
    return leased


async def _supersede(installation: Installation) -> None:
    for store in installation.shards:
        await store.seat.raise_epoch()


def _nobody() -> Shards:
    """Owners that cannot be asked: none of them is in force."""
    return cast(Shards, Owners([]))


def rescued(name: str, turns: list[Rescue]) -> Measure:
    """The rate of one case."""
    last = turns[-1]
    counts = {"passes": last.passes, "WAL B a lease": last.wal_bytes / last.leases}
    rates = tuple(turn.leases / turn.seconds for turn in turns)
    took = f"{last.leases:,} leases in {median(turn.seconds for turn in turns):.2f} s"
    return Measure(name, "leases/s", rates, counts, took)


CASES: Final[dict[str, Case]] = {
    "rescue, never handed over": superseded,
    "rescue, on record as handed over": handed_over,
    "rescue, over time and never seen": never_seen,
}
