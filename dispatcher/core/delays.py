"""Delays as people write them: ISO 8601 durations and short forms, to the minute."""

from __future__ import annotations

import re
from typing import Final

_ISO: Final = re.compile(r"P(?:(\d+)W)?(?:(\d+)D)?(?:T(?:(\d+)H)?(?:(\d+)M)?)?")
_SHORT: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([dhm])")
_MINUTES: Final = {"d": 24 * 60, "h": 60, "m": 1}
_DIGITS: Final = 9


def minutes_of(text: str) -> int:
    """The minutes of ``P1DT2H``, ``PT90M``, ``36h``, ``90m`` or ``2d``; a day is 24 hours.

    Raises:
        ValueError: it is none; the message says why.
    """
    if len(text) > 4 * _DIGITS:
        raise ValueError("it is too long")
    short, iso = _SHORT.fullmatch(text), _ISO.fullmatch(text)
    if short is not None:
        minutes = float(short[1]) * _MINUTES[short[2]]
        if minutes != int(minutes):
            raise ValueError("it has a fraction of a minute")
        return int(minutes)
    if iso is not None and not text.endswith(("P", "T")):
        weeks, days, hours, minutes_ = (int(part or 0) for part in iso.groups())
        return ((7 * weeks + days) * 24 + hours) * 60 + minutes_
    if re.fullmatch(r"P(\d+Y)?(\d+M)?(\d+[WD])?(T.*)?", text) and re.search(r"\d[YM]", text.partition("T")[0]):
        raise ValueError("months and years have no fixed length: count days")
    if re.fullmatch(r"P.*\d+S", text):
        raise ValueError("delays are to the minute: leave the seconds out")
    raise ValueError("a delay such as 36h, 90m, 2d or P1DT2H belongs here")


def hours_of(hours: int, minutes: int) -> float:
    """Hours and minutes as hours; a whole number where there are no minutes."""
    return hours + minutes / 60 if minutes else hours


def parts_of(delay_h: float) -> tuple[int, int]:
    """Whole hours, and the minutes beyond."""
    return divmod(round(delay_h * 60), 60)


def told(delay_h: float) -> str:
    """A delay for people: ``36 h``, ``1 h 30 min``."""
    hours, minutes = parts_of(delay_h)
    return " ".join([*[f"{hours} h"] * (hours > 0 or not minutes), *[f"{minutes} min"] * (minutes > 0)])
