"""Figures inside a page of the documentation: between markers, written by commands, never by hand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dispatcher.errors import InputError


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table in Markdown."""
    return [row_of(head), "|" + "---|" * len(head), *map(row_of, rows)]


def row_of(cells: Sequence[str]) -> str:
    """One line of a table."""
    return "| " + " | ".join(cells) + " |"


def put(page: str, text: str, name: str, lines: Sequence[str]) -> str:
    """``text``, of the page of that name, with ``lines`` between the markers of ``name``.

    Raises:
        InputError: the markers are not there, once each and in order.
    """
    begin, end = f"<!-- figures of {name} -->\n", f"<!-- end of {name} -->\n"
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed) or begin in rest:
        raise InputError(page, f"it does not have the markers of {name}", f"write: {begin}{end}".replace("\n", " "))
    return before + begin + "\n" + "\n".join(lines) + "\n\n" + end + after
