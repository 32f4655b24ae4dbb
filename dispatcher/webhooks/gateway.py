"""Events of the generic gateway contract, as docs/webhooks.md has them."""

from __future__ import annotations

from typing import Annotated, Any, Final, Self
from uuid import UUID

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from dispatcher.core.moments import from_datetime
from dispatcher.core.receipts import Heard, Receipt, Reply
from dispatcher.webhooks.bodies import clean
from dispatcher.webhooks.refusals import unreadable

EVENTS: Final = 1000
TEXT_CHARACTERS: Final = 16_384
ERROR_CHARACTERS: Final = 500
ID_CHARACTERS: Final = 255

_TYPES: Final = frozenset({"accepted", "delivered", "read", "failed", "not_sent", "reply", "opted_out"})


def _printable(text: str) -> str:
    if clean(text, ID_CHARACTERS) != text:
        raise ValueError("characters that no id has")
    return text


class Event(BaseModel):
    """One event; fields that are not known are left aside."""

    model_config = ConfigDict(frozen=True)

    type: str
    at: AwareDatetime
    idempotency_key: UUID | None = None
    message_id: Annotated[str, Field(min_length=1, max_length=ID_CHARACTERS), AfterValidator(_printable)] | None = None
    phone: Annotated[str, Field(pattern=r"^\+?[0-9]{5,20}$")] | None = Field(None, alias="from")
    text: str = ""
    error: str | None = None
    device_id: UUID | None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.type in ("reply", "opted_out"):
            if self.phone is None:
                raise ValueError("from is missing")
            if self.type == "reply" and self.message_id is None:
                raise ValueError("message_id is missing: a reply that is told twice could not be known again")
        elif self.message_id is None and self.idempotency_key is None:
            raise ValueError("idempotency_key and message_id are missing")
        return self

    @property
    def number(self) -> str:
        """The phone as in ``leads.phone``."""
        assert self.phone is not None
        return self.phone.removeprefix("+")

    @property
    def message(self) -> str:
        """What the receipt is kept under."""
        return str(self.idempotency_key or self.message_id)

    @property
    def receipt(self) -> Receipt:
        """What it says of a message."""
        at_us = from_datetime(self.at)
        return Receipt(
            accepted_us=at_us if self.type == "accepted" else None,
            delivered_us=at_us if self.type in ("delivered", "read") else None,
            read_us=at_us if self.type == "read" else None,
            failed_us=at_us if self.type == "failed" else None,
            not_sent_us=at_us if self.type == "not_sent" else None,
            error=clean(self.error, ERROR_CHARACTERS) if self.error and self.type == "failed" else None,
            message_id=self.message_id if self.idempotency_key else None,
        )


def read(body: Any) -> Heard:
    """What a body tells: one event or a list of them.

    Raises:
        RefusalError: an event of a known type is not as the contract has it; nothing of the request counts then.
    """
    events = body if isinstance(body, list) else [body]
    if len(events) > EVENTS:
        raise unreadable(f"send at most {EVENTS} events at a time")
    heard = Heard()
    for number, told in enumerate(events, start=1):
        if not isinstance(told, dict) or not isinstance(told.get("type"), str):
            raise unreadable(f"event {number}: it has no type")
        if told["type"] not in _TYPES:
            heard.skipped += 1
            continue
        _add(heard, _event(number, told))
    return heard


def _event(number: int, told: dict[str, Any]) -> Event:
    try:
        return Event.model_validate(told)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(map(str, first["loc"][:1])) or "it"
        problem = first["msg"].removeprefix("Value error, ") if first["type"] == "value_error" else first["type"]
        raise unreadable(f"event {number}: {place}: {problem.replace('_', ' ')}") from None


def _add(heard: Heard, event: Event) -> None:
    if event.type == "opted_out":
        heard.add_opt_out(event.number, from_datetime(event.at))
    elif event.type == "reply":
        text = clean(event.text, TEXT_CHARACTERS)
        assert event.message_id is not None
        heard.replies.append(Reply(event.number, text, from_datetime(event.at), event.message_id, event.device_id))
    else:
        heard.add_receipt(event.message, event.receipt)
