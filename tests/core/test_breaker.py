"""Breakers: what opens one, what may try then, what closes it."""

from __future__ import annotations

import numpy as np
import pytest

from dispatcher.core.breaker import LEFT_AFTER, Breakers
from dispatcher.core.fleet import is_left
from dispatcher.core.outcomes import Outcome

S = 1_000_000


def booked(breakers: Breakers, *attempts: tuple[int, int, str]) -> list[int]:
    """Device, slot in seconds and outcome of each attempt; answers take a second. Returns which turned."""
    device, slot_s, outcome = zip(*attempts, strict=True)
    slot_us = np.array(slot_s, np.int64) * S
    outcomes = np.array([Outcome[each.upper()] for each in outcome], np.int8)
    return breakers.book(np.array(device, np.intp), slot_us, outcomes, slot_us + S).tolist()


def standing(breakers: Breakers) -> list[tuple[int, int]]:
    """Trips and seconds of the next try, by device."""
    return list(zip(breakers.trips.tolist(), (breakers.probe_us // S).tolist(), strict=True))


@pytest.fixture
def breakers() -> Breakers:
    """Of two devices: three failures open one, for 10 s at first, 40 s at most."""
    made = Breakers(3, 10, 40)
    made.add_devices(2)
    return made


def test_failures_in_a_row_open_it_whether_they_come_together_or_not(breakers):
    assert booked(breakers, (0, 1, "refused"), (0, 2, "in_doubt")) == []
    assert booked(breakers, (1, 1, "refused"), (0, 3, "refused"), (1, 2, "accepted")) == [0]
    assert standing(breakers) == [(1, 14), (0, 0)]


@pytest.mark.parametrize("worked", ["accepted", "repeat", "rejected", "opted_out"])
def test_every_answer_that_shows_the_device_at_work_begins_the_row_anew(breakers, worked):
    booked(breakers, (0, 1, "refused"), (0, 2, "refused"), (0, 3, worked), (0, 4, "refused"), (0, 5, "refused"))
    assert standing(breakers)[0] == (0, 0)
    assert booked(breakers, (0, 6, "refused")) == [0]


@pytest.mark.parametrize("neither", ["throttled", "expired", "credentials"])
def test_what_says_nothing_of_the_device_neither_counts_nor_clears(breakers, neither):
    booked(breakers, (0, 1, "refused"), (0, 2, "refused"), *[(0, 2 + n, neither) for n in range(1, 9)])
    assert standing(breakers)[0] == (0, 0)
    assert booked(breakers, (0, 20, "refused")) == [0]


def test_answers_count_in_the_order_of_their_slots(breakers):
    assert booked(breakers, (0, 4, "accepted"), (0, 1, "refused"), (0, 3, "refused"), (0, 2, "refused")) == []


def test_each_failed_try_doubles_the_pause_and_an_answer_closes_it(breakers):
    booked(breakers, *[(0, n, "refused") for n in range(3)])
    pauses, at_s = [], standing(breakers)[0][1]
    for _ in range(4):
        assert booked(breakers, (0, at_s, "in_doubt")) == [0]
        trips, probe_s = standing(breakers)[0]
        pauses.append((trips, probe_s - at_s - 1))
        at_s = probe_s
    assert pauses == [(2, 20), (3, 40), (4, 40), (5, 40)]
    assert booked(breakers, (0, at_s, "accepted")) == [0]
    assert standing(breakers)[0] == (0, 0)
    assert booked(breakers, (0, at_s + 1, "refused"), (0, at_s + 2, "refused")) == []


def test_what_left_before_the_pause_says_nothing_new(breakers):
    booked(breakers, *[(0, n, "refused") for n in range(3)])
    assert booked(breakers, (0, 3, "refused"), (0, 4, "in_doubt"), (0, 12, "refused")) == []
    assert standing(breakers)[0] == (1, 13)


def test_what_has_turned_is_told_once_and_what_others_say_does_not_undo_it_before(breakers):
    booked(breakers, *[(1, n, "refused") for n in range(3)])
    none = np.zeros(2, np.int32)
    breakers.load(none, none.astype(np.int64))
    assert standing(breakers)[1] == (1, 13)
    told = breakers.take_turned()
    assert (told.device.tolist(), told.trips.tolist(), told.probe_us.tolist()) == ([1], [1], [13 * S])
    assert len(breakers.take_turned()) == 0
    breakers.load(none, none.astype(np.int64))
    assert standing(breakers)[1] == (0, 0), "an operator's word counts"


def test_they_stand_as_they_were_left_and_move_with_their_devices():
    breakers = Breakers(3, 10, 40)
    breakers.add_devices(1)
    breakers.load(np.array([2], np.int32), np.array([50 * S]))
    breakers.add_devices(1)
    breakers.reorder(np.array([1, 0]))
    assert (standing(breakers), breakers.open.tolist()) == ([(0, 0), (2, 50)], [1])
    assert booked(breakers, (1, 50, "refused")) == [1]
    assert standing(breakers)[1] == (3, 91)


def test_one_that_never_opens_still_closes():
    breakers = Breakers(0, 10, 40)
    breakers.add_devices(2)
    breakers.load(np.array([1, 0], np.int32), np.array([5 * S, 0]))
    assert booked(breakers, *[(1, n, "refused") for n in range(99)], (0, 6, "accepted")) == [0]
    assert standing(breakers) == [(0, 0), (0, 0)]


def test_what_waits_for_a_failing_device_stays_until_it_has_failed_for_long():
    assert [is_left("quarantined", "failures", trips) for trips in (1, LEFT_AFTER - 1, LEFT_AFTER)] == [
        False,
        False,
        True,
    ]
    assert [is_left(health, None, 0) for health in ("available", "draining", "offline", "retired")] == [
        False, True, True, True,
    ]  # fmt: skip
    assert (is_left("quarantined", "credentials", 0), is_left("quarantined", "quality", 9)) == (True, False)
