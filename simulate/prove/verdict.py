"""What is judged: receipts, ledger and tables, and what the tester wrote down of people and clocks."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np

from dispatcher.core.moments import SECOND_US, span_us
from dispatcher.core.outcomes import CHARGED_LATE, UNCHARGED, Outcome
from dispatcher.core.quota import SlidingLog
from simulate.evidence import MEMBERSHIP, QUOTA, Evidence
from simulate.memory_store import evidence as tables
from simulate.memory_store.rows import Device
from simulate.prove.people import People
from simulate.prove.stage import Stage
from simulate.prove.world import START_US

LABELS: Final = tuple(outcome.label for outcome in Outcome)
_UNCHARGED: Final = frozenset(outcome.label for outcome in UNCHARGED)
_CHARGED_LATE: Final = frozenset(outcome.label for outcome in CHARGED_LATE)
_FOR_GOOD_US: Final = 2**62
_SETTLED_S: Final = 70.0
"""After the faults: devices that were asked to slow down rest for a minute."""


def gathered(stage: Stage, people: People, *, drained: bool) -> Evidence:
    """The evidence of a played seed."""
    settings = stage.world.settings
    paused = {
        sequence: [(start, _FOR_GOOD_US if end is None else end) for start, end in spans]
        for sequence, spans in people.sequences.paused.items()
    }
    skew_us = span_us(settings.skew_s)
    quotas = np.array(people.devices.quotas, QUOTA)
    # Slots are counted by the database's clock: a quota may seem to bind before it was changed.
    quotas["from_us"] -= skew_us
    group_quotas = np.array(people.devices.group_quotas, QUOTA)
    # A pass counts its slots from where it began, and reads the limits a little later.
    group_quotas["from_us"] -= skew_us + span_us(settings.deadline_s)
    return replace(
        tables(stage.database, LABELS),
        quotas=quotas,
        groups=tuple(group.name for group in stage.world.groups),
        group_quotas=group_quotas,
        memberships=np.array(people.devices.memberships, MEMBERSHIP),
        opted_out=people.leads.opted_out,
        time_zones=people.leads.time_zones,
        replied=people.leads.replied,
        untriggered=people.leads.untriggered,
        reached=people.leads.reached,
        retriggered=frozenset(people.leads.retriggered),
        by_hand=frozenset(people.receipts.settled),
        stripped=people.leads.stripped(),
        paused=paused,
        fleet_paused=people.pauses.fleet,
        devices_paused=people.pauses.devices,
        leads_paused=people.pauses.leads,
        earlier=tuple(people.sequences.catalogues),
        refresh_us=span_us(settings.look_s + settings.horizon_s + settings.lease_s) + 2 * skew_us,
        look_us=span_us(settings.deadline_s) + 2 * skew_us,
        skew_us=2 * skew_us,
        drained=drained,
        now_us=stage.true_us(),
        stuck_us=span_us(24 * settings.hour_s),
    )


def use_of(stage: Stage) -> tuple[int, int]:
    """Messages sent and messages possible after the faults, as long as devices had something to send.

    Possible is what quotas, pacing and guard allow from there on, given everything reserved before.
    """
    settings = stage.world.settings
    from_us = START_US + span_us(stage.world.faults_end_s + settings.lease_s + _SETTLED_S)
    sent = possible = 0
    for device in stage.database.devices.values():
        # What a gateway knew already has used its slot like everything else that was handed over.
        rows = [row for row in stage.database.ledger.rows if row.device == device.id and row.outcome not in _UNCHARGED]
        until_us = _busy_until_us([(row.due_us, row.slot_us) for row in rows], from_us)
        if until_us is None:
            continue
        taken = [
            row.deadline_us if row.outcome in _CHARGED_LATE else row.slot_us for row in rows if row.slot_us < from_us
        ]
        sent += sum(from_us <= row.slot_us < until_us for row in rows)
        possible += _possible(device, np.array(taken, np.int64), from_us, until_us, stage)
    return sent, possible


def _busy_until_us(rows: list[tuple[int, int]], from_us: int) -> int | None:
    """The last slot before which something was due all the time from ``from_us`` on; None: not even then."""
    dues, slots = sorted(due for due, _ in rows), sorted(slot for _, slot in rows)
    last = None
    for slot_us in (slot for slot in slots if slot >= from_us):
        waiting = np.searchsorted(dues, slot_us, "right") - np.searchsorted(slots, slot_us, "right")
        if waiting <= 0:
            break
        last = slot_us
    return last


def _possible(device: Device, taken_us: np.typing.NDArray[np.int64], from_us: int, until_us: int, stage: Stage) -> int:
    settings = stage.world.settings
    log = SlidingLog(
        [device.quota_per_hour],
        [device.quota_per_day],
        [10_000],
        [round(device.min_gap_s * SECOND_US)],
        hour_us=settings.hours_us(1),
        guard_us=span_us(settings.guard_s),
    )
    log.load(np.zeros(len(taken_us), np.intp), taken_us)
    possible = 0
    while True:  # an offer knows only what is reserved: one slot after the other
        offer = log.offer(from_us, until_us - from_us, limit=1)
        log.answer(offer, offer.counts)
        if not len(offer):
            return possible
        log.settle(offer.devices)
        possible += 1
