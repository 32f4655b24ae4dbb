"""Both kinds of time. Liveness time is the event loop's clock, which is monotonic in production.

Business time in production is the database's clock at the last renewal plus liveness time.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from dispatcher.core.moments import SECOND_US, span_us
from dispatcher.errors import StoreUnavailableError

_log = logging.getLogger(__name__)
READINGS = 5
"""How often a new clock reads before it is used."""


def liveness_s() -> float:
    """Liveness time in seconds from an arbitrary moment: what trust, leadership and time-outs are counted in.

    Raises:
        RuntimeError: no event loop is running.
    """
    return asyncio.get_running_loop().time()


def _liveness_us() -> int:
    return span_us(liveness_s())


def _machine_us() -> int:
    return time.time_ns() // 1000


class DatabaseClock:
    """Follows the database's clock without ever going back, as long as the machine's own clock bears it out.

    Of two clocks that disagree either may be wrong, and windows counted by a wrong one are none: the clock's owner is
    suspended until they agree again. It is too after a renewal that is off by more than ``skew_s`` from the one before,
    until two in a row agree.

    Args:
        skew_s: how far a renewal, or the machine's clock, may be off.
        machine_us: the machine's clock, in microseconds since 1970.
    """

    def __init__(self, skew_s: float, machine_us: Callable[[], int] = _machine_us) -> None:
        self._skew_us, self._machine_us = span_us(skew_s), machine_us
        self._offset_us: int | None = None
        self._last_us = 0
        self._agreements = 0

    async def follow(self, read: Callable[[], Awaitable[int]], readings: int = 1) -> None:
        """Observe the database's clock as ``read`` returns it; of several readings the quickest decides.

        Raises:
            StoreUnavailableError: this is the first time, and the machine's clock says something else.
        """
        for _ in range(readings):
            begun_us = _liveness_us()
            wall_us = await read()
            self.observe(wall_us, _liveness_us() - begun_us)
        if self._offset_us is None:
            raise StoreUnavailableError("the clocks of the database and of this machine differ: set them right")

    def observe(self, wall_us: int, took_us: int = 0) -> None:
        """Take the database's clock, in microseconds, as it was read at some moment of the last ``took_us``.

        A slow answer is no disagreement: any reading within its time that fits the clock so far confirms it.
        """
        ahead_us = wall_us - self._machine_us()
        if not -took_us - self._skew_us <= ahead_us <= self._skew_us:
            seconds = ahead_us / SECOND_US
            _log.warning(
                "the database's clock is %+.1f s off this machine's: nothing leaves until they agree",
                seconds,
                extra={"event": "clock_off"},
            )
            self._agreements = 0
            return
        least_us = wall_us - _liveness_us()
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
        self._last_us = max(self._last_us, _liveness_us() + self._offset_us)
        return self._last_us
