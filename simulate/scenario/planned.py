"""A scenario as the plan of a rehearsal."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Any, Final

import numpy as np

from dispatcher.core.backoff import uniform
from dispatcher.core.moments import NEVER_US, from_datetime, span_us
from simulate.population import DeviceGroup, Zoned
from simulate.referee import Ban, Behaviour, Latency, Period, Replies
from simulate.rehearsal import Bring, Plan
from simulate.scenario.events import DeviceEvent, EventKeys
from simulate.scenario.load import Loaded
from simulate.scenario.schema import Devices, Leads, Scenario
from simulate.scenario.sender import LATENCY_MOST_S, LatencyKeys, Sender, Shares
from simulate.timetable import BansLifted, DeviceChange, Event, Kill, OptOut, Switch, Tag, Wave, choose

_Z95: Final = 1.6448536269514722
"""Standard deviations from the median to the 95th percentile."""
HOUR_S: Final = 3600
DAY_US: Final = span_us(24 * HOUR_S)
_BAN: Final = (0xBA, 0xBB)
_FIGURES: Final = frozenset({"title", "seed", "shards", "tick_s", "pacing"})
"""Keys that tell nothing of the run, or that its figures have anyway."""
_LIMITS: Final = ("quota_per_hour", "quota_per_day", "min_gap_s", "in_flight_max")


def plan(loaded: Loaded, bring_leads: Bring | None) -> Plan:
    """What to rehearse.

    Args:
        loaded: the scenario.
        bring_leads: what brings the leads of its file, if it names one.
    """
    scenario = loaded.scenario
    begin_us = from_datetime(scenario.start)
    fleet = _fleet(scenario.devices)
    bans = _bans(scenario, sum(group.count for group in fleet), begin_us)
    events = [
        each for n, event in enumerate(scenario.events) for each in _events(event, n, scenario.seed, fleet, begin_us)
    ]
    events += _lifted(bans, fleet)
    return Plan(
        loaded.sequences,
        fleet=fleet,
        leads=scenario.leads.count,
        mix=tuple((tuple(mixed.triggers), mixed.weight) for mixed in scenario.leads.triggers or ()),
        zones=tuple(Zoned(zoned.zone, zoned.weight, zoned.region) for zoned in scenario.leads.time_zones or ()),
        days=scenario.days,
        shards=scenario.shards,
        seed=scenario.seed,
        tick_s=scenario.tick_s,
        start=scenario.start,
        behaviour=replace(_behaviour(scenario.sender, begin_us), bans=bans),
        waves=_waves(scenario.leads, begin_us),
        events=tuple(events),
        pacing=scenario.pacing,
        speed=scenario.speed,
        over=scenario.sender.over,
        bring_leads=bring_leads,
        asked=dict(_dotted(scenario.model_dump(mode="json", exclude={"sequences", *_FIGURES}))),
    )


def _dotted(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _dotted(value, f"{above}{key}.")
        else:
            yield above + key, value


def _fleet(devices: Devices) -> tuple[DeviceGroup, ...]:
    if devices.groups is None:
        return (DeviceGroup(devices.count, **devices.model_dump(include=set(_LIMITS))),)
    return tuple(
        DeviceGroup(
            **group.model_dump(exclude={"shared"}),
            shared=None if group.shared is None else (group.shared.per_hour, group.shared.per_day),
        )
        for group in devices.groups
    )


def _behaviour(sender: Sender, begin_us: int) -> Behaviour:
    rejected, throttled, refused, lost = _shares(sender)
    opt_outs, replies = sender.opt_outs, sender.replies
    return Behaviour(
        latency=Latency() if sender.latency is None else _latency(sender.latency),
        rejected=rejected,
        throttled=throttled,
        refused=refused,
        lost=lost,
        periods=tuple(
            Period(_at(begin_us, period.from_h), _at(begin_us, period.to_h), _shares(period))
            for period in sender.periods
        ),
        opted_out=0.0 if opt_outs is None else opt_outs.share,
        opted_out_within_s=0.0 if opt_outs is None else opt_outs.within_h * HOUR_S,
        replies=None if replies is None else Replies(replies.share, replies.stop, replies.within_h * HOUR_S),
    )


def _shares(shares: Shares) -> tuple[float, float, float, float]:
    return (shares.rejected, shares.throttled, shares.refused, shares.in_doubt)


def _at(begin_us: int, hours: float) -> int:
    return begin_us + span_us(hours * HOUR_S)


def _latency(keys: LatencyKeys) -> Latency:
    if keys.lognormal is not None:
        spread = math.log(keys.lognormal.p95_s / keys.lognormal.median_s) / _Z95
        return Latency(0.0, LATENCY_MOST_S, keys.lognormal.median_s, spread)
    if keys.uniform_s is not None:
        return Latency(*keys.uniform_s)
    assert keys.constant_s is not None, "one of the three is given"
    return Latency(keys.constant_s, keys.constant_s)


def _waves(leads: Leads, begin_us: int) -> tuple[Wave, ...]:
    """The waves; together they have exactly as many leads as there are."""
    waves = leads.waves or []
    upto = [0, *(round(leads.count * share) for share in accumulate(wave.share for wave in waves))]
    return tuple(
        Wave(_at(begin_us, wave.at_h), span_us(wave.spread_h * HOUR_S), last - first)
        for wave, (first, last) in zip(waves, pairwise(upto), strict=True)
    )


def _events(event: EventKeys, number: int, seed: int, fleet: tuple[DeviceGroup, ...], begin_us: int) -> Iterator[Event]:
    at_us = _at(begin_us, event.at_h)
    if event.devices is not None:
        yield from _device_changes(event.devices, at_us, number, seed, fleet, begin_us)
    if event.pause is not None:
        yield Switch(at_us, event.pause.sequence, False)
        if event.pause.until_h is not None:
            yield Switch(_at(begin_us, event.pause.until_h), event.pause.sequence, True)
    if event.tag is not None:
        yield Tag(at_us, event.tag.share, event.tag.trigger)
    if event.opt_out is not None:
        yield OptOut(at_us, event.opt_out)
    if event.kill is not None:
        yield Kill(at_us, event.kill)


def _device_changes(
    event: DeviceEvent, at_us: int, number: int, seed: int, fleet: tuple[DeviceGroup, ...], begin_us: int
) -> Iterator[DeviceChange]:
    """The change of the chosen devices, and group by group how it ends."""
    names = [name for group in fleet if event.group in (None, group.name) for name in group.names]
    count = len(names) if event.share is None else round(event.share * len(names))
    chosen = choose(names, event.count or count, seed, number)
    yield DeviceChange(at_us, chosen, event.health, event.cause, event.quota_per_hour, event.quota_per_day)
    if event.until_h is None:
        return
    for group in fleet:
        theirs = sorted(set(chosen).intersection(group.names))
        yield DeviceChange(
            _at(begin_us, event.until_h),
            tuple(theirs),
            health="available" if event.health else None,
            quota_per_hour=group.quota_per_hour if event.quota_per_hour else None,
            quota_per_day=group.quota_per_day if event.quota_per_day else None,
        )


def _bans(scenario: Scenario, devices: int, begin_us: int) -> tuple[Ban, ...]:
    """When which devices are turned down: drawn for every day of every device."""
    keys = scenario.sender.bans
    if keys is None:
        return ()
    bans: list[Ban] = []
    number = np.arange(1, devices + 1)  # those of a rehearsal are numbered from 1
    free_us = np.full(devices, begin_us)
    for day in range(math.ceil(scenario.days)):
        whether, when = (uniform(scenario.seed, number, np.full(devices, day), np.full(devices, what)) for what in _BAN)
        at_us = begin_us + ((day + when) * DAY_US).astype(np.int64)
        for row in np.flatnonzero((whether < keys.share_per_day) & (at_us >= free_us)).tolist():
            end_us = (
                NEVER_US if keys.lifted_after_h is None else int(at_us[row]) + span_us(keys.lifted_after_h * HOUR_S)
            )
            bans.append(Ban(int(number[row]), int(at_us[row]), end_us))
            free_us[row] = end_us
    return tuple(bans)


def _lifted(bans: tuple[Ban, ...], fleet: tuple[DeviceGroup, ...]) -> list[Event]:
    names = [name for group in fleet for name in group.names]
    return [BansLifted(ban.to_us, (names[ban.device - 1],)) for ban in bans if ban.to_us < NEVER_US]
