"""The keys of an item of ``events``: what happens once."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from simulate.scenario.keys import Keys, Text, wrong


class DeviceEvent(Keys):
    """Some devices change; which ones is drawn. At least one of health and the quotas belongs here."""

    count: Annotated[int, Field(ge=1)] | None = Field(default=None, description="how many; instead of `share`")
    share: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None, description="how many, as a share; with neither, all"
    )
    group: str | None = Field(default=None, description="of which group; left out, of the whole fleet")
    health: Literal["available", "draining", "quarantined", "offline"] | None = Field(
        default=None, description="`available`, `draining`, `quarantined` or `offline`"
    )
    cause: Text | None = Field(
        default=None, description="why; what waits on a device quarantined for `quality` is not moved to others"
    )
    quota_per_hour: Annotated[int, Field(ge=1, le=100_000)] | None = Field(default=None, description="the new quota")
    quota_per_day: Annotated[int, Field(ge=1, le=100_000)] | None = Field(default=None, description="the new quota")
    until_h: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="hours after the start at which they are available, with their own quotas, again"
    )

    @model_validator(mode="after")
    def _meant(self) -> Self:
        if self.count is not None and self.share is not None:
            raise wrong("share and count exclude each other", "share", advice="leave one of them out")
        if self.health is None and self.quota_per_hour is None and self.quota_per_day is None:
            raise wrong("nothing changes: health, quota_per_hour or quota_per_day belongs here")
        if self.cause is not None and self.health is None:
            raise wrong("a cause says why the health is what it is", "cause", advice="give the health with it")
        return self


class PauseEvent(Keys):
    """A sequence is switched off, or every hand-over stops."""

    sequence: Text | None = Field(default=None, description="its name; left out, everything is paused")
    until_h: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="hours after the start at which it goes on; left out, never"
    )


class TagEvent(Keys):
    """Some of the leads that are there and have not opted out get a further trigger."""

    trigger: Text = Field(description="an entry trigger; who carries it already is left alone")
    share: Annotated[float, Field(gt=0, le=1)] = Field(default=1.0, description="how many of them, drawn")


class EventKeys(Keys):
    """Something that happens once: `at_h` and exactly one of the others. It takes effect at the next tick border."""

    at_h: Annotated[float, Field(ge=0)] = Field(description="hours after the start")
    devices: DeviceEvent | None = Field(default=None, description="devices are lost, come back, or change their quotas")
    pause: PauseEvent | None = Field(default=None, description="a sequence is paused, or everything")
    tag: TagEvent | None = Field(default=None, description="leads get a further trigger")
    opt_out: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None, description="this share of the leads that are there opts out"
    )
    kill: Annotated[str, StringConstraints(pattern=r"^(coordinator|shard-\d+)$")] | None = Field(
        default=None, description="the process `coordinator` or `shard-0`, `shard-1`, ... is killed and starts again"
    )

    @model_validator(mode="after")
    def _one(self) -> Self:
        others = [key for key in type(self).model_fields if key != "at_h"]
        if len([key for key in others if getattr(self, key) is not None]) != 1:
            raise wrong(f"exactly one of {', '.join(others)} belongs beside at_h")
        for key, event in (("devices", self.devices), ("pause", self.pause)):
            if event is not None and event.until_h is not None and event.until_h <= self.at_h:
                raise wrong(f"it does not lie after at_h ({self.at_h:g})", key, "until_h")
        return self
