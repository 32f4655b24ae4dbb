"""YAML that people write: read with the line of every key, and what pydantic finds wrong with it in one plain line."""

from __future__ import annotations

import difflib
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from dispatcher.errors import InputError

Keys = tuple[str | int, ...]
"""The way to a value: keys of mappings, places in lists."""


@dataclass(frozen=True, slots=True)
class YamlFile:
    """A file that was read."""

    path: Path
    content: Any
    lines: Mapping[Keys, int]
    """Line of each key and list item, from 1."""

    def line(self, keys: Keys) -> int | None:
        """Line of the value at ``keys``, or of what stands nearest above it; None when nothing does."""
        while keys and keys not in self.lines:
            keys = keys[:-1]
        return self.lines.get(keys)

    def place(self, keys: Keys) -> str:
        """File and line of the value at ``keys``, as ``line`` finds it."""
        line = self.line(keys)
        return str(self.path) if line is None else f"{self.path}, line {line}"


def read(path: Path) -> YamlFile:
    """Read a file.

    Raises:
        InputError: it cannot be read, is not YAML, or has a key twice in one mapping.
    """
    try:
        loader = _Loader(path.read_text(encoding="utf-8-sig"))
        node = loader.get_single_node()
        if node is None:
            return YamlFile(path, None, {})
        return YamlFile(path, loader.construct_document(node), dict(_lines(node)))
    except FileNotFoundError:
        raise InputError(str(path), "no such file") from None
    except OSError as error:
        raise InputError(str(path), f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(str(path), "it is not UTF-8 text") from None
    except RecursionError:
        raise InputError(str(path), "it is nested too deeply", "write it as the examples are written") from None
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f", line {error.problem_mark.line + 1}"
        raise InputError(f"{path}{line}", error.problem or "not YAML") from None
    except yaml.YAMLError as error:
        raise InputError(str(path), f"not YAML: {error}") from None


def yaml_files(path: Path, advice: str) -> list[Path]:
    """The file, or all YAML files below a folder that its listing would show: what begins with a dot is left out.

    Raises:
        InputError: there are none in the folder; ``advice`` says what to name instead.
    """
    if not path.is_dir():
        return [path]
    below = sorted(file for ending in ("yaml", "yml") for file in path.rglob(f"*.{ending}") if file.is_file())
    found = [file for file in below if not any(part.startswith(".") for part in file.relative_to(path).parts)]
    if not found:
        raise InputError(str(path), "there is no YAML file in this folder", advice)
    return found


def parse_value(text: str) -> Any:
    """A single value as YAML reads it.

    Raises:
        ValueError: it is not YAML; the argument says why.
    """
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        raise ValueError(error.problem or "not YAML") from None
    except yaml.YAMLError as error:
        raise ValueError(f"not YAML: {error}") from None


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice in one mapping, where YAML keeps the last without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} stands twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except ValueError as error:  # a date that no calendar has
            raise yaml.constructor.ConstructorError(None, None, f"{node.value!r}: {error}", node.start_mark) from None


def _lines(root: yaml.Node) -> Iterator[tuple[Keys, int]]:
    """Keys and lines. What an alias repeats counts where it stands first."""
    seen: set[int] = set()
    waiting: list[tuple[Keys, yaml.Node]] = [((), root)]
    while waiting:
        keys, node = waiting.pop()
        if id(node) in seen or isinstance(node, yaml.ScalarNode):
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            below = [((*keys, place), item, item.start_mark) for place, item in enumerate(node.value)]
        else:
            below = [((*keys, str(key.value)), value, key.start_mark) for key, value in node.value]
        for path, value, mark in below:
            yield path, mark.line + 1
            waiting.append((path, value))


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong with one value."""

    keys: Keys
    """Where; of an unknown key, the mapping it stands in."""
    problem: str
    advice: str = ""
    unknown: str | None = None
    """The key nobody knows."""

    @classmethod
    def first(cls, error: ValidationError, model: type[BaseModel], content: Any) -> Finding:
        """The finding a person should read first: a mistyped key before what follows from it."""
        return cls.all(error, model, content)[0]

    @classmethod
    def all(cls, error: ValidationError, model: type[BaseModel], content: Any) -> list[Finding]:
        """Every finding, mistyped keys first."""
        found = sorted(error.errors(), key=lambda finding: finding["type"] != "extra_forbidden")
        return [cls._of(each, model, content) for each in found]

    @classmethod
    def _of(cls, said: ErrorDetails, model: type[BaseModel], content: Any) -> Finding:
        keys, known = _walk(said["loc"], model, content)
        if said["type"] == "extra_forbidden":
            *above, name = keys
            fields = [field.alias or key for key, field in known.model_fields.items()]
            near = difflib.get_close_matches(str(name), fields, 1)
            advice = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(fields)}"
            return cls(tuple(above), f"unknown key {name!r}", advice, str(name))
        if said["type"] in ("model_type", "model_attributes_type"):
            return cls(keys, "a mapping of keys to values belongs here")
        context = said.get("ctx") or {}
        return cls(
            (*keys, *context.get("keys", ())),
            said["msg"][:1].lower() + said["msg"][1:],
            str(context.get("advice", "")),
        )


def _walk(loc: Keys, model: type[BaseModel], content: Any) -> tuple[Keys, type[BaseModel]]:
    """The keys in ``loc``, which also names branches of unions, and the model that the last one belongs to."""
    keys: list[str | int] = []
    known, inside, at = model, [model], content
    for part in loc:
        if isinstance(part, str):
            having = [each for each in inside if part in each.model_fields]
            if not having and not (isinstance(at, dict) and part in at):
                inside = [each for each in inside if each.__name__ == part] or inside
                continue
            known = (having or inside or [known])[0]
            field = known.model_fields.get(part)
            inside = [] if field is None else list(models(field.annotation))
        keys.append(part)
        at = _below(at, part)
    return tuple(keys), known


def _below(at: Any, part: str | int) -> Any:
    if isinstance(at, dict):
        return at.get(part)
    return at[part] if isinstance(at, list) and isinstance(part, int) and part < len(at) else None


def models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models a value of this type may be or hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from models(argument)
