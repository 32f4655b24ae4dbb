"""Whoever ends a campaign half-way, in whatever way, leaves no process behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import psutil
import pytest

pytestmark = pytest.mark.slow
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith("DRIPLINE_")}
SOON_S = 20


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        ([signal.SIGINT], 130),
        ([signal.SIGINT, signal.SIGINT], 130),
        ([signal.SIGTERM, signal.SIGTERM], 143),
        ([signal.SIGKILL], -9),
    ],
    ids=["Ctrl-C", "Ctrl-C twice", "SIGTERM twice", "SIGKILL"],
)
def test_an_interrupted_campaign_leaves_no_process(tmp_path, sent, status):
    campaign = subprocess.Popen(
        [sys.executable, "-c", "from dispatcher.cli.main import main; main()", "prove", "--seeds", "5000"],
        cwd=tmp_path, env=CLEAN | {"DRIPLINE_JOBS": "2"}, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert campaign.stderr is not None
    assert "seeds" in campaign.stderr.readline()
    below = psutil.Process(campaign.pid).children(recursive=True)
    assert len(below) >= 2
    for number in sent:
        (os.killpg if number == signal.SIGINT else os.kill)(campaign.pid, number)
    assert campaign.wait(SOON_S) == status
    said = campaign.stderr.read()
    assert "Traceback" not in said
    assert ("of 5,000 seeds played: every invariant held so far" in said) == (status > 0)
    _, left = psutil.wait_procs(below, SOON_S)
    assert left == []
