"""Who watches a run: nobody, or a person at a screen."""

from __future__ import annotations

import time
from datetime import datetime

from rich.progress import BarColumn, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from dispatcher.cli.common import err
from simulate.driver import Progress

_LINE_EVERY_S = 5.0


class Watcher:
    """What a run tells whoever watches; this one does not listen."""

    def phase(self, name: str) -> None:
        """Another phase has begun."""

    def leads(self, count: int) -> None:
        """So many more leads stand in the database."""

    def expected(self, sends: int) -> None:
        """So many messages will be sent if everything goes well."""

    def tick(self, progress: Progress) -> None:
        """A tick has gone by."""

    def wait(self, now_us: int) -> None:
        """Virtual time has come so far without anything to do, and waits for the wall clock."""


class Screen(Watcher):
    """Progress of a run: a live line in a terminal, a plain line every few seconds elsewhere."""

    def __init__(self, start: datetime) -> None:
        self._start_s = start.timestamp()
        self._phase, self._leads, self._expected, self._claimed = "", 0, 0, 0
        self._shown = self._began = time.monotonic()
        self._bar: Bar | None = None
        self._task = TaskID(0)

    def __enter__(self) -> Screen:
        if err.is_terminal:
            self._bar = Bar(
                SpinnerColumn(), TextColumn("{task.description}"), BarColumn(24), TimeElapsedColumn(),
                console=err, transient=True,
            )  # fmt: skip
            self._task = self._bar.add_task("starting", total=None)
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def phase(self, name: str) -> None:
        """Another phase has begun."""
        self._phase, self._began = name, time.monotonic()
        self._show(name, None, None, force=True)

    def leads(self, count: int) -> None:
        """So many more leads stand in the database."""
        self._leads += count
        self._show(f"population: {self._leads:,} leads", None, None)

    def expected(self, sends: int) -> None:
        """So many messages will be sent if everything goes well."""
        self._expected = sends

    def tick(self, progress: Progress) -> None:
        """A tick has gone by."""
        elapsed_s = time.monotonic() - self._began
        rate = progress.claimed / max(elapsed_s, 1e-9)
        left = max(self._expected - progress.claimed, 0)
        eta = f"{left / rate:,.0f} s left" if rate else "…"
        behind = f"  {progress.behind_s:,.1f} s behind" if progress.behind_s else ""
        self._claimed = progress.claimed
        self._show(
            f"{self._day(progress.now_us)}  {progress.claimed:,} sent  {rate:,.0f}/s  {left:,} to go  {eta}{behind}",
            progress.claimed,
            self._expected or None,
        )

    def wait(self, now_us: int) -> None:
        """Virtual time waits for the wall clock."""
        self._show(f"{self._day(now_us)}  {self._claimed:,} sent", self._claimed, self._expected or None)

    def _day(self, now_us: int) -> str:
        days, of_day_s = divmod(int(now_us / 1e6 - self._start_s), 86_400)
        return f"day {days} {of_day_s // 3600:02d}:{of_day_s // 60 % 60:02d}:{of_day_s % 60:02d}"

    def _show(self, text: str, done: int | None, total: int | None, force: bool = False) -> None:
        if self._bar is not None:
            self._bar.update(self._task, description=text, completed=done or 0, total=total)
        elif force or time.monotonic() - self._shown >= _LINE_EVERY_S:
            self._shown = time.monotonic()
            err.out(text)
