"""Writes the figures of docs/reliability.md from the files that the runs left.

python -m bench.reliability --prove prove.json --canaries canaries.json --chaos chaos-1.json chaos-2.json
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Final, TypeVar

from pydantic import BaseModel, ValidationError

from bench.page import put, table
from dispatcher.errors import InputError

PAGE: Final = Path(__file__).parents[1] / "docs" / "reliability.md"
HOW: Final = """The figures come from files that these commands write; any of them may be given alone:

  dripline prove --seeds 2000 --json prove.json
  dripline prove --canaries --json canaries.json
  dripline simulate --chaos 1 --json chaos-1.json
  dripline simulate --chaos 2 --chaos-not-idempotent --json chaos-2.json
  python -m bench.reliability --prove prove.json --canaries canaries.json --chaos chaos-1.json chaos-2.json
"""
FAULTS_A_ROW: Final = 3


class Made(BaseModel):
    """Under which circumstances a file was written."""

    at: datetime
    dripline: str
    python: str
    cores: int

    def __str__(self) -> str:
        cores = f"{self.cores} core{'s' * (self.cores > 1)}"
        return f"{self.at:%Y-%m-%d}, Dripline {self.dripline}, Python {self.python}, {cores}"


class Prove(BaseModel):
    """What is needed of ``dripline prove --json``."""

    made: Made
    first: int
    seeds: int
    failed: list[int]
    seeds_per_s: float
    sends: int
    virtual_s: float
    faults: int
    fault_kinds: int
    faults_by_kind: dict[str, int]
    saturated_use: float | None
    violations: dict[str, int]


class Canary(BaseModel):
    """What became of a broken build."""

    promise: str
    seed: int | None
    rules: list[str]


class Canaries(BaseModel):
    """What is needed of ``dripline prove --canaries --json``."""

    made: Made
    seeds: int
    canaries: dict[str, Canary]


class Verdict(BaseModel):
    """What is needed of the verdict of a chaos run."""

    enrolled: int
    status: dict[str, int]
    answers: dict[str, int]
    accepted: int
    busiest_hour: int
    devices_at_quota: int


class Chaos(BaseModel):
    """What is needed of ``dripline simulate --chaos N --json``."""

    made: Made
    seed: int
    devices: int
    shards: int
    idempotent: bool
    hour_s: float
    quota_per_hour: int
    wall_s: float
    sends_per_s: float
    cuts: dict[str, int]
    troubles: dict[str, int]
    hooks: dict[str, int]
    run_starts: int
    drain_s: float
    verdict: Verdict
    broken: dict[str, int]
    good: bool


Figures = TypeVar("Figures", Prove, Canaries, Chaos)


def read(path: Path, kind: type[Figures], command: str) -> Figures:
    """The figures in a file.

    Raises:
        InputError: it cannot be read, or holds something else than what ``command`` writes.
    """
    try:
        return kind.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InputError(str(path), f"cannot be read: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        problem = f"{where}: {first['msg']}" if where else first["msg"]
        raise InputError(str(path), f"not what {command} --json writes ({problem})", "make it anew") from None


# The three parts -----------------------------------------------------------------------------------------------------


def prove_part(run: Prove) -> list[str]:
    """A campaign of ``dripline prove``."""
    last = run.first + run.seeds - 1
    use = "no seed drew a saturated fleet" if run.saturated_use is None else f"{run.saturated_use:.1%}"
    figures = [
        ("seeds", f"{run.seeds:,} ({run.first} to {last}), {run.seeds_per_s:.1f} a second"),
        ("seeds that failed", ", ".join(map(str, run.failed)) or "none"),
        ("faults that struck", f"{run.faults:,} of {run.fault_kinds} kinds"),
        ("messages accepted", f"{run.sends:,}"),
        ("virtual time", f"{run.virtual_s / 3600:,.0f} hours"),
        ("use of saturated devices", f"{use} of what quotas and guard allow"),
        *broken_rows(run.violations),
    ]
    kinds = sorted(run.faults_by_kind.items(), key=lambda item: (-item[1], item[0]))
    rows = [kinds[start : start + FAULTS_A_ROW] for start in range(0, len(kinds), FAULTS_A_ROW)]
    cells = [[cell for kind, count in row for cell in (f"{count:,}", kind)] for row in rows]
    padded = [row + [""] * (2 * FAULTS_A_ROW - len(row)) for row in cells]
    head = ["struck", "fault"] * FAULTS_A_ROW
    return [f"{run.made}.", "", *table(("", ""), figures), "", *table(head, padded)]


def canaries_part(run: Canaries) -> list[str]:
    """The broken builds."""
    caught = sum(canary.seed is not None for canary in run.canaries.values())
    rows = [
        (
            name,
            canary.promise,
            "**not caught**" if canary.seed is None else str(canary.seed),
            ", ".join(rule.replace("_", " ") for rule in canary.rules),
        )
        for name, canary in run.canaries.items()
    ]
    head = ("broken build", "what does not hold in it", "caught by seed", "rules it broke")
    said = f"{run.made}. {caught} of {len(run.canaries)} caught, each from seed 1 on within {run.seeds} seeds."
    return [said, "", *table(head, rows)]


def chaos_part(runs: Sequence[Chaos]) -> list[str]:
    """Storms on the real stack, a column each."""
    per_run = [chaos_figures(run) for run in runs]
    names = dict.fromkeys(name for figures in per_run for name in figures)
    rows = [(name, *(figures.get(name, "-") for figures in per_run)) for name in names]
    return table(("", *(f"seed {run.seed}" for run in runs)), rows)


def chaos_figures(run: Chaos) -> dict[str, str]:
    """What is told of one storm."""
    verdict = run.verdict
    return {
        "made": str(run.made),
        "gateway honours keys": "yes" if run.idempotent else "no",
        "messages accepted over HTTP": f"{verdict.accepted:,}, {run.sends_per_s:.0f} a second",
        "requests, as the gateway saw them": counted(verdict.answers),
        "devices, shards": f"{run.devices}, {run.shards}",
        "quota": f"{run.quota_per_hour} an hour of {run.hour_s:g} s",
        "busiest hour of a device": f"{verdict.busiest_hour}; {verdict.devices_at_quota} devices reached their quota",
        "enrolments": f"{verdict.enrolled:,}: {counted(verdict.status)}",
        "**kills and cuts**": f"**{sum(run.cuts.values()):,}**",
        **{name: f"{count:,}" for name, count in run.cuts.items()},
        "**troubles that pass**": f"**{sum(run.troubles.values()):,}**",
        **{name: f"{count:,}" for name, count in run.troubles.items()},
        **{f"nodes with {name}": f"{count:,}" for name, count in run.hooks.items()},
        "starts of `dripline run`": f"{run.run_starts}",
        "drained": f"{run.drain_s:,.0f} s after the last strike; {run.wall_s / 60:,.0f} min in all",
        **dict(broken_rows(run.broken)),
        "verdict": "every invariant held" if run.good else "**it did not hold**",
    }


def broken_rows(broken: Mapping[str, int]) -> list[tuple[str, str]]:
    """Invariants: those that held, and how often each other one did not."""
    held = ", ".join(rule.replace("_", " ") for rule, count in broken.items() if count == 0)
    return [("never seen", held)] + [
        (rule.replace("_", " "), f"**{count:,}**") for rule, count in broken.items() if count
    ]


def counted(counts: Mapping[str, int]) -> str:
    """Counts in words, without those that are 0."""
    return ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in counts.items() if count)


# The page ------------------------------------------------------------------------------------------------------------


def write(page: Path, prove: Path | None, canaries: Path | None, chaos: Sequence[Path]) -> list[str]:
    """Rewrite the parts of ``page`` for which there are files; returns their names.

    Raises:
        InputError: a file is not what it has to be; nothing is written.
    """
    parts: dict[str, list[str]] = {}
    if prove is not None:
        parts["prove"] = prove_part(read(prove, Prove, "dripline prove"))
    if canaries is not None:
        parts["canaries"] = canaries_part(read(canaries, Canaries, "dripline prove --canaries"))
    if chaos:
        parts["chaos"] = chaos_part([read(path, Chaos, "dripline simulate --chaos") for path in chaos])
    text = page.read_text(encoding="utf-8")
    for name, lines in parts.items():
        text = put(page.name, text, name, lines)
    page.write_text(text, encoding="utf-8")
    return list(parts)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the figures; without arguments say how to make the files. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.reliability", description="Figures of docs/reliability.md.")
    parser.add_argument("--prove", type=Path, metavar="FILE", help="of dripline prove --json")
    parser.add_argument("--canaries", type=Path, metavar="FILE", help="of dripline prove --canaries --json")
    parser.add_argument("--chaos", type=Path, metavar="FILE", nargs="+", default=[], help="of simulate --chaos --json")
    given = parser.parse_args(arguments)
    if not (given.prove or given.canaries or given.chaos):
        print(HOW, end="")
        return 0
    try:
        parts = write(PAGE, given.prove, given.canaries, given.chaos)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{PAGE.name}: wrote the figures of {', '.join(parts)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
