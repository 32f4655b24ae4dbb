"""Virtual time in buckets of one width: where moments fall, and how much of spans lies in each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from dispatcher.core.batches import Indices, Int64s
from simulate.frame import Frame
from simulate.waits import by_device

_BUCKETS: Final = 800
"""About as many as a chart has pixels for."""
_HOURS: Final = (1, 2, 3, 4, 6, 8, 12, 24, 48, 72, 168, 336)
_FRACTIONS: Final = (60, 30, 12, 6, 4, 2)


@dataclass(frozen=True, slots=True)
class Axis:
    """``count`` buckets of ``width_us`` from ``start_us`` on; the last one may reach beyond the end."""

    start_us: int
    end_us: int
    width_us: int

    @classmethod
    def hours(cls, frame: Frame) -> Self:
        """Whole hours: one, or as few as keep the buckets below some 800."""
        return cls._widest(frame, [frame.hour_us * hours for hours in _HOURS])

    @classmethod
    def fine(cls, frame: Frame) -> Self:
        """Parts of an hour where there is room for them: a minute at least."""
        return cls._widest(
            frame, [*(frame.hour_us // parts for parts in _FRACTIONS), *(frame.hour_us * hours for hours in _HOURS)]
        )

    @classmethod
    def _widest(cls, frame: Frame, widths_us: Sequence[int]) -> Self:
        span_us = max(frame.end_us - frame.start_us, 1)
        width_us = next((width for width in widths_us if span_us <= width * _BUCKETS), -(-span_us // _BUCKETS))
        return cls(frame.start_us, frame.start_us + span_us, width_us)

    @property
    def count(self) -> int:
        """How many buckets there are."""
        return -(-(self.end_us - self.start_us) // self.width_us)

    @property
    def edges_us(self) -> Int64s:
        """Where the buckets begin."""
        return self.start_us + self.width_us * np.arange(self.count, dtype=np.int64)

    @property
    def spans_us(self) -> Int64s:
        """How much of the run lies in each bucket: its width, but for the last."""
        return np.asarray(np.minimum(self.end_us - self.edges_us, self.width_us))

    def place(self, moments_us: Int64s) -> Indices:
        """The bucket of each moment; what lies outside goes to the first or the last."""
        bucket = (moments_us - self.start_us) // self.width_us
        return np.asarray(np.clip(bucket, 0, self.count - 1))

    def counts(self, moments_us: Int64s) -> Indices:
        """How many moments fall into each bucket."""
        return np.bincount(self.place(moments_us), minlength=self.count)

    def covered(self, since_us: Int64s, until_us: Int64s) -> Int64s:
        """The microseconds of all spans [since, until) together that lie in each bucket, exact."""
        since_us, until_us = (np.clip(part, self.start_us, self.end_us) for part in (since_us, until_us))
        since, until = self.place(since_us), self.place(until_us)
        ends_us = self.edges_us + self.width_us
        within = np.bincount(since, ends_us[since] - since_us, self.count)
        beyond = np.bincount(until, ends_us[until] - until_us, self.count)
        opened = np.cumsum(np.bincount(since, minlength=self.count) - np.bincount(until, minlength=self.count))
        running = np.concatenate([[0], opened[:-1]]) * self.width_us
        return np.asarray(np.rint(within - beyond).astype(np.int64) + running)


def quantiles(bucket: Indices, values: Int64s, count: int, shares: Sequence[float]) -> NDArray[np.float64]:
    """The nearest-rank quantiles of the values in each bucket; NaN in empty ones.

    Args:
        bucket: of each value.
        values: not negative.
        count: how many buckets there are.
        shares: which quantiles, 1.0 for the largest.

    Returns shape (shares, count).
    """
    values = values[by_device(bucket, values)]
    found = np.bincount(bucket, minlength=count)
    first = np.cumsum(found) - found
    result = np.full((len(shares), count), np.nan)
    some = found > 0
    for line, share in zip(result, shares, strict=True):
        rank = np.maximum(np.ceil(found[some] * share).astype(np.int64), 1) - 1
        line[some] = values[first[some] + rank]
    return result
