"""Each device: how much of its quotas it used, how late its messages were, and how it was at the end."""

from __future__ import annotations

from typing import Any

import numpy as np

from dispatcher.core.moments import SECOND_US
from dispatcher.core.quota import HOURS_PER_DAY
from simulate.report.run import Run


def devices(run: Run) -> dict[str, Any]:
    """Columns in the order of the devices' numbers: ``name``, ``sent``, ``use``, ``late_s``, ``health``.

    ``use`` is the share of the day quotas over the days of the run, begun ones whole, as in the figures; ``late_s`` the
    mean from due to slot, NaN where nothing left.
    """
    frame, fleet = run.frame, run.frame.fleet
    sent = run.attempts.take(np.flatnonzero(run.attempts.accepted))
    count = np.bincount(sent.row, minlength=len(fleet))
    late_s = np.bincount(sent.row, (sent.slot_us - sent.due_us) / SECOND_US, len(fleet))
    days = max(1.0, np.ceil((sent.slot_us.max(initial=0) - frame.start_us) / (HOURS_PER_DAY * frame.hour_us)))
    return {
        "name": fleet.name,
        "sent": count,
        "use": count / np.maximum(fleet.quota_per_day * days, 1),
        "late_s": np.where(count > 0, late_s / np.maximum(count, 1), np.nan),
        "health": [run.evidence.health.get(number, "unknown") for number in fleet.number.tolist()],
    }
