"""What a loop keeps running: tasks that end with it, and whether one of them broke off, which is a bug."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

_log = logging.getLogger(__name__)


class Loops:
    """Tasks of one incarnation of a shard or the coordinator.

    Args:
        owner: names it in the log.
    """

    def __init__(self, owner: str) -> None:
        self._owner = owner
        self._tasks: dict[asyncio.Task[Any], None] = {}  # in order: a simulation repeats itself
        self.broken = False
        """Whether this incarnation has ended: fenced, or a task of it broke off. The next starts from PostgreSQL."""

    def start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run ``work`` beside everything else."""
        task = asyncio.create_task(work)
        self._tasks[task] = None
        task.add_done_callback(self._note_end)
        return task

    @property
    def running(self) -> int:
        """How many have not ended."""
        return len(self._tasks)

    def cancel(self) -> None:
        """Stop all of them, wherever they are."""
        for task in self._tasks:
            task.cancel()

    def _note_end(self, task: asyncio.Task[Any]) -> None:
        del self._tasks[task]
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("%s broke off and is to be replaced", self._owner, exc_info=error, extra={"event": "broke_off"})
            self.broken = True


async def woken_by(event: asyncio.Event, until_s: float) -> bool:
    """Wait for ``event``, at most until ``until_s`` of liveness time, and clear it; returns whether it was set."""
    try:
        async with asyncio.timeout_at(until_s):
            await event.wait()
    except TimeoutError:
        pass
    woken = event.is_set()
    event.clear()
    return woken
