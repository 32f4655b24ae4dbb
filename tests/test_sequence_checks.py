"""Looking at sequence files before they are applied: lint, preview and plan."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import asyncpg
import pytest

from dispatcher.cli import main as command_line
from dispatcher.core.graph import Sequence, Step
from dispatcher.intake.lint import Attributes, lint
from dispatcher.intake.plan import Plan, plan
from dispatcher.intake.sequences import Changes, apply
from dispatcher.intake.yaml_file import read

EXAMPLES = Path(__file__).parents[1] / "examples"

WRONG = """\
sequences:
  - name: One
    reentry: sometimes
    steps:
      - {trigger: a, text: x}
      - {trigger: b, txt: x, delay_hours: "2"}
  - name: Two
    steps:
      - {trigger: c, text: Hi, next: d}
      - trigger: d
        text: "{{ name.upper() }}"
        next: nowhere
      - {trigger: e, text: "", delay_hours: 0}
      - {trigger: c, text: Hi}
  - name: Two
    steps: [{trigger: d, text: Hi}]
"""

DOUBTFUL = """\
sequences:
  - name: One
    steps:
      - {trigger: a, text: "{{ nmae }} {{ niche }} {{ company }}", delay_hours: 9000}
      - trigger: b
        text: "{{ name | default('you') }} {{ city | default('there') }}"
        next: null
      - {trigger: c, text: %s}
"""


@pytest.fixture
def dripline(monkeypatch, capsys):
    """Runs a command: exit status, stdout, stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dripline", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            command_line.main()
        return (ended.value.code or 0, *capsys.readouterr())

    return run


def written(folder: Path, content: str, name: str = "sequences.yaml") -> Path:
    path = folder / name
    path.write_text(content, encoding="utf-8")
    return path


# lint ---


def test_everything_that_apply_would_refuse_is_told_at_once_with_line_and_key(tmp_path):
    path = written(tmp_path, WRONG)
    remarks = lint([read(path)])
    errors = [each for each in remarks if each.level == "error"]
    assert [(each.line, each.key, each.problem.partition(" - ")[0]) for each in errors] == [
        (3, "sequences[0].reentry", "it cannot be understood"),
        (6, "sequences[0].steps[1].txt", "unknown key 'txt'"),
        (6, "sequences[0].steps[1].text", "field required"),
        (6, "sequences[0].steps[1].delay_hours", "input should be a valid integer"),
        (11, "sequences[1].steps[1].text", "message text, line 1: 'Call' is not allowed in a message"),
        (12, "sequences[1].steps[1].next", "its next trigger 'nowhere' is no step of this sequence"),
        (13, "sequences[1].steps[2].text", "its message text is empty"),
        (13, "sequences[1].steps[2].delay_hours", "its delay is 0 hours"),
        (14, "sequences[1].steps[3].trigger", "2 steps have this trigger"),
        (15, "sequences[2].name", "this name stands twice"),
        (16, "sequences[2].steps[0].trigger", "sequence 'Two' has a step with this trigger"),
    ]


def test_what_apply_takes_and_nobody_may_have_meant_is_a_warning(tmp_path):
    remarks = lint([read(written(tmp_path, DOUBTFUL % ("x" * 3700)))])
    assert [(each.level, each.line, each.key, each.problem) for each in remarks] == [
        ("warning", 4, "sequences[0].steps[0].text", _lacking("company", "a lead without it gets no message")),
        (
            "warning",
            4,
            "sequences[0].steps[0].text",
            "'niche' is a column of leads, and a message sees only name, phone and attributes",
        ),
        ("warning", 4, "sequences[0].steps[0].text", "no field of leads is called 'nmae'"),
        (
            "warning",
            4,
            "sequences[0].steps[0].delay_hours",
            "from here to the last step it takes 375 days",
        ),
        ("warning", 8, "sequences[0].steps[2].text", "it is 3700 characters long before any variable"),
        ("warning", 8, "sequences[0].steps[2].trigger", "nothing leads to this step: no lead gets it"),
    ]


def _lacking(name: str, why: str) -> str:
    return f"{name!r} is read without default, and {why}: its enrolment fails"


def test_variables_are_held_against_what_the_leads_have(tmp_path):
    path = written(tmp_path, DOUBTFUL % "Hi")
    remarks = lint([read(path)], Attributes(leads=1000, having={"company": 990, "niche": 1000, "cities": 5}))
    assert [f"{each.problem} - {each.advice}" for each in remarks if each.key.endswith(".text")] == [
        "'company' is read without default, and 10 of 1,000 leads lack it - {{ company | default('...') }}",
        "no lead in the database has 'nmae' - did you mean 'name'?",
        "no lead in the database has 'city' - did you mean 'cities'?",
    ]


def test_files_clash_and_a_folder_is_searched_for_sequence_files(tmp_path, dripline):
    steps = "sequences: [{name: %s, steps: [{trigger: a, text: Hi}]}]"
    first, second = written(tmp_path, steps % "A", "1.yaml"), written(tmp_path, steps % "B", "2.yml")
    other = written(tmp_path, "leads: 3", "3.yaml")
    clash = f"{second}:1: error: sequences[0].steps[0].trigger: sequence 'A' has a step with this trigger"
    status, shown, remarks = dripline("sequences", "lint", tmp_path)
    assert (status, shown.splitlines(), remarks) == (
        1,
        [f"{clash} - a trigger belongs to one step; rename one of them", "2 files: 1 errors, 0 warnings"],
        f"{other}: no sequence file\n",
    )
    written(tmp_path, "sequences: []", ".hidden.yaml")
    assert dripline("sequences", "lint", first, tmp_path, second)[1:] == (shown, remarks)
    assert dripline("sequences", "lint", first)[:2] == (0, "1 files: 0 errors, 0 warnings\n")
    assert dripline("sequences", "lint", other)[0] == 1


def test_the_exit_status_and_the_json_say_what_was_found(tmp_path, dripline):
    doubtful, told = written(tmp_path, DOUBTFUL % "Hi"), tmp_path / "told.json"
    assert dripline("sequences", "lint", EXAMPLES)[0] == 0
    assert dripline("sequences", "lint", doubtful)[0] == 0
    assert dripline("sequences", "lint", doubtful, "--strict", "--json", told)[0] == 1
    said = json.loads(told.read_text())
    assert {key: said[key] for key in ("errors", "warnings", "unreadable")} == {
        "errors": 0,
        "warnings": 5,
        "unreadable": [],
    }
    assert said["remarks"][-1] == {
        "level": "warning",
        "path": str(doubtful),
        "line": 8,
        "key": "sequences[0].steps[2].trigger",
        "problem": "nothing leads to this step: no lead gets it",
        "advice": "name it as the next of another step",
    }
    missing = tmp_path / "missing.yaml"
    status, shown, _ = dripline("sequences", "lint", missing, doubtful)
    assert (status, shown.splitlines()[0]) == (2, f"error: {missing}: no such file")


# preview ---

PREVIEWED = """\
sequences:
  - name: One
    steps:
      - {trigger: a, day: 1, text: "Hi {{ name }}", delay_hours: 30}
      - {trigger: b, text: "{% if age > 17 %}From {{ city }}{% endif %}", media_url: "https://example.org/b.png"}
"""


def test_a_preview_shows_every_message_as_an_invented_lead_would_get_it(tmp_path, dripline):
    path = written(tmp_path, PREVIEWED)
    given = ["--set", "name=Ann", "--set", "age=42"]
    status, shown, _ = dripline("sequences", "preview", path, *given, "--set", "city=Paris")
    assert (status, shown.splitlines()) == (
        0,
        [
            "One, entered by a",
            "",
            "  a, day 1: at once",
            "    Hi Ann",
            "",
            "  b: 1 d 6 h after entering",
            "    From Paris",
            "    https://example.org/b.png",
        ],
    )
    status, shown, _ = dripline("sequences", "preview", path, *given)
    assert (status, shown.splitlines()[-1]) == (1, "step 'b' of 'One': content error: 'city' is undefined")
    assert dripline("sequences", "preview", path, "--set", "name")[0::2] == (
        2,
        "error: --set: 'name' is no field and value - write it like name=Ann\n",
    )


# With a database ---


async def test_a_plan_says_what_becomes_of_the_leads_and_writes_nothing(connection):
    first, entering = Step("a1", "old", "a2", 24, is_entry=True), Step("a2", "old", "a3", 24)
    last = Step("a3", "old", None)
    await apply(connection, [Sequence(None, "A", True, (first, entering, last))])
    await connection.execute(
        "INSERT INTO leads (phone, trigger, opted_out_at) VALUES"
        " ('601', 'b1', NULL), ('602', 'x, b1', NULL), ('603', 'b1', now()), ('604', 'b11', NULL), ('605', 'a1', NULL)"
    )
    await connection.execute(
        "INSERT INTO sequence_contacts (sequence_id, lead_id, contact_phone, entry_trigger, current_trigger, status)"
        " SELECT s.id, n, n::text, 'a1', 'a' || n % 3 + 1, CASE WHEN n > 6 THEN 'completed' ELSE 'active' END"
        " FROM sequences s, generate_series(1, 9) n"
    )
    await connection.execute("DELETE FROM lead_changes")
    before = await connection.fetch("SELECT xmin::text, ctid::text FROM sequence_steps")
    wanted = [
        Sequence(None, "A", True, (Step("a1", "new", "a2", 48, is_entry=True), Step("a2", "old", None))),
        Sequence(None, "B", True, (Step("b1", "text", is_entry=True),)),
    ]
    found = await plan(connection, wanted)
    assert found == Plan(
        Changes(
            created=["sequence 'B'", "step 'b1' of 'B'"],
            updated=[
                "step 'a1' of 'A' (message_text: 'old' -> 'new', delay_h: 24 -> 48)",
                "step 'a2' of 'A' (next_trigger: 'a3' -> None)",
            ],
            removed=["step 'a3' of 'A'"],
            unchanged=["sequence 'A'"],
        ),
        [
            "2 live enrolments stand at step 'a1' and get the new text, but for those whose message is on its way, "
            "wait 48 h after it instead of 24 h",
            "2 live enrolments stand at step 'a2' and end after it instead of going on to 'a3'",
            "entry 'b1' of 'B' opens: 2 leads carry it and are enrolled at once",
        ],
        found.refusals,
    )
    assert list(map(str, found.refusals)) == [
        "sequence 'A', step 'a3': it is gone from the file, but 2 live enrolments stand at it"
        " - keep the step until they have moved on"
    ]
    assert await connection.fetch("SELECT xmin::text, ctid::text FROM sequence_steps") == before


async def test_a_plan_counts_by_the_rules_of_enrolling(connection):
    paused = Sequence(None, "A", False, (Step("a1", "text", is_entry=True),), requires_opt_in=True)
    await apply(connection, [paused])
    await connection.execute(
        "INSERT INTO leads (id, phone, trigger, opted_in_at) OVERRIDING SYSTEM VALUE"
        " SELECT n, '60' || n, 'a1', CASE WHEN n > 1 THEN now() END FROM generate_series(1, 6) n"
    )
    await connection.execute(
        "INSERT INTO sequence_contacts (sequence_id, lead_id, contact_phone, entry_trigger, current_trigger, status,"
        " trigger_kept, finished_at) SELECT s.id, v.* FROM sequences s, (VALUES"
        " (2, '602', 'a1', 'a1', 'active', false, NULL), (3, '603', 'a1', 'a1', 'failed', true, now()),"
        " (4, '604', 'a1', 'a1', 'completed', false, now() - interval '2 days'),"
        " (5, '605', 'a1', 'a1', 'completed', false, now())) v"
    )

    async def consequences(**options: object) -> list[str]:
        wanted = Sequence(None, "A", True, paused.steps, requires_opt_in=True, **options)
        return (await plan(connection, [wanted])).consequences

    going_on = "the 1 live enrolments of 'A' go on; what is overdue is spread over the devices' quotas"
    opens = "entry 'a1' of 'A' opens: {} leads carry it and are enrolled at once"
    assert await consequences() == [going_on, opens.format(3)]
    assert await consequences(reentry="never") == [going_on, opens.format(1)]
    assert await consequences(reentry="after_interval", reentry_interval_h=24.0) == [going_on, opens.format(2)]


def on_database(url: str, body: Callable[[asyncpg.Connection], Awaitable[object]]) -> None:
    """For tests of commands, which run a loop of their own."""

    async def run() -> None:
        connection = await asyncpg.connect(url)
        try:
            await body(connection)
        finally:
            await connection.close()

    asyncio.run(run())


def test_the_leads_of_a_database_are_previewed_and_held_against(database_url, tmp_path, dripline):
    nobody = dripline("sequences", "lint", EXAMPLES / "fitness.yaml", "--with-leads", "--database-url", database_url)
    assert nobody[0::2] == (
        2,
        "reading the attributes of all leads\n"
        "error: --with-leads: there are no leads in the database - leave it out, or import leads first\n",
    )
    leads = """INSERT INTO leads (phone, name, attributes) VALUES
        ('60123456789', 'Ann', '{"age": 42, "city": "Paris"}'), ('60123456780', NULL, '{"age": 1, "city": ""}')"""
    on_database(database_url, lambda connection: connection.execute(leads))
    path, there = written(tmp_path, PREVIEWED), ("--database-url", database_url)
    called = ("sequences", "preview", path, "--lead", "+60 12-345 6789", "--set", "name=Bo")
    status, shown, _ = dripline(*called, *there)
    assert (status, shown.splitlines()[3], shown.splitlines()[6]) == (0, "    Hi Bo", "    From Paris")
    status, shown, remarks = dripline("sequences", "lint", path, "--with-leads", *there)
    assert (status, [line.partition("text: ")[2] for line in shown.splitlines()[:-1]]) == (
        0,
        [
            "'name' is read without default, and 1 of 2 leads lack it - {{ name | default('...') }}",
            "'city' is read without default, and 1 of 2 leads lack it - {{ city | default('...') }}",
        ],
    )
    assert remarks == "reading the attributes of all leads\n"


def test_a_dry_run_is_the_plan(database_url, tmp_path, dripline):
    async def body(connection: asyncpg.Connection) -> None:
        await apply(connection, [Sequence(None, "A", True, (Step("a1", "x", "a2", is_entry=True), Step("a2", "x")))])
        await connection.execute(
            "INSERT INTO sequence_contacts (sequence_id, lead_id, contact_phone, entry_trigger, current_trigger)"
            " SELECT id, 1, '601', 'a1', 'a2' FROM sequences"
        )

    on_database(database_url, body)
    path = written(tmp_path, "sequences: [{name: A, steps: [{trigger: a1, text: x}]}]")
    there = ("--database-url", database_url)
    planned = dripline("sequences", "plan", path, *there)
    assert planned == (
        2,
        "would be updated: step 'a1' of 'A' (next_trigger: 'a2' -> None)\n"
        "would be removed: step 'a2' of 'A'\n"
        "unchanged: 1 of 3 sequences and steps\n"
        "would be refused: sequence 'A', step 'a2': it is gone from the file, but 1 live enrolments stand at it"
        " - keep the step until they have moved on\n",
        "",
    )
    assert dripline("apply", path, "--dry-run", *there) == planned
