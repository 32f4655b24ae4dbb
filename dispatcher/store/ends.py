"""The ends of attempts: ledger and progress in one transaction a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from asyncpg.pgproto.pgproto import UUID
from numpy.typing import NDArray

from dispatcher.core.batches import Coded
from dispatcher.core.leases import Ends
from dispatcher.core.outcomes import PAUSES_STEP, QUARANTINES
from dispatcher.store import arrays
from dispatcher.store.session import Connection
from dispatcher.store.statements import statements

_AFTERWARDS: Final = {"rejected": "failed", "opted_out": "stopped"}
"""What follows for an enrolment in doubt, by what its attempt turned out to be; otherwise it waits again."""


async def write_ends(connection: Connection, ends: Ends, now_us: int, *, epoch: int, deadline_us: int) -> None:
    """Write ``ends`` inside the connection's transaction; what is there already changes nothing.

    Args:
        connection: one that ``arrays.announce`` has seen, as those of the engine's pools.
        epoch: the writer's, for attempts whose lease is gone.
        deadline_us: how long after its slot a message may leave.
    """
    await _Ending(connection, now_us, epoch, deadline_us).write(ends)


@dataclass(frozen=True, slots=True)
class _Ending:
    connection: Connection
    now_us: int
    epoch: int
    deadline_us: int

    async def write(self, ends: Ends) -> None:
        accepted = _is(ends, "accepted", "repeat")
        ended = 0
        if not accepted.all():
            others = np.flatnonzero(~accepted)
            ended = await self._end_others(ends.take(others))
            if ended < len(others):
                late = ends.take(others[ends.handed[others]])
                # Whoever else writes ends of these visits comes before or after, not between the look and the release.
                await self.connection.execute(statements("complete")["lock_enrolments"], late.enrolment.tolist())
                await self._release(await self._record_late(late))
            await self._see_to_causes(ends)
        good = ends if accepted.all() else ends.take(np.flatnonzero(accepted))
        if len(good):
            ended += await self._accept(good)
        if ended == len(ends):
            tokens, rows = np.unique(ends.token, return_counts=True)
            await self.connection.execute(statements("complete")["close_claims"], tokens.tolist(), rows.tolist())

    async def _see_to_causes(self, ends: Ends) -> None:
        """Quarantine the devices, and pause the steps, that are why messages were not taken."""
        for outcome, cause in QUARANTINES.items():
            refused = ends.device[_is(ends, outcome.label)]
            if len(refused):
                await self.connection.execute(statements("complete")["quarantine"], np.unique(refused).tolist(), cause)
        unfit = ends.take(np.flatnonzero(_is(ends, *(outcome.label for outcome in PAUSES_STEP))))
        if len(unfit):
            causes = [error or "refused" for error in unfit.error]
            await self.connection.execute(statements("complete")["pause_steps"], list(unfit.step), causes, self.now_us)

    async def _accept(self, good: Ends) -> int:
        """Advance and complete; returns how many leases ended."""
        good = await self._settle_doubt(good)
        last = Coded.of(good.next_trigger).where(lambda trigger: trigger is None)
        moved = await self._advance(good.take(np.flatnonzero(~last))) if not last.all() else 0
        if last.any():
            moved += await self._finish(good.take(np.flatnonzero(last)))
        if moved < len(good):
            await self._accept_late(good)
        return moved

    async def _value(self, name: str, *arguments: object) -> int:
        return int(await self.connection.fetchval(statements("complete")[name], *arguments))

    async def _settle_doubt(self, good: Ends) -> Ends:
        """Attempts before an accepted one that were in doubt become known with it; no other is a repetition."""
        fresh = _is(good, "accepted")
        again = np.flatnonzero((good.attempt > 1) | ~fresh)
        if not len(again):
            return good
        part, fresh = good.take(again), fresh[again]
        new, repeated = part.take(np.flatnonzero(fresh)), part.take(np.flatnonzero(~fresh))
        credited = await self.connection.fetch(
            statements("complete")["credit_doubt"],
            *_visits(repeated),
            repeated.at_us.tolist(),
            list(repeated.message_id),
            repeated.attempt.tolist(),
        )
        await self.connection.execute(statements("complete")["clear_doubt"], *_visits(new), new.attempt.tolist())
        known = {tuple(row) for row in credited}
        outcome = [
            "repeat" if was == "repeat" and visit in known else "accepted"
            for was, visit in zip(good.outcome, zip(*_visits(good), strict=True), strict=True)
        ]
        return good.replace(outcome=outcome)

    def _attempts(self, ends: Ends) -> tuple[object, ...]:
        """What advance, finish and finish_later have in common."""
        return (
            arrays.int8s(ends.enrolment),
            arrays.int8s(ends.token),
            arrays.int8s(ends.at_us),
            arrays.texts(ends.outcome),
            arrays.texts(ends.message_id),
            arrays.uuids(b"".join(ends.key)),
            arrays.int4s(ends.attempt),
            arrays.int8s(ends.slot_us),
            arrays.int8s(ends.due_us),
            arrays.texts(ends.step),
            self.epoch,
            self.deadline_us,
        )

    async def _advance(self, ends: Ends) -> int:
        following = arrays.texts(ends.next_trigger), arrays.int8s(ends.next_due_us)
        return await self._value("advance", *self._attempts(ends), *following)

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
            moved = await self._value("finish", *attempts, arrays.int8s(part.lead))
            if moved < len(part):
                moved += await self._value("finish_later", *attempts)
            done += moved
            order = order[~fresh]
        return done

    async def _end_others(self, ends: Ends) -> int:
        done = await self.connection.fetchrow(
            statements("complete")["end_attempts"],
            ends.enrolment.tolist(),
            ends.token.tolist(),
            list(ends.outcome),
            list(ends.error),
            _uuids(ends.key),
            list(ends.next),
            ends.counted.tolist(),
            ends.next_due_us.tolist(),
            ends.pinned.tolist(),
            self.now_us,
            list(ends.text),
            list(ends.media_url),
        )
        assert done is not None
        if done["opted_out"]:
            await self._suppress(done["opted_out"], [self.now_us] * len(done["opted_out"]))
        return int(done["ended"])

    async def _suppress(self, leads: list[int], at_us: list[int]) -> None:
        await self.connection.execute(statements("complete")["suppress"], leads, at_us)

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
            list(late.outcome),
            late.at_us.tolist(),
            list(late.message_id),
            list(late.error),
        )
        await self.connection.execute(statements("complete")["learn"], *facts)
        await self.connection.execute(
            statements("complete")["record"],
            *facts,
            late.device.tolist(),
            late.slot_us.tolist(),
            late.due_us.tolist(),
            _uuids(late.key),
            list(late.step),
            self.epoch,
            self.deadline_us,
        )
        return late

    async def _release(self, late: Ends) -> None:
        """What the late end of an attempt that was not accepted means for an enrolment in doubt."""
        opted_out = np.flatnonzero(_is(late, "opted_out"))
        if len(opted_out):
            await self._suppress(late.lead[opted_out].tolist(), late.at_us[opted_out].tolist())
        proof = late.take(np.flatnonzero(~_is(late, "in_doubt")))
        if len(proof):
            await self.connection.execute(
                statements("complete")["release_doubt"],
                *_visits(proof),
                [_AFTERWARDS.get(outcome, "waiting") for outcome in proof.outcome],
                list(proof.error),
                proof.at_us.tolist(),
            )

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
            list(late.next_trigger),
            [
                None if end is None else due
                for end, due in zip(late.next_trigger, late.next_due_us.tolist(), strict=True)
            ],
        )


def _is(ends: Ends, *outcomes: str) -> NDArray[np.bool_]:
    """Which ends have one of these outcomes."""
    return Coded.of(ends.outcome).where(lambda outcome: outcome in outcomes)


def _uuids(keys: list[bytes]) -> list[UUID]:
    return [UUID(key) for key in keys]


def _visits(ends: Ends) -> tuple[list[int], list[int], list[int]]:
    return ends.enrolment.tolist(), ends.visit.tolist(), ends.generation.tolist()
