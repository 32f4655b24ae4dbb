"""SQL under the name of the method that runs it: ``-- name: claim_due`` and the statement below it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Final

_NAME: Final = re.compile(r"^--\s*name:\s*(\S+)[ \t]*$", re.MULTILINE)


@cache
def statements(file: str) -> Mapping[str, str]:
    """The statements of ``dispatcher/store/sql/<file>.sql`` by name.

    Raises:
        ValueError: a name stands twice or is no identifier, has no statement, or SQL has no name.
    """
    text = files("dispatcher.store").joinpath("sql", f"{file}.sql").read_text(encoding="utf-8")
    return MappingProxyType(parse(text, f"{file}.sql"))


def parse(text: str, source: str) -> dict[str, str]:
    """The named statements in ``text``, which errors call ``source``; comments may stand before the first."""
    preface, *parts = _NAME.split(text)
    if not _only_comments(preface):
        raise ValueError(f"{source}: SQL before the first '-- name:' line")
    found: dict[str, str] = {}
    for name, body in zip(parts[::2], parts[1::2], strict=True):
        if not name.isidentifier():
            raise ValueError(f"{source}: {name!r} is no identifier")
        if name in found:
            raise ValueError(f"{source}: {name!r} stands twice")
        if _only_comments(body):
            raise ValueError(f"{source}: {name!r} has no statement")
        found[name] = body.strip()
    return found


def _only_comments(text: str) -> bool:
    return all(not line.strip() or line.lstrip().startswith("--") for line in text.splitlines())
