"""``python -m bench.reliability``: what the runs wrote, and nothing else, becomes figures of docs/reliability.md."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest
from typer.testing import CliRunner

from simulate.chaos.outcome import ChaosOutcome
from simulate.chaos.verdict import Verdict
from simulate.checker import Violations
from simulate.prove import campaign
from simulate.prove.command import app

ROOT = Path(__file__).parents[1]
MADE = {"at": "2026-01-05T09:00:00+00:00", "dripline": "0.1.0", "python": "3.11.7", "cores": 2}
MADE_SAID = "2026-01-05, Dripline 0.1.0, Python 3.11.7, 2 cores"
EMPTY = """# Page

<!-- figures of prove -->
<!-- end of prove -->
<!-- figures of canaries -->
old
<!-- end of canaries -->
<!-- figures of chaos -->
<!-- end of chaos -->
The end.
"""
PROVED = {
    "first": 1, "seeds": 2000, "failed": [17], "seeds_per_s": 4.2, "sends": 99_000, "virtual_s": 7200.0,
    "faults": 1234, "fault_kinds": 4, "faults_by_kind": {"a": 1, "b": 1000, "c": 200, "d": 33},
    "saturated_use": 0.9912, "violations": {"duplicate": 0, "over_hour": 3, "lost": 0}, "made": MADE,
}  # fmt: skip
PROVED_SAID = f"""
{MADE_SAID}.

|  |  |
|---|---|
| seeds | 2,000 (1 to 2000), 4.2 a second |
| seeds that failed | 17 |
| faults that struck | 1,234 of 4 kinds |
| messages accepted | 99,000 |
| virtual time | 2 hours |
| use of saturated devices | 99.1% of what quotas and guard allow |
| never seen | duplicate, lost |
| over hour | **3** |

| struck | fault | struck | fault | struck | fault |
|---|---|---|---|---|---|
| 1,000 | b | 200 | c | 33 | d |
| 1 | a |  |  |  |  |

"""
CAUGHT_SAID = f"""
{MADE_SAID}. 1 of 2 caught, each from seed 1 on within 500 seeds.

| broken build | what does not hold in it | caught by seed | rules it broke |
|---|---|---|---|
| guard 0 | limits | 3 | over hour, early |
| lease ignored | leases | **not caught** |  |

"""


@pytest.fixture
def bench(monkeypatch) -> ModuleType:
    """The module, on a page of its own."""
    monkeypatch.syspath_prepend(str(ROOT))
    from bench import reliability

    return reliability


@pytest.fixture
def page(bench, tmp_path, monkeypatch) -> Path:
    page = tmp_path / "reliability.md"
    page.write_text(EMPTY)
    monkeypatch.setattr(bench, "PAGE", page)
    return page


def kept(place: Path, figures: object) -> str:
    place.write_text(json.dumps(figures))
    return str(place)


def stormed(seed: int, *, idempotent: bool, duplicate: int = 0) -> ChaosOutcome:
    verdict = Verdict(
        enrolled=650,
        status={"active": 0, "completed": 500, "in_doubt": 150},
        answers={"accepted": 1700, "failed": 0},
        accepted=1700,
        busiest_hour=47,
        devices_at_quota=0,
        violations=Violations(duplicate=duplicate),
        findings=[],
        over_limit=0,
        malformed=0,
    )
    return ChaosOutcome(
        seed=seed, devices=15, leads=600, shards=3, idempotent=idempotent, hour_s=20.0, quota_per_hour=60, wall_s=180.0,
        sends_per_s=21.4, cuts={"shard killed": 3}, troubles={"gateway says 429": 1}, hooks={"Ray calls late": 2},
        missed=0, run_starts=2, drain_s=4.0, drained=True, ended_well=True, verdict=verdict,
    )  # fmt: skip


def test_a_campaign_becomes_its_part_and_leaves_the_others_alone(bench, page, tmp_path, capsys):
    assert bench.main(["--prove", kept(tmp_path / "p.json", PROVED)]) == 0
    expected = EMPTY.replace("<!-- figures of prove -->\n", f"<!-- figures of prove -->\n{PROVED_SAID}")
    assert page.read_text() == expected
    assert capsys.readouterr().out == "reliability.md: wrote the figures of prove\n"
    assert bench.main(["--prove", str(tmp_path / "p.json")]) == 0
    assert page.read_text() == expected, "again is the same"


def test_what_the_commands_write_is_what_is_read(bench, page, tmp_path, monkeypatch):
    caught = [
        campaign.Caught("guard 0", "limits", 3, ("over_hour", "early")),
        campaign.Caught("lease ignored", "leases", None, ()),
    ]
    monkeypatch.setattr(campaign, "catch_all", lambda seeds, jobs: caught)
    for command in ("simulate.prove.command", "simulate.chaos.outcome"):
        monkeypatch.setattr(f"{command}.circumstances", lambda: MADE)
    proved, tried = tmp_path / "prove.json", tmp_path / "canaries.json"
    assert CliRunner().invoke(app, ["--seeds", "2", "--jobs", "1", "--quiet", "--json", str(proved)]).exit_code == 0
    assert CliRunner().invoke(app, ["--canaries", "--quiet", "--json", str(tried)]).exit_code == 1
    storms = [
        kept(tmp_path / f"c{storm.seed}.json", storm.as_json())
        for storm in (stormed(1, idempotent=True), stormed(2, idempotent=False, duplicate=2))
    ]
    assert bench.main(["--prove", str(proved), "--canaries", str(tried), "--chaos", *storms]) == 0
    text = page.read_text()
    assert "| seeds | 2 (1 to 2), " in text
    assert f"<!-- figures of canaries -->\n{CAUGHT_SAID}<!-- end of canaries -->" in text
    for row in (
        "|  | seed 1 | seed 2 |",
        f"| made | {MADE_SAID} | {MADE_SAID} |",
        "| gateway honours keys | yes | no |",
        "| messages accepted over HTTP | 1,700, 21 a second | 1,700, 21 a second |",
        "| requests, as the gateway saw them | 1,700 accepted | 1,700 accepted |",
        "| enrolments | 650: 500 completed, 150 in doubt | 650: 500 completed, 150 in doubt |",
        "| **kills and cuts** | **3** | **3** |",
        "| duplicate | - | **2** |",
        "| verdict | every invariant held | **it did not hold** |",
    ):
        assert f"\n{row}\n" in text, row
    assert str(tmp_path) not in text


@pytest.mark.parametrize(
    ("flag", "content", "said"),
    [
        ("--prove", '{"seed": 3}', "not what dripline prove --json writes (made: Field required) - make it anew"),
        (
            "--canaries",
            json.dumps(PROVED),
            "not what dripline prove --canaries --json writes (canaries: Field required)",
        ),
        ("--chaos", "{", "not what dripline simulate --chaos --json writes (Invalid JSON"),
        ("--chaos", None, "cannot be read: No such file or directory"),
    ],
)
def test_another_file_is_refused_in_one_line_and_nothing_is_written(bench, page, tmp_path, capsys, flag, content, said):
    place = tmp_path / "figures.json"
    if content is not None:
        place.write_text(content)
    assert bench.main([flag, str(place)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {place}: {said}")
    assert error.count("\n") == 1
    assert page.read_text() == EMPTY


def test_a_page_without_markers_is_refused(bench, page, tmp_path, capsys):
    page.write_text("# Page\n")
    assert bench.main(["--prove", kept(tmp_path / "p.json", PROVED)]) == 2
    assert capsys.readouterr().err.startswith("error: reliability.md: it does not have the markers of prove - write: ")


def test_without_files_it_says_how_to_make_them(bench, page, capsys):
    assert bench.main([]) == 0
    assert "dripline prove --canaries --json canaries.json" in capsys.readouterr().out
    assert page.read_text() == EMPTY


def test_the_page_has_figures_of_everything(bench):
    text = (ROOT / "docs/reliability.md").read_text()
    for name in ("prove", "canaries", "chaos"):
        _, begun, rest = text.partition(f"<!-- figures of {name} -->\n")
        figures, ended, _ = rest.partition(f"<!-- end of {name} -->\n")
        assert (bool(begun), bool(ended)) == (True, True), name
        assert figures.count("\n|") > 3, name
