"""What the commands share: where the database is, running async bodies, and how lines are shown."""

from __future__ import annotations

import asyncio
import getpass
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Final, NoReturn, TypeVar

import asyncpg
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from dispatcher.config import load_settings
from dispatcher.core.moments import from_datetime
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
        help="Where the embedded server keeps its data. Only db start, db migrate, run and simulate make a new one.",
    ),
]
By = Annotated[
    str | None, typer.Option("--by", show_default="this user", help="Whose decision it is, for the operators' log.")
]

out: Final = Console(highlight=False, soft_wrap=True)
"""Results, on stdout: colours in a terminal, plain lines elsewhere."""
err: Final = Console(stderr=True, highlight=False, soft_wrap=True)
"""Progress and remarks, on stderr."""

_SIGTERM_STATUS: Final = 128 + signal.SIGTERM
_LINE_EVERY_S: Final = 5.0


def run(body: Coroutine[Any, Any, T]) -> T:
    """Run a command's async body to its end; SIGTERM ends it like Ctrl-C, with everything closed again."""
    with sigterm_ends():
        try:
            return asyncio.run(body)
        except (KeyboardInterrupt, SystemExit) as end:
            err.out("interrupted" if isinstance(end, KeyboardInterrupt) else "terminated")
            raise


@contextmanager
def sigterm_ends() -> Iterator[None]:
    """SIGTERM ends what runs inside by ``SystemExit(143)``, once: a second one disturbs neither closing nor leaving."""
    before = signal.signal(signal.SIGTERM, _end)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) is _end:  # else it has come, and the process is on its way out
            signal.signal(signal.SIGTERM, before)


@asynccontextmanager
async def served(url: str | None, data_dir: Path | None, *, create: bool = False) -> AsyncIterator[str]:
    """The URL to use: ``url``, the one in the settings, or that of the embedded server in ``data_dir``.

    An embedded server that was started for this is stopped again, unless others use it by then.

    Args:
        create: make an embedded database where there is none.

    Raises:
        InputError: there is none, and none may be made: a mistyped directory must not look like an empty database.
    """
    settings = load_settings(database_url=url, data_dir=data_dir)
    if settings.database_url is not None:
        yield settings.database_url
        return
    server = EmbeddedServer(settings.data_dir)
    running = await asyncio.to_thread(server.running)
    if not create and not server.exists():
        raise InputError("--data-dir", f"there is no database in {settings.data_dir}", "make one: dripline db migrate")
    try:
        yield await asyncio.to_thread(server.start)
    finally:
        if not running:
            await asyncio.to_thread(server.stop, unless_used=True)


@asynccontextmanager
async def database(
    url: str | None, data_dir: Path | None, *, create: bool = False
) -> AsyncIterator[asyncpg.Connection]:
    """A connection to what ``served`` finds; what befalls the database becomes one line.

    Raises:
        InputError: the URL is none, there is no embedded database, or it is not migrated.
        StoreError: the database cannot be used, or went away.
    """
    async with served(url, data_dir, create=create) as found:
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
    new = not path.exists()
    if new or path.is_file():
        try:  # permissions do not tell everything: file systems refuse, and root is refused by no permission
            path.open("ab").close()
        except OSError as error:
            raise InputError(option, f"{path} cannot be written: {error.strerror}", "name another file") from None
        if new:
            path.unlink()


def require_directory(option: str, path: Path | None) -> None:
    """Make sure before the work that its results can be written into ``path``, which need not exist yet.

    Raises:
        InputError: they cannot.
    """
    if path is None:
        return
    if path.exists() and not path.is_dir():
        raise InputError(option, f"{path} is a file", "name a directory")
    if not path.exists() and not path.absolute().parent.is_dir():
        raise InputError(option, f"the directory of {path} does not exist", "create it first")
    new = not path.exists()
    try:
        if new:
            path.mkdir()
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        problem = f"{path} cannot be written into: {error.strerror}"
        raise InputError(option, problem, "name another directory") from None
    finally:
        if new and path.is_dir():
            path.rmdir()


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


@contextmanager
def progress(total: int, what: str) -> Iterator[Callable[[int], None]]:
    """How far a long operation has come, told by calls with the number done: a bar, or a line every 5 s."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    shown_s = time.monotonic()
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task(what, total=total)

        def show(done: int) -> None:
            nonlocal shown_s
            bar.update(task, completed=done)
            if not err.is_terminal and time.monotonic() - shown_s >= _LINE_EVERY_S:
                shown_s = time.monotonic()
                err.out(f"{done:,} of {total:,} {what}")

        yield show


def moment_us(option: str, text: str) -> int:
    """A moment that a person wrote, in microseconds; without a time zone it is UTC.

    Raises:
        InputError: it is none.
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise InputError(option, f"{text!r} is no moment", "write it like 2026-01-05T09:00:00Z") from None
    return from_datetime(moment if moment.tzinfo else moment.replace(tzinfo=UTC))


def confirm(command: str, question: str) -> None:
    """Ask a person before something large is done.

    Raises:
        InputError: nobody is there to be asked.
        Abort: the answer is no.
    """
    if not sys.stdin.isatty():
        raise InputError(command, f"{question} Nobody can be asked here", "give --yes")
    typer.confirm(question, abort=True)


def actor(by: str | None) -> str:
    """Who decides: ``by``, else the user of this process."""
    if by:
        return by
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user need not have a name
        return f"uid {os.getuid()}"


def _end(_signal: int, _frame: FrameType | None) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise SystemExit(_SIGTERM_STATUS)
