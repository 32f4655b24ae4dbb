"""Sequence files, and the commands around what people hand in."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from datetime import date
from datetime import time as clock
from pathlib import Path

import asyncpg
import pytest

from dispatcher.core.catalogue import Catalogue
from dispatcher.core.goals import Goal
from dispatcher.core.graph import Sequence, Step
from dispatcher.core.messages import Template
from dispatcher.core.windows import Blackout, Window
from dispatcher.errors import GraphError, InputError, RefusedError
from dispatcher.intake.plan import plan
from dispatcher.intake.sequence_file import load
from dispatcher.intake.sequences import Changes, apply
from dispatcher.intake.unmatched import Unmatched, find_unmatched, why_closed
from dispatcher.store.registry import read_sequences

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def yaml_path(tmp_path: Path):
    """Writes a sequence file and returns its path."""

    def write(content: str) -> Path:
        path = tmp_path / "sequences.yaml"
        path.write_text(content, encoding="utf-8")
        return path

    return write


def ask(url: str, sql: str) -> list[tuple]:
    async def body() -> list[tuple]:
        connection = await asyncpg.connect(url)
        try:
            return [tuple(row) for row in await connection.fetch(sql)]
        finally:
            await connection.close()

    return asyncio.run(body())


def sequence(name: str, *triggers: str, **options) -> Sequence:
    """Steps one after the other; the first is the entry."""
    steps = tuple(
        Step(trigger, f"text of {trigger}", following, is_entry=place == 0)
        for place, (trigger, following) in enumerate(zip(triggers, [*triggers[1:], None], strict=True))
    )
    return Sequence(None, name, True, steps, **options)


async def stored(connection) -> list[Sequence]:
    return [replace(each, id=None) for each in await read_sequences(connection)]


async def versions(connection) -> tuple:
    return (
        await connection.fetch("SELECT id, xmin::text, ctid::text FROM sequences ORDER BY id"),
        await connection.fetch("SELECT id, xmin::text, ctid::text FROM sequence_steps ORDER BY id"),
        await connection.fetch("SELECT name, version FROM catalogue_versions ORDER BY name"),
    )


# Files ---


def test_the_fitness_example_is_the_seeds():
    assert load(EXAMPLES / "fitness.yaml") == [
        Sequence(
            None,
            "30 Day Fitness",
            True,
            (
                Step("fitness_start", "Welcome to fitness!", "fitness_day2", 24, 1, True),
                Step("fitness_day2", "Day 2 workout", "fitness_day3", 24, 2),
                Step("fitness_day3", "Keep going!", None, 24, 3),
            ),
            trigger_prefix="fitness_",
        )
    ]


@pytest.mark.parametrize("name", ["fitness", "crypto", "realestate"])
def test_the_examples_give_texts_for_leads_of_whom_little_is_known(name):
    (example,) = load(EXAMPLES / f"{name}.yaml")
    assert len(example.steps) == 3
    for step in example.steps:
        assert "{" not in Template(step.message_text).render("60123456789", None, {})


def test_order_gives_next_and_entry_unless_the_file_says_otherwise(yaml_path):
    path = yaml_path("""
sequences:
  - name: By order
    active: false
    reentry: {after: 30d}
    requires_opt_in: true
    exit: {on_reply: true}
    steps: [{trigger: a, text: A}, {trigger: b, text: B, delay_hours: 48}, {trigger: c, text: C}]
  - name: By word
    reentry: never
    sender_policy: any
    steps:
      - {trigger: z, text: Z, next: null}
      - {trigger: x, text: X, next: z, entry: true, media_url: "https://example.org/x.png"}
""")
    assert load(path) == [
        Sequence(
            None,
            "By order",
            False,
            (Step("a", "A", "b", is_entry=True), Step("b", "B", "c", 48), Step("c", "C")),
            reentry="after_interval",
            reentry_interval_h=720.0,
            requires_opt_in=True,
            exit_on_reply=True,
        ),
        Sequence(
            None,
            "By word",
            True,
            (Step("z", "Z"), Step("x", "X", "z", is_entry=True, media_url="https://example.org/x.png")),
            reentry="never",
            sender_policy="any",
        ),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "sequences.yaml: a mapping of keys to values belongs here"),
        ("sequences: []", "sequences: list should have at least 1 item"),
        ("a: [", "sequences.yaml, line 1: "),
        ("sequences: []\nsequences: []", "line 2: 'sequences' stands twice"),
        ("sequences: [{name: A, exit: {reply: true}, steps: []}]", "sequence 'A': unknown key 'reply'"),
        ("sequences: [{name: A, stepps: []}]", "sequence 'A': unknown key 'stepps' - did you mean 'steps'?"),
        ("sequences: [{steps: [{trigger: a, text: x}]}]", "sequence 1: name: field required"),
        (
            "sequences: [{name: A, steps: [{trigger: a, text: x, dely_hours: 1}]}]",
            "sequence 'A', step 'a': unknown key 'dely_hours' - did you mean 'delay_hours'?",
        ),
        ("sequences: [{name: A, steps: [{trigger: no, text: x}]}]", "step False: trigger: input should be"),
        ("sequences: [{name: A, reentry: soon, steps: [{trigger: a, text: x}]}]", "sequence 'A': reentry cannot be"),
        (
            "sequences: [{name: A, reentry: {after: 3x}, steps: [{trigger: a, text: x}]}]",
            "reentry cannot be understood",
        ),
        (
            "sequences: [{name: A, steps: [{trigger: a, text: x}]}, {name: A, steps: [{trigger: b, text: x}]}]",
            "sequence 'A': this name stands twice",
        ),
        (
            "sequences: [{name: A, steps: [{trigger: a, text: '{{ x'}]}]",
            "sequence 'A', step 'a': message text, line 1:",
        ),
        ("sequences: [{name: A, steps: [{trigger: a, text: '{{ 9**9 }}'}]}]", "sequence 'A', step 'a': message text"),
        (
            "sequences: [{name: A, send_window: {from: 20:00, until: '9:00', time_zone: UTC}, steps: []}]",
            """sequence 'A': from: a time of day such as "09:00" belongs here, not 1200 - write it in quotes""",
        ),
        (
            "sequences: [{name: A, send_window: {from: '9:00', until: '25:00', time_zone: UTC}, steps: []}]",
            """until: a time of day such as "09:00" belongs here, not '25:00'""",
        ),
        ("sequences: [{name: A, send_window: {from: '9:00', until: '20:00'}, steps: []}]", "time_zone: field required"),
        (
            "sequences: [{name: A, send_window: {from: '9:00', untill: '20:00', time_zone: UTC}, steps: []}]",
            "unknown key 'untill' - did you mean 'until'?",
        ),
        (
            "sequences: [{name: A, send_window: {from: '9:00', until: '20:00', days: [monday], time_zone: UTC}}]",
            "sequence 'A', day 1: send_window: input should be 'mon', 'tue'",
        ),
        (
            "sequences: [{name: A, send_window: {from: '9:00', until: '20:00', time_zone: Asia/Kuala},"
            " steps: [{trigger: a, text: x}]}]",
            "sequence 'A': its send window has the unknown time zone 'Asia/Kuala'",
        ),
        (
            "sequences: [{name: A, send_window: {from: '9:00', until: '9:10', time_zone: UTC},"
            " steps: [{trigger: a, text: x}]}]",
            "its send window 09:00-09:10 (UTC) is open for less than 15 minutes - let it close later",
        ),
        (
            "sequences: [{name: A, steps: [{trigger: a, text: x, delay: P1M}]}]",
            "step 'a': delay: 'P1M': months and years have no fixed length: count days - write it like 36h, 90m, 2d",
        ),
        (
            "sequences: [{name: A, steps: [{trigger: a, text: x, delay: 24}]}]",
            "step 'a': delay: a delay belongs here, not 24 - write it like 36h, 90m, 2d or P1DT2H",
        ),
        (
            "sequences: [{name: A, steps: [{trigger: a, text: x, delay: 2d, delay_hours: 48}]}]",
            "step 'a': delay and delay_hours exclude each other - leave one of them out",
        ),
        (
            "sequences: [{name: A, steps: [{trigger: a, text: x, at: 9:00}]}]",
            """step 'a': at: a time of day such as "09:00" belongs here, not 540 - write it in quotes""",
        ),
        (
            "sequences: [{name: A, steps: [{trigger: a, text: x, at: '9:00'}]}]",
            "sequence 'A': it has times or days by the clock, and no time zone for leads whose own is unknown"
            " - give it a time_zone such as Asia/Kuala_Lumpur",
        ),
        (
            "sequences: [{name: A, time_zone: UTC, send_window: {from: '9:00', until: '20:00', time_zone: Asia/Tokyo},"
            " steps: []}]",
            "sequence 'A': time_zone and that of send_window differ - leave time_zone out",
        ),
        (
            "sequences: [{name: A, time_zone: UTC, blackouts: [{from: 2026-12-31, until: 2026-12-30}],"
            " steps: [{trigger: a, text: x}]}]",
            "sequence 'A': its blackout from 2026-12-31 to 2026-12-30 has 0 days - it has 1 to 366",
        ),
        ("sequences: [{name: A, exit: {goal: {}}, steps: []}]", "a goal is a trigger, a condition, or both"),
        (
            "sequences: [{name: A, exit: {goal: {when: 'x'}}, steps: []}]",
            "sequence 'A': unknown key 'when' - known are trigger, if",
        ),
        (
            "sequences: [{name: A, exit: {goal: {if: 'lead.plan'}}, steps: [{trigger: a, text: x}]}]",
            "sequence 'A': its goal 'lead.plan' cannot be read: 'Getattr' is not allowed in a message",
        ),
    ],
)
def test_a_file_that_says_something_else_is_one_clear_line(yaml_path, content, message):
    with pytest.raises(InputError) as caught:
        load(yaml_path(content))
    assert message in str(caught.value)


async def test_a_send_window_is_stored_as_it_is_written_and_told_when_it_changes(yaml_path, connection):
    def written(window: str) -> list[Sequence]:
        return load(yaml_path(f"sequences: [{{name: A, send_window: {window}, steps: [{{trigger: a, text: x}}]}}]"))

    days = written("{from: '22:30', until: '24:00', days: [sat, mon], time_zone: Asia/Kuala_Lumpur}")
    assert days[0].send_window == Window(clock(22, 30), clock(0), "Asia/Kuala_Lumpur", ("mon", "sat"))
    await apply(connection, days)
    assert await stored(connection) == days
    assert (await apply(connection, days)).updated == []
    (told,) = (await apply(connection, written("{from: '9:00', until: '20:00', time_zone: UTC}"))).updated
    assert told == "sequence 'A' (send_window: 22:30-00:00 mon,sat (Asia/Kuala_Lumpur) -> 09:00-20:00 (UTC))"
    (told,) = (await apply(connection, written("null"))).updated
    assert told == "sequence 'A' (send_window: 09:00-20:00 (UTC) -> None)"
    assert (await stored(connection))[0].send_window is None


async def test_clocks_and_goals_are_stored_as_they_are_written_and_told_when_they_change(yaml_path, connection):
    def written(keys: str, step: str) -> list[Sequence]:
        return load(yaml_path(f"sequences: [{{name: A, {keys}, steps: [{{trigger: a, text: x, {step}}}]}}]"))

    days = "blackouts: [2026-12-25, {from: 2026-12-31, until: 2027-01-01}]"
    goal = "exit: {goal: {trigger: bought, if: plan == 'pro'}}"
    full = written(f"time_zone: Asia/Tokyo, {days}, {goal}", "at: '9:30', delay: P1DT90M")
    assert full[0] == replace(
        full[0],
        time_zone="Asia/Tokyo",
        blackouts=(Blackout(date(2026, 12, 25), date(2026, 12, 25)), Blackout(date(2026, 12, 31), date(2027, 1, 1))),
        goal=Goal("bought", "plan == 'pro'"),
        steps=(Step("a", "x", None, 25.5, is_entry=True, at=clock(9, 30)),),
    )
    await apply(connection, full)
    assert await stored(connection) == full
    assert (await apply(connection, full)).updated == []
    columns = "trigger_delay_hours, trigger_delay_minutes, send_at::text"
    assert [*await connection.fetchrow(f"SELECT {columns} FROM sequence_steps")] == [25, 30, "09:30:00"]
    changes = await apply(connection, written("blackouts: [2026-12-25], time_zone: Asia/Tokyo", "delay_hours: 24"))
    assert changes.updated == [
        "sequence 'A' (blackouts: (2026-12-25, 2026-12-31 to 2027-01-01) -> (2026-12-25,), "
        "goal: trigger bought or plan == 'pro' -> None)",
        "step 'a' of 'A' (delay_h: 25.5 -> 24, at: 09:30 -> None)",
    ]
    # What users write keeps its meaning.
    await connection.execute("UPDATE sequence_steps SET trigger_delay_hours = 48")
    assert (await stored(connection))[0].steps[0].delay_h == 48


async def test_a_new_goal_is_no_unknown_trigger_and_asks_who_is_under_way(connection):
    wanted = sequence("A", "a1", "a2")
    await apply(connection, [wanted])
    await connection.execute("INSERT INTO leads (phone, trigger) VALUES ('601', 'a1'), ('602', 'bought')")
    await connection.execute(
        "INSERT INTO sequence_contacts (sequence_id, lead_id, contact_phone, entry_trigger, current_trigger)"
        " SELECT s.id, 1, '601', 'a1', 'a2' FROM sequences s; DELETE FROM lead_changes"
    )
    assert [each.trigger for each in await find_unmatched(connection)] == ["bought"]
    aimed = [replace(wanted, goal=Goal("bought"))]
    assert (await plan(connection, aimed)).consequences == [
        "of the 1 live enrolments of 'A' those who have reached the goal leave at once"
    ]
    await apply(connection, aimed)
    assert await connection.fetchval("SELECT array_agg(leads::text) FROM lead_changes") == ["{1}"]
    assert await find_unmatched(connection) == []
    catalogue = Catalogue.of(await read_sequences(connection))
    assert why_closed(catalogue, "bought") == "the goal that ends 'A'"


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ("[{trigger: a, text: x, delay_hours: 0}]", "step 'a': its delay is 0 hours"),
        ("[{trigger: a, text: x, next: b}]", "step 'a': its next trigger 'b' is no step"),
        ("[{trigger: a, text: x}, {trigger: b, text: x, next: a}]", "step 'a': its steps go round in a circle"),
        ("[{trigger: a, text: x}, {trigger: a, text: y}]", "step 'a': 2 steps have this trigger"),
        ("[{trigger: a, text: x, entry: false}]", "sequence 'A': it has no entry step"),
        ("[]", "sequence 'A': it has no steps"),
        ("[{trigger: 'a,b', text: x}]", "step 'a,b': its trigger contains a comma"),
        ("[{trigger: b, text: x}]}, {name: B, steps: [{trigger: b, text: x}]", "'B', step 'b': sequence 'A' has a"),
    ],
)
def test_steps_that_cannot_be_followed_are_refused_by_name(yaml_path, dripline, database_url, steps, message):
    path = yaml_path(f"sequences: [{{name: A, steps: {steps}}}]")
    with pytest.raises(GraphError) as caught:
        load(path)
    assert message in str(caught.value)
    assert dripline("apply", path) == (2, "", f"error: {caught.value}\n")
    assert ask(database_url, "SELECT name FROM sequences") == []


# Into the tables ---


async def test_applying_creates_everything_and_twice_changes_nothing(connection):
    wanted = [sequence("A", "a1", "a2"), sequence("B", "b1", reentry="never", sender_policy="strict")]
    created = ["sequence 'A'", "step 'a1' of 'A'", "step 'a2' of 'A'", "sequence 'B'", "step 'b1' of 'B'"]
    before = await versions(connection)
    assert (await plan(connection, wanted)).changes == Changes(created=created)
    assert await versions(connection) == before
    assert await apply(connection, wanted) == Changes(created=created)
    assert await stored(connection) == wanted
    before = await versions(connection)
    assert await apply(connection, wanted) == Changes(unchanged=created)
    assert await versions(connection) == before


async def test_only_what_differs_is_written_and_the_change_is_told(connection):
    await apply(connection, [sequence("A", "a1", "a2", "a3"), sequence("B", "b1")])
    before = await versions(connection)
    wanted = sequence("A", "a1", "a4", "a3", reentry="never")
    expected = Changes(
        created=["step 'a4' of 'A'"],
        updated=[
            "sequence 'A' (reentry: 'after_exit' -> 'never')",
            "step 'a1' of 'A' (next_trigger: 'a2' -> 'a4')",
        ],
        removed=["step 'a2' of 'A'"],
        unchanged=["step 'a3' of 'A'"],
    )
    assert (await plan(connection, [wanted])).changes == expected
    assert await versions(connection) == before
    assert await apply(connection, [wanted]) == expected
    by_trigger = {s.trigger: s for each in await stored(connection) for s in each.steps}
    assert by_trigger == {s.trigger: s for s in (*wanted.steps, *sequence("B", "b1").steps)}


async def test_a_trigger_belongs_to_one_step_but_may_move(connection):
    await apply(connection, [sequence("A", "a1", "a2"), sequence("B", "b1")])
    before = await versions(connection)
    with pytest.raises(GraphError, match="sequence 'B', step 'a2': sequence 'A' has a step with this trigger"):
        await apply(connection, [sequence("B", "b1", "a2")])
    assert await versions(connection) == before
    moved = [sequence("A", "a1"), sequence("B", "b1", "a2")]
    assert (await apply(connection, moved)).removed == ["step 'a2' of 'A'"]
    assert await stored(connection) == moved


async def test_a_name_that_two_sequences_have_is_refused(connection):
    await connection.execute("INSERT INTO sequences (name) VALUES ('A'), ('A')")
    with pytest.raises(InputError, match=r"sequence 'A': 2 sequences have this name in the database \(ids 1 and 2\)"):
        await apply(connection, [sequence("A", "a1")])


@pytest.mark.parametrize(("status", "is_refused"), [("active", True), ("in_doubt", True), ("completed", False)])
async def test_a_step_that_somebody_stands_at_is_not_removed(connection, status, is_refused):
    await apply(connection, [sequence("A", "a1", "a2")])
    await connection.execute(
        "INSERT INTO sequence_contacts (sequence_id, lead_id, contact_phone, entry_trigger, current_trigger, status)"
        " SELECT id, 1, '60123456789', 'a1', 'a2', $1 FROM sequences",
        status,
    )
    before = await versions(connection)
    shorter = [sequence("A", "a1", reentry="never")]
    if is_refused:
        with pytest.raises(RefusedError, match=r"sequence 'A', step 'a2': .* 1 live enrolments stand at it"):
            await apply(connection, shorter)
        assert await versions(connection) == before
    else:
        await apply(connection, shorter)
        assert await stored(connection) == shorter


async def test_triggers_that_enrol_nobody_are_listed_with_the_reason(connection):
    paused = replace(sequence("Paused", "p1"), is_active=False)
    await apply(connection, [sequence("Open", "o1", "o2"), paused, sequence("Asks", "k1", requires_opt_in=True)])
    await connection.execute(
        "WITH broken AS (INSERT INTO sequences (name, is_active) VALUES ('Broken', true) RETURNING id)"
        " INSERT INTO sequence_steps (sequence_id, trigger, message_text, next_trigger, is_entry_point)"
        " SELECT id, 'x1', 'hi', 'x9', true FROM broken"
    )
    await connection.executemany(
        "INSERT INTO leads (phone, trigger, opted_out_at, opted_in_at)"
        " VALUES ($1, $2, dripline_at($3), dripline_at($4))",
        [
            ("1", "o1, o2,p1,p1", None, None),
            ("2", "o1,o", None, None),
            ("3", "o1,p1,x1,k1", None, 1),
            ("4", "o1,p1,k1", 1, None),
            ("5", "k1", None, None),
            ("6", ",,", None, None),
            ("7", None, None, None),
        ],
    )
    assert await find_unmatched(connection) == [
        Unmatched("p1", 3, "sequence 'Paused' is inactive"),
        Unmatched("k1", 1, "lead opted out"),
        Unmatched("k1", 1, "lead never opted in, which sequence 'Asks' requires"),
        Unmatched("o", 1, "unknown: no step has this trigger"),
        Unmatched("o1", 1, "lead opted out"),
        Unmatched("o2", 1, "a step of sequence 'Open', but no entry"),
        Unmatched("x1", 1, "sequence 'Broken' is broken: step 'x1': its next trigger 'x9' is no step of this sequence"),
    ]


# Commands ---


def test_sequences_are_applied_listed_paused_and_resumed(dripline, yaml_path):
    fitness = EXAMPLES / "fitness.yaml"
    status, shown, _ = dripline("apply", fitness, EXAMPLES / "crypto.yaml", "--dry-run")
    assert (status, shown.count("would be created: ")) == (0, 8)
    assert dripline("sequences", "list")[:2] == (0, "")
    assert dripline("apply", fitness)[1].splitlines() == [
        "created: sequence '30 Day Fitness'",
        "created: step 'fitness_start' of '30 Day Fitness'",
        "created: step 'fitness_day2' of '30 Day Fitness'",
        "created: step 'fitness_day3' of '30 Day Fitness'",
        "unchanged: 0 of 4 sequences and steps",
    ]
    assert dripline("apply", fitness)[1] == "unchanged: 4 of 4 sequences and steps\n"
    assert dripline("sequences", "pause", "30 Day Fitness")[1] == "30 Day Fitness: paused\n"
    assert dripline("sequences", "pause", "1")[1] == "30 Day Fitness: already paused\n"
    assert dripline("sequences", "list")[1] == "1\t30 Day Fitness\tpaused\t3\t0\t0\t\t\n"
    assert dripline("sequences", "resume", "30 Day Fitness")[1] == "30 Day Fitness: active\n"
    assert dripline("sequences", "resume", "30 Day Fitnes") == (
        2,
        "",
        "error: sequence '30 Day Fitnes': there is none - did you mean '30 Day Fitness'?\n",
    )


def test_leads_are_imported_counted_and_their_triggers_explained(dripline, database_url, tmp_path):
    path, counts = tmp_path / "leads.csv", tmp_path / "counts.json"
    path.write_text("Phone 1,First Name\n012-345 6781,Ann\nx,=1+1\n+60123456781,Anna\n")
    arguments = ["import", path, "--map", "phone=Phone 1", "--map", "name=First Name", "--region", "MY"]
    arguments += ["--trigger", "fitness_start", "--trigger", "nowhere", "--json", counts]
    status, shown, _ = dripline(*arguments, "--dry-run")
    assert (status, shown.splitlines()[1:]) == (0, ["        1  phone: not a phone number"])
    dry = json.loads(counts.read_text())
    assert not Path(f"{path}.rejects.csv").exists()
    assert ask(database_url, "SELECT count(*) FROM leads") == [(0,)]

    assert dripline(*arguments)[0] == 0
    wet = json.loads(counts.read_text())
    expected = {"rows": 3, "imported": 1, "merged": 1, "rejected": 1, "reasons": {"phone: not a phone number": 1}}
    for told in (dry, wet):
        assert {key: told[key] for key in expected} == expected
    assert Path(f"{path}.rejects.csv").read_text().splitlines() == [
        "line,reason,Phone 1,First Name",
        "3,phone: not a phone number,x,=1+1",
    ]
    assert ask(database_url, "SELECT phone, name, trigger FROM leads") == [
        ("60123456781", "Ann", "fitness_start,nowhere")
    ]

    dripline("apply", EXAMPLES / "fitness.yaml")
    assert json.loads(dripline("leads", "unmatched", "--json")[1]) == [
        {"trigger": "nowhere", "leads": 1, "why": "unknown: no step has this trigger"}
    ]
    assert dripline("leads", "unmatched")[1] == "nowhere\t1\tunknown: no step has this trigger\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{none}"], "no such file"),
        (["{file}", "--map", "phone=Fone"], "has no column 'Fone' - did you mean 'Phone 1'"),
        (["{file}", "--map", "phone"], "'phone' is not FIELD=COLUMN"),
        (["{file}", "--map", "phone=Phone 1", "--map", "phone=Phone 1"], "'phone' stands twice"),
        (["{file}", "--map", "phone=Phone 1", "--region", "XX"], "unknown region 'XX'"),
        (["{file}", "--map", "phone=Phone 1", "--rejects", "{file}"], "is the file that is imported"),
        (["{file}", "--map", "phone=Phone 1", "--trigger", "t" * 1001], "trigger list"),
    ],
)
def test_a_wrong_import_ends_before_it_begins(dripline, tmp_path, arguments, message):
    path = tmp_path / "leads.csv"
    path.write_text("Phone 1\n60123456781\n")
    places = {"{file}": path, "{none}": tmp_path / "none.csv"}
    status, shown, said = dripline("import", *(places.get(argument, argument) for argument in arguments))
    assert (status, shown) == (2, "")
    assert message in said
    assert said.count("\n") == 1


def test_an_interrupted_import_says_what_stays_and_exits_with_130(database_url, tmp_path):
    path, counts, rows = tmp_path / "leads.csv", tmp_path / "counts.json", 150_000
    path.write_text("phone\n" + "".join(f"6012{n:07d}\n" for n in range(rows)))
    command = [sys.executable, "-c", "from dispatcher.cli.main import main; main()", "import", path]
    process = subprocess.Popen(
        [*command, "--json", counts, "--database-url", database_url],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TERM": "dumb"},
    )
    until = time.monotonic() + 60
    while not ask(database_url, "SELECT FROM leads LIMIT 1") and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    told = json.loads(counts.read_text())
    assert (process.returncode, told["finished"], told["rows"] < rows) == (130, False, True)
    assert "interrupted: these rows stay" in said
    assert ask(database_url, "SELECT count(*) FROM leads") == [(told["imported"],)]


def test_devices_are_added_imported_changed_and_listed(dripline, database_url, tmp_path):
    assert dripline("devices", "add", "--name", "d-1", "--phone", "+60 12-345", "--quota-per-hour", "90")[0] == 0
    assert dripline("devices", "add", "--name", "d-1")[2] == (
        "error: device 'd-1': there is one already - to change it: dripline devices set\n"
    )
    path = tmp_path / "devices.csv"
    path.write_text(
        "Name;gateway_url;gateway_token;quota_per_hour;gateway_idempotent\n"
        "d-1;https://gw.example/1;secret;;no\n"
        "d-2;ftp://gw.example;;;\n"
        "d-3;;;many;\n"
        "d-4;http://gw.example/4;;5;\n"
        "d-4;;;6;\n"
        ";;;7;\n"
    )
    status, shown, said = dripline("devices", "import", path)
    assert (status, shown) == (0, "6 rows: 1 created, 1 updated, 0 unchanged, 4 rejected\n")
    assert [line.partition("line ")[2].partition(":")[0] for line in said.splitlines()] == ["3", "4", "6", "7"]
    assert dripline("devices", "import", path)[1] == "6 rows: 0 created, 0 updated, 2 unchanged, 4 rejected\n"
    assert dripline("devices", "set", "d-4", "--health", "draining", "--cause", "SIM change")[1] == "d-4: changed\n"
    assert dripline("devices", "set", "d-4", "--quota-per-day", "0")[1] == "d-4: changed\n"
    assert dripline("devices", "set", "d-4", "--quota-per-day", "0")[1] == "d-4: unchanged\n"
    assert dripline("devices", "set", "d-9", "--quota-per-day", "0")[:2] == (2, "")
    assert dripline("devices", "set", "d-4", "--gateway-url", "gw.example")[:2] == (2, "")
    assert dripline("devices", "set", "d-4", "--min-gap-s", "1e300")[:2] == (2, "")
    assert dripline("devices", "list")[1].splitlines() == [
        "d-1\t6012345\tavailable\t0/90\t0/800\t0/50\t5\thttp\thttps://gw.example/1\t-",
        "d-4\t-\tdraining (SIM change)\t0/5\t0/0\t0/50\t5\thttp\thttp://gw.example/4\t-",
    ]
    assert ask(database_url, "SELECT name, gateway_token, gateway_idempotent FROM devices ORDER BY name") == [
        ("d-1", "secret", False),
        ("d-4", None, True),
    ]


def test_a_number_of_the_cloud_api_is_added_with_what_the_api_needs(dripline, database_url):
    wa = ("devices", "add", "--name", "wa-1", "--gateway-kind", "whatsapp")
    assert dripline(*wa)[2] == (
        "error: device 'wa-1': the WhatsApp Cloud API must know its number"
        " - give it a gateway_phone_number_id, as its account shows it\n"
    )
    number = ("--gateway-phone-number-id", "1066")
    assert dripline(*wa, *number, "--idempotent")[2] == (
        "error: device 'wa-1': the WhatsApp Cloud API honours no idempotency keys\n"
    )
    assert dripline(*wa, *number, "--gateway-account", "acme")[:2] == (0, "added wa-1\n")
    assert dripline("devices", "set", "wa-1", "--gateway-url", "https://graph.example/v1")[1] == "wa-1: changed\n"
    assert dripline("devices", "set", "wa-1", "--gateway-kind", "whatsapp")[1] == "wa-1: unchanged\n"
    assert ask(database_url, "SELECT gateway_url, gateway_idempotent, gateway_account FROM devices") == [
        ("https://graph.example/v1", False, "acme")
    ]


def test_a_steps_template_is_applied_and_a_paused_step_goes_on(dripline, database_url, tmp_path):
    path = tmp_path / "course.yaml"
    step = "{trigger: start, text: 'Hi', template: {name: welcome, language: en, parameters: ['{{ name }}']}}"
    path.write_text(f"sequences: [{{name: Course, steps: [{step}]}}]\n")
    assert dripline("apply", path)[0] == 0
    template = "SELECT template_name, template_language, template_parameters FROM sequence_steps"
    assert ask(database_url, template) == [("welcome", "en", ["{{ name }}"])]
    assert dripline("apply", path)[1] == "unchanged: 2 of 2 sequences and steps\n"
    assert "or the template welcome (en) 'Ann'" in dripline("sequences", "preview", path, "--set", "name=Ann")[1]
    ask(database_url, "UPDATE sequence_steps SET paused_cause = '132001: Template does not exist'")
    assert dripline("apply", path)[1] == "unchanged: 2 of 2 sequences and steps\n"
    assert "step 'start' is paused: 132001: Template does not exist" in dripline("sequences", "list")[1]
    assert "dripline sequences resume-step" in dripline("status")[1]
    told = "start: goes on; it was paused because of 132001: Template does not exist\n"
    assert dripline("sequences", "resume-step", "start")[1] == told
    assert dripline("sequences", "resume-step", "start")[1] == "start: it was not paused\n"
    assert dripline("sequences", "resume-step", "stat")[0] == 2
    path.write_text(path.read_text().replace("{{ name }}", "{{ name.x }}"))
    assert "a parameter of its template" in dripline("apply", path)[2]


def test_a_phone_belongs_to_one_device(dripline, database_url, tmp_path):
    path = tmp_path / "devices.csv"
    path.write_text("name,phone\nd-2,+60 12 345\nd-3,60999\nd-4,60999\nd-1,6012345\n")
    assert dripline("devices", "add", "--name", "d-1", "--phone", "6012345")[0] == 0
    taken = "phone 6012345 is that of device 'd-1'"
    assert dripline("devices", "add", "--name", "d-2", "--phone", "+60 12-345") == (
        2,
        "",
        f"error: device 'd-2': {taken} - give it its own\n",
    )
    assert dripline("devices", "import", path) == (
        0,
        "4 rows: 1 created, 0 updated, 1 unchanged, 2 rejected\n",
        f"{path}, line 2: {taken}\n{path}, line 4: phone 60999 is that of device 'd-3'\n",
    )
    assert dripline("devices", "set", "d-3", "--phone", "6012345")[:2] == (2, "")
    assert ask(database_url, "SELECT name, phone FROM devices ORDER BY name") == [("d-1", "6012345"), ("d-3", "60999")]


def test_the_gap_between_two_messages_keeps_its_fraction(dripline, tmp_path):
    def gaps() -> list[str]:
        return [line.split("\t")[6] for line in dripline("devices", "list")[1].splitlines()]

    path = tmp_path / "devices.csv"
    path.write_text("name,min_gap_s\nd-1,0.75\nd-2,0.25\nd-3,\n")
    assert dripline("devices", "add", "--name", "d-1", "--min-gap-s", "0.5")[0] == 0
    assert gaps() == ["0.5"]
    assert dripline("devices", "import", path)[:2] == (0, "3 rows: 2 created, 1 updated, 0 unchanged, 0 rejected\n")
    assert gaps() == ["0.75", "0.25", "5"]
    assert dripline("devices", "import", path)[1] == "3 rows: 0 created, 0 updated, 3 unchanged, 0 rejected\n"
    assert dripline("devices", "set", "d-2", "--min-gap-s", "2.125")[:2] == (0, "d-2: changed\n")
    assert dripline("devices", "set", "d-2", "--min-gap-s", "2.125")[1] == "d-2: unchanged\n"
    assert gaps() == ["0.75", "2.125", "5"]


def test_a_device_file_with_an_unknown_column_changes_nothing(dripline, database_url, tmp_path):
    path = tmp_path / "devices.csv"
    path.write_text("name,quota_per_hours\nd-1,5\n")
    assert dripline("devices", "import", path) == (
        2,
        "",
        f"error: {path}: unknown column 'quota_per_hours' - did you mean 'quota_per_hour'?\n",
    )
    assert ask(database_url, "SELECT FROM devices") == []


def test_devices_join_groups_and_leave_them(dripline, tmp_path):
    assert dripline("devices", "group", "north")[::2] == (
        2,
        "error: group 'north': it needs a limit - give --per-hour or --per-day\n",
    )
    assert dripline("devices", "group", "north", "--per-hour", "600")[1] == "north: created\n"
    assert dripline("devices", "group", "north", "--per-hour", "600")[1] == "north: unchanged\n"
    assert dripline("devices", "group", "north", "--per-day", "5000")[1] == "north: changed\n"
    assert dripline("devices", "add", "--name", "d-1", "--group", "south")[::2] == (
        2,
        "error: device 'd-1': there is no group 'south' - create it: dripline devices group south --per-day ...\n",
    )
    assert dripline("devices", "add", "--name", "d-1", "--group", "north")[1] == "added d-1\n"
    path = tmp_path / "devices.csv"
    path.write_text("name,group\nd-1,\nd-2,north\nd-3,south\nd-4,-\n")
    status, shown, said = dripline("devices", "import", path)
    assert (status, shown) == (0, "4 rows: 2 created, 0 updated, 1 unchanged, 1 rejected\n")
    assert said == f"{path}, line 4: there is no group 'south'\n"
    groups = [line.split("\t")[-1] for line in dripline("devices", "list")[1].splitlines()]
    assert groups == ["north", "north", "-"]
    assert dripline("devices", "groups")[1] == "north\t2\t0/-\t0/5000\n"
    assert dripline("devices", "set", "d-1", "--quota-per-hour", "5")[1] == "d-1: changed\n"
    assert dripline("devices", "set", "d-1", "--group", "-")[1] == "d-1: changed\n"
    assert dripline("devices", "set", "d-1", "--group", "-")[1] == "d-1: unchanged\n"
    assert dripline("devices", "groups")[1] == "north\t1\t0/-\t0/5000\n"
