"""What messages waited for, on one device of two messages an hour, three a day and 5 s between them."""

from __future__ import annotations

import numpy as np

from dispatcher.core.quota import HOURS_PER_DAY
from simulate.timelines import Limits
from simulate.waits import LIMITS, Shared, Ticks, Waits, binding_limit, waits

S, HOUR = 1_000_000, 3_600_000_000
GUARD = 60 * S
HOUR_S, DAY_S = 3660, 24 * 3600 + 60
"""The windows, guard included, in seconds."""
LIMITS_OF_ONE = Limits(
    np.array([2]), np.array([3]), np.array([5 * S]), HOUR + GUARD, HOURS_PER_DAY * HOUR + GUARD
)  # fmt: skip


def told(
    *messages: tuple[float, float], charged: list[bool] | None = None, in_flight: int | None = None
) -> list[tuple]:
    """Due and slot of each message, in seconds; returns limit, since, until and slot of each wait."""
    due, slot = (np.array([round(each[part] * S) for each in messages]) for part in (0, 1))
    found: Waits = waits(
        np.zeros(len(messages), np.intp), due, slot, LIMITS_OF_ONE,
        charged=None if charged is None else np.array(charged),
        ticks=None if in_flight is None else Ticks(0, 30 * S, np.array([in_flight])),
    )  # fmt: skip
    columns = (found.since_us / S, found.until_us / S, found.slot_us / S)
    return [(LIMITS[limit], *span) for limit, *span in zip(found.limit.tolist(), *map(list, columns), strict=True)]


def test_what_no_limit_holds_waits_for_the_next_pass():
    assert told((0, 0), (100, 130)) == [("none", 0, 0, 0), ("none", 100, 100, 130)]


def test_the_gap_holds_the_second_and_the_rest_is_the_pass():
    assert told((0, 0), (0, 7)) == [("none", 0, 0, 0), ("pacing", 0, 5, 7)]


def test_a_full_hour_holds_the_third_and_a_full_day_the_fourth():
    assert told((0, 0), (0, 5), (0, HOUR_S + 20), (0, DAY_S)) == [
        ("none", 0, 0, 0),
        ("pacing", 0, 5, 5),
        ("hour", 5, HOUR_S, HOUR_S + 20),
        ("day", HOUR_S + 20, DAY_S, DAY_S),
    ]


def test_a_wait_begins_when_the_message_is_due_and_the_one_before_has_left():
    assert told((0, 0), (0, 5), (3000, HOUR_S))[2] == ("hour", 3000, HOUR_S, HOUR_S)
    assert told((0, 0), (0, 5), (HOUR_S + 7, HOUR_S + 7))[2] == ("none", HOUR_S + 7, HOUR_S + 7, HOUR_S + 7)


def test_what_gave_its_slot_back_fills_no_hour_but_keeps_the_gap():
    assert told((0, 0), (0, 5), (0, 10), charged=[True, False, True])[1:] == [
        ("pacing", 0, 5, 5),
        ("pacing", 5, 10, 10),
    ]


def test_a_device_full_of_messages_in_flight_waits_for_the_border_of_the_tick():
    assert told((0, 0), (0, 30), in_flight=1)[1] == ("in_flight", 0, 30, 30)
    assert told((0, 0), (0, 30), in_flight=2)[1] == ("pacing", 0, 5, 30)


def test_messages_come_in_any_order_and_the_nth_due_has_the_nth_slot():
    assert told((10, 0), (0, 12), (0, 5)) == told((0, 0), (0, 5), (10, 12))


def test_what_devices_share_holds_whichever_comes_next():
    plenty = Limits(np.full(2, 99), np.full(2, 99), np.full(2, 5 * S), HOUR + GUARD, 24 * HOUR + GUARD)
    shared = Shared(np.zeros(2, np.intp), np.array([2]), np.array([3]), HOUR + GUARD, 24 * HOUR + GUARD)
    row = np.array([0, 1, 0, 1])
    slot = np.array([0, 0, HOUR_S + 30, DAY_S]) * S
    found = waits(row, np.zeros(4, np.int64), slot, plenty, shared=shared)
    said = [LIMITS[limit] for limit in found.limit.tolist()]
    assert said == ["none", "group hour", "none", "group day"]
    assert (found.until_us / S).tolist() == [0, HOUR_S, 0, DAY_S]
    assert binding_limit(found) == "group day"
    # What gave its slot back counts for nobody.
    charged = np.array([True, False, True, True])
    found = waits(row, np.zeros(4, np.int64), slot, plenty, shared=shared, charged=charged)
    assert [LIMITS[limit] for limit in found.limit.tolist()] == ["none", "pacing", "none", "group hour"]
