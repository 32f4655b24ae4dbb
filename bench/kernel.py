"""The quota kernel against the same rule in plain Python.

Devices at 80 an hour and 800 a day, 5 s apart, behind a full day of history. Every 150 s the free slots of the next
16.7 s (four a device) are offered and all taken; both sides must agree on every one of them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from heapq import heapify, heapreplace
from statistics import median
from time import perf_counter_ns
from types import FrameType
from typing import Final, TypeVar

import numpy as np

from bench.bench import Bench
from bench.figures import Measure, Part, Ratio
from dispatcher.core.batches import Int64s
from dispatcher.core.quota import Offer, SlidingLog

T = TypeVar("T")

SECOND_US = 1_000_000
HOUR_US, GUARD_US, GAP_US = 3600 * SECOND_US, 60 * SECOND_US, 5 * SECOND_US
PER_HOUR, PER_DAY, IN_FLIGHT = 80, 800, 50
START_US = 1_700_000_000 * SECOND_US
HORIZON_US, STEP_US, ROUNDS = 16_700_000, 150 * SECOND_US, 200
FLEETS: Final = (300, 3000)
ASKED, STRETCH = 6, 10


class PlainLog:
    """A list of reservations a device, and a heap of the devices by their next free moment."""

    def __init__(self, history: list[list[int]]) -> None:
        self.times = history
        self.heap = [(self.next_free(times), device) for device, times in enumerate(history)]
        heapify(self.heap)

    def next_free(self, times: list[int]) -> int:
        """The earliest moment a device with these reservations may send."""
        return max(
            times[-PER_HOUR] + HOUR_US + GUARD_US,
            times[-PER_DAY] + 24 * HOUR_US + GUARD_US,
            times[-1] + GAP_US,
        )

    def take(self, now_us: int, end_us: int) -> list[tuple[int, int]]:
        """Reserve every slot before ``end_us``, the earliest first: (moment, device)."""
        taken = []
        while self.heap[0][0] < end_us:
            free_us, device = self.heap[0]
            slot_us = max(free_us, now_us)
            if slot_us >= end_us:
                break
            self.times[device].append(slot_us)
            taken.append((slot_us, device))
            heapreplace(self.heap, (self.next_free(self.times[device]), device))
        return taken


@dataclass(frozen=True)
class Round:
    """What one round took on either side."""

    kernel_us: float
    heap_us: float
    slots: float


class Sides:
    """The kernel and the heap behind the same history, round by round; a round in which they disagree raises."""

    def __init__(self, devices: int) -> None:
        random = np.random.default_rng(1)
        history: Int64s = START_US - random.integers(25 * HOUR_US, 26 * HOUR_US, (devices, PER_DAY))
        history.sort(axis=1)
        limits = (np.full(devices, limit) for limit in (PER_HOUR, PER_DAY, IN_FLIGHT, GAP_US))
        self.log = SlidingLog(*limits, hour_us=HOUR_US, guard_us=GUARD_US)
        self.log.load(np.repeat(np.arange(devices), PER_DAY), history.ravel())
        self.plain = PlainLog(history.tolist())
        self._now_us = START_US

    def kernel(self) -> Offer:
        """Everything that is free is offered and taken."""
        offer = self.log.offer(self._now_us, HORIZON_US)
        self.log.answer(offer, offer.counts)
        return offer

    def heap(self) -> list[tuple[int, int]]:
        """The same of the heap."""
        return self.plain.take(self._now_us, self._now_us + HORIZON_US)

    def turn(self) -> Round:
        """One round of each, timed."""
        begun_ns = perf_counter_ns()
        offer = self.kernel()
        half_ns = perf_counter_ns()
        taken = self.heap()
        heap_ns = perf_counter_ns() - half_ns
        self._agree(offer, taken)
        return Round((half_ns - begun_ns) / 1000, heap_ns / 1000, len(offer))

    def calls(self) -> tuple[int, int]:
        """Functions called in one round by the kernel and by the heap: they do not vary with the machine."""
        (kernel, offer), (heap, taken) = counted(self.kernel), counted(self.heap)
        self._agree(offer, taken)
        return kernel, heap

    def _agree(self, offer: Offer, taken: list[tuple[int, int]]) -> None:
        if sorted(taken) != sorted(zip(offer.slot_us.tolist(), offer.device.tolist(), strict=True)):
            raise RuntimeError(f"the two sides of {len(self.log)} devices disagree")
        self.log.settle(offer.devices, offer.counts)
        self._now_us += STEP_US


def counted(call: Callable[[], T]) -> tuple[int, T]:
    """How many functions ``call`` called, Python's and C's, and what it returned."""
    found = 0

    def count(_: FrameType, event: str, __: object) -> None:
        nonlocal found
        found += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        result = call()
    finally:
        sys.setprofile(before)
    return found, result


async def rounds(devices: int) -> Round:
    """The medians of a run."""
    sides = Sides(devices)
    turns = [sides.turn() for _ in range(ROUNDS)]
    return Round(*(median(column) for column in zip(*((t.kernel_us, t.heap_us, t.slots) for t in turns), strict=True)))


async def measure(bench: Bench) -> Part:
    """See the module; a run's figure is the median of its rounds."""
    part = Part()
    found = await bench.interleaved({f"{devices} devices": partial(rounds, devices) for devices in FLEETS})
    for devices, (name, runs) in zip(FLEETS, found.items(), strict=True):
        kernel_calls, heap_calls = Sides(devices).calls()
        slots = {"slots a round": runs[0].slots}
        kernel = Measure(
            f"shard kernel, {name}", "µs", tuple(run.kernel_us for run in runs), slots | {"calls a round": kernel_calls}
        )
        heap = Measure(
            f"pure Python heap, {name}", "µs", tuple(run.heap_us for run in runs), slots | {"calls a round": heap_calls}
        )
        part.measures += [kernel, heap]
        if devices == FLEETS[0]:
            part.ratios.append(
                Ratio(f"shard kernel ÷ pure Python heap, {name}", heap.median / kernel.median, ASKED, STRETCH)
            )
    part.remarks.append(
        f"A round: what is free within {HORIZON_US / SECOND_US:g} s is offered and all taken. Both sides found the "
        f"same slots in all {ROUNDS} rounds of every run."
    )
    return part
