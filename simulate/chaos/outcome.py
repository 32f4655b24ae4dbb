"""The figures a chaos run ends with, as JSON and as a table for people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from simulate.chaos.verdict import Verdict
from simulate.circumstances import circumstances


@dataclass(frozen=True, slots=True)
class ChaosOutcome:
    """Everything ``--json`` holds; seconds and counts."""

    seed: int
    devices: int
    leads: int
    shards: int
    idempotent: bool
    hour_s: float
    quota_per_hour: int
    wall_s: float
    sends_per_s: float
    """Messages accepted a second, from the first to the last."""
    cuts: Mapping[str, int]
    """Kills and cuts that struck, by kind."""
    troubles: Mapping[str, int]
    """Troubles that passed by themselves, by kind."""
    hooks: Mapping[str, int]
    """Ray nodes that were started with a fault hook, by hook."""
    missed: int
    """Strikes that found nothing to strike at, or no time."""
    run_starts: int
    drain_s: float
    """From the last strike until nothing was left to do."""
    drained: bool
    ended_well: bool
    """Whether ``dripline run`` drained and left with status 0."""
    verdict: Verdict

    @property
    def broken(self) -> dict[str, int]:
        """What was broken, by rule, and how often; also rules that held."""
        verdict = self.verdict
        return {
            **asdict(verdict.violations),
            "over_limit": verdict.over_limit,
            "malformed": verdict.malformed,
            "undrained": verdict.status["active"],
        }

    @property
    def good(self) -> bool:
        """Whether every invariant held and everything came to rest."""
        return not any(self.broken.values()) and self.drained and self.ended_well

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self) | {"broken": self.broken, "good": self.good, "made": circumstances()}


def table(outcome: ChaosOutcome) -> Group:
    """What a person sees at the end."""
    verdict = outcome.verdict
    head = _rows()
    rate = f"[bold]{outcome.sends_per_s:,.0f}[/] a second"
    head.add_row("sent", f"[bold]{verdict.accepted:,}[/] over HTTP, {rate}; {outcome.wall_s:,.0f} s in all")
    head.add_row("requests", _counted(verdict.answers))
    head.add_row("enrolments", f"[bold]{verdict.enrolled:,}[/]: {_counted(verdict.status)}")
    head.add_row(
        "quota",
        f"{outcome.quota_per_hour} an hour of {outcome.hour_s:g} s; busiest hour of a device {verdict.busiest_hour};"
        f" {verdict.devices_at_quota} of {outcome.devices} devices reached it",
    )
    head.add_row("drained", f"{outcome.drain_s:,.0f} s after the last strike" if outcome.drained else "[red]no[/]")
    struck = _rows()
    for name, count in _by_count(outcome.cuts):
        struck.add_row(f"{count:,}", name)
    struck.add_row(f"[bold]{sum(outcome.cuts.values()):,}[/]", "[bold]kills and cuts[/]")
    for name, count in _by_count({**outcome.troubles, **{f"nodes with {k}": n for k, n in outcome.hooks.items()}}):
        struck.add_row(f"{count:,}", name)
    if outcome.missed:
        struck.add_row(f"{outcome.missed:,}", "found nothing to strike at")
    rules = _rows()
    for name, count in outcome.broken.items():
        mark = "[green]✓[/]" if count == 0 else "[bold red]✗[/]"
        rules.add_row(mark, name.replace("_", " "), "none" if count == 0 else f"[bold red]{count:,}[/]")
    verdict_line = (
        Text("Every invariant held.", "bold green")
        if outcome.good
        else Text(f"{sum(outcome.broken.values()):,} violations{_also(outcome)}.", "bold red")
    )
    return Group("", head, "", struck, "", rules, "", *map(Text, verdict.findings), verdict_line)


def _rows() -> Table:
    rows = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    rows.add_column(style="dim")
    return rows


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in counts.items() if count)


def _by_count(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(((name, count) for name, count in counts.items() if count), key=lambda item: (-item[1], item[0]))


def _also(outcome: ChaosOutcome) -> str:
    missing = [] if outcome.drained else ["it did not drain"]
    return "".join(f", {what}" for what in missing + ([] if outcome.ended_well else ["the run did not end in order"]))
