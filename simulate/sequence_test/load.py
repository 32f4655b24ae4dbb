"""Test files, and folders of them, as checked tests; every mistake is told with its line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dispatcher.core import triggers
from dispatcher.core.graph import Sequence as StepSequence
from dispatcher.errors import InputError
from dispatcher.intake.yaml_file import Keys, YamlFile, read, yaml_files
from simulate.scenario.load import Places, did_you_mean, gather
from simulate.sequence_test.schema import CaseKeys, ExpectKeys, SequenceTests


@dataclass(frozen=True, slots=True)
class Case:
    """One checked test."""

    file: YamlFile
    keys: Keys
    """The way to it."""
    said: CaseKeys
    sequences: Sequence[StepSequence]

    def line(self, *below: str | int) -> int:
        """The line of what stands at ``below`` in the test."""
        return self.file.line((*self.keys, *below)) or 1


@dataclass(frozen=True, slots=True)
class Loaded:
    """What was found."""

    cases: list[Case]
    skipped: list[Path]
    """YAML files of folders that are about something else."""


def load(paths: Iterable[Path]) -> Loaded:
    """The tests in files, and in all YAML files below folders that have any.

    Raises:
        InputError: something is wrong; the subject names file, line and key.
    """
    loaded = Loaded([], [])
    seen: set[Path] = set()
    for path in paths:
        for file in yaml_files(path, "name a file of tests"):
            if file.resolve() not in seen:
                seen.add(file.resolve())
                found = _read(file, named=file == path)
                loaded.cases.extend(found)
                if not found:
                    loaded.skipped.append(file)
    return loaded


def _read(path: Path, *, named: bool) -> list[Case]:
    """The tests of a file; none where it was found in a folder and is about something else."""
    file = read(path)
    keys = file.content if isinstance(file.content, dict) else {}
    if not named and not difflib.get_close_matches("tests", map(str, keys), 1):
        return []
    places = Places(file)
    tests = places.checked(SequenceTests, {} if file.content is None else file.content)
    sequences, _ = gather(tests.sequences, path.parent, places)
    names = [test.name for test in tests.tests]
    for place, test in enumerate(tests.tests):
        if test.name in names[:place]:
            problem = f"two tests are called {test.name!r}"
            raise places.error(("tests", place, "name"), problem, "rename one of them")
        _check_names(test, ("tests", place), sequences, places)
        _check_triggers(test, ("tests", place), places)
    return [Case(file, ("tests", place), test, sequences) for place, test in enumerate(tests.tests)]


def _check_names(test: CaseKeys, keys: Keys, sequences: list[StepSequence], places: Places) -> None:
    """Refuse leads, sequences and steps that are not there: what never comes would come true of them."""
    known = {
        "lead": [lead.name for lead in test.everybody if lead.name is not None],
        "sequence": [sequence.name for sequence in sequences],
        "step": [step.trigger for sequence in sequences for step in sequence.steps],
    }
    for below, kind, name in _names(test):
        if name not in known[kind]:
            advice = did_you_mean(name, known[kind]) if known[kind] else "give the lead a name"
            problem = {
                "lead": f"no lead of this test is called {name!r}",
                "sequence": f"no sequence is called {name!r}",
                "step": f"no step has the trigger {name!r}",
            }
            raise places.error((*keys, *below), problem[kind], advice)


def _names(test: CaseKeys) -> Iterator[tuple[Keys, str, str]]:
    """Where a name stands, what it names, and the name."""
    for n, answer in enumerate(test.gateway):
        yield ("gateway", n, "step"), "step", answer.step
        if answer.lead is not None:
            yield ("gateway", n, "lead"), "lead", answer.lead
    for n, event in enumerate(test.events):
        if event.lead is not None:
            yield ("events", n, "lead"), "lead", event.lead
        if event.sequence is not None:
            yield ("events", n, "pause" if event.pause else "resume"), "sequence", event.sequence
    for below, expected in test.expected:
        yield from (((*below, *rest), kind, name) for rest, kind, name in _expected_names(expected))


def _expected_names(expected: ExpectKeys) -> Iterator[tuple[Keys, str, str]]:
    if expected.lead is not None:
        yield ("lead",), "lead", expected.lead
    if expected.sequence is not None:
        yield ("sequence",), "sequence", expected.sequence
    for n, message in enumerate(expected.messages or ()):
        yield ("messages", n, "step"), "step", message.step
    for n, step in enumerate(expected.never or ()):
        yield ("never", n), "step", step


def _check_triggers(test: CaseKeys, keys: Keys, places: Places) -> None:
    """Refuse leads with more triggers than fit, tags of events included."""
    for n, lead in enumerate(test.everybody):
        tags = [event.tag for event in test.events if event.tag is not None and event.lead in (None, lead.name)]
        try:
            triggers.merge(None, [*lead.triggers, *tags])
        except InputError as error:
            below = ("lead",) if test.leads is None else ("leads", n)
            raise places.error((*keys, *below, "triggers"), error.problem, error.advice) from None
