"""Sequences as graphs of steps: what is broken about one, and the catalogue of all that the passes read.

A step names the step after it by trigger, inside its own sequence; the delay of a step is the wait after it.
Sequences that are broken or switched off stay in the catalogue: enrolments may still stand at their steps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Rows
from dataclasses import dataclass, field, replace
from datetime import time
from typing import Final, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from dispatcher.core.batches import Coded, Indices, Int64s
from dispatcher.core.goals import Goal
from dispatcher.core.messages import TemplateError, compiled
from dispatcher.core.moments import SECOND_US
from dispatcher.core.times_of_day import TimeOfDay, next_at
from dispatcher.core.triggers import BLANKS
from dispatcher.core.windows import MIN_OPEN_S, Blackout, Window, is_zone, next_open_of
from dispatcher.errors import GraphError

MIN_DELAY_H: Final = 1
MAX_DELAY_H: Final = 10 * 366 * 24
"""Ten years: beyond that somebody has mistyped."""
TRIGGER_CHARACTERS: Final = 255
"""Width of ``sequence_steps.trigger``."""
MAX_BLACKOUT_DAYS: Final = 366

_NAMES_SHOWN: Final = 20

Reentry = Literal["after_exit", "never", "after_interval"]
SenderPolicy = Literal["prefer", "strict", "any"]
WhenLate = Literal["skip", "shift"]
Openings = dict[str, dict[str, int]]
"""Moments by step trigger, "" for all others, and time zone, "" for an unknown one."""


class Template(NamedTuple):
    """A message text that a network has approved, by the name it is known there; ``parameters`` fill its gaps."""

    name: str
    language: str
    """As the network writes it: en, en_US, pt_BR."""
    parameters: tuple[str, ...] = ()
    """Message texts themselves, over a lead's fields."""


@dataclass(frozen=True, slots=True)
class Step:
    """One message of a sequence; the next step is due ``delay_h`` hours after this one was accepted.

    With ``at`` a message is due when the lead's clock reaches that time: hours and minutes of the delay before it pass
    first, then each of its days is a midnight, and never is it due within an hour of the message before.
    """

    trigger: str
    message_text: str
    next_trigger: str | None = None
    delay_h: float = 24
    """To the minute."""
    day_number: int | None = None
    is_entry: bool = False
    media_url: str | None = None
    at: time | None = None
    template: Template | None = None
    """What is sent where free text may not be."""
    paused: str | None = field(default=None, compare=False)
    """Why whoever stands here waits until somebody has seen to it; no part of what a step says."""

    @property
    def texts(self) -> tuple[str, ...]:
        """Everything it renders for a lead."""
        return (self.message_text, *(self.template.parameters if self.template else ()))


@dataclass(frozen=True, slots=True)
class Sequence:
    """A sequence with its steps, in the order a person wrote them; ``id`` is None until it is stored."""

    id: int | None
    name: str
    is_active: bool
    steps: tuple[Step, ...]
    reentry: Reentry = "after_exit"
    reentry_interval_h: float | None = None
    sender_policy: SenderPolicy = "prefer"
    requires_opt_in: bool = False
    exit_on_reply: bool = False
    """Whether whoever writes back hears no more of it."""
    trigger_prefix: str | None = None
    send_window: Window | None = None
    """When its messages may leave; None: at any time."""
    max_lateness_h: float | None = None
    """How many hours after it was due a message may leave; None: however late."""
    when_late: WhenLate | None = None
    """What becomes of one that is later: its step is skipped, or moved to the same time of a later day."""
    time_zone: str | None = None
    """Without a window: of leads whose own is unknown; None: UTC."""
    blackouts: tuple[Blackout, ...] = ()
    """In order; nothing leaves on these days."""
    goal: Goal | None = None
    """What ends the sequence for a lead."""

    @property
    def clock(self) -> str:
        """The time zone of leads whose own is unknown."""
        return (self.send_window.time_zone if self.send_window is not None else self.time_zone) or "UTC"

    def window(self, blackouts: Iterable[Blackout] = ()) -> Window | None:
        """When its messages may leave where these blackouts hold, too; None: at any time."""
        shut = tuple(sorted({*self.blackouts, *blackouts}))
        if not shut:
            return self.send_window
        return replace(self.send_window or Window(time(), time(), self.clock), blackouts=shut)


@dataclass(frozen=True, slots=True)
class _Finding:
    trigger: str | None
    problem: str
    advice: str
    field: str = "trigger"
    """The field of the step that is to blame."""

    def __str__(self) -> str:
        return self.problem if self.trigger is None else f"step {_short(self.trigger)}: {self.problem}"


def problems(sequence: Sequence) -> list[str]:
    """All that keeps ``sequence`` from being followed, a line each with the step named; empty when sound."""
    return [str(finding) for finding in findings(sequence)]


def way_from(sequence: Sequence, entry: Step) -> list[tuple[Step, float]]:
    """The steps a lead gets that enters at ``entry``, each with the hours since the entry; a circle once round."""
    steps = {step.trigger: step for step in reversed(sequence.steps)}
    way: dict[str, tuple[Step, float]] = {}
    at: Step | None = entry
    after_h: float = 0
    while at is not None and at.trigger not in way:
        way[at.trigger] = (at, after_h)
        after_h += at.delay_h
        at = steps.get(at.next_trigger or "")
    return list(way.values())


def least_delay_h(step: Step, following: Step | None) -> float:
    """The least hours between the two: up to a time of day, midnights may be less than days."""
    if following is None or following.at is None or step.delay_h < 24:
        return step.delay_h
    return max(step.delay_h % 24, MIN_DELAY_H)


def check(sequence: Sequence) -> None:
    """Refuse a sequence that cannot be followed.

    Raises:
        GraphError: the first of its problems; the subject names the sequence and the step.
    """
    for finding in findings(sequence):
        subject = f"sequence {_short(sequence.name)}"
        if finding.trigger is not None:
            subject += f", step {_short(finding.trigger)}"
        raise GraphError(subject, finding.problem, finding.advice)


def findings(sequence: Sequence) -> Iterator[_Finding]:
    """The same, with the step and the field apart."""
    if not sequence.steps:
        yield _Finding(None, "it has no steps", "add at least one entry step")
        return
    if sequence.send_window is not None:
        yield from _window_findings(sequence.send_window)
    if sequence.max_lateness_h is not None and sequence.max_lateness_h <= 0:
        problem = f"its max_lateness is {sequence.max_lateness_h:g} hours"
        yield _Finding(None, problem, "write one such as 12h; without any, messages leave however late")
    yield from _clock_findings(sequence)
    if sequence.goal is not None:
        yield from _goal_findings(sequence, sequence.goal)
    for trigger, times in Counter(step.trigger for step in sequence.steps).items():
        if times > 1:
            yield _Finding(trigger, f"{times} steps have this trigger", "give every step a trigger of its own")
    for step in sequence.steps:
        yield from _step_findings(step)
    following = _following(sequence)
    for step in sequence.steps:
        if step.next_trigger is not None and step.next_trigger not in following:
            problem = f"its next trigger {_short(step.next_trigger)} is no step of this sequence"
            yield _Finding(
                step.trigger, problem, "add that step, or leave the next trigger out to end here", "next_trigger"
            )
    for cycle in _cycles(following):
        route = " -> ".join(_short(trigger) for trigger in cycle[:_NAMES_SHOWN])
        more = f" -> {len(cycle) - _NAMES_SHOWN} more" if len(cycle) > _NAMES_SHOWN else ""
        problem = f"its steps go round in a circle: {route}{more} -> {_short(cycle[0])}"
        yield _Finding(cycle[0], problem, "let the last step have no next trigger", "next_trigger")
    if not any(step.is_entry for step in sequence.steps):
        yield _Finding(None, "it has no entry step", "mark the step that leads start at as the entry")


def _window_findings(window: Window) -> Iterator[_Finding]:
    if not is_zone(window.time_zone):
        problem = f"its send window has the unknown time zone {_short(window.time_zone)}"
        yield _Finding(None, problem, "write an IANA name such as Asia/Kuala_Lumpur")
    if window.length_us < MIN_OPEN_S * SECOND_US:
        problem = f"its send window {window} is open for less than {MIN_OPEN_S // 60} minutes"
        yield _Finding(None, problem, "let it close later")


def _clock_findings(sequence: Sequence) -> Iterator[_Finding]:
    """What is wrong about times of day and blackouts."""
    window, timed = sequence.send_window, [step for step in sequence.steps if step.at is not None]
    if (timed or sequence.blackouts) and window is None:
        if sequence.time_zone is None:
            problem = "it has times or days by the clock, and no time zone for leads whose own is unknown"
            yield _Finding(None, problem, "give it a time_zone such as Asia/Kuala_Lumpur")
        elif not is_zone(sequence.time_zone):
            problem = f"it has the unknown time zone {_short(sequence.time_zone)}"
            yield _Finding(None, problem, "write an IANA name such as Asia/Kuala_Lumpur")
    for step in timed:
        if window is not None and step.at is not None and not window.holds(step.at):
            problem = (
                f"its time {step.at:%H:%M} is not within the send window {window}, {MIN_OPEN_S // 60} minutes before"
            )
            yield _Finding(step.trigger, f"{problem} it shuts at the latest", "move one of them", "at")
    for blackout in sequence.blackouts:
        if not 1 <= blackout.days <= MAX_BLACKOUT_DAYS:
            problem = f"its blackout from {blackout.first} to {blackout.last} has {blackout.days} days"
            yield _Finding(None, problem, f"it has 1 to {MAX_BLACKOUT_DAYS}")


def _goal_findings(sequence: Sequence, goal: Goal) -> Iterator[_Finding]:
    for step in sequence.steps:
        if step.is_entry and step.trigger == goal.trigger:
            yield _Finding(step.trigger, "its trigger is the goal, too: whoever enters leaves", "name another goal")
    if goal.problem is not None:
        advice = "write what follows if in a message text, such as plan == 'pro'"
        yield _Finding(None, f"its goal {_short(goal.condition or '')} cannot be read: {goal.problem}", advice)


def _step_findings(step: Step) -> Iterator[_Finding]:
    trigger = step.trigger
    if not trigger.strip(BLANKS):
        yield _Finding(trigger, "its trigger is empty", "name it, for example fitness_start")
    elif trigger != trigger.strip(BLANKS):
        yield _Finding(trigger, "its trigger has white space around it", f"write {_short(trigger.strip(BLANKS))}")
    if "," in trigger:
        yield _Finding(trigger, "its trigger contains a comma", "commas separate the triggers of a lead")
    if len(trigger) > TRIGGER_CHARACTERS:
        yield _Finding(trigger, f"its trigger has {len(trigger)} characters", f"at most {TRIGGER_CHARACTERS} fit")
    if not step.message_text.strip():
        yield _Finding(trigger, "its message text is empty", "write what it shall say", "message_text")
    else:
        try:
            compiled(step.message_text)
        except TemplateError as error:
            yield _Finding(trigger, str(error), "", "message_text")
    for parameter in step.template.parameters if step.template else ():
        try:
            compiled(parameter)
        except TemplateError as error:
            yield _Finding(trigger, f"a parameter of its template: {error}", "", "template")
    if step.delay_h < MIN_DELAY_H:
        yield _Finding(
            trigger, f"its delay is {round(step.delay_h, 2)} hours", f"at least {MIN_DELAY_H} hour is needed", "delay_h"
        )
    if step.delay_h > MAX_DELAY_H:
        yield _Finding(
            trigger,
            f"its delay is {round(step.delay_h, 2)} hours",
            f"at most {MAX_DELAY_H} hours make sense",
            "delay_h",
        )


def _following(sequence: Sequence) -> dict[str, str | None]:
    """Next trigger by trigger, in the order of the steps; of steps that share a trigger the first counts."""
    following: dict[str, str | None] = {}
    for step in sequence.steps:
        following.setdefault(step.trigger, step.next_trigger)
    return following


def _cycles(following: dict[str, str | None]) -> Iterator[list[str]]:
    """Each circle once, from the step of it that a walk in step order meets first."""
    walk_of: dict[str, int] = {}
    for walk, start in enumerate(following):
        trail: list[str] = []
        at: str | None = start
        while at is not None and at in following and at not in walk_of:
            walk_of[at] = walk
            trail.append(at)
            at = following[at]
        if at is not None and walk_of.get(at) == walk:
            yield trail[trail.index(at) :]


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


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
                    subject = f"sequence {_short(sequence.name)}, step {_short(each.trigger)}"
                    problem = f"sequence {_short(sequence_of[each.trigger].name)} has a step with this trigger"
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
