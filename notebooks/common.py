"""What the notebooks share: how charts look, and a database that is only read."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import altair as alt
import asyncpg
import polars as pl

from dispatcher.store.connect import connect, store_errors

BLUE, RED, GREEN, ORANGE, PURPLE, GREY = "#3f8fd2", "#d9534f", "#2fa37c", "#e39a2d", "#9a6fd0", "#9aa0a8"
logging.getLogger("ray.widgets.util").setLevel(logging.ERROR)  # it recommends packages as soon as it is imported
_TEXT, _LINE = "#808791", "#80879155"


@alt.theme.register("dripline", enable=True)
def _theme() -> alt.theme.ThemeConfig:
    """Legible on a white page and on a black one: no background, and greys half-way between the two."""
    return {
        "config": {
            "background": "transparent",
            "view": {"stroke": None, "continuousWidth": 720, "continuousHeight": 220},
            "title": {"color": _TEXT, "fontSize": 14, "fontWeight": 600, "anchor": "start", "offset": 10},
            "axis": {
                "labelColor": _TEXT, "titleColor": _TEXT, "titleFontWeight": 400, "gridColor": _LINE,
                "domainColor": _LINE, "tickColor": _LINE, "labelFontSize": 11, "titleFontSize": 12,
            },
            "legend": {
                "labelColor": _TEXT, "titleColor": _TEXT, "titleFontWeight": 400, "labelFontSize": 11,
                "titleFontSize": 12, "labelLimit": 260,
            },
            "header": {"labelColor": _TEXT, "titleColor": _TEXT, "labelFontSize": 12},
            "range": {"category": [BLUE, ORANGE, GREEN, RED, PURPLE, GREY, "#4fb3bf", "#b5852c"]},
        }
    }  # fmt: skip


@asynccontextmanager
async def reading(url: str, timeout_s: float = 60.0) -> AsyncIterator[asyncpg.Connection]:
    """A connection that can write nothing, and whose statements end after ``timeout_s``.

    Raises:
        InputError: ``url`` is not a PostgreSQL URL.
        StoreError: the database cannot be used, or is not migrated.
    """
    with store_errors(url):
        connection = await connect(url, application_name="dripline notebook")
        try:
            await connection.execute("SET default_transaction_read_only = on")
            await connection.execute(f"SET statement_timeout = {round(timeout_s * 1000)}")
            yield connection
        finally:
            await connection.close()


async def table(connection: asyncpg.Connection, query: str, *arguments: Any) -> pl.DataFrame:
    """What a query returns, with all its columns even if there is no row."""
    statement = await connection.prepare(query)
    rows = await statement.fetch(*arguments)
    names = [attribute.name for attribute in statement.get_attributes()]
    return pl.DataFrame({name: [row[name] for row in rows] for name in names}, strict=False)
