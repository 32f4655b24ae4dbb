"""Coded columns read like lists of their rows, and columns keep together whatever is done to a batch."""

from __future__ import annotations

import pickle
from dataclasses import dataclass

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.core.batches import Coded, Columns, Int64s

columns = st.lists(st.sampled_from(["a", "b", None]), max_size=20)


@dataclass(frozen=True, slots=True)
class Pairs(Columns):
    number: Int64s
    word: Coded[str | None] | list[str | None]


@given(columns, columns, st.randoms())
def test_a_coded_column_is_its_rows(first, second, random):
    one, other = Coded.of(first), Coded.of(second)
    assert (one, len(one), list(one), one.tolist()) == (first, len(first), first, first)
    assert (one == other, one == second) == (first == second, first == second)
    assert [one[row] for row in range(len(one))] == first
    assert one[1:3] == first[1:3]
    assert Coded.join([one, other, one]) == first + second + first
    rows = np.array([random.randrange(len(first)) for _ in first], np.intp)
    assert one.take(rows) == [first[row] for row in rows]
    assert one.map(lambda value: value or "none") == [value or "none" for value in first]
    assert one.where(lambda value: value == "a").tolist() == [value == "a" for value in first]
    assert Coded.of(one) is one
    assert pickle.loads(pickle.dumps(one)) == one


def test_one_value_in_every_row():
    assert Coded.same(None, 3) == [None, None, None]
    assert Coded.join([Coded.same("a", 1), Coded.same("b", 2)]) == ["a", "b", "b"]


def test_batches_with_lists_and_with_coded_columns_join():
    one = Pairs(np.array([1, 2]), Coded.of(["a", "b"]))
    two = Pairs(np.array([3]), [None])
    joined = Pairs.join([one, two])
    assert (joined.number.tolist(), list(joined.word)) == ([1, 2, 3], ["a", "b", None])
    assert list(Pairs.join([one, one]).take(np.array([3, 0])).word) == ["b", "a"]
    assert one.take(np.arange(2)) is one
