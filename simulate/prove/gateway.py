"""The gateways: they keep keys and receipts, and answer as the weather lets them. And the sender that reaches them."""

from __future__ import annotations

import asyncio
import math
import zlib
from collections.abc import AsyncIterator, Callable, Mapping
from typing import NamedTuple

import numpy as np

from dispatcher.core.batches import Outcomes, Outgoing
from dispatcher.core.fleet import Fleet, Gateway
from dispatcher.core.moments import SECOND_US, span_us
from dispatcher.core.outcomes import Outcome
from simulate.prove.stage import Member, Stage
from simulate.receipts import RECEIPT, Receipts

_TRIP_S = 0.05


class Request(NamedTuple):
    """One message on its way."""

    device: int
    slot_us: int
    deadline_us: int
    visit: int
    attempt: int
    phone: str
    sequence: str
    step: str
    key: bytes
    body: int
    """Checksum of text and media URL."""

    def __str__(self) -> str:
        return f"{self.phone} {self.step} visit {self.visit} attempt {self.attempt} device {self.device}"


class Answer(NamedTuple):
    """What a sender is told."""

    outcome: Outcome
    message_id: str | None = None
    retry_after_s: float = math.nan


class Gateways:
    """Every device's gateway.

    Args:
        stage: where they stand.
        hear: called with each message whose sender was not told that it was accepted, for receipts to follow.
    """

    def __init__(self, stage: Stage, hear: Callable[[Request], None]) -> None:
        self._stage, self._hear = stage, hear
        self._accepted: dict[bytes, tuple[str, int]] = {}
        self._receipts: list[tuple[object, ...]] = []
        self._steps: dict[tuple[str, str], int] = {}
        self._honours: dict[int, bool] = {}

    def receipts(self) -> Receipts:
        """What reached the gateways, in order of arrival."""
        return Receipts(np.array(self._receipts, RECEIPT), list(self._steps))

    def accepted(self, key: bytes) -> tuple[str, int] | None:
        """What the logs say of a key: message id and moment, if it was accepted."""
        return self._accepted.get(key)

    def honour_keys(self, device: int, honoured: bool) -> None:
        """What the gateway of a device does from now on, whatever anybody believes."""
        self._honours[device] = honoured

    def receive(self, request: Request, reply: asyncio.Future[Answer]) -> None:
        """A request's bytes are under way: from here on the network has them, whatever becomes of the sender."""
        stage, what = self._stage, str(request)
        if stage.struck("gateway: request lost", "network", what):
            return
        trip_s = stage.latency_s(_TRIP_S)
        if stage.struck("gateway: slow", "network", what):
            left_s = (request.deadline_us - stage.true_us()) / SECOND_US + stage.world.settings.skew_s
            trip_s = max(trip_s, stage.dice.pick((stage.dice.uniform(), 1.0)) * left_s)
        stage.after(trip_s, self._arrive, request, reply)

    def _arrive(self, request: Request, reply: asyncio.Future[Answer]) -> None:
        stage, what = self._stage, str(request)
        truth, told = self._judge(request, what)
        self._receipts.append(
            (
                request.slot_us, stage.true_us(), request.device,
                self._steps.setdefault((request.sequence, request.step), len(self._steps)),
                request.visit, request.attempt, request.phone.encode(), request.key, int(truth), request.body,
            )
        )  # fmt: skip
        hidden = told is None or told.outcome is Outcome.IN_DOUBT
        stage.note("gateway", f"{what}: {truth.label}{', answer hidden' if hidden else ''}")
        if hidden and truth in (Outcome.ACCEPTED, Outcome.REPEAT):
            self._hear(request)
        if told is not None:
            back_s = stage.latency_s(_TRIP_S)
            if stage.struck("gateway: answers late", "gateway", what):
                back_s = stage.dice.between(0, 2 * stage.world.settings.deadline_s)
            stage.after(back_s, _answer, reply, told)

    def _judge(self, request: Request, what: str) -> tuple[Outcome, Answer | None]:
        """What is true of a request, and what its sender is told: None is silence."""
        stage = self._stage
        if stage.world.check_not_after and stage.true_us() > request.deadline_us:
            return Outcome.EXPIRED, Answer(Outcome.EXPIRED)
        if stage.struck("gateway: 429", "gateway", what):
            asked_s = stage.dice.pick((math.nan, stage.dice.between(0, 30)))
            return Outcome.THROTTLED, Answer(Outcome.THROTTLED, retry_after_s=asked_s)
        if stage.struck("gateway: not accepted", "gateway", what):
            return Outcome.REFUSED, Answer(Outcome.REFUSED)
        if stage.struck("gateway: credentials", "gateway", what):
            return Outcome.CREDENTIALS, Answer(Outcome.CREDENTIALS)
        if stage.struck("gateway: 5xx, not accepted", "gateway", what):
            return Outcome.NOT_SENT, Answer(Outcome.IN_DOUBT)
        known = self._known(request)
        if known is not None:
            answer = Answer(Outcome.REPEAT, known)
        elif stage.struck("gateway: opted out", "gateway", what):
            return Outcome.OPTED_OUT, Answer(Outcome.OPTED_OUT)
        elif stage.struck("gateway: rejects", "gateway", what):
            return Outcome.REJECTED, Answer(Outcome.REJECTED)
        else:
            message_id = f"m{len(self._receipts)}"
            self._accepted[request.key] = message_id, stage.true_us()
            answer = Answer(Outcome.ACCEPTED, message_id)
        truth = answer.outcome
        if stage.struck("gateway: accepts, answer lost", "gateway", what):
            return truth, None
        for kind in ("gateway: 5xx, accepted", "gateway: garbage, accepted"):
            if stage.struck(kind, "gateway", what):
                return truth, Answer(Outcome.IN_DOUBT)
        return truth, answer

    def _known(self, request: Request) -> str | None:
        if not self._honours[request.device] or request.key not in self._accepted:
            return None
        message_id, at_us = self._accepted[request.key]
        kept_us = span_us(self._stage.world.gateway_forgets_s)
        return message_id if self._stage.true_us() - at_us <= kept_us else None


def _answer(reply: asyncio.Future[Answer], told: Answer) -> None:
    if not reply.done():
        reply.set_result(told)


class GatewaySender:
    """The ``Sender`` port of one shard's process.

    Args:
        member: the process.
        gateways: what it reaches.
        now_us: business time.
        fleet: the shard's devices.
    """

    def __init__(self, member: Member, gateways: Gateways, now_us: Callable[[], int], fleet: Fleet) -> None:
        self._member, self._gateways, self._now_us = member, gateways, now_us
        self._devices: Mapping[int, Gateway] = fleet.gateways()

    async def send(self, batch: Outgoing) -> AsyncIterator[Outcomes]:
        """One request a row, side by side; each answer as it comes."""
        await self._member.crash_point("hand-over", f"{len(batch)} messages")
        told: asyncio.Queue[tuple[int, Answer, int]] = asyncio.Queue()
        for row in range(len(batch)):
            self._member.start(self._row(batch, row, told))
        for _ in range(len(batch)):
            row, answer, at_us = await told.get()
            reason = None if answer.outcome <= Outcome.REPEAT else f"gateway: {answer.outcome.label}"
            yield Outcomes(
                row=np.array([row]),
                outcome=np.array([int(answer.outcome)], np.int8),
                at_us=np.array([at_us]),
                message_id=[answer.message_id],
                error=[reason],
                retry_after_s=np.array([answer.retry_after_s]),
            )

    async def _row(self, batch: Outgoing, row: int, told: asyncio.Queue[tuple[int, Answer, int]]) -> None:
        stage, loop = self._member.stage, asyncio.get_running_loop()
        leave_by_s = loop.time() + (int(batch.deadline_us[row]) - self._now_us()) / SECOND_US
        await asyncio.sleep(stage.latency_s(_TRIP_S))
        answer = Answer(Outcome.EXPIRED)
        if int(batch.device[row]) not in self._devices:
            answer = Answer(Outcome.REFUSED)
        elif loop.time() < leave_by_s:
            await self._member.crash_point("hand-over", batch.to[row])
            reply: asyncio.Future[Answer] = loop.create_future()
            self._gateways.receive(self._request(batch, row), reply)
            try:
                async with asyncio.timeout_at(leave_by_s):
                    answer = await reply
            except TimeoutError:
                answer = Answer(Outcome.IN_DOUBT)
        told.put_nowait((row, answer, self._now_us()))

    def _request(self, batch: Outgoing, row: int) -> Request:
        device = int(batch.device[row])
        return Request(
            device=device,
            slot_us=int(batch.slot_us[row]),
            deadline_us=int(batch.deadline_us[row]),
            visit=int(batch.visit[row]),
            attempt=int(batch.attempt[row]),
            phone=batch.to[row],
            sequence=batch.sequence[row],
            step=batch.step[row],
            key=batch.key[row],
            body=zlib.crc32(f"{batch.text[row]}\0{batch.media_url[row] or ''}".encode()),
        )

    def update(self, gateways: Mapping[int, Gateway]) -> None:
        """Use these from now on."""
        self._devices = gateways

    async def close(self) -> None:
        """Nothing is kept open."""
