"""Leases that ended without an outcome: the owner is asked first; what nobody can vouch for is in doubt."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np

from dispatcher.config import Settings
from dispatcher.core.identity import idempotency_keys
from dispatcher.core.leases import EndedLeases
from dispatcher.core.moments import span_us
from dispatcher.errors import ShardUnavailableError
from dispatcher.ports import Fate, RescueStore, Shards

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RescuePass:
    """Summary of one pass."""

    given_back: int = 0
    resent: int = 0
    """In doubt and waiting for a resend under the same key."""
    in_doubt: int = 0
    """In doubt and held."""


class Rescuer:
    """The rescuing pass.

    Args:
        store: the coordinator's statements.
        settings: lease, deadline, resend limit.
        shards: the way to the owners.
    """

    def __init__(self, store: RescueStore, settings: Settings, shards: Shards) -> None:
        self._store, self._settings, self._shards = store, settings, shards

    async def run_once(self, now_us: int) -> RescuePass:
        """Resolve ended leases, at most ``bulk_rows``.

        What a superseded incarnation handed over is on record, and in doubt; the rest of its leases surely did not
        leave and waits again. A live one is asked: what it never saw waits again, and it refuses it from then on; what
        it has in hand is left to it. One that does not answer is left alone until its supervisor has replaced it.
        """
        leases = await self._store.ended_leases(now_us - span_us(self._settings.lease_s), self._settings.bulk_rows)
        if not len(leases):
            return RescuePass()
        given_back = await self._return(leases.take(np.flatnonzero(leases.superseded & ~leases.handed)), now_us)
        over_time = np.flatnonzero(~leases.superseded)
        for shard in np.unique(leases.shard[over_time]).tolist():
            part = leases.take(over_time[leases.shard[over_time] == shard])
            try:
                fate = await self._shards.fate(shard, part.token, part.epoch, part.enrolment)
            except ShardUnavailableError as error:
                _log.warning(
                    "%d ended leases wait for their shard: %s", len(part), error, extra={"event": "leases_wait"}
                )
                continue
            given_back += await self._return(part.take(np.flatnonzero(fate == Fate.NEVER_SEEN)), now_us)
        resent, held = await self._doubt(leases.take(np.flatnonzero(leases.handed)), now_us)
        return RescuePass(given_back, resent, held)

    async def _return(self, unsent: EndedLeases, now_us: int) -> int:
        if not len(unsent):
            return 0
        return await self._store.return_leases(unsent.enrolment, unsent.token, now_us, now_us)

    async def _doubt(self, leases: EndedLeases, now_us: int) -> tuple[int, int]:
        if not len(leases):
            return 0, 0
        resend = leases.idempotent & (leases.retries < self._settings.resend_limit)
        due_us = np.maximum(now_us, leases.deadline_us + span_us(self._settings.skew_s))
        keys = idempotency_keys(leases.enrolment, leases.visit, leases.generation)
        await self._store.doubt(leases, keys, resend, due_us, now_us)
        return int(resend.sum()), int((~resend).sum())
