"""Sequences as graphs of steps: what is broken about one, and the catalogue of all that the passes read.

A step names the step after it by trigger, inside its own sequence; the delay of a step is the wait after it.
Sequences that are broken or switched off stay in the catalogue: enrolments may still stand at their steps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Rows
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from dispatcher.core.batches import Coded, Indices, Int64s
from dispatcher.core.messages import TemplateError, compiled
from dispatcher.core.moments import SECOND_US
from dispatcher.core.triggers import BLANKS
from dispatcher.core.windows import MIN_OPEN_S, Window, is_zone, next_open_of
from dispatcher.errors import GraphError

MIN_DELAY_H: Final = 1
MAX_DELAY_H: Final = 10 * 366 * 24
"""Ten years: beyond that somebody has mistyped."""
TRIGGER_CHARACTERS: Final = 255
"""Width of ``sequence_steps.trigger``."""

_NAMES_SHOWN: Final = 20

Reentry = Literal["after_exit", "never", "after_interval"]
SenderPolicy = Literal["prefer", "strict", "any"]
WhenLate = Literal["skip", "shift"]


class Template(NamedTuple):
    """A message text that a network has approved, by the name it is known there; ``parameters`` fill its gaps."""

    name: str
    language: str
    """As the network writes it: en, en_US, pt_BR."""
    parameters: tuple[str, ...] = ()
    """Message texts themselves, over a lead's fields."""


@dataclass(frozen=True, slots=True)
class Step:
    """One message of a sequence; the next step is due ``delay_h`` hours after this one was accepted."""

    trigger: str
    message_text: str
    next_trigger: str | None = None
    delay_h: int = 24
    day_number: int | None = None
    is_entry: bool = False
    media_url: str | None = None
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


def way_from(sequence: Sequence, entry: Step) -> list[tuple[Step, int]]:
    """The steps a lead gets that enters at ``entry``, each with the hours since the entry; a circle once round."""
    steps = {step.trigger: step for step in reversed(sequence.steps)}
    way: dict[str, tuple[Step, int]] = {}
    at: Step | None = entry
    after_h = 0
    while at is not None and at.trigger not in way:
        way[at.trigger] = (at, after_h)
        after_h += at.delay_h
        at = steps.get(at.next_trigger or "")
    return list(way.values())


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
            trigger, f"its delay is {step.delay_h} hours", f"at least {MIN_DELAY_H} hour is needed", "delay_h"
        )
    if step.delay_h > MAX_DELAY_H:
        yield _Finding(
            trigger, f"its delay is {step.delay_h} hours", f"at most {MAX_DELAY_H} hours make sense", "delay_h"
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
    """Those of all sound sequences that have one."""
    window: Indices = field(compare=False)
    """Which of ``windows`` holds for a step; -1 for none."""
    limits_lateness: bool
    """Whether any sequence does."""
    max_lateness_h: NDArray[np.float64] = field(compare=False)
    """By step; infinite where messages leave however late."""

    @classmethod
    def of(cls, sequences: Iterable[Sequence]) -> Self:
        """The catalogue of stored ``sequences``.

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
        windows = {id_: row.send_window for id_, row in by_id.items() if row.send_window and id_ not in broken}
        number = {id_: place for place, id_ in enumerate(windows)}
        limits = [np.inf if owner.max_lateness_h is None else owner.max_lateness_h for owner in sequence_of.values()]
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
            next_index=np.array([-1 if to is None else index.get(to, -1) for to in following], dtype=np.intp),
            delay_h=np.array([float(each.delay_h) for each in step.values()]),
            windows=list(windows.values()),
            window=np.array([*(number.get(owner.id or 0, -1) for owner in sequence_of.values()), -1], np.intp),
            limits_lateness=bool(np.isfinite(limits).any()),
            max_lateness_h=np.array([*limits, np.inf]),
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

    def advance(self, step_index: Indices) -> tuple[Coded[str | None], NDArray[np.float64]]:
        """Where a contact goes once its step is accepted: next trigger (None at the end), delay in hours.

        Raises:
            ValueError: an index is negative. Where a step that is gone leads, nobody knows.
        """
        if (step_index < 0).any():
            raise ValueError("a step that does not exist leads nowhere")
        return Coded(self.next_trigger, step_index), self.delay_h[step_index]

    def next_open(
        self, step_index: Indices, time_zone: Rows[str | None], moment_us: Int64s, span_us: int = 0
    ) -> Int64s:
        """The first moment, from each on, at which a step's message may leave and has ``span_us`` to arrive in.

        Args:
            time_zone: the leads', None where unknown.
        """
        return next_open_of(self.windows, self.window[step_index], Coded.of(time_zone), moment_us, span_us)

    def openings(self, time_zones: Iterable[str | None], now_us: int) -> dict[int, dict[str, int]]:
        """Where windows are shut at ``now_us``: when they open, by sequence id and time zone, "" for an unknown one."""
        zones = sorted({zone or "" for zone in time_zones})
        found: dict[int, dict[str, int]] = {}
        for id_ in self.usable:
            window = self.sequences[id_].send_window
            if window is not None:
                opens = {zone: window.first_open(zone, now_us) for zone in zones}
                found[id_] = {zone: opens_us for zone, opens_us in opens.items() if opens_us > now_us}
        return found
