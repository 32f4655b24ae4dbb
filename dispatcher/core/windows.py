"""Send windows: when messages may reach a lead, by the clock on the lead's wall.

A moment is inside a window when a clock in the lead's zone shows a time of day from ``opens`` on and before
``closes``, counted from an opening on one of ``days``. Nothing else is said about changes of clocks, and nothing else
is needed: a time that clocks jump over does not come - a window that would have opened then opens as they jump, one
that lies in the gap stays shut that day - and a time that they show twice is inside both times.
On a blackout nothing leaves: a window is shut for as long as the clock shows one of its days.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, time
from functools import lru_cache
from typing import Final
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

from dispatcher.core.batches import Coded, Indices, Int64s
from dispatcher.core.moments import SECOND_US, to_datetime

DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
MIN_OPEN_S: Final = 900
"""A window is open for at least so long: a message needs a slot, and time to arrive in."""

DAY_US: Final = 86_400 * SECOND_US
BLOCK_DAYS: Final = 256
BLOCK_US: Final = BLOCK_DAYS * DAY_US
"""Openings are worked out for so long at a time."""
_BEYOND_US: Final = 30 * DAY_US
"""And for so long beyond: a weekly window may lose an opening to a change of clocks."""
_PROBE_US: Final = DAY_US // 2
"""No zone changes its clocks twice within so long."""
_THURSDAY: Final = 3
"""The weekday of day 0."""
_DAY_0: Final = date(1970, 1, 1).toordinal()


@dataclass(frozen=True, slots=True, order=True, repr=False)
class Blackout:
    """Whole days, by the lead's clock, on which nothing leaves."""

    first: date
    last: date
    """Itself among them."""

    def __repr__(self) -> str:
        return f"{self.first}" if self.first == self.last else f"{self.first} to {self.last}"

    @property
    def days(self) -> int:
        """How many."""
        return (self.last - self.first).days + 1


@dataclass(frozen=True, slots=True, repr=False)
class Window:
    """A sequence's send window. ``closes`` at or before ``opens`` is the next day's."""

    opens: time
    closes: time
    time_zone: str
    """IANA name, for leads whose own zone is unknown."""
    days: tuple[str, ...] = DAYS
    """Those of ``DAYS`` on which it opens."""
    blackouts: tuple[Blackout, ...] = ()

    def __repr__(self) -> str:
        days = "" if self.days == DAYS else f" {','.join(self.days)}"
        shut = f" but for {', '.join(map(str, self.blackouts))}" if self.blackouts else ""
        return f"{self.opens:%H:%M}-{self.closes:%H:%M}{days}{shut} ({self.time_zone})"

    @property
    def length_us(self) -> int:
        """How long it is open at a time, where no clock is changed."""
        return (of_day_us(self.closes) - of_day_us(self.opens)) % DAY_US or DAY_US

    def zone_of(self, time_zone: str | None) -> str:
        """The zone that counts for a lead with ``time_zone``: the window's own where that is missing or unknown."""
        return known_zone(time_zone, self.time_zone)

    def holds(self, at: time) -> bool:
        """Whether each opening that nothing cuts short has a time of day, and ``MIN_OPEN_S`` more."""
        return (of_day_us(at) - of_day_us(self.opens)) % DAY_US + MIN_OPEN_S * SECOND_US <= self.length_us

    def first_open(self, time_zone: str | None, moment_us: int, span_us: int = 0) -> int:
        """``next_open`` of one moment, for a lead with ``time_zone``."""
        return int(next_open(np.array([moment_us]), self.zone_of(time_zone), self, span_us)[0])


@lru_cache(maxsize=4096)
def is_zone(name: str) -> bool:
    """Whether there is an IANA time zone of this name."""
    try:
        ZoneInfo(name)
    except (ValueError, OSError, KeyError):
        return False
    return True


def known_zone(time_zone: str | None, otherwise: str) -> str:
    """The zone that counts for a lead with ``time_zone``: ``otherwise`` where that is missing or unknown."""
    return time_zone if time_zone is not None and is_zone(time_zone) else otherwise


def next_open(moment_us: Int64s, zone: str, window: Window, span_us: int = 0) -> Int64s:
    """The first moment, from each on, at which ``window`` is open in ``zone``, and stays so for more than ``span_us``.

    ``span_us`` is less than ``MIN_OPEN_S``. A moment at which it is so is returned as it is.
    """
    found = moment_us.copy()
    rows = np.arange(len(moment_us))
    block = moment_us // BLOCK_US
    while len(rows):
        shut = np.zeros(len(rows), np.bool_)
        for number in np.unique(block).tolist():
            these = np.flatnonzero(block == number)
            opens_us, closes_us = _openings(window, zone, number)
            long = closes_us - opens_us > span_us  # a change of clocks may have left little of one
            opens_us, closes_us = opens_us[long], closes_us[long]
            place = np.searchsorted(closes_us, found[rows[these]] + span_us, side="right")
            shut[these] = beyond = place == len(opens_us)
            opened = rows[these[~beyond]]
            found[opened] = np.maximum(found[opened], opens_us[place[~beyond]])
        # Blackouts may reach beyond what was worked out.
        rows, block = rows[shut], block[shut] + 1
    return found


def next_shut(moment_us: int, zone: str, window: Window, span_us: int = 0) -> int:
    """The first moment, from a moment on, at which ``window`` is not open in ``zone`` for more than ``span_us``."""
    opens_us, closes_us = _openings(window, zone, moment_us // BLOCK_US)
    place = int(np.searchsorted(closes_us, moment_us + span_us, side="right"))
    return moment_us if (opens_us[place:] > moment_us).all() else int(closes_us[place]) - span_us


def next_open_of(
    windows: Sequence[Window], which: Indices, time_zone: Coded[str | None], moment_us: Int64s, span_us: int = 0
) -> Int64s:
    """``next_open`` of every row: in the window ``which`` counts, for a lead with ``time_zone``; -1: as it is."""
    found = moment_us.copy()
    for number, zone, rows in by_zone(which, time_zone, [window.time_zone for window in windows]):
        found[rows] = next_open(moment_us[rows], zone, windows[number], span_us)
    return found


def by_zone(
    which: Indices, time_zone: Coded[str | None], otherwise: Sequence[str]
) -> Iterator[tuple[int, str, Indices]]:
    """Rows with the same ``which`` and the same zone, ``otherwise[which]`` where theirs is unknown; none with -1."""
    for number in np.unique(which[which >= 0]).tolist():
        mine = np.flatnonzero(which == number)
        zone = Coded.of([known_zone(name, otherwise[number]) for name in time_zone.values])
        code = zone.code[time_zone.code[mine]]
        for place in np.unique(code).tolist():
            yield number, zone.values[place], mine[code == place]


@lru_cache(maxsize=4096)
def _openings(window: Window, zone: str, block: int) -> tuple[Int64s, Int64s]:
    """When the window opens and closes from the beginning of a block to well beyond its end, in order."""
    since_us, offset_us = offsets(zone, block)
    opens, closes = [], []
    for from_us, to_us, offset in zip(since_us[:-1].tolist(), since_us[1:].tolist(), offset_us.tolist(), strict=True):
        day = np.arange((from_us + offset) // DAY_US - 1, (to_us + offset) // DAY_US + 1)
        day = day[np.isin((day + _THURSDAY) % 7, [DAYS.index(name) for name in window.days])]
        opens_us = day * DAY_US + of_day_us(window.opens) - offset
        closes_us = opens_us + window.length_us
        for blackout in window.blackouts:
            # What is left before its first midnight, and after its last one.
            first_us = (blackout.first.toordinal() - _DAY_0) * DAY_US - offset
            closes_us = np.append(np.minimum(closes_us, first_us), closes_us)
            opens_us = np.append(opens_us, np.maximum(opens_us, first_us + blackout.days * DAY_US))
            some = closes_us > opens_us
            opens_us, closes_us = opens_us[some], closes_us[some]
        opens.append(np.clip(np.sort(opens_us), from_us, to_us))
        closes.append(np.clip(np.sort(closes_us), from_us, to_us))
    opens_us, closes_us = np.concatenate(opens), np.concatenate(closes)
    some = closes_us > opens_us
    opens_us, closes_us = opens_us[some], closes_us[some]
    # Where one ends as the next begins, at a change of clocks or at midnight, it never closed.
    apart: NDArray[np.bool_] = opens_us[1:] > closes_us[:-1]
    return np.append(opens_us[:1], opens_us[1:][apart]), np.append(closes_us[:-1][apart], closes_us[-1:])


@lru_cache(maxsize=4096)
def offsets(zone: str, block: int) -> tuple[Int64s, Int64s]:
    """Stretches of a block, and of what lies beyond, with one offset from UTC: their borders, and the offsets."""
    first_us, last_us = block * BLOCK_US - _PROBE_US, (block + 1) * BLOCK_US + _BEYOND_US
    info = ZoneInfo(zone)
    probes_us = np.append(np.arange(first_us, last_us, _PROBE_US), last_us).tolist()
    probed = [_offset_us(info, at_us) for at_us in probes_us]
    borders_us, found = [first_us], [probed[0]]
    for before_us, after_us, was, offset in zip(probes_us, probes_us[1:], probed, probed[1:], strict=False):
        if was == offset:
            continue
        while after_us - before_us > SECOND_US:
            middle_us = (before_us + after_us) // (2 * SECOND_US) * SECOND_US
            before_us, after_us = (
                (middle_us, after_us) if _offset_us(info, middle_us) == was else (before_us, middle_us)
            )
        borders_us.append(after_us)
        found.append(offset)
    return np.array([*borders_us, last_us], np.int64), np.array(found, np.int64)


def _offset_us(zone: ZoneInfo, at_us: int) -> int:
    offset = to_datetime(at_us).astimezone(zone).utcoffset()
    assert offset is not None, "a zone has an offset at every moment"
    return round(offset.total_seconds()) * SECOND_US


def of_day_us(at: time) -> int:
    """A time of day in microseconds since midnight."""
    return ((at.hour * 60 + at.minute) * 60 + at.second) * SECOND_US + at.microsecond
