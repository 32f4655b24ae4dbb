"""What the checker judges by: the ledger and the seed's tables, read as columns in one snapshot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import asyncpg
import numpy as np
from numpy.typing import NDArray

from dispatcher.core.catalogue import Catalogue
from dispatcher.store.columns import moments
from dispatcher.store.registry import read_whole_catalogue

LEDGER: Final = np.dtype(
    [
        ("key", "V16"),
        ("enrolment", ">i8"),
        ("due", ">i8"),
        ("reserved", ">i8"),
        ("accepted", ">i8"),
        ("visit", ">i4"),
        ("generation", ">i4"),
        ("attempt", ">i4"),
        ("device", ">i4"),
        ("outcome", ">i4"),
    ]
)
_LEDGER_SQL: Final = """
SELECT string_agg(uuid_send(l.idempotency_key) || int8send(l.enrolment_id) || timestamptz_send(l.due_at)
    || timestamptz_send(l.reserved_at) || timestamptz_send(coalesce(l.accepted_at, l.reserved_at))
    || int4send(l.visit) || int4send(l.generation) || int4send(l.attempt) || int4send(coalesce(d.number, 0))
    || int4send(array_position($1::text[], l.outcome)), '')
FROM message_ledger l LEFT JOIN devices d ON d.id = l.device_id
WHERE l.reserved_at >= $2 AND l.reserved_at < $3
"""
ENROLMENT: Final = np.dtype(
    [
        ("id", ">i8"),
        ("lead", ">i8"),
        ("enrolled", ">i8"),
        ("due", ">i8"),  # NO_DUE when nothing is left to send
        ("entry", ">i4"),  # 1 + place in Evidence.triggers; 0: unknown
        ("step", ">i4"),  # the current one, coded as entry
        ("status", ">i4"),  # 1 + place in STATUSES
        ("visit", ">i4"),
        ("generation", ">i4"),
        ("device", ">i4"),  # the home device's number; 0: none
        ("leased", ">i4"),
        ("carries", ">i4"),  # whether the lead carries the entry trigger
    ]
)
QUOTA: Final = np.dtype([("device", "<i4"), ("from_us", "<i8"), ("per_hour", "<i4"), ("per_day", "<i4")])
MEMBERSHIP: Final = np.dtype([("device", "<i4"), ("group", "<i4"), ("from_us", "<i8")])
UNLIMITED: Final = 2**31 - 1
"""A group's quota where it has none."""
NO_DUE: Final = -(2**63)
"""``due`` of an enrolment that has nothing left to send, as PostgreSQL sends ``-infinity``."""
ALWAYS_US: Final = -(2**62)
"""Before every moment there is."""
STATUSES: Final = ("active", "completed", "failed", "stopped", "in_doubt")
_ENROLMENT_SQL: Final = """
SELECT string_agg(int8send(c.id) || int8send(c.lead_id) || timestamptz_send(c.enrolled_at)
    || timestamptz_send(coalesce(c.next_trigger_time, '-infinity'))
    || int4send(coalesce(array_position($1::text[], c.entry_trigger::text), 0))
    || int4send(coalesce(array_position($1::text[], c.current_trigger::text), 0))
    || int4send(array_position($2::text[], c.status)) || int4send(c.visit) || int4send(c.generation)
    || int4send(coalesce(d.number, 0)) || int4send((c.lease_token IS NOT NULL)::integer)
    || int4send(CASE WHEN l.trigger IS NULL THEN 0 WHEN l.trigger = c.entry_trigger THEN 1
                ELSE EXISTS (SELECT FROM dripline_tokens(l.trigger) t(token) WHERE t.token = c.entry_trigger)::integer
                END), '')
FROM sequence_contacts c
LEFT JOIN leads l ON l.id = c.lead_id
LEFT JOIN devices d ON d.id = c.home_device_id
WHERE c.id >= $3 AND c.id < $4
"""
_SKIPPED_SQL: Final = """
SELECT enrolment_id, visit, generation, step_trigger, dripline_us(due_at), dripline_us(at)
FROM late_steps WHERE shifted_to IS NULL
"""
_MISSED_SQL: Final = """
SELECT count(*) FROM leads l
WHERE l.trigger <> '' AND l.opted_out_at IS NULL
  AND l.id NOT IN (SELECT unnest(leads) FROM lead_changes)
  AND EXISTS (SELECT FROM dripline_tokens(l.trigger) t(token) JOIN open_entries e ON e.trigger = t.token
              JOIN sequences s ON s.id = e.sequence_id AND (NOT s.requires_opt_in OR l.opted_in_at IS NOT NULL)
              WHERE NOT EXISTS (SELECT FROM sequence_contacts c WHERE c.lead_id = l.id
                                AND c.sequence_id = e.sequence_id AND c.status IN ('active', 'in_doubt'))
                AND NOT EXISTS (SELECT FROM sequence_contacts c WHERE c.lead_id = l.id
                                AND c.sequence_id = e.sequence_id AND c.status NOT IN ('active', 'in_doubt'))
                AND NOT EXISTS (SELECT FROM archived_enrolments c WHERE c.lead_id = l.id
                                AND c.sequence_id = e.sequence_id))
"""
_BY_HAND_SQL: Final = """
SELECT DISTINCT l.enrolment_id, l.visit, l.generation
FROM operator_log o
JOIN message_ledger l ON l.enrolment_id = substr(o.subject, length('enrolment ') + 1)::bigint
                     AND l.visit = (o.detail->>'visit')::integer AND o.detail->'attempts' @> to_jsonb(l.attempt)
WHERE o.action = 'in-doubt resolve'
"""
_REPLIED_SQL: Final = """
SELECT c.id, dripline_us(min(r.received_at)) AS at
FROM replies r JOIN sequence_contacts c ON c.lead_id = r.lead_id AND c.enrolled_at <= r.received_at
JOIN sequences s ON s.id = c.sequence_id AND s.exit_on_reply
GROUP BY c.id
"""
_QUOTAS_SQL: Final = """
SELECT d.number, dripline_us(h.valid_from), h.quota_per_hour, h.quota_per_day
FROM devices d JOIN device_quota_history h ON h.device_id = d.id
"""
_GROUP_QUOTAS_SQL: Final = """
SELECT g.name, dripline_us(h.valid_from), coalesce(h.quota_per_hour, 2147483647), coalesce(h.quota_per_day, 2147483647)
FROM device_groups g JOIN device_group_quota_history h ON h.group_name = g.name ORDER BY g.name, h.valid_from
"""
_MEMBERSHIPS_SQL: Final = """
SELECT number, group_name, dripline_us(valid_from) FROM device_group_history ORDER BY id
"""
_READY_SQL: Final = """
SELECT number FROM devices
WHERE health = 'available' AND NOT paused AND NOT (SELECT paused FROM fleet)
  AND shard_id IS NOT NULL AND least(quota_per_hour, quota_per_day, in_flight_max) > 0
"""
_RESTING_SQL: Final = "SELECT lead_id FROM paused_leads WHERE until > dripline_now()"
_CHUNK: Final = 500_000
_2000_US: Final = 946_684_800_000_000


class Skip(NamedTuple):
    """A step that was passed over."""

    enrolment: int
    visit: int
    generation: int
    step: str
    due_us: int
    at_us: int


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything the checker may look at besides the receipts. The defaults are those of a rehearsal.

    What people did is the tester's own record, in the gateway's clock; spans are half-open, [from, to).
    """

    ledger: NDArray[np.void]
    """``LEDGER`` records; moments count from 2000, see ``stamps``."""
    enrolments: NDArray[np.void]
    """``ENROLMENT`` records."""
    catalogue: Catalogue
    """The one in force at the end."""
    outcomes: tuple[str, ...]
    """Outcome labels: ``ledger["outcome"]`` counts from 1."""
    quotas: NDArray[np.void]
    """``QUOTA`` records: which limits held for a device from when on, until its next record."""
    opted_out: Mapping[str, int]
    """Opt-out moment by phone, of those that are still out."""
    missed: int
    """Leads that carry an open entry's trigger and never were enrolled by it."""
    devices: Mapping[int, tuple[str, str]]
    """Id and name by number."""
    hour_s: float
    groups: tuple[str, ...] = ()
    """Names of groups of devices that share a limit; they are numbered from 1."""
    group_quotas: NDArray[np.void] = field(default_factory=lambda: np.zeros(0, QUOTA))
    """``QUOTA`` records with groups for devices; ``UNLIMITED`` where one has no limit."""
    memberships: NDArray[np.void] = field(default_factory=lambda: np.zeros(0, MEMBERSHIP))
    """``MEMBERSHIP`` records: which group a device was in from when on, until its next record; 0: none."""
    earlier: tuple[Catalogue, ...] = ()
    """Catalogues that held before: steps, delays and windows are judged by whatever ever held."""
    time_zones: Mapping[str, Sequence[tuple[int, str | None]]] = field(default_factory=dict)
    """By phone, since when a lead has had which one, in order; not read when no clock of theirs has a say."""
    replied: Mapping[int, int] = field(default_factory=dict)
    """By enrolment, since when a reply has ended it."""
    paused: Mapping[int, Sequence[tuple[int, int]]] = field(default_factory=dict)
    """By sequence id, when it was switched off."""
    fleet_paused: Sequence[tuple[int, int]] = ()
    """When nothing was to be handed over at all."""
    devices_paused: Mapping[int, Sequence[tuple[int, int]]] = field(default_factory=dict)
    """By number, when a device was paused."""
    leads_paused: Mapping[str, Sequence[tuple[int, int]]] = field(default_factory=dict)
    """By phone, when a lead was paused."""
    resting: frozenset[int] = frozenset()
    """Ids of the leads that are paused at the end: what is due of them is not stuck."""
    skipped: tuple[Skip, ...] = ()
    """Steps that were passed over because they were too late."""
    shifted: int = 0
    """How many times a step was moved to a later day because it was too late."""
    untriggered: Mapping[tuple[int, str], Sequence[tuple[int, int]]] = field(default_factory=dict)
    """By lead id and entry trigger, from when the engine had seen that it was taken off by hand, until it came back."""
    reached: Mapping[tuple[int, int], Sequence[int]] = field(default_factory=dict)
    """By lead and sequence id, when the engine had seen that the goal was reached."""
    retriggered: frozenset[tuple[int, str]] = frozenset()
    """Lead ids and entry triggers that were put on again by hand: whether the lead carries it proves nothing."""
    stripped: int = 0
    """Triggers gone from leads though nobody took them off and no enrolment by them has completed."""
    by_hand: frozenset[tuple[int, int, int]] = frozenset()
    """(enrolment, visit, generation) of the visits that a person has settled: their word, not the gateway's."""
    refresh_us: int = 0
    """How long a changed quota may stay unnoticed: offers are held for a moment."""
    look_us: int = 0
    """The longest time from the beginning of a last look to the arrival; 0: what people do takes effect at slots."""
    skew_us: int = 0
    """How far the gateway's clock and business time may differ."""
    drained: bool = True
    """Whether the run came to rest: no lease is under way."""
    now_us: int = 0
    """Business time at the end."""
    stuck_us: int | None = None
    """What has been due for so long on an idle device is stuck; None: not judged."""
    ready: frozenset[int] = frozenset()
    """Numbers of the devices that could send at the end: available, with an owner and a quota."""
    health: Mapping[int, str] = field(default_factory=dict)
    """By number, at the end: available, draining, quarantined or offline."""

    def ledger_us(self, column: str) -> NDArray[np.int64]:
        """A moment column of the ledger as microseconds since 1970."""
        return moments(np.ascontiguousarray(self.ledger[column]).tobytes())

    @property
    def triggers(self) -> list[str]:
        """The steps of every catalogue that held, those of the newest first."""
        return known_triggers(self.catalogue, self.earlier)


def known_triggers(catalogue: Catalogue, earlier: Sequence[Catalogue] = ()) -> list[str]:
    """The steps' triggers that ``ENROLMENT`` codes count by."""
    return list(dict.fromkeys(trigger for each in (catalogue, *earlier) for trigger in each.triggers))


def go_by_clocks(*catalogues: Catalogue) -> bool:
    """Whether in one of these versions the clocks of leads have a say in when messages leave."""
    return any(catalogue.by_clock.any() for catalogue in catalogues)


def stamps(moments_us: NDArray[np.int64]) -> NDArray[np.int64]:
    """Microseconds since 1970 as ``LEDGER`` and ``ENROLMENT`` hold them."""
    return moments_us - _2000_US


async def collect(
    connection: asyncpg.Connection, outcomes: tuple[str, ...], earlier: tuple[Catalogue, ...] = ()
) -> Evidence:
    """Read the evidence; what only the tester knows is left at its defaults."""
    # Autovacuum may not have looked at tables that were filled within minutes.
    await connection.execute("ANALYZE leads, sequence_contacts, message_ledger")
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        catalogue = await read_whole_catalogue(connection)
        quotas = await connection.fetch(_QUOTAS_SQL)
        group_quotas = await connection.fetch(_GROUP_QUOTAS_SQL)
        groups = {name: number for number, name in enumerate(dict.fromkeys(row[0] for row in group_quotas), 1)}
        memberships = await connection.fetch(_MEMBERSHIPS_SQL)
        devices = await connection.fetch("SELECT number, id::text, name, health FROM devices")
        opted_out = await connection.fetch(
            "SELECT phone, dripline_us(opted_out_at) AS at FROM leads WHERE opted_out_at IS NOT NULL"
        )
        return Evidence(
            ledger=await _ledger(connection, outcomes),
            enrolments=await _enrolments(connection, known_triggers(catalogue, earlier)),
            catalogue=catalogue,
            outcomes=outcomes,
            quotas=np.array([tuple(row) for row in quotas], QUOTA),
            groups=tuple(groups),
            group_quotas=np.array([(groups[name], *held) for name, *held in group_quotas], QUOTA),
            memberships=np.array([(number, groups.get(name, 0), at) for number, name, at in memberships], MEMBERSHIP),
            opted_out={row["phone"]: row["at"] for row in opted_out},
            replied={row["id"]: row["at"] for row in await connection.fetch(_REPLIED_SQL)},
            time_zones=await _time_zones(connection) if go_by_clocks(catalogue, *earlier) else {},
            missed=await connection.fetchval(_MISSED_SQL),
            devices={row["number"]: (row["id"], row["name"]) for row in devices},
            health={row["number"]: row["health"] for row in devices},
            hour_s=await connection.fetchval("SELECT hour_s FROM dripline_database"),
            earlier=earlier,
            by_hand=frozenset(tuple(row) for row in await connection.fetch(_BY_HAND_SQL)),
            now_us=await connection.fetchval("SELECT dripline_us(dripline_now())"),
            ready=frozenset(row["number"] for row in await connection.fetch(_READY_SQL)),
            resting=frozenset(row["lead_id"] for row in await connection.fetch(_RESTING_SQL)),
            skipped=tuple(Skip(*row) for row in await connection.fetch(_SKIPPED_SQL)),
            shifted=await connection.fetchval("SELECT count(shifted_to) FROM late_steps"),
        )


async def _time_zones(connection: asyncpg.Connection) -> dict[str, Sequence[tuple[int, str | None]]]:
    rows = await connection.fetch("SELECT phone, time_zone FROM leads WHERE time_zone <> ''")
    return {row["phone"]: ((ALWAYS_US, row["time_zone"]),) for row in rows}


async def _ledger(connection: asyncpg.Connection, outcomes: tuple[str, ...]) -> NDArray[np.void]:
    span = await connection.fetchrow("SELECT min(reserved_at), max(reserved_at) FROM message_ledger")
    if span is None or span[0] is None:
        return np.zeros(0, LEDGER)
    parts = await connection.fetch(
        "SELECT s, s + interval '6 hours' FROM generate_series($1::timestamptz, $2::timestamptz, interval '6 hours') s",
        *span,
    )
    found = [await connection.fetchval(_LEDGER_SQL, list(outcomes), start, stop) for start, stop in parts]
    return np.frombuffer(b"".join(part for part in found if part), LEDGER)


async def _enrolments(connection: asyncpg.Connection, triggers: list[str]) -> NDArray[np.void]:
    last = await connection.fetchval("SELECT coalesce(max(id), 0) FROM sequence_contacts")
    found: list[Any] = [
        await connection.fetchval(_ENROLMENT_SQL, triggers, list(STATUSES), start, start + _CHUNK)
        for start in range(0, last + 1, _CHUNK)
    ]
    return np.frombuffer(b"".join(part for part in found if part), ENROLMENT)
