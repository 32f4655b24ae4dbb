"""Every key of a test file. The descriptions are the reference: ``docs/sequence-tests.md`` repeats them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from dispatcher.core.moments import from_datetime
from simulate.scenario.keys import Keys, Path, Text, Zone, wrong
from simulate.scenario.schema import START, Sequences
from simulate.scenario.schema import Moment as Date
from simulate.sequence_test.times import BEGINNING, Moment, Span, Time

Attributes = dict[str, str | int | float | bool]
State = Literal["active", "completed", "stopped", "failed", "in_doubt"]


class LeadKeys(Keys):
    """Somebody who gets messages."""

    name: Text | None = Field(
        default=None, description="what `{{ name }}` becomes, and what `lead` calls this one by elsewhere in the test"
    )
    triggers: list[Text] = Field(default=[], description="what the lead carries when it comes")
    attributes: Attributes = Field(default={}, description="what else texts may say, such as `city: Penang`")
    opted_in: bool = Field(default=False, description="whether the lead has asked for messages when it comes")
    opted_out: bool = Field(default=False, description="whether it wants no messages when it comes")
    time_zone: Zone | None = Field(
        default=None, description="where it lives, for send windows; left out, the window's own time zone counts"
    )
    at: Moment = Field(default=BEGINNING, description="when it comes")


class DeviceKeys(Keys):
    """The one number that messages leave from; what is left out binds no test of a few leads."""

    quota_per_hour: Annotated[int, Field(ge=1, le=100_000)] = Field(
        default=1000, description="messages in any rolling hour"
    )
    quota_per_day: Annotated[int, Field(ge=1, le=100_000)] = Field(
        default=10_000, description="messages in any rolling 24 hours"
    )
    min_gap_s: Annotated[float, Field(ge=0, le=3600)] = Field(default=0.0, description="seconds between two messages")
    idempotent: bool = Field(
        default=True, description="whether its gateway knows a message again: only then is one in doubt asked for again"
    )


class AnswerKeys(Keys):
    """What the gateway answers to a message; further tries, and all other messages, it accepts."""

    step: Text = Field(description="which message")
    lead: Text | None = Field(default=None, description="to whom; left out, to every lead")
    answer: Literal["rejected", "opted_out", "refused", "throttled", "in_doubt"] = Field(
        description="`rejected`: refused for good; `opted_out`: the recipient wants none; `refused`: not now; "
        "`throttled`: the device is to slow down; `in_doubt`: it arrives, but nobody says so"
    )
    times: Annotated[int, Field(ge=1, le=100)] = Field(default=1, description="to how many tries, one after the other")


class EventKeys(Keys):
    """Something that happens once: `at`, exactly one of what may happen, and whom it happens to."""

    at: Moment = Field(description="when")
    lead: Text | None = Field(default=None, description="to whom; left out, to every lead of the test")
    opt_out: Literal[True] | None = Field(default=None, description="`true`: the lead wants no messages any more")
    opt_in: Literal[True] | None = Field(default=None, description="`true`: the lead asks for messages")
    reply: Text | None = Field(
        default=None,
        description="the lead writes this back: it ends what exits on a reply, and everything if it is a STOP word",
    )
    tag: Text | None = Field(default=None, description="the lead gets this trigger")
    untag: Text | None = Field(default=None, description="this trigger is taken off the lead")
    attributes: Attributes | None = Field(default=None, description="these attributes of the lead change")
    pause: Text | None = Field(default=None, description="the sequence of this name is paused")
    resume: Text | None = Field(default=None, description="the sequence of this name is resumed")

    @model_validator(mode="after")
    def _one(self) -> Self:
        others = [key for key in type(self).model_fields if key not in ("at", "lead")]
        if len([key for key in others if getattr(self, key) is not None]) != 1:
            raise wrong(f"exactly one of {', '.join(others)} belongs beside at")
        if self.lead is not None and self.sequence is not None:
            raise wrong("a sequence is paused and resumed for everybody", "lead", advice="leave it out")
        return self

    @property
    def sequence(self) -> str | None:
        """The sequence that it happens to, if it is no lead."""
        return self.pause or self.resume


def _message(value: Any) -> Any:
    return {"step": value} if isinstance(value, str) else value


class MessageKeys(Keys):
    """A message that arrives. Its step alone may stand for it: `messages: [hello, hello_again]`."""

    step: Text = Field(description="the step's trigger")
    at: Moment | None = Field(default=None, description="when it arrives")
    after: Span | None = Field(
        default=None, description="how long after the message before it, the first one: after the lead came"
    )
    within: Span | None = Field(
        default=None, description="how far that time may be off; left out, as far as those of all messages"
    )
    text: str | None = Field(default=None, description="what it says, word for word")
    contains: Text | None = Field(default=None, description="what is part of what it says")

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        for one, other in (("at", "after"), ("text", "contains")):
            if getattr(self, one) is not None and getattr(self, other) is not None:
                raise wrong(f"{one} and {other} exclude each other", other, advice="leave one of them out")
        if self.within is not None and self.at is None and self.after is None:
            raise wrong("no time is expected that could be off", "within", advice="give at or after with it")
        return self


class ExpectKeys(Keys):
    """What is to have come true of a lead in the end: one mapping, or a list of them. What is not named may be any."""

    lead: Text | None = Field(default=None, description="whom this is about; left out, every lead")
    sequence: Text | None = Field(default=None, description="the sequence this is about; left out, all of them")
    messages: list[Annotated[MessageKeys, BeforeValidator(_message)]] | None = Field(
        default=None, description="all messages that arrive, in order"
    )
    count: Annotated[int, Field(ge=0)] | None = Field(default=None, description="how many messages arrive")
    never: Annotated[list[Text], Field(min_length=1)] | None = Field(
        default=None, description="steps whose messages never leave"
    )
    enrolments: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="how many times the lead is enrolled; 0: never"
    )
    state: State | None = Field(
        default=None,
        description="where the last enrolment of each sequence stands: `active`, `completed`, `stopped`, `failed` or "
        "`in_doubt`",
    )
    because: Text | None = Field(
        default=None, description="what is part of the cause of that state, such as `opted out` or `rejected`"
    )
    triggers: list[Text] | None = Field(default=None, description="all triggers that the lead carries")
    within: Span = Field(default=Time("1min", 60_000_000), description="how far the times of messages may be off")

    @model_validator(mode="after")
    def _something(self) -> Self:
        what = [key for key in type(self).model_fields if key not in ("lead", "sequence", "because", "within")]
        if all(getattr(self, key) is None for key in what):
            raise wrong(f"nothing is expected: one of {', '.join(what)} belongs here")
        if self.because is not None and self.state is None:
            raise wrong("a cause says why the state is what it is", "because", advice="give the state with it")
        if self.triggers is not None and self.sequence is not None:
            raise wrong("a lead carries triggers, whatever the sequence", "triggers", advice="leave sequence out there")
        return self


def _kind(value: Any) -> str:
    return "list" if isinstance(value, list) else "ExpectKeys"


class CaseKeys(Keys):
    """What is to come true of one lead, or of some. Everything is checked once nothing more can happen."""

    name: Text = Field(description="what is to come true, in words; no two tests of a file have the same")
    start: Date = Field(default=START, description="when it begins, in UTC")
    until: Moment | None = Field(default=None, description="when it ends; left out, once nothing more can happen")
    lead: LeadKeys | None = Field(default=None, description="whom it is about")
    leads: Annotated[list[LeadKeys], Field(min_length=2)] | None = Field(
        default=None, description="several leads, instead of `lead`; all with names of their own"
    )
    device: DeviceKeys = Field(default=DeviceKeys(), description="the number that messages leave from")
    gateway: list[AnswerKeys] = Field(default=[], description="messages that are not simply accepted")
    events: list[EventKeys] = Field(default=[], description="what happens on the way")
    expect: Annotated[
        Annotated[ExpectKeys, Tag("ExpectKeys")]
        | Annotated[Annotated[list[ExpectKeys], Field(min_length=1)], Tag("list")],
        Discriminator(_kind),
    ] = Field(description="what is to come true")

    @property
    def everybody(self) -> list[LeadKeys]:
        """The leads."""
        return self.leads or [self.lead or LeadKeys()]

    @property
    def expected(self) -> list[tuple[Path, ExpectKeys]]:
        """All that is expected, each with the way to it."""
        if isinstance(self.expect, list):
            return [(("expect", n), each) for n, each in enumerate(self.expect)]
        return [(("expect",), self.expect)]

    @property
    def begin_us(self) -> int:
        """When it begins."""
        return from_datetime(self.start)

    @model_validator(mode="after")
    def _leads(self) -> Self:
        if (self.lead is None) == (self.leads is None):
            raise wrong("exactly one of lead and leads belongs here")
        names = [lead.name for lead in self.leads or ()]
        for place, name in enumerate(names):
            if name is None:
                raise wrong("one of several leads needs a name", "leads", place)
            if name in names[:place]:
                raise wrong(f"two leads are called {name!r}", "leads", place, "name", advice="rename one of them")
        return self

    @model_validator(mode="after")
    def _times(self) -> Self:
        begin_us = self.begin_us
        end_us = None if self.until is None else self.until.after(begin_us)
        for keys, time in self._moments():
            if time.after(begin_us) < begin_us:
                raise wrong(f"{time} lies before the beginning, {self.start:%Y-%m-%d %H:%M}", *keys)
            if end_us is not None and time.after(begin_us) >= end_us and keys != ("until",):
                raise wrong(f"{time} does not lie before the end, {self.until}", *keys)
        for n, event in enumerate(self.events):
            for lead in self.everybody:
                there = lead.at.after(begin_us) <= event.at.after(begin_us)
                if not there and event.sequence is None and event.lead in (None, lead.name):
                    who = "the lead" if lead.name is None else f"the lead {lead.name!r}"
                    raise wrong(f"{who} comes only at {lead.at}", "events", n, "at")
        return self

    def _moments(self) -> Iterator[tuple[Path, Time]]:
        if self.until is not None:
            yield ("until",), self.until
        for n, lead in enumerate(self.everybody):
            yield ("lead", "at") if self.leads is None else ("leads", n, "at"), lead.at
        for n, event in enumerate(self.events):
            yield ("events", n, "at"), event.at
        for keys, expected in self.expected:
            for n, message in enumerate(expected.messages or ()):
                if message.at is not None:
                    yield (*keys, "messages", n, "at"), message.at


class SequenceTests(Keys):
    """Sequences, and what is to come true of them."""

    sequences: Sequences = Field(
        description="sequence files, seen from the folder of this file, or sequences written as in such a file"
    )
    tests: Annotated[list[CaseKeys], Field(min_length=1)] = Field(description="the tests")
