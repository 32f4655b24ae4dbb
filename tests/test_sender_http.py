"""The HTTP sender against a real gateway process, and against servers that answer as none should."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from hashlib import sha256
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from uuid import UUID

import numpy as np
import pytest

from dispatcher.core.batches import Outcomes, Outgoing
from dispatcher.core.fleet import Gateway
from dispatcher.core.hosts import GatewayHosts
from dispatcher.core.outcomes import Outcome
from dispatcher.sender.http import HttpSender
from simulate.gateway import Arrival, GatewayProcess

TOKEN = "secret-token"
ID = {"message_id": "m-1"}
LOOPBACK = GatewayHosts("127.0.0.0/8")

Seen = tuple[str, str | None, str | None]


def now_us() -> int:
    return time.time_ns() // 1000


def outgoing(texts: list[str], deadline_s: float = 10.0, device: int = 7) -> Outgoing:
    size, now = len(texts), now_us()
    return Outgoing(
        device=np.full(size, device, np.int32),
        slot_us=np.full(size, now, np.int64),
        deadline_us=np.full(size, now + round(deadline_s * 1e6), np.int64),
        visit=np.ones(size, np.int32),
        attempt=np.ones(size, np.int32),
        to=[f"6010000{row:04}" for row in range(size)],
        text=texts,
        media_url=[None] * size,
        key=[UUID(int=row + 1).bytes for row in range(size)],
        sequence=["30 Day Fitness"] * size,
        step=["fitness_start"] * size,
    )


@asynccontextmanager
async def sending(url: str | None, connections: int = 128, connect_s: float = 5.0) -> AsyncIterator[HttpSender]:
    gateway = Gateway(7, "device-seven", url, TOKEN, idempotent=True)
    sender = HttpSender({7: gateway}, now_us, LOOPBACK, connections=connections, connect_s=connect_s)
    try:
        yield sender
    finally:
        await sender.close()


async def collected(sender: HttpSender, batch: Outgoing) -> list[Outcomes]:
    return [group async for group in sender.send(batch)]


async def outcome_of(sender: HttpSender, batch: Outgoing) -> Seen:
    """Outcome, message id and error of a batch of one."""
    (group,) = await collected(sender, batch)
    return Outcome(int(group.outcome[0])).label, group.message_id[0], group.error[0]


class OddServer:
    """Answers every request with the same bytes, or does with the connection what ``act`` does."""

    def __init__(self, act: Callable[[asyncio.StreamWriter], None] | bytes) -> None:
        self.act = act
        self.requests: list[tuple[str, dict[str, str], bytes]] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                headers = dict(line.lower().split(": ", 1) for line in head[1:-2])
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                self.requests.append((head[0], headers, body))
                if callable(self.act):
                    self.act(writer)
                else:
                    writer.write(self.act)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()


@asynccontextmanager
async def odd_server(
    act: Callable[[asyncio.StreamWriter], None] | bytes,
) -> AsyncIterator[tuple[str, OddServer]]:
    odd = OddServer(act)
    server = await asyncio.start_server(odd.serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", odd
    finally:
        server.close()


def response(status: int, body: bytes = b"", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} Whatever", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[GatewayProcess]:
    with GatewayProcess(tmp_path / "arrivals.jsonl", "--latency-ms", "1") as process:
        yield process


async def test_a_message_is_accepted_once_and_its_repeat_is_recognised(gateway: GatewayProcess) -> None:
    batch = outgoing(["Welcome to fitness! 💪"])
    key = str(UUID(int=1))
    digest = sha256("Welcome to fitness! 💪".encode()).hexdigest()[:16]
    async with sending(gateway.url) as sender:
        before_us = now_us()
        (first,) = await collected(sender, batch)
        again = await outcome_of(sender, batch)
    assert (first.row.tolist(), first.outcome.tolist(), first.message_id) == (
        [0],
        [Outcome.ACCEPTED],
        [f"m-{key}"],
    )
    assert before_us < first.at_us[0] <= now_us()
    assert again == ("repeat", f"m-{key}", None)
    arrivals, leave_by_us = gateway.arrivals(), int(batch.deadline_us[0])
    assert [arrival.arrived_at * 1e6 >= before_us for arrival in arrivals] == [True, True]
    assert arrivals == [
        Arrival(arrivals[0].arrived_at, "device-seven", "60100000000", key, digest, "accepted", 201, leave_by_us),
        Arrival(arrivals[1].arrived_at, "device-seven", "60100000000", key, digest, "repeat", 409, leave_by_us),
    ]


async def test_a_thousand_messages_come_back_in_groups_each_row_exactly_once(tmp_path: Path) -> None:
    faults = "lost=0.02,5xx=0.02,garbage=0.02,drop=0.02,throttle=0.02,refuse=0.02,reject=0.02,opt_out=0.02"
    with GatewayProcess(tmp_path / "log", "--latency-ms", "1", "--fail", faults) as gateway:
        async with sending(gateway.url) as sender:
            groups = await collected(sender, outgoing([f"message {row}" for row in range(1000)], deadline_s=30))
    assert len(groups) < 250
    rows = np.concatenate([group.row for group in groups])
    assert sorted(rows.tolist()) == list(range(1000))
    outcome_by_key = {
        str(UUID(int=row + 1)): Outcome(int(outcome))
        for row, outcome in zip(rows, np.concatenate([group.outcome for group in groups]), strict=True)
    }
    arrivals = gateway.arrivals()
    assert len(arrivals) == 1000
    told = {201: "accepted", 429: "throttled", 503: "refused", 422: "rejected or opted_out"}
    pairs = Counter(
        (arrival.answer, told.get(arrival.status, "hidden"), outcome_by_key[arrival.key].label) for arrival in arrivals
    )
    assert set(pairs) == {
        ("accepted", "accepted", "accepted"),
        ("accepted", "hidden", "in_doubt"),
        ("failed", "hidden", "in_doubt"),
        ("dropped", "hidden", "in_doubt"),
        ("throttled", "throttled", "throttled"),
        ("refused", "refused", "refused"),
        ("rejected", "rejected or opted_out", "rejected"),
        ("opted_out", "rejected or opted_out", "opted_out"),
    }
    throttled = np.concatenate([group.retry_after_s[group.outcome == Outcome.THROTTLED] for group in groups])
    assert set(throttled.tolist()) == {1.0}


async def test_a_message_past_its_deadline_never_reaches_the_gateway(gateway: GatewayProcess) -> None:
    async with sending(gateway.url) as sender:
        seen = await outcome_of(sender, outgoing(["late"], deadline_s=-0.001))
    assert seen == ("expired", None, "the deadline passed before the message could leave")
    assert gateway.arrivals() == []


async def test_messages_that_wait_for_a_connection_expire_unsent(tmp_path: Path) -> None:
    with GatewayProcess(tmp_path / "log", "--latency-ms", "60000") as gateway:
        async with sending(gateway.url, connections=2) as sender:
            started = time.monotonic()
            groups = await collected(sender, outgoing(["one", "two", "three", "four"], deadline_s=0.5))
            assert time.monotonic() - started < 2
    outcomes = [Outcome(int(outcome)).label for group in groups for outcome in group.outcome]
    assert Counter(outcomes) == {"in_doubt": 2, "expired": 2}
    assert len(gateway.arrivals()) == 2


async def test_the_gateway_refuses_what_arrives_after_its_not_after(gateway: GatewayProcess) -> None:
    slow_clock = HttpSender(
        {7: Gateway(7, "device-seven", gateway.url, None, True)}, lambda: now_us() - 60_000_000, LOOPBACK
    )
    batch = outgoing(["late by the gateway's clock"], deadline_s=-30)
    seen = await outcome_of(slow_clock, batch)
    await slow_clock.close()
    assert seen == ("expired", None, "expired: the gateway says expired")
    assert [(arrival.answer, arrival.status) for arrival in gateway.arrivals()] == [("expired", 410)]


async def test_a_gateway_that_does_not_answer_leaves_the_message_in_doubt_at_its_deadline(
    tmp_path: Path,
) -> None:
    with GatewayProcess(tmp_path / "log", "--latency-ms", "60000") as gateway:
        async with sending(gateway.url) as sender:
            started = time.monotonic()
            seen = await outcome_of(sender, outgoing(["slow"], deadline_s=0.4))
            assert 0.35 < time.monotonic() - started < 1.5
    assert seen == ("in_doubt", None, "no answer before the deadline")
    assert [arrival.answer for arrival in gateway.arrivals()] == ["accepted"]


async def test_what_is_known_early_does_not_wait_for_what_is_slow(gateway: GatewayProcess) -> None:
    async with odd_server(lambda writer: None) as (silent, _):
        gateways = {
            7: Gateway(7, "device-seven", gateway.url, None, True),
            8: Gateway(8, "device-eight", silent, None, True),
            9: Gateway(9, "device-nine", None, None, True),
        }
        sender = HttpSender(gateways, now_us, LOOPBACK)
        batch = outgoing(["quick", "silent", "no url", "unknown device"], deadline_s=0.6)
        batch.device[:] = [7, 8, 9, 10]
        groups = await collected(sender, batch)
        await sender.close()
    seen = [
        {int(row): (Outcome(int(outcome)).label, error) for row, outcome, error in zip(*columns, strict=True)}
        for columns in ((group.row, group.outcome, group.error) for group in groups)
    ]
    early, last = {row: known for group in seen[:-1] for row, known in group.items()}, seen[-1]
    assert early == {
        0: ("accepted", None),
        2: ("refused", "device 9 has no gateway_url"),
        3: ("refused", "device 10 has no gateway_url"),
    }
    assert last == {1: ("in_doubt", "no answer before the deadline")}


async def test_a_consumer_that_leaves_early_cancels_what_is_under_way(tmp_path: Path) -> None:
    async with odd_server(lambda writer: None) as (silent, odd):
        sender = HttpSender(
            {7: Gateway(7, "seven", silent, None, True), 8: Gateway(8, "eight", None, None, True)}, now_us, LOOPBACK
        )
        batch = outgoing(["silent", "no url"], deadline_s=30)
        batch.device[1] = 8
        before = asyncio.all_tasks()
        outcomes = sender.send(batch)
        first = await anext(outcomes)
        while not odd.requests:
            await asyncio.sleep(0.01)
        await outcomes.aclose()
        left = {task for task in asyncio.all_tasks() - before if "serve" not in repr(task)}
        await sender.close()
    assert first.row.tolist() == [1]
    assert left == set()


async def test_new_gateways_hold_for_the_next_batch(gateway: GatewayProcess) -> None:
    async with sending(None) as sender:
        before = await outcome_of(sender, outgoing(["hello"]))
        sender.update({7: Gateway(7, "device-seven", gateway.url + "/", None, True)})
        after = await outcome_of(sender, outgoing(["hello"]))
    assert before == ("refused", None, "device 7 has no gateway_url")
    assert after == ("accepted", f"m-{UUID(int=1)}", None)


async def test_proxies_of_the_environment_are_ignored(gateway: GatewayProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    async with odd_server(response(200, b'{"message_id": "proxied"}')) as (proxy, odd):
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy)
        async with sending(gateway.url) as sender:
            seen = await outcome_of(sender, outgoing(["straight"]))
    assert seen == ("accepted", f"m-{UUID(int=1)}", None)
    assert odd.requests == []


async def test_the_request_is_exactly_the_contracts(caplog: pytest.LogCaptureFixture) -> None:
    batch = outgoing(["Day 2 workout"])
    batch.deadline_us[0] = 4_102_444_800_250_000
    batch.media_url[0] = "https://example.com/plan.pdf"
    with caplog.at_level(logging.DEBUG):
        async with odd_server(response(202, json.dumps(ID).encode(), "Set-Cookie: device=7; Path=/")) as (
            url,
            odd,
        ):
            async with sending(f"{url}/v1/") as sender:
                assert await outcome_of(sender, batch) == ("accepted", "m-1", None)
                assert await outcome_of(sender, batch) == ("accepted", "m-1", None)
    (line, headers, body), again = odd.requests
    assert line == "POST /v1/messages HTTP/1.1"
    assert headers == {
        "host": url.removeprefix("http://"),
        "user-agent": "dripline",
        "accept": "application/json",
        "accept-encoding": "identity",
        "connection": "keep-alive",
        "content-type": "application/json",
        "content-length": str(len(body)),
        "idempotency-key": "00000000-0000-0000-0000-000000000001",
        "not-after": "2100-01-01t00:00:00.250000z",
        "authorization": f"bearer {TOKEN}",
    }
    assert json.loads(body) == {
        "device_id": "device-seven",
        "to": "60100000000",
        "text": "Day 2 workout",
        "media_url": "https://example.com/plan.pdf",
        "idempotency_key": "00000000-0000-0000-0000-000000000001",
    }
    assert again == (line, headers, body), "a resend is the same byte for byte, without cookies"
    said = [record.getMessage() for record in caplog.records if record.name.startswith(("httpx", "httpcore"))]
    assert said == []


async def test_redirects_are_not_followed(gateway: GatewayProcess) -> None:
    async with odd_server(response(308, b"", f"Location: {gateway.url}/messages")) as (url, odd):
        async with sending(url) as sender:
            seen = await outcome_of(sender, outgoing(["moved"]))
    assert seen == ("refused", None, "HTTP 308: redirects are not followed; correct the gateway_url")
    assert (len(odd.requests), gateway.arrivals()) == (1, [])


async def test_a_refused_connection_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    async with sending(f"http://127.0.0.1:{port}") as sender:
        seen = await outcome_of(sender, outgoing(["nobody there"]))
    assert seen == ("refused", None, "ConnectError: All connection attempts failed")


async def test_a_gateway_that_never_takes_the_connection_is_refused_or_past_the_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as deaf:
        address = deaf.getsockname()
        with socket.create_connection(address):  # fills the backlog: further connections get no answer
            async with sending(f"http://127.0.0.1:{address[1]}", connect_s=0.2) as sender:
                refused = await outcome_of(sender, outgoing(["unconnected"], deadline_s=5))
                expired = await outcome_of(sender, outgoing(["unconnected"], deadline_s=0.1))
    assert refused == ("refused", None, "ConnectTimeout")
    assert expired == ("expired", None, "the deadline passed before the message could leave")


@pytest.mark.parametrize("url", ["ftp://127.0.0.1", "127.0.0.1:80", "http://127.0.0.1:port", "https://", "nonsense"])
async def test_a_gateway_url_that_cannot_work_is_refused(url: str) -> None:
    async with sending(url) as sender:
        label, message_id, told = await outcome_of(sender, outgoing(["nowhere"]))
    assert (label, message_id) == ("refused", None)
    assert told


async def test_a_token_that_cannot_travel_is_refused_without_being_shown(gateway: GatewayProcess) -> None:
    sender = HttpSender({7: Gateway(7, "device-seven", gateway.url, f"{TOKEN}\n", True)}, now_us, LOOPBACK)
    seen = await outcome_of(sender, outgoing(["hello"]))
    await sender.close()
    assert seen == ("refused", None, "LocalProtocolError")
    assert gateway.arrivals() == []


def cut_mid_answer(writer: asyncio.StreamWriter) -> None:
    writer.write(b'HTTP/1.1 200 OK\r\nContent-Length: 40\r\n\r\n{"message_id": ')
    writer.close()


@pytest.mark.parametrize(
    ("act", "told"),
    [
        (lambda writer: writer.transport.abort(), "disconnected"),
        (lambda writer: writer.close(), "disconnected"),
        (cut_mid_answer, "RemoteProtocolError"),
        (b"SMTP ready\r\n\r\n", "RemoteProtocolError"),
        (response(200, b"x" * 1_000_000), "without a message_id"),
        (response(200, b'{"message_id": "m-1"' + b" " * 70_000 + b"}"), "without a message_id"),
        (response(200, b"not gzip", "Content-Encoding: gzip"), "DecodingError"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 40\r\n\r\n{", "before the deadline"),
    ],
    ids=[
        "reset",
        "closed",
        "cut mid-answer",
        "not HTTP",
        "huge",
        "past 64 KiB",
        "broken gzip",
        "stalled mid-answer",
    ],
)
async def test_an_answer_that_breaks_off_leaves_the_message_in_doubt(
    act: Callable[[asyncio.StreamWriter], None] | bytes, told: str
) -> None:
    async with odd_server(act) as (url, odd):
        async with sending(url) as sender:
            label, message_id, error = await outcome_of(sender, outgoing(["hello"], deadline_s=0.5))
    assert (label, message_id, len(odd.requests)) == ("in_doubt", None, 1)
    assert told in str(error)


async def test_closing_the_sender_leaves_what_was_under_way_in_doubt_and_sends_nothing_more() -> None:
    async with odd_server(lambda writer: None) as (url, odd), sending(url) as sender:
        under_way = asyncio.create_task(outcome_of(sender, outgoing(["hello"], deadline_s=30)))
        while not odd.requests:
            await asyncio.sleep(0.01)
        await sender.close()
        assert (await under_way)[0] == "in_doubt"
        assert (await outcome_of(sender, outgoing(["too late"])))[0] == "refused"
    assert len(odd.requests) == 1


@pytest.mark.parametrize(("look", "left"), [(2, "nothing"), (3, "nothing"), (4, "head"), (5, "everything")])
async def test_a_process_paused_past_the_deadline_stops_at_its_next_look_at_the_clock(
    look: int, left: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looks when the batch starts, when a message starts, before the first byte and before the body."""
    received, lost, looks = bytearray(), asyncio.Event(), count(1)

    class Recorder(asyncio.Protocol):
        def data_received(self, data: bytes) -> None:
            received.extend(data)

        def connection_lost(self, exc: Exception | None) -> None:
            lost.set()

    paused = SimpleNamespace(monotonic=lambda: time.monotonic() + (60 if next(looks) >= look else 0))
    monkeypatch.setattr("dispatcher.sender.http.time", paused)
    server = await asyncio.get_running_loop().create_server(Recorder, "127.0.0.1", 0)
    async with sending(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}") as sender:
        seen = await outcome_of(sender, outgoing(["paused"], deadline_s=0.3))
        if look > 2:
            await asyncio.wait_for(lost.wait(), 5)
    server.close()
    head, _, body = received.partition(b"\r\n\r\n")
    assert (bool(head), bool(body)) == {"nothing": (False, False), "head": (True, False)}.get(left, (True, True))
    assert seen[0] == ("in_doubt" if left == "everything" else "expired")
