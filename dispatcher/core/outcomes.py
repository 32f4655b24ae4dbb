"""What became of one attempt to hand a message over. Outcomes are values; exceptions are for us.

The verdict of a visit follows from the outcomes of its attempts: accepted if **any** was accepted, else in doubt if any
is unknown, only else failed - a refusal after an unknown attempt proves nothing.

What the engine does about an outcome stands in one table, ``CONSEQUENCES``.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final, Literal, NamedTuple


class Outcome(IntEnum):
    """The end of an attempt; the lower-case name is what the ledger stores."""

    ACCEPTED = 0
    """The gateway took the message."""
    REPEAT = 1
    """The gateway had taken this key before; nothing was sent again."""
    REJECTED = 2
    """Refused for good, and the recipient is why: a number that cannot be written to."""
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
    THROTTLED_PAIR = 10
    """Surely not sent: too many messages from this device to this recipient; only this enrolment waits."""
    THROTTLED_ACCOUNT = 11
    """Surely not sent: the account behind the device is asked to slow down; all its devices rest."""
    QUALITY = 12
    """Surely not sent: the network restricts the device for its quality; it is quarantined, and nothing is moved."""
    CAPPED = 13
    """Surely not sent: the recipient gets no more messages of this kind for a while; the attempt is not counted."""
    SERVICE_WINDOW = 14
    """Surely not sent: the recipient has not written lately, and the step has no template; the enrolment waits."""
    CONTENT = 15
    """Refused, and what the step says is why: the step is paused, and whoever stands at it waits."""

    @property
    def label(self) -> str:
        """The name as the ledger and the receipts show it."""
        return self.name.lower()


class Consequence(NamedTuple):
    """What the engine does about an outcome that is no acceptance."""

    next: Literal["waiting", "failed", "stopped", "in_doubt"] = "waiting"
    """What becomes of the enrolment; a counted outcome that waits fails once no attempt is left."""
    unsent: bool = True
    """Whether it proves that nothing of the attempt was sent."""
    charged: bool = False
    """Whether it counts against the device's quota; otherwise the slot is given back."""
    counted: bool = False
    """Whether it uses up one of the enrolment's attempts; otherwise it is a snooze."""
    wait_s: float | None = 0.0
    """How long the enrolment waits when the gateway asks for nothing. None: a backoff."""
    rests: Literal["device", "account"] | None = None
    """Who sends nothing meanwhile."""
    quarantine: str | None = None
    """Why the device is quarantined with it."""
    pauses_step: bool = False
    """Whether the step is paused until somebody has seen to it."""


HOUR_S: Final = 3600.0

CONSEQUENCES: Final[dict[Outcome, Consequence]] = {
    Outcome.REJECTED: Consequence("failed", unsent=False, charged=True),
    Outcome.OPTED_OUT: Consequence("stopped", unsent=False, charged=True),
    Outcome.REFUSED: Consequence(counted=True, wait_s=None),
    Outcome.THROTTLED: Consequence(wait_s=60.0, rests="device"),
    # What came too late would be too late again: the machine has more to send than it can, or a clock is off.
    Outcome.EXPIRED: Consequence(wait_s=None),
    Outcome.CREDENTIALS: Consequence(quarantine="credentials"),
    Outcome.IN_DOUBT: Consequence("in_doubt", unsent=False, charged=True, counted=True),
    # It may have come and been turned down.
    Outcome.NOT_SENT: Consequence(charged=True, counted=True, wait_s=None),
    Outcome.THROTTLED_PAIR: Consequence(wait_s=60.0),
    Outcome.THROTTLED_ACCOUNT: Consequence(wait_s=300.0, rests="account"),
    Outcome.QUALITY: Consequence(quarantine="quality"),
    Outcome.CAPPED: Consequence(wait_s=24 * HOUR_S),
    # Well inside the 24 hours that a reply opens the window for.
    Outcome.SERVICE_WINDOW: Consequence(wait_s=6 * HOUR_S),
    # Until the coordinator has taken those at the step out of the claim's way.
    Outcome.CONTENT: Consequence(wait_s=60.0, pauses_step=True),
}
"""Every outcome but the two acceptances."""

PROVED_UNSENT: Final = frozenset(outcome for outcome, what in CONSEQUENCES.items() if what.unsent)
"""Outcomes after which nothing of the attempt was sent."""

UNCHARGED: Final = frozenset(outcome for outcome, what in CONSEQUENCES.items() if not what.charged)
"""Outcomes that give the device's slot back; every other one counts against its quota."""

CHARGED_LATE: Final = frozenset({Outcome.IN_DOUBT, Outcome.NOT_SENT})
"""Outcomes charged at the latest moment the message can have arrived, not at its slot.

What was in doubt stays charged when it turns out unsent: it may have come and been turned down."""

UNCOUNTED: Final = frozenset(
    outcome for outcome, what in CONSEQUENCES.items() if what.next == "waiting" and not what.counted
)
"""Outcomes that are a snooze: the contact is not to blame, so ``retry_count`` stays."""

QUARANTINES: Final = {outcome: what.quarantine for outcome, what in CONSEQUENCES.items() if what.quarantine}
"""Outcomes that quarantine the device: the cause."""

PAUSES_STEP: Final = frozenset(outcome for outcome, what in CONSEQUENCES.items() if what.pauses_step)
"""Outcomes that pause the step."""


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
