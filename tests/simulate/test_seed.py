"""The same seed gives the same receipts, whatever the number of shards; another seed gives others."""

from __future__ import annotations

import pytest


@pytest.mark.slow
def test_a_seed_decides_everything(world):
    def sha256(**plan: int) -> str:
        done = world.rehearse(devices=60, leads=600, days=4, **plan)
        assert done.outcome.good
        assert len(done.receipts) == done.outcome.sends == 3 * done.outcome.enrolled == 3 * done.outcome.completed
        return done.outcome.receipts_sha256

    first = sha256(seed=1)
    assert sha256(seed=1) == first
    assert sha256(seed=1, shards=3) == first
    assert sha256(seed=2) != first


@pytest.mark.slow
def test_trust_that_runs_out_costs_neither_messages_nor_virtual_time(world):
    """Renewed by heartbeat alone, hundreds of ticks would go by without a slot."""
    done = world.rehearse(devices=20, leads=200, days=4, settings={"trust_s": 0.2})
    assert done.outcome.good
    assert done.outcome.completed == done.outcome.enrolled
    assert done.outcome.lateness_s["max"] < 10 * done.outcome.tick_s
