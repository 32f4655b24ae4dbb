"""Forecasts beside real rehearsals: the same messages in the same hours, from the scenario and from the database."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dispatcher.config import Settings
from dispatcher.core.outcomes import Outcome
from dispatcher.store.connect import connect
from simulate.forecast import live
from simulate.forecast.outlook import Outlook, forecast
from simulate.forecast.planned import world_of
from simulate.rehearsal import Plan, Rehearsed
from simulate.scenario.load import load
from simulate.scenario.overrides import parse
from simulate.scenario.planned import plan

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[2] / "examples"
HOUR_US = 3_600_000_000
SETTINGS = Settings(database_url=None)
ROUGH = f"""
days: 4
tick_s: 120
shards: 2
devices: {{groups: [{{name: a, count: 4}}, {{name: b, count: 2, quota_per_hour: 30, quota_per_day: 250}}]}}
leads:
  count: 2400
  waves: [{{at_h: 0, share: 0.5}}, {{at_h: 10, share: 0.5, spread_h: 5}}]
sequences: [{EXAMPLES}/fitness.yaml, {EXAMPLES}/crypto.yaml, {EXAMPLES}/realestate.yaml]
sender:
  throttled: 0.05
  refused: 0.05
  rejected: 0.02
  in_doubt: 0.01
  opt_outs: {{share: 0.02, within_h: 20}}
  periods: [{{from_h: 4, to_h: 6, refused: 0.5}}]
  bans: {{share_per_day: 0.05, lifted_after_h: 10}}
events:
  - {{at_h: 3, pause: {{sequence: Crypto Basics, until_h: 20}}}}
  - {{at_h: 30, tag: {{trigger: fitness_start, share: 0.2}}}}
  - {{at_h: 33, opt_out: 0.1}}
  - {{at_h: 5, devices: {{share: 0.3, quota_per_hour: 20, until_h: 40}}}}
  - {{at_h: 12, devices: {{count: 1, health: offline, until_h: 30}}}}
"""

REPLYING = f"""
days: 4
tick_s: 120
shards: 2
devices: {{count: 6, quota_per_hour: 60}}
leads: {{count: 1000, triggers: [{{triggers: [a]}}, {{triggers: [a, crypto_welcome]}}]}}
sequences:
  - name: Asks
    exit: {{on_reply: true}}
    steps: [{{trigger: a, text: A, delay_hours: 5}}, {{trigger: b, text: B, delay_hours: 5}}, {{trigger: c, text: C}}]
  - {EXAMPLES}/crypto.yaml
sender: {{replies: {{share: 0.15, stop: 0.25, within_h: 8}}}}
"""


def planned(path: Path, *sets: str) -> Plan:
    return plan(load(path, [parse(each) for each in sets]), None)


def so_far(start_us: int, slot_us: Any, hours: int) -> Any:
    """Messages up to the end of each hour."""
    return np.cumsum(np.bincount((slot_us - start_us) // HOUR_US, minlength=hours)[:hours])


def compare(done: Rehearsed, told: Outlook, share: float) -> None:
    """At the end of no hour do they differ by more than that share of all messages."""
    rows = done.receipts.rows
    slot_us = rows["slot_us"][rows["answer"] == Outcome.ACCEPTED]
    hours = max(len(told.sent), int((slot_us.max() - told.world.start_us) // HOUR_US) + 1)
    foreseen = np.zeros(hours, np.int64)
    foreseen[: len(told.sent)] = told.sent.sum(axis=1)
    apart = np.abs(so_far(told.world.start_us, slot_us, hours) - np.cumsum(foreseen))
    assert apart.max() <= share * len(slot_us), (int(apart.max()), int(apart.argmax()), len(slot_us))


def test_windows_and_changed_clocks_are_foreseen(world):
    few = [f"devices.groups.{n}.count=1" for n in range(3)]
    small = (*few, "leads.count=1200", "shards=2", "tick_s=120")
    planned_ = planned(EXAMPLES / "four_zones.yaml", *small)
    done, told = world.play(planned_), forecast(world_of(planned_, SETTINGS))
    compare(done, told, 0.01)
    assert (told.completed, told.messages) == (done.outcome.completed, done.outcome.sends)


def test_trouble_of_every_kind_is_foreseen(world, tmp_path):
    path = tmp_path / "rough.yaml"
    path.write_text(ROUGH)
    planned_ = planned(path)
    done, told = world.play(planned_), forecast(world_of(planned_, SETTINGS))
    compare(done, told, 0.02)
    for name in ("completed", "failed", "stopped"):
        assert getattr(told, name) == pytest.approx(getattr(done.outcome, name), rel=0.02, abs=15)


def test_replies_are_foreseen(world, tmp_path):
    """The same leads write back the same, at the same times but for the border of a tick."""
    path = tmp_path / "replies.yaml"
    path.write_text(REPLYING)
    planned_ = planned(path)
    done, told = world.play(planned_), forecast(world_of(planned_, SETTINGS))
    assert done.outcome.good, done.outcome.violations
    compare(done, told, 0.01)
    found, foreseen = done.outcome.replies, told.replies
    assert found is not None
    assert found["exits"] > 100 < found["received"] - found["stop"] > found["stop"] > 50
    assert foreseen == pytest.approx(found, rel=0.02)
    for name in ("completed", "stopped"):
        assert getattr(told, name) == pytest.approx(getattr(done.outcome, name), rel=0.01)
    assert world.value("SELECT count(*) FROM exits") == world.value("SELECT count(*) FROM lead_changes") == 0
    last = world.value("SELECT received_at > dripline_now() - interval '1 day' FROM replies ORDER BY id DESC LIMIT 1")
    assert last, "who writes after the last message is heard too"


def test_waves_that_collide_are_foreseen_from_the_start_and_in_the_middle(world):
    small = ("devices.groups.0.count=4", "devices.groups.1.count=2", "leads.count=3600", "shards=2", "tick_s=120")
    planned_ = planned(EXAMPLES / "colliding_waves.yaml", *small)
    whole, foreseen = world.play(planned_), forecast(world_of(planned_, SETTINGS))
    compare(whole, foreseen, 0.01)
    assert (foreseen.completed, foreseen.messages) == (whole.outcome.completed, whole.outcome.sends)
    assert foreseen.feasible
    rows = whole.receipts.rows
    part = world.play(planned(EXAMPLES / "colliding_waves.yaml", *small, "days=2.5"))
    assert part.outcome.active > 1000

    async def told() -> Outlook:
        connection = await connect(world.url)
        try:
            return forecast(await live.world_of(connection, SETTINGS, None))
        finally:
            await connection.close()

    outlook = asyncio.run(told())
    left_us = rows["slot_us"][rows["slot_us"] >= outlook.world.start_us]
    assert outlook.messages == len(left_us) == len(rows) - part.outcome.sends
    assert outlook.completed == outlook.enrolled == part.outcome.active
    assert outlook.finish_us == pytest.approx(left_us.max(), abs=5 * 60 * 1_000_000)
    hours = len(outlook.sent)
    apart = np.abs(so_far(outlook.world.start_us, left_us, hours) - np.cumsum(outlook.sent.sum(axis=1)))
    assert apart.max() <= 0.02 * len(left_us)
    assert {wave.wave for wave in outlook.waves} == {"came 2026-01-06", "came 2026-01-07"}
