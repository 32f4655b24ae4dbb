"""The referee: the mock gateway in a process of its own. It alone holds keys and receipts; it answers only after the
receipt is out of its memory, so killing shards hides nothing.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Final

import numpy as np
import ray
from numpy.typing import NDArray

from dispatcher.core.backoff import text_key, uniform
from dispatcher.core.batches import Int8s, Int32s, Int64s
from dispatcher.core.moments import SECOND_US
from dispatcher.core.outcomes import Outcome
from simulate.receipts import RECEIPT

_NORMAL: Final = NormalDist()
_LEAST: Final = 2.0**-53


@dataclass(frozen=True, slots=True)
class Latency:
    """How long after its slot a request arrives: evenly between two bounds, or lognormal below the upper one."""

    min_s: float = 0.05
    max_s: float = 1.0
    median_s: float | None = None
    """Of a lognormal; None: every latency between the bounds is as likely."""
    spread: float = 0.0
    """Standard deviation of the lognormal's logarithm."""

    def of(self, draw: NDArray[np.float64]) -> NDArray[np.float64]:
        """The latencies of draws in [0, 1)."""
        if self.median_s is None:
            return self.min_s + draw * (self.max_s - self.min_s)
        normal = np.array([_NORMAL.inv_cdf(min(max(each, _LEAST), 1 - _LEAST)) for each in draw.tolist()])
        return np.clip(self.median_s * np.exp(self.spread * normal), self.min_s, self.max_s)


@dataclass(frozen=True, slots=True)
class Behaviour:
    """How the mock gateway answers; shares are of requests, drawn by (seed, phone, step, attempt)."""

    latency: Latency = Latency()
    rejected: float = 0.0
    throttled: float = 0.0
    refused: float = 0.0
    lost: float = 0.0
    """Accepted, but the answer never arrives."""


@dataclass(frozen=True, slots=True)
class Requests:
    """What a shard's client submits: one entry a message."""

    slot_us: Int64s
    device: Int32s
    visit: Int32s
    attempt: Int32s
    phone: NDArray[np.bytes_]
    key: bytes
    """All keys, 16 bytes each."""
    body: NDArray[np.uint32]
    """Checksums of what the messages say."""
    step: Int32s
    """Index into ``steps``."""
    steps: list[tuple[str, str]]
    """Sequence name and step trigger."""


@dataclass(frozen=True, slots=True)
class Answers:
    """The referee's answers, in the order of the requests."""

    outcome: Int8s
    at_us: Int64s
    first_id: int
    """Message ids count from here."""


class Referee:
    """The mock gateway.

    Args:
        seed: of the draws.
        spool: where receipts go.
        behaviour: how it answers.
    """

    def __init__(self, seed: int, spool: Path, behaviour: Behaviour) -> None:
        self._seed, self._behaviour = seed, behaviour
        self._file = os.open(spool, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._seen: set[bytes] = set()
        self._codes: dict[tuple[str, str], int] = {}
        self._count = 0

    def submit(self, requests: Requests) -> Answers:
        """Judge and answer a batch of requests."""
        codes = np.array([self._codes.setdefault(step, len(self._codes)) for step in requests.steps], np.int32)
        keys_of_steps = np.array([text_key(trigger) for _, trigger in requests.steps], np.int64)
        receipts = np.empty(len(requests.slot_us), RECEIPT)
        receipts["slot_us"], receipts["device"] = requests.slot_us, requests.device
        receipts["visit"], receipts["attempt"] = requests.visit, requests.attempt
        receipts["phone"], receipts["step"] = requests.phone, codes[requests.step]
        receipts["key"], receipts["body"] = np.frombuffer(requests.key, "V16"), requests.body
        draws = self._draws(requests, keys_of_steps[requests.step])
        behaviour = self._behaviour
        latency_s = behaviour.latency.of(draws[0])
        receipts["arrived_us"] = requests.slot_us + np.rint(latency_s * SECOND_US).astype(np.int64)
        answer, told = self._judge(requests.key, draws[1])
        receipts["answer"] = answer
        os.write(self._file, receipts.tobytes())
        first_id, self._count = self._count, self._count + len(receipts)
        return Answers(told, receipts["arrived_us"].copy(), first_id)

    def steps(self) -> list[tuple[str, str]]:
        """Sequence name and step trigger by the code in the receipts."""
        return list(self._codes)

    def pid(self) -> int:
        """The process."""
        return os.getpid()

    def _draws(self, requests: Requests, step: Int64s) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        phone = requests.phone.astype(np.int64)
        attempt = requests.attempt.astype(np.int64)
        latency = uniform(self._seed, phone, step, attempt, np.zeros(len(step), np.int64))
        return latency, uniform(self._seed, phone, step, attempt, np.ones(len(step), np.int64))

    def _judge(self, keys: bytes, draw: NDArray[np.float64]) -> tuple[Int8s, Int8s]:
        """What is true of each request, and what its sender is told."""
        answer = np.full(len(draw), int(Outcome.ACCEPTED), np.int8)
        behaviour = self._behaviour
        bound = 0.0
        for share, outcome in (
            (behaviour.rejected, Outcome.REJECTED),
            (behaviour.throttled, Outcome.THROTTLED),
            (behaviour.refused, Outcome.REFUSED),
        ):
            answer[(draw >= bound) & (draw < bound + share)] = outcome
            bound += share
        split: list[bytes] = np.frombuffer(keys, "V16").tolist()
        repeated = self._seen.intersection(split)
        if repeated or len(set(split)) < len(split):
            self._mark_repeats(answer, split)
        elif bound:
            self._seen.update(
                key for key, good in zip(split, (answer == Outcome.ACCEPTED).tolist(), strict=True) if good
            )
        else:
            self._seen.update(split)
        told = answer.copy()
        told[(draw >= bound) & (draw < bound + behaviour.lost)] = Outcome.IN_DOUBT
        return answer, told

    def _mark_repeats(self, answer: Int8s, keys: list[bytes]) -> None:
        for row, key in enumerate(keys):
            if key in self._seen:
                answer[row] = Outcome.REPEAT
            elif answer[row] == Outcome.ACCEPTED:
                self._seen.add(key)


RemoteReferee = ray.remote(max_restarts=0, max_task_retries=0, num_cpus=0)(Referee)
