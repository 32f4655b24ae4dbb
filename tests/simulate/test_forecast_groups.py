"""Limits that devices share, in forecasts: who waits for them, whether more devices help, and what a rehearsal says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dispatcher.config import Settings
from dispatcher.core.moments import from_datetime
from dispatcher.core.outcomes import Outcome
from simulate.forecast.needed import arithmetic, devices_needed, hopeless, with_devices
from simulate.forecast.outlook import Outlook, Span, forecast
from simulate.forecast.planned import world_of
from simulate.forecast.world import World
from simulate.scenario.load import Loaded, load
from simulate.scenario.overrides import parse
from simulate.scenario.planned import plan
from simulate.scenario.schema import START

BEGIN_US = from_datetime(START)
HOUR_US = 3_600_000_000
SETTINGS = Settings(database_url=None)
ONE = Path(__file__).with_name("one_sequence.yaml").read_text()
PAIR = "{name: a, count: 2, quota_per_hour: 10, quota_per_day: 50, shared: {per_hour: 12}}"


@pytest.fixture
def scenario(tmp_path: Path) -> Any:
    """Loads the scenario of one sequence with these groups of devices."""

    def write(groups: str, *sets: str) -> Loaded:
        path = tmp_path / "scenario.yaml"
        path.write_text(ONE)
        return load(path, [parse(each) for each in (f"devices={{groups: [{groups}]}}", *sets)])

    return write


def made(loaded: Loaded) -> World:
    return world_of(plan(loaded, None), SETTINGS)


def told(loaded: Loaded) -> Outlook:
    return forecast(made(loaded))


def by_hour(outlook: Outlook) -> dict[int, int]:
    """Messages of the hours that have any."""
    sent = outlook.sent.sum(axis=1)
    return {int(hour): int(sent[hour]) for hour in np.flatnonzero(sent)}


def test_the_hour_of_a_group_is_the_limit(scenario):
    outlook = told(scenario(PAIR))
    # Its window is longer than an hour by the guard of 60 s and the deadline of 30 s.
    assert by_hour(outlook) == {day * 24 + hour: (12, 12, 12, 4)[hour] for day in range(3) for hour in range(4)}
    assert outlook.spans[0] == Span(0, 4, "group hour")
    assert outlook.waves[0].finished_us == BEGIN_US + 51 * HOUR_US + (270 + 5) * 1_000_000
    assert outlook.per_day == 2 * 50
    lone = told(scenario(PAIR.replace("12", "100")))
    assert lone.spans[0] == Span(0, 2, "hour")
    assert by_hour(lone) == {day * 24 + hour: 20 for day in range(3) for hour in range(2)}


def test_the_day_of_a_group_is_the_limit_and_leads_go_where_there_is_room(scenario):
    groups = "{name: a, count: 2, shared: {per_day: 10}}, {name: b, count: 1, quota_per_day: 30}"
    outlook = told(scenario(groups))
    assert outlook.per_day == 10 + 30
    assert by_hour(outlook) == {0: 40, 24: 40, 48: 40}
    crowded = told(scenario(groups, "leads.count=80", "days=9"))
    days = np.add.reduceat(crowded.sent.sum(axis=1), range(0, len(crowded.sent), 24))
    assert days.tolist() == [40] * 6
    assert "group day" in {span.limit for span in crowded.spans}


def test_where_groups_bind_more_devices_do_not_help(scenario):
    loaded = scenario("{name: a, count: 2, shared: {per_day: 20}}", "days=4")
    outlook = told(loaded)
    assert (outlook.feasible, outlook.per_day, hopeless(outlook)) == (False, 20, True)
    said = list(arithmetic(outlook))
    assert said[0] == "40 messages are due on day 1: that needs 40 a day; the fleet gives 20 (2 devices)"
    assert said[-1] == "what groups of devices share binds, however many devices they have: a 20 a day"
    more = told(with_devices(loaded, 100))
    assert (more.feasible, more.per_day) == (False, 20)


def test_where_others_help_the_smallest_fleet_is_found(scenario):
    loaded = scenario(
        "{name: a, count: 2, shared: {per_day: 20}}, {name: b, count: 2, quota_per_day: 10}",
        "leads.count=200",
        "days=4",
    )
    outlook = told(loaded)
    assert (outlook.feasible, hopeless(outlook)) == (False, False)

    def with_(count: int) -> World:
        return made(with_devices(loaded, count))

    needed = devices_needed(outlook, with_)
    assert needed is not None
    assert forecast(with_(needed)).feasible
    assert not forecast(with_(needed - 2)).feasible


@pytest.mark.slow
def test_a_rehearsal_sends_what_was_foreseen(world, scenario):
    groups = (
        "{name: a, count: 6, quota_per_hour: 20, shared: {per_hour: 60, per_day: 200}},"
        "{name: b, count: 2, shared: {per_hour: 40}}, {name: c, count: 1, quota_per_hour: 30}"
    )
    trouble = "sender={refused: 0.05, throttled: 0.02, in_doubt: 0.02}"
    planned = plan(scenario(groups, "leads.count=300", "tick_s=120", "shards=2", trouble), None)
    done, outlook = world.play(planned), forecast(world_of(planned, SETTINGS))
    assert done.outcome.violations.total == 0
    assert (done.outcome.binding_limit, done.outcome.optimality_gap_missing) == ("group hour", "devices share a limit")
    rows = done.receipts.rows
    slot_us = rows["slot_us"][rows["answer"] == Outcome.ACCEPTED]
    hours = max(len(outlook.sent), int((slot_us.max() - BEGIN_US) // HOUR_US) + 1)
    foreseen = np.pad(outlook.sent.sum(axis=1), (0, hours - len(outlook.sent)))
    sent = np.bincount((slot_us - BEGIN_US) // HOUR_US, minlength=hours)
    assert np.abs(np.cumsum(sent) - np.cumsum(foreseen)).max() <= 0.01 * len(slot_us)
