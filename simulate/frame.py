"""When and on what a rehearsal took place: what its receipts and tables are read against afterwards."""

from __future__ import annotations

from dataclasses import dataclass

from dispatcher.core.fleet import Fleet
from simulate.driver import Fault


@dataclass(frozen=True, slots=True)
class Frame:
    """The circumstances of a finished run in virtual time."""

    start_us: int
    end_us: int
    """When the last tick was over or, if enrolments still waited, when virtual time was."""
    tick_us: int
    hour_us: int
    guard_us: int
    """How much longer than an hour and a day the quota windows are."""
    fleet: Fleet
    """As it was at the end."""
    faults: tuple[Fault, ...] = ()
    """In the order in which they struck."""
