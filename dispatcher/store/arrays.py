"""Array parameters in one piece: PostgreSQL's binary format of arrays, straight from columns.

asyncpg encodes an array value by value, which costs more than all else a send does in Python. What it may be told of a
domain over an array type is that its values go out as bytes. So where a statement casts a parameter to one of the
domains of migration ``arrays``, it takes what the functions here make, on a connection that ``announce`` has seen.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dispatcher.core.batches import Coded

DOMAINS: Final = ("dripline_int8s", "dripline_int4s", "dripline_bools", "dripline_uuids", "dripline_texts")

_BOOL, _INT8, _INT4, _TEXT, _UUID = 16, 20, 23, 25, 2950
"""Object ids of the values' types; those of built-in types never change."""
_HEAD: Final = struct.Struct(">5i")
"""Dimensions, whether there may be NULLs, the values' type, how many, the first index."""
_LENGTH: Final = struct.Struct(">i")
_NULL: Final = _LENGTH.pack(-1)


async def announce(connection: Any) -> None:
    """Tell a connection that the values of the domains are bytes.

    Raises:
        ValueError: the database does not have them: it was never migrated.
    """
    for domain in DOMAINS:
        await connection.set_builtin_type_codec(domain, codec_name="bytea", format="binary")


def int8s(values: ArrayLike) -> bytes:
    """A ``dripline_int8s``."""
    return _fixed(np.asarray(values, ">i8"), _INT8)


def int4s(values: ArrayLike) -> bytes:
    """A ``dripline_int4s``."""
    return _fixed(np.asarray(values, ">i4"), _INT4)


def bools(values: ArrayLike) -> bytes:
    """A ``dripline_bools``."""
    return _fixed(np.asarray(values, np.bool_), _BOOL)


def uuids(values: bytes) -> bytes:
    """A ``dripline_uuids``; 16 bytes each come in one after the other."""
    return _fixed(np.frombuffer(values, "V16"), _UUID)


def texts(values: Sequence[str | None]) -> bytes:
    """A ``dripline_texts``; of a coded column each value is encoded once."""
    encoded = Coded(_framed(values.values), values.code) if isinstance(values, Coded) else _framed(values)
    return _HEAD.pack(1, 1, _TEXT, len(values), 1) + b"".join(encoded)


def _framed(values: Sequence[str | None]) -> list[bytes]:
    bare = [b"" if value is None else value.encode() for value in values]
    length = {size: _LENGTH.pack(size) for size in set(map(len, bare))}
    if None in values:
        return [_NULL if value is None else length[len(text)] + text for value, text in zip(values, bare, strict=True)]
    return [length[len(text)] + text for text in bare]


def _fixed(values: NDArray[Any], type_: int) -> bytes:
    framed = np.empty(len(values), [("length", ">i4"), ("value", values.dtype)])
    framed["length"], framed["value"] = values.itemsize, values
    return _HEAD.pack(1, 0, type_, len(values), 1) + framed.tobytes()
