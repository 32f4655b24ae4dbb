"""One class a table, columns under the engine's names: business times are microseconds, None is NULL."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple
from uuid import UUID

from dispatcher.core.fleet import GatewayKind

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
    group_name: str | None = None
    gateway_kind: GatewayKind = "http"
    gateway_phone_number_id: str | None = None
    gateway_account: str | None = None
    account_rests_until_us: int | None = None
    paused: bool = False
    breaker_trips: int = 0
    probe_us: int | None = None
    ramp_per_day: int | None = None
    ramp_growth: float = 1.5
    ramp_day: int | None = None
    """In days since 1970."""

    @property
    def day_quota(self) -> int:
        """What holds at present: the quota, or what the ramp has come to."""
        return self.quota_per_day if self.ramp_per_day is None else min(self.quota_per_day, self.ramp_per_day)

    @property
    def trips(self) -> int:
        """How often in a row the breaker has opened; 0 while it is closed."""
        failing = self.health == "quarantined" and self.health_cause == "failures" and self.probe_us is not None
        return self.breaker_trips if failing and not self.paused else 0


@dataclass(slots=True)
class DeviceGroup:
    """``device_groups``."""

    name: str
    quota_per_hour: int | None = None
    quota_per_day: int | None = None


class GroupQuota(NamedTuple):
    """``device_group_quota_history``: what held for a group from a moment on."""

    name: str
    valid_from_us: int
    per_hour: int | None
    per_day: int | None


class Membership(NamedTuple):
    """``device_group_history``: which group a device was in from a moment on."""

    number: int
    id: UUID
    valid_from_us: int
    name: str | None


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


class Reply(NamedTuple):
    """``replies``: what a lead wrote back."""

    phone: str
    lead: int | None
    """None where no lead has the phone."""
    text: str
    received_us: int
    message_id: str | None
    device: UUID | None


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


class LateStep(NamedTuple):
    """``late_steps``: what was not sent when it was due."""

    enrolment: int
    sequence: int
    lead: int
    visit: int
    generation: int
    step: str
    due_us: int
    at_us: int
    shifted_us: int | None
    """None: skipped."""


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
