"""What a running engine tells a person: a live line in a terminal, plain lines now and then elsewhere."""

from __future__ import annotations

import time
from datetime import datetime
from types import TracebackType
from typing import Self

from rich.status import Status

from dispatcher.cli.common import err


class Screen:
    """A context manager; lines go to stderr.

    Args:
        quiet: only what needs attention.
        every_s: seconds between plain lines.
    """

    def __init__(self, quiet: bool, every_s: float) -> None:
        self._quiet, self._every_s = quiet, every_s
        self._shown_s = -every_s
        self._live: Status | None = None

    def __enter__(self) -> Self:
        if err.is_terminal and not self._quiet:
            self._live = err.status("starting")
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def attention(self, line: str) -> None:
        """Something a person should read."""
        err.out(f"{datetime.now():%H:%M:%S}  {line}")

    def news(self, line: str) -> None:
        """Something that has happened."""
        if not self._quiet:
            self.attention(line)

    def standing(self, line: str) -> None:
        """How things stand; replaces the line before it in a terminal."""
        if self._live is not None:
            self._live.update(line)
        elif not self._quiet and time.monotonic() - self._shown_s >= self._every_s:
            self._shown_s = time.monotonic()
            self.attention(line)
