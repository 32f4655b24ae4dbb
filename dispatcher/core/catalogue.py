"""The catalogue of all sequences that the passes read.

Sequences that are broken or switched off stay in it: enrolments may still stand at their steps.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Rows
from dataclasses import dataclass, field
from typing import Self

import numpy as np
from numpy.typing import NDArray

from dispatcher.core.batches import Coded, Indices, Int64s
from dispatcher.core.goals import Goal
from dispatcher.core.graph import MIN_DELAY_H, Sequence, Step
from dispatcher.core.soundness import problems, short
from dispatcher.core.times_of_day import TimeOfDay, next_at
from dispatcher.core.windows import Blackout, Window, next_open_of
from dispatcher.errors import GraphError

Openings = dict[str, dict[str, int]]
"""Moments by step trigger, "" for all others, and time zone, "" for an unknown one."""


@dataclass(frozen=True, slots=True)
class Catalogue:
    """All stored sequences, broken and inactive ones included, laid out for looking up whole batches.

    A step has an index into ``triggers``. The numpy columns have one more entry than there are steps: index
    -1, the index of a trigger nobody knows, finds it, and it leads nowhere.
    """

    sequences: dict[int, Sequence]
    """By id."""
    problems: dict[int, list[str]]
    """What is broken, by sequence id; sound sequences are absent."""
    usable: frozenset[int]
    """Ids of the sequences that are active and sound: leads may be enrolled into these."""
    entries: dict[str, int]
    """Open entries: sequence id by trigger, of every entry step of a usable sequence."""
    step: dict[str, Step]
    sequence_of: dict[str, Sequence]
    triggers: list[str]
    index: dict[str, int]
    next_trigger: list[str | None] = field(compare=False)
    """The next trigger as it was written, also one that no step has; None where the sequence ends."""
    next_index: Indices = field(compare=False)
    """Index of the next step; -1 where the sequence ends or the next trigger is unknown."""
    delay_h: NDArray[np.float64] = field(compare=False)
    """Hours between a step's acceptance and the next one's due time."""
    windows: list[Window]
    """Those of all sound sequences that have one, with all blackouts."""
    window: Indices = field(compare=False)
    """Which of ``windows`` holds for a step; -1 for none."""
    limits_lateness: bool
    """Whether any sequence does."""
    max_lateness_h: NDArray[np.float64] = field(compare=False)
    """By step; infinite where messages leave however late."""
    times: list[TimeOfDay]
    """Those of steps that have one, of sound sequences."""
    at: Indices = field(compare=False)
    """Which of ``times`` is a step's; -1 for none."""
    by_clock: NDArray[np.bool_] = field(compare=False)
    """Whether the lead's clock has a say in when a step, or the one after it, may leave."""
    goals: dict[int, Goal]
    """By sequence id, also of sequences that are broken or switched off; but for those that cannot be read."""
    blackouts: tuple[Blackout, ...]
    """Those that hold for all sequences."""

    @classmethod
    def of(cls, sequences: Iterable[Sequence], blackouts: Iterable[Blackout] = ()) -> Self:
        """The catalogue of stored ``sequences``, and of ``blackouts`` that hold for all of them.

        Raises:
            GraphError: two steps have one trigger.
            ValueError: a sequence has no id.
        """
        by_id: dict[int, Sequence] = {}
        step: dict[str, Step] = {}
        sequence_of: dict[str, Sequence] = {}
        for sequence in sequences:
            if sequence.id is None:
                raise ValueError(f"sequence {sequence.name!r} is not stored yet: it has no id")
            by_id[sequence.id] = sequence
            for each in sequence.steps:
                if each.trigger in step:
                    subject = f"sequence {short(sequence.name)}, step {short(each.trigger)}"
                    problem = f"sequence {short(sequence_of[each.trigger].name)} has a step with this trigger"
                    raise GraphError(subject, problem, "give every step a trigger of its own")
                step[each.trigger], sequence_of[each.trigger] = each, sequence
        broken = {id_: found for id_, sequence in by_id.items() if (found := problems(sequence))}
        usable = frozenset(id_ for id_, sequence in by_id.items() if sequence.is_active and id_ not in broken)
        triggers = list(step)
        index = {trigger: number for number, trigger in enumerate(triggers)}
        following = [each.next_trigger for each in step.values()]
        next_index = np.array([-1 if to is None else index.get(to, -1) for to in following], dtype=np.intp)
        blackouts, sound = tuple(blackouts), {id_: row for id_, row in by_id.items() if id_ not in broken}
        windows = {id_: shut for id_, row in sound.items() if (shut := row.window(blackouts)) is not None}
        number = {id_: place for place, id_ in enumerate(windows)}
        limits = [np.inf if owner.max_lateness_h is None else owner.max_lateness_h for owner in sequence_of.values()]
        window = np.array([*(number.get(owner.id or 0, -1) for owner in sequence_of.values()), -1], np.intp)
        times: dict[TimeOfDay, int] = {}
        at = np.full(len(triggers) + 1, -1, np.intp)
        for place, each in enumerate(step.values()):
            if each.at is not None and sequence_of[each.trigger].id in sound:
                at[place] = times.setdefault(TimeOfDay(each.at, sequence_of[each.trigger].clock), len(times))
        return cls(
            sequences=by_id,
            problems=broken,
            usable=usable,
            entries={each.trigger: id_ for id_ in by_id if id_ in usable for each in by_id[id_].steps if each.is_entry},
            step=step,
            sequence_of=sequence_of,
            triggers=triggers,
            index=index,
            next_trigger=following,
            next_index=next_index,
            delay_h=np.array([float(each.delay_h) for each in step.values()]),
            windows=list(windows.values()),
            limits_lateness=bool(np.isfinite(limits).any()),
            max_lateness_h=np.array([*limits, np.inf]),
            window=window,
            times=list(times),
            at=at,
            by_clock=np.append((window[:-1] >= 0) | (at[:-1] >= 0) | (at[next_index] >= 0), False),
            goals={id_: row.goal for id_, row in by_id.items() if row.goal is not None and row.goal.problem is None},
            blackouts=blackouts,
        )

    @property
    def paused_steps(self) -> frozenset[str]:
        """Triggers of the steps that wait for somebody to see to them."""
        return frozenset(trigger for trigger, step in self.step.items() if step.paused is not None)

    def indices(self, triggers: Rows[str]) -> Indices:
        """The index of each trigger; -1 for those that no step has."""
        coded = Coded.of(triggers)
        index: Indices = np.array([self.index.get(trigger, -1) for trigger in coded.values], np.intp)[coded.code]
        return index

    def advance(
        self, step_index: Indices, accepted_us: Int64s, time_zone: Rows[str | None], hour_us: int
    ) -> tuple[Coded[str | None], Int64s]:
        """Where contacts go once their step is accepted: next trigger (None at the end), and when that is due.

        Args:
            time_zone: the leads', None where unknown or of no matter (``by_clock``).
            hour_us: how long an hour of a delay is.

        Raises:
            ValueError: an index is negative. Where a step that is gone leads, nobody knows.
        """
        if (step_index < 0).any():
            raise ValueError("a step that does not exist leads nowhere")
        delay_h = self.delay_h[step_index]
        due_us = accepted_us + np.rint(delay_h * hour_us).astype(np.int64)
        if self.times:
            which = self.at[self.next_index[step_index]]
            days = (delay_h // 24).astype(np.int64)
            rested_us = accepted_us + np.rint((delay_h - 24 * days) * hour_us).astype(np.int64)
            least_us = np.where(days > 0, accepted_us + MIN_DELAY_H * hour_us, rested_us)
            timed_us = next_at(self.times, which, Coded.of(time_zone), rested_us, days, least_us)
            due_us = np.where(which >= 0, timed_us, due_us)
        return Coded(self.next_trigger, step_index), due_us

    def window_of(self, trigger: str) -> Window | None:
        """When the message of a step may leave; None: at any time."""
        return self.sequence_of[trigger].window(self.blackouts)

    def next_open(
        self, step_index: Indices, time_zone: Rows[str | None], moment_us: Int64s, span_us: int = 0
    ) -> Int64s:
        """The first moment, from each on, at which a step's message may leave and has ``span_us`` to arrive in.

        What is put off leaves at the step's time of day, if it has one.

        Args:
            time_zone: the leads', None where unknown.
        """
        zone = Coded.of(time_zone)
        found = next_open_of(self.windows, self.window[step_index], zone, moment_us, span_us)
        if not self.times:
            return found
        off = np.flatnonzero((found > moment_us) & (self.at[step_index] >= 0))
        while len(off):
            timed_us = self._next_at(step_index[off], zone.take(off), found[off])
            found[off] = next_open_of(self.windows, self.window[step_index[off]], zone.take(off), timed_us, span_us)
            off = off[found[off] > timed_us]
        return found

    def _next_at(self, step_index: Indices, zone: Coded[str | None], moment_us: Int64s) -> Int64s:
        """The first moment, from each on, at a step's time of day; the moment itself where it has none."""
        return next_at(self.times, self.at[step_index], zone, moment_us, np.zeros_like(moment_us), moment_us)

    def first_due(self, step_index: Indices, time_zone: Rows[str | None], now_us: Int64s) -> Int64s:
        """When the messages of steps are due for leads that come to them at ``now_us``."""
        zone = Coded.of(time_zone)
        return self.next_open(step_index, zone, self._next_at(step_index, zone, now_us))

    def entry_dues(self, time_zones: Iterable[str | None], now_us: int) -> dict[str, dict[str, int]]:
        """When the messages of entries are due that are not due at once: by trigger and time zone, "" for none."""
        zones = sorted({zone or "" for zone in time_zones})
        found: dict[str, dict[str, int]] = {}
        for trigger in self.entries:
            step = np.full(len(zones), self.index[trigger])
            if self.by_clock[step[:1]].any():
                due_us = self.first_due(step, zones, np.full(len(zones), now_us)).tolist()
                found[trigger] = {zone: at_us for zone, at_us in zip(zones, due_us, strict=True) if at_us > now_us}
        return found

    def openings(self, sequence: int, time_zones: Iterable[str | None], now_us: int, span_us: int) -> Openings:
        """When what may not leave at ``now_us`` may: by step, "" for those without a time of day, and by time zone."""
        steps = [self.index[step.trigger] for step in self.sequences[sequence].steps]
        zones = sorted({zone or "" for zone in time_zones})
        found: Openings = {}
        for trigger, index in [("", index) for index in steps if self.at[index] < 0][:1] + [
            (self.triggers[index], index) for index in steps if self.at[index] >= 0
        ]:
            opens_us = self.next_open(np.full(len(zones), index), zones, np.full(len(zones), now_us), span_us).tolist()
            found[trigger] = {zone: at_us for zone, at_us in zip(zones, opens_us, strict=True) if at_us > now_us}
        return {trigger: by_zone for trigger, by_zone in found.items() if by_zone}
