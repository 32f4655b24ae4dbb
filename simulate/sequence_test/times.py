"""Times as people write them in a test, and as they are told."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, TypeAdapter, ValidationError

from dispatcher.core.moments import SECOND_US
from simulate.scenario.keys import wrong

_UNITS_S: Final = {"d": 86_400, "h": 3600, "min": 60, "s": 1}
_DAY_US: Final = 86_400 * SECOND_US
_MOST_US: Final = 3660 * _DAY_US
_PART: Final = re.compile(r"(\d+(?:\.\d+)?) ?(d|h|min|s)")
_SPAN: Final = re.compile(rf"{_PART.pattern}(?: {_PART.pattern})*")
_DAY: Final = re.compile(r"day (\d+)(?: ([01]?\d|2[0-3]):([0-5]\d))?")
_ISO: Final = TypeAdapter(timedelta)


@dataclass(frozen=True, slots=True)
class Time:
    """A span, or a moment of a test."""

    said: str
    """As it was written."""
    span_us: int
    by_clock: bool = False
    """Whether it counts from midnight (UTC) before the beginning, not from the beginning."""

    def __str__(self) -> str:
        return self.said

    def after(self, begin_us: int) -> int:
        """The moment, in a test that begins at ``begin_us``."""
        return begin_us - (begin_us % _DAY_US if self.by_clock else 0) + self.span_us


def _span(value: Any) -> Time:
    found = _written_span(value) if isinstance(value, str) else None
    if found is None or not found.span_us <= _MOST_US:
        raise wrong(f"a time such as 90min, 36h, 2d or PT36H belongs here, not {value!r}")
    return found


def _written_span(text: str) -> Time | None:
    if _SPAN.fullmatch(text):
        seconds = sum(float(number) * _UNITS_S[unit] for number, unit in _PART.findall(text))
        return Time(text, round(seconds * SECOND_US))
    if text.startswith("P"):
        try:
            return Time(text, _ISO.validate_python(text) // timedelta(microseconds=1))
        except ValidationError:
            return None
    return None


def _moment(value: Any) -> Time:
    day = _DAY.fullmatch(value) if isinstance(value, str) else None
    if day is None:
        try:
            return _span(value)
        except ValueError:
            raise wrong(f"a time such as 36h, 2d, day 2 or day 2 10:30 belongs here, not {value!r}") from None
    number, hour, minute = day.groups()
    if not 1 <= int(number) <= 3660:
        raise wrong(f"days are counted from 1 to 3660, not {number}")
    clock_s = 0 if hour is None else int(hour) * 3600 + int(minute) * 60
    return Time(value, (int(number) - 1) * _DAY_US + clock_s * SECOND_US, by_clock=hour is not None)


Span = Annotated[Time, BeforeValidator(_span)]
Moment = Annotated[Time, BeforeValidator(_moment)]
BEGINNING: Final = Time("0h", 0)


def told(span_us: int) -> str:
    """A span in words that a file takes: ``36h 30min``; days from the third one on."""
    left_s, parts = round(span_us / SECOND_US), []
    for unit, seconds in _UNITS_S.items():
        if left_s >= seconds and not (unit == "d" and left_s < 3 * seconds):
            parts.append(f"{left_s // seconds}{unit}")
            left_s %= seconds
    return " ".join(parts) or "0h"
