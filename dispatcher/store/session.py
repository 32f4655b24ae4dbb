"""How the stores run their statements: one place that tells a lost database from a wrong statement."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from dispatcher.errors import StoreUnavailableError

Connection = PoolConnectionProxy

_PASSING: Final = (
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.TransactionRollbackError,
    asyncpg.LockNotAvailableError,
    asyncpg.ObjectInUseError,
    OSError,
    TimeoutError,
)
"""The database went away, was restarted, is full, or chose this transaction to break a deadlock."""


@asynccontextmanager
async def translated() -> AsyncIterator[None]:
    """Turn what passes by itself into ``StoreUnavailableError``; bugs in statements go through."""
    try:
        yield
    except _PASSING as error:
        raise StoreUnavailableError(f"{type(error).__name__}: {error}") from error


class Session:
    """Named statements on a pool of connections.

    Args:
        pool: the engine's connections.
        statements: SQL by name.
    """

    def __init__(self, pool: asyncpg.Pool, statements: Mapping[str, str]) -> None:
        self._pool = pool
        self._sql = statements

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """A connection inside one transaction, committed synchronously at the end."""
        async with translated(), self._pool.acquire() as connection, connection.transaction():
            yield connection

    async def row(self, name: str, *arguments: Any) -> asyncpg.Record:
        """The one row statement ``name`` returns."""
        async with translated(), self._pool.acquire() as connection:
            row = await connection.fetchrow(self._sql[name], *arguments)
        assert row is not None, name
        return row

    async def rows(self, name: str, *arguments: Any) -> list[asyncpg.Record]:
        """All rows statement ``name`` returns."""
        async with translated(), self._pool.acquire() as connection:
            return await connection.fetch(self._sql[name], *arguments)

    async def value(self, name: str, *arguments: Any) -> Any:
        """The first column of the first row, None without one."""
        async with translated(), self._pool.acquire() as connection:
            return await connection.fetchval(self._sql[name], *arguments)

    async def changed(self, name: str, *arguments: Any) -> int:
        """How many rows statement ``name`` changed."""
        async with translated(), self._pool.acquire() as connection:
            return int((await connection.execute(self._sql[name], *arguments)).rsplit(" ", 1)[1])

    async def close(self) -> None:
        """Close the connections; unanswered statements are cancelled."""
        self._pool.terminate()
