"""Which fault strikes when, drawn from the seed, spread over the run by how far the messages are."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from simulate.chaos.faults import CUTS, TROUBLES, Fault
from simulate.chaos.stage import Stage

FIRST: Final = 0.02
LAST: Final = 0.85
"""The share of the messages that is done when the first fault strikes, and the last."""
_LOOK_S: Final = 0.2
_STALLED_S: Final = 180.0


@dataclass(frozen=True, slots=True)
class Strike:
    """A fault and the share of the messages that is done when it strikes."""

    at: float
    fault: Fault
    seed: int


def drawn(seed: int, cuts: int, only: Collection[str] = ()) -> list[Strike]:
    """The storm of a seed: ``cuts`` kills and cuts and half as many troubles, earliest first.

    Every kind strikes if there is room; some strike in the same moment.

    Args:
        only: names of the kinds that may strike; all of them if empty.
    """
    rng = Random(seed)  # noqa: S311
    may = [[kind for kind in kinds if not only or kind.name in only] for kinds in (CUTS, TROUBLES)]
    faults = _mixed(rng, may[0], cuts) + _mixed(rng, may[1], cuts // 2)
    moments = [rng.uniform(FIRST, LAST) for _ in faults]
    return sorted((Strike(at, fault, rng.getrandbits(32)) for at, fault in zip(moments, faults, strict=True)),
                  key=lambda strike: strike.at)  # fmt: skip


def _mixed(rng: Random, kinds: Sequence[Fault], count: int) -> list[Fault]:
    """Each kind once as far as ``count`` goes, the rest by weight; none where there is no kind."""
    if not kinds:
        return []
    weights = [kind.weight for kind in kinds]
    chosen = rng.sample(kinds, min(count, len(kinds)))
    return chosen + rng.choices(kinds, weights, k=count - len(chosen))


class Storm:
    """Lets faults strike.

    Args:
        stage: what they strike at.
        strikes: from ``drawn``.
        done: the share of the messages that is done.
    """

    def __init__(self, stage: Stage, strikes: list[Strike], done: Callable[[], float]) -> None:
        self._stage, self._waiting, self._done = stage, strikes, done
        self.struck: Counter[str] = Counter()

    async def run(self) -> None:
        """Return when the last strike is over, or nothing has gone on for minutes."""
        best, since_s = 0.0, time.monotonic()
        async with asyncio.TaskGroup() as under_way:
            while self._waiting and time.monotonic() - since_s < _STALLED_S:
                done = self._done()
                if done > best:
                    best, since_s = done, time.monotonic()
                while self._waiting and self._waiting[0].at <= done:
                    under_way.create_task(self._strike(self._waiting.pop(0)))
                await asyncio.sleep(_LOOK_S)

    async def _strike(self, strike: Strike) -> None:
        if await strike.fault.strike(self._stage, Random(strike.seed)):  # noqa: S311
            self.struck[strike.fault.name] += 1
