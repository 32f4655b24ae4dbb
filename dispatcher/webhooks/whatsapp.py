"""Webhooks of the WhatsApp Cloud API: statuses of messages, what people wrote, and who wants no more marketing.

https://developers.facebook.com/documentation/business-messaging/whatsapp/webhooks/reference/messages. What is new
there, or not as described, is skipped: Meta repeats a webhook that is refused for days, with everything else in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final
from uuid import UUID

from dispatcher.core.moments import SECOND_US
from dispatcher.core.receipts import Heard, Receipt, Reply
from dispatcher.webhooks.bodies import clean
from dispatcher.webhooks.gateway import ERROR_CHARACTERS, ID_CHARACTERS, TEXT_CHARACTERS
from dispatcher.webhooks.refusals import unreadable

STOPPED_MARKETING: Final = 131050
"""The error of a message to somebody who has stopped marketing messages of this business."""

_PHONE: Final = re.compile(r"[0-9]{5,20}")
_SECONDS: Final = re.compile(r"[0-9]{9,11}")
_MEDIA: Final = frozenset({"audio", "contacts", "document", "image", "location", "sticker", "video"})


def read(body: Any) -> Heard:
    """What a body tells.

    Raises:
        RefusalError: it is no webhook of the Cloud API.
    """
    if not isinstance(body, dict) or not isinstance(body.get("entry"), list):
        raise unreadable("it has no entry")
    heard = Heard()
    for entry in _dicts(body, "entry"):
        for change in _dicts(entry, "changes"):
            value = change.get("value")
            if isinstance(value, dict):
                _read_value(heard, value)
            else:
                heard.skipped += 1
    return heard


def _read_value(heard: Heard, value: dict[str, Any]) -> None:
    known = [
        *(_read_status(heard, status) for status in _dicts(value, "statuses")),
        *(_read_message(heard, message) for message in _dicts(value, "messages")),
        *(_read_preference(heard, preference) for preference in _dicts(value, "user_preferences")),
    ]
    heard.skipped += known.count(False) if known else 1


def _read_status(heard: Heard, status: dict[str, Any]) -> bool:
    """Take a status in; False where it means nothing to us."""
    id_, at_us, kind = _id(status), _at_us(status), status.get("status")
    if id_ is None or at_us is None or kind not in ("sent", "delivered", "read", "failed"):
        return False
    key = _key(status.get("biz_opaque_callback_data"))
    error = next(_dicts(status, "errors"), {}) if kind == "failed" else {}
    receipt = Receipt(
        accepted_us=at_us if kind == "sent" else None,
        delivered_us=at_us if kind in ("delivered", "read") else None,
        read_us=at_us if kind == "read" else None,
        failed_us=at_us if kind == "failed" else None,
        error=clean(f"{error.get('code')}: {error.get('title')}", ERROR_CHARACTERS) if error else None,
        message_id=id_ if key else None,
    )
    heard.add_receipt(key or id_, receipt)
    phone = _phone(status.get("recipient_id"))
    if error.get("code") == STOPPED_MARKETING and phone is not None:
        heard.add_opt_out(phone, at_us)
    return True


def _read_message(heard: Heard, message: dict[str, Any]) -> bool:
    """Take what somebody wrote in; False where it is nothing that was written."""
    phone, id_, at_us, text = _phone(message.get("from")), _id(message), _at_us(message), _said(message)
    if phone is None or id_ is None or at_us is None or text is None:
        return False
    heard.replies.append(Reply(phone, clean(text, TEXT_CHARACTERS), at_us, id_))
    return True


def _said(message: dict[str, Any]) -> str | None:
    """The words of a message: a picture's are its caption, a button's what stands on it. None: it is no answer."""
    kind = str(message.get("type"))
    part = message.get(kind)
    inside = part if isinstance(part, dict) else {}
    match kind:
        case "text":
            said = inside.get("body")
        case "button":
            said = inside.get("text")
        case "interactive":
            chosen = inside.get("button_reply") or inside.get("list_reply")
            said = chosen.get("title") if isinstance(chosen, dict) else None
        case _ if kind in _MEDIA:
            said = inside.get("caption") or ""
        case _:
            said = None
    return said if isinstance(said, str) else None


def _read_preference(heard: Heard, preference: dict[str, Any]) -> bool:
    """Take in that somebody stops marketing messages; to go on is not for a webhook to decide."""
    phone, at_us = _phone(preference.get("wa_id")), _at_us(preference)
    if phone is None or at_us is None or preference.get("value") != "stop":
        return False
    heard.add_opt_out(phone, at_us)
    return True


def _dicts(value: dict[str, Any], name: str) -> Iterator[dict[str, Any]]:
    found = value.get(name)
    return (each for each in (found if isinstance(found, list) else ()) if isinstance(each, dict))


def _id(value: dict[str, Any]) -> str | None:
    id_ = value.get("id")
    whole = isinstance(id_, str) and id_ != "" and clean(id_, ID_CHARACTERS) == id_
    return id_ if whole else None


def _phone(value: Any) -> str | None:
    return value if isinstance(value, str) and _PHONE.fullmatch(value) else None


def _at_us(value: dict[str, Any]) -> int | None:
    seconds = str(value.get("timestamp"))
    return int(seconds) * SECOND_US if _SECONDS.fullmatch(seconds) else None


def _key(value: Any) -> str | None:
    """The idempotency key that the sender gave along, if it did."""
    try:
        return str(UUID(value)) if isinstance(value, str) else None
    except ValueError:
        return None
