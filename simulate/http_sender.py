"""A shard's sender in a rehearsal over HTTP: production's, in virtual time.

It stands still while messages are under way: they leave at their slots and arrive when the gateway says, and no
deadline passes because this machine is slow.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from typing import Any, Final
from uuid import UUID

import asyncpg
import httpx
import numpy as np
import ray

from dispatcher.core.batches import Outcomes, Outgoing
from dispatcher.core.fleet import Fleet, Gateway
from dispatcher.core.hosts import GatewayHosts
from dispatcher.errors import InputError
from dispatcher.ports import Sender
from dispatcher.sender.http import CONNECTIONS, HttpSender, PunctualTransport
from simulate.http_referee import ARRIVED, MESSAGE

_LONG_BEFORE_US: Final = 0
"""The time of day for a sender whose deadlines are not to pass."""
_LOOPBACK: Final = GatewayHosts("127.0.0.0/8")
"""Where the referee listens."""


class RehearsalTransport(httpx.AsyncBaseTransport):
    """Tells the gateway which message a request is, and hears when it arrived.

    Args:
        within: what carries the requests.
    """

    def __init__(self, within: httpx.AsyncBaseTransport) -> None:
        self._within = within
        self.message: dict[str, str] = {}
        """What the gateway is told, by idempotency key."""
        self.arrived_us: dict[str, int] = {}
        """By idempotency key; only of what was answered."""
        self.took_s: dict[str, float] = {}
        """Wall time until the answer, by idempotency key."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """One request."""
        key, begun_s = request.headers["idempotency-key"], time.monotonic()
        request.headers[MESSAGE] = self.message[key]
        answer = await self._within.handle_async_request(request)
        self.took_s[key] = time.monotonic() - begun_s
        self.arrived_us[key] = int(answer.headers[ARRIVED])
        return answer

    async def aclose(self) -> None:
        """Close the connections."""
        await self._within.aclose()


class RehearsalHttpSender:
    """The ``Sender`` port over HTTP to a referee.

    Args:
        gateways: by device number.
        referee: the actor, which is told how long requests took.
    """

    def __init__(self, gateways: Mapping[int, Gateway], referee: Any) -> None:
        self._referee = referee
        self._transport = RehearsalTransport(PunctualTransport(CONNECTIONS, _LOOPBACK))
        self._http = HttpSender(gateways, lambda: _LONG_BEFORE_US, _LOOPBACK, transport=self._transport)

    async def send(self, batch: Outgoing) -> AsyncIterator[Outcomes]:
        """See ``ports.Sender``; of what got no answer, the slot is the moment at which that was known."""
        keys = [str(UUID(bytes=key)) for key in batch.key]
        columns = (batch.slot_us.tolist(), batch.visit.tolist(), batch.attempt.tolist(), batch.sequence, batch.step)
        transport, begun_s = self._transport, time.monotonic()
        transport.message.update((key, json.dumps(told)) for key, *told in zip(keys, *columns, strict=True))
        arrived_us = batch.slot_us.copy()
        try:
            async with aclosing(self._http.send(batch)) as groups:
                async for outcomes in groups:
                    for row in outcomes.row.tolist():
                        arrived_us[row] = transport.arrived_us.pop(keys[row], arrived_us[row])
                    yield outcomes.replace(at_us=arrived_us[outcomes.row])
        finally:
            took_s = np.array([transport.took_s.pop(key) for key in keys if key in transport.took_s], np.float32)
            for key in keys:
                transport.message.pop(key, None)
        with contextlib.suppress(ray.exceptions.RayError):
            await self._referee.sent.remote(begun_s, time.monotonic(), took_s)

    def update(self, gateways: Mapping[int, Gateway]) -> None:
        """Replace the gateways."""
        self._http.update(gateways)

    async def close(self) -> None:
        """Give up the connections."""
        await self._http.close()


def http_referee_sender(name: str, namespace: str, fleet: Fleet, _now_us: Callable[[], int]) -> Sender:
    """The sender of a shard, over HTTP to the referee of that name; otherwise as ``referee_sender``."""
    return RehearsalHttpSender(fleet.gateways(), ray.get_actor(name, namespace))


def _nodes() -> list[dict[str, Any]]:
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return nodes


async def open_gateway(connection: asyncpg.Connection, referee: Any) -> None:
    """Let the referee listen, and all devices send through it.

    Raises:
        InputError: the Ray cluster has several machines, and the gateway can be reached on its own one only.
    """
    machines = {node["NodeManagerAddress"] for node in _nodes() if node["Alive"]}
    if len(machines) > 1:
        problem = f"the gateway listens on one machine only, and the Ray cluster has {len(machines)}"
        raise InputError("--sender http", problem, "leave ray_address out")
    rows = await connection.fetch("SELECT id, number FROM devices")
    url = await referee.listen.remote({str(row["id"]): row["number"] for row in rows})
    await connection.execute("UPDATE devices SET gateway_url = $1", url)
