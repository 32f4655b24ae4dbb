"""What a run of sends costs: wall and processor time, and what no machine changes: WAL, statements, rows read."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import NamedTuple

import asyncpg
import psutil

_READ = """
SELECT (SELECT sum(seq_tup_read + coalesce(idx_tup_fetch, 0)) FROM pg_stat_user_tables)::bigint AS rows,
       (SELECT sum(idx_tup_read) FROM pg_stat_user_indexes)::bigint AS entries
"""


class Read(NamedTuple):
    """What statements have read."""

    rows: float
    """Of tables, wanted or not."""
    entries: float
    """Of indexes, dead ones included."""


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
    read: Read
    """A send."""

    @property
    def sends_per_s(self) -> float:
        """How many sends a second of wall time."""
        return self.sends / self.wall_s


@dataclass(frozen=True, slots=True)
class Meter:
    """What all clocks and counters said when a run began."""

    pid: int
    pools: Sequence[asyncpg.Pool]
    read: Read
    wal_bytes: int
    server_s: float
    process_s: float
    wall_s: float

    @classmethod
    async def begin(cls, connection: asyncpg.Connection, pid: int, pools: Sequence[asyncpg.Pool]) -> Meter:
        """Start measuring; the wall clock is read last.

        Args:
            pid: the server's first process.
            pools: whoever sends; none of their connections is in use when measuring begins and ends.
        """
        read, wal_bytes = await read_so_far(connection, pools), await wal_position(connection)
        return cls(pid, pools, read, wal_bytes, cpu_s(pid), time.process_time(), time.perf_counter())

    async def end(self, connection: asyncpg.Connection, sends: int, statements: int) -> Figures:
        """What has been spent on ``sends`` since; the wall clock is read first."""
        wall_s, process_s = time.perf_counter() - self.wall_s, time.process_time() - self.process_s
        server_s = cpu_s(self.pid) - self.server_s
        wal_bytes = await wal_position(connection) - self.wal_bytes
        read = await read_so_far(connection, self.pools)
        return Figures(
            sends=sends,
            wall_s=wall_s,
            postgresql_cpu_us=server_s / sends * 1e6,
            process_cpu_us=process_s / sends * 1e6,
            wal_bytes=wal_bytes / sends,
            statements=statements / sends * 1000,
            read=Read(*((now - before) / sends for now, before in zip(read, self.read, strict=True))),
        )


async def read_so_far(connection: asyncpg.Connection, pools: Sequence[asyncpg.Pool]) -> Read:
    """What has been read in the database of ``connection``, by the connections of ``pools`` up to now.

    A server process tells its counters at most once a second, unless asked to.
    """
    async with AsyncExitStack() as stack:
        for pool in pools:
            for _ in range(pool.get_size()):
                own = await stack.enter_async_context(pool.acquire())
                await own.execute("SELECT pg_stat_force_next_flush()")
        row = await connection.fetchrow(_READ)
    assert row is not None
    return Read(row["rows"], row["entries"])


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
