"""The official WhatsApp Cloud API: what a request says, and what an answer proves. Pure.

It honours no idempotency keys. So what is in doubt is never sent again; the key travels as the message's
``biz_opaque_callback_data``, which receipts repeat, and an attempt in doubt can become known by them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any, Final
from urllib.parse import urlsplit
from uuid import UUID

from dispatcher.core.batches import Outgoing
from dispatcher.core.fleet import Gateway
from dispatcher.core.outcomes import Outcome
from dispatcher.sender.contract import REDIRECTED, Answer, Request, clean, json_object, message_id, retry_after_s
from dispatcher.sender.whatsapp_codes import code_of

_BY_STATUS: Final = {401: Outcome.CREDENTIALS, 429: Outcome.THROTTLED}
"""Statuses that say enough without an error code."""
_TYPES: Final = {
    **dict.fromkeys((".jpg", ".jpeg", ".png"), "image"),
    **dict.fromkeys((".mp4", ".3gp"), "video"),
}
"""Media by the end of their address; every other one is a document."""


def request(gateway: Gateway, batch: Outgoing, row: int) -> Request:
    """The request for one message."""
    key = str(UUID(bytes=batch.key[row]))
    template = None if batch.template is None else batch.template[row]
    said = _free(batch.text[row], batch.media_url[row]) if template is None else _template(json.loads(template))
    message = {
        "messaging_product": "whatsapp",
        "recipient_type": "individual",
        "to": batch.to[row],
        **said,
        "biz_opaque_callback_data": key,
    }
    return Request(f"{(gateway.url or '').rstrip('/')}/{gateway.phone_number_id}/messages", {}, message)


def _free(text: str, media_url: str | None) -> dict[str, Any]:
    if media_url is None:
        return {"type": "text", "text": {"preview_url": False, "body": text}}
    path = PurePosixPath(urlsplit(media_url).path)
    kind = _TYPES.get(path.suffix.casefold(), "document")
    named = {"filename": path.name} if kind == "document" and path.name else {}
    return {"type": kind, kind: {"link": media_url, "caption": text, **named}}


def _template(template: Mapping[str, Any]) -> dict[str, Any]:
    parameters = [{"type": "text", "text": text} for text in template["parameters"]]
    components = [{"type": "body", "parameters": parameters}] if parameters else []
    named = {"name": template["name"], "language": {"code": template["language"]}}
    return {"type": "template", "template": {**named, **({"components": components} if components else {})}}


def from_response(status: int, headers: Mapping[str, str], body: bytes, now_us: int) -> Answer:
    """What a complete answer proves; arguments as ``contract.from_response``."""
    said = json_object(body)
    if status == 200:
        messages = said.get("messages")
        first = messages[0] if isinstance(messages, list) and messages else None
        wamid = message_id(first, "id") if isinstance(first, dict) else None
        if wamid is None:
            return Answer(Outcome.IN_DOUBT, error="HTTP 200 without a message id")
        return Answer(Outcome.ACCEPTED, wamid)
    if 300 <= status < 400:
        return Answer(Outcome.REFUSED, error=REDIRECTED.format(status=status))
    asked_s = retry_after_s(headers.get("retry-after"), now_us)
    error = said.get("error")
    number = error.get("code") if isinstance(error, dict) else None
    if not isinstance(error, dict) or not isinstance(number, int) or isinstance(number, bool):
        return Answer(_BY_STATUS.get(status, Outcome.IN_DOUBT), None, f"HTTP {status}", asked_s)
    code = code_of(number, error.get("error_subcode"))
    if code is None:
        return Answer(Outcome.IN_DOUBT, error=_reason(number, None, error))
    if math.isnan(asked_s) and code.wait_s is not None:
        asked_s = code.wait_s
    return Answer(code.outcome, None, _reason(number, code.title, error), asked_s)


def _reason(number: int, title: str | None, error: Mapping[str, Any]) -> str:
    """The code, and what is said about it."""
    data = error.get("error_data")
    details = data.get("details") if isinstance(data, dict) else None
    told = [error.get("message") if title is None else title, details]
    return clean(": ".join([str(number), *[text for text in told if isinstance(text, str) and text]]))
