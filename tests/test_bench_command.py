"""``python -m bench``: parts by name, figures kept as JSON and in the page."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest

from bench import __main__ as command
from bench.figures import Measure, Part, Ratio
from bench.page import put


@pytest.fixture
def told(monkeypatch):
    """A part ``kernel`` that measures nothing and tells what it was asked for."""
    asked = []

    async def measure(bench):
        asked.append((bench.repeat, bench.size(100_000)))
        rates = Measure("rate", "sends/s", (3.0, 1.0, 2.0), {"WAL B a send": 1234.5})
        ratios = [Ratio("a ÷ b", 0.65, 0.6, 0.75), Ratio("bytes", 950, 900, below=True), Ratio("c", 9, 1, 2)]
        return Part([rates], ratios, {"peer": "it is not here"}, ["Said."])

    monkeypatch.setitem(sys.modules, "bench.kernel", SimpleNamespace(measure=measure))
    return asked


def test_a_part_is_measured_and_kept(told, tmp_path, monkeypatch, capsys):
    page, file = tmp_path / "performance.md", tmp_path / "bench.json"
    page.write_text("before\n<!-- figures of kernel -->\nold\n<!-- end of kernel -->\nafter\n")
    file.write_text('{"claims": {"repeat": 5}}')
    monkeypatch.setattr(command, "PAGE", page)
    assert command.main(["kernel", "--repeat", "3", "--scale", "0.1", "--json", str(file), "--page"]) == 0
    assert told == [(3, 10_000)]
    kept = json.loads(file.read_text())
    assert kept["claims"] == {"repeat": 5}, "what other parts have found stays"
    assert kept["kernel"]["measures"][0]["median"] == 2.0
    lines = page.read_text().splitlines()
    assert (lines[0], lines[-1]) == ("before", "after")
    assert "| rate | 2 sends/s | 1 - 3 | 1,234 WAL B a send |  |" in lines
    assert "| a ÷ b | 0.65 | ≥ 0.6 | ≥ 0.75 | yes |" in lines
    assert "| bytes | 950 | ≤ 900 |  | **no** |" in lines
    assert "| c | 9 | ≥ 1 | ≥ 2 | stretch |" in lines
    assert "Skipped: peer - it is not here." in lines
    assert "| rate | 2 sends/s |" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", [["kernels"], ["--repeat", "0"], ["--scale", "0"]])
def test_what_cannot_be_measured_is_refused(wrong):
    with pytest.raises(SystemExit) as raised:
        command.main(wrong)
    assert raised.value.code == 2


def test_the_page_has_a_place_for_every_part():
    text = command.PAGE.read_text(encoding="utf-8")
    for name in command.PARTS:
        assert put(command.PAGE.name, text, name, ["figures"]).count("figures\n") >= 1
