"""Rules 3 and 4: quotas by arrival, and nothing after people have said stop or have replied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from dispatcher.core.batches import Indices, Int64s
from dispatcher.core.outcomes import PROVED_UNSENT, Outcome
from simulate.checker.breaches import Breach
from simulate.checker.matched import Flags, Matched
from simulate.waits import by_device

_FREE: Final = np.array([outcome in PROVED_UNSENT for outcome in Outcome])
"""By outcome, whether the gateway took nothing, and said so or knows it."""


def judge(matched: Matched) -> list[Breach]:
    """What was over a quota, and what was not wanted any more."""
    return [*_over_quotas(matched), *_over_group_limits(matched), *_unwanted(matched)]


def _over_quotas(matched: Matched) -> list[Breach]:
    columns = matched.rows
    rows = np.flatnonzero(~_FREE[columns["answer"]])
    hour, day = _over(matched, rows, columns["device"][rows], matched.evidence.quotas)
    return [
        Breach(3, "over_hour", "over the hour's quota", "receipts", hour),
        Breach(3, "over_day", "over the day's quota", "receipts", day),
    ]


def _over_group_limits(matched: Matched) -> list[Breach]:
    """Limits that devices share, a group at a time: its name stands in the finding."""
    evidence, columns = matched.evidence, matched.rows
    if not evidence.groups:
        return []
    rows = np.flatnonzero(~_FREE[columns["answer"]])
    group = _groups(matched, columns["device"][rows], columns["slot_us"][rows])
    found = []
    for number, name in enumerate(evidence.groups, 1):
        mine = group == number
        hour, day = _over(matched, rows[mine], group[mine], evidence.group_quotas)
        found += [
            Breach(3, "over_hour", f"over the hour's limit of group {name!r}", "receipts", hour),
            Breach(3, "over_day", f"over the day's limit of group {name!r}", "receipts", day),
        ]
    return found


def _groups(matched: Matched, device: Int64s, slot_us: Int64s) -> Int64s:
    """Which group each message counts for: the one its device was in for as long as a change may go unnoticed, and
    until the message had arrived; 0 where there is none."""
    evidence = matched.evidence
    group = np.zeros(len(device), np.int64)
    for number in np.unique(evidence.memberships["device"]).tolist():
        stays = evidence.memberships[evidence.memberships["device"] == number]
        rows = np.flatnonzero(device == number)
        left_us = np.append(stays["from_us"][1:], 2**62)
        for stay, until_us in zip(stays, left_us, strict=True):
            there = (stay["from_us"] <= slot_us[rows] - evidence.refresh_us) & (
                until_us > slot_us[rows] + evidence.look_us
            )
            group[rows[there]] = stay["group"]
    return group


def _over(matched: Matched, rows: Indices, whose: Int64s, quotas: NDArray[np.void]) -> tuple[Indices, Indices]:
    """Which of these receipts were over an hour's quota, and which over a day's.

    Args:
        whose: the number of the device, or group, that each counts for.
        quotas: theirs, ``QUOTA`` records.
    """
    columns, hour_us = matched.rows, round(matched.evidence.hour_s * 1e6)
    order = by_device(whose, columns["arrived_us"][rows])
    rows, whose = rows[order], whose[order]
    arrived_us = columns["arrived_us"][rows]
    per_hour, per_day = _limits(quotas, matched.evidence.refresh_us, whose, columns["slot_us"][rows])
    hour = _beyond(whose, arrived_us, per_hour, hour_us)
    return rows[hour], rows[_beyond(whose, arrived_us, per_day, 24 * hour_us)]


def _beyond(device: Int64s, arrived_us: Int64s, quota: Int64s, window_us: int) -> Flags:
    """Arrivals that had ``quota`` others of their device within the window before them."""
    earlier = np.arange(len(device)) - quota
    found = earlier >= 0
    earlier[~found] = 0
    found &= (device[earlier] == device) & (arrived_us - arrived_us[earlier] < window_us)
    return found


def _limits(quotas: NDArray[np.void], refresh_us: int, device: Int64s, slot_us: Int64s) -> tuple[Int64s, Int64s]:
    """Hour and day quota of each slot: the largest that held between the last refresh and the slot.

    Args:
        device: ascending.
    """
    quotas = quotas[np.lexsort((quotas["from_us"], quotas["device"]))]
    top = int(max(device.max(initial=0), quotas["device"].max(initial=0))) + 1
    by_device = np.zeros((2, top), np.int64)
    by_device[:, quotas["device"]] = quotas["per_hour"], quotas["per_day"]
    per_hour, per_day = by_device[0][device], by_device[1][device]
    starts = np.searchsorted(quotas["device"], np.arange(top + 1))
    for number in np.flatnonzero(np.diff(starts) > 1).tolist():
        history = quotas[starts[number] : starts[number + 1]]
        rows = slice(*np.searchsorted(device, (number, number + 1)))
        held_to_us = np.append(history["from_us"][1:], 2**62)
        from_us = np.append(-(2**62), history["from_us"][1:])
        slot = slot_us[rows, None]
        held = (from_us <= slot) & (held_to_us > slot - refresh_us)
        per_hour[rows] = np.where(held, history["per_hour"], 0).max(axis=1, initial=0)
        per_day[rows] = np.where(held, history["per_day"], 0).max(axis=1, initial=0)
    return per_hour, per_day


def _unwanted(matched: Matched) -> list[Breach]:
    """Requests whose last look must have begun when people had already said stop."""
    opted_out = np.flatnonzero(_after_opt_out(matched))
    return [
        Breach(4, "after_opt_out", "after the lead's opt-out", "receipts", opted_out),
        Breach(4, "after_opt_out", "while the sequence was paused", "receipts", np.flatnonzero(_while_paused(matched))),
        Breach(
            4, "after_opt_out", "while everything was paused", "receipts", np.flatnonzero(_while_all_paused(matched))
        ),
        Breach(
            4, "after_opt_out", "while the device was paused", "receipts", np.flatnonzero(_while_device_paused(matched))
        ),
        Breach(
            4, "after_opt_out", "while the lead was paused", "receipts", np.flatnonzero(_while_lead_paused(matched))
        ),
        Breach(4, "after_opt_out", "after the trigger was taken off", "receipts", _without_cause(matched)),
        Breach(4, "after_exit", "after a reply had ended the enrolment", "receipts", _after_reply(matched)),
    ]


def _looks(matched: Matched) -> tuple[Int64s, Int64s]:
    """The span in which each receipt's last look began; in a rehearsal its slot stands for both ends."""
    columns, look_us = matched.rows, matched.evidence.look_us
    if look_us:
        return columns["arrived_us"] - look_us, columns["arrived_us"]
    return columns["slot_us"], columns["slot_us"]


def _after_opt_out(matched: Matched) -> Flags:
    opted_out = matched.evidence.opted_out
    phone = matched.receipts.rows["phone"]
    if not opted_out:
        return np.zeros(len(phone), np.bool_)
    phones = np.array(sorted(text.encode() for text in opted_out), "S16")
    moments_us = np.array([opted_out[text.decode()] for text in phones.tolist()], np.int64)
    place = np.minimum(np.searchsorted(phones, phone), len(phones) - 1)
    concerned: Flags = phones[place] == phone
    return concerned & (_looks(matched)[0] > moments_us[place])


def _after_reply(matched: Matched) -> Indices:
    replied = matched.evidence.replied
    rows = np.flatnonzero(matched.known)
    if not replied or not len(rows):
        return np.zeros(0, np.intp)
    enrolments = np.array(sorted(replied), np.int64)
    moments_us = np.array([replied[id_] for id_ in enrolments.tolist()], np.int64)
    enrolment = matched.enrolment[matched.visit[rows]]
    place = np.minimum(np.searchsorted(enrolments, enrolment), len(enrolments) - 1)
    late: Flags = (enrolments[place] == enrolment) & (_looks(matched)[0][rows] > moments_us[place])
    return rows[late]


def _within(spans: Sequence[tuple[int, int]], first_us: Int64s, last_us: Int64s) -> Flags:
    """Whether whatever moment between the two it was, it lay in one of ``spans``."""
    found = np.zeros(len(first_us), np.bool_)
    for from_us, to_us in spans:
        found |= (first_us >= from_us) & (last_us < to_us)
    return found


def _while_paused(matched: Matched) -> Flags:
    found = np.zeros(len(matched.visit), np.bool_)
    owner = np.array([matched.paths.sequence.get(trigger, 0) for _, trigger in matched.receipts.steps] or [0])
    for sequence, spans in matched.evidence.paused.items():
        rows = np.flatnonzero((owner == sequence)[matched.receipts.rows["step"]])
        first_us, last_us = _looks(matched)
        found[rows] |= _within(spans, first_us[rows], last_us[rows])
    return found


def _while_all_paused(matched: Matched) -> Flags:
    return _within(matched.evidence.fleet_paused, *_looks(matched))


def _while_device_paused(matched: Matched) -> Flags:
    return _of_each(matched, matched.rows["device"], matched.evidence.devices_paused)


def _while_lead_paused(matched: Matched) -> Flags:
    paused = {phone.encode(): spans for phone, spans in matched.evidence.leads_paused.items()}
    return _of_each(matched, matched.receipts.rows["phone"], paused)


def _of_each(matched: Matched, owner: NDArray[Any], paused: Mapping[Any, Sequence[tuple[int, int]]]) -> Flags:
    """Which receipts' last looks began in a span of their ``owner``, a device or a lead."""
    found = np.zeros(len(matched.visit), np.bool_)
    first_us, last_us = _looks(matched)
    for each, spans in paused.items():
        rows = np.flatnonzero(owner == each)
        found[rows] = _within(spans, first_us[rows], last_us[rows])
    return found


def _without_cause(matched: Matched) -> Indices:
    """What left after its trigger was taken off, or its goal reached."""
    untriggered, enrolments = matched.evidence.untriggered, matched.evidence.enrolments
    reached = matched.evidence.reached
    if not (untriggered or reached) or not len(enrolments):
        return np.zeros(0, np.intp)
    rows = np.flatnonzero(matched.known)
    rows = rows[matched.place[matched.visit[rows]] >= 0]
    enrolment = enrolments[matched.place[matched.visit[rows]]]
    first_us, last_us = (part[rows] for part in _looks(matched))
    found = np.zeros(len(rows), np.bool_)
    for (lead, trigger), spans in untriggered.items():
        code = matched.paths.index.get(trigger, -1) + 1
        theirs = np.flatnonzero((enrolment["lead"] == lead) & (enrolment["entry"] == code))
        found[theirs] |= _within(spans, first_us[theirs], last_us[theirs])
    owner = np.array([matched.paths.sequence.get(trigger, 0) for _, trigger in matched.receipts.steps] or [0])
    sequence = owner[matched.receipts.rows["step"][rows]]
    enrolled_us = matched.enrolment_us("enrolled")[matched.place[matched.visit[rows]]]
    for (lead, id_), moments_us in reached.items():
        theirs = np.flatnonzero((enrolment["lead"] == lead) & (sequence == id_))
        for seen_us in moments_us:
            found[theirs] |= (enrolled_us[theirs] <= seen_us) & (first_us[theirs] >= seen_us)
    return rows[found]
