"""What the checker judges by, from the twin: the columns of ``simulate.evidence``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from dispatcher.core import triggers
from dispatcher.core.catalogue import Catalogue
from simulate.evidence import (
    ALWAYS_US,
    ENROLMENT,
    LEDGER,
    MEMBERSHIP,
    NO_DUE,
    QUOTA,
    STATUSES,
    UNLIMITED,
    Evidence,
    Skip,
    go_by_clocks,
    known_triggers,
)
from simulate.memory_store.database import MemoryDatabase
from simulate.memory_store.rows import Device, Lead

_2000_US: Final = 946_684_800_000_000
"""Evidence counts moments as PostgreSQL does, from 2000."""


def evidence(database: MemoryDatabase, outcomes: tuple[str, ...], earlier: tuple[Catalogue, ...] = ()) -> Evidence:
    """Read the evidence; what only the tester knows is left at its defaults.

    Args:
        outcomes: outcome labels, in the order of their codes.
        earlier: catalogues that held before.
    """
    catalogue, numbers = database.catalogue(), database.devices
    groups = {name: number for number, name in enumerate(sorted(database.groups), 1)}
    return Evidence(
        ledger=_ledger(database, outcomes),
        enrolments=_enrolments(database, known_triggers(catalogue, earlier)),
        catalogue=catalogue,
        outcomes=outcomes,
        quotas=np.array([tuple(quota) for quota in database.quotas if quota.number in numbers], QUOTA),
        groups=tuple(groups),
        group_quotas=np.array(
            [(groups[name], at, *map(_limit, held)) for name, at, *held in database.group_quotas], QUOTA
        ),
        memberships=np.array(
            [(stay.number, groups.get(stay.name or "", 0), stay.valid_from_us) for stay in database.memberships],
            MEMBERSHIP,
        ),
        opted_out={lead.phone: lead.opted_out_us for lead in database.leads.values() if lead.opted_out_us is not None},
        replied=_replied(database),
        time_zones=_time_zones(database) if go_by_clocks(catalogue, *earlier) else {},
        missed=sum(_missed(database, lead) for lead in database.leads.values()),
        devices={device.number: (str(device.id), device.name) for device in database.devices.values()},
        hour_s=database.hour_s,
        earlier=earlier,
        now_us=database.wall_us(),
        ready=frozenset(
            device.number for device in database.devices.values() if _ready(device) and not database.versions().paused
        ),
        resting=frozenset(lead for lead in database.paused_leads if database.paused(lead, database.wall_us())),
        skipped=tuple(
            Skip(row.enrolment, row.visit, row.generation, row.step, row.due_us, row.at_us)
            for row in database.late_steps
            if row.shifted_us is None
        ),
        shifted=sum(row.shifted_us is not None for row in database.late_steps),
        health={device.number: device.health for device in database.devices.values()},
    )


def _limit(quota: int | None) -> int:
    return UNLIMITED if quota is None else quota


def _replied(database: MemoryDatabase) -> dict[int, int]:
    found: dict[int, int] = {}
    for reply in database.replies:
        for row in database.of_lead.get(reply.lead, ()) if reply.lead is not None else ():
            if database.sequences[row.sequence].exit_on_reply and row.enrolled_us <= reply.received_us:
                found[row.id] = min(found.get(row.id, reply.received_us), reply.received_us)
    return found


def _time_zones(database: MemoryDatabase) -> dict[str, Sequence[tuple[int, str | None]]]:
    return {lead.phone: ((ALWAYS_US, lead.time_zone),) for lead in database.leads.values() if lead.time_zone}


def _ledger(database: MemoryDatabase, outcomes: tuple[str, ...]) -> NDArray[np.void]:
    number_of = {device.id: device.number for device in database.devices.values()}
    rows = [
        (
            row.key,
            row.enrolment,
            _stamp(row.due_us),
            _stamp(row.slot_us),
            _stamp(row.slot_us if row.accepted_us is None else row.accepted_us),
            row.visit,
            row.generation,
            row.attempt,
            number_of.get(row.device, 0),
            outcomes.index(row.outcome) + 1,
        )
        for row in database.ledger.rows
    ]
    return np.array(rows, LEDGER)


def _enrolments(database: MemoryDatabase, known: list[str]) -> NDArray[np.void]:
    number_of = {device.id: device.number for device in database.devices.values()}
    code = {trigger: place for place, trigger in enumerate(known, 1)}
    rows = []
    for row in database.enrolments.values():
        lead = database.leads.get(row.lead)
        rows.append(
            (
                row.id,
                row.lead,
                _stamp(row.enrolled_us),
                NO_DUE if row.due_us is None else _stamp(row.due_us),
                code.get(row.entry, 0),
                code.get(row.step, 0),
                STATUSES.index(row.status) + 1,
                row.visit,
                row.generation,
                0 if row.home is None else number_of.get(row.home, 0),
                row.device is not None,
                lead is not None and row.entry in triggers.parse(lead.trigger),
            )
        )
    return np.array(rows, ENROLMENT)


def _stamp(at_us: int) -> int:
    return at_us - _2000_US


def _ready(device: Device) -> bool:
    """Whether the device can send: available, with an owner and a quota."""
    limit = min(device.quota_per_hour, device.day_quota, device.in_flight_max)
    return device.health == "available" and not device.paused and device.shard_id is not None and limit > 0


def _missed(database: MemoryDatabase, lead: Lead) -> bool:
    """Whether the lead carries an open entry's trigger and never was enrolled by it."""
    if lead.opted_out_us is not None or any(lead.id in change.leads for change in database.queue):
        return False
    entered = {row.sequence for row in database.of_lead.get(lead.id, ())}
    for token in triggers.parse(lead.trigger):
        entry = database.open_entries.get(token)
        sequence = None if entry is None else database.sequences.get(entry.sequence)
        if sequence is None or sequence.id in entered or (sequence.requires_opt_in and lead.opted_in_us is None):
            continue
        return True
    return False
