"""What happens on the way: the events of a scenario, at the tick borders that a rehearsal would let them happen at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from dispatcher.core.batches import Coded, Indices, Int32s, Int64s
from dispatcher.core.fleet import is_left
from dispatcher.core.moments import NEVER_US
from dispatcher.core.routing import plan_homes
from simulate.forecast.state import State
from simulate.forecast.world import DONE, WAITING, Steps, World
from simulate.timetable import BansLifted, DeviceChange, Event, OptOut, Switch, Tag, chosen

_BANNED: Final = "credentials"


class Turns:
    """Which devices send, which sequences run, and what events do to enrolments.

    Args:
        world: with the events.
        steps: of all sequences.
        state: what events change.
    """

    def __init__(self, world: World, steps: Steps, state: State) -> None:
        fleet = world.fleet
        self._world, self._steps, self._state = world, steps, state
        self.per_hour, self.per_day = fleet.quota_per_hour.copy(), fleet.quota_per_day.copy()
        self.available, self._left = fleet.available.copy(), fleet.left.copy()
        self.paused = np.array([name in world.paused for name in steps.names], np.bool_)
        self.standing = world.standing
        """Whether the whole fleet is paused."""
        self._cause: dict[int, str | None] = {}
        self._row = {name: row for row, name in enumerate(fleet.name)}
        self._moved_to = np.zeros(len(fleet), np.int64)
        numbers = {int(number): row for row, number in enumerate(fleet.number)}
        bans = [DeviceChange(ban.from_us, (fleet.name[numbers[ban.device]],), "quarantined", _BANNED)
                for ban in world.behaviour.bans]  # fmt: skip
        timed = [*enumerate(world.events), *((-1, ban) for ban in bans)]
        self._events = sorted(timed, key=lambda numbered: numbered[1].at_us)
        self._done = 0
        policies = [world.catalogue.sequences[id_].sender_policy for id_ in steps.ids]
        self._strict = np.array([policy == "strict" for policy in policies], np.bool_)

    @property
    def most_per_day(self) -> Int64s:
        """The largest day quota that each device ever has."""
        most = self.per_day.astype(np.int64)
        for _, event in self._events:
            if isinstance(event, DeviceChange) and event.quota_per_day is not None:
                rows = self._rows(event.names)
                most[rows] = np.maximum(most[rows], event.quota_per_day)
        return most

    def moments_us(self) -> list[int]:
        """When something happens, or the gateway's behaviour changes, after the start."""
        periods = [moment for period in self._world.behaviour.periods for moment in (period.from_us, period.to_us)]
        moments_us = np.array([event.at_us for _, event in self._events], np.int64)
        borders: list[int] = np.unique(self._world.border_after(moments_us)).tolist()
        return [moment for moment in [*borders, *periods] if self._world.start_us < moment < NEVER_US]

    def act(self, now_us: int) -> None:
        """Let everything happen that is due by then."""
        moved = False
        while self._done < len(self._events) and self._events[self._done][1].at_us <= now_us:
            number, event = self._events[self._done]
            self._done += 1
            moved |= isinstance(event, DeviceChange | BansLifted)
            self._do(number, event, now_us)
        if moved:
            self._rehome()

    def load(self) -> Int64s:
        """Live enrolments of each device."""
        state = self._state
        return self._count(state.home[(state.state == WAITING) & (state.home >= 0)])

    def _count(self, rows: Int32s | Indices) -> Int64s:
        return np.bincount(rows, minlength=len(self.available)).astype(np.int64)

    def _rows(self, names: Sequence[str]) -> Indices:
        return np.array([self._row[name] for name in names], np.intp)

    def _do(self, number: int, event: Event, now_us: int) -> None:
        match event:
            case DeviceChange():
                self._change(event, number)
            case BansLifted():
                rows = [row for row in self._rows(event.names).tolist() if self._cause.get(row) == _BANNED]
                self._health(rows, "available", None)
            case Switch(sequence=None):
                self.standing = not event.active
            case Switch():
                self.paused[[name == event.sequence for name in self._steps.names]] = not event.active
            case OptOut():
                there = np.flatnonzero(self._state.come_us <= now_us)
                who = there[chosen(self._world.seed, self._state.number[there], number, event.share)]
                self._state.leave(who, np.full(len(who), now_us, np.int64))
            case Tag():
                self._tag(event, number, now_us)
            case _:
                pass  # a process that dies comes back within the tick, and nothing is lost

    def _change(self, event: DeviceChange, number: int) -> None:
        rows = self._rows(event.names)
        if event.quota_per_hour is not None:
            self.per_hour[rows] = event.quota_per_hour
        if event.quota_per_day is not None:
            self.per_day[rows] = event.quota_per_day
        if event.health is not None:
            banned = number < 0  # the engine finds out by itself, from a device that sends
            self._health([row for row in rows.tolist() if self.available[row] or not banned], event.health, event.cause)

    def _health(self, rows: list[int], health: str, cause: str | None) -> None:
        self.available[rows] = health == "available"
        self._left[rows] = is_left(health, cause, 0)
        self._cause.update(dict.fromkeys(rows, cause))

    def _rehome(self) -> None:
        """What waits on devices that are left moves to others, the earliest due first."""
        state = self._state
        waiting = (state.state == WAITING) & (state.home >= 0)
        strict = self._strict[self._steps.sequence[state.step]]
        misplaced = np.flatnonzero(waiting & ~strict & self._left[state.home])
        if not len(misplaced) or not self.available.any():
            return
        misplaced = misplaced[np.lexsort((misplaced, state.due_us[misplaced]))]
        weight = self._world.weight(self.per_day, self.available)
        homes = plan_homes(self._moved_to, weight, len(misplaced))
        self._moved_to += self._count(homes)
        state.home[misplaced] = homes

    def _tag(self, event: Tag, number: int, now_us: int) -> None:
        """Some leads get a trigger, and enter where they may."""
        state, catalogue = self._state, self._world.catalogue
        there = np.flatnonzero((state.come_us <= now_us) & (state.leave_us > now_us))
        who = there[chosen(self._world.seed, state.number[there], number, event.share)]
        entry = catalogue.index[event.trigger]
        sequence = catalogue.sequence_of[event.trigger]
        place = int(self._steps.sequence[entry])
        theirs = np.flatnonzero(self._steps.sequence[state.step] == place)
        before_us = now_us - self._world.settings.hours_us(sequence.reentry_interval_h or 0)
        barred = self._barred(theirs, entry, sequence.reentry, before_us)
        who = who[~np.isin(who, state.lead[theirs[barred]])]
        if sequence.requires_opt_in:
            who = who[self._world.leads.opted_in[who]]
        zone = Coded(self._world.zones, self._world.leads.zone[who])
        due_us = catalogue.first_due(np.full(len(who), entry), zone, np.full(len(who), now_us))
        state.enrol(who, entry, self._homes(who), due_us)

    def _barred(self, theirs: Indices, entry: int, reentry: str, before_us: int) -> NDArray[np.bool_]:
        """Which enrolments in a sequence keep their lead from entering it once more."""
        state = self._state
        live = state.state[theirs] == WAITING
        kept = (state.entry[theirs] == entry) & (state.state[theirs] != DONE)
        late = (reentry == "after_interval") & (state.over_us[theirs] > before_us)
        return np.asarray(live | kept | late | (reentry == "never"))

    def _homes(self, who: Indices) -> Int32s:
        """The device of the leads' own, else one that they have already, if it can send; else -1."""
        state = self._state
        home = np.full(len(state.number), -1, np.int32)
        for ended in (True, False):  # a live enrolment's device counts first, so it is written last
            some = np.flatnonzero((state.home >= 0) & ((state.state != WAITING) == ended))
            home[state.lead[some]] = state.home[some]
        own, found = self._world.leads.home[who], home[who]
        there = np.flatnonzero(own >= 0)
        there = there[self.available[own[there]]]
        found[there] = own[there]
        return np.where((found >= 0) & self.available[found], found, -1).astype(np.int32)
