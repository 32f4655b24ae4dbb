"""Two runs side by side, from files as ``simulate --json`` writes them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from dispatcher.cli.main import main
from simulate.compare import Figure, Setting, compared


def run(**changes: Any) -> dict[str, Any]:
    return {
        "seed": 1, "devices": 3, "leads": 10, "shards": 1, "tick_s": 30.0, "pacing": "burst",
        "settings": {"days": 3.0, "guard_s": 60.0}, "sends": 40, "violations": {"early": 0},
        "lateness_s": {"p50": 2.0, "max": 0.0}, "binding_limit": "hour", "receipts_sha256": "aa", "made": {"at": "x"},
        **changes,
    }  # fmt: skip


def test_settings_that_differ_and_all_figures_are_told():
    other = run(pacing="even", settings={"days": 4.0, "guard_s": 60.0}, sends=50, lateness_s={"p50": 3.0, "max": 1.0})
    found = compared(run(), {**other, "binding_limit": "day", "receipts_sha256": "bb"})
    assert found.settings == (Setting("pacing", "burst", "even"), Setting("days", 3.0, 4.0))
    assert found.figures == (
        Figure("sends", 40, 50, 10, 1.25),
        Figure("violations early", 0, 0, 0, None),
        Figure("lateness_s p50", 2.0, 3.0, 1.0, 1.5),
        Figure("lateness_s max", 0.0, 1.0, 1.0, None),
        Figure("binding_limit", "hour", "day", None, None),
    )
    assert not found.same_receipts


def test_a_run_beside_itself_differs_in_nothing():
    found = compared(run(), run())
    assert (found.same_receipts, found.settings) == (True, ())
    assert {figure.difference for figure in found.figures} == {0, None}


def call(monkeypatch, place: Path, *arguments: str) -> int:
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "argv", ["dripline", "compare", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_people_read_it_and_programs_too(tmp_path, monkeypatch, capsys):
    (tmp_path / "a.json").write_text(json.dumps(run()))
    (tmp_path / "b.json").write_text(json.dumps(run(sends=50, devices=4)))
    assert call(monkeypatch, tmp_path, "a.json", "b.json", "--json", "both.json") == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["devices", "3", "4"] in lines
    assert ["sends", "40", "50", "+10", "1.25"] in lines
    assert ["The", "receipts", "are", "the", "same."] in lines
    both = json.loads((tmp_path / "both.json").read_text())
    assert both["settings"] == [{"name": "devices", "a": 3, "b": 4}]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("gone.json", None, "error: gone.json: No such file or directory - name a file that exists"),
        ("text.json", b"hello", "error: text.json: it is not JSON - name a file that simulate --json wrote"),
        ("bytes.json", b"\xff\xfe\x00", "error: bytes.json: it is not JSON - name a file that simulate --json wrote"),
        (
            "prove.json", b'{"seeds": 5}',
            "error: prove.json: it holds no figures of a rehearsal - name a file that simulate --json wrote",
        ),
        (
            "list.json", b"[1]",
            "error: list.json: it holds no figures of a rehearsal - name a file that simulate --json wrote",
        ),
    ],
    ids=["missing", "text", "bytes", "prove", "list"],
)  # fmt: skip
def test_a_file_that_is_none_of_a_run_is_named(tmp_path, monkeypatch, capsys, name, content, said):
    (tmp_path / "a.json").write_text(json.dumps(run()))
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert call(monkeypatch, tmp_path, "a.json", name) == 2
    assert capsys.readouterr().err == f"{said}\n"


def test_the_page_says_the_same_and_names_stay_text(tmp_path, monkeypatch):
    name = "<b>a.json"
    (tmp_path / name).write_text(json.dumps(run(settings={"sequences": ["</title><script>"]})))
    (tmp_path / "b.json").write_text(json.dumps(run(sends=50)))
    assert call(monkeypatch, tmp_path, name, "b.json", "--report", "both.html") == 0
    html = (tmp_path / "both.html").read_text()
    assert "<td>40</td><td>50</td><td>+10</td><td>1.25</td>" in html
    assert "<script" not in html
    assert "<b>" not in html
    assert "script-src &#39;none&#39;" in html
    assert "The receipts are the same;" in html
