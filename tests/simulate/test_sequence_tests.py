"""Tests of sequences: what holds passes; what does not is told with line, expectation and what happened instead."""

from __future__ import annotations

import asyncio
import json
import math
import re
import sys
from pathlib import Path

import pytest

from dispatcher.cli.main import main
from dispatcher.clock import READINGS, DatabaseClock
from dispatcher.coordinator_loop import CoordinatorLoop
from dispatcher.errors import InputError
from dispatcher.shard_loop import ShardLoop
from simulate.memory_store import MemoryCoordinatorStore
from simulate.prove.virtual_loop import VirtualLoop
from simulate.scenario.reference import tables
from simulate.sequence_test.expectations import failures, timeline
from simulate.sequence_test.gateway import Attempt
from simulate.sequence_test.load import load
from simulate.sequence_test.schema import SequenceTests
from simulate.sequence_test.times import told
from simulate.sequence_test.world import SETTINGS, Act, World, play

ROOT = Path(__file__).parents[2]
SEQUENCES = """\
sequences:
  - name: Course
    steps:
      - {trigger: hello, text: "Hello {{ name | default('you') }} in {{ city | default('town') }}"}
      - {trigger: more, text: More, delay_hours: 2}
      - {trigger: bye, text: Bye}
  - name: News
    requires_opt_in: true
    reentry: never
    steps:
      - {trigger: news, text: "News for {{ name }}"}
tests:
"""


def loaded(folder: Path, *tests: str) -> Path:
    """A file with these tests, each in braces."""
    path = folder / "course.yaml"
    path.write_text(SEQUENCES + "".join(f"  - {{name: test {n}, {test}}}\n" for n, test in enumerate(tests)))
    return path


def broken(folder: Path, test: str) -> list[str]:
    """What does not come true of a test."""
    [case] = load([loaded(folder, test)]).cases
    return [str(failure) for failure in failures(case.said, play(case.said, case.sequences))]


def lines(folder: Path, test: str, limit: str = "") -> list[str]:
    """What happened in a test, all leads after each other; ``limit`` stands in the first sequence."""
    path = loaded(folder, test)
    path.write_text(path.read_text().replace("    steps:", f"{limit}    steps:", 1))
    [case] = load([path]).cases
    played = play(case.said, case.sequences)
    return [" ".join(str(line).split()) for person in played.people for line in timeline(person, played)]


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["dripline", "test", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert isinstance(ended.value.code, int)
    return ended.value.code


# Expectations ----------------------------------------------------------------------------------------------------

ANN = "lead: {name: Ann, triggers: [hello]}"
EXPECTATIONS = {
    "messages": ("messages: [hello, more, bye]", "messages: [hello, bye]", "expected bye, but more arrived at 24h"),
    "too few": ("messages: [hello, more, bye]", "messages: [hello, more, bye, hello]",
                "expected hello, but nothing more arrived"),
    "too many": ("messages: [hello, more, bye]", "messages: [hello, more]",
                 "expected no more messages, but bye arrived at 26h"),
    "none": ("sequence: News, messages: []", "messages: []", "expected no more messages, but hello arrived at 0h"),
    "at": ("messages: [{step: hello, at: 0h}, {step: more, at: day 2}, {step: bye, at: day 2 02:00}]",
           "messages: [hello, {step: more, at: 12h}, bye]", "expected more at 12h, but it arrived at 24h"),
    "after": ("messages: [hello, {step: more, after: P1D}, {step: bye, after: 120min}]",
              "messages: [hello, more, {step: bye, after: 24h}]", "expected bye after 24h, but it arrived after 2h"),
    "within": ("within: 12h, messages: [hello, {step: more, at: 12h}, bye]",
               "within: 11h 59min, messages: [hello, {step: more, at: 12h}, bye]",
               "expected more at 12h, but it arrived at 24h"),
    "within, of a message": ("messages: [hello, {step: more, at: 23h, within: 1h}, bye]",
                             "within: 1h, messages: [hello, {step: more, at: 23h, within: 59min}, bye]",
                             "expected more at 23h, but it arrived at 24h"),
    "text": ("messages: [{step: hello, text: Hello Ann in town}, more, bye]",
             "messages: [{step: hello, text: Hello Ann}, more, bye]",
             "expected hello to say 'Hello Ann', but it says 'Hello Ann in town'"),
    "contains": ("messages: [{step: hello, contains: Ann in}, more, bye]",
                 "messages: [{step: hello, contains: Bo}, more, bye]",
                 "expected hello to contain 'Bo', but it says 'Hello Ann in town'"),
    "count": ("count: 3", "count: 1", "expected 1 message, but 3 messages arrived"),
    "never": ("never: [news]", "never: [news, bye]", "expected bye never to be sent, but it was at 26h"),
    "enrolments": ("enrolments: 1", "enrolments: 0", "expected no enrolment, but there is 1"),
    "state": ("state: completed", "state: active", "expected active, but Course is completed"),
    "state of nothing": ("sequence: Course, state: completed", "sequence: News, state: completed",
                         "expected completed, but the lead was never enrolled"),
    "triggers": ("triggers: []", "triggers: [hello]", "expected the lead to carry hello, but it carries none"),
}  # fmt: skip


@pytest.mark.parametrize("name", EXPECTATIONS)
def test_an_expectation_comes_true_or_is_told(tmp_path, name):
    true, false, said = EXPECTATIONS[name]
    assert broken(tmp_path, f"{ANN}, expect: {{{true}}}") == []
    assert broken(tmp_path, f"{ANN}, expect: {{{false}}}") == [said]


def test_a_cause_is_part_of_why_an_enrolment_has_ended(tmp_path):
    test = f"{ANN}, events: [{{at: 1h, opt_out: true}}], expect: {{state: stopped, because: CAUSE}}"
    assert broken(tmp_path, test.replace("CAUSE", "Opted")) == []
    said = "expected stopped because 'tired', but Course is stopped at more (opted out)"
    assert broken(tmp_path, test.replace("CAUSE", "tired")) == [said]


def test_an_expectation_without_a_lead_is_one_of_every_lead(tmp_path):
    leads = "leads: [{name: Ann, triggers: [hello]}, {name: Bo, triggers: [hello, news], opted_in: true}]"
    assert broken(tmp_path, f"{leads}, expect: {{sequence: Course, state: completed, count: 3}}") == []
    assert broken(tmp_path, f"{leads}, expect: [{{lead: Ann, count: 3}}, {{lead: Bo, count: 4}}]") == []
    assert broken(tmp_path, f"{leads}, expect: {{count: 4, enrolments: 1}}") == [
        "Ann: expected 4 messages, but 3 messages arrived",
        "Bo: expected 1 enrolment, but there are 2",
    ]


# What happens ----------------------------------------------------------------------------------------------------

HAPPENINGS = {
    "an opt-out": ("{at: 1h, opt_out: true}", ["1h opts out", "end Course: stopped at more (opted out)"]),
    "an opt-in": (
        "{at: 1h, opt_in: true}",
        ["1h opts in", "24h more 'More'", "26h bye 'Bye'", "end Course: completed"],
    ),
    "a tag": (
        "{at: 1h, tag: vip}",
        ["1h gets the trigger vip", "24h more 'More'", "26h bye 'Bye'", "end Course: completed"],
    ),
    "a trigger off": (
        "{at: 25h, untag: hello}",
        ["24h more 'More'", "25h loses the trigger hello", "end Course: stopped at bye (trigger removed)"],
    ),
    "a pause for good": ("{at: 1h, pause: Course}", ["1h 'Course' is paused", "end Course: active at more"]),
    "a pause": (
        "{at: 1h, pause: Course}, {at: 5d, resume: Course}",
        [
            "1h 'Course' is paused",
            "5d 'Course' is resumed",
            "5d more 'More'",
            "5d 2h bye 'Bye'",
            "end Course: completed",
        ],
    ),
    "the trigger once more": (
        "{at: 1d, opt_out: true}, {at: 2d, opt_in: true}, {at: 2d, untag: hello}, {at: 3d, tag: hello}",
        ["24h opts out", "48h opts in", "48h loses the trigger hello", "3d gets the trigger hello",
         "3d hello 'Hello Ann in town'", "4d more 'More'", "4d 2h bye 'Bye'",
         "end Course: stopped at more (opted out)", "end Course: completed"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HAPPENINGS)
def test_what_happens_to_a_lead_takes_effect_at_its_moment(tmp_path, name):
    events, then = HAPPENINGS[name]
    before = ["0h comes with hello", "0h hello 'Hello Ann in town'"]
    assert lines(tmp_path, f"{ANN}, events: [{events}], expect: {{count: 0}}") == before + then


def test_a_changed_attribute_is_said_from_then_on(tmp_path):
    lead = "lead: {triggers: [hello], attributes: {city: Ipoh}, at: 2h}"
    events = "events: [{at: 3h, attributes: {city: Melaka}}, {at: 3d, tag: hello}]"
    assert [line for line in lines(tmp_path, f"{lead}, {events}, expect: {{count: 0}}") if "Hello" in line] == [
        "2h hello 'Hello you in Ipoh'",
        "3d hello 'Hello you in Melaka'",
    ]


def test_a_lead_is_enrolled_by_exact_triggers_consent_and_policy(tmp_path):
    test = "lead: {LEAD}, events: [{at: 1h, untag: news}, {at: 2h, tag: news}], expect: {count: 0}"
    assert lines(tmp_path, test.replace("LEAD", "triggers: [new]")) == [
        "0h comes with new", "1h loses the trigger news", "2h gets the trigger news",
        "end was never enrolled: no entry step has the trigger new",
    ]  # fmt: skip
    assert lines(tmp_path, test.replace("LEAD", "triggers: [news], name: Ann, opted_in: true, opted_out: true"))[
        -1
    ] == ("end was never enrolled")
    twice = test.replace("LEAD", "triggers: [news], name: Ann, opted_in: true")
    assert [line for line in lines(tmp_path, twice) if "News" in line] == [
        "0h news 'News for Ann'",
        "end News: completed",
    ]


HELLO = "hello 'Hello Ann in town'"
GATEWAY = {
    "rejected": (1, ["0h hello rejected", "end Course: failed at hello (gateway: rejected)"]),
    "opted_out": (1, ["0h hello refused: the recipient has opted out", "end Course: stopped at hello (opted out)"]),
    "refused": (2, ["0h hello refused", "59s hello refused", f"5min 2s {HELLO}", "end Course: active at more"]),
    "throttled": (2, ["0h hello throttled", "1min hello throttled", f"2min {HELLO}", "end Course: active at more"]),
    "in_doubt": (
        2,
        [
            "0h hello in doubt, but it arrived: 'Hello Ann in town'",
            "35s hello in doubt",
            "1min 10s hello asked again: it had arrived",
            "end Course: active at more",
        ],
    ),
}


@pytest.mark.parametrize("answer", GATEWAY)
def test_what_the_gateway_answers_is_what_the_engine_acts_upon(tmp_path, answer):
    times, then = GATEWAY[answer]
    rule = f"{{step: hello, answer: {answer}, times: {times}}}"
    said = lines(tmp_path, f"{ANN}, until: 20h, gateway: [{rule}], expect: {{count: 0}}")
    assert said == ["0h comes with hello", *then]


def test_a_gateway_that_goes_on_refusing_ends_the_enrolment(tmp_path):
    test = f"{ANN}, gateway: [{{step: hello, answer: refused, times: 99}}], expect: {{count: 0}}"
    assert [line for line in lines(tmp_path, test) if "refused" in line][-2:] == [
        "5h 57min 5s hello refused",
        "end Course: failed at hello (gateway: refused)",
    ]


def test_a_message_in_doubt_is_held_where_the_gateway_knows_no_message_again(tmp_path):
    test = f"{ANN}, device: {{idempotent: false}}, gateway: [{{step: more, answer: in_doubt}}], expect: EXPECT"
    expect = "{messages: [hello, more], never: [bye], state: in_doubt, because: in_doubt}"
    assert broken(tmp_path, test.replace("EXPECT", expect)) == []


def test_an_answer_to_one_lead_is_not_one_to_others(tmp_path):
    leads = "leads: [{name: Ann, triggers: [hello]}, {name: Bo, triggers: [hello]}]"
    gateway = "gateway: [{step: more, lead: Bo, answer: rejected}]"
    expect = "expect: [{lead: Ann, state: completed}, {lead: Bo, state: failed, messages: [hello]}]"
    assert broken(tmp_path, f"{leads}, {gateway}, {expect}") == []


def test_the_device_keeps_its_quotas_and_its_gap(tmp_path):
    leads = f"leads: [{', '.join(f'{{name: L{n}, triggers: [hello]}}' for n in range(3))}]"
    hour = ", ".join(f"{{lead: L{n}, messages: [{{step: hello, at: {n}h, within: 3min}}]}}" for n in range(3))
    assert broken(tmp_path, f"{leads}, device: {{quota_per_hour: 1}}, until: 3h, expect: [{hour}]") == []
    gap = ", ".join(f"{{lead: L{n}, messages: [{{step: hello, at: {n * 9}min, within: 1s}}]}}" for n in range(3))
    assert broken(tmp_path, f"{leads}, device: {{min_gap_s: 540}}, until: 3h, expect: [{gap}]") == []


def test_a_test_begins_when_it_says_and_ends_before_its_end(tmp_path):
    test = "start: 2026-03-02T09:30:00, lead: {triggers: [hello]}, until: UNTIL, expect: {messages: [MESSAGES]}"
    times = "{step: hello, at: day 1 09:30}, {step: more, at: day 2}, {step: bye, at: day 2 11:30}"
    assert broken(tmp_path, test.replace("UNTIL", "30h").replace("MESSAGES", times)) == []
    assert broken(tmp_path, test.replace("UNTIL", "26h").replace("MESSAGES", "hello, more")) == []


# The loops of production -----------------------------------------------------------------------------------------


def lived(path: Path) -> list[str]:
    """What left in the first test of a file when the loops of production run by themselves, a second at a time."""
    [case] = load([path]).cases
    world = World(case.said, case.sequences)
    loop = VirtualLoop()

    def wall_us() -> int:
        world.now_us = case.said.begin_us + round(loop.time() * 1e6)
        return world.now_us

    async def live() -> None:
        clocks = [DatabaseClock(SETTINGS.skew_s, wall_us) for _ in range(2)]
        for clock in clocks:
            await clock.follow(MemoryCoordinatorStore(world.database, "test").seat.wall_us, READINGS)
        assert await world.coordinator.lead()
        await world.coordinator.take_over(clocks[0].now_us(), 1)
        await world.shard.take_over(clocks[1].now_us())
        shard = ShardLoop(world.shard, clocks[1], SETTINGS)

        async def ping(_: int) -> int:
            return shard.epoch

        async def replace(_: int) -> None:
            raise AssertionError("a shard is lost")

        shard.start()
        CoordinatorLoop(world.coordinator, clocks[0], SETTINGS, ping=ping, replace=replace).start()
        while True:
            wall_us()
            world.act()
            await asyncio.sleep(0.5)

    world.database.wall_us = wall_us
    loop.create_task(live())
    loop.run_until(lambda: wall_us() >= world.end_us, math.inf)
    loop.close()
    assert loop.errors == []
    return told_by(world.story)


def told_by(story: list[Act | Attempt]) -> list[str]:
    """Attempts, each with its minute."""
    begin_us = min(each.at_us for each in story) // 60_000_000
    return [
        f"{round(each.at_us / 60e6) - begin_us} min {each.phone[-1]} {each.step} {each.answer.label} {each.text}"
        for each in story
        if isinstance(each, Attempt)
    ]


LIVED = {
    "a course": "until: 4h",
    "an opt-out": "until: 4h, events: [{at: 2h, lead: Ann, opt_out: true}]",
    "a pause": "until: 3h, events: [{at: 30min, pause: Course}, {at: 2h, resume: Course}]",
    "refusals": "until: 50min, gateway: [{step: hello, lead: Bo, answer: refused, times: 4}]",
    "doubts": "until: 90min, gateway: [{step: hello, answer: in_doubt, times: 2}]",
    "a gap": "until: 50min, device: {min_gap_s: 600}",
}


@pytest.mark.parametrize("name", LIVED)
def test_what_is_played_is_what_the_loops_of_production_do(tmp_path, name):
    leads = "leads: [{name: Ann, triggers: [hello]}, {name: Bo, triggers: [hello]}]"
    path = loaded(tmp_path, f"{leads}, {LIVED[name]}, expect: {{count: 0}}")
    path.write_text(path.read_text().replace("'town') }}\"}", "'town') }}\", delay_hours: 1}"))
    [case] = load([path]).cases
    played = told_by(play(case.said, case.sequences).story)
    assert len(played) >= 2
    assert lived(path) == played


@pytest.mark.parametrize(
    ("then", "resumed", "became"),
    [
        ("send", "30h", ["30h more 'More'", "32h bye 'Bye'"]),
        ("skip", "30h", ["30h more is skipped, too late", "30h bye 'Bye'"]),
        ("skip", "5d", ["5d more is skipped, too late", "5d bye is skipped, too late"]),
        ("shift", "5d", ["5d more moves on by 5 days, too late", "6d more 'More'", "6d 2h bye 'Bye'"]),
        ("shift", "28h", ["28h more 'More'", "30h bye 'Bye'"]),
    ],
)
def test_what_a_pause_made_too_late_is_sent_skipped_or_shifted(tmp_path, then, resumed, became):
    test = f"{ANN}, events: [{{at: 1h, pause: Course}}, {{at: {resumed}, resume: Course}}], expect: {{count: 0}}"
    told = lines(tmp_path, test, f"    max_lateness: {{after: 5h, then: {then}}}\n")
    assert told[told.index(f"{resumed} 'Course' is resumed") + 1 :] == [*became, "end Course: completed"]


# Files and the command -------------------------------------------------------------------------------------------


def test_the_examples_come_true(monkeypatch, capsys):
    assert run(monkeypatch, ROOT / "examples/tests") == 0
    said = capsys.readouterr()
    cases = load([ROOT / "examples/tests"]).cases
    assert said.out.startswith(f"{len(cases)} passed in ")
    assert len(cases) > 20
    assert said.err == ""


def test_a_failure_names_file_and_lines_and_tells_what_happened(tmp_path, monkeypatch, capsys):
    path = loaded(tmp_path, f"{ANN}, expect: {{count: 3}}", f"{ANN}, expect: {{count: 2, messages: [hello, bye]}}")
    figures = tmp_path / "figures.json"
    assert run(monkeypatch, path, "--json", figures) == 1
    *said, summary = capsys.readouterr().out.splitlines()
    assert said == [
        f"FAILED {path}:14  test 1",
        "  line 14: expected bye, but more arrived at 24h",
        "  line 14: expected 2 messages, but 3 messages arrived",
        "  what happened:",
        "    0h           comes with hello",
        "    0h           hello  'Hello Ann in town'",
        "    24h          more  'More'",
        "    26h          bye  'Bye'",
        "    end          Course: completed",
    ]
    assert summary.startswith("1 passed, 1 failed in ")
    told = json.loads(figures.read_text())
    assert (told["passed"], told["failed"]) == (1, 1)
    good, bad = told["tests"]
    assert good == {"file": str(path), "line": 13, "name": "test 0", "passed": True}
    assert bad["failures"][0] == {"line": 14, "lead": None, "problem": "expected bye, but more arrived at 24h"}
    assert bad["timelines"][0]["lines"][-2:] == [
        {"at_s": 93_600.0, "what": "bye  'Bye'"}, {"at_s": None, "what": "Course: completed"},
    ]  # fmt: skip


def test_only_selected_tests_are_played(tmp_path, monkeypatch, capsys):
    path = loaded(tmp_path, f"{ANN}, expect: {{count: 3}}", f"{ANN}, expect: {{count: 2}}")
    assert run(monkeypatch, path, "-k", "TEST 0") == 0
    assert capsys.readouterr().out.startswith("1 passed in ")
    assert run(monkeypatch, path, "-k", "nothing") == 2
    assert capsys.readouterr().err == "error: --select: no test has 'nothing' in its name - there are 2\n"


def test_a_folder_is_searched_and_what_is_about_something_else_is_named(tmp_path, monkeypatch, capsys):
    below = tmp_path / "below"
    below.mkdir()
    path = loaded(below, f"{ANN}, expect: {{count: 3}}")
    (tmp_path / ".hidden").mkdir()
    loaded(tmp_path / ".hidden", f"{ANN}, expect: {{count: 0}}")
    (tmp_path / "sequences.yml").write_text("sequences: [{name: A, steps: [{trigger: a, text: A}]}]")
    assert run(monkeypatch, tmp_path, path) == 0
    said = capsys.readouterr()
    assert said.out.startswith("1 passed in ")
    assert said.err == f"{tmp_path / 'sequences.yml'}: no tests in it\n"
    path.unlink()
    assert run(monkeypatch, tmp_path) == 2
    assert "there are no tests" in capsys.readouterr().err


def test_a_mistyped_file_in_a_folder_is_not_passed_over(tmp_path):
    loaded(tmp_path, f"{ANN}, expect: {{count: 3}}").write_text("sequences: []\ntest: []\n")
    with pytest.raises(InputError, match="unknown key 'test' - did you mean 'tests'"):
        load([tmp_path])


def test_a_test_is_the_same_every_time_whatever_the_environment_says(tmp_path, monkeypatch):
    test = f"{ANN}, gateway: [{{step: hello, answer: refused, times: 4}}], expect: {{count: 0}}"
    first = lines(tmp_path, test)
    monkeypatch.setenv("DRIPLINE_RETRY_BASE_S", "1000")
    assert first == lines(tmp_path, test)
    assert [line.split(" hello")[0] for line in first if "refused" in line] == ["0h", "59s", "5min 2s", "48min 4s"]


def test_times_are_told_as_they_are_written():
    second_us, hour_us = 1_000_000, 3_600_000_000
    spans = (0, second_us, 90 * second_us, hour_us, 36 * hour_us, 72 * hour_us, 80 * hour_us)
    assert [told(span) for span in spans] == ["0h", "1s", "1min 30s", "1h", "36h", "3d", "3d 8h"]


def test_the_page_shows_what_the_command_says(tmp_path, monkeypatch, capsys):
    page = (ROOT / "docs/sequence-tests.md").read_text()
    shown = dict(re.findall(r"^```(yaml|text)\n(.*?)^```", page, re.MULTILINE | re.DOTALL))
    monkeypatch.chdir(tmp_path)
    path = Path("fitness.yaml")
    path.write_text(shown["yaml"].replace("../fitness.yaml", str(ROOT / "examples/fitness.yaml")))
    assert run(monkeypatch, path) == 0
    path.write_text(
        path.read_text().replace("[fitness_start]\n", "[fitness_start, {step: fitness_day2, after: 24h}]\n")
    )
    capsys.readouterr()
    assert run(monkeypatch, path) == 1
    *said, summary = capsys.readouterr().out.splitlines()
    assert said == shown["text"].splitlines()[:-1]
    assert summary.startswith("0 passed, 1 failed in ")


def test_the_page_of_keys_is_what_the_schema_says():
    page = (ROOT / "docs/sequence-tests.md").read_text()
    said = "print them with: python -m simulate.sequence_test.reference"
    assert tables(SequenceTests).strip() in page, said
