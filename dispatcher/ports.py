"""What the services need from outside, each narrow enough that its in-memory twin is boring."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from dispatcher.core.batches import Outcomes, Outgoing


class Clock(Protocol):
    """Business time. Live it follows the database's clock; in a rehearsal the driver owns it."""

    def now_us(self) -> int:
        """The current business time in microseconds; never goes back."""


class Sender(Protocol):
    """Hands messages over. Answers are values: only a bug raises."""

    def send(self, batch: Outgoing) -> AsyncIterator[Outcomes]:
        """Hand over every message of ``batch`` and yield outcomes as they become known, each row exactly once.

        No message leaves after its ``deadline_us``; every row that is not proven otherwise is ``IN_DOUBT``.
        """

    async def close(self) -> None:
        """Give up connections; messages already handed over stay handed over."""
