"""Rule 4: what has a time of day never leaves before the clock on its lead's wall has shown that.

The clock is read moment by moment, by none of the arithmetic that the engine's due times come from.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import product
from typing import Final
from zoneinfo import ZoneInfo

import numpy as np

from dispatcher.core.batches import Int64s
from dispatcher.core.moments import SECOND_US, to_datetime
from dispatcher.core.outcomes import PROVED_UNSENT
from dispatcher.core.times_of_day import TimeOfDay
from dispatcher.core.windows import known_zone
from simulate.checker.breaches import Breach
from simulate.checker.matched import Matched
from simulate.checker.progress import predecessors

_TURNED_BACK_US: Final = range(0, 3 * 3600 * SECOND_US + 1, 1800 * SECOND_US)
"""A clock that has been turned back has shown later times before."""


def judge(matched: Matched) -> list[Breach]:
    """What arrived before its time of day, whichever delay, time and zone counted of those that ever held."""
    if not matched.paths.times:
        return []
    receipts, evidence, before = matched.receipts, matched.evidence, predecessors(matched)
    timed = np.array([matched.paths.times.get(trigger, ()) != () for _, trigger in receipts.steps] or [False])
    concerned = timed[receipts.rows["step"]] & matched.known
    concerned &= ~np.isin(receipts.rows["answer"], [int(outcome) for outcome in PROVED_UNSENT])
    early = []
    for row in np.flatnonzero(concerned).tolist():
        receipt = receipts.rows[row]
        arrived_us = int(receipt["arrived_us"]) + evidence.skew_us
        zones = evidence.time_zones.get(receipt["phone"].decode()) or ((0, None),)
        had = [zone for since_us, zone in zones if since_us <= arrived_us]
        times = matched.paths.times[receipts.steps[receipt["step"]][1]]
        hour_us = round(evidence.hour_s * 1e6)
        began = list(_began(matched, before, row))
        if began and not any(
            _has_shown(time, zone, since_us, delay_h, hour_us, arrived_us)
            for (since_us, delay_h), time, zone in product(began, times, had)
        ):
            early.append(row)
    return [Breach(4, "early", "before its time of day", "receipts", np.array(early, np.intp))]


def _began(matched: Matched, before: Int64s, row: int) -> Iterator[tuple[int, float]]:
    """From when on a receipt's message was waited for, with each delay that ever held; none where nobody knows."""
    visit = int(matched.visit[row])
    place, earlier = int(matched.place[visit]), int(before[visit])
    if matched.number[visit] == 1 and place >= 0:
        yield int(matched.enrolment_us("enrolled")[place]), 0.0
    elif earlier >= 0 and not matched.by_hand[matched.visit[earlier]]:
        since_us = int(matched.rows["slot_us"][earlier]) - matched.evidence.skew_us
        _, trigger = matched.receipts.steps[matched.receipts.rows["step"][earlier]]
        for delay_h in matched.paths.delays.get(trigger, ()):
            yield since_us, delay_h


def _has_shown(time: TimeOfDay, zone: str | None, since_us: int, delay_h: float, hour_us: int, arrived_us: int) -> bool:
    """Whether the clock has shown the time of the day that is meant."""
    clock = ZoneInfo(known_zone(zone, time.time_zone))
    days, rest_h = divmod(delay_h, 24)
    rested = _shown(clock, since_us + round(rest_h * hour_us))
    meant = datetime.combine(rested.date() + timedelta(days=days), time.at)
    if not days and meant < rested:
        meant += timedelta(days=1)
    return any(_shown(clock, arrived_us - back_us) >= meant for back_us in _TURNED_BACK_US)


def _shown(clock: ZoneInfo, moment_us: int) -> datetime:
    return to_datetime(moment_us).astimezone(clock).replace(tzinfo=None)
