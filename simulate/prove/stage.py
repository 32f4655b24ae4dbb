"""Where a seed is played: time, the database, what is going wrong right now, and the trace of what happened."""

from __future__ import annotations

import asyncio
import contextvars
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

from dispatcher.core.moments import span_us
from simulate.memory_store import MemoryDatabase
from simulate.prove.dice import Dice
from simulate.prove.faults import WEATHER, Fault
from simulate.prove.virtual_loop import Process, VirtualLoop
from simulate.prove.world import START_US, World

_ERROR: Final = 0.45
"""Of ``skew_s``, how far a clock is off at most while nothing is wrong: two of them differ by less than all of it."""


class Stage:
    """What everybody on it shares.

    Args:
        seed: of the latencies.
        world: what was drawn.
    """

    def __init__(self, seed: int, world: World) -> None:
        self.seed, self.world = seed, world
        self.loop = VirtualLoop()  # type: ignore[abstract]
        self.dice = Dice(seed, "stage")
        self.database_error_us = self.error_us(self.dice.of("database clock"))
        """How far the database's clock is off, as every clock is."""
        self.database_step_us = 0
        """What somebody has set it wrong by."""
        self.database = MemoryDatabase(self.database_us, world.settings.hour_s)
        self.down_until_s = 0.0
        """The database answers nobody before."""
        self.restarts = 0
        """Of the database: a statement that one came between gets no answer."""
        self.injected: Counter[str] = Counter()
        """Faults that have struck, by kind."""
        self.trace: list[tuple[int, str, str]] = []
        """Moment (microseconds since the beginning), who, what."""
        self._weather: dict[str, list[tuple[Fault, Dice]]] = {kind: [] for kind in WEATHER}
        self._waylaid: list[tuple[str, Callable[..., Awaitable[None]]]] = []
        self._heard: dict[str, Callable[[], None]] = {}
        self._outside = contextvars.copy_context()

    # Time ----------------------------------------------------------------------------------------------------

    def true_us(self) -> int:
        """The moment as it is; everybody's clock but the gateways' may be off."""
        return START_US + span_us(self.loop.time())

    def database_us(self) -> int:
        """The database's clock."""
        return self.true_us() + self.database_error_us + self.database_step_us

    def error_us(self, dice: Dice) -> int:
        """How far a clock may be off that is kept as clocks are."""
        return span_us(dice.between(-_ERROR, _ERROR) * self.world.settings.skew_s)

    def at(self, when_s: float, act: Any, *arguments: Any) -> None:
        """Have something happen in the world, in no process."""
        self.loop.call_at(when_s, act, *arguments, context=self._outside)

    def after(self, delay_s: float, act: Any, *arguments: Any) -> None:
        """Have something happen in the world ``delay_s`` from now."""
        self.at(self.loop.time() + delay_s, act, *arguments)

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Something of the world that takes time."""
        return self.loop.create_task(work, context=self._outside)

    # What happens --------------------------------------------------------------------------------------------

    def note(self, who: str, what: str) -> None:
        """Add a line to the trace."""
        self.trace.append((span_us(self.loop.time()), who, what))

    def strike(self, kind: str, who: str = "world", what: str = "") -> None:
        """A fault strikes."""
        self.injected[kind] += 1
        self.note(who, f"*** {kind}{': ' if what else ''}{what}")

    def begin(self, fault: Fault) -> None:
        """Weather sets in."""
        self._weather[fault.kind].append((fault, self.dice.of("weather", fault.number)))

    def end(self, fault: Fault) -> None:
        """Weather is over."""
        self._weather[fault.kind] = [pair for pair in self._weather[fault.kind] if pair[0].number != fault.number]

    def struck(self, kind: str, who: str, what: str = "") -> bool:
        """Whether the weather strikes a call; noted if it does."""
        for fault, dice in self._weather[kind]:
            if dice.chance(fault.share):
                self.strike(kind, who, what)
                return True
        return False

    def heal(self) -> None:
        """Faults are over: nobody is waylaid any more."""
        self._waylaid.clear()

    def latency_s(self, most_s: float) -> float:
        """How long something takes: never nothing, so that the order of events is the order of moments."""
        return 1e-4 + self.dice.uniform() * most_s

    # Statements ----------------------------------------------------------------------------------------------

    def waylay(self, name: str, act: Callable[..., Awaitable[None]]) -> None:
        """Hold up the next statement of this ``name``, as long as ``act`` takes; it is given its arguments."""
        self._waylaid.append((name, act))

    def listen(self, name: str, act: Callable[[], None]) -> None:
        """Have ``act`` called whenever a statement of this ``name`` has been done, known to its sender or not."""
        self._heard[name] = act

    async def reach(self, name: str, *arguments: Any, **named: Any) -> None:
        """A statement has reached the database."""
        for place, (waylaid, act) in enumerate(self._waylaid):
            if waylaid == name:
                del self._waylaid[place]
                await act(*arguments, **named)
                return

    def done(self, name: str) -> None:
        """A statement has been done."""
        if name in self._heard:
            self._heard[name]()


class Member(Process):
    """A process with a clock of its own, that may die at a statement.

    Args:
        stage: where it runs.
        name: for the trace.
    """

    def __init__(self, stage: Stage, name: str) -> None:
        super().__init__(stage.loop, name)
        self.stage = stage
        self.clock_error_us = stage.error_us(stage.dice.of("machine clock", name))
        """How far the machine's clock is off, as every clock is."""
        self.clock_step_us = 0
        """What somebody has set it wrong by."""
        self._deaths: list[tuple[str, int, str]] = []

    def machine_us(self) -> int:
        """The machine's clock."""
        return self.stage.true_us() + self.clock_error_us + self.clock_step_us

    def die_at(self, phase: str, calls: int, kind: str) -> None:
        """Let it die at the ``calls``-th crash point of ``phase`` from now (1: the next)."""
        self._deaths.append((phase, calls, kind))

    async def crash_point(self, phase: str, what: str) -> None:
        """A place where it may die: if it does, this never returns.

        Args:
            phase: ``before`` or ``after`` a statement, ``hand-over``.
        """
        for place, (wanted, calls, kind) in enumerate(self._deaths):
            if wanted == phase:
                if calls > 1:
                    self._deaths[place] = wanted, calls - 1, kind
                    return
                del self._deaths[place]
                self.stage.strike(kind, self.name, f"{phase} {what}")
                self.kill()
                await self.stage.loop.create_future()
