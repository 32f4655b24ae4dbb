"""Waiting enrolments whose device cannot send get another one; what may not be sent leaves the claim's way."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import numpy as np

from dispatcher.config import Settings
from dispatcher.core.catalogue import Catalogue
from dispatcher.core.fleet import Fleet
from dispatcher.core.moments import span_us
from dispatcher.core.routing import plan_homes
from dispatcher.ports import BalanceStore

_SETTLED_US: Final = span_us(60)


@dataclass(frozen=True, slots=True)
class BalancePass:
    """Summary of one pass."""

    moved: int = 0
    held: int = 0
    unheld: int = 0
    finished: int = 0
    """Completions that had waited for a locked lead."""

    @property
    def changed(self) -> bool:
        """Whether due moments may have changed."""
        return bool(self.moved or self.unheld)


class Rebalancer:
    """The rebalancing and holding pass.

    Args:
        store: the coordinator's statements.
        settings: batch sizes.
    """

    def __init__(self, store: BalanceStore, settings: Settings) -> None:
        self._store, self._settings = store, settings
        self._held: set[int] = set()
        self._held_steps: frozenset[str] = frozenset()
        self._settled: dict[int, tuple[frozenset[str], int]] = {}
        """Sequences of which only those at paused steps are held: which steps these are, and when to look again."""
        self._moved_to: dict[UUID, int] = {}

    async def run_once(self, now_us: int, catalogue: Catalogue, fleet: Fleet) -> BalancePass:
        """Move, hold and unhold up to ``bulk_rows`` enrolments each."""
        rows = self._settings.bulk_rows
        held = unheld = 0
        for sequence in sorted(set(catalogue.sequences) - catalogue.usable - self._held):
            count = await self._store.hold(sequence, rows)
            held += count
            if count < rows:
                # Few can still come, from attempts under way: the claim skips those inside its index.
                self._held.add(sequence)
        self._held -= catalogue.usable
        held += await self._hold_steps(catalogue.paused_steps)
        for sequence in await self._store.held_sequences():
            if sequence in catalogue.usable:
                unheld += await self._unhold(sequence, catalogue, now_us)
        return BalancePass(
            moved=await self._move(fleet),
            held=held,
            unheld=unheld,
            finished=await self._store.finish_waiting(rows, now_us),
        )

    async def _hold_steps(self, paused: frozenset[str]) -> int:
        """Who stands at a paused step leaves the claim's way; who comes to it later is set aside by the shard."""
        held, rows = 0, self._settings.bulk_rows
        self._held_steps &= paused
        for step in sorted(paused - self._held_steps):
            count = await self._store.hold_step(step, rows)
            held += count
            if count < rows:
                self._held_steps |= {step}
        return held

    async def _unhold(self, sequence: int, catalogue: Catalogue, now_us: int) -> int:
        """Put held enrolments back, but for those at paused steps, which are not looked through again every pass."""
        paused = catalogue.paused_steps & {step.trigger for step in catalogue.sequences[sequence].steps}
        settled, until_us = self._settled.get(sequence, (paused, 0))
        if settled == paused and now_us < until_us:
            return 0
        count = await self._store.unhold(sequence, self._settings.bulk_rows, now_us)
        if paused and count < self._settings.bulk_rows:
            self._settled[sequence] = paused, now_us + _SETTLED_US
        else:
            self._settled.pop(sequence, None)
        return count

    async def _move(self, fleet: Fleet) -> int:
        if not len(fleet) or not fleet.available.any():
            return 0
        left = [fleet.device_id[row] for row in np.flatnonzero(fleet.left).tolist()]
        misplaced = await self._store.misplaced(left, self._settings.bulk_rows)
        if not len(misplaced):
            return 0
        weight = np.where(fleet.available, fleet.quota_per_day, 0).astype(np.float64)
        load = np.array([self._moved_to.get(device, 0) for device in fleet.device_id], np.int64)
        homes = [fleet.device_id[row] for row in plan_homes(load, weight, len(misplaced)).tolist()]
        for device, count in Counter(homes).items():
            self._moved_to[device] = self._moved_to.get(device, 0) + count
        return await self._store.rehome(misplaced[: len(homes)], homes)
