"""Draws that depend on nothing but their labels: the same on every Python, in whatever order things happen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from dispatcher.core.backoff import text_key

_GAMMA = 0x9E3779B97F4A7C15
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB
_MASK = 2**64 - 1
_UNIT = 2.0**-53
T = TypeVar("T")


def _mixed(state: int) -> int:
    state = ((state ^ (state >> 30)) * _FIRST) & _MASK
    state = ((state ^ (state >> 27)) * _SECOND) & _MASK
    return state ^ (state >> 31)


class Dice:
    """A stream of draws (splitmix64) of its own for every purpose.

    Args:
        labels: what the draws are for; the seed first.
    """

    __slots__ = ("_origin", "_state")

    def __init__(self, *labels: int | str) -> None:
        state = 0
        for label in labels:
            state = _mixed((state + _GAMMA) & _MASK ^ (text_key(label) if isinstance(label, str) else label) & _MASK)
        self._origin = self._state = state

    def of(self, *labels: int | str) -> Dice:
        """Dice for a part of this purpose; what was drawn here before has no influence."""
        return Dice(self._origin, *labels)

    def uniform(self) -> float:
        """In [0, 1)."""
        self._state = (self._state + _GAMMA) & _MASK
        return (_mixed(self._state) >> 11) * _UNIT

    def chance(self, share: float) -> bool:
        """True in ``share`` of all cases."""
        return self.uniform() < share

    def between(self, least: float, most: float) -> float:
        """In [``least``, ``most``), to the microsecond."""
        return round(least + self.uniform() * (most - least), 6)

    def whole(self, least: int, most: int) -> int:
        """In ``least`` … ``most``, both included."""
        return least + int(self.uniform() * (most - least + 1))

    def pick(self, choices: Sequence[T]) -> T:
        """One of ``choices``."""
        return choices[int(self.uniform() * len(choices))]
