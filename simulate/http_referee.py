"""The referee behind a socket: a gateway that speaks the generic HTTP contract and judges as the referee does.

What the contract carries is taken from there. Two headers carry what it has no word for, since no gateway needs it:
``MESSAGE`` which message a request is, so that the draws are those of a rehearsal without HTTP, and ``ARRIVED`` when it
arrived in virtual time, which stands still while requests are under way.
"""

from __future__ import annotations

import asyncio
import json
import resource
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple
from uuid import UUID

import numpy as np
import ray
from numpy.typing import NDArray

from dispatcher.core.outcomes import Outcome
from simulate.contract import MALFORMED, Connection, Reply, parse_message, refusal, response, taken
from simulate.receipts import body_sum
from simulate.referee import Behaviour, Referee, Requests

MESSAGE: Final = "dripline-rehearsal"
"""Header of a request: slot in microseconds, visit, attempt, sequence name and step trigger, as a JSON array."""
ARRIVED: Final = "dripline-arrived"
"""Header of an answer: microseconds."""

_WITH_ID: Final = {Outcome.ACCEPTED: 201, Outcome.REPEAT: 409}
_WITHOUT: Final = {
    Outcome.REJECTED: (422, refusal("invalid_recipient")),
    Outcome.THROTTLED: (429, refusal("throttled")),
    Outcome.REFUSED: (503, refusal("not_accepted")),
    Outcome.CREDENTIALS: (401, refusal("credentials")),
    Outcome.IN_DOUBT: (504, b""),
}
"""Status and body. What is in doubt is answered as by a proxy that has lost the gateway's answer."""
_BACKLOG: Final = 4096


@dataclass(frozen=True, slots=True)
class HttpFigures:
    """What went over HTTP, in wall time."""

    requests: int
    connections: int
    """How many were opened."""
    sending_s: float
    """How long messages were being handed over by at least one shard."""
    latency_ms: Mapping[str, float]
    """From the moment a request was given to a connection until its answer's head was there."""


class _Asked(NamedTuple):
    """A request that waits for its judgement."""

    slot_us: int
    device: int
    visit: int
    attempt: int
    phone: str
    key: str
    body: int
    step: tuple[str, str]
    reply: Reply


class HttpReferee(Referee):
    """The mock gateway behind a socket; requests that arrive together are judged together.

    Args:
        seed, spool, behaviour: as the referee's.
    """

    def __init__(self, seed: int, spool: Path, behaviour: Behaviour) -> None:
        super().__init__(seed, spool, behaviour)
        self._devices: Mapping[str, int] = {}
        self._asked: list[_Asked] = []
        self._requests = self._connections = 0
        self._sent: list[tuple[float, float]] = []
        self._took_s: list[NDArray[np.float32]] = []

    async def listen(self, devices: Mapping[str, int]) -> str:
        """Serve on the loopback; returns the ``gateway_url`` of all devices.

        Args:
            devices: numbers by device id.
        """
        self._devices = devices
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # shards keep more than a thousand connections open
        loop = asyncio.get_running_loop()
        server = await loop.create_server(self._connected, "127.0.0.1", 0, backlog=_BACKLOG)
        return f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    def answer(self, path: str, headers: Mapping[str, str], body: bytes, reply: Reply) -> None:
        """Answer one ``POST``, with all others that have arrived by then."""
        try:
            message, _ = parse_message(path, headers, body)
            slot_us, visit, attempt, sequence, step = json.loads(headers[MESSAGE])
            asked = _Asked(
                int(slot_us),
                self._devices[message["device_id"]],
                int(visit),
                int(attempt),
                message["to"],
                str(UUID(message["idempotency_key"])),
                body_sum(message["text"], message.get("media_url")),
                (sequence, step),
                reply,
            )
        except (ValueError, TypeError, KeyError, RecursionError):
            reply(self.malformed())
            return
        if not self._asked:
            asyncio.get_running_loop().call_soon(self._answer_all)
        self._asked.append(asked)

    def malformed(self) -> bytes:
        """The answer to a request that breaks the contract."""
        return MALFORMED

    def sent(self, begun_s: float, ended_s: float, took_s: NDArray[np.float32]) -> None:
        """A shard has handed over a batch, between two moments of this machine's monotonic clock.

        Args:
            took_s: how long each request took.
        """
        self._sent.append((begun_s, ended_s))
        self._took_s.append(took_s)

    def http_figures(self) -> HttpFigures:
        """What went over HTTP so far."""
        took_s = np.concatenate([np.zeros(0, np.float32), *self._took_s])
        p50, p95, most = np.quantile(took_s, (0.5, 0.95, 1.0)) * 1e3 if len(took_s) else np.zeros(3)
        latency_ms = {"p50": round(float(p50), 3), "p95": round(float(p95), 3), "max": round(float(most), 3)}
        return HttpFigures(self._requests, self._connections, round(covered_s(self._sent), 3), latency_ms)

    def _connected(self) -> Connection:
        self._connections += 1
        return Connection(self, 0.0)

    def _answer_all(self) -> None:
        asked, self._asked = self._asked, []
        self._requests += len(asked)
        try:
            answers = self.submit(_requests(asked))
        except OSError:  # no receipt, no answer
            for each in asked:
                each.reply(None)
            raise
        for each, outcome, at_us in zip(asked, answers.outcome.tolist(), answers.at_us.tolist(), strict=True):
            each.reply(_answer(Outcome(outcome), each.key, at_us))


def covered_s(spans: list[tuple[float, float]]) -> float:
    """How long at least one of these spans lasted."""
    begin_s, end_s = np.array(sorted(spans), np.float64).reshape(-1, 2).T
    before_s = np.maximum.accumulate(np.concatenate([[-np.inf], end_s]))[:-1]
    return float(np.maximum(end_s - np.maximum(begin_s, before_s), 0).sum())


def _requests(asked: list[_Asked]) -> Requests:
    steps: dict[tuple[str, str], int] = {}
    step = np.array([steps.setdefault(each.step, len(steps)) for each in asked], np.int32)
    return Requests(
        slot_us=np.array([each.slot_us for each in asked], np.int64),
        device=np.array([each.device for each in asked], np.int32),
        visit=np.array([each.visit for each in asked], np.int32),
        attempt=np.array([each.attempt for each in asked], np.int32),
        phone=np.array([each.phone for each in asked], "S16"),
        key=b"".join(UUID(each.key).bytes for each in asked),
        body=np.array([each.body for each in asked], np.uint32),
        step=step,
        steps=list(steps),
    )


def _answer(outcome: Outcome, key: str, at_us: int) -> bytes:
    arrived = f"{ARRIVED}: {at_us}"
    if outcome in _WITH_ID:
        return response(_WITH_ID[outcome], taken(f"m-{key}"), arrived)
    status, body = _WITHOUT[outcome]
    return response(status, body, arrived)


RemoteHttpReferee = ray.remote(max_restarts=0, max_task_retries=0, num_cpus=0)(HttpReferee)
