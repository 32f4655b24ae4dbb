"""``FIELD=COLUMN`` options."""

from __future__ import annotations

from collections.abc import Iterable

from dispatcher.errors import InputError


def parse_mapping(options: Iterable[str]) -> dict[str, str]:
    """Column by field.

    Raises:
        InputError: an option is not of that form, or a field stands twice.
    """
    columns: dict[str, str] = {}
    for option in options:
        name, equals, column = option.partition("=")
        name = name.strip()
        if not equals or not name or not column:
            raise InputError("--map", f"{option!r} is not FIELD=COLUMN", 'such as --map phone="Phone 1"')
        if name in columns:
            raise InputError("--map", f"{name!r} stands twice", "one column a field")
        columns[name] = column
    return columns
