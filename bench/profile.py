"""Where the time of a send goes: the services without Ray under py-spy, PostgreSQL under perf.

Python becomes a flame graph beside the page; PostgreSQL becomes shares of its processor time by what its functions are
for. What cannot be had on a machine - not installed, not allowed to look into processes - is left out with a word.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import psutil

from bench.bench import Bench
from bench.figures import Measure, Part
from bench.flame import tidied
from bench.lifecycle import DEVICES
from bench.local import send_all
from dispatcher.store.embedded import EmbeddedServer

LEADS: Final = 200_000
GRAPH: Final = "flame-services.svg"
RATE: Final = "199"
"""Samples a second; no divisor of anything that happens regularly."""
PYTHON, POSTGRESQL = "flame graph", "functions of PostgreSQL"
GROUPS: Final = {
    "WAL": r"XLog(Insert|Flush|Write|Background)|WalWriter",
    "index entries": r"ExecInsertIndex|index_insert|btinsert|_bt_(doins|ins|delitems|bottomup|dedup)|heap_index_delete",
    "locking rows": r"ExecLockRows|heap_lock_tuple|heapam_tuple_lock",
    "heap writes": r"heap_(update|insert|multi_insert|delete|page_prune|prune)",
    "finding rows": r"(table_)?index_(get|fetch|rescan|begin)|heap_(get|fetch|hot)|_bt_|bt(get|re)|heapam_index|Bitmap",
    "parsing and planning": r"pg_(parse|analyze|plan)|GetCachedPlan",
    "vacuum and checkpoints": r"AutoVac|do_autovacuum|Checkpoint|CheckPoint|Background",
}
"""What PostgreSQL is at, by how the name of a function on the stack begins: the first of these that is on it.

Stacks may end early, above functions that keep a page among their variables: hence the inner names.
"""
KERNEL, REST = "kernel", "executor, types, memory"


async def measure(bench: Bench) -> Part:
    """The part ``profile``: one run, whatever the rounds."""
    part = Part()
    graph, data = bench.place / "flame.svg", bench.place / "perf.data"
    with bench.server() as server:
        bench.say("warm-up")
        await send_all(server, bench.size(LEADS // 10), DEVICES, alone=False)
        bench.say("watched")
        around = watched(server, graph, data, part.skipped)
        figures, _ = await send_all(server, bench.size(LEADS), DEVICES, alone=False, around=around)
    sends = f"{figures.sends:,} sends"
    part.measures.append(Measure("Python, everything", "µs a send", (figures.process_cpu_us,), note=sends))
    part.measures.append(Measure("PostgreSQL, everything", "µs a send", (figures.postgresql_cpu_us,), note=sends))
    if POSTGRESQL not in part.skipped:
        part.measures += [
            Measure(
                f"PostgreSQL: {group}", "%", (share,), {}, f"{figures.postgresql_cpu_us * share / 100:.1f} µs a send"
            )
            for group, share in by_group(_stacks(data)).items()
        ]
    if PYTHON not in part.skipped:
        part.files[GRAPH] = tidied(graph.read_text(encoding="utf-8"))
        part.remarks += [
            f"![Flame graph of the services' Python]({GRAPH})",
            "Coordinator, ten shards and the benchmark's driver in one process, a single run. A frame is as wide as "
            "its share of the samples in which Python ran or asked the kernel for news; what it called lies below it. "
            "Its colour says whose code it is.",
        ]
    return part


@contextmanager
def watched(server: EmbeddedServer, graph: Path, data: Path, skipped: dict[str, str]) -> Iterator[None]:
    """What runs inside is watched by all who can; who cannot is noted in ``skipped``."""
    assert server.pid is not None
    first = psutil.Process(server.pid)
    pids = ",".join(str(process.pid) for process in (first, *first.children()))
    beside = shutil.which("py-spy", path=str(Path(sys.executable).parent))
    py_spy = (beside or "py-spy", "record", "--function", "--rate", RATE, "--format", "flamegraph")
    commands = {
        PYTHON: (*py_spy, "--output", str(graph), "--pid", str(os.getpid())),
        POSTGRESQL: (
            "perf",
            "record",
            "-e",
            "cpu-clock",
            "--call-graph",
            "dwarf,8192",
            "-F",
            RATE,
            "-o",
            str(data),
            "-p",
            pids,
        ),
    }
    watchers: dict[str, subprocess.Popen[str]] = {}
    for name, command in commands.items():
        try:
            watchers[name] = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        except FileNotFoundError:
            skipped[name] = f"{command[0]} is not installed"
    try:
        yield
    finally:
        for name, watcher in watchers.items():
            ended = watcher.poll() is not None  # by itself: it could not watch
            watcher.send_signal(signal.SIGINT)  # it writes what it saw
            _, said = watcher.communicate()
            if ended:
                skipped[name] = (said.strip().splitlines() or [f"{commands[name][0]} ended at once"])[-1].rstrip(".")


def _stacks(data: Path) -> str:
    """What perf has seen: a stack a paragraph, its functions from the innermost on with their addresses."""
    command = ("perf", "script", "-F", "comm,ip,sym", "-i", str(data))
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def by_group(stacks: str) -> dict[str, float]:
    """Shares in percent by what PostgreSQL was at, in the order of ``GROUPS``; the kernel's own time is one of them.

    Args:
        stacks: as ``_stacks`` returns them.
    """
    seen: Counter[str] = Counter()
    for stack in stacks.split("\n\n"):
        functions = re.findall(r"^\s+([0-9a-f]+) (\S+)", stack, re.MULTILINE)
        if not functions:
            continue
        if functions[0][0].startswith("ffffffff"):
            seen[KERNEL] += 1
            continue
        names = [name for _, name in functions]
        seen[
            next((group for group, begin in GROUPS.items() if any(re.match(begin, name) for name in names)), REST)
        ] += 1
    return {group: 100 * seen[group] / seen.total() for group in (*GROUPS, REST, KERNEL) if seen[group]}
