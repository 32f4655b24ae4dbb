"""What can be broken, and how often it was."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Literal, NamedTuple, Self

from dispatcher.core.batches import Indices

Table = Literal["receipts", "ledger", "enrolments", "leads"]


class Breach(NamedTuple):
    """One way in which a rule was broken, and where."""

    rule: int
    """1 conservation, 2 nothing twice, 3 quotas, 4 nothing early or unwanted, 5 order, 6 all leases end, 7 triggers."""
    violation: str
    """The field of ``Violations`` that counts it."""
    what: str
    table: Table
    rows: Indices
    """Rows of the table; of ``leads`` only their number is known."""


@dataclass(frozen=True, slots=True)
class Violations:
    """How often each rule was broken."""

    duplicate: int = 0
    """Accepted more than once; two keys for a visit or two visits for a key; asked for from another device, or under
    another key, after an attempt that was or may have been accepted."""
    early: int = 0
    """Before its slot, before it was due, or before its predecessor's acceptance and delay."""
    over_hour: int = 0
    """More arrivals of one device, or of one group of devices, in some rolling hour than the quota that held, by the
    gateway's own clock."""
    over_day: int = 0
    """As ``over_hour``, in 24 hours."""
    out_of_order: int = 0
    """A step that does not follow from the one before, or arrived before it."""
    after_opt_out: int = 0
    """The last look began after an opt-out, a removed trigger or a pause had been seen."""
    outside_window: int = 0
    """Arrived while the send window of its sequence was shut, by the clock on its lead's wall, or later than its
    sequence allows."""
    lost: int = 0
    """Accepted but not in the ledger, in the ledger but never arrived, an enrolment that is not where its visits say, a
    lease that never ended, a trigger on or off the lead against rule 7, a lead never enrolled."""
    altered: int = 0
    """Asked for again with another body after an attempt that was or may have been accepted."""
    stuck: int = 0
    """Due for too long although its device was idle, when everything had come to rest."""

    @property
    def total(self) -> int:
        """All of them."""
        return sum(asdict(self).values())

    @classmethod
    def of(cls, breaches: Iterable[Breach]) -> Self:
        """Their numbers."""
        counts: Counter[str] = Counter()
        for breach in breaches:
            counts[breach.violation] += len(breach.rows)
        return cls(**counts)
