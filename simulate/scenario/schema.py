"""Every key of a scenario file. The descriptions are the reference: ``docs/scenarios.md`` repeats them."""

from __future__ import annotations

from datetime import UTC, date, datetime, time
from typing import Annotated, Any, Final, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    model_validator,
)
from pydantic_core import PydanticCustomError

from dispatcher.intake.sequence_file import SequenceEntry
from simulate.pacing import Pacing

START: Final = datetime(2026, 1, 5, tzinfo=UTC)
"""Virtual time starts here unless told otherwise: a Monday."""
LATENCY_MOST_S: Final = 30.0
"""The deadline: what is on its way for longer has been given up."""
Share = Annotated[float, Field(ge=0, le=1)]
Text = Annotated[str, StringConstraints(min_length=1, strip_whitespace=True)]


def wrong(problem: str, *keys: str | int, advice: str = "") -> PydanticCustomError:
    """A mistake that only a look at several keys shows.

    Args:
        problem: what is wrong.
        keys: the way to the key to blame, below the model that raises this.
        advice: what to do about it.
    """
    return PydanticCustomError("scenario", "{problem}", {"problem": problem, "keys": keys, "advice": advice})


def _moment(value: Any) -> Any:
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise wrong(f"a date such as 2026-01-05 or 2026-01-05T09:00:00 belongs here, not {value!r}") from None
    if isinstance(value, datetime):
        return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)
    if isinstance(value, date):
        return datetime.combine(value, time(), UTC)
    raise wrong(f"a date such as 2026-01-05 belongs here, not {value!r}")


def _pacing(value: Any) -> Any:
    if value not in list(Pacing):
        raise wrong(f"{' or '.join(Pacing)} belongs here, not {value!r}")
    return Pacing(value)


class Keys(BaseModel):
    """A mapping of keys to values; unknown ones are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Limits(Keys):
    """What binds a device."""

    quota_per_hour: Annotated[int, Field(ge=1, le=100_000)] = Field(
        default=80, description="messages in any rolling hour"
    )
    quota_per_day: Annotated[int, Field(ge=1, le=100_000)] = Field(
        default=800, description="messages in any rolling 24 hours"
    )
    min_gap_s: Annotated[float, Field(ge=0, le=3600)] = Field(
        default=5.0, description="seconds between two messages; `pacing: even` sets it instead"
    )
    in_flight_max: Annotated[int, Field(ge=1, le=100_000)] = Field(
        default=50, description="messages under way at a time"
    )


class Group(Limits):
    """Devices of one kind."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,39}$")] = Field(
        description="names the devices `<name>-0001` and on; no two groups have the same"
    )
    count: Annotated[int, Field(ge=1, le=1_000_000)] = Field(description="how many")


class Devices(Limits):
    """The fleet: one kind of device, or groups of several kinds."""

    count: Annotated[int, Field(ge=1, le=1_000_000)] = Field(default=3000, description="how many, all of one kind")
    groups: Annotated[list[Group], Field(min_length=1)] | None = Field(
        default=None, description="groups of devices with limits of their own, instead of `count` and limits for all"
    )

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.groups is None:
            return self
        for key in sorted(self.model_fields_set - {"groups"}):
            raise wrong(f"{key} and groups exclude each other", key, advice="give every group its own")
        names = [group.name for group in self.groups]
        for place, name in enumerate(names):
            if name in names[:place]:
                raise wrong(f"two groups are called {name!r}", "groups", place, "name", advice="rename one of them")
        return self


class Mixed(Keys):
    """What some of the leads carry."""

    triggers: Annotated[list[Text], Field(min_length=1)] = Field(
        description="the triggers of such a lead: entry triggers of the sequences"
    )
    weight: Annotated[float, Field(ge=0, le=1e9)] = Field(
        default=1.0, description="how many leads carry them, in proportion to the others' weights"
    )


class Csv(Keys):
    """Leads from a file, read as `dripline import` reads it."""

    file: Text = Field(description="the file, seen from the scenario's folder")
    map: dict[str, str] = Field(default={}, description="column by field, where a column is called otherwise")
    region: Text | None = Field(
        default=None, description="where numbers without a country code are dialled, such as `MY`"
    )
    triggers: list[Text] = Field(
        default=[], description="triggers that every lead gets; left out, the first entry trigger of the sequences"
    )


class Leads(Keys):
    """Who gets messages."""

    count: Annotated[int, Field(ge=0, le=99_999_999)] = Field(default=100_000, description="how many are made up")
    triggers: Annotated[list[Mixed], Field(min_length=1)] | None = Field(
        default=None,
        description="what they carry; left out, one or two entry triggers, and some a label that nobody sends to",
    )
    csv: Csv | None = Field(default=None, description="leads from a file instead of made-up ones")

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.csv is not None:
            for key in sorted(self.model_fields_set - {"csv"}):
                raise wrong(f"{key} and csv exclude each other", key, advice="leave one of them out")
        if self.triggers and not any(mixed.weight for mixed in self.triggers):
            raise wrong("all weights are 0", "triggers", advice="give at least one a weight above 0")
        return self


class Lognormal(Keys):
    """Mostly quick, with a long tail."""

    median_s: Annotated[float, Field(gt=0, le=LATENCY_MOST_S)] = Field(description="half arrive sooner")
    p95_s: Annotated[float, Field(gt=0, le=LATENCY_MOST_S)] = Field(description="95 % arrive sooner")

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        if self.p95_s < self.median_s:
            raise wrong(f"it lies below the median of {self.median_s:g} s", "p95_s")
        return self


class LatencyKeys(Keys):
    """How long after its slot a message arrives at the gateway: one of the three."""

    constant_s: Annotated[float, Field(gt=0, le=LATENCY_MOST_S)] | None = Field(
        default=None, description="always so long"
    )
    uniform_s: (
        Annotated[list[Annotated[float, Field(gt=0, le=LATENCY_MOST_S)]], Field(min_length=2, max_length=2)] | None
    ) = Field(default=None, description="evenly between these two, such as `[0.05, 1.0]`, which is the default")
    lognormal: Lognormal | None = Field(default=None, description="mostly quick, with a long tail, cut off at 30 s")

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        given = sorted(self.model_fields_set)
        if len(given) != 1:
            raise wrong("exactly one of constant_s, uniform_s and lognormal belongs here")
        if self.uniform_s and self.uniform_s[0] > self.uniform_s[1]:
            raise wrong("the first bound is above the second", "uniform_s", advice="write the lower one first")
        return self


class Sender(Keys):
    """What the mock gateway does; shares are of all requests, drawn for each by seed, phone, step and attempt."""

    latency: LatencyKeys | None = Field(default=None, description="how long a message takes to arrive")
    rejected: Share = Field(
        default=0.0, description="refused for good, like a number that does not exist: the enrolment fails"
    )
    throttled: Share = Field(
        default=0.0, description="not sent, and the device is asked to slow down: it rests for a minute"
    )
    refused: Share = Field(default=0.0, description="surely not sent: tried again later")
    in_doubt: Share = Field(
        default=0.0, description="accepted, but the answer is lost: asked again later under the same idempotency key"
    )

    @model_validator(mode="after")
    def _within_all(self) -> Self:
        total = self.rejected + self.throttled + self.refused + self.in_doubt
        if total > 1 + 1e-9:
            raise wrong(f"rejected, throttled, refused and in_doubt add up to {total:g}: more than 1")
        return self


def _kind(value: Any) -> str:
    return "file name" if isinstance(value, str) else "SequenceEntry"


class Scenario(Keys):
    """A whole file."""

    title: Text | None = Field(default=None, description="what it is about; shown when it starts")
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] = Field(
        default=1, description="the same seed gives the same receipts"
    )
    start: Annotated[datetime, BeforeValidator(_moment)] = Field(
        default=START, description="where virtual time begins, in UTC; hours below count from here"
    )
    days: Annotated[float, Field(ge=0.001, le=3660)] = Field(
        default=3.0, description="virtual days at most; it ends earlier when all is done"
    )
    tick_s: Annotated[float, Field(ge=1, le=150)] = Field(default=30.0, description="seconds of virtual time per step")
    shards: Annotated[int, Field(ge=1, le=200)] = Field(default=10, description="how many shard actors")
    pacing: Annotated[Pacing, BeforeValidator(_pacing)] = Field(
        default=Pacing.BURST, description="`burst`: as early as the limits allow; `even`: spread evenly over the hour"
    )
    devices: Devices = Field(default=Devices(), description="the fleet")
    leads: Leads = Field(default=Leads(), description="who gets messages")
    sequences: (
        Annotated[
            list[
                Annotated[
                    Annotated[Text, Tag("file name")] | Annotated[SequenceEntry, Tag("SequenceEntry")],
                    Discriminator(_kind),
                ]
            ],
            Field(min_length=1),
        ]
        | None
    ) = Field(
        default=None,
        description="sequence files, seen from the scenario's folder, or sequences written as in such a file; "
        "left out, the built-in example",
    )
    sender: Sender = Field(default=Sender(), description="what the mock gateway does")

    @model_validator(mode="after")
    def _gaps(self) -> Self:
        if self.pacing is Pacing.EVEN:
            for place, limits in enumerate(self.devices.groups or [self.devices]):
                if "min_gap_s" in limits.model_fields_set:
                    keys = ("devices", "groups", place) if self.devices.groups else ("devices",)
                    raise wrong("pacing: even sets the gap", *keys, "min_gap_s", advice="leave one of them out")
        return self
