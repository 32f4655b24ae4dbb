"""The most recent reserved times of many devices: one ring a device, all of one length, in one matrix.

A row holds its times in ascending order from its oldest entry on, wrapping round; entries not yet used are
``LONG_AGO``. So "the n-th newest time" is one gather, for any number of devices, and needs no count.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from dispatcher.core.batches import Indices, Int64s
from dispatcher.core.moments import NEVER_US

LONG_AGO: Final = -NEVER_US
"""Before every real moment: what stands where a device has reserved nothing yet."""


def ranges(start: Indices, counts: Indices) -> Indices:
    """The ranges ``start[i] … start[i] + counts[i] - 1``, one after the other."""
    before = np.cumsum(counts) - counts
    return np.repeat(start - before, counts) + np.arange(int(counts.sum()))


class Rings:
    """``rows`` rings of ``length`` times each; a full ring forgets its oldest time for a new one."""

    def __init__(self, rows: int, length: int) -> None:
        self._times = np.full((rows, length), LONG_AGO, np.int64)
        self._next = np.zeros(rows, np.intp)  # where a row's newest time will be followed; its oldest stands there

    def __len__(self) -> int:
        return len(self._times)

    @property
    def length(self) -> int:
        """How many times each row can hold."""
        return self._times.shape[1]

    def nth_newest(self, rows: Indices, n: Int64s) -> Int64s:
        """The ``n``-th newest time of each row, ``LONG_AGO`` where it has fewer.

        ``n`` has shape (rows,) or (rows, columns) and lies within 1..length.
        """
        start = self._next[rows]
        if n.ndim == 2:
            rows, start = rows[:, None], start[:, None]
        times: Int64s = self._times[rows, start - n]  # a negative place counts from the row's end: the wrap
        return times

    def extend(self, rows: Indices, counts: Indices, times_us: Int64s) -> None:
        """Add ``counts`` times to each of the distinct ``rows``, ascending, none before the row's newest."""
        start = self._next[rows]
        # Where a row gets more times than it holds, a place repeats and the last one written stays.
        self._times[np.repeat(rows, counts), ranges(start, counts) % self.length] = times_us
        self._next[rows] = (start + counts) % self.length

    def replace(self, row: int, old_us: int, new_us: int) -> bool:
        """Put ``new_us`` (``LONG_AGO``: nothing) in place of one ``old_us``; False when the row has none."""
        times = self._ascending(row)
        place = int(np.searchsorted(times, old_us))
        if place == self.length or times[place] != old_us:
            return False
        times[place] = new_us
        times.sort()
        self._rewrite(row, times)
        return True

    def merge(self, row: int, times_us: Int64s, keep_after_us: int) -> None:
        """Add times in any order; every ring grows when this row would forget one after ``keep_after_us``."""
        times = np.concatenate((self._ascending(row), times_us))
        times.sort()
        self.lengthen(int(np.count_nonzero(times > keep_after_us)))
        self._rewrite(row, times[-self.length :])

    def lengthen(self, length: int) -> None:
        """Make room for ``length`` times a row; never shortens."""
        more = length - self.length
        if more <= 0:
            return
        oldest_first = self._next[:, None] + np.arange(self.length)
        oldest_first %= self.length
        kept = np.take_along_axis(self._times, oldest_first, axis=1)
        self._times = np.pad(kept, ((0, 0), (more, 0)), constant_values=LONG_AGO)
        self._next[:] = 0

    def add_rows(self, rows: int) -> None:
        """Append ``rows`` empty rings."""
        self._times = np.pad(self._times, ((0, rows), (0, 0)), constant_values=LONG_AGO)
        self._next = np.pad(self._next, (0, rows))

    def reorder(self, order: Indices) -> None:
        """Row ``order[i]`` becomes row ``i``."""
        self._times, self._next = self._times[order], self._next[order]

    def count_after(self, moment_us: int) -> NDArray[np.int64]:
        """How many of each row's times are later than ``moment_us``: a binary search in all rows at once."""
        rows = np.arange(len(self))
        count = np.zeros(len(self), np.int64)
        step = 1 << (self.length.bit_length() - 1)
        while step:
            farther = count + step
            inside = farther <= self.length
            later = self.nth_newest(rows, np.where(inside, farther, 1)) > moment_us
            count = np.where(inside & later, farther, count)
            step >>= 1
        return count

    def _ascending(self, row: int) -> Int64s:
        return np.roll(self._times[row], -int(self._next[row]))

    def _rewrite(self, row: int, times_us: Int64s) -> None:
        self._times[row] = times_us
        self._next[row] = 0
