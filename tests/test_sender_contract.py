"""What every answer of a gateway, or its absence, proves: the table of the generic HTTP gateway contract."""

from __future__ import annotations

import json
import math

import httpx
import numpy as np
import pytest

from dispatcher.core.outcomes import Outcome
from dispatcher.sender.contract import PastDeadlineError, from_failure, from_response

NOON_US = 1_767_268_800_000_000  # Thu, 01 Jan 2026 12:00:00 GMT
TOKEN = "secret-token"
ID = {"message_id": "m-1"}


def error(code: object, message: str = "no") -> dict[str, object]:
    return {"error": {"code": code, "message": message}}


@pytest.mark.parametrize(
    ("status", "said", "expected"),
    [
        (200, ID, (Outcome.ACCEPTED, "m-1", None)),
        (201, {"message_id": 12}, (Outcome.ACCEPTED, "12", None)),
        (202, ID, (Outcome.ACCEPTED, "m-1", None)),
        (200, {}, (Outcome.IN_DOUBT, None, "HTTP 200 without a message_id")),
        (200, {"message_id": ""}, (Outcome.IN_DOUBT, None, "HTTP 200 without a message_id")),
        (200, {"message_id": None}, (Outcome.IN_DOUBT, None, "HTTP 200 without a message_id")),
        (200, {"message_id": True}, (Outcome.IN_DOUBT, None, "HTTP 200 without a message_id")),
        (200, {"message_id": "a\x00b"}, (Outcome.IN_DOUBT, None, "HTTP 200 without a message_id")),
        (200, {"message_id": "m" * 256}, (Outcome.IN_DOUBT, None, "HTTP 200 without a message_id")),
        (200, ["m-1"], (Outcome.IN_DOUBT, None, "HTTP 200 without a message_id")),
        (204, ID, (Outcome.IN_DOUBT, None, "HTTP 204")),
        (409, ID, (Outcome.REPEAT, "m-1", None)),
        (409, error("conflict"), (Outcome.IN_DOUBT, None, "HTTP 409 without a message_id")),
        (410, error("expired", "too late"), (Outcome.EXPIRED, None, "expired: too late")),
        (410, {"code": "expired"}, (Outcome.EXPIRED, None, "expired")),
        (410, error("gone"), (Outcome.IN_DOUBT, None, "gone: no")),
        (410, {}, (Outcome.IN_DOUBT, None, "HTTP 410")),
        (429, {}, (Outcome.THROTTLED, None, "HTTP 429")),
        (400, error("opted_out"), (Outcome.OPTED_OUT, None, "opted_out: no")),
        (404, error("opted_out"), (Outcome.OPTED_OUT, None, "opted_out: no")),
        (422, error("opted_out"), (Outcome.OPTED_OUT, None, "opted_out: no")),
        (404, error("invalid_recipient"), (Outcome.REJECTED, None, "invalid_recipient: no")),
        (
            422,
            error("content", "link\x00not\nallowed"),
            (Outcome.CONTENT, None, "content: link not allowed"),
        ),
        (400, error("anything_else", "x" * 999), (Outcome.REJECTED, None, f"anything_else: {'x' * 285}")),
        (400, error(17), (Outcome.IN_DOUBT, None, "HTTP 400")),
        (404, {"code": "not_found", "message": "no route"}, (Outcome.IN_DOUBT, None, "HTTP 404")),
        (422, {"error": "invalid_recipient"}, (Outcome.IN_DOUBT, None, "HTTP 422")),
        (413, error("content"), (Outcome.IN_DOUBT, None, "content: no")),
        (401, {}, (Outcome.CREDENTIALS, None, "HTTP 401")),
        (403, error("forbidden"), (Outcome.CREDENTIALS, None, "forbidden: no")),
        (503, error("not_accepted"), (Outcome.REFUSED, None, "not_accepted: no")),
        (503, error("busy"), (Outcome.IN_DOUBT, None, "busy: no")),
        (503, {}, (Outcome.IN_DOUBT, None, "HTTP 503")),
        (500, error("not_accepted"), (Outcome.IN_DOUBT, None, "not_accepted: no")),
        (502, {}, (Outcome.IN_DOUBT, None, "HTTP 502")),
        (504, ID, (Outcome.IN_DOUBT, None, "HTTP 504")),
    ],
)
def test_answers_are_taken_by_the_words_of_the_contract(
    status: int, said: object, expected: tuple[Outcome, str | None, str | None]
) -> None:
    answer = from_response(status, httpx.Headers(), json.dumps(said).encode(), NOON_US)
    assert (answer.outcome, answer.message_id, answer.error) == expected
    assert math.isnan(answer.retry_after_s)


@pytest.mark.parametrize("body", [b"", b"<html>", b"\xff\xfe\x00", b"[" * 60_000, b"9" * 60_000, b"null"])
@pytest.mark.parametrize(
    ("status", "expected"),
    [
        *[(status, Outcome.IN_DOUBT) for status in (200, 201, 202, 204, 400, 404, 409, 410, 413, 422, 500, 503)],
        (401, Outcome.CREDENTIALS),
        (429, Outcome.THROTTLED),
        (307, Outcome.REFUSED),
    ],
)
def test_garbage_proves_nothing_that_the_status_alone_does_not(status: int, body: bytes, expected: Outcome) -> None:
    assert from_response(status, httpx.Headers(), body, NOON_US).outcome is expected


@pytest.mark.parametrize(
    ("value", "expected_s"),
    [
        ("17", 17.0),
        (" 0 ", 0.0),
        ("Thu, 01 Jan 2026 12:00:30 GMT", 30.0),
        ("Thu, 01 Jan 2026 12:00:30 -0000", 30.0),
        ("Thu, 01 Jan 2026 14:01:00 +0200", 60.0),
        ("Thu, 01 Jan 2026 11:59:00 GMT", 0.0),
        ("", math.nan),
        ("-5", math.nan),
        ("1e9", math.nan),
        ("9" * 400, math.nan),
        ("٣", math.nan),
        ("soon", math.nan),
        ("Thu, 99 Jan 2026 12:00:30 GMT", math.nan),
    ],
)
def test_retry_after_is_read_as_seconds_or_as_a_date(value: str, expected_s: float) -> None:
    answer = from_response(429, httpx.Headers({"Retry-After": value}, encoding="utf-8"), b"", NOON_US)
    assert answer.outcome is Outcome.THROTTLED
    np.testing.assert_equal(answer.retry_after_s, expected_s)


@pytest.mark.parametrize(
    ("failure", "before", "after"),
    [
        (httpx.ConnectError("refused"), Outcome.REFUSED, Outcome.REFUSED),
        (httpx.ConnectTimeout(""), Outcome.REFUSED, Outcome.REFUSED),
        (httpx.PoolTimeout(""), Outcome.REFUSED, Outcome.REFUSED),
        (httpx.UnsupportedProtocol("ftp"), Outcome.REFUSED, Outcome.REFUSED),
        (
            httpx.LocalProtocolError(f"Illegal header value b'Bearer {TOKEN}'"),
            Outcome.REFUSED,
            Outcome.IN_DOUBT,
        ),
        (httpx.InvalidURL(f"https://{TOKEN}@"), Outcome.REFUSED, Outcome.IN_DOUBT),
        (httpx.WriteTimeout(""), Outcome.REFUSED, Outcome.IN_DOUBT),
        (httpx.WriteError(""), Outcome.REFUSED, Outcome.IN_DOUBT),
        (httpx.ReadTimeout(""), Outcome.REFUSED, Outcome.IN_DOUBT),
        (httpx.ReadError(""), Outcome.REFUSED, Outcome.IN_DOUBT),
        (httpx.RemoteProtocolError("Server disconnected"), Outcome.REFUSED, Outcome.IN_DOUBT),
        (httpx.DecodingError(""), Outcome.REFUSED, Outcome.IN_DOUBT),
        (RuntimeError("the client has been closed"), Outcome.REFUSED, Outcome.IN_DOUBT),
        (TimeoutError(), Outcome.EXPIRED, Outcome.IN_DOUBT),
        (PastDeadlineError(), Outcome.EXPIRED, Outcome.IN_DOUBT),
    ],
)
def test_a_failure_proves_unsent_only_by_its_class_or_when_the_body_was_never_asked_for(
    failure: Exception, before: Outcome, after: Outcome
) -> None:
    seen = [from_failure(failure, begun=False), from_failure(failure, begun=True)]
    assert [answer.outcome for answer in seen] == [before, after]
    assert all(answer.error and TOKEN not in answer.error for answer in seen)
