"""``python -m bench``: parts by name, figures kept as JSON and in the page."""

from __future__ import annotations

import asyncio
import json
import sys
from types import SimpleNamespace

import pytest

from bench import __main__ as command
from bench import rehearsal
from bench.bench import Bench
from bench.figures import Measure, Part, Ratio
from bench.page import put
from dispatcher.errors import DriplineError


@pytest.fixture
def told(monkeypatch):
    """A part ``kernel`` that measures nothing and tells what it was asked for."""
    asked = []

    async def measure(bench):
        asked.append((bench.repeat, bench.size(100_000)))
        rates = Measure("rate", "sends/s", (3.0, 1.0, 2.0), {"WAL B a send": 1234.5})
        ratios = [Ratio("a ÷ b", 0.65, 0.6, 0.75), Ratio("bytes", 950, 900, below=True), Ratio("c", 9, 1, 2)]
        return Part([rates], ratios, {"peer": "it is not here"}, ["Said."], {"graph.svg": "<svg/>"})

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
    assert "files" not in kept["kernel"]
    assert (tmp_path / "graph.svg").read_text() == "<svg/>"
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


def test_what_was_measured_small_reaches_nothing_and_misses_nothing():
    assert Ratio("s", 500, 150, 100, below=True, whole=False).reached == "at full size only"
    assert Ratio("s", 50, 150, 100, below=True, whole=False).reached == "at full size only"


@pytest.mark.slow
def test_a_rehearsal_is_timed_with_both_pacings_and_only_claims_at_its_documented_size(tmp_path, monkeypatch):
    monkeypatch.setattr(rehearsal, "OPTIONS", (*rehearsal.OPTIONS, "--devices", "30", "--shards", "2"))
    part = asyncio.run(rehearsal.measure(Bench(1, 0.001, tmp_path, lambda _: None)))
    assert [(measure.name, measure.unit) for measure in part.measures] == [
        ("simulate", "s"),
        ("simulate: peak of memory, all processes", "MB"),
        ("simulate, even pacing", "s"),
        ("simulate, even pacing: peak of memory, all processes", "MB"),
    ]
    assert all(0 < measure.median < 10_000 for measure in part.measures)
    assert "1,000 leads" in part.measures[0].note
    assert [(ratio.asked, ratio.stretch, ratio.reached) for ratio in part.ratios] == [
        (150, 100, "at full size only"),
        (240, 150, "at full size only"),
        (4000, 2500, "at full size only"),
    ]


def test_a_rehearsal_that_ends_badly_is_no_measurement(tmp_path, monkeypatch):
    monkeypatch.setattr(rehearsal, "OPTIONS", ("--sequences", "missing.yaml", "--quiet"))
    with pytest.raises(DriplineError, match=r"ended with 2: error: .*missing\.yaml"):
        asyncio.run(rehearsal.simulate(tmp_path, 10, "even"))
