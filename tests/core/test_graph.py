"""Sequence graphs: every broken thing is found and named; the catalogue follows the steps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.core.graph import Catalogue, Sequence, Step, check, problems
from dispatcher.errors import GraphError

FITNESS = Sequence(
    1,
    "30 Day Fitness",
    True,
    (
        Step("fitness_start", "Welcome to fitness!", "fitness_day2", is_entry=True),
        Step("fitness_day2", "Day 2 workout", "fitness_day3", delay_h=48),
        Step("fitness_day3", "Keep going!"),
    ),
)


def sequence(*steps: Step, id_: int | None = 9, name: str = "S", is_active: bool = True) -> Sequence:
    return Sequence(id_, name, is_active, steps)


def entry(trigger: str, next_trigger: str | None = None) -> Step:
    return Step(trigger, "Hi", next_trigger, is_entry=True)


def step(trigger: str, next_trigger: str | None = None) -> Step:
    return Step(trigger, "Hi", next_trigger)


def test_the_seeds_sequence_is_sound() -> None:
    assert problems(FITNESS) == []
    check(FITNESS)


@pytest.mark.parametrize(
    ("broken", "expected"),
    [
        (sequence(), ["it has no steps"]),
        (sequence(step("a", "b"), step("b")), ["it has no entry step"]),
        (sequence(entry("a", "x")), ["step 'a': its next trigger 'x' is no step of this sequence"]),
        (sequence(entry("a", "")), ["step 'a': its next trigger '' is no step of this sequence"]),
        (
            sequence(entry("a", "b"), step("b", "c"), step("c", "b")),
            ["step 'b': its steps go round in a circle: 'b' -> 'c' -> 'b'"],
        ),
        (sequence(entry("a", "a")), ["step 'a': its steps go round in a circle: 'a' -> 'a'"]),
        (sequence(entry("a"), step("a")), ["step 'a': 2 steps have this trigger"]),
        (sequence(replace(entry("a"), delay_h=0)), ["step 'a': its delay is 0 hours"]),
        (sequence(replace(entry("a"), delay_h=87_841)), ["step 'a': its delay is 87841 hours"]),
        (sequence(replace(entry("a"), message_text=" \n")), ["step 'a': its message text is empty"]),
        (sequence(entry("")), ["step '': its trigger is empty"]),
        (sequence(entry("a ")), ["step 'a ': its trigger has white space around it"]),
        (sequence(entry("a,b")), ["step 'a,b': its trigger contains a comma"]),
        (sequence(entry("a" * 256)), [f"step '{'a' * 57}...': its trigger has 256 characters"]),
    ],
)
def test_a_broken_thing_is_named_with_its_step(broken: Sequence, expected: list[str]) -> None:
    assert problems(broken) == expected


def test_all_problems_are_told_at_once() -> None:
    broken = sequence(
        replace(entry("a", "x"), delay_h=-1),
        step("b", "c"),
        step("c", "b"),
        replace(step("d"), message_text=""),
    )
    assert problems(broken) == [
        "step 'a': its delay is -1 hours",
        "step 'd': its message text is empty",
        "step 'a': its next trigger 'x' is no step of this sequence",
        "step 'b': its steps go round in a circle: 'b' -> 'c' -> 'b'",
    ]


def test_a_long_circle_is_told_in_one_short_line() -> None:
    ring = sequence(entry("s0", "s1"), *(step(f"s{n}", f"s{(n + 1) % 500}") for n in range(1, 500)))
    (line,) = problems(ring)
    assert line.endswith("'s18' -> 's19' -> 480 more -> 's0'")


def test_check_raises_for_the_first_problem_with_sequence_step_and_advice() -> None:
    with pytest.raises(GraphError) as refused:
        check(sequence(entry("a", "x"), step("b"), name="Crypto"))
    assert str(refused.value) == (
        "sequence 'Crypto', step 'a': its next trigger 'x' is no step of this sequence"
        " - add that step, or leave the next trigger out to end here"
    )
    with pytest.raises(GraphError) as refused:
        check(sequence(name="Empty"))
    assert str(refused.value) == "sequence 'Empty': it has no steps - add at least one entry step"


def test_two_entries_may_share_a_tail() -> None:
    assert problems(sequence(entry("a", "c"), entry("b", "c"), step("c"))) == []


@st.composite
def graphs(draw: st.DrawFn) -> Sequence:
    names = [f"t{n}" for n in range(draw(st.integers(1, 7)))]
    targets = st.none() | st.sampled_from([*names, "elsewhere"])
    return sequence(*(Step(name, "Hi", draw(targets), is_entry=draw(st.booleans())) for name in names))


@given(graphs())
def test_a_sequence_is_sound_exactly_when_it_has_an_entry_and_every_walk_ends(drawn: Sequence) -> None:
    following = {each.trigger: each.next_trigger for each in drawn.steps}
    ends = True
    for start in following:
        at: str | None = start
        for _ in following:
            if at in following:
                at = following[at]
        ends = ends and at is None
    assert (problems(drawn) == []) == (ends and any(each.is_entry for each in drawn.steps))


@given(graphs())
def test_every_step_of_every_circle_is_named(drawn: Sequence) -> None:
    following = {each.trigger: each.next_trigger for each in drawn.steps}
    told = " ".join(line for line in problems(drawn) if "circle" in line)
    for start in following:
        at = following[start]
        for _ in following:
            if at != start:
                at = following.get(at or "")
        assert (f"{start!r} ->" in told) == (at == start)


def test_the_catalogue_opens_the_entries_of_active_sound_sequences_only() -> None:
    paused = sequence(entry("paused_start", "paused_day2"), step("paused_day2"), id_=2, is_active=False)
    broken = sequence(entry("broken_start", "nowhere"), id_=3)
    catalogue = Catalogue.of([FITNESS, paused, broken])
    assert catalogue.entries == {"fitness_start": 1}
    assert catalogue.usable == {1}
    assert catalogue.problems == {3: ["step 'broken_start': its next trigger 'nowhere' is no step of this sequence"]}
    assert catalogue.sequences == {1: FITNESS, 2: paused, 3: broken}
    assert catalogue.step["paused_day2"] == paused.steps[1]
    assert catalogue.sequence_of["broken_start"] is broken


def test_a_batch_advances_by_index_and_a_dangling_trigger_stays_visible() -> None:
    catalogue = Catalogue.of([FITNESS, sequence(entry("broken_start", "nowhere"))])
    at = ["fitness_day2", "fitness_day3", "broken_start", "deleted_step", "fitness_start"]
    index = catalogue.indices(at)
    assert index.tolist() == [1, 2, 3, -1, 0]
    with pytest.raises(ValueError, match="leads nowhere"):
        catalogue.advance(index)
    known = index[index >= 0]
    next_trigger, delay_h = catalogue.advance(known)
    assert next_trigger.tolist() == ["fitness_day3", None, "nowhere", "fitness_day2"]
    assert delay_h.tolist() == [48.0, 24.0, 24.0, 24.0]
    assert catalogue.next_index[known].tolist() == [2, -1, -1, 1]
    assert [catalogue.triggers[i] for i in index if i >= 0] == [t for t in at if t in catalogue.index]


def test_an_empty_catalogue_knows_nothing() -> None:
    catalogue = Catalogue.of([])
    next_trigger, delay_h = catalogue.advance(catalogue.indices([]))
    assert (next_trigger.tolist(), delay_h.tolist(), catalogue.entries) == ([], [], {})
    assert catalogue.indices(["a"]).tolist() == [-1]


def test_a_trigger_belongs_to_one_step() -> None:
    with pytest.raises(GraphError, match="sequence 'Copy', step 'fitness_start': sequence '30 Day Fitness' has"):
        Catalogue.of([FITNESS, sequence(entry("fitness_start"), name="Copy")])
    with pytest.raises(ValueError, match="'S' is not stored yet"):
        Catalogue.of([sequence(entry("a"), id_=None)])


@given(st.lists(graphs(), max_size=3))
def test_the_columns_say_what_the_steps_say(drawn: list[Sequence]) -> None:
    named = [
        replace(
            each,
            id=number,
            steps=tuple(
                replace(
                    s,
                    trigger=f"{number}{s.trigger}",
                    next_trigger=s.next_trigger and f"{number}{s.next_trigger}",
                )
                for s in each.steps
            ),
        )
        for number, each in enumerate(drawn)
    ]
    catalogue = Catalogue.of(named)
    steps = [s for each in named for s in each.steps]
    next_trigger, delay_h = catalogue.advance(np.arange(len(steps)))
    assert catalogue.triggers == [s.trigger for s in steps]
    assert next_trigger.tolist() == [s.next_trigger for s in steps]
    assert delay_h.tolist() == [float(s.delay_h) for s in steps]
    assert catalogue.next_index.tolist() == [catalogue.index.get(s.next_trigger or "", -1) for s in steps]
    assert set(catalogue.problems) == {each.id for each in named if problems(each)}
