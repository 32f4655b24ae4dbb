"""What ``enrol.sql`` says: lead changes become enrolments; a trigger taken off, an opt-out or a reply ends them."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections import Counter
from itertools import accumulate
from typing import NamedTuple
from uuid import UUID

from dispatcher.core import triggers
from dispatcher.core.catalogue import Catalogue
from dispatcher.core.goals import Goal
from dispatcher.core.graph import Sequence
from dispatcher.ports import Enrolled, Homes, Search
from simulate.memory_store.database import MemoryDatabase
from simulate.memory_store.replying import end_replied
from simulate.memory_store.rows import ALIKE, Change, Enrolment, Lead


class _Gone(NamedTuple):
    """What changes took away from one lead."""

    opted_out: bool
    tokens: list[str]
    away: list[str]
    """Those of ``tokens`` that have not come back since."""


class _Candidate(NamedTuple):
    lead: Lead
    sequence: int
    trigger: str
    home: UUID | None


def enrol(
    database: MemoryDatabase, catalogue: Catalogue, homes: Homes, now_us: int, *, rows: int, hour_us: int
) -> Enrolled:
    """Turn queued changes of ``rows`` leads, and few more, into enrolments and ends."""
    taken = _take(database, rows)
    stopped = _end(database, taken, now_us)
    changed = [lead for change in taken for lead in change.leads]
    stopped += end_replied(database, set(changed), now_us)
    plan = homes(len(changed)) if changed else []
    home: Counter[UUID | None] = Counter()
    without: list[int] = []
    for candidate in [
        each for lead in sorted(set(changed)) for each in _candidates(database, catalogue, lead, now_us, hour_us)
    ]:
        device = candidate.home
        if device is None:
            if candidate.lead.id not in without:
                without.append(candidate.lead.id)
            device = plan[len(without) - 1] if len(without) <= len(plan) else None
        if not database.has_device(device):
            device = None
        zone = candidate.lead.time_zone or ""
        due_us = catalogue.entry_dues([zone], now_us).get(candidate.trigger, {}).get(zone, now_us)
        database.insert(candidate.sequence, candidate.lead, candidate.trigger, device, now_us, due_us)
        home[device] += 1
    stopped += _leave_at_goals(database, catalogue, changed, now_us)
    return Enrolled(len(changed), stopped, dict(home))


def _leave_at_goals(database: MemoryDatabase, catalogue: Catalogue, leads: list[int], now_us: int) -> int:
    """End what some leads have reached the goal of; returns how many enrolments."""
    reached = [
        row
        for lead in set(leads)
        for row in database.of_lead.get(lead, ())
        if row.live and row.stop_reason is None and row.sequence in catalogue.goals and lead in database.leads
        if _has_reached(catalogue.goals[row.sequence], database.leads[lead])
    ]
    for row in reached:
        _mark(database, row, "goal reached", now_us)
        row.trigger_kept = True
    return len(reached)


def _has_reached(goal: Goal, lead: Lead) -> bool:
    return goal.reached([lead.trigger], [lead.phone], [lead.name], [json.dumps(lead.attributes)])[0]


def _take(database: MemoryDatabase, rows: int) -> list[Change]:
    """The oldest changes off the queue, whole, until they are of so many leads."""
    leads = list(accumulate((len(change.leads) for change in database.queue), initial=0))
    changes = bisect_left(leads, rows, hi=len(database.queue))
    taken, database.queue[:changes] = database.queue[:changes], []
    return taken


def _end(database: MemoryDatabase, taken: list[Change], now_us: int) -> int:
    """What the changes took away ends first: a leased enrolment is only marked, its shard asks before it hands over."""
    back = [
        row
        for row in database.marked()
        if row.stop_reason == "trigger removed" and _carries(database, row.lead, row.entry, consent=True)
    ]
    stopped = 0
    for lead, gone in _gone(database, taken).items():
        for row in database.of_lead.get(lead, ()):
            if not row.live:
                row.trigger_kept = row.trigger_kept and row.entry not in gone.tokens
            elif row.stop_reason is None and (
                gone.opted_out or row.entry in gone.away or (row.entry in gone.tokens and row.waiting)
            ):
                _stop(database, row, gone, now_us)
                stopped += 1
    for row in back:
        # Marked while an attempt was under way, and the trigger is back before that has ended.
        row.stop_reason = None
    return stopped


def _gone(database: MemoryDatabase, taken: list[Change]) -> dict[int, _Gone]:
    ended: dict[int, _Gone] = {}
    for change in taken:
        old, new = triggers.parse(change.old_trigger), triggers.parse(change.new_trigger)
        tokens = [token for token in old if token not in new]
        for lead in change.leads if tokens or change.opted_out else ():
            gone = ended.get(lead, _Gone(False, [], []))
            away = [token for token in tokens if not _carries(database, lead, token)]
            ended[lead] = _Gone(gone.opted_out or change.opted_out, gone.tokens + tokens, gone.away + away)
    return ended


def _stop(database: MemoryDatabase, row: Enrolment, gone: _Gone, now_us: int) -> None:
    _mark(database, row, "opted out" if gone.opted_out else "trigger removed", now_us)
    row.trigger_kept = row.entry not in gone.tokens


def _mark(database: MemoryDatabase, row: Enrolment, reason: str, now_us: int) -> None:
    """An enrolment stops, at once or once the attempt under way has ended."""
    row.stop_reason, row.finished_us, row.held = reason, None, False
    if row.waiting:
        row.status, row.finished_us = "stopped", now_us
    database.place(row)


def _carries(database: MemoryDatabase, lead: int, token: str, *, consent: bool = False) -> bool:
    """Whether the lead carries a trigger now, and, where ``consent`` is asked for, has not opted out."""
    row = database.leads.get(lead)
    return row is not None and not (consent and row.opted_out_us is not None) and token in triggers.parse(row.trigger)


def _candidates(
    database: MemoryDatabase, catalogue: Catalogue, lead_id: int, now_us: int, hour_us: int
) -> list[_Candidate]:
    """The sequences a lead is to enter, by id, each with the first of its entries that the lead carries."""
    lead = database.leads.get(lead_id)
    if lead is None or lead.opted_out_us is not None:
        return []
    found: dict[int, str] = {}
    for token in sorted(triggers.parse(lead.trigger)):
        id_ = catalogue.entries.get(token)
        if (
            id_ is not None
            and id_ in database.active_sequences()
            and _may_enter(database, lead, database.sequences[id_], token, now_us, hour_us)
        ):
            found.setdefault(id_, token)
    if not found:
        return []
    home = _home(database, lead)
    return [_Candidate(lead, id_, found[id_], home) for id_ in sorted(found)]


def _may_enter(database: MemoryDatabase, lead: Lead, sequence: Sequence, token: str, now_us: int, hour_us: int) -> bool:
    """Whether consent and re-entry policy let the lead enter by this trigger."""
    if sequence.requires_opt_in and lead.opted_in_us is None:
        return False
    before_us = now_us - round((sequence.reentry_interval_h or 0) * hour_us)
    return not any(
        row.live
        or sequence.reentry == "never"
        or (row.trigger_kept and row.entry == token)
        or (sequence.reentry == "after_interval" and row.finished_us is not None and row.finished_us > before_us)
        for row in database.of_lead.get(lead.id, ())
        if row.sequence == sequence.id
    )


def _home(database: MemoryDatabase, lead: Lead) -> UUID | None:
    """The lead's own device, else a live enrolment's, else a finished one's; None unless it is available."""
    rows = database.of_lead.get(lead.id, ())
    live = min((row for row in rows if row.live), key=lambda row: row.sequence, default=None)
    finished = max((row for row in rows if not row.live), key=lambda row: row.id, default=None)
    homes = [lead.home_device_id, *(row.home for row in (live, finished) if row is not None)]
    wanted = next((home for home in homes if home is not None), None)
    return next((d.id for d in database.devices.values() if d.id == wanted and d.health == "available"), None)


def search_entries(database: MemoryDatabase, rows: int) -> Search | None:
    """Look for leads of a newly opened entry among the next ``rows`` leads; None when nothing is open."""
    unsearched = [entry for entry in database.open_entries.values() if not entry.scan_done]
    if not unsearched:
        return None
    entry = min(unsearched, key=lambda entry: (entry.opened_us, entry.trigger))
    stretch = [lead for id_, lead in database.leads.items() if id_ > entry.scanned_to][:rows]
    found = [lead for lead in stretch if entry.trigger in triggers.parse(lead.trigger)]
    ids = [lead.id for lead in found]
    database.queue += [Change(tuple(ids[at : at + ALIKE])) for at in range(0, len(ids), ALIKE)]
    entry.scanned_to = stretch[-1].id if stretch else entry.scanned_to
    entry.scan_done = len(stretch) < rows
    return Search(entry.trigger, len(found), entry.scan_done)
