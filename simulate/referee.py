"""The referee: the mock gateway in a process of its own. It alone holds keys and receipts; it answers only after the
receipt is out of its memory, so killing shards hides nothing.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from heapq import heappop, heappush
from pathlib import Path
from statistics import NormalDist
from typing import Final, NamedTuple

import numpy as np
import ray
from numpy.typing import NDArray

from dispatcher.core.backoff import text_key, uniform
from dispatcher.core.batches import Indices, Int8s, Int32s, Int64s
from dispatcher.core.moments import NEVER_US, SECOND_US
from dispatcher.core.outcomes import Outcome
from simulate.receipts import RECEIPT

_QUANTILES: Final = 1 << 13
LATENCY, ANSWER, LEAVES, LEAVES_AFTER, REPLIES, REPLIES_AFTER, STOPS = range(7)
"""What a draw decides."""
_TRUE: Final = np.array(
    [Outcome.REJECTED, Outcome.THROTTLED, Outcome.REFUSED, Outcome.ACCEPTED, Outcome.ACCEPTED], np.int8
)
"""What is true of a message, by which share it falls into."""
_LOST, _UNHARMED = 3, 4
_TEXT: Final = "Thanks!"
_STOP_TEXT: Final = "STOP"


@cache
def _normal() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Shares and the quantiles of the normal distribution that belong to them."""
    shares = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
    return shares, np.array([NormalDist().inv_cdf(share) for share in shares.tolist()])


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
        return np.clip(self.median_s * np.exp(self.spread * np.interp(draw, *_normal())), self.min_s, self.max_s)


@dataclass(frozen=True, slots=True)
class Period:
    """A time in which other shares hold; spans are half-open."""

    from_us: int
    to_us: int
    shares: tuple[float, float, float, float]
    """As ``Behaviour.shares``."""


@dataclass(frozen=True, slots=True)
class Ban:
    """A time in which the gateway turns a device down; spans are half-open."""

    device: int
    """Its number."""
    from_us: int
    to_us: int


@dataclass(frozen=True, slots=True)
class Replies:
    """How leads write back."""

    share: float
    """After how many of the accepted messages."""
    stop: float
    """How many of the replies are a STOP word."""
    within_s: float


class Reply(NamedTuple):
    """What a lead writes back, and when."""

    at_us: int
    phone: str
    text: str
    name: str
    """The gateway's: told twice, it is the same reply."""


@dataclass(frozen=True, slots=True)
class Behaviour:
    """How the mock gateway answers; shares are of requests, drawn by (seed, phone, step, attempt)."""

    latency: Latency = Latency()
    rejected: float = 0.0
    throttled: float = 0.0
    refused: float = 0.0
    lost: float = 0.0
    """Accepted, but the answer never arrives."""
    periods: tuple[Period, ...] = ()
    """When other shares hold; of several at a time, the last one's."""
    opted_out: float = 0.0
    """Of the accepted: after how many the lead opts out."""
    opted_out_within_s: float = 0.0
    replies: Replies | None = None
    bans: tuple[Ban, ...] = ()
    """When devices' credentials do not count."""

    @property
    def is_answered(self) -> bool:
        """Whether leads do anything after a message."""
        return bool(self.opted_out) or self.replies is not None

    @property
    def shares(self) -> tuple[float, float, float, float]:
        """Rejected, throttled, refused, lost."""
        return (self.rejected, self.throttled, self.refused, self.lost)

    def bounds(self, slot_us: Int64s) -> NDArray[np.float64]:
        """Where the shares end in [0, 1): a row each, a column for each message, or one for all."""
        shares = np.array(self.shares)[:, None]
        if self.periods:
            shares = np.repeat(shares, len(slot_us), axis=1)
        for period in self.periods:
            shares[:, (slot_us >= period.from_us) & (slot_us < period.to_us)] = np.array(period.shares)[:, None]
        return np.cumsum(shares, axis=0)

    def fates(self, draw: NDArray[np.float64], slot_us: Int64s) -> Indices:
        """What becomes of messages: which share each draw in [0, 1) falls into."""
        return np.asarray((draw >= self.bounds(slot_us)).sum(axis=0))

    def told(self, draw: NDArray[np.float64], slot_us: Int64s) -> Int8s:
        """The outcomes that senders learn of."""
        fate = self.fates(draw, slot_us)
        told = _TRUE[fate]
        told[fate == _LOST] = Outcome.IN_DOUBT
        return told

    def banned(self, device: Int32s, slot_us: Int64s) -> NDArray[np.bool_]:
        """Which of these messages come from a device that is banned when they do."""
        found = np.zeros(len(device), np.bool_)
        numbers = np.array([ban.device for ban in self.bans], np.int64)
        for row in np.flatnonzero(np.isin(device, numbers)).tolist():
            spans = [self.bans[each] for each in np.flatnonzero(numbers == device[row])]
            found[row] = any(ban.from_us <= slot_us[row] < ban.to_us for ban in spans)
        return found


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
        self._leaving: list[tuple[int, str]] = []
        self._replying: list[Reply] = []

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
        answer, told = self._judge(requests, draws[1])
        receipts["answer"] = answer
        os.write(self._file, receipts.tobytes())
        if behaviour.is_answered:
            self._read(receipts, keys_of_steps[requests.step])
        first_id, self._count = self._count, self._count + len(receipts)
        return Answers(told, receipts["arrived_us"].copy(), first_id)

    def steps(self) -> list[tuple[str, str]]:
        """Sequence name and step trigger by the code in the receipts."""
        return list(self._codes)

    def pid(self) -> int:
        """The process."""
        return os.getpid()

    def _draws(self, requests: Requests, step: Int64s) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        latency, answer = (self._draw(requests.phone, step, requests.attempt, what) for what in (LATENCY, ANSWER))
        return latency, answer

    def _draw(
        self, phone: NDArray[np.bytes_], step: Int64s, attempt: NDArray[np.integer], what: int
    ) -> NDArray[np.float64]:
        keys = (phone.astype(np.int64), step, attempt.astype(np.int64), np.full(len(step), what, np.int64))
        return uniform(self._seed, *keys)

    def _judge(self, requests: Requests, draw: NDArray[np.float64]) -> tuple[Int8s, Int8s]:
        """What is true of each request, and what its sender is told."""
        fate = self._behaviour.fates(draw, requests.slot_us)
        answer = _TRUE[fate]
        if self._behaviour.bans:
            banned = self._behaviour.banned(requests.device, requests.slot_us)
            answer[banned] = Outcome.CREDENTIALS
            fate[banned] = _UNHARMED
        split: list[bytes] = np.frombuffer(requests.key, "V16").tolist()
        repeated = self._seen.intersection(split)
        if repeated or len(set(split)) < len(split):
            self._mark_repeats(answer, split)
        elif (answer == Outcome.ACCEPTED).all():
            self._seen.update(split)
        else:
            self._seen.update(
                key for key, good in zip(split, (answer == Outcome.ACCEPTED).tolist(), strict=True) if good
            )
        told = answer.copy()
        told[fate == _LOST] = Outcome.IN_DOUBT
        return answer, told

    def _read(self, receipts: NDArray[np.void], step: Int64s) -> None:
        """People read what has arrived: some have had enough, some write back."""
        behaviour = self._behaviour
        good = receipts["answer"] == Outcome.ACCEPTED
        receipts, step = receipts[good], step[good]
        phone = receipts["phone"]
        if behaviour.opted_out:
            leaves, at_us = self._answered(receipts, step, (LEAVES, LEAVES_AFTER), behaviour.opted_out_within_s)
            for row in np.flatnonzero(leaves < behaviour.opted_out).tolist():
                heappush(self._leaving, (int(at_us[row]), phone[row].decode()))
        if (replies := behaviour.replies) is not None:
            writes, at_us = self._answered(receipts, step, (REPLIES, REPLIES_AFTER), replies.within_s)
            stops = self._draw(phone, step, receipts["attempt"], STOPS) < replies.stop
            for row in np.flatnonzero(writes < replies.share).tolist():
                number, moment_us = phone[row].decode(), int(at_us[row])
                text = _STOP_TEXT if stops[row] else _TEXT
                heappush(self._replying, Reply(moment_us, number, text, f"{number}-{step[row]}-{moment_us}"))

    def _answered(
        self, receipts: NDArray[np.void], step: Int64s, what: tuple[int, int], within_s: float
    ) -> tuple[NDArray[np.float64], Int64s]:
        """What decides whether leads answer messages, and when they would."""
        whether, when = (self._draw(receipts["phone"], step, receipts["attempt"], each) for each in what)
        return whether, receipts["arrived_us"] + np.rint(within_s * when * SECOND_US).astype(np.int64)

    def next_answer_us(self) -> int:
        """When the next lead opts out or writes back, as far as messages have arrived; ``NEVER_US`` when none does."""
        return min(self._leaving[0][0] if self._leaving else NEVER_US,
                   self._replying[0].at_us if self._replying else NEVER_US)  # fmt: skip

    def opt_outs(self, until_us: int) -> list[str]:
        """The phones of leads that opt out until then; the same ones again until they are forgotten."""
        return sorted(phone for at_us, phone in self._leaving if at_us <= until_us)

    def replies(self, until_us: int) -> list[Reply]:
        """What leads write back until then, in that order; the same again until they are forgotten."""
        return sorted(reply for reply in self._replying if reply.at_us <= until_us)

    def forget_answers(self, until_us: int) -> None:
        """Those until then are on record."""
        while self._leaving and self._leaving[0][0] <= until_us:
            heappop(self._leaving)
        while self._replying and self._replying[0].at_us <= until_us:
            heappop(self._replying)

    def _mark_repeats(self, answer: Int8s, keys: list[bytes]) -> None:
        for row, key in enumerate(keys):
            if key in self._seen:
                answer[row] = Outcome.REPEAT
            elif answer[row] == Outcome.ACCEPTED:
                self._seen.add(key)


RemoteReferee = ray.remote(max_restarts=0, max_task_retries=0, num_cpus=0)(Referee)
