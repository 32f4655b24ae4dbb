"""The tables, what people do to them, and what the schema's triggers do then."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, TypeVar
from uuid import UUID

from dispatcher.core.catalogue import Catalogue
from dispatcher.core.fleet import Fleet
from dispatcher.core.graph import Sequence, Step
from dispatcher.core.triggers import parse
from dispatcher.core.windows import Blackout
from dispatcher.ports import Versions
from simulate.memory_store.epochs import shard_seat
from simulate.memory_store.fleet import fleet_of
from simulate.memory_store.ledger import DAY_US, Ledger
from simulate.memory_store.rows import (
    ALIKE,
    BreachError,
    Change,
    Device,
    DeviceGroup,
    Enrolment,
    Epoch,
    GroupQuota,
    Handover,
    Heartbeat,
    LateStep,
    Lead,
    Membership,
    OpenEntry,
    Quota,
    Reply,
)

T = TypeVar("T")


class MemoryDatabase:
    """A rehearsal's database: its devices need no gateway to be available.

    Methods are what people do to the tables, by command or by SQL; the stores of the services work on the tables
    themselves and keep the indexes by ``insert``, ``place``, ``lease`` and ``unlease``.

    Args:
        wall_us: the database's clock; may step.
        hour_s: the length of an hour in delays and quotas.
    """

    def __init__(self, wall_us: Callable[[], int], hour_s: float = 3600.0) -> None:
        self.wall_us, self.hour_s = wall_us, hour_s
        self.devices: dict[int, Device] = {}
        """By number, ascending."""
        self.quotas: list[Quota] = []
        self.groups: dict[str, DeviceGroup] = {}
        self.group_quotas: list[GroupQuota] = []
        self.memberships: list[Membership] = []
        self.sequences: dict[int, Sequence] = {}
        self.paused_leads: dict[int, int] = {}
        """Until when, by id."""
        self.leads: dict[int, Lead] = {}
        """By id, ascending."""
        self.locked_leads: set[int] = set()
        """Leads whose rows somebody holds, as a bulk update does: completion passes them by."""
        self.opt_outs: dict[int, int] = {}
        """Leads that a gateway says want no messages, and since when, while their rows are locked."""
        self.exits: dict[int, int] = {}
        """Enrolments that a reply has ended and the enroller has not marked yet, and their leads."""
        self.suppressions: set[str] = set()
        """Numbers that must never be messaged."""
        self.gone_opt_outs: set[str] = set()
        """Numbers of leads that had opted out when they were deleted; PostgreSQL keeps their digests."""
        self.queue: list[Change] = []
        self.replies: list[Reply] = []
        self.blackouts: tuple[Blackout, ...] = ()
        """``blackouts`` of every sequence; those of one are in its row."""
        self.enrolments: dict[int, Enrolment] = {}
        """By id, ascending."""
        self.ledger = Ledger()
        self.late_steps: list[LateStep] = []
        self.handovers: dict[int, list[Handover]] = {}
        """By token, in the order they were written."""
        self.epochs: dict[str, Epoch] = {}
        self.heartbeats: dict[str, Heartbeat] = {}
        self.problems: dict[int, str] = {}
        self.open_entries: dict[str, OpenEntry] = {}
        self.of_lead: dict[int, list[Enrolment]] = {}
        self.active_at: dict[UUID | None, dict[int, Enrolment]] = {}
        """Active enrolments by home device."""
        self.leased: dict[int, Enrolment] = {}
        self._live: dict[tuple[int, int], Enrolment] = {}
        self._homed: dict[int, UUID | None] = {}
        self._versions = Versions(1, 1)
        self._number = self._last_lead = self._last_device = self._last_sequence = 0
        self._cached: dict[str, tuple[int, Any]] = {}

    def next_number(self) -> int:
        """The next lease token or epoch: they share one sequence."""
        self._number += 1
        return self._number

    # Devices -------------------------------------------------------------------------------------------------

    def add_device(self, name: str, **columns: Any) -> int:
        """A new device; ``columns`` by the names of ``Device``. Returns its number."""
        self._last_device += 1
        device = Device(self._last_device, columns.pop("id", UUID(int=self._last_device)), name, **columns)
        self._require_group(device.group_name)
        self.devices[device.number] = device
        self._begin_ramp(device)
        self._keep_quota(device)
        if device.group_name is not None:
            self._keep_group(device)
        self.devices_changed()
        return device.number

    def has_device(self, device: UUID | None) -> bool:
        """Whether a device with this id exists."""
        return any(device == each.id for each in self.devices.values())

    def set_device(self, number: int, **columns: Any) -> None:
        """Change columns of a device. Another ``shard_id`` supersedes the former owner."""
        device = self.devices[number]
        owner, ramp = device.shard_id, (device.ramp_per_day, device.ramp_day)
        quotas = device.quota_per_hour, device.day_quota
        group = device.group_name
        self._require_group(columns.get("group_name"))
        for column, value in columns.items():
            setattr(device, column, value)
        if ramp[0] != device.ramp_per_day and ramp[1] == device.ramp_day:
            self._begin_ramp(device)
        if owner is not None and owner != device.shard_id:
            seat = self.epochs.get(shard_seat(owner))
            if seat is not None:
                seat.epoch = self.next_number()
        if quotas != (device.quota_per_hour, device.day_quota):
            self._keep_quota(device)
        if group != device.group_name:
            self._keep_group(device)
        self.devices_changed()

    def remove_device(self, number: int) -> None:
        """Delete a device.

        Raises:
            BreachError: live enrolments call it home.
        """
        device = self.devices[number]
        if any(row.home == device.id for row in self._live.values()):
            raise BreachError(f"device {device.name} has live enrolments")
        del self.devices[number]
        if device.group_name is not None:
            self.memberships.append(Membership(number, device.id, self.wall_us(), None))
        self.devices_changed()

    def grow_ramps(self, today: int) -> None:
        """A day's step of every ramp that has not grown on day ``today`` yet; at its quota it is over."""
        for device in self.devices.values():
            if device.ramp_day is not None and device.ramp_per_day is not None and device.ramp_day < today:
                grown = math.ceil(device.ramp_per_day * device.ramp_growth)
                over = grown >= device.quota_per_day
                self.set_device(device.number, ramp_per_day=None if over else grown, ramp_day=None if over else today)

    def _begin_ramp(self, device: Device) -> None:
        device.ramp_day = None if device.ramp_per_day is None else self.wall_us() // DAY_US

    def _keep_quota(self, device: Device) -> None:
        self.quotas.append(Quota(device.number, self.wall_us(), device.quota_per_hour, device.day_quota))

    def _keep_group(self, device: Device) -> None:
        self.memberships.append(Membership(device.number, device.id, self.wall_us(), device.group_name))

    def _require_group(self, name: str | None) -> None:
        if name is not None and name not in self.groups:
            raise BreachError(f"there is no group {name}")

    def put_group(self, name: str, quota_per_hour: int | None = None, quota_per_day: int | None = None) -> None:
        """A new group of devices, or other limits of one; None: no limit."""
        group = DeviceGroup(name, quota_per_hour, quota_per_day)
        if self.groups.get(name) != group:
            self.group_quotas.append(GroupQuota(name, self.wall_us(), quota_per_hour, quota_per_day))
        self.groups[name] = group
        self.devices_changed()

    # Sequences -----------------------------------------------------------------------------------------------

    def add_sequence(self, name: str, steps: Iterable[Step], *, is_active: bool = True, **columns: Any) -> int:
        """A new sequence; ``columns`` by the names of ``Sequence``. Returns its id."""
        self._last_sequence += 1
        sequence = Sequence(self._last_sequence, name, is_active, tuple(steps), **columns)
        self._put(sequence)
        return self._last_sequence

    def set_sequence(self, sequence: int, **columns: Any) -> None:
        """Change columns of a sequence. Whoever is under way is held against a new goal."""
        row = replace(was := self.sequences[sequence], **columns)
        self._put(row)
        if row.goal != was.goal:
            leads = [lead for lead, of in self._live if of == sequence]
            self.queue += [Change(tuple(leads[at : at + ALIKE])) for at in range(0, len(leads), ALIKE)]

    def set_active(self, sequence: int, is_active: bool) -> None:
        """Switch a sequence on or off."""
        self.set_sequence(sequence, is_active=is_active)

    def pause_fleet(self, paused: bool) -> None:
        """Stop every hand-over, or go on."""
        self._versions = self._versions._replace(paused=paused)

    def edit_step(self, trigger: str, **columns: Any) -> None:
        """Change a step: text, next step, delay; ``columns`` by the names of ``Step``."""
        row = self._with_step(trigger)
        self._put(replace(row, steps=tuple(replace(s, **columns) if s.trigger == trigger else s for s in row.steps)))

    def pause_step(self, trigger: str, cause: str) -> None:
        """A gateway refused what a step says: whoever stands there waits; one that is paused already stays so."""
        if any(
            step.trigger == trigger and step.paused is None for row in self.sequences.values() for step in row.steps
        ):
            self.edit_step(trigger, paused=cause)

    def add_step(self, sequence: int, step: Step) -> None:
        """Append a step to a sequence."""
        row = self.sequences[sequence]
        self._put(replace(row, steps=(*row.steps, step)))

    def remove_step(self, trigger: str) -> None:
        """Delete a step."""
        row = self._with_step(trigger)
        self._put(replace(row, steps=tuple(step for step in row.steps if step.trigger != trigger)))

    def remove_sequence(self, sequence: int) -> None:
        """Delete a sequence.

        Raises:
            BreachError: it has enrolments.
        """
        if any(row.sequence == sequence for row in self.enrolments.values()):
            raise BreachError(f"sequence {sequence} has enrolments")
        del self.sequences[sequence]
        self._sequences_changed()

    def set_blackouts(self, *blackouts: Blackout) -> None:
        """Shut these days, and no others, for every sequence."""
        self.blackouts = blackouts
        self._sequences_changed()

    def _with_step(self, trigger: str) -> Sequence:
        return next(row for row in self.sequences.values() if any(step.trigger == trigger for step in row.steps))

    def _put(self, sequence: Sequence) -> None:
        assert sequence.id is not None
        triggers = [step.trigger for step in sequence.steps]
        triggers += [step.trigger for row in self.sequences.values() if row.id != sequence.id for step in row.steps]
        if len(set(triggers)) < len(triggers):
            raise BreachError(f"two steps have one trigger, one of them in sequence {sequence.name}")
        self.sequences[sequence.id] = sequence
        self._sequences_changed()

    # Leads ---------------------------------------------------------------------------------------------------

    def add_lead(self, phone: str, trigger: str | None = None, **columns: Any) -> int:
        """A new lead; ``columns`` by the names of ``Lead``. Returns its id."""
        self._last_lead += 1
        self.leads[self._last_lead] = Lead(self._last_lead, phone, trigger=trigger, **columns)
        if trigger:
            self.queue.append(Change((self._last_lead,)))
        if phone in self.suppressions | self.gone_opt_outs and self.leads[self._last_lead].opted_out_us is None:
            self.opt_out(self._last_lead)
        return self._last_lead

    def suppress(self, phone: str) -> None:
        """Put a number on the list of those that must never be messaged; its lead, if there is one, is opted out."""
        self.suppressions.add(phone)
        for lead in [row.id for row in self.leads.values() if row.phone == phone and row.opted_out_us is None]:
            if lead in self.locked_leads:
                self.opt_outs.setdefault(lead, self.wall_us())
            else:
                self.opt_out(lead)

    def set_lead(self, lead: int, **columns: Any) -> None:
        """Change columns of a lead; triggers and consents are queued for the enroller."""
        row = self.leads[lead]
        was = self._noted(row)
        for column, value in columns.items():
            setattr(row, column, value)
        now = self._noted(row)
        if was != now:
            texts = (None, None) if _all_stayed(was[0], row.trigger) else (was[0], row.trigger)
            self.queue.append(Change((lead,), *texts, opted_out=was[2] and not now[2]))

    def _noted(self, row: Lead) -> tuple[str | None, bool, bool, object]:
        """What of a lead counts as a change."""
        asked = any(each.goal is not None and each.goal.condition is not None for each in self.sequences.values())
        read = (row.name, dict(row.attributes)) if asked else None
        return row.trigger, row.opted_in_us is None, row.opted_out_us is None, read

    def set_trigger(self, lead: int, trigger: str | None) -> None:
        """Write another trigger list."""
        self.set_lead(lead, trigger=trigger)

    def opt_out(self, lead: int) -> None:
        """The lead wants no messages, from this moment on."""
        self.set_lead(lead, opted_out_us=self.wall_us())

    def opt_in(self, lead: int) -> None:
        """The lead wants messages (again)."""
        self.set_lead(lead, opted_in_us=self.wall_us(), opted_out_us=None)

    def pause_lead(self, lead: int, until_us: int | None) -> None:
        """Nothing goes to the lead until then; None: it goes on."""
        if until_us is None:
            self.paused_leads.pop(lead, None)
        else:
            self.paused_leads[lead] = until_us

    def set_attributes(self, lead: int, attributes: dict[str, Any]) -> None:
        """Write other attributes."""
        self.set_lead(lead, attributes=attributes)

    def delete_lead(self, lead: int) -> None:
        """Delete a lead; its enrolments stay, and an opt-out is remembered by its number."""
        row = self.leads.pop(lead)
        if row.opted_out_us is not None or lead in self.opt_outs:
            self.gone_opt_outs.add(row.phone)
        self.queue.append(Change((lead,), row.trigger))

    def retry(self, enrolment: int) -> bool:
        """An operator has what has failed tried again; whether it is: not of a lead that has left or entered anew."""
        row = self.enrolments[enrolment]
        lead = self.leads.get(row.lead)
        anew = self.live(row.lead, row.sequence) is not None or any(
            other.sequence == row.sequence and other.id > row.id for other in self.of_lead.get(row.lead, ())
        )
        if row.status != "failed" or lead is None or lead.id in self.locked_leads or anew or not row.trigger_kept:
            return False
        if lead.opted_out_us is not None or lead.id in self.opt_outs or row.entry not in parse(lead.trigger):
            return False
        if not any(step.trigger == row.step for each in self.sequences.values() for step in each.steps):
            return False
        row.status, row.generation, row.attempt, row.retries = "active", row.generation + 1, 0, 0
        row.last_error, row.pinned, row.resend_text, row.resend_media_url = None, False, None, None
        row.stop_reason, row.finished_us, row.trigger_kept = None, None, False
        row.held, row.due_us = True, self.wall_us()
        row.home = row.home if self.has_device(row.home) else None
        self.place(row)
        return True

    # What services read --------------------------------------------------------------------------------------

    def versions(self) -> Versions:
        """Counters that every change of sequences or devices raises."""
        return self._versions

    def devices_changed(self) -> None:
        """A statement has changed devices, or tried to."""
        self._versions = self._versions._replace(devices=self._versions.devices + 1)

    def _sequences_changed(self) -> None:
        self._versions = self._versions._replace(sequences=self._versions.sequences + 1)

    def catalogue(self) -> Catalogue:
        """All sequences, steps in the order of their days."""
        return self._cache("catalogue", self._versions.sequences, self._read_catalogue)

    def _read_catalogue(self) -> Catalogue:
        def by_day(step: Step) -> tuple[bool, int]:
            return step.day_number is None, step.day_number or 0

        rows = self.sequences.values()
        sequences = [replace(row, steps=tuple(sorted(row.steps, key=by_day))) for row in rows]
        return Catalogue.of(sequences, self.blackouts)

    def active_sequences(self) -> frozenset[int]:
        """Sequences that are not switched off."""
        return self._cache(
            "active",
            self._versions.sequences,
            lambda: frozenset(id_ for id_, row in self.sequences.items() if row.is_active),
        )

    def sendable_sequences(self) -> frozenset[int]:
        """Active sequences without a recorded problem."""
        active = self.active_sequences()
        return active.difference(self.problems) if self.problems else active

    def paused(self, lead: int, now_us: int) -> bool:
        """Whether a lead is."""
        return self.paused_leads.get(lead, now_us) > now_us

    def in_force(self, seat: str, epoch: int) -> bool:
        """Whether a seat's epoch is still this one."""
        row = self.epochs.get(seat)
        return row is not None and row.epoch == epoch

    def fleet(self) -> Fleet:
        """All devices."""
        return self._cache("fleet", self._versions.devices, lambda: fleet_of(list(self.devices.values())))

    def _cache(self, name: str, version: int, read: Callable[[], T]) -> T:
        found = self._cached.get(name)
        if found is None or found[0] != version:
            self._cached[name] = found = version, read()
        value: T = found[1]
        return value

    # Enrolments and their indexes ----------------------------------------------------------------------------

    def insert(self, sequence: int, lead: Lead, entry: str, home: UUID | None, now_us: int, due_us: int) -> None:
        """A new enrolment.

        Raises:
            BreachError: the lead has a live one in the sequence.
        """
        id_ = len(self.enrolments) + 1
        row = Enrolment(id_, sequence, lead.id, lead.phone, entry, entry, due_us, now_us, home)
        self.enrolments[id_] = row
        self.of_lead.setdefault(lead.id, []).append(row)
        self.place(row)

    def live(self, lead: int, sequence: int) -> Enrolment | None:
        """The lead's live enrolment in a sequence."""
        return self._live.get((lead, sequence))

    def marked(self) -> list[Enrolment]:
        """Live enrolments that are to stop once their attempt has ended."""
        return [row for row in self._live.values() if row.stop_reason is not None]

    def place(self, row: Enrolment) -> None:
        """Bring the indexes up to date after a change of status or home.

        Raises:
            BreachError: a second live enrolment of the lead in the sequence, or a lease on one that is not active.
        """
        if row.device is not None and row.status != "active":
            raise BreachError(f"enrolment {row.id} is {row.status} and leased")
        pair = (row.lead, row.sequence)
        other = self._live.get(pair)
        if row.live:
            if other is not None and other is not row:
                raise BreachError(f"lead {row.lead} has two live enrolments in sequence {row.sequence}")
            self._live[pair] = row
        elif other is row:
            del self._live[pair]
        if row.id in self._homed:
            del self.active_at[self._homed.pop(row.id)][row.id]
        if row.status == "active":
            self._homed[row.id] = row.home
            self.active_at.setdefault(row.home, {})[row.id] = row

    def lease(self, row: Enrolment, device: Device, slot_us: int, deadline_us: int, token: int, epoch: int) -> None:
        """Lease an enrolment: one more attempt."""
        row.device, row.slot_us, row.deadline_us, row.token, row.epoch = device, slot_us, deadline_us, token, epoch
        row.attempt += 1
        self.leased[row.id] = row

    def unlease(self, row: Enrolment) -> None:
        """End a lease, if there is one; ``place`` follows."""
        row.device = row.token = None
        self.leased.pop(row.id, None)

    # Hand-overs ----------------------------------------------------------------------------------------------

    def record(self, handover: Handover) -> None:
        """Write down what leaves."""
        self.handovers.setdefault(handover.token, []).append(handover)

    def said(self, row: Enrolment) -> tuple[str, str | None] | None:
        """Text and media URL that left under the enrolment's lease; None when nothing did."""
        records = [record for record in self.handovers.get(row.token or 0, ()) if row.id in record.said]
        return sorted(records, key=lambda record: record.handed_us)[-1].said[row.id] if records else None

    def forget_handovers(self, before_us: int) -> None:
        """Delete records from before a moment, except those of claims that are leased still."""
        leased = {row.token for row in self.leased.values()}
        for token in [token for token in self.handovers if token not in leased]:
            self.handovers[token] = [record for record in self.handovers[token] if record.handed_us >= before_us]
            if not self.handovers[token]:
                del self.handovers[token]


def _all_stayed(old: str | None, new: str | None) -> bool:
    """Whether the old list of triggers stands in the new one as it was."""
    return not old or (new is not None and f",{old}," in f",{new},")
