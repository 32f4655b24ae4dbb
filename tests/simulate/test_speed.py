"""A rehearsal at a pace: virtual time never runs ahead of the wall clock, and nothing else changes."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest
from rich.console import Console

from simulate.outcome import table
from simulate.scenario.schema import START
from simulate.speed import Kept, Pace
from simulate.watcher import Screen

START_US = 1_767_571_200_000_000
S = 1_000_000


def pace(speed: float) -> tuple[Pace, list[int]]:
    waited: list[int] = []
    made = Pace(speed, START_US, waited.append)
    made.begin()
    return made, waited


async def test_a_moment_is_reached_when_the_wall_clock_is_there():
    kept, _ = pace(100)
    begun_s = time.monotonic()
    await kept.reach(START_US)
    await kept.reach(START_US + 30 * S)
    assert 0.3 <= time.monotonic() - begun_s < 5
    await kept.reach(START_US + 31 * S)
    assert time.monotonic() - begun_s >= 0.31


async def test_who_is_late_waits_for_nothing_and_says_by_how_much():
    kept, _ = pace(10)
    await asyncio.sleep(0.5)
    begun_s = time.monotonic()
    await kept.reach(START_US + 2 * S)
    assert time.monotonic() - begun_s < 0.2
    assert 0.3 <= kept.behind_s < 5
    most_s = kept.behind_s
    await kept.reach(START_US + round((most_s + 0.7) * 10) * S)
    assert kept.kept() == Kept(10, round(most_s, 3), 0.0)


async def test_a_long_wait_shows_how_far_virtual_time_is_and_ends_at_once_when_it_is_told_to():
    kept, waited = pace(60)
    waiting = asyncio.create_task(kept.reach(START_US + 86_400 * S))
    await asyncio.sleep(2.5)
    cancelled_s = time.monotonic()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert time.monotonic() - cancelled_s < 0.2
    assert len(waited) >= 1
    assert START_US + 59 * S < waited[0] < START_US + 120 * S


def test_the_screen_shows_the_day_and_the_time_that_is_reached(capsys):
    screen = Screen(START)
    screen._shown -= 10
    screen.wait(START_US + (86_400 + 2 * 3600 + 3 * 60 + 4) * S)
    assert "day 1 02:03:04  0 sent" in capsys.readouterr().err


def test_the_table_says_how_the_pace_was_kept_and_what_went_over_http(story):
    outcome = replace(
        story.told().outcome,
        pace={"speed": 60.0, "behind_most_s": 12.5, "behind_s": 0.25},
        http={
            "requests": 1234, "connections": 256, "sending_s": 2.0, "sends_per_s": 617.0,
            "latency_ms": {"p50": 100.0, "p95": 250.0, "max": 900.0},
        },
    )  # fmt: skip
    console = Console(width=200)
    with console.capture() as shown:
        console.print(table(outcome))
    assert "60 times as fast as life; at most 12.5 s behind, 0.2 s at the end" in shown.get()
    assert "617 sends a second while sending, 2.0 s; 1,234 requests, 256 connections; half answered" in shown.get()


@pytest.mark.slow
def test_a_paced_run_takes_as_long_as_it_says_and_has_the_same_receipts(world):
    plan = {"devices": 10, "leads": 40, "days": 1.1}
    free, paced = world.rehearse(**plan), world.rehearse(**plan, speed=7200)
    assert paced.outcome.good
    assert paced.outcome.receipts_sha256 == free.outcome.receipts_sha256
    assert paced.outcome.wall["virtual time"] >= paced.outcome.virtual_s / 7200 > 10
    assert free.outcome.pace is None
    assert paced.outcome.pace is not None
    assert paced.outcome.pace["speed"] == 7200
