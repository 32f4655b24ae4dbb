"""What the coordinator's passes ask of the twin."""

from __future__ import annotations

from operator import itemgetter
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from dispatcher.core.batches import Int32s, Int64s, Leased
from dispatcher.core.catalogue import Catalogue
from dispatcher.core.fleet import Fleet
from dispatcher.core.group_log import Group
from dispatcher.core.leases import EndedLeases, Usage, Want
from dispatcher.core.moments import NEVER_US
from dispatcher.core.triggers import remove
from dispatcher.errors import FencedError
from dispatcher.ports import Enrolled, Homes, Search, Versions
from simulate.memory_store.database import MemoryDatabase
from simulate.memory_store.ending import Given, Setback, end_attempts, give_back, suppress_waiting
from simulate.memory_store.enrolling import enrol, search_entries
from simulate.memory_store.epochs import COORDINATOR, MemorySeat, shard_of, shard_seat
from simulate.memory_store.leases import leased_rows
from simulate.memory_store.ledger import DAY_US
from simulate.memory_store.rows import Enrolment, OpenEntry
from simulate.memory_store.usage import usage


class MemoryCoordinatorStore:
    """The ``CoordinatorStore`` port.

    Args:
        database: the tables.
        holder: names this installation, for leadership.
    """

    def __init__(self, database: MemoryDatabase, holder: str) -> None:
        self._database = database
        self.seat = MemorySeat(database, COORDINATOR, holder)

    async def close(self) -> None:
        """Nothing is kept open."""

    # Registry ------------------------------------------------------------------------------------------------

    async def versions(self) -> Versions:
        """Counters that tell whether catalogue or fleet have changed."""
        return self._database.versions()

    async def catalogue(self, now_us: int) -> Catalogue:
        """All sequences; what is broken is recorded for everybody to see, and open entries are opened."""
        database, catalogue = self._database, self._database.catalogue()
        database.problems = {id_: "; ".join(found) for id_, found in catalogue.problems.items()}
        database.open_entries = {
            trigger: database.open_entries.get(trigger) or OpenEntry(trigger, sequence, now_us)
            for trigger, sequence in catalogue.entries.items()
        }
        return catalogue

    async def fleet(self) -> Fleet:
        """All devices."""
        return self._database.fleet()

    async def assign_shards(self, number: Int32s, shard: Int32s) -> None:
        """Give devices to shards; a former owner is superseded with it."""
        self._database.devices_changed()
        for device, owner in zip(number.tolist(), shard.tolist(), strict=True):
            if device in self._database.devices:
                self._database.set_device(device, shard_id=owner)

    async def groups(self, since_us: int) -> list[Group]:
        """Groups of devices by name, with the devices that are in them, or were since ``since_us``."""
        left_us: dict[int, int] = {}
        members: dict[str, set[int]] = {name: set() for name in self._database.groups}
        for stay in reversed(self._database.memberships):
            if stay.name is not None and left_us.get(stay.number, since_us + 1) > since_us:
                members[stay.name].add(stay.number)
            left_us[stay.number] = stay.valid_from_us
        return [
            Group(name, row.quota_per_hour, row.quota_per_day, np.array(sorted(members[name]), np.int32))
            for name, row in sorted(self._database.groups.items())
        ]

    async def usage(self, number: Int32s, since_us: int) -> list[Usage]:
        """Every slot of these devices after ``since_us``, from ledger and leases."""
        asked = {stay.id: stay.number for stay in self._database.memberships if stay.number in number}
        return usage(self._database, asked, self._database.leased.values(), since_us, late=False)

    async def home_load(self) -> dict[UUID, int]:
        """Live enrolments by home device."""
        return {home: len(rows) for home, rows in self._database.active_at.items() if rows and home is not None}

    async def begin_day(self, now_us: int, days_ahead: int, kept_us: int) -> int:
        """Ledger partitions from yesterday to ``days_ahead`` days after ``now_us``; how many were made.

        Records of hand-overs older than ``kept_us`` are given up, and pauses of leads that are over; ramps grow.
        """
        database = self._database
        database.paused_leads = {
            lead: until_us
            for lead, until_us in database.paused_leads.items()
            if until_us > now_us and lead in database.leads
        }
        self._database.forget_handovers(now_us - kept_us)
        today = now_us // DAY_US
        self._database.grow_ramps(today)
        return self._database.ledger.make_partitions(today - 1, today + days_ahead)

    # Enrolment -----------------------------------------------------------------------------------------------

    async def enrol(
        self, catalogue: Catalogue, homes: Homes, now_us: int, *, epoch: int, rows: int, hour_us: int
    ) -> Enrolled:
        """Turn queued changes of ``rows`` leads, and few more, into enrolments and ends.

        Args:
            homes: the home devices of so many leads without one, in order, or none; asked when changes were taken.

        Raises:
            FencedError: another coordinator has taken over; nothing was written.
        """
        if self._database.queue and not self._database.in_force(COORDINATOR, epoch):
            raise FencedError(COORDINATOR, epoch)
        return enrol(self._database, catalogue, homes, now_us, rows=rows, hour_us=hour_us)

    async def search_entries(self, rows: int) -> Search | None:
        """Look for leads of a newly opened entry among the next ``rows`` leads; None when nothing is open."""
        return search_entries(self._database, rows)

    # Claim ---------------------------------------------------------------------------------------------------

    async def claim(self, want: Want, now_us: int, *, epoch: int, deadline_us: int, lead_fields: bool) -> Leased | None:
        """Lease what is due to the offered slots."""
        if not len(want.slot_us):
            return None
        database = self._database
        token = database.next_number()
        if not (database.in_force(COORDINATOR, epoch) and database.in_force(shard_seat(want.shard), want.epoch)):
            return None
        sendable = database.sendable_sequences()
        slots, leased, first = want.slot_us.tolist(), [], 0
        for id_, number, count, since_us in zip(
            want.device_id, want.number.tolist(), want.slots.tolist(), want.since_us.tolist(), strict=True
        ):
            due = [
                (row.due_us, row.id, row)
                for row in database.active_at.get(id_, {}).values()
                if row.due_us is not None
                and since_us <= row.due_us <= now_us
                and row.device is None
                and not row.held
                and row.sequence in sendable
                and row.stop_reason is None
            ]
            due.sort(key=itemgetter(0, 1))
            for (_, _, row), slot_us in zip(due, slots[first : first + min(count, len(due))], strict=False):
                database.lease(row, database.devices[number], slot_us, slot_us + deadline_us, token, want.epoch)
                leased.append(row)
            first += count
        return leased_rows(database, leased, token, want.epoch, lead_fields=lead_fields) if leased else None

    async def next_due(self, device_id: list[UUID]) -> Int64s:
        """The earliest due moment of each device; ``NEVER_US`` where nothing waits."""
        sendable = self._database.sendable_sequences()
        return np.array([self._next_due(id_, sendable) for id_ in device_id], np.int64)

    def _next_due(self, device_id: UUID, sendable: frozenset[int]) -> int:
        return min(
            (
                row.due_us
                for row in self._database.active_at.get(device_id, {}).values()
                if row.due_us is not None and row.device is None and not row.held and row.sequence in sendable
            ),
            default=NEVER_US,
        )

    # Rescue --------------------------------------------------------------------------------------------------

    async def ended_leases(self, before_us: int, rows: int) -> EndedLeases:
        """Leases whose slot is before ``before_us`` or whose incarnation is superseded, at most ``rows``."""
        database = self._database
        seat_of = {seat.epoch: name for name, seat in database.epochs.items()}
        numbers = database.devices
        found = [
            row
            for row in sorted(database.leased.values(), key=lambda row: row.id)
            if row.device is not None
            and row.device.number in numbers
            and (row.slot_us < before_us or row.epoch not in seat_of)
        ][:rows]
        said = [None if row.epoch in seat_of else database.said(row) for row in found]
        return EndedLeases(
            enrolment=np.array([row.id for row in found], np.int64),
            token=np.array([row.token for row in found], np.int64),
            epoch=np.array([row.epoch for row in found], np.int64),
            visit=np.array([row.visit for row in found], np.int32),
            generation=np.array([row.generation for row in found], np.int32),
            retries=np.array([row.retries for row in found], np.int32),
            shard=np.array([shard_of(seat_of[row.epoch]) if row.epoch in seat_of else -1 for row in found], np.int32),
            deadline_us=np.array([row.deadline_us for row in found], np.int64),
            idempotent=np.array([row.device is not None and row.device.gateway_idempotent for row in found], np.bool_),
            handed=np.array([body is not None for body in said], np.bool_),
            text=[None if body is None else body[0] for body in said],
            media_url=[None if body is None else body[1] for body in said],
        )

    async def return_leases(self, enrolment: Int64s, token: Int64s, due_us: int, now_us: int) -> int:
        """End leases that surely were not handed over; one whose hand-over is on record stays."""
        unsent = [
            Given(id_, lease, due_us, None, False, False)
            for id_, lease in zip(enrolment.tolist(), token.tolist(), strict=True)
            if not any(id_ in record.said for record in self._database.handovers.get(lease, ()))
        ]
        return give_back(self._database, unsent, now_us)

    async def doubt(
        self, leases: EndedLeases, keys: list[bytes], resend: NDArray[np.bool_], due_us: Int64s, now_us: int
    ) -> int:
        """Record leases as in doubt: waiting again under the same key where ``resend``, else held as in doubt."""
        error = "no answer before the lease ended"
        columns = zip(
            leases.enrolment.tolist(),
            leases.token.tolist(),
            keys,
            resend.tolist(),
            due_us.tolist(),
            leases.text,
            leases.media_url,
            strict=True,
        )
        setbacks = [
            Setback(id_, token, "in_doubt", error, key, "waiting" if again else "in_doubt", 1, due, again, text, media)
            for id_, token, key, again, due, text, media in columns
        ]
        return end_attempts(self._database, setbacks, now_us)

    # Hold, finish, rebalance ---------------------------------------------------------------------------------

    async def hold(self, sequence: int, rows: int) -> int:
        """Take up to ``rows`` waiting enrolments of a sequence out of the claim's index."""
        found = [
            row
            for row in self._database.enrolments.values()
            if row.waiting and not row.held and row.due_us is not None and row.sequence == sequence
        ][:rows]
        for row in found:
            row.held = True
        return len(found)

    async def hold_step(self, step: str, rows: int) -> int:
        """Take up to ``rows`` enrolments that wait at a step out of the claim's index."""
        found = [
            row
            for row in self._database.enrolments.values()
            if row.waiting and not row.held and row.due_us is not None and row.step == step
        ][:rows]
        for row in found:
            row.held = True
        return len(found)

    async def unhold(self, sequence: int, rows: int, now_us: int) -> int:
        """Put up to ``rows`` held enrolments of a sequence back, but those of leads and at steps that are paused."""
        database = self._database
        steps = database.catalogue().paused_steps
        found = [
            row
            for row in database.enrolments.values()
            if row.held and row.sequence == sequence and row.step not in steps and not database.paused(row.lead, now_us)
        ][:rows]
        for row in found:
            row.held = False
        return len(found)

    async def held_sequences(self) -> list[int]:
        """Sequences with held enrolments."""
        return sorted({row.sequence for row in self._database.enrolments.values() if row.held})

    async def finish_waiting(self, rows: int, now_us: int) -> int:
        """Complete enrolments whose lead was locked when the last step was accepted; mark opt-outs that waited so."""
        suppress_waiting(self._database, rows)
        first: dict[int, Enrolment] = {}
        for row in self._database.enrolments.values():
            if row.status == "active" and row.due_us is None:
                first.setdefault(row.lead, row)
        finished = [first[lead] for lead in sorted(first)[:rows] if lead not in self._database.locked_leads]
        for row in finished:
            lead = self._database.leads.get(row.lead)
            if lead is not None:
                lead.trigger = remove(lead.trigger, row.entry)
            row.status, row.finished_us, row.trigger_kept = "completed", now_us, False
            self._database.place(row)
        return len(finished)

    async def misplaced(self, left: list[UUID], rows: int) -> Int64s:
        """Waiting enrolments whose home device is among ``left``, or that have none; at most ``rows``."""
        database = self._database
        strict = {id_ for id_, sequence in database.sequences.items() if sequence.sender_policy == "strict"}
        found = [
            row
            for home in left
            for row in database.active_at.get(home, {}).values()
            if row.waiting and not row.held and not row.pinned and row.sequence not in strict
        ]
        found += [row for row in database.active_at.get(None, {}).values() if not row.held]
        found.sort(key=lambda row: row.id)
        return np.array([row.id for row in found[:rows]], np.int64)

    async def rehome(self, enrolment: Int64s, device_id: list[UUID]) -> int:
        """Give waiting enrolments another home device."""
        moved = 0
        for id_, home in zip(enrolment.tolist(), device_id, strict=True):
            row = self._database.enrolments.get(id_)
            if row is not None and row.waiting and not row.pinned and self._database.has_device(home):
                row.home = home
                self._database.place(row)
                moved += 1
        return moved
