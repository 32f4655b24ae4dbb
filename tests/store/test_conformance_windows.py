"""Send windows: what the stores promise of them, told on PostgreSQL and on its twin alike."""

from __future__ import annotations

from datetime import time
from typing import Any
from uuid import UUID

import numpy as np
import pytest

from dispatcher.core.moments import NEVER_US
from dispatcher.core.windows import Window
from simulate.evidence import ALWAYS_US

ONE = UUID(int=1)
SECOND_US = 1_000_000
HOUR_US = 3600 * SECOND_US
DAYTIME = Window(time(9), time(20), "Asia/Kuala_Lumpur", ("mon", "tue", "fri"))
ZONES = ["Asia/Kuala_Lumpur", "Europe/Berlin", None, "", "Nowhere/Land", "Europe/Berlin"]
"""It is Monday, 8:00 UTC: 16:00 in Kuala Lumpur, 9:00 in Berlin."""


async def dues(story: Any) -> list[float]:
    """Hours from now, enrolment by enrolment."""
    return [(row[6] - story.now_us) / HOUR_US for row in (await story.world.tables())["enrolments"]]


async def enrolled(story: Any, *zones: str | None) -> None:
    """A lead for each of these time zones, enrolled by now."""
    await story.world.set_sequence(1, send_window=DAYTIME)
    story.catalogue = await story.store.catalogue(story.now_us)
    for number, zone in enumerate(zones, 1):
        await story.world.add_lead(f"99910{number}", "start", time_zone=zone)
    assert (await story.enrol()).taken == len(zones)


async def test_a_window_is_read_as_it_was_written_and_taken_away_again(story):
    begun = await story.store.versions()
    await story.world.set_sequence(1, send_window=DAYTIME)
    assert (await story.store.versions()).sequences > begun.sequences
    for catalogue in (await story.store.catalogue(story.now_us), await story.shard.catalogue()):
        assert (catalogue.sequences[1].send_window, catalogue.windows, catalogue.window.tolist()) == (
            DAYTIME,
            [DAYTIME],
            [0, 0, -1],
        )
    await story.world.set_sequence(1, send_window=None)
    assert (await story.shard.catalogue()).windows == []


async def test_a_window_of_an_unknown_zone_is_a_problem_and_closes_the_entry(story):
    await story.world.set_sequence(1, send_window=Window(time(9), time(20), "Nowhere/Land"))
    catalogue = await story.store.catalogue(story.now_us)
    assert (catalogue.entries, catalogue.windows) == ({}, [])
    assert (await story.world.tables())["problems"] == [(1, "its send window has the unknown time zone 'Nowhere/Land'")]


@pytest.mark.parametrize(
    ("later_h", "expected"),
    [
        (0, [0, 0, 0, 0, 0, 0]),
        # 19:30 and 12:30: open everywhere.
        (3.5, [0, 0, 0, 0, 0, 0]),
        # 20:00 and 13:00: over in Kuala Lumpur, where tomorrow's window opens in 13 hours.
        (4, [13, 0, 13, 13, 13, 0]),
        # 4:00 and 21:00 (Tuesday in Kuala Lumpur): five hours to go, and twelve.
        (12, [5, 12, 5, 5, 5, 12]),
        # On Wednesday it opens nowhere: 16:00 and 9:00, until Friday.
        (48, [41, 48, 41, 41, 41, 48]),
    ],
)
async def test_enrolments_are_due_inside_the_window_of_their_leads_zone_or_the_sequences(story, later_h, expected):
    await story.wait(round(later_h * HOUR_US))
    await enrolled(story, *ZONES)
    assert await dues(story) == expected
    assert [row[7] for row in (await story.world.tables())["enrolments"]] == [story.now_us] * len(ZONES)


async def test_zones_are_read_as_they_are_row_by_row(story):
    await story.leads("start", "start", "start")
    await story.world.set_lead(1, time_zone="Europe/Berlin")
    await story.world.set_lead(3, time_zone="Asia/Tokyo")
    await story.world.delete_lead(2)
    found = await story.shard.time_zones(np.array([3, 2, 1, 3]))
    assert found.tolist() == ["Asia/Tokyo", None, "Europe/Berlin", "Asia/Tokyo"]
    assert (await story.shard.time_zones(np.array([2]))).tolist() == [None]


async def test_what_is_due_moves_to_the_opening_of_its_sequence_and_zone(story):
    await enrolled(story, *ZONES)
    opens_us = story.now_us + 9 * HOUR_US
    assert await story.shard.postpone({1: {"": {"Europe/Berlin": opens_us}}}, story.now_us - 1, 100) == 0
    assert await story.shard.postpone({2: {"": {"Europe/Berlin": opens_us}}}, story.now_us, 100) == 0
    assert await story.world.shard(1).postpone({1: {"": {"Europe/Berlin": opens_us}}}, story.now_us, 100) == 0
    assert await story.shard.postpone({1: {"": {"Europe/Berlin": opens_us}}}, story.now_us, 100) == 2
    assert await dues(story) == [0, 9, 0, 0, 0, 9]
    assert await story.shard.postpone({1: {"": {"": opens_us + HOUR_US}}}, story.now_us, 1) == 1
    assert await story.shard.postpone({1: {"": {"": opens_us + HOUR_US}}}, story.now_us, 100) == 1
    assert await dues(story) == [0, 9, 10, 10, 0, 9]
    assert (await story.store.next_due([ONE])).tolist() == [story.now_us]


async def test_what_is_leased_held_or_stopped_is_not_postponed(story):
    await enrolled(story, None, None, None)
    leased = await story.claim(slots=1)
    assert leased is not None
    await story.world.set_lead(2, opted_out_us=story.now_us)
    await story.enrol()
    moved = await story.shard.postpone({1: {"": {"": story.now_us + HOUR_US}}}, story.now_us, 100)
    assert (moved, await dues(story)) == (1, [0, 0, 1])
    await story.wait(HOUR_US)
    assert await story.store.hold(1, 10) == 1
    assert await story.shard.postpone({1: {"": {"": story.now_us + HOUR_US}}}, story.now_us, 100) == 0
    assert (await story.store.next_due([ONE])).tolist() == [NEVER_US]


async def test_the_checker_sees_windows_and_zones(story):
    await enrolled(story, "Europe/Berlin", None)
    evidence = await story.world.evidence()
    assert evidence.time_zones == {"999101": ((ALWAYS_US, "Europe/Berlin"),)}
    assert evidence.catalogue.windows == [DAYTIME]
    await story.world.set_sequence(1, send_window=None)
    assert (await story.world.evidence()).time_zones == {}
