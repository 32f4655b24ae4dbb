"""The keys of a scenario file as Markdown: ``python -m simulate.scenario.reference`` prints what the documents hold."""

from __future__ import annotations

import json
from collections.abc import Iterator
from enum import Enum
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from dispatcher.intake.sequence_file import SequenceEntry
from dispatcher.intake.yaml_file import models
from simulate.scenario.schema import Scenario


def tables(file: type[BaseModel] = Scenario) -> str:
    """A heading, a sentence and a table for each mapping, the whole file first; what stands in two places once."""
    told: dict[type[BaseModel], str] = {}
    for name, model in _sections("", file):
        told.setdefault(model, name)
    return "\n".join(_section(name, model) for model, name in told.items())


def _sections(name: str, model: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    yield name, model
    for key, field in model.model_fields.items():
        for below in models(field.annotation):
            if below is not SequenceEntry:
                items = "[]" if "list" in str(field.annotation) else ""
                yield from _sections(f"{name}.{key}{items}".lstrip("."), below)


def _section(name: str, model: type[BaseModel]) -> str:
    said = " ".join((model.__doc__ or "").split())
    rows = [
        f"| `{key}` | {_default(field.is_required(), field.default)} | {field.description} |"
        for key, field in model.model_fields.items()
    ]
    return "\n".join([f"## `{name}`" if name else "## Top level", "", said, "", *_HEAD, *rows, ""])


_HEAD = ("| key | default | meaning |", "|---|---|---|")


def _default(required: bool, value: Any) -> str:
    if required or value is PydanticUndefined:
        return "required"
    if value is None or value == [] or isinstance(value, BaseModel | dict):
        return "-"
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, int | float):
        return f"`{json.dumps(value)}`"
    return f"`{value:%Y-%m-%d}`" if hasattr(value, "strftime") else f"`{value}`"


if __name__ == "__main__":
    print(tables())
