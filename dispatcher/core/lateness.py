"""Messages that are later than their sequence allows: their step is skipped, or waits for the same time of a later day.

What a sequence says of it stands in ``Sequence.max_lateness_h`` and ``when_late``. Lateness is counted from the due
moment on: what waited for its send window was due when that opened.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

from dispatcher.core.batches import Columns, Int32s, Int64s
from dispatcher.core.catalogue import Catalogue
from dispatcher.core.moments import NEVER_US, from_datetime, to_datetime
from dispatcher.core.windows import is_zone


@dataclass(frozen=True, slots=True)
class Late(Columns):
    """Enrolments that wait, too late to be sent, an entry each."""

    enrolment: Int64s
    visit: Int32s
    generation: Int32s
    device: Int32s
    due_us: Int64s
    step: list[str]
    time_zone: list[str | None]


@dataclass(frozen=True, slots=True)
class LateMoves(Columns):
    """What becomes of ``late``, row by row."""

    late: Late
    skipped: NDArray[np.bool_]
    """Whether the step is passed over; else it stays the enrolment's, due later."""
    next_trigger: list[str | None]
    """The step it stands at then; None: the last one is skipped, and nothing is left to send."""
    next_due_us: Int64s


def moves_of(late: Late, catalogue: Catalogue, now_us: int, hour_us: int) -> LateMoves:
    """Where late enrolments go.

    A step that follows a skipped one is due as if that had been sent when it was due, so a course keeps its timetable,
    and several steps may be skipped one after the other. A shifted one is due at the same time, by the clock of the
    lead, of the first day on which that is not over; both inside their send windows.
    """
    step = catalogue.indices(late.step)
    skipped = np.array([catalogue.sequence_of[trigger].when_late == "skip" for trigger in late.step], np.bool_)
    following, next_due_us = catalogue.advance(step, late.due_us, late.time_zone, hour_us)
    after = np.where(skipped, catalogue.next_index[step], step)
    due_us = np.where(skipped, next_due_us, late.due_us)
    for row in np.flatnonzero(~skipped).tolist():
        due_us[row] = _shifted_us(int(due_us[row]), _clock(catalogue, late.step[row], late.time_zone[row]), now_us)
    due_us = catalogue.next_open(after, late.time_zone, due_us)
    triggers = following.tolist()
    return LateMoves(
        late,
        skipped,
        [triggers[row] if skip else late.step[row] for row, skip in enumerate(skipped.tolist())],
        np.where(after < 0, NEVER_US, due_us),
    )


def _clock(catalogue: Catalogue, trigger: str, time_zone: str | None) -> ZoneInfo:
    return ZoneInfo(time_zone if time_zone and is_zone(time_zone) else catalogue.sequence_of[trigger].clock)


def _shifted_us(due_us: int, clock: ZoneInfo, now_us: int) -> int:
    """The same time of day as ``due_us`` on the first day after it that has not come to that yet."""
    due, days = to_datetime(due_us).astimezone(clock), (now_us - due_us) // 86_400_000_000
    while True:
        days += 1
        # Of two clock readings alike the earlier counts; one that clocks jump over is that much later.
        shifted_us = from_datetime((due.replace(tzinfo=None) + timedelta(days=days)).replace(tzinfo=clock))
        if shifted_us > max(now_us, due_us):
            return shifted_us
