"""The quota kernel, told as stories, and held to its promise over three saturated days."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dispatcher.core.moments import NEVER_US
from dispatcher.core.quota import Offer, SlidingLog

S = 1_000_000
HOUR = 3600 * S
START = 1_700_000_000 * S


def rows(*numbers: int) -> np.ndarray[Any, Any]:
    return np.array(numbers, np.int64)


def fleet(
    devices: int = 1, per_hour: int = 80, per_day: int = 800, in_flight: int = 50, gap_s: float = 5
) -> SlidingLog:
    limits = (np.full(devices, limit) for limit in (per_hour, per_day, in_flight, round(gap_s * S)))
    return SlidingLog(*limits, hour_us=HOUR, guard_us=60 * S)


def seconds(offer: Offer) -> list[tuple[int, float]]:
    return [(int(d), (int(at) - START) / S) for d, at in zip(offer.device, offer.slot_us, strict=True)]


def send_all(log: SlidingLog, now_us: int, horizon_us: int) -> Offer:
    offer = log.offer(now_us, horizon_us)
    log.answer(offer, offer.counts)
    log.settle(offer.devices, offer.counts)
    return offer


def test_slots_are_paced_and_end_before_the_horizon() -> None:
    offer = fleet(devices=2).offer(START, 10 * S)
    assert seconds(offer) == [(0, 0), (0, 5), (1, 0), (1, 5)]
    assert offer.devices.tolist() == [0, 1]
    assert offer.counts.tolist() == [2, 2]


def test_a_device_without_pacing_is_bounded_by_what_may_be_in_flight() -> None:
    offer = fleet(in_flight=4, gap_s=0).offer(START, 10 * S)
    assert (offer.slot_us - START).tolist() == [0, 1, 2, 3]


def test_after_the_hours_quota_the_next_slot_waits_for_the_first_to_leave_hour_and_guard() -> None:
    log = fleet(per_hour=3)
    assert seconds(send_all(log, START, 3700 * S)) == [
        (0, 0),
        (0, 5),
        (0, 10),
        (0, 3660),
        (0, 3665),
        (0, 3670),
    ]
    assert log.next_free_us().tolist() == [START + 2 * 3660 * S]


def test_the_day_binds_when_the_hour_does_not() -> None:
    log = fleet(per_hour=3, per_day=4)
    day = 24 * 3600 + 60
    assert seconds(send_all(log, START, (day + 6) * S)) == [
        (0, 0),
        (0, 5),
        (0, 10),
        (0, 3660),
        (0, day),
        (0, day + 5),
    ]


def test_a_long_horizon_is_exact_for_devices_of_different_quotas() -> None:
    log = SlidingLog([1, 3], [9, 9], [4, 4], [S, 5 * S], hour_us=HOUR, guard_us=60 * S)
    slots = [[(0, hour * 3660) for hour in range(3)], [(1, 0), (1, 5), (1, 10), (1, 3660)]]
    assert seconds(log.offer(START, 3 * 3660 * S)) == slots[0] + slots[1]


def test_a_ring_that_wraps_keeps_every_reservation_of_its_day() -> None:
    log = fleet(per_hour=9, per_day=9, in_flight=4, gap_s=1)
    sent: list[int] = []
    for turn in range(60):
        now_us = START + turn * 7001 * S
        sent += send_all(log, now_us, (1 + turn % 4) * S).slot_us.tolist()
        counted = [sum(at > now_us + 3 * S - window for at in sent) for window in (HOUR, 24 * HOUR)]
        assert [count.tolist() for count in log.usage(now_us + 3 * S)[:2]] == [[count] for count in counted]


def test_slots_left_empty_are_offered_again() -> None:
    log = fleet(devices=2)
    offer = log.offer(START, 15 * S)
    log.answer(offer, np.array([1, 0]))
    assert seconds(log.offer(START, 10 * S)) == [(0, 5), (1, 0), (1, 5)]
    assert log.usage(START)[2].tolist() == [2, 2]


def test_a_limited_offer_holds_the_earliest_slots() -> None:
    log = fleet(devices=3)
    assert seconds(log.offer(START, 30 * S, limit=4)) == [(0, 0), (0, 5), (1, 0), (2, 0)]
    log = fleet(devices=3)
    assert seconds(log.offer(START, 30 * S, limit=2)) == [(0, 0), (1, 0)]
    assert seconds(log.offer(START, 5 * S, devices=rows(2))) == [(2, 0)]


def test_a_device_on_offer_is_offered_to_nobody_else() -> None:
    log = fleet(devices=2)
    offer = log.offer(START, 5 * S, devices=rows(1))
    assert log.next_free_us().tolist() == [0, NEVER_US]
    with pytest.raises(ValueError, match="device 1 has an unanswered offer"):
        log.offer(START, 5 * S)
    with pytest.raises(ValueError, match="device 1 has an unanswered offer"):
        log.load(rows(1), rows(START))
    assert seconds(log.offer(START, 5 * S, devices=rows(0))) == [(0, 0)]
    with pytest.raises(ValueError, match="does not have the slots"):
        log.answer(offer, np.array([2]))
    log.answer(offer, np.array([1]))
    with pytest.raises(ValueError, match="answered already"):
        log.answer(offer, np.array([1]))


def test_devices_out_of_order_are_refused() -> None:
    with pytest.raises(ValueError, match="ascending and distinct"):
        fleet(devices=2).offer(START, S, devices=rows(1, 1))


def test_no_slot_precedes_the_last_one_when_the_clock_goes_back() -> None:
    log = fleet()
    send_all(log, START + 100 * S, 5 * S)
    assert seconds(log.offer(START, 110 * S)) == [(0, 105)]


def test_a_release_frees_the_quota_once_and_never_a_neighbour() -> None:
    log = fleet(per_hour=2, gap_s=0)
    first = send_all(log, START, S)
    assert (first.slot_us - START).tolist() == [0, 1]
    assert log.release(rows(0, 0, 0), rows(START, START, START + 7)) == 1
    assert log.usage(START + 1)[0].tolist() == [1]
    second = send_all(log, START, S)
    assert (second.slot_us - START).tolist() == [2]
    assert log.release(rows(0), rows(START)) == 0
    assert len(log.offer(START, S)) == 0


def test_an_unknown_attempt_counts_at_its_latest_moment() -> None:
    log = fleet(per_hour=2)
    send_all(log, START, 10 * S)
    assert log.postpone(rows(0, 0), rows(START, START + 1), rows(START + 30 * S, START + 2)) == 1
    assert log.next_free_us().tolist() == [START + 3665 * S]
    with pytest.raises(ValueError, match="only be postponed"):
        log.postpone(rows(0), rows(START + 30 * S), rows(START))


def test_slots_on_offer_stay_good_when_a_reservation_is_postponed_past_them() -> None:
    log = fleet(per_hour=4)
    send_all(log, START, 5 * S)
    offer = log.offer(START + 5 * S, 10 * S)
    assert log.postpone(rows(0), rows(START), rows(START + 30 * S)) == 1
    log.answer(offer, offer.counts)
    assert [log.usage(START + at * S)[0].tolist() for at in (4, 5, 10, 29, 30)] == [[0], [1], [2], [2], [3]]
    assert seconds(log.offer(START, 3700 * S)) == [(0, 35), (0, 3665), (0, 3670), (0, 3690), (0, 3695)]


def test_a_takeover_restores_usage_in_any_order_and_remembers_more_than_the_quota() -> None:
    log = fleet(devices=2, per_hour=2, per_day=3)
    at = START - np.arange(10) * 600 * S
    log.load(np.repeat(rows(1, 0), [8, 2]), np.roll(at, 3), np.arange(10) == 4)
    hour, day, in_flight = log.usage(START)
    assert (hour.tolist(), day.tolist(), in_flight.tolist()) == ([1, 5], [2, 8], [0, 1])
    assert log.release(np.full(4, 1), np.roll(at, 3)[4:8]) == 4
    assert log.usage(START)[1].tolist() == [2, 4]
    assert len(log.offer(START, HOUR, devices=rows(1))) == 0


def test_a_lowered_quota_binds_new_slots_and_a_raised_one_grows_the_rings() -> None:
    log = fleet(devices=2, per_hour=4, per_day=4)
    send_all(log, START, 15 * S)
    log.set_limits(rows(0), quota_per_hour=3, quota_per_day=3)
    log.set_limits(rows(1), quota_per_hour=100, quota_per_day=1000, min_gap_us=0, in_flight_max=200)
    assert log.usage(START + 15 * S)[0].tolist() == [3, 3]
    offer = send_all(log, START + 15 * S, 5 * S)
    assert (offer.devices.tolist(), offer.counts.tolist()) == ([1], [97])
    assert log.usage(START + 20 * S)[1].tolist() == [3, 100]


def test_who_cannot_send_is_never_free() -> None:
    log = SlidingLog(
        [0, 9, 9, 9, 9], [9, 0, 9, 9, 9], [9, 9, 0, 9, 9], 5 * rows(S, S, S, S, S), hour_us=HOUR, guard_us=0
    )
    log.set_limits(rows(3), available=False)
    assert log.next_free_us().tolist() == [NEVER_US] * 4 + [0]
    assert log.offer(START, 60 * S).devices.tolist() == [4]
    assert len(log.offer(START, 60 * S, devices=rows(0, 1, 2, 3))) == 0


def test_added_devices_start_free() -> None:
    log = fleet()
    send_all(log, START, 5 * S)
    log.add_devices([1], [1], [1], [0])
    assert seconds(log.offer(START, 6 * S)) == [(0, 5), (1, 0)]


def test_refused_changes_change_nothing() -> None:
    log = fleet()
    offer = send_all(log, START, 5 * S)
    with pytest.raises(ValueError, match="fewer messages in flight"):
        log.settle(offer.devices)
    with pytest.raises(ValueError, match="negative"):
        log.set_limits(quota_per_hour=1, quota_per_day=-1)
    assert log.usage(START)[2].tolist() == [0]
    assert seconds(log.offer(START, 11 * S)) == [(0, 5), (0, 10)]


def test_limits_may_be_read_only_views() -> None:
    column = np.full(2, 3)
    column.flags.writeable = False
    log = SlidingLog(column, column, column, column, hour_us=HOUR, guard_us=0)
    log.set_limits(rows(0), quota_per_hour=1)
    assert log.offer(START, S).counts.tolist() == [1, 3]


def test_three_saturated_days_use_all_the_guard_allows_and_never_more_than_the_limit() -> None:
    devices, days = 300, 3
    log = fleet(devices)
    random = np.random.default_rng(7)
    sent: list[Offer] = []
    now_us, end_us = START, START + days * 24 * HOUR
    while now_us < end_us:
        horizon_us = min(int(random.integers(20 * S, 150 * S)), end_us - now_us)
        sent.append(send_all(log, now_us, horizon_us))
        now_us += horizon_us
    device = np.concatenate([offer.device for offer in sent])
    slot_us = np.concatenate([offer.slot_us for offer in sent])
    # A day's quota is spent ten hours into each window of 24 hours and the guard: three windows fit.
    assert np.bincount(device, minlength=devices).tolist() == [800 * days] * devices
    arrived_us = slot_us + random.choice([0, 60 * S], len(slot_us))
    arrived_us = arrived_us[np.lexsort((arrived_us, device))].reshape(devices, -1)
    for limit, window_us in ((80, HOUR), (800, 24 * HOUR)):
        assert (arrived_us[:, limit:] - arrived_us[:, :-limit]).min() >= window_us


def test_an_offer_may_be_reduced_to_some_of_its_slots_before_it_is_answered() -> None:
    log = fleet(2, per_hour=3, in_flight=5)
    offer = log.offer(0, 60 * S)
    kept = np.array([False, True, True, False, False, False])
    part = log.reduce(offer, kept)
    assert (part.devices.tolist(), part.counts.tolist(), part.slot_us.tolist()) == (
        [0],
        [2],
        offer.slot_us[1:3].tolist(),
    )
    log.answer(part, np.array([1]))
    assert [column.tolist() for column in log.usage(int(offer.slot_us[1]))] == [[1, 0], [1, 0], [1, 0]]
    # The slot before the taken one is gone for its device; the other one's are all free.
    assert log.next_free_us().tolist()[0] > offer.slot_us[1]
    assert len(log.offer(0, 60 * S)) == 2 + 3
    with pytest.raises(ValueError, match="answered already"):
        log.reduce(offer, kept)
