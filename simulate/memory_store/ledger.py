"""The ledger: one row an attempt, append-only; the one permitted update is from in doubt to what became known."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from simulate.memory_store.rows import Attempt, BreachError

DAY_US: Final = 86_400_000_000

Visit = tuple[int, int, int]
"""Enrolment, visit, generation."""


class Ledger:
    """``message_ledger`` in partitions of a day, each of which keeps its own rows unique, as PostgreSQL's do."""

    def __init__(self) -> None:
        self.rows: list[Attempt] = []
        """In the order they were written."""
        self._days: set[int] = set()
        self._of_visit: dict[Visit, list[Attempt]] = {}

    def make_partitions(self, first: int, last: int) -> int:
        """Open the days ``first`` to ``last``, counted from 1970; how many were not open."""
        made = [day for day in range(first, last + 1) if day not in self._days]
        self._days.update(made)
        return len(made)

    def of_visit(self, visit: Visit) -> list[Attempt]:
        """All attempts of a visit, in the order they were written."""
        return self._of_visit.get(visit, [])

    def accepted(self, visit: Visit) -> bool:
        """Whether an attempt of the visit is the accepted one."""
        return any(row.outcome == "accepted" for row in self.of_visit(visit))

    def in_doubt(self, visit: Visit) -> list[Attempt]:
        """The attempts of a visit whose fate is unknown."""
        return [row for row in self.of_visit(visit) if row.outcome == "in_doubt"]

    def add(self, row: Attempt) -> None:
        """Write a new attempt.

        Raises:
            BreachError: it is there already, its visit has another accepted one, or its day has no partition.
        """
        if not self.add_unless_there(row):
            raise BreachError(f"the ledger has {_named(row)} already")

    def add_unless_there(self, row: Attempt) -> bool:
        """Write a new attempt; False where ``add`` would find it there.

        Raises:
            BreachError: its day has no partition.
        """
        if row.slot_us // DAY_US not in self._days:
            raise BreachError(f"the ledger has no partition for {_named(row)}")
        if self._conflicts(row, row.outcome):
            return False
        self.rows.append(row)
        self._of_visit.setdefault((row.enrolment, row.visit, row.generation), []).append(row)
        return True

    def learn(self, row: Attempt, outcome: str, accepted_us: int | None = None) -> None:
        """What was in doubt became known; message id and error are the caller's.

        Raises:
            BreachError: it was known already, or its visit has another accepted attempt.
        """
        if row.outcome != "in_doubt":
            raise BreachError(f"the ledger is append-only: {_named(row)}")
        if self._conflicts(row, outcome):
            raise BreachError(f"the visit has an accepted attempt besides {_named(row)}")
        row.outcome, row.accepted_us = outcome, accepted_us

    def _conflicts(self, row: Attempt, outcome: str) -> bool:
        """Whether a row of the same day is what ``row`` would be with ``outcome``."""
        day = row.slot_us // DAY_US
        others: Iterable[Attempt] = (
            other
            for other in self.of_visit((row.enrolment, row.visit, row.generation))
            if other is not row and other.slot_us // DAY_US == day
        )
        if outcome == "accepted":
            return any(other.outcome == "accepted" for other in others)
        return any(other.outcome != "accepted" and other.attempt == row.attempt for other in others)


def _named(row: Attempt) -> str:
    return f"enrolment {row.enrolment}, visit {row.visit}, generation {row.generation}, attempt {row.attempt}"
