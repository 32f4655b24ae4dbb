"""Both kinds of gateway over real HTTP: what every status and error code means, and what leaves for it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import numpy as np
import pytest

from dispatcher.core.batches import Outcomes, Outgoing
from dispatcher.core.fleet import Gateway
from dispatcher.core.hosts import GatewayHosts
from dispatcher.core.outcomes import Outcome
from dispatcher.sender.http import HttpSender
from dispatcher.sender.whatsapp_codes import CODES

LOOPBACK = GatewayHosts("127.0.0.1")
KEY = "00000000-0000-0000-0000-000000000001"
TEMPLATE = json.dumps({"name": "welcome", "language": "en", "parameters": ["Ann", "Paris"]})
KINDS = ("http", "whatsapp")
TAKEN = {"http": {"message_id": "m-1"}, "whatsapp": {"messages": [{"id": "m-1"}]}}


class Server:
    """A gateway on the loopback that says ``answer`` to everything, and remembers what it was asked."""

    def __init__(self) -> None:
        self.answer: tuple[int, Any, dict[str, str]] | None = (200, {}, {})
        self.asked: list[tuple[str, dict[str, str], Any]] = []
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                headers = dict(line.lower().split(": ", 1) for line in head[1:-2])
                body = await reader.readexactly(int(headers["content-length"]))
                self.asked.append((head[0], headers, json.loads(body)))
                if self.answer is None:
                    writer.transport.abort()
                    return
                status, said, more = self.answer
                body = said if isinstance(said, bytes) else json.dumps(said).encode()
                lines = [f"HTTP/1.1 {status} Whatever", f"Content-Length: {len(body)}"]
                lines += [f"{name}: {value}" for name, value in more.items()]
                writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    made = Server()
    listening = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    yield made
    listening.close()


def now_us() -> int:
    return time.time_ns() // 1000


def gateway(kind: str, url: str, number: int = 7) -> Gateway:
    return Gateway(number, "device-seven", url, "secret-token", kind == "http", kind, "1066")


def batch(template: str | None = None, media_url: str | None = None, deadline_s: float = 5.0) -> Outgoing:
    now = now_us()
    return Outgoing(
        device=np.array([7], np.int32),
        slot_us=np.array([now], np.int64),
        deadline_us=np.array([now + round(deadline_s * 1e6)], np.int64),
        visit=np.ones(1, np.int32),
        attempt=np.ones(1, np.int32),
        to=["60123456789"],
        text=["Welcome, Ann!"],
        media_url=[media_url],
        key=[UUID(KEY).bytes],
        sequence=["30 Day Fitness"],
        step=["fitness_start"],
        template=[template],
    )


@asynccontextmanager
async def sending(*gateways: Gateway, hosts: GatewayHosts = LOOPBACK) -> AsyncIterator[HttpSender]:
    sender = HttpSender({each.number: each for each in gateways}, now_us, hosts, connect_s=2.0)
    try:
        yield sender
    finally:
        await sender.close()


async def outcome_of(sender: HttpSender, sent: Outgoing) -> tuple[Any, ...]:
    (told,) = [group async for group in sender.send(sent)]
    wait_s = float(told.retry_after_s[0])
    return Outcome(int(told.outcome[0])), told.message_id[0], told.error[0], None if wait_s != wait_s else wait_s


# What is the same of both ------------------------------------------------------------------------------------------


@pytest.fixture(params=KINDS)
async def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def test_a_message_that_is_taken_is_accepted_under_the_gateways_name_for_it(kind, server):
    server.answer = (200, TAKEN[kind], {})
    async with sending(gateway(kind, server.url)) as sender:
        assert await outcome_of(sender, batch()) == (Outcome.ACCEPTED, "m-1", None, None)
    [(line, headers, _)] = server.asked
    assert (line.split()[0], headers["authorization"]) == ("POST", "bearer secret-token")


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (None, Outcome.IN_DOUBT),
        ((200, {}, {}), Outcome.IN_DOUBT),
        ((200, b"<html>", {}), Outcome.IN_DOUBT),
        ((200, {"messages": [], "message_id": None}, {}), Outcome.IN_DOUBT),
        ((500, b"oops", {}), Outcome.IN_DOUBT),
        ((503, {}, {}), Outcome.IN_DOUBT),
        ((418, {"error": {"message": "no code"}}, {}), Outcome.IN_DOUBT),
        ((429, b"slow down", {"Retry-After": "17"}), Outcome.THROTTLED),
        ((401, b"", {}), Outcome.CREDENTIALS),
        ((302, b"", {"Location": "http://127.0.0.1:1/messages"}), Outcome.REFUSED),
    ],
)
async def test_what_an_answer_without_an_error_code_proves(kind, server, answer, outcome):
    server.answer = answer
    async with sending(gateway(kind, server.url)) as sender:
        told = await outcome_of(sender, batch())
    assert (told[0], told[3], len(server.asked)) == (outcome, 17.0 if outcome is Outcome.THROTTLED else None, 1)


async def test_nobody_listening_is_surely_unsent_and_a_passed_deadline_too(kind, server):
    async with sending(gateway(kind, "http://127.0.0.1:9")) as sender:
        assert (await outcome_of(sender, batch()))[0] is Outcome.REFUSED
    async with sending(gateway(kind, server.url)) as sender:
        assert (await outcome_of(sender, batch(deadline_s=-1)))[0] is Outcome.EXPIRED
    assert server.asked == []


async def test_no_address_within_is_connected_to_unless_it_is_allowed(kind, server, monkeypatch):
    asked = []

    async def resolved(host: str, port: int, **_: Any) -> list[Any]:
        asked.append(host)
        return [(2, 1, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolved)
    port = server.url.rpartition(":")[2]
    for name in ("127.0.0.1", "gw.example"):
        async with sending(gateway(kind, f"http://{name}:{port}"), hosts=GatewayHosts()) as sender:
            outcome, _, error, _ = await outcome_of(sender, batch())
        assert (outcome, "is not allowed" in error) == (Outcome.CREDENTIALS, True)
    assert (server.asked, asked) == ([], ["gw.example"])
    server.answer = (200, TAKEN[kind], {})
    async with sending(gateway(kind, f"http://gw.example:{port}")) as sender:
        assert (await outcome_of(sender, batch()))[0] is Outcome.ACCEPTED
    assert server.asked[0][1]["host"] == f"gw.example:{port}"


async def test_devices_of_both_kinds_leave_in_one_batch(server):
    server.answer = (200, {**TAKEN["http"], **TAKEN["whatsapp"]}, {})
    both = Outgoing.join([batch(), batch()]).replace(device=np.array([7, 8], np.int32))
    async with sending(gateway("http", server.url), gateway("whatsapp", server.url, 8)) as sender:
        told = Outcomes.join([group async for group in sender.send(both)])
    assert told.outcome.tolist() == [Outcome.ACCEPTED] * 2
    assert sorted(line for line, _, _ in server.asked) == ["POST /1066/messages HTTP/1.1", "POST /messages HTTP/1.1"]


# The generic contract ----------------------------------------------------------------------------------------------

CONTRACT = {
    (410, "expired"): Outcome.EXPIRED,
    (503, "not_accepted"): Outcome.REFUSED,
    (429, "throttled"): Outcome.THROTTLED,
    (429, "pair_throttled"): Outcome.THROTTLED_PAIR,
    (429, "account_throttled"): Outcome.THROTTLED_ACCOUNT,
    (429, "recipient_capped"): Outcome.CAPPED,
    (403, "quality"): Outcome.QUALITY,
    (403, "forbidden"): Outcome.CREDENTIALS,
    (400, "invalid_recipient"): Outcome.REJECTED,
    (404, "invalid_recipient"): Outcome.REJECTED,
    (422, "content"): Outcome.CONTENT,
    (422, "service_window"): Outcome.SERVICE_WINDOW,
    (422, "opted_out"): Outcome.OPTED_OUT,
    (500, "invalid_recipient"): Outcome.IN_DOUBT,
}


@pytest.mark.parametrize(("status", "code"), CONTRACT)
async def test_every_code_of_the_generic_contract(server, status, code):
    server.answer = (status, {"error": {"code": code, "message": "why"}}, {})
    async with sending(gateway("http", server.url)) as sender:
        assert (await outcome_of(sender, batch()))[:3] == (CONTRACT[status, code], None, f"{code}: why")


# The Cloud API -----------------------------------------------------------------------------------------------------

CLOUD = {
    Outcome.CREDENTIALS: (
        0, 3, 10, 33, 190, 200, 299, 131005, 131037, 131045,
        133000, 133005, 133006, 133008, 133009, 133010, 133015, 133016,
    ),
    Outcome.THROTTLED: (130429,),
    Outcome.THROTTLED_PAIR: (131056,),
    Outcome.THROTTLED_ACCOUNT: (4, 80007, 131042, 131057),
    Outcome.QUALITY: (368, 131031, 131048),
    Outcome.REJECTED: (100, 130497, 131009, 131021, 131026, 131030, 132005),
    Outcome.OPTED_OUT: (131050,),
    Outcome.CAPPED: (130472, 131049),
    Outcome.SERVICE_WINDOW: (131047,),
    Outcome.CONTENT: (
        131008, 131051, 131052, 131053, 132000, 132001, 132007, 132012, 132015, 132016, 132068, 132069
    ),
    Outcome.REFUSED: (2, 131016, 133004),
    Outcome.IN_DOUBT: (1, 131000, 999999),
}  # fmt: skip


def test_the_table_of_cloud_api_codes_is_all_there():
    assert {code for codes in CLOUD.values() for code in codes} - {200, 299, 999999} == set(CODES)


async def test_every_code_of_the_cloud_api(server):
    async with sending(gateway("whatsapp", server.url)) as sender:
        for outcome, codes in CLOUD.items():
            for code in codes:
                error = {"message": f"(#{code}) Title", "code": code, "error_data": {"details": "the details"}}
                for status in (400, 500):
                    server.answer = (status, {"error": error}, {})
                    told = await outcome_of(sender, batch())
                    assert (code, *told[:2]) == (code, outcome, None)
                    assert (str(told[2]).startswith(f"{code}: "), "the details" in str(told[2])) == (True, True)


async def test_the_cloud_apis_hints_and_subcodes(server):
    async with sending(gateway("whatsapp", server.url)) as sender:
        server.answer = (400, {"error": {"code": 131042}}, {})
        assert (await outcome_of(sender, batch()))[3] == 3600.0
        server.answer = (429, {"error": {"code": 80007}}, {"Retry-After": "9"})
        assert (await outcome_of(sender, batch()))[3] == 9.0
        server.answer = (400, {"error": {"code": 100, "error_subcode": 33}}, {})
        assert (await outcome_of(sender, batch()))[0] is Outcome.CREDENTIALS


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (batch(), {"type": "text", "text": {"preview_url": False, "body": "Welcome, Ann!"}}),
        (
            batch(media_url="https://m.example/a/Plan.PNG?x=1"),
            {"type": "image", "image": {"link": "https://m.example/a/Plan.PNG?x=1", "caption": "Welcome, Ann!"}},
        ),
        (
            batch(media_url="https://m.example/plan.pdf"),
            {
                "type": "document",
                "document": {"link": "https://m.example/plan.pdf", "caption": "Welcome, Ann!", "filename": "plan.pdf"},
            },
        ),
        (
            batch(TEMPLATE),
            {
                "type": "template",
                "template": {
                    "name": "welcome",
                    "language": {"code": "en"},
                    "components": [
                        {"type": "body", "parameters": [{"type": "text", "text": t} for t in ("Ann", "Paris")]}
                    ],
                },
            },
        ),
        (
            batch(json.dumps({"name": "plain", "language": "en_US", "parameters": []})),
            {"type": "template", "template": {"name": "plain", "language": {"code": "en_US"}}},
        ),
    ],
    ids=["text", "image", "document", "template", "template without gaps"],
)
async def test_the_request_is_exactly_the_cloud_apis(server, sent, said):
    sent = sent.replace(deadline_us=np.array([now_us() + 5_000_000], np.int64))
    server.answer = (200, TAKEN["whatsapp"], {})
    async with sending(gateway("whatsapp", f"{server.url}/v23.0/")) as sender:
        assert (await outcome_of(sender, sent))[0] is Outcome.ACCEPTED
    [(line, headers, asked)] = server.asked
    assert (line, "idempotency-key" in headers) == ("POST /v23.0/1066/messages HTTP/1.1", False)
    who = {"messaging_product": "whatsapp", "recipient_type": "individual", "to": "60123456789"}
    assert asked == {**who, **said, "biz_opaque_callback_data": KEY}
