"""A forecast of small scenarios: what becomes of whom and when, what limits it, and how many devices would do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dispatcher.config import Settings
from dispatcher.core.moments import from_datetime
from simulate.forecast import course as course_module
from simulate.forecast.needed import arithmetic, devices_needed, hopeless, with_devices
from simulate.forecast.outlook import Outlook, Span, forecast
from simulate.forecast.planned import leads_of, world_of
from simulate.forecast.world import World
from simulate.model import Enrolments, schedule
from simulate.population import DeviceGroup, Zoned, regional_homes, zoned
from simulate.scenario.load import Loaded, load
from simulate.scenario.overrides import parse
from simulate.scenario.planned import plan
from simulate.scenario.schema import START

BEGIN_US = from_datetime(START)
HOUR_US = 3_600_000_000
SETTINGS = Settings(database_url=None)
ONE = Path(__file__).with_name("one_sequence.yaml").read_text()


@pytest.fixture
def scenario(tmp_path: Path) -> Any:
    """Loads a scenario from its text."""

    def write(text: str, *sets: str) -> Loaded:
        path = tmp_path / "scenario.yaml"
        path.write_text(text)
        return load(path, [parse(each) for each in sets])

    return write


def world(loaded: Loaded) -> World:
    return world_of(plan(loaded, None), SETTINGS, leads_of(loaded))


def told(loaded: Loaded) -> Outlook:
    return forecast(world(loaded))


def by_hour(outlook: Outlook) -> dict[int, int]:
    """Messages of the hours that have any."""
    sent = outlook.sent.sum(axis=1)
    return {int(hour): int(sent[hour]) for hour in np.flatnonzero(sent)}


def hour(moment_us: int | None) -> float:
    assert moment_us is not None
    return (moment_us - BEGIN_US) / HOUR_US


# When ------------------------------------------------------------------------------------------------------------


def test_the_hour_is_the_limit(scenario):
    outlook = told(scenario(ONE))
    assert by_hour(outlook) == {0: 20, 1: 20, 24: 20, 25: 20, 48: 20, 49: 20}
    assert (outlook.messages, outlook.completed, outlook.feasible, outlook.overdue) == (120, 40, True, 0)
    # From the tenth message on: 3615 s of 7200 s.
    assert outlook.spans[0] == Span(0, 2, "hour")
    assert outlook.waited[1, :2].tolist() == pytest.approx([(3600 - 45) / 3600, 60 / 3600])
    (wave,) = outlook.waves
    assert (wave.sequence, wave.wave, wave.leads, wave.messages, wave.left) == ("One", "at the start", 40, 120, 0)
    assert wave.first_us == BEGIN_US
    # Ten a device, 5 s apart; then an hour and a guard of a minute after the first; a step is due a day after a slot.
    assert hour(wave.begun_us) == pytest.approx((3660 + 9 * 5) / 3600)
    assert hour(wave.finished_us) == pytest.approx(48 + (3660 + 9 * 5) / 3600)
    assert wave.late_s == 3660 + 9 * 5


def test_the_day_is_the_limit(scenario):
    outlook = told(scenario(ONE, "leads.count=240"))
    days = np.add.reduceat(outlook.sent.sum(axis=1), np.arange(0, len(outlook.sent), 24))
    assert days.tolist() == [100] * 7 + [20]
    assert {span.limit for span in outlook.spans} >= {"hour", "day"}
    assert outlook.demand.tolist() == [240, 240, 240]
    assert not outlook.feasible
    assert outlook.overdue == 720 - 600


def test_a_forecast_is_the_schedule_where_nothing_happens_on_the_way(scenario, monkeypatch):
    monkeypatch.setattr(course_module, "_TOGETHER", 100)  # several groups of devices
    groups = "devices={groups: [{name: x, count: 5}, {name: y, count: 7, quota_per_hour: 9, quota_per_day: 60}]}"
    loaded = scenario(ONE, groups, "leads.count=2000")
    course = course_module.Course(world(loaded))
    course.play()
    state, fleet = course.state, course.world.fleet
    found = schedule(
        Enrolments(fleet.number[state.home], np.zeros(2000, np.int32), np.full(2000, BEGIN_US)),
        [[24, 24]], fleet, hour_us=HOUR_US, guard_us=60_000_000,
    )  # fmt: skip
    hours = np.bincount((found.slot_us - BEGIN_US) // HOUR_US)
    assert course.tally.sent.sum(axis=1)[: len(hours)].tolist() == hours.tolist()
    assert np.bincount(state.home, minlength=12)[:5].min() > np.bincount(state.home, minlength=12)[5:].max()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sender: {throttled: 0.1, refused: 0.1, rejected: 0.05, in_doubt: 0.05, opt_outs: {share: 0.1, within_h: 30}}",
    ],
)
def test_a_border_on_the_way_changes_nothing(scenario, text):
    """A process that dies ends a segment, and nothing else."""
    calm = told(scenario(ONE + text, "leads.count=200"))
    kills = [f"{{at_h: {at}, kill: coordinator}}" for at in (1, 1.01, 5, 24.7, 30, 49, 75)]
    struck = told(scenario(ONE + text, "leads.count=200", f"events=[{', '.join(kills)}]"))
    if text:  # what fails comes back in another place of the row, not in another hour
        hours = min(len(calm.sent), len(struck.sent))
        so_far = [np.cumsum(outlook.sent.sum(axis=1))[:hours] for outlook in (calm, struck)]
        assert np.abs(so_far[0] - so_far[1]).max() <= 6
    else:
        assert calm.sent.tolist() == struck.sent.tolist()
        assert calm.waves == struck.waves
    assert (calm.messages, calm.failed, calm.stopped) == (struck.messages, struck.failed, struck.stopped)


def test_waves_come_when_they_are_said_to(scenario):
    outlook = told(
        scenario(ONE, "leads.waves=[{at_h: 2, share: 0.5}, {share: 0.25}, {at_h: 5, share: 0.25, spread_h: 5}]")
    )
    assert [(wave.wave, wave.leads) for wave in outlook.waves] == [("wave 1", 20), ("wave 2", 10), ("wave 3", 10)]
    first = {wave.wave: hour(wave.first_us) for wave in outlook.waves}
    assert first == {"wave 1": 2, "wave 2": 0, "wave 3": 5}
    assert by_hour(outlook) == {
        day + at: count for day in (0, 24, 48) for at, count in {0: 10, 2: 20, 5: 2, 6: 2, 7: 2, 8: 2, 9: 2}.items()
    }


def test_leads_of_a_file_enter_by_what_they_carry(scenario, tmp_path):
    (tmp_path / "leads.csv").write_text("phone,tags\n60123456789,a\n60123456780,other\n+60 12-345 6789,a\nx,a\n")
    text = ONE.replace("sequences:", "sequences:\n  - {name: N, steps: [{trigger: n, text: N}]}")
    outlook = told(scenario(text, "leads={csv: {file: leads.csv, map: {trigger: tags}, triggers: [n]}}"))
    assert (outlook.leads, outlook.enrolled) == (2, 3)
    assert {wave.sequence: wave.leads for wave in outlook.waves} == {"N": 2, "One": 1}


# What happens on the way -----------------------------------------------------------------------------------------


def test_what_waits_on_a_lost_device_moves_and_strict_senders_wait(scenario):
    lost = "events=[{at_h: 0.5, devices: {count: 1, health: offline, until_h: 30}}]"
    moved = told(scenario(ONE, lost))
    # The one that is left sends ten an hour; what has been sent by the other follows from there as well.
    assert by_hour(moved) == {0: 20, 1: 10, 2: 10, 24: 10, 25: 10, 26: 10, 27: 10} | {
        at: count for at, count in by_hour(moved).items() if at >= 48
    }
    strict = told(scenario(ONE.replace("name: One", "name: One\n    sender_policy: strict"), lost))
    assert [by_hour(strict)[at] for at in (0, 1, 24, 25)] == [20, 10, 10, 10]
    assert by_hour(strict)[30] == 10  # when it is back, ten that were due on it yesterday
    assert strict.completed == 40


def test_a_quarantine_for_quality_moves_nothing(scenario):
    event = "events=[{at_h: 0.5, devices: {count: 1, health: quarantined, cause: quality}}]"
    outlook = told(scenario(ONE, event))
    assert (outlook.left, outlook.completed, outlook.feasible) == (20, 20, False)
    assert hopeless(outlook)
    assert next(arithmetic(outlook)).startswith("20 leads never get their next message")


def test_quotas_change_on_the_way(scenario):
    outlook = told(scenario(ONE, "events=[{at_h: 24, devices: {quota_per_hour: 5, until_h: 48}}]"))
    assert by_hour(outlook) == {0: 20, 1: 20, 24: 10, 25: 10, 26: 10, 27: 10} | {
        at: count for at, count in by_hour(outlook).items() if at >= 48
    }


def test_a_paused_sequence_is_silent_and_goes_on(scenario):
    outlook = told(scenario(ONE, "events=[{at_h: 0.9, pause: {sequence: One, until_h: 10}}]"))
    assert list(by_hour(outlook).items())[:3] == [(0, 20), (10, 20), (24, 20)]
    never = told(scenario(ONE, "events=[{at_h: 0.9, pause: {sequence: One}}]"))
    assert (never.messages, never.left) == (20, 40)


def test_while_everything_is_paused_nothing_is_sent(scenario):
    outlook = told(scenario(ONE, "events=[{at_h: 0.9, pause: {until_h: 10}}]"))
    assert list(by_hour(outlook).items())[:3] == [(0, 20), (10, 20), (24, 20)]
    assert outlook.world.left_out == {}


def test_who_opts_out_gets_nothing_more(scenario):
    outlook = told(scenario(ONE, "events=[{at_h: 10, opt_out: 0.5}]"))
    assert outlook.stopped + outlook.completed == 40
    assert 10 < outlook.stopped < 30
    assert outlook.messages == 120 - 2 * outlook.stopped


def test_who_replies_leaves_what_exits_on_replies_and_who_says_stop_everything(scenario):
    text = ONE.replace("name: One", "name: One\n    exit: {on_reply: true}").replace("[a]", "[a, n]")
    other = "  - {name: N, steps: [{trigger: n, text: N}, {trigger: n2, text: N}]}"
    text = text.replace("sequences:", f"sequences:\n{other}")
    everybody = "sender.replies={share: 1, stop: 0, within_h: 1}"
    outlook = told(scenario(text, everybody))
    assert outlook.replies == {"received": 120, "stop": 0, "exits": 40}
    assert (outlook.completed, outlook.stopped, outlook.messages) == (40, 40, 120)
    assert {wave.sequence: wave.messages for wave in outlook.waves} == {"N": 80, "One": 40}
    stopped = told(scenario(text, everybody.replace("stop: 0", "stop: 1")))
    assert stopped.replies == {"received": 80, "stop": 80, "exits": 0}
    assert (stopped.completed, stopped.stopped, stopped.messages) == (0, 80, 80)
    # Who has left by a reply carries the trigger still: it does not come anew.
    tagged = told(scenario(text, everybody, "events=[{at_h: 60, tag: {trigger: a}}]"))
    assert (tagged.enrolled, tagged.messages) == (80, 120)
    few = told(scenario(text, "sender.replies={share: 0.3, stop: 0.5, within_h: 1}"))
    assert few.replies is not None
    assert few.replies["received"] > few.replies["exits"] > 5 < few.replies["stop"]
    assert told(scenario(text)).replies is None


def test_who_gets_a_trigger_enters_once(scenario):
    mixed = ONE.replace("[{triggers: [a]}]", "[{triggers: [a]}, {triggers: [n]}]")
    text = mixed.replace("sequences:", "sequences:\n  - {name: N, steps: [{trigger: n, text: N}]}")
    some = told(scenario(text))
    tagged = told(scenario(text, "events=[{at_h: 10, tag: {trigger: n}}, {at_h: 11, tag: {trigger: a}}]"))
    began = {wave.sequence: wave.leads for wave in some.waves}
    again = {wave.sequence: wave.leads for wave in tagged.waves}
    assert sum(began.values()) == 40
    # Everybody gets the short one: who has been through enters once more. The long one still runs for those in it.
    assert again == {"N": 40 + began["N"], "One": 40}
    never = text.replace("{name: N,", "{name: N, reentry: never,")
    once = told(scenario(never, "events=[{at_h: 10, tag: {trigger: n}}]"))
    assert {wave.sequence: wave.leads for wave in once.waves}["N"] == 40


def test_refusals_take_no_quota_and_rejections_end_the_course(scenario):
    outlook = told(scenario(ONE, "sender.throttled=0.5", "leads.count=20"))
    assert by_hour(outlook)[0] == 20
    assert outlook.completed == 20
    rejected = told(scenario(ONE, "sender.rejected=1"))
    assert (rejected.messages, rejected.failed) == (0, 40)
    refused = told(scenario(ONE, "sender.refused=1"))
    assert (refused.messages, refused.failed) == (0, 40)
    doubt = told(scenario(ONE, "sender.in_doubt=1", "leads.count=10"))
    assert (doubt.messages, doubt.completed) == (30, 10)


def test_nothing_leaves_while_a_window_is_shut(scenario):
    window = '{from: "09:00", until: "10:00", time_zone: UTC}'
    text = ONE.replace("name: One", f"name: One\n    send_window: {window}")
    outlook = told(scenario(text, "leads.count=30"))
    # Twenty an hour: ten wait for the next day, and lie before those whose second message is due then.
    assert by_hour(outlook) == {9: 20, 33: 20, 57: 20, 81: 20, 105: 10}
    assert outlook.completed == 30
    assert hour(outlook.waves[0].first_us) == 9
    assert outlook.demand.tolist() == [30, 30, 30]
    east = told(scenario(text, "leads.count=30", "leads.time_zones=[{zone: Asia/Kuala_Lumpur}]"))
    assert min(by_hour(east)) == 1  # nine o'clock there
    never = told(scenario(text, "events=[{at_h: 1, pause: {sequence: One}}]"))
    assert (never.messages, never.left) == (0, 40)


def test_times_of_day_and_blackouts_are_foreseen(scenario):
    """Enrolled at midnight, UTC: it is eight o'clock in Kuala Lumpur, and a Monday."""
    steps = "steps: [{trigger: a, text: Hi, at: '09:00'}, {trigger: b, text: Hi, at: '09:30'}, {trigger: c, text: Hi}]"
    shut = "time_zone: Asia/Kuala_Lumpur, blackouts: [2026-01-06]"
    timed = f"sequences=[{{name: One, {shut}, {steps}}}]"
    outlook = told(scenario(ONE, timed, "leads.count=30", "days=6"))
    # Twenty an hour. A day after half past nine is half past nine, and those who had to wait follow an hour later.
    assert by_hour(outlook) == {1: 20, 2: 10, 49: 20, 50: 10, 73: 20, 74: 10}
    assert outlook.demand.tolist() == [30, 0, 30, 30]
    zones = "leads.time_zones=[{zone: Europe/Berlin, weight: 1}, {zone: Asia/Tokyo, weight: 1}]"
    hours = by_hour(told(scenario(ONE, timed, "leads.count=30", "days=6", zones)))
    assert set(hours) == {0, 8, 48, 56, 72, 80}
    assert sum(hours.values()) == 90


def test_leads_of_a_region_hear_from_its_devices(scenario):
    """Twenty leads an hour and device: whose region has one of two devices takes twice as long."""
    near, far = "{name: near, count: 1, quota_per_hour: 20, region: Asia}", "{name: far, count: 1, quota_per_hour: 20}"
    groups = f"devices={{groups: [{near}, {far}]}}"
    anywhere = told(scenario(ONE, groups, "leads.count=40", "leads.time_zones=[{zone: UTC}]"))
    assert by_hour(anywhere)[0] == 40
    there = told(scenario(ONE, groups, "leads.count=40", "leads.time_zones=[{zone: UTC, region: Asia}]"))
    assert [by_hour(there)[n] for n in (0, 1)] == [20, 20]


def test_homes_are_drawn_lead_by_lead_among_the_devices_of_a_region():
    fleet = [DeviceGroup(2, name="a", region="Asia"), DeviceGroup(1, quota_per_day=1600, name="b", region="Asia"),
             DeviceGroup(5, name="c")]  # fmt: skip
    zones = [Zoned("Asia/Tokyo", 1, "Asia"), Zoned("UTC", 1)]
    numbers = np.arange(4000)
    homes = regional_homes(numbers, zones, fleet, 7)
    assert ((homes >= 0) == (zoned(numbers, zones, 7) == 0)).all()
    counts = np.bincount(homes[homes >= 0])
    assert len(counts) == 3
    assert counts / counts.sum() == pytest.approx([0.25, 0.25, 0.5], abs=0.03)
    assert (homes[1000:] == regional_homes(numbers[1000:], zones, fleet, 7)).all()


# How many devices ------------------------------------------------------------------------------------------------


def test_the_smallest_fleet_that_keeps_the_deadline_is_found(scenario):
    loaded = scenario(ONE, "leads.count=400", "days=4")

    def with_(count: int) -> World:
        return world(with_devices(loaded, count))

    outlook = told(loaded)
    assert not outlook.feasible
    needed = devices_needed(outlook, with_)
    assert needed is not None
    assert forecast(with_(needed)).feasible
    assert not forecast(with_(needed - 1)).feasible
    assert devices_needed(forecast(with_(3 * needed)), with_) == needed


def test_groups_keep_their_shares(scenario):
    groups = "devices={groups: [{name: x, count: 3}, {name: y, count: 1}]}"
    sizes = [group.count for group in with_devices(scenario(ONE, groups), 40).scenario.devices.groups or ()]
    assert sizes == [30, 10]
    assert [group.count for group in with_devices(scenario(ONE, groups), 1).scenario.devices.groups or ()] == [1]


def test_the_arithmetic_says_what_is_needed_and_what_there_is(scenario):
    outlook = told(scenario(ONE, "leads.count=240", "days=5"))
    assert list(arithmetic(outlook)) == [
        "240 messages are due on day 1: that needs 240 a day; the fleet gives 100 (2 devices)",
        "720 messages are due by day 5, and at 100 a day the fleet sends 500 by then",
        "220 messages come too late: the last one leaves on day 7.0 instead of 5",
    ]


def test_no_number_of_devices_shortens_the_course(scenario):
    outlook = told(scenario(ONE, "days=1.5"))
    assert hopeless(outlook)
    assert list(arithmetic(outlook)) == [
        "the last message is due on day 2.0, whatever the number of devices; the plan ends on day 1.5"
    ]
