"""The ideal schedule: earliest due first under pacing and windows, compared in hand-made worlds."""

from __future__ import annotations

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
        device_id=[None, None],
        quota_per_hour=np.array([2, 80], np.int32),
        quota_per_day=np.array([3, 800], np.int32),
        in_flight_max=np.array([50, 50], np.int32),
        min_gap_s=np.array([5.0, 5.0]),
        shard=np.zeros(2, np.int32),
        available=np.ones(2, np.bool_),
        idempotent=np.ones(2, np.bool_),
        gateway=[None, None],
    )


def compare(fleet: Fleet, messages: list[tuple[int, int, int]]) -> Gap:
    """Device, due and slot of each message."""
    device, due, slot = zip(*messages, strict=True)
    return gap(
        np.array(device, np.int32), np.array(due), np.array(slot), fleet, hour_us=HOUR, guard_us=GUARD
    )
