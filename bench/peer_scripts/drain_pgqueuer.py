"""PgQueuer: ``drain_pgqueuer.py fill URL JOBS``, ``drain_pgqueuer.py drain URL BATCH``."""

from __future__ import annotations

import asyncio
import logging
import sys
from datetime import timedelta

import asyncpg
import uvloop
from pgqueuer.db import AsyncpgDriver
from pgqueuer.qm import QueueManager
from pgqueuer.queries import Queries
from pgqueuer.types import QueueExecutionMode
from talk import go

CHUNK = 5000


async def fill(url: str, jobs: int) -> None:
    """Make the tables and enqueue."""
    connection = await asyncpg.connect(url)
    queries = Queries(AsyncpgDriver(connection))
    await queries.install()
    for begin in range(0, jobs, CHUNK):
        count = min(CHUNK, jobs - begin)
        await queries.enqueue(["job"] * count, [None] * count, [0] * count)
    await connection.close()


async def drain(url: str, batch: int) -> None:
    """Take jobs until none is left."""
    peer = QueueManager(Queries(AsyncpgDriver(await asyncpg.connect(url))))
    done = 0

    @peer.entrypoint("job", accepts_context=False)
    async def job(_: object) -> None:
        nonlocal done
        done += 1

    telling = await go(lambda: done)
    await peer.run(batch_size=batch, mode=QueueExecutionMode.drain, dequeue_timeout=timedelta(seconds=1))
    await asyncio.wait([telling])


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    what, url, number = sys.argv[1:]
    uvloop.run({"fill": fill, "drain": drain}[what](url, int(number)))
