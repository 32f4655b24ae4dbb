"""Between numpy columns and PostgreSQL's binary columns.

Integers leave the database as one ``bytea`` of big-endian values a column, which numpy reads without a loop;
``timestamptz_send`` counts microseconds from 2000.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from dispatcher.core.batches import Int32s, Int64s

_2000_US: Final = 946_684_800_000_000


def int64s(data: bytes | None) -> Int64s:
    """A column of ``int8send`` values; empty for NULL."""
    return np.frombuffer(data or b"", ">i8").astype(np.int64)


def int32s(data: bytes | None) -> Int32s:
    """A column of ``int4send`` values; empty for NULL."""
    return np.frombuffer(data or b"", ">i4").astype(np.int32)


def moments(data: bytes | None) -> Int64s:
    """A column of ``timestamptz_send`` values as microseconds since 1970; empty for NULL."""
    return int64s(data) + _2000_US
