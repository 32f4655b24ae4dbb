"""How long a counted failure waits, and random draws that depend only on what they are for.

A draw is hashed from the run's seed and the keys of the thing it decides (splitmix64 over one key after the
other), so the same seed gives the same draws in whatever order, batch or process they are made.
"""

from __future__ import annotations

import hashlib
from typing import Final

import numpy as np
from numpy.typing import NDArray

from dispatcher.core.batches import Int64s

_GAMMA: Final = 0x9E3779B97F4A7C15
_FIRST: Final = 0xBF58476D1CE4E5B9
_SECOND: Final = 0x94D049BB133111EB
_MASK: Final = 2**64 - 1
_UNIT: Final = 2.0**-53
_GROWTH: Final = 7.0
"""A minute, an hour and most of a working day apart: with the defaults five attempts span about six hours."""
_FACTORS: Final = tuple(_GROWTH**step for step in range(101))
"""Up to far beyond every cap, far below overflow."""


def delay_s(retry: int, uniform: float, base_s: float, cap_s: float) -> float:
    """Seconds to wait after the ``retry``-th counted failure (the first is 1).

    Between half and all of ``base_s``, seven times as long with every further failure, at most ``cap_s``; ``uniform``
    in [0, 1) says where between, so that what failed together does not come back together.
    """
    whole = min(cap_s, base_s * _FACTORS[min(retry, len(_FACTORS)) - 1])
    return whole * (0.5 + 0.5 * uniform)


def delays_s(
    retry: NDArray[np.integer], uniform: NDArray[np.float64], base_s: float, cap_s: float
) -> NDArray[np.float64]:
    """``delay_s`` of every row."""
    factors = np.array(_FACTORS)[np.minimum(retry, len(_FACTORS)) - 1]
    waits: NDArray[np.float64] = np.minimum(cap_s, base_s * factors) * (0.5 + 0.5 * uniform)
    return waits


def text_key(text: str) -> int:
    """A text as a key for draws: 64 bits, the same in every process, signed like an ``int64`` column."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def draw(seed: int, *keys: int) -> float:
    """The draw in [0, 1) that belongs to ``seed`` and ``keys``, in that order."""
    state = _mix(seed)
    for key in keys:
        state = _mix(state ^ key)
    return (state >> 11) * _UNIT


def uniform(seed: int, first: Int64s, *more: Int64s) -> NDArray[np.float64]:
    """``draw`` of every row: the columns, of equal length, hold its keys in order."""
    state = np.full(len(first), _mix(seed), np.uint64)
    for column in (first, *more):
        state ^= column.astype(np.int64).view(np.uint64)
        state += np.uint64(_GAMMA)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(_FIRST)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(_SECOND)
        state ^= state >> np.uint64(31)
    return (state >> np.uint64(11)).astype(np.float64) * _UNIT


def _mix(state: int) -> int:
    """One step of splitmix64."""
    state = (state + _GAMMA) & _MASK
    state = ((state ^ (state >> 30)) * _FIRST) & _MASK
    state = ((state ^ (state >> 27)) * _SECOND) & _MASK
    return state ^ (state >> 31)
