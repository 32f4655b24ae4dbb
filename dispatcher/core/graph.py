"""Sequences as graphs of steps.

A step names the step after it by trigger, inside its own sequence; the delay of a step is the wait after it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import time
from typing import Final, Literal, NamedTuple

from dispatcher.core.goals import Goal
from dispatcher.core.windows import Blackout, Window

MIN_DELAY_H: Final = 1

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
