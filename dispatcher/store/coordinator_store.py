"""What the coordinator's passes ask of PostgreSQL; every method is one named statement, or one transaction of them."""

from __future__ import annotations

import json
import time
from typing import Any, Final
from uuid import UUID

import asyncpg
import numpy as np

from dispatcher.core.batches import Coded, Int32s, Int64s, Leased
from dispatcher.core.catalogue import Catalogue
from dispatcher.core.fleet import Fleet
from dispatcher.core.group_log import Group
from dispatcher.core.leases import EndedLeases, Usage, Want
from dispatcher.core.moments import NEVER_US
from dispatcher.errors import FencedError, StoreUnavailableError
from dispatcher.ports import Enrolled, Homes, Search, Versions
from dispatcher.store import arrays
from dispatcher.store.bodies import unpacked
from dispatcher.store.columns import int32s, int64s, moments
from dispatcher.store.connect import LOCK_TIMEOUT_S
from dispatcher.store.erasure import sweep
from dispatcher.store.registry import read_catalogue, read_fleet, read_groups, read_versions
from dispatcher.store.seats import PostgresSeat
from dispatcher.store.session import Connection, Session
from dispatcher.store.statements import statements

_QUICK_LOCK_S: Final = 0.2
"""Well below ``deadlock_timeout``: a claim that waits for somebody's rows gives up before PostgreSQL ends theirs."""
_CAREFUL_S: Final = 60.0
"""Whoever holds enrolments for long is not waited for by every claim."""
_SKIPS_LOCKED: Final = "FOR NO KEY UPDATE SKIP LOCKED"


class PostgresCoordinatorStore:
    """The ``CoordinatorStore`` port: the coordinator's statements.

    Args:
        pool: the coordinator's connections; claims of several shards run side by side on them.
        holder: names this installation, for leadership.
    """

    def __init__(self, pool: asyncpg.Pool, holder: str) -> None:
        files = ("epochs", "catalogue", "enrol", "claim", "rescue", "complete")
        named = {name: sql for file in files for name, sql in statements(file).items()}
        around = named["claim_due"].replace(f"/* {_SKIPS_LOCKED} */", _SKIPS_LOCKED)
        self._session, self._around = Session(pool, named), Session(pool, {"claim_due": around})
        self.seat = PostgresSeat(self._session, "coordinator", holder)
        self._careful_until_s = 0.0

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()

    # Registry ------------------------------------------------------------------------------------------------

    async def versions(self) -> Versions:
        """Counters that tell whether catalogue or fleet have changed."""
        return await read_versions(self._session)

    async def catalogue(self, now_us: int) -> Catalogue:
        """All sequences; what is broken is recorded for everybody to see, and open entries are opened."""
        catalogue = await read_catalogue(self._session)
        problems = {id_: "; ".join(found) for id_, found in catalogue.problems.items()}
        await self._session.changed("record_problems", list(problems), list(problems.values()))
        await self._session.changed("record_entries", list(catalogue.entries), list(catalogue.entries.values()), now_us)
        return catalogue

    async def fleet(self) -> Fleet:
        """All devices."""
        return await read_fleet(self._session)

    async def assign_shards(self, number: Int32s, shard: Int32s) -> None:
        """Give devices to shards."""
        await self._session.changed("assign_shards", number.tolist(), shard.tolist())

    async def groups(self, since_us: int) -> list[Group]:
        """Groups of devices by name, with the devices that are in them, or were since ``since_us``."""
        return await read_groups(self._session, since_us)

    async def usage(self, number: Int32s, since_us: int) -> list[Usage]:
        """Every slot of these devices after ``since_us``, from ledger and leases in one snapshot."""
        rows = await self._session.rows("group_usage", number.tolist(), since_us)
        return [Usage(row["number"], moments(row["at"])) for row in rows]

    async def home_load(self) -> dict[UUID, int]:
        """Live enrolments by home device."""
        return {row["home_device_id"]: row["live"] for row in await self._session.rows("home_load")}

    async def begin_day(self, now_us: int, days_ahead: int, kept_us: int) -> int:
        """Ledger partitions from yesterday to ``days_ahead`` days after ``now_us``; how many were made.

        Records of hand-overs older than ``kept_us`` are given up, what was written about erased leads since, and pauses
        of leads that are over; ramps of devices grow.
        """
        async with self._session.transaction() as connection:
            await connection.execute(statements("catalogue")["one_at_a_time"])
            await connection.execute(statements("catalogue")["forget_pauses"], now_us)
            await connection.execute(statements("catalogue")["forget_handovers"], now_us - kept_us)
            await sweep(connection)
            if await connection.fetchval(statements("catalogue")["ramps_to_grow"], now_us):
                await connection.execute(statements("catalogue")["grow_ramps"], now_us)
            return int(await connection.fetchval(statements("catalogue")["make_partitions"], now_us, days_ahead))

    # Enrolment -----------------------------------------------------------------------------------------------

    async def enrol(
        self, catalogue: Catalogue, homes: Homes, now_us: int, *, epoch: int, rows: int, hour_us: int
    ) -> Enrolled:
        """Turn queued changes of ``rows`` leads, and few more, into enrolments and ends, in one transaction.

        Args:
            homes: the home devices of so many leads without one, in order, or none; asked when changes were taken.

        Raises:
            FencedError: another coordinator has taken over; nothing was written.
        """
        try:
            return await self._enrol(catalogue, homes, now_us, epoch=epoch, rows=rows, hour_us=hour_us)
        except asyncpg.UniqueViolationError:
            # Somebody else has enrolled one of these leads at the same moment: that is seen now.
            return await self._enrol(catalogue, homes, now_us, epoch=epoch, rows=rows, hour_us=hour_us)

    async def _enrol(
        self, catalogue: Catalogue, homes: Homes, now_us: int, *, epoch: int, rows: int, hour_us: int
    ) -> Enrolled:
        async with self._session.transaction() as connection:
            taken = await connection.fetchrow(statements("enrol")["take_changes"], rows, now_us)
            assert taken is not None
            if not taken["taken"]:
                return Enrolled(0, 0, {})
            stopped = taken["stopped"]
            if taken["exits"]:
                stopped += await connection.fetchval(statements("enrol")["end_replied"], taken["leads"], now_us)
            devices, order = _numbered(homes(taken["taken"]))
            dues = None
            if catalogue.by_clock.any():
                zones = await connection.fetch(statements("enrol")["time_zones"], taken["leads"])
                dues = json.dumps(catalogue.entry_dues([row["time_zone"] for row in zones], now_us))
            found = await connection.fetch(
                statements("enrol")["enrol"],
                taken["leads"],
                list(catalogue.entries),
                list(catalogue.entries.values()),
                order,
                now_us,
                epoch,
                hour_us,
                devices,
                dues,
            )
            if found[-1]["held"] != 1:
                raise FencedError("coordinator", epoch)
            stopped += await _leave_at_goals(connection, catalogue, taken["leads"], now_us)
        home = {row["home_device_id"]: row["enrolled"] for row in found if row["enrolled"]}
        return Enrolled(taken["taken"], stopped, home)

    async def search_entries(self, rows: int) -> Search | None:
        """Look for leads of a newly opened entry among the next ``rows`` leads; None when nothing is open."""
        if not await self._session.value("searching"):
            return None
        found = await self._session.rows("search_entries", rows)
        return Search(*found[0]) if found else None

    # Claim ---------------------------------------------------------------------------------------------------

    async def claim(self, want: Want, now_us: int, *, epoch: int, deadline_us: int, lead_fields: bool) -> Leased | None:
        """Lease what is due to the offered slots, committed before this returns."""
        if not len(want.slot_us):
            return None
        first = np.cumsum(want.slots) - want.slots
        token = int(await self._session.value("next_token"))
        row, around = await self._claim_due(
            arrays.uuids(b"".join(device.bytes for device in want.device_id)),
            arrays.int4s(want.slots),
            arrays.int4s(first),
            arrays.int8s(want.slot_us),
            now_us,
            deadline_us,
            epoch,
            f"shard-{want.shard}",
            want.epoch,
            token,
            lead_fields,
            since=arrays.int8s(want.since_us),
        )
        if row["enrolment"] is None:
            return None
        enrolment = int64s(row["enrolment"])
        device = int32s(row["ord"]) - 1
        nothing = Coded.same(None, len(enrolment))
        return Leased(
            token=token,
            epoch=want.epoch,
            enrolment=enrolment,
            lead=int64s(row["lead"]),
            visit=int32s(row["visit"]),
            generation=int32s(row["generation"]),
            attempt=int32s(row["attempt"]),
            retries=int32s(row["retries"]),
            device=want.number[device],
            slot_us=want.slot_us[first[device] + int32s(row["rank"]) - 1],
            due_us=moments(row["due"]),
            phone=row["phone"],
            name=row["name"] or nothing,
            attributes=row["attributes"] or nothing,
            step=Coded.of(row["step"]),
            resend_text=row["resend_text"] or nothing,
            resend_media_url=row["resend_media_url"] or nothing,
            around=around,
        )

    async def _claim_due(self, *arguments: Any, since: bytes) -> tuple[asyncpg.Record, bool]:
        """The claim without locks beforehand; while somebody holds rows that it wants, with locks and around those.

        Returns its result, and whether it went around rows.
        """
        if time.monotonic() >= self._careful_until_s:
            try:
                return await self._session.row("claim_due", *arguments, f"{_QUICK_LOCK_S}s", since), False
            except StoreUnavailableError as error:
                if not isinstance(error.__cause__, asyncpg.LockNotAvailableError):
                    raise
                self._careful_until_s = time.monotonic() + _CAREFUL_S
        return await self._around.row("claim_due", *arguments, f"{LOCK_TIMEOUT_S}s", since), True

    async def next_due(self, device_id: list[UUID]) -> Int64s:
        """The earliest due moment of each device; ``NEVER_US`` where nothing waits."""
        found = await self._session.value("next_due", device_id)
        return np.array([NEVER_US if due is None else due for due in found or ()], np.int64)

    async def hold(self, sequence: int, rows: int) -> int:
        """Take up to ``rows`` waiting enrolments of a sequence out of the claim's index."""
        return await self._session.changed("hold", sequence, rows)

    async def hold_step(self, step: str, rows: int) -> int:
        """Take up to ``rows`` enrolments that wait at a step out of the claim's index."""
        return await self._session.changed("hold_step", step, rows)

    async def unhold(self, sequence: int, rows: int, now_us: int) -> int:
        """Put up to ``rows`` held enrolments of a sequence back, but those of leads and at steps that are paused."""
        return await self._session.changed("unhold", sequence, rows, now_us)

    async def held_sequences(self) -> list[int]:
        """Sequences with held enrolments."""
        return [row["id"] for row in await self._session.rows("held_sequences")]

    async def finish_waiting(self, rows: int, now_us: int) -> int:
        """Complete enrolments whose lead was locked when the last step was accepted; mark opt-outs that waited so."""
        await self._session.changed("suppress_waiting", rows)
        async with self._session.transaction() as connection:
            await connection.execute("SELECT set_config('dripline.completing', 'on', true)")
            done = await connection.execute(statements("claim")["finish_waiting"], rows, now_us)
        return int(done.rsplit(" ", 1)[1])

    # Rescue --------------------------------------------------------------------------------------------------

    async def ended_leases(self, before_us: int, rows: int) -> EndedLeases:
        """Leases whose slot is before ``before_us`` or whose incarnation is superseded, at most ``rows``."""
        found = await self._session.rows("ended_leases", before_us, rows)
        handed = sorted({row["token"] for row in found if row["handed"]})
        records = await self._session.rows("handed_bodies", handed) if handed else []
        said = {enrolment: (text, media) for row in records for enrolment, text, media in unpacked(row["bodies"])}
        bodies = [said.get(row["id"], (None, None)) if row["handed"] else (None, None) for row in found]
        return EndedLeases(
            enrolment=np.array([row["id"] for row in found], np.int64),
            token=np.array([row["token"] for row in found], np.int64),
            epoch=np.array([row["epoch"] for row in found], np.int64),
            visit=np.array([row["visit"] for row in found], np.int32),
            generation=np.array([row["generation"] for row in found], np.int32),
            retries=np.array([row["retries"] for row in found], np.int32),
            shard=np.array([row["shard"] for row in found], np.int32),
            deadline_us=np.array([row["deadline_us"] for row in found], np.int64),
            idempotent=np.array([row["idempotent"] for row in found], np.bool_),
            handed=np.array([row["handed"] for row in found], np.bool_),
            text=[text for text, _ in bodies],
            media_url=[media_url for _, media_url in bodies],
        )

    async def return_leases(self, enrolment: Int64s, token: Int64s, due_us: int, now_us: int) -> int:
        """End leases that surely were not handed over; one whose hand-over is on record stays."""
        leases = dict(zip(enrolment.tolist(), token.tolist(), strict=True))
        for row in await self._session.rows("handed_since", list(leases), list(leases.values())):
            del leases[row["id"]]
        due, nothing, no = ([value] * len(leases) for value in (due_us, None, False))
        return await self._session.changed(
            "give_back", list(leases), list(leases.values()), due, nothing, now_us, no, no
        )

    async def doubt(
        self,
        leases: EndedLeases,
        keys: list[bytes],
        resend: np.typing.NDArray[np.bool_],
        due_us: Int64s,
        now_us: int,
    ) -> int:
        """Record leases as in doubt: waiting again under the same key where ``resend``, else held as in doubt."""
        rows = len(leases.enrolment)
        return int(
            await self._session.value(
                "end_attempts",
                leases.enrolment.tolist(),
                leases.token.tolist(),
                ["in_doubt"] * rows,
                ["no answer before the lease ended"] * rows,
                [UUID(bytes=key) for key in keys],
                ["waiting" if again else "in_doubt" for again in resend.tolist()],
                [1] * rows,
                due_us.tolist(),
                resend.tolist(),
                now_us,
                leases.text,
                leases.media_url,
            )
        )

    # Rebalance -----------------------------------------------------------------------------------------------

    async def misplaced(self, left: list[UUID], rows: int) -> Int64s:
        """Waiting enrolments whose home device is among ``left``, or that have none; at most ``rows``."""
        return np.array([row["id"] for row in await self._session.rows("misplaced", left, rows)], np.int64)

    async def rehome(self, enrolment: Int64s, device_id: list[UUID]) -> int:
        """Give waiting enrolments another home device."""
        return await self._session.changed("rehome", enrolment.tolist(), device_id)


async def _leave_at_goals(connection: Connection, catalogue: Catalogue, leads: str, now_us: int) -> int:
    """End what some leads have reached the goal of; returns how many enrolments."""
    if not catalogue.goals:
        return 0
    rows = await connection.fetch(statements("enrol")["towards_goals"], leads, list(catalogue.goals))
    reached: list[int] = []
    for id_, goal in catalogue.goals.items():
        mine = [row for row in rows if row["sequence_id"] == id_]
        columns = ([row[name] for row in mine] for name in ("trigger", "phone", "name", "attributes"))
        reached += [row["id"] for row, there in zip(mine, goal.reached(*columns), strict=True) if there]
    if not reached:
        return 0
    return int((await connection.execute(statements("enrol")["leave_at_goals"], reached, now_us)).rsplit(" ", 1)[1])


def _numbered(plan: list[UUID]) -> tuple[list[UUID], str]:
    """The devices of a plan, each once, and the plan as an array in text of their numbers from 1.

    A list of ids would cost a look at every element, here and in PostgreSQL, and the database an existence check each.
    """
    numbers = {device: str(number) for number, device in enumerate(dict.fromkeys(plan), 1)}
    return list(numbers), f"{{{','.join([numbers[device] for device in plan])}}}"
