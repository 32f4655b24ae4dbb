"""One class a table, columns under the engine's names: business times are microseconds, None is NULL."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple
from uuid import UUID

LIVE: Final = ("active", "in_doubt")
"""The statuses of which a lead has one row a sequence at most."""


ALIKE: Final = 200
"""Leads of one change, at most."""


class BreachError(RuntimeError):
    """A rule of the schema was about to be broken: a bug of whoever wrote.

    Args:
        rule: which one, with the row.
    """

    def __init__(self, rule: str) -> None:
        super().__init__(rule)


@dataclass(slots=True)
class Device:
    """``devices``."""

    number: int
    id: UUID
    name: str
    quota_per_hour: int = 80
    quota_per_day: int = 800
    in_flight_max: int = 50
    min_gap_s: float = 5.0
    shard_id: int | None = None
    health: str = "available"
    health_cause: str | None = None
    gateway_url: str | None = None
    gateway_token: str | None = None
    gateway_idempotent: bool = True


class Quota(NamedTuple):
    """``device_quota_history``: what held from a moment on."""

    number: int
    valid_from_us: int
    per_hour: int
    per_day: int


@dataclass(slots=True)
class Lead:
    """``leads``."""

    id: int
    phone: str
    name: str | None = None
    trigger: str | None = None
    attributes: dict[str, Any] = field(default_factory=dict)
    time_zone: str | None = None
    home_device_id: UUID | None = None
    opted_in_us: int | None = None
    opted_out_us: int | None = None


class Change(NamedTuple):
    """``lead_changes``: what waits for the enroller."""

    leads: tuple[int, ...]
    old_trigger: str | None = None
    """None, as the new one, where nothing was taken away."""
    new_trigger: str | None = None
    opted_out: bool = False


@dataclass(slots=True)
class Enrolment:
    """``sequence_contacts``."""

    id: int
    sequence: int
    lead: int
    phone: str
    entry: str
    step: str
    due_us: int | None
    """None once the last step is accepted, until completion."""
    enrolled_us: int
    home: UUID | None
    status: str = "active"
    visit: int = 1
    generation: int = 0
    attempt: int = 0
    retries: int = 0
    finished_us: int | None = None
    device: Device | None = None
    """Leased: the device; the next four columns stand and fall with it."""
    slot_us: int = 0
    deadline_us: int = 0
    token: int | None = None
    epoch: int = 0
    pinned: bool = False
    held: bool = False
    trigger_kept: bool = False
    resend_text: str | None = None
    resend_media_url: str | None = None
    last_error: str | None = None
    stop_reason: str | None = None

    @property
    def live(self) -> bool:
        """Whether the lead cannot have another one in the sequence."""
        return self.status in LIVE

    @property
    def waiting(self) -> bool:
        """Active without a lease; without a due moment too, when only the completion is missing."""
        return self.status == "active" and self.device is None


@dataclass(slots=True)
class Attempt:
    """``message_ledger``."""

    enrolment: int
    sequence: int
    lead: int
    epoch: int
    due_us: int
    slot_us: int
    deadline_us: int
    accepted_us: int | None
    device: UUID
    key: bytes
    visit: int
    generation: int
    attempt: int
    outcome: str
    step: str
    message_id: str | None = None
    error: str | None = None


class Handover(NamedTuple):
    """``handovers``: what left under one claim, and what it said."""

    token: int
    epoch: int
    handed_us: int
    said: dict[int, tuple[str, str | None]]
    """Text and media URL by enrolment, of those that left."""


@dataclass(slots=True)
class OpenEntry:
    """``open_entries``: an entry step that leads may be enrolled by, and how far they were searched for it."""

    trigger: str
    sequence: int
    opened_us: int
    scanned_to: int = 0
    scan_done: bool = False


@dataclass(slots=True)
class Epoch:
    """``epochs``."""

    epoch: int
    holder: str


@dataclass(slots=True)
class Heartbeat:
    """``heartbeats``."""

    holder: str
    expires_us: float
