"""What becomes of every message: segment by segment from one event to the next, group by group of devices.

Within a segment nothing changes but by the messages themselves, so their slots follow from ``Timelines`` alone. The
calendar of a group is cut into stretches as long as the shortest delay, as in ``simulate.model``. A slot that would
lie in the next segment is not taken: the message is due still when that one begins.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from dispatcher.core.backoff import delays_s, uniform
from dispatcher.core.batches import Coded, Indices, Int8s, Int32s, Int64s
from dispatcher.core.moments import NEVER_US, SECOND_US, span_us
from dispatcher.core.outcomes import CONSEQUENCES, Outcome
from dispatcher.core.routing import plan_homes
from simulate.forecast.openings import Openings
from simulate.forecast.shared import Lines
from simulate.forecast.state import State
from simulate.forecast.tally import Tally
from simulate.forecast.turns import Turns
from simulate.forecast.world import DONE, FAILED, STOPPED, WAITING, World
from simulate.referee import ANSWER, LEAVES, LEAVES_AFTER, REPLIES, REPLIES_AFTER, STOPS
from simulate.timelines import Limits, Timelines
from simulate.waits import by_device

_TOGETHER: Final = 1 << 15
"""Enrolments that go through their calendar together, about: what the processor's cache holds."""
_RETRY: Final = 0xF0
_THROTTLED_S: Final = CONSEQUENCES[Outcome.THROTTLED].wait_s or 0.0


@dataclass(frozen=True, slots=True)
class _Group:
    """Devices that are played together."""

    low: int
    """Row of the first one."""
    high: int
    """Row behind the last one."""
    timelines: Timelines


class Course:
    """One forecast, played to its end.

    Args:
        world: what it starts from.
        until_us: nothing is sent from then on; ``NEVER_US``: to the last message.
        on_progress: called now and then with the number of messages sent.
    """

    def __init__(
        self, world: World, *, until_us: int = NEVER_US, on_progress: Callable[[int], None] = lambda sent: None
    ) -> None:
        self.world, self._until_us, self._on_progress = world, until_us, on_progress
        self.steps = world.steps
        self.state = State.of(world)
        hour_us = world.settings.hours_us(1)
        self.tally = Tally(world.start_us, hour_us, len(world.waves), len(self.steps.triggers), world.deadline_us)
        self.turns = Turns(world, self.steps, self.state)
        self._openings = Openings(world, self.steps, self.state)
        self._behaviour = world.behaviour
        self._shared = world.shared
        self._lines = None if self._shared is None else Lines(self._shared)
        self._groups = self._grouped()
        self._width_us = int(min([*self.steps.least_us[self.steps.following >= 0].tolist(), 24 * hour_us]))
        if any(any(shares) for shares in (world.behaviour.shares, *(p.shares for p in world.behaviour.periods))):
            self._width_us = min(self._width_us, hour_us)  # what fails comes back soon
        # A reply ends what else its lead is in, also what is due already and has no slot yet.
        self._segment_us = NEVER_US if world.behaviour.replies is None else hour_us
        on_reply = [world.catalogue.sequences[id_].exit_on_reply for id_ in self.steps.ids]
        self._exits = np.array(on_reply, np.bool_)[self.steps.sequence]
        self._preload()

    def play(self) -> None:
        """Send everything that can be sent."""
        events_us = [*sorted({moment for moment in self.turns.moments_us() if moment < self._until_us}), self._until_us]
        from_us, anybody = self.world.start_us, True
        while anybody and from_us < self._until_us:
            self.turns.act(from_us)
            events_us = [moment for moment in events_us if moment > from_us]
            to_us = min(events_us[0], self._openings.change_after(from_us), from_us + self._segment_us)
            if self._behaviour.replies is not None:
                self._hear(from_us)
            self._settle(to_us)
            self._openings.postpone(from_us)
            self._segment(from_us, to_us)
            # Windows open for ever; without further events they may do so for nobody.
            anybody = len(events_us) > 1 or bool(self._able(np.flatnonzero(self.state.state == WAITING)).any())
            from_us = to_us
        waiting = np.flatnonzero(self.state.state == WAITING)
        self._stop(waiting[self.state.ends_us(waiting) < self._until_us])

    def _hear(self, now_us: int) -> None:
        """What has waited for its slot until its lead opted out or replied takes none any more."""
        waiting = np.flatnonzero(self.state.state == WAITING)
        ends_us = self.state.ends_us(waiting)
        gone = ends_us <= now_us
        self._end(waiting[gone], STOPPED, ends_us[gone])

    def _zone(self, who: Indices) -> Coded[str | None]:
        return Coded(self.world.zones, self.world.leads.zone[self.state.lead[who]])

    def _grouped(self) -> list[_Group]:
        turns, rows = self.turns, len(self.world.fleet)
        limits = self._limits()
        size = max(1, _TOGETHER * rows // max(len(self.state.lead), 1))
        keep = turns.most_per_day
        lows = np.arange(0, rows, size)
        if self._shared is not None:  # devices that share a limit stay together
            for each in range(len(self._shared.per_hour)):
                theirs = np.flatnonzero(self._shared.group == each)
                lows = lows[(lows <= theirs.min(initial=rows)) | (lows > theirs.max(initial=0))]
        highs = np.append(lows[1:], rows)
        return [
            _Group(low, high, Timelines(_of(limits, low, high), keep=keep[low:high]))
            for low, high in zip(lows.tolist(), highs.tolist(), strict=True)
        ]

    def _limits(self) -> Limits:
        settings, turns = self.world.settings, self.turns
        fleet = self.world.fleet.replace(quota_per_hour=turns.per_hour, quota_per_day=turns.per_day)
        return Limits.of(fleet, hour_us=settings.hours_us(1), guard_us=span_us(settings.guard_s))

    def _preload(self) -> None:
        """What has been sent before counts, at the moment it was."""
        past = self.world.past
        for group in self._groups:
            mine = (past.row >= group.low) & (past.row < group.high)
            group.timelines.record(past.row[mine] - group.low, past.slot_us[mine])
        if self._lines is not None:
            self._lines.record(past.row, past.slot_us)

    def _settle(self, to_us: int) -> None:
        """Enrolments that begin in this segment get their devices, in the order in which they come."""
        state = self.state
        new = np.flatnonzero((state.state == WAITING) & (state.home < 0) & (state.due_us < to_us))
        if not len(new):
            return
        new = new[np.lexsort((state.lead[new], state.due_us[new]))]
        own = self.world.leads.home[state.lead[new]]
        there = own >= 0
        there[there] = self.turns.available[own[there]]
        self._begin(new[there], own[there])
        new = new[~there]
        weight = self.world.weight(self.turns.per_day, self.turns.available)
        load = self.turns.load()
        leads = np.flatnonzero(np.diff(state.lead[new], prepend=-1))
        for begin in range(0, len(leads), self.world.settings.enrol_rows):
            some = leads[begin : begin + self.world.settings.enrol_rows]
            homes = plan_homes(load, weight, len(some))
            if not len(homes):
                return
            last = leads[begin + len(some)] if begin + len(some) < len(leads) else len(new)
            counts = np.diff(some, append=last)
            self._begin(new[some[0] : last], np.repeat(homes, counts))
            load += np.bincount(np.repeat(homes, counts), minlength=len(load))

    def _begin(self, who: Indices, home: Int32s) -> None:
        """These get their devices, and are due as their sequences want it."""
        state = self.state
        state.home[who] = home
        state.due_us[who] = self.world.catalogue.first_due(
            state.step[who].astype(np.intp), self._zone(who), state.due_us[who]
        )

    def _segment(self, from_us: int, to_us: int) -> None:
        """All groups, until everything that can leave before ``to_us`` has left."""
        state = self.state
        who = np.flatnonzero((state.state == WAITING) & (state.home >= 0) & (state.due_us < to_us))
        who = who[self._able(who)]
        who = who[np.argsort(state.home[who], kind="stable")]
        bounds = np.searchsorted(state.home[who], [*(group.low for group in self._groups), len(self.world.fleet)])
        limits = self._limits()
        sent = int(self.tally.sent.sum())
        for group, begin, end in zip(self._groups, bounds[:-1], bounds[1:], strict=True):
            if begin < end:
                group.timelines.limits = _of(limits, group.low, group.high)
                sent += self._calendar(group, np.sort(who[begin:end]), from_us, to_us)
                self._on_progress(sent)

    def _able(self, who: Indices) -> NDArray[np.bool_]:
        """Whose device can send, and whose sequence runs; who has no device yet will get one if any can."""
        state, turns = self.state, self.turns
        able = turns.available & (np.minimum(turns.per_hour, turns.per_day) > 0)
        if self._shared is not None:
            shut = np.minimum(self._shared.per_hour, self._shared.per_day) == 0
            able &= ~np.append(shut, False)[self._shared.group]
        home = state.home[who]
        can = np.where(home < 0, able.any(), able[home]) if len(able) else np.zeros(len(who), np.bool_)
        return np.asarray(can & (not turns.standing) & ~turns.paused[self.steps.sequence[state.step[who]]])

    def _calendar(self, group: _Group, who: Indices, from_us: int, to_us: int) -> int:
        """The messages of one group in one segment; returns how many were sent."""
        waiting: dict[int, list[Indices]] = {}
        sent = 0
        while True:
            due_us = self.state.due_us[who]
            stretch = (np.maximum(due_us, from_us) - from_us) // self._width_us
            for number in np.unique(stretch).tolist():
                waiting.setdefault(number, []).append(who[stretch == number])
            if not waiting:
                return sent
            who = np.sort(np.concatenate(waiting.pop(min(waiting))))
            who, count = self._place(group, who, from_us, to_us)
            sent += count

    def _place(self, group: _Group, who: Indices, from_us: int, to_us: int) -> tuple[Indices, int]:
        """Place their next messages; returns who has another one in this segment, and how many left."""
        state = self.state
        who = self._stop(who)
        row = (state.home[who] - group.low).astype(np.intp)
        order = by_device(row, state.due_us[who])
        who, row = who[order], row[order]
        fate = self._fates(who, from_us)
        unsent = None if fate is None else (fate == Outcome.THROTTLED) | (fate == Outcome.REFUSED)
        due_us = state.due_us[who]
        charged = None if unsent is None else ~unsent
        ready_us = np.maximum(due_us, from_us)
        if self._lines is None:
            placed = group.timelines.explain(row, ready_us, until_us=to_us, charged=charged)
        else:
            placed = self._lines.explain(group.timelines, group.low, row, ready_us, until_us=to_us, charged=charged)
        slot_us = placed.slot_us
        there = slot_us < to_us
        if state.leaving:
            gone = there & (state.ends_us(who) <= slot_us)
            self._end(who[gone], STOPPED, slot_us[gone])
            there &= ~gone
        self.tally.add_waits(placed)
        arrives = there if fate is None else there & ((fate == Outcome.ACCEPTED) | (fate == Outcome.IN_DOUBT))
        step = state.step[who[arrives]].astype(np.intp)
        self.tally.add(self._wave(who[arrives]), step, due_us[arrives], slot_us[arrives])
        if self._behaviour.is_answered:
            self._read(who[arrives], slot_us[arrives])
        who, slot_us = who[there], slot_us[there]
        self._follow(who, slot_us, None if fate is None else fate[there])
        return who[(state.state[who] == WAITING) & (state.due_us[who] < to_us)], int(np.count_nonzero(arrives))

    def _wave(self, who: Indices) -> Indices:
        return self.world.leads.wave[self.state.lead[who]].astype(np.intp)

    def _fates(self, who: Indices, from_us: int) -> Int8s | None:
        """What becomes of each message, with the referee's own draws; None: all are accepted."""
        bounds = self._behaviour.bounds(np.array([from_us]))
        if not bounds.any():
            return None
        state = self.state
        fate = self._behaviour.told(self._draw(who, ANSWER), np.array([from_us]))
        fate[state.asked[who]] = Outcome.REPEAT
        return fate

    def _draw(self, who: Indices, what: int) -> NDArray[np.float64]:
        state = self.state
        keys = (state.number[state.lead[who]], self.steps.key[state.step[who]], state.attempt[who].astype(np.int64))
        return uniform(self.world.seed, *keys, np.full(len(who), what))

    def _follow(self, who: Indices, slot_us: Int64s, fate: Int8s | None) -> None:
        """What comes after: the next step, another try, or the end."""
        state, settings = self.state, self.world.settings
        if fate is None:
            self._advance(who, slot_us)
            return
        for outcome in np.unique(fate).tolist():
            these = fate == outcome
            some, at_us = who[these], slot_us[these]
            match outcome:
                case Outcome.REJECTED:
                    self._end(some, FAILED, at_us)
                case Outcome.THROTTLED:
                    self._again(some, at_us + span_us(_THROTTLED_S))
                case Outcome.REFUSED:
                    state.retries[some] += 1
                    retry = state.retries[some]
                    draw = uniform(self.world.seed, some, retry.astype(np.int64), np.full(len(some), _RETRY))
                    wait_s = delays_s(retry, draw, settings.retry_base_s, settings.retry_cap_s)
                    self._again(some, at_us + np.rint(wait_s * SECOND_US).astype(np.int64))
                    spent = retry > settings.retry_limit
                    self._end(some[spent], FAILED, at_us[spent])
                case Outcome.IN_DOUBT:
                    state.asked[some] = True
                    self._again(some, at_us + span_us(settings.retry_base_s))
                case _:
                    self._advance(some, at_us)

    def _again(self, who: Indices, due_us: Int64s) -> None:
        self.state.attempt[who] += 1
        self.state.due_us[who] = due_us

    def _advance(self, who: Indices, slot_us: Int64s) -> None:
        state, step = self.state, self.state.step[who]
        following = self.steps.following[step]
        on = following >= 0
        self._end(who[~on], DONE, slot_us[~on])
        some = who[on]
        hour_us = self.world.settings.hours_us(1)
        _, state.due_us[some] = self.world.catalogue.advance(
            step[on].astype(np.intp), slot_us[on], self._zone(some), hour_us
        )
        state.step[some] = following[on]
        state.attempt[some], state.retries[some], state.asked[some] = 1, 0, False

    def _end(self, who: Indices, how: int, at_us: Int64s) -> None:
        self.state.state[who], self.state.over_us[who] = how, at_us

    def _stop(self, who: Indices) -> Indices:
        """End what is due after its lead has opted out or replied; returns the others."""
        if not self.state.leaving:
            return who
        ends_us = self.state.ends_us(who)
        gone = ends_us <= self.state.due_us[who]
        self._end(who[gone], STOPPED, ends_us[gone])
        return who[~gone]

    def _read(self, who: Indices, slot_us: Int64s) -> None:
        """People read what has arrived: some have had enough, some write back."""
        behaviour, state = self._behaviour, self.state
        if behaviour.opted_out:
            some, at_us = self._answered(who, slot_us, (LEAVES, LEAVES_AFTER), behaviour.opted_out,
                                         behaviour.opted_out_within_s)  # fmt: skip
            state.leave(state.lead[some], at_us)
        if (replies := behaviour.replies) is not None:
            some, at_us = self._answered(who, slot_us, (REPLIES, REPLIES_AFTER), replies.share, replies.within_s)
            stops = self._draw(some, STOPS) < replies.stop
            state.leave(state.lead[some[stops]], at_us[stops])
            state.exit(state.lead[some], at_us, self._exits)
            self.tally.replies += len(some)
            self.tally.stops += int(np.count_nonzero(stops))

    def _answered(
        self, who: Indices, slot_us: Int64s, what: tuple[int, int], share: float, within_s: float
    ) -> tuple[Indices, Int64s]:
        """Who of them answers a message, and when."""
        answers = self._draw(who, what[0]) < share
        who, slot_us = who[answers], slot_us[answers]
        return who, slot_us + np.rint(within_s * self._draw(who, what[1]) * SECOND_US).astype(np.int64)


def _of(limits: Limits, low: int, high: int) -> Limits:
    """Those of some rows."""
    return Limits(
        limits.per_hour[low:high],
        limits.per_day[low:high],
        limits.gap_us[low:high],
        limits.hour_window_us,
        limits.day_window_us,
    )
