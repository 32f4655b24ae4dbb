"""The gateway that load and chaos tests talk to: HTTP, keys, faults, limits, and its log."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from simulate.gateway import GatewayProcess, read_log


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[GatewayProcess]:
    with GatewayProcess(tmp_path / "arrivals.jsonl", "--latency-ms", "1") as process:
        yield process


def post(key: str, text: str = "hello", **headers: str) -> bytes:
    body = json.dumps({"device_id": "d", "to": "60", "text": text, "media_url": None, "idempotency_key": key}).encode()
    lines = [f"Content-Length: {len(body)}", f"Idempotency-Key: {key}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(["POST /x/messages HTTP/1.1", *lines, "", ""]).encode() + body


def exchange(gateway: GatewayProcess, raw: bytes) -> list[int]:
    """The statuses answered to ``raw``, whose last request must close the connection."""
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=5) as connection:
        connection.sendall(raw)
        answer = b""
        while part := connection.recv(65_536):
            answer += part
    return [int(status) for status in re.findall(rb"HTTP/1.1 (\d+) ", answer)]


def test_the_gateway_answers_pipelined_and_large_requests_in_order(gateway: GatewayProcess) -> None:
    raw = post("a") + post("b", text="x" * 500_000) + post("a") + post("c", Connection="close")
    assert exchange(gateway, raw) == [201, 201, 409, 201]
    assert [(arrival.key, arrival.answer) for arrival in gateway.arrivals()] == [
        ("a", "accepted"),
        ("b", "accepted"),
        ("a", "repeat"),
        ("c", "accepted"),
    ]


@pytest.mark.parametrize(
    "raw",
    [
        b"GET /messages HTTP/1.1\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"POST /messages HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST /messages HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n",
        b"x" * 20_000,
        post("k", Not_After="tomorrow", Connection="close"),
        post("k", Not_After="2026-01-01T00:00:00", Connection="close"),
        post("k", Connection="close").replace(b"Idempotency-Key: k", b"Idempotency-Key: z"),
        post("k", Connection="close").replace(b"/x/messages", b"/elsewhere"),
        post("k", Connection="close").replace(b'"device_id"', b'"device_no"'),
    ],
)
def test_the_gateway_answers_400_to_what_breaks_the_contract(gateway: GatewayProcess, raw: bytes) -> None:
    assert exchange(gateway, raw) == [400]
    assert [(arrival.answer, arrival.key) for arrival in gateway.arrivals()] == [("malformed", "")]


def test_the_gateway_keeps_its_keys_over_a_kill_and_ends_cleanly_on_sigterm(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with GatewayProcess(log) as first:
        assert exchange(first, post("a", Connection="close")) == [201]
        assert first.kill() == -9
    with GatewayProcess(log, port=first.port) as second:
        assert second.url == first.url
        assert exchange(second, post("a", Connection="close")) == [409]
        assert second.stop() == 0
    assert [arrival.answer for arrival in read_log(log)] == ["accepted", "repeat"]


def test_a_gateway_without_idempotency_takes_a_repeated_key_again(tmp_path: Path) -> None:
    with GatewayProcess(tmp_path / "log", "--not-idempotent") as gateway:
        assert exchange(gateway, post("a") + post("a", Connection="close")) == [201, 201]


def test_a_device_over_the_gateways_own_limit_is_throttled(tmp_path: Path) -> None:
    with GatewayProcess(tmp_path / "log", "--window-s", "0.4", "--limit", "2") as gateway:
        raw = post("a") + post("b") + post("c", Connection="close")
        assert exchange(gateway, raw) == [201, 201, 429]
        time.sleep(0.5)
        assert exchange(gateway, post("c", Connection="close")) == [201]
    assert [arrival.answer for arrival in gateway.arrivals()] == [
        "accepted",
        "accepted",
        "over_limit",
        "accepted",
    ]


def test_faults_follow_from_seed_key_and_attempt_alone(tmp_path: Path) -> None:
    keys = [f"key-{number}" for number in range(60)]

    def answers(name: str, seed: str, order: list[str]) -> dict[str, list[str]]:
        with GatewayProcess(tmp_path / name, "--seed", seed, "--latency-ms", "0", "--fail", "refuse=0.4") as gateway:
            exchange(gateway, b"".join(post(key) for key in order) + post("end", Connection="close"))
        seen: dict[str, list[str]] = {key: [] for key in keys}
        for arrival in gateway.arrivals()[:-1]:
            seen[arrival.key].append(arrival.answer)
        return seen

    first = answers("a", "1", keys + keys)
    assert answers("b", "1", [key for key in reversed(keys) for _ in range(2)]) == first
    assert answers("c", "2", keys + keys) != first
    assert 30 < sum(answer == "refused" for both in first.values() for answer in both) < 66


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--fail", "lots=1"], "unknown fault 'lots'"),
        (["--fail", "lost=often"], "'lost=often' must be name=probability"),
        (["--fail", "lost=0.6,drop=0.6"], "at most 1 together"),
        (["--fail", "lost=nan"], "at most 1 together"),
    ],
)
def test_a_wrong_option_of_the_gateway_is_named(
    tmp_path: Path, options: list[str], told: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RuntimeError, match="exit status 2"):
        GatewayProcess(tmp_path / "log", *options)
    assert told in capfd.readouterr().err


def test_a_file_that_is_no_log_is_not_appended_to(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "leads.csv"
    other.write_text("phone,trigger\n60123456789,fitness_start\n")
    with pytest.raises(RuntimeError, match="exit status 2"):
        GatewayProcess(other)
    assert "leads.csv:1: not a line of a gateway's log" in capfd.readouterr().err
    assert other.read_text() == "phone,trigger\n60123456789,fitness_start\n"
