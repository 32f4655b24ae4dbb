"""A request's body and the JSON in it: never more of either than we are ready to hold."""

from __future__ import annotations

import asyncio
import contextlib
import json
from http import HTTPStatus
from typing import Any, Final, NoReturn

from fastapi import Request
from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from dispatcher.webhooks.refusals import RefusalError, malformed

DEPTH: Final = 32
BODY_S: Final = 10.0
"""How long a body may take to come."""
LINGER_S: Final = 1.0

_UNFIT: Final = dict.fromkeys([0, *range(0xD800, 0xE000)], "\ufffd")
"""What JSON may hold and PostgreSQL may not: NUL, and halves of pairs."""


def check_headers(request: Request, limit_bytes: int) -> None:
    """Refuse what is no JSON of a bearable size before any of it is read.

    Raises:
        RefusalError: 413 or 415.
    """
    kind, _, parameters = request.headers.get("content-type", "").partition(";")
    charset = parameters.strip().lower().removeprefix("charset=").strip('"')
    if kind.strip().lower() != "application/json" or charset not in ("", "utf-8"):
        raise RefusalError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "send application/json in UTF-8")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise RefusalError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "send it without Content-Encoding")
    if int(request.headers.get("content-length", 0)) > limit_bytes:
        raise _too_large(limit_bytes)


async def read_body(request: Request, limit_bytes: int) -> bytes:
    """The body; no more of it is taken in than ``limit_bytes``, whatever was said of its length.

    Raises:
        RefusalError: 413; 408 where it does not come; 400 where it breaks off.
    """
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            async for part in request.stream():
                body += part
                if len(body) > limit_bytes:
                    raise _too_large(limit_bytes)
    except TimeoutError:
        raise RefusalError(HTTPStatus.REQUEST_TIMEOUT, f"the body did not come within {BODY_S:g} s") from None
    except ClientDisconnect:
        raise malformed("the body broke off") from None
    return bytes(body)


class EarlyAnswer(JSONResponse):
    """An answer to a request whose body has not come, and is not wanted.

    It is complete before anything more is read. Then, for a moment, what still comes is thrown away: a connection that
    is closed on a client who is still sending takes the answer with it.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, linger, close."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                while (await receive()).get("more_body"):
                    pass
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def parse(body: bytes) -> Any:
    """The JSON value in ``body``.

    Raises:
        RefusalError: it is none, or nested deeper than ``DEPTH``.
    """
    try:
        value = json.loads(body.decode(), parse_constant=_refuse_constant)
    except RecursionError:
        raise _too_deep() from None
    except ValueError:
        raise malformed("the body is not JSON in UTF-8") from None
    level, depth = [value], 0
    while level := [child for each in level for child in _children(each)]:
        depth += 1
        if depth > DEPTH:
            raise _too_deep()
    return value


def clean(text: str, characters: int) -> str:
    """``text`` as PostgreSQL can hold it, at most so many characters of it."""
    return text[:characters].translate(_UNFIT)


def _children(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _refuse_constant(_name: str) -> NoReturn:
    raise ValueError  # NaN and infinities are Python's, not JSON's


def _too_large(limit_bytes: int) -> RefusalError:
    return RefusalError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"send at most {limit_bytes} bytes at a time")


def _too_deep() -> RefusalError:
    return malformed(f"the JSON is nested deeper than {DEPTH}")
