"""Devices to shards, enrolments to home devices: the greedy rule, exactly, without its loop."""

from __future__ import annotations

import heapq

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.core.routing import assign, plan_homes, shard_count


def greedy(load: list[int], weight: list[float], n: int) -> list[int]:
    """The rule as it is told: one assignment after the other."""
    heap = [((load[i] + 1) / weight[i], i, load[i] + 1) for i in range(len(load)) if weight[i] > 0]
    heapq.heapify(heap)
    chosen: list[int] = []
    while heap and len(chosen) < n:
        _, device, carried = heap[0]
        chosen.append(device)
        heapq.heapreplace(heap, ((carried + 1) / weight[device], device, carried + 1))
    return chosen


def homes(load: list[int], weight: list[float], n: int) -> list[int]:
    return plan_homes(np.array(load, np.int64), np.array(weight, np.float64), n).tolist()


@pytest.mark.parametrize(
    ("devices", "per_shard", "shards"),
    [(0, 300, 1), (1, 300, 1), (300, 300, 1), (301, 300, 2), (3000, 300, 10)],
)
def test_there_are_as_many_shards_as_devices_need(devices: int, per_shard: int, shards: int) -> None:
    assert shard_count(devices, per_shard) == shards


def test_new_devices_fill_the_smallest_shards_and_known_ones_stay() -> None:
    before = np.array([0, 0, 0, 1, -1, -1, 7, -1], np.int32)
    assert assign(before, 3).tolist() == [0, 0, 0, 1, 2, 1, 2, 1]
    assert before.tolist() == [0, 0, 0, 1, -1, -1, 7, -1]


@given(st.lists(st.integers(-1, 6), max_size=40), st.integers(1, 6))
def test_assignments_are_kept_complete_and_as_even_as_keeping_allows(before: list[int], shards: int) -> None:
    after = assign(np.array(before, np.int64), shards).tolist()
    assert [new for old, new in zip(before, after, strict=True) if 0 <= old < shards] == [
        old for old in before if 0 <= old < shards
    ]
    assert all(0 <= new < shards for new in after)
    sizes = np.bincount(np.array(after, np.int64), minlength=shards)
    for moved in {new for old, new in zip(before, after, strict=True) if not 0 <= old < shards}:
        assert sizes[moved] <= sizes.min() + 1
    assert assign(np.array(after), shards).tolist() == after


def test_homes_go_to_whoever_carries_least_for_its_weight() -> None:
    assert homes([0, 0, 0], [1.0, 1.0, 1.0], 5) == [0, 1, 2, 0, 1]
    assert homes([5, 0, 3], [1.0, 1.0, 1.0], 4) == [1, 1, 1, 1]
    assert homes([0, 0], [1.0, 2.0], 6) == [1, 0, 1, 1, 0, 1]
    assert homes([0, 9, 0], [0.0, 1.0, 0.0], 2) == [1, 1]


def test_one_strong_device_among_many_weak_ones_takes_everything_it_can() -> None:
    assert homes([0] * 1001, [1.0] * 1000 + [100.0], 50) == [1000] * 50


def test_without_an_available_device_there_are_no_homes() -> None:
    assert homes([], [], 3) == []
    assert homes([0, 0], [0.0, 0.0], 3) == []
    assert homes([0, 0], [1.0, 1.0], 0) == []


@given(
    st.lists(
        st.tuples(st.integers(0, 50) | st.integers(0, 10**9), st.sampled_from([0.0, 0.1, 1.0, 3.0, 80.0, 800.0])),
        max_size=12,
    ),
    st.integers(0, 120),
)
def test_homes_are_exactly_those_of_the_greedy_rule(devices: list[tuple[int, float]], n: int) -> None:
    load, weight = [each[0] for each in devices], [each[1] for each in devices]
    assert homes(load, weight, n) == greedy(load, weight, n)


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=8), st.integers(1, 200))
def test_uneven_weights_make_no_difference_to_that(weight: list[float], n: int) -> None:
    load = [number * 7 % 5 for number in range(len(weight))]
    assert homes(load, weight, n) == greedy(load, weight, n)


def test_a_whole_fleet_is_planned_like_one_by_one() -> None:
    load = [number * 7919 % 500 for number in range(3000)]
    weight = [(0.0, 800.0, 1000.0)[number % 3] for number in range(3000)]
    assert homes(load, weight, 20_000) == greedy(load, weight, 20_000)
