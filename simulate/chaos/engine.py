"""The engine under attack: a real ``dripline run``, started again whenever it has ended, as an init system would."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from dispatcher.errors import DriplineError

_READY: Final = "ready:"
_PAUSE_S: Final = 0.5
_READY_S: Final = 120.0
_END_S: Final = 120.0
_COMMAND: Final = "from dispatcher.cli.main import main; main()"


class Engine:
    """One installation.

    Args:
        log: what it says is appended here.
        arguments: of ``dripline run``.
        settings: by name, in place of all that this process has in its own environment.
    """

    def __init__(self, log: Path, arguments: list[str], settings: Mapping[str, object]) -> None:
        self._log, self._arguments = log, arguments
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith("DRIPLINE_")}
        self._environment |= {f"DRIPLINE_{name.upper()}": str(value) for name, value in settings.items()}
        self._environment["COLUMNS"] = "200"
        self._watch: asyncio.Task[None] | None = None
        self.starts = 0

    async def start(self) -> None:
        """Start it and wait until it is ready.

        Raises:
            DriplineError: it does not get ready; names what it said last.
        """
        self._launch()
        give_up_s = time.monotonic() + _READY_S
        while _READY not in self._said():
            if time.monotonic() > give_up_s or self._process.poll() is not None:
                raise DriplineError(f"dripline run does not get ready: {self._said().strip().splitlines()[-1:]}")
            await asyncio.sleep(_PAUSE_S)
        self._watch = asyncio.create_task(self._keep_running())

    @property
    def pid(self) -> int:
        """Of its process at present."""
        return self._process.pid

    def kill(self) -> None:
        """``kill -9``; it is started again."""
        self._process.kill()

    async def end_once(self) -> bool:
        """SIGTERM; it drains, ends, and is started again. Returns whether that was seen."""
        before, give_up_s = self.starts, time.monotonic() + _END_S
        self._process.send_signal(signal.SIGTERM)
        while self.starts == before and time.monotonic() < give_up_s:
            await asyncio.sleep(_PAUSE_S)
        return self.starts > before

    async def end(self) -> int:
        """SIGTERM, and wait for the drain; returns the exit status, -9 when it had to be killed."""
        self._stop_watching()
        self._process.send_signal(signal.SIGTERM)
        try:
            return await asyncio.to_thread(self._process.wait, _END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return await asyncio.to_thread(self._process.wait)

    def close(self) -> None:
        """End it at once, if it still runs."""
        self._stop_watching()
        if self.starts:
            self._process.kill()
            self._process.wait()

    def _stop_watching(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    async def _keep_running(self) -> None:
        while True:
            if self._process.poll() is not None:
                self._launch()
            await asyncio.sleep(_PAUSE_S)

    def _launch(self) -> None:
        self.starts += 1
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _COMMAND, "run", *self._arguments],
                stdout=log,
                stderr=log,
                cwd=self._log.parent,
                env=self._environment,
            )

    def _said(self) -> str:
        return self._log.read_text(errors="replace")
