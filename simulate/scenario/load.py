"""A scenario file, and what was set over it, as a checked scenario; every mistake is told with its line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from dispatcher.core.graph import Sequence as StepSequence
from dispatcher.errors import InputError
from dispatcher.intake import sequence_file
from dispatcher.intake.csv_file import CsvFile
from dispatcher.intake.lead_file import LeadReader
from dispatcher.intake.sequence_file import SequenceEntry
from dispatcher.intake.yaml_file import Finding, Keys, YamlFile, read
from simulate.examples import builtin
from simulate.scenario.overrides import Override, apply
from simulate.scenario.schema import Scenario

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A checked scenario with the files it names."""

    scenario: Scenario
    sequences: list[StepSequence]
    csv: Path | None
    """The leads' file."""
    inputs: tuple[Path, ...]
    """Every file that was read or will be."""

    def lead_reader(self, opened: CsvFile) -> LeadReader:
        """Reads the records of the leads' file."""
        keys = self.scenario.leads.csv
        assert keys is not None, "leads come from a file"
        entries = [step.trigger for sequence in self.sequences for step in sequence.steps if step.is_entry]
        return LeadReader(opened, keys.map, tags=keys.triggers or entries[:1], region=keys.region)


def load(path: Path | None, overrides: Sequence[Override] = ()) -> Loaded:
    """Read, override and check.

    Args:
        path: the file; None: everything is at its default unless overridden.
        overrides: what stands before the file, later ones before earlier ones.

    Raises:
        InputError: something is wrong; the subject names file and line, or the override, and the key.
    """
    file = YamlFile(Path(), {}, {}) if path is None else read(path)
    if not isinstance(file.content, dict | None):
        raise InputError(file.place((0,)), "a mapping of keys to values belongs here", "see docs/scenarios.md")
    content, said = apply(file.content, overrides)
    places = Places(file, said)
    scenario = places.checked(Scenario, content)
    folder = Path() if path is None else path.parent
    sequences, files = (builtin(), []) if scenario.sequences is None else gather(scenario.sequences, folder, places)
    _check_triggers(scenario, sequences, places)
    _check_names(scenario, sequences, places)
    csv = None if scenario.leads.csv is None else folder / scenario.leads.csv.file
    loaded = Loaded(scenario, sequences, csv, tuple(each for each in (path, csv, *files) if each is not None))
    if csv is not None:
        _check_csv(loaded, csv, places)
    return loaded


@dataclass(frozen=True, slots=True)
class Places:
    """Who says what: the file by its lines, or an override."""

    file: YamlFile
    said: Mapping[Keys, str] = field(default_factory=dict)

    def checked(self, model: type[M], content: Any) -> M:
        """The content as ``model``.

        Raises:
            InputError: the first of its mistakes.
        """
        try:
            return model.model_validate(content)
        except ValidationError as error:
            found = Finding.first(error, model, content)
            raise self.error(found.keys, found.problem, found.advice, unknown=found.unknown) from None

    def error(self, keys: Keys, problem: str, advice: str = "", *, unknown: str | None = None) -> InputError:
        """A mistake in the value at ``keys``, or in the key ``unknown`` below it."""
        full = keys if unknown is None else (*keys, unknown)
        dotted = ".".join(map(str, keys))
        return InputError(", ".join(filter(None, (self._place(full), dotted))), problem, advice)

    def _place(self, keys: Keys) -> str:
        for length in range(len(keys), -1, -1):
            if keys[:length] in self.said:  # the file's lines below are of what no longer counts
                return self.said[keys[:length]]
        return self.file.place(keys)


def gather(items: Iterable[str | SequenceEntry], folder: Path, places: Places) -> tuple[list[StepSequence], list[Path]]:
    """The sequences that the key ``sequences`` lists, and the files that some of them stand in.

    Args:
        items: files, seen from ``folder``, and sequences.
        places: of the file with the key.

    Raises:
        InputError: a file or a sequence cannot be used, or two have a name or a trigger in common.
    """
    sequences: list[StepSequence] = []
    files: list[Path] = []
    for place, item in enumerate(items):
        keys: Keys = ("sequences", place)
        if isinstance(item, str):
            path = folder / item
            if not path.is_file():
                raise places.error(keys, f"{path}: no such file", "files are looked for from the folder of this one")
            files.append(path)
            found = sequence_file.load(path)
        else:
            found = [item.sequence()]
            _verify(found, keys, places)
        sequences += found
        _verify(sequences, keys, places)
    return sequences, files


def _verify(sequences: list[StepSequence], keys: Keys, places: Places) -> None:
    try:
        sequence_file.verify(sequences)
    except InputError as error:
        raise places.error(keys, f"{error.subject}: {error.problem}", error.advice) from None


def _check_triggers(scenario: Scenario, sequences: list[StepSequence], places: Places) -> None:
    """Refuse triggers that would enrol nobody."""
    named: list[tuple[Keys, str]] = []
    for row, mixed in enumerate(scenario.leads.triggers or ()):
        named += [(("leads", "triggers", row, "triggers", n), trigger) for n, trigger in enumerate(mixed.triggers)]
    if scenario.leads.csv is not None:
        named += [(("leads", "csv", "triggers", n), trigger) for n, trigger in enumerate(scenario.leads.csv.triggers)]
    named += [
        (("events", n, "tag", "trigger"), event.tag.trigger) for n, event in enumerate(scenario.events) if event.tag
    ]
    entries = {step.trigger: step.is_entry for sequence in sequences for step in sequence.steps}
    for keys, trigger in named:
        if trigger not in entries:
            known = [each for each, is_entry in entries.items() if is_entry]
            raise places.error(keys, f"no step has the trigger {trigger!r}", did_you_mean(trigger, known))
        if not entries[trigger]:
            raise places.error(keys, f"{trigger!r} is a step, but no entry: it enrols nobody")


def _check_csv(loaded: Loaded, csv: Path, places: Places) -> None:
    """Refuse a file that cannot be read as leads."""
    try:
        with CsvFile(csv) as opened:
            loaded.lead_reader(opened)
    except InputError as error:
        raise places.error(("leads", "csv"), f"{error.subject}: {error.problem}", error.advice) from None


def _check_names(scenario: Scenario, sequences: list[StepSequence], places: Places) -> None:
    """Refuse sequences that are not there."""
    names = [sequence.name for sequence in sequences]
    for n, event in enumerate(scenario.events):
        name = None if event.pause is None else event.pause.sequence
        if name is not None and name not in names:
            problem = f"no sequence is called {name!r}"
            raise places.error(("events", n, "pause", "sequence"), problem, did_you_mean(name, names))


def did_you_mean(name: str, known: list[str]) -> str:
    """The nearest of what is known, or all of it."""
    near = difflib.get_close_matches(name, known, 1)
    return f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
