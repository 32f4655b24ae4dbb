"""Even pacing: a device's messages lie its hour apart, divided by its quota, and no window is waited for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dispatcher.config import Settings
from dispatcher.core.outcomes import Outcome
from dispatcher.core.quota import SlidingLog
from simulate.pacing import Pacing
from simulate.population import DeviceGroup

S = 1_000_000


@pytest.mark.parametrize(
    ("per_hour", "per_day", "gap_s"),
    [(80, 800, 45.75), (7, 800, 522.857143), (80, 4, 915.0), (0, 800, 5.0), (80, 0, 5.0)],
)
def test_the_gap_is_the_hour_with_its_guard_divided_by_the_quota(per_hour, per_day, gap_s):
    group = DeviceGroup(3, per_hour, per_day)
    assert Pacing.EVEN.paced(group, Settings()) == replace(group, min_gap_s=gap_s)
    assert Pacing.BURST.paced(group, Settings()) == group


@pytest.mark.parametrize("per_hour", [1, 7, 80, 799])
def test_the_hours_window_never_binds_and_nothing_of_the_quota_is_wasted(per_hour):
    settings = Settings()
    gap_us = round(Pacing.EVEN.paced(DeviceGroup(1, per_hour, 100_000), settings).min_gap_s * S)
    window_us = settings.hours_us(1) + round(settings.guard_s * S)
    log = SlidingLog(
        [per_hour], [100_000], [50_000], [gap_us], hour_us=settings.hours_us(1), guard_us=round(settings.guard_s * S)
    )
    slots = []
    for now_us in range(0, 4 * window_us, 150 * S):
        offer = log.offer(now_us, 150 * S)
        log.answer(offer, offer.counts)
        slots += offer.slot_us.tolist()
    assert np.unique(np.diff(slots)).tolist() == [gap_us]
    assert window_us <= per_hour * gap_us < window_us + per_hour


@pytest.mark.slow
def test_an_evenly_paced_rehearsal_waits_for_the_pacing_alone(world):
    done = world.rehearse(devices=4, leads=120, days=4, quota_per_hour=10, tick_s=150.0, pacing=Pacing.EVEN)
    assert done.outcome.good
    assert (done.outcome.completed, done.outcome.pacing) == (done.outcome.enrolled, "even")
    assert done.outcome.binding_limit == "pacing"
    assert done.outcome.optimality_gap_s["max"] <= done.outcome.tick_s
    assert world.rows("SELECT DISTINCT min_gap_s FROM devices") == [(366.0,)]
    accepted = done.receipts.rows[done.receipts.answered(Outcome.ACCEPTED)]
    for device in np.unique(accepted["device"]):
        slot_us = np.sort(accepted["slot_us"][accepted["device"] == device])
        assert np.diff(slot_us).min() == 366 * S
