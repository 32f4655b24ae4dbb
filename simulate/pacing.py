"""How the devices of a rehearsal spread their messages over an hour."""

from __future__ import annotations

from enum import StrEnum

from dispatcher.config import Settings
from dispatcher.core.moments import SECOND_US, span_us


class Pacing(StrEnum):
    """What the gap between two messages of a device is."""

    BURST = "burst"
    """A device's default: the hour is spent within minutes, then the rolling window is waited for."""
    EVEN = "even"
    """The hour divided by its quota: the window is never waited for."""

    def gap_s(self, quota_per_hour: int, quota_per_day: int, settings: Settings) -> float | None:
        """Seconds between two messages of a device with these quotas; None for the default."""
        limit = min(quota_per_hour, quota_per_day)
        if self is Pacing.BURST or not limit:
            return None
        # Rounded up to the microsecond slots are counted in: the window, guard included, is over by the next one.
        return -(-(settings.hours_us(1) + span_us(settings.guard_s)) // limit) / SECOND_US
