"""What is set over a scenario file: ``--set a.b=value`` and the command's other flags."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from dispatcher.errors import InputError
from dispatcher.intake.yaml_file import Keys, parse_value


@dataclass(frozen=True, slots=True)
class Override:
    """One value that stands before what the file says."""

    keys: Keys
    value: Any
    said: str
    """As the person wrote it, for errors."""


def parse(text: str) -> Override:
    """``devices.count=2000``; the value is read as YAML, a list's items are counted from 0.

    Raises:
        InputError: it is not of this form.
    """
    said = f"--set {text}"
    path, equals, value = text.partition("=")
    parts = path.strip().split(".")
    if not equals or not all(parts):
        raise InputError(said, "KEY=VALUE belongs here", "write it like --set devices.count=2000")
    try:
        return Override(tuple(int(part) if part.isdecimal() else part for part in parts), parse_value(value), said)
    except ValueError as error:
        raise InputError(said, f"the value is not YAML: {error}") from None


def apply(content: Any, overrides: Iterable[Override]) -> tuple[Any, dict[Keys, str]]:
    """The content with all overrides in it, and by key who said so.

    Raises:
        InputError: an override leads through something that has no keys.
    """
    content = {} if content is None else copy.deepcopy(content)
    said: dict[Keys, str] = {}
    for override in overrides:
        at = content
        for depth, key in enumerate(override.keys[:-1]):
            below = _child(at, key, override, depth)
            if below is None:
                below = at[key] = {}
                said[override.keys[: depth + 1]] = override.said
            at = below
        _child(at, override.keys[-1], override, len(override.keys) - 1)
        at[override.keys[-1]] = override.value
        said = {keys: by for keys, by in said.items() if keys[: len(override.keys)] != override.keys}
        said[override.keys] = override.said
    return content, said


def _child(at: Any, key: str | int, override: Override, depth: int) -> Any:
    """What stands under ``key`` now."""
    if isinstance(at, dict):
        return at.get(key)
    where = ".".join(map(str, override.keys[:depth])) or "the file"
    if not isinstance(at, list):
        raise InputError(override.said, f"{where} is a single value and has no keys")
    if not isinstance(key, int) or key >= len(at):
        raise InputError(override.said, f"{where} is a list of {len(at)}", f"0 to {len(at) - 1} belongs after it")
    return at[key]
