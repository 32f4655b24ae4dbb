"""Trigger lists: exact tokens, and everything else in the list left as a person wrote it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.core.triggers import BLANKS, LIST_CHARACTERS, add, merge, parse, remove
from dispatcher.errors import InputError

lists = st.none() | st.text(alphabet="ab, \t\r\n_é", max_size=30)
tokens = st.text(alphabet="ab_é", min_size=1, max_size=3)


@pytest.mark.parametrize(
    ("list_", "expected"),
    [
        (None, ()),
        ("", ()),
        (" ,, \t,", ()),
        ("fitness_start", ("fitness_start",)),
        (" b ,a,\r\nb\t,, c d ", ("b", "a", "c d")),
        ("a,A", ("a", "A")),
        ("\N{NO-BREAK SPACE}a", ("\N{NO-BREAK SPACE}a",)),
    ],
)
def test_a_list_is_its_exact_tokens_in_order_of_first_appearance(list_: str | None, expected: tuple[str, ...]) -> None:
    assert parse(list_) == expected


def test_adding_appends_what_is_missing_and_touches_nothing_else() -> None:
    assert add(None, "a") == "a"
    assert add(" ,", "a") == "a"
    assert add(" b , c", "a") == " b , c,a"
    assert add(" b , c", "c") == " b , c"
    assert merge("b", ["c", " b ", "a", "c"]) == "b,c,a"
    assert merge(None, []) == ""


def test_a_token_is_never_a_part_of_another() -> None:
    assert add("fitness_start", "fitness") == "fitness_start,fitness"
    assert remove("fitness_start", "fitness") == "fitness_start"


@pytest.mark.parametrize(
    ("list_", "token", "expected"),
    [
        (None, "a", None),
        ("a", "a", None),
        (" a ,,", "a", None),
        (" b , a,c", "a", " b ,c"),
        ("a,b,a", "a", "b"),
        ("b,,c", "a", "b,c"),
        ("a", "A", "a"),
    ],
)
def test_removing_takes_one_exact_token_off(list_: str | None, token: str, expected: str | None) -> None:
    assert remove(list_, token) == expected


def test_a_list_that_would_outgrow_its_column_is_refused() -> None:
    full = "x" * (LIST_CHARACTERS - 2)
    assert len(add(full, "a")) == LIST_CHARACTERS
    assert add(full, full) == full
    with pytest.raises(InputError) as refused:
        add(full, "ab")
    assert str(refused.value) == (
        "trigger list: with 'ab' added it has 1001 characters - at most 1000 fit; take finished triggers off"
    )


@given(lists)
def test_parsing_gives_clean_distinct_tokens_and_is_stable(list_: str | None) -> None:
    parsed = parse(list_)
    assert parse(",".join(parsed)) == parsed
    assert len(set(parsed)) == len(parsed)
    assert all(token and token == token.strip(BLANKS) and "," not in token for token in parsed)


@given(lists, st.lists(tokens, max_size=4))
def test_merging_twice_is_merging_once(list_: str | None, added: list[str]) -> None:
    merged = merge(list_, added)
    assert parse(merged) == tuple(dict.fromkeys([*parse(list_), *added]))
    assert merge(merged, added) == merged
    assert not parse(list_) or merged.startswith(list_ or "")


@given(lists, tokens)
def test_removing_leaves_all_other_tokens(list_: str | None, token: str) -> None:
    left = remove(list_, token)
    assert parse(left) == tuple(other for other in parse(list_) if other != token)
    assert left is None or left != ""
    assert remove(left, token) == left


@given(lists, tokens)
def test_what_was_added_can_be_taken_off_again(list_: str | None, token: str) -> None:
    assert parse(remove(add(list_, token), token)) == tuple(t for t in parse(list_) if t != token)
