"""What all mappings of a scenario file have in common."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints
from pydantic_core import PydanticCustomError

from dispatcher.core.windows import is_zone

Share = Annotated[float, Field(ge=0, le=1)]
Path = tuple[str | int, ...]
Text = Annotated[str, StringConstraints(min_length=1, strip_whitespace=True)]


def wrong(problem: str, *keys: str | int, advice: str = "") -> PydanticCustomError:
    """A mistake that only a look at several keys shows.

    Args:
        problem: what is wrong.
        keys: the way to the key to blame, below the model that raises this.
        advice: what to do about it.
    """
    return PydanticCustomError("scenario", "{problem}", {"problem": problem, "keys": keys, "advice": advice})


def one_of(kind: type[StrEnum]) -> Callable[[Any], Any]:
    """Reads one of a few words."""

    def read(value: Any) -> Any:
        if value not in list(kind):
            raise wrong(f"{' or '.join(kind)} belongs here, not {value!r}")
        return kind(value)

    return read


def _zone(name: str) -> str:
    if not is_zone(name):
        raise wrong(f"there is no time zone {name!r}", advice="write an IANA name such as Asia/Kuala_Lumpur")
    return name


Zone = Annotated[Text, AfterValidator(_zone)]
"""The IANA name of a time zone."""


class Keys(BaseModel):
    """A mapping of keys to values; unknown ones are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
