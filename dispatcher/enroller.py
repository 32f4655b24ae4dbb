"""Lead changes become enrolments: exact tokens, open entries, a home device each."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from uuid import UUID

import numpy as np

from dispatcher.config import Settings
from dispatcher.core.batches import Int32s
from dispatcher.core.catalogue import Catalogue
from dispatcher.core.fleet import Fleet
from dispatcher.core.routing import plan_homes
from dispatcher.ports import EnrolStore

_SEARCH_ROWS = 200_000


@dataclass(frozen=True, slots=True)
class EnrolPass:
    """Summary of one pass."""

    taken: int
    """Changes of leads worked off."""
    enrolled: int
    stopped: int
    number: Int32s
    """Devices that got enrolments."""
    more: bool
    """Whether the queue or a search may hold more."""


class Enroller:
    """The enrolling pass.

    Args:
        store: the coordinator's statements.
        settings: batch sizes.
    """

    def __init__(self, store: EnrolStore, settings: Settings) -> None:
        self._store, self._settings = store, settings
        self._load: dict[UUID, int] = {}
        self._loaded_for: Fleet | None = None

    async def run_once(self, now_us: int, epoch: int, catalogue: Catalogue, fleet: Fleet) -> EnrolPass:
        """Work off one batch of the queue, and one stretch of a search when the queue is short.

        Raises:
            FencedError: another coordinator has taken over.
        """
        if self._loaded_for is not fleet:
            # New devices start among others that have finished most of what they were ever given.
            self._load, self._loaded_for = await self._store.home_load(), fleet
        rows = self._settings.enrol_rows
        done = await self._store.enrol(
            catalogue, partial(self._plan, fleet), now_us, epoch=epoch, rows=rows, hour_us=self._settings.hours_us(1)
        )
        for device, count in done.home.items():
            if device is not None:
                self._load[device] = self._load.get(device, 0) + count
        more = done.taken >= rows
        if not more:
            more = await self._store.search_entries(_SEARCH_ROWS) is not None
        homes = {device for device in done.home if device is not None}
        rows_of_homes = np.array([row for row, device in enumerate(fleet.device_id) if device in homes], np.intp)
        enrolled = sum(done.home.values())
        return EnrolPass(done.taken, enrolled, done.stopped, fleet.number[rows_of_homes], more)

    def _plan(self, fleet: Fleet, leads: int) -> list[UUID]:
        """Home devices for so many leads without one: least loaded for its day quota first."""
        load = np.array([self._load.get(device, 0) for device in fleet.device_id], np.int64)
        weight = np.where(fleet.available, fleet.quota_per_day, 0).astype(np.float64)
        chosen = plan_homes(load, weight, leads).tolist()
        return [fleet.device_id[row] for row in chosen]
