"""How far enrolments came in each sequence."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dispatcher.core.outcomes import Outcome
from simulate.evidence import STATUSES
from simulate.report.run import Run


@dataclass(frozen=True, slots=True)
class StepCount:
    """One step: messages accepted, and the enrolments that stand at it."""

    trigger: str
    sent: int
    active: int
    failed: int
    stopped: int
    in_doubt: int


@dataclass(frozen=True, slots=True)
class Funnel:
    """One sequence."""

    name: str
    enrolled: int
    completed: int
    steps: tuple[StepCount, ...]
    """In the order in which they were written."""


def funnels(run: Run) -> list[Funnel]:
    """Every sequence that anybody was enrolled in, the largest first."""
    evidence, enrolments = run.evidence, run.evidence.enrolments
    code = {trigger: number for number, trigger in enumerate(evidence.triggers, 1)}
    width = len(STATUSES) + 1
    stands = np.bincount(
        enrolments["step"].astype(np.int64) * width + enrolments["status"], minlength=(len(code) + 1) * width
    ).reshape(-1, width)
    entered = np.bincount(
        enrolments["entry"].astype(np.int64) * width + enrolments["status"], minlength=(len(code) + 1) * width
    ).reshape(-1, width)
    steps = run.receipts.steps
    accepted = np.bincount(run.receipts.rows["step"][run.receipts.answered(Outcome.ACCEPTED)], minlength=len(steps))
    sent = {trigger: int(count) for (_, trigger), count in zip(steps, accepted, strict=True)}
    found = []
    for sequence in evidence.catalogue.sequences.values():
        rows = [code[step.trigger] for step in sequence.steps]
        counts = {
            name: stands[rows, STATUSES.index(name) + 1].tolist()
            for name in ("active", "failed", "stopped", "in_doubt")
        }
        found.append(
            Funnel(
                sequence.name,
                int(entered[rows].sum()),
                int(entered[rows, STATUSES.index("completed") + 1].sum()),
                tuple(
                    StepCount(step.trigger, sent.get(step.trigger, 0), **{name: counts[name][place] for name in counts})
                    for place, step in enumerate(sequence.steps)
                ),
            )
        )
    return sorted((funnel for funnel in found if funnel.enrolled), key=lambda funnel: (-funnel.enrolled, funnel.name))
