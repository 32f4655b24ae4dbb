"""Sequence files: YAML that says which steps a sequence has, read as ``core.graph.Sequence``.

    sequences:
      - name: 30 Day Fitness
        trigger_prefix: fitness_
        send_window: {from: "09:00", until: "20:00", days: [mon, tue, wed, thu, fri], time_zone: Asia/Kuala_Lumpur}
        exit: {on_reply: true}
        steps:
          - {trigger: fitness_start, day: 1, text: Welcome to fitness!}
          - {trigger: fitness_day2, day: 2, text: Day 2 workout}

``max_lateness: {after: 12h, then: skip}`` says what becomes of what could not leave in time: ``send`` all the same,
``skip`` the step, or ``shift`` it to the same time of a later day.
``send_window``, ``at`` and ``blackouts`` go by the clock of the lead, in its own time zone or, where that is unknown,
the one given. With ``exit: {on_reply: true}`` whoever writes back hears no more of the sequence; so does who reaches
``exit: {goal: {trigger: bought}}``.
Steps follow each other in the order they are written unless ``next`` says otherwise (``next: null`` ends the
sequence there); without ``entry`` anywhere, the first step is the entry. ``template: {name: welcome, language: en,
parameters: ["{{ name }}"]}`` is what a WhatsApp device sends to a lead that has not written lately. Everything is
checked before it is used, and an error names the file, the line, the sequence and the step.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from datetime import date, time
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from dispatcher.core.delays import hours_of, minutes_of
from dispatcher.core.goals import Goal
from dispatcher.core.graph import SenderPolicy, Sequence, Step, Template, WhenLate
from dispatcher.core.soundness import check
from dispatcher.core.windows import DAYS, Blackout, Window
from dispatcher.errors import GraphError, InputError
from dispatcher.intake.yaml_file import Finding, YamlFile, read

_INTERVAL: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([hd])")
_UNIT_H: Final = {"h": 1, "d": 24}
_CLOCK: Final = re.compile(r"([01]?\d|2[0-3]|24(?=:00)):([0-5]\d)")

_NO_NUL: Final = r"^[^\x00]*$"  # PostgreSQL stores it in no text

Name = Annotated[str, StringConstraints(min_length=1, max_length=255, strip_whitespace=True, pattern=_NO_NUL)]
Trigger = Annotated[str, StringConstraints(pattern=_NO_NUL)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class TemplateEntry(_Model):
    """An approved template, sent where free text may not be; ``parameters`` fill its body's gaps in order."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9_]{1,512}$")]
    language: Annotated[str, StringConstraints(pattern=r"^[a-z]{2,3}(_[A-Za-z]{2,4})?$")]
    parameters: list[Annotated[str, StringConstraints(min_length=1, pattern=_NO_NUL)]] = []

    def template(self) -> Template:
        """The template that is meant."""
        return Template(self.name, self.language, tuple(self.parameters))


def _delay(value: object) -> float:
    """A delay in hours."""
    try:
        return hours_of(*divmod(minutes_of(value if isinstance(value, str) else ""), 60))
    except ValueError as error:
        problem = f"{value!r}: {error}" if isinstance(value, str) else f"a delay belongs here, not {value!r}"
        advice = "write it like 36h, 90m, 2d or P1DT2H"
        raise PydanticCustomError("delay", "{problem}", {"problem": problem, "advice": advice}) from None


def _clock(value: object) -> time:
    """A time of day; 24:00 is the next day's 0:00."""
    match = _CLOCK.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        problem = f'a time of day such as "09:00" belongs here, not {value!r}'
        raise PydanticCustomError("clock", "{problem}", {"problem": problem, "advice": "write it in quotes"})
    return time(int(match[1]) % 24, int(match[2]))


Clock = Annotated[time, BeforeValidator(_clock)]


class StepEntry(_Model):
    """One step as it is written; ``delay`` or ``delay_hours`` is the wait after it, ``at`` when it is due itself."""

    trigger: Trigger
    text: str
    day: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    next: Trigger | None = None
    delay: Annotated[float, BeforeValidator(_delay), Field(le=2**31 - 1)] | None = None
    delay_hours: Annotated[int, Field(le=2**31 - 1)] = 24
    at: Clock | None = None
    entry: bool | None = None
    media_url: Annotated[str, StringConstraints(pattern=r"^https?://[^\s\x00]+$")] | None = None
    template: TemplateEntry | None = None

    @model_validator(mode="after")
    def _one_delay(self) -> Self:
        if self.delay is not None and "delay_hours" in self.model_fields_set:
            raise _wrong("delay and delay_hours exclude each other", "leave one of them out")
        return self


class After(_Model):
    """Once this much time has passed: ``720h`` or ``30d``."""

    after: Annotated[str, StringConstraints(pattern=rf"^{_INTERVAL.pattern}$")]

    @property
    def hours(self) -> float:
        """The interval in hours."""
        match = _INTERVAL.fullmatch(self.after)
        assert match is not None, "the pattern was checked"
        return float(match[1]) * _UNIT_H[match[2]]


class MaxLateness(After):
    """How long after it was due a message may leave, and what becomes of one that is later."""

    then: Literal["send", "skip", "shift"]

    @property
    def when_late(self) -> WhenLate | None:
        """None: it leaves all the same."""
        return None if self.then == "send" else self.then


class SendWindow(_Model):
    """When messages may leave, by the lead's clock; ``until`` at or before ``from`` is the next day's."""

    from_: Annotated[Clock, Field(alias="from")]
    until: Clock
    days: Annotated[list[Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]], Field(min_length=1)] | None = None
    time_zone: str

    def window(self) -> Window:
        """The window that is meant."""
        days = tuple(day for day in DAYS if self.days is None or day in self.days)
        return Window(self.from_, self.until, self.time_zone, days)


class Days(_Model):
    """A blackout of several days, both of them among them."""

    from_: Annotated[date, Field(alias="from")]
    until: date


class GoalEntry(_Model):
    """What ends the sequence for a lead: a trigger that it carries, or a condition on its fields."""

    trigger: Annotated[Trigger, StringConstraints(min_length=1, max_length=255, strip_whitespace=True)] | None = None
    if_: Annotated[Annotated[Trigger, StringConstraints(min_length=1)] | None, Field(alias="if")] = None

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.trigger is None and self.if_ is None:
            raise _wrong("a goal is a trigger, a condition, or both", "write trigger or if")
        return self


class Exit(_Model):
    """What ends the sequence for a lead before its last step."""

    on_reply: bool = False
    goal: GoalEntry | None = None


class SequenceEntry(_Model):
    """One sequence as it is written."""

    name: Name
    trigger_prefix: Name | None = None
    active: bool = True
    reentry: Literal["after_exit", "never"] | After = "after_exit"
    sender_policy: SenderPolicy = "prefer"
    requires_opt_in: bool = False
    send_window: SendWindow | None = None
    max_lateness: MaxLateness | None = None
    time_zone: str | None = None
    blackouts: list[date | Days] = []
    exit: Exit = Exit()
    steps: list[StepEntry]

    @model_validator(mode="after")
    def _one_clock(self) -> Self:
        if self.send_window is not None and self.time_zone not in (None, self.send_window.time_zone):
            raise _wrong("time_zone and that of send_window differ", "leave time_zone out")
        return self

    def sequence(self) -> Sequence:
        """The sequence that is meant."""
        entry_is_marked = any(step.entry is not None for step in self.steps)
        limit = self.max_lateness if self.max_lateness and self.max_lateness.when_late else None
        following = [*(step.trigger for step in self.steps[1:]), None]
        return Sequence(
            id=None,
            name=self.name,
            is_active=self.active,
            steps=tuple(
                Step(
                    trigger=step.trigger,
                    message_text=step.text,
                    next_trigger=step.next if "next" in step.model_fields_set else following[position],
                    delay_h=step.delay_hours if step.delay is None else step.delay,
                    day_number=step.day,
                    is_entry=bool(step.entry) if entry_is_marked else position == 0,
                    media_url=step.media_url,
                    template=None if step.template is None else step.template.template(),
                    at=step.at,
                )
                for position, step in enumerate(self.steps)
            ),
            reentry="after_interval" if isinstance(self.reentry, After) else self.reentry,
            reentry_interval_h=self.reentry.hours if isinstance(self.reentry, After) else None,
            sender_policy=self.sender_policy,
            requires_opt_in=self.requires_opt_in,
            exit_on_reply=self.exit.on_reply,
            trigger_prefix=self.trigger_prefix,
            send_window=None if self.send_window is None else self.send_window.window(),
            max_lateness_h=None if limit is None else limit.hours,
            when_late=None if limit is None else limit.when_late,
            time_zone=self.time_zone if self.send_window is None else None,
            blackouts=tuple(sorted({_blackout(each) for each in self.blackouts})),
            goal=None if self.exit.goal is None else Goal(self.exit.goal.trigger, self.exit.goal.if_),
        )


def _blackout(days: date | Days) -> Blackout:
    return Blackout(days.from_, days.until) if isinstance(days, Days) else Blackout(days, days)


def _wrong(problem: str, advice: str) -> PydanticCustomError:
    return PydanticCustomError("wrong", "{problem}", {"problem": problem, "advice": advice})


class SequenceFile(_Model):
    """A whole file."""

    sequences: Annotated[list[SequenceEntry], Field(min_length=1)]


def load(path: Path) -> list[Sequence]:
    """The sequences in the file, each sound and with message texts that compile.

    Raises:
        InputError: the file cannot be read or says something unknown; the subject names sequence and step.
        GraphError: the steps of a sequence cannot be followed, likewise.
    """
    file = read(path)
    try:
        entries = SequenceFile.model_validate(file.content).sequences
    except ValidationError as error:
        raise _telling(file, Finding.first(error, SequenceFile, file.content)) from None
    sequences = [entry.sequence() for entry in entries]
    try:
        verify(sequences)
    except InputError as error:
        kind = GraphError if isinstance(error, GraphError) else InputError
        raise kind(f"{path}, {error.subject}", error.problem, error.advice) from None
    return sequences


def verify(sequences: Iterable[Sequence]) -> None:
    """Refuse steps that cannot be followed or rendered, names and triggers that stand twice.

    Raises:
        InputError: the subject names the sequence and the step.
        GraphError: likewise, when the steps are to blame.
    """
    sequences = list(sequences)
    for sequence in sequences:
        check(sequence)
    for _, _, clash in clashes(sequences):
        raise clash


def clashes(sequences: Iterable[Sequence]) -> Iterator[tuple[int, int | None, InputError]]:
    """Names and triggers that stood before in another of ``sequences``: which sequence, which step, and the error."""
    names: set[str] = set()
    owners: dict[str, str] = {}
    for place, sequence in enumerate(sequences):
        subject = f"sequence {sequence.name!r}"
        if sequence.name in names:
            yield place, None, InputError(subject, "this name stands twice", "rename one of them")
        names.add(sequence.name)
        for number, step in enumerate(sequence.steps):
            if owner := owners.get(step.trigger):
                problem = f"sequence {owner!r} has a step with this trigger"
                yield place, number, GraphError(f"{subject}, step {step.trigger!r}", problem, ONE_TRIGGER)
        owners |= dict.fromkeys((step.trigger for step in sequence.steps), sequence.name)


ONE_TRIGGER: Final = "a trigger belongs to one step; rename one of them"


REENTRY: Final = "it is after_exit, never or an interval such as {after: 720h}"


def _telling(file: YamlFile, found: Finding) -> InputError:
    """One finding of pydantic as a line that names file, line, sequence, step and field."""
    subject, at = [file.place((*found.keys, *filter(None, [found.unknown])))], file.content
    fields: list[str] = []
    for key in found.keys:
        at = at.get(key) if isinstance(at, dict) else at[key]
        if isinstance(key, int):
            where = fields.pop()
            label = at.get("name" if where == "sequences" else "trigger") if isinstance(at, dict) else None
            subject.append(f"{where[:-1]} {key + 1 if label is None else repr(label)}")
        else:
            fields.append(key)
    if "reentry" in fields:
        return InputError(", ".join(subject), "reentry cannot be understood", REENTRY)
    name = fields[-1] if fields and found.unknown is None else ""
    return InputError(", ".join(subject), f"{name}: {found.problem}" if name else found.problem, found.advice)
