"""A process's connection to the database: the in-memory store behind latencies, stalls, losses and crash points."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from dispatcher.errors import StoreUnavailableError
from simulate.prove.stage import Member

_LATENCY_S = 0.004
_ANSWER_S = 10.0
"""The longest a statement may take before the connection is given up."""


class Connection:
    """A store, or a seat, as one process sees it: every method is a statement that may not come back.

    Args:
        member: whose connection.
        store: an in-memory store or seat.
    """

    def __init__(self, member: Member, store: Any) -> None:
        self._member, self._store = member, store
        if hasattr(store, "seat"):
            self.seat = Connection(member, store.seat)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        if not callable(found):
            return found
        call = self._statement(name, found)
        setattr(self, name, call)
        return call

    def _statement(self, name: str, method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        member = self._member
        stage = member.stage

        async def statement(*arguments: Any, **named: Any) -> Any:
            await asyncio.sleep(stage.latency_s(_LATENCY_S))
            await member.crash_point("before", name)
            if stage.struck("statement stalled", member.name, name):
                await asyncio.sleep(stage.dice.between(0.1, _ANSWER_S))
            if stage.loop.time() < stage.down_until_s:
                raise StoreUnavailableError("the database is down")
            if stage.struck("connection lost before commit", member.name, name):
                raise StoreUnavailableError("connection lost")
            restarts = stage.restarts
            await stage.reach(name, *arguments, **named)
            result = await method(*arguments, **named)
            stage.note(member.name, name)
            stage.done(name)
            await member.crash_point("after", name)
            if stage.struck("answer stalled", member.name, name):
                await asyncio.sleep(stage.dice.between(0.1, _ANSWER_S))
            if stage.struck("connection lost after commit", member.name, name) or stage.restarts != restarts:
                raise StoreUnavailableError("connection lost")
            await asyncio.sleep(stage.latency_s(_LATENCY_S))
            return result

        return statement

    async def close(self) -> None:
        """Nothing is kept open."""
