"""Backoff grows within its bounds; draws depend on their keys and on nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.config import Settings
from dispatcher.core.backoff import delay_s, delays_s, draw, text_key, uniform

int64s = st.integers(-(2**63), 2**63 - 1)


def test_the_delay_grows_sevenfold_up_to_the_cap_and_jitters_down_to_half() -> None:
    assert [delay_s(retry, 0.0, 60, 21_000) for retry in (1, 2, 3, 4, 5, 6)] == [30, 210, 1470, 10_290, 10_500, 10_500]
    assert delay_s(3, 0.5, 60, 21_000) == 2205
    assert delay_s(10**9, 0.0, 60, 14_400) == 7200


def test_the_default_settings_give_five_attempts_over_about_six_hours() -> None:
    default = Settings.model_fields
    limit, base_s, cap_s = (default[f"retry_{name}"].default for name in ("limit", "base_s", "cap_s"))
    waits = [[delay_s(retry, uniform, base_s, cap_s) for retry in range(1, limit + 1)] for uniform in (0, 1)]
    assert ([len(each) + 1 for each in waits], [round(sum(each) / 3600, 1) for each in waits]) == ([5, 5], [3.3, 6.7])


@given(
    st.lists(st.tuples(st.integers(1, 10**6), st.floats(0, 1, exclude_max=True)), max_size=20),
    st.floats(0.001, 1e4),
    st.floats(0.001, 1e6),
)
def test_every_row_waits_between_half_and_all_of_its_bound(
    rows: list[tuple[int, float]], base_s: float, cap_s: float
) -> None:
    retry = np.array([row[0] for row in rows], np.int32)
    jitter = np.array([row[1] for row in rows], np.float64)
    waits = delays_s(retry, jitter, base_s, cap_s).tolist()
    assert waits == [delay_s(*row, base_s, cap_s) for row in rows]
    for (number, _), wait in zip(rows, waits, strict=True):
        bound = min(cap_s, base_s * 7.0 ** min(number - 1, 60))
        assert bound / 2 <= wait <= bound


def test_draws_are_splitmix64() -> None:
    # First outputs of the reference generator seeded with 0: https://prng.di.unimi.it/splitmix64.c
    assert draw(0) == (0xE220A8397B1DCDAF >> 11) * 2.0**-53


@pytest.mark.parametrize("other", [(2, 7, 3), (1, 3, 7), (1, 7, 4), (1, 7)])
def test_other_keys_draw_otherwise(other: tuple[int, ...]) -> None:
    assert draw(*other) != draw(1, 7, 3)


@given(st.integers(0, 2**64 - 1), st.lists(st.tuples(int64s, int64s), max_size=20))
def test_columns_draw_what_their_rows_draw(seed: int, rows: list[tuple[int, int]]) -> None:
    columns = np.array(rows, np.int64).reshape(-1, 2).T
    drawn = uniform(seed, *columns).tolist()
    assert drawn == [draw(seed, *row) for row in rows]
    assert all(0 <= each < 1 for each in drawn)


def test_draws_fill_the_unit_interval_evenly() -> None:
    drawn = uniform(1, np.arange(100_000), np.zeros(100_000, np.int64))
    shares = np.histogram(drawn, bins=10, range=(0, 1))[0]
    assert np.all(np.abs(shares - 10_000) < 500)
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 0.02


def test_a_text_is_a_key_that_fits_a_column() -> None:
    assert text_key("fitness_start") == 4190980895753015931
    assert np.int64(text_key("fitness_day2")) == text_key("fitness_day2")


@given(st.lists(st.text(), unique=True, max_size=20))
def test_different_texts_are_different_keys(texts: list[str]) -> None:
    assert len({text_key(text) for text in texts}) == len(texts)
