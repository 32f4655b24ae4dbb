"""How the devices of a rehearsal spread their messages over an hour."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum

from dispatcher.config import Settings
from dispatcher.core.moments import SECOND_US, span_us
from simulate.population import DeviceGroup


class Pacing(StrEnum):
    """What the gap between two messages of a device is."""

    BURST = "burst"
    """A device's own gap: the hour is spent within minutes, then the rolling window is waited for."""
    EVEN = "even"
    """The hour divided by its quota: the window is never waited for."""

    def paced(self, group: DeviceGroup, settings: Settings) -> DeviceGroup:
        """The devices with the gap that this pacing wants."""
        limit = min(group.quota_per_hour, group.quota_per_day)
        if self is Pacing.BURST or not limit:
            return group
        # Rounded up to the microsecond slots are counted in: the window, guard included, is over by the next one.
        gap_us = -(-(settings.hours_us(1) + span_us(settings.guard_s)) // limit)
        return replace(group, min_gap_s=gap_us / SECOND_US)
