"""Who a chaos run is about, and how far their messages are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import asyncpg

from dispatcher.core.catalogue import Catalogue
from dispatcher.intake.sequences import apply
from dispatcher.store.connect import connect
from dispatcher.store.migrate import migrate
from dispatcher.store.registry import read_whole_catalogue
from dispatcher.store.stamp import stamp
from simulate.chaos.plan import SETTINGS, ChaosPlan
from simulate.population import DeviceGroup, create_devices, create_leads, niche

_LOOK_S: Final = 1.0
_EXPECTED: Final = """
SELECT t.token, count(*) FROM leads l CROSS JOIN LATERAL dripline_tokens(l.trigger) t(token)
JOIN open_entries e ON e.trigger = t.token GROUP BY 1
"""
_STANDING: Final = """
SELECT entry_trigger, status = 'active' AS open, count(*) AS enrolments, sum(visit - 1)::bigint AS visits
FROM sequence_contacts GROUP BY 1, 2
"""


@dataclass(slots=True)
class Progress:
    """How far the messages are, as the database says."""

    lengths: dict[str, int]
    """Steps by entry trigger."""
    messages: int
    """To be sent in all, if everything goes well."""
    enrolments: int
    done: int = 0
    """Messages sent, and those that will never be."""
    ended: int = 0
    """Enrolments nothing is under way for any more."""

    @property
    def share(self) -> float:
        """Of the messages that are done."""
        return self.done / max(self.messages, 1)

    @property
    def drained(self) -> bool:
        """Whether nothing is under way any more."""
        return self.ended == self.enrolments

    async def look(self, url: str) -> None:
        """Bring it up to date.

        Raises:
            StoreError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError: the database is down.
        """
        connection = await connect(url, application_name="dripline watch")
        try:
            rows = await connection.fetch(_STANDING)
        finally:
            await connection.close(timeout=_LOOK_S)
        self.done = sum(
            row["visits"] if row["open"] else row["enrolments"] * self.lengths[row["entry_trigger"]] for row in rows
        )
        self.ended = sum(row["enrolments"] for row in rows if not row["open"])


async def populate(plan: ChaosPlan, url: str, gateway_url: str) -> None:
    """Everything but the leads, who come once the engine is ready, in an empty database."""
    connection = await connect(url, application_name="dripline population")
    try:
        await migrate(connection)
        await stamp(connection, "live", hour_s=SETTINGS["hour_s"])
        await apply(connection, plan.brisk)
        await create_devices(connection, DeviceGroup(plan.devices, plan.quota_per_hour, plan.quota_per_day))
        await connection.execute(
            "UPDATE devices SET gateway_url = $1, gateway_idempotent = $2, min_gap_s = $3",
            gateway_url, plan.idempotent, plan.min_gap_s,
        )  # fmt: skip
    finally:
        await connection.close()


async def bring_leads(plan: ChaosPlan, url: str) -> Progress:
    """Create the leads and tag them, a statement a niche: their enrolment is what sets everything going."""
    connection = await connect(url, application_name="dripline population")
    try:
        await create_leads(connection, plan.leads, plan.entries, plan.seed, tagged=False)
        await _tag(connection, plan.entries)
        catalogue = await read_whole_catalogue(connection)
        carried = {row["token"]: row["count"] for row in await connection.fetch(_EXPECTED)}
    finally:
        await connection.close()
    lengths = {entry: _length(catalogue, entry) for entry in carried}
    messages = sum(lengths[entry] * leads for entry, leads in carried.items())
    return Progress(lengths, messages, sum(carried.values()))


async def _tag(connection: asyncpg.Connection, entries: list[str]) -> None:
    """As people do it: all leads of a niche at once, and every tenth of them for another sequence too."""
    for entry, other in zip(entries, [*entries[1:], entries[0]], strict=True):
        await connection.execute("UPDATE leads SET trigger = $1 WHERE niche = $2", entry, niche(entry))
        if other != entry:
            both = f"{entry},{other}"
            await connection.execute(
                "UPDATE leads SET trigger = $1 WHERE niche = $2 AND id % 10 = 0", both, niche(entry)
            )


def _length(catalogue: Catalogue, entry: str) -> int:
    length, step = 0, catalogue.index[entry]
    while step >= 0:
        length, step = length + 1, int(catalogue.next_index[step])
    return length
