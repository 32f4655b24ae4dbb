"""An event loop in virtual time, on which processes can be stopped, continued and killed at any await.

Nothing waits: when nothing is ready, time jumps to the next timer. Every callback belongs to the process in whose
context it was made; those of a stopped process are kept until it goes on, those of a dead one are dropped, so that no
``finally`` of it ever runs: ``kill -9``.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import sys
from collections import deque
from collections.abc import Callable, Coroutine
from enum import Enum, auto
from typing import Any, TypeVar, TypeVarTuple

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Life(Enum):
    """Whether a process runs."""

    RUNNING = auto()
    STOPPED = auto()
    DEAD = auto()


class Process:
    """What dies and stops together.

    Args:
        loop: where it runs.
        name: for the trace.
    """

    def __init__(self, loop: VirtualLoop, name: str) -> None:
        self._loop, self.name = loop, name
        self.life = Life.RUNNING
        self._kept: list[asyncio.Handle] = []
        self.context = contextvars.copy_context()
        self.context.run(_PROCESS.set, self)

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run ``work`` in this process."""
        task = self._loop.create_task(work, context=self.context)
        task.add_done_callback(self._loop.note_end)
        return task

    def kill(self) -> None:
        """It does nothing more, at once."""
        self.life = Life.DEAD
        self._kept.clear()

    def stop(self) -> None:
        """It does nothing until it is told to go on; time goes on without it."""
        if self.life is Life.RUNNING:
            self.life = Life.STOPPED

    def go_on(self) -> None:
        """What it missed happens now."""
        if self.life is Life.STOPPED:
            self.life = Life.RUNNING
            kept, self._kept = self._kept, []
            self._loop.resume(kept)

    def keep(self, handle: asyncio.Handle) -> None:
        """A callback that came while it was stopped."""
        self._kept.append(handle)


_PROCESS: contextvars.ContextVar[Process | None] = contextvars.ContextVar("process", default=None)


def current() -> Process | None:
    """The process that is running; None: the world itself."""
    return _PROCESS.get()


class VirtualLoop(asyncio.AbstractEventLoop):
    """See the module. ``errors`` collects what broke off unheard."""

    def __init__(self) -> None:
        self._now_s = 0.0
        self._ready: deque[asyncio.Handle] = deque()
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._timer_count = 0
        self._tasks: list[asyncio.Task[Any]] = []
        self.errors: list[BaseException] = []
        self.steps = 0
        """Callbacks run so far."""

    # What asyncio needs --------------------------------------------------------------------------------------

    def time(self) -> float:
        """Virtual seconds since the beginning."""
        return self._now_s

    def call_soon(
        self,
        callback: Callable[[*Ts], object],
        *args: *Ts,
        context: contextvars.Context | None = None,
    ) -> asyncio.Handle:
        """Run ``callback`` next."""
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_at(
        self,
        when: float,
        callback: Callable[[*Ts], object],
        *args: *Ts,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        """Run ``callback`` at ``when``; timers of one moment run in the order they were set."""
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        self._timer_count += 1
        heapq.heappush(self._timers, (when, self._timer_count, handle))
        return handle

    def call_later(
        self,
        delay: float,
        callback: Callable[[*Ts], object],
        *args: *Ts,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        """Run ``callback`` in ``delay`` seconds."""
        return self.call_at(self._now_s + delay, callback, *args, context=context)

    def create_future(self) -> asyncio.Future[Any]:
        """A future of this loop."""
        return asyncio.Future(loop=self)

    def create_task(  # type: ignore[override]
        self, coro: Coroutine[Any, Any, T], *, name: str | None = None, context: contextvars.Context | None = None
    ) -> asyncio.Task[T]:
        """A task of this loop, kept until the loop is closed: a dead process's frames must not be unwound before."""
        task = asyncio.Task(coro, loop=self, name=name, context=context)
        self._tasks.append(task)
        return task

    def get_debug(self) -> bool:
        """Never."""
        return False

    def is_running(self) -> bool:
        """Always, as far as a coroutine can see."""
        return True

    def is_closed(self) -> bool:
        """Never, as far as a coroutine can see."""
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Keep what broke off."""
        error = context.get("exception")
        self.errors.append(error if isinstance(error, BaseException) else RuntimeError(context.get("message")))

    def note_end(self, task: asyncio.Task[Any]) -> None:
        """Keep what a task broke off with."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self.errors.append(error)

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Cancelled timers are skipped when their time comes."""

    # Time ----------------------------------------------------------------------------------------------------

    def resume(self, handles: list[asyncio.Handle]) -> None:
        """Run callbacks that were kept."""
        self._ready.extend(handles)

    def run_until(self, done: Callable[[], bool], end_s: float) -> None:
        """Run until ``done`` says so, asked whenever time moves on, or until ``end_s``."""
        before = asyncio._get_running_loop()
        asyncio._set_running_loop(self)
        try:
            while self._now_s < end_s and not done():
                self._run_ready()
                if not self._timers:
                    return
                when, _, handle = heapq.heappop(self._timers)
                self._now_s = max(self._now_s, when)
                self._ready.append(handle)
                while self._timers and self._timers[0][0] <= self._now_s:
                    self._ready.append(heapq.heappop(self._timers)[2])
                self._run_ready()
        finally:
            asyncio._set_running_loop(before)

    def _run_ready(self) -> None:
        ready = self._ready
        while ready:
            handle = ready.popleft()
            if handle.cancelled():
                continue
            process = handle._context.get(_PROCESS)  # type: ignore[attr-defined]
            if process is None or process.life is Life.RUNNING:
                self.steps += 1
                handle._run()
            elif process.life is Life.STOPPED:
                process.keep(handle)

    def close(self) -> None:
        """Give up every task; what their frames complain of while they are torn down concerns nobody any more."""
        for task in self._tasks:
            task._log_destroy_pending = False  # type: ignore[attr-defined]
        hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
        try:
            self._ready.clear()
            self._timers.clear()
            for task in self._tasks:
                if not task.done():
                    task.get_coro().close()
            self._tasks.clear()
        finally:
            sys.unraisablehook = hook
