"""``HttpSender``: one HTTP request a message, in the words of its gateway, bounded by the message's own deadline.

Business time is read when a batch starts and when an outcome is known. Between the two the monotonic clock
counts, so a step of the wall clock cannot stretch a deadline.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import ssl
import struct
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Final, NamedTuple

import httpcore
import httpx
import numpy as np

from dispatcher.core.batches import Outcomes, Outgoing
from dispatcher.core.fleet import Gateway, GatewayKind
from dispatcher.core.hosts import GatewayHosts
from dispatcher.core.moments import SECOND_US
from dispatcher.core.outcomes import Outcome
from dispatcher.sender import contract, whatsapp
from dispatcher.sender.contract import Answer, PastDeadlineError, Request, from_failure
from dispatcher.sender.hosts import GuardedBackend

BODY_BYTES: Final = 64 * 1024
GATHER_S: Final = 0.02
# Common servers drop idle connections after 5 s; a request on a connection just dropped ends in doubt.
IDLE_S: Final = 3.0
# A request costs a pool time quadratic in its connections: 128 in one took 5.2 ms of CPU a message, 16 2.1.
POOL_CONNECTIONS: Final = 8
CONNECTIONS: Final = 128
UNACKNOWLEDGED_MS: Final = 30_000


class Words(NamedTuple):
    """What a kind of gateway speaks."""

    request: Callable[[Gateway, Outgoing, int], Request]
    """The request for one row of a batch."""
    answer: Callable[[int, Mapping[str, str], bytes, int], Answer]
    """What a complete answer proves: status, headers, body, business time."""


WORDS: Final[dict[GatewayKind, Words]] = {
    "http": Words(contract.request, contract.from_response),
    "whatsapp": Words(whatsapp.request, whatsapp.from_response),
}


class HttpSender:
    """The ``Sender`` port over HTTP; devices of one batch may speak to gateways of different kinds.

    Args:
        gateways: by device number.
        now_us: business time.
        hosts: where requests may go.
        connections: requests under way at once, at most; further messages wait, within their deadlines.
        connect_s: how long a gateway may take to accept a connection before it counts as refused.
        transport: what carries the requests; None: a ``PunctualTransport``.
    """

    def __init__(
        self,
        gateways: Mapping[int, Gateway],
        now_us: Callable[[], int],
        hosts: GatewayHosts,
        *,
        connections: int = CONNECTIONS,
        connect_s: float = 10.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        for name in ("httpx", "httpcore"):  # they log URLs at INFO and connection details at DEBUG
            logging.getLogger(name).setLevel(logging.WARNING)
        self._gateways = gateways
        self._now_us = now_us
        # Last in, first out: at low rates all requests meet in one pool and find a connection open.
        self._free: asyncio.LifoQueue[int] = asyncio.LifoQueue()
        for slot in reversed(range(connections)):
            self._free.put_nowait(slot // POOL_CONNECTIONS)
        self._client = httpx.AsyncClient(
            transport=transport or PunctualTransport(connections, hosts),
            timeout=httpx.Timeout(None, connect=connect_s),
            follow_redirects=False,
            trust_env=False,
            # A cookie from one device's answer must not travel with another's message.
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
            headers={"User-Agent": "dripline", "Accept": "application/json", "Accept-Encoding": "identity"},
        )

    def update(self, gateways: Mapping[int, Gateway]) -> None:
        """Replace the gateways; messages under way keep theirs."""
        self._gateways = gateways

    async def send(self, batch: Outgoing) -> AsyncGenerator[Outcomes, None]:
        """See ``ports.Sender``. Closed early, it gives up what is under way, whose fate is then unknown."""
        leave_by = time.monotonic() + (batch.deadline_us - self._now_us()) / SECOND_US
        pending = {asyncio.create_task(self._outcome(batch, row, float(by))) for row, by in enumerate(leave_by)}
        try:
            while pending:
                await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                done, pending = await asyncio.wait(pending, timeout=GATHER_S)
                yield _outcomes([task.result() for task in done])
        finally:
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)

    async def close(self) -> None:
        """Give up connections; what was under way ends in doubt."""
        await self._client.aclose()

    async def _outcome(self, batch: Outgoing, row: int, leave_by: float) -> _Known:
        gateway = self._gateways.get(int(batch.device[row]))
        if gateway is None or not gateway.url:
            answer = Answer(Outcome.REFUSED, error=f"device {batch.device[row]} has no gateway_url")
        else:
            answer = await self._hand_over(gateway, batch, row, Departure(leave_by))
        return _Known(row, answer, self._now_us())

    async def _hand_over(self, gateway: Gateway, batch: Outgoing, row: int, departure: Departure) -> Answer:
        try:
            async with asyncio.timeout(departure.remaining_s()), self._free_pool() as pool:
                extensions = {"deadline": departure, "pool": pool}
                request = self._request(gateway, batch, row, extensions)
                response = await self._client.send(request, stream=True)
                try:
                    body = await _bounded_body(response)
                finally:
                    await response.aclose()
            return WORDS[gateway.kind].answer(response.status_code, response.headers, body, self._now_us())
        except Exception as error:
            return from_failure(error, begun=departure.begun)

    @asynccontextmanager
    async def _free_pool(self) -> AsyncIterator[int]:
        pool = await self._free.get()
        try:
            yield pool
        finally:
            self._free.put_nowait(pool)

    def _request(self, gateway: Gateway, batch: Outgoing, row: int, extensions: dict[str, object]) -> httpx.Request:
        url, own, message = WORDS[gateway.kind].request(gateway, batch, row)
        headers = {"Content-Type": "application/json", **own}
        if gateway.token:
            headers["Authorization"] = f"Bearer {gateway.token}"
        content = json.dumps(message).encode()
        return self._client.build_request("POST", url, content=content, headers=headers, extensions=extensions)


@dataclass(slots=True)
class Departure:
    """The last moment a message may leave (``time.monotonic``), and whether it has begun to."""

    leave_by: float
    begun: bool = False

    def remaining_s(self) -> float:
        """Seconds until the deadline.

        Raises:
            PastDeadlineError: there are none.
        """
        remaining_s = self.leave_by - time.monotonic()
        if remaining_s <= 0:
            raise PastDeadlineError
        return remaining_s

    async def watch(self, event: str, _info: object) -> None:
        """httpcore's ``trace``: called, among others, just before the first byte is written."""
        if event.endswith("send_request_headers.started"):
            self.remaining_s()


class PunctualTransport(httpx.AsyncBaseTransport):
    """Lets a request out only before ``request.extensions["deadline"]``, a ``Departure``.

    Checked before the first byte, after waiting for a connection, and once more before the body, without
    which no gateway can take the message.

    Args:
        connections, hosts: as the sender's.
    """

    def __init__(self, connections: int, hosts: GatewayHosts) -> None:
        tls = httpx.create_ssl_context(trust_env=False)
        self._pools = [_pool(tls, GuardedBackend(hosts)) for _ in range(-(-connections // POOL_CONNECTIONS))]

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Raises:
        PastDeadlineError: the deadline passed before the body was asked for.
        """
        departure: Departure = request.extensions["deadline"]
        request.extensions["trace"] = departure.watch
        request.stream = _PunctualBody(request.content, departure)
        pool: int = request.extensions["pool"]
        return await self._pools[pool].handle_async_request(request)

    async def aclose(self) -> None:
        """Close the connections."""
        for pool in self._pools:
            await pool.aclose()


class _PunctualBody(httpx.AsyncByteStream):
    def __init__(self, content: bytes, departure: Departure) -> None:
        self._content = content
        self._departure = departure

    async def __aiter__(self) -> AsyncIterator[bytes]:
        self._departure.remaining_s()
        self._departure.begun = True
        yield self._content


class _Known(NamedTuple):
    row: int
    answer: Answer
    at_us: int


def _outcomes(known: list[_Known]) -> Outcomes:
    return Outcomes(
        row=np.array([one.row for one in known], np.intp),
        outcome=np.array([one.answer.outcome for one in known], np.int8),
        at_us=np.array([one.at_us for one in known], np.int64),
        message_id=[one.answer.message_id for one in known],
        error=[one.answer.error for one in known],
        retry_after_s=np.array([one.answer.retry_after_s for one in known], np.float64),
    )


async def _bounded_body(response: httpx.Response) -> bytes:
    body = b""
    async for part in response.aiter_bytes():
        body += part
        if len(body) > BODY_BYTES:
            return b""
    return body


def _pool(tls: ssl.SSLContext, backend: httpcore.AsyncNetworkBackend) -> httpx.AsyncHTTPTransport:
    """Connections to gateways, never tried again by themselves; how many there are is the sender's to bound."""
    transport = httpx.AsyncHTTPTransport(verify=tls)
    # httpx has no way to say what connects.
    transport._pool = httpcore.AsyncConnectionPool(
        ssl_context=tls,
        max_connections=None,
        keepalive_expiry=IDLE_S,
        retries=0,
        network_backend=backend,
        socket_options=_socket_options(),
    )
    return transport


def _socket_options() -> list[tuple[int, int, int] | tuple[int, int, bytes]]:
    """Without these the kernel delivered a request 10 s after its process had ended (measured)."""
    options: list[tuple[int, int, int] | tuple[int, int, bytes]] = [
        (socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    ]
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        options.append((socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_MS))
    return options
