"""What the gateway's log and the database say, once everything has come to rest."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from dispatcher.core.moments import span_us
from dispatcher.core.outcomes import Outcome
from dispatcher.store.connect import connect
from simulate.chaos.plan import SETTINGS, ChaosPlan
from simulate.checker import Violations, check, findings
from simulate.evidence import STATUSES, collect
from simulate.gateway import Arrival, read_log
from simulate.gateway_receipts import ANSWERS, read_messages, receipts_of

_LABELS: Final = tuple(outcome.label for outcome in Outcome)
_UNCOUNTED: Final = (Outcome.THROTTLED, Outcome.REFUSED, Outcome.EXPIRED)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Counts, and what was broken."""

    enrolled: int
    status: dict[str, int]
    """Enrolments by status."""
    answers: dict[str, int]
    """What the gateway did, by request."""
    accepted: int
    busiest_hour: int
    """Most messages of one device within any hour, by the gateway's clock."""
    devices_at_quota: int
    """Devices that reached their hour's quota at least once."""
    violations: Violations
    findings: list[str]
    """What was broken, in words."""
    over_limit: int
    """Requests the gateway itself had to turn away as over a device's quota."""
    malformed: int
    """Requests that broke the contract."""


async def judge(plan: ChaosPlan, url: str, log: Path) -> Verdict:
    """Judge a run by the gateway's log and the database at ``url``."""
    arrivals = read_log(log)
    connection = await connect(url, application_name="dripline checker")
    try:
        evidence = replace(
            await collect(connection, _LABELS),
            look_us=span_us(SETTINGS["deadline_s"]),
            skew_us=span_us(SETTINGS["skew_s"]),
        )
        messages = await read_messages(connection, evidence.catalogue)
    finally:
        await connection.close()
    number = {device_id: each for each, (device_id, _) in evidence.devices.items()}
    deadline_us = span_us(SETTINGS["deadline_s"])
    receipts = receipts_of(arrivals, messages, number, evidence.catalogue, deadline_us)
    status = np.bincount(evidence.enrolments["status"], minlength=len(STATUSES) + 1)
    busiest = _busiest_hours(arrivals)
    answers = Counter(arrival.answer for arrival in arrivals)
    return Verdict(
        enrolled=len(evidence.enrolments),
        status={name: int(status[index + 1]) for index, name in enumerate(STATUSES)},
        answers=dict(sorted(answers.items())),
        accepted=answers["accepted"],
        busiest_hour=max(busiest.values(), default=0),
        devices_at_quota=sum(count >= plan.quota_per_hour for count in busiest.values()),
        violations=check(receipts, evidence),
        findings=findings(receipts, evidence),
        over_limit=answers["over_limit"],
        malformed=answers["malformed"],
    )


def _busiest_hours(arrivals: Sequence[Arrival]) -> dict[str, int]:
    """By device, the most messages within any hour that may have been taken."""
    of_device: dict[str, list[float]] = defaultdict(list)
    for arrival in arrivals:
        if arrival.answer in ANSWERS and ANSWERS[arrival.answer] not in _UNCOUNTED:
            of_device[arrival.device_id].append(arrival.arrived_at)
    most = {}
    for device_id, moments in of_device.items():
        sorted_s = np.sort(np.array(moments))
        until = np.searchsorted(sorted_s, sorted_s + SETTINGS["hour_s"], side="left")
        most[device_id] = int((until - np.arange(len(sorted_s))).max())
    return most
