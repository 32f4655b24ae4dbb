"""How the engine logs: plain lines for people, or a JSON object a line for what collects them.

Neither shows a phone number whole, a password, or the values that PostgreSQL quotes when a statement fails: those hold
what messages say. What repeats itself is told once in a while, with how often it was left out.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final, Literal

Form = Literal["text", "json"]

_PHONE: Final = re.compile(r"(?<![\w.:/-])(\+?\d{4,11})\d{4}(?![\w-])")
_PASSWORD: Final = re.compile(r"(?<=://)([^\s:/@]*):[^\s@/]*@")
_BEARER: Final = re.compile(r"(?i)\b(bearer)\s+\S+")
_QUOTED: Final = re.compile(r"(?m)^\s*(DETAIL|CONTEXT):.*\n?")
_REPEAT_S: Final = 30.0
_REMEMBERED: Final = 1000


def masked(text: str) -> str:
    """``text`` without the last digits of phone numbers, without passwords and tokens, without what a row held."""
    text = _QUOTED.sub("", text)
    text = _BEARER.sub(r"\1 ***", _PASSWORD.sub(r"\1:***@", text))
    return _PHONE.sub(r"\1****", text)


def line(
    form: Form, at: datetime, who: str, level: str, event: str, message: str, facts: Mapping[str, Any] | None = None
) -> str:
    """One line of the log.

    Args:
        at: wall time.
        who: the process it is about.
        event: names what happened, for whoever filters.
        facts: figures that stand beside the message in JSON.
    """
    message = masked(message)
    if form == "text":
        return (
            f"{at.astimezone():%H:%M:%S}  {message}"
            if who == "run"
            else f"{at.astimezone():%H:%M:%S}  {who}: {message}"
        )
    moment = at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    told = {"at": moment, "level": level, "event": event, "who": who, "message": message}
    return json.dumps(told | dict(facts or {}), ensure_ascii=False, default=str)


def configure(form: Form, who: str) -> None:
    """Have this process log to stderr, in the given form and under the name ``who``."""
    there = logging.StreamHandler()
    there.setFormatter(_Lines(form, who))
    there.addFilter(_Seldom())
    logging.basicConfig(level=logging.WARNING, handlers=[there], force=True)
    for name in ("dispatcher", "actors"):
        logging.getLogger(name).setLevel(logging.INFO)
    logging.getLogger("asyncpg").setLevel(logging.ERROR)  # whoever needs a lost connection says so in one line


class _Lines(logging.Formatter):
    def __init__(self, form: Form, who: str) -> None:
        super().__init__()
        self._form, self._who = form, who

    def format(self, record: logging.LogRecord) -> str:
        """A record as one line; the traceback of a bug follows it, or stands in it."""
        message, facts = record.getMessage(), {}
        if record.exc_info:
            trace = self.formatException(record.exc_info)
            facts = {"traceback": masked(trace)}
            message = message if self._form == "json" else f"{message}\n{trace}"
        event = getattr(record, "event", "note")
        at = datetime.fromtimestamp(record.created, UTC)
        return line(self._form, at, self._who, record.levelname.lower(), event, message, facts)


class _Seldom(logging.Filter):
    """Lets a line through once in 30 s, however often it is said."""

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[str, tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to tell it; what was left out is counted into the next one."""
        text = record.getMessage()
        since, left_out = self._said.get(text, (-_REPEAT_S, 0))
        if 0 <= record.created - since < _REPEAT_S:
            self._said[text] = since, left_out + 1
            return False
        if len(self._said) >= _REMEMBERED:
            self._said.clear()
        self._said[text] = record.created, 0
        if left_out:
            record.msg, record.args = f"{text} ({left_out} times more meanwhile)", None
        return True
