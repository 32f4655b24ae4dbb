"""The schedule on arrays: when every message would leave, with no latency and no ticks.

On every home device the earliest due message leaves first, of equal ones that of the lower enrolment, at the first
moment its quotas, guard and pacing leave free (``timelines``); the next step is due its delay after that moment.
Nothing loops over messages or devices. The calendar is cut into stretches as long as the shortest delay: no message
of a stretch follows from another one of it, so each is placed at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dispatcher.core.batches import Columns, Indices, Int32s, Int64s
from dispatcher.core.fleet import Fleet
from dispatcher.core.moments import NEVER_US
from simulate.timelines import Limits, Timelines

_TOGETHER = 1 << 15
"""Enrolments that go through their calendar together, about: what the processor's cache holds."""


@dataclass(frozen=True, slots=True)
class Enrolments(Columns):
    """Who is to get messages: one entry an enrolment, ascending by its id."""

    device: Int32s
    """Home device numbers."""
    sequence: Int32s
    """Which of the chains each goes through."""
    due_us: Int64s
    """When the first message is due."""


@dataclass(frozen=True, slots=True)
class Schedule(Columns):
    """One entry a message, by enrolment, then step."""

    enrolment: Int32s
    """Its place among the enrolments."""
    step: Int32s
    """From 0."""
    due_us: Int64s
    """``NEVER_US`` behind a message that never leaves."""
    slot_us: Int64s
    """When it leaves; ``NEVER_US`` on a device whose quota is 0."""


def schedule(
    enrolments: Enrolments, chains: Sequence[Sequence[int]], fleet: Fleet, *, hour_us: int, guard_us: int
) -> Schedule:
    """When every message leaves; the same for the same input, to the microsecond.

    Args:
        chains: of each sequence, the delays between its messages in hours: one less than it has messages.
        fleet: quotas and pacing; every home device is in it. Whether one is available does not matter.
        hour_us: length of an hour.
        guard_us: how much longer the windows are.

    Raises:
        ValueError: a delay is not above 0.
    """
    if any(hours <= 0 for chain in chains for hours in chain):
        raise ValueError("a delay must be above 0")
    delay_us = np.array([hours * hour_us for chain in chains for hours in (*chain, 0)], np.int64)
    lengths = np.array([len(chain) + 1 for chain in chains], np.intp)
    steps = lengths[enrolments.sequence]
    first = np.cumsum(steps) - steps
    row = _rows(fleet, enrolments.device)
    limits = Limits.of(fleet, hour_us=hour_us, guard_us=guard_us)
    counts = np.bincount(row, steps, len(fleet)).astype(np.intp)
    calendar = _Calendar(delay_us, counts, limits)
    calendar.due_us[first] = enrolments.due_us
    entry = (np.cumsum(lengths) - lengths)[enrolments.sequence]
    for some in _groups(row, limits.per_hour > 0):
        calendar.run(_Messages(first[some], entry[some], row[some], enrolments.due_us[some]))
    enrolment = np.repeat(np.arange(len(enrolments), dtype=np.int32), steps)
    step = np.arange(len(enrolment), dtype=np.int32) - np.repeat(first.astype(np.int32), steps)
    return Schedule(enrolment, step, calendar.due_us, calendar.slot_us)


def _rows(fleet: Fleet, device: Int32s) -> Indices:
    """``fleet.rows``, without its search where the numbers have no gaps."""
    if len(fleet) and int(fleet.number[-1]) - int(fleet.number[0]) == len(fleet) - 1:
        return device.astype(np.intp) - int(fleet.number[0])
    return fleet.rows(device)


def _groups(row: Indices, able: NDArray[np.bool_]) -> list[Indices]:
    """Enrolments of the rows able to send, in groups; those of a row stay together."""
    counts = np.bincount(row, minlength=len(able))
    group = ((np.cumsum(counts) - counts) // _TOGETHER)[row]
    chosen = np.flatnonzero(able[row])
    chosen = chosen[np.argsort(group[chosen], kind="stable")]
    return np.split(chosen, np.flatnonzero(np.diff(group[chosen])) + 1)


@dataclass(frozen=True, slots=True)
class _Messages(Columns):
    """Messages that are going to be due."""

    message: Indices
    """Its place in the schedule."""
    link: Indices
    """Its place in the chains, one after the other."""
    row: Indices
    """Its device's, in the fleet."""
    due_us: Int64s


class _Calendar:
    """Places messages, stretch by stretch.

    Args:
        delay_us: of each link of all chains, until the next message is due; 0 for the last of a chain.
        counts: messages of each device.
        limits: of each device.
    """

    def __init__(self, delay_us: Int64s, counts: Indices, limits: Limits) -> None:
        self.due_us, self.slot_us = (np.full(int(counts.sum()), NEVER_US, np.int64) for _ in range(2))
        self._delay_us = delay_us
        self._timelines = Timelines(limits, counts)
        self._width_us = int(np.min(delay_us, where=delay_us > 0, initial=limits.day_window_us))
        self._begin_us = 0
        self._waiting: dict[int, list[_Messages]] = {}

    def run(self, first: _Messages) -> None:
        """Place the messages ``first``, of devices that have none yet, and all that follow from them."""
        self._begin_us = int(first.due_us.min(initial=NEVER_US))
        self._file(first)
        while self._waiting:
            stretch = min(self._waiting)
            due = self._in_order(_Messages.join(self._waiting.pop(stretch)), self._begin_us + stretch * self._width_us)
            slot_us = self._timelines.place(due.row, due.due_us)
            self.slot_us[due.message] = slot_us
            delay_us = self._delay_us[due.link]
            following = _Messages(due.message + 1, due.link + 1, due.row, slot_us + delay_us)
            following = following.take(np.flatnonzero(delay_us))
            self.due_us[following.message] = following.due_us
            self._file(following)

    def _file(self, messages: _Messages) -> None:
        """Put messages under the number of the stretch they are due in."""
        number = (messages.due_us - self._begin_us) // self._width_us
        if (number[1:] < number[:-1]).any():
            order = np.argsort(number, kind="stable")
            messages, number = messages.take(order), number[order]
        starts = np.flatnonzero(np.diff(number, prepend=-1))
        for start, end in zip(starts, [*starts[1:], len(number)], strict=False):
            self._waiting.setdefault(int(number[start]), []).append(messages.take(np.arange(start, end)))

    def _in_order(self, messages: _Messages, begin_us: int) -> _Messages:
        """Messages of the stretch that begins then: by device, then due moment, then enrolment."""
        key = messages.row * self._width_us + (messages.due_us - begin_us)
        if (key[1:] > key[:-1]).all():
            return messages
        order = np.argsort(key)
        ascending = key[order]
        if (ascending[1:] == ascending[:-1]).any():
            order = np.lexsort((messages.message, key))
        return messages.take(order)
