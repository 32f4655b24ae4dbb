"""The comma-separated trigger list of a lead: exact tokens, never substrings; taken apart only here.

The SQL functions ``dripline_tokens`` and ``dripline_without`` say the same inside the database.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from dispatcher.errors import InputError

BLANKS: Final = " \t\r\n"
"""What is trimmed off a token."""

LIST_CHARACTERS: Final = 1000
"""Width of ``leads.trigger``."""


def parse(list_: str | None) -> tuple[str, ...]:
    """The tokens: trimmed, empty ones and repetitions dropped, in the order of first appearance."""
    if not list_:
        return ()
    return tuple(dict.fromkeys(token for part in list_.split(",") if (token := part.strip(BLANKS))))


def add(list_: str | None, token: str) -> str:
    """The list with ``token`` on it; unchanged when it is there already.

    Raises:
        InputError: the list would be longer than its column.
    """
    return merge(list_, (token,))


def merge(list_: str | None, tokens: Iterable[str]) -> str:
    """The list with all ``tokens`` on it: what is there stays as it was written, missing ones are appended.

    Raises:
        InputError: the list would be longer than its column.
    """
    present = parse(list_)
    missing = [token for token in parse(",".join(tokens)) if token not in present]
    if not missing:
        return list_ or ""
    merged = ",".join([list_, *missing] if present and list_ else missing)
    if len(merged) > LIST_CHARACTERS:
        problem = f"with {missing[0]!r} added it has {len(merged)} characters"
        raise InputError("trigger list", problem, f"at most {LIST_CHARACTERS} fit; take finished triggers off")
    return merged


def remove(list_: str | None, token: str) -> str | None:
    """The list without the exact token; the others stay as they were written. None when nothing is left."""
    if list_ is None or list_ == token:
        return None
    kept = [part for part in list_.split(",") if part.strip(BLANKS) not in (token, "")]
    return ",".join(kept) or None
