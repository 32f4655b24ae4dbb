"""What limited the fleet when: each moment of each device belongs to exactly one reason."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from simulate.axis import Axis
from simulate.ideal import allowed
from simulate.report.run import Run
from simulate.waits import LIMITS, Ticks, waits

REASONS: Final = ("pacing", "hour", "day", "group_hour", "group_day", "in_flight", "pass", "nothing_due")
"""Those of ``waits``; then what no limit held: it waited for the next pass, or its device could not send."""


def limited_by(run: Run, axis: Axis) -> dict[str, NDArray[np.float64]]:
    """The share of the devices' time in each bucket, by reason; the reasons of a bucket sum to 1.

    What was still waiting at the end counts as leaving then.
    """
    frame, attempts, waiting = run.frame, run.attempts, run.waiting
    row = np.concatenate([attempts.row, waiting.row])
    due_us = np.concatenate([attempts.due_us, waiting.due_us])
    slot_us = np.concatenate([attempts.slot_us, np.full(len(waiting), frame.end_us)])
    waited = waits(
        row, due_us, slot_us, allowed(frame.fleet, hour_us=frame.hour_us, guard_us=frame.guard_us),
        charged=np.concatenate([attempts.charged, np.zeros(len(waiting), np.bool_)]),
        ticks=Ticks(frame.start_us, frame.tick_us, frame.fleet.in_flight_max.astype(np.int64)),
        shared=frame.shared,
    )  # fmt: skip
    device_us = np.maximum(axis.spans_us * len(frame.fleet), 1)
    shares: dict[str, NDArray[np.float64]] = {}
    for number, name in enumerate(LIMITS[1:], 1):
        held = waited.limit == number
        shares[name.replace(" ", "_")] = axis.covered(waited.since_us[held], waited.until_us[held]) / device_us
    shares["pass"] = axis.covered(waited.until_us, np.maximum(waited.slot_us, waited.until_us)) / device_us
    shares["nothing_due"] = np.maximum(1 - sum(shares.values()), 0.0)
    return shares
