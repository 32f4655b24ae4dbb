"""Ends of attempts and of leases: what ``complete.sql`` says, in the order in which its statements run.

Everything is a compare-and-set on the lease token, except that an acceptance counts as long as the visit is still that
attempt's, whatever the token.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple
from uuid import UUID

from dispatcher.core import triggers
from dispatcher.core.leases import Ends
from dispatcher.core.outcomes import PAUSES_STEP, QUARANTINES
from simulate.memory_store.database import MemoryDatabase
from simulate.memory_store.ledger import Visit
from simulate.memory_store.rows import Attempt, Enrolment

_ENDED: Final = ("failed", "stopped")
_OPTED_OUT: Final = "opted out"
_TRIGGER_REMOVED: Final = "trigger removed"
_PAUSES_STEP: Final = frozenset(outcome.label for outcome in PAUSES_STEP)
_AFTERWARDS: Final = {"rejected": "failed", "opted_out": "stopped"}
"""What follows for an enrolment in doubt, by what its attempt turned out to be; otherwise it waits again."""


class Setback(NamedTuple):
    """The end of a lease by an outcome that is no acceptance."""

    enrolment: int
    token: int
    outcome: str
    error: str | None
    key: bytes
    next: str
    counted: int
    due_us: int
    pinned: bool
    text: str | None
    media_url: str | None


class End(NamedTuple):
    """A row of ``Ends``."""

    enrolment: int
    token: int
    lead: int
    visit: int
    generation: int
    attempt: int
    device: int
    slot_us: int
    due_us: int
    at_us: int
    step: str
    key: bytes
    outcome: str
    message_id: str | None
    error: str | None
    next_trigger: str | None
    next_due_us: int
    next: str
    counted: int
    pinned: bool
    handed: bool
    text: str | None
    media_url: str | None

    @property
    def accepted(self) -> bool:
        """Whether the gateway has the message."""
        return self.outcome in ("accepted", "repeat")

    @property
    def setback(self) -> Setback:
        """What follows when it was not accepted."""
        return Setback(
            self.enrolment,
            self.token,
            self.outcome,
            self.error,
            self.key,
            self.next,
            self.counted,
            self.next_due_us,
            self.pinned,
            self.text,
            self.media_url,
        )

    @property
    def of(self) -> Visit:
        """Which visit it is about."""
        return self.enrolment, self.visit, self.generation


def rows_of(ends: Ends) -> Iterator[End]:
    """The rows of a batch."""
    columns = (getattr(ends, name) for name in End._fields)
    return map(End._make, zip(*(c if isinstance(c, list) else c.tolist() for c in columns), strict=True))


def write_ends(database: MemoryDatabase, ends: Ends, now_us: int, *, epoch: int, deadline_us: int) -> None:
    """Write a batch; what is there already changes nothing."""
    _Ending(database, now_us, epoch, deadline_us).write(list(rows_of(ends)))


def end_attempts(database: MemoryDatabase, ends: Iterable[Setback], now_us: int) -> int:
    """End leases by an outcome that is no acceptance; how many there were.

    While an attempt of the visit is unknown, what would fail or stop the enrolment leaves it in doubt.
    """
    ended = 0
    for end in ends:
        row = _leased(database, end)
        if row is None:
            continue
        ended += 1
        assert row.device is not None
        assert row.due_us is not None
        written = _attempt(row, end, row.epoch, row.due_us, row.slot_us, row.deadline_us, row.device.id)
        written.error = end.error
        database.ledger.add(written)
        if end.next == "stopped":
            row.stop_reason = row.stop_reason or _OPTED_OUT
        row.pinned = row.pinned or end.pinned
        if row.pinned and (end.next in _ENDED or row.stop_reason is not None):
            row.status = "in_doubt"
        elif end.next == "waiting":
            row.status = "active" if row.stop_reason is None else "stopped"
        else:
            row.status = end.next
        row.retries, row.last_error, row.due_us = row.retries + end.counted, end.error, end.due_us
        if row.resend_text is None:
            row.resend_text, row.resend_media_url = end.text, end.media_url
        _close(row, now_us)
        database.unlease(row)
        database.place(row)
        if end.outcome == "opted_out":
            suppress(database, row.lead, now_us)
    return ended


class Given(NamedTuple):
    """A lease that was not handed over."""

    enrolment: int
    token: int
    due_us: int
    stop: str | None
    """Why the enrolment ends with it; None: it waits again."""
    forgotten: bool
    """An earlier attempt is in doubt under a key that gateways do not remember."""
    aside: bool
    """It leaves the claim's way, because its step is paused."""


def give_back(database: MemoryDatabase, leases: Iterable[Given], now_us: int) -> int:
    """End leases that were not handed over; how many there were."""
    given = 0
    for lease in leases:
        row = _leased(database, lease)
        if row is None:
            continue
        given += 1
        row.attempt -= 1
        assert row.due_us is not None
        row.due_us = max(row.due_us, lease.due_us)
        row.stop_reason = row.stop_reason or lease.stop
        stopped = row.stop_reason is not None
        row.status = "in_doubt" if lease.forgotten else "stopped" if stopped else "active"
        row.finished_us = now_us if stopped else None
        row.trigger_kept = row.trigger_kept or (stopped and row.stop_reason != _TRIGGER_REMOVED)
        row.held = row.status == "active" and (lease.aside or database.paused(row.lead, now_us))
        database.unlease(row)
        database.place(row)
    return given


class _Ending:
    """One transaction of ``write_ends``."""

    def __init__(self, database: MemoryDatabase, now_us: int, epoch: int, deadline_us: int) -> None:
        self._database, self._now_us, self._epoch, self._deadline_us = database, now_us, epoch, deadline_us

    def write(self, ends: list[End]) -> None:
        good = [end for end in ends if end.accepted]
        if len(good) < len(ends):
            self._write_others([end for end in ends if not end.accepted])
        if not good:
            return
        good = self._settle_doubt(good)
        moved = [self._advance(end) for end in good if end.next_trigger is not None]
        moved += [self._finish(end) for end in sorted(good, key=lambda end: end.lead) if end.next_trigger is None]
        if not all(moved):
            self._accept_late(good)

    def _write_others(self, others: list[End]) -> None:
        if end_attempts(self._database, [end.setback for end in others], self._now_us) < len(others):
            self._release(self._record_late([end for end in others if end.handed]))
        for outcome, cause in QUARANTINES.items():
            refused = {end.device for end in others if end.outcome == outcome.label}
            if refused:
                for device in self._database.devices.values():
                    if device.number in refused and device.health == "available":
                        device.health, device.health_cause = "quarantined", cause
                self._database.devices_changed()
        for end in others:
            if end.outcome in _PAUSES_STEP:
                self._database.pause_step(end.step, end.error or "refused")

    def _settle_doubt(self, good: list[End]) -> list[End]:
        """Attempts before an accepted one that were in doubt become known with it; no other is a repetition."""
        ledger, credited = self._database.ledger, set()
        for end in good:
            unknown = [row for row in ledger.in_doubt(end.of) if row.attempt < end.attempt]
            if end.outcome == "repeat" and unknown and not ledger.accepted(end.of):
                first = min(unknown, key=lambda row: row.attempt)
                ledger.learn(first, "accepted", end.at_us)
                first.message_id = end.message_id
                credited.add(end.of)
        for end in good:
            if end.outcome == "accepted":
                for row in [row for row in ledger.in_doubt(end.of) if row.attempt < end.attempt]:
                    ledger.learn(row, "not_sent")
        return [end if end.of in credited else end._replace(outcome="accepted") for end in good]

    def _advance(self, end: End) -> bool:
        """Accepted, more steps."""
        row = self._accepted(end)
        if row is None:
            return False
        assert end.next_trigger is not None
        row.step, row.due_us = end.next_trigger, end.next_due_us
        row.status = "active" if row.stop_reason is None else "stopped"
        row.finished_us = end.at_us if row.stop_reason is not None else None
        self._database.place(row)
        return True

    def _finish(self, end: End) -> bool:
        """Accepted, last step: completed together with the trigger's removal, later if the lead's row is locked."""
        row = self._accepted(end)
        if row is None:
            return False
        row.due_us = None
        lead = self._database.leads.get(end.lead)
        if lead is not None and lead.id not in self._database.locked_leads:
            row.status, row.finished_us, row.trigger_kept = "completed", end.at_us, False
            lead.trigger = triggers.remove(lead.trigger, row.entry)
        self._database.place(row)
        return True

    def _accepted(self, end: End) -> Enrolment | None:
        """What an acceptance under its lease always does; None when the lease is gone."""
        row = _leased(self._database, end)
        if row is None:
            return None
        assert row.home is not None
        self._database.ledger.add(self._written(row, end, row.home))
        next_visit(row)
        self._database.unlease(row)
        return row

    def _accept_late(self, ends: list[End]) -> None:
        """Accepted, but the lease had ended: the row moves on if the visit is still that attempt's.

        What had failed by then comes back to life, unless the lead has entered the sequence anew.
        """
        database = self._database
        settled = {end.of for end in ends if database.ledger.accepted(end.of)}
        named = [end._replace(outcome="repeat" if end.of in settled else "accepted") for end in ends]
        for end in self._record_late(named):
            row = database.enrolments[end.enrolment]
            if (row.visit, row.generation) != (end.visit, end.generation) or row.due_us is None:
                continue
            if not row.live and (row.status != "failed" or database.live(row.lead, row.sequence) is not None):
                continue
            stopped = row.stop_reason is not None and end.next_trigger is not None
            next_visit(row)
            row.held = False
            row.home = row.home if database.has_device(row.home) else None
            row.step = end.next_trigger or row.step
            row.due_us = end.next_due_us if end.next_trigger is not None else None
            row.status = "stopped" if stopped else "active"
            row.finished_us = end.at_us if stopped else None
            row.trigger_kept = row.trigger_kept and stopped
            database.unlease(row)
            database.place(row)

    def _record_late(self, ends: list[End]) -> list[End]:
        """The ledger's part of attempts whose lease had ended; returns those that it did not know yet."""
        late = [end for end in ends if self._known(end) in (None, "in_doubt")]
        for end in late:
            accepted_us = end.at_us if end.accepted else None
            for row in self._database.ledger.in_doubt(end.of):
                if row.attempt == end.attempt:
                    self._database.ledger.learn(row, end.outcome, accepted_us)
                    row.message_id, row.error = end.message_id, end.error
        for end in late:
            enrolment = self._database.enrolments.get(end.enrolment)
            device = self._database.devices.get(end.device)
            if enrolment is not None and device is not None:
                row = self._written(enrolment, end, device.id)
                row.error = end.error
                self._database.ledger.add_unless_there(row)
        return late

    def _written(self, row: Enrolment, end: End, device: UUID) -> Attempt:
        """The ledger's row as the call has it: the enrolment may be elsewhere by now."""
        written = _attempt(row, end, self._epoch, end.due_us, end.slot_us, end.slot_us + self._deadline_us, device)
        written.visit, written.generation, written.attempt, written.step = *end.of[1:], end.attempt, end.step
        written.accepted_us, written.message_id = end.at_us if end.accepted else None, end.message_id
        return written

    def _known(self, end: End) -> str | None:
        """What the ledger says of an attempt."""
        said = [row.outcome for row in self._database.ledger.of_visit(end.of) if row.attempt == end.attempt]
        return next((outcome for outcome in said if outcome != "accepted"), said[0] if said else None)

    def _release(self, late: list[End]) -> None:
        """What the late end of an attempt that was not accepted means for an enrolment in doubt."""
        for end in late:
            if end.outcome == "opted_out":
                suppress(self._database, end.lead, end.at_us)
        for end in late:
            if end.outcome != "in_doubt" and not self._database.ledger.in_doubt(end.of):
                self._release_one(end)

    def _release_one(self, end: End) -> None:
        """The last unknown attempt of a visit turned out unsent. A resend under way is left to its own end."""
        row = self._database.enrolments.get(end.enrolment)
        if row is None or (row.visit, row.generation) != (end.visit, end.generation):
            return
        if row.status != "in_doubt" and not (row.status == "active" and row.pinned):
            return
        next_ = _AFTERWARDS.get(end.outcome, "waiting")
        if row.device is None:
            if next_ == "stopped" or (next_ == "waiting" and row.stop_reason is not None):
                row.status = "stopped"
            else:
                row.status = "failed" if next_ == "failed" else "active"
        if next_ == "stopped":
            row.stop_reason = row.stop_reason or _OPTED_OUT
        row.pinned, row.resend_text, row.resend_media_url = False, None, None
        row.last_error = row.last_error if end.error is None else end.error
        _close(row, end.at_us)
        self._database.place(row)


def _leased(database: MemoryDatabase, lease: End | Setback | Given) -> Enrolment | None:
    """The enrolment, if the lease is still the row's."""
    row = database.leased.get(lease.enrolment)
    return row if row is not None and row.token == lease.token else None


def next_visit(row: Enrolment) -> None:
    """An enrolment is past its visit; the caller says where it stands then."""
    row.visit, row.attempt, row.retries = row.visit + 1, 0, 0
    row.last_error, row.pinned, row.resend_text, row.resend_media_url = None, False, None, None


def _close(row: Enrolment, at_us: int) -> None:
    """Of an enrolment that has ended: when, and whether the lead still carries its trigger."""
    ended = row.status in _ENDED
    row.finished_us = at_us if ended else None
    row.trigger_kept = row.trigger_kept or (ended and row.stop_reason != _TRIGGER_REMOVED)


def suppress(database: MemoryDatabase, lead: int, at_us: int) -> None:
    """This lead wants no messages, since then; marked later while somebody holds the lead's row."""
    row = database.leads.get(lead)
    if row is None or lead in database.locked_leads:
        database.opt_outs.setdefault(lead, at_us)
    elif row.opted_out_us is None:
        database.set_lead(lead, opted_out_us=at_us)


def suppress_waiting(database: MemoryDatabase, rows: int) -> None:
    """Mark opt-outs that waited for a lead's row; that of one who is gone by then is remembered by its number."""
    free = [lead for lead in sorted(database.opt_outs) if lead in database.leads and lead not in database.locked_leads]
    gone = [lead for lead in database.opt_outs if lead not in database.leads]
    for lead in free[:rows]:
        suppress(database, lead, database.opt_outs[lead])
    for lead in gone:
        database.gone_opt_outs.update(row.phone for row in database.of_lead.get(lead, ()) if not row.live)
    for lead in [*free[:rows], *gone]:
        del database.opt_outs[lead]


def _attempt(
    row: Enrolment, end: End | Setback, epoch: int, due_us: int, slot_us: int, deadline_us: int, device: UUID
) -> Attempt:
    """The ledger's row of the enrolment's present attempt."""
    return Attempt(
        enrolment=row.id,
        sequence=row.sequence,
        lead=row.lead,
        epoch=epoch,
        due_us=due_us,
        slot_us=slot_us,
        deadline_us=deadline_us,
        accepted_us=None,
        device=device,
        key=end.key,
        visit=row.visit,
        generation=row.generation,
        attempt=row.attempt,
        outcome=end.outcome,
        step=row.step,
    )
