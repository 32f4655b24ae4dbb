"""A gateway that accepts every message at once, at its slot."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping

import numpy as np

from dispatcher.core.batches import Int64s, Outcomes, Outgoing
from dispatcher.core.fleet import Gateway
from dispatcher.core.outcomes import Outcome


def accepted(slot_us: Int64s) -> Outcomes:
    """Every row accepted at its slot."""
    rows = len(slot_us)
    ids: list[str | None] = [f"m{row}" for row in range(rows)]
    outcome = np.full(rows, int(Outcome.ACCEPTED), np.int8)
    return Outcomes(np.arange(rows), outcome, slot_us, ids, [None] * rows, np.full(rows, np.nan))


class Accepting:
    """The ``Sender`` port to a gateway that accepts everything at its slot."""

    async def send(self, batch: Outgoing) -> AsyncIterator[Outcomes]:
        """All at once."""
        yield accepted(batch.slot_us)

    def update(self, gateways: Mapping[int, Gateway]) -> None:
        """There is one gateway."""

    async def close(self) -> None:
        """Nothing is kept open."""
