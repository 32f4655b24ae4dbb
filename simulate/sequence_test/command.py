"""``dripline test``: sequences held against what is expected of them."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from dispatcher.cli.common import err, out, progress, require_writable, sigterm_ends
from dispatcher.errors import InputError
from simulate.circumstances import circumstances
from simulate.sequence_test.expectations import Failure, Line, failures, timeline
from simulate.sequence_test.load import Case, load
from simulate.sequence_test.world import play

app = typer.Typer()


@dataclass(frozen=True, slots=True)
class Failed:
    """A test that did not come true."""

    case: Case
    failures: list[Failure]
    timelines: dict[str | None, list[Line]]
    """What happened, by lead; None where there is only one."""


@app.command(name="test", epilog="Example: dripline test examples/tests")
def run_tests(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE...", help="Files of tests, or folders with some.", show_default=False),
    ],
    select: Annotated[
        str | None,
        typer.Option("--select", "-k", metavar="TEXT", help="Only tests with this in their name.", show_default="all"),
    ] = None,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", envvar="DRIPLINE_JSON_FILE", help="Write what came of it here."),
    ] = None,
) -> None:
    """Test sequences: leads, what happens to them, and what they are to get, in YAML beside the sequences.

    The services of production decide, in virtual time and in memory. Exit status 0 if everything expected came true, 1
    if something did not, 2 if a file cannot be used.
    """
    require_writable("--json", json_file, *files)
    begun_s = time.perf_counter()
    loaded = load(files)
    for path in loaded.skipped:
        err.out(f"{path}: no tests in it")
    cases = [case for case in loaded.cases if select is None or select.lower() in case.said.name.lower()]
    if not loaded.cases:
        raise InputError(", ".join(map(str, files)), "there are no tests", "see docs/sequence-tests.md")
    if not cases:
        raise InputError("--select", f"no test has {select!r} in its name", f"there are {len(loaded.cases)}")
    failed: list[Failed] = []
    with sigterm_ends(), progress(len(cases), "tests") as show:
        for done, case in enumerate(cases, 1):
            if (found := _failed(case)) is not None:
                failed.append(found)
            show(done)
    wall_s = time.perf_counter() - begun_s
    for found in failed:
        _show(found)
    if json_file is not None:
        json_file.write_text(json.dumps(_figures(cases, failed, wall_s), indent=2) + "\n", encoding="utf-8")
    passed = f"[bold green]{len(cases) - len(failed):,} passed[/]"
    out.print(
        f"{passed}, [bold red]{len(failed):,} failed[/] in {wall_s:.1f} s" if failed else f"{passed} in {wall_s:.1f} s"
    )
    raise typer.Exit(1 if failed else 0)


def _failed(case: Case) -> Failed | None:
    """Play a test; None where everything came true."""
    played = play(case.said, case.sequences)
    found = sorted(failures(case.said, played), key=lambda failure: case.line(*failure.keys))
    if not found:
        return None
    concerned = {failure.lead for failure in found}
    return Failed(
        case,
        found,
        {
            person.said.name if case.said.leads else None: timeline(person, played)
            for person in played.people
            if not case.said.leads or person.said.name in concerned
        },
    )


def _show(failed: Failed) -> None:
    case = failed.case
    out.print(f"[bold red]FAILED[/] {escape(str(case.file.path))}:{case.line()}  {escape(case.said.name)}")
    for failure in failed.failures:
        out.out(f"  line {case.line(*failure.keys)}: {failure}")
    for lead, lines in failed.timelines.items():
        out.out("  what happened:" if lead is None else f"  what happened to {lead}:")
        for line in lines:
            out.out(f"    {line}")


def _figures(cases: list[Case], failed: list[Failed], wall_s: float) -> dict[str, Any]:
    by_case = {(each.case.file.path, each.case.keys): each for each in failed}
    return {
        "passed": len(cases) - len(failed),
        "failed": len(failed),
        "wall_s": round(wall_s, 3),
        "tests": [_figure(case, by_case.get((case.file.path, case.keys))) for case in cases],
        "made": circumstances(),
    }


def _figure(case: Case, failed: Failed | None) -> dict[str, Any]:
    figure: dict[str, Any] = {"file": str(case.file.path), "line": case.line(), "name": case.said.name}
    if failed is None:
        return figure | {"passed": True}
    return figure | {
        "passed": False,
        "failures": [
            {"line": case.line(*failure.keys), "lead": failure.lead, "problem": failure.problem}
            for failure in failed.failures
        ],
        "timelines": [
            {
                "lead": lead,
                "lines": [
                    {"at_s": None if line.at_us is None else line.at_us / 1e6, "what": line.what} for line in lines
                ],
            }
            for lead, lines in failed.timelines.items()
        ],
    }
