"""The keys below ``sender``: what the mock gateway does."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final, Self

from pydantic import BeforeValidator, Field, model_validator

from simulate.scenario.keys import Keys, Share, one_of, wrong

LATENCY_MOST_S: Final = 30.0
"""The deadline: what is on its way for longer has been given up."""


class Over(StrEnum):
    """How messages get to the mock gateway."""

    DIRECT = "direct"
    """In batches, from process to process."""
    HTTP = "http"
    """Each by production's sender, in a request of its own."""


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


class Shares(Keys):
    """What becomes of messages; shares of all requests, the rest is accepted."""

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


class PeriodKeys(Shares):
    """A time in which other shares hold; those left out are 0 in it."""

    from_h: Annotated[float, Field(ge=0)] = Field(description="hours after the start at which it begins")
    to_h: Annotated[float, Field(gt=0)] = Field(description="hours after the start at which it ends")

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        if self.to_h <= self.from_h:
            raise wrong(f"it does not lie after from_h ({self.from_h:g})", "to_h")
        return self


class OptOuts(Keys):
    """Leads that have had enough after a message."""

    share: Annotated[float, Field(gt=0, le=1)] = Field(description="after how many of the accepted messages")
    within_h: Annotated[float, Field(ge=0)] = Field(
        default=1.0, description="hours after the arrival within which it happens, evenly"
    )


class Replies(Keys):
    """Leads that write back after a message; sequences may end with it, and a STOP word ends everything."""

    share: Annotated[float, Field(gt=0, le=1)] = Field(description="after how many of the accepted messages")
    stop: Share = Field(default=0.1, description="how many of the replies are a STOP word")
    within_h: Annotated[float, Field(ge=0)] = Field(
        default=2.0, description="hours after the arrival within which they come, evenly"
    )


class Bans(Keys):
    """Devices whose credentials the gateway does not accept any more; the engine then quarantines them by itself."""

    share_per_day: Annotated[float, Field(gt=0, le=1)] = Field(
        description="how many of the devices that are not banned are banned within 24 hours"
    )
    lifted_after_h: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="hours until a ban ends and an operator makes the device available; left out, never"
    )


class Sender(Shares):
    """What the mock gateway does; drawn for each request by seed, phone, step and attempt."""

    over: Annotated[Over, BeforeValidator(one_of(Over))] = Field(
        default=Over.DIRECT,
        description="how messages get there: `direct`, in batches from process to process; `http`, each in a request "
        "by the sender of production, which loads that as well; the receipts are the same",
    )
    latency: LatencyKeys | None = Field(default=None, description="how long a message takes to arrive")
    periods: list[PeriodKeys] = Field(
        default=[],
        description="times with other shares, such as an hour of trouble; of several at once, the last holds",
    )
    opt_outs: OptOuts | None = Field(default=None, description="leads that opt out after a message")
    replies: Replies | None = Field(default=None, description="leads that write back after a message")
    bans: Bans | None = Field(default=None, description="devices that are turned down")
