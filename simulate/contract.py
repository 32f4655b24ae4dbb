"""The gateway's side of the generic HTTP contract: connections, what a request says, the bytes of an answer."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from typing import Any, Final, Protocol

HEAD_BYTES: Final = 16 * 1024
BODY_BYTES: Final = 1024 * 1024
REASONS: Final = {200: "OK", 201: "Created", 400: "Bad Request", 409: "Conflict", 410: "Gone"}

Reply = Callable[[bytes | None], None]
"""Takes the bytes of an answer: empty when there is none, None to close the connection instead."""


class Answering(Protocol):
    """A gateway behind its connections."""

    def answer(self, path: str, headers: Mapping[str, str], body: bytes, reply: Reply) -> None:
        """Answer one ``POST``, at once or later; headers are named in lower case."""

    def malformed(self) -> bytes:
        """The answer to a request that breaks the contract."""


class Connection(asyncio.Protocol):
    """HTTP/1.1 with keep-alive; pipelined requests are answered one after the other.

    Args:
        gateway: who answers.
        latency_s: how much longer an answer takes.
    """

    def __init__(self, gateway: Answering, latency_s: float) -> None:
        self._gateway, self._latency_s = gateway, latency_s
        self._buffer = b""
        self._busy = False
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if len(self._buffer) > HEAD_BYTES + BODY_BYTES:
            self._reply(True, self._gateway.malformed())
        elif not self._busy:
            self._next()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None

    def _next(self) -> None:
        head, found, rest = self._buffer.partition(b"\r\n\r\n")
        if not found and len(head) <= HEAD_BYTES:
            return
        try:
            path, headers, length = _parse_head(head)
        except ValueError:
            self._reply(True, self._gateway.malformed())
            return
        if len(rest) < length:
            return
        self._busy, self._buffer = True, rest[length:]
        close = headers.get("connection", "").lower() == "close"
        self._gateway.answer(path, headers, rest[:length], partial(self._reply_later, close))

    def _reply_later(self, close: bool, answer: bytes | None) -> None:
        asyncio.get_running_loop().call_later(self._latency_s, self._reply, close, answer)

    def _reply(self, close: bool, answer: bytes | None) -> None:
        if self._transport is None:
            return
        if answer is None:
            self._transport.abort()
            return
        if not answer:
            return
        self._transport.write(answer)
        if close:
            self._transport.close()
            return
        self._busy = False
        if self._buffer:
            self._next()


def parse_message(path: str, headers: Mapping[str, str], body: bytes) -> tuple[Mapping[str, Any], float]:
    """The message and its ``Not-After`` in seconds since the epoch, infinite without one.

    Raises:
        ValueError, RecursionError: it breaks the contract.
    """
    message = json.loads(body)
    names = ("device_id", "to", "text", "idempotency_key")
    if not isinstance(message, dict) or not all(isinstance(message.get(name), str) for name in names):
        raise ValueError("incomplete message")
    if not path.endswith("/messages") or message["idempotency_key"] != headers.get("idempotency-key"):
        raise ValueError("wrong path or key")
    if "not-after" not in headers:
        return message, math.inf
    moment = datetime.fromisoformat(headers["not-after"])
    if moment.tzinfo is None:
        raise ValueError("Not-After without a zone")
    return message, moment.timestamp()


def refusal(code: str) -> bytes:
    """The body of an answer that says why not."""
    return json.dumps({"error": {"code": code, "message": f"the gateway says {code}"}}).encode()


def taken(message_id: str) -> bytes:
    """The body of an answer that says under which id a message was accepted."""
    return json.dumps({"message_id": message_id}).encode()


def response(status: int, body: bytes, *headers: str) -> bytes:
    """A complete answer."""
    lines = [f"HTTP/1.1 {status} {REASONS.get(status, 'Error')}", *headers, f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode() + body


MALFORMED: Final = response(400, b"the request breaks the contract")


def _parse_head(head: bytes) -> tuple[str, dict[str, str], int]:
    """Path, headers by lower-case name, and body length of a ``POST``.

    Raises:
        ValueError: it is not one this gateway can read.
    """
    start, *lines = head.decode("latin-1").split("\r\n")
    if len(head) > HEAD_BYTES:
        raise ValueError("the head is too long")
    method, path, version = start.split(" ")
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    length = int(headers.get("content-length", "0"))
    if method != "POST" or version != "HTTP/1.1" or "transfer-encoding" in headers or not 0 <= length <= BODY_BYTES:
        raise ValueError(start)
    return path, headers, length
