"""What gateways tell after a message has left, written down, and applied to attempts in doubt."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple, cast
from uuid import UUID

import asyncpg
import numpy as np

from dispatcher.core.catalogue import Catalogue
from dispatcher.core.identity import idempotency_keys
from dispatcher.core.receipts import Heard, Receipt, Reply
from dispatcher.store.in_doubt import Told, Which, Word, resolve
from dispatcher.store.registry import read_sequences
from dispatcher.store.session import Connection, Session, translated
from dispatcher.store.statements import statements

ACTOR: Final = "a gateway's receipt"
"""Whose word it is, in the operators' log."""


class Settled(NamedTuple):
    """What one page of ``settle`` did."""

    accepted: int
    not_sent: int
    last: int | None
    """The last enrolment looked at, where the next page begins; None when there are no more."""


class PostgresReceiptStore:
    """What the webhooks ask of PostgreSQL.

    Args:
        pool: their connections.
        skew_s: how far a gateway's clock may differ.
    """

    def __init__(self, pool: asyncpg.Pool, skew_s: float) -> None:
        self._session, self._pool, self._skew_s = Session(pool, statements("receipts")), pool, skew_s

    async def check(self) -> None:
        """Make sure that PostgreSQL answers.

        Raises:
            StoreUnavailableError: it does not.
        """
        await self._session.value("answers")

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()

    async def take(self, heard: Heard) -> None:
        """Write all that a request tells, committed as one before this returns; repeated, it changes nothing.

        Raises:
            StoreUnavailableError: it is unknown whether it was written.
        """
        if not heard.events:
            return
        async with self._session.transaction() as connection:
            clock = await connection.fetchrow(statements("in_doubt")["clock"])
            assert clock is not None
            await _Taking(connection, clock["now_us"]).write(heard)

    async def settle(self, after: int, rows: int) -> Settled:
        """Apply receipts to up to ``rows`` enrolments in doubt with an id above ``after``, ascending.

        What is under way is left to its own end, and looked at again by the next round.

        Raises:
            StoreUnavailableError: PostgreSQL did not answer; run again.
        """
        doubtful = await self._session.rows("doubtful", after, rows)
        if not doubtful:
            return Settled(0, 0, None)
        columns = [np.array([row[name] for row in doubtful]) for name in ("id", "visit", "generation")]
        keys = [str(UUID(bytes=key)) for key in idempotency_keys(*columns)]
        attempts = [row["attempt"] for row in doubtful]
        told = await self._session.rows("told_of", columns[0].tolist(), keys, attempts, self._skew_s)
        done = dict.fromkeys(Word, 0)
        if told:
            had = {row["id"]: Told(row["at_us"], row["message_id"]) for row in told if row["at_us"] is not None}
            not_had = [row["id"] for row in told if row["at_us"] is None]
            async with translated(), self._pool.acquire() as pooled:
                connection = cast(asyncpg.Connection, pooled)
                catalogue = Catalogue.of(await read_sequences(connection))
                for word, ids in ((Word.ACCEPTED, list(had)), (Word.NOT_SENT, not_had)):
                    found = await resolve(connection, Which(ids), word, catalogue, actor=ACTOR, rows=rows, told=had)
                    done[word] = len(found.enrolments)
        return Settled(done[Word.ACCEPTED], done[Word.NOT_SENT], doubtful[-1]["id"] if len(doubtful) == rows else None)


@dataclass(frozen=True, slots=True)
class _Taking:
    connection: Connection
    now_us: int
    """Nothing has happened later, whatever the gateway's clock says."""

    async def write(self, heard: Heard) -> None:
        if heard.receipts:
            await self._receipts(heard.receipts)
        if heard.replies:
            await self._replies(heard.replies)
        if heard.opt_outs:
            await self._opt_outs(heard.opt_outs)

    async def _receipts(self, receipts: dict[str, Receipt]) -> None:
        told = list(receipts.values())
        await self.connection.execute(
            statements("receipts")["take_receipts"],
            list(receipts),
            self._past(receipt.accepted_us for receipt in told),
            self._past(receipt.delivered_us for receipt in told),
            self._past(receipt.read_us for receipt in told),
            self._past(receipt.failed_us for receipt in told),
            self._past(receipt.not_sent_us for receipt in told),
            [receipt.error for receipt in told],
            [receipt.message_id for receipt in told],
        )

    async def _replies(self, replies: list[Reply]) -> None:
        await self.connection.execute(
            statements("receipts")["take_replies"],
            [reply.phone for reply in replies],
            [reply.text for reply in replies],
            self._past(reply.at_us for reply in replies),
            [reply.message_id for reply in replies],
            [reply.device_id for reply in replies],
        )

    async def _opt_outs(self, opt_outs: dict[str, int]) -> None:
        sql, at_us = statements("receipts")["leads_opting_out"], self._past(opt_outs.values())
        leads = await self.connection.fetch(sql, list(opt_outs), at_us)
        told = [row["id"] for row in leads], [row["at"] for row in leads]
        await self.connection.execute(statements("complete")["suppress"], *told)

    def _past(self, moments: Iterable[int | None]) -> list[int | None]:
        return [None if moment is None else min(moment, self.now_us) for moment in moments]
