"""The schedule on arrays against SimPy: 3000 devices, 100,000 leads through 3 steps a day apart.

All three follow one rule: on every home device the earliest due message leaves at the first moment that pacing and both
windows leave free. SimPy serves what is due at one moment in the order in which it was scheduled, the model by
enrolment; the load has no two messages of a device due at one moment, and every slot must be equal.

*Lean* is as little SimPy as the rule can have: one timeout a message, its callback works out the slot, quotas are
arithmetic. *Idiomatic* is what its documentation teaches: a process a lead, a resource for the turn of a device, a
container for each quota, and a process that gives back what has left a window.
"""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from time import perf_counter
from typing import Any, Final
from uuid import UUID

import numpy as np

from bench.bench import Bench
from bench.figures import Measure, Part, Ratio
from dispatcher.core.batches import Int64s
from dispatcher.core.fleet import Fleet
from dispatcher.core.moments import SECOND_US
from simulate.model import Enrolments, schedule
from simulate.timelines import Limits

simpy: Any = import_module("simpy") if find_spec("simpy") else None

HOUR_US, GUARD_US, GAP_S = 3600 * SECOND_US, 60 * SECOND_US, 5.0
PER_HOUR, PER_DAY = 30, 40
CHAIN: Final = [24, 24]
LEADS, LEADS_PER_DEVICE = 100_000, 100 / 3
ARRAYS, LEAN, IDIOMATIC = "in-memory model", "lean SimPy", "idiomatic SimPy"


@dataclass(frozen=True)
class Load:
    """What all contenders are given."""

    who: Enrolments
    fleet: Fleet

    @property
    def limits(self) -> Limits:
        """Of every device."""
        return Limits.of(self.fleet, hour_us=HOUR_US, guard_us=GUARD_US)


@dataclass(frozen=True)
class Ran:
    """One run of a contender."""

    seconds: float
    slot_us: Int64s
    """Of every message, by enrolment, then step."""


def load(leads: int) -> Load:
    """Leads that become due within an hour, at moments of their own, on a hundredth of three times as many devices."""
    random = np.random.default_rng(7)
    size = round(leads / LEADS_PER_DEVICE)
    fleet = Fleet(
        number=np.arange(1, size + 1, dtype=np.int32),
        shard=np.zeros(size, np.int32),
        quota_per_hour=np.full(size, PER_HOUR, np.int32),
        quota_per_day=np.full(size, PER_DAY, np.int32),
        in_flight_max=np.full(size, 50, np.int32),
        min_gap_s=np.full(size, GAP_S),
        available=np.ones(size, np.bool_),
        left=np.zeros(size, np.bool_),
        trips=np.zeros(size, np.int32),
        probe_us=np.zeros(size, np.int64),
        idempotent=np.ones(size, np.bool_),
        device_id=[UUID(int=n) for n in range(size)],
        name=[str(n) for n in range(size)],
        gateway_url=[None] * size,
        gateway_token=[None] * size,
        group=[None] * size,
    )
    device = random.integers(1, size + 1, leads).astype(np.int32)
    due_us = np.sort(random.choice(HOUR_US, leads, replace=False))
    return Load(Enrolments(device, np.zeros(leads, np.int32), due_us), fleet)


def arrays(given: Load) -> Int64s:
    """The product's own model."""
    return schedule(given.who, [CHAIN], given.fleet, hour_us=HOUR_US, guard_us=GUARD_US).slot_us


def lean(given: Load) -> Int64s:
    """A timeout a message; whatever becomes due takes the next slot of its device at once."""
    env, limits = simpy.Environment(), given.limits
    hour_us, day_us, gap_us = limits.hour_window_us, limits.day_window_us, round(GAP_S * SECOND_US)
    rows = given.fleet.rows(given.who.device).tolist()
    timelines: list[list[int]] = [[] for _ in range(len(given.fleet))]
    slots: list[list[int]] = [[] for _ in rows]
    delays_us = [hours * HOUR_US for hours in CHAIN]

    def wait(enrolment: int, span_us: int) -> None:
        env.timeout(span_us, enrolment).callbacks.append(take)

    def take(event: Any) -> None:
        enrolment, slot_us = event.value, env.now
        timeline, own = timelines[rows[enrolment]], slots[enrolment]
        if timeline:
            slot_us = max(slot_us, timeline[-1] + gap_us)
        if len(timeline) >= PER_HOUR:
            slot_us = max(slot_us, timeline[-PER_HOUR] + hour_us)
        if len(timeline) >= PER_DAY:
            slot_us = max(slot_us, timeline[-PER_DAY] + day_us)
        timeline.append(slot_us)
        if len(own) < len(delays_us):
            wait(enrolment, slot_us + delays_us[len(own)] - env.now)
        own.append(slot_us)

    for enrolment, due_us in enumerate(given.who.due_us.tolist()):
        wait(enrolment, due_us)
    env.run()
    return np.array(slots, np.int64).ravel()


class Device:
    """What a message has to get hold of before it leaves."""

    def __init__(self, env: Any) -> None:
        self.env = env
        self.turn = simpy.Resource(env)
        self.hour = simpy.Container(env, PER_HOUR, PER_HOUR)
        self.day = simpy.Container(env, PER_DAY, PER_DAY)

    def give_back(self, limits: Limits) -> Any:
        """The process that returns what a message took, when it leaves each window."""
        yield self.env.timeout(limits.hour_window_us)
        yield self.hour.put(1)
        yield self.env.timeout(limits.day_window_us - limits.hour_window_us)
        yield self.day.put(1)


def idiomatic(given: Load) -> Int64s:
    """A process a lead, which waits for its device's turn, hour and day."""
    env, limits = simpy.Environment(), given.limits
    devices = [Device(env) for _ in range(len(given.fleet))]
    gap_us = round(GAP_S * SECOND_US)
    slots: list[list[int]] = [[] for _ in range(len(given.who))]

    def lead(device: Device, due_us: int, own: list[int]) -> Any:
        yield env.timeout(due_us)
        for delay_us in (*(hours * HOUR_US for hours in CHAIN), 0):
            with device.turn.request() as turn:
                yield turn
                yield device.hour.get(1)
                yield device.day.get(1)
                own.append(env.now)
                env.process(device.give_back(limits))
                yield env.timeout(gap_us)
            if delay_us:
                yield env.timeout(delay_us - gap_us)

    rows = given.fleet.rows(given.who.device).tolist()
    for row, due_us, own in zip(rows, given.who.due_us.tolist(), slots, strict=True):
        env.process(lead(devices[row], due_us, own))
    env.run()
    return np.array(slots, np.int64).ravel()


async def run(contender: Callable[[Load], Int64s], given: Load) -> Ran:
    """One run, timed from the load to the slots of all messages."""
    gc.collect()
    begun = perf_counter()
    slot_us = contender(given)
    return Ran(perf_counter() - begun, slot_us)


def peak_mb(given: Load) -> float:
    """Megabytes the arrays of the model take at most, counted, not timed."""
    tracemalloc.start()
    try:
        arrays(given)
        return tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()


async def measure(bench: Bench) -> Part:
    """See the module.

    Raises:
        RuntimeError: the contenders do not agree on every slot.
    """
    part = Part()
    given = load(bench.size(LEADS))
    contenders: dict[str, Callable[[Load], Int64s]] = {ARRAYS: arrays}
    if simpy is None:
        part.skipped["SimPy"] = "it is not installed: the extra bench brings it"
    else:
        contenders |= {LEAN: lean, IDIOMATIC: idiomatic}
    found = await bench.interleaved({name: partial(run, each, given) for name, each in contenders.items()})
    slot_us = found[ARRAYS][0].slot_us
    if any((ran.slot_us != slot_us).any() for runs in found.values() for ran in runs):
        raise RuntimeError("the schedules are not equal")
    for name, runs in found.items():
        part.measures.append(Measure(name, "ms", tuple(ran.seconds * 1e3 for ran in runs), {"messages": len(slot_us)}))
    part.measures[0] = replace(
        part.measures[0], counts={"messages": len(slot_us), "MB at the peak": peak_mb(given)}, note=sizes(given)
    )
    for name, asked, stretch in ((LEAN, 20, 40), (IDIOMATIC, 100, 300)):
        if name in found:
            times = part.of(name).median / part.of(ARRAYS).median
            part.ratios.append(Ratio(f"{ARRAYS} ÷ {name}, same results", times, asked, stretch))
    if simpy is not None:
        part.remarks.append(
            f"All {len(slot_us):,} slots are equal in every run, to the microsecond (SimPy {version('simpy')}). "
            "Ties: the model serves equally due messages of a device by enrolment, SimPy as they were scheduled; the "
            "load has none."
        )
    return part


def sizes(given: Load) -> str:
    """The load in a phrase."""
    return (
        f"{len(given.fleet):,} devices at {PER_HOUR} an hour and {PER_DAY} a day, {GAP_S:g} s apart, so that every "
        f"limit binds; {len(given.who):,} leads x {len(CHAIN) + 1} steps"
    )
