"""The HTTP server, and what runs beside it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final

import uvicorn

from dispatcher.config import Settings
from dispatcher.loops import Loops
from dispatcher.store.connect import open_pool
from dispatcher.store.receipts import PostgresReceiptStore
from dispatcher.webhooks.app import Inbox, create_app
from dispatcher.webhooks.settler import Settler

CONNECTIONS: Final = 128
"""Of clients, at once; further ones get 503. Each may hold a body of three mebibytes."""

_STORE_CONNECTIONS: Final = 4
_STATEMENT_S: Final = 20.0
_HEAD_BYTES: Final = 16 * 1024
_GRACE_S: Final = 5


@asynccontextmanager
async def serving(
    listening: socket.socket, url: str, settings: Settings, say: Callable[[str], None]
) -> AsyncIterator[None]:
    """Serve webhooks as long as the context lasts; what is under way at its end is answered first.

    Args:
        listening: from ``listen``; closed in the end.
        url: the database.
        settings: secrets, and how often ``say`` is told.
        say: shows a person one line, where there is news.

    Raises:
        StoreError: the database cannot be reached at the start.
    """
    with contextlib.closing(listening):
        pool = await open_pool(
            url, size=_STORE_CONNECTIONS, application_name="dripline webhooks", statement_timeout_s=_STATEMENT_S
        )
        store = PostgresReceiptStore(pool, settings.skew_s)
        settler = Settler(store)
        inbox = Inbox(store, settler.wake)
        news = _News(inbox, settler, say)
        beside = Loops("the webhooks")
        server = _Server(
            uvicorn.Config(
                create_app(settings, inbox),
                http="h11",
                ws="none",
                lifespan="off",
                interface="asgi3",
                log_config=None,
                log_level="error",
                access_log=False,  # paths may hold secrets
                server_header=False,
                limit_concurrency=CONNECTIONS,
                h11_max_incomplete_event_size=_HEAD_BYTES,
                timeout_graceful_shutdown=_GRACE_S,
            )
        )
        serving_ = asyncio.create_task(server.serve([listening]))
        try:
            beside.start(settler.live())
            beside.start(news.live(settings.cycle_s))
            yield
        finally:
            server.should_exit = True
            await asyncio.wait({serving_})
            beside.cancel()
            await store.close()
            news.tell()


class _Server(uvicorn.Server):
    """Signals are for whoever started it."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _News:
    """What has come so far, on one line, where that is news."""

    def __init__(self, inbox: Inbox, settler: Settler, say: Callable[[str], None]) -> None:
        self._inbox, self._settler, self._say = inbox, settler, say
        self._told = self._line()

    def _line(self) -> str:
        inbox, settled = self._inbox, self._settler.settled
        parts = [f"{inbox.taken:,} events taken"]
        parts += [f"{inbox.skipped:,} skipped"] if inbox.skipped else []
        parts += [f"{count:,} requests refused with {status}" for status, count in sorted(inbox.refused.items())]
        parts += [f"{settled:,} in doubt settled"] if settled else []
        return f"webhooks: {', '.join(parts)}"

    def tell(self) -> None:
        if (line := self._line()) != self._told:
            self._told = line
            self._say(line)

    async def live(self, every_s: float) -> None:
        while True:
            await asyncio.sleep(every_s)
            self.tell()
