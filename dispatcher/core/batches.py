"""Columnar batches between coordinator, shard, sender and completer: one entry a contact in every column.

numpy columns that arrive through Ray are read-only views; nobody writes into a batch. Text columns are lists, or, where
a batch holds few different texts, ``Coded``: those go from process to process and into statements as small integers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain
from typing import Any, Self, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from dispatcher.core.moments import NEVER_US

Int64s = NDArray[np.int64]
Int32s = NDArray[np.int32]
Int8s = NDArray[np.int8]
Indices = NDArray[np.intp]


T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, slots=True, eq=False)
class Coded(Sequence[T_co]):
    """A column of few different values: row ``i`` holds ``values[code[i]]``. Reads like a list of its rows."""

    values: Sequence[T_co]
    code: NDArray[np.integer]

    @classmethod
    def of(cls, rows: Iterable[T]) -> Coded[T]:
        """The column with these rows; one that is coded already as it is."""
        if isinstance(rows, Coded):
            return rows
        known: dict[T, int] = {}
        code = [known.setdefault(value, len(known)) for value in rows]
        return Coded(list(known), np.array(code, np.int32))

    @classmethod
    def same(cls, value: T, rows: int) -> Coded[T]:
        """``value`` in each of ``rows`` rows."""
        return Coded((value,), np.zeros(rows, np.int8))

    @classmethod
    def join(cls, parts: Sequence[Coded[T]]) -> Coded[T]:
        """All rows of ``parts``, one after the other."""
        values = parts[0].values
        if all(part.values == values for part in parts):
            return Coded(values, np.concatenate([part.code for part in parts]))
        before = np.cumsum([0, *(len(part.values) for part in parts)])
        code = [part.code.astype(np.int32) + first for part, first in zip(parts, before.tolist(), strict=False)]
        return Coded(list(chain.from_iterable(part.values for part in parts)), np.concatenate(code))

    def take(self, rows: Indices) -> Coded[T_co]:
        """The column reduced to ``rows``."""
        return Coded(self.values, self.code[rows])

    def map(self, change: Callable[[T_co], T]) -> Coded[T]:
        """The column with every value changed."""
        return Coded([change(value) for value in self.values], self.code)

    def where(self, holds: Callable[[T_co], bool]) -> NDArray[np.bool_]:
        """In which rows ``holds``; asked once a value, not once a row."""
        held: NDArray[np.bool_] = np.array([holds(value) for value in self.values], np.bool_)[self.code]
        return held

    def tolist(self) -> list[T_co]:
        """The rows."""
        return list(map(self.values.__getitem__, self.code.tolist()))

    def __len__(self) -> int:
        return len(self.code)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, list | Coded) and self.tolist() == list(other)

    def __iter__(self) -> Iterator[T_co]:
        return iter(self.tolist())

    @overload
    def __getitem__(self, row: int) -> T_co: ...
    @overload
    def __getitem__(self, row: slice) -> Coded[T_co]: ...
    def __getitem__(self, row: int | slice) -> T_co | Coded[T_co]:
        if isinstance(row, slice):
            return Coded(self.values, self.code[row])
        return self.values[int(self.code[row])]


class Columns:
    """What all batches share: a length and picking rows."""

    def __len__(self) -> int:
        for field in fields(self):  # type: ignore[arg-type]
            column = getattr(self, field.name)
            if isinstance(column, list | np.ndarray | Coded):
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
                column = [column[row] for row in rows.tolist()]
            elif isinstance(column, Coded):
                column = column.take(rows)
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
            elif all(isinstance(column, Coded) for column in columns):
                joined[field.name] = Coded.join(columns)
            elif isinstance(columns[0], list | Coded):
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
    name: Sequence[str | None]
    attributes: Sequence[str | None]
    """Lead attributes as JSON text; None when no active step's template reads them."""
    step: Sequence[str]
    """The step's trigger."""
    resend_text: Sequence[str | None]
    """Of a resend in doubt: what was said the first time. None: to be rendered."""
    resend_media_url: Sequence[str | None]
    time_zone: Coded[str | None] | None = None
    """The leads', as read before the hand-over, of those with a send window; None until then."""
    around: bool = False
    """Whether rows that somebody held may have been passed over, which are due earlier than some of these."""


@dataclass(frozen=True, slots=True)
class Outgoing(Columns):
    """Messages about to leave, rendered, each with its slot and deadline."""

    device: Int32s
    slot_us: Int64s
    deadline_us: Int64s
    visit: Int32s
    attempt: Int32s
    to: list[str]
    text: Sequence[str]
    media_url: Sequence[str | None]
    key: list[bytes]
    """Idempotency keys, 16 bytes each."""
    sequence: Sequence[str]
    step: Sequence[str]
    template: Sequence[str | None] | None = None
    """What leaves instead of the text: an approved template as JSON, ``{"name", "language", "parameters"}``; None where
    the text does. None altogether: nowhere."""


@dataclass(frozen=True, slots=True)
class Outcomes(Columns):
    """What became of some rows of an ``Outgoing``; ``row`` points into it."""

    row: Indices
    outcome: Int8s
    """``core.outcomes.Outcome`` values."""
    at_us: Int64s
    """When the outcome was known."""
    message_id: Sequence[str | None]
    error: Sequence[str | None]
    retry_after_s: NDArray[np.float64]
    """What the gateway asked for; NaN when it asked for nothing."""


@dataclass(frozen=True, slots=True)
class Freed(Columns):
    """Slots of devices in groups whose messages surely were not sent."""

    number: Int32s
    slot_us: Int64s


@dataclass(frozen=True, slots=True)
class DueSoon(Columns):
    """The earliest moment at which something is due, for devices whose enrolments moved on; may be ``NEVER_US``."""

    number: Int32s
    due_us: Int64s
    freed: Freed | None = None
    """What counts against no group's limit any more; None: nothing."""

    @classmethod
    def earliest(cls, parts: Sequence[tuple[Int32s, Int64s]], freed: Freed | None) -> DueSoon:
        """Of devices and moments, which may repeat, the earliest moment a device, by number."""
        if not parts:
            return cls(np.zeros(0, np.int32), np.zeros(0, np.int64), freed)
        number, inverse = np.unique(np.concatenate([device for device, _ in parts]), return_inverse=True)
        due_us = np.full(len(number), NEVER_US, np.int64)
        np.minimum.at(due_us, inverse, np.concatenate([moment for _, moment in parts]))
        return cls(number, due_us, freed)


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
