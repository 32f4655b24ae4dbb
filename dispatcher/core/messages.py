"""Message texts: Jinja2 over a lead's fields, within bounds.

A template may print ``name``, ``phone`` and every attribute of the lead by its name, pass them through a few
filters and choose with ``if``. Loops, calls, arithmetic and everything else are refused when it is compiled:
the sandbox keeps templates away from Python, but does not keep them from filling the memory.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, wraps
from itertools import islice
from typing import Any, Final

from jinja2 import StrictUndefined, TemplateSyntaxError, nodes
from jinja2.exceptions import TemplateError as JinjaError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from dispatcher.errors import InputError

TEXT_CHARACTERS: Final = 4096
"""Longest text that is sent."""

TEMPLATE_CHARACTERS: Final = 4 * TEXT_CHARACTERS

_DEPTH: Final = 100
"""How deep a template may be nested: everything that reads its syntax tree is recursive."""
_PARTS: Final = 3000
"""Most nodes of a syntax tree: compiling takes a tenth of a millisecond each."""
_PIECES: Final = 64
"""Pieces of text that are held before their length is looked at: each may be as long as a lead's attribute."""

HOLDS: Final = "yes"
_HOLDS_NOT: Final = "no"

_END: Final = "\0"
"""Ends each text of a batch; PostgreSQL stores it in no text."""

_REWRITING: Final = ("upper", "lower", "title", "capitalize", "trim")
_FILTERS: Final = (*_REWRITING, "default", "truncate", "replace")
_TESTS: Final = ("defined", "undefined")
_ALLOWED: Final = (
    nodes.Output,
    nodes.TemplateData,
    nodes.Name,
    nodes.Const,
    nodes.Filter,
    nodes.Keyword,
    nodes.If,
    nodes.CondExpr,
    nodes.Test,
    nodes.Compare,
    nodes.Operand,
    nodes.And,
    nodes.Or,
    nodes.Not,
)
_TOO_LONG: Final = f"the text has more than {TEXT_CHARACTERS} characters"
_TOO_DEEP: Final = "it is nested too deeply, or a number is too long"
_ADVICE: Final = f"use variables, if/else and the filters {', '.join(_FILTERS)}"


class TemplateError(InputError, ValueError):
    """A message text cannot be compiled; ``subject`` names the line."""


class RenderError(ValueError):
    """A template gives no text for this lead; the message names the variable where one is to blame."""


_FAILURES: Final = (JinjaError, TypeError, ValueError, AssertionError, ArithmeticError, RecursionError)
"""What filters and comparisons raise over values they were not made for."""


def _replace(value: object, old: object, new: object, count: int = -1) -> str:
    """Jinja's ``replace``, bounded: a chain of them would multiply."""
    text, before, after = _bounded(value, TEMPLATE_CHARACTERS), str(old), str(new)
    times = text.count(before) if count < 0 else min(text.count(before), count)
    if len(text) + times * (len(after) - len(before)) > TEMPLATE_CHARACTERS:
        raise RenderError(f"a replacement gives more than {TEMPLATE_CHARACTERS} characters")
    return text.replace(before, after, count)


def _rewriting(filter_: Callable[..., str]) -> Callable[..., str]:
    """A filter of Jinja's, bounded: each makes a copy, and ``title`` takes 0.2 s a mebibyte."""

    @wraps(filter_)
    def bounded(value: object, *arguments: Any) -> str:
        return filter_(_bounded(value, TEXT_CHARACTERS), *arguments)

    return bounded


def _bounded(value: object, most: int) -> str:
    text = str(value)
    if len(text) > most:
        raise RenderError(f"a filter is given more than {most} characters")
    return text


def _environment() -> ImmutableSandboxedEnvironment:
    # Plain text, not HTML: nothing is escaped.
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
    given = {name: environment.filters[name] for name in _FILTERS}
    bounded = {name: _rewriting(given[name]) for name in _REWRITING} | {"replace": _replace}
    environment.filters = given | bounded
    environment.tests = {name: environment.tests[name] for name in _TESTS}
    environment.globals.clear()
    return environment


_ENVIRONMENT: Final = _environment()


@lru_cache(maxsize=10_000)
def compiled(text: str) -> Template:
    """The template of ``text``, compiled once.

    Raises:
        TemplateError: it cannot be compiled, or uses what is not allowed.
    """
    return Template(text)


@lru_cache(maxsize=1000)
def condition(text: str) -> Template:
    """What may follow ``if`` in a message text, as a template that says ``HOLDS`` where that does.

    Raises:
        TemplateError: it cannot be compiled, uses what is not allowed, or is more than a condition.
    """
    written = f"{{% if {text} %}}{HOLDS}{{% else %}}{_HOLDS_NOT}{{% endif %}}"
    match parse(written).body:
        case [nodes.If(body=[nodes.Output(nodes=[nodes.TemplateData(data=then)])], elif_=[], else_=[nodes.Output()])]:
            if then == HOLDS:
                return Template(written)
    raise TemplateError("condition", "it is more than a condition", "write what follows if, such as plan == 'pro'")


class Template:
    """A compiled message text; compile once a step.

    Fields that are missing, null or empty are undefined: printing one is an error, ``default`` and
    ``is defined`` notice. Line ends become ``\\n``.

    Args:
        text: the text as a person wrote it.

    Raises:
        TemplateError: it cannot be compiled, or uses what is not allowed.
    """

    constant: str | None
    """The text, when it is the same for everybody."""
    reads: tuple[str, ...]
    """The fields it prints or asks for."""

    def __init__(self, text: str) -> None:
        parsed = parse(text)
        self.constant, self.reads = None, tuple(sorted({name.name for name in parsed.find_all(nodes.Name)}))
        pieces = list(parsed.find_all(nodes.Expr))
        plain = [piece.data for piece in pieces if isinstance(piece, nodes.TemplateData)]
        if len(plain) == len(pieces):
            self.constant = _constant("".join(plain))
            return
        # A row always has a column, also of a template that reads nothing.
        self._columns = self.reads or ("phone",)
        self._undefined = [_ENVIRONMENT.undefined(name=name) for name in self._columns]
        self._compiled = _compile(parsed, self._columns)

    @property
    def reads_attributes(self) -> bool:
        """Whether it needs anything of a lead beside ``name`` and ``phone``."""
        return not {"name", "phone"}.issuperset(self.reads)

    def render(self, phone: str, name: str | None, attributes: Mapping[str, Any]) -> str:
        """The text for one lead; attributes named ``name`` or ``phone`` are not seen.

        Raises:
            RenderError: a field is missing or does not fit, or the text is empty or too long.
        """
        if self.constant is not None:
            return self.constant
        return self._render(self._rows([phone], [name], [attributes]))[0]

    def render_batch(
        self, phones: Sequence[str], names: Sequence[str | None], attributes_json: Sequence[str | None]
    ) -> tuple[list[str], dict[int, str]]:
        """The texts for many leads, and by row what kept some from having one; those texts are empty.

        ``attributes_json`` holds JSON objects, None for one without attributes.
        """
        if self.constant is not None:
            return [self.constant] * len(phones), {}
        errors: dict[int, str] = {}
        attributes: list[Mapping[str, Any]] = []
        if self.reads_attributes:
            for row, text in enumerate(attributes_json):
                try:
                    attributes.append(_attributes(text))
                except RenderError as error:
                    attributes.append({})
                    errors[row] = str(error)
        texts = [""] * len(phones)
        self._fill(texts, errors, 0, self._rows(phones, names, attributes))
        for row in errors:
            texts[row] = ""
        return texts, errors

    def _rows(
        self, phones: Sequence[str], names: Sequence[str | None], attributes: list[Mapping[str, Any]]
    ) -> list[tuple[Any, ...]]:
        columns: list[list[Any]] = []
        for field, undefined in zip(self._columns, self._undefined, strict=True):
            if field == "phone":
                columns.append([phone or undefined for phone in phones])
            elif field == "name":
                columns.append([name or undefined for name in names])
            else:
                values = [attribute.get(field) for attribute in attributes]
                columns.append([undefined if value is None or value == "" else value for value in values])
        return list(zip(*columns, strict=True))

    def _fill(self, texts: list[str], errors: dict[int, str], first: int, rows: list[tuple[Any, ...]]) -> None:
        """Render ``rows`` into ``texts`` from ``first`` on, closing in on those that fail by halving."""
        try:
            texts[first : first + len(rows)] = self._render(rows)
        except RenderError as error:
            if len(rows) == 1:
                errors.setdefault(first, str(error))
                return
            half = len(rows) // 2
            self._fill(texts, errors, first, rows[:half])
            self._fill(texts, errors, first + half, rows[half:])

    def _render(self, rows: list[tuple[Any, ...]]) -> list[str]:
        """All texts, or an error when a single one fails."""
        try:
            # Template.render would rewrite the traceback of every error, which costs more than the batch.
            context = self._compiled.new_context({"rows": rows})
            joined = _joined(self._compiled.root_render_func(context), (TEXT_CHARACTERS + len(_END)) * len(rows))
            joined.encode()
        except _FAILURES as error:
            raise RenderError(str(error) or type(error).__name__) from None
        texts = joined.split(_END)[:-1]
        if len(texts) != len(rows):
            raise RenderError("the text contains a NUL character")
        for text in texts:
            if problem := _unsendable(text):
                raise RenderError(problem)
        return texts


def _unsendable(text: str) -> str | None:
    if not text or text.isspace():
        return "the text is empty"
    return _TOO_LONG if len(text) > TEXT_CHARACTERS else None


def _joined(pieces: Iterator[str], most: int) -> str:
    """All ``pieces`` as one text, given up before it is built when it has more than ``most`` characters."""
    kept: list[str] = []
    while some := list(islice(pieces, _PIECES)):
        kept += some
        most -= sum(map(len, some))
        if most < 0:
            raise RenderError(_TOO_LONG)
    return "".join(kept)


def _attributes(text: str | None) -> Mapping[str, Any]:
    try:
        attributes = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        attributes = None
    if not isinstance(attributes, dict):
        raise RenderError("the lead's attributes are no JSON object")
    return attributes


def _constant(text: str) -> str:
    if problem := _unsendable(text):
        raise TemplateError("message text", problem)
    return text


def parse(text: str) -> nodes.Template:
    """The syntax tree, with nothing in it that is not allowed.

    Raises:
        TemplateError: it is no template, or uses what is not allowed.
    """
    if len(text) > TEMPLATE_CHARACTERS:
        raise TemplateError("message text", f"it has {len(text)} characters", f"at most {TEMPLATE_CHARACTERS} fit")
    if _END in text or not _encodes(text):
        raise TemplateError("message text", "it contains a NUL or half a character", "delete it")
    try:
        parsed = _ENVIRONMENT.parse(text)
    except TemplateSyntaxError as error:
        raise TemplateError(f"message text, line {error.lineno}", error.message or "is no template") from None
    except (ValueError, RecursionError):
        raise TemplateError("message text", _TOO_DEEP) from None
    for node in _nodes(parsed):
        if problem := _forbidden(node):
            raise TemplateError(f"message text, line {node.lineno}", problem, _ADVICE)
    return parsed


def _nodes(parsed: nodes.Template) -> Iterator[nodes.Node]:
    """Every node, those above before those below.

    Raises:
        TemplateError: they are too many, or nested too deeply.
    """
    level, parts = list(parsed.iter_child_nodes()), 0
    for _ in range(_DEPTH):
        yield from level
        parts += len(level)
        level = [below for node in level for below in node.iter_child_nodes()]
    if level:
        raise TemplateError("message text", _TOO_DEEP)
    if parts > _PARTS:
        raise TemplateError("message text", f"it has {parts} parts", f"at most {_PARTS} fit; print fewer variables")


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _forbidden(node: nodes.Node) -> str | None:
    if isinstance(node, nodes.Filter):
        if node.name not in _FILTERS:
            return f"the filter {node.name!r} is unknown here"
        if node.node is None or node.dyn_args or node.dyn_kwargs:
            return f"the filter {node.name!r} is used in a way that is not allowed"
    elif isinstance(node, nodes.Test) and (node.name not in _TESTS or node.args):
        return f"the test {node.name!r} is unknown here"
    elif not isinstance(node, _ALLOWED):
        return f"{type(node).__name__!r} is not allowed in a message"
    return None


def _compile(parsed: nodes.Template, columns: tuple[str, ...]) -> Any:
    """One template that loops over ``rows``: a call for each message would cost more than its rendering."""
    # Renamed, so that no field collides with a name that Jinja2 keeps for itself, such as loop or self.
    renamed = {column: f"field_{number}" for number, column in enumerate(columns)}
    for name in parsed.find_all(nodes.Name):
        name.name = renamed[name.name]
    target = nodes.Tuple([nodes.Name(name, "store") for name in renamed.values()], "store")
    body = [*parsed.body, nodes.Output([nodes.TemplateData(_END)])]
    loop = nodes.For(target, nodes.Name("rows", "load"), body, [], None, False)
    tree = nodes.Template([loop])
    tree.set_lineno(1)
    tree.set_environment(_ENVIRONMENT)
    try:
        return _ENVIRONMENT.from_string(tree)
    except (SyntaxError, RecursionError, MemoryError):
        raise TemplateError("message text", "its conditions are too deep", "nest fewer of them") from None
