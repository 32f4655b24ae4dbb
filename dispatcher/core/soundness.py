"""What is broken about a sequence: why its steps cannot be followed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from dispatcher.core.goals import Goal
from dispatcher.core.graph import MIN_DELAY_H, Sequence, Step
from dispatcher.core.messages import TemplateError, compiled
from dispatcher.core.moments import SECOND_US
from dispatcher.core.triggers import BLANKS
from dispatcher.core.windows import MIN_OPEN_S, Window, is_zone
from dispatcher.errors import GraphError

MAX_DELAY_H: Final = 10 * 366 * 24
"""Ten years: beyond that somebody has mistyped."""
TRIGGER_CHARACTERS: Final = 255
"""Width of ``sequence_steps.trigger``."""
MAX_BLACKOUT_DAYS: Final = 366

_NAMES_SHOWN: Final = 20


@dataclass(frozen=True, slots=True)
class _Finding:
    trigger: str | None
    problem: str
    advice: str
    field: str = "trigger"
    """The field of the step that is to blame."""

    def __str__(self) -> str:
        return self.problem if self.trigger is None else f"step {short(self.trigger)}: {self.problem}"


def problems(sequence: Sequence) -> list[str]:
    """All that keeps ``sequence`` from being followed, a line each with the step named; empty when sound."""
    return [str(finding) for finding in findings(sequence)]


def check(sequence: Sequence) -> None:
    """Refuse a sequence that cannot be followed.

    Raises:
        GraphError: the first of its problems; the subject names the sequence and the step.
    """
    for finding in findings(sequence):
        subject = f"sequence {short(sequence.name)}"
        if finding.trigger is not None:
            subject += f", step {short(finding.trigger)}"
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
            problem = f"its next trigger {short(step.next_trigger)} is no step of this sequence"
            yield _Finding(
                step.trigger, problem, "add that step, or leave the next trigger out to end here", "next_trigger"
            )
    for cycle in _cycles(following):
        route = " -> ".join(short(trigger) for trigger in cycle[:_NAMES_SHOWN])
        more = f" -> {len(cycle) - _NAMES_SHOWN} more" if len(cycle) > _NAMES_SHOWN else ""
        problem = f"its steps go round in a circle: {route}{more} -> {short(cycle[0])}"
        yield _Finding(cycle[0], problem, "let the last step have no next trigger", "next_trigger")
    if not any(step.is_entry for step in sequence.steps):
        yield _Finding(None, "it has no entry step", "mark the step that leads start at as the entry")


def _window_findings(window: Window) -> Iterator[_Finding]:
    if not is_zone(window.time_zone):
        problem = f"its send window has the unknown time zone {short(window.time_zone)}"
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
            problem = f"it has the unknown time zone {short(sequence.time_zone)}"
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
        yield _Finding(None, f"its goal {short(goal.condition or '')} cannot be read: {goal.problem}", advice)


def _step_findings(step: Step) -> Iterator[_Finding]:
    trigger = step.trigger
    if not trigger.strip(BLANKS):
        yield _Finding(trigger, "its trigger is empty", "name it, for example fitness_start")
    elif trigger != trigger.strip(BLANKS):
        yield _Finding(trigger, "its trigger has white space around it", f"write {short(trigger.strip(BLANKS))}")
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


def short(text: str) -> str:
    """A name as errors quote it."""
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
