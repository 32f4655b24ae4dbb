"""What every part is given: how often, how large, where."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from dispatcher.store.embedded import EmbeddedServer
from simulate.scratch import scratch_server

T = TypeVar("T")


@dataclass(frozen=True)
class Bench:
    """One run of the benchmark."""

    repeat: int
    """How often everything is measured."""
    scale: float
    """1 for the documented sizes."""
    place: Path
    """A scratch directory on a real disk."""
    say: Callable[[str], None]
    """Tells the person who waits what goes on."""

    def size(self, documented: int) -> int:
        """So many rows of ``documented`` ones, at least a thousand."""
        return max(round(documented * self.scale), 1000)

    @contextmanager
    def server(self) -> Iterator[EmbeddedServer]:
        """PostgreSQL as rehearsals use it: durable, 1 GB of shared buffers; gone afterwards."""
        with scratch_server(self.place, keep=False) as server:
            yield server

    async def interleaved(self, contenders: Mapping[str, Callable[[], Awaitable[T]]]) -> dict[str, list[T]]:
        """Every contender's results; all have their turn before any has its next one."""
        found: dict[str, list[T]] = {name: [] for name in contenders}
        for turn in range(self.repeat):
            for name, run in contenders.items():
                self.say(f"{name} ({turn + 1} of {self.repeat})")
                found[name].append(await run())
        return found
