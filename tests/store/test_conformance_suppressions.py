"""Numbers that must never be messaged, told on PostgreSQL and on its twin alike."""

from __future__ import annotations

from dispatcher.ports import Enrolled

HOUR_US = 3_600_000_000


async def opted_out(story) -> list[bool]:
    return [row[4] is not None for row in (await story.world.tables())["leads"]]


async def test_a_lead_that_comes_in_with_a_suppressed_number_is_opted_out_from_the_beginning(story):
    await story.world.suppress("999101")
    await story.leads("start", "start")
    assert (await opted_out(story), [row[2] for row in (await story.world.tables())["enrolments"]]) == (
        [True, False],
        [2],
    )


async def test_a_number_that_comes_onto_the_list_stops_what_is_under_way_to_it(story):
    await story.leads("start", "start", "start")
    leased = await story.claim(slots=2)
    await story.world.suppress("999101")
    await story.world.suppress("999103")
    assert await story.look(leased) == {0: "opted out"}
    assert await story.enrol() == Enrolled(2, 2, {})
    assert [state[1:2] + state[-1:] for state in await story.states()] == [
        ("active", "opted out"), ("active", None), ("stopped", "opted out"),
    ]  # fmt: skip


async def test_nothing_leaves_to_a_suppressed_number_whatever_its_lead_says(story):
    await story.leads("start")
    await story.world.suppress("999101")
    await story.world.set_lead(1, opted_out_us=None, trigger=None)
    await story.world.set_lead(1, trigger="start")
    await story.enrol()
    assert await story.look(await story.claim()) == {0: "opted out"}


async def test_a_number_whose_lead_is_locked_is_silent_at_once_and_marked_later(story):
    await story.leads("start")
    leased = await story.claim()
    await story.world.lock_leads([1])
    await story.world.suppress("999101")
    assert (await story.look(leased), await opted_out(story)) == ({0: "opted out"}, [False])
    await story.world.lock_leads([])
    await story.store.finish_waiting(10, story.now_us)
    assert await opted_out(story) == [True]


async def test_who_opted_out_is_recognised_after_the_lead_was_deleted_and_came_again(story):
    await story.leads("start", "start", "start")
    leased = await story.claim(slots=1)
    await story.world.set_lead(2, opted_out_us=story.now_us)
    for lead in (1, 2, 3):
        await story.world.delete_lead(lead)
    await story.end(leased, "opted_out", next_="stopped")  # the gateway's word comes when the lead is gone already
    await story.store.finish_waiting(10, story.now_us)
    for phone in ("999101", "999102", "999103"):
        await story.world.add_lead(phone, "start")
    await story.enrol()
    assert await opted_out(story) == [True, True, False]
    assert [row[2] for row in (await story.world.tables())["enrolments"]] == [1, 2, 3, 6]
