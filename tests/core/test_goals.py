"""Goals: a trigger of the lead, or a condition on its fields."""

from __future__ import annotations

import pytest

from dispatcher.core.goals import Goal
from dispatcher.core.messages import TemplateError, condition


def test_a_trigger_is_an_exact_token_of_the_list() -> None:
    lists = ["bought", "a, bought ,b", "bought_it", None, "", "Bought"]
    nobody = [None] * len(lists)
    assert Goal("bought").reached(lists, ["1"] * len(lists), nobody, nobody) == [True, True, *[False] * 4]


def test_a_condition_holds_of_those_who_have_what_it_reads() -> None:
    attributes = ['{"plan": "pro"}', '{"plan": "free"}', "{}", None, '{"plan": ["pro"]}', '{"plan": 7}', "no json"]
    rows = len(attributes)
    goal = Goal(None, "plan == 'pro'")
    assert goal.reached([None] * rows, ["1"] * rows, [None] * rows, attributes) == [True, *[False] * (rows - 1)]


def test_either_is_enough() -> None:
    goal = Goal("bought", "seats > 3 and name is defined")
    rows = ["bought", None, None, None]
    seats = [None, '{"seats": 4}', '{"seats": 4}', '{"seats": "4"}']
    assert goal.reached(rows, ["1"] * 4, [None, "Ann", None, "Bo"], seats) == [True, True, False, False]
    assert str(goal) == "trigger bought or seats > 3 and name is defined"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a %}yes{% elif b",
        "a %}yes{% endif %}{% if b",
        "a %}no",
        "a.b",
        "f()",
        "a + 1 > 2",
        "[1]",
        "a %}{{ b }}{% if c",
    ],
)
def test_what_is_more_than_a_condition_is_refused(text: str) -> None:
    with pytest.raises(TemplateError):
        condition(text)
    assert Goal(None, text).problem is not None
    assert Goal("bought").problem is None
