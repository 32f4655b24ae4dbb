"""The quota kernel against the same rule in plain Python: ``python -m bench.kernel``.

Devices at 80 an hour and 800 a day, 5 s apart, behind a full day of history. Every 150 s the free slots of
the next 16.7 s (four a device) are offered and all taken; both sides must agree on every one of them.
"""

from __future__ import annotations

from heapq import heapify, heapreplace
from statistics import median
from time import perf_counter_ns

import numpy as np

from dispatcher.core.quota import SlidingLog

SECOND_US = 1_000_000
HOUR_US, GUARD_US, GAP_US = 3600 * SECOND_US, 60 * SECOND_US, 5 * SECOND_US
PER_HOUR, PER_DAY, IN_FLIGHT = 80, 800, 50
START_US = 1_700_000_000 * SECOND_US
HORIZON_US, STEP_US, ROUNDS = 16_700_000, 150 * SECOND_US, 200


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


def compare(devices: int) -> str:
    """One line of medians for a fleet of ``devices``."""
    random = np.random.default_rng(1)
    history = np.sort(START_US - random.integers(25 * HOUR_US, 26 * HOUR_US, (devices, PER_DAY)), axis=1)
    limits = (np.full(devices, limit) for limit in (PER_HOUR, PER_DAY, IN_FLIGHT, GAP_US))
    log = SlidingLog(*limits, hour_us=HOUR_US, guard_us=GUARD_US)
    log.load(np.repeat(np.arange(devices), PER_DAY), history.ravel())
    plain = PlainLog(history.tolist())
    kernel_us: list[float] = []
    plain_us: list[float] = []
    slots: list[int] = []
    for turn in range(ROUNDS):
        now_us = START_US + turn * STEP_US
        begun_ns = perf_counter_ns()
        offer = log.offer(now_us, HORIZON_US)
        log.answer(offer, offer.counts)
        half_ns = perf_counter_ns()
        taken = plain.take(now_us, now_us + HORIZON_US)
        plain_us.append((perf_counter_ns() - half_ns) / 1000)
        kernel_us.append((half_ns - begun_ns) / 1000)
        if sorted(taken) != sorted(zip(offer.slot_us.tolist(), offer.device.tolist(), strict=True)):
            raise SystemExit(f"the two sides disagree at round {turn} of {devices} devices")
        log.settle(offer.devices, offer.counts)
        slots.append(len(offer))
    kernel, heap = median(kernel_us), median(plain_us)
    return (
        f"{devices:5} devices {median(slots):7.0f} slots   kernel {kernel:8.0f} us   heap {heap:8.0f} us   "
        f"{heap / kernel:5.1f} x"
    )


if __name__ == "__main__":
    for fleet in (300, 3000):
        print(compare(fleet))
