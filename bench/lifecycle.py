"""The whole engine as ``simulate`` runs it, the same services without Ray, the raw limit of the database, other queues.

All on one server with durable settings, turn by turn. What is measured is sending: from the end of the enrolment to the
last message, all steps of all sequences, until every enrolment has completed. The raw loop gets as many enrolments and
makes as many sends as the engine; its rows are as wide and its indexes the same.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Final

from actors.cluster import joined_ray
from bench.bench import Bench
from bench.costs import Figures, Read, cpu_s, wal_position
from bench.figures import Measure, Part, Ratio
from bench.local import Tally, send_all
from bench.peers import UNEQUAL, peers
from bench.raw import raw_loop
from dispatcher.config import load_settings
from dispatcher.errors import DriplineError
from dispatcher.store.connect import connect
from dispatcher.store.embedded import EmbeddedServer
from simulate.driver import Progress
from simulate.examples import builtin
from simulate.population import DeviceGroup
from simulate.rehearsal import Plan, rehearse
from simulate.watcher import Watcher

LEADS: Final = 1_000_000
"""The documented size; 1.1 enrolments each, three steps an enrolment."""
DEVICES: Final = 3000
DAYS: Final = 4.0
STATEMENTS: Final = {"claim": "claim", "last_look": "last look", "end": "end of attempts"}
"""The statements of a send, by method of the stores."""
ENGINE, LOCAL, RAW = "whole engine", "the same services without Ray", "raw loop"
CPU, WAL = "µs of PostgreSQL's processor time a send", "WAL B a send"
ASKED: Final = {
    "PgQueuer": ("whole engine ÷ PgQueuer (2 processes, no-op)", 2, 2.5),
    "graphile-worker": ("whole engine ÷ graphile-worker (no-op)", 1, 1.2),
    "pg-boss": ("whole engine ÷ pg-boss (no-op)", 1.4, 1.8),
    "procrastinate": ("whole engine ÷ procrastinate (no-op)", 50, 70),
}


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """One run of the whole engine."""

    sending: Figures
    """Between enrolment and the last message."""
    enrolments: int


class Stopwatch(Watcher):
    """Notes what clocks and counters say when the last lead has been enrolled, and when the last message is sent."""

    def __init__(self, server: EmbeddedServer) -> None:
        assert server.pid is not None
        self._url, self._pid = server.url(), server.pid
        self._enrolled = self._claimed = self._sends = 0
        self._begun_s = self._last_s = self._server_s = self._wal_bytes = 0.0

    def tick(self, progress: Progress) -> None:
        """A tick has gone by."""
        self._last_s, self._claimed = time.perf_counter(), progress.claimed
        if progress.enrolled != self._enrolled:
            self._enrolled, self._sends = progress.enrolled, -progress.claimed
            self._server_s, self._wal_bytes = -cpu_s(self._pid), -self._written()
            self._begun_s = time.perf_counter()

    def phase(self, name: str) -> None:
        """Virtual time ends where the verdict begins."""
        if name == "verdict":
            self._sends += self._claimed
            self._server_s += cpu_s(self._pid)
            self._wal_bytes += self._written()

    def figures(self) -> Figures:
        """What sending took; of this process and the statements nothing is known, they are other processes'."""
        return Figures(
            sends=self._sends,
            wall_s=self._last_s - self._begun_s,
            postgresql_cpu_us=self._server_s / self._sends * 1e6,
            process_cpu_us=float("nan"),
            wal_bytes=self._wal_bytes / self._sends,
            statements=float("nan"),
            read=Read(float("nan"), float("nan")),
        )

    def _written(self) -> int:
        """The WAL position, asked from a thread: the driver waits for its watcher."""

        async def ask() -> int:
            connection = await connect(self._url)
            try:
                return await wal_position(connection)
            finally:
                await connection.close()

        with ThreadPoolExecutor(1) as thread:
            return thread.submit(asyncio.run, ask()).result()


async def rehearsal(server: EmbeddedServer, leads: int) -> Rehearsal:
    """The whole engine once, judged like every rehearsal.

    Raises:
        DriplineError: an invariant did not hold.
    """
    plan, watcher = Plan(builtin(), (DeviceGroup(DEVICES),), leads, DAYS), Stopwatch(server)
    with joined_ray(None):
        done = await rehearse(plan, load_settings(), server.url(), reset=True, server_pid=server.pid, watcher=watcher)
    if not done.outcome.good:
        raise DriplineError(f"the rehearsal broke its invariants: {done.outcome.violations}")
    return Rehearsal(watcher.figures(), done.outcome.enrolled)


async def measure(bench: Bench) -> Part:
    """The part ``lifecycle``."""
    leads = bench.size(LEADS)
    part = Part()
    with bench.server() as server:
        bench.say("statement by statement")
        alone = await send_all(server, bench.size(LEADS // 10), DEVICES, alone=True)
        first = await rehearsal(server, leads)  # also a warm-up: the files of the log exist from here on
        sends = first.sending.sends
        contenders: dict[str, Callable[[], Awaitable[Rehearsal | Figures | float]]] = {
            ENGINE: partial(rehearsal, server, leads),
            LOCAL: partial(_local, server, leads),
            RAW: partial(raw_loop, server, first.enrolments, sends),
        }
        others, part.skipped = await peers(bench, server)
        found = await bench.interleaved({**contenders, **others})
    runs = [run for run in found[ENGINE] if isinstance(run, Rehearsal)]
    whole = f"{first.enrolments:,} enrolments, {sends:,} sends"
    part.measures += [
        _sending(ENGINE, [run.sending for run in runs], f"Ray, 10 shards, referee; {whole}"),
        _sending(LOCAL, [run for run in found[LOCAL] if isinstance(run, Figures)], "10 shards, referee; one process"),
        _sending(RAW, [run for run in found[RAW] if isinstance(run, Figures)], "1 claims, 2 complete"),
        *(
            Measure(name, "jobs/s", tuple(run for run in found[name] if isinstance(run, float)), note="no-op jobs")
            for name in others
        ),
        *_statements(*alone),
    ]
    part.ratios = _ratios(part)
    part.remarks = [UNEQUAL] if others else []
    return part


async def _local(server: EmbeddedServer, leads: int) -> Figures:
    return (await send_all(server, leads, DEVICES, alone=False))[0]


def _sending(name: str, runs: list[Figures], note: str) -> Measure:
    counts = {
        CPU: median(run.postgresql_cpu_us for run in runs),
        WAL: median(run.wal_bytes for run in runs),
    }
    known = {
        "statements a thousand sends": median(run.statements for run in runs),
        "rows read a send": median(run.read.rows for run in runs),
        "index entries read a send": median(run.read.entries for run in runs),
    }
    counts |= {name: count for name, count in known.items() if count == count}
    return Measure(name, "sends/s", tuple(run.sends_per_s for run in runs), counts, note)


def _statements(figures: Figures, tally: Tally) -> list[Measure]:
    """What a send costs by statement, one at a time."""
    return [
        Measure(
            f"one at a time: {called}",
            "µs a send",
            (tally.costs[method].seconds / figures.sends * 1e6,),
            {WAL: tally.costs[method].wal_bytes / figures.sends},
            f"{tally.costs[method].calls:,} calls",
        )
        for method, called in STATEMENTS.items()
    ]


def _ratios(part: Part) -> list[Ratio]:
    engine, local, raw = part.of(ENGINE), part.of(LOCAL), part.of(RAW)
    return [
        Ratio(
            "whole engine ÷ raw loop with the same writes, table and claim rule", engine.median / raw.median, 0.6, 0.75
        ),
        *(
            Ratio(said, engine.median / part.of(name).median, asked, stretch)
            for name, (said, asked, stretch) in ASKED.items()
            if name not in part.skipped
        ),
        Ratio("Ray path ÷ the same services without Ray", engine.median / local.median, 0.8, 0.95),
        Ratio("PostgreSQL CPU a send, µs", engine.counts[CPU], 40, 25, below=True),
        Ratio("WAL bytes a send", engine.counts[WAL], 900, 600, below=True),
    ]
