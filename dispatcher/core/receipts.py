"""What gateways tell after a message has left: receipts, replies, opt-outs. Their order does not matter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self
from uuid import UUID

from dispatcher.core.moments import NEVER_US

_NEVER_BEFORE_US = -NEVER_US


@dataclass(frozen=True, slots=True)
class Receipt:
    """All that has been told of one message: moments only, so that nothing told later takes anything back."""

    accepted_us: int | None = None
    delivered_us: int | None = None
    """At latest: who has read a message has got it."""
    read_us: int | None = None
    failed_us: int | None = None
    not_sent_us: int | None = None
    """Of all requests that had come by then, none was or will be sent. Of those that come later it says nothing."""
    error: str | None = None
    """Of the earliest failure."""
    message_id: str | None = None
    """The gateway's, where it told the key as well."""

    def merged(self, other: Self) -> Receipt:
        """Both together. ``take_receipts`` in receipts.sql merges by the same rules."""
        return Receipt(
            accepted_us=_one_of(min, self.accepted_us, other.accepted_us),
            delivered_us=_one_of(min, self.delivered_us, other.delivered_us),
            read_us=_one_of(min, self.read_us, other.read_us),
            failed_us=_one_of(min, self.failed_us, other.failed_us),
            not_sent_us=_one_of(max, self.not_sent_us, other.not_sent_us),
            error=min((self, other), key=_failure).error,
            message_id=min((each.message_id for each in (self, other) if each.message_id is not None), default=None),
        )


def _failure(receipt: Receipt) -> tuple[int, str]:
    return (NEVER_US if receipt.failed_us is None else receipt.failed_us, receipt.error or "")


def _one_of(choose: Callable[..., int], *moments: int | None) -> int | None:
    known = [moment for moment in moments if moment is not None]
    return choose(known) if known else None


@dataclass(frozen=True, slots=True)
class Reply:
    """What a lead wrote."""

    phone: str
    """E.164 digits without the plus, as in ``leads.phone``."""
    text: str
    at_us: int
    message_id: str
    """The gateway's name of it: told twice, it counts once."""
    device_id: UUID | None = None
    """The device that was written to, where the gateway says so."""


@dataclass(slots=True)
class Heard:
    """What one request tells."""

    receipts: dict[str, Receipt] = field(default_factory=dict)
    """By idempotency key as text, else by the gateway's id."""
    replies: list[Reply] = field(default_factory=list)
    opt_outs: dict[str, int] = field(default_factory=dict)
    """The latest moment by phone."""
    skipped: int = 0
    """Events of kinds that mean nothing to us."""

    @property
    def events(self) -> int:
        """How many there are to write, where several of one message count once."""
        return len(self.receipts) + len(self.replies) + len(self.opt_outs)

    def add_receipt(self, message: str, receipt: Receipt) -> None:
        """Take in a receipt of ``message``."""
        self.receipts[message] = self.receipts.get(message, Receipt()).merged(receipt)

    def add_opt_out(self, phone: str, at_us: int) -> None:
        """Take in that ``phone`` wants no messages."""
        self.opt_outs[phone] = max(at_us, self.opt_outs.get(phone, at_us))
