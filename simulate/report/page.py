"""The report as one HTML file: figures as plain HTML, charts from one JSON document, nothing from elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from dispatcher.core.moments import SECOND_US, to_datetime
from dispatcher.core.outcomes import Outcome
from simulate.rehearsal import Rehearsed
from simulate.report.funnel import Funnel, funnels
from simulate.report.html import asset, rendered
from simulate.report.run import Run
from simulate.report.series import series

_SEQUENCES: Final = 40
"""Sequences that are shown, at most: the largest ones."""
RULES: Final = {
    "duplicate": "accepted twice, or asked for again under another key or from another device",
    "early": "before its slot, its due moment, or the delay after the step before",
    "over_hour": "beyond a device's quota in any rolling hour",
    "over_day": "beyond a device's quota in any rolling 24 hours",
    "out_of_order": "a step that does not follow from the one before",
    "after_opt_out": "after an opt-out, a removed trigger or a pause",
    "after_exit": "after a reply had ended the enrolment",
    "outside_window": "always none: there are no send windows yet",
    "lost": "a message, enrolment, lease or trigger that is not where it has to be",
    "altered": "another body after an attempt that may have been accepted",
    "stuck": "due for over an hour while its device idles",
}


def write(path: Path, done: Rehearsed, command: str) -> None:
    """Write the report of a rehearsal.

    Args:
        path: the HTML file.
        done: the run.
        command: how it can be made again.
    """
    run = Run(done.frame, done.receipts, done.evidence, done.outcome.as_json())
    path.write_text(page(run, command), encoding="utf-8")


def page(run: Run, command: str) -> str:
    """The report of a run as HTML."""
    data = json.dumps(series(run), separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    styles = asset("vendor/uPlot.min.css") + asset("page.css")
    scripts = [asset("vendor/uPlot.iife.min.js"), asset("charts.js"), asset("page.js")]
    found = funnels(run)
    return rendered(
        "page.html",
        styles,
        scripts,
        figures=run.figures,
        verdict=verdict(run),
        rules=[(name, RULES.get(name, ""), count) for name, count in run.figures["violations"].items()],
        funnels=found[:_SEQUENCES],
        hidden=len(found) - len(found[:_SEQUENCES]),
        widest=max((_widest(funnel) for funnel in found), default=1),
        outcomes=_outcome_counts(run),
        faults=run.frame.faults[:200],
        fault_count=len(run.frame.faults),
        command=command,
        asked_s=(run.frame.end_us - run.frame.start_us) / SECOND_US,
        start=to_datetime(run.frame.start_us),
        end=to_datetime(run.frame.end_us),
        # No name that a person chose can end the script that carries it.
        data=data.replace("<", "\\u003c"),
    )


def verdict(run: Run) -> dict[str, Any]:
    """The headline: whether all was done, when, and whether every invariant held."""
    figures = run.figures
    broken = sum(figures["violations"].values())
    last_us = int(run.receipts.rows["arrived_us"].max(initial=run.frame.start_us))
    return {
        "finished": figures["active"] == 0 and figures["in_doubt"] == 0,
        "broken": broken,
        "last": to_datetime(last_us),
        "took_s": (last_us - run.frame.start_us) / SECOND_US,
    }


def _widest(funnel: Funnel) -> int:
    return max(funnel.enrolled, *(step.sent for step in funnel.steps), 1)


def _outcome_counts(run: Run) -> list[tuple[str, int, float]]:
    attempts = run.attempts
    counts = [(outcome.label.replace("_", " "), int((attempts.outcome == outcome).sum())) for outcome in Outcome]
    return [(label, count, count / len(attempts)) for label, count in counts if count]
