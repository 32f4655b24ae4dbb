"""Everything the charts draw, as one JSON document: columns, rounded to what can be seen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike

from dispatcher.core.moments import SECOND_US
from simulate.axis import Axis
from simulate.report.devices import devices
from simulate.report.lateness import behind_ideal, lateness
from simulate.report.limits import limited_by
from simulate.report.outcomes import outcomes
from simulate.report.pace import backlog, throughput
from simulate.report.run import Run

_FAULTS: Final = 500
"""Marks on the time axis, at most: the first ones."""


def series(run: Run) -> dict[str, Any]:
    """The document; a moment is in seconds since 1970, a span in seconds, a gap in a column null."""
    hours, fine = Axis.hours(run.frame), Axis.fine(run.frame)
    found = devices(run)
    health = sorted(set(found["health"]))
    return {
        "hours": _axis(hours),
        "fine": _axis(fine),
        "throughput": _columns(throughput(run, hours), 1),
        "backlog": _column(backlog(run, fine)),
        "lateness": _columns(lateness(run, hours), 2),
        "behind": _columns(behind_ideal(run, hours), 2) if run.figures["optimality_gap_s"] else None,
        "limited": _columns(limited_by(run, hours), 4),
        "outcomes": _columns(outcomes(run, hours)),
        "faults": [
            [_second(fault.at_us), fault.kind, fault.subject, fault.detail[:200]]
            for fault in run.frame.faults[:_FAULTS]
        ],
        "devices": {
            "name": found["name"],
            "sent": _column(found["sent"]),
            "use": _column(found["use"], 4),
            "late_s": _column(found["late_s"], 1),
            "health": [health.index(each) for each in found["health"]],
            "healths": health,
        },
    }


def _axis(axis: Axis) -> dict[str, float | int]:
    start, end, width = (_second(us) for us in (axis.start_us, axis.end_us, axis.width_us))
    return {"start": start, "end": end, "width": width, "count": axis.count}


def _second(us: int) -> float:
    return us / SECOND_US


def _columns(columns: Mapping[str, ArrayLike], digits: int = 0) -> dict[str, list[float | int | None]]:
    return {name: _column(values, digits) for name, values in columns.items()}


def _column(values: ArrayLike, digits: int = 0) -> list[float | int | None]:
    """Whole numbers without a point, NaN as null."""
    rounded = np.round(np.asarray(values, np.float64), digits)
    return [None if value != value else int(value) if value.is_integer() else value for value in rounded.tolist()]
