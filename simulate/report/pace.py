"""How much left when, beside what the fleet may send, and how much was due and had not left."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dispatcher.core.batches import Int64s
from dispatcher.core.outcomes import Outcome
from dispatcher.core.quota import HOURS_PER_DAY
from simulate.axis import Axis
from simulate.report.run import Run


def throughput(run: Run, axis: Axis) -> dict[str, Any]:
    """Messages accepted an hour, and the fleet's limits an hour: of the hour, and of the day spread over 24."""
    sent = axis.counts(run.receipts.rows["slot_us"][run.receipts.answered(Outcome.ACCEPTED)])
    per_hour, per_day = fleet_quotas(run.evidence.quotas, axis)
    return {
        "sent_per_hour": sent * (run.frame.hour_us / axis.width_us),
        "limit_per_hour": per_hour,
        "day_limit_per_hour": per_day / HOURS_PER_DAY,
    }


def fleet_quotas(quotas: NDArray[np.void], axis: Axis) -> tuple[Int64s, Int64s]:
    """What all devices together may send in an hour and in a day, as it held at the end of each bucket.

    Args:
        quotas: ``evidence.QUOTA`` records.
    """
    quotas = quotas[np.lexsort((quotas["from_us"], quotas["device"]))]
    same = quotas["device"][1:] == quotas["device"][:-1]
    bucket = axis.place(quotas["from_us"])
    # No hour can hold more than the day's quota.
    per_hour, per_day = np.minimum(quotas["per_hour"], quotas["per_day"]).astype(np.int64), quotas["per_day"]
    totals = []
    for quota in (per_hour, per_day.astype(np.int64)):
        change = quota.copy()
        change[1:][same] -= quota[:-1][same]
        totals.append(np.cumsum(np.bincount(bucket, change, axis.count)).astype(np.int64))
    return totals[0], totals[1]


def backlog(run: Run, axis: Axis) -> Int64s:
    """The most messages that were due and had not left at one moment of each bucket.

    What ended while it waited - a lead that opted out, say - counts only if an attempt of it stands in the ledger.
    """
    due_us = np.sort(np.concatenate([run.attempts.due_us, run.waiting.due_us]))
    slot_us = np.sort(run.attempts.slot_us)
    last = np.flatnonzero(np.diff(due_us, append=np.iinfo(np.int64).max))
    moments_us = due_us[last]
    waiting = last + 1 - np.searchsorted(slot_us, moments_us, "right")
    edges_us = axis.edges_us
    most = np.searchsorted(due_us, edges_us, "right") - np.searchsorted(slot_us, edges_us, "right")
    within = (moments_us >= axis.start_us) & (moments_us < axis.end_us)
    np.maximum.at(most, axis.place(moments_us[within]), waiting[within])
    return most.astype(np.int64)
