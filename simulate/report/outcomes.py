"""What became of the attempts, and when something other than an acceptance did."""

from __future__ import annotations

import numpy as np

from dispatcher.core.batches import Indices
from dispatcher.core.outcomes import Outcome
from simulate.axis import Axis
from simulate.report.run import Run


def outcomes(run: Run, axis: Axis) -> dict[str, Indices]:
    """Attempts by outcome and by the bucket of their slot; only outcomes that occurred."""
    attempts = run.attempts
    cell = attempts.outcome.astype(np.int64) * axis.count + axis.place(attempts.slot_us)
    table = np.bincount(cell, minlength=len(Outcome) * axis.count).reshape(len(Outcome), axis.count)
    return {outcome.label: table[outcome] for outcome in Outcome if table[outcome].any()}
