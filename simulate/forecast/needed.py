"""How many devices a deadline takes, and why a plan that has too few cannot keep it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final

import numpy as np

from dispatcher.core.group_log import Group
from dispatcher.core.quota import HOURS_PER_DAY
from simulate.forecast.outlook import Outlook, capacity, keeps_deadline
from simulate.forecast.world import World
from simulate.scenario.load import Loaded
from simulate.scenario.schema import Devices

MOST_DEVICES: Final = 1_000_000
_FINE: Final = 500
"""The answer is at most this part of itself, or one device, above the smallest fleet that would do."""


def with_devices(loaded: Loaded, count: int) -> Loaded:
    """The scenario with so many devices; groups keep their shares."""
    devices = loaded.scenario.devices
    return replace(loaded, scenario=loaded.scenario.model_copy(update={"devices": _resized(devices, count)}))


def _resized(devices: Devices, count: int) -> Devices:
    if devices.groups is None:
        return devices.model_copy(update={"count": count})
    sizes = np.array([group.count for group in devices.groups], np.float64)
    upto = np.rint(np.cumsum(sizes) / sizes.sum() * count).astype(np.int64)
    groups = [
        group.model_copy(update={"count": int(size)})
        for group, size in zip(devices.groups, np.diff(upto, prepend=0), strict=True)
        if size
    ]
    return devices.model_copy(update={"groups": groups})


def devices_needed(
    outlook: Outlook, world_with: Callable[[int], World], on_try: Callable[[int], None] = lambda count: None
) -> int | None:
    """The smallest fleet, or nearly so, that keeps the deadline; None when none of up to a million devices does.

    Args:
        outlook: of the plan as it is.
        world_with: the plan with another number of devices, in the same proportions.
        on_try: called with every number that is tried.
    """
    have = len(outlook.world.fleet)
    too_few, enough = max(_least(outlook) - 1, 0 if outlook.feasible else have), have if outlook.feasible else None
    step = max(too_few // 16, 1)
    while enough is None or enough - too_few > max(enough // _FINE, 1):
        if enough is None:
            if too_few == MOST_DEVICES:
                return None
            count = min(too_few + step, MOST_DEVICES)
            step *= 2
        else:
            count = (too_few + enough) // 2
        on_try(count)
        if keeps_deadline(world_with(count)):
            enough = count
        else:
            too_few = count
    return enough


def _least(outlook: Outlook) -> int:
    """Fewer cannot do: what is to be sent by the deadline, over what a device can send until then."""
    have, alone = len(outlook.world.fleet), capacity(replace(outlook.world, groups=()))
    return int(have * int(outlook.demand.sum()) // max(_until_deadline(outlook.world, alone), 1))


def _until_deadline(world: World, per_day: int) -> int:
    """Messages that can be sent by the deadline at most, at so many a day: windows that begin before it count whole."""
    assert world.deadline_us is not None, "there is a deadline"
    days = -(-(world.deadline_us - world.start_us) // world.settings.hours_us(HOURS_PER_DAY))
    return per_day * days


def hopeless(outlook: Outlook) -> bool:
    """Whether no number of devices would help: the course itself takes longer, what is left never gets a device, or it
    fails by what groups of devices share."""
    deadline_us = outlook.world.deadline_us
    late = deadline_us is not None and outlook.course_end_us is not None and outlook.course_end_us >= deadline_us
    return late or bool(outlook.left) or outlook.group_bound


def arithmetic(outlook: Outlook) -> Iterator[str]:
    """Why the deadline cannot be kept: a line each, the weightiest first."""
    world = outlook.world
    day_us = world.settings.hours_us(HOURS_PER_DAY)
    if outlook.left and not world.fleet.available.any() and not world.events:
        yield f"{outlook.left:,} leads wait, and no device can send"
    elif outlook.left:
        yield f"{outlook.left:,} leads never get their next message: their devices or sequences do not come back"
    if world.deadline_us is None or not outlook.overdue:
        return
    days = (world.deadline_us - world.start_us) / day_us
    if outlook.course_end_us is not None and outlook.course_end_us >= world.deadline_us:
        end = (outlook.course_end_us - world.start_us) / day_us
        yield f"the last message is due on day {end:.1f}, whatever the number of devices; the plan ends on day {days:g}"
        return
    fleet = f"the fleet gives {amount(outlook.per_day)} ({len(world.fleet):,} devices)"
    busiest = int(outlook.demand.argmax())
    if outlook.demand[busiest] > outlook.per_day:
        due = int(outlook.demand[busiest])
        yield f"{due:,} messages are due on day {busiest + 1}: that needs {amount(due)} a day; {fleet}"
    total, most = int(outlook.demand.sum()), _until_deadline(world, outlook.per_day)
    if total > most:
        yield (
            f"{total:,} messages are due by day {days:g}, and at {amount(outlook.per_day)} a day the fleet sends "
            f"{amount(most)} by then"
        )
    if outlook.finish_us is not None:
        end = (outlook.finish_us - world.start_us) / day_us
        yield f"{outlook.overdue:,} messages come too late: the last one leaves on day {end:.1f} instead of {days:g}"
    if outlook.group_bound:
        shared = ", ".join(f"{group.name} {_limits_of(group)}" for group in world.groups)
        yield f"what groups of devices share binds, however many devices they have: {shared}"


def _limits_of(group: Group) -> str:
    limits = ((group.quota_per_hour, "an hour"), (group.quota_per_day, "a day"))
    return " and ".join(f"{amount(limit)} {span}" for limit, span in limits if limit is not None)


def amount(count: int) -> str:
    """A number as people say it."""
    return f"{count / 1e6:,.1f} M" if count >= 1e6 else f"{count:,}"
