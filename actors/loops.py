"""The loops of an actor: one that breaks off is a bug, and the actor asks to be replaced."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

_log = logging.getLogger(__name__)


class Loops:
    """Tasks an actor keeps running.

    Args:
        owner: names the actor in the log.
    """

    def __init__(self, owner: str) -> None:
        self._owner = owner
        self._tasks: set[asyncio.Task[Any]] = set()
        self.broken = False
        """Whether this incarnation has ended: fenced, or a task of it broke off. The next starts from PostgreSQL."""

    def start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run ``work`` beside everything else."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._note_end)
        return task

    def cancel(self) -> None:
        """Stop all of them."""
        for task in self._tasks:
            task.cancel()

    def _note_end(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("%s broke off and is to be replaced", self._owner, exc_info=error)
            self.broken = True
