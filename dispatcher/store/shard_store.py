"""What a shard asks of PostgreSQL: takeover, the last look before hand-over, the end of attempts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import asyncpg
import numpy as np
from asyncpg.pgproto.pgproto import UUID
from numpy.typing import NDArray

from dispatcher.core.batches import Columns, Int32s, Int64s, Leased
from dispatcher.core.fleet import Fleet
from dispatcher.core.graph import Catalogue
from dispatcher.store.columns import int32s, int64s, moments
from dispatcher.store.registry import Versions, read_catalogue, read_fleet, read_versions
from dispatcher.store.seats import Seat
from dispatcher.store.session import Connection, Session
from dispatcher.store.statements import statements


@dataclass(frozen=True, slots=True)
class Ends(Columns):
    """Attempts that have ended, with all the ledger needs in case their lease is gone by now."""

    enrolment: Int64s
    token: Int64s
    lead: Int64s
    visit: Int32s
    generation: Int32s
    attempt: Int32s
    device: Int32s
    slot_us: Int64s
    due_us: Int64s
    at_us: Int64s
    step: list[str]
    key: list[bytes]
    """Idempotency keys, 16 bytes each."""
    outcome: list[str]
    message_id: list[str | None]
    error: list[str | None]
    next_trigger: list[str | None]
    """Accepted: the step that follows, None after the last one."""
    next_due_us: Int64s
    """Accepted: when that step is due. Otherwise: when the enrolment is due again."""
    next: list[str]
    """Otherwise: waiting, failed, stopped or in_doubt."""
    counted: Int32s
    """Otherwise: 1 where the failure counts."""
    pinned: NDArray[np.bool_]
    """Otherwise: waiting for a resend from the same device."""


class Usage(NamedTuple):
    """A device's reserved moments."""

    number: int
    at_us: Int64s


class ShardStore:
    """The statements of shard ``shard``.

    Args:
        pool: the shard's connections.
        shard: its number.
        holder: names the incarnation's installation.
    """

    def __init__(self, pool: asyncpg.Pool, shard: int, holder: str) -> None:
        files = ("epochs", "catalogue", "shard", "complete")
        self._session = Session(pool, {name: sql for file in files for name, sql in statements(file).items()})
        self.shard = shard
        self.seat = Seat(self._session, f"shard-{shard}", holder)

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()

    async def versions(self) -> Versions:
        """Counters that tell whether catalogue or fleet have changed."""
        return await read_versions(self._session)

    async def catalogue(self) -> Catalogue:
        """All sequences."""
        return await read_catalogue(self._session)

    async def fleet(self) -> Fleet:
        """The shard's devices."""
        return (await read_fleet(self._session)).of_shard(self.shard)

    async def usage(self, since_us: int) -> list[Usage]:
        """Everything reserved after ``since_us``, from ledger and leases in one snapshot."""
        rows = await self._session.rows("load_usage", self.shard, since_us)
        return [Usage(row["number"], moments(row["at"])) for row in rows]

    async def leased_tokens(self, epoch: int) -> list[int]:
        """Tokens of the claims made under ``epoch`` that have no outcome yet."""
        return [row["token"] for row in await self._session.rows("leased_tokens", self.shard, epoch)]

    async def read_lease(self, epoch: int, token: int) -> Leased | None:
        """The claim ``token`` as it stands in PostgreSQL; None when nothing of it is leased any more."""
        row = await self._session.row("read_lease", self.shard, epoch, token)
        if row["enrolment"] is None:
            return None
        return Leased(
            token=token,
            epoch=epoch,
            enrolment=int64s(row["enrolment"]),
            lead=int64s(row["lead"]),
            visit=int32s(row["visit"]),
            generation=int32s(row["generation"]),
            attempt=int32s(row["attempt"]),
            retries=int32s(row["retries"]),
            device=int32s(row["device"]),
            slot_us=moments(row["slot"]),
            due_us=moments(row["due"]),
            phone=row["phone"],
            name=row["name"],
            attributes=row["attributes"],
            step=row["step"],
        )

    async def recheck(self, enrolment: Int64s, token: Int64s, key_known_us: int) -> dict[int, str]:
        """What may not leave after all: reason by row.

        Reasons: gone, trigger removed, opted out, stopped, paused, key forgotten.

        Args:
            key_known_us: gateways have forgotten the keys of what was handed over before this.
        """
        row = await self._session.row("recheck", enrolment.tolist(), token.tolist(), key_known_us)
        return dict(zip(int32s(row["row"]).tolist(), row["reason"] or (), strict=True))

    async def give_back(
        self,
        enrolment: Int64s,
        token: Int64s,
        due_us: Int64s,
        stop: list[str | None],
        now_us: int,
        forgotten: list[bool],
    ) -> int:
        """End leases that were not handed over: waiting again, stopped for the given reason, or in doubt for good."""
        return await self._session.changed(
            "give_back", enrolment.tolist(), token.tolist(), due_us.tolist(), stop, now_us, forgotten
        )

    async def end(self, ends: Ends, now_us: int, *, epoch: int, deadline_us: int) -> None:
        """Write ends of attempts, ledger and progress, in one transaction. Safe to repeat after a lost answer."""
        async with self._session.transaction() as connection:
            await _End(connection, now_us, epoch, deadline_us).write(ends)


@dataclass(frozen=True, slots=True)
class _End:
    connection: Connection
    now_us: int
    epoch: int
    deadline_us: int

    async def write(self, ends: Ends) -> None:
        accepted = np.array([outcome in ("accepted", "repeat") for outcome in ends.outcome], np.bool_)
        if not accepted.all():
            others = np.flatnonzero(~accepted)
            if await self._end_others(ends.take(others)) < len(others):
                await self._record_late(ends.take(others))
            refused = ends.device[[outcome == "credentials" for outcome in ends.outcome]]
            if len(refused):
                await self.connection.execute(statements("complete")["quarantine"], np.unique(refused).tolist())
        good = ends if accepted.all() else ends.take(np.flatnonzero(accepted))
        if not len(good):
            return
        good = await self._settle_doubt(good)
        last = np.array([trigger is None for trigger in good.next_trigger], np.bool_)
        moved = await self._advance(good.take(np.flatnonzero(~last))) if not last.all() else 0
        if last.any():
            moved += await self._finish(good.take(np.flatnonzero(last)))
        if moved < len(good):
            await self._accept_late(good)

    async def _value(self, name: str, *arguments: object) -> int:
        return int(await self.connection.fetchval(statements("complete")[name], *arguments))

    async def _settle_doubt(self, good: Ends) -> Ends:
        """Attempts before an accepted one that were in doubt become known with it; no other is a repetition."""
        fresh = np.array([outcome == "accepted" for outcome in good.outcome], np.bool_)
        again = np.flatnonzero((good.attempt > 1) | ~fresh)
        if not len(again):
            return good
        part, fresh = good.take(again), fresh[again]
        new, repeated = part.take(np.flatnonzero(fresh)), part.take(np.flatnonzero(~fresh))
        credited = await self.connection.fetch(
            statements("complete")["credit_doubt"], *_visits(repeated), repeated.at_us.tolist(), repeated.message_id
        )
        await self.connection.execute(statements("complete")["clear_doubt"], *_visits(new))
        known = {row["enrolment_id"] for row in credited}
        outcome = [
            "repeat" if was == "repeat" and id_ in known else "accepted"
            for was, id_ in zip(good.outcome, good.enrolment.tolist(), strict=True)
        ]
        return good.replace(outcome=outcome)

    def _attempts(self, ends: Ends) -> tuple[object, ...]:
        """What advance, finish and finish_later have in common."""
        return (
            ends.enrolment.tolist(),
            ends.token.tolist(),
            ends.at_us.tolist(),
            ends.outcome,
            ends.message_id,
            _uuids(ends.key),
            ends.attempt.tolist(),
            ends.slot_us.tolist(),
            ends.due_us.tolist(),
            ends.step,
            self.epoch,
            self.deadline_us,
        )

    async def _advance(self, ends: Ends) -> int:
        return await self._value("advance", *self._attempts(ends), ends.next_trigger, ends.next_due_us.tolist())

    async def _finish(self, ends: Ends) -> int:
        """Last steps, in lead order, a lead at most once a statement."""
        await self.connection.execute("SELECT set_config('dripline.completing', 'on', true)")
        done = 0
        order = np.argsort(ends.lead, kind="stable")
        while len(order):
            fresh = np.ones(len(order), np.bool_)
            fresh[1:] = ends.lead[order][1:] != ends.lead[order][:-1]
            part = ends.take(order[fresh])
            attempts = self._attempts(part)
            moved = await self._value("finish", *attempts, part.lead.tolist())
            if moved < len(part):
                moved += await self._value("finish_later", *attempts)
            done += moved
            order = order[~fresh]
        return done

    async def _end_others(self, ends: Ends) -> int:
        return await self._value(
            "end_attempts",
            ends.enrolment.tolist(),
            ends.token.tolist(),
            ends.outcome,
            ends.error,
            _uuids(ends.key),
            ends.next,
            ends.counted.tolist(),
            ends.next_due_us.tolist(),
            ends.pinned.tolist(),
            self.now_us,
        )

    async def _record_late(self, ends: Ends) -> Ends:
        """The ledger's part of attempts whose lease had ended; returns those that it did not know yet."""
        attempts = (
            ends.enrolment.tolist(),
            ends.visit.tolist(),
            ends.generation.tolist(),
            ends.attempt.tolist(),
        )
        found = await self.connection.fetch(statements("complete")["known_attempts"], *attempts)
        known = {row["row"]: row["outcome"] for row in found}
        open_ = np.array([row for row in range(len(ends)) if known.get(row, "in_doubt") == "in_doubt"], np.intp)
        late = ends.take(open_)
        if not len(late):
            return late
        facts = (
            late.enrolment.tolist(),
            late.visit.tolist(),
            late.generation.tolist(),
            late.attempt.tolist(),
            late.outcome,
            late.at_us.tolist(),
            late.message_id,
            late.error,
        )
        await self.connection.execute(statements("complete")["learn"], *facts)
        await self.connection.execute(
            statements("complete")["record"],
            *facts,
            late.device.tolist(),
            late.slot_us.tolist(),
            late.due_us.tolist(),
            _uuids(late.key),
            late.step,
            self.epoch,
            self.deadline_us,
        )
        return late

    async def _accept_late(self, ends: Ends) -> None:
        """Accepted, but the lease had ended: advance where the visit is still that attempt's."""
        visits = (ends.enrolment.tolist(), ends.visit.tolist(), ends.generation.tolist())
        await self.connection.execute(statements("complete")["lock_enrolments"], visits[0])
        rows = await self.connection.fetch(statements("complete")["accepted_visits"], *visits)
        settled = {row["row"] for row in rows}
        outcome = ["repeat" if row in settled else "accepted" for row in range(len(ends))]
        late = await self._record_late(ends.replace(outcome=outcome))
        if not len(late):
            return
        await self.connection.execute(
            statements("complete")["advance_late"],
            late.enrolment.tolist(),
            late.visit.tolist(),
            late.generation.tolist(),
            late.at_us.tolist(),
            late.next_trigger,
            [
                None if end is None else due
                for end, due in zip(late.next_trigger, late.next_due_us.tolist(), strict=True)
            ],
        )


def _uuids(keys: list[bytes]) -> list[UUID]:
    return [UUID(key) for key in keys]


def _visits(ends: Ends) -> tuple[list[int], list[int], list[int]]:
    return ends.enrolment.tolist(), ends.visit.tolist(), ends.generation.tolist()
