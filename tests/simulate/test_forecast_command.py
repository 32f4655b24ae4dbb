"""``dripline forecast``: its words, its figures, its exit statuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from simulate.forecast.command import app

ONE = Path(__file__).with_name("one_sequence.yaml").read_text()


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A scenario's file."""
    (tmp_path / "scenario.yaml").write_text(ONE)
    return str(tmp_path / "scenario.yaml")


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments), catch_exceptions=True)


def test_the_command_tells_and_writes(path, tmp_path):
    json_file = tmp_path / "out.json"
    good = run(path, "--json", str(json_file))
    assert good.exit_code == 0, good.output
    assert "Everything is sent by 07 Jan 01:01, after 2.0 days of 6.0 days." in good.output
    figures = json.loads(json_file.read_text())
    assert figures["feasible"] is True
    assert figures["finish"].startswith("2026-01-07T01:01:45")
    assert figures["hours"]["sent_so_far"][-1] == figures["messages"] == 120
    bad = run(path, "--set", "leads.count=240", "--json", str(json_file))
    assert bad.exit_code == 1
    assert "Not feasible:" in bad.output
    needed = json.loads(json_file.read_text())["devices_needed"]
    assert f"{needed:,} devices would do." in bad.output
    assert 2 < needed < 6
    assert run(path, "--quiet").output == ""
    enough = run(path, "--devices-needed")
    assert "1 devices would do." in enough.output


def test_a_deadline_of_ones_own(path):
    assert run(path, "--by", "2026-01-07T02:00:00").exit_code == 0
    late = run(path, "--by", "2026-01-07T01:00:00")
    assert late.exit_code == 1
    assert "come too late" in late.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "days=3"], "they are about a scenario"),
        (["{path}", "--by", "tomorrow"], "'tomorrow' is no moment"),
        (["{path}", "--by", "2026-01-01"], "the scenario begins later"),
        (["{path}", "--set", "devices.cuont=3"], "count"),
        (["{path}", "--json", "{path}"], "is a file that is read"),
        (["{path}", "--json", "/proc/x"], "cannot be written: No such file or directory"),
    ],
)
def test_mistakes_are_told(path, arguments, words):
    done = run(*(each.format(path=path) for each in arguments))
    assert done.exit_code != 0
    assert words in f"{done.output}{done.exception}"
