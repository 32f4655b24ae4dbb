"""The processes: incarnations of shards and coordinators, the calls between them, and who starts them again.

What Ray does for the live engine, with everything Ray is known to do wrong: calls lost, doubled or late, an incarnation
that goes on living beside the one that took its place.
"""

from __future__ import annotations

import asyncio
from functools import partial
from inspect import isawaitable
from typing import Any

from dispatcher.clock import READINGS, DatabaseClock
from dispatcher.coordinator import Coordinator
from dispatcher.coordinator_loop import CoordinatorLoop
from dispatcher.core.batches import DueSoon, Int8s, Int32s, Int64s, Leased, SlotOffer
from dispatcher.errors import FencedError, ShardUnavailableError, StoreError
from dispatcher.shard import Shard
from dispatcher.shard_loop import ShardLoop
from simulate.memory_store import MemoryCoordinatorStore, MemoryShardStore
from simulate.prove.connection import Connection
from simulate.prove.gateway import Gateways, GatewaySender
from simulate.prove.stage import Member, Stage
from simulate.prove.virtual_loop import Life

_PAUSE_S = 0.5
_TRIP_S = 0.01
_ANSWER_S = 2.0
"""How long a caller waits for a shard."""
_WATCH_S = 1.0
HOLDER = "installation"


class ShardProcess(Member):
    """One incarnation of a shard."""

    def __init__(self, stage: Stage, gateways: Gateways, shard: int, incarnation: int) -> None:
        super().__init__(stage, f"shard {shard}.{incarnation}")
        self.shard, self._gateways = shard, gateways
        self.loop: ShardLoop | None = None
        self.start(self._live())

    async def _live(self) -> None:
        settings = self.stage.world.settings
        while True:
            store = Connection(self, MemoryShardStore(self.stage.database, self.shard, HOLDER))
            clock = DatabaseClock(settings.skew_s, self.machine_us)
            shard = Shard(self.shard, settings, store, partial(GatewaySender, self, self._gateways, clock.now_us))
            try:
                await clock.follow(store.seat.wall_us, READINGS)
                await shard.take_over(clock.now_us())
                break
            except StoreError:
                await asyncio.sleep(_PAUSE_S)
        self.loop = ShardLoop(shard, clock, settings)
        self.loop.start()

    @property
    def owning(self) -> ShardLoop:
        """Its loop.

        Raises:
            ShardUnavailableError: it has not taken its devices over yet.
        """
        if self.loop is None:
            raise ShardUnavailableError(f"{self.name} does not own its devices")
        return self.loop

    def ping(self) -> int:
        """The epoch; 0 while there is none, -1 when this incarnation has ended."""
        return 0 if self.loop is None else self.loop.epoch


class CoordinatorProcess(Member):
    """One incarnation of a coordinator.

    Args:
        cluster: where its shards are.
        holder: the installation it belongs to.
    """

    def __init__(self, cluster: Cluster, holder: str, incarnation: int) -> None:
        super().__init__(cluster.stage, f"coordinator {incarnation}")
        self._cluster, self._holder = cluster, holder
        self.loop: CoordinatorLoop | None = None
        self.start(self._live())

    async def _live(self) -> None:
        settings = self.stage.world.settings
        calls = Calls(self._cluster, self)
        while True:
            store = Connection(self, MemoryCoordinatorStore(self.stage.database, self._holder))
            clock = DatabaseClock(settings.skew_s, self.machine_us)
            coordinator = Coordinator(settings, store, calls)
            try:
                while not await coordinator.lead():
                    await asyncio.sleep(_WATCH_S)
                await clock.follow(store.seat.wall_us, READINGS)
                await coordinator.take_over(clock.now_us(), self.stage.world.shards)
                break
            except (StoreError, FencedError):
                await asyncio.sleep(_PAUSE_S)
        self.loop = CoordinatorLoop(coordinator, clock, settings, ping=calls.ping, replace=self._cluster.replace)
        self.loop.start()

    @property
    def ended(self) -> bool:
        """Whether this incarnation is fenced."""
        return self.loop is not None and self.loop.broken


class Calls:
    """The ``Shards`` port of one coordinator: calls over a network.

    Args:
        cluster: whom they reach.
        member: the caller.
    """

    def __init__(self, cluster: Cluster, member: Member) -> None:
        self._cluster, self._member = cluster, member

    async def offer(self, shard: int, now_us: int, horizon_us: int, devices: Int32s) -> SlotOffer:
        """See ``ports.Shards``."""
        offer: SlotOffer = await self._call(shard, "offer", now_us, horizon_us, devices)
        return offer

    async def deliver(self, shard: int, offer: int, leased: Leased | None) -> DueSoon:
        """See ``ports.Shards``."""
        due: DueSoon = await self._call(shard, "deliver", offer, leased)
        return due

    async def take_due(self, shard: int) -> DueSoon:
        """See ``ports.Shards``."""
        due: DueSoon = await self._call(shard, "take_due")
        return due

    async def refresh(self, shard: int) -> None:
        """See ``ports.Shards``."""
        await self._call(shard, "refresh")

    async def fate(self, shard: int, token: Int64s, epoch: Int64s, enrolment: Int64s) -> Int8s:
        """See ``ports.Shards``."""
        fate: Int8s = await self._call(shard, "fate", token, epoch, enrolment)
        return fate

    async def ping(self, shard: int) -> int:
        """See ``CoordinatorLoop``."""
        return int(await self._call(shard, "ping"))

    async def _call(self, shard: int, method: str, *arguments: Any) -> Any:
        stage, who, what = self._member.stage, self._member.name, f"{method} of shard {shard}"
        reply: asyncio.Future[Any] = stage.loop.create_future()
        if not (stage.struck("shard cut off", who, what) or stage.struck("request lost", who, what)):
            trips = [stage.latency_s(_TRIP_S)]
            if stage.struck("call doubled", who, what):
                trips.append(stage.dice.between(0, 2))
            if stage.struck("call late", who, what):
                trips[0] = stage.dice.between(0, 2 * _ANSWER_S)
            for trip_s in trips:
                stage.after(trip_s, self._arrive, shard, method, arguments, reply)
        try:
            async with asyncio.timeout(_ANSWER_S):
                return await reply
        except TimeoutError as error:
            raise ShardUnavailableError(f"shard {shard} does not answer") from error

    def _arrive(self, shard: int, method: str, arguments: tuple[Any, ...], reply: asyncio.Future[Any]) -> None:
        called = self._cluster.shards.get(shard)
        if called is None or called.life is Life.DEAD:
            self._return(reply, ShardUnavailableError(f"shard {shard} is dead"))
        else:
            called.start(self._run(called, method, arguments, reply))

    async def _run(
        self, called: ShardProcess, method: str, arguments: tuple[Any, ...], reply: asyncio.Future[Any]
    ) -> None:
        stage = self._member.stage
        try:
            answer = called.ping() if method == "ping" else getattr(called.owning, method)(*arguments)
            if isawaitable(answer):
                answer = await answer
        except ShardUnavailableError as error:
            answer = error
        if not stage.struck("reply lost", called.name, method):
            stage.after(stage.latency_s(_TRIP_S), self._return, reply, answer)

    def _return(self, reply: asyncio.Future[Any], answer: Any) -> None:
        if reply.done():
            return
        if isinstance(answer, Exception):
            reply.set_exception(answer)
        else:
            reply.set_result(answer)


class Cluster:
    """All processes, and who watches over them.

    Args:
        stage: where they run.
        gateways: what shards send to.
    """

    def __init__(self, stage: Stage, gateways: Gateways) -> None:
        self.stage, self._gateways = stage, gateways
        self.shards: dict[int, ShardProcess] = {}
        """The incarnation that calls reach."""
        self.coordinator: CoordinatorProcess
        self.members: list[Member] = []
        """Every incarnation there ever was."""
        self.lets_live = 0
        """How many replaced incarnations are to go on living beside their successors."""
        self._dice = stage.dice.of("cluster")

    def begin(self) -> None:
        """Start everybody."""
        self.start_coordinator()
        for shard in range(self.stage.world.shards):
            self.start_shard(shard)
        self.stage.after(_WATCH_S, self._watch)

    def start_shard(self, shard: int) -> None:
        """A new incarnation of a shard; calls reach it from now on."""
        self.shards[shard] = ShardProcess(self.stage, self._gateways, shard, len(self.members))
        self.members.append(self.shards[shard])
        self.stage.note(self.shards[shard].name, "starts")

    def start_coordinator(self, holder: str = HOLDER) -> CoordinatorProcess:
        """A new incarnation of the coordinator."""
        process = CoordinatorProcess(self, holder, len(self.members))
        self.members.append(process)
        self.stage.note(process.name, "starts")
        if holder == HOLDER:
            self.coordinator = process
        return process

    async def replace(self, shard: int) -> None:
        """What the coordinator asks for when a shard hangs or has ended: the old one is killed, most of the time."""
        self.replace_now(shard)

    def replace_now(self, shard: int) -> None:
        """End an incarnation and start the next one."""
        if self.lets_live > 0:
            self.lets_live -= 1
            self.stage.strike("shard replaced, lives on", self.shards[shard].name)
        else:
            self.shards[shard].kill()
        self.start_shard(shard)

    def _watch(self) -> None:
        """Start again what has died, after a while, and the coordinator also when it is fenced."""
        for shard, process in self.shards.items():
            if process.life is Life.DEAD and self._dice.chance(0.6):
                self.start_shard(shard)
        coordinator = self.coordinator
        if coordinator.life is Life.DEAD or coordinator.ended:
            coordinator.kill()
            if self._dice.chance(0.6):
                self.start_coordinator()
        self.stage.after(_WATCH_S, self._watch)

    def heal(self) -> None:
        """Faults are over: what was stopped goes on, other installations are gone."""
        self.lets_live = 0
        for member in self.members:
            member.clock_step_us = 0
            member.go_on()
            if isinstance(member, CoordinatorProcess) and member is not self.coordinator:
                member.kill()
