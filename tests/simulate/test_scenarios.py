"""Scenario files become rehearsals: every key changes what happens, and the examples come true at a small size."""

from __future__ import annotations

import calendar
from collections import Counter
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pytest

from dispatcher.core.graph import Sequence, Step
from dispatcher.core.moments import from_datetime, span_us, to_datetime
from dispatcher.core.outcomes import Outcome
from dispatcher.intake.mapping import parse_mapping
from simulate.referee import Ban, Behaviour
from simulate.rehearsal import Plan, Rehearsed
from simulate.scenario.load import load
from simulate.scenario.overrides import parse
from simulate.scenario.planned import plan
from simulate.scenario.reference import tables
from simulate.scenario.schema import START

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
BEGIN_US = from_datetime(START)
EVERYTHING = """
days: 1.6
tick_s: 120
shards: 2
devices:
  groups:
    - {name: big, count: 20}
    - {name: small, count: 10, quota_per_hour: 10}
leads:
  count: 600
  waves: [{at_h: 0, share: 0.3}, {at_h: 2.5, share: 0.3, spread_h: 3}, {at_h: 24, share: 0.4}]
sender:
  throttled: 0.01
  in_doubt: 0.01
  periods: [{from_h: 1, to_h: 2, refused: 0.5}]
  opt_outs: {share: 0.02, within_h: 2}
  bans: {share_per_day: 0.1, lifted_after_h: 12}
events:
  - {at_h: 3, devices: {count: 5, health: offline, until_h: 10}}
  - {at_h: 4, devices: {group: big, quota_per_hour: 40, until_h: 30}}
  - {at_h: 5, pause: {sequence: 30 Day Fitness, until_h: 26}}
  - {at_h: 6, tag: {trigger: crypto_welcome, share: 0.2}}
  - {at_h: 7, opt_out: 0.05}
  - {at_h: 8, pause: {until_h: 9}}
"""


def planned(path: Path, *sets: str) -> Plan:
    return plan(load(path, [parse(each) for each in sets]), None)


def hours(slot_us: Any) -> Any:
    """Moments as hours since the start."""
    return (np.asarray(slot_us) - BEGIN_US) / span_us(3600)


def devices_of(world: Any, done: Rehearsed, mask: Any) -> set[str]:
    """Names of the devices that these receipts came from."""
    names = {row["number"]: row["name"] for row in world.rows("SELECT number, name FROM devices")}
    return {names[number] for number in done.receipts.rows["device"][mask].tolist()}


# Plans -----------------------------------------------------------------------------------------------------------


def test_an_empty_file_is_the_rehearsal_without_a_file(tmp_path):
    path = tmp_path / "empty.yaml"
    path.write_text("")
    assert planned(path) == plan(load(None), None)
    assert (planned(path).devices, planned(path).leads) == (3000, 100_000)


def test_sequences_stand_in_the_file_or_beside_it(tmp_path):
    (tmp_path / "other.yaml").write_text("sequences: [{name: Other, steps: [{trigger: o, text: O}]}]")
    path = tmp_path / "scenario.yaml"
    path.write_text(
        "sequences:\n  - other.yaml\n"
        "  - {name: Own, steps: [{trigger: a, text: A, delay_hours: 2}, {trigger: b, text: B}]}"
    )
    loaded = load(path)
    own = (Step("a", "A", "b", 2, is_entry=True), Step("b", "B"))
    assert loaded.sequences == [
        Sequence(None, "Other", True, (Step("o", "O", is_entry=True),)),
        Sequence(None, "Own", True, own),
    ]
    assert loaded.inputs == (path, tmp_path / "other.yaml")


def test_waves_have_exactly_all_leads_between_them(tmp_path):
    path = tmp_path / "scenario.yaml"
    path.write_text(
        "leads: {count: 100, waves: [{share: 0.333}, {at_h: 1, share: 0.333, spread_h: 2}, {at_h: 5, share: 0.334}]}"
    )
    waves = planned(path).waves
    assert [(wave.at_us - BEGIN_US, wave.over_us, wave.count) for wave in waves] == [
        (0, 0, 33), (span_us(3600), span_us(7200), 34), (span_us(5 * 3600), 0, 33),
    ]  # fmt: skip
    assert planned(path).first_leads == 33


def test_bans_are_drawn_by_seed_and_end(tmp_path):
    path = tmp_path / "scenario.yaml"
    path.write_text("days: 10\nsender: {bans: {share_per_day: 0.2, lifted_after_h: 48}}")
    bans = planned(path).behaviour.bans
    assert bans == planned(path).behaviour.bans != planned(path, "seed=2").behaviour.bans
    assert {ban.to_us - ban.from_us for ban in bans} == {span_us(48 * 3600)}
    a_day = Counter((ban.from_us - BEGIN_US) // span_us(86_400) for ban in bans)
    assert 500 < a_day[0] < 700  # a fifth of 3000
    for device in {ban.device for ban in bans}:
        theirs = [ban for ban in bans if ban.device == device]
        assert all(after.from_us >= before.to_us for before, after in pairwise(theirs))


def test_the_page_of_keys_is_what_the_schema_says():
    page = (ROOT / "docs/scenarios.md").read_text()
    assert tables().strip() in page, "print them with: python -m simulate.scenario.reference"


def test_a_map_of_columns_is_that_of_the_command(tmp_path):
    (tmp_path / "leads.csv").write_text("mobile\n60123456789\n")
    path = tmp_path / "scenario.yaml"
    path.write_text("leads: {csv: {file: leads.csv, map: {phone: mobile}, triggers: [fitness_start]}}")
    loaded = load(path)
    assert loaded.scenario.leads.csv is not None
    assert loaded.scenario.leads.csv.map == parse_mapping(["phone=mobile"])
    assert loaded.csv == tmp_path / "leads.csv"


# Runs ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_everything_at_once_breaks_no_invariant_and_happens_again_by_the_same_seed(world, tmp_path):
    path = tmp_path / "everything.yaml"
    path.write_text(EVERYTHING)
    first, second = world.play(planned(path)), world.play(planned(path))
    assert first.outcome.good, first.outcome.violations
    assert first.outcome.receipts_sha256 == second.outcome.receipts_sha256
    assert (first.outcome.optimality_gap_s, first.outcome.binding_limit) == (None, None)
    assert first.outcome.optimality_gap_missing == "devices go, come or change on the way"
    assert first.outcome.leads == 600 == world.value("SELECT count(*) FROM leads")
    assert world.value("SELECT count(*) FROM leads WHERE opted_out_at = $1", START.replace(hour=7)) > 10
    assert world.value("SELECT count(*) FROM leads WHERE opted_out_at <> $1", START.replace(hour=7)) > 5

    rows = first.receipts.rows
    fitness = [n for n, (name, _) in enumerate(first.receipts.steps) if name == "30 Day Fitness"]
    silent = (hours(rows["slot_us"]) >= 5) & (hours(rows["slot_us"]) < 26) & np.isin(rows["step"], fitness)
    assert not silent.any()
    (spans,) = first.evidence.paused.values()
    assert [tuple(hours(span)) for span in spans] == [(5.0, 26.0)]
    assert [tuple(hours(span)) for span in first.evidence.fleet_paused] == [(8.0, 9.0)]
    assert not ((hours(rows["slot_us"]) >= 8) & (hours(rows["slot_us"]) < 9)).any()
    # Who was tagged carried no such trigger, or had it anew.
    tagged = {lead for lead, trigger in first.evidence.retriggered if trigger == "crypto_welcome"}
    assert 50 < len(tagged) < 120
    trouble = hours(rows["slot_us"][rows["answer"] == Outcome.REFUSED])
    assert ((trouble >= 1) & (trouble < 2)).all()
    quotas = world.rows("SELECT DISTINCT name LIKE 'big%' AS big, quota_per_hour, health FROM devices ORDER BY 1")
    assert {(row["big"], row["quota_per_hour"]) for row in quotas} == {(False, 10), (True, 80)}


@pytest.mark.slow
def test_an_actor_that_is_killed_changes_no_receipt(world, tmp_path):
    path = tmp_path / "scenario.yaml"
    path.write_text("shards: 2\ndays: 1.5\ntick_s: 120\ndevices: {count: 20}\nleads: {count: 300}")
    calm = world.play(planned(path))
    killed = world.play(planned(path, "events=[{at_h: 0.05, kill: shard-1}, {at_h: 24, kill: coordinator}]"))
    assert killed.outcome.good
    assert killed.outcome.receipts_sha256 == calm.outcome.receipts_sha256


@pytest.mark.slow
def test_the_fitness_course_is_through_after_two_days(world):
    done = world.play(planned(EXAMPLES / "fitness_course.yaml", "devices.count=20", "leads.count=200", "shards=2"))
    assert done.outcome.good
    assert (done.outcome.completed, done.outcome.sends) == (200, 600)
    assert 48 < hours(done.receipts.rows["slot_us"].max()) < 49


@pytest.mark.slow
def test_the_first_wave_carries_its_mix(world):
    done = world.play(planned(EXAMPLES / "first_wave.yaml", "devices.count=20", "leads.count=400", "shards=2"))
    assert done.outcome.good
    entered = Counter(row["n"] for row in world.rows("SELECT count(*) AS n FROM sequence_contacts GROUP BY lead_id"))
    assert set(entered) == {1, 2}
    assert 50 < entered[2] < 110  # a fifth carries both
    latency_s = (done.receipts.rows["arrived_us"] - done.receipts.rows["slot_us"]) / 1e6
    assert 0.35 < np.median(latency_s) < 0.45
    assert 2 < np.quantile(latency_s, 0.95) < 4.5


@pytest.mark.slow
def test_the_waves_come_when_they_are_said_to_and_collide(world):
    small = ("devices.groups.0.count=4", "devices.groups.1.count=2", "leads.count=1500", "shards=2", "tick_s=120")
    done = world.play(planned(EXAMPLES / "colliding_waves.yaml", *small))
    assert done.outcome.good
    came = Counter(int(hours(from_datetime(row["created_at"]))) for row in world.rows("SELECT created_at FROM leads"))
    assert (came[0], came[24] + came[25] + came[26], came[48]) == (600, 600, 300)
    assert done.outcome.optimality_gap_missing is None
    assert done.outcome.lateness_s["max"] > 3600  # the waves meet


@pytest.mark.slow
def test_lost_devices_are_silent_until_they_are_back(world):
    small = (
        "devices.count=30",
        "leads.count=900",
        "days=1.6",
        "events.0.devices.count=10",
        "shards=2",
        "sender.bans.share_per_day=0.05",
        "tick_s=120",
    )
    lost = planned(EXAMPLES / "devices_lost.yaml", *small)
    names = set(lost.events[0].names)
    done = world.play(lost)
    assert done.outcome.good
    assert len(names) == 10
    at_h = hours(done.receipts.rows["slot_us"])
    assert names.isdisjoint(devices_of(world, done, (at_h >= 12) & (at_h < 18)))
    assert names & devices_of(world, done, (at_h >= 8) & (at_h < 12))
    assert names & devices_of(world, done, at_h >= 18)
    turned_down = done.receipts.answered(Outcome.CREDENTIALS)
    banned = {f"sim-{ban.device:04d}" for ban in lost.behaviour.bans}
    assert devices_of(world, done, turned_down) <= banned
    assert world.value("SELECT count(*) FROM devices WHERE health = 'offline'") == 0


@pytest.mark.slow
def test_in_four_zones_nobody_hears_of_us_at_night_or_on_sunday(world):
    few = [f"devices.groups.{n}.{each}" for n in range(3) for each in ("count=1", "quota_per_hour=15")]
    small = (*few, "leads.count=800", "shards=2", "tick_s=150")
    done = world.play(planned(EXAMPLES / "four_zones.yaml", *small))
    assert done.outcome.good
    assert (done.outcome.completed, done.outcome.sends) == (800, 1600)
    assert done.outcome.optimality_gap_missing == "send windows close on the way"
    zone_of = {row["phone"]: row["time_zone"] for row in world.rows("SELECT phone, time_zone FROM leads")}
    share = {zone: count / 800 for zone, count in Counter(zone_of.values()).items()}
    assert share == pytest.approx(
        {"Asia/Kuala_Lumpur": 0.4, "Europe/Berlin": 0.3, "America/New_York": 0.2, "America/Los_Angeles": 0.1}, abs=0.05
    )
    heard = """SELECT DISTINCT split_part(l.time_zone, '/', 1) AS lives, split_part(d.name, '-', 1) AS device
               FROM message_ledger m JOIN leads l ON l.id = m.lead_id JOIN devices d ON d.id = m.device_id"""
    regions = {(row["lives"], row["device"]) for row in world.rows(heard)}
    assert regions == {("Asia", "asia"), ("Europe", "europe"), ("America", "america")}
    local = [
        to_datetime(receipt["arrived_us"]).astimezone(ZoneInfo(zone_of[receipt["phone"].decode()]))
        for receipt in done.receipts.rows
    ]
    assert {moment.hour for moment in local} == set(range(9, 20))
    assert {"Thu", "Fri", "Sat", "Mon"} <= {moment.strftime("%a") for moment in local} < {*calendar.day_abbr} - {"Sun"}
    carried_over = "SELECT count(*) FROM message_ledger WHERE visit = 1 AND due_at > '2026-03-28 00:00Z'"
    assert world.value(carried_over) > 0, "what its day had no slot for is due the next morning"
    assert world.value("SELECT max(reserved_at - due_at) FROM message_ledger") < timedelta(hours=11)


def test_a_device_is_turned_down_for_as_long_as_its_ban_lasts():
    behaviour = Behaviour(bans=(Ban(2, 100, 200), Ban(2, 300, 400)))
    device, slot_us = np.array([1, 2, 2, 2, 2, 2], np.int32), np.array([150, 99, 100, 200, 399, 400])
    assert behaviour.banned(device, slot_us).tolist() == [False, False, True, False, True, False]
