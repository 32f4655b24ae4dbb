"""What the columns of a lead file mean, and one record as a lead."""

from __future__ import annotations

import difflib
import zoneinfo
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from typing import Final, TypeVar

from dispatcher.core import triggers
from dispatcher.errors import InputError
from dispatcher.intake.csv_file import CsvFile, Record, RejectedError
from dispatcher.intake.phones import check_region, read_phone

FIELDS: Final = ("phone", "name", "niche", "time_zone", "trigger", "opted_in_at")
"""What a column can be mapped to; every other name becomes an attribute."""
ATTRIBUTE_PREFIX: Final = "attributes."

LIST_TOO_LONG: Final = f"trigger: more than {triggers.LIST_CHARACTERS} characters"
UNKNOWN_ZONE: Final = "time_zone: no such time zone"
NO_MOMENT: Final = "opted_in_at: not a date and time (ISO 8601)"

_MAP: Final = "--map"
_EMPTY: Final = (None, "")
_SHADOWING: Final = ("phone", "name")

Value = TypeVar("Value", str, datetime)


@dataclass(frozen=True, slots=True)
class Lead:
    """A lead as a file or the table has it; what is missing is None."""

    phone: str
    """E.164 digits without the plus."""
    name: str | None = None
    niche: str | None = None
    trigger: str | None = None
    time_zone: str | None = None
    opted_in_at: datetime | None = None
    attributes: Mapping[str, object] = field(default_factory=dict)

    def filled_from(self, other: Lead) -> Lead:
        """This lead with the triggers of ``other`` added and what is empty filled; nothing is overwritten.

        The same object when nothing changes.

        Raises:
            RejectedError: the triggers do not fit beside each other.
        """
        filled = Lead(
            self.phone,
            _filled(self.name, other.name),
            _filled(self.niche, other.niche),
            _merged(self.trigger, triggers.parse(other.trigger)) or self.trigger,
            _filled(self.time_zone, other.time_zone),
            _filled(self.opted_in_at, other.opted_in_at),
            {
                **self.attributes,
                **{k: v for k, v in other.attributes.items() if self.attributes.get(k) in _EMPTY},
            },
        )
        return self if filled == self else filled


def _filled(mine: Value | None, theirs: Value | None) -> Value | None:
    return theirs if mine in _EMPTY and theirs is not None else mine


def _merged(list_: str | None, tokens: Iterable[str]) -> str:
    try:
        return triggers.merge(list_, tokens)
    except InputError:
        raise RejectedError(LIST_TOO_LONG) from None


class LeadReader:
    """Reads the records of one file as leads.

    Args:
        file: where the columns stand.
        columns: column name by field; ``phone`` may be left out when a column is called so.
        tags: triggers every lead gets.
        region: where numbers without a country code are dialled.

    Raises:
        InputError: a field, column, region or the trigger list is wrong.
    """

    def __init__(
        self,
        file: CsvFile,
        columns: Mapping[str, str],
        *,
        tags: Iterable[str] = (),
        region: str | None = None,
    ) -> None:
        if "phone" not in columns:
            columns = {"phone": "phone", **columns}
        at = {name: file.column(column, _MAP) for name, column in columns.items()}
        self._at = {name: at.pop(name, None) for name in FIELDS}
        self._attributes = tuple((_attribute(name), position) for name, position in at.items())
        self._tags = triggers.merge(None, tags) or None
        self._region = check_region(region)

    def read(self, record: Record) -> Lead:
        """The lead in ``record``.

        Raises:
            RejectedError: it is no lead that can be taken, with the reason.
        """
        if record.reason is not None:
            raise RejectedError(record.reason)
        cells, at = [cell.strip() or None for cell in record.cells], self._at
        phone, name, niche, zone, trigger, opted_in_at = (
            None if position is None else cells[position] for position in at.values()
        )
        if zone is not None and zone not in _zones():
            raise RejectedError(UNKNOWN_ZONE)
        return Lead(
            read_phone(phone or "", self._region),
            name,
            niche,
            self._tags if trigger is None else _merged(self._tags, triggers.parse(trigger)) or None,
            zone,
            None if opted_in_at is None else read_moment(opted_in_at, NO_MOMENT),
            {key: value for key, position in self._attributes if (value := cells[position]) is not None},
        )


def _attribute(name: str) -> str:
    """The attribute a column is mapped to by ``name``."""
    attribute = name.removeprefix(ATTRIBUTE_PREFIX)
    if not attribute.isidentifier():
        problem = f"{attribute!r} is no name for an attribute"
        raise InputError(_MAP, problem, "letters, digits and underscores, so that message texts can use it")
    if attribute in _SHADOWING:
        raise InputError(_MAP, f"an attribute cannot be called {attribute!r}", "it is a field of every lead")
    near = difflib.get_close_matches(attribute, FIELDS, 1, 0.85)
    if near and attribute == name:
        advice = f"did you mean {near[0]!r}? Write {ATTRIBUTE_PREFIX}{name} for an attribute of this name"
        raise InputError(_MAP, f"unknown field {name!r}", advice)
    return attribute


def read_moment(text: str, reason: str) -> datetime:
    """``text`` as an aware moment; without an offset it is UTC.

    Raises:
        RejectedError: it is none, for this reason.
    """
    try:
        moment = datetime.fromisoformat(text)
        return moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC)
    except (ValueError, OverflowError):
        raise RejectedError(reason) from None


@cache
def _zones() -> frozenset[str]:
    return frozenset(zoneinfo.available_timezones())
