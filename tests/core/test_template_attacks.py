"""Templates and attributes made to get at Python, at the processor or at the memory: each is refused, cheaply."""

from __future__ import annotations

import tracemalloc

import pytest

from dispatcher.core.messages import RenderError, Template, TemplateError

MIB = 2**20
LONG = {"words": "x y " * (MIB // 4), "numbers": list(range(20_000)), "longest": "x" * 4096}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{{ name.__class__.__mro__ }}", "'Getattr' is not allowed"),
        ("{{ name['__class__'] }}", "'Getitem' is not allowed"),
        ("{{ name | attr('__class__') }}", "the filter 'attr' is unknown"),
        ("{{ name | map(attribute='__class__') }}", "the filter 'map' is unknown"),
        ("{{ ''.format(name) }}", "'Call' is not allowed"),
        ("{{ '%999999999d' | format(1) }}", "the filter 'format' is unknown"),
        ("{{ '%999999999d' % 1 }}", "'Mod' is not allowed"),
        ("{{ cycler.__init__.__globals__ }}", "'Getattr' is not allowed"),
        ("{{ lipsum(n=10000) }}", "'Call' is not allowed"),
        ("{% for a in range(10 ** 9) %}x{% endfor %}", "'For' is not allowed"),
        ("{{ name | center(10 ** 9) }}", "the filter 'center' is unknown"),
        ("{{ name | center(999999999) }}", "the filter 'center' is unknown"),
        ("{{ name | indent(999999999) }}", "the filter 'indent' is unknown"),
        ("{{ name | batch(1) }}", "the filter 'batch' is unknown"),
        ("{{ 'x' * 999999999 }}", "'Mul' is not allowed"),
        ("{{ 9 ** 9 ** 9 }}", "'Pow' is not allowed"),
        ("{{ name ~ name ~ name }}", "'Concat' is not allowed"),
        ("{{ [name, name] | join(name) }}", "the filter 'join' is unknown"),
        ("{% include 'x' %}", "'Include' is not allowed"),
        ("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "'Macro' is not allowed"),
        ("{% set a = name %}x", "'Assign' is not allowed"),
        ("{% call name() %}x{% endcall %}", "'CallBlock' is not allowed"),
        ("{{ " + "9" * 5000 + " }}", "a number is too long"),
        ("{{ a" + " | upper" * 1600 + " }}", "nested too deeply"),
        ("{{ a" + " and a" * 2500 + " }}", "nested too deeply"),
        ("{{ a" + " or a" * 3000 + " }}", "nested too deeply"),
        ("{{ " + "not " * 3500 + "a }}", "nested too deeply"),
        ("{{ " + "a if a else " * 1300 + "a }}", "nested too deeply"),
        ("{% if a %}" * 600 + "x" + "{% endif %}" * 600, "nested too deeply"),
        ("{{ a" + " < a" * 3500 + " }}", "it has 7003 parts"),
        ("{{ a }}" * 150_000, "it has 1050000 characters"),
        ("{{" * 500_000, "it has 1000000 characters"),
    ],
    ids=lambda value: value[:40],
)
def test_an_attack_by_template_does_not_compile(text: str, problem: str) -> None:
    with pytest.raises(TemplateError, match=problem):
        Template(text)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{{ words }}" * 1000, "the text has more than 4096 characters"),
        ("{{ words | truncate(999999999) }}" * 400, "the text has more than 4096 characters"),
        ("{{ numbers }}" * 1000, "the text has more than 4096 characters"),
        ("{{ words | upper }}" * 700, "a filter is given more than 4096 characters"),
        ("{{ numbers | lower }}" * 700, "a filter is given more than 4096 characters"),
        ("{% if words | title %}{% endif %}x", "a filter is given more than 4096 characters"),
        ("{{ words | trim('x y') }}x", "a filter is given more than 4096 characters"),
        ("{{ words | replace('x', 'y') }}", "a filter is given more than 16384 characters"),
        ("{{ longest | replace('', longest) }}", "a replacement gives more than 16384 characters"),
        ("{{ 'a'" + " | replace('a', 'aaaaaaaaaa')" * 60 + " }}", "a replacement gives more than 16384 characters"),
        ("{{ name | replace('a', 'b', " + "9" * 40 + ") }}", "too large"),
    ],
    ids=lambda value: value[:40],
)
def test_an_attack_by_attributes_is_that_leads_content_error(text: str, problem: str) -> None:
    with pytest.raises(RenderError, match=problem):
        Template(text).render("60123456789", "a", LONG)


def test_what_is_long_can_still_be_shortened_and_asked_for() -> None:
    text = "{% if numbers is defined %}{{ words | truncate(7, true, '') | upper | title }}{% endif %}"
    assert Template(text).render("60123456789", None, LONG) == "X Y X Y"


def test_what_is_given_up_has_not_filled_the_memory() -> None:
    template, numbers = Template("{{ numbers }}" * 1000), list(range(3_000))  # 16 MiB
    tracemalloc.start()
    with pytest.raises(RenderError):
        template.render("60123456789", None, {"numbers": numbers})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * MIB
