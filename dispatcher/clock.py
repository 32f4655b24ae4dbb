"""Business time in production: the database's clock at the last renewal plus local monotonic time."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

from dispatcher.core.moments import span_us

READINGS = 5
"""How often a new clock reads before it is used."""


class DatabaseClock:
    """Follows the database's clock without ever going back.

    A renewal that disagrees by more than ``skew_s`` suspends the clock's owner until two renewals in a row agree.

    Args:
        skew_s: how far a renewal may be off.
    """

    def __init__(self, skew_s: float) -> None:
        self._skew_us = span_us(skew_s)
        self._offset_us: int | None = None
        self._last_us = 0
        self._agreements = 0

    async def follow(self, read: Callable[[], Awaitable[int]], readings: int = 1) -> None:
        """Observe the database's clock as ``read`` returns it; of several readings the quickest decides."""
        for _ in range(readings):
            begun_ns = time.monotonic_ns()
            wall_us = await read()
            self.observe(wall_us, (time.monotonic_ns() - begun_ns) // 1000)

    def observe(self, wall_us: int, took_us: int = 0) -> None:
        """Take the database's clock, in microseconds, as it was read at some moment of the last ``took_us``.

        A slow answer is no disagreement: any reading within its time that fits the clock so far confirms it.
        """
        least_us = wall_us - time.monotonic_ns() // 1000
        if self._offset_us is None:
            self._offset_us, self._agreements = least_us, 2
            return
        offset_us = min(max(self._offset_us, least_us), least_us + took_us)
        agrees = abs(offset_us - self._offset_us) <= self._skew_us
        self._agreements = self._agreements + 1 if agrees else 0
        self._offset_us = offset_us

    @property
    def trusted(self) -> bool:
        """Whether the last two renewals agreed; nothing may be offered or handed over before."""
        return self._agreements >= 2

    def now_us(self) -> int:
        """Business time in microseconds; never goes back."""
        if self._offset_us is None:
            raise RuntimeError("the clock has not been set yet")
        self._last_us = max(self._last_us, time.monotonic_ns() // 1000 + self._offset_us)
        return self._last_us
