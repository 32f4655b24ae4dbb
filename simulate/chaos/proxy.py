"""A TCP proxy between the engine and PostgreSQL: connections can be cut and stalled, and a commit's answer lost."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Final

_CHUNK: Final = 65_536
_COMMIT: Final = b"COMMIT;"


class _Link:
    """One client's connection and the server's end of it."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self._writers = (client, server)
        self.answer_lost = False

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()


class Proxy:
    """Listens on the loopback and passes bytes on to a server's unix socket.

    Args:
        socket: the server's socket file.
    """

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._links: set[_Link] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._losing = asyncio.Lock()
        self._lost: asyncio.Event | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0

    async def start(self) -> None:
        """Listen on any free port."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Stop listening and cut everything."""
        self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> int:
        """Reset every connection on both sides; returns how many there were."""
        links, self._links = self._links, set()
        for link in links:
            link.cut()
        return len(links)

    async def stall(self, for_s: float) -> None:
        """Let nothing through for so long; nothing is lost."""
        self._flowing.clear()
        try:
            await asyncio.sleep(for_s)
        finally:
            self._flowing.set()

    async def lose_answer(self, within_s: float) -> bool:
        """Let the next COMMIT reach the server, and cut its connection as soon as the server answers.

        Returns whether there was one in that time.
        """
        async with self._losing:
            self._lost = lost = asyncio.Event()
            try:
                await asyncio.wait_for(lost.wait(), within_s)
            except TimeoutError:
                return False
            finally:
                self._lost = None
            return True

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            from_server, to_server = await asyncio.open_unix_connection(str(self._socket))
        except OSError:
            writer.transport.abort()
            return
        link = _Link(writer, to_server)
        self._links.add(link)
        asks = asyncio.create_task(self._pass_on(reader, to_server, link, asking=True))
        answers = asyncio.create_task(self._pass_on(from_server, writer, link, asking=False))
        self._tasks |= {asks, answers}
        try:
            with contextlib.suppress(asyncio.CancelledError):  # asyncio's streams would report it as an error
                await asyncio.wait({asks, answers}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            link.cut()
            self._links.discard(link)
            for task in (asks, answers):
                task.cancel()
            await asyncio.gather(asks, answers, return_exceptions=True)
            self._tasks -= {asks, answers}

    async def _pass_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, link: _Link, *, asking: bool
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(_CHUNK):
                await self._flowing.wait()
                if link.answer_lost and not asking:
                    return
                if asking and self._lost is not None and not self._lost.is_set() and _COMMIT in data:
                    link.answer_lost = True
                    self._lost.set()
                writer.write(data)
                await writer.drain()
