"""Columnar batches between services and stores: slots to fill, leases that ended, ends of attempts, usage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from dispatcher.core.batches import Columns, Int32s, Int64s


@dataclass(frozen=True, slots=True)
class Want:
    """The slots a claim may fill: for each device its first slots go to its longest overdue enrolments."""

    shard: int
    epoch: int
    device_id: list[UUID]
    number: Int32s
    slots: Int32s
    """How many slots each device has."""
    slot_us: Int64s
    """All slots, device after device, ascending within one."""
    since_us: Int64s
    """For each device, before when nothing that may be claimed is due: the search begins there."""


@dataclass(frozen=True, slots=True)
class EndedLeases(Columns):
    """Leases without an outcome: over time, or of an incarnation that was superseded."""

    enrolment: Int64s
    token: Int64s
    visit: Int32s
    generation: Int32s
    retries: Int32s
    epoch: Int64s
    """What the lease was made under."""
    shard: Int32s
    """Whose epoch that is; -1 where it is superseded."""
    deadline_us: Int64s
    idempotent: NDArray[np.bool_]
    handed: NDArray[np.bool_]
    """Superseded only: whether the hand-over was recorded. Without a record nothing can have left."""
    text: list[str | None]
    """What was handed over; None where nothing was."""
    media_url: list[str | None]

    @property
    def superseded(self) -> NDArray[np.bool_]:
        """Whether the incarnation that leased it has been superseded."""
        return self.shard < 0


@dataclass(frozen=True, slots=True)
class Ends(Columns):
    """Attempts that have ended, with all the ledger needs in case their lease is gone by now."""

    enrolment: Int64s
    token: Int64s
    lead: Int64s
    visit: Int32s
    generation: Int32s
    attempt: Int32s
    device: Int32s
    slot_us: Int64s
    due_us: Int64s
    at_us: Int64s
    step: Sequence[str]
    key: list[bytes]
    """Idempotency keys, 16 bytes each."""
    outcome: Sequence[str]
    message_id: Sequence[str | None]
    error: Sequence[str | None]
    next_trigger: Sequence[str | None]
    """Accepted: the step that follows, None after the last one."""
    next_due_us: Int64s
    """Accepted: when that step is due. Otherwise: when the enrolment is due again."""
    next: Sequence[str]
    """Otherwise: waiting, failed, stopped or in_doubt."""
    counted: Int32s
    """Otherwise: 1 where the failure counts."""
    pinned: NDArray[np.bool_]
    """Otherwise: waiting for a resend from the same device."""
    handed: NDArray[np.bool_]
    """Whether it was handed over. One that was not leaves no trace once its lease has gone to somebody else."""
    text: Sequence[str | None]
    """In doubt: what was handed over, for a resend byte for byte. Otherwise None."""
    media_url: Sequence[str | None]


class Usage(NamedTuple):
    """A device's reserved moments."""

    number: int
    at_us: Int64s
