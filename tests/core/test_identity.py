"""The idempotency key is the visit's: the standard's uuid5, whatever the column types."""

from __future__ import annotations

import uuid

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.core.identity import DRIPLINE_NAMESPACE, idempotency_key, idempotency_keys

visits = st.tuples(st.integers(1, 2**63 - 1), st.integers(1, 2**31 - 1), st.integers(0, 2**31 - 1))


def test_the_key_of_a_visit_never_changes() -> None:
    assert uuid.UUID(bytes=idempotency_key(1, 2, 0)) == uuid.UUID("ff8377fa-ce8c-5da4-8128-c4de43f5ad9b")


@given(st.lists(visits, max_size=30, unique=True))
def test_keys_are_uuid5_of_enrolment_visit_generation(rows: list[tuple[int, int, int]]) -> None:
    keys = idempotency_keys(
        np.array([row[0] for row in rows], np.int64),
        np.array([row[1] for row in rows], np.int32),
        np.array([row[2] for row in rows], np.int32),
    )
    expected = [uuid.uuid5(DRIPLINE_NAMESPACE, ":".join(map(str, row))) for row in rows]
    assert keys == [each.bytes for each in expected]
    assert keys == [idempotency_key(*row) for row in rows]
    assert len(set(keys)) == len(rows)
