"""The sender of a test: what reaches it arrives, unless the test says otherwise."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from dispatcher.core.batches import Outcomes, Outgoing
from dispatcher.core.fleet import Gateway
from dispatcher.core.outcomes import Outcome

_UNHEARD: Final = frozenset({Outcome.ACCEPTED, Outcome.REPEAT})
"""What needs no reason."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """A message that left, and what was said of it."""

    at_us: int
    phone: str
    sequence: str
    step: str
    text: str
    arrived: bool
    """Whether the lead got it from this very attempt."""
    answer: Outcome
    """What the engine was told."""


class ScriptedGateway:
    """The ``Sender`` port.

    Args:
        script: by phone and step, what the next attempts are answered; afterwards they are accepted.
        now_us: the moment.
        note: called with every attempt.
    """

    def __init__(
        self,
        script: Mapping[tuple[str, str], Iterable[Outcome]],
        now_us: Callable[[], int],
        note: Callable[[Attempt], None],
    ) -> None:
        self._script = {message: iter(answers) for message, answers in script.items()}
        self._now_us, self._note = now_us, note
        self._taken: dict[bytes, str] = {}

    async def send(self, batch: Outgoing) -> AsyncIterator[Outcomes]:
        """Answer every message at once; one in doubt is given up at its deadline."""
        told = [self._receive(batch, row) for row in range(len(batch))]
        outcome = np.array([int(answer) for answer in told], np.int8)
        yield Outcomes(
            row=np.arange(len(batch)),
            outcome=outcome,
            at_us=np.where(outcome == Outcome.IN_DOUBT, batch.deadline_us, self._now_us()),
            message_id=[
                self._taken[key] if each in _UNHEARD else None for key, each in zip(batch.key, told, strict=True)
            ],
            error=[None if answer in _UNHEARD else f"gateway: {answer.label}" for answer in told],
            retry_after_s=np.full(len(batch), np.nan),
        )

    def _receive(self, batch: Outgoing, row: int) -> Outcome:
        phone, step, key = batch.to[row], batch.step[row], batch.key[row]
        known = key in self._taken
        answer = next(self._script.get((phone, step), iter(())), Outcome.REPEAT if known else Outcome.ACCEPTED)
        arrives = not known and answer in (Outcome.ACCEPTED, Outcome.IN_DOUBT)
        if arrives:
            self._taken[key] = f"m{len(self._taken) + 1}"
        text, sequence = batch.text[row], batch.sequence[row]
        self._note(Attempt(self._now_us(), phone, sequence, step, text, arrives, answer))
        return answer

    def update(self, gateways: Mapping[int, Gateway]) -> None:
        """There is one gateway, for all devices."""

    async def close(self) -> None:
        """Nothing is kept open."""
