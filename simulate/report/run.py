"""A finished run as the report looks at it: its attempts, and what still waited at its end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from dispatcher.core.batches import Columns, Indices, Int8s, Int64s
from dispatcher.core.outcomes import UNCHARGED, Outcome
from dispatcher.store.columns import moments
from simulate.evidence import NO_DUE, STATUSES, Evidence, stamps
from simulate.frame import Frame
from simulate.receipts import Receipts

_CHARGED: Final = np.array([outcome not in UNCHARGED for outcome in Outcome])


@dataclass(frozen=True, slots=True)
class Attempts(Columns):
    """The rows of the ledger, one entry an attempt."""

    row: Indices
    """The device's, in the fleet."""
    due_us: Int64s
    slot_us: Int64s
    outcome: Int8s
    """``Outcome``."""

    @property
    def accepted(self) -> NDArray[np.bool_]:
        """Which were accepted."""
        return np.asarray(self.outcome == Outcome.ACCEPTED)

    @property
    def charged(self) -> NDArray[np.bool_]:
        """Which count against their device's quotas."""
        return np.asarray(_CHARGED[self.outcome])


@dataclass(frozen=True, slots=True)
class Waiting(Columns):
    """What was due and had not left when the run ended, one entry an enrolment."""

    row: Indices
    due_us: Int64s


@dataclass(frozen=True)
class Run:
    """What every part of the report is made from."""

    frame: Frame
    receipts: Receipts
    evidence: Evidence
    figures: Mapping[str, Any]
    """What ``--json`` holds."""

    @cached_property
    def attempts(self) -> Attempts:
        """What the ledger says; attempts of devices that are gone are left out."""
        ledger = self.evidence.ledger
        outcome_of = np.array([0, *(Outcome[label.upper()] for label in self.evidence.outcomes)], np.int8)
        device = ledger["device"].astype(np.int32)
        known = np.flatnonzero(np.isin(device, self.frame.fleet.number))
        return Attempts(
            row=self.frame.fleet.rows(device[known]),
            due_us=self.evidence.ledger_us("due")[known],
            slot_us=self.evidence.ledger_us("reserved")[known],
            outcome=outcome_of[ledger["outcome"][known]],
        )

    @cached_property
    def waiting(self) -> Waiting:
        """Active enrolments with a home device whose message was due."""
        enrolments, fleet = self.evidence.enrolments, self.frame.fleet
        due = (enrolments["status"] == STATUSES.index("active") + 1) & (enrolments["due"] != NO_DUE)
        due &= enrolments["due"] < stamps(np.array([self.frame.end_us]))
        rows = enrolments[due & np.isin(enrolments["device"], fleet.number)]
        due_us = moments(np.ascontiguousarray(rows["due"]).tobytes())
        return Waiting(fleet.rows(rows["device"].astype(np.int32)), due_us)
