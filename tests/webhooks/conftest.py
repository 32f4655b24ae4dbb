"""Webhooks on a real socket and a real database, and whoever tells them something."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import asyncpg
import httpx
import pytest

from dispatcher.config import Settings
from dispatcher.store.stamp import stamp
from dispatcher.webhooks.listening import listen
from dispatcher.webhooks.server import serving
from dispatcher.webhooks.signatures import META_SIGNATURE, SIGNATURE, TIMESTAMP, sign, sign_as_meta

SECRET = "gateways-secret-hush"
APP_SECRET = "app-secret-hush-hush"
VERIFY_TOKEN = "verify-token-hush"

TABLES = ("message_receipts", "replies", "opt_outs", "lead_changes")


class Hooks:
    """The server, the database behind it, and a client of it."""

    def __init__(self, port: int, connection: asyncpg.Connection, client: httpx.AsyncClient, said: list[str]) -> None:
        self.port, self.connection, self.client, self.said = port, connection, client, said

    async def tell(self, *events: dict[str, Any]) -> httpx.Response:
        """Events of the generic contract, signed as it says."""
        body = json.dumps(list(events)).encode()
        return await self.client.post("/webhooks/gateway", content=body, headers=self.signed(body))

    async def tell_as_meta(self, value: dict[str, Any], field: str = "messages") -> httpx.Response:
        """A webhook of the Cloud API with one change, signed by the app."""
        change = {"field": field, "value": {"messaging_product": "whatsapp", **value}}
        entry = {"id": "102290129340398", "changes": [change]}
        return await self.post_as_meta({"object": "whatsapp_business_account", "entry": [entry]})

    async def post_as_meta(self, told: Any) -> httpx.Response:
        body = json.dumps(told).encode()
        headers = {"Content-Type": "application/json", META_SIGNATURE: sign_as_meta(APP_SECRET, body)}
        return await self.client.post("/webhooks/whatsapp", content=body, headers=headers)

    def signed(self, body: bytes, *, age_s: int = 0, secret: str = SECRET, **others: str) -> dict[str, str]:
        """The headers of a request with this body, some of them others."""
        timestamp = str(int(time.time()) - age_s)
        headers = {"Content-Type": "application/json", TIMESTAMP: timestamp, SIGNATURE: sign(secret, timestamp, body)}
        return headers | {name.replace("_", "-"): value for name, value in others.items()}

    async def written(self) -> dict[str, int]:
        """How many rows there are in the tables that a webhook can write."""
        return {name: await self.connection.fetchval(f"SELECT count(*) FROM {name}") for name in TABLES}

    async def rows(self, sql: str) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in await self.connection.fetch(sql)]


@pytest.fixture
def serve(connection: asyncpg.Connection) -> Callable[..., AbstractAsyncContextManager[Hooks]]:
    """Serves webhooks on the database at a URL, with settings by name."""

    @asynccontextmanager
    async def make(url: str, **settings: Any) -> AsyncIterator[Hooks]:
        secrets = {
            "webhook_secret": SECRET, "whatsapp_app_secret": APP_SECRET, "whatsapp_verify_token": VERIFY_TOKEN
        }  # fmt: skip
        in_force = Settings(**{**secrets, **settings})
        listening, said = listen("127.0.0.1:0", in_force), []
        port = listening.getsockname()[1]
        async with serving(listening, url, in_force, said.append):
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
                yield Hooks(port, connection, client, said)

    return make


@pytest.fixture
async def hooks(
    database_url: str, connection: asyncpg.Connection, serve: Callable[..., AbstractAsyncContextManager[Hooks]]
) -> AsyncIterator[Hooks]:
    """Webhooks on a live database with one lead, 60123456789."""
    await stamp(connection, "live")
    await connection.execute("INSERT INTO leads (phone, name) VALUES ('60123456789', 'Ann')")
    async with serve(database_url) as made:
        yield made


@pytest.fixture
def event() -> Callable[..., dict[str, Any]]:
    """Makes an event of the generic contract: type, and what else it says."""
    numbers = itertools.count(1)

    def make(kind: str, **fields: Any) -> dict[str, Any]:
        told = {"type": kind, "at": "2026-01-05T09:00:00Z", "message_id": f"m-{next(numbers)}"}
        return {**told, **{name.rstrip("_"): value for name, value in fields.items()}}

    return make


@pytest.fixture
def eventually() -> Callable[[Callable[[], Awaitable[bool]]], Awaitable[None]]:
    """Waits until something holds, a few seconds at most."""

    async def wait(holds: Callable[[], Awaitable[bool]]) -> None:
        async with asyncio.timeout(10):
            while not await holds():
                await asyncio.sleep(0.05)

    return wait
