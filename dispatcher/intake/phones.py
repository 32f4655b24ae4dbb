"""Phone numbers as people write them, read as the digits the engine stores.

Strict on purpose: a number is accepted only if its numbering plan gives it a meaning (``is_valid_number``,
not merely a possible length). A wrong acceptance writes to a stranger, or burns a device's quota and standing
on a number that does not exist; a wrong rejection stands in the rejects file with its reason, and can be
corrected and imported again.
"""

from __future__ import annotations

import re
from typing import Final

import phonenumbers
from phonenumbers import NumberParseException, PhoneNumber, ValidationResult

from dispatcher.errors import InputError
from dispatcher.intake.csv_file import RejectedError

MISSING: Final = "phone: empty"
NOT_A_NUMBER: Final = "phone: not a phone number"
NO_COUNTRY: Final = "phone: no country code that exists, or none and no region to read it in"
TOO_SHORT: Final = "phone: too short"
TOO_LONG: Final = "phone: too long"
UNASSIGNED: Final = "phone: cannot be dialled (not a number of its country's numbering plan)"
DIGITS_LOST: Final = "phone: digits lost by a spreadsheet (6.01E+10)"

_UNREADABLE: Final = {
    NumberParseException.INVALID_COUNTRY_CODE: NO_COUNTRY,
    NumberParseException.NOT_A_NUMBER: NOT_A_NUMBER,
    NumberParseException.TOO_SHORT_AFTER_IDD: TOO_SHORT,
    NumberParseException.TOO_SHORT_NSN: TOO_SHORT,
    NumberParseException.TOO_LONG: TOO_LONG,
}
_IMPOSSIBLE: Final = {
    ValidationResult.INVALID_COUNTRY_CODE: NO_COUNTRY,
    ValidationResult.TOO_SHORT: TOO_SHORT,
    ValidationResult.IS_POSSIBLE_LOCAL_ONLY: TOO_SHORT,
    ValidationResult.TOO_LONG: TOO_LONG,
}
_SCIENTIFIC: Final = re.compile(r"\+?\d+([.,]\d+)?[eE]\+?\d+")
_FLOAT: Final = re.compile(r"(\+?\d{7,})\.0")
_DOUBLE_ZERO: Final = re.compile(r"[\s(]*00")


def check_region(region: str | None) -> str | None:
    """``region`` in capitals.

    Raises:
        InputError: it is not a region that has telephones.
    """
    if region is None or region.upper() in phonenumbers.SUPPORTED_REGIONS:
        return region and region.upper()
    raise InputError("--region", f"unknown region {region!r}", "a two-letter country code, such as GB, MY or US")


def read_phone(text: str, region: str | None) -> str:
    """The E.164 digits of ``text``, without the plus: ``60123456789``.

    A number without a country code is read as dialled in ``region``; without a region it must start with its
    country code, plus or not. A leading ``00`` that means nothing in the region is read as the plus it stands
    for in most of the world (``001-202-456-1111`` among US numbers). An extension is dropped.

    Raises:
        RejectedError: with one of this module's reasons.
    """
    text = text.strip()
    if not text:
        raise RejectedError(MISSING)
    if _SCIENTIFIC.fullmatch(text):
        raise RejectedError(DIGITS_LOST)
    if as_float := _FLOAT.fullmatch(text):
        text = as_float[1]
    try:
        return _dialled(text, region)
    except RejectedError:
        abroad = _with_plus(text, region)
        if abroad is None:
            raise
    return _dialled(abroad, None)


def _with_plus(text: str, region: str | None) -> str | None:
    if double_zero := _DOUBLE_ZERO.match(text):
        return "+" + text[double_zero.end() :]
    return None if region or "+" in text else "+" + text


def _dialled(text: str, region: str | None) -> str:
    try:
        number = phonenumbers.parse(text, region)
    except NumberParseException as error:
        raise RejectedError(_UNREADABLE[error.error_type]) from None
    if not _is_valid(number):
        raise RejectedError(_IMPOSSIBLE.get(phonenumbers.is_possible_number_with_reason(number), UNASSIGNED))
    return f"{number.country_code}{phonenumbers.national_significant_number(number)}"


def _is_valid(number: PhoneNumber) -> bool:
    # Its main region first, in half the time: is_valid_number tries every region of the code, 25 for +1.
    main = phonenumbers.region_code_for_country_code(number.country_code or 0)
    return phonenumbers.is_valid_number_for_region(number, main) or phonenumbers.is_valid_number(number)
