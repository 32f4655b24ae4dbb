"""Many seeds: side by side, counted together; one that fails is reduced to the faults it takes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice

from simulate.prove.canaries import CANARIES, released
from simulate.prove.case import Result, play
from simulate.prove.faults import plan
from simulate.prove.world import draw

_CHUNK = 5
_LOOK_S = 1.0
_REDUCTION_PLAYS = 80


@dataclass(slots=True)
class Totals:
    """What a campaign found so far."""

    seeds: int = 0
    sends: int = 0
    virtual_s: float = 0.0
    injected: Counter[str] = field(default_factory=Counter)
    failed: list[Result] = field(default_factory=list)
    """By seed."""
    used: int = 0
    usable: int = 0
    """Messages sent in saturated worlds after the faults, and how many would have been allowed."""

    def add(self, result: Result) -> None:
        """Count a seed."""
        self.seeds += 1
        self.sends += result.sends
        self.virtual_s += result.virtual_s
        self.injected += result.injected
        if result.use is not None:
            self.used += result.use[0]
            self.usable += result.use[1]
        if result.violations:
            self.failed.append(result)
            self.failed.sort(key=lambda each: each.seed)


def run(seeds: Sequence[int], jobs: int, totals: Totals, on_result: Callable[[Totals], None]) -> None:
    """Play ``seeds`` in ``jobs`` processes and count them in ``totals``; ``on_result`` is called as they come in."""
    for result in _results(seeds, jobs):
        totals.add(result)
        on_result(totals)


def _results(seeds: Sequence[int], jobs: int) -> Iterator[Result]:
    if jobs == 1:
        yield from map(_untraced, seeds)
        return
    chunks = iter([seeds[start : start + _CHUNK] for start in range(0, len(seeds), _CHUNK)])
    with _processes(jobs) as pool:
        pending: set[Future[list[Result]]] = {pool.submit(_play_all, chunk) for chunk in islice(chunks, 2 * jobs)}
        while pending:
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            pending |= {pool.submit(_play_all, chunk) for chunk in islice(chunks, len(done))}
            for future in done:
                yield from future.result()


@contextmanager
def _processes(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that end at once when whoever asked is interrupted, and soon when it is killed."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_follow, initargs=(os.getpid(),)) as pool:
        try:
            yield pool
        except BaseException:
            for process in multiprocessing.active_children():
                process.terminate()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _follow(parent: int) -> None:
    """Leave Ctrl-C to the process that asked, and end when it is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_after, args=(parent,), daemon=True).start()


def _end_after(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOK_S)
    os._exit(1)


def _play_all(seeds: Iterable[int]) -> list[Result]:
    return [_untraced(seed) for seed in seeds]


def _untraced(seed: int) -> Result:
    """Traces are long, and only one that is asked for is looked at."""
    return replace(play(seed), trace=[])


def reduced(result: Result) -> tuple[tuple[int, ...], Result]:
    """The faults that can be left out of a failing seed without it passing, and what is left of it.

    Halves first, then one by one, as long as one of the same rules stays broken; at most a bounded number of plays.
    """
    numbers = [fault.number for fault in plan(result.seed, draw(result.seed))]
    needed, best, plays = numbers, result, 0
    size = max(1, len(needed) // 2)
    while size >= 1 and plays < _REDUCTION_PLAYS:
        smaller = False
        for start in range(0, len(needed), size):
            kept = needed[:start] + needed[start + size :]
            plays += 1
            tried = play(result.seed, [number for number in numbers if number not in kept])
            if tried.violations.keys() & result.violations.keys():
                needed, best, smaller = kept, tried, True
                break
        if not smaller:
            size //= 2
    return tuple(number for number in numbers if number not in needed), best


@dataclass(frozen=True, slots=True)
class Caught:
    """Which seed caught a canary; None: none did."""

    name: str
    broken: str
    seed: int | None
    rules: tuple[str, ...]


def catch(number: int, seeds: int, first: int = 1) -> Caught:
    """Play seeds from ``first`` on, on the broken build of a canary, until one fails, at most ``seeds`` of them."""
    canary = CANARIES[number]
    with released(canary):
        for seed in range(first, first + seeds):
            violations = play(seed).violations
            # A patch that only makes something break off proves nothing about the rules.
            if violations.keys() - {"broke_off", "stuck"} or (violations and "broke_off" not in violations):
                return Caught(canary.name, canary.broken, seed, tuple(violations))
    return Caught(canary.name, canary.broken, None, ())


def catch_all(seeds: int, jobs: int) -> Iterator[Caught]:
    """``catch`` every canary, in order."""
    if jobs == 1:
        yield from (catch(number, seeds) for number in range(len(CANARIES)))
        return
    with _processes(jobs) as pool:
        yield from pool.map(catch, range(len(CANARIES)), [seeds] * len(CANARIES))
