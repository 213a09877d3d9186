"""The interval of a share."""

from __future__ import annotations

import pytest
import scipy

from tasks.gate import wilson


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
@pytest.mark.parametrize(("correct", "rows"), [(0, 1), (1, 1), (0, 30), (30, 30), (349, 360), (9_632, 10_000)])
def test_the_interval_is_the_one_that_scipy_finds(correct: int, rows: int, confidence: float):
    interval = scipy.stats.binomtest(correct, rows).proportion_ci(confidence, method="wilson")
    assert wilson.interval(correct, rows, confidence) == pytest.approx((interval.low, interval.high), abs=1e-12)


def test_the_interval_has_no_rounding_at_its_ends():
    assert wilson.interval(0, 30)[0] == 0
    assert wilson.interval(30, 30)[1] == 1


def test_the_interval_of_nothing_is_everything():
    assert wilson.interval(0, 0) == (0, 1)


@pytest.mark.parametrize("error", [1e-300, 1e-17, 1e-16, 1e-15])
def test_an_interval_that_is_almost_sure_is_no_smaller_than_a_less_sure_one(error: float):
    low, high = wilson.interval(350, 360, 1 - error)
    wide, high_end = wilson.interval(350, 360, 1 - 1e-13)
    assert 0 <= low < wide < high_end < high <= 1
