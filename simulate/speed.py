"""Virtual time beside the wall clock: as fast as life, some times faster, or as fast as the machine allows."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from dispatcher.core.moments import SECOND_US

_SHOW_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Kept:
    """How a pace was kept; seconds of wall time."""

    speed: float
    behind_most_s: float
    """How far the wall clock was ahead of virtual time at worst."""
    behind_s: float
    """And at the end."""


class Pace:
    """Lets no moment of virtual time begin before the wall clock has come so far.

    Args:
        speed: how many times faster than life.
        start_us: where virtual time starts.
        on_wait: called about every second while it waits, with the moment of virtual time that is reached.
    """

    def __init__(self, speed: float, start_us: int, on_wait: Callable[[int], None]) -> None:
        self._speed, self._start_us, self._on_wait = speed, start_us, on_wait
        self._begun_s = time.monotonic()
        self._most_s = self.behind_s = 0.0

    def begin(self) -> None:
        """Virtual time starts."""
        self._begun_s = time.monotonic()

    async def reach(self, moment_us: int) -> None:
        """Wait until the wall clock has reached this moment; notes by how much it was reached already."""
        span_s = (moment_us - self._start_us) / SECOND_US / self._speed
        left_s = self._begun_s + span_s - time.monotonic()
        self.behind_s = max(-left_s, 0.0)
        self._most_s = max(self._most_s, self.behind_s)
        while left_s > 0:
            await asyncio.sleep(min(left_s, _SHOW_S))
            left_s = self._begun_s + span_s - time.monotonic()
            if left_s > 0:
                self._on_wait(moment_us - round(left_s * self._speed * SECOND_US))

    def kept(self) -> Kept:
        """How it went."""
        return Kept(self._speed, round(self._most_s, 3), round(self.behind_s, 3))
