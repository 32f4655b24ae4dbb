"""How a run can be made again: what changes it, and nothing of this place."""

from __future__ import annotations

import pytest

from dispatcher.cli import main as cli
from simulate.publish import command_line


def again(*words: str) -> str:
    command = cli.load("simulate")
    return command_line(command.make_context("simulate", list(words)))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("", "dripline simulate"),
        ("--leads 10 --seed 1", "dripline simulate --leads 10 --seed 1"),
        ("--tick 30.5 --pacing even --days 2", "dripline simulate --days 2 --tick 30.5 --pacing even"),
        ("--start 2026-03-01", "dripline simulate --start 2026-03-01T00:00:00"),
        ("--sequences a.yaml --sequences b.yaml", "dripline simulate --sequences a.yaml --sequences b.yaml"),
        ("--json r.json --report r.html --parquet t --receipts r.csv --keep --quiet --data-dir d", "dripline simulate"),
        ("--database-url postgresql://me:hush@there/db --reset --devices 5", "dripline simulate --devices 5"),
    ],
)
def test_the_command_holds_what_changes_the_run_and_no_secret(given, told):
    assert again(*given.split()) == told


def test_names_are_quoted_and_the_environment_counts(monkeypatch):
    monkeypatch.setenv("DRIPLINE_DEVICES", "7")
    assert again("--sequences", "my file.yaml") == "dripline simulate --devices 7 --sequences 'my file.yaml'"
