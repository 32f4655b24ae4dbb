"""The world of a scenario: who would be enrolled, where and when, without a database."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

import numpy as np

from dispatcher.config import Settings
from dispatcher.core import triggers
from dispatcher.core.batches import Coded, Indices, Int64s
from dispatcher.core.catalogue import Catalogue
from dispatcher.core.fleet import Fleet
from dispatcher.core.group_log import Group
from dispatcher.core.moments import from_datetime, span_us
from dispatcher.intake.csv_file import CsvFile, RejectedError
from dispatcher.intake.lead_file import Lead
from simulate.forecast.world import Enrolments, Leads, World
from simulate.population import DeviceGroup, carried, lead_phones, regional_homes, zoned
from simulate.rehearsal import Plan
from simulate.scenario.load import Loaded
from simulate.timetable import moments

AT_THE_START = "at the start"


def world_of(plan: Plan, settings: Settings, file: list[Lead] | None = None) -> World:
    """What a rehearsal of ``plan`` would start from.

    Args:
        plan: the scenario's.
        settings: the engine's.
        file: the leads of the scenario's file, if it names one.
    """
    catalogue = Catalogue.of(replace(sequence, id=n) for n, sequence in enumerate(plan.sequences, 1))
    start_us = from_datetime(plan.start)
    if file is None:
        leads, waves = _made(plan, start_us)
        zones: list[str | None] = [zone.zone for zone in plan.zones] or [None]
        which, lists = carried(np.arange(plan.leads), plan.entries, plan.seed, plan.mix)
    else:
        coded = Coded.of([lead.time_zone for lead in file])
        leads, waves, zones = (
            _read(file, start_us, coded.code.astype(np.intp)),
            [AT_THE_START],
            list(coded.values) or [None],
        )
        carrying = [tuple(triggers.parse(lead.trigger)) for lead in file]
        places = {each: n for n, each in enumerate(dict.fromkeys(carrying))}
        which, lists = np.array([places[each] for each in carrying], np.intp), list(places)
    world = World(
        catalogue=catalogue,
        fleet=fleet_of(plan, settings),
        leads=leads,
        enrolments=Enrolments.none(),
        waves=waves,
        zones=zones,
        start_us=start_us,
        tick_us=span_us(plan.tick_s),
        settings=settings,
        groups=groups_of(plan),
        events=plan.events,
        behaviour=plan.behaviour,
        seed=plan.seed,
        deadline_us=start_us + span_us(plan.days * 86_400),
    )
    return replace(world, enrolments=_enrolments(world, which, lists))


def leads_of(loaded: Loaded) -> list[Lead] | None:
    """The leads of a scenario's file, merged by phone; None if it names none."""
    if loaded.csv is None:
        return None
    found: dict[str, Lead] = {}
    with CsvFile(loaded.csv) as opened:
        reader = loaded.lead_reader(opened)
        for record in opened.records():
            try:
                lead = reader.read(record)
                found[lead.phone] = found[lead.phone].filled_from(lead) if lead.phone in found else lead
            except RejectedError:
                continue
    return list(found.values())


def fleet_of(plan: Plan, settings: Settings) -> Fleet:
    """The devices as a rehearsal creates them, numbered from 1."""
    groups = [plan.pacing.paced(group, settings) for group in plan.fleet]
    size = sum(group.count for group in groups)

    def column(limit: str) -> np.ndarray:
        return np.repeat([getattr(group, limit) for group in groups], [group.count for group in groups])

    return Fleet(
        number=np.arange(1, size + 1, dtype=np.int32),
        shard=np.full(size, -1, np.int32),
        quota_per_hour=column("quota_per_hour").astype(np.int32),
        quota_per_day=column("quota_per_day").astype(np.int32),
        in_flight_max=column("in_flight_max").astype(np.int32),
        min_gap_s=column("min_gap_s").astype(np.float64),
        available=np.ones(size, np.bool_),
        left=np.zeros(size, np.bool_),
        trips=np.zeros(size, np.int32),
        probe_us=np.zeros(size, np.int64),
        idempotent=np.ones(size, np.bool_),
        device_id=[UUID(int=number) for number in range(1, size + 1)],
        name=_names(groups),
        gateway_url=[None] * size,
        gateway_token=[None] * size,
        group=[None if group.shared is None else group.name for group in groups for _ in range(group.count)],
    )


def groups_of(plan: Plan) -> list[Group]:
    """The limits that devices of a rehearsal share."""
    last = np.cumsum([group.count for group in plan.fleet])
    return [
        Group(group.name, *group.shared, np.arange(end - group.count + 1, end + 1, dtype=np.int32))
        for group, end in zip(plan.fleet, last.tolist(), strict=True)
        if group.shared is not None
    ]


def _names(groups: list[DeviceGroup]) -> list[str]:
    return [name for group in groups for name in group.names]


def _made(plan: Plan, start_us: int) -> tuple[Leads, list[str]]:
    """Leads numbered in the order in which they come, as in a rehearsal, and the waves' names."""
    come_us, wave = np.full(plan.leads, start_us, np.int64), np.zeros(plan.leads, np.int32)
    names = [AT_THE_START]
    if plan.waves:
        of_wave = [moments(each) for each in plan.waves]
        all_us = np.concatenate(of_wave)
        number = np.repeat(np.arange(len(plan.waves), dtype=np.int32), [len(each) for each in of_wave])
        # Those that are there at the start come first, whatever their wave's place among the others.
        there = np.concatenate([
            np.full(each.count, each.at_us > start_us or each.over_us > 0) for each in plan.waves
        ])  # fmt: skip
        order = np.lexsort((all_us, there))
        come_us, wave = all_us[order], number[order]
        names = [f"wave {n}" for n in range(1, len(plan.waves) + 1)]
    numbers, nobody = np.arange(plan.leads), np.zeros(plan.leads, np.bool_)
    zone = zoned(numbers, plan.zones, plan.seed) if plan.zones else np.zeros(plan.leads)
    homes = regional_homes(numbers, plan.zones, plan.fleet, plan.seed)
    return Leads(lead_phones(numbers), come_us, wave, nobody, zone.astype(np.int32), homes), names


def _read(file: list[Lead], start_us: int, zone: Indices) -> Leads:
    numbers = np.array([int(lead.phone) for lead in file], np.int64)
    opted_in = np.array([lead.opted_in_at is not None for lead in file], np.bool_)
    begin_us, wave = np.full(len(file), start_us, np.int64), np.zeros(len(file), np.int32)
    nowhere = np.full(len(file), -1, np.int32)
    return Leads(numbers, begin_us, wave, opted_in, zone.astype(np.int32), nowhere)


def _enrolments(world: World, which: Int64s, lists: list[tuple[str, ...]]) -> Enrolments:
    """Every lead at the first of the entries it carries, of each sequence that it may enter."""
    catalogue, leads = world.catalogue, world.leads
    found: list[tuple[np.ndarray, int]] = []
    for place, tokens in enumerate(lists):
        entries: dict[int, str] = {}
        for token in sorted(tokens):
            if token in catalogue.entries:
                entries.setdefault(catalogue.entries[token], token)
        lead = np.flatnonzero(which == place) if entries else np.zeros(0, np.intp)
        for id_, token in sorted(entries.items()):
            some = lead[leads.opted_in[lead]] if catalogue.sequences[id_].requires_opt_in else lead
            found.append((some, catalogue.index[token]))
    lead = np.concatenate([np.zeros(0, np.intp), *(some for some, _ in found)])
    step = np.repeat(np.array([each for _, each in found], np.int32), [len(some) for some, _ in found])
    order = np.lexsort((step, lead))
    lead, step = lead[order], step[order]
    homeless = np.full(len(lead), -1, np.int32)
    return Enrolments(lead, step, step, homeless, world.border_after(leads.come_us[lead]))
