"""Other queues on PostgreSQL, draining jobs that do nothing from databases of their own on the same server.

Each with the best settings its documentation offers, as found by trying; each in the versions they were found with,
installed on demand into a directory of the person's cache. One that cannot be installed or run here is skipped.

The clock runs from the word that starts the draining until the peer's own tables hold no unfinished job. Enqueueing is
not counted, nor is starting processes, importing and what can be connected without draining (graphile-worker and
procrastinate open their connections as they start to drain: that is counted). VACUUM, ANALYZE and CHECKPOINT come
between. Once the processes have counted all jobs, the tables are asked every 5 ms; before, nothing is asked of the
server.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Final

import asyncpg

from bench.bench import Bench
from bench.databases import connected, temporary
from dispatcher.errors import DriplineError
from dispatcher.store.embedded import EmbeddedServer

UNEQUAL: Final = (
    "The work is not equal. Peers call a function that does nothing for every job (pg-boss: for every batch), hold "
    "narrow rows without an index over devices and forget or mark a job once it is done; they meter nothing and write "
    "no ledger. The engine moves a wide row twice a message, writes a ledger row and keeps quotas."
)
"""To be said wherever the figures of both stand."""
SCRIPTS: Final = Path(__file__).with_name("peer_scripts")
NODE: Final = "node@22.23.3"
"""Where the path has no Node of this major version or a later one."""
PG: Final = "pg@8.23.1"
UVLOOP: Final = "uvloop==0.23.0"
MARK: Final = "installed.json"
TRIAL: Final = 100
"""Jobs, to see whether a peer runs here."""
INSTALL_S, READY_S, DRAIN_S = 300.0, 60.0, 300.0
LOOK_S: Final = 0.005


@dataclass(frozen=True, slots=True)
class Peer:
    """One of them, and how it is run."""

    name: str
    packages: tuple[str, ...]
    """Pinned; the peer itself first."""
    script: str
    settings: tuple[int, ...]
    """Numbers that ``script drain`` takes; its first lines name them."""
    processes: int
    jobs: int
    """The documented number."""
    unfinished: str
    """SQL: what has not been done yet."""

    @property
    def in_node(self) -> bool:
        """Runs in Node; the others in Python."""
        return self.script.endswith(".mjs")


PEERS: Final = (
    Peer(
        "PgQueuer",
        ("pgqueuer==1.6.0", "asyncpg==0.32.0", UVLOOP),
        "drain_pgqueuer.py",
        settings=(2000,),
        processes=2,
        jobs=50_000,
        unfinished="FROM pgqueuer",
    ),
    Peer(
        "procrastinate",
        ("procrastinate==3.10.0", "psycopg[binary,pool]==3.3.9", UVLOOP),
        "drain_procrastinate.py",
        settings=(30,),
        processes=2,
        jobs=3000,
        unfinished="FROM procrastinate_jobs WHERE status IN ('todo', 'doing')",
    ),
    Peer(
        "graphile-worker",
        ("graphile-worker@0.18.0", PG),
        "drain_graphile.mjs",
        settings=(5000, 500, 10),
        processes=1,
        jobs=100_000,
        unfinished="FROM graphile_worker._private_jobs",
    ),
    Peer(
        "pg-boss",
        ("pg-boss@12.35.0", PG),
        "drain_pgboss.mjs",
        settings=(5000, 3),
        processes=1,
        jobs=100_000,
        unfinished="FROM pgboss.job WHERE name = 'q' AND state < 'completed'",
    ),
)


class PeerError(DriplineError):
    """A peer could not be installed or run."""


@dataclass(frozen=True, slots=True)
class Installed:
    """A peer that can be called."""

    peer: Peer
    program: tuple[str, ...]
    """Interpreter and script."""

    def command(self, what: str, url: str, *numbers: int) -> list[str]:
        """The command line of a phase: ``fill`` or ``drain``."""
        url = url.replace("@/", "@localhost/", 1) if self.peer.in_node else url
        return [*self.program, what, url, *map(str, numbers)]


async def peers(
    bench: Bench, server: EmbeddedServer
) -> tuple[dict[str, Callable[[], Awaitable[float]]], dict[str, str]]:
    """Install the peers and try each: a run of every one that works, in jobs/s, and why the others are skipped."""
    runs: dict[str, Callable[[], Awaitable[float]]] = {}
    skipped: dict[str, str] = {}
    for peer in PEERS:
        bench.say(f"{peer.name}: installing and trying")
        try:
            installed = await install(peer, cache())
            await drained(installed, server, TRIAL)
        except PeerError as error:
            skipped[peer.name] = str(error)
        else:
            runs[peer.name] = partial(drained, installed, server, bench.size(peer.jobs))
    return runs, skipped


# Installing ----------------------------------------------------------------------------------------------------------


def cache() -> Path:
    """Where peers stay installed: outside the checkout, to be deleted at will."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dripline-bench"


async def install(peer: Peer, place: Path) -> Installed:
    """Install ``peer`` below ``place`` unless it is there.

    Raises:
        PeerError: it cannot be installed; one sentence says why.
    """
    folder = place / re.sub(r"[@=]+", "-", peer.packages[0])
    try:
        if peer.in_node:
            program = await _node(place)
            await _npm(folder, peer.packages)
        else:
            program = await _pip(folder, peer.packages)
        # Beside its packages: there Node looks for them.
        for script in ("talk.py", peer.script):
            shutil.copyfile(SCRIPTS / script, folder / script)
    except OSError as error:
        raise PeerError(f"it cannot be installed ({error.strerror or type(error).__name__})") from None
    return Installed(peer, (program, str(folder / peer.script)))


def _fresh(folder: Path, packages: Sequence[str]) -> bool:
    """Whether ``packages`` have to be installed in ``folder``, which is empty then."""
    mark = folder / MARK
    if mark.exists() and mark.read_text() == json.dumps(packages):
        return False
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return True


def _mark(folder: Path, packages: Sequence[str]) -> None:
    """Note that all of ``packages`` are there."""
    (folder / MARK).write_text(json.dumps(packages))


async def _pip(folder: Path, packages: Sequence[str]) -> str:
    """An environment with ``packages``; returns its Python."""
    python = str(folder / "bin" / "python")
    if _fresh(folder, packages):
        await call(sys.executable, "-m", "venv", str(folder))
        await call(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages)
        _mark(folder, packages)
    return python


async def _npm(folder: Path, packages: Sequence[str]) -> None:
    """A folder with ``packages``."""
    if _fresh(folder, packages):
        (folder / "package.json").write_text('{"private": true, "type": "module"}\n')
        await call("npm", "install", "--no-audit", "--no-fund", "--loglevel=error", *packages, folder=folder)
        _mark(folder, packages)


async def _node(place: Path) -> str:
    """Node of the path, or the one from the package of that name."""
    wanted = int(NODE.partition("@")[2].partition(".")[0])
    found = shutil.which("node")
    if found:
        version = re.match(r"v(\d+)\.", await call(found, "--version"))
        if version and int(version[1]) >= wanted:
            return found
    folder = place / NODE.replace("@", "-")
    await _npm(folder, (NODE,))
    return str(folder / "node_modules" / "node" / "bin" / "node")


# Running -------------------------------------------------------------------------------------------------------------


async def drained(installed: Installed, server: EmbeddedServer, jobs: int) -> float:
    """Jobs/s of one run over ``jobs`` jobs, in a database made for it.

    Raises:
        PeerError: it did not run.
    """
    peer = installed.peer
    async with temporary(server, f"bench_{Path(peer.script).stem}") as url, connected(url) as connection:
        await call(*installed.command("fill", url, jobs))
        await connection.execute("VACUUM ANALYZE")
        await connection.execute("CHECKPOINT")
        found = await connection.fetchval(f"SELECT count(*) {peer.unfinished}")
        if found != jobs:
            raise PeerError(f"it does not run (enqueued {found} of {jobs} jobs)")
        command = installed.command("drain", url, *peer.settings)
        try:
            return jobs / await _drain(command, peer, connection, jobs)
        except TimeoutError:
            raise PeerError("it does not run (it was given up after minutes without an end)") from None


async def _drain(command: Sequence[str], peer: Peer, connection: asyncpg.Connection, jobs: int) -> float:
    """Seconds from the word that starts the processes to the last job gone from the tables."""
    look = f"SELECT EXISTS (SELECT {peer.unfinished})"
    async with _started(command, peer.processes) as processes:
        async with asyncio.timeout(READY_S):
            for process in processes:
                await process.ready.wait()
                process.require()
        begun_s = time.perf_counter()
        for process in processes:
            process.go()
        async with asyncio.timeout(DRAIN_S):
            while sum(process.done for process in processes) < jobs or await connection.fetchval(look):
                for process in processes:
                    process.require()
                await asyncio.sleep(LOOK_S)
        return time.perf_counter() - begun_s


@dataclass(slots=True)
class _Process:
    """A process that speaks as peer_scripts/talk.py says."""

    own: asyncio.subprocess.Process
    errors: IO[bytes]
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    done: int = 0
    ended: bool = False

    def go(self) -> None:
        """Let it start."""
        assert self.own.stdin is not None
        self.own.stdin.write(b"go\n")

    def require(self) -> None:
        """Raise unless it lives."""
        if self.ended:
            self.errors.seek(0)
            raise PeerError(f"it does not run ({_reason(self.errors.read().decode(errors='replace'))})")

    async def listen(self) -> None:
        """Note what it says until it ends."""
        assert self.own.stdout is not None
        async for line in self.own.stdout:
            if line.strip().isdigit():
                self.done = int(line)
            elif line.strip() == b"ready":
                self.ready.set()
        self.ended = True
        self.ready.set()


@asynccontextmanager
async def _started(command: Sequence[str], count: int) -> AsyncIterator[list[_Process]]:
    """Processes that listen; ended afterwards, whatever they do."""
    processes: list[_Process] = []
    listening: list[asyncio.Task[None]] = []
    with ExitStack() as stack:
        try:
            for _ in range(count):
                pipe, errors = asyncio.subprocess.PIPE, stack.enter_context(tempfile.TemporaryFile())
                own = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=errors)
                processes.append(_Process(own, errors))
                listening.append(asyncio.create_task(processes[-1].listen()))
            yield processes
        finally:
            for process in processes:
                with suppress(ProcessLookupError):
                    process.own.kill()
                await process.own.wait()
            await asyncio.gather(*listening)


async def call(*command: str, folder: Path | None = None) -> str:
    """What a command prints.

    Raises:
        PeerError: it is not there, takes minutes or fails.
    """
    name = Path(command[0]).name
    pipe = asyncio.subprocess.PIPE
    try:
        process = await asyncio.create_subprocess_exec(
            *command, cwd=folder, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe
        )
    except FileNotFoundError:
        raise PeerError(f"there is no {name}") from None
    try:
        async with asyncio.timeout(INSTALL_S):
            said, complained = await process.communicate()
    except TimeoutError:
        raise PeerError(f"{name} takes longer than {INSTALL_S:.0f} s") from None
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    if process.returncode:
        raise PeerError(f"{name} fails ({_reason((complained or said).decode(errors='replace'))})")
    return said.decode()


def _reason(complaint: str) -> str:
    """The one line of ``complaint`` that says most, without paths and addresses."""
    lines = [line.strip() for line in complaint.splitlines() if line.strip()]
    telling = [line for line in lines if re.search("error", line, re.IGNORECASE)] or lines
    return re.sub(r"\S*/\S*", "...", telling[-1])[:160] if telling else "it says nothing"
