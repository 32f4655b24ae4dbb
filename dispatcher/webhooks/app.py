"""The routes. Nothing of a request is written unless it is genuine and whole, and it is written before 200 is said."""

from __future__ import annotations

import logging
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, Protocol

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from dispatcher.config import Settings
from dispatcher.core.receipts import Heard
from dispatcher.errors import StoreError
from dispatcher.store.receipts import PostgresReceiptStore
from dispatcher.webhooks import gateway, whatsapp
from dispatcher.webhooks.bodies import EarlyAnswer, check_headers, parse, read_body
from dispatcher.webhooks.refusals import RefusalError
from dispatcher.webhooks.signatures import GatewayKey, MetaKey, same

_log = logging.getLogger(__name__)

_CHALLENGE_CHARACTERS = 256
_RETRY_AFTER_S = 5


class Key(Protocol):
    """Tells who signed a request."""

    @property
    def body_bytes(self) -> int:
        """How large a body may be."""

    def precheck(self, headers: Mapping[str, str], now_s: float) -> None:
        """Look at what can be judged without the body; raises ``RefusalError``."""

    def check(self, headers: Mapping[str, str], body: bytes) -> None:
        """Compare signatures; raises ``RefusalError``."""


class Inbox:
    """Takes requests in.

    Args:
        store: where they are written.
        told: called once receipts have been written.
    """

    def __init__(self, store: PostgresReceiptStore, told: Callable[[], None]) -> None:
        self._store, self._told = store, told
        self.taken = self.skipped = 0
        """Events so far."""
        self.refused: Counter[int] = Counter()
        """Requests by status."""

    async def take(self, request: Request, key: Key, read: Callable[[Any], Heard]) -> Response:
        """The answer to a request that tells something."""
        try:
            check_headers(request, key.body_bytes)
            key.precheck(request.headers, time.time())
            body = await read_body(request, key.body_bytes)
        except RefusalError as refusal:
            return self._refuse(refusal.status, refusal.why, EarlyAnswer)
        try:
            key.check(request.headers, body)
            heard = read(parse(body))
            await self._store.take(heard)
        except RefusalError as refusal:
            return self._refuse(refusal.status, refusal.why)
        except StoreError:
            return self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "the database does not answer: try again")
        except Exception as error:
            # What an exception says may quote the request; where it was raised does not.
            where = "".join(traceback.format_tb(error.__traceback__))
            _log.error("a webhook broke off: %s\n%s", type(error).__name__, where)
            return self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, "try again")
        self.taken += heard.events
        self.skipped += heard.skipped
        if heard.receipts:
            self._told()
        return JSONResponse({"taken": heard.events, "skipped": heard.skipped})

    def _refuse(self, status: HTTPStatus, why: str, answer: type[JSONResponse] = JSONResponse) -> Response:
        self.refused[status.value] += 1
        headers = {"Connection": "close"}
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            headers["Retry-After"] = str(_RETRY_AFTER_S)
        return answer({"error": {"status": status.value, "message": why}}, status.value, headers)

    async def health(self) -> Response:
        """Whether what is told now would be written."""
        try:
            await self._store.check()
        except StoreError:
            return JSONResponse({"status": "no database"}, HTTPStatus.SERVICE_UNAVAILABLE.value)
        return JSONResponse({"status": "ok"})


def create_app(settings: Settings, inbox: Inbox) -> FastAPI:
    """The routes whose secrets are set, and ``/healthz``."""
    app = FastAPI(title="Dripline webhooks", openapi_url=None)
    app.add_api_route("/healthz", inbox.health, methods=["GET"], response_model=None)
    if settings.webhook_secret is not None:
        _add_gateway(app, inbox, GatewayKey(settings.webhook_secret.get_secret_value(), settings.webhook_window_s))
    if settings.whatsapp_app_secret is not None:
        token = settings.whatsapp_verify_token
        _add_whatsapp(
            app,
            inbox,
            MetaKey(settings.whatsapp_app_secret.get_secret_value()),
            None if token is None else token.get_secret_value(),
        )
    return app


def _add_gateway(app: FastAPI, inbox: Inbox, key: Key) -> None:
    @app.post("/webhooks/gateway", response_model=None)
    async def tell(request: Request) -> Response:
        return await inbox.take(request, key, gateway.read)


def _add_whatsapp(app: FastAPI, inbox: Inbox, key: Key, verify_token: str | None) -> None:
    @app.get("/webhooks/whatsapp", response_model=None)
    async def verify(request: Request) -> Response:
        asked = request.query_params
        token, challenge = asked.get("hub.verify_token", ""), asked.get("hub.challenge", "")
        if verify_token is None or asked.get("hub.mode") != "subscribe" or not same(token, verify_token):
            return PlainTextResponse("the verify token is another one", HTTPStatus.FORBIDDEN.value)
        if not (challenge.isascii() and challenge.isalnum() and len(challenge) <= _CHALLENGE_CHARACTERS):
            return PlainTextResponse("hub.challenge is none", HTTPStatus.BAD_REQUEST.value)
        return PlainTextResponse(challenge)

    @app.post("/webhooks/whatsapp", response_model=None)
    async def tell(request: Request) -> Response:
        return await inbox.take(request, key, whatsapp.read)
