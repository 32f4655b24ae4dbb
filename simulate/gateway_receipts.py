"""A real gateway's log as receipts, so that one checker judges rehearsals and live runs.

What was to arrive is worked out from enrolments and sequences, not from the ledger: the key names enrolment, visit and
generation, and the text must be that of the visit's step for that lead.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple
from uuid import UUID

import asyncpg
import numpy as np

from dispatcher.core.catalogue import Catalogue
from dispatcher.core.identity import idempotency_key
from dispatcher.core.messages import compiled
from dispatcher.core.outcomes import Outcome
from simulate.gateway import Arrival
from simulate.receipts import RECEIPT, Receipts

ANSWERS: Final = {
    "accepted": Outcome.ACCEPTED,
    "repeat": Outcome.REPEAT,
    "rejected": Outcome.REJECTED,
    "opted_out": Outcome.OPTED_OUT,
    "refused": Outcome.REFUSED,
    "throttled": Outcome.THROTTLED,
    "over_limit": Outcome.THROTTLED,
    "expired": Outcome.EXPIRED,
    "dropped": Outcome.IN_DOUBT,
    "failed": Outcome.IN_DOUBT,
}
"""What the gateway did, as an outcome. ``dropped`` and ``failed`` were not taken, but their sender cannot know."""
_NOWHERE: Final = ("", "")
_ENROLMENTS: Final = """
SELECT c.id, c.entry_trigger, c.generation, c.contact_phone, l.name, nullif(l.attributes::text, '{}') AS attributes
FROM sequence_contacts c LEFT JOIN leads l ON l.id = c.lead_id
"""


class Message(NamedTuple):
    """What arrives under one key, if everything is right."""

    visit: int
    step: int
    """Index into the catalogue."""
    to: str
    text_sha256: str
    """The first 16 hexadecimal digits."""


async def read_messages(connection: asyncpg.Connection, catalogue: Catalogue) -> dict[str, Message]:
    """Every message the enrolments can lead to, by key as the gateway logs it."""
    by_entry: dict[str, list[asyncpg.Record]] = defaultdict(list)
    for row in await connection.fetch(_ENROLMENTS):
        by_entry[row["entry_trigger"]].append(row)
    messages: dict[str, Message] = {}
    for entry, rows in by_entry.items():
        step, visit = catalogue.index.get(entry, -1), 0
        while step >= 0 and visit < len(catalogue.triggers):
            visit += 1
            template = compiled(catalogue.step[catalogue.triggers[step]].message_text)
            texts, _ = template.render_batch(
                [row["contact_phone"] for row in rows],
                [row["name"] for row in rows],
                [row["attributes"] for row in rows],
            )
            for row, text in zip(rows, texts, strict=True):
                message = Message(visit, step, row["contact_phone"], _digest(text))
                for generation in range(row["generation"] + 1):
                    messages[str(UUID(bytes=idempotency_key(row["id"], visit, generation)))] = message
            step = int(catalogue.next_index[step])
    return messages


def receipts_of(
    arrivals: Sequence[Arrival],
    messages: Mapping[str, Message],
    device_number: Mapping[str, int],
    catalogue: Catalogue,
    deadline_us: int,
) -> Receipts:
    """Receipts of everything that reached the gateway and kept to the contract, in the order of arrival.

    Args:
        arrivals: the gateway's log.
        messages: by key, from ``read_messages``.
        device_number: by the id the gateway knows; an unknown device becomes number 0, which nobody has.
        catalogue: sequences and steps; a message nobody meant to send stands at a step of no sequence.
        deadline_us: how long after its slot a message may leave: ``Not-After`` minus this is the slot.
    """
    steps = [(catalogue.sequence_of[trigger].name, trigger) for trigger in catalogue.triggers]
    nowhere = Message(0, len(steps), "", "")
    known = [arrival for arrival in arrivals if arrival.answer in ANSWERS]
    attempts: Counter[str] = Counter()
    rows = np.zeros(len(known), RECEIPT)
    for row, arrival in zip(rows, known, strict=True):
        attempts[arrival.key] += 1
        message = messages.get(arrival.key, nowhere)
        if (message.to, message.text_sha256) != (arrival.to, arrival.text_sha256):
            message = nowhere
        row["slot_us"] = arrival.not_after_us - deadline_us
        row["arrived_us"] = round(arrival.arrived_at * 1e6)
        row["device"] = device_number.get(arrival.device_id, 0)
        row["step"], row["visit"], row["attempt"] = message.step, message.visit, attempts[arrival.key]
        row["phone"], row["key"] = arrival.to.encode(), UUID(arrival.key).bytes
        row["body"] = int(arrival.text_sha256[:8], 16)
        row["answer"] = int(ANSWERS[arrival.answer])
    return Receipts(rows, [*steps, _NOWHERE])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
