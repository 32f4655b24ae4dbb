"""The live loops on wall time: nobody says when, and everything leaves, comes back and ends all the same.

Hours are a few milliseconds long. Where a test gives a loop no reason to look or to renew for a minute, only events
can have moved it.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable

import pytest

from dispatcher.clock import DatabaseClock, liveness_s
from dispatcher.coordinator import Coordinator
from dispatcher.coordinator_loop import CoordinatorLoop
from dispatcher.core.batches import DueSoon, Int8s, Int32s, Int64s, Leased, SlotOffer
from dispatcher.errors import ShardUnavailableError
from dispatcher.shard import Shard
from dispatcher.shard_loop import ShardLoop

MINUTE_S = 60.0
LIMIT_S = 10.0
SHARDS = 5


class LiveShards:
    """The ``Shards`` port to live shards of this process."""

    def __init__(self) -> None:
        self.shards: dict[int, Shard] = {}
        self.loops: dict[int, ShardLoop] = {}
        self.lost = 0
        """How many routing calls get lost from now on."""

    async def offer(self, shard: int, now_us: int, horizon_us: int, devices: Int32s) -> SlotOffer:
        return self.loops[shard].offer(now_us, horizon_us, devices)

    async def deliver(self, shard: int, offer: int, leased: Leased | None) -> DueSoon:
        if leased is not None and self.lost:
            self.lost -= 1
            raise ShardUnavailableError(f"shard-{shard}: the call was lost")
        return self.loops[shard].deliver(offer, leased)

    async def take_due(self, shard: int) -> DueSoon:
        return self.loops[shard].take_due()

    async def refresh(self, shard: int) -> None:
        await self.loops[shard].refresh()

    async def fate(self, shard: int, token: Int64s, epoch: Int64s, enrolment: Int64s) -> Int8s:
        return self.loops[shard].fate(token, epoch, enrolment)


class Processes:
    """What the coordinator knows of processes: answers to pings by shard, and whom it has replaced."""

    def __init__(self) -> None:
        self.answers: dict[int, int | Exception] = defaultdict(lambda: 1)
        self.replaced: list[int] = []

    async def ping(self, shard: int) -> int:
        answer = self.answers[shard]
        if isinstance(answer, TimeoutError):
            raise ShardUnavailableError(f"shard-{shard}") from answer
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def replace(self, shard: int) -> None:
        self.replaced.append(shard)
        self.answers[shard] = 2


@pytest.fixture
async def live(new_world) -> AsyncIterator[Callable]:
    """Makes a world that lives: world, its coordinator's loop, and its only shard's."""
    begun: list[ShardLoop | CoordinatorLoop] = []

    async def make(*, devices: int = 1, min_gap_s: float = 0, steps: int = 1, **settings):
        settings = {"hour_s": 0.01, "look_s": MINUTE_S, "heartbeat_s": MINUTE_S} | settings
        world = await new_world(0, **settings)
        await world.devices(devices, min_gap_s=min_gap_s)
        await world.sequence("live", *[f"step_{n}" for n in range(1, steps + 1)])
        world.shards = LiveShards()
        clock = DatabaseClock(world.settings.skew_s)
        await clock.follow((await world.store()).seat.wall_us)
        world.now_us = clock.now_us()
        await world.begin()
        processes = Processes()
        coordinator = CoordinatorLoop(
            world.coordinator, clock, world.settings, ping=processes.ping, replace=processes.replace
        )
        shard = ShardLoop(world.shards.shards[0], clock, world.settings)
        world.shards.loops[0] = shard
        begun.extend((coordinator, shard))
        shard.start()
        coordinator.start()
        return world, coordinator, shard

    yield make
    for loop in begun:
        loop.cancel()
        await ended(loop)


async def ended(loop: ShardLoop | CoordinatorLoop) -> None:
    """Until every task of a loop has ended."""
    async with asyncio.timeout(LIMIT_S):
        while loop.running:
            await asyncio.sleep(0.01)


async def at_last(look, wanted):
    """What ``look()`` gives once that is what is wanted, or when patience ends."""
    give_up_s = liveness_s() + LIMIT_S
    while (found := await look()) != wanted and liveness_s() < give_up_s:
        await asyncio.sleep(0.02)
    return found


def in_hand(shard: ShardLoop):
    """A look at a shard's open leases: it hears of a commit a moment later than the database."""

    async def look() -> int:
        return shard.in_hand

    return look


def requests(world):
    """A look at what has reached the gateway."""

    async def look() -> list[tuple[str, str]]:
        return world.sent()

    return look


def epoch(shard: ShardLoop):
    """A look at what a shard answers to a ping."""

    async def look() -> int:
        return shard.epoch

    return look


async def test_everything_leaves_and_completes_though_nobody_says_when(live):
    world, coordinator, shard = await live(devices=2, steps=2)
    for _ in range(3):
        await world.lead("step_1")
    coordinator.wake()
    states = [(f"99910{n}", "step_2", 3, "completed", False, None) for n in (1, 2, 3)]
    assert await at_last(world.states, states) == states
    phones = ("999101", "999102", "999103")
    assert [[step for to, step in world.sent() if to == phone] for phone in phones] == [["step_1", "step_2"]] * 3
    assert (shard.outcomes, coordinator.claimed) == (Counter(accepted=6), 6)
    assert await at_last(in_hand(shard), 0) == 0
    assert (shard.broken, coordinator.broken) == (False, False)


async def test_a_claim_whose_routing_call_was_lost_leaves_after_the_next_look(live):
    world, coordinator, shard = await live(look_s=0.2)
    world.shards.lost = 1
    await world.lead("step_1")
    coordinator.wake()
    states = [("999101", "step_1", 2, "completed", False, None)]
    assert await at_last(world.states, states) == states
    assert [request.attempt for request in world.sender.requests] == [1]
    assert (world.shards.lost, shard.outcomes) == (0, Counter(accepted=1))


async def test_a_slow_gateway_holds_nobody_else_back_and_what_it_got_dies_with_the_process(live):
    world, coordinator, shard = await live(devices=2)
    answered = asyncio.Event()
    world.sender.meanwhile = answered.wait
    first = await world.lead("step_1")
    coordinator.wake()
    states = [("999101", "step_1", 1, "active", True, None)]
    assert await at_last(world.states, states) == states
    await world.lead("step_1")
    coordinator.wake()
    states += [("999102", "step_1", 2, "completed", False, None)]
    assert await at_last(world.states, states) == states
    assert world.sent() == [("999101", "step_1"), ("999102", "step_1")]
    assert await at_last(in_hand(shard), 1) == 1
    shard.cancel()
    await ended(shard)
    answered.set()
    await asyncio.sleep(0.3)
    assert await world.states() == states
    assert await world.value("SELECT trigger FROM leads WHERE id = $1", first) == "step_1"


async def test_draining_gives_back_what_has_not_left(live):
    world, coordinator, shard = await live(min_gap_s=4)
    world.sender.meanwhile = lambda: asyncio.sleep(0.2)
    for _ in range(2):
        await world.lead("step_1")
    coordinator.wake()
    states = [("999101", "step_1", 2, "completed", False, None), ("999102", "step_1", 1, "active", True, None)]
    assert await at_last(world.states, states) == states
    await coordinator.drain()
    assert await shard.drain() == 1
    assert world.sent() == [("999101", "step_1")]
    assert await world.states() == [states[0], ("999102", "step_1", 1, "active", False, None)]
    with pytest.raises(ShardUnavailableError):
        shard.take_due()
    await ended(shard)


async def test_a_superseded_shard_and_a_superseded_coordinator_end(live):
    world, coordinator, shard = await live(heartbeat_s=0.1)
    assert (coordinator.epoch, shard.epoch) == (world.coordinator.epoch, world.shards.shards[0].epoch)
    await world.restart()
    await Coordinator(world.settings, await world.store(), world.shards).take_over(world.now_us, 1)
    await ended(shard)
    await ended(coordinator)
    assert (coordinator.epoch, shard.epoch) == (-1, -1)
    with pytest.raises(ShardUnavailableError, match="shard 0 does not own its devices"):
        shard.take_due()


async def test_a_superseded_shard_still_writes_what_is_out_before_it_asks_to_be_replaced(live):
    """One message is with the gateway, the next one's slot is to come, when the device changes hands."""
    world, coordinator, shard = await live(min_gap_s=4)
    answered = asyncio.Event()
    world.sender.meanwhile = answered.wait
    for _ in range(2):
        await world.lead("step_1")
    coordinator.wake()
    states = [(f"99910{n}", "step_1", 1, "active", True, None) for n in (1, 2)]
    assert await at_last(world.states, states) == states
    assert await at_last(requests(world), [("999101", "step_1")]) == [("999101", "step_1")]
    await coordinator.drain()
    await world.execute("UPDATE devices SET shard_id = 1")
    await shard.beat()
    assert (shard.epoch, shard.broken, await world.attempts()) == (0, False, [])
    with pytest.raises(ShardUnavailableError, match="shard 0 does not own its devices"):
        shard.take_due()
    answered.set()
    assert await at_last(epoch(shard), -1) == -1
    assert shard.in_hand == 0
    assert await world.states() == [("999101", "step_1", 2, "completed", False, None), states[1]]
    assert await world.attempts() == [("999101", "step_1", 1, 1, "accepted")]
    assert world.sent() == [("999101", "step_1")]


async def test_a_superseded_shard_waits_for_a_silent_gateway_no_longer_than_a_deadline(live):
    world, coordinator, shard = await live(deadline_s=0.5)
    world.sender.meanwhile = asyncio.Event().wait
    await world.lead("step_1")
    coordinator.wake()
    assert await at_last(requests(world), [("999101", "step_1")]) == [("999101", "step_1")]
    await world.execute("UPDATE devices SET shard_id = 1")
    begun_s = liveness_s()
    await shard.beat()
    assert await at_last(epoch(shard), -1) == -1
    assert 0.5 <= liveness_s() - begun_s < LIMIT_S


async def test_the_coordinator_replaces_shards_that_have_ended_or_stay_silent(new_world):
    """Shard 0 is well, 1 is silent, 2 is dead and being restarted, 3 has ended, 4 still writes what is out."""
    world = await new_world(heartbeat_s=0.05, hung_s=0.3)
    await world.begin(SHARDS)
    processes = Processes()
    processes.answers |= {1: TimeoutError(), 2: ShardUnavailableError("shard-2: it is gone"), 3: -1, 4: 0}
    clock = DatabaseClock(world.settings.skew_s)
    loop = CoordinatorLoop(world.coordinator, clock, world.settings, ping=processes.ping, replace=processes.replace)
    begun_s = liveness_s()
    loop.keep_leading()
    async with asyncio.timeout(LIMIT_S):
        while len(processes.replaced) < 2:
            await asyncio.sleep(0.01)
    silent_s = liveness_s() - begun_s
    await asyncio.sleep(0.4)
    loop.cancel()
    await ended(loop)
    assert processes.replaced == [3, 1]
    assert silent_s >= 0.3
