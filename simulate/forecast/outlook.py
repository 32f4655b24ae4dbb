"""One forecast: when everything is over, what limited it, and whether a deadline can be kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from dispatcher.core.batches import Coded, Int64s
from dispatcher.core.moments import NEVER_US, SECOND_US, span_us
from dispatcher.core.quota import HOURS_PER_DAY
from simulate.forecast.course import Course
from simulate.forecast.tally import REASONS, Tally
from simulate.forecast.world import DONE, FAILED, STOPPED, WAITING, World

_SLIGHT: Final = 0.01
"""Share of the devices' time below which a limit is not said to bind."""
NOTHING: Final = "none"
_NO_LIMIT: Final = np.int32(1_000_000)


@dataclass(frozen=True, slots=True)
class WaveOutlook:
    """What becomes of one wave of one sequence; moments are None where nothing is sent."""

    sequence: str
    wave: str
    leads: int
    messages: int
    first_us: int | None
    """The first message of all."""
    begun_us: int | None
    """When the last lead gets its first message."""
    finished_us: int | None
    """The last message of all."""
    late_s: float
    """By how much the latest message is late."""
    left: int
    """Leads that still wait when nothing can be sent any more."""


@dataclass(frozen=True, slots=True)
class Span:
    """Hours in a row with the same limit."""

    from_h: int
    to_h: int
    limit: str
    """``hour``, ``day``, ``pacing``, or ``none``."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """One forecast."""

    world: World
    leads: int
    enrolled: int
    completed: int
    failed: int
    stopped: int
    left: int
    """Enrolments that still wait when nothing can be sent any more: their devices or sequences never come back."""
    finish_us: int | None
    """When the last message leaves; None if none does."""
    overdue: int
    """Messages that the deadline finds unsent."""
    replies: Mapping[str, int] | None
    """How many come (``received``), with a ``stop`` word, and enrolments they end (``exits``); None: nobody writes."""
    waves: list[WaveOutlook]
    sent: NDArray[np.int64]
    """Messages by hour (rows) and step (columns)."""
    waited: NDArray[np.float64]
    """Share of the devices' time in which something was due and a limit held it: by ``REASONS``, then hour."""
    demand: NDArray[np.int64]
    """Messages that would be sent in each day if nothing ever waited."""
    per_day: int
    """What the fleet can send in a day."""
    group_bound: bool
    """Whether the plan fails by what groups of devices share, so that more devices in them would not help."""
    course_end_us: int | None
    """When the last message would leave if nothing ever waited."""

    @property
    def feasible(self) -> bool:
        """Whether everything is sent, and by the deadline if there is one."""
        return not self.left and not self.overdue

    @property
    def messages(self) -> int:
        """All that are sent."""
        return int(self.sent.sum())

    @property
    def spans(self) -> list[Span]:
        """Which limit binds when."""
        found: list[Span] = []
        for hour, shares in enumerate(self.waited.T):
            limit = REASONS[int(shares.argmax())] if shares.max() >= _SLIGHT else NOTHING
            if found and found[-1].limit == limit:
                found[-1] = Span(found[-1].from_h, hour + 1, limit)
            else:
                found.append(Span(hour, hour + 1, limit))
        return found


def forecast(world: World, on_progress: Callable[[int], None] = lambda sent: None) -> Outlook:
    """Play ``world`` to its last message.

    Args:
        world: what it starts from.
        on_progress: called now and then with the number of messages sent so far.
    """
    course = Course(world, on_progress=on_progress)
    course.play()
    state, tally = course.state, course.tally
    hours = len(np.trim_zeros(tally.sent.sum(axis=1), "b"))
    finish_us = int(tally.last_us.max(initial=-NEVER_US))
    counts = np.bincount(state.state, minlength=STOPPED + 1)
    demand, course_end_us = _demand(world)
    left = int(counts[WAITING])
    return Outlook(
        world=world,
        leads=len(world.leads),
        enrolled=len(state.lead),
        completed=int(counts[DONE]),
        failed=int(counts[FAILED]),
        stopped=int(counts[STOPPED]),
        left=left,
        finish_us=finish_us if finish_us > -NEVER_US else None,
        overdue=tally.overdue + _unsent(course),
        replies=_replies(course),
        waves=_waves(course),
        sent=tally.sent[:hours],
        waited=tally.waited_us[:, :hours] / (world.settings.hours_us(1) * max(len(world.fleet), 1)),
        demand=demand,
        per_day=capacity(world),
        course_end_us=course_end_us,
        group_bound=bool(left or tally.overdue or _unsent(course)) and _bound_by_groups(world),
    )


def _bound_by_groups(world: World) -> bool:
    """Whether the deadline could not be kept either if devices alone had no limits."""
    if world.deadline_us is None or world.shared is None:
        return False
    size = len(world.fleet)
    lifted = world.fleet.replace(
        quota_per_hour=np.full(size, _NO_LIMIT), quota_per_day=np.full(size, _NO_LIMIT), min_gap_s=np.zeros(size)
    )
    return not keeps_deadline(replace(world, fleet=lifted))


def keeps_deadline(world: World) -> bool:
    """Whether everything is sent by the deadline; played no further than that."""
    assert world.deadline_us is not None, "there is a deadline"
    course = Course(world, until_us=world.deadline_us)
    course.play()
    return not (course.state.state == WAITING).any()


def capacity(world: World) -> int:
    """Messages that the fleet can send in a day at most."""
    fleet, hour_us = world.fleet, world.settings.hours_us(1)
    by_gap = HOURS_PER_DAY * hour_us / np.maximum(fleet.min_gap_s * SECOND_US, 1)
    by_hour = fleet.quota_per_hour.astype(np.int64) * HOURS_PER_DAY
    most = np.minimum(np.minimum(fleet.quota_per_day, by_hour), by_gap)
    most = np.where(fleet.available, most, 0)
    if (shared := world.shared) is None:
        return int(most.sum())
    limits = [group.most_per_day for group in world.groups]
    own = [int(most[shared.group == place].sum()) for place in range(len(limits))]
    together = (each if limit is None else min(each, limit) for each, limit in zip(own, limits, strict=True))
    return int(most[shared.group < 0].sum()) + sum(together)


def _replies(course: Course) -> dict[str, int] | None:
    if course.world.behaviour.replies is None:
        return None
    state = course.state
    exits = (state.state == STOPPED) & (state.exit_us < state.leave_us[state.lead])
    return {"received": course.tally.replies, "stop": course.tally.stops, "exits": int(np.count_nonzero(exits))}


def _unsent(course: Course) -> int:
    """Messages of those who wait for ever, if there is a deadline."""
    if course.world.deadline_us is None:
        return 0
    return int(course.steps.remaining()[course.state.step[course.state.state == WAITING]].sum())


def _waves(course: Course) -> list[WaveOutlook]:
    state, steps, tally, world = course.state, course.steps, course.tally, course.world
    wave, sequence = world.leads.wave[state.lead], steps.sequence[state.entry]
    shape = (len(world.waves), len(steps.names))
    code = wave * shape[1] + sequence
    leads = np.bincount(code, minlength=shape[0] * shape[1]).reshape(shape)
    left = np.bincount(code[state.state == WAITING], minlength=shape[0] * shape[1]).reshape(shape)
    entries = np.zeros(len(steps.triggers), np.bool_)
    entries[np.unique(state.entry)] = True
    found = []
    for at, name in enumerate(steps.names):
        for of, label in enumerate(world.waves):
            if leads[of, at]:
                found.append(_wave(tally, of, steps.sequence == at, entries, name, label, leads[of, at], left[of, at]))
    return found


def _wave(
    tally: Tally,
    of: int,
    theirs: NDArray[np.bool_],
    entries: NDArray[np.bool_],
    sequence: str,
    wave: str,
    leads: int,
    left: int,
) -> WaveOutlook:
    first_us = int(tally.first_us[of, theirs].min(initial=NEVER_US))
    last_us = int(tally.last_us[of, theirs].max(initial=-NEVER_US))
    begun_us = int(tally.last_us[of, theirs & entries].max(initial=-NEVER_US))
    return WaveOutlook(
        sequence,
        wave,
        int(leads),
        int(tally.count[of, theirs].sum()),
        first_us if first_us < NEVER_US else None,
        begun_us if begun_us > -NEVER_US else None,
        last_us if last_us > -NEVER_US else None,
        int(tally.late_us[of, theirs].max(initial=0)) / SECOND_US,
        int(left),
    )


def _demand(world: World) -> tuple[Int64s, int | None]:
    """Messages by day if nothing ever waited, and when the last one would leave."""
    steps, first, catalogue = world.steps, world.enrolments, world.catalogue
    span = span_us(world.settings.deadline_s)
    day_us = world.settings.hours_us(HOURS_PER_DAY)
    demand, end_us = np.zeros(0, np.int64), None
    for step in np.unique(first.step).tolist():
        who = first.step == step
        due_us = np.maximum(first.due_us[who], world.start_us)
        zone = Coded(world.zones, world.leads.zone[first.lead[who]])
        new = np.flatnonzero(first.home[who] < 0)
        due_us[new] = catalogue.first_due(np.full(len(new), step), zone.take(new), due_us[new])
        at = step
        while at >= 0:
            here = np.full(len(due_us), at)
            due_us = catalogue.next_open(here, zone, due_us, span)
            counts = np.bincount((due_us - world.start_us) // day_us, minlength=len(demand))
            counts[: len(demand)] += demand
            demand, end_us = counts, max(end_us or 0, int(due_us.max()))
            _, due_us = catalogue.advance(here, due_us, zone, world.settings.hours_us(1))
            at = int(steps.following[at])
    return demand, end_us
