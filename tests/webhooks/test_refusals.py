"""What may not come in: the right status, nothing written, and nothing of it in any log."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from dispatcher.webhooks import bodies
from dispatcher.webhooks.signatures import META_SIGNATURE, SIGNATURE, TIMESTAMP, sign, sign_as_meta
from simulate.chaos.proxy import Proxy

PHONE, WORDS = "60123456789", "the words of a lead"
GOOD = json.dumps([{"type": "reply", "at": "2026-01-05T09:00:00Z", "message_id": "m-1", "from": PHONE, "text": WORDS}])
NOTHING = {"message_receipts": 0, "replies": 0, "opt_outs": 0, "lead_changes": 0}
TEN_MB = 10 << 20


def reply(**fields: Any) -> str:
    """A body with one reply; fields that are None are left out."""
    event = json.loads(GOOD)[0] | {name.rstrip("_"): value for name, value in fields.items()}
    return json.dumps({name: value for name, value in event.items() if value is not None})


def receipt(**fields: Any) -> str:
    """A body with one receipt of a message by its gateway's id."""
    event = {"type": "delivered", "at": "2026-01-05T09:00:00Z", "message_id": "m-1", "error": WORDS}
    return json.dumps(event | fields)


WELL_SIGNED = {
    "no body": (400, ""),
    "no JSON": (400, f'{{"text": {WORDS}'),
    "half a list": (400, GOOD[:-1]),
    "two values": (400, GOOD + GOOD),
    "NaN": (400, reply(at=float("nan"))),
    "UTF-16": (400, GOOD.encode("utf-16")),
    "Latin-1": (400, f'"{PHONE} \xe9"'.encode("latin-1")),
    "nested deeply": (400, "[" * 40 + "]" * 40),
    "nested as deeply as it fits": (400, "[" * 500_000 + "]" * 500_000),
    "a number of 100,000 digits": (400, "9" * 100_000),
    "a string": (422, f'"{WORDS}"'),
    "a list in a list": (422, f"[{GOOD}]"),
    "no type": (422, reply(type=None)),
    "a type that is none": (422, reply(type=[PHONE])),
    "no moment": (422, receipt(at=None)),
    "a moment without a zone": (422, receipt(at="2026-01-05T09:00:00")),
    "no moment at all": (422, receipt(at="yesterday")),
    "a message without a name": (422, receipt(message_id=None)),
    "an empty name": (422, receipt(message_id="")),
    "a name that is too long": (422, receipt(message_id="m" * 256)),
    "a name with a NUL": (422, receipt(message_id="m\0")),
    "half a character": (422, receipt(message_id="m\ud800")),
    "a key that is none": (422, receipt(idempotency_key="1")),
    "a reply of nobody": (422, reply(from_=None)),
    "a reply without a name": (422, reply(message_id=None)),
    "a phone that is none": (422, reply(from_="0123' OR '1'='1")),
    "an opt-out of nobody": (422, json.dumps({"type": "opted_out", "at": "2026-01-05T09:00:00Z"})),
    "a text that is none": (422, reply(text={"body": WORDS})),
    "one bad event among good ones": (422, f"[{receipt()}, {reply(at=None)}]"),
    "too many events": (422, f"[{', '.join([receipt()] * 1001)}]"),
}  # fmt: skip


async def test_what_is_well_signed_but_wrong_is_refused_and_nothing_of_it_is_written(hooks, caplog):
    caplog.set_level(logging.DEBUG)
    found = {}
    for name, (_, told) in WELL_SIGNED.items():
        body = told.encode("utf-8", "surrogatepass") if isinstance(told, str) else told
        answer = await hooks.client.post("/webhooks/gateway", content=body, headers=hooks.signed(body))
        found[name] = answer.status_code
        assert set(answer.json()) == {"error"}, name
    assert found == {name: status for name, (status, _) in WELL_SIGNED.items()}
    assert await hooks.written() == NOTHING
    assert_nothing_leaked(caplog, hooks)


async def test_what_is_not_well_signed_is_refused_and_nothing_of_it_is_written(hooks, caplog):
    caplog.set_level(logging.DEBUG)
    body, signed = GOOD.encode(), hooks.signed
    others = sign("another secret of theirs", str(int(time.time())), body)
    old = str(int(time.time()) - 301)
    cases = {
        "no headers at all": (415, {}),
        "text": (415, signed(body, Content_Type="text/plain")),
        "a form": (415, signed(body, Content_Type="application/x-www-form-urlencoded")),
        "another character set": (415, signed(body, Content_Type="application/json; charset=latin-1")),
        "packed": (415, signed(body, Content_Encoding="gzip")),
        "no signature": (401, {"Content-Type": "application/json"}),
        "no time": (401, {"Content-Type": "application/json", SIGNATURE: signed(body)[SIGNATURE]}),
        "no signature beside its time": (401, {"Content-Type": "application/json", TIMESTAMP: str(int(time.time()))}),
        "an empty signature": (401, signed(body, Dripline_Signature="")),
        "a bare signature": (401, signed(body, Dripline_Signature=signed(body)[SIGNATURE].removeprefix("sha256="))),
        "half a signature": (401, signed(body, Dripline_Signature=signed(body)[SIGNATURE][:-2])),
        "no hexadecimal": (401, signed(body, Dripline_Signature=b"sha256=\xe9\xe9".decode("latin-1"))),
        "somebody else's": (401, signed(body, Dripline_Signature=others)),
        "another body's": (401, signed(body + b" ")),
        "another time's": (401, signed(body, Dripline_Timestamp=str(int(time.time()) - 60))),
        "a time in words": (401, signed(body, Dripline_Timestamp="now")),
        "a time in Arabic digits": (401, signed(body, Dripline_Timestamp="٣".encode().decode("latin-1"))),
        "an endless time": (401, signed(body, Dripline_Timestamp="1" * 5000)),
        "told again after 301 s": (401, {
            "Content-Type": "application/json", TIMESTAMP: old, SIGNATURE: sign("gateways-secret-hush", old, body)
        }),
        "from in 310 s": (401, signed(body, age_s=-310)),
        "Meta's signature": (401, {
            "Content-Type": "application/json", META_SIGNATURE: sign_as_meta("gateways-secret-hush", body)
        }),
    }  # fmt: skip
    found = {}
    for name, (_, headers) in cases.items():
        told = {key: value.encode("latin-1") for key, value in headers.items()}
        found[name] = (await hooks.client.post("/webhooks/gateway", content=body, headers=told)).status_code
    assert found == {name: status for name, (status, _) in cases.items()}
    assert await hooks.written() == NOTHING
    assert_nothing_leaked(caplog, hooks)


async def test_metas_webhooks_are_refused_likewise(hooks, caplog):
    caplog.set_level(logging.DEBUG)
    message = {"from": PHONE, "id": "wamid.1", "timestamp": "1767603600", "type": "text", "text": {"body": WORDS}}
    body = json.dumps({"entry": [{"changes": [{"value": {"messages": [message]}}]}]}).encode()
    json_only = {"Content-Type": "application/json"}
    others = json_only | {META_SIGNATURE: sign_as_meta("another app's", body)}
    answers = {
        "unsigned": await hooks.client.post("/webhooks/whatsapp", content=body, headers=json_only),
        "signed by another app": await hooks.client.post("/webhooks/whatsapp", content=body, headers=others),
        "signed as a gateway": await hooks.client.post("/webhooks/whatsapp", content=body, headers=hooks.signed(body)),
        "no entry": await hooks.post_as_meta({"object": "whatsapp_business_account"}),
        "a list": await hooks.post_as_meta([PHONE]),
        "another token": await hooks.client.get(
            "/webhooks/whatsapp",
            params={"hub.mode": "subscribe", "hub.verify_token": "another", "hub.challenge": "1158201444"},
        ),
        "no token": await hooks.client.get("/webhooks/whatsapp", params={"hub.mode": "subscribe"}),
        "a page for a challenge": await hooks.client.get(
            "/webhooks/whatsapp",
            params={"hub.mode": "subscribe", "hub.verify_token": "verify-token-hush", "hub.challenge": "<script>"},
        ),
        "deleted": await hooks.client.delete("/webhooks/whatsapp"),
        "nowhere": await hooks.client.post("/webhooks/another", content=body),
    }
    assert {name: answer.status_code for name, answer in answers.items()} == {
        "unsigned": 401, "signed by another app": 401, "signed as a gateway": 401, "no entry": 422, "a list": 422,
        "another token": 403, "no token": 403, "a page for a challenge": 400, "deleted": 405, "nowhere": 404,
    }  # fmt: skip
    assert await hooks.written() == NOTHING
    assert_nothing_leaked(caplog, hooks)


async def test_a_body_of_ten_megabytes_is_refused_before_it_has_come(hooks, caplog, monkeypatch):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr(bodies, "BODY_S", 0.3)
    monkeypatch.setattr(bodies, "LINGER_S", 0.2)

    async def parts(megabytes: int) -> AsyncIterator[bytes]:
        for _ in range(megabytes * 16):
            yield b" " * 65_536

    signed = hooks.signed(b"")
    whole = await hooks.client.post("/webhooks/gateway", content=b" " * TEN_MB, headers=signed)
    chunked = await hooks.client.post("/webhooks/gateway", content=parts(10), headers=signed)
    fitting = await hooks.client.post("/webhooks/gateway", content=parts(1), headers=signed)
    head = "".join(f"{name}: {value}\r\n" for name, value in signed.items())
    found = {
        "10 MB": whole.status_code,
        "10 MB in chunks": chunked.status_code,
        "1 MB in chunks, signed for nothing": fitting.status_code,
        "10 MB told, none sent": await status_of(hooks.port, f"{head}Content-Length: {TEN_MB}\r\n\r\n"),
        "a chunk too many, and no end": await status_of(
            hooks.port, f"{head}Transfer-Encoding: chunked\r\n\r\n100400\r\n" + " " * 0x100400
        ),
        "a body that never comes": await status_of(hooks.port, f"{head}Content-Length: 100\r\n\r\n[["),
        "two lengths": await status_of(hooks.port, f"{head}Content-Length: 1\r\nContent-Length: 2\r\n\r\n[["),
        "a head without end": await status_of(hooks.port, "X: " + "x" * 40_000),
    }
    assert found == {
        "10 MB": 413, "10 MB in chunks": 413, "1 MB in chunks, signed for nothing": 401, "10 MB told, none sent": 413,
        "a chunk too many, and no end": 413, "a body that never comes": 408, "two lengths": 400,
        "a head without end": 400,
    }  # fmt: skip
    assert await hooks.written() == NOTHING
    assert_nothing_leaked(caplog, hooks)


async def status_of(port: int, rest: str) -> int:
    """The status that a request is answered with which goes on like this and then stands still."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"POST /webhooks/gateway HTTP/1.1\r\nHost: here\r\n{rest}".encode())
    try:
        async with asyncio.timeout(5):
            status = int((await reader.readline()).split()[1])
            await reader.read()  # until it is closed
    except ConnectionResetError:
        pass
    finally:
        writer.close()
    return status


async def test_a_bug_is_told_by_its_place_only(hooks, caplog, monkeypatch):
    def bug(_body: bytes) -> None:
        raise RuntimeError(WORDS)

    monkeypatch.setattr("dispatcher.webhooks.app.parse", bug)
    body = GOOD.encode()
    answer = await hooks.client.post("/webhooks/gateway", content=body, headers=hooks.signed(body))
    assert (answer.status_code, answer.headers["retry-after"]) == (500, "5")
    assert "a webhook broke off: RuntimeError" in caplog.text
    assert "in bug\n" in caplog.text
    assert_nothing_leaked(caplog, hooks)


async def test_while_the_database_is_away_gateways_are_asked_to_come_again(serve, database_url, event, caplog):
    parts = urlsplit(database_url)
    proxy = Proxy(Path(parse_qs(parts.query)["host"][0]) / ".s.PGSQL.5432")
    await proxy.start()
    async with serve(f"postgresql://postgres@127.0.0.1:{proxy.port}{parts.path}") as hooks:
        healthy = await hooks.client.get("/healthz")
        await proxy.close()
        away = await hooks.tell(event("reply", from_=PHONE, text=WORDS)), await hooks.client.get("/healthz")
    assert (healthy.status_code, healthy.json()) == (200, {"status": "ok"})
    assert [answer.status_code for answer in away] == [503, 503]
    assert away[0].headers["retry-after"] == "5"
    assert_nothing_leaked(caplog, hooks)


async def test_only_what_has_a_secret_is_served(serve, database_url):
    async with serve(database_url, webhook_secret=None) as hooks:
        assert (await hooks.tell()).status_code == 404
        assert (await hooks.post_as_meta({"entry": []})).status_code == 200
    async with serve(database_url, whatsapp_app_secret=None) as hooks:
        assert (await hooks.post_as_meta({"entry": []})).status_code == 404
        assert (await hooks.tell()).status_code == 200


def assert_nothing_leaked(caplog: pytest.LogCaptureFixture, hooks: Any) -> None:
    """No log holds a word of what was told, or a secret; a person is told counts."""
    ours = [record for record in caplog.records if not record.name.startswith(("httpx", "httpcore"))]
    told = [logging.Formatter().format(record) for record in ours] + hooks.said
    assert [line for line in told for part in (PHONE, WORDS, "hush", "sha256=", "m-1") if part in line] == []
