"""``python -m bench``: its parts without a database at small sizes, by counts and structure, never by time."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench import http, kernel, model
from bench.bench import Bench
from bench.figures import Part
from dispatcher.core.quota import Offer

SAID: list[str] = []


class Tiny(Bench):
    """A benchmark below the least size."""

    def size(self, documented: int) -> int:
        return 150


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    SAID.clear()
    return Tiny(1, 1, tmp_path, SAID.append)


def rows(part: Part) -> list[tuple[str, str, int]]:
    """Name, unit and number of values of every measure."""
    return [(measure.name, measure.unit, len(measure.values)) for measure in part.measures]


# Kernel ----------------------------------------------------------------------------------------------------------


async def test_the_kernel_part_compares_both_sides_at_both_sizes(bench, monkeypatch):
    monkeypatch.setattr(kernel, "ROUNDS", 3)
    monkeypatch.setattr(kernel, "FLEETS", (30, 60))
    part = await kernel.measure(replace(bench, repeat=2))
    assert rows(part) == [
        (f"{side}, {devices} devices", "µs", 2) for devices in (30, 60) for side in ("shard kernel", "pure Python heap")
    ]
    (ratio,) = part.ratios
    heap, own = part.of("pure Python heap, 30 devices"), part.of("shard kernel, 30 devices")
    assert (ratio.name, ratio.value) == ("shard kernel ÷ pure Python heap, 30 devices", heap.median / own.median)
    assert (ratio.asked, ratio.stretch) == (6, 10)
    assert own.counts["slots a round"] == heap.counts["slots a round"] == 4 * 30
    assert SAID == ["30 devices (1 of 2)", "60 devices (1 of 2)", "30 devices (2 of 2)", "60 devices (2 of 2)"]
    json.dumps(part.as_json())
    assert any(line.startswith("| shard kernel ÷ pure Python heap, 30 devices") for line in part.as_markdown())


def test_the_kernels_calls_do_not_grow_with_devices_while_the_heaps_do():
    kernel_few, heap_few = kernel.Sides(30).calls()
    kernel_many, heap_many = kernel.Sides(300).calls()
    assert kernel_few == kernel_many < 150
    assert heap_many > 9 * heap_few
    assert heap_few > 30 * 4  # at least one a slot: calls are counted at all


def test_sides_that_disagree_are_found_out(monkeypatch):
    sides = kernel.Sides(5)
    assert sides.turn().slots == 4 * 5
    right = sides.kernel

    def one_too_late() -> Offer:
        offer = right()
        return replace(offer, slot_us=offer.slot_us + np.eye(1, len(offer), 0, dtype=np.int64)[0])

    monkeypatch.setattr(sides, "kernel", one_too_late)
    with pytest.raises(RuntimeError, match="disagree"):
        sides.turn()


# Model -----------------------------------------------------------------------------------------------------------


async def test_the_model_part_compares_equal_schedules(bench):
    pytest.importorskip("simpy")
    part = await model.measure(bench)
    assert rows(part) == [(name, "ms", 1) for name in ("in-memory model", "lean SimPy", "idiomatic SimPy")]
    assert {measure.counts["messages"] for measure in part.measures} == {3 * 150}
    assert [(ratio.name, ratio.asked, ratio.stretch) for ratio in part.ratios] == [
        ("in-memory model ÷ lean SimPy, same results", 20, 40),
        ("in-memory model ÷ idiomatic SimPy, same results", 100, 300),
    ]
    assert "450 slots are equal" in part.remarks[0]


@pytest.mark.parametrize("contender", ["lean", "idiomatic"])
def test_every_limit_binds_in_the_load_and_simpy_sees_it_too(contender):
    pytest.importorskip("simpy")
    given = model.load(2_000)
    own = model.arrays(given)
    assert getattr(model, contender)(given).tolist() == own.tolist()
    first = own[::3] - given.who.due_us
    wait_s = np.unique(first[first > 0]) / 1e6
    assert wait_s.min() < model.GAP_S  # behind the pacing
    assert wait_s.max() > 20 * 3600  # behind the day
    assert len(np.unique(given.who.due_us)) == 2_000  # no ties


async def test_schedules_that_differ_are_found_out(bench, monkeypatch):
    pytest.importorskip("simpy")
    right = model.lean
    monkeypatch.setattr(model, "lean", lambda given: right(given) + 1)
    with pytest.raises(RuntimeError, match="not equal"):
        await model.measure(bench)


async def test_without_simpy_the_model_stands_alone(bench, monkeypatch):
    monkeypatch.setattr(model, "simpy", None)
    part = await model.measure(bench)
    assert (rows(part), part.ratios, list(part.skipped)) == ([("in-memory model", "ms", 1)], [], ["SimPy"])


# HTTP ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_the_http_part_has_every_message_accepted_once_by_every_contender(bench, monkeypatch):
    monkeypatch.setattr(http, "CONNECTIONS", 16)
    part = await http.measure(bench)
    sender, one, many = http.SENDER, http.ONE_CLIENT, http.MANY_CLIENTS
    assert rows(part) == [
        *((name, "sends/s", 1) for name in (sender, one, many)),
        (f"{sender} ÷ {one}", "x", 1),
        (f"{sender} ÷ {many}", "x", 1),
        ("memory of 100,000 messages in flight", "MB", 1),
    ]
    assert "logged 450 different keys" in part.remarks[0]
    log = [json.loads(line) for line in (bench.place / "arrivals.jsonl").read_text().splitlines()]
    assert [line["answer"] for line in log] == ["accepted"] * 450
    by_text = [line["text_sha256"] for line in log]
    assert all(sorted(by_text[start : start + 150]) == sorted(by_text[:150]) for start in (150, 300))
    held = [json.loads(line) for line in (bench.place / "silent.jsonl").read_text().splitlines()]
    assert len({line["key"] for line in held}) == len(held) == 16


@pytest.mark.slow
async def test_a_gateway_that_refuses_is_no_measurement(bench, monkeypatch):
    process = http.GatewayProcess
    monkeypatch.setattr(http, "CONNECTIONS", 16)
    monkeypatch.setattr(http, "GatewayProcess", lambda log, *given: process(log, *given, "--fail", "refuse=0.5"))
    with pytest.raises(RuntimeError, match="not every message"):
        await http.measure(bench)
