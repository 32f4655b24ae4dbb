"""What a forecast starts from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np
from numpy.typing import NDArray

from dispatcher.config import Settings
from dispatcher.core.backoff import text_key
from dispatcher.core.batches import Columns, Indices, Int32s, Int64s
from dispatcher.core.catalogue import Catalogue
from dispatcher.core.fleet import Fleet
from dispatcher.core.graph import Step, least_delay_h
from dispatcher.core.group_log import Group, shares
from simulate.referee import Behaviour
from simulate.timetable import Event
from simulate.waits import Shared

WAITING, DONE, FAILED, STOPPED = range(4)
"""By ``Enrolments.state``."""


@dataclass(frozen=True, slots=True)
class Steps:
    """The steps of all sequences, by their index in a catalogue."""

    sequence: Int32s
    """Place of each step's sequence in ``names``."""
    following: Indices
    """Index of the next step; -1 at the end."""
    least_us: Int64s
    """At least so long until the next one is due, from the slot on."""
    window: Indices
    """Which of the catalogue's send windows holds; -1 for none."""
    key: Int64s
    """Of the step's trigger, for draws."""
    triggers: list[str]
    names: list[str]
    """Of the sequences, in the order of their ids."""
    ids: list[int]

    @classmethod
    def of(cls, catalogue: Catalogue, hour_us: int) -> Self:
        """Those of a catalogue."""
        ids = sorted(catalogue.sequences)
        place = {id_: n for n, id_ in enumerate(ids)}

        def after(step: Step) -> Step | None:
            return catalogue.step.get(step.next_trigger or "")

        sequences = [place[catalogue.sequence_of[trigger].id or 0] for trigger in catalogue.triggers]
        return cls(
            np.array(sequences, np.int32),
            catalogue.next_index,
            np.array([round(least_delay_h(step, after(step)) * hour_us) for step in catalogue.step.values()], np.int64),
            catalogue.window[:-1],
            np.array([text_key(trigger) for trigger in catalogue.triggers], np.int64),
            catalogue.triggers,
            [catalogue.sequences[id_].name for id_ in ids],
            ids,
        )

    def remaining(self) -> Indices:
        """How many messages there are from each step on, itself included."""
        left = np.ones(len(self.following), np.intp)
        at = self.following.copy()
        while (at >= 0).any():
            left[at >= 0] += 1
            at = np.where(at >= 0, self.following[at], -1)
        return left


@dataclass(frozen=True, slots=True)
class Leads(Columns):
    """People, one entry each."""

    number: Int64s
    """What draws about them are keyed by: the phone."""
    come_us: Int64s
    """When they are there."""
    wave: Int32s
    opted_in: NDArray[np.bool_]
    zone: Int32s
    """Place of the time zone among those of the world."""
    home: Int32s
    """The device of their own, by its place in the fleet; -1 for none."""


@dataclass(frozen=True, slots=True)
class Enrolments(Columns):
    """Leads at steps of sequences, one entry each."""

    lead: Indices
    """Place among the leads."""
    entry: Int32s
    """Index of the step it entered by."""
    step: Int32s
    """Index of the step that is next."""
    home: Int32s
    """Row of its device in the fleet; -1: it gets one when it is enrolled."""
    due_us: Int64s

    @classmethod
    def none(cls) -> Self:
        """Of nobody."""
        small = np.zeros(0, np.int32)
        return cls(np.zeros(0, np.intp), small, small, small, np.zeros(0, np.int64))


@dataclass(frozen=True, slots=True)
class Past(Columns):
    """Messages that still count against quotas, ascending by row, then moment."""

    row: Indices
    """Their device's, in the fleet."""
    slot_us: Int64s


@dataclass(frozen=True, slots=True)
class World:
    """Everything a forecast needs."""

    catalogue: Catalogue
    fleet: Fleet
    leads: Leads
    enrolments: Enrolments
    """Those there are, or that are made as soon as their leads come."""
    waves: list[str]
    """Name of each wave."""
    zones: list[str | None]
    """Time zones of leads; None: unknown."""
    start_us: int
    tick_us: int
    """Whoever comes is enrolled at the border of such a tick."""
    settings: Settings
    past: Past = field(default_factory=lambda: Past(np.zeros(0, np.intp), np.zeros(0, np.int64)))
    paused: frozenset[str] = frozenset()
    """Names of the sequences that are switched off."""
    groups: Sequence[Group] = ()
    """Limits that devices share."""
    standing: bool = False
    """Whether the whole fleet is paused."""
    events: Sequence[Event] = ()
    behaviour: Behaviour = field(default_factory=Behaviour)
    seed: int = 1
    deadline_us: int | None = None
    """When everything is to be over; None: there is no such moment."""
    notes: Mapping[str, int] = field(default_factory=dict)
    """What of a database the forecast leaves out: how many, by what."""

    @property
    def left_out(self) -> dict[str, int]:
        """All that the forecast leaves out: how many, by what."""
        limits = sum(sequence.max_lateness_h is not None for sequence in self.catalogue.sequences.values())
        known = {"lateness_limits": limits, "goals": len(self.catalogue.goals)}
        return {**self.notes, **{name: count for name, count in known.items() if count}}

    @property
    def steps(self) -> Steps:
        """All steps."""
        return Steps.of(self.catalogue, self.settings.hours_us(1))

    @property
    def shared(self) -> Shared | None:
        """What devices share; None: no limit."""
        return Shared.of(self.fleet, self.groups, self.settings)

    def weight(self, per_day: NDArray[np.integer], available: NDArray[np.bool_]) -> NDArray[np.float64]:
        """What each device can carry, for the choice of homes: its day quota, or its share of its group's limit."""
        if (shared := self.shared) is not None:
            per_day = shares(per_day, available, shared.group, [group.most_per_day for group in self.groups])
        return np.where(available, per_day, 0).astype(np.float64)

    def border_after(self, moment_us: Int64s) -> Int64s:
        """The first tick border at or after each moment."""
        late_us = np.maximum(moment_us - self.start_us, 0)
        return self.start_us + -(-late_us // self.tick_us) * self.tick_us
