"""The one checker: the invariants, judged from receipts, ledger and the seed's tables only, never from internals.

breaches    what can be broken, and how often it was
paths       the steps of every catalogue that held
matched     receipts, ledger rows and enrolments brought together by key
delivery    rules 1 and 2: nothing lost, nothing twice, nothing altered
limits      rules 3 and 4: quotas, opt-outs, replies, pauses
windows     rule 4: send windows
lateness    rules 1 and 4: what was skipped as too late
clocks      rule 4: times of day
progress    rules 1 and 4 to 7: early, out of order, how enrolments end
findings    breaches in words
"""

from __future__ import annotations

from simulate.checker import clocks, delivery, lateness, limits, progress, windows
from simulate.checker.breaches import Breach, Violations
from simulate.checker.findings import lines
from simulate.checker.matched import Matched
from simulate.evidence import Evidence
from simulate.receipts import Receipts

__all__ = ["Violations", "check", "findings"]


def check(receipts: Receipts, evidence: Evidence) -> Violations:
    """Judge a run: how often each rule was broken."""
    return Violations.of(_breaches(Matched.of(receipts, evidence)))


def findings(receipts: Receipts, evidence: Evidence, limit: int = 20) -> list[str]:
    """What was broken, a line each, at most ``limit``; the same in whatever order the receipts come."""
    matched = Matched.of(receipts, evidence)
    return lines(matched, _breaches(matched), limit)


def _breaches(matched: Matched) -> list[Breach]:
    rules = (delivery, limits, windows, lateness, clocks, progress)
    return [breach for rule in rules for breach in rule.judge(matched)]
