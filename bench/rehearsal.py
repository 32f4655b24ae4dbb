"""``dripline simulate`` as people run it, from the command line to the verdict: bursting, and evenly paced.

Everything is on: Ray, PostgreSQL, referee, ledger, the checks. The time is that of the whole command, the start of all
processes included; memory is that of all of them together. A run whose verdict is bad is no measurement.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Final

from bench.bench import Bench
from bench.figures import Measure, Part, Ratio
from dispatcher.errors import DriplineError

LEADS: Final = 1_000_000
"""The documented size; 1.1 enrolments each, three steps an enrolment."""
COMMAND: Final = (sys.executable, "-c", "from dispatcher.cli.main import main; main()", "simulate")
OPTIONS: Final = ("--devices", "3000", "--days", "4", "--data-dir", "data", "--json", "run.json", "--quiet")
PACINGS: Final = {"burst": "30", "even": "150"}
"""With the width of a tick: evenly paced, a narrow one holds too little to be worth its statements."""
BURST, EVEN = "simulate", "simulate, even pacing"
PEAK = "{}: peak of memory, all processes"


@dataclass(frozen=True, slots=True)
class Run:
    """One rehearsal."""

    wall_s: float
    peak_mb: float
    sends: int
    phases: dict[str, float]
    """Seconds by what they were spent on."""


async def measure(bench: Bench) -> Part:
    """The part ``rehearsal``."""
    leads = bench.size(LEADS)
    names = dict(zip((BURST, EVEN), PACINGS, strict=True))
    found = await bench.interleaved(
        {name: partial(simulate, bench.place, leads, pacing) for name, pacing in names.items()}
    )
    part = Part()
    for name, runs in found.items():
        spent = ", ".join(f"{what} {median(run.phases[what] for run in runs):.0f} s" for what in runs[0].phases)
        said = f"{leads:,} leads, {runs[0].sends:,} sends, ticks of {PACINGS[names[name]]} s: {spent}"
        part.measures += [
            Measure(name, "s", tuple(run.wall_s for run in runs), note=said),
            Measure(PEAK.format(name), "MB", tuple(run.peak_mb for run in runs)),
        ]
    peak_mb = max(part.of(PEAK.format(name)).median for name in names)
    whole = leads == LEADS
    part.ratios = [
        Ratio("simulate, 3000 devices, 1 M leads × 3 steps, s", part.of(BURST).median, 150, 100, True, whole),
        Ratio("the same with even pacing over the hour, s", part.of(EVEN).median, 240, 150, True, whole),
        Ratio("peak memory of both, all processes, MB", peak_mb, 4000, 2500, True, whole),
    ]
    return part


async def simulate(place: Path, leads: int, pacing: str) -> Run:
    """Run the command once in ``place``.

    Raises:
        DriplineError: it did not end with 0: an invariant did not hold, or it did not get so far.
    """
    sized = ("--leads", str(leads), "--pacing", pacing, "--tick", PACINGS[pacing])
    clean = {name: value for name, value in os.environ.items() if not name.startswith("DRIPLINE_")}
    begun_s = time.perf_counter()
    process = await asyncio.create_subprocess_exec(
        *COMMAND,
        *OPTIONS,
        *sized,
        cwd=place,
        env=clean,
        stdin=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        _, errors = await process.communicate()
    finally:
        if process.returncode is None:  # interrupted: it ends what it has started
            process.terminate()
            await process.wait()
    wall_s = time.perf_counter() - begun_s
    if process.returncode:
        said = errors.decode().strip().splitlines() or ["an invariant did not hold"]
        raise DriplineError(f"dripline simulate ended with {process.returncode}: {said[-1]}")
    figures = json.loads((place / "run.json").read_text(encoding="utf-8"))
    return Run(wall_s, figures["peak_rss_mb"], figures["sends"], figures["wall"])
