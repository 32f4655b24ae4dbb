"""The figures a run ends with, as JSON and as a table for people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from simulate.checker import Violations


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """Everything ``--json`` holds; seconds and counts."""

    seed: int
    devices: int
    leads: int
    lead_file: Mapping[str, int] | None
    """What became of the rows of a lead file; None where leads were made."""
    shards: int
    tick_s: float
    pacing: str
    """``burst`` or ``even``."""
    settings: Mapping[str, Any]
    """What else was asked for: of the run, of the mock gateway's answers, and of the engine."""
    virtual_s: float
    wall_s: float
    wall: Mapping[str, float]
    """Where the wall time went."""
    enrolled: int
    sends: int
    sends_per_wall_s: float
    completed: int
    active: int
    failed: int
    stopped: int
    in_doubt: int
    skipped: int
    """Steps that were passed over because they were too late."""
    shifted: int
    """Times that a step was moved to a later day because it was too late."""
    violations: Violations
    receipts_sha256: str
    lateness_s: Mapping[str, float]
    optimality_gap_s: Mapping[str, float] | None
    optimality_gap_missing: str | None
    """Why there is no gap: what made the ideal schedule no yardstick."""
    device_use: Mapping[str, float]
    """Share of a device's day quotas used over the days of the run."""
    binding_limit: str | None
    peak_rss_mb: float
    reruns: int
    """Ticks that were run again because something had died."""
    http: Mapping[str, Any] | None
    """What went over HTTP: ``HttpFigures``, and the sends a second of ``sending_s``; None where nothing did."""
    pace: Mapping[str, float] | None
    """How the pace was kept, as ``Kept``; None where there was none."""
    made: Mapping[str, str | int]
    """When, with which versions and on how many cores."""

    @property
    def good(self) -> bool:
        """Whether every invariant held."""
        return self.violations.total == 0

    def as_json(self) -> dict[str, Any]:
        """The keys people and acceptance checks rely on."""
        return asdict(self)


def table(outcome: RunOutcome) -> Group:
    """What a person sees at the end."""
    days = outcome.virtual_s / 86_400
    head = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    head.add_column(style="dim")
    head.add_column()
    rate = f"[bold]{outcome.sends_per_wall_s:,.0f}[/] a second of wall time"
    head.add_row("sent", f"[bold]{outcome.sends:,}[/] in {span(outcome.wall_s)} ({rate})")
    head.add_row(
        "virtual time", f"{days:.1f} days, {outcome.virtual_s / max(outcome.wall_s, 1e-9):,.0f} times faster than life"
    )
    if (pace := outcome.pace) is not None:
        head.add_row("pace", _pace(pace))
    if (http := outcome.http) is not None:
        head.add_row("over HTTP", _http(http))
    head.add_row("enrolments", _states(outcome))
    if (rows := outcome.lead_file) is not None:
        parts = ", ".join(f"{rows[name]:,} {name}" for name in ("imported", "merged", "rejected"))
        head.add_row("lead file", f"{rows['rows']:,} rows: {parts}")
    late, gap = outcome.lateness_s, outcome.optimality_gap_s
    head.add_row(
        "lateness", f"half within {span(late['p50'])}, 95 % within {span(late['p95'])}, worst {span(late['max'])}"
    )
    if outcome.skipped or outcome.shifted:
        head.add_row("too late", f"{outcome.skipped:,} steps skipped, {outcome.shifted:,} moved to a later day")
    if gap is None:
        head.add_row("behind ideal", f"not computed: {outcome.optimality_gap_missing}")
    else:
        waited = f"waited most for: {outcome.binding_limit}"
        head.add_row("behind ideal", f"{span(gap['mean'])} on average, {span(gap['max'])} at most; {waited}")
    use = outcome.device_use
    head.add_row("device use", f"{use['mean']:.0%} on average ({use['min']:.0%} - {use['max']:.0%}) of the day quotas")
    head.add_row("memory", f"{outcome.peak_rss_mb:,.0f} MB at the peak, all processes")
    head.add_row("receipts", f"sha256 {outcome.receipts_sha256[:16]}… (seed {outcome.seed})")
    rules = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, count in asdict(outcome.violations).items():
        mark = "[green]✓[/]" if count == 0 else "[bold red]✗[/]"
        rules.add_row(mark, name.replace("_", " "), "none" if count == 0 else f"[bold red]{count:,}[/]")
    verdict = (
        Text("Every invariant held.", "bold green")
        if outcome.good
        else Text(f"{outcome.violations.total:,} violations.", "bold red")
    )
    return Group("", head, "", rules, "", verdict)


def _states(outcome: RunOutcome) -> str:
    parts = [f"[bold]{outcome.enrolled:,}[/]"]
    for name in ("completed", "active", "failed", "stopped", "in_doubt"):
        count = getattr(outcome, name)
        if count:
            parts.append(f"{count:,} {name.replace('_', ' ')}")
    return ": ".join([parts[0], ", ".join(parts[1:])]) if parts[1:] else parts[0]


def _pace(pace: Mapping[str, float]) -> str:
    kept = f"at most {span(pace['behind_most_s'])} behind, {span(pace['behind_s'])} at the end"
    return f"{pace['speed']:g} times as fast as life; {kept if pace['behind_most_s'] else 'never behind'}"


def _http(http: Mapping[str, Any]) -> str:
    rate = f"[bold]{http['sends_per_s']:,.0f}[/] sends a second while sending, {span(http['sending_s'])}"
    latency = http["latency_ms"]
    answers = f"half answered within {latency['p50']:,.0f} ms, 95 % within {latency['p95']:,.0f} ms"
    return f"{rate}; {http['requests']:,} requests, {http['connections']:,} connections; {answers}"


def span(seconds: float) -> str:
    """A span as people say it."""
    if seconds < 90:
        return f"{seconds:.1f} s"
    if seconds < 5400:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"
