"""A scenario as the plan of a rehearsal."""

from __future__ import annotations

import math
from typing import Final

from simulate.population import DeviceGroup
from simulate.referee import Behaviour, Latency
from simulate.rehearsal import Bring, Plan
from simulate.scenario.load import Loaded
from simulate.scenario.schema import LATENCY_MOST_S, Devices, LatencyKeys, Sender

_Z95: Final = 1.6448536269514722
"""Standard deviations from the median to the 95th percentile."""
_LIMITS: Final = ("quota_per_hour", "quota_per_day", "min_gap_s", "in_flight_max")


def plan(loaded: Loaded, bring_leads: Bring | None) -> Plan:
    """What to rehearse.

    Args:
        loaded: the scenario.
        bring_leads: what brings the leads of its file, if it names one.
    """
    scenario = loaded.scenario
    return Plan(
        loaded.sequences,
        fleet=_fleet(scenario.devices),
        leads=scenario.leads.count,
        mix=tuple((tuple(mixed.triggers), mixed.weight) for mixed in scenario.leads.triggers or ()),
        days=scenario.days,
        shards=scenario.shards,
        seed=scenario.seed,
        tick_s=scenario.tick_s,
        start=scenario.start,
        behaviour=_behaviour(scenario.sender),
        pacing=scenario.pacing,
        bring_leads=bring_leads,
    )


def _fleet(devices: Devices) -> tuple[DeviceGroup, ...]:
    if devices.groups is None:
        return (DeviceGroup(devices.count, **devices.model_dump(include=set(_LIMITS))),)
    return tuple(DeviceGroup(**group.model_dump()) for group in devices.groups)


def _behaviour(sender: Sender) -> Behaviour:
    return Behaviour(
        latency=Latency() if sender.latency is None else _latency(sender.latency),
        rejected=sender.rejected,
        throttled=sender.throttled,
        refused=sender.refused,
        lost=sender.in_doubt,
    )


def _latency(keys: LatencyKeys) -> Latency:
    if keys.lognormal is not None:
        spread = math.log(keys.lognormal.p95_s / keys.lognormal.median_s) / _Z95
        return Latency(0.0, LATENCY_MOST_S, keys.lognormal.median_s, spread)
    if keys.uniform_s is not None:
        return Latency(*keys.uniform_s)
    assert keys.constant_s is not None, "one of the three is given"
    return Latency(keys.constant_s, keys.constant_s)
