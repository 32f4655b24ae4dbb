"""The error codes of the WhatsApp Cloud API: what each proves, and how long to wait where the API does not say.

Source: https://developers.facebook.com/documentation/business-messaging/whatsapp/support/error-codes/ as of 18 June
2026 and, below 1000, https://developers.facebook.com/docs/graph-api/guides/error-handling/. Meta asks that ``code`` be
relied on, not titles or HTTP statuses. A code that is not here proves nothing: the message is in doubt.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from dispatcher.core.outcomes import HOUR_S, Outcome


class Code(NamedTuple):
    """What an error code means for the message."""

    outcome: Outcome
    title: str
    """As the documentation calls it."""
    wait_s: float | None = None
    """Instead of the outcome's usual wait."""


CODES: Final[dict[int, Code]] = {
    # Who may send: access tokens, permissions, the set-up of the number.
    0: Code(Outcome.CREDENTIALS, "AuthException"),
    3: Code(Outcome.CREDENTIALS, "API Method"),
    10: Code(Outcome.CREDENTIALS, "Permission Denied"),
    33: Code(Outcome.CREDENTIALS, "Parameter value is not valid: the business phone number has been deleted"),
    190: Code(Outcome.CREDENTIALS, "Access token has expired"),
    131005: Code(Outcome.CREDENTIALS, "Access denied"),
    131037: Code(Outcome.CREDENTIALS, "Display name needs approval"),
    131045: Code(Outcome.CREDENTIALS, "Incorrect certificate"),
    133000: Code(Outcome.CREDENTIALS, "Incomplete deregistration"),
    133005: Code(Outcome.CREDENTIALS, "Two step verification PIN mismatch"),
    133006: Code(Outcome.CREDENTIALS, "Phone number re-verification needed"),
    133008: Code(Outcome.CREDENTIALS, "Too many two step verification PIN guesses"),
    133009: Code(Outcome.CREDENTIALS, "Two step verification PIN guessed too fast"),
    133010: Code(Outcome.CREDENTIALS, "Phone number not registered"),
    133015: Code(Outcome.CREDENTIALS, "Please wait a few minutes before attempting to register this phone number"),
    133016: Code(Outcome.CREDENTIALS, "Account register deregister rate limit exceeded"),
    # How fast.
    4: Code(Outcome.THROTTLED_ACCOUNT, "API Too Many Calls", HOUR_S / 4),
    80007: Code(Outcome.THROTTLED_ACCOUNT, "Rate limit issues", HOUR_S / 4),
    130429: Code(Outcome.THROTTLED, "Rate limit hit"),
    131056: Code(Outcome.THROTTLED_PAIR, "(Business Account, Consumer Account) pair rate limit hit"),
    131057: Code(Outcome.THROTTLED_ACCOUNT, "Account in maintenance mode"),
    131042: Code(Outcome.THROTTLED_ACCOUNT, "Business eligibility payment issue", HOUR_S),
    # What the network thinks of the sender. Nothing is moved to other numbers.
    368: Code(Outcome.QUALITY, "Temporarily blocked for policies violations"),
    131031: Code(Outcome.QUALITY, "Account has been locked"),
    131048: Code(Outcome.QUALITY, "Spam rate limit hit"),
    # The recipient.
    100: Code(Outcome.REJECTED, "Invalid parameter, or no WhatsApp phone number"),
    130497: Code(Outcome.REJECTED, "Business account is restricted from messaging users in this country"),
    131009: Code(Outcome.REJECTED, "Parameter value is not valid"),
    131021: Code(Outcome.REJECTED, "Recipient cannot be sender"),
    131026: Code(Outcome.REJECTED, "Message undeliverable"),
    131030: Code(Outcome.REJECTED, "Recipient phone number not in allowed list"),
    132005: Code(Outcome.REJECTED, "Template hydrated text too long"),
    131050: Code(Outcome.OPTED_OUT, "Unable to deliver the message: the user has stopped marketing messages"),
    130472: Code(Outcome.CAPPED, "User's number is part of an experiment"),
    131049: Code(Outcome.CAPPED, "Not delivered to maintain healthy ecosystem engagement"),
    131047: Code(Outcome.SERVICE_WINDOW, "Re-engagement message"),
    # What the step says.
    131008: Code(Outcome.CONTENT, "Required parameter is missing"),
    131051: Code(Outcome.CONTENT, "Unsupported message type"),
    131052: Code(Outcome.CONTENT, "Media download error"),
    131053: Code(Outcome.CONTENT, "Media upload error"),
    132000: Code(Outcome.CONTENT, "Template param count mismatch"),
    132001: Code(Outcome.CONTENT, "Template does not exist"),
    132007: Code(Outcome.CONTENT, "Template format character policy violated"),
    132012: Code(Outcome.CONTENT, "Template parameter format mismatch"),
    132015: Code(Outcome.CONTENT, "Template is paused"),
    132016: Code(Outcome.CONTENT, "Template is disabled"),
    132068: Code(Outcome.CONTENT, "Flow is in blocked state"),
    132069: Code(Outcome.CONTENT, "Flow is in throttled state"),
    # The service says that it took nothing.
    2: Code(Outcome.REFUSED, "API Service"),
    131016: Code(Outcome.REFUSED, "Service unavailable"),
    133004: Code(Outcome.REFUSED, "Server temporarily unavailable"),
    # It does not say what became of the message.
    1: Code(Outcome.IN_DOUBT, "API Unknown"),
    131000: Code(Outcome.IN_DOUBT, "Something went wrong"),
}

PERMISSIONS: Final = range(200, 300)
"""Codes of permissions that are not granted or were removed."""
UNKNOWN_OBJECT: Final = 100, 33
"""Code and subcode of a phone number id that the token does not know."""


def code_of(code: int, subcode: int | None = None) -> Code | None:
    """What an error code means; None for one that nothing is known of."""
    if code in PERMISSIONS:
        return Code(Outcome.CREDENTIALS, "API Permission")
    if (code, subcode) == UNKNOWN_OBJECT:
        return Code(Outcome.CREDENTIALS, "Unknown phone number id")
    return CODES.get(code)
