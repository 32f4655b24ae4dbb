"""``python -m bench``: how fast the engine is, beside the limit of its database and beside other queues.

Every part prints its tables as soon as it has ended, adds them to the JSON file, and with --page writes them into
docs/performance.md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from bench.bench import Bench
from bench.figures import Part
from bench.page import put
from dispatcher.errors import DriplineError
from simulate.circumstances import circumstances

PAGE: Final = Path(__file__).parents[1] / "docs" / "performance.md"
PARTS: Final = {
    "lifecycle": "the whole engine, the same without Ray, the raw limit of the database, and other queues",
    "rehearsal": "dripline simulate from the command line to the verdict, bursting and evenly paced: time and memory",
    "profile": "where the time of a send goes: a flame graph of the services, and what PostgreSQL's functions are for",
    "claims": "the claim by table size, behind churn and behind a blocked backlog",
    "enrolment": "from the trigger to the enrolment, and a pass with nothing to do",
    "kernel": "slots of a shard against a heap in plain Python",
    "model": "the schedule on arrays against SimPy",
    "restart": "a shard near its limits is ready again; expired leases are rescued",
    "wake": "dripline run with nothing to do: from a tag by SQL to the message, and what waiting costs",
    "http": "the HTTP sender against a local gateway",
    "opt_out": "from the commit of an opt-out to silence, while 100,000 contacts are due",
}
"""Each is a module of its name with ``async def measure(bench) -> Part``."""


def options() -> argparse.ArgumentParser:
    """The command line."""
    listed = "\n".join(f"  {name:12}{what}" for name, what in PARTS.items())
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"parts:\n{listed}\n\nExample: python -m bench claims enrolment --repeat 5 --json bench.json --page",
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help="all of them unless named")
    parser.add_argument("--repeat", type=int, default=5, metavar="N", help="how often everything is measured (5)")
    parser.add_argument("--scale", type=float, default=1.0, metavar="X", help="share of the documented sizes (1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="add the figures to this file")
    parser.add_argument("--page", action="store_true", help="write tables and graphs into docs/")
    return parser


def keep(part: Part, name: str, took_s: float, given: argparse.Namespace) -> None:
    """Print what a part has found, and write it where it was asked for."""
    made = circumstances()
    how = f"{given.repeat} rounds" + ("" if given.scale == 1 else f" at {given.scale:g} of the sizes")
    lines = [
        f"{made['at']}, Dripline {made['dripline']}, Python {made['python']}, {made['cores']} cores; {how}, "
        f"{took_s:,.0f} s in all.",
        "",
        *part.as_markdown(),
    ]
    print(f"\n## {name}\n", *lines, sep="\n", flush=True)
    if given.json is not None:
        known: dict[str, Any] = json.loads(given.json.read_text()) if given.json.exists() else {}
        known[name] = {"made": made, "repeat": given.repeat, "scale": given.scale, "took_s": took_s, **part.as_json()}
        given.json.write_text(json.dumps(known, indent=1) + "\n")
    if given.page:
        for file, text in part.files.items():
            (PAGE.parent / file).write_text(text, encoding="utf-8")
        PAGE.write_text(put(PAGE.name, PAGE.read_text(encoding="utf-8"), name, lines), encoding="utf-8")


async def run(given: argparse.Namespace) -> None:
    """Measure the parts that were named, one after the other."""
    for name in given.parts or PARTS:
        begun_s = time.monotonic()

        def say(what: str, name: str = name) -> None:
            print(f"{name}: {what}", file=sys.stderr, flush=True)

        with tempfile.TemporaryDirectory(prefix="dripline-bench-") as place:
            measure = import_module(f"bench.{name}").measure
            part = await measure(Bench(given.repeat, given.scale, Path(place), say))
        keep(part, name, time.monotonic() - begun_s, given)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    parser = options()
    given = parser.parse_args(arguments)
    for name in given.parts:
        if name not in PARTS:
            parser.error(f"no part {name!r}: choose from {', '.join(PARTS)}")
    if given.repeat < 1 or given.scale <= 0:
        parser.error("--repeat must be at least 1 and --scale above 0")
    try:
        asyncio.run(run(given))
    except DriplineError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted: what was measured so far is kept", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
