"""The calibration of matches' covariance, where the truth is drawn from it."""

import numpy as np
import pytest
import torch

from tnav.errors import ConfigError
from tnav.evaluate.match_covariance import Sizes, _mean_row, most_likely

A, B, C = -1.2, 0.9, 0.3


def drawn(n: int, seed: int = 0) -> Sizes:
    """Errors of two dimensions whose variance is exp(A) s^B t^C."""
    rng = np.random.default_rng(seed)
    s, t = np.exp(rng.normal(-3, 1, n)), np.exp(rng.normal(-1, 0.7, n))
    size = np.exp(A) * s**B * t**C
    return Sizes(size * rng.chisquare(2, n), s, t)


def test_the_law_is_found_again() -> None:
    """At n = 20 000 the sigmas of b and c are 1 / (sqrt(n) x spread): 0.007 and 0.010."""
    a, b, c = most_likely(drawn(20_000))
    assert abs(b - B) < 0.03
    assert abs(c - C) < 0.04
    assert abs(a - A) < 0.1


def test_the_fitted_mean_is_one() -> None:
    sizes = drawn(500)
    a, b, c = most_likely(sizes)
    size = np.exp(a) * sizes.curvature_px2**b * sizes.stated_px2**c
    assert np.mean(sizes.square_px2 / size / 2) == pytest.approx(1.0, abs=1e-4)


def test_too_few_matches_are_refused() -> None:
    most_likely(drawn(100))
    with pytest.raises(ConfigError, match="99 right matches, expected 100 or more"):
        most_likely(drawn(99))


@pytest.mark.parametrize(("value", "passed"), [(0.89, False), (0.91, True), (1.09, True),
                                               (1.11, False)])  # fmt: skip
def test_the_limit_is_ten_percent(value: float, passed: bool) -> None:
    row = _mean_row("x", [np.full(10, value), np.empty(0)], torch.device("cpu"), limited=True)
    assert (row.passed, row.n) == (passed, 10)


def test_nothing_matched_is_no_figure() -> None:
    row = _mean_row("x", [np.empty(0)], torch.device("cpu"), limited=True)
    assert (row.value, row.n) == (None, 0)
