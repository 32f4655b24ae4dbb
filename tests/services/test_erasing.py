"""A lead is deleted with all that is personal, while the services are at work; what is counted stays."""

from __future__ import annotations

import subprocess
import sys

import pytest

from dispatcher.core.moments import span_us
from dispatcher.store.bodies import unpacked
from dispatcher.store.erasure import Erased, erase, sweep

ANN, BOB = "999101", "999102"
DAY_US = 24 * 3_600_000_000


async def everything(world) -> dict[str, list[str]]:
    """Every row of every table as text, and what the records of hand-overs say."""
    tables = await world.rows(
        "SELECT relname FROM pg_class"
        " WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND relname <> 'handovers'"
    )
    found = {
        name: [row[0] for row in await world.rows(f"SELECT t::text FROM {name} t ORDER BY t::text")]
        for (name,) in tables
    }
    records = await world.rows("SELECT bodies FROM handovers")
    return found | {"handovers": [str(said) for (bodies,) in records for said in unpacked(bodies)]}


async def holding(world, *words: str) -> set[str]:
    """The tables that say one of these words."""
    return {
        name for name, rows in (await everything(world)).items() if any(word in row for row in rows for word in words)
    }


async def personal(new_world, answer):
    """Ann and Bob, after an acceptance, a refusal that quotes Ann's number, and an attempt in doubt, each."""
    world = await new_world(0)
    await world.devices(1, gateway_idempotent=False)
    for name in ("a", "b", "c"):
        await world.sequence(name, name, f"{name}_2")
    await world.execute("UPDATE sequence_steps SET message_text = 'Dear {{ name }} of {{ city }}'")
    await world.begin()
    for name in ("Ann", "Bob"):
        await world.lead("a,b,c", name=name, attributes=f'{{"city": "{name}ville"}}')
    for phone in (ANN, BOB):
        script = [answer("accepted"), answer("refused", f"no account {phone}"), answer("in_doubt", f"lost {phone}")]
        world.sender.script[phone] = script
        await world.execute(
            "INSERT INTO replies (phone, lead_id, text)"
            " SELECT phone, id, 'yours, ' || name FROM leads WHERE phone = $1",
            phone,
        )
    await world.execute("INSERT INTO suppressions (phone, reason) VALUES ('777', 'another one')")
    await world.tick()
    assert [row[4] for row in await world.attempts()].count("in_doubt") == 2
    return world


async def test_nothing_personal_is_left_anywhere_and_everything_is_counted_still(new_world, answer):
    world = await personal(new_world, answer)
    assert await holding(world, ANN, "Ann") > {"leads", "replies", "handovers", "sequence_contacts"}
    count = "SELECT status, count(*) FROM {} GROUP BY 1 ORDER BY 1"
    outcomes = "SELECT outcome, count(*) FROM message_ledger GROUP BY 1 ORDER BY 1"
    bobs = [row for rows in (await everything(world)).values() for row in rows if BOB in row or "Bob" in row]
    before = await world.rows(outcomes)

    done = await erase(world.connection, [ANN], "ann")
    assert await sweep(world.connection) == 0
    assert done == Erased(1, 3, 3, 3, 1, 0, frozenset([ANN]))
    assert await holding(world, ANN, "Ann") == set()
    assert await world.rows(outcomes) == before
    assert await world.rows(count.format("sequence_contacts")) == [("active", 2), ("in_doubt", 2), ("stopped", 2)]
    assert [row for row in await world.states() if row[0] == ""] == [
        ("", "a_2", 2, "stopped", False, "lead deleted"),
        ("", "b", 1, "stopped", False, "lead deleted"),
        ("", "c", 1, "in_doubt", False, "lead deleted"),
    ]
    assert [row for rows in (await everything(world)).values() for row in rows if BOB in row or "Bob" in row] == bobs
    assert await world.rows("SELECT actor, action, subject, detail FROM operator_log") == [
        ("ann", "leads delete", "lead 1", '{"enrolments": 3}'),
        ("ann", "leads delete", "database", '{"replies": 1, "suppressions": 0}'),
    ]
    await world.hours(24)
    await world.tick()
    assert [phone for phone, _ in world.sent()[6:]] == [BOB, BOB]


async def test_a_dry_run_says_the_same_and_changes_nothing(new_world, answer):
    world = await personal(new_world, answer)
    before = await everything(world)
    told = await erase(world.connection, [ANN, "999"], "ann", dry_run=True)
    assert (await everything(world), told) == (before, await erase(world.connection, [ANN, "999"], "ann"))


@pytest.mark.parametrize(
    ("outcome", "state"),
    [
        ("accepted", ("", "fitness_day2", 2, "stopped", False, "lead deleted")),
        ("refused", ("", "fitness_start", 1, "stopped", False, "lead deleted")),
        ("in_doubt", ("", "fitness_start", 1, "in_doubt", False, "lead deleted")),
        ("opted_out", ("", "fitness_start", 1, "stopped", False, "lead deleted")),
    ],
)
async def test_an_attempt_under_way_ends_as_ever_and_what_it_writes_is_swept(new_world, answer, outcome, state):
    world = await new_world(0)
    await world.devices(1, gateway_idempotent=False)
    await world.fitness()
    await world.begin()
    await world.lead("fitness_start", name="Ann")
    await world.execute("UPDATE sequence_steps SET message_text = 'Dear {{ name }}'")
    left = []

    async def meanwhile() -> None:
        await erase(world.connection, [ANN], "ann")
        left.append(await sweep(world.connection))

    world.sender.meanwhile = meanwhile
    world.sender.script[ANN] = [answer(outcome, f"about {ANN}")]
    await world.tick()
    assert (left, await world.states(), [row[4] for row in await world.attempts()]) == ([1], [state], [outcome])
    await world.hours(24)
    await world.tick()  # a new day: the engine sweeps
    assert (await holding(world, ANN, "Ann"), len(world.sent())) == (set(), 1)
    await world.hours(24)
    await world.tick()
    assert await world.value("SELECT count(*) FROM erased_leads") == (outcome == "in_doubt")
    await world.execute("INSERT INTO leads (phone) VALUES ($1)", ANN)
    assert await world.value("SELECT opted_out_at IS NOT NULL FROM leads") is (outcome == "opted_out")


async def test_what_is_claimed_does_not_leave_once_its_lead_is_deleted(world):
    await world.begin()
    await world.lead("fitness_start")
    world.shards.hand_over = False
    await world.tick()
    await erase(world.connection, [ANN], "ann")
    done = await world.shards.shards[0].hand_over(world.now_us - span_us(60), world.now_us)
    assert (done.handed, done.given_back, world.sent()) == (0, 1, [])
    assert await world.states() == [("", "fitness_start", 1, "stopped", False, "lead deleted")]


async def test_who_was_enrolled_by_a_batch_that_committed_later_is_stopped_and_swept(world):
    await world.begin()
    await world.lead(None)
    await erase(world.connection, [ANN], "ann")
    await world.execute(
        "INSERT INTO sequence_contacts (sequence_id, lead_id, contact_phone, entry_trigger, current_trigger,"
        " next_trigger_time) VALUES (1, 1, $1, 'fitness_start', 'fitness_start', dripline_now())",
        ANN,
    )
    assert await (await world.store()).begin_day(world.now_us, 2, DAY_US) == 0
    assert await world.states() == [("", "fitness_start", 1, "stopped", False, "lead deleted")]


async def test_enrolments_of_a_lead_that_sql_had_deleted_lose_the_number_too(world):
    await world.begin()
    await world.lead("fitness_start")
    await world.tick()
    await world.execute("DELETE FROM leads")
    await world.tick()
    done = await erase(world.connection, [ANN], "ann")
    assert (done.leads, done.enrolments, done.known) == (0, 1, frozenset([ANN]))
    assert await holding(world, ANN) == set()


async def test_a_suppressed_number_is_kept_as_a_digest_that_still_recognises_it(world):
    await world.execute("INSERT INTO suppressions (phone, reason) VALUES ($1, 'complaint')", ANN)
    await world.lead("fitness_start")
    done = await erase(world.connection, [ANN], "ann")
    assert (done.leads, done.listed, await holding(world, ANN)) == (1, 1, set())
    await world.execute("INSERT INTO leads (phone) VALUES ($1)", ANN)
    assert await world.value("SELECT opted_out_at IS NOT NULL FROM leads")


async def test_the_command(world, tmp_path):
    def dripline(*arguments: str) -> tuple[int, str, str]:
        code = "from dispatcher.cli.main import main; main()"
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments, "--database-url", world.url],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
        )
        return done.returncode, done.stdout, done.stderr

    await world.begin()
    await world.lead("fitness_start")
    await world.tick()
    (tmp_path / "gone.csv").write_text(f"Number\n{ANN}\nnobody\n")
    given = ("leads", "delete", "--file", "gone.csv", "--column", "Number")
    line = (
        "1 leads {}deleted, 1 live enrolments {}stopped; 1 enrolments and 1 attempts {}kept without what is personal\n"
    )
    unread = "left out: line 3, 'nobody': not a phone number\n"
    assert dripline(*given, "--dry-run") == (1, line.replace("{}", "would be "), unread)
    assert dripline(*given)[2] == (
        f"{unread}error: leads delete: Delete all that is personal of 1 numbers, for good? Nobody can be asked here"
        " - give --yes\n"
    )
    assert dripline(*given, "--yes", "--by", "ann") == (1, line.replace("{}", ""), unread)
    assert await world.value("SELECT count(*) FROM leads") == 0
    code, _, said = dripline("explain", "1")
    assert (code, said.partition("deleted ")[0]) == (2, "error: lead '1': it was ")
