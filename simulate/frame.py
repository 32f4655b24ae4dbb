"""When and on what a rehearsal took place: what its receipts and tables are read against afterwards."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from dispatcher.core.fleet import Fleet
from simulate.driver import Fault
from simulate.timetable import DeviceChange, Event, Kill, OptOut, Switch, Tag
from simulate.waits import Shared


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
    shared: Shared | None = None
    """What its devices shared; None: no limit."""


def faults_of(broke: Iterable[Fault], planned: Iterable[Event], last_us: int) -> tuple[Fault, ...]:
    """What broke on the way and what the scenario did to the run, in the order of time.

    Args:
        broke: what the driver saw.
        planned: events of the scenario; lifted bans are left out, their devices come back one by one.
        last_us: what was planned for later has not happened.
    """
    done = [fault for event in planned if event.at_us <= last_us and (fault := _told(event)) is not None]
    return tuple(sorted((*broke, *done), key=lambda fault: fault.at_us))


def _told(event: Event) -> Fault | None:
    match event:
        case DeviceChange():
            quotas = ((event.quota_per_hour, "an hour"), (event.quota_per_day, "a day"))
            changed = [f"{quota:,} {span}" for quota, span in quotas if quota is not None]
            detail = ", ".join([*([event.cause] if event.cause else []), *changed])
            return Fault(event.at_us, event.health or "quota", f"{len(event.names):,} devices", detail)
        case Switch():
            return Fault(event.at_us, "resume" if event.active else "pause", event.sequence or "everything", "")
        case Kill():
            return Fault(event.at_us, "kill", event.actor, "")
        case OptOut():
            return Fault(event.at_us, "opt-outs", f"{event.share:.1%} of the leads", "")
        case Tag():
            return Fault(event.at_us, "tag", f"{event.share:.1%} of the leads", event.trigger)
    return None
