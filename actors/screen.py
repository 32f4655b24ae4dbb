"""What a running engine tells: a live line in a terminal, and lines of its log, for people or as JSON."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

from rich.status import Status

from dispatcher import logs
from dispatcher.cli.common import err
from dispatcher.errors import DriplineError


class Screen:
    """A context manager; lines go to stderr.

    Args:
        quiet: only what needs attention.
        every_s: seconds between plain lines on how things stand.
        form: of the lines.
    """

    def __init__(self, quiet: bool, every_s: float, form: logs.Form = "text") -> None:
        self._quiet, self._every_s, self._form = quiet, every_s, form
        self._shown_s = -every_s
        self._live: Status | None = None
        self._entered = False

    def __enter__(self) -> Self:
        self._entered = True
        if err.is_terminal and not self._quiet and self._form == "text":
            self._live = err.status("starting")
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    @property
    def watched(self) -> bool:
        """Whether there is a live line that somebody may look at."""
        return self._live is not None

    def attention(self, line: str, event: str = "attention", **facts: Any) -> None:
        """Something a person should read."""
        self._say("warning", event, line, facts)

    def news(self, line: str, event: str = "news", **facts: Any) -> None:
        """Something that has happened."""
        if not self._quiet:
            self._say("info", event, line, facts)

    def standing(self, line: str, **facts: Any) -> None:
        """How things stand; replaces the line before it in a terminal."""
        if self._live is not None:
            self._live.update(line)
        elif not self._quiet and time.monotonic() - self._shown_s >= self._every_s:
            self._shown_s = time.monotonic()
            self._say("info", "standing", line, facts)

    def failed(self, error: DriplineError) -> bool:
        """Log why the run ends, if its log is JSON and has begun; else the command line says so."""
        if self._form == "json" and self._entered:
            self._say("error", "failed", str(error), {})
        return self._form == "json" and self._entered

    def forwarded(self, data: Mapping[str, Any]) -> None:
        """Lines that a process of the cluster has written; what is not a line of a log already becomes one.

        Args:
            data: as Ray's own printing gets it.
        """
        if data.get("pid") == "autoscaler":
            return
        who = f"{data.get('actor_name') or data.get('task_name') or 'ray'} {data.get('pid')}"
        for line in data.get("lines", ()):
            if not line.strip():
                continue
            if self._form == "json" and not line.startswith("{"):
                line = logs.line("json", datetime.now(UTC), who, "error" if data["is_err"] else "info", "output", line)
            print(logs.masked(line) if self._form == "text" else line, file=sys.stderr, flush=True)

    def _say(self, level: str, event: str, message: str, facts: Mapping[str, Any]) -> None:
        err.out(logs.line(self._form, datetime.now(UTC), "run", level, event, message, facts))
