"""Applies receipts to attempts in doubt, whichever of the two comes first."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from dispatcher.clock import liveness_s
from dispatcher.errors import StoreUnavailableError
from dispatcher.loops import woken_by
from dispatcher.store.receipts import PostgresReceiptStore

_log = logging.getLogger(__name__)

PAGE_ROWS: Final = 1000
EVERY_S: Final = 5.0
_PAUSE_S: Final = 0.5
_SHARE: Final = 10
"""A round takes at most every so manieth second, however many enrolments are in doubt."""


class Settler:
    """The settling pass, and the loop that makes it.

    Args:
        store: the webhooks' statements.
    """

    def __init__(self, store: PostgresReceiptStore) -> None:
        self._store = store
        self._woken = asyncio.Event()
        self.settled = 0
        """Enrolments so far."""

    def wake(self) -> None:
        """Make a round soon: a receipt has come."""
        self._woken.set()

    async def run_once(self, rows: int = PAGE_ROWS) -> int:
        """One round over all enrolments in doubt, ``rows`` at a time; returns how many receipts have settled.

        Raises:
            StoreUnavailableError: PostgreSQL did not answer; run again.
        """
        settled, after = 0, 0
        while True:
            page = await self._store.settle(after, rows)
            settled += page.accepted + page.not_sent
            if page.last is None:
                break
            after = page.last
        self.settled += settled
        return settled

    async def live(self) -> None:
        """Rounds when woken, and every few seconds; none ends because of another."""
        while True:
            began_s = liveness_s()
            try:
                await self.run_once()
            except StoreUnavailableError as error:
                _log.warning("receipts wait for the database: %s", error)
            except Exception:
                _log.exception("receipts were not applied; the next round tries again")
            took_s = liveness_s() - began_s
            await asyncio.sleep(max(_PAUSE_S, _SHARE * took_s))
            await woken_by(self._woken, liveness_s() + EVERY_S)
