"""Each part of the report from a run told by hand; then the page: its words, its size, names as text."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest

from dispatcher.core.outcomes import Outcome
from simulate.axis import Axis, quantiles
from simulate.driver import Fault
from simulate.evidence import LEDGER, QUOTA, stamps
from simulate.frame import faults_of
from simulate.receipts import RECEIPT, Receipts
from simulate.rehearsal import Rehearsed
from simulate.report.devices import devices
from simulate.report.funnel import Funnel, StepCount, funnels
from simulate.report.html import span
from simulate.report.lateness import behind_ideal, lateness
from simulate.report.limits import REASONS, limited_by
from simulate.report.outcomes import outcomes
from simulate.report.pace import backlog, fleet_quotas, throughput
from simulate.report.page import page, verdict
from simulate.report.run import Run
from simulate.report.series import series
from simulate.timetable import BansLifted, DeviceChange, Kill, OptOut, Switch

HOUR_S, DAY_S = 3660, 24 * 3600 + 60


def run_of(done: Rehearsed) -> Run:
    return Run(done.frame, done.receipts, done.evidence, done.outcome.as_json())


def hours(run: Run) -> Axis:
    return Axis.hours(run.frame)


# The axis --------------------------------------------------------------------------------------------------------


def test_spans_are_covered_to_the_microsecond():
    axis = Axis(0, 35, 10)
    since, until = np.array([0, 5, 12, 33]), np.array([10, 25, 13, 99])
    assert axis.covered(since, until).tolist() == [10 + 5, 10 + 1, 5, 2]
    assert (axis.count, axis.spans_us.tolist()) == (4, [10, 10, 10, 5])


@pytest.mark.parametrize(("days", "hours", "count"), [(2, 1, 48), (30, 1, 720), (60, 2, 720), (3660, 168, 523)])
def test_a_longer_run_has_wider_buckets(story, days, hours, count):
    story.hours = days * 24
    axis = Axis.hours(story.told().frame)
    assert (axis.width_us / story.HOUR_US, axis.count) == (hours, count)


def test_quantiles_are_those_of_the_nearest_rank():
    found = quantiles(np.array([0] * 10 + [2]), np.array([*range(9, -1, -1), 7]), 3, (0.5, 0.95, 1.0))
    assert found.tolist() == [[4, pytest.approx(np.nan, nan_ok=True), 7]] + 2 * [
        [9, pytest.approx(np.nan, nan_ok=True), 7]
    ]


# Its parts -------------------------------------------------------------------------------------------------------


def test_throughput_counts_what_the_gateway_accepted_beside_the_fleets_limits(story):
    run = run_of(story.message(7, 0, 0).message(7, 0, 5).message(9, 0, 7200, "rejected", visit=2).told())
    found = throughput(run, hours(run))
    assert found["sent_per_hour"].tolist() == [2, 0, 0, 0, 0]
    assert found["limit_per_hour"].tolist() == [4] * 5
    assert found["day_limit_per_hour"].tolist() == [6 / 24] * 5


def test_quotas_count_from_when_they_held(story):
    axis = hours(run_of(story.told()))
    changes = np.array([(9, story.us(7200), 10, 6), (7, story.us(-9), 2, 30), (9, story.us(-9), 1, 3)], QUOTA)
    per_hour, per_day = fleet_quotas(changes, axis)
    assert per_hour.tolist() == [3, 3, 8, 8, 8]  # no hour holds more than the day's quota
    assert per_day.tolist() == [33, 33, 36, 36, 36]


def test_the_backlog_is_the_most_that_waited_at_one_moment_of_a_bucket(story):
    story.message(7, 0, 0).message(7, 10, 20, visit=2).message(9, 15, 4000, enrolment=2)
    run = run_of(story.enrolment(3, 9, "active", 1, due=7300).told())
    assert backlog(run, hours(run)).tolist() == [2, 1, 1, 1, 1]


def test_lateness_is_that_of_what_left_in_the_hour(story):
    run = run_of(story.message(7, 0, 2).message(9, 0, 8, enrolment=2).message(9, 0, 7200, "refused", visit=2).told())
    found = lateness(run, hours(run))
    assert {name: column[0] for name, column in found.items()} == {"p50": 2, "p95": 8, "p99": 8, "max": 8}
    assert np.isnan(found["max"][1:]).all()


def test_behind_ideal_is_beside_the_same_due_moments(story):
    run = run_of(story.message(7, 0, 4).message(7, 0, 9, visit=2).message(7, 0, HOUR_S + 10, enrolment=2).told())
    found = behind_ideal(run, hours(run))
    assert (found["mean"][0], found["max"][0], found["mean"][1]) == (4, 4, 10)


def test_every_moment_of_every_device_has_one_reason(story):
    """Seven sends twice, waits for its hour, sends 30 s late; the fourth waits for its day. Nine has nothing to do."""
    story.message(7, 0, 0).message(7, 0, 5, visit=2).message(7, 0, HOUR_S + 30, enrolment=2)
    run = run_of(story.enrolment(3, 7, "active", 1, due=7200).told())
    found = limited_by(run, hours(run))
    seconds = {name: np.rint(found[name] * 2 * 3600).astype(int).tolist() for name in REASONS}
    assert seconds == {
        "pacing": [5, 0, 0, 0, 0],
        "hour": [3595, 60, 0, 0, 0],
        "day": [0, 0, 3600, 3600, 3600],
        "group_hour": [0, 0, 0, 0, 0],
        "group_day": [0, 0, 0, 0, 0],
        "in_flight": [0, 0, 0, 0, 0],
        "pass": [0, 30, 0, 0, 0],
        "nothing_due": [3600, 7110, 3600, 3600, 3600],
    }


def test_a_funnel_tells_what_was_sent_and_who_stands_where(story):
    story.message(7, 0, 0).message(7, 0, 7200, visit=2).message(9, 0, 0, enrolment=2)
    story.message(9, 0, 9, "rejected", enrolment=3)
    story.enrolment(1, 7, "completed").enrolment(2, 9, "active", 2, due=7200).enrolment(3, 9, "failed", 1)
    assert funnels(run_of(story.told())) == [
        Funnel("Fitness", 3, 1, (StepCount("a", 2, 0, 1, 0, 0), StepCount("b", 1, 1, 0, 0, 0)))
    ]


def test_devices_have_use_lateness_and_health(story):
    found = devices(run_of(story.message(7, 0, 2).message(7, 0, 8, visit=2).told()))
    assert {name: list(column) for name, column in found.items()} == {
        "name": ["seven", "nine"], "sent": [2, 0], "use": [2 / 3, 0],
        "late_s": [5, pytest.approx(np.nan, nan_ok=True)], "health": ["available", "quarantined"],
    }  # fmt: skip


def test_outcomes_are_counted_by_the_hour_of_their_slot(story):
    run = run_of(story.message(7, 0, 0, "refused").message(7, 60, 4000, attempt=2).told())
    assert {name: column.tolist() for name, column in outcomes(run, hours(run)).items()} == {
        "accepted": [0, 1, 0, 0, 0],
        "refused": [1, 0, 0, 0, 0],
    }


# The page --------------------------------------------------------------------------------------------------------


def test_a_run_in_which_nothing_happened_has_a_report_too(story):
    html = page(run_of(story.told()), "dripline simulate --leads 0")
    assert "Nobody was enrolled." in html
    assert "No faults struck this run" in html


def test_the_headline_says_how_it_ended(story):
    story.message(7, 0, 0).enrolment(1, 7, "completed")
    assert verdict(run_of(story.told())) == {
        "finished": True, "broken": 0, "last": datetime(2026, 1, 5, 0, 0, 0, 500_000, tzinfo=UTC), "took_s": 0.5,
    }  # fmt: skip
    assert "Finished in 0.5 s: every invariant held" in page(run_of(story.told()), "")
    story.enrolment(2, 9, "active", 1, due=0)
    assert "Not finished within 5.0 h: every invariant held" in page(run_of(story.told()), "")
    story.violations = replace(story.violations, early=3)
    assert "3 violations" in page(run_of(story.told()), "")


def test_names_and_faults_are_text_whatever_they_hold(story):
    story.name = "</script><img src=x onerror=alert(1)>"
    story.faults = [Fault(story.us(60), "silent", "<b>shard 1</b>", "</script>no answer")]
    story.message(7, 0, 0).enrolment(1, 7, "completed")
    html = page(run_of(story.told()), "dripline simulate --sequences '<i>.yaml'")
    assert "<img" not in html
    assert "<b>" not in html
    assert "<i>" not in html
    assert html.count("</script>") == html.count("<script")
    assert "&lt;/script&gt;&lt;img src=x onerror=alert(1)&gt;" in html


def test_where_there_is_no_ideal_schedule_the_page_says_why(story):
    done = story.message(7, 0, 0).enrolment(1, 7, "completed").told()
    why = "devices go, come or change on the way"
    run = run_of(done)
    figures = run.figures | {"optimality_gap_s": None, "optimality_gap_missing": why, "binding_limit": None}
    told = page(replace(run, figures=figures), "dripline simulate")
    assert f"not computed: {why}" in told
    assert "Behind the ideal schedule" not in told


def test_what_a_scenario_does_stands_among_the_faults_in_the_order_of_time():
    broke = Fault(5, "silent", "shard 1", "no answer within the tick")
    planned = [
        Kill(9, "shard-0"),
        DeviceChange(2, ("a", "b"), "offline", "power cut", 20),
        Switch(7, "Fitness", False),
        BansLifted(1, ("a",)),
        OptOut(20, 0.5),
    ]
    assert faults_of([broke], planned, 10) == (
        Fault(2, "offline", "2 devices", "power cut, 20 an hour"),
        broke,
        Fault(7, "pause", "Fitness", ""),
        Fault(9, "kill", "shard-0", ""),
    )


def test_the_page_allows_its_own_scripts_only_and_names_no_other_place(story):
    html = page(run_of(story.message(7, 0, 0).told()), "")
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', html)
    assert policy is not None
    assert "default-src &#39;none&#39;" in policy[1]
    assert policy[1].count("sha256-") == 4  # three scripts and the styles
    assert not re.findall(r'(?:src|href)="(?!#)', html)


def test_thirty_days_of_3000_devices_stay_under_a_megabyte(story):
    run = large(story, 300_000)
    html = page(run, "dripline simulate --days 30")
    assert 100_000 < len(html.encode()) < 1_000_000
    found = series(run)
    assert (found["hours"]["count"], len(found["devices"]["name"])) == (720, 3000)


def large(story, messages: int) -> Run:
    """30 days of 3000 devices, messages at random moments with random lateness, some of them refused."""
    dice = np.random.default_rng(1)
    story.hours = 30 * 24
    done = story.message(7, 0, 0).enrolment(1, 7, "completed").told()
    frame = done.frame
    numbers = np.arange(1, 3001, dtype=np.int32)
    names = [f"device-{number:06}" for number in numbers]
    many = np.ones(len(numbers), np.int32)
    fleet = replace(
        frame.fleet, number=numbers, shard=0 * many, quota_per_hour=80 * many, quota_per_day=800 * many,
        in_flight_max=50 * many, min_gap_s=np.full(len(numbers), 5.0), available=many == 1, left=many == 0,
        idempotent=many == 1, device_id=[frame.fleet.device_id[0]] * len(numbers), name=names,
        gateway_url=[None] * len(numbers), gateway_token=[None] * len(numbers),
    )  # fmt: skip
    due_us = np.sort(dice.integers(frame.start_us, frame.end_us - story.HOUR_US, messages))
    slot_us = due_us + dice.integers(0, story.HOUR_US, messages)
    receipts, ledger = np.zeros(messages, RECEIPT), np.zeros(messages, LEDGER)
    device, answer = dice.integers(1, 3001, messages), dice.choice([Outcome.ACCEPTED, Outcome.REFUSED], messages)
    receipts["slot_us"], receipts["arrived_us"], receipts["device"] = slot_us, slot_us + 1, device
    receipts["answer"], ledger["device"], ledger["outcome"] = answer, device, answer + 1
    ledger["due"], ledger["reserved"] = stamps(due_us), stamps(slot_us)
    evidence = replace(
        done.evidence, ledger=ledger, quotas=np.array([(n, frame.start_us, 80, 800) for n in numbers], QUOTA),
        devices={int(n): (f"id-{n}", name) for n, name in zip(numbers, names, strict=True)},
        health=dict.fromkeys(numbers.tolist(), "available"),
    )  # fmt: skip
    kept = Receipts(receipts, done.receipts.steps)
    return Run(replace(frame, fleet=fleet), kept, evidence, done.outcome.as_json())


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.04, "0.0 s"), (59, "59.0 s"), (90, "1.5 min"), (7200, "2.0 h"), (172_800, "2.0 days"), (None, "–")],
)
def test_spans_have_the_unit_people_would_choose(seconds, said):
    assert span(seconds) == said
