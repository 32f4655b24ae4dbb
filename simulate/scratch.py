"""The embedded server a rehearsal runs on: a scratch one that goes with the run, or one that is kept."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from dispatcher.errors import InputError
from dispatcher.store.embedded import EmbeddedServer

_SHARED_BUFFERS_MB = 1024


@contextmanager
def scratch_server(data_dir: Path, *, keep: bool) -> Iterator[EmbeddedServer]:
    """A started server; stopped at the end, unless it ran before: then others use it.

    Args:
        data_dir: where ``dripline db start`` finds a server that is kept; a scratch one lives below it.
        keep: leave the data for inspection, replacing an earlier kept rehearsal.
    """
    place = data_dir if keep else data_dir / f"scratch-{os.getpid()}"
    server = EmbeddedServer(place, shared_buffers_mb=_SHARED_BUFFERS_MB)
    if not keep:
        try:
            data_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError("--data-dir", f"{data_dir} cannot be used: {error.strerror}", "name another one") from None
        _sweep(data_dir)
    running = server.running()
    try:
        server.start()
        yield server
    finally:
        if not running:
            server.stop()
        if not keep:
            shutil.rmtree(place, ignore_errors=True)
            with contextlib.suppress(OSError):
                data_dir.rmdir()


def _sweep(data_dir: Path) -> None:
    """End and remove what rehearsals left whose process was killed."""
    for place in data_dir.glob("scratch-*"):
        owner = place.name.removeprefix("scratch-")
        if owner.isdecimal() and not psutil.pid_exists(int(owner)):
            EmbeddedServer(place).stop()
            shutil.rmtree(place, ignore_errors=True)
