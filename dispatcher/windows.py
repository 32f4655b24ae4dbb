"""Send windows at the hand-over: the leads' time zones as they are by then, and what waits for the next opening."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from dispatcher.completer import persistently
from dispatcher.core.batches import Coded, Indices, Int64s, Leased
from dispatcher.core.catalogue import Catalogue
from dispatcher.ports import ShardStore

_POSTPONED_ROWS: Final = 2000
"""At a time: claims wait for so many rows to be written, and give up after 0.2 s."""


@dataclass(frozen=True, slots=True)
class SendWindows:
    """What a shard asks about windows.

    Args:
        store: its statements.
        deadline_us: how long after its slot a message may still leave.
    """

    store: ShardStore
    deadline_us: int

    async def look(self, leased: Leased, rows: Indices, catalogue: Catalogue) -> tuple[Leased, Int64s]:
        """The batch with the zones of its leads, and from when on each row may leave: its slot, or the next opening.

        Args:
            rows: those to look at; the others may leave at their slots.
        """
        step = catalogue.indices(leased.step)
        rows = rows[catalogue.by_clock[step[rows]]]
        if not len(rows):
            return leased, leased.slot_us
        found = await persistently(lambda: self.store.time_zones(leased.lead[rows]))
        code = np.full(len(leased), len(found.values), np.int32)
        code[rows] = found.code
        zone = Coded([*found.values, None], code)
        opens_us = leased.slot_us.copy()
        opens_us[rows] = catalogue.next_open(step[rows], zone.take(rows), opens_us[rows], self.deadline_us)
        return leased.replace(time_zone=zone), opens_us

    async def postpone(self, shut: Leased, catalogue: Catalogue, now_us: int) -> int:
        """Move what else is due of the sequences and zones in ``shut`` to the next opening; returns how many.

        So a backlog at closing time costs each device the slots of one claim.
        """
        zones: dict[int, set[str | None]] = {}
        for trigger, zone in set(zip(shut.step, shut.time_zone or (), strict=True)):
            zones.setdefault(catalogue.sequence_of[trigger].id or 0, set()).add(zone)
        # Where it is open at this moment, slots before the closing are left, and used.
        found = {id_: catalogue.openings(id_, there, now_us, self.deadline_us) for id_, there in zones.items()}
        openings = {id_: opens for id_, opens in found.items() if opens}
        moved = 0
        while openings:
            rows = await persistently(lambda: self.store.postpone(openings, now_us, _POSTPONED_ROWS))
            moved += rows
            if rows < _POSTPONED_ROWS:
                break
        return moved
