"""How large a chaos run is, and how short its hours are: seconds, so that quotas bind and steps follow each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from dispatcher.core.graph import Sequence

SETTINGS: Final[Mapping[str, float]] = {
    "hour_s": 20.0,
    "deadline_s": 3.0,
    "skew_s": 1.0,
    "guard_s": 5.0,
    "lease_s": 20.0,
    "heartbeat_s": 0.7,
    "trust_s": 3.0,
    "leader_s": 4.0,
    "horizon_s": 2.0,
    "hung_s": 5.0,
    "cycle_s": 3.0,
    "retry_base_s": 1.0,
    "retry_cap_s": 8.0,
    "breaker_base_s": 0.5,
    "breaker_cap_s": 4.0,
    "retry_limit": 200,
    "resend_limit": 200,
}
"""Of the engine. The limits are out of reach: here everything a gateway can clear up has to come to a good end."""


@dataclass(frozen=True, slots=True)
class ChaosPlan:
    """What to run."""

    sequences: list[Sequence]
    seed: int
    devices: int = 30
    leads: int = 1500
    strikes: int = 30
    """Kills and cuts; half as many troubles that pass by themselves come on top."""
    only: tuple[str, ...] = ()
    """Faults that strike; all kinds, and Ray's own hooks, if none is named."""
    shards: int = 3
    idempotent: bool = True
    """Whether the gateway honours keys."""
    quota_per_hour: int = 60
    quota_per_day: int = 1440
    min_gap_s: float = 0.15

    @property
    def brisk(self) -> list[Sequence]:
        """The sequences with an hour between their steps."""
        return [
            replace(sequence, steps=tuple(replace(step, delay_h=1) for step in sequence.steps))
            for sequence in self.sequences
        ]

    @property
    def entries(self) -> list[str]:
        """The triggers leads may carry, sorted."""
        return sorted(step.trigger for sequence in self.sequences for step in sequence.steps if step.is_entry)

    @property
    def window_s(self) -> float:
        """How long a device takes, at least, for an hour's quota."""
        return SETTINGS["hour_s"] + SETTINGS["guard_s"]
