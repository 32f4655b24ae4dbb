"""What the services need from outside, each narrow enough that its in-memory twin is boring."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from enum import IntEnum
from typing import Protocol

from dispatcher.core.batches import DueSoon, Int8s, Int32s, Int64s, Leased, Outcomes, Outgoing, SlotOffer
from dispatcher.core.fleet import Gateway


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

    def update(self, gateways: Mapping[int, Gateway]) -> None:
        """Use these gateways, by device number, for what is handed over from now on."""

    async def close(self) -> None:
        """Give up connections; messages already handed over stay handed over."""


class Fate(IntEnum):
    """What a shard says of a lease that the rescuer asks about."""

    NEVER_SEEN = 0
    """It never was, and never will be, handed over: from now on the shard refuses it."""
    IN_HAND = 1
    """The shard has it: pending, handed over, or about to be written. Leave it alone."""


class Shards(Protocol):
    """The coordinator's way to its shards. Calls are hints: lost, doubled or late, they change latency only.

    Every method raises ``ShardUnavailableError`` when the shard does not answer in time.
    """

    async def offer(self, shard: int, now_us: int, horizon_us: int, devices: Int32s) -> SlotOffer:
        """The free slots of ``devices`` within the horizon, held until the delivery."""

    async def deliver(self, shard: int, offer: int, leased: Leased | None) -> DueSoon:
        """Route what was claimed for ``offer``, None when nothing was; returns what became due again meanwhile."""

    async def take_due(self, shard: int) -> DueSoon:
        """What became due again since the shard was asked last, and the devices with an attempt that has ended."""

    async def fate(self, shard: int, token: Int64s, enrolment: Int64s) -> Int8s:
        """``Fate`` of each lease, by the shard's live incarnation."""
