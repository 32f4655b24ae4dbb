"""One rehearsal: database, population, actors, virtual time, verdict."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
import numpy as np
import ray

from actors.cluster import Cluster, start
from dispatcher.config import Settings
from dispatcher.core.batches import Int64s
from dispatcher.core.fleet import Fleet
from dispatcher.core.graph import Sequence
from dispatcher.core.moments import from_datetime, span_us
from dispatcher.core.outcomes import Outcome
from dispatcher.core.routing import shard_count
from dispatcher.errors import DriplineError
from dispatcher.intake.leads import Counts
from dispatcher.intake.sequences import apply
from dispatcher.store.connect import connect
from dispatcher.store.registry import read_fleet, read_groups
from dispatcher.store.session import Session
from dispatcher.store.stamp import require_rehearsal
from dispatcher.store.statements import statements
from simulate import ideal
from simulate.checker import check
from simulate.circumstances import circumstances
from simulate.driver import Driver, Progress
from simulate.evidence import STATUSES, Evidence, collect
from simulate.frame import Frame, faults_of
from simulate.http_referee import HttpFigures, RemoteHttpReferee
from simulate.http_sender import http_referee_sender, open_gateway
from simulate.memory import MemoryProbe
from simulate.outcome import RunOutcome
from simulate.pacing import Pacing
from simulate.population import Carried, DeviceGroup, Zoned, copy_leads, create_devices, lead_chunks
from simulate.receipts import Receipts, read
from simulate.referee import Behaviour, RemoteReferee
from simulate.scenario.schema import START
from simulate.scenario.sender import Over
from simulate.sender import referee_sender
from simulate.speed import Kept, Pace
from simulate.timetable import BansLifted, DeviceChange, Event, Switch, Timetable, Wave
from simulate.waits import Shared, binding_limit, waits
from simulate.watcher import Watcher

_LABELS = tuple(outcome.label for outcome in Outcome)
_CLAIMS_PER_CORE = 2
"""A delivery in a rehearsal lasts until all of it has been sent and written: more of them at once only keep snapshots
open, so that old versions of rows stay, and PostgreSQL needs a tenth more time and log."""
_ANSWER_S = {Over.DIRECT: 120.0, Over.HTTP: 3600.0}
"""How long a shard may take for a tick: over HTTP one may hold hundred thousand requests."""

Bring = Callable[[asyncpg.Connection], Awaitable[Counts]]
"""Brings leads from elsewhere; says what became of the file's rows."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to rehearse."""

    sequences: list[Sequence]
    fleet: tuple[DeviceGroup, ...] = (DeviceGroup(3000),)
    leads: int = 100_000
    days: float = 3.0
    shards: int | None = 10
    seed: int = 1
    tick_s: float = 30.0
    start: datetime = START
    behaviour: Behaviour = field(default_factory=Behaviour)
    mix: tuple[Carried, ...] = ()
    """What leads carry; empty: each one or two entry triggers."""
    zones: tuple[Zoned, ...] = ()
    """Where leads live; empty: nobody knows."""
    pacing: Pacing = Pacing.BURST
    speed: float | None = None
    """How many times faster than life; None: as fast as the machine allows."""
    over: Over = Over.DIRECT
    waves: tuple[Wave, ...] = ()
    """When the ``leads`` come; empty: all before virtual time begins."""
    events: tuple[Event, ...] = ()
    bring_leads: Bring | None = None
    """Brings leads instead of making ``leads`` of them."""
    asked: Mapping[str, Any] = field(default_factory=dict)
    """The scenario, for those who compare runs: values by dotted key."""

    @property
    def devices(self) -> int:
        """How many."""
        return sum(group.count for group in self.fleet)

    @property
    def first_leads(self) -> int:
        """How many leads are there when virtual time begins."""
        begin_us = from_datetime(self.start)
        there = sum(wave.count for wave in self.waves if wave.at_us <= begin_us and not wave.over_us)
        return there if self.waves else self.leads

    @property
    def uneven(self) -> str | None:
        """What on the way makes the ideal schedule no yardstick; None: nothing does."""
        if any(isinstance(event, DeviceChange | BansLifted) for event in self.events) or self.behaviour.bans:
            return "devices go, come or change on the way"
        paused = [event.sequence for event in self.events if isinstance(event, Switch)]
        if paused:
            return "everything pauses on the way" if None in paused else "a sequence pauses on the way"
        if any(each.max_lateness_h is not None for each in self.sequences):
            return "a sequence skips or shifts what is too late"
        if any(group.shared for group in self.fleet):
            return "devices share a limit"
        if any(each.goal for each in self.sequences):
            return "leads leave at a goal"
        shut = any(each.window() for each in self.sequences)
        timed = any(step.at for each in self.sequences for step in each.steps)
        return "send windows close on the way" if shut else "messages wait for a time of day" if timed else None

    @property
    def entries(self) -> list[str]:
        """The triggers leads may carry, sorted."""
        return sorted(step.trigger for sequence in self.sequences for step in sequence.steps if step.is_entry)


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """A finished run."""

    outcome: RunOutcome
    receipts: Receipts
    evidence: Evidence
    frame: Frame


def rehearsing(settings: Settings, url: str, tick_s: float) -> Settings:
    """The settings of a rehearsal in ticks of ``tick_s`` in the database at ``url``."""
    return settings.model_copy(
        update={
            "database_url": url,
            "horizon_s": min(tick_s, settings.lease_s / 2),
            "claims_at_once": min(settings.claims_at_once, _CLAIMS_PER_CORE * (os.cpu_count() or 1)),
        }
    )


async def rehearse(
    plan: Plan,
    settings: Settings,
    url: str,
    *,
    reset: bool,
    server_pid: int | None,
    watcher: Watcher,
    begun_s: float | None = None,
) -> Rehearsed:
    """Rehearse ``plan`` in the database at ``url``; everything is created there and stays.

    Args:
        reset: give up an earlier rehearsal in the same database.
        server_pid: the embedded server, whose memory counts.
        begun_s: monotonic moment from which the wall time counts; None: now.

    Raises:
        RefusedError: the database is live, or holds data and ``reset`` is not given.
    """
    phases = _Phases(watcher, time.monotonic() if begun_s is None else begun_s)
    settings = rehearsing(settings, url, plan.tick_s)
    with (
        tempfile.TemporaryDirectory(prefix="dripline-") as scratch,
        MemoryProbe([server_pid] if server_pid else []) as memory,
    ):
        spool = Path(scratch) / "receipts.bin"
        played = await _play(plan, settings, url, spool, reset, phases)
        receipts = read(spool, played.steps)
        fleet, shared = await _fleet(url, settings)
        names = dict(zip(fleet.number.tolist(), fleet.name, strict=True))
        # Side by side: the database gathers what the tables say while the receipts are hashed.
        evidence, sha256 = await asyncio.gather(
            _evidence(url, settings, played.timetable), asyncio.to_thread(receipts.sha256, names)
        )
        violations, figures = await asyncio.gather(
            asyncio.to_thread(check, receipts, evidence),
            asyncio.to_thread(_figures, plan, settings, fleet, shared, evidence),
        )
        phases.begin("done")
    replies = await _replies(url) if plan.behaviour.replies is not None else None
    frame = _frame(plan, settings, fleet, shared, played.progress, waits=bool(figures["active"]))
    wall_s = sum(phases.wall_s.values())
    sends = int(receipts.answered(Outcome.ACCEPTED).sum())
    outcome = RunOutcome(
        seed=plan.seed,
        devices=plan.devices,
        leads=played.leads,
        lead_file=None if played.rows is None else played.rows.as_json(),
        shards=played.shards,
        tick_s=plan.tick_s,
        pacing=plan.pacing.value,
        settings=_told(plan, settings),
        virtual_s=(played.progress.now_us - from_datetime(plan.start)) / 1e6 + plan.tick_s,
        wall_s=round(wall_s, 3),
        wall={name: round(span_s, 3) for name, span_s in phases.wall_s.items()},
        sends=sends,
        sends_per_wall_s=round(sends / wall_s, 1),
        replies=replies,
        violations=violations,
        peak_rss_mb=round(memory.peak_mb, 1),
        reruns=played.progress.reruns,
        http=None if played.http is None else _http(played.http, sends),
        pace=None if played.pace is None else asdict(played.pace),
        receipts_sha256=sha256,
        made=circumstances(),
        **figures,
    )
    return Rehearsed(outcome, receipts, evidence, frame)


class _Phases:
    """Where the wall time goes."""

    def __init__(self, watcher: Watcher, begun_s: float) -> None:
        self.watcher, self._name, self._since_s = watcher, "start", begun_s
        self.wall_s: dict[str, float] = {}

    def begin(self, name: str) -> None:
        """The phase before ends here."""
        now_s = time.monotonic()
        self.wall_s[self._name] = now_s - self._since_s
        self._name, self._since_s = name, now_s
        self.watcher.phase(name)


@dataclass(frozen=True, slots=True)
class _Played:
    leads: int
    rows: Counts | None
    """What became of the rows of a lead file."""
    shards: int
    progress: Progress
    steps: list[tuple[str, str]]
    timetable: Timetable
    http: HttpFigures | None
    pace: Kept | None


def _timetable(plan: Plan, cluster: Cluster, referee: Any, watcher: Watcher) -> Timetable:
    begin_us = from_datetime(plan.start)
    return Timetable(
        [wave for wave in plan.waves if wave.at_us > begin_us or wave.over_us],
        plan.events,
        first_lead=plan.first_leads,
        copy=partial(_copy, plan, watcher),
        actors={"coordinator": cluster.coordinator, **{f"shard-{n}": each for n, each in enumerate(cluster.shards)}},
        referee=referee if plan.behaviour.is_answered else None,
        seed=plan.seed,
    )


async def _copy(plan: Plan, watcher: Watcher, connection: asyncpg.Connection, chunk: Int64s) -> None:
    watcher.leads(await copy_leads(connection, chunk, plan.entries, plan.seed, plan.mix, plan.zones, plan.fleet))


async def _play(plan: Plan, settings: Settings, url: str, spool: Path, reset: bool, phases: _Phases) -> _Played:
    """Populate the database and run virtual time over it; when this returns, all actors have ended."""
    start_us = from_datetime(plan.start)
    phases.begin("population")
    async with AsyncExitStack() as stack:
        connection = await connect(url, application_name="dripline population")
        stack.push_async_callback(connection.close)
        await require_rehearsal(connection, reset, hour_s=settings.hour_s, clock_us=start_us)
        await apply(connection, plan.sequences)
        await create_devices(connection, *(plan.pacing.paced(group, settings) for group in plan.fleet))
        cluster, referee = await stack.enter_async_context(_actors(plan, settings, spool, connection))
        timetable = _timetable(plan, cluster, referee, phases.watcher)
        pace = None if plan.speed is None else Pace(plan.speed, start_us, phases.watcher.wait)
        driver = Driver(
            cluster,
            url,
            start_us=start_us,
            end_us=start_us + span_us(plan.days * 86_400),
            tick_us=span_us(plan.tick_s),
            answer_s=_ANSWER_S[plan.over],
            on_tick=phases.watcher.tick,
            timetable=timetable,
            pace=pace,
        )
        leads, rows = await _bring_leads(plan, connection, phases.watcher, driver)
        await connection.execute("ANALYZE leads")
        phases.begin("virtual time")
        phases.watcher.expected(await _expected_sends(plan, connection))
        try:
            progress = await driver.run()
            steps = await referee.steps.remote()
            http = await referee.http_figures.remote() if plan.over is Over.HTTP else None
        except ray.exceptions.RayActorError:
            raise DriplineError("the referee died: without its receipts there is no verdict") from None
        await cluster.drain()
        phases.begin("verdict")
    kept = None if pace is None else pace.kept()
    return _Played(leads, rows, len(cluster.shards), progress, steps, timetable, http, kept)


@asynccontextmanager
async def _actors(
    plan: Plan, settings: Settings, spool: Path, connection: asyncpg.Connection
) -> AsyncIterator[tuple[Cluster, Any]]:
    """Coordinator, shards and referee on Ray, starting."""
    holder, over_http = f"rehearsal-{spool.parent.name}", plan.over is Over.HTTP
    kind: Any = RemoteHttpReferee if over_http else RemoteReferee
    referee = kind.options(name="referee", namespace=holder).remote(plan.seed, spool, plan.behaviour)
    try:
        if over_http:
            await open_gateway(connection, referee)
        shards = plan.shards or shard_count(plan.devices, settings.devices_per_shard)
        sender_of = partial(http_referee_sender if over_http else referee_sender, "referee", holder)
        cluster = start(settings, shards, sender_of, holder=holder, virtual=True, answer_s=_ANSWER_S[plan.over])
        try:
            yield cluster, referee
        finally:
            cluster.stop()
    finally:
        ray.kill(referee)


async def _bring_leads(
    plan: Plan, connection: asyncpg.Connection, watcher: Watcher, driver: Driver
) -> tuple[int, Counts | None]:
    """Bring the leads in while the actors start, and enrol them while others come.

    The first ones are in one transaction: nobody sees them before the entries are open. Enrolment takes them in their
    order, so how many there are at a time changes nothing. Returns how many, and what a file's rows became.
    """
    leads, chunks, complete = plan.leads, lead_chunks(plan.first_leads), asyncio.Event()
    rows: Counts | None = None
    tasks = [asyncio.create_task(driver.open())]
    copy = partial(_copy, plan, watcher, connection)
    try:
        async with connection.transaction():
            if plan.bring_leads is not None:
                rows = await plan.bring_leads(connection)
                leads, chunks = rows.imported, iter(())
            while not tasks[0].done() and (chunk := next(chunks, None)) is not None:
                await copy(chunk)
            await tasks[0]
        tasks.append(asyncio.create_task(driver.enrol(complete)))
        for chunk in chunks:
            await copy(chunk)
        complete.set()
        await tasks[1]
    finally:
        for task in tasks:
            task.cancel()
    return leads, rows


async def _expected_sends(plan: Plan, connection: asyncpg.Connection) -> int:
    """Steps of every sequence that leads carry an entry trigger of; who will come is taken to carry the same."""
    there = int(
        await connection.fetchval(
            """SELECT coalesce(sum(carried.leads * (SELECT count(*) FROM sequence_steps s
                                                    WHERE s.sequence_id = e.sequence_id)), 0)
               FROM (SELECT trigger, count(*) AS leads FROM leads WHERE trigger <> '' GROUP BY trigger) carried
               CROSS JOIN LATERAL dripline_tokens(carried.trigger) t(token)
               JOIN open_entries e ON e.trigger = t.token"""
        )
    )
    return there * plan.leads // plan.first_leads if plan.waves and plan.first_leads else there


async def _evidence(url: str, settings: Settings, timetable: Timetable) -> Evidence:
    connection = await connect(url, application_name="dripline checker")
    try:
        found = await collect(connection, _LABELS)
        ids = {sequence.name: id_ for id_, sequence in found.catalogue.sequences.items()}
        return replace(
            found,
            stuck_us=settings.hours_us(1),
            paused=timetable.paused(ids),
            fleet_paused=timetable.fleet_paused,
            retriggered=frozenset(timetable.retriggered),
        )
    finally:
        await connection.close()


async def _replies(url: str) -> dict[str, int]:
    connection = await connect(url, application_name="dripline checker")
    try:
        found = await connection.fetchrow(
            """SELECT count(*) AS received,
                      count(*) FILTER (WHERE EXISTS (
                          SELECT FROM stop_words w WHERE w.said = dripline_said(r.text))) AS stop,
                      (SELECT count(*) FROM sequence_contacts WHERE stop_reason = 'replied') AS exits
               FROM replies r"""
        )
        return dict(found or {})
    finally:
        await connection.close()


async def _fleet(url: str, settings: Settings) -> tuple[Fleet, Shared | None]:
    """The devices at the end, and what they share."""
    async with asyncpg.create_pool(url, min_size=1, max_size=1) as pool:
        session = Session(pool, statements("catalogue"))
        fleet = await read_fleet(session)
        return fleet, Shared.of(fleet, await read_groups(session, 0), settings)


def _frame(
    plan: Plan, settings: Settings, fleet: Fleet, shared: Shared | None, progress: Progress, *, waits: bool
) -> Frame:
    start_us, tick_us = from_datetime(plan.start), span_us(plan.tick_s)
    last_us = progress.now_us + tick_us
    return Frame(
        start_us=start_us,
        # Ticks in which nothing can happen are jumped over, but what waits still waits until time is over.
        end_us=max(last_us, start_us + span_us(plan.days * 86_400)) if waits else last_us,
        tick_us=tick_us,
        hour_us=settings.hours_us(1),
        guard_us=span_us(settings.guard_s),
        fleet=fleet,
        shared=shared,
        faults=faults_of(progress.faults, plan.events, last_us),
    )


def _told(plan: Plan, settings: Settings) -> dict[str, Any]:
    """What was asked for, beside what the figures name themselves; nothing that depends on the machine."""
    here = {"database_url", "data_dir", "ray_address", "devices_per_shard", "claims_at_once"}
    here |= {"webhooks", "webhook_secret", "webhook_window_s", "whatsapp_app_secret", "whatsapp_verify_token"}
    return {
        "days": plan.days,
        "start": plan.start.isoformat(),
        **plan.asked,
        "sequences": sorted(sequence.name for sequence in plan.sequences),
        **settings.model_dump(mode="json", exclude=here),
    }


def _http(figures: HttpFigures, sends: int) -> dict[str, Any]:
    return {**asdict(figures), "sends_per_s": round(sends / max(figures.sending_s, 1e-9), 1)}


def _figures(plan: Plan, settings: Settings, fleet: Fleet, shared: Shared | None, evidence: Evidence) -> dict[str, Any]:
    status = np.bincount(evidence.enrolments["status"], minlength=len(STATUSES) + 1)
    good = evidence.ledger["outcome"] == _LABELS.index("accepted") + 1
    device = evidence.ledger["device"][good].astype(np.int32)
    due_us, slot_us = evidence.ledger_us("due")[good], evidence.ledger_us("reserved")[good]
    late_s = (slot_us - due_us) / 1e6
    hour_us, guard_us = settings.hours_us(1), span_us(settings.guard_s)
    gap = None if plan.uneven else ideal.gap(device, due_us, slot_us, fleet, hour_us=hour_us, guard_us=guard_us)
    binding = None if gap is None else gap.binding_limit
    if shared is not None:
        limits = ideal.allowed(fleet, hour_us=hour_us, guard_us=guard_us)
        binding = binding_limit(waits(fleet.rows(device), due_us, slot_us, limits, shared=shared))
    days = max(1.0, np.ceil((slot_us.max(initial=0) - from_datetime(plan.start)) / (24 * settings.hours_us(1))))
    use = np.bincount(fleet.rows(device), minlength=len(fleet)) / np.maximum(fleet.quota_per_day * days, 1)
    quantiles = np.quantile(late_s, (0.5, 0.95, 0.99, 1.0)) if len(late_s) else np.zeros(4)
    return {
        "enrolled": len(evidence.enrolments),
        **{name: int(status[index + 1]) for index, name in enumerate(STATUSES)},
        "skipped": len(evidence.skipped),
        "shifted": evidence.shifted,
        "lateness_s": dict(zip(("p50", "p95", "p99", "max"), quantiles.round(3).tolist(), strict=True)),
        "optimality_gap_s": None if gap is None else {"mean": round(gap.mean_s, 3), "max": round(gap.max_s, 3)},
        "optimality_gap_missing": plan.uneven,
        "binding_limit": binding,
        "device_use": {"mean": float(use.mean()), "min": float(use.min()), "max": float(use.max())} if len(use) else {},
    }
