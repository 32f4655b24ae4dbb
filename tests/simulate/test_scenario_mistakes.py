"""Every mistake in a scenario file is one line: file and line, the way to the key, and what was expected."""

from __future__ import annotations

import sys

import pytest

from dispatcher.cli.main import main
from dispatcher.errors import InputError
from simulate.scenario.load import load
from simulate.scenario.overrides import parse

SOUND = """\
days: 2
shards: 2
devices:
  groups:
    - {name: old, count: 3}
    - {name: new, count: 2, quota_per_hour: 20}
leads:
  count: 10
  triggers:
    - triggers: [hello]
sequences:
  - name: Greeting
    steps:
      - {trigger: hello, text: Hello}
      - {trigger: bye, text: Bye}
sender:
  throttled: 0.1
events:
  - {at_h: 1, devices: {count: 2, health: offline, until_h: 3}}
  - {at_h: 2, pause: {sequence: Greeting}}
"""
GRAPH = "sequences.0: sequence 'Greeting', step 'hello': its next trigger 'x' is no step"

MISTAKES = {
    "unknown key": ("days: 2", "dyas: 2", 1, "unknown key 'dyas' - did you mean 'days'?"),
    "unknown key below": ("count: 10", "cuont: 10", 8, "leads: unknown key 'cuont' - did you mean 'count'?"),
    "unknown key in a list": (
        "name: new,",
        "name: new, colour: red,",
        6,
        "devices.groups.1: unknown key 'colour' - known",
    ),
    "a key of another engine": (
        "shards: 2",
        "send_window: 9-17",
        2,
        "unknown key 'send_window' - known are title, seed",
    ),
    "unknown key in a sequence": (
        "text: Bye",
        "txt: Bye",
        15,
        "sequences.0.steps.1: unknown key 'txt' - did you mean 'te",
    ),
    "wrong type": ("count: 10", "count: many", 8, "leads.count: input should be a valid integer"),
    "a text for a number": ("days: 2", "days: '2'", 1, "days: input should be a valid number"),
    "no speed": ("days: 2", "speed: 0", 1, "speed: a number above 0 belongs here, not 0 - leave it out to run as fast"),
    "replies that nobody writes": (
        "throttled: 0.1",
        "replies: {share: 0}",
        17,
        "sender.replies.share: input should be greater than 0",
    ),
    "replies in days": (
        "throttled: 0.1",
        "replies: {share: 0.1, after: 2h}",
        17,
        "sender.replies: unknown key 'after' - known are share, stop, within_h",
    ),
    "no way to the gateway": (
        "throttled: 0.1",
        "over: ftp",
        17,
        "sender.over: direct or http belongs here, not 'ftp'",
    ),
    "negative": ("count: 10", "count: -1", 8, "leads.count: input should be greater than or equal to 0"),
    "too large": ("shards: 2", "shards: 900", 2, "shards: input should be less than or equal to 200"),
    "a share above 1": (
        "throttled: 0.1",
        "throttled: 1.1",
        17,
        "sender.throttled: input should be less than or equal to 1",
    ),
    "a mapping is missing": ("  throttled: 0.1", "  - 1", 16, "sender: a mapping of keys to values belongs here"),
    "required": ("name: new, ", "", 6, "devices.groups.1.name: field required"),
    "shares above 1 together": (
        "throttled: 0.1",
        "rejected: 0.6\n  refused: 0.6",
        16,
        "sender: rejected, throttled, refused and",
    ),
    "weights zero": ("[hello]", "[hello]\n      weight: 0", 9, "leads.triggers: all weights are 0 - give at least one"),
    "a zone that is none": (
        "  count: 10",
        "  count: 10\n  time_zones: [{zone: Asia/Kuala_Lumpur}, {zone: Asia/Kuala}]",
        9,
        "leads.time_zones.1.zone: there is no time zone 'Asia/Kuala' - write an IANA name",
    ),
    "a region that is none": (
        "  count: 10",
        "  count: 10\n  time_zones: [{zone: UTC}, {zone: Asia/Tokyo, region: Asia}]",
        9,
        "leads.time_zones.1.region: no devices have the region 'Asia' - give groups of devices a region",
    ),
    "a window without quotes": (
        "  - name: Greeting\n",
        "  - name: Greeting\n    send_window: {from: 10:00, until: '20:00', time_zone: UTC}\n",
        13,
        """sequences.0.send_window.from: a time of day such as "09:00" belongs here, not 600 - write it in quotes""",
    ),
    "unknown trigger": (
        "[hello]",
        "[helo]",
        10,
        "leads.triggers.0.triggers.0: no step has the trigger 'helo' - did you mean 'hell",
    ),
    "a trigger that is no entry": (
        "[hello]",
        "[bye]",
        10,
        "leads.triggers.0.triggers.0: 'bye' is a step, but no entry",
    ),
    "missing sequence file": (
        "  - name: Gr",
        "  - gone.yaml\n  - name: Gr",
        12,
        "sequences.0: {folder}/gone.yaml: no such file",
    ),
    "a sequence that leads nowhere": ("text: Hello", "text: Hello, next: x", 12, GRAPH),
    "a sequence twice": (
        "sender:",
        "  - {name: Greeting, steps: [{trigger: b, text: B}]}\nsender:",
        16,
        "sequences.1: sequence 'Gree",
    ),
    "bad syntax": ("days: 2", "days: [2", 2, "expected ',' or ']', but got ':'"),
    "a key twice": ("shards: 2", "days: 3", 2, "'days' stands twice"),
    "a date no calendar has": ("shards: 2", "start: 2026-02-30", 2, "'2026-02-30': day is out of range for month"),
    "no date": ("shards: 2", "start: soon", 2, "start: a date such as 2026-01-05 or 2026-01-05T09:00:00 belongs here"),
    "a choice": ("shards: 2", "pacing: slow", 2, "pacing: burst or even belongs here, not 'slow'"),
    "count and groups": (
        "devices:",
        "devices:\n  count: 3",
        4,
        "devices.count: count and groups exclude each other - give",
    ),
    "count and csv": (
        "  count: 10",
        "  count: 10\n  csv: {file: a.csv}",
        8,
        "leads.count: count and csv exclude each other",
    ),
    "missing lead file": (
        "  count: 10\n  triggers:\n    - triggers: [hello]",
        "  csv: {file: gone.csv}",
        8,
        "leads.csv: {folder}/gone.csv: ",
    ),
    "nothing shared": (
        "count: 3}",
        "count: 3, shared: {}}",
        5,
        "devices.groups.0.shared: per_hour or per_day belongs here - leave shared out",
    ),
    "a group twice": ("name: new", "name: old", 6, "devices.groups.1.name: two groups are called 'old' - rename"),
    "a gap and even pacing": (
        "_hour: 20}",
        "_hour: 20, min_gap_s: 9}\npacing: even",
        6,
        "devices.groups.1.min_gap_s: pacing: even sets",
    ),
    "waves that are not all": (
        "  count: 10",
        "  waves:\n    - {at_h: 1, share: 0.5}",
        8,
        "leads.waves: the shares add up to 0.5, not",
    ),
    "two latencies": (
        "throttled: 0.1",
        "latency: {constant_s: 1, uniform_s: [1, 2]}",
        17,
        "sender.latency: exactly one of constant_s",
    ),
    "bounds the wrong way": (
        "throttled: 0.1",
        "latency: {uniform_s: [3, 2]}",
        17,
        "sender.latency.uniform_s: the first bound is",
    ),
    "an event after the end": (
        "at_h: 2",
        "at_h: 48",
        20,
        "events.1.at_h: hour 48 lies after the end of the run, which has 2 days",
    ),
    "bad hour": ("at_h: 2", "at_h: noon", 20, "events.1.at_h: input should be a valid number"),
    "an end before its beginning": (
        "until_h: 3",
        "until_h: 1",
        19,
        "events.0.devices.until_h: it does not lie after at_h (1)",
    ),
    "an event that is nothing": (
        ", devices: {count: 2, health: offline, until_h: 3}",
        "",
        19,
        "events.0: exactly one of dev",
    ),
    "an event that is two": (
        "{sequence: Greeting}}",
        "{sequence: Greeting}, opt_out: 0.1}",
        20,
        "events.1: exactly one of devices,",
    ),
    "a change of nothing": (
        "health: offline, ",
        "",
        19,
        "events.0.devices: nothing changes: health, quota_per_hour or",
    ),
    "more devices than there are": ("count: 2, h", "count: 6, h", 19, "events.0.devices.count: at most 5 belongs here"),
    "an unknown group": (
        "count: 2, h",
        "group: odl, h",
        19,
        "events.0.devices.group: no group is called 'odl' - known are old,",
    ),
    "an unknown sequence": (
        "pause: {sequence: Greeting}",
        "pause: {sequence: Greting}",
        20,
        "events.1.pause.sequence: no sequence is",
    ),
    "an unknown shard": (
        "pause: {sequence: Greeting}",
        "kill: shard-2",
        20,
        "events.1.kill: there is no shard-2 - shards are counted",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_names_file_line_key_and_what_belongs_there(tmp_path, name):
    right, wrong, line, said = MISTAKES[name]
    assert right in SOUND
    path = tmp_path / "scenario.yaml"
    path.write_text(SOUND.replace(right, wrong, 1))
    with pytest.raises(InputError) as caught:
        load(path)
    place, _, told = str(caught.value).partition(f", line {line}")
    assert place == str(path), str(caught.value)
    assert told.lstrip(":, ").startswith(said.format(folder=tmp_path)), str(caught.value)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("devices.cuont=3", "devices: unknown key 'cuont' - did you mean 'count'?"),
        ("devcies.count=3", "unknown key 'devcies' - did you mean 'devices'?"),
        ("leads.count=few", "leads.count: input should be a valid integer"),
        ("leads={count: few}", "leads.count: input should be a valid integer"),
        ("devices.groups.2.count=3", "devices.groups is a list of 2 - 0 to 1 belongs after it"),
        ("days.count=3", "days is a single value and has no keys"),
        ("days", "KEY=VALUE belongs here - write it like --set devices.count=2000"),
        ("days=[1", "the value is not YAML: expected ',' or ']', but got '<stream end>'"),
        ("days=0.01", "hour 1 lies after the end of the run"),
    ],
)
def test_a_mistake_on_the_command_line_names_the_override(tmp_path, override, said):
    path = tmp_path / "scenario.yaml"
    path.write_text(SOUND)
    with pytest.raises(InputError) as caught:
        load(path, [parse(override)])
    assert said in str(caught.value)
    if "hour" not in said:  # there the file's own line is to blame
        assert str(caught.value).startswith(f"--set {override}")


def test_what_is_set_stands_before_the_file_and_later_before_earlier(tmp_path):
    path = tmp_path / "scenario.yaml"
    path.write_text(SOUND)
    sets = ["leads.count=3", "leads.count=4", "devices.groups.1.quota_per_hour=7", "sender.latency={constant_s: 2}"]
    scenario = load(path, [parse(each) for each in sets]).scenario
    assert scenario.leads.count == 4
    assert [group.quota_per_hour for group in scenario.devices.groups or ()] == [80, 7]
    assert scenario.sender.latency is not None
    assert (scenario.sender.latency.constant_s, scenario.sender.throttled) == (2, 0.1)


def test_the_command_says_it_in_one_line_and_ends_with_2(tmp_path, monkeypatch, capsys):
    path = tmp_path / "scenario.yaml"
    path.write_text(SOUND.replace("days", "dyas"))
    monkeypatch.setattr(sys, "argv", ["dripline", "simulate", str(path), "--quiet"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert (ended.value.code, *capsys.readouterr()) == (
        2, "", f"error: {path}, line 1: unknown key 'dyas' - did you mean 'days'?\n",
    )  # fmt: skip
