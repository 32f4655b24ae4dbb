"""Which fields a message text cannot do without: it reads them where nothing has asked whether they are there."""

from __future__ import annotations

from collections.abc import Iterator

from jinja2 import nodes

from dispatcher.core.messages import parse

Names = frozenset[str]


def needs(text: str) -> tuple[str, ...]:
    """The fields that some way through ``text`` prints or compares without ``default`` or ``is defined``.

    Raises:
        TemplateError: see ``messages.Template``.
    """
    return tuple(sorted(set(_needs(parse(text), frozenset()))))


def _needs(node: nodes.Node, sure: Names) -> Iterator[str]:
    """Fields that ``node`` reads, but for those that are ``sure`` to be there."""
    if isinstance(node, nodes.Name):
        if node.name not in sure:
            yield node.name
    elif isinstance(node, nodes.If):
        yield from _all(node.body, sure | _if_so(node.test))
        yield from _needs(node.test, sure)
        otherwise = sure | _if_not(node.test)
        for branch in node.elif_:
            yield from _needs(nodes.If(branch.test, branch.body, [], []), otherwise)
            otherwise |= _if_not(branch.test)
        yield from _all(node.else_, otherwise)
    elif isinstance(node, nodes.CondExpr):
        yield from _needs(node.test, sure)
        yield from _needs(node.expr1, sure | _if_so(node.test))
        if node.expr2 is not None:
            yield from _needs(node.expr2, sure | _if_not(node.test))
    elif isinstance(node, nodes.And | nodes.Or):
        yield from _needs(node.left, sure)
        known = _if_so(node.left) if isinstance(node, nodes.And) else _if_not(node.left)
        yield from _needs(node.right, sure | known)
    else:
        yield from _all([each for each in node.iter_child_nodes() if each is not _asked_for(node)], sure)


def _asked_for(node: nodes.Node) -> nodes.Name | None:
    """The field that ``default``, ``is defined`` or ``is undefined`` takes as it is, there or not."""
    if isinstance(node, nodes.Test | nodes.Filter) and node.name in ("defined", "undefined", "default"):
        return node.node if isinstance(node.node, nodes.Name) else None
    return None


def _all(parts: list[nodes.Node], sure: Names) -> Iterator[str]:
    for part in parts:
        yield from _needs(part, sure)


def _if_so(test: nodes.Node) -> Names:
    """Fields that are there when ``test`` holds."""
    if isinstance(test, nodes.And):
        return _if_so(test.left) | _if_so(test.right)
    if isinstance(test, nodes.Or):
        return _if_so(test.left) & _if_so(test.right)
    if isinstance(test, nodes.Not):
        return _if_not(test.node)
    return _asked(test, "defined")


def _if_not(test: nodes.Node) -> Names:
    """Fields that are there when ``test`` does not hold."""
    if isinstance(test, nodes.Or):
        return _if_not(test.left) | _if_not(test.right)
    if isinstance(test, nodes.And):
        return _if_not(test.left) & _if_not(test.right)
    if isinstance(test, nodes.Not):
        return _if_so(test.node)
    return _asked(test, "undefined")


def _asked(test: nodes.Node, name: str) -> Names:
    if isinstance(test, nodes.Test) and test.name == name and isinstance(test.node, nodes.Name):
        return frozenset({test.node.name})
    return frozenset()
