"""A restarted shard knows its devices' usage: 300 of them, near their caps of the hour and of the day.

Behind each lies a day of attempts of every outcome; then some messages go through, and the shard dies with messages on
their way and with claims it has not handed over.
"""

from __future__ import annotations

from collections import defaultdict
from datetime import timedelta
from itertools import count
from uuid import UUID

import numpy as np
import pytest

from dispatcher.core.moments import to_datetime
from dispatcher.core.outcomes import UNCHARGED

SECOND_US = 1_000_000
HOUR_US = 3600 * SECOND_US
DEVICES = 300
DEADLINE_US, SKEW_US = 30 * SECOND_US, 5 * SECOND_US
FREE = {outcome.label for outcome in UNCHARGED}
PAST = (
    "accepted",
    "accepted",
    "in_doubt",
    "accepted",
    "refused",
    "repeat",
    "throttled",
    "accepted",
    "rejected",
    "not_sent",
)
SAID = ("accepted", "in_doubt", "refused")

Moments = dict[int, list[int]]
"""By device number."""


def quotas(number: int) -> tuple[int, int]:
    """Of the hour and of the day."""
    return 6 + number % 7, 20 + number % 11


def past(number: int, now_us: int) -> list[tuple[str, int]]:
    """Outcome and slot of a day's attempts: room is left for 3 to 6 this hour, for 3 to 7 this day."""
    hour, day = quotas(number)
    recent, all_ = hour - 3 - number % 4, day - 3 - number % 5
    found: list[tuple[str, int]] = []
    while (counted := sum(outcome not in FREE for outcome, _ in found)) < all_:
        minutes_ago = 3 * len(found) + 5 if counted < recent else 60 + 25 * len(found)
        found.append((PAST[(number + len(found)) % len(PAST)], now_us - minutes_ago * 60 * SECOND_US - number))
    return found


def moment(outcome: str, slot_us: int) -> list[int]:
    """When an attempt counts, if it does."""
    if outcome in FREE:
        return []
    return [slot_us + DEADLINE_US if outcome in ("in_doubt", "not_sent") else slot_us]


async def live_through(world) -> Moments:
    """Devices and their past; returns the moments that count."""
    await world.execute(
        "INSERT INTO devices (name, quota_per_hour, quota_per_day) SELECT 'd-' || n, hour, day "
        "FROM unnest($1::integer[], $2::integer[]) WITH ORDINALITY q(hour, day, n) ORDER BY n",
        *map(list, zip(*(quotas(number) for number in range(1, DEVICES + 1)), strict=True)),
    )
    await world.begin()
    homes = dict(await world.rows("SELECT number, id FROM devices"))
    assert sorted(homes) == list(range(1, DEVICES + 1))
    rows, counted, enrolments = [], defaultdict(list), count(-1, -1)
    for number, device_id in homes.items():
        for outcome, slot_us in past(number, world.now_us):
            at = to_datetime(slot_us)
            enrolment = next(enrolments)
            counted[number] += moment(outcome, slot_us)
            rows.append((enrolment, 1, 1, 1, at, at, at + timedelta(microseconds=DEADLINE_US), at, device_id,
                         UUID(int=-enrolment), 1, 0, 1, outcome, "fitness_start"))  # fmt: skip
    columns = (
        "enrolment_id sequence_id lead_id shard_epoch due_at reserved_at deadline_at accepted_at device_id "
        "idempotency_key visit generation attempt outcome step_trigger"
    )
    await world.connection.copy_records_to_table("message_ledger", records=rows, columns=columns.split())
    await world.restart()
    return counted


async def tag(world, each: int) -> None:
    """So many new leads for every device."""
    await world.execute(
        "INSERT INTO leads (phone, trigger, home_device_id) "
        "SELECT '9990' || (before + n * 1000 + d.number), 'fitness_start', d.id "
        "FROM devices d, generate_series(1, $1) n, (SELECT count(*) * 1000 AS before FROM leads) l "
        "ORDER BY n, d.number",
        each,
    )


def used(counted: Moments, now_us: int) -> list[tuple[int, int]]:
    """By device: what counts in the hour and in the day before ``now_us``."""

    def within(number: int, span_us: int) -> int:
        return sum(now_us - span_us < at_us <= now_us for at_us in counted[number])

    return [(within(number, HOUR_US), within(number, 24 * HOUR_US)) for number in range(1, DEVICES + 1)]


def known(shard, now_us: int) -> list[tuple[int, int]]:
    """The same, as the shard's memory has it."""
    hour, day, _ = shard._slots._log.usage(now_us)
    return list(zip(hour.tolist(), day.tolist(), strict=True))


def joined(*parts: Moments) -> Moments:
    return {n: [at_us for part in parts for at_us in part.get(n, ())] for n in range(1, DEVICES + 1)}


async def leases(world, condition: str) -> Moments:
    """Slots of leases."""
    found = defaultdict(list)
    for number, slot_us in await world.rows(
        "SELECT d.number, dripline_us(c.processing_started_at) FROM sequence_contacts c "
        f"JOIN devices d ON d.id = c.home_device_id WHERE c.lease_token IS NOT NULL AND {condition}"
    ):
        found[number].append(slot_us)
    return found


HANDED = "EXISTS (SELECT FROM handovers h WHERE h.token = c.lease_token AND c.id = ANY (h.enrolments))"


@pytest.fixture
async def interrupted(new_world, answer):
    """The world after the death, its former shard, and what counts: without leases, of handed-over ones, of others."""
    world = await new_world(0, retry_base_s=HOUR_US / SECOND_US)
    await world.fitness()
    before = await live_through(world)
    await tag(world, 3)
    phones = [phone for (phone,) in await world.rows("SELECT phone FROM leads ORDER BY id")]
    said = {phone: SAID[n // DEVICES] for n, phone in enumerate(phones)}
    world.sender.script = {phone: [answer(outcome, "why")] for phone, outcome in said.items() if outcome != "accepted"}
    await world.tick()
    through = defaultdict(list)
    for request in world.sender.requests:
        through[request.device] += moment(said[request.to], request.slot_us)
    world.shards.hand_over = False
    await tag(world, 2)
    await world.tick()
    await world.die_handing_over(until_us=world.now_us - 58 * SECOND_US)
    settled = joined(before, through)
    return world, world.shards.shards[0], settled, await leases(world, HANDED), await leases(world, f"NOT {HANDED}")


async def test_usage_after_a_restart_is_usage_before_and_what_was_in_flight_at_its_latest(interrupted):
    world, old, settled, handed, pending = interrupted
    assert len(handed) > DEVICES / 2, "messages are in flight"
    assert len(pending) > DEVICES / 2, "and claims that were not handed over"
    new = await world.restart()
    latest = {number: [slot_us + DEADLINE_US for slot_us in slots] for number, slots in handed.items()}
    for after_s in (-45, 0, 31, 1800, 3555, 3630, 7200, 24 * 3600 - 45):
        now_us = world.now_us + after_s * SECOND_US
        assert known(old, now_us) == used(joined(settled, handed, pending), now_us), after_s
        assert known(new, now_us) == used(joined(settled, latest), now_us), after_s
    hour, day = np.array(used(joined(settled, latest), world.now_us + 31 * SECOND_US)).T
    full = [(quotas(number + 1)[0] - hour[number], quotas(number + 1)[1] - day[number]) for number in range(DEVICES)]
    assert sum(min(room) <= 1 for room in full) > DEVICES / 4, "many are at their caps"
    assert all(min(room) >= 0 for room in full)


async def test_what_the_new_incarnation_offers_breaks_no_window_by_arrival(interrupted):
    """Everything before a message arrives as late as it can, the message itself as early as it can."""
    world, _, settled, handed, _ = interrupted
    new = await world.restart()
    offer = new.offer(world.now_us, 25 * HOUR_US, np.arange(1, DEVICES + 1, dtype=np.int32))
    assert offer.slots.min() > 0, "every device may send again within a day"
    free = dict(zip(offer.number.tolist(), np.split(offer.slot_us, np.cumsum(offer.slots)[:-1]), strict=True))
    gone = joined(settled, handed)
    tight = 0
    for number, slots in free.items():
        for window_us, quota in zip((HOUR_US, 24 * HOUR_US), quotas(number), strict=True):
            slot_us = np.array(sorted([*gone[number], *slots.tolist()]))
            latest_us = slot_us + DEADLINE_US + 2 * SKEW_US
            arrived = [int(((latest_us > at_us - window_us) & (slot_us <= at_us)).sum()) for at_us in slots.tolist()]
            assert max(arrived) <= quota, number
            tight += max(arrived) == quota
    assert tight > DEVICES, "and it is not timid"
