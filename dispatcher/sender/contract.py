"""What a gateway's answer, or its absence, proves about one message. Pure: no I/O, no clock.

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

import httpx

from dispatcher.core.moments import SECOND_US, from_datetime
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
    (400, "opted_out"): Outcome.OPTED_OUT,
    (404, "opted_out"): Outcome.OPTED_OUT,
    (422, "opted_out"): Outcome.OPTED_OUT,
}
"""Statuses that count with this ``{"error": {"code"}}`` only."""

WITH_ANY_CODE: Final = {
    400: Outcome.REJECTED,
    404: Outcome.REJECTED,
    422: Outcome.REJECTED,
}
"""Statuses that count with any other ``{"error": {"code"}}``; a proxy's or a framework's own 404 has none."""

NEVER_LEFT: Final = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.UnsupportedProtocol,
)
"""Failures that prove by their class that nothing was handed over."""

ERROR_CHARS: Final = 300
MESSAGE_ID_CHARS: Final = 255


class PastDeadlineError(Exception):
    """The message's deadline had passed when its bytes were about to leave."""


class Answer(NamedTuple):
    """What is known about one message."""

    outcome: Outcome
    message_id: str | None = None
    error: str | None = None
    retry_after_s: float = math.nan
    """What the gateway asked for; NaN when it asked for nothing."""


def from_response(status: int, headers: Mapping[str, str], body: bytes, now_us: int) -> Answer:
    """What a complete answer proves.

    Args:
        status: the HTTP status.
        headers: the answer's headers, looked up without regard to case (``httpx.Headers``).
        body: the answer's body; a truncated one is treated as malformed.
        now_us: business time, against which a ``Retry-After`` date is measured.
    """
    said = _json_object(body)
    if status in WITH_MESSAGE_ID:
        message_id = _message_id(said)
        if message_id is None:
            return Answer(Outcome.IN_DOUBT, error=f"HTTP {status} without a message_id")
        return Answer(WITH_MESSAGE_ID[status], message_id)
    if 300 <= status < 400:
        return Answer(Outcome.REFUSED, error=f"HTTP {status}: redirects are not followed; correct the gateway_url")
    code = _code(status, said)
    asked_s = _retry_after_s(headers.get("retry-after"), now_us) if status in (429, 503) else math.nan
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
    unsent = not begun or isinstance(error, NEVER_LEFT)
    # Only these texts come from the network; others can quote the request, its token included.
    told = isinstance(error, httpx.NetworkError | httpx.RemoteProtocolError | httpx.UnsupportedProtocol)
    text = f"{type(error).__name__}: {error}" if told and str(error) else type(error).__name__
    return Answer(Outcome.REFUSED if unsent else Outcome.IN_DOUBT, error=_clean(text))


def _refusal(status: int, code: str | None) -> Outcome:
    if status in BY_STATUS:
        return BY_STATUS[status]
    if code is None:
        return Outcome.IN_DOUBT
    return WITH_CODE.get((status, code), WITH_ANY_CODE.get(status, Outcome.IN_DOUBT))


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


def _message_id(said: dict[str, Any]) -> str | None:
    given = said.get("message_id")
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
    return _clean(f"{code}: {message}" if isinstance(message, str) and message else code)


def _clean(text: str) -> str:
    """One bounded line that PostgreSQL can store: no control characters, no lone surrogates."""
    return "".join(char if char.isprintable() else " " for char in text[:ERROR_CHARS])


def _retry_after_s(value: str | None, now_us: int) -> float:
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
