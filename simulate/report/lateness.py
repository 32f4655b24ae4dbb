"""How late messages left, after they were due and after the ideal schedule had them leave."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from dispatcher.core.moments import SECOND_US
from simulate.axis import Axis, quantiles
from simulate.ideal import beside
from simulate.report.run import Run

SHARES: Final = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}


def lateness(run: Run, axis: Axis) -> dict[str, Any]:
    """Seconds from due to slot of the messages that left in each bucket, by share; NaN where none left."""
    sent = run.attempts.take(np.flatnonzero(run.attempts.accepted))
    late_us = np.maximum(sent.slot_us - sent.due_us, 0)
    found = quantiles(axis.place(sent.slot_us), late_us, axis.count, tuple(SHARES.values()))
    return dict(zip(SHARES, found / SECOND_US, strict=True))


def behind_ideal(run: Run, axis: Axis) -> dict[str, Any]:
    """Seconds behind the ideal schedule of the messages that left in each bucket: ``mean`` and ``max``."""
    frame = run.frame
    sent = run.attempts.take(np.flatnonzero(run.attempts.accepted))
    both = beside(sent.row, sent.due_us, sent.slot_us, frame.fleet, hour_us=frame.hour_us, guard_us=frame.guard_us)
    bucket = axis.place(both.slot_us)
    count = np.bincount(bucket, minlength=axis.count)
    total_s = np.bincount(bucket, both.late_s, axis.count)
    most_s = np.full(axis.count, -np.inf)
    np.maximum.at(most_s, bucket, both.late_s)
    some = count > 0
    return {
        "mean": np.where(some, total_s / np.maximum(count, 1), np.nan),
        "max": np.where(some, most_s, np.nan),
    }
