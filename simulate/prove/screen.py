"""What a person sees of a campaign: progress, figures, and of a failing seed what it took and what happened."""

from __future__ import annotations

import time
from dataclasses import fields
from typing import Any, Final

from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from dispatcher.cli.common import err, out
from simulate.checker import Violations
from simulate.prove.campaign import Caught, Totals
from simulate.prove.case import Result
from simulate.prove.faults import KINDS
from simulate.prove.regressions import Regression

LEAST_USE: Final = 0.98
"""Of what quotas and guard allow, a saturated fleet must use as much: exact, and not timid."""
RULES: Final = tuple(field.name for field in fields(Violations))
_LINE_EVERY_S: Final = 5.0
_TRACE_LINES: Final = 150
_ROUTINE: Final = frozenset(
    {
        "beat", "lead", "leader", "versions", "next_due", "ended_leases", "held_sequences", "misplaced",
        "finish_waiting", "search_entries", "leased_tokens", "home_load", "wall_us", "catalogue", "fleet",
        "begin_day", "usage", "hold",
    }
)  # fmt: skip
"""Statements that tell a reader nothing unless somebody dies in them."""


class Screen:
    """Progress: a live line in a terminal, a plain line every few seconds elsewhere.

    Args:
        total: how many seeds, or canaries.
        quiet: show nothing.
    """

    def __init__(self, total: int, quiet: bool) -> None:
        self._total, self._quiet = total, quiet
        self._began_s = self._shown_s = time.monotonic()
        self._bar: Progress | None = None
        if not quiet and err.is_terminal:
            self._bar = Progress(
                SpinnerColumn(), TextColumn("{task.description}"), BarColumn(24), TimeElapsedColumn(),
                console=err, transient=True,
            )  # fmt: skip
            self._task = self._bar.add_task("starting", total=total)

    def __enter__(self) -> Screen:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    @property
    def wall_s(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self._began_s

    def seeds(self, totals: Totals) -> None:
        """Another seed has been played."""
        rate = totals.seeds / self.wall_s
        left_s = (self._total - totals.seeds) / rate
        self.show(
            f"{totals.seeds:,} of {self._total:,} seeds  {rate:.1f}/s  {sum(totals.injected.values()):,} faults  "
            f"{totals.sends:,} sends  {len(totals.failed)} failed  {left_s:,.0f} s left",
            totals.seeds,
        )

    def show(self, text: str, done: int) -> None:
        """Say how far it is."""
        if self._bar is not None:
            self._bar.update(self._task, description=text, completed=done)
        elif not self._quiet and (time.monotonic() - self._shown_s >= _LINE_EVERY_S or done == self._total):
            self._shown_s = time.monotonic()
            err.out(text)


def figures(totals: Totals, wall_s: float) -> dict[str, Any]:
    """What ``--json`` holds."""
    return {
        "seeds": totals.seeds,
        "failed": [result.seed for result in totals.failed],
        "wall_s": round(wall_s, 1),
        "seeds_per_s": round(totals.seeds / wall_s, 2),
        "sends": totals.sends,
        "virtual_s": round(totals.virtual_s, 1),
        "faults": sum(totals.injected.values()),
        "fault_kinds": sum(count > 0 for count in totals.injected.values()),
        "faults_by_kind": {kind: totals.injected[kind] for kind in KINDS if totals.injected[kind]},
        "saturated_use": round(totals.used / totals.usable, 4) if totals.usable else None,
        "violations": {
            rule: sum(result.violations.get(rule, 0) for result in totals.failed)
            for rule in dict.fromkeys((*RULES, *(rule for result in totals.failed for rule in result.violations)))
        },
    }


def show_figures(found: dict[str, Any]) -> None:
    """The end of a campaign."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(justify="right")
    table.add_column()
    for kind, count in found["faults_by_kind"].items():
        table.add_row(f"{count:,}", kind)
    out.print(table)
    hours = found["virtual_s"] / 3600
    out.print()
    out.print(
        f"{found['seeds']:,} seeds in {found['wall_s']:,.1f} s ({found['seeds_per_s']:.1f} a second), "
        f"{found['sends']:,} sends, {hours:,.0f} virtual hours"
    )
    out.print(f"{found['faults']:,} faults of {found['fault_kinds']} kinds")
    use = found["saturated_use"]
    if use is not None:
        mark = "[green]✓[/]" if use >= LEAST_USE else "[bold red]✗[/]"
        out.print(f"{mark}  saturated devices used to {use:.1%} of what quotas and guard allow")
    for rule, count in found["violations"].items():
        mark = "[green]✓[/]" if count == 0 else "[bold red]✗[/]"
        out.print(f"{mark}  {rule.replace('_', ' '):15} {'none' if count == 0 else f'{count:,}'}")
    out.print()
    if found["failed"]:
        out.print(f"[bold red]{len(found['failed'])} seeds failed.[/]")
    else:
        out.print("[bold green]Every invariant held on every seed.[/]")


def show_failure(result: Result, regression: Regression) -> None:
    """A failing seed, reduced: what it took, what was broken, what happened."""
    out.print(f"\n[bold red]seed {result.seed}[/]: {escape(regression.broke)}")
    for finding in result.findings:
        out.out(f"  {finding}")
    out.out("  it takes:")
    for fault in result.faults:
        out.out(f"    {fault}")
    out.out("  what happened, without routine:")
    for line in lines(result, routine=False)[-_TRACE_LINES:]:
        out.out(f"    {line}")
    out.out(f"  again: {regression.command}")


def lines(result: Result, *, routine: bool) -> list[str]:
    """The trace as text, a line an event."""
    return [
        f"{moment_us / 1e6:12.6f}  {who:14}  {what}"
        for moment_us, who, what in result.trace
        if routine or what not in _ROUTINE
    ]


def show_canaries(caught: list[Caught]) -> None:
    """Which seed caught which broken build."""
    for each in caught:
        if each.seed is None:
            out.print(f"[bold red]✗  {each.name}[/]: not caught ({each.broken})")
        else:
            rules = ", ".join(rule.replace("_", " ") for rule in each.rules)
            out.print(f"[green]✓[/]  {each.name}: seed {each.seed} ({rules})")
