"""What devices have sent, or may have: the ledger and the leases of the twin in one snapshot."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final
from uuid import UUID

import numpy as np

from dispatcher.core.leases import Usage
from dispatcher.core.outcomes import CHARGED_LATE, UNCHARGED
from simulate.memory_store.database import MemoryDatabase
from simulate.memory_store.rows import Enrolment

_UNCHARGED: Final = frozenset(outcome.label for outcome in UNCHARGED)
_CHARGED_LATE: Final = frozenset(outcome.label for outcome in CHARGED_LATE)


def usage(
    database: MemoryDatabase, number_of: Mapping[UUID, int], leased: Iterable[Enrolment], since_us: int, *, late: bool
) -> list[Usage]:
    """Everything reserved after ``since_us`` for some devices.

    Args:
        number_of: their numbers by id.
        leased: leases that may be theirs.
        late: whether what is unknown, and what is leased, counts at its deadline instead of its slot.
    """
    used: dict[int, list[int]] = {}
    for attempt in database.ledger.rows:
        if attempt.device in number_of and attempt.slot_us > since_us and attempt.outcome not in _UNCHARGED:
            at_us = attempt.deadline_us if late and attempt.outcome in _CHARGED_LATE else attempt.slot_us
            used.setdefault(number_of[attempt.device], []).append(at_us)
    in_force = [seat.epoch for seat in database.epochs.values()]
    for row in leased:
        if row.device is None or row.device.id not in number_of:
            continue
        if row.epoch in in_force or database.said(row) is not None:
            used.setdefault(number_of[row.device.id], []).append(row.deadline_us if late else row.slot_us)
    return [Usage(number, np.array(used[number], np.int64)) for number in sorted(used)]
