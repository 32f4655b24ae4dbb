"""The ``Shards`` port over Ray actor handles. Calls are hints: every failure is a shard left out of a pass."""

from __future__ import annotations

import asyncio
from typing import Any

import ray
from ray.actor import ActorHandle

from dispatcher.core.batches import DueSoon, Int8s, Int32s, Int64s, Leased, SlotOffer
from dispatcher.errors import ShardUnavailableError

_LOST = (ray.exceptions.RayActorError, ray.exceptions.RaySystemError, ray.exceptions.GetTimeoutError, TimeoutError)


class RayShards:
    """Named shard actors, looked up when first called and again after they were lost.

    Args:
        names: actor name by shard.
        namespace: where the names live.
        answer_s: how long a shard may take to answer.
    """

    def __init__(self, names: list[str], namespace: str, answer_s: float) -> None:
        self._names, self._namespace, self._answer_s = names, namespace, answer_s
        self._handles: dict[int, ActorHandle[Any]] = {}

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

    async def ping(self, shard: int, answer_s: float) -> int:
        """The shard's epoch; 0 while it has none, -1 when this incarnation has ended."""
        return int(await self._call(shard, "ping", answer_s=answer_s))

    async def replace(self, shard: int) -> None:
        """End a hung incarnation; Ray starts the next one."""
        ray.kill(self._handle(shard), no_restart=False)

    def _handle(self, shard: int) -> ActorHandle[Any]:
        if shard not in self._handles:
            self._handles[shard] = ray.get_actor(self._names[shard], self._namespace)
        return self._handles[shard]

    async def _call(self, shard: int, method: str, *arguments: Any, answer_s: float | None = None) -> Any:
        try:
            call = getattr(self._handle(shard), method).remote(*arguments)
            return await asyncio.wait_for(call, answer_s or self._answer_s)
        except ShardUnavailableError:  # raised over there: its text is a traceback by now
            raise ShardUnavailableError(f"{self._names[shard]}: it does not own its devices at present") from None
        except (*_LOST, ValueError) as error:
            self._handles.pop(shard, None)
            name = self._names[shard] if shard < len(self._names) else f"shard-{shard}"
            raise ShardUnavailableError(f"{name}: {type(error).__name__}") from error
