"""Message texts: what a person may write, what a lead gets, and what is refused before it can hurt."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.core.messages import TEXT_CHARACTERS, RenderError, Template, TemplateError
from dispatcher.errors import InputError

GREETING = "Hi {{ name | default('there') }}, {{ company }}!"


def batch(text: str, *rows: tuple[str, str | None, str | None]) -> tuple[list[str], dict[int, str]]:
    return Template(text).render_batch([r[0] for r in rows], [r[1] for r in rows], [r[2] for r in rows])


def test_a_plain_text_is_sent_as_it_is() -> None:
    template = Template("Welcome to fitness! {100%} #1\n")
    assert template.constant == "Welcome to fitness! {100%} #1\n"
    assert (template.reads, template.reads_attributes) == ((), False)
    assert template.render("601", None, {}) == template.constant
    assert template.render_batch(["1", "2"], [None, "Bo"], [None, "{"]) == ([template.constant] * 2, {})


def test_comments_and_raw_text_are_the_same_for_everybody() -> None:
    assert Template("{# for May #}Sale: {% raw %}{{ 50% }}{% endraw %}").constant == "Sale: {{ 50% }}"


def test_a_template_prints_the_leads_fields() -> None:
    template = Template("{{ name }} {{ phone }} {{ age }} {{ vip }}")
    assert template.constant is None
    assert template.reads == ("age", "name", "phone", "vip")
    assert template.reads_attributes
    assert template.render("60123", "Ana", {"age": 42, "vip": True}) == "Ana 60123 42 True"
    assert not Template("{{ name }} {{ phone }}").reads_attributes


def test_attributes_never_shadow_name_and_phone() -> None:
    attributes = {"name": "Mallory", "phone": "999"}
    assert Template("{{ name }} {{ phone }}").render("60123", "Ana", attributes) == "Ana 60123"
    with pytest.raises(RenderError, match="'name' is undefined"):
        Template("{{ name }}").render("60123", None, attributes)


def test_fields_named_like_jinjas_own_words_are_fields() -> None:
    attributes = {"loop": "a", "self": "b", "caller": "c", "rows": "d", "range": "e"}
    text = "{{ loop }}{{ self }}{{ caller }}{{ rows }}{{ range }}"
    assert Template(text).render("1", None, attributes) == "abcde"


@pytest.mark.parametrize("missing", [{}, {"company": None}, {"company": ""}])
def test_missing_null_and_empty_fields_are_undefined(missing: dict[str, Any]) -> None:
    with pytest.raises(RenderError, match="'company' is undefined"):
        Template("{{ company }}").render("1", None, missing)
    assert Template("{{ company | default('you') }}").render("1", None, missing) == "you"
    assert Template("{% if company is defined %}a{% else %}b{% endif %}").render("1", None, missing) == "b"


def test_filters_and_conditions() -> None:
    text = (
        "{{ name | trim | upper }} {{ name | lower }} {{ city | title }} {{ city | capitalize }} "
        "{{ city | replace('a', 'o') }} {{ city | truncate(6, true, '') }} "
        "{% if age >= 18 and not city == 'x' %}adult{% elif age < 3 %}baby{% else %}child{% endif %} "
        "{{ 'old' if age > 60 else 'young' }}"
    )
    assert Template(text).render("1", " Ana ", {"city": "kuala LUMPUR", "age": 20}) == (
        "ANA  ana  Kuala Lumpur Kuala lumpur kuolo LUMPUR kuala  adult young"
    )


def test_nothing_is_escaped_or_trimmed_and_line_ends_are_one() -> None:
    assert Template("{{ name }}\r\n& <b>\n").render("1", "A&B", {}) == "A&B\n& <b>\n"


def test_a_batch_gives_each_row_its_text_or_its_error() -> None:
    texts, errors = batch(
        GREETING,
        ("1", "Ana", '{"company": "Acme"}'),
        ("2", None, '{"company": "Börse"}'),
        ("3", "Cy", "{}"),
        ("4", "Di", None),
        ("5", "Ed", '["company"]'),
        ("6", "Fo", "{broken"),
        ("7", "Gu", '{"company": "a\\u0000b"}'),
        ("8", "Ho", '{"company": "\\ud800"}'),
        ("9", "Io", json.dumps({"company": "x" * TEXT_CHARACTERS})),
    )
    assert texts == ["Hi Ana, Acme!", "Hi there, Börse!", "", "", "", "", "", "", ""]
    assert errors == {
        2: "'company' is undefined",
        3: "'company' is undefined",
        4: "the lead's attributes are no JSON object",
        5: "the lead's attributes are no JSON object",
        6: "the text contains a NUL character",
        7: "'utf-8' codec can't encode character '\\ud800' in position 7: surrogates not allowed",
        8: "the text has more than 4096 characters",
    }


def test_an_empty_batch_is_empty() -> None:
    assert batch(GREETING) == ([], {})


def test_a_text_may_be_as_long_as_the_limit_but_not_empty() -> None:
    longest = "x" * TEXT_CHARACTERS
    assert Template("{{ a }}").render("1", None, {"a": longest}) == longest
    with pytest.raises(RenderError, match="more than 4096"):
        Template("{{ a }}y").render("1", None, {"a": longest})
    with pytest.raises(RenderError, match="the text is empty"):
        Template(" {% if a %}x{% endif %}\n").render("1", None, {"a": 0})


def test_a_filter_that_does_not_fit_the_value_is_the_rows_error() -> None:
    texts, errors = batch("{{ a | truncate(5) }}", ("1", None, '{"a": 7}'), ("2", None, '{"a": "seven"}'))
    assert texts == ["", "seven"]
    assert errors == {0: "object of type 'int' has no len()"}
    with pytest.raises(RenderError, match="expected length >= 3"):
        Template("{{ a | truncate(2) }}").render("1", None, {"a": "abc"})
    with pytest.raises(RenderError, match="'<' not supported"):
        Template("{% if a < 3 %}x{% endif %}").render("1", None, {"a": "abc"})


def test_chained_replacements_cannot_fill_the_memory() -> None:
    bomb = "{{ name" + "|replace('a', 'aaaaaaaaaa')" * 40 + " }}"
    with pytest.raises(RenderError, match="a replacement gives more than 16384 characters"):
        Template(bomb).render("1", "a", {})
    assert Template("{{ name | replace('a', 'bb', 1) | replace('', '-') }}").render("1", "aa", {}) == "-b-b-a-"


def test_a_long_value_printed_often_is_given_up_early() -> None:
    text = "{{ a }}" * 2000
    texts, errors = Template(text).render_batch(
        ["1"] * 4, [None] * 4, [json.dumps({"a": "x" * 1_000_000}), '{"a": "x"}'] * 2
    )
    assert texts == ["", "x" * 2000] * 2
    assert set(errors) == {0, 2}


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("a\n{% for x in name %}x{% endfor %}", 2, "'For' is not allowed in a message"),
        ("{{ 'a' * 10 ** 9 }}", 1, "'Mul' is not allowed in a message"),
        ("{{ name ~ name }}", 1, "'Concat' is not allowed in a message"),
        ("{{ name.upper }}", 1, "'Getattr' is not allowed in a message"),
        ("{{ name[0] }}", 1, "'Getitem' is not allowed in a message"),
        ("{{ name() }}", 1, "'Call' is not allowed in a message"),
        ("{{ [name] }}", 1, "'List' is not allowed in a message"),
        ("{% set a = 1 %}x", 1, "'Assign' is not allowed in a message"),
        ("{% macro a() %}{% endmacro %}", 1, "'Macro' is not allowed in a message"),
        ("{% include 'x' %}", 1, "'Include' is not allowed in a message"),
        ("{% import 'x' as y %}", 1, "'Import' is not allowed in a message"),
        ("{% extends 'x' %}", 1, "'Extends' is not allowed in a message"),
        ("{% block a %}x{% endblock %}", 1, "'Block' is not allowed in a message"),
        ("{% filter upper %}x{% endfilter %}", 1, "'FilterBlock' is not allowed in a message"),
        ("{{ name | upper(*name) }}", 1, "the filter 'upper' is used in a way that is not allowed"),
        ("\n\n{{ name | join }}", 3, "the filter 'join' is unknown here"),
        ("{{ name is string }}", 1, "the test 'string' is unknown here"),
        ("Hi\n{{ name", 2, "unexpected end of template, expected 'end of print statement'."),
        ("{% if name %}x", 1, "Unexpected end of template."),
    ],
)
def test_what_is_not_allowed_is_refused_with_its_line(text: str, line: int, problem: str) -> None:
    with pytest.raises(TemplateError) as refused:
        Template(text)
    assert isinstance(refused.value, InputError)
    assert isinstance(refused.value, ValueError)
    assert refused.value.subject == f"message text, line {line}"
    assert refused.value.problem.startswith(problem)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \n",
        "a\0b",
        "\ud800",
        "x" * (TEXT_CHARACTERS + 1),
        "{{ name }}" * 2000,
        "{{ " + "9" * 5000 + " }}",
        "{{ " + "(" * 4000 + "1" + ")" * 4000 + " }}",
        "{% if name %}" * 600 + "x" + "{% endif %}" * 600,
        "{% if name %}" * 110 + "x" + "{% endif %}" * 110,
    ],
)
def test_texts_that_no_template_can_be_are_refused(text: str) -> None:
    with pytest.raises(TemplateError, match="message text: "):
        Template(text)


names = st.none() | st.text(max_size=5)
values = st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.lists(st.integers(), max_size=2)
attribute_sets = st.none() | st.dictionaries(st.sampled_from(["company", "city", "name", "phone"]), values)
templates = st.sampled_from(
    [
        "Welcome!",
        "{{ name }}",
        GREETING,
        "{{ city | default(name) | upper | truncate(4) }}{{ phone }}",
        "{% if company is defined %}{{ company }}{% else %}{{ name }}{% endif %}",
        "{% if city > 3 %}{{ city }}{% endif %}",
    ]
)


@given(templates, st.lists(st.tuples(names, attribute_sets), max_size=8))
def test_a_batch_says_what_its_rows_say_one_by_one(
    text: str, rows: list[tuple[str | None, dict[str, Any] | None]]
) -> None:
    template = Template(text)
    texts: list[str] = []
    errors: dict[int, str] = {}
    for row, (name, attributes) in enumerate(rows):
        try:
            texts.append(template.render(f"60{row}", name, attributes or {}))
        except RenderError as error:
            texts.append("")
            errors[row] = str(error)
    phones = [f"60{row}" for row in range(len(rows))]
    stored = [None if each is None else json.dumps(each) for _, each in rows]
    assert template.render_batch(phones, [name for name, _ in rows], stored) == (texts, errors)


@given(st.text(alphabet="{}%#|~ ab'\"()\n-+*.,is not", max_size=30))
def test_whatever_is_written_compiles_or_is_refused_by_name(text: str) -> None:
    try:
        template = Template(text)
    except TemplateError:
        return
    texts, errors = template.render_batch(["1", "2"], ["Ana", None], ['{"a": 1, "b": "x"}', None])
    assert all(text or row in errors for row, text in enumerate(texts))


@given(st.text(min_size=1, max_size=50).filter(lambda text: not {"\0", "\r"} & set(text) and text.strip()))
def test_a_field_arrives_unchanged(value: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError:
        return
    assert Template("{{ a }}").render("1", None, {"a": value}) == value
