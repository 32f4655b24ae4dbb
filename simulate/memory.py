"""Memory of everything a run started: proportional set size, so that shared pages count once."""

from __future__ import annotations

import os
import threading
import time

import psutil

_EVERY_S = 2.0
_REST = 50
"""The kernel walks page tables for every sample: the probe rests so many times as long as one keeps a core busy."""


class MemoryProbe:
    """Samples in a thread; ``peak_mb`` is the largest sum seen.

    Args:
        also: further process trees, by pid, such as a database server's.
    """

    def __init__(self, also: list[int]) -> None:
        self._roots = [os.getpid(), *also]
        self.peak_mb = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory", daemon=True)

    def __enter__(self) -> MemoryProbe:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._sample()

    def _run(self) -> None:
        took_s = 0.0
        while not self._stop.wait(max(_EVERY_S, _REST * took_s)):
            begun_s = time.thread_time()
            self._sample()
            took_s = time.thread_time() - begun_s

    def _sample(self) -> None:
        seen: dict[int, psutil.Process] = {}
        for root in self._roots:
            try:
                process = psutil.Process(root)
                seen |= {each.pid: each for each in (process, *process.children(recursive=True))}
            except psutil.NoSuchProcess:
                continue
        total = 0
        for process in seen.values():
            try:
                info = process.memory_full_info()
                total += getattr(info, "pss", info.rss)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        self.peak_mb = max(self.peak_mb, total / 1e6)
