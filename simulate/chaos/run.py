"""One chaos run: population, storm, calm, verdict."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import asyncpg

from actors.screen import Screen
from dispatcher.errors import StoreError
from dispatcher.store.embedded import EmbeddedServer
from simulate.chaos.faults import CUTS, TROUBLES
from simulate.chaos.outcome import ChaosOutcome
from simulate.chaos.plan import SETTINGS, ChaosPlan
from simulate.chaos.stage import Stage, staged, start_gateway
from simulate.chaos.storm import Storm, drawn
from simulate.chaos.verdict import judge
from simulate.chaos.world import Progress, bring_leads, populate
from simulate.gateway import read_log
from simulate.scratch import scratch_server

KEPT: Final = "chaos"
"""The directory below ``data_dir`` where a run that is kept leaves database and logs."""
_LOOK_S: Final = 1.0
_SCREEN_S: Final = 5.0
_PATIENCE: Final = 3.0
_LEAST_S: Final = 90.0


async def run_chaos(plan: ChaosPlan, data_dir: Path, *, keep: bool, screen: Screen) -> ChaosOutcome:
    """Run ``plan`` on a database of its own.

    Args:
        data_dir: the database lives below it, and goes with the run.
        keep: leave database, gateway's log and engine's log in ``data_dir/chaos``, replacing an earlier run's.
        screen: where a person is told.

    Raises:
        DriplineError: the engine does not start.
    """
    begun_s = time.monotonic()
    screen.news(f"chaos {plan.seed}: {plan.devices:,} devices, {plan.leads:,} leads, {plan.strikes} kills and cuts")
    with _place(data_dir, keep) as (place, server):
        with start_gateway(plan, place) as gateway:
            await populate(plan, server.url(), gateway.url)
            screen.news("starting the engine on its nodes")
            async with staged(plan, server, gateway, place) as stage:
                progress = await bring_leads(plan, server.url())
                stormed = await _through_storm(plan, stage, progress, screen)
        screen.news("verdict")
        verdict = await judge(plan, server.url(), gateway.log)
        return ChaosOutcome(
            seed=plan.seed,
            devices=plan.devices,
            leads=plan.leads,
            shards=plan.shards,
            idempotent=plan.idempotent,
            hour_s=SETTINGS["hour_s"],
            quota_per_hour=plan.quota_per_hour,
            wall_s=round(time.monotonic() - begun_s, 1),
            sends_per_s=round(verdict.accepted / max(_sending_s(gateway.log), 1.0), 1),
            hooks=stage.nodes.hooked,
            run_starts=stage.engine.starts,
            drained=progress.drained,
            verdict=verdict,
            **asdict(stormed),
        )


@dataclass(frozen=True, slots=True)
class _Stormed:
    """How a storm went; the fields are those of ``ChaosOutcome``."""

    cuts: dict[str, int]
    troubles: dict[str, int]
    missed: int
    drain_s: float
    ended_well: bool


async def _through_storm(plan: ChaosPlan, stage: Stage, progress: Progress, screen: Screen) -> _Stormed:
    """Strike, calm down, wait until nothing is left to do, and end the engine."""
    strikes = drawn(plan.seed, plan.strikes, plan.only)
    storm = Storm(stage, list(strikes), lambda: progress.share)
    watching = asyncio.create_task(_watch(stage, progress, screen))
    try:
        screen.news(f"storm: {progress.messages:,} messages to send, {len(strikes)} strikes to come")
        await storm.run()
        stage.calm()
        screen.news(f"calm: {sum(storm.struck.values())} strikes are over, the rest is to drain")
        calm_s = time.monotonic()
        await _drain(plan, progress)
        drain_s = time.monotonic() - calm_s
        ended_well = await stage.engine.end() == 0
    finally:
        watching.cancel()
    return _Stormed(
        cuts={fault.name: storm.struck[fault.name] for fault in CUTS},
        troubles={fault.name: storm.struck[fault.name] for fault in TROUBLES},
        missed=len(strikes) - sum(storm.struck.values()),
        drain_s=round(drain_s, 1),
        ended_well=ended_well,
    )


@contextmanager
def _place(data_dir: Path, keep: bool) -> Iterator[tuple[Path, EmbeddedServer]]:
    """A directory for logs and a started server."""
    if not keep:
        with tempfile.TemporaryDirectory(prefix="dripline-") as logs, scratch_server(data_dir, keep=False) as server:
            yield Path(logs), server
        return
    place = data_dir / KEPT
    if place.exists():
        EmbeddedServer(place).stop()
        shutil.rmtree(place)
    with scratch_server(place, keep=True) as server:
        yield place, server


async def _watch(stage: Stage, progress: Progress, screen: Screen) -> None:
    """Keep ``progress`` up to date; a database that is down says nothing for a while."""
    begun_s = time.monotonic()
    while True:
        try:
            await progress.look(stage.server.url())
            down = ""
        except (StoreError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
            down = ", the database is down"
        elapsed_s = time.monotonic() - begun_s
        screen.standing(
            f"{progress.done:,} of {progress.messages:,} messages done ({progress.share:.0%}),"
            f" {progress.done / elapsed_s if elapsed_s > 1 else 0:,.0f}/s"
            f"{down}"
        )
        await asyncio.sleep(_LOOK_S)


async def _drain(plan: ChaosPlan, progress: Progress) -> None:
    """Wait until nothing is under way any more, a multiple of what the quotas allow at longest."""
    fleet_per_s = plan.devices * plan.quota_per_hour / plan.window_s
    hours = max(progress.lengths.values(), default=0)
    rest_s = (progress.messages - progress.done) / fleet_per_s + hours * plan.window_s
    give_up_s = time.monotonic() + _LEAST_S + _PATIENCE * rest_s
    while not progress.drained and time.monotonic() < give_up_s:
        await asyncio.sleep(_LOOK_S)


def _sending_s(log: Path) -> float:
    """From the first arrival to the last."""
    arrivals = read_log(log)
    return arrivals[-1].arrived_at - arrivals[0].arrived_at if arrivals else 0.0
