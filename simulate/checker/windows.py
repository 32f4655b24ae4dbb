"""Rule 4: nothing arrives outside the send window of its sequence or on a blackout, by the clock on its lead's wall.

The clock is read moment by moment, by none of the arithmetic that the engine's due times come from.
"""

from __future__ import annotations

from itertools import product
from zoneinfo import ZoneInfo

import numpy as np

from dispatcher.core.moments import to_datetime
from dispatcher.core.outcomes import PROVED_UNSENT
from dispatcher.core.windows import DAYS, Window
from simulate.checker.breaches import Breach
from simulate.checker.matched import Matched
from simulate.evidence import ALWAYS_US, Evidence


def judge(matched: Matched) -> list[Breach]:
    """What arrived, and was not turned down, while none of the windows was open that ever held for its step."""
    receipts, evidence = matched.receipts, matched.evidence
    windows = [matched.paths.windows.get(trigger, ()) for _, trigger in receipts.steps]
    concerned = np.array([bool(held) for held in windows] or [False])[receipts.rows["step"]]
    concerned &= ~np.isin(receipts.rows["answer"], [int(outcome) for outcome in PROVED_UNSENT])
    offs_us = sorted({-evidence.skew_us, 0, evidence.skew_us})
    outside = []
    for row in np.flatnonzero(concerned).tolist():
        receipt = receipts.rows[row]
        arrived_us, held = int(receipt["arrived_us"]), windows[receipt["step"]]
        zones = _zones(evidence, receipt["phone"].decode(), arrived_us)
        cases = product(held, zones, offs_us)
        if not any(_is_open(window, zone, arrived_us + off_us) for window, zone, off_us in cases):
            outside.append(row)
    return [Breach(4, "outside_window", "outside the send window", "receipts", np.array(outside, np.intp))]


def _zones(evidence: Evidence, phone: str, arrived_us: int) -> list[str | None]:
    """Those that the lead can have had when the look before the hand-over began."""
    zones = evidence.time_zones.get(phone) or ((ALWAYS_US, None),)
    until_us = [since_us for since_us, _ in zones[1:]] + [arrived_us + 1]
    return [
        zone
        for (since_us, zone), end_us in zip(zones, until_us, strict=True)
        if since_us <= arrived_us and end_us > arrived_us - evidence.look_us
    ]


def _is_open(window: Window, time_zone: str | None, moment_us: int) -> bool:
    """Whether the clock shows a time inside; after midnight, in a window that passes it, the day is yesterday."""
    local = to_datetime(moment_us).astimezone(ZoneInfo(window.zone_of(time_zone)))
    if any(blackout.first <= local.date() <= blackout.last for blackout in window.blackouts):
        return False
    clock, weekday = local.time(), local.weekday()
    if window.opens < window.closes:
        return window.opens <= clock < window.closes and DAYS[weekday] in window.days
    if clock >= window.opens:
        return DAYS[weekday] in window.days
    return clock < window.closes and DAYS[weekday - 1] in window.days
