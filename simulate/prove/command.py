"""``dripline prove``: thousands of seeds of deterministic simulation, and the broken builds that they must catch."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from dispatcher.cli.common import err, out, require_writable, sigterm_ends
from dispatcher.errors import InputError
from simulate.circumstances import circumstances

app = typer.Typer()

_REDUCED = 3
"""How many failing seeds are reduced and shown in full."""
_CANARY_SEEDS = 500

Seeds = Annotated[int | None, typer.Option(min=1, help="How many seeds.", show_default="1000, or 500 a canary")]
Jobs = Annotated[int | None, typer.Option(min=1, max=256, help="Processes side by side.", show_default="the cores")]
OneSeed = Annotated[int | None, typer.Option(min=0, help="Play only this seed.", show_default="many", envvar=[])]
Without = Annotated[
    str | None,
    typer.Option(metavar="N,N,...", help="With --seed: leave out these of its faults.", show_default="none", envvar=[]),
]
Regressions = Annotated[
    Path, typer.Option(metavar="FILE", help="Failing seeds are added to this file, reduced to the faults they take.")
]
Json = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", envvar="DRIPLINE_JSON_FILE", help="Write the figures here.")
]


@app.command(name="prove", epilog="Example: dripline prove --seeds 1000 --jobs 2")
def prove(
    seeds: Seeds = None,
    first: Annotated[int, typer.Option(min=0, help="The first of the seeds.")] = 1,
    jobs: Jobs = None,
    seed: OneSeed = None,
    trace: Annotated[bool, typer.Option("--trace", help="With --seed: print everything that happened.")] = False,
    without: Without = None,
    canaries: Annotated[
        bool, typer.Option("--canaries", help="Instead: deliberately broken builds, each until a seed catches it.")
    ] = False,
    regressions: Regressions = Path("prove-regressions.txt"),
    json_file: Json = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Prove the engine's promises: its services in virtual time, under faults drawn from seeds.

    Exit status 0 if every invariant held on every seed and saturated devices were used to the full - with --canaries,
    if every broken build was caught - else 1.
    """
    require_writable("--json", json_file)
    require_writable("--regressions", regressions)
    if seed is None and (trace or without is not None):
        raise InputError("--trace, --without", "they are about one seed", "say which with --seed")
    if seed is not None and canaries:
        raise InputError("--canaries", "it plays seeds of its own", "leave --seed out")
    side_by_side = jobs or os.cpu_count() or 1
    with sigterm_ends():
        if canaries:
            good, figures = _canaries(seeds or _CANARY_SEEDS, side_by_side, quiet)
        elif seed is not None:
            good, figures = _one(seed, _numbers(without), trace)
        else:
            good, figures = _many(range(first, first + (seeds or 1000)), side_by_side, regressions, quiet)
    if json_file is not None:
        json_file.write_text(json.dumps(figures | {"made": circumstances()}, indent=2) + "\n", encoding="utf-8")
    raise typer.Exit(0 if good else 1)


def _numbers(text: str | None) -> list[int]:
    try:
        return [] if text is None else [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError("--without", f"{text!r} is no list of numbers", "write them like 3,7,12") from None


def _many(seeds: range, jobs: int, regressions: Path, quiet: bool) -> tuple[bool, dict[str, Any]]:
    from simulate.prove.campaign import Totals, reduced, run
    from simulate.prove.regressions import Regression, append
    from simulate.prove.screen import LEAST_USE, Screen, figures, show_failure, show_figures

    totals = Totals()
    with Screen(len(seeds), quiet) as screen:
        try:
            run(seeds, jobs, totals, screen.seeds)
        except (KeyboardInterrupt, SystemExit):
            failed = ", ".join(str(result.seed) for result in totals.failed)
            so_far = f"broken by {failed}" if failed else "every invariant held so far"
            err.out(f"{totals.seeds:,} of {len(seeds):,} seeds played: {so_far}")
            raise
        found = {"first": seeds.start, **figures(totals, screen.wall_s)}
    show_figures(found)
    for result in totals.failed[:_REDUCED]:
        without, best = reduced(result)
        regression = Regression(result.seed, without, ", ".join(best.violations))
        append(regressions, regression)
        show_failure(best, regression)
    for result in totals.failed[_REDUCED:]:
        append(regressions, Regression(result.seed, (), ", ".join(result.violations)))
    if totals.failed:
        err.out(f"added to {regressions}")
    exact = not totals.failed
    return exact and (found["saturated_use"] or 1.0) >= LEAST_USE, found


def _one(seed: int, without: list[int], trace: bool) -> tuple[bool, dict[str, Any]]:
    from simulate.prove.case import play
    from simulate.prove.faults import plan
    from simulate.prove.screen import lines
    from simulate.prove.world import draw

    unknown = set(without) - {fault.number for fault in plan(seed, draw(seed))}
    if unknown:
        raise InputError("--without", f"seed {seed} has no fault {min(unknown)}", "see --trace for its faults")
    result = play(seed, without)
    text = "\n".join(lines(result, routine=True))
    if trace:
        for fault in result.faults:
            out.out(str(fault))
        out.out(text)
    out.out(
        f"seed {seed}: {result.sends} sends, {sum(result.injected.values())} faults, {result.virtual_s:,.0f} virtual s"
    )
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    out.out(f"trace sha256 {sha256}")
    for finding in result.findings:
        out.out(f"  {finding}")
    broken = ", ".join(f"{rule} {count}" for rule, count in result.violations.items())
    out.print(f"[bold red]broken: {broken}[/]" if broken else "[bold green]Every invariant held.[/]")
    return not broken, {"seed": seed, "violations": result.violations, "trace_sha256": sha256}


def _canaries(seeds: int, jobs: int, quiet: bool) -> tuple[bool, dict[str, Any]]:
    from simulate.prove.campaign import catch_all
    from simulate.prove.canaries import CANARIES
    from simulate.prove.screen import Screen, show_canaries

    caught = []
    with Screen(len(CANARIES), quiet) as screen:
        for each in catch_all(seeds, jobs):
            caught.append(each)
            screen.show(f"{len(caught)} of {len(CANARIES)} broken builds", len(caught))
        wall_s = screen.wall_s
    show_canaries(caught)
    missed = [each.name for each in caught if each.seed is None]
    out.print(
        f"[bold red]{len(missed)} not caught within {seeds} seeds.[/]"
        if missed
        else f"[bold green]All {len(caught)} broken builds were caught.[/]"
    )
    tried = {each.name: {"promise": each.broken, "seed": each.seed, "rules": each.rules} for each in caught}
    return not missed, {"seeds": seeds, "wall_s": round(wall_s, 1), "canaries": tried}
