"""Where everybody stands while a forecast is played: columns that change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, Self

import numpy as np
from numpy.typing import NDArray

from dispatcher.core.batches import Indices, Int8s, Int32s, Int64s
from dispatcher.core.moments import NEVER_US
from simulate.forecast.world import WAITING, World

_SIDES: Final[tuple[Literal["left"], Literal["right"]]] = ("left", "right")


@dataclass(slots=True)
class State:
    """One entry an enrolment; the last three columns have one a lead."""

    lead: Indices
    entry: Int32s
    step: Int32s
    home: Int32s
    """-1 before it is enrolled."""
    due_us: Int64s
    attempt: Int32s
    """Number of the attempt that is next, of this visit."""
    retries: Int32s
    asked: NDArray[np.bool_]
    """Whether the message is there already and only its answer is missing."""
    state: Int8s
    over_us: Int64s
    """When it ended; ``NEVER_US`` before."""
    since_us: Int64s
    """When it was enrolled."""
    exit_us: Int64s
    """When a reply ends it."""
    number: Int64s
    come_us: Int64s
    leave_us: Int64s
    """When the lead opts out."""
    leaving: bool = False
    """Whether anybody does, or replies."""
    by_lead: Indices | None = None
    """What sorts the enrolments by lead, where anybody has asked."""

    @classmethod
    def of(cls, world: World) -> Self:
        """How things stand at the start."""
        first, leads = world.enrolments, world.leads
        size = len(first)
        return cls(
            first.lead.copy(), first.entry.copy(), first.step.copy(), first.home.copy(), first.due_us.copy(),
            np.ones(size, np.int32), np.zeros(size, np.int32), np.zeros(size, np.bool_), np.zeros(size, np.int8),
            np.full(size, NEVER_US, np.int64), first.due_us.copy(), np.full(size, NEVER_US, np.int64),
            leads.number, leads.come_us, np.full(len(leads), NEVER_US, np.int64),
        )  # fmt: skip

    def leave(self, lead: Indices, at_us: Int64s) -> None:
        """These leads opt out then."""
        if len(lead):
            np.minimum.at(self.leave_us, lead, at_us)
            self.leaving = True

    def exit(self, lead: Indices, at_us: Int64s, exits: NDArray[np.bool_]) -> None:
        """These leads reply then: that ends what they are in.

        Args:
            exits: of each step, whether its sequence exits on a reply.
        """
        if not len(lead):
            return
        if self.by_lead is None:
            self.by_lead = np.argsort(self.lead, kind="stable")
        first, behind = (np.searchsorted(self.lead, lead, side, self.by_lead) for side in _SIDES)
        counts = behind - first
        place = np.repeat(first - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())
        who, told_us = self.by_lead[place], np.repeat(at_us, counts)
        ended = exits[self.entry[who]] & (self.since_us[who] <= told_us)
        np.minimum.at(self.exit_us, who[ended], told_us[ended])
        self.leaving = True

    def ends_us(self, who: Indices) -> Int64s:
        """When these enrolments end because their lead opts out or replies; ``NEVER_US`` where it does neither."""
        return np.minimum(self.leave_us[self.lead[who]], self.exit_us[who])

    def enrol(self, lead: Indices, entry: int, home: Int32s, due_us: Int64s) -> None:
        """These leads enter by that step."""
        size = len(lead)
        fresh = {
            "lead": lead, "entry": np.full(size, entry, np.int32), "step": np.full(size, entry, np.int32),
            "home": home, "due_us": due_us, "attempt": np.ones(size, np.int32),
            "retries": np.zeros(size, np.int32), "asked": np.zeros(size, np.bool_),
            "state": np.full(size, WAITING, np.int8), "over_us": np.full(size, NEVER_US, np.int64),
            "since_us": np.full(size, due_us, np.int64), "exit_us": np.full(size, NEVER_US, np.int64),
        }  # fmt: skip
        for name, column in fresh.items():
            setattr(self, name, np.concatenate([getattr(self, name), column]))
        self.by_lead = None
