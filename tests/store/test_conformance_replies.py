"""Replies: what the stores promise of them, told on PostgreSQL and on its twin alike."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dispatcher.core.graph import Step
from dispatcher.ports import Enrolled

SECOND_US = 1_000_000
HOUR_US = 3600 * SECOND_US
WAITING, LEASED = ("start", "active", 1, 0, False, False, None), ("start", "active", 1, 1, True, False, None)
REPLIED = ("start", "stopped", 1, 0, False, False, "replied")
STOPS = [
    *("STOP", " stop. ", "Stop!!!", "*STOP*", "\uff33\uff34\uff2f\uff30", "stop 🛑", "🙏\ufe0f STOP", "opt-out"),
    *("Please, stop", "Unsubscribe", "berhenti", "BERHENTI BERLANGGANAN", "¡Para!", "Não quero mais", "Arrêter"),
    *("ARRE\u0302TER", "KÜNDIGEN", "basta", "Afmelden", "REZYGNUJĘ", "iptal", "İPTAL", "ОТПИСАТЬСЯ", "отписаться!"),
    *("досить", "itigil", "बंद करो।", "நிறுத்து", "বন্ধ করুন", "بند کرو۔", "توقف", "إلغاء الاشتراك", "הסר", "退订。"),
    *("「停止」", "配信停止", "수신거부", "ยกเลิก", "Dừng", "HỦY", "Từ chối"),
]
GOES_ON = [
    *("", "!", "stopping", "non-stop", "Please don't stop", "I will stop by tomorrow", "end of the month?", "Huy"),
    *("cancelled", "остановка", "هل توقف", "stop" + "!" * 300, "STOP STOP STOP", "no\nstop"),
]


async def replies_end_it(story: Any) -> None:
    """The sequence exits on a reply."""
    await story.world.set_sequence(1, exit_on_reply=True)
    story.catalogue = await story.store.catalogue(story.now_us)


async def pending(story: Any) -> list[tuple[int, int]]:
    return list((await story.world.tables())["exits"])


async def test_a_reply_ends_what_exits_on_replies_and_nothing_else(story):
    await replies_end_it(story)
    await story.world.add_sequence("goes on", [Step("on", "text", None, 1, 1, True)])
    story.catalogue = await story.store.catalogue(story.now_us)
    await story.leads("start,on", "start")
    assert await story.world.reply("+99 910-1", "Thanks!") is True
    assert await pending(story) == [(1, 1)]
    assert await story.enrol() == Enrolled(1, 1, {})
    assert await story.states() == [REPLIED, ("on", "active", 1, 0, False, False, None), WAITING]
    tables = await story.world.tables()
    assert (tables["exits"], tables["leads"][0][1], tables["enrolments"][0][22]) == ([], "start,on", True)
    assert tables["replies"] == [("+99 910-1", 1, "Thanks!", story.now_us, None, None)]


async def test_nothing_leaves_once_the_reply_is_there_and_the_lease_ends_stopped(story):
    await replies_end_it(story)
    await story.leads("start", "start")
    leased = await story.claim()
    await story.world.reply("999101", "Thanks!")
    assert await story.look(leased) == {0: "replied"}
    await story.enrol()
    assert await story.look(leased) == {0: "stopped"}
    await story.end(leased, "refused", "accepted")
    assert await story.states() == [
        ("start", "stopped", 1, 1, False, False, "replied"),
        ("two", "active", 2, 0, False, False, None),
    ]
    assert await pending(story) == []


async def test_a_lease_that_is_given_back_before_the_enroller_comes_ends_with_the_reply(story):
    await replies_end_it(story)
    await story.leads("start")
    leased = await story.claim()
    await story.world.reply("999101", "Thanks!")
    token = np.full(1, leased.token, np.int64)
    stop, no = ["replied"], [False]
    given = await story.shard.give_back(leased.enrolment, token, leased.due_us, stop, story.now_us, no, no)
    assert given == 1
    assert await story.states() == [REPLIED]
    assert await story.enrol() == Enrolled(1, 0, {})
    assert await pending(story) == []


async def test_who_enters_anew_after_a_reply_stays(story):
    await replies_end_it(story)
    await story.leads("start")
    await story.world.reply("999101", "Thanks!")
    await story.enrol()
    await story.world.set_lead(1, trigger=None)
    await story.enrol()
    await story.wait(HOUR_US)
    await story.world.set_lead(1, trigger="start")
    assert (await story.enrol()).home != {}
    # Told late: it was received before the lead came back.
    await story.world.reply("999101", "I mean it", received_us=story.now_us - 1)
    assert (await story.enrol(), await story.states()) == (Enrolled(0, 0, {}), [REPLIED, WAITING])
    await story.world.reply("999101", "Enough", received_us=story.now_us)
    assert (await story.enrol()).stopped == 1
    assert await story.states() == [REPLIED, REPLIED]


async def test_a_reply_counts_although_the_database_clock_has_stepped_back(story):
    await replies_end_it(story)
    await story.leads("start")
    await story.world.set_now(story.now_us - HOUR_US)
    await story.world.reply("999101", "Thanks!")
    assert await pending(story) == [(1, 1)]


async def test_a_reply_that_is_told_twice_counts_once(story):
    await replies_end_it(story)
    await story.leads("start")
    assert await story.world.reply("999101", "STOP", message_id="m1") is True
    await story.enrol()
    await story.world.set_lead(1, opted_out_us=None)
    assert await story.world.reply("999101", "STOP", message_id="m1") is False
    tables = await story.world.tables()
    assert (len(tables["replies"]), tables["leads"][0][4], tables["exits"]) == (1, None, [])


async def test_a_reply_of_nobody_is_kept(story):
    await story.leads("start")
    await story.world.reply("+1 555", "STOP")
    await story.world.reply("999777", "STOP", lead=1)
    tables = await story.world.tables()
    assert [row[:2] for row in tables["replies"]] == [("+1 555", None), ("999777", 1)]
    assert [row[4] for row in tables["leads"]] == [story.now_us]


async def test_a_trigger_that_comes_back_does_not_undo_a_reply(story):
    await replies_end_it(story)
    await story.leads("start")
    leased = await story.claim()
    await story.world.set_lead(1, trigger=None)
    await story.enrol()
    await story.world.reply("999101", "Thanks!")
    await story.enrol()
    assert (await story.states(), await pending(story)) == ([(*LEASED[:6], "trigger removed")], [(1, 1)])
    await story.world.set_lead(1, trigger="start")
    await story.enrol()
    assert (await story.states(), await pending(story)) == ([(*LEASED[:6], "replied")], [])
    assert await story.look(leased) == {0: "stopped"}


async def test_an_attempt_in_doubt_is_not_sent_again_after_a_reply(story):
    await replies_end_it(story)
    await story.leads("start")
    await story.end(await story.claim(), "in_doubt")
    await story.world.reply("999101", "Thanks!")
    await story.wait(HOUR_US)
    leased = await story.claim()
    assert await story.look(leased) == {0: "replied"}
    await story.enrol()
    assert await story.states() == [("start", "active", 1, 2, True, True, "replied")]


async def test_a_stop_word_opts_the_lead_out_of_everything(story):
    await story.leads("start", "start")
    leased = await story.claim(slots=1)
    await story.wait(SECOND_US)
    await story.world.reply("999101", "STOP")
    assert await story.look(leased) == {0: "opted out"}
    assert (await story.enrol()).stopped == 1
    assert await story.states() == [(*LEASED[:6], "opted out"), WAITING]
    assert [row[4] for row in (await story.world.tables())["leads"]] == [story.now_us, None]


async def test_a_stop_word_counts_while_somebody_holds_the_leads_row(story):
    await story.leads("start")
    leased = await story.claim()
    await story.world.lock_leads([1])
    await story.world.reply("999101", "STOP")
    assert await story.look(leased) == {0: "opted out"}
    assert (await story.world.tables())["opt_outs"] == [(1, story.now_us)]
    await story.world.lock_leads([])
    await story.store.finish_waiting(10, story.now_us)
    tables = await story.world.tables()
    assert (tables["opt_outs"], [row[4] for row in tables["leads"]]) == ([], [story.now_us])


async def test_only_a_message_that_is_a_stop_word_as_a_whole_ends_everything(story):
    for number, text in enumerate([*STOPS, *GOES_ON]):
        await story.world.add_lead(f"9992{number:03d}")
        await story.world.reply(f"9992{number:03d}", text)
    out = {row[0] for row in (await story.world.tables())["leads"] if row[4] is not None}
    told = {text: number in out for number, text in enumerate([*STOPS, *GOES_ON], 1)}
    assert told == dict.fromkeys(STOPS, True) | dict.fromkeys(GOES_ON, False)


@pytest.mark.parametrize("exits", [True, False])
async def test_the_checker_sees_what_replies_have_ended(story, exits):
    await story.world.set_sequence(1, exit_on_reply=exits)
    await story.leads("start")
    await story.wait(HOUR_US)
    await story.world.reply("999101", "one")
    await story.wait(HOUR_US)
    await story.world.reply("999101", "two")
    await story.world.reply("999999", "of nobody")
    assert (await story.world.evidence()).replied == ({1: story.now_us - HOUR_US} if exits else {})
