"""The world a seed draws: settings, devices, sequences, leads. Small, fast-lived and short of everything."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple
from zoneinfo import ZoneInfo

from dispatcher.config import Settings
from dispatcher.core.goals import Goal
from dispatcher.core.graph import Reentry, SenderPolicy, Step
from dispatcher.core.moments import from_datetime, to_datetime
from dispatcher.core.windows import Window
from simulate.prove.dice import Dice

START_US: Final = from_datetime(datetime(2026, 1, 5, 23, 30, tzinfo=UTC))
"""Shortly before a new day: the ledger's partitions change on the way."""

TEXTS: Final = (
    "Hello {{ name | default('there') }}, welcome.",
    "{{ name | default('friend') }}, day two from {{ city | default('here') }}.",
    "Last one.",
    "Well done{% if name %}, {{ name }}{% endif %}.",
)
FOR_EVERYBODY: Final = TEXTS[:3]
"""The last one says nothing to a lead without a name: such a message is rejected."""
REPLIES: Final = ("STOP", "Stop!", "berhenti", "Please don't stop", "Thanks", "👋")
"""What leads write back; the first three end everything."""
NAMES: Final = (None, "Ann", "Bo", "Chloé")
TOKENS: Final = ("fit", "fit_2", "fitness", "outfit", "gym")
"""Tokens that are parts of each other: nothing may match by substring."""
GROUPS: Final = ("north", "south")
ZONES: Final = ("Asia/Kuala_Lumpur", "Europe/Berlin", "Asia/Singapore", "Asia/Kathmandu", "Nowhere/Land")
"""Of windows the first two; of leads also one with the same clock, one a quarter of an hour off, and none at all."""


@dataclass(frozen=True, slots=True)
class DevicePlan:
    """One device."""

    quota_per_hour: int
    quota_per_day: int
    in_flight_max: int
    min_gap_s: float
    idempotent: bool
    shard: int
    group: str | None = None


@dataclass(frozen=True, slots=True)
class GroupPlan:
    """Devices that share a limit; None: there is none."""

    name: str
    quota_per_hour: int | None
    quota_per_day: int | None

    @property
    def most_per_day(self) -> int:
        """What it can send in a day."""
        return min(limit for limit in (self.quota_per_day, 24 * (self.quota_per_hour or 10**6)) if limit is not None)


@dataclass(frozen=True, slots=True)
class SequencePlan:
    """One sequence; its entry's trigger is a token that leads carry."""

    name: str
    steps: tuple[Step, ...]
    reentry: Reentry
    reentry_interval_h: float | None
    sender_policy: SenderPolicy
    requires_opt_in: bool
    exit_on_reply: bool
    send_window: Window | None
    max_lateness_h: float | None
    """What is later is skipped: to shift it would take a day."""
    goal: Goal | None


@dataclass(frozen=True, slots=True)
class LeadPlan:
    """One lead."""

    at_s: float
    """When it is brought in."""
    phone: str
    name: str | None
    trigger: str
    home: int | None
    """The number of a device of its own."""
    opted_in: bool
    time_zone: str | None


class _Own(NamedTuple):
    """Leads with a device of their own."""

    devices: int
    """It is one of the first so many; 0: all leads are there from the beginning."""
    share: float
    """Of the leads."""


@dataclass(frozen=True, slots=True)
class World:
    """Everything a seed draws besides the faults."""

    settings: Settings
    shards: int
    devices: tuple[DevicePlan, ...]
    groups: tuple[GroupPlan, ...]
    sequences: tuple[SequencePlan, ...]
    leads: tuple[LeadPlan, ...]
    faults_end_s: float
    """From here on nothing fails any more: everything has to drain."""
    saturated: bool
    """Whether there is more to send than the devices can: then they have to be used to the full."""
    texts: tuple[str, ...]
    """What messages say."""
    gateway_forgets_s: float
    """How long gateways remember keys."""
    check_not_after: bool
    """Whether gateways refuse what comes after its deadline."""


def draw(seed: int) -> World:
    """The world of ``seed``."""
    dice = Dice(seed, "world")
    saturated = dice.chance(0.06)
    settings = _settings(dice.of("settings"), saturated)
    shards = dice.whole(1, 2) if saturated else dice.whole(1, 3)
    hour_s = settings.hour_s
    devices = tuple(
        _device(dice.of("device", n), n, shards, hour_s, saturated) for n in range(shards * dice.whole(1, 2) + 1)
    )
    groups: tuple[GroupPlan, ...] = ()
    if not saturated and dice.of("groups").chance(0.3):
        groups = tuple(_group(dice.of("group", name), name) for name in GROUPS[: dice.of("groups", 1).whole(1, 2)])
        names = (*(group.name for group in groups), groups[0].name, None)
        devices = tuple(replace(device, group=dice.of("member", n).pick(names)) for n, device in enumerate(devices))
    texts = FOR_EVERYBODY if saturated else TEXTS
    sequences = tuple(_sequence(dice.of("sequence", n), n, texts, saturated) for n in range(dice.whole(1, 3)))
    faults_end_s = hour_s * dice.between(3, 8)
    if not saturated and dice.of("windows").chance(0.3):
        sequences = tuple(
            replace(each, send_window=_window(dice.of("window", n), faults_end_s)) for n, each in enumerate(sequences)
        )
    if not saturated and dice.of("late").chance(0.15):
        sequences = tuple(
            replace(each, max_lateness_h=dice.of("late", n).between(0.3, 2)) for n, each in enumerate(sequences)
        )
    if not saturated and dice.of("goals").chance(0.2):
        goals = [Goal(dice.of("goal", n).pick([t for t in TOKENS if t != TOKENS[n]])) for n in range(len(sequences))]
        sequences = tuple(replace(each, goal=goal) for each, goal in zip(sequences, goals, strict=True))
    leads = dice.whole(60, 90) if saturated else dice.whole(6, 26)
    # Where most leads share a device there is more for it to send than it can, as after an import in the field.
    own = _Own(0, 0.0) if saturated else dice.of("own").pick((_Own(len(devices), 0.2), _Own(2, 0.8)))
    entries = [sequence.steps[0].trigger for sequence in sequences]
    return World(
        settings=settings,
        shards=shards,
        devices=devices,
        groups=groups,
        sequences=sequences,
        leads=tuple(_lead(dice.of("lead", n), n, entries, own, faults_end_s) for n in range(leads)),
        faults_end_s=faults_end_s,
        saturated=saturated,
        texts=texts,
        gateway_forgets_s=settings.key_retention_s,
        check_not_after=dice.chance(0.5),
    )


def _settings(dice: Dice, saturated: bool) -> Settings:
    deadline_s, skew_s = dice.between(2, 6), dice.between(0.2, 1.0)
    heartbeat_s = dice.between(4, 8)
    lease_s = deadline_s * dice.between(1.5, 5)
    hour_s = dice.pick((60.0, 90.0, 120.0))
    drawn: dict[str, Any] = {
        "hour_s": hour_s,
        "deadline_s": deadline_s,
        "skew_s": skew_s,
        "guard_s": deadline_s + 2 * skew_s + dice.pick((0.0, 0.0, dice.between(0, 4))),
        "lease_s": lease_s,
        "heartbeat_s": heartbeat_s,
        "trust_s": heartbeat_s * 2.8,
        "leader_s": heartbeat_s * 3,
        "hung_s": heartbeat_s * dice.between(1.5, 3),
        "horizon_s": dice.between(1, lease_s / 2),
        "cycle_s": dice.between(10, 30),
        "look_s": dice.between(4, 12),
        "hear_s": dice.between(1, 4),
        "complete_rows": dice.pick((1, 3, 5000)),
        "complete_wait_s": dice.pick((0.0, 0.2, 2.0)),
        "enrol_rows": dice.pick((1, 2, 5, 100)),
        "bulk_rows": dice.pick((1, 3, 10, 1000)),
        "retry_limit": dice.whole(1, 5),
        "retry_base_s": dice.between(1, 10),
        "retry_cap_s": dice.between(10, 40),
        "resend_limit": dice.whole(0, 5),
        "breaker_failures": 0 if saturated else dice.of("breaker").pick((0, 1, 2, 4)),
        "breaker_base_s": dice.of("breaker pause").between(1, 10),
        "breaker_cap_s": dice.of("breaker cap").between(10, 40),
        "key_retention_s": hour_s * (200 if saturated else dice.pick((6, 24, 200))),
    }
    defaults = {name: field.default for name, field in Settings.model_fields.items()}
    # Constructed, not loaded: neither environment nor files have a say in what a seed means.
    return Settings.model_construct(**(defaults | drawn))


def _device(dice: Dice, number: int, shards: int, hour_s: float, saturated: bool) -> DevicePlan:
    per_hour = dice.whole(2, 7)
    return DevicePlan(
        quota_per_hour=per_hour,
        quota_per_day=per_hour * (dice.whole(8, 24) if saturated else dice.whole(3, 10)),
        in_flight_max=50 if saturated else dice.whole(1, 6),
        min_gap_s=dice.pick((0.0, 1.0, hour_s / 20)),
        idempotent=dice.chance(0.7),
        shard=number % shards,
    )


def _group(dice: Dice, name: str) -> GroupPlan:
    per_hour = dice.whole(2, 8)
    hourly, daily = dice.pick(((True, True), (True, False), (False, True)))
    return GroupPlan(name, per_hour if hourly else None, per_hour * dice.whole(3, 8) if daily else None)


def _sequence(dice: Dice, number: int, texts: tuple[str, ...], saturated: bool) -> SequencePlan:
    triggers = [TOKENS[number], *(f"{TOKENS[number]}_day{day}" for day in range(2, dice.whole(1, 4) + 1))]
    steps = [
        Step(
            trigger=trigger,
            message_text=dice.pick(texts),
            next_trigger=following,
            delay_h=dice.whole(1, 3),
            day_number=day,
            is_entry=day == 1,
            media_url=dice.pick((None, None, "https://media.example/a.jpg")),
        )
        for day, (trigger, following) in enumerate(zip(triggers, [*triggers[1:], None], strict=True), 1)
    ]
    reentry: Reentry = dice.pick(("after_exit", "after_exit", "never", "after_interval"))
    return SequencePlan(
        name=f"Sequence {number + 1}",
        steps=tuple(steps),
        reentry=reentry,
        reentry_interval_h=dice.between(0.5, 4) if reentry == "after_interval" else None,
        sender_policy=dice.pick(("prefer", "prefer", "strict", "any")),
        requires_opt_in=not saturated and dice.chance(0.2),
        exit_on_reply=dice.of("exit").chance(0.5),
        send_window=None,
        max_lateness_h=None,
        goal=None,
    )


def _window(dice: Dice, faults_end_s: float) -> Window | None:
    """Most are shut for a while on the way, by the clocks of some leads: a day would be too long to wait for."""
    if dice.chance(0.2):
        return None
    zone = dice.pick(ZONES[:2])
    closes_s = round(dice.between(0, 0.8 * faults_end_s))
    opens_s = closes_s + dice.whole(15, 180)
    local = to_datetime(START_US).astimezone(ZoneInfo(zone))
    opens, closes = (local + timedelta(seconds=at_s) for at_s in (opens_s, closes_s))
    return Window(opens.time(), closes.time(), zone)


def _lead(dice: Dice, number: int, entries: list[str], own: _Own, faults_end_s: float) -> LeadPlan:
    wanted = [token for token in TOKENS if dice.chance(0.25)]
    trigger = ",".join([dice.pick(entries), *wanted])
    return LeadPlan(
        at_s=dice.between(0, 0.8 * faults_end_s) * dice.pick((0, 1)) if own.devices else 0.0,
        phone=f"9990000{number:05d}",
        name=dice.pick(NAMES),
        trigger=trigger,
        home=dice.whole(1, own.devices) if dice.chance(own.share) else None,
        opted_in=dice.chance(0.6),
        time_zone=dice.of("zone").pick((None, *ZONES)),
    )
