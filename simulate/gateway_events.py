"""What the gateway tells a webhook afterwards: what it took and what it did not, whatever it had answered."""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from datetime import UTC, datetime
from typing import Any, Final

import httpx

from dispatcher.webhooks.signatures import SIGNATURE, TIMESTAMP, sign

_EVERY_S: Final = 0.1
_BATCH: Final = 500
_TYPES: Final = {"accepted": "delivered", "failed": "not_sent", "dropped": "not_sent"}
"""The event that follows, by what the gateway did."""


class Telling:
    """Tells it in the background, again and again until it is taken.

    Args:
        url: of ``POST /webhooks/gateway``.
        secret: what to sign with.
    """

    def __init__(self, url: str, secret: str) -> None:
        self._url, self._secret = url, secret
        self._untold: deque[dict[str, Any]] = deque()

    def note(self, key: str, did: str, at_s: float) -> None:
        """Remember what became of a request."""
        if did in _TYPES:
            at = datetime.fromtimestamp(at_s, UTC).isoformat()
            self._untold.append({"type": _TYPES[did], "at": at, "idempotency_key": key})

    async def live(self) -> None:
        """Tell what has been noted, until cancelled."""
        async with httpx.AsyncClient(trust_env=False) as client:
            while True:
                await asyncio.sleep(_EVERY_S)
                batch = list(self._untold)[:_BATCH]
                if batch and await self._told(client, json.dumps(batch).encode()):
                    for _ in batch:
                        self._untold.popleft()

    async def _told(self, client: httpx.AsyncClient, body: bytes) -> bool:
        stamp = str(int(time.time()))
        headers = {"Content-Type": "application/json", TIMESTAMP: stamp, SIGNATURE: sign(self._secret, stamp, body)}
        try:
            return (await client.post(self._url, content=body, headers=headers)).is_success
        except httpx.TransportError:
            return False
