"""What a run of sends costs: wall time, processor time of PostgreSQL and of this process, WAL, statements."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass

import asyncpg
import psutil


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one run."""

    sends: int
    wall_s: float
    postgresql_cpu_us: float
    """A send."""
    process_cpu_us: float
    """A send, of this process."""
    wal_bytes: float
    """A send."""
    statements: float
    """A thousand sends."""

    @property
    def sends_per_s(self) -> float:
        """How many sends a second of wall time."""
        return self.sends / self.wall_s


@dataclass(frozen=True, slots=True)
class Meter:
    """What all clocks and counters said when a run began."""

    pid: int
    wal_bytes: int
    server_s: float
    process_s: float
    wall_s: float

    @classmethod
    async def begin(cls, connection: asyncpg.Connection, pid: int) -> Meter:
        """Start measuring; the wall clock is read last.

        Args:
            pid: the server's first process.
        """
        wal_bytes = await wal_position(connection)
        return cls(pid, wal_bytes, cpu_s(pid), time.process_time(), time.perf_counter())

    async def end(self, connection: asyncpg.Connection, sends: int, statements: int) -> Figures:
        """What has been spent on ``sends`` since; the wall clock is read first."""
        wall_s, process_s = time.perf_counter() - self.wall_s, time.process_time() - self.process_s
        server_s = cpu_s(self.pid) - self.server_s
        return Figures(
            sends=sends,
            wall_s=wall_s,
            postgresql_cpu_us=server_s / sends * 1e6,
            process_cpu_us=process_s / sends * 1e6,
            wal_bytes=(await wal_position(connection) - self.wal_bytes) / sends,
            statements=statements / sends * 1000,
        )


async def wal_position(connection: asyncpg.Connection) -> int:
    """Bytes of WAL written so far."""
    return int(await connection.fetchval("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn"))


def cpu_s(pid: int) -> float:
    """CPU seconds of the server so far, its ended children included."""
    server = psutil.Process(pid)
    spent = 0.0
    for process in (server, *server.children()):
        with suppress(psutil.NoSuchProcess):  # ended meanwhile: the server counts it below
            times = process.cpu_times()
            spent += times.user + times.system
    own = server.cpu_times()
    return spent + own.children_user + own.children_system
