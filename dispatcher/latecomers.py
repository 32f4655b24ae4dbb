"""What is too late to be sent: found among what is about to leave, and moved on with everything else that is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from dispatcher.completer import persistently
from dispatcher.config import Settings
from dispatcher.core.batches import Coded, Indices, Int32s, Int64s, Leased
from dispatcher.core.catalogue import Catalogue
from dispatcher.core.lateness import moves_of
from dispatcher.core.moments import NEVER_US
from dispatcher.ports import ShardStore

_MOVED_ROWS: Final = 2000
"""At a time: claims wait for so many rows to be written, and give up after 0.2 s."""


@dataclass(frozen=True, slots=True)
class Latecomers:
    """What a shard does about lateness.

    Args:
        store: its statements.
        settings: how long an hour is.
    """

    store: ShardStore
    settings: Settings

    def among(self, leased: Leased, rows: Indices, catalogue: Catalogue) -> Indices:
        """Those of ``rows`` whose slots are later than their sequences allow; never a resend: it may have arrived."""
        if not catalogue.limits_lateness:
            return rows[:0]
        limit_us = catalogue.max_lateness_h[catalogue.indices(leased.step)[rows]] * self.settings.hours_us(1)
        again = Coded.of(leased.resend_text).where(lambda before: before is not None)[rows]
        return rows[(leased.slot_us[rows] - leased.due_us[rows] > limit_us) & ~again]

    async def move(self, catalogue: Catalogue, now_us: int) -> list[tuple[Int32s, Int64s]]:
        """Move everything on that is too late on the shard's devices; returns what became due, by device, in parts.

        The first one found stands for a backlog, of which a claim takes no more than there are slots for.
        """
        hour_us = self.settings.hours_us(1)
        before_us = {
            id_: now_us - round((catalogue.sequences[id_].max_lateness_h or 0) * hour_us)
            for id_ in catalogue.usable
            if catalogue.sequences[id_].max_lateness_h is not None
        }
        due: list[tuple[Int32s, Int64s]] = []
        while before_us:
            late = await persistently(lambda: self.store.late(before_us, _MOVED_ROWS))
            if not len(late):
                break
            known = np.flatnonzero(catalogue.indices(late.step) >= 0)
            moves = moves_of(late.take(known), catalogue, now_us, hour_us)
            moved = await persistently(lambda moves=moves: self.store.move_late(moves, now_us))  # type: ignore[misc]
            # Where nothing is left to send, a pass has to come that completes.
            due.append((moves.late.device, np.where(moves.next_due_us < NEVER_US, moves.next_due_us, now_us)))
            if not moved:
                break
        return due
