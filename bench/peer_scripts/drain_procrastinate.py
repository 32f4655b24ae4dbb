"""Procrastinate: ``drain_procrastinate.py fill URL JOBS``, ``drain_procrastinate.py drain URL CONCURRENCY``."""

from __future__ import annotations

import asyncio
import logging
import sys

import procrastinate
import uvloop
from talk import go

CHUNK = 5000
done = 0


def peer(url: str) -> procrastinate.App:
    """The application with its one task, which does nothing."""
    app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=url, min_size=2, max_size=10))

    @app.task(name="job", queue="q")
    async def job() -> None:
        global done
        done += 1

    return app


async def fill(url: str, jobs: int) -> None:
    """Make the tables and enqueue."""
    app = peer(url)
    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        for begin in range(0, jobs, CHUNK):
            await app.tasks["job"].batch_defer_async(*[{} for _ in range(min(CHUNK, jobs - begin))])


async def drain(url: str, concurrency: int) -> None:
    """Take jobs until none is left; what is done is deleted, which is faster than to keep it."""
    app = peer(url)
    async with app.open_async():
        telling = await go(lambda: done)
        await app.run_worker_async(
            concurrency=concurrency, wait=False, install_signal_handlers=False, delete_jobs="always"
        )
        await asyncio.wait([telling])


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    what, url, number = sys.argv[1:]
    uvloop.run({"fill": fill, "drain": drain}[what](url, int(number)))
