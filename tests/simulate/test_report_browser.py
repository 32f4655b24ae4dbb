"""A real run's report in a real browser: headless Chromium by its driver, spoken to in plain HTTP
(https://www.w3.org/TR/webdriver2). And what the run left in tables, read back.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import polars as pl
import pytest

START_S = 30.0
SWITCHES = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
)


class Browser:
    """One browser window; skips the test where Chromium or its driver is not installed.

    Args:
        dark: whether the person likes it dark.
        width: of the window.
    """

    def __init__(self, *, dark: bool = False, width: int = 1400) -> None:
        self._dark, self._width = dark, width
        self._driver = shutil.which("chromedriver")
        chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        if self._driver is None or chromium is None:
            pytest.skip("no browser: install chromium and chromium-driver (or google-chrome and chromedriver)")
        self._chromium = chromium

    def __enter__(self) -> Browser:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self._profile = tempfile.mkdtemp(prefix="dl-browser-")
        self._process = subprocess.Popen(
            [self._driver, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self._http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False)
        try:
            self._wait()
            switches = [*SWITCHES, f"--user-data-dir={self._profile}", f"--window-size={self._width},1000"]
            session = self._post(
                "/session",
                capabilities={
                    "alwaysMatch": {
                        "browserName": "chrome",
                        "goog:chromeOptions": {"binary": self._chromium, "args": switches},
                        "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
                    }
                },
            )
            self._session = f"/session/{session['sessionId']}"
            self._cdp("Emulation.setDeviceMetricsOverride", width=self._width, height=1000, deviceScaleFactor=1,
                      mobile=False)  # fmt: skip
            scheme = {"name": "prefers-color-scheme", "value": "dark" if self._dark else "light"}
            self._cdp("Emulation.setEmulatedMedia", features=[scheme])
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if hasattr(self, "_session"):
            self._http.delete(self._session)
        self._http.close()
        self._process.terminate()
        self._process.wait()
        shutil.rmtree(self._profile, ignore_errors=True)

    def open(self, path: Path) -> None:
        """Show a file, to the end of its scripts."""
        self._post(f"{self._session}/url", url="about:blank")  # the page a new window begins with asks for much
        self._post(f"{self._session}/se/log", type="performance")
        self._post(f"{self._session}/url", url=path.absolute().as_uri())

    def run(self, script: str) -> Any:
        """What a function of this body returns."""
        return self._post(f"{self._session}/execute/sync", script=script, args=[])

    def logged(self) -> list[str]:
        """What the console has said, warnings and errors."""
        entries = self._post(f"{self._session}/se/log", type="browser")
        return [entry["message"] for entry in entries if entry["level"] in ("WARNING", "SEVERE")]

    def asked_for(self) -> set[str]:
        """Every address that was asked for since the page was opened."""
        found = set()
        for entry in self._post(f"{self._session}/se/log", type="performance"):
            said = httpx.Response(200, content=entry["message"]).json()["message"]
            if said["method"] == "Network.requestWillBeSent":
                found.add(said["params"]["request"]["url"])
        return found

    def picture(self) -> bytes:
        """The whole page as PNG."""
        shot = self._cdp("Page.captureScreenshot", captureBeyondViewport=True, format="png")
        return base64.b64decode(shot["data"])

    def _cdp(self, command: str, **parameters: Any) -> Any:
        return self._post(f"{self._session}/goog/cdp/execute", cmd=command, params=parameters)

    def _post(self, path: str, **body: Any) -> Any:
        answer = self._http.post(path, json=body).json()["value"]
        if isinstance(answer, dict) and "error" in answer:
            raise AssertionError(answer["message"])
        return answer

    def _wait(self) -> None:
        give_up_s = time.monotonic() + START_S
        while True:
            try:
                if self._http.get("/status").json()["value"]["ready"]:
                    return
            except httpx.TransportError:
                if time.monotonic() > give_up_s:
                    raise
            time.sleep(0.05)


NAME = "Autumn </script><script>window.caught = 1</script> & <b>sale</b>"
SEQUENCES = """
sequences:
  - name: {name}
    steps:
      - {{trigger: autumn_a, text: A, delay_hours: 2, entry: true}}
      - {{trigger: autumn_b, text: B}}
"""
DRAWN = """
return [...document.querySelectorAll(".plot:not([hidden]) canvas, .heat canvas")].map((canvas) => {
  const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  return new Set(new Uint32Array(pixels.buffer)).size;
});
"""
AREA_OF = """
const canvas = document.querySelector("#limited canvas");
const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
let area = 0;
for (let at = 0; at < pixels.length; at += 4) area += String(pixels.slice(at, at + 3)) === "%s";
return area;
"""
"""How many pixels of a colour the chart of limits has."""


@pytest.fixture(scope="module")
def left() -> Iterator[Path]:
    """What ``dripline simulate`` left of a run with a name that would break a careless page."""
    path = Path(tempfile.mkdtemp(prefix="dl-"))
    path.chmod(0o711)
    (path / "autumn.yaml").write_text(SEQUENCES.format(name=json.dumps(NAME)))
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("DRIPLINE_", "RAY_"))}
    done = subprocess.run(
        [
            *(sys.executable, "-c", "from dispatcher.cli.main import main; main()", "simulate", "--leads", "2000"),
            *("--devices", "20", "--shards", "2", "--days", "1", "--sequences", "autumn.yaml", "--json", "run.json"),
            *("--report", "run.html", "--parquet", "tables"),
        ],
        capture_output=True, text=True, cwd=path, env=clean | {"HOME": str(path), "TMPDIR": str(path)}, timeout=300,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    yield path
    shutil.rmtree(path)


@pytest.mark.slow
@pytest.mark.parametrize(("dark", "width"), [(False, 1400), (True, 400)])
def test_a_browser_draws_everything_logs_nothing_and_asks_nobody(left, dark, width):
    with Browser(dark=dark, width=width) as browser:
        browser.open(left / "run.html")
        for figure, rows in (("throughput", None), ("devices", 20)):
            browser.run(f"document.querySelector('#{figure} summary').click()")
            time.sleep(0.2)
            shown = browser.run(f"return document.querySelectorAll('#{figure} tbody tr').length")
            assert shown == rows if rows else shown > 1
        assert browser.run("return document.documentElement.scrollWidth") == width  # nothing sticks out
        assert browser.run("return document.querySelector('#sequences h3').firstChild.data.trim()") == NAME
        assert browser.run("return window.caught") is None
        assert browser.logged() == []
        assert browser.asked_for() == {(left / "run.html").as_uri()}
        colours = browser.run(DRAWN)
        assert len(colours) == 6  # five charts and the heat map
        assert min(colours) > 1, "a canvas is empty"
        hour = [224, 160, 74] if dark else [232, 163, 61]
        assert browser.run(AREA_OF % ",".join(map(str, hour))) > 1000, (
            "the devices waited for their hours, and the chart does not show it"
        )
        ground = browser.run("return getComputedStyle(document.body).backgroundColor")
        assert ground == ("rgb(17, 21, 27)" if dark else "rgb(245, 246, 248)")


@pytest.mark.slow
def test_the_tables_sum_up_to_the_figures(left):
    figures = json.loads((left / "run.json").read_text())
    tables = {path.stem: pl.read_parquet(path) for path in (left / "tables").iterdir()}
    assert tables.keys() == {"sends", "device_minutes", "sequence_minutes", "devices", "faults"}
    sends = tables["sends"]
    assert len(sends) == figures["sends"] > 2000
    assert {name: tables[name]["sends"].sum() for name in ("device_minutes", "sequence_minutes")} == {
        "device_minutes": len(sends), "sequence_minutes": len(sends),
    }  # fmt: skip
    assert sends["sequence"].unique().to_list() == [NAME]
    assert sends["late_s"].max() == pytest.approx(figures["lateness_s"]["max"], abs=0.001)
    assert sends["enrolment_id"].n_unique() == figures["enrolled"]
    by_device = tables["device_minutes"].group_by("device_id").agg(pl.col("sends").sum())
    assert dict(by_device.iter_rows()) == dict(sends.group_by("device_id").len().iter_rows())
    assert len(tables["faults"]) == figures["reruns"]
