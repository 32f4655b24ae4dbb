"""What goes to PostgreSQL in one piece arrives there as the array that it is."""

from __future__ import annotations

import json
import zlib
from uuid import UUID

import numpy as np
import pytest

from dispatcher.core.batches import Coded
from dispatcher.errors import StoreError
from dispatcher.store import arrays
from dispatcher.store.bodies import packed, unpacked
from dispatcher.store.connect import open_pool

KEYS = [UUID(int=0), UUID("ff8377fa-ce8c-5da4-8128-c4de43f5ad9b"), UUID(int=2**128 - 1)]


@pytest.mark.parametrize(
    ("domain", "sent", "arrives"),
    [
        ("int8s", arrays.int8s(np.array([-(2**63), 0, 2**63 - 1])), [-(2**63), 0, 2**63 - 1]),
        ("int4s", arrays.int4s(np.array([-(2**31), 2**31 - 1], np.int32)), [-(2**31), 2**31 - 1]),
        ("bools", arrays.bools([True, False]), [True, False]),
        ("uuids", arrays.uuids(b"".join(key.bytes for key in KEYS)), KEYS),
        ("texts", arrays.texts(["a", None, "", "üß€", "a"]), ["a", None, "", "üß€", "a"]),
        ("texts", arrays.texts(Coded.of(["a", None, "ü", "a"])), ["a", None, "ü", "a"]),
        ("texts", arrays.texts(Coded.same(None, 2)), [None, None]),
        ("int8s", arrays.int8s([]), []),
        ("texts", arrays.texts([]), []),
    ],
)
async def test_an_array_arrives_as_it_is(database_url, domain, sent, arrives):
    pool = await open_pool(database_url, size=1)
    base = {"int8s": "bigint", "int4s": "integer", "bools": "boolean", "uuids": "uuid", "texts": "text"}[domain]
    found = await pool.fetch(f"SELECT v, pg_typeof(v)::text AS type FROM unnest($1::dripline_{domain}) v", sent)
    pool.terminate()
    assert [row["v"] for row in found] == arrives
    assert {row["type"] for row in found} <= {base}


async def test_a_database_that_was_never_migrated_says_what_to_do(empty_url):
    with pytest.raises(StoreError, match="run: dripline db migrate"):
        await open_pool(empty_url, size=1)


def test_bodies_are_unpacked_as_they_were_packed():
    enrolment = np.array([2**40, 5, 7, 9])
    said = packed(enrolment, Coded.of(["a\n", None, "ü", "a\n"]), [None, None, "http://m", "http://m"])
    assert unpacked(said) == [(2**40, "a\n", None), (7, "ü", "http://m"), (9, "a\n", "http://m")]
    assert unpacked(packed(enrolment, [None] * 4, [None] * 4)) == []


def test_bodies_packed_as_one_list_are_still_read():
    assert unpacked(zlib.compress(json.dumps([[5, "a\n", None]]).encode())) == [(5, "a\n", None)]
