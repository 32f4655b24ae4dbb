"""Sent or not, nobody knows: what an operator sees of it, and what an operator's word does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from dispatcher.core.catalogue import Catalogue
from dispatcher.core.outcomes import Outcome
from dispatcher.store.connect import connect
from dispatcher.store.in_doubt import Resolved, Which, Word, count_in_doubt, list_in_doubt, resolve
from dispatcher.store.registry import read_sequences

CLEAN = {name: value for name, value in os.environ.items() if not name.startswith("DRIPLINE_")}
HOUR_US = 3_600_000_000


def dripline(world, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from dispatcher.cli.main import main; main()", *arguments, "--database-url", world.url],
        capture_output=True, text=True, stdin=subprocess.DEVNULL, env=CLEAN, timeout=60, check=False,
    )  # fmt: skip


async def forgetful(new_world, *triggers: str):
    """One device whose gateway honours no keys, a sequence of ``triggers``, and three leads at its first step."""
    world = await new_world(0)
    await world.devices(1, gateway_idempotent=False)
    await world.sequence("Fitness", *triggers)
    await world.begin()
    for _ in range(3):
        await world.lead(triggers[0])
    return world


async def in_doubt(new_world, answer, *triggers: str):
    """As ``forgetful``, an hour after the gateway went silent about all three."""
    world = await forgetful(new_world, *triggers)
    world.sender.script = {f"99910{n}": [answer("in_doubt", "no answer in time")] for n in (1, 2, 3)}
    await world.tick()
    await later(world, 1)
    return world


async def later(world, hours: float) -> None:
    await world.hours(hours)
    await world.execute("UPDATE dripline_database SET clock = dripline_at($1)", world.now_us)


async def say(world, word: Word, which: Which | None = None, **options: Any) -> Resolved:
    catalogue = Catalogue.of(await read_sequences(world.connection))
    return await resolve(world.connection, which or Which(), word, catalogue, actor="ann", **options)


async def test_what_an_operator_sees_of_it(new_world, answer):
    world = await in_doubt(new_world, answer, "start", "day2")
    slot = await world.value("SELECT min(reserved_at) FROM message_ledger")
    assert (await list_in_doubt(world.connection, Which(), rows=1)) == [
        {
            "id": 1,
            "phone": "999101",
            "sequence": "Fitness",
            "step": "start",
            "device": "d-1",
            "handed_at": slot,
            "tries": 1,
            "text": "text of start",
            "why": "no answer in time",
            "state": "held",
        }
    ]
    assert await count_in_doubt(world.connection, Which(older_than_h=0.9)) == (3, 0)
    assert await count_in_doubt(world.connection, Which(older_than_h=1.1)) == (0, 0)
    assert await count_in_doubt(world.connection, Which(sequence=2)) == (0, 0)


async def test_accepted_moves_on_as_if_the_answer_had_come(new_world, answer):
    world = await in_doubt(new_world, answer, "start", "day2")
    slot_us = await world.value("SELECT dripline_us(reserved_at) FROM message_ledger WHERE enrolment_id = 2")
    assert await say(world, Word.ACCEPTED, Which([2])) == Resolved([2], None)
    assert await world.states() == [
        ("999101", "start", 1, "in_doubt", False, None),
        ("999102", "day2", 2, "active", False, None),
        ("999103", "start", 1, "in_doubt", False, None),
    ]
    assert await world.rows(
        "SELECT outcome, dripline_us(accepted_at), error FROM message_ledger WHERE enrolment_id = 2"
    ) == [("accepted", slot_us, None)]
    assert (
        await world.value("SELECT dripline_us(next_trigger_time) FROM sequence_contacts WHERE id = 2")
        == slot_us + 24 * HOUR_US
    )
    await later(world, 24)
    await world.coordinator.probe()
    await world.tick()
    assert world.sent()[3:] == [("999102", "day2")]


async def test_the_operator_may_say_when_the_next_step_is_due(new_world, answer):
    world = await in_doubt(new_world, answer, "start", "day2")
    await say(world, Word.ACCEPTED, due_us=world.now_us + HOUR_US)
    assert await world.rows("SELECT DISTINCT dripline_us(next_trigger_time) FROM sequence_contacts") == [
        (world.now_us + HOUR_US,)
    ]


async def test_accepted_at_the_last_step_completes_and_takes_the_trigger_off(new_world, answer):
    world = await in_doubt(new_world, answer, "start")
    await say(world, Word.ACCEPTED)
    await world.tick()
    assert {row[3] for row in await world.states()} == {"completed"}
    assert await world.rows("SELECT DISTINCT trigger FROM leads") == [(None,)]


async def test_where_an_accepted_step_that_is_gone_leads_is_known_once_it_is_back(new_world, answer):
    world = await in_doubt(new_world, answer, "start", "day2")
    await world.execute("DELETE FROM sequence_steps WHERE trigger = 'start'")
    assert await say(world, Word.ACCEPTED) == Resolved([], None)
    named = dripline(world, "in-doubt", "resolve", "1", "--as", "accepted")
    assert (named.returncode, named.stderr) == (1, "enrolment 1: its step 'start' is gone: put it back first\n")
    others = dripline(world, "in-doubt", "resolve", "--sequence", "Fitness", "--as", "accepted", "--yes")
    assert others.returncode == 0
    assert others.stderr.startswith("some were left, such as enrolment 1: its step 'start' is gone")
    assert {row[3:] for row in await world.attempts()} == {(1, "in_doubt")}
    await world.execute(
        "INSERT INTO sequence_steps (sequence_id, trigger, message_text, next_trigger, is_entry_point) "
        "SELECT id, 'start', 'Hello', 'day2', true FROM sequences"
    )
    assert await say(world, Word.ACCEPTED) == Resolved([1, 2, 3], None)
    assert {row[1:4] for row in await world.states()} == {("day2", 2, "active")}


async def test_not_sent_waits_again_and_is_sent(new_world, answer):
    world = await in_doubt(new_world, answer, "start", "day2")
    assert await say(world, Word.NOT_SENT) == Resolved([1, 2, 3], None)
    assert {row[3:] for row in await world.attempts()} == {(1, "not_sent")}
    await world.coordinator.probe()
    await world.tick()
    assert sorted(world.sent()[3:]) == [("999101", "start"), ("999102", "start"), ("999103", "start")]
    assert {row[3:] for row in await world.attempts()} == {(1, "not_sent"), (2, "accepted")}
    assert {row[1:4] for row in await world.states()} == {("day2", 2, "active")}


async def test_an_opt_out_meanwhile_stops_what_was_not_sent(new_world, answer):
    world = await in_doubt(new_world, answer, "start", "day2")
    await world.execute("UPDATE leads SET opted_out_at = dripline_now() WHERE phone = '999101'")
    await world.tick()
    await say(world, Word.NOT_SENT, Which([1]))
    assert (await world.states())[0] == ("999101", "start", 1, "stopped", False, "opted out")


@pytest.mark.parametrize("word", Word)
async def test_a_refusal_before_the_attempt_in_doubt_does_not_stand_in_the_way(new_world, answer, word):
    world = await forgetful(new_world, "start", "day2")
    world.sender.script["999101"] = [answer("refused", "no route"), answer("in_doubt", "reset")]
    await world.tick()
    await later(world, 1)
    await world.tick()
    await later(world, 1)
    await say(world, word)
    mine = [row[3:] for row in await world.attempts() if row[0] == "999101"]
    known = {Word.ACCEPTED: "accepted", Word.NOT_SENT: "not_sent"}[word]
    assert mine == [(1, "refused"), (2, known)]
    assert (await world.states())[0][1:4] == (("day2", 2) if word is Word.ACCEPTED else ("start", 1)) + ("active",)


async def test_of_several_unknown_attempts_the_earliest_counts_as_the_accepted_one(world, answer):
    await world.begin()
    await world.lead("fitness_start")
    world.sender.script["999101"] = [answer("in_doubt", "reset")] * 2
    for _ in range(2):
        await world.tick()
        await later(world, 0.5)
    await say(world, Word.ACCEPTED)
    assert [row[3:] for row in await world.attempts()] == [(1, "accepted"), (2, "in_doubt")]
    assert await world.states() == [("999101", "fitness_day2", 2, "active", False, None)]
    assert await count_in_doubt(world.connection, Which()) == (0, 0)


async def test_not_sent_ends_all_unknown_attempts_and_a_resend_that_waited(world, answer):
    await world.begin()
    await world.lead("fitness_start")
    world.sender.script["999101"] = [answer("in_doubt", "reset")] * 2
    for _ in range(2):
        await world.tick()
        await later(world, 0.5)
    [row] = await list_in_doubt(world.connection, Which())
    assert (row["state"], row["tries"]) == ("resend", 2)
    await say(world, Word.NOT_SENT)
    assert [row[3:] for row in await world.attempts()] == [(1, "not_sent"), (2, "not_sent")]
    assert await world.rows("SELECT status, pinned, resend_text FROM sequence_contacts") == [("active", False, None)]


async def test_what_is_under_way_is_left_to_its_own_end(world, answer):
    await world.begin()
    await world.lead("fitness_start")
    world.sender.script["999101"] = [answer("in_doubt", "reset")]
    await world.tick()
    assert await count_in_doubt(world.connection, Which()) == (1, 1)  # it may leave until its deadline
    assert await say(world, Word.NOT_SENT) == Resolved([], None)
    await later(world, 0.5)
    said = []

    async def meanwhile():
        said.append((await list_in_doubt(world.connection, Which()))[0]["state"])
        said.append(await say(world, Word.NOT_SENT))

    world.sender.meanwhile = meanwhile
    world.sender.script["999101"] = [answer("repeat")]
    await world.tick()
    assert said == ["under way", Resolved([], None)]
    assert [row[3:] for row in await world.attempts()] == [(1, "accepted"), (2, "repeat")]


async def test_a_second_word_changes_nothing_and_the_first_is_on_record(new_world, answer):
    world = await in_doubt(new_world, answer, "start", "day2")
    await say(world, Word.ACCEPTED, Which([1]))
    assert await say(world, Word.NOT_SENT, Which([1])) == Resolved([], None)
    log = await world.rows("SELECT at, actor, action, subject, detail FROM operator_log")
    assert [(*row[:4], json.loads(row[4])) for row in log] == [
        (
            await world.value("SELECT clock FROM dripline_database"),
            "ann",
            "in-doubt resolve",
            "enrolment 1",
            {"as": "accepted", "step": "start", "visit": 1, "attempts": [1]},
        )
    ]


async def test_pages_follow_each_other_until_all_are_seen(new_world, answer):
    world = await in_doubt(new_world, answer, "start", "day2")
    assert await say(world, Word.NOT_SENT, rows=2) == Resolved([1, 2], 2)
    assert await say(world, Word.NOT_SENT, rows=2, after=2) == Resolved([3], None)


async def test_an_enrolment_that_somebody_holds_is_passed_over(new_world, answer):
    world = await in_doubt(new_world, answer, "start", "day2")
    other = await connect(world.url)
    async with other.transaction():
        await other.execute("SELECT FROM sequence_contacts WHERE id = 2 FOR UPDATE")
        assert await say(world, Word.NOT_SENT) == Resolved([1, 3], None)
    await other.close()
    assert await say(world, Word.NOT_SENT) == Resolved([2], None)


async def test_a_late_answer_to_a_second_attempt_is_not_its_own_predecessor(new_world, answer):
    """The lease of an attempt ended, so it is in doubt; then its own acceptance comes after all."""
    world = await forgetful(new_world, "start", "day2")
    world.sender.script["999101"] = [answer("refused", "no route")]
    await world.tick()
    await later(world, 1)

    async def lease_ends():
        await world.execute(
            "UPDATE sequence_contacts SET processing_device_id = NULL, processing_started_at = NULL,"
            " lease_deadline_at = NULL, lease_token = NULL, lease_epoch = NULL, status = 'in_doubt'"
        )
        await world.execute(
            "INSERT INTO message_ledger (enrolment_id, sequence_id, lead_id, shard_epoch, due_at, reserved_at,"
            " deadline_at, device_id, idempotency_key, visit, generation, attempt, outcome, step_trigger)"
            " SELECT id, sequence_id, lead_id, 1, next_trigger_time, dripline_at($1), dripline_at($1),"
            " home_device_id, gen_random_uuid(), visit, generation, attempt, 'in_doubt', current_trigger"
            " FROM sequence_contacts WHERE id = 1",
            world.now_us,
        )

    world.sender.meanwhile = lease_ends
    world.sender.script["999101"] = [answer("accepted")]
    await world.tick()
    assert world.sender.requests[-1].attempt == 2
    assert [row[3:] for row in await world.attempts() if row[0] == "999101"] == [(1, "refused"), (2, "accepted")]
    assert (await world.states())[0] == ("999101", "day2", 2, "active", False, None)


async def test_the_commands(new_world, answer):
    world = await in_doubt(new_world, answer, "start", "day2")
    listed = dripline(world, "in-doubt", "list", "--sequence", "Fitness", "--limit", "1")
    enrolment, phone, *_, state, said, why = listed.stdout.rstrip("\n").split("\t")
    assert (enrolment, phone, state, said, why) == ("1", "999101", "held", "text of start", "no answer in time")
    assert listed.stderr == "2 more - see them with --limit\n"
    shown = json.loads(dripline(world, "in-doubt", "list", "--json").stdout)
    assert [row["id"] for row in shown] == [1, 2, 3]

    asked = dripline(world, "in-doubt", "resolve", "--older-than", "0.5", "--as", "accepted")
    assert (asked.returncode, asked.stderr) == (
        2,
        "error: in-doubt resolve: 3 enrolments as accepted? Nobody can be asked here - give --yes\n",
    )
    done = dripline(world, "in-doubt", "resolve", "1", "99", "--as", "accepted", "--by", "ann")
    assert (done.returncode, done.stdout, done.stderr) == (
        1,
        "1 resolved as accepted\n",
        "enrolment 99: nothing is in doubt there\n",
    )
    bulk = dripline(world, "in-doubt", "resolve", "--sequence", "Fitness", "--as", "not-sent", "--yes")
    assert (bulk.returncode, bulk.stdout, bulk.stderr) == (0, "2 resolved as not-sent\n", "")
    explained = dripline(world, "explain", "999101").stdout.splitlines()
    assert explained[-1].endswith(
        ", ann: in-doubt resolve, enrolment 1, as accepted, step start, visit 1, attempts [1]"
    )


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("1",), "--as: it is missing - say accepted or not-sent"),
        (
            ("--as", "accepted"),
            "in-doubt resolve: which ones? - name enrolments, or give --sequence, --older-than or both",
        ),
        (("1", "--as", "not-sent", "--due", "2026-01-05"), "--due: what was not sent is due as it was - leave it out"),
        (("1", "--as", "accepted", "--due", "soon"), "--due: 'soon' is no moment - write it like 2026-01-05T09:00:00Z"),
        (("--sequence", "Yoga", "--as", "accepted"), "sequence 'Yoga': there is none - see: dripline sequences list"),
    ],
)
async def test_what_cannot_be_meant_is_refused_in_one_line(world, arguments, line):
    done = dripline(world, "in-doubt", "resolve", *arguments)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: {line}\n")


async def test_a_page_is_found_by_its_index_among_many_others(new_world):
    world = await new_world()
    await world.execute(
        "INSERT INTO sequence_contacts (sequence_id, lead_id, contact_phone, entry_trigger, current_trigger, status,"
        " next_trigger_time) SELECT 1, n, n::text, 'a', 'a', CASE WHEN n % 5000 = 0 THEN 'in_doubt' ELSE 'active' END,"
        " now() FROM generate_series(1, 20000) n"
    )
    await world.execute("ANALYZE sequence_contacts")
    plan = "\n".join(row[0] for row in await world.rows(
        "EXPLAIN SELECT id FROM enrolments_in_doubt WHERE id > 0 ORDER BY id LIMIT 100"))  # fmt: skip
    assert "sequence_contacts_doubtful" in plan
    assert "Seq Scan on sequence_contacts" not in plan
    assert [row["id"] for row in await list_in_doubt(world.connection, Which())] == [5000, 10000, 15000, 20000]


def test_the_words_are_outcomes_the_ledger_knows():
    assert {word.value.replace("-", "_") for word in Word} <= {outcome.label for outcome in Outcome}
