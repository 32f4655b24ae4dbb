"""What the triggers on ``replies`` do: a reply finds its lead, a STOP word opts it out, and sequences may end."""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from typing import Final
from uuid import UUID

from dispatcher.store.migrate import migrations
from simulate.memory_store.database import MemoryDatabase
from simulate.memory_store.ending import suppress
from simulate.memory_store.rows import Change, Reply

_LONGEST: Final = 200
"""Characters of a message that may be a STOP word."""
_BETWEEN: Final = re.compile(
    r"[\u0001-\u0020!-/:-@\[-`{-~\u007F-\u00BF\u060C\u061B\u061F\u066A-\u066D\u06D4\u0964\u0965\u2000-\u2BFF\u3000-\u303F"
    r"\u30FB\uFE00-\uFE0F\U0001F000-\U0001FAFF]+"
)
_WORDS: Final = re.compile(r"^ +\('\w+', '\{(.+)\}'\),?$", re.MULTILINE)
_FIRST_WORDS: Final = "INSERT INTO stop_words"


def said(message: str) -> str:
    """A message as it is compared: without regard to case, width, punctuation, symbols and spaces."""
    return _BETWEEN.sub(" ", unicodedata.normalize("NFKC", message).lower()).strip()


@cache
def stop_words() -> frozenset[str]:
    """The words that the migrations bring, as they are compared."""
    lists = [
        found
        for migration in migrations()
        for statement in migration.sql.split(";\n")
        if _FIRST_WORDS in statement
        for found in _WORDS.findall(statement)
    ]
    return frozenset(said(word.strip('"')) for found in lists for word in found.split(","))


def receive(
    database: MemoryDatabase,
    phone: str,
    text: str,
    *,
    lead: int | None = None,
    received_us: int | None = None,
    message_id: str | None = None,
    device: UUID | None = None,
) -> bool:
    """A reply has come; whether it is a new one.

    Args:
        lead: who wrote; None: who has this phone.
        received_us: when it was received; None: now.
        message_id: the gateway's name of it; one that is known changes nothing.
        device: whom the lead wrote to, where that is known.
    """
    if message_id is not None and any(message_id == reply.message_id for reply in database.replies):
        return False
    if lead is None:
        digits = re.sub("[^0-9]", "", phone)
        lead = next((row.id for row in database.leads.values() if row.phone == digits), None)
    now_us = database.wall_us()
    reply = Reply(phone, lead, text, now_us if received_us is None else received_us, message_id, device)
    database.replies.append(reply)
    if lead is None:
        return True
    if len(text) <= _LONGEST and said(text) in stop_words():
        suppress(database, lead, now_us)
    ended = [
        row.id
        for row in database.of_lead.get(lead, ())
        if row.live
        and row.id not in database.exits
        and database.sequences[row.sequence].exit_on_reply
        and (reply.received_us >= now_us or row.enrolled_us <= reply.received_us)
    ]
    if ended:
        database.exits.update(dict.fromkeys(ended, lead))
        database.queue.append(Change((lead,)))
    return True


def end_replied(database: MemoryDatabase, leads: set[int], now_us: int) -> int:
    """End what leads have replied to; how many enrolments."""
    ended = 0
    for id_ in [id_ for id_, lead in database.exits.items() if lead in leads]:
        row = database.enrolments[id_]
        if row.live and row.stop_reason is None:
            row.stop_reason, row.trigger_kept, row.held = "replied", True, False
            row.finished_us = None
            if row.waiting:
                row.status, row.finished_us = "stopped", now_us
            database.place(row)
            ended += 1
        # Where an attempt is under way and its trigger may come back, the exit stays on record.
        if not row.live or row.stop_reason != "trigger removed":
            del database.exits[id_]
    return ended
