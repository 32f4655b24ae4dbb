"""The identity of a message: one key a visit, the same for every attempt and every device."""

from __future__ import annotations

import hashlib
import uuid
from typing import Final

import numpy as np

from dispatcher.core.batches import Int32s, Int64s

DRIPLINE_NAMESPACE: Final = uuid.UUID("07a4f827-6e61-4a7a-b8b0-8ce0017bfaf5")
"""Never to be changed: gateways remember keys made from it."""

_KEY_BYTES: Final = 16
_DIGEST_BYTES: Final = 20


def idempotency_key(enrolment: int, visit: int, generation: int) -> bytes:
    """The 16 bytes of ``uuid5(DRIPLINE_NAMESPACE, "enrolment:visit:generation")``."""
    return uuid.uuid5(DRIPLINE_NAMESPACE, f"{enrolment}:{visit}:{generation}").bytes


def idempotency_keys(enrolment: Int64s, visit: Int32s, generation: Int32s) -> list[bytes]:
    """``idempotency_key`` of every row."""
    begun = hashlib.sha1(DRIPLINE_NAMESPACE.bytes, usedforsecurity=False).copy
    digests = []
    for row in zip(enrolment.tolist(), visit.tolist(), generation.tolist(), strict=True):
        digest = begun()  # cheaper than to take in the namespace again
        digest.update(b"%d:%d:%d" % row)
        digests.append(digest.digest())
    keys = np.frombuffer(b"".join(digests), np.uint8).reshape(-1, _DIGEST_BYTES)[:, :_KEY_BYTES].copy()
    keys[:, 6] = keys[:, 6] & 0x0F | 0x50  # version 5
    keys[:, 8] = keys[:, 8] & 0x3F | 0x80  # variant of RFC 9562
    found: list[bytes] = keys.view(f"V{_KEY_BYTES}").ravel().tolist()
    return found
