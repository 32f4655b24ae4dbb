"""A shard's thin client of the referee: it passes requests on and answers back, and decides nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import numpy as np
import ray

from dispatcher.core.batches import Outcomes, Outgoing
from dispatcher.core.fleet import Fleet, Gateway
from dispatcher.core.outcomes import Outcome
from dispatcher.ports import Sender
from simulate.receipts import body_sum
from simulate.referee import Answers, Requests


class RefereeSender:
    """The ``Sender`` port to a referee.

    Args:
        referee: the actor.
    """

    def __init__(self, referee: Any) -> None:
        self._referee = referee

    async def send(self, batch: Outgoing) -> AsyncIterator[Outcomes]:
        """Submit a batch; a referee that does not answer leaves all of it in doubt."""
        steps = list(dict.fromkeys(zip(batch.sequence, batch.step, strict=True)))
        code = {trigger: index for index, (_, trigger) in enumerate(steps)}
        requests = Requests(
            slot_us=batch.slot_us,
            device=batch.device,
            visit=batch.visit,
            attempt=batch.attempt,
            phone=np.array(batch.to, "S16"),
            key=b"".join(batch.key),
            body=np.fromiter(map(body_sum, batch.text, batch.media_url), np.uint32, len(batch)),
            step=np.fromiter((code[trigger] for trigger in batch.step), np.int32, len(batch)),
            steps=steps,
        )
        rows = np.arange(len(batch))
        nothing: list[str | None] = [None] * len(batch)
        unknown = np.full(len(batch), int(Outcome.IN_DOUBT), np.int8)
        try:
            answers = await self._submit(requests)
        except ray.exceptions.RayError as error:
            why: list[str | None] = [f"referee: {type(error).__name__}"] * len(batch)
            yield Outcomes(rows, unknown, batch.slot_us, nothing, why, np.full(len(batch), np.nan))
            return
        ids: list[str | None] = [f"m{number}" for number in range(answers.first_id, answers.first_id + len(batch))]
        plain = bool((answers.outcome == Outcome.ACCEPTED).all())
        told = (
            nothing
            if plain
            else [
                None if outcome <= Outcome.REPEAT else f"mock: {Outcome(outcome).label}"
                for outcome in answers.outcome.tolist()
            ]
        )
        yield Outcomes(rows, answers.outcome, answers.at_us, ids, told, np.full(len(batch), np.nan))

    async def _submit(self, requests: Requests) -> Answers:
        answers: Answers = await self._referee.submit.remote(requests)
        return answers

    def update(self, gateways: Mapping[int, Gateway]) -> None:
        """The referee answers for every device."""

    async def close(self) -> None:
        """Nothing is kept open."""


def referee_sender(name: str, namespace: str, _fleet: Fleet, _now_us: Callable[[], int]) -> Sender:
    """The sender of a shard, to the referee of that name; bound to the name it is the factory shards start with.

    A name, not a handle: Ray cannot restart an actor whose arguments hold references.
    """
    return RefereeSender(ray.get_actor(name, namespace))
