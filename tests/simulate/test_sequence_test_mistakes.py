"""Every mistake in a test file is one line: file and line, the way to the key, and what was expected."""

from __future__ import annotations

import sys

import pytest

from dispatcher.cli.main import main
from dispatcher.errors import InputError
from simulate.sequence_test.load import load

SOUND = """\
sequences:
  - name: Greeting
    steps:
      - {trigger: hello, text: Hello}
      - {trigger: bye, text: Bye}
tests:
  - name: one
    lead: {name: Ann, triggers: [hello]}
    until: 3d
    gateway:
      - {step: bye, answer: refused, times: 2}
    events:
      - {at: day 1 10:00, lead: Ann, tag: vip}
      - {at: 30h, pause: Greeting}
    expect:
      messages:
        - {step: hello, at: 0h, text: Hello}
        - {step: bye, after: 24h, contains: By}
      never: [bye]
      state: completed
      because: trigger
  - name: two
    leads:
      - {name: Ann}
      - {name: Bo, at: 2h}
    expect:
      - {lead: Ann, count: 0}
      - {sequence: Greeting, enrolments: 0}
"""

MISTAKES = {
    "unknown key": ("tests:\n", "test:\n", 6, "unknown key 'test' - did you mean 'tests'?"),
    "unknown key of a test": ("until: 3d", "untill: 3d", 9, "tests.0: unknown key 'untill' - did you mean 'until'?"),
    "unknown key of a lead": ("name: Bo, at", "nmae: Bo, at", 25, "tests.1.leads.1: unknown key 'nmae' - did you mean"),
    "unknown expectation": (
        "never: [bye]",
        "nevr: [bye]",
        19,
        "tests.0.expect: unknown key 'nevr' - did you mean 'never'?",
    ),
    "unknown expectation in a list": (
        "count: 0",
        "cuont: 0",
        27,
        "tests.1.expect.0: unknown key 'cuont' - did you mean",
    ),
    "unknown key of a message": (
        "text: Hello}\n        -",
        "txt: H}\n        -",
        17,
        "tests.0.expect.messages.0: unknown key 'txt' - did you mean 'text'?",
    ),
    "what the engine does not know": (
        "tag: vip",
        "delivered: yes",
        13,
        "tests.0.events.0: unknown key 'delivered' - known are at,",
    ),
    "a reply without a text": (
        "tag: vip",
        "reply: ''",
        13,
        "tests.0.events.0.reply: string should have at least 1 character",
    ),
    "a reply of nobody": (
        "lead: Ann, tag: vip",
        "lead: Bo, reply: STOP",
        13,
        "tests.0.events.0.lead: no lead of this test is called 'Bo' -",
    ),
    "a reply beside something else": (
        "tag: vip",
        "tag: vip, reply: STOP",
        13,
        "tests.0.events.0: exactly one of opt_out, opt_in, reply, tag, untag, attributes, pause, resume belongs beside",
    ),
    "a step nobody knows": (
        "{step: bye, after",
        "{step: by, after",
        18,
        "tests.0.expect.messages.1.step: no step has the trigger 'by' - did you mean 'bye'?",
    ),
    "a step that is never sent": (
        "never: [bye]",
        "never: [bya]",
        19,
        "tests.0.expect.never.0: no step has the trigger 'bya'",
    ),
    "an answer to no step": (
        "{step: bye, answer",
        "{step: bay, answer",
        11,
        "tests.0.gateway.0.step: no step has the trigger",
    ),
    "an unknown answer": (
        "answer: refused",
        "answer: lost",
        11,
        "tests.0.gateway.0.answer: input should be 'rejected', 'opted_",
    ),
    "an answer to nobody": (
        "answer: refused",
        "answer: refused, lead: An",
        11,
        "tests.0.gateway.0.lead: no lead of this test is called 'An' - did you mean 'Ann'?",
    ),
    "an event of nobody": (
        "lead: Ann, tag",
        "lead: Bo, tag",
        13,
        "tests.0.events.0.lead: no lead of this test is called 'Bo' -",
    ),
    "an expectation of nobody": (
        "lead: Ann, count",
        "lead: Al, count",
        27,
        "tests.1.expect.0.lead: no lead of this test is",
    ),
    "a lead without a name": (
        "lead: {name: Ann, ",
        "lead: {",
        13,
        "tests.0.events.0.lead: no lead of this test is called 'Ann' - give the lead a name",
    ),
    "an unknown sequence": (
        "pause: Greeting",
        "pause: Greetings",
        14,
        "tests.0.events.1.pause: no sequence is called 'Greetings' - did you mean 'Greeting'?",
    ),
    "an unknown sequence is expected": (
        "sequence: Greeting",
        "sequence: Greet",
        28,
        "tests.1.expect.1.sequence: no sequence is",
    ),
    "an event that is two": (
        "tag: vip",
        "tag: vip, opt_out: true",
        13,
        "tests.0.events.0: exactly one of opt_out, opt_in, reply, tag",
    ),
    "an event that is none": (", tag: vip", "", 13, "tests.0.events.0: exactly one of opt_out, opt_in, reply, tag"),
    "a pause for one lead": (
        "pause: Greeting",
        "pause: Greeting, lead: Ann",
        14,
        "tests.0.events.1.lead: a sequence is paused and resumed for everybody - leave it out",
    ),
    "a time without a unit": (
        "at: 30h",
        "at: 30",
        14,
        "tests.0.events.1.at: a time such as 36h, 2d, day 2 or day 2 10:30 belongs",
    ),
    "a time that is none": (
        "after: 24h",
        "after: tomorrow",
        18,
        "tests.0.expect.messages.1.after: a time such as 90min, 36h",
    ),
    "a day that is no span": (
        "after: 24h",
        "after: day 2",
        18,
        "tests.0.expect.messages.1.after: a time such as 90min, 36h",
    ),
    "a day before the first": (
        "at: 30h",
        "at: day 0",
        14,
        "tests.0.events.1.at: days are counted from 1 to 3660, not 0",
    ),
    "an ISO time that is none": (
        "until: 3d",
        "until: P3X",
        9,
        "tests.0.until: a time such as 36h, 2d, day 2 or day 2 10:30 bel",
    ),
    "more than ten years": (
        "until: 3d",
        "until: 99999d",
        9,
        "tests.0.until: a time such as 36h, 2d, day 2 or day 2 10:30 belo",
    ),
    "an event after the end": ("at: 30h", "at: 72h", 14, "tests.0.events.1.at: 72h does not lie before the end, 3d"),
    "a message after the end": (
        "at: 0h, t",
        "at: 4d, t",
        17,
        "tests.0.expect.messages.0.at: 4d does not lie before the end, 3d",
    ),
    "an event before the beginning": (
        "until: 3d",
        "start: 2026-01-05T12:00:00",
        13,
        "tests.0.events.0.at: day 1 10:00 lies before the beginning, 2026-01-05 12:00",
    ),
    "an event before its lead comes": (
        "[hello]}\n    until",
        "[hello], at: 11h}\n    until",
        13,
        "tests.0.events.0.at: the lead 'Ann' comes only at 11h",
    ),
    "at and after": (
        "at: 0h, t",
        "at: 0h, after: 1h, t",
        17,
        "tests.0.expect.messages.0.after: at and after exclude each other - leave one of them out",
    ),
    "text and contains": (
        "text: Hello}\n        -",
        "text: Hello, contains: H}\n        -",
        17,
        "tests.0.expect.messages.0.contains: text and contains exclude each other",
    ),
    "a tolerance of nothing": (
        "after: 24h, c",
        "within: 1h, c",
        18,
        "tests.0.expect.messages.1.within: no time is expected that could be off - give at or after",
    ),
    "nothing is expected": (
        ", count: 0",
        "",
        27,
        "tests.1.expect.0: nothing is expected: one of messages, count, never,",
    ),
    "a cause of nothing": (
        "      state: completed\n",
        "",
        20,
        "tests.0.expect.because: a cause says why the state is what",
    ),
    "an unknown state": (
        "state: completed",
        "state: done",
        20,
        "tests.0.expect.state: input should be 'active', 'completed',",
    ),
    "triggers of a sequence": (
        "enrolments: 0",
        "triggers: []",
        28,
        "tests.1.expect.1.triggers: a lead carries triggers, whatever",
    ),
    "no lead": (
        "    lead: {name: Ann, triggers: [hello]}\n",
        "",
        7,
        "tests.0: exactly one of lead and leads belongs here",
    ),
    "lead and leads": (
        "    leads:",
        "    lead: {}\n    leads:",
        22,
        "tests.1: exactly one of lead and leads belongs here",
    ),
    "two leads of one name": (
        "name: Bo",
        "name: Ann",
        25,
        "tests.1.leads.1.name: two leads are called 'Ann' - rename one",
    ),
    "one of several without a name": ("name: Bo, ", "", 25, "tests.1.leads.1: one of several leads needs a name"),
    "two tests of one name": (
        "name: two",
        "name: one",
        22,
        "tests.1.name: two tests are called 'one' - rename one of them",
    ),
    "no test": (SOUND[SOUND.index("tests:") :], "tests: []", 6, "tests: list should have at least 1 item"),
    "no sequence file": (
        "  - name: Gr",
        "  - gone.yaml\n  - name: Gr",
        2,
        "sequences.0: {folder}/gone.yaml: no such file - files are",
    ),
    "a sequence that leads nowhere": (
        "text: Hello}",
        "text: Hello, next: x}",
        2,
        "sequences.0: sequence 'Greeting', step 'hello'",
    ),
    "triggers that do not fit": (
        "triggers: [hello]",
        f"triggers: [{'x' * 1001}]",
        8,
        "tests.0.lead.triggers: with 'xxx",
    ),
    "a date for an attribute": (
        "name: Bo, ",
        "name: Bo, attributes: {born: 2001-02-03}, ",
        25,
        "tests.1.leads.1.attributes.born: in",
    ),
    "bad syntax": ("until: 3d", "until: [3d", 10, "expected ',' or ']', but got ':'"),
    "a key twice": ("until: 3d", "name: three", 9, "'name' stands twice"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_names_file_line_key_and_what_belongs_there(tmp_path, name):
    right, wrong, line, said = MISTAKES[name]
    assert right in SOUND
    path = tmp_path / "tests.yaml"
    path.write_text(SOUND.replace(right, wrong, 1))
    with pytest.raises(InputError) as caught:
        load([path])
    place, _, told = str(caught.value).partition(f", line {line}")
    assert place == str(path), str(caught.value)
    assert told.lstrip(":, ").startswith(said.format(folder=tmp_path)), str(caught.value)


def test_what_is_sound_is_taken(tmp_path):
    path = tmp_path / "tests.yaml"
    path.write_text(SOUND)
    assert [(case.said.name, case.line()) for case in load([path]).cases] == [("one", 7), ("two", 22)]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", ", sequences: field required"),
        (SOUND[SOUND.index("tests:") :], ", sequences: field required"),
        ("[1]", ": a mapping of keys to values belongs here"),
        ("just words", ": a mapping of keys to values belongs here"),
    ],
)
def test_a_file_that_is_none_of_tests_is_refused(tmp_path, content, said):
    path = tmp_path / "tests.yaml"
    path.write_text(content)
    with pytest.raises(InputError) as caught:
        load([path])
    assert str(caught.value) == f"{path}{said}"


def test_the_command_says_it_in_one_line_and_ends_with_2(tmp_path, monkeypatch, capsys):
    path, missing = tmp_path / "tests.yaml", tmp_path / "missing"
    path.write_text(SOUND.replace("until", "untill"))
    for file, said in (
        (path, f"error: {path}, line 9, tests.0: unknown key 'untill' - did you mean 'until'?\n"),
        (missing, f"error: {missing}: no such file\n"),
    ):
        monkeypatch.setattr(sys, "argv", ["dripline", "test", str(file)])
        with pytest.raises(SystemExit) as ended:
            main()
        assert (ended.value.code, *capsys.readouterr()) == (2, "", said)
