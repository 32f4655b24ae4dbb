"""Which fields a text cannot do without."""

from __future__ import annotations

import pytest

from dispatcher.core.guards import needs
from dispatcher.core.messages import RenderError, Template


@pytest.mark.parametrize(
    ("text", "needed"),
    [
        ("Hello", ()),
        ("{{ b }} {{ a }} {{ a }}", ("a", "b")),
        ("{{ a | default('you') }}", ()),
        ("{{ a | default(b) }}", ("b",)),
        ("{{ a | default(value=b) }}", ("b",)),
        ("{{ a | upper | default('you') }}", ("a",)),
        ("{{ a | default(b | default('you')) | upper }}", ()),
        ("{% if a is defined %}{{ a }}{{ b }}{% else %}{{ c }}{% endif %}", ("b", "c")),
        ("{% if a is undefined %}x{% else %}{{ a }}{% endif %}", ()),
        ("{% if a is undefined or a == 'x' %}x{% elif b %}{{ a }}{% else %}{{ a }}{% endif %}", ("b",)),
        ("{% if a is defined or b is defined %}{{ a }}{% endif %}", ("a",)),
        ("{% if not a is defined %}x{% elif a > 3 %}{{ a }}{% endif %}", ()),
        ("{% if a is undefined and b is undefined %}x{% else %}{{ a }}{% endif %}", ("a",)),
        ("{{ a if a is defined and b is defined else b }}", ("b",)),
        ("{{ a if a }}", ("a",)),
    ],
)
def test_a_field_is_needed_where_nothing_has_asked_for_it(text: str, needed: tuple[str, ...]) -> None:
    assert needs(text) == needed


@pytest.mark.parametrize("missing", ["a", "b", "c"])
@pytest.mark.parametrize(
    "text",
    [
        "{{ a }}{{ b | default('x') }}{{ c | lower }}",
        "{% if b is defined %}{{ b }}{{ a }}{% endif %}{{ c if c is defined else 'x' }}!",
        "{% if not (a is undefined or b is undefined) %}{{ a }}{{ b }}{% endif %}{{ c }}",
    ],
)
def test_the_renderer_says_the_same(text: str, missing: str) -> None:
    attributes = {name: name for name in "abc" if name != missing}
    if missing not in needs(text):
        assert Template(text).render("60123456789", None, attributes)
        return
    with pytest.raises(RenderError, match=f"'{missing}' is undefined"):
        Template(text).render("60123456789", None, attributes)
