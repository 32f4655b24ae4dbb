"""What production statements read and write: the same statements, with the same arguments, under EXPLAIN."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from functools import cache
from importlib.resources import files
from typing import Any, Final

import asyncpg

from dispatcher.store.statements import statements

_EXPLAIN: Final = "EXPLAIN (ANALYZE, BUFFERS, WAL, TIMING OFF, FORMAT JSON) "

Run = tuple[str, tuple[Any, ...]]
"""A statement and its arguments."""


async def heard(pool: asyncpg.Pool, call: Callable[[], Awaitable[object]]) -> list[Run]:
    """The statements of production that ``call`` runs on ``pool``, which has one connection."""
    found: list[Run] = []

    def note(record: Any) -> None:
        found.append((record.query, record.args))

    async with pool.acquire() as connection:
        connection.add_query_logger(note)
    await call()
    await asyncio.sleep(0)  # the connection tells its listeners in the next turn of the loop
    async with pool.acquire() as connection:
        connection.remove_query_logger(note)
    return [run for run in found if run[0] in _known()]


async def counted(pool: asyncpg.Pool, runs: list[Run]) -> dict[str, float]:
    """Buffers, rows read and bytes of WAL of these statements together; what they do is rolled back."""
    total = {"buffers": 0.0, "rows read": 0.0, "WAL B": 0.0}
    async with pool.acquire() as connection:
        transaction = connection.transaction()
        await transaction.start()
        for sql, arguments in runs:
            plan = json.loads(await connection.fetchval(_EXPLAIN + sql, *arguments))[0]["Plan"]
            for node in (plan, *_unread(plan)):
                total["buffers"] += node["Shared Hit Blocks"] + node["Shared Read Blocks"]
                total["WAL B"] += node["WAL Bytes"]
            total["rows read"] += sum(_rows_read(node) for node in nodes(plan))
        await transaction.rollback()
    return total


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A node of a plan and all below it."""
    yield plan
    for part in plan.get("Plans", ()):
        yield from nodes(part)


def _rows_read(node: dict[str, Any]) -> float:
    """Rows of tables that a node looked at, whether they were wanted or not."""
    if "Relation Name" not in node or "Scan" not in node["Node Type"]:
        return 0.0
    removed = sum(count for name, count in node.items() if name.startswith("Rows Removed"))
    return float((node["Actual Rows"] + removed) * node["Actual Loops"])


def _unread(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Writing parts whose result nobody reads: they run after the root, and are not in its sums."""
    read = {node["CTE Name"] for node in nodes(plan) if node["Node Type"] == "CTE Scan"}
    for node in nodes(plan):
        kind, _, name = node.get("Subplan Name", "").partition(" ")
        if node["Node Type"] == "ModifyTable" and kind == "CTE" and name not in read:
            yield node


@cache
def _known() -> frozenset[str]:
    names = [path.name for path in files("dispatcher.store").joinpath("sql").iterdir()]
    return frozenset(
        sql for name in names if name.endswith(".sql") for sql in statements(name.removesuffix(".sql")).values()
    )
