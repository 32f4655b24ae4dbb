"""Groups of devices and what they have sent: told on PostgreSQL and on its twin alike."""

from __future__ import annotations

import numpy as np

SECOND_US = 1_000_000
HOUR_US = 3600 * SECOND_US
DAY_US = 24 * HOUR_US


async def told(story, since_us=0):
    """Each group's name, limits and members."""
    groups = await story.store.groups(since_us)
    return [(group.name, group.quota_per_hour, group.quota_per_day, group.members.tolist()) for group in groups]


async def used(story, *numbers, since_us=0):
    """Slots of devices, in seconds after the story's beginning."""
    usage = await story.store.usage(np.array(numbers, np.int32), since_us)
    return {part.number: sorted(((part.at_us - story.begun_us) // SECOND_US).tolist()) for part in usage}


async def test_limits_and_members_are_read_and_raise_the_version(story):
    begun = await story.store.versions()
    assert (await told(story), (await story.store.fleet()).group) == ([], [None, None])
    await story.world.put_group("north", quota_per_hour=5, quota_per_day=None)
    await story.world.put_group("south", quota_per_day=9)
    made = await story.store.versions()
    await story.world.set_device(2, group_name="north")
    joined = await story.store.versions()
    await story.world.put_group("north", quota_per_hour=4)
    changed = await story.shard.versions()
    assert begun.devices < made.devices < joined.devices < changed.devices
    assert begun.sequences == changed.sequences
    assert await told(story) == [("north", 4, None, [2]), ("south", None, 9, [])]
    assert (await story.store.fleet()).group == (await story.shard.fleet()).group == [None, "north"]


async def test_who_has_left_counts_as_long_as_a_window_reaches_back(story):
    await story.world.put_group("north", quota_per_hour=5)
    await story.world.put_group("south", quota_per_hour=5)
    await story.world.set_device(1, group_name="north")
    await story.world.set_device(2, group_name="north")
    await story.wait(HOUR_US)
    await story.world.set_device(1, group_name="south")
    await story.world.set_device(2, group_name=None)
    left_us = story.now_us
    assert await told(story, left_us - 1) == [("north", 5, None, [1, 2]), ("south", 5, None, [1])]
    assert await told(story, left_us) == [("north", 5, None, []), ("south", 5, None, [1])]
    await story.world.remove_device(1)
    assert (await told(story, left_us - 1))[1] == ("south", 5, None, [1])
    assert await told(story, left_us) == [("north", 5, None, []), ("south", 5, None, [])]


async def test_what_counts_is_what_may_have_been_sent_at_its_slot(story):
    await story.world.put_group("north", quota_per_hour=5)
    story.begun_us = story.now_us
    for number in (1, 2):
        await story.world.set_device(number, group_name="north")
    await story.leads("start", "start", "start", "start", "start")
    leased = await story.claim(slots=4)
    assert await used(story, 1, 2) == {1: [0, 5, 10, 15]}
    await story.look(leased.take(np.arange(3)))
    await story.end(leased.take(np.arange(3)), "accepted", "refused", "in_doubt")
    assert await used(story, 1, 2) == {1: [0, 10, 15]}
    await story.supersede()
    # The last one was never handed over, and under the new epoch it cannot be any more.
    assert await used(story, 1, 2) == {1: [0, 10]}
    assert await used(story, 1, since_us=story.begun_us + SECOND_US) == {1: [10]}
    assert await used(story, 2) == {}


async def test_what_a_device_that_is_gone_has_sent_still_counts(story):
    await story.world.put_group("north", quota_per_hour=5)
    story.begun_us = story.now_us
    await story.world.set_device(1, group_name="north")
    await story.leads("start")
    leased = await story.claim()
    await story.look(leased)
    await story.end(leased, "rejected")
    await story.world.remove_device(1)
    assert (await told(story), await used(story, 1)) == ([("north", 5, None, [1])], {1: [0]})


async def test_the_checker_is_told_of_groups_alike(story):
    await story.world.put_group("north", quota_per_hour=5, quota_per_day=None)
    await story.world.set_device(2, group_name="north")
    begun_us = story.now_us
    await story.wait(HOUR_US)
    await story.world.put_group("north", quota_per_hour=None, quota_per_day=7)
    await story.world.set_device(2, group_name=None)
    evidence = await story.world.evidence()
    unlimited = 2**31 - 1
    assert evidence.groups == ("north",)
    assert evidence.group_quotas.tolist() == [(1, begun_us, 5, unlimited), (1, story.now_us, unlimited, 7)]
    assert evidence.memberships.tolist() == [(2, 1, begun_us), (2, 0, story.now_us)]
