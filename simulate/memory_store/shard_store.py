"""What a shard asks of the twin: takeover, the last look before hand-over, the end of attempts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from dispatcher.core.batches import Coded, Int64s, Leased
from dispatcher.core.fleet import Fleet
from dispatcher.core.graph import Catalogue, Openings
from dispatcher.core.leases import Ends, Usage
from dispatcher.core.outcomes import CHARGED_LATE, UNCHARGED
from dispatcher.ports import Versions
from simulate.memory_store.database import MemoryDatabase
from simulate.memory_store.ending import Given, give_back, write_ends
from simulate.memory_store.epochs import MemorySeat, shard_seat
from simulate.memory_store.leases import leased_rows
from simulate.memory_store.rows import Device, Enrolment, Handover

_UNCHARGED = frozenset(outcome.label for outcome in UNCHARGED)
_CHARGED_LATE = frozenset(outcome.label for outcome in CHARGED_LATE)


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
        database = self._database
        used: dict[int, list[int]] = {}
        number_of = {device.id: device.number for device in self._devices()}
        for attempt in database.ledger.rows:
            if attempt.device in number_of and attempt.slot_us > since_us and attempt.outcome not in _UNCHARGED:
                at_us = attempt.deadline_us if attempt.outcome in _CHARGED_LATE else attempt.slot_us
                used.setdefault(number_of[attempt.device], []).append(at_us)
        in_force = [seat.epoch for seat in database.epochs.values()]
        for row in self._leased():
            if row.device is not None and (row.epoch in in_force or database.said(row) is not None):
                used.setdefault(row.device.number, []).append(row.deadline_us)
        return [Usage(number, np.array(used[number], np.int64)) for number in sorted(used)]

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
            reason = self._against(id_, leased.token, key_known_us)
            if reason is not None:
                found[row] = reason
            elif text is not None:
                said[id_] = text, media_url
        if said:
            database.record(Handover(leased.token, leased.epoch, now_us, said))
        return found

    def _against(self, enrolment: int, token: int, key_known_us: int) -> str | None:
        """Why this lease's message may not leave; None when it may."""
        database = self._database
        row = database.leased.get(enrolment)
        if row is None or row.token != token:
            return "gone"
        lead = database.leads.get(row.lead)
        if lead is None:
            return "trigger removed"
        if lead.opted_out_us is not None or lead.id in database.opt_outs:
            return "opted out"
        if row.stop_reason is not None:
            return "stopped"
        if row.sequence not in database.active_sequences():
            return "paused"
        if row.pinned:
            if row.device is not None and not row.device.gateway_idempotent:
                return "key forgotten"
            unknown = database.ledger.in_doubt((row.id, row.visit, row.generation))
            if any(attempt.slot_us < key_known_us for attempt in unknown):
                return "key forgotten"
        return None

    async def time_zones(self, lead: Int64s) -> Coded[str | None]:
        """The time zones of leads, row by row; None where none is known."""
        rows = (self._database.leads.get(id_) for id_ in lead.tolist())
        return Coded.of([None if row is None else row.time_zone for row in rows])

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
        columns = zip(enrolment.tolist(), token.tolist(), due_us.tolist(), stop, forgotten, strict=True)
        return give_back(self._database, [Given(*lease) for lease in columns], now_us)

    async def end(self, ends: Ends, now_us: int, *, epoch: int, deadline_us: int) -> None:
        """Write ends of attempts, ledger and progress. Safe to repeat."""
        write_ends(self._database, ends, now_us, epoch=epoch, deadline_us=deadline_us)

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
