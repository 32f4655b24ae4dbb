"""Columnar batches between coordinator, shard, sender and completer: one entry a contact in every column.

numpy columns that arrive through Ray are read-only views; nobody writes into a batch. Text columns are lists, because
they end in templates and statements anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

Int64s = NDArray[np.int64]
Int32s = NDArray[np.int32]
Int8s = NDArray[np.int8]
Indices = NDArray[np.intp]


class Columns:
    """What all batches share: a length and picking rows."""

    def __len__(self) -> int:
        for field in fields(self):  # type: ignore[arg-type]
            column = getattr(self, field.name)
            if isinstance(column, list | np.ndarray):
                return len(column)
        raise TypeError("a batch needs at least one column")

    def take(self, rows: Indices) -> Self:
        """The batch reduced to ``rows``, in that order; scalars stay."""
        if np.array_equal(rows, np.arange(len(self))):
            return self
        picked: dict[str, Any] = {}
        for field in fields(self):  # type: ignore[arg-type]
            column = getattr(self, field.name)
            if isinstance(column, np.ndarray):
                column = column[rows]
            elif isinstance(column, list):
                column = [column[row] for row in rows]
            picked[field.name] = column
        return type(self)(**picked)

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """All rows of ``parts``, one after the other; scalars are those of the first."""
        if len(parts) == 1:
            return parts[0]
        joined: dict[str, Any] = {}
        for field in fields(cls):  # type: ignore[arg-type]
            columns = [getattr(part, field.name) for part in parts]
            if isinstance(columns[0], np.ndarray):
                joined[field.name] = np.concatenate(columns)
            elif isinstance(columns[0], list):
                joined[field.name] = list(chain.from_iterable(columns))
            else:
                joined[field.name] = columns[0]
        return cls(**joined)

    def replace(self, **columns: Any) -> Self:
        """The batch with some columns exchanged."""
        return replace(self, **columns)  # type: ignore[type-var]


@dataclass(frozen=True, slots=True)
class Leased(Columns):
    """Enrolments under one lease token: claimed by one statement, for one shard, at fixed moments."""

    token: int
    """The claim's token; one a claim statement, so a shard knows at once which claims it has seen."""
    epoch: int
    """The shard's epoch the claim was made under."""
    enrolment: Int64s
    lead: Int64s
    visit: Int32s
    generation: Int32s
    attempt: Int32s
    retries: Int32s
    device: Int32s
    """Device numbers (``devices.number``)."""
    slot_us: Int64s
    """The moment each may leave; not before."""
    due_us: Int64s
    phone: list[str]
    name: list[str | None]
    attributes: list[str | None]
    """Lead attributes as JSON text; None when no active step's template reads them."""
    step: list[str]
    """The step's trigger."""
    resend_text: list[str | None]
    """Of a resend in doubt: what was said the first time. None: to be rendered."""
    resend_media_url: list[str | None]


@dataclass(frozen=True, slots=True)
class Outgoing(Columns):
    """Messages about to leave, rendered, each with its slot and deadline."""

    device: Int32s
    slot_us: Int64s
    deadline_us: Int64s
    visit: Int32s
    attempt: Int32s
    to: list[str]
    text: list[str]
    media_url: list[str | None]
    key: list[bytes]
    """Idempotency keys, 16 bytes each."""
    sequence: list[str]
    step: list[str]


@dataclass(frozen=True, slots=True)
class Outcomes(Columns):
    """What became of some rows of an ``Outgoing``; ``row`` points into it."""

    row: Indices
    outcome: Int8s
    """``core.outcomes.Outcome`` values."""
    at_us: Int64s
    """When the outcome was known."""
    message_id: list[str | None]
    error: list[str | None]
    retry_after_s: NDArray[np.float64]
    """What the gateway asked for; NaN when it asked for nothing."""


@dataclass(frozen=True, slots=True)
class DueSoon(Columns):
    """The earliest moment at which something is due, for devices whose enrolments moved on; may be ``NEVER_US``."""

    number: Int32s
    due_us: Int64s


@dataclass(frozen=True, slots=True)
class SlotOffer:
    """A shard's answer to "which slots are free": held until the claim it leads to is delivered."""

    epoch: int
    offer: int
    """Which offer this is; the delivery names it."""
    number: Int32s
    """The devices asked for that the shard owns, ascending."""
    slots: Int32s
    """How many slots each has."""
    slot_us: Int64s
    """All slots, device after device, ascending within one."""
    free_us: Int64s
    """For each device the first slot, or, without one, when it could send at the earliest."""
    due: DueSoon
    """What became due again since the shard was asked last."""
