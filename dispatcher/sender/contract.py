"""The generic HTTP contract: what a request says, and what an answer, or its absence, proves. Pure: no I/O, no clock.

Whatever no row below names is ``IN_DOUBT``. Only 200, 201, 202 and 409 can say that a message went out, and
then only with a message id; a refusal counts as one only in the words of the contract.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any, Final, NamedTuple
from uuid import UUID

import httpx

from dispatcher.core.batches import Outgoing
from dispatcher.core.fleet import Gateway
from dispatcher.core.moments import SECOND_US, from_datetime, to_datetime
from dispatcher.core.outcomes import Outcome

BY_STATUS: Final = {
    401: Outcome.CREDENTIALS,
    403: Outcome.CREDENTIALS,
    429: Outcome.THROTTLED,
}
"""Statuses that say enough, whatever the body holds."""

WITH_MESSAGE_ID: Final = {
    200: Outcome.ACCEPTED,
    201: Outcome.ACCEPTED,
    202: Outcome.ACCEPTED,
    409: Outcome.REPEAT,
}
"""Statuses that count with ``{"message_id"}`` only."""

WITH_CODE: Final = {
    (410, "expired"): Outcome.EXPIRED,
    (503, "not_accepted"): Outcome.REFUSED,
    (429, "pair_throttled"): Outcome.THROTTLED_PAIR,
    (429, "account_throttled"): Outcome.THROTTLED_ACCOUNT,
    (429, "recipient_capped"): Outcome.CAPPED,
    (403, "quality"): Outcome.QUALITY,
}
"""Statuses that count with this ``{"error": {"code"}}`` only, before those that say enough."""

REFUSALS: Final = (400, 404, 422)
"""Statuses that turn a message down for good, with an ``{"error": {"code"}}``; a framework's own 404 has none."""

REFUSED_WITH: Final = {
    "opted_out": Outcome.OPTED_OUT,
    "content": Outcome.CONTENT,
    "service_window": Outcome.SERVICE_WINDOW,
}
"""What such a code says; every other one: the recipient cannot be written to."""
NEVER_LEFT: Final = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.UnsupportedProtocol,
)
"""Failures that prove by their class that nothing was handed over."""

REDIRECTED: Final = "HTTP {status}: redirects are not followed; correct the gateway_url"

ERROR_CHARS: Final = 300
MESSAGE_ID_CHARS: Final = 255


class PastDeadlineError(Exception):
    """The message's deadline had passed when its bytes were about to leave."""


class ForbiddenHostError(Exception):
    """A gateway's host has no address that requests may go to.

    Args:
        host: as the device names it.
        address: one that it has.
    """

    def __init__(self, host: str, address: str) -> None:
        super().__init__(host, address)
        self.host, self.address = host, address

    def __str__(self) -> str:
        where = self.host if self.host == self.address else f"{self.host} ({self.address})"
        return f"gateway {where} is not allowed: it must be public, or stand in the setting gateway_hosts"


class Request(NamedTuple):
    """What one message is asked with, beside what all requests carry."""

    url: str
    headers: dict[str, str]
    message: dict[str, Any]


class Answer(NamedTuple):
    """What is known about one message."""

    outcome: Outcome
    message_id: str | None = None
    error: str | None = None
    retry_after_s: float = math.nan
    """What the gateway asked for; NaN when it asked for nothing."""


def request(gateway: Gateway, batch: Outgoing, row: int) -> Request:
    """The request for one message."""
    key = str(UUID(bytes=batch.key[row]))
    not_after = to_datetime(int(batch.deadline_us[row])).isoformat().replace("+00:00", "Z")
    message = {
        "device_id": gateway.device_id,
        "to": batch.to[row],
        "text": batch.text[row],
        "media_url": batch.media_url[row],
        "idempotency_key": key,
    }
    url = f"{(gateway.url or '').rstrip('/')}/messages"
    return Request(url, {"Idempotency-Key": key, "Not-After": not_after}, message)


def from_response(status: int, headers: Mapping[str, str], body: bytes, now_us: int) -> Answer:
    """What a complete answer proves.

    Args:
        status: the HTTP status.
        headers: the answer's headers, looked up without regard to case (``httpx.Headers``).
        body: the answer's body; a truncated one is treated as malformed.
        now_us: business time, against which a ``Retry-After`` date is measured.
    """
    said = json_object(body)
    if status in WITH_MESSAGE_ID:
        given = message_id(said, "message_id")
        if given is None:
            return Answer(Outcome.IN_DOUBT, error=f"HTTP {status} without a message_id")
        return Answer(WITH_MESSAGE_ID[status], given)
    if 300 <= status < 400:
        return Answer(Outcome.REFUSED, error=REDIRECTED.format(status=status))
    code = _code(status, said)
    asked_s = retry_after_s(headers.get("retry-after"), now_us) if status in (429, 503) else math.nan
    return Answer(_refusal(status, code), None, _reason(status, code, said), asked_s)


def from_failure(error: Exception, *, begun: bool) -> Answer:
    """What a failed request proves.

    Args:
        error: what ended it: an ``httpx`` exception, ``TimeoutError`` or ``PastDeadlineError`` for our own
            deadline, or whatever made it impossible to form the request.
        begun: whether the request's body had been asked for. A gateway cannot take a message whose body never
            came, so without it the message is surely unsent, whatever the exception.
    """
    if isinstance(error, TimeoutError | PastDeadlineError):
        if begun:
            return Answer(Outcome.IN_DOUBT, error="no answer before the deadline")
        return Answer(Outcome.EXPIRED, error="the deadline passed before the message could leave")
    if isinstance(error, ForbiddenHostError):
        return Answer(Outcome.CREDENTIALS, error=clean(str(error)))
    unsent = not begun or isinstance(error, NEVER_LEFT)
    # Only these texts come from the network; others can quote the request, its token included.
    told = isinstance(error, httpx.NetworkError | httpx.RemoteProtocolError | httpx.UnsupportedProtocol)
    text = f"{type(error).__name__}: {error}" if told and str(error) else type(error).__name__
    return Answer(Outcome.REFUSED if unsent else Outcome.IN_DOUBT, error=clean(text))


def _refusal(status: int, code: str | None) -> Outcome:
    if code is not None and (status, code) in WITH_CODE:
        return WITH_CODE[status, code]
    if code is not None and status in REFUSALS:
        return REFUSED_WITH.get(code, Outcome.REJECTED)
    return BY_STATUS.get(status, Outcome.IN_DOUBT)


def json_object(body: bytes) -> dict[str, Any]:
    """The object that an answer holds; empty for anything else."""
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


def message_id(said: dict[str, Any], name: str) -> str | None:
    """What the gateway calls the message; None without a name that can be kept."""
    given = said.get(name)
    text = str(given) if isinstance(given, str | int) and not isinstance(given, bool) else ""
    return text if text.isprintable() and 0 < len(text) <= MESSAGE_ID_CHARS else None


def _code(status: int, said: dict[str, Any]) -> str | None:
    # The contract fixes the error object for rejections only; elsewhere the code may stand alone.
    error = said.get("error", said if status in (410, 503) else None)
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, str) and code else None


def _reason(status: int, code: str | None, said: dict[str, Any]) -> str:
    if code is None:
        return f"HTTP {status}"
    message = said.get("error", said).get("message")
    return clean(f"{code}: {message}" if isinstance(message, str) and message else code)


def clean(text: str) -> str:
    """One bounded line that PostgreSQL can store: no control characters, no lone surrogates."""
    return "".join(char if char.isprintable() else " " for char in text[:ERROR_CHARS])


def retry_after_s(value: str | None, now_us: int) -> float:
    """Seconds from ``Retry-After``: seconds or an HTTP date (RFC 9110, 10.2.3); NaN when unreadable."""
    text = (value or "").strip()
    if text.isascii() and text.isdigit() and len(text) < 10:
        return float(text)
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return math.nan
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max(0.0, (from_datetime(aware) - now_us) / SECOND_US)
