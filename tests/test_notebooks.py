"""``notebooks/throughput.ipynb``: run as a reader would, on a run that was just made."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

WITHOUT_EXTRA = "the extra 'analysis' is not installed"
nbformat = pytest.importorskip("nbformat", reason=WITHOUT_EXTRA)
nbclient = pytest.importorskip("nbclient", reason=WITHOUT_EXTRA)
for package in ("altair", "ipykernel", "polars"):
    pytest.importorskip(package, reason=WITHOUT_EXTRA)

NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "throughput.ipynb"
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith("DRIPLINE_")}


def executed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The notebook after a run over what ``folder`` holds."""
    for name in os.environ.keys() - CLEAN.keys():
        monkeypatch.delenv(name)
    monkeypatch.setenv("DRIPLINE_RUN", str(folder))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    return notebook


def charts(notebook: Any) -> list[dict[str, Any]]:
    """The Vega-Lite specifications in the outputs, as altair embeds them."""
    found = []
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            page = output.get("data", {}).get("text/html", "")
            if "vegaEmbed" in page:
                found.append(json.JSONDecoder().raw_decode(page, page.index('{"config"'))[0])
    return found


def rows(chart: dict[str, Any]) -> list[dict[str, Any]]:
    """The longest data set a chart carries."""
    return max(chart["datasets"].values(), key=len)


def test_it_is_kept_without_outputs():
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    assert [cell.id for cell in cells if cell.get("outputs") or cell.get("execution_count")] == []


def test_a_folder_without_a_run_is_named(tmp_path, monkeypatch):
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(nbclient.exceptions.CellExecutionError) as caught:
        executed(tmp_path, monkeypatch)
    assert (caught.value.ename, caught.value.evalue) == (
        "FileNotFoundError",
        f"no run.parquet in {tmp_path}: make them there with 'dripline simulate --json run.json --receipts "
        "run.parquet', or set DRIPLINE_RUN to another directory",
    )


@pytest.mark.slow
def test_its_charts_show_the_run(tmp_path, monkeypatch):
    arguments = ["simulate", "--devices", "60", "--leads", "600", "--shards", "2", "--quiet"]
    files = ["--json", "run.json", "--receipts", "run.parquet"]
    done = subprocess.run(
        [sys.executable, "-c", "from dispatcher.cli.main import main; main()", *arguments, *files],
        cwd=tmp_path,
        env=CLEAN,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    run = json.loads((tmp_path / "run.json").read_text())

    throughput, devices, lateness, steps = charts(executed(tmp_path, monkeypatch))

    # Three waves a day apart, each over within the hour: the highest hour is a third of everything.
    assert max(row.get("sent", 0) for row in rows(throughput)) == run["sends"] / 3
    assert [row["limit"] for row in min(throughput["datasets"].values(), key=len)] == [60 * 80]
    for window in ("busiest hour", "busiest 24 hours"):
        assert sum(row["devices"] for row in rows(devices) if row["window"] == window) == 60
    assert {row["share"]: row["minutes"] * 60 for row in rows(lateness)} == pytest.approx(run["lateness_s"])
    assert sum(row["messages"] for row in rows(steps)) == run["sends"] * 2 / 3
    assert min(row["least"] for row in rows(steps)) >= 24
