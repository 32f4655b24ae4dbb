"""The steps of every catalogue that held, on one index."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from dispatcher.core.batches import Indices, Int64s
from dispatcher.core.graph import least_delay_h
from dispatcher.core.times_of_day import TimeOfDay
from dispatcher.core.windows import Window
from simulate.evidence import Evidence

T = TypeVar("T")

_END, _ELSEWHERE, _ABSENT = -1, -2, -3


@dataclass(frozen=True, slots=True)
class Paths:
    """Where steps may lead. Steps are places in ``triggers``; -1, one that nobody knows, is the last entry."""

    index: dict[str, int]
    following: list[Int64s]
    """Per version: the next step by step; negative where none follows or the version lacks the step."""
    delay_us: Int64s
    """The least delay after each step."""
    entry: NDArray[np.bool_]
    """Whether a step ever was an entry."""
    usable: NDArray[np.bool_]
    """Whether a step belongs to a sequence that is active and sound at the end."""
    sequence: dict[str, int]
    """Sequence id by step trigger."""
    windows: dict[str, tuple[Window, ...]]
    """The send windows that ever held for a step, by its trigger; none for one that was ever free of them."""
    times: dict[str, tuple[TimeOfDay, ...]]
    """The times of day likewise."""
    delays: dict[str, tuple[float, ...]]
    """In hours, those that ever held after a step."""

    least_late_us: NDArray[np.float64]
    """By step, the smallest lateness from which on it ever was to be skipped or shifted; infinite for none."""
    most_late_us: NDArray[np.float64]
    """The largest that ever was allowed."""

    @classmethod
    def of(cls, evidence: Evidence) -> Self:
        """The steps of ``evidence``'s catalogues."""
        index = {trigger: place for place, trigger in enumerate(evidence.triggers)}
        count = len(index) + 1
        following: dict[bytes, Int64s] = {}
        delay_h, entry = np.full(count, np.inf), np.zeros(count, np.bool_)
        sequence: dict[str, int] = {}
        windows: dict[str, dict[Window | None, None]] = {}
        least_h, most_h = np.full(count, np.inf), np.zeros(count)
        times: dict[str, dict[TimeOfDay | None, None]] = {}
        delays: dict[str, dict[float, None]] = {}
        for catalogue in (evidence.catalogue, *evidence.earlier):
            after = np.full(count, _ABSENT, np.int64)
            for trigger, step in catalogue.step.items():
                place = index[trigger]
                to = step.next_trigger
                after[place] = _END if to is None else index[to] if to in catalogue.step else _ELSEWHERE
                delay_h[place] = min(delay_h[place], least_delay_h(step, catalogue.step.get(to or "")))
                entry[place] |= step.is_entry
                late_h = catalogue.max_lateness_h[catalogue.index[trigger]]
                least_h[place], most_h[place] = min(least_h[place], late_h), max(most_h[place], late_h)
                sequence.setdefault(trigger, catalogue.sequence_of[trigger].id or 0)
                windows.setdefault(trigger, {})[catalogue.window_of(trigger)] = None
                clock = catalogue.sequence_of[trigger].clock
                times.setdefault(trigger, {})[None if step.at is None else TimeOfDay(step.at, clock)] = None
                delays.setdefault(trigger, {})[step.delay_h] = None
            following.setdefault(after.tobytes(), after)
        usable = np.zeros(count, np.bool_)
        for trigger, owner in evidence.catalogue.sequence_of.items():
            usable[index[trigger]] = owner.id in evidence.catalogue.usable
        delay_us = np.rint(np.where(np.isinf(delay_h), 0, delay_h) * evidence.hour_s * 1e6).astype(np.int64)
        most_h[-1] = np.inf
        late_us = (part * evidence.hour_s * 1e6 for part in (least_h, most_h))
        return cls(
            index,
            list(following.values()),
            delay_us,
            entry,
            usable,
            sequence,
            _always(windows),
            _always(times),
            {trigger: tuple(held) for trigger, held in delays.items()},
            *late_us,
        )

    def follows(self, step: Indices, next_step: Indices) -> NDArray[np.bool_]:
        """Whether some version led from ``step`` to ``next_step``."""
        found = np.zeros(len(step), np.bool_)
        for after in self.following:
            found |= after[step] == next_step
        return found & (next_step >= 0)

    def ends(self, step: Indices) -> NDArray[np.bool_]:
        """Whether ``step`` was the last one in some version."""
        found = np.zeros(len(step), np.bool_)
        for after in self.following:
            found |= after[step] == _END
        return found


def _always(held: Mapping[str, Mapping[T | None, None]]) -> dict[str, tuple[T, ...]]:
    """What held for each step, of those that were never without."""
    return {
        trigger: tuple(each for each in those if each is not None)
        for trigger, those in held.items()
        if None not in those
    }
