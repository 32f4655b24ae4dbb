"""The ideal schedule: earliest due first under pacing and windows, compared in hand-made worlds."""

from __future__ import annotations

from uuid import UUID

import numpy as np
import pytest

from dispatcher.core.fleet import Fleet
from simulate.ideal import Gap, gap

S, HOUR = 1_000_000, 3_600_000_000
GUARD = 60 * S


@pytest.fixture
def fleet() -> Fleet:
    """Two devices with gaps of 5 s; two an hour and three a day for number 7, plenty for number 9."""
    return Fleet(
        number=np.array([7, 9], np.int32),
        shard=np.zeros(2, np.int32),
        quota_per_hour=np.array([2, 80], np.int32),
        quota_per_day=np.array([3, 800], np.int32),
        in_flight_max=np.array([50, 50], np.int32),
        min_gap_s=np.array([5.0, 5.0]),
        available=np.ones(2, np.bool_),
        left=np.zeros(2, np.bool_),
        trips=np.zeros(2, np.int32),
        probe_us=np.zeros(2, np.int64),
        idempotent=np.ones(2, np.bool_),
        device_id=[UUID(int=7), UUID(int=9)],
        name=["seven", "nine"],
        gateway_url=[None, None],
        gateway_token=[None, None],
        group=[None, None],
    )


def compare(fleet: Fleet, *messages: tuple[int, int, int]) -> Gap:
    """Device, due and slot of each message."""
    device, due, slot = zip(*messages, strict=True)
    return gap(np.array(device, np.int32), np.array(due), np.array(slot), fleet, hour_us=HOUR, guard_us=GUARD)


def test_nothing_waits_where_nothing_stands_in_the_way(fleet):
    assert compare(fleet, (7, 0, 0), (9, 0, 0), (9, 60 * S, 60 * S)) == Gap(0.0, 0.0, "none")


def test_a_late_slot_is_a_gap(fleet):
    assert compare(fleet, (9, 0, 4 * S), (9, 60 * S, 60 * S)) == Gap(2.0, 4.0, "none")


def test_pacing_binds_the_ideal_too(fleet):
    assert compare(fleet, (9, 0, 0), (9, 0, 5 * S), (9, 0, 16 * S)) == Gap(2.0, 6.0, "pacing")


def test_the_hour_binds_the_third_message_and_the_day_the_fourth(fleet):
    third, fourth = HOUR + GUARD, 24 * HOUR + GUARD
    assert compare(fleet, (7, 0, 0), (7, 0, 5 * S), (7, 0, third)) == Gap(0.0, 0.0, "hour")
    four = compare(fleet, (7, 0, 0), (7, 0, 5 * S), (7, 0, third), (7, 0, fourth + 8 * S))
    assert four == Gap(2.0, 8.0, "day")


def test_no_messages_no_gap(fleet):
    nothing = np.zeros(0, np.int64)
    assert gap(nothing.astype(np.int32), nothing, nothing, fleet, hour_us=HOUR, guard_us=GUARD) == Gap(0.0, 0.0, "none")
