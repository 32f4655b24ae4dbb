"""What the commands share: where the database is, running async bodies, and how lines are shown."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Final, NoReturn, TypeVar

import asyncpg
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dispatcher.config import load_settings
from dispatcher.errors import InputError
from dispatcher.store.connect import connect, store_errors
from dispatcher.store.embedded import EmbeddedServer

T = TypeVar("T")

DatabaseUrl = Annotated[
    str | None,
    typer.Option(
        "--database-url",
        envvar="DRIPLINE_DATABASE_URL",
        show_default="the embedded server",
        help="A libpq URL of any PostgreSQL from version 15.",
    ),
]
DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        envvar="DRIPLINE_DATA_DIR",
        show_default=".dripline",
        help="Where the embedded server keeps its data.",
    ),
]

out: Final = Console(highlight=False, soft_wrap=True)
"""Results, on stdout: colours in a terminal, plain lines elsewhere."""
err: Final = Console(stderr=True, highlight=False, soft_wrap=True)
"""Progress and remarks, on stderr."""

_SIGTERM_STATUS: Final = 128 + signal.SIGTERM


def run(body: Coroutine[Any, Any, T]) -> T:
    """Run a command's async body to its end; SIGTERM ends it like Ctrl-C, with everything closed again."""
    before = signal.signal(signal.SIGTERM, _end)
    try:
        return asyncio.run(body)
    finally:
        signal.signal(signal.SIGTERM, before)


@asynccontextmanager
async def served(url: str | None, data_dir: Path | None) -> AsyncIterator[str]:
    """The URL to use: ``url``, the one in the settings, or that of the embedded server in ``data_dir``.

    An embedded server that was started for this is stopped again, unless others use it by then.
    """
    settings = load_settings(database_url=url, data_dir=data_dir)
    if settings.database_url is not None:
        yield settings.database_url
        return
    server = EmbeddedServer(settings.data_dir)
    running = await asyncio.to_thread(server.running)
    try:
        yield await asyncio.to_thread(server.start)
    finally:
        if not running:
            await asyncio.to_thread(server.stop, unless_used=True)


@asynccontextmanager
async def database(url: str | None, data_dir: Path | None) -> AsyncIterator[asyncpg.Connection]:
    """A connection to what ``served`` finds; what befalls the database becomes one line.

    Raises:
        InputError: the URL is none.
        StoreError: the database cannot be used, or went away.
    """
    async with served(url, data_dir) as found:
        connection = await connect(found)
        try:
            with store_errors(found):
                yield connection
        finally:
            await connection.close(timeout=5)


def require_writable(option: str, path: Path | None, *inputs: Path | None) -> None:
    """Make sure before the work that its result can be written to ``path``, and is not written over an input.

    Raises:
        InputError: it cannot, or is one of ``inputs``.
    """
    if path is None:
        return
    if not path.absolute().parent.is_dir():
        raise InputError(option, f"the directory of {path} does not exist", "create it first")
    if path.is_dir():
        raise InputError(option, f"{path} is a directory", "name a file")
    if any(given is not None and given.exists() and path.exists() and path.samefile(given) for given in inputs):
        raise InputError(option, f"{path} is a file that is read", "name another one")
    if not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise InputError(option, f"{path} cannot be written", "name another file")


def show_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Rows for people in a terminal; elsewhere one line a row, fields apart by tabs, without a heading."""
    texts = [[str(field) for field in row] for row in rows]
    if not out.is_terminal:
        for row in texts:
            typer.echo("\t".join(row))
        return
    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in texts:
        table.add_row(*map(Text, row))  # as it was written: a name may look like markup
    out.print(table)


def _end(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(_SIGTERM_STATUS)
