"""Slots of devices one after the other: against the rule applied to one message at a time."""

from __future__ import annotations

import numpy as np
import pytest

from dispatcher.core.moments import NEVER_US
from simulate.timelines import Limits, Timelines

HOUR, DAY = 50, 1000


def limits(random: np.random.Generator, rows: int) -> Limits:
    per_day = random.integers(2, 30, rows)
    per_hour = np.minimum(random.integers(1, 6, rows), per_day)
    return Limits(per_hour, per_day, random.integers(1, 8, rows), HOUR, DAY)


def messages(random: np.random.Generator, rows: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row, due moment and whether it counts, of each, ascending by row, then due moment."""
    row, due_us = random.integers(0, rows, size), random.integers(0, 3000, size)
    order = np.lexsort((due_us, row))
    return row[order], due_us[order], random.random(size) < 0.7


def plain(limits: Limits, row: np.ndarray, due_us: np.ndarray, charged: np.ndarray) -> tuple[list[int], list[int]]:
    """The slot of each message, and which limit let go last: 0 none, 1 pacing, 2 the hour, 3 the day."""
    slots, found = [], []
    last: dict[int, int] = {}
    counted: dict[int, list[int]] = {}
    for device, due, counts in zip(row.tolist(), due_us.tolist(), charged.tolist(), strict=True):
        sent, per_hour, per_day = counted.setdefault(device, []), limits.per_hour[device], limits.per_day[device]
        moments = [
            last[device] + int(limits.gap_us[device]) if device in last else -1,
            sent[-per_hour] + HOUR if len(sent) >= per_hour else -1,
            sent[-per_day] + DAY if len(sent) >= per_day else -1,
        ]
        slot = max(due, *moments)
        free = max(due, last.get(device, due))
        slots.append(slot)
        found.append(0 if slot == free else 1 + moments.index(slot))
        last[device] = slot
        if counts:
            sent.append(slot)
    return slots, found


@pytest.mark.parametrize("seed", range(20))
def test_what_does_not_count_takes_no_quota_but_its_place_in_the_row(seed):
    random = np.random.default_rng(seed)
    bound = limits(random, 7)
    row, due_us, charged = messages(random, 7, 400)
    placed = Timelines(bound).explain(row, due_us, charged=charged)
    slots, found = plain(bound, row, due_us, charged)
    assert placed.slot_us.tolist() == slots
    assert placed.limit.tolist() == found
    before = np.where(np.diff(row, prepend=-1) == 0, np.roll(placed.slot_us, 1), due_us)
    assert placed.since_us.tolist() == np.maximum(due_us, before).tolist()


@pytest.mark.parametrize("seed", range(20))
def test_what_finds_no_slot_in_time_finds_the_same_one_later(seed):
    random = np.random.default_rng(seed)
    bound = limits(random, 5)
    row, due_us, charged = messages(random, 5, 300)
    whole = Timelines(bound, np.bincount(row, minlength=5)).place(row, due_us, charged=charged)
    timelines, slot_us = Timelines(bound), np.full(len(row), NEVER_US)
    for until_us in (700, 701, 2500, 20_000, NEVER_US):
        left = np.flatnonzero(slot_us == NEVER_US)
        slot_us[left] = timelines.place(row[left], due_us[left], until_us=until_us, charged=charged[left])
        assert (slot_us[slot_us < NEVER_US] < until_us).all()
        assert (slot_us < NEVER_US).tolist() == (whole < until_us).tolist()
    assert slot_us.tolist() == whole.tolist()


def test_what_was_sent_before_counts():
    bound = Limits(*(np.array([n, n]) for n in (2, 3, 5)), HOUR, DAY)
    timelines = Timelines(bound)
    timelines.record(np.array([0, 0, 1]), np.array([-40, -30, -2]))
    placed = timelines.explain(np.array([0, 0, 1, 1]), np.array([0, 0, 0, 0]))
    # The first device: an hour after the first of two, then a day after the first of three.
    assert placed.slot_us.tolist() == [10, 960, 3, 48]
    assert placed.limit.tolist() == [2, 3, 1, 2]


def test_more_than_windows_can_see_is_forgotten():
    bound = Limits(np.array([3]), np.array([5]), np.array([1]), HOUR, DAY)
    timelines = Timelines(bound)
    for begin in range(0, 40_000, 2000):
        timelines.place(np.zeros(4, np.intp), np.full(4, begin))
    assert len(timelines._slot_us) <= 5 + 2 * 4
