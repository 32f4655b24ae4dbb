"""What a shard asks of PostgreSQL: takeover, the last look before hand-over, the end of attempts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import asyncpg
import numpy as np
from numpy.typing import NDArray

from dispatcher.core.batches import Coded, Int32s, Int64s, Leased
from dispatcher.core.breaker import Turned
from dispatcher.core.catalogue import Catalogue, Openings
from dispatcher.core.fleet import Fleet
from dispatcher.core.lateness import Late, LateMoves
from dispatcher.core.leases import Ends, Usage
from dispatcher.ports import Versions
from dispatcher.store import arrays
from dispatcher.store.bodies import packed
from dispatcher.store.columns import int32s, int64s, moments
from dispatcher.store.ends import write_ends
from dispatcher.store.registry import read_catalogue, read_fleet, read_versions
from dispatcher.store.seats import PostgresSeat
from dispatcher.store.session import Session
from dispatcher.store.statements import statements


class PostgresShardStore:
    """The ``ShardStore`` port: the statements of shard ``shard``.

    Args:
        pool: the shard's connections.
        shard: its number.
        holder: names the incarnation's installation.
    """

    def __init__(self, pool: asyncpg.Pool, shard: int, holder: str) -> None:
        files = ("epochs", "catalogue", "shard", "complete")
        self._session = Session(pool, {name: sql for file in files for name, sql in statements(file).items()})
        self.shard = shard
        self.seat = PostgresSeat(self._session, f"shard-{shard}", holder)

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
        return await read_fleet(self._session, self.shard)

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
            step=Coded.of(row["step"]),
            resend_text=row["resend_text"],
            resend_media_url=row["resend_media_url"],
        )

    async def last_look(
        self,
        leased: Leased,
        texts: Sequence[str | None],
        media_urls: Sequence[str | None],
        now_us: int,
        key_known_us: int,
    ) -> dict[int, str]:
        """What may not leave after all, reason by row; of the rest it is recorded that, and with what, it leaves."""
        row = await self._session.row(
            "last_look",
            arrays.int8s(leased.enrolment),
            arrays.bools(Coded.of(texts).where(lambda text: text is not None)),
            leased.token,
            self.seat.name,
            leased.epoch,
            now_us,
            packed(leased.enrolment, texts, media_urls),
            key_known_us,
        )
        return dict(zip(int32s(row["row"]).tolist(), row["reason"] or (), strict=True))

    async def time_zones(self, lead: Int64s) -> Coded[str | None]:
        """The time zones of leads, row by row; None where none is known."""
        return Coded.of((await self._session.row("time_zones", arrays.int8s(lead)))["time_zone"])

    async def open_windows(self, lead: Int64s, device: Int32s, since_us: int) -> NDArray[np.bool_]:
        """Row by row, whether the lead has written to the device (its number) since ``since_us``."""
        row = await self._session.row("open_windows", arrays.int8s(lead), arrays.int4s(device), since_us)
        return np.array(row["open"] or [], np.bool_)

    async def rest_accounts(self, device: Int32s, until_us: Int64s) -> int:
        """Let all devices of the accounts behind these ones rest; how many that told something new."""
        return await self._session.changed("rest_accounts", device.tolist(), until_us.tolist())

    async def postpone(self, openings: Mapping[int, Openings], now_us: int, rows: int) -> int:
        """Move up to ``rows`` waiting enrolments that are due to where the send windows of their leads open."""
        return await self._session.changed("postpone", self.shard, now_us, json.dumps(openings), rows)

    async def late(self, before_us: Mapping[int, int], rows: int) -> Late:
        """Up to ``rows`` waiting enrolments of the shard's devices that were due before this, by sequence."""
        found = await self._session.rows("late", self.shard, json.dumps(before_us), max(before_us.values()), rows)
        return Late(
            enrolment=np.array([row["id"] for row in found], np.int64),
            visit=np.array([row["visit"] for row in found], np.int32),
            generation=np.array([row["generation"] for row in found], np.int32),
            device=np.array([row["device"] for row in found], np.int32),
            due_us=np.array([row["due_us"] for row in found], np.int64),
            step=[row["step"] for row in found],
            time_zone=[row["time_zone"] for row in found],
        )

    async def move_late(self, moves: LateMoves, now_us: int) -> int:
        """Skip or shift enrolments that wait as they did, around what somebody holds; each is written down."""
        late = moves.late
        return int(
            await self._session.value(
                "move_late",
                late.enrolment.tolist(),
                late.visit.tolist(),
                late.generation.tolist(),
                late.due_us.tolist(),
                moves.skipped.tolist(),
                moves.next_trigger,
                moves.next_due_us.tolist(),
                now_us,
            )
        )

    async def give_back(
        self,
        enrolment: Int64s,
        token: Int64s,
        due_us: Int64s,
        stop: list[str | None],
        now_us: int,
        forgotten: list[bool],
        aside: list[bool],
    ) -> int:
        """End leases that were not handed over: waiting again, stopped for the given reason, or in doubt for good."""
        return await self._session.changed(
            "give_back", enrolment.tolist(), token.tolist(), due_us.tolist(), stop, now_us, forgotten, aside
        )

    async def end(self, ends: Ends, now_us: int, *, epoch: int, deadline_us: int) -> None:
        """Write ends of attempts, ledger and progress, in one transaction. Safe to repeat after a lost answer."""
        async with self._session.transaction() as connection:
            await write_ends(connection, ends, now_us, epoch=epoch, deadline_us=deadline_us)

    async def set_breakers(self, turned: Turned) -> int:
        """Write how devices' breakers stand: quarantined until a message may try, or, without trips, available."""
        return await self._session.changed(
            "set_breakers", turned.device.tolist(), turned.trips.tolist(), turned.probe_us.tolist()
        )
