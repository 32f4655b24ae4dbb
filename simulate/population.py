"""Who a rehearsal is about: devices and leads, by COPY, with phone numbers that are assigned to nobody."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence

import asyncpg
import numpy as np
from numpy.typing import NDArray

from dispatcher.core.backoff import uniform

PHONE_PREFIX = "999"
"""A country code the ITU keeps in reserve: such a number reaches nobody."""
_CHUNK = 50_000
_SECOND_TRIGGER = 0.1
"""Share of leads that carry two entry triggers."""
_LABELLED = 0.05
"""Share of leads that carry a label nobody sends to, as real lists do."""
_NAMES = ("Aisyah", "Ben", "Chitra", "Daniel", "Elena", "Farid", "Grace", "Hana", "Ivan", "Jun", "Kavya", "Liam")
_ENTRY, _SECOND, _WHICH, _LABEL, _NAME = range(5)


async def create_devices(
    connection: asyncpg.Connection,
    count: int,
    quota_per_hour: int = 80,
    quota_per_day: int = 800,
    min_gap_s: float | None = None,
) -> None:
    """Create ``count`` devices with the same quotas, and the default gap unless one is given."""
    digits = max(4, len(str(count)))
    limits: dict[str, float] = {"quota_per_hour": quota_per_hour, "quota_per_day": quota_per_day}
    if min_gap_s is not None:
        limits["min_gap_s"] = min_gap_s
    records = [(f"sim-{n:0{digits}d}", f"{PHONE_PREFIX}8{n:08d}", *limits.values()) for n in range(1, count + 1)]
    await connection.copy_records_to_table("devices", records=records, columns=("name", "phone", *limits))


async def create_leads(
    connection: asyncpg.Connection, count: int, entries: Sequence[str], seed: int, on_chunk: Callable[[int], None]
) -> None:
    """Create ``count`` leads; each carries at least one of the ``entries`` triggers.

    Args:
        on_chunk: called with the number of leads after each chunk.
    """
    for chunk in lead_chunks(count):
        on_chunk(await copy_leads(connection, chunk, entries, seed))


def lead_chunks(count: int) -> Iterator[NDArray[np.int64]]:
    """The numbers of ``count`` leads, as many together as are copied at once."""
    for start in range(0, count, _CHUNK):
        yield np.arange(start, min(start + _CHUNK, count))


async def copy_leads(
    connection: asyncpg.Connection, numbers: NDArray[np.int64], entries: Sequence[str], seed: int
) -> int:
    """Create the leads of these numbers; returns how many."""
    await connection.copy_to_table(
        "leads", source=_once(_lines(numbers, entries, seed)), columns=("phone", "name", "niche", "trigger")
    )
    return len(numbers)


def _lines(numbers: NDArray[np.int64], entries: Sequence[str], seed: int) -> bytes:
    def draw(what: int) -> NDArray[np.float64]:
        return uniform(seed, numbers, np.full(len(numbers), what, np.int64))

    first = (draw(_ENTRY) * len(entries)).astype(np.intp)
    other = (first + 1 + (draw(_WHICH) * (len(entries) - 1)).astype(np.intp)) % len(entries)
    two = (draw(_SECOND) < _SECOND_TRIGGER) & (len(entries) > 1)
    label = draw(_LABEL) < _LABELLED
    name = (draw(_NAME) * len(_NAMES)).astype(np.intp)
    rows = zip(
        numbers.tolist(), name.tolist(), first.tolist(), other.tolist(), two.tolist(), label.tolist(), strict=True
    )
    return "".join(
        f"{PHONE_PREFIX}1{n:08d}\t{_NAMES[who]}\t{entries[a].split('_')[0]}\t"
        f"{entries[a]}{',' + entries[b] if second else ''}{', newsletter' if marked else ''}\n"
        for n, who, a, b, second, marked in rows
    ).encode()


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data
