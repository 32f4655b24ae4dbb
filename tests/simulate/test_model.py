"""The schedule on arrays: against a plain one that tries every microsecond, and against the kernel of production."""

from __future__ import annotations

import sys
from collections import defaultdict
from types import FrameType
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dispatcher.core.fleet import Fleet
from dispatcher.core.moments import NEVER_US
from dispatcher.core.quota import SlidingLog
from simulate import model
from simulate.model import Enrolments, Schedule, schedule
from simulate.timelines import Limits

HOUR, GUARD = 3, 2
HOUR_WINDOW, DAY_WINDOW = HOUR + GUARD, 24 * HOUR + GUARD


def fleet(*limits: tuple[int, int, int]) -> Fleet:
    """Devices 10, 20, …: quota per hour, quota per day and pacing in microseconds of each."""
    per_hour, per_day, gap_us = np.array(limits, np.int32).T
    size = len(limits)
    return Fleet(
        number=np.arange(10, 10 * size + 10, 10, dtype=np.int32),
        shard=np.zeros(size, np.int32),
        quota_per_hour=per_hour,
        quota_per_day=per_day,
        in_flight_max=np.ones(size, np.int32),
        min_gap_s=gap_us / 1e6,
        available=np.ones(size, np.bool_),
        left=np.zeros(size, np.bool_),
        trips=np.zeros(size, np.int32),
        probe_us=np.zeros(size, np.int64),
        idempotent=np.ones(size, np.bool_),
        device_id=[UUID(int=n) for n in range(size)],
        name=["device"] * size,
        gateway_url=[None] * size,
        gateway_token=[None] * size,
        group=[None] * size,
    )


def enrolments(*each: tuple[int, int, int]) -> Enrolments:
    """Device number, sequence and due moment of each."""
    device, sequence, due_us = np.array(each, np.int64).reshape(-1, 3).T
    return Enrolments(device.astype(np.int32), sequence.astype(np.int32), due_us)


def modelled(who: Enrolments, chains: list[list[int]], devices: Fleet) -> Schedule:
    return schedule(who, chains, devices, hour_us=HOUR, guard_us=GUARD)


Moments = dict[tuple[int, int], tuple[int, int]]


def moments(found: Schedule) -> Moments:
    """Due moment and slot by enrolment and step."""
    columns = (found.enrolment, found.step, found.due_us, found.slot_us)
    return {(who, step): (due, slot) for who, step, due, slot in zip(*(c.tolist() for c in columns), strict=True)}


def plain(who: Enrolments, chains: list[list[int]], devices: Fleet) -> Moments:
    """Every device looks at every microsecond: may it send, and what has waited longest?"""
    found: Moments = {}
    for row, number in enumerate(devices.number.tolist()):
        limit = int(devices.quota_per_hour[row]), int(devices.quota_per_day[row])
        gap = max(round(float(devices.min_gap_s[row]) * 1e6), 1)
        waiting = [(int(who.due_us[n]), n, 0) for n in range(len(who)) if who.device[n] == number]
        sent: list[int] = []
        now = min(waiting, default=(0, 0, 0))[0]
        while waiting:
            due, enrolment, step = min(waiting)
            hour, day = (sum(now - at < window for at in sent) for window in (HOUR_WINDOW, DAY_WINDOW))
            if due <= now and hour < limit[0] and day < limit[1] and not (sent and now - sent[-1] < gap):
                waiting.remove((due, enrolment, step))
                sent.append(now)
                found[enrolment, step] = due, now
                if step < len(chain := chains[who.sequence[enrolment]]):
                    waiting.append((now + chain[step] * HOUR, enrolment, step + 1))
            now += 1
    return found


device_limits = st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(0, 4))
worlds = st.tuples(
    st.lists(device_limits, min_size=1, max_size=3),
    st.lists(st.lists(st.integers(1, 30), max_size=3), min_size=1, max_size=3),
).flatmap(
    lambda world: st.tuples(
        st.just(world[0]),
        st.just(world[1]),
        st.lists(
            st.tuples(
                st.integers(1, len(world[0])).map(lambda n: 10 * n),
                st.integers(0, len(world[1]) - 1),
                st.integers(-20, 40),
            ),
            max_size=12,
        ),
    )
)


@settings(max_examples=150, deadline=None)
@given(worlds)
def test_every_message_leaves_when_the_plain_rule_says(world):
    limits, chains, each = world
    who, devices = enrolments(*each), fleet(*limits)
    assert moments(modelled(who, chains, devices)) == plain(who, chains, devices)


def random_world(seed: int, size: int) -> tuple[Enrolments, list[list[int]], Fleet]:
    """Some twenty enrolments a device, half of them at moments that others have too."""
    random = np.random.default_rng(seed)
    devices = fleet(*random.integers((1, 4, 0), (6, 30, 5), (size // 20, 3)).tolist())
    who = Enrolments(
        random.choice(devices.number, size),
        random.integers(0, 3, size).astype(np.int32),
        np.where(random.random(size) < 0.5, 7, random.integers(0, 1000, size)),
    )
    return who, [[24, 24], [1, 2, 3], []], devices


@pytest.mark.parametrize("seed", range(3))
def test_every_slot_is_the_one_the_kernel_offers_when_the_message_is_due(seed, monkeypatch):
    monkeypatch.setattr(model, "_TOGETHER", 50 + 100 * seed)  # several groups of devices, or one
    who, chains, devices = random_world(seed, 200)
    found = modelled(who, chains, devices)
    limits = Limits.of(devices, hour_us=HOUR, guard_us=GUARD)
    log = SlidingLog(
        devices.quota_per_hour, devices.quota_per_day, 1, limits.gap_us, hour_us=HOUR, guard_us=GUARD
    )  # one in flight: one slot an offer
    row = devices.rows(who.device)[found.enrolment]
    offered = []
    for message in np.argsort(found.slot_us, kind="stable"):
        offer = log.offer(int(found.due_us[message]), 10**6, row[[message]])
        log.answer(offer, offer.counts)
        log.settle(offer.devices)
        offered.append(offer.slot_us.tolist())
    assert offered == [[slot] for slot in np.sort(found.slot_us).tolist()]


def test_due_moments_follow_from_slots_and_nothing_is_left_out():
    who, chains, devices = random_world(7, 400)
    found = modelled(who, chains, devices)
    assert np.bincount(found.enrolment).tolist() == [len(chains[s]) + 1 for s in who.sequence]
    assert found.due_us[found.step == 0].tolist() == who.due_us.tolist()
    later = np.flatnonzero(found.step > 0)
    delay = [
        chains[who.sequence[n]][step - 1] for n, step in zip(found.enrolment[later], found.step[later], strict=True)
    ]
    assert (found.due_us[later] - found.slot_us[later - 1]).tolist() == [hours * HOUR for hours in delay]


def test_equally_due_messages_leave_by_enrolment():
    found = modelled(enrolments((10, 0, 5), (10, 1, 5), (10, 0, 5)), [[1], []], fleet((9, 9, 1)))
    assert moments(found) == {(0, 0): (5, 5), (0, 1): (8, 8), (1, 0): (5, 6), (2, 0): (5, 7), (2, 1): (10, 10)}
    # Due at 8: the second step of 0, and 3 by itself.
    met = modelled(enrolments((10, 0, 5), (10, 1, 8)), [[1], []], fleet((9, 9, 1)))
    assert moments(met) == {(0, 0): (5, 5), (0, 1): (8, 8), (1, 0): (8, 9)}
    met = modelled(enrolments((10, 1, 8), (10, 0, 5)), [[1], []], fleet((9, 9, 1)))
    assert moments(met) == {(0, 0): (8, 8), (1, 0): (5, 5), (1, 1): (8, 9)}


def test_a_device_without_quota_sends_nothing_and_others_do():
    found = modelled(enrolments((10, 0, 5), (20, 0, 5)), [[1]], fleet((0, 9, 1), (9, 9, 1)))
    assert moments(found) == {
        (0, 0): (5, NEVER_US),
        (0, 1): (NEVER_US, NEVER_US),
        (1, 0): (5, 5),
        (1, 1): (8, 8),
    }
    nobody = modelled(enrolments((10, 0, 5)), [[]], fleet((9, 0, 1)))
    assert moments(nobody) == {(0, 0): (5, NEVER_US)}


def test_nobody_enrolled_nothing_sent():
    assert len(modelled(enrolments(), [[1]], fleet((1, 1, 1)))) == 0


def test_a_delay_of_nothing_is_refused():
    with pytest.raises(ValueError, match="above 0"):
        modelled(enrolments((10, 0, 5)), [[1, 0]], fleet((1, 1, 1)))


def calls(size: int) -> int:
    """Functions called, Python's and C's, to schedule ``size`` enrolments of three messages on ever as many devices."""
    random = np.random.default_rng(1)
    devices = fleet(*[(30, 40, 5)] * (size // 30))
    who = Enrolments(random.choice(devices.number, size), np.zeros(size, np.int32), random.integers(0, 3600, size))
    counted: defaultdict[str, int] = defaultdict(int)

    def count(_: FrameType, event: str, __: object) -> None:
        counted[event] += 1

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        schedule(who, [[24, 24]], devices, hour_us=3600, guard_us=60)
    finally:
        sys.setprofile(before)
    return counted["call"] + counted["c_call"]


def test_ten_times_the_messages_take_no_more_calls():
    assert calls(20_000) < 1.5 * calls(2_000) < 5_000
