"""What a shard asks of the twin: takeover, the last look before hand-over, the end of attempts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from dispatcher.core.batches import Coded, Int32s, Int64s, Leased
from dispatcher.core.breaker import Turned
from dispatcher.core.catalogue import Catalogue, Openings
from dispatcher.core.fleet import Fleet
from dispatcher.core.lateness import Late, LateMoves
from dispatcher.core.leases import Ends, Usage
from dispatcher.core.moments import SECOND_US
from dispatcher.ports import Versions
from simulate.memory_store.database import MemoryDatabase
from simulate.memory_store.ending import Given, give_back, next_visit, write_ends
from simulate.memory_store.epochs import MemorySeat, shard_seat
from simulate.memory_store.leases import leased_rows
from simulate.memory_store.rows import Device, Enrolment, Handover, LateStep
from simulate.memory_store.usage import usage


class MemoryShardStore:
    """The ``ShardStore`` port.

    Args:
        database: the tables.
        shard: whose.
        holder: names the incarnation's installation.
    """

    def __init__(self, database: MemoryDatabase, shard: int, holder: str) -> None:
        self._database, self.shard = database, shard
        self.seat = MemorySeat(database, shard_seat(shard), holder)

    async def close(self) -> None:
        """Nothing is kept open."""

    async def versions(self) -> Versions:
        """Counters that tell whether catalogue or fleet have changed."""
        return self._database.versions()

    async def catalogue(self) -> Catalogue:
        """All sequences."""
        return self._database.catalogue()

    async def fleet(self) -> Fleet:
        """The shard's devices."""
        return self._database.fleet().of_shard(self.shard)

    async def usage(self, since_us: int) -> list[Usage]:
        """Everything reserved after ``since_us``, from ledger and leases."""
        number_of = {device.id: device.number for device in self._devices()}
        return usage(self._database, number_of, self._leased(), since_us, late=True)

    async def leased_tokens(self, epoch: int) -> list[int]:
        """Tokens of the claims made under ``epoch`` that have no outcome yet."""
        return sorted({row.token for row in self._leased() if row.epoch == epoch and row.token is not None})

    async def read_lease(self, epoch: int, token: int) -> Leased | None:
        """The claim ``token`` as it stands; None when nothing of it is leased any more."""
        rows = [row for row in self._leased() if row.epoch == epoch and row.token == token]
        return leased_rows(self._database, rows, token, epoch, lead_fields=True) if rows else None

    async def last_look(
        self,
        leased: Leased,
        texts: Sequence[str | None],
        media_urls: Sequence[str | None],
        now_us: int,
        key_known_us: int,
    ) -> dict[int, str]:
        """What may not leave after all, reason by row; of the rest it is recorded that, and with what, it leaves."""
        database = self._database
        if not database.in_force(self.seat.name, leased.epoch):
            return dict.fromkeys(range(len(leased)), "superseded")
        found: dict[int, str] = {}
        said: dict[int, tuple[str, str | None]] = {}
        for row, (id_, text, media_url) in enumerate(zip(leased.enrolment.tolist(), texts, media_urls, strict=True)):
            reason = self._against(id_, leased.token, now_us, key_known_us)
            if reason is not None:
                found[row] = reason
            elif text is not None:
                said[id_] = text, media_url
        if said:
            database.record(Handover(leased.token, leased.epoch, now_us, said))
        return found

    def _against(self, enrolment: int, token: int, now_us: int, key_known_us: int) -> str | None:
        """Why this lease's message may not leave; None when it may."""
        database = self._database
        row = database.leased.get(enrolment)
        if row is None or row.token != token:
            return "gone"
        lead = database.leads.get(row.lead)
        if lead is None:
            return "trigger removed"
        if lead.opted_out_us is not None or lead.id in database.opt_outs or row.phone in database.suppressions:
            return "opted out"
        if row.stop_reason is not None:
            return "stopped"
        if row.id in database.exits:
            return "replied"
        if self._paused(row, now_us):
            return "paused"
        if row.step in database.catalogue().paused_steps:
            return "step paused"
        if row.pinned:
            if row.device is not None and not row.device.gateway_idempotent:
                return "key forgotten"
            unknown = database.ledger.in_doubt((row.id, row.visit, row.generation))
            if any(attempt.slot_us < key_known_us for attempt in unknown):
                return "key forgotten"
        return None

    def _paused(self, row: Enrolment, now_us: int) -> bool:
        """Whether its fleet, sequence, device or lead is."""
        database = self._database
        return (
            database.versions().paused
            or row.sequence not in database.active_sequences()
            or (row.device is not None and row.device.paused)
            or database.paused(row.lead, now_us)
        )

    async def time_zones(self, lead: Int64s) -> Coded[str | None]:
        """The time zones of leads, row by row; None where none is known."""
        rows = (self._database.leads.get(id_) for id_ in lead.tolist())
        return Coded.of([None if row is None else row.time_zone for row in rows])

    async def open_windows(self, lead: Int64s, device: Int32s, since_us: int) -> NDArray[np.bool_]:
        """Row by row, whether the lead has written to the device (its number) since ``since_us``."""
        ids = {device.number: device.id for device in self._database.devices.values()}
        written = [
            any(
                reply.lead == id_ and reply.received_us > since_us and reply.device in (None, ids.get(number))
                for reply in self._database.replies
            )
            for id_, number in zip(lead.tolist(), device.tolist(), strict=True)
        ]
        return np.array(written, np.bool_)

    async def rest_accounts(self, device: Int32s, until_us: Int64s) -> int:
        """Let all devices of the accounts behind these ones rest; how many that told something new."""
        database, until = self._database, dict[str, int]()
        for number, at_us in zip(device.tolist(), until_us.tolist(), strict=True):
            account = database.devices[number].gateway_account if number in database.devices else None
            if account is not None:
                until[account] = max(at_us, until.get(account, 0))
        changed = 0
        for row in database.devices.values():
            at_us = until.get(row.gateway_account or "", 0)
            if (row.account_rests_until_us or 0) < at_us - SECOND_US:
                row.account_rests_until_us = at_us
                changed += 1
        database.devices_changed()
        return changed

    async def postpone(self, openings: Mapping[int, Openings], now_us: int, rows: int) -> int:
        """Move up to ``rows`` waiting enrolments that are due to where the send windows of their leads open."""
        leads, found = self._database.leads, []
        for device in self._devices():
            for row in self._database.active_at.get(device.id, {}).values():
                if row.due_us is None or row.due_us > now_us or not row.waiting or row.held or row.stop_reason:
                    continue
                if row.lead not in leads:
                    continue
                zone, of = leads[row.lead].time_zone or "", openings.get(row.sequence, {})
                opens_us = of.get(row.step, {}).get(zone, of.get("", {}).get(zone))
                if opens_us is not None:
                    found.append((row, opens_us))
        for row, opens_us in found[:rows]:
            row.due_us = opens_us
        return len(found[:rows])

    async def late(self, before_us: Mapping[int, int], rows: int) -> Late:
        """Up to ``rows`` waiting enrolments of the shard's devices that were due before this, by sequence."""
        found = []
        for device in self._devices():
            waiting = [
                row
                for row in self._database.active_at.get(device.id, {}).values()
                if row.waiting
                and not row.held
                and row.stop_reason is None
                and not row.pinned
                and row.due_us is not None
            ]
            late = [row for row in waiting if row.due_us < before_us.get(row.sequence, row.due_us)]  # type: ignore[operator]
            found += [(device.number, row) for row in sorted(late, key=lambda row: (row.due_us, row.id))]
        found = found[:rows]
        leads = self._database.leads
        return Late(
            enrolment=np.array([row.id for _, row in found], np.int64),
            visit=np.array([row.visit for _, row in found], np.int32),
            generation=np.array([row.generation for _, row in found], np.int32),
            device=np.array([number for number, _ in found], np.int32),
            due_us=np.array([row.due_us for _, row in found], np.int64),
            step=[row.step for _, row in found],
            time_zone=[leads[row.lead].time_zone if row.lead in leads else None for _, row in found],
        )

    async def move_late(self, moves: LateMoves, now_us: int) -> int:
        """Skip or shift enrolments that wait as they did, around what somebody holds; each is written down."""
        database, late, moved = self._database, moves.late, 0
        columns = (late.enrolment, late.visit, late.generation, late.due_us, moves.skipped, moves.next_due_us)
        for id_, visit, generation, due_us, skipped, next_due_us, trigger in zip(
            *(column.tolist() for column in columns), moves.next_trigger, strict=True
        ):
            row = database.enrolments[id_]
            as_it_was = (row.visit, row.generation, row.due_us) == (visit, generation, due_us)
            if not as_it_was or not row.waiting or row.held or row.stop_reason is not None or row.pinned:
                continue
            moved += 1
            shifted_us = None if skipped else next_due_us
            step = LateStep(id_, row.sequence, row.lead, visit, generation, row.step, due_us, now_us, shifted_us)
            database.late_steps.append(step)
            if skipped:
                next_visit(row)
            row.step, row.due_us = trigger or row.step, None if trigger is None else next_due_us
        return moved

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
        columns = zip(enrolment.tolist(), token.tolist(), due_us.tolist(), stop, forgotten, aside, strict=True)
        return give_back(self._database, [Given(*lease) for lease in columns], now_us)

    async def end(self, ends: Ends, now_us: int, *, epoch: int, deadline_us: int) -> None:
        """Write ends of attempts, ledger and progress. Safe to repeat."""
        write_ends(self._database, ends, now_us, epoch=epoch, deadline_us=deadline_us)

    async def set_breakers(self, turned: Turned) -> int:
        """Write how devices' breakers stand: quarantined until a message may try, or, without trips, available."""
        written = 0
        columns = (turned.device.tolist(), turned.trips.tolist(), turned.probe_us.tolist())
        for device, trip, probe in zip(*columns, strict=True):
            row = self._database.devices.get(device)
            failing = row is not None and (row.health, row.health_cause) == ("quarantined", "failures")
            if row is not None and (failing or (trip and row.health == "available")):
                row.health, row.health_cause = ("quarantined", "failures") if trip else ("available", None)
                row.breaker_trips, row.probe_us = trip, probe if trip else None
                written += 1
        self._database.devices_changed()
        return written

    def _devices(self) -> list[Device]:
        return [device for device in self._database.devices.values() if device.shard_id == self.shard]

    def _leased(self) -> list[Enrolment]:
        """What is leased on the shard's devices, by device and slot."""
        numbers = [device.number for device in self._devices()]
        rows = [
            (row.device.number, row.slot_us, row.id, row)
            for row in self._database.leased.values()
            if row.device is not None and row.device.number in numbers
        ]
        return [row for _, _, _, row in sorted(rows)]
