"""Every key of a scenario file. The descriptions are the reference: ``docs/scenarios.md`` repeats them."""

from __future__ import annotations

from datetime import UTC, date, datetime, time
from typing import Annotated, Any, Final, Self

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    model_validator,
)

from dispatcher.intake.sequence_file import SequenceEntry
from simulate.pacing import Pacing
from simulate.scenario.events import EventKeys
from simulate.scenario.keys import Keys, Path, Text, Zone, one_of, wrong
from simulate.scenario.sender import Sender

START: Final = datetime(2026, 1, 5, tzinfo=UTC)
"""Virtual time starts here unless told otherwise: a Monday."""
_YEARS: Final = range(1971, 2201)


def _moment(value: Any) -> Any:
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise wrong(f"a date such as 2026-01-05 or 2026-01-05T09:00:00 belongs here, not {value!r}") from None
    if isinstance(value, date):
        if value.year not in _YEARS:
            raise wrong(f"a year from {_YEARS[0]} to {_YEARS[-1]} belongs here, not {value.year}")
        if not isinstance(value, datetime):
            return datetime.combine(value, time(), UTC)
        return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)
    raise wrong(f"a date such as 2026-01-05 belongs here, not {value!r}")


Moment = Annotated[datetime, BeforeValidator(_moment)]
"""A date, or date and time; without a zone UTC."""


def _speed(value: Any) -> Any:
    if isinstance(value, int | float) and not 0 < value < float("inf"):
        advice = "leave it out to run as fast as the machine allows"
        raise wrong(f"a number above 0 belongs here, not {value:g}", advice=advice)
    return value


Region = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9 _-]{0,39}$")]


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


class Shared(Keys):
    """A limit of all devices of a group together, above their own. At least one of the two belongs here."""

    per_hour: Annotated[int, Field(ge=1, le=100_000_000)] | None = Field(
        default=None, description="messages in any rolling hour; left out, no such limit"
    )
    per_day: Annotated[int, Field(ge=1, le=100_000_000)] | None = Field(
        default=None, description="messages in any rolling 24 hours; left out, no such limit"
    )

    @model_validator(mode="after")
    def _some(self) -> Self:
        if self.per_hour is None and self.per_day is None:
            raise wrong("per_hour or per_day belongs here", advice="leave shared out where nothing is shared")
        return self


class Group(Limits):
    """Devices of one kind."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,39}$")] = Field(
        description="names the devices `<name>-0001` and on; no two groups have the same"
    )
    count: Annotated[int, Field(ge=1, le=1_000_000)] = Field(description="how many")
    shared: Shared | None = Field(
        default=None, description="what all of them together may send, as numbers of one account do"
    )
    region: Region | None = Field(
        default=None, description="leads of this region have their home devices here; groups may have the same"
    )


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


class Zoned(Keys):
    """Where some of the leads live."""

    zone: Zone = Field(description="their time zone, such as `Asia/Kuala_Lumpur`")
    weight: Annotated[float, Field(ge=0, le=1e9)] = Field(
        default=1.0, description="how many leads live there, in proportion to the others' weights"
    )
    region: Region | None = Field(
        default=None, description="the region of the devices they hear from; left out, from any device"
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


class WaveKeys(Keys):
    """Leads that come together."""

    at_h: Annotated[float, Field(ge=0)] = Field(
        default=0.0, description="hours after the start at which they begin to come"
    )
    share: Annotated[float, Field(gt=0, le=1)] = Field(description="how many of all leads; the shares add up to 1")
    spread_h: Annotated[float, Field(ge=0)] = Field(
        default=0.0, description="hours over which they come evenly; 0: all at once"
    )


class Leads(Keys):
    """Who gets messages."""

    count: Annotated[int, Field(ge=0, le=99_999_999)] = Field(default=100_000, description="how many are made up")
    triggers: Annotated[list[Mixed], Field(min_length=1)] | None = Field(
        default=None,
        description="what they carry; left out, one or two entry triggers, and some a label that nobody sends to",
    )
    time_zones: Annotated[list[Zoned], Field(min_length=1)] | None = Field(
        default=None, description="where they live, for send windows; left out, the windows' own time zones count"
    )
    waves: Annotated[list[WaveKeys], Field(min_length=1)] | None = Field(
        default=None, description="when they come; left out, all are there at the start"
    )
    csv: Csv | None = Field(
        default=None, description="leads from a file instead of made-up ones; all are there at the start"
    )

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.csv is not None:
            for key in sorted(self.model_fields_set - {"csv"}):
                raise wrong(f"{key} and csv exclude each other", key, advice="leave one of them out")
        for key, weighed in (("triggers", self.triggers), ("time_zones", self.time_zones)):
            if weighed and not any(each.weight for each in weighed):
                raise wrong("all weights are 0", key, advice="give at least one a weight above 0")
        total = sum(wave.share for wave in self.waves or ())
        if self.waves and abs(total - 1) > 1e-6:
            raise wrong(f"the shares add up to {total:g}, not to 1", "waves")
        return self


def _kind(value: Any) -> str:
    return "file name" if isinstance(value, str) else "SequenceEntry"


Sequences = Annotated[
    list[
        Annotated[
            Annotated[Text, Tag("file name")] | Annotated[SequenceEntry, Tag("SequenceEntry")], Discriminator(_kind)
        ]
    ],
    Field(min_length=1),
]
"""Files, seen from the folder of the one that lists them, and sequences."""


class Scenario(Keys):
    """Hours count from `start`, shares are between 0 and 1. Every key may be left out."""

    title: Text | None = Field(default=None, description="what it is about; shown when it starts")
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] = Field(
        default=1, description="the same seed gives the same receipts"
    )
    start: Moment = Field(default=START, description="where virtual time begins, in UTC; hours below count from here")
    days: Annotated[float, Field(ge=0.001, le=3660)] = Field(
        default=3.0, description="virtual days at most; it ends earlier when all is done"
    )
    tick_s: Annotated[float, Field(ge=1, le=150)] = Field(default=30.0, description="seconds of virtual time per step")
    speed: Annotated[float, BeforeValidator(_speed)] | None = Field(
        default=None,
        description="how many times faster than life virtual time passes; left out, as fast as the machine allows",
    )
    shards: Annotated[int, Field(ge=1, le=200)] = Field(default=10, description="how many shard actors")
    pacing: Annotated[Pacing, BeforeValidator(one_of(Pacing))] = Field(
        default=Pacing.BURST, description="`burst`: as early as the limits allow; `even`: spread evenly over the hour"
    )
    devices: Devices = Field(default=Devices(), description="the fleet")
    leads: Leads = Field(default=Leads(), description="who gets messages")
    sequences: Sequences | None = Field(
        default=None,
        description="sequence files, seen from the scenario's folder, or sequences written as in such a file; "
        "left out, the built-in example",
    )
    sender: Sender = Field(default=Sender(), description="what the mock gateway does")
    events: list[EventKeys] = Field(default=[], description="what happens on the way")

    @model_validator(mode="after")
    def _within_the_run(self) -> Self:
        moments: list[tuple[Path, str, float]]
        moments = [(("leads", "waves", n), "at_h", wave.at_h) for n, wave in enumerate(self.leads.waves or ())]
        moments += [(("leads", "waves", n), "spread_h", wave.at_h + wave.spread_h)
                    for n, wave in enumerate(self.leads.waves or ())]  # fmt: skip
        moments += [(("sender", "periods", n), "from_h", period.from_h) for n, period in enumerate(self.sender.periods)]
        for n, event in enumerate(self.events):
            moments.append((("events", n), "at_h", event.at_h))
            for key, what in (("devices", event.devices), ("pause", event.pause)):
                if what is not None and what.until_h is not None:
                    moments.append((("events", n, key), "until_h", what.until_h))
        for keys, key, at_h in moments:
            if at_h >= self.days * 24:
                raise wrong(f"hour {at_h:g} lies after the end of the run, which has {self.days:g} days", *keys, key)
        return self

    @model_validator(mode="after")
    def _regions(self) -> Self:
        known = list(dict.fromkeys(group.region for group in self.devices.groups or () if group.region))
        for place, zoned in enumerate(self.leads.time_zones or ()):
            if zoned.region is not None and zoned.region not in known:
                advice = f"known are {', '.join(known)}" if known else "give groups of devices a region"
                raise wrong(f"no devices have the region {zoned.region!r}", "leads", "time_zones", place, "region",
                            advice=advice)  # fmt: skip
        return self

    @model_validator(mode="after")
    def _there(self) -> Self:
        groups = {group.name: group.count for group in self.devices.groups or ()}
        for n, event in enumerate(self.events):
            if event.devices is not None:
                group = event.devices.group
                if group is not None and group not in groups:
                    known = f"known are {', '.join(groups)}" if groups else "devices has no groups"
                    raise wrong(f"no group is called {group!r}", "events", n, "devices", "group", advice=known)
                most = groups[group] if group is not None else sum(groups.values()) or self.devices.count
                if event.devices.count is not None and event.devices.count > most:
                    raise wrong(f"at most {most} belongs here: there are no more", "events", n, "devices", "count")
            if event.kill not in (None, "coordinator", *(f"shard-{number}" for number in range(self.shards))):
                counted = f"shards are counted from 0 to {self.shards - 1}"
                raise wrong(f"there is no {event.kill}", "events", n, "kill", advice=counted)
        return self

    @model_validator(mode="after")
    def _gaps(self) -> Self:
        if self.pacing is Pacing.EVEN:
            for place, limits in enumerate(self.devices.groups or [self.devices]):
                if "min_gap_s" in limits.model_fields_set:
                    keys = ("devices", "groups", place) if self.devices.groups else ("devices",)
                    raise wrong("pacing: even sets the gap", *keys, "min_gap_s", advice="leave one of them out")
        return self
