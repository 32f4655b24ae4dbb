"""Business time as integers: microseconds since 1970-01-01 UTC, and the borders to what people read."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

SECOND_US: Final = 1_000_000
NEVER_US: Final = 2**62
"""Later than every real moment; the due time of a device for which nothing waits."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def span_us(seconds: float) -> int:
    """A span of ``seconds`` in microseconds."""
    return round(seconds * SECOND_US)


def from_datetime(moment: datetime) -> int:
    """An aware ``datetime`` as microseconds; exact, unlike ``timestamp()``."""
    return (moment - _EPOCH) // timedelta(microseconds=1)


def to_datetime(moment_us: int) -> datetime:
    """The UTC ``datetime`` of ``moment_us``."""
    return _EPOCH + timedelta(microseconds=int(moment_us))
