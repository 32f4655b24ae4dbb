"""A shard's thin client of the referee: it passes requests on and answers back, and decides nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Final

import numpy as np
import ray
from numpy.typing import NDArray

from dispatcher.core.batches import Coded, Outcomes, Outgoing
from dispatcher.core.fleet import Fleet, Gateway
from dispatcher.core.outcomes import Outcome
from dispatcher.ports import Sender
from simulate.receipts import body_sum
from simulate.referee import Answers, Requests

_TOLD: Final = [None if outcome <= Outcome.REPEAT else f"mock: {outcome.label}" for outcome in sorted(Outcome)]
"""The error of each outcome."""


class RefereeSender:
    """The ``Sender`` port to a referee.

    Args:
        submit: takes requests to the referee.
    """

    def __init__(self, submit: Callable[[Requests], Awaitable[Answers]]) -> None:
        self._submit = submit

    async def send(self, batch: Outgoing) -> AsyncIterator[Outcomes]:
        """Submit a batch; a referee that does not answer leaves all of it in doubt."""
        step = Coded.of(batch.step)
        _, first, code = np.unique(step.code, return_index=True, return_inverse=True)
        requests = Requests(
            slot_us=batch.slot_us,
            device=batch.device,
            visit=batch.visit,
            attempt=batch.attempt,
            phone=np.array(batch.to, "S16"),
            key=b"".join(batch.key),
            body=_body_sums(batch.text, batch.media_url),
            step=code.astype(np.int32),
            steps=[(batch.sequence[row], step[row]) for row in first.tolist()],
        )
        rows, nothing = np.arange(len(batch)), np.full(len(batch), np.nan)
        try:
            answers = await self._submit(requests)
        except ray.exceptions.RayError as error:
            unknown = np.full(len(batch), int(Outcome.IN_DOUBT), np.int8)
            why = Coded.same(f"referee: {type(error).__name__}", len(batch))
            yield Outcomes(rows, unknown, batch.slot_us, Coded.same(None, len(batch)), why, nothing)
            return
        ids = [f"m{number}" for number in range(answers.first_id, answers.first_id + len(batch))]
        yield Outcomes(rows, answers.outcome, answers.at_us, ids, Coded(_TOLD, answers.outcome), nothing)

    def update(self, gateways: Mapping[int, Gateway]) -> None:
        """The referee answers for every device."""

    async def close(self) -> None:
        """Nothing is kept open."""


def _body_sums(texts: Sequence[str], media_urls: Sequence[str | None]) -> NDArray[np.uint32]:
    """``body_sum`` of each message, reckoned once for all that say the same."""
    text, media_url = Coded.of(texts), Coded.of(media_urls)
    code = text.code.astype(np.int64) * len(media_url.values) + media_url.code
    _, first, which = np.unique(code, return_index=True, return_inverse=True)
    sums = [body_sum(text[row], media_url[row]) for row in first.tolist()]
    return np.array(sums, np.uint32)[which]


def referee_sender(name: str, namespace: str, _fleet: Fleet, _now_us: Callable[[], int]) -> Sender:
    """The sender of a shard, to the referee of that name; bound to the name it is the factory shards start with.

    A name, not a handle: Ray cannot restart an actor whose arguments hold references.
    """
    return RefereeSender(ray.get_actor(name, namespace).submit.remote)
