"""All that is wrong or doubtful about sequence files, with line and key; no database is needed.

Errors are what ``apply`` refuses, every one of them instead of the first. Warnings are what it takes, and a person may
not have meant: texts that some leads get none of, steps that nobody reaches, delays of more than a year.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Rows
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from jinja2 import nodes
from pydantic import ValidationError

from dispatcher.core.graph import Sequence, Step, way_from
from dispatcher.core.guards import needs
from dispatcher.core.messages import TEXT_CHARACTERS, TemplateError, compiled, parse
from dispatcher.core.soundness import findings
from dispatcher.errors import InputError
from dispatcher.intake.sequence_file import REENTRY, SequenceEntry, SequenceFile, clashes
from dispatcher.intake.yaml_file import Finding, Keys, YamlFile, read, yaml_files

YEAR_H: Final = 366 * 24
NEAR_CHARACTERS: Final = TEXT_CHARACTERS * 9 // 10

_KEY_OF: Final = {"message_text": "text", "next_trigger": "next"}
_FIELDS: Final = ("name", "phone")
_COLUMNS: Final = ("id", "niche", "trigger", "time_zone", "home_device_id", "opted_in_at", "opted_out_at", "created_at")
"""Columns of leads that a message does not see."""


@dataclass(frozen=True, slots=True)
class Remark:
    """One thing about one place of a file."""

    level: Literal["error", "warning"]
    path: Path
    line: int
    key: str
    """For example ``sequences[0].steps[2].text``; empty: the whole file."""
    problem: str
    advice: str = ""

    def __str__(self) -> str:
        where = f" {self.key}:" if self.key else ""
        advice = f" - {self.advice}" if self.advice else ""
        return f"{self.path}:{self.line}: {self.level}:{where} {self.problem}{advice}"


@dataclass(frozen=True, slots=True)
class Attributes:
    """The attributes of the leads in a database."""

    leads: int
    having: Mapping[str, int]
    """Leads by the attribute they have, ``name`` among them."""


@dataclass(frozen=True, slots=True)
class _Placed:
    """A sequence and where it is written."""

    file: YamlFile
    keys: Keys
    sequence: Sequence

    def key(self, step: int, field: str) -> Keys:
        """Where a field of a step is written."""
        if field == "delay_h":
            at: Any = self.file.content
            for key in (*self.keys, "steps", step):
                at = at[key]
            return "steps", step, "delay" if "delay" in at else "delay_hours"
        return "steps", step, _KEY_OF.get(field, field)

    def remark(self, level: Literal["error", "warning"], below: Keys, problem: str, advice: str = "") -> Remark:
        return _remark(level, self.file, (*self.keys, *below), problem, advice)


def sequence_files(paths: Rows[Path]) -> tuple[list[YamlFile], list[InputError], list[Path]]:
    """The files, those that cannot be read, and the YAML files of folders that hold something else."""
    files: list[YamlFile] = []
    unreadable: list[InputError] = []
    others: list[Path] = []
    seen: set[Path] = set()
    for path in paths:
        try:
            below = yaml_files(path, "name a sequence file")
        except InputError as error:
            unreadable.append(error)
            continue
        for each in [each for each in below if each.resolve() not in seen]:
            seen.add(each.resolve())
            try:
                file = read(each)
            except InputError as error:
                unreadable.append(error)
                continue
            is_other = each != path and not (isinstance(file.content, dict) and set(file.content) == {"sequences"})
            (others.append(each) if is_other else files.append(file))
    return files, unreadable, others


def lint(files: Rows[YamlFile], attributes: Attributes | None = None) -> list[Remark]:
    """All remarks, by file and line.

    Args:
        attributes: what the leads have that are to be messaged; None: unknown.
    """
    remarks: list[Remark] = []
    placed: list[_Placed] = []
    for file in files:
        found, sound = _read(file)
        remarks += found
        placed += sound
    for each in placed:
        remarks += _errors(each)
        remarks += _texts(each, attributes)
        remarks += _ways(each)
    for place, step, clash in clashes(each.sequence for each in placed):
        below: Keys = ("name",) if step is None else ("steps", step, "trigger")
        remarks.append(placed[place].remark("error", below, clash.problem, clash.advice))
    order = {file.path: number for number, file in enumerate(files)}
    return sorted(remarks, key=lambda remark: (order[remark.path], remark.line, remark.level))


def _remark(level: Literal["error", "warning"], file: YamlFile, keys: Keys, problem: str, advice: str) -> Remark:
    key = "".join(f"[{each}]" if isinstance(each, int) else f".{each}" for each in keys).lstrip(".")
    return Remark(level, file.path, file.line(keys) or 1, key, problem, advice)


def _read(file: YamlFile) -> tuple[list[Remark], list[_Placed]]:
    """What is written wrongly, and the sequences that are written as they should."""
    try:
        SequenceFile.model_validate(file.content)
        found = []
    except ValidationError as error:
        found = Finding.all(error, SequenceFile, file.content)
    remarks: dict[Remark, None] = {}
    for each in found:
        keys: Keys = (*each.keys, *filter(None, [each.unknown]))
        problem, advice = each.problem, each.advice
        if "reentry" in keys:
            keys, problem, advice = keys[: keys.index("reentry") + 1], "it cannot be understood", REENTRY
        remarks[_remark("error", file, keys, problem, advice)] = None
    broken = {each.keys[1] for each in found if len(each.keys) > 1}
    content: Any = file.content
    entries = content.get("sequences") if isinstance(content, dict) else None
    return list(remarks), [
        _Placed(file, ("sequences", place), SequenceEntry.model_validate(entry).sequence())
        for place, entry in enumerate(entries if isinstance(entries, list) else [])
        if place not in broken
    ]


def _errors(placed: _Placed) -> Iterator[Remark]:
    """What keeps the sequence from being followed."""
    triggers = [step.trigger for step in placed.sequence.steps]
    for finding in findings(placed.sequence):
        below: Keys = ("steps",)
        if finding.trigger is not None:
            # Of steps that share a trigger the last is to be renamed.
            number = len(triggers) - 1 - triggers[::-1].index(finding.trigger)
            below = placed.key(number, finding.field)
        yield placed.remark("error", below, finding.problem, finding.advice)


def _texts(placed: _Placed, attributes: Attributes | None) -> Iterator[Remark]:
    for number, step in enumerate(placed.sequence.steps):
        try:
            template = compiled(step.message_text)
        except TemplateError:
            continue
        for problem, advice in (*_variables(step.message_text, template.reads, attributes), *_length(step)):
            yield placed.remark("warning", ("steps", number, "text"), problem, advice)
        for parameter in step.template.parameters if step.template else ():
            with suppress(TemplateError):
                for problem, advice in _variables(parameter, compiled(parameter).reads, attributes):
                    yield placed.remark("warning", ("steps", number, "template"), problem, advice)


def _variables(text: str, reads: Rows[str], attributes: Attributes | None) -> Iterator[tuple[str, str]]:
    needed = needs(text)
    for name in reads:
        if problem := _unlikely(name, attributes):
            yield problem
        elif name in needed and name != "phone":
            lacking = "a lead without it gets no message: its enrolment fails"
            if attributes is not None:
                without = attributes.leads - attributes.having.get(name, 0)
                if not without:
                    continue
                lacking = f"{without:,} of {attributes.leads:,} leads lack it"
            yield f"{name!r} is read without default, and {lacking}", f"{{{{ {name} | default('...') }}}}"


def _unlikely(name: str, attributes: Attributes | None) -> tuple[str, str] | None:
    """Why no lead can have ``name``; None when one may."""
    if name in _FIELDS or (attributes is not None and attributes.having.get(name)):
        return None
    near = difflib.get_close_matches(name, [*_FIELDS, *(attributes.having if attributes is not None else ())], 1)
    advice = f"did you mean {near[0]!r}?" if near else ""
    if attributes is not None:
        return f"no lead in the database has {name!r}", advice
    if name in _COLUMNS:
        return f"{name!r} is a column of leads, and a message sees only name, phone and attributes", advice
    return (f"no field of leads is called {name!r}", advice) if near else None


def _length(step: Step) -> Iterator[tuple[str, str]]:
    written = sum(len(data.data) for data in parse(step.message_text).find_all(nodes.TemplateData))
    if written > NEAR_CHARACTERS:
        yield f"it is {written} characters long before any variable", f"at most {TEXT_CHARACTERS} are sent"


def _ways(placed: _Placed) -> Iterator[Remark]:
    """Steps that no lead comes to, and ways that take more than a year."""
    steps = placed.sequence.steps
    place = {step.trigger: number for number, step in enumerate(steps)}
    reached: set[int] = set()
    for entry in [number for number, step in enumerate(steps) if step.is_entry]:
        way = way_from(placed.sequence, steps[entry])
        reached.update(place[step.trigger] for step, _ in way)
        waits_h = way[-1][1]
        if waits_h > YEAR_H:
            problem = f"from here to the last step it takes {waits_h // 24:,.0f} days"
            yield placed.remark("warning", placed.key(entry, "delay_h"), problem, "delays are in hours")
    if reached:
        for number in sorted(set(range(len(steps))) - reached):
            problem = "nothing leads to this step: no lead gets it"
            yield placed.remark("warning", ("steps", number, "trigger"), problem, "name it as the next of another step")
