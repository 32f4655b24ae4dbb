"""Turns outcomes into ends of attempts and writes them, ledger and progress in one transaction a batch."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from dispatcher.clock import liveness_s
from dispatcher.config import Settings
from dispatcher.core import backoff
from dispatcher.core.batches import Coded, Int64s, Leased, Outcomes
from dispatcher.core.catalogue import Catalogue
from dispatcher.core.leases import Ends
from dispatcher.core.moments import span_us
from dispatcher.core.outcomes import CONSEQUENCES, UNCOUNTED, Outcome
from dispatcher.errors import StoreUnavailableError
from dispatcher.ports import ShardStore

_log = logging.getLogger(__name__)
_RETRY_PAUSE_S = 0.2
T = TypeVar("T")
_LABELS = tuple(outcome.label for outcome in sorted(Outcome))
_WAITING, _FAILED, _, _IN_DOUBT = range(4)
_NEXT = ("waiting", "failed", "stopped", "in_doubt")


def ends_of(
    leased: Leased,
    keys: list[bytes],
    outcomes: Outcomes,
    said: tuple[Sequence[str], Sequence[str | None]] | None,
    catalogue: Catalogue,
    idempotent: NDArray[np.bool_],
    settings: Settings,
) -> Ends:
    """What the ends of these attempts mean for their enrolments.

    Args:
        leased: the rows the outcomes are about, in the same order.
        keys: their idempotency keys.
        said: texts and media URLs of what was handed over; None where nothing was.
        idempotent: per row, whether the device's gateway honours keys.
    """
    step = catalogue.indices(leased.step)
    rows = len(leased)
    zone = leased.time_zone or Coded.same(None, rows)
    trigger, due_us = catalogue.advance(step, outcomes.at_us, zone, settings.hours_us(1))
    next_ = np.full(rows, _WAITING, np.int8)
    counted = np.zeros(rows, np.int32)
    pinned = np.zeros(rows, np.bool_)
    good = (outcomes.outcome == Outcome.ACCEPTED) | (outcomes.outcome == Outcome.REPEAT)
    for row in np.flatnonzero(~good).tolist():
        next_[row], counted[row], due_us[row], pinned[row] = _setback(
            leased, outcomes, row, bool(idempotent[row]), settings
        )
    if leased.time_zone is not None:
        due_us = catalogue.next_open(np.where(good, catalogue.next_index[step], step), zone, due_us)
    return Ends(
        enrolment=leased.enrolment,
        token=np.full(rows, leased.token, np.int64),
        lead=leased.lead,
        visit=leased.visit,
        generation=leased.generation,
        attempt=leased.attempt,
        device=leased.device,
        slot_us=leased.slot_us,
        due_us=leased.due_us,
        at_us=outcomes.at_us,
        step=leased.step,
        key=keys,
        outcome=Coded(_LABELS, outcomes.outcome),
        message_id=outcomes.message_id,
        error=outcomes.error,
        next_trigger=trigger,
        next_due_us=due_us,
        next=Coded(_NEXT, next_),
        counted=counted,
        pinned=pinned,
        handed=np.full(rows, said is not None),
        text=_where(outcomes.outcome == Outcome.IN_DOUBT, said and said[0]),
        media_url=_where(outcomes.outcome == Outcome.IN_DOUBT, said and said[1]),
    )


def _where(rows: NDArray[np.bool_], values: Sequence[str | None] | None) -> Coded[str | None]:
    """``values`` at ``rows``, None elsewhere."""
    if values is None or not rows.any():
        return Coded.same(None, len(rows))
    coded = Coded.of(values)
    return Coded([*coded.values, None], np.where(rows, coded.code, len(coded.values)))


def _setback(
    leased: Leased, outcomes: Outcomes, row: int, idempotent: bool, settings: Settings
) -> tuple[int, int, int, bool]:
    """Next state, counted, due and pinned after an outcome that is no acceptance."""
    outcome, at_us = Outcome(outcomes.outcome[row]), int(outcomes.at_us[row])
    retries = int(leased.retries[row])
    if outcome in UNCOUNTED:
        return _WAITING, 0, at_us + span_us(_snooze_s(leased, outcomes, row, settings)), False
    if outcome is Outcome.IN_DOUBT:
        if not idempotent or retries >= settings.resend_limit:
            return _IN_DOUBT, 1, at_us, True
        last_us = int(leased.slot_us[row]) + span_us(settings.deadline_s + settings.skew_s)
        return _WAITING, 1, max(at_us, last_us), True
    what = CONSEQUENCES[outcome]
    if not what.counted:
        return _NEXT.index(what.next), 0, at_us, False
    if retries >= settings.retry_limit:
        return _FAILED, 1, at_us, False
    return _WAITING, 1, at_us + span_us(_backoff_s(leased, row, retries, settings)), False


def _snooze_s(leased: Leased, outcomes: Outcomes, row: int, settings: Settings) -> float:
    """How long an attempt waits that is not counted."""
    asked_s = float(outcomes.retry_after_s[row])
    if asked_s == asked_s:
        return asked_s
    wait_s = CONSEQUENCES[Outcome(outcomes.outcome[row])].wait_s
    return _backoff_s(leased, row, 0, settings) if wait_s is None else wait_s


def _backoff_s(leased: Leased, row: int, retries: int, settings: Settings) -> float:
    uniform = backoff.draw(0, int(leased.enrolment[row]), int(leased.visit[row]), retries)
    return float(backoff.delay_s(retries + 1, uniform, settings.retry_base_s, settings.retry_cap_s))


async def persistently(statement: Callable[[], Awaitable[T]]) -> T:
    """Repeat a repeatable statement until PostgreSQL answers."""
    while True:
        try:
            return await statement()
        except StoreUnavailableError as error:
            _log.warning("waiting for the database: %s", error, extra={"event": "database_away"})
            await asyncio.sleep(_RETRY_PAUSE_S)


class Completer:
    """Gathers ends and writes them in batches; what is not written yet is never forgotten.

    Args:
        store: where they are written.
        settings: batch size and waiting time.
        on_written: called with each batch once it has committed.
    """

    def __init__(self, store: ShardStore, settings: Settings, on_written: Callable[[Ends], None]) -> None:
        self._store, self._settings, self._on_written = store, settings, on_written
        self._waiting: list[Ends] = []
        self._since = 0.0
        self._lock = asyncio.Lock()
        self._rows = 0
        self._committing: Ends | None = None

    def add(self, ends: Ends) -> None:
        """Take ends to be written."""
        if not self._waiting:
            self._since = liveness_s()
        self._waiting.append(ends)
        self._rows += len(ends)

    @property
    def ripe_s(self) -> float:
        """When what has gathered is to be written, in liveness time: at once where it is enough; never: infinity."""
        if not self._waiting:
            return math.inf
        return self._since + (0.0 if self._rows >= self._settings.complete_rows else self._settings.complete_wait_s)

    def unwritten(self) -> Int64s:
        """Enrolments whose ends have not committed yet."""
        parts = [ends.enrolment for ends in (*self._waiting, self._committing) if ends is not None]
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    async def flush(self, now_us: int, epoch: int) -> int:
        """Write everything gathered so far; returns the number of ends.

        A commit whose answer was lost is repeated: the statements find what is there already.
        """
        async with self._lock:
            written = 0
            while self._waiting:
                batch = self._next_batch()
                try:
                    await self._write(batch, now_us, epoch)
                except BaseException:
                    # Unwritten is still in hand: an end that is forgotten here would be sent again.
                    self._waiting.insert(0, batch)
                    self._rows += len(batch)
                    raise
                finally:
                    self._committing = None
                self._on_written(batch)
                written += len(batch)
            return written

    def _next_batch(self) -> Ends:
        """Whole chunks up to ``complete_rows``, at least one."""
        taken = rows = 0
        for ends in self._waiting:
            if taken and rows + len(ends) > self._settings.complete_rows:
                break
            taken, rows = taken + 1, rows + len(ends)
        batch = Ends.join(self._waiting[:taken])
        self._waiting, self._rows, self._committing = self._waiting[taken:], self._rows - rows, batch
        return batch

    async def _write(self, batch: Ends, now_us: int, epoch: int) -> None:
        deadline_us = span_us(self._settings.deadline_s)
        await persistently(lambda: self._store.end(batch, now_us, epoch=epoch, deadline_us=deadline_us))
