"""What became of one attempt to hand a message over. Outcomes are values; exceptions are for us.

The verdict of a visit follows from the outcomes of its attempts: accepted if **any** was accepted, else in doubt if any
is unknown, only else failed - a refusal after an unknown attempt proves nothing.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final


class Outcome(IntEnum):
    """The end of an attempt; the lower-case name is what the ledger stores."""

    ACCEPTED = 0
    """The gateway took the message."""
    REPEAT = 1
    """The gateway had taken this key before; nothing was sent again."""
    REJECTED = 2
    """Refused for good: invalid recipient, content."""
    OPTED_OUT = 3
    """Refused because the recipient does not want messages: suppresses all enrolments of the lead."""
    REFUSED = 4
    """Surely not sent and worth another try: connection refused, ``not_accepted``."""
    THROTTLED = 5
    """Surely not sent: the device is asked to slow down; the attempt is not counted."""
    EXPIRED = 6
    """Surely not sent: it came after its deadline; the attempt is not counted."""
    CREDENTIALS = 7
    """Surely not sent: the gateway does not accept the device's credentials; the device is quarantined."""
    IN_DOUBT = 8
    """Sent or not: unknown. Everything that is not proven otherwise."""
    NOT_SENT = 9
    """Was in doubt and has become known: it was not sent."""

    @property
    def label(self) -> str:
        """The name as the ledger and the receipts show it."""
        return self.name.lower()


PROVED_UNSENT: Final = frozenset(
    {Outcome.REFUSED, Outcome.THROTTLED, Outcome.EXPIRED, Outcome.CREDENTIALS, Outcome.NOT_SENT}
)
"""Outcomes after which nothing of the attempt was sent."""

UNCHARGED: Final = PROVED_UNSENT - {Outcome.NOT_SENT}
"""Outcomes that give the device's slot back; every other one counts against its quota."""

CHARGED_LATE: Final = frozenset({Outcome.IN_DOUBT, Outcome.NOT_SENT})
"""Outcomes charged at the latest moment the message can have arrived, not at its slot.

What was in doubt stays charged when it turns out unsent: it may have come and been turned down."""

UNCOUNTED: Final = frozenset({Outcome.THROTTLED, Outcome.EXPIRED, Outcome.CREDENTIALS})
"""Outcomes that are a snooze: the contact is not to blame, so ``retry_count`` stays."""


def verdict(outcomes: list[Outcome]) -> Outcome:
    """The verdict of one visit from the outcomes of all its attempts, in any order.

    Returns ``ACCEPTED``, ``IN_DOUBT``, ``OPTED_OUT``, ``REJECTED`` or ``REFUSED`` (nothing was ever sent).
    """
    seen = set(outcomes)
    if seen & {Outcome.ACCEPTED, Outcome.REPEAT}:
        return Outcome.ACCEPTED
    for decisive in (Outcome.IN_DOUBT, Outcome.OPTED_OUT, Outcome.REJECTED):
        if decisive in seen:
            return decisive
    return Outcome.REFUSED
