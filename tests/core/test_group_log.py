"""A limit that devices share, beside a count that looks at every window."""

from __future__ import annotations

import numpy as np
import pytest

from dispatcher.core.group_log import Group, GroupLog, shares
from dispatcher.core.moments import NEVER_US

S = 1_000_000
HOUR = 3600 * S
GUARD = 90 * S
WINDOW = HOUR + GUARD


def log(per_hour: int | None, per_day: int | None = None) -> GroupLog:
    made = GroupLog(hour_us=HOUR, guard_us=GUARD)
    made.set_limits(per_hour, per_day)
    return made


def charge(own: GroupLog, *seconds: int, number: int = 1) -> None:
    own.charge(np.array(seconds, np.int64) * S, np.full(len(seconds), number, np.int32))


def fit(own: GroupLog, *seconds: int) -> list[int]:
    slots = np.array(seconds, np.int64) * S
    return (slots[own.fit(slots)] // S).tolist()


def test_the_hour_lets_through_what_it_holds_and_opens_when_the_oldest_has_left() -> None:
    own = log(3)
    assert (own.next_free_us < 0, fit(own, 0, 0, 5, 5, 10)) == (True, [0, 0, 5])
    charge(own, 0, 0, 5)
    assert own.next_free_us == WINDOW
    assert fit(own, 10, 3600, 3689, 3690, 3691, 3694, 3695, 3696) == [3690, 3691, 3695]


def test_a_slot_before_what_is_charged_already_counts_that_as_well() -> None:
    own = log(3)
    charge(own, 100, 200)
    # One more at 50 s: the hour that ends at 200 s then holds three.
    assert fit(own, 50, 60) == [50]
    charge(own, 50)
    assert own.next_free_us == 50 * S + WINDOW


def test_the_day_binds_where_it_is_the_tighter_one() -> None:
    own = log(3, 4)
    charge(own, 0, 1, 2)
    assert fit(own, *range(4000, 4010)) == [4000]
    charge(own, 4000)
    assert own.next_free_us == 24 * HOUR + GUARD


def test_limits_change_and_may_be_none() -> None:
    own = log(None)
    charge(own, *range(100))
    assert own.next_free_us < 0
    own.set_limits(10, None)
    assert own.next_free_us == 90 * S + WINDOW
    own.set_limits(200, None)
    assert len(own.fit(np.full(150, 100 * S))) == 100
    own.set_limits(0, None)
    assert (own.next_free_us, fit(own, 10**6)) == (NEVER_US, [])


def test_a_release_takes_back_one_attempt_and_only_that() -> None:
    own = log(3)
    charge(own, 0, 5, number=1)
    charge(own, 5, number=2)
    moments, numbers = np.array([5 * S, 5 * S, 7 * S]), np.array([2, 3, 1], np.int32)
    assert (own.release(moments, numbers), len(own)) == (1, 2)
    assert (own.release(moments, numbers), len(own)) == (0, 2)
    charge(own, 5, number=1)
    assert (own.release(np.array([5 * S]), np.array([1], np.int32)), len(own)) == (1, 2)
    assert fit(own, 10, 11) == [10]


@pytest.mark.parametrize("seed", range(5))
def test_no_window_ever_holds_more_and_a_steady_stream_fills_it(seed: int) -> None:
    random = np.random.default_rng(seed)
    own, taken = log(20, 120), np.zeros(0, np.int64)
    for now in range(0, 40 * HOUR, 300 * S):
        slots = np.sort(now + random.integers(0, 420 * S, 12))
        some = slots[own.fit(slots)]
        own.charge(some, np.zeros(len(some), np.int32))
        taken = np.sort(np.concatenate((taken, some)))
        if len(some) > 2 and random.random() < 0.3:
            own.release(some[:1], np.zeros(1, np.int32))
            taken = np.delete(taken, np.searchsorted(taken, some[0]))
    for quota, window in ((20, WINDOW), (120, 24 * HOUR + GUARD)):
        assert (taken[quota:] - taken[:-quota] >= window).all()
    assert len(taken) > 0.95 * 120 * 40 / 24


def test_devices_share_a_limit_by_their_quotas() -> None:
    quotas, available = np.array([100, 300, 50, 100], np.int32), np.array([True, True, True, False])
    group = np.array([0, 0, 1, 0])
    assert shares(quotas, available, group, [200, 60]).tolist() == [50, 150, 50, 100]
    assert shares(quotas, available, group, [None, 10]).tolist() == [100, 300, 10, 100]
    assert Group("g", 5, None, np.zeros(0, np.int32)).most_per_day == 120
    assert Group("g", 5, 100, np.zeros(0, np.int32)).most_per_day == 100
    assert Group("g", None, None, np.zeros(0, np.int32)).most_per_day is None
