import math

import pytest
import torch

from tnav.navigate.shared_error import shared_error_inflation
from tnav.records import MapErrorModel

POINT = MapErrorModel(3.0, 1.0)  # correlated over less than any footprint here


def _inflation(height_m, descent_m_s, interval_s=5.0, model=POINT):
    heights = torch.tensor([height_m], dtype=torch.float64)
    speeds = torch.tensor([descent_m_s], dtype=torch.float64)
    return float(shared_error_inflation(heights, speeds, interval_s, math.radians(45), model))


def test_closed_form_where_the_field_is_short():
    rho = math.exp(-100.0 * 5.0 / 2000.0)
    assert _inflation(2000.0, 100.0) == pytest.approx((1 + rho) / (1 - rho), rel=1e-4)
    assert _inflation(2000.0, -100.0) == _inflation(2000.0, 100.0)


def test_far_apart_fixes_are_independent_and_a_hover_sees_one_error():
    assert _inflation(100.0, 400.0) == pytest.approx(1.0, abs=1e-6)
    assert _inflation(500.0, 0.0) == 100.0


def test_a_footprint_within_one_correlation_length_sees_one_error():
    wide = MapErrorModel(3.0, 1e5)
    assert _inflation(500.0, 50.0, model=wide) == 100.0
    assert 1 < _inflation(500.0, 50.0) < _inflation(500.0, 50.0, model=MapErrorModel(3.0, 300.0))


def test_it_is_the_variance_of_a_mean_of_nested_footprints():
    """Simulated: means of white noise over shrinking squares; the mean of n such means."""
    generator = torch.Generator().manual_seed(0)
    ratio, n, draws, side = 0.8, 8, 3000, 100
    sides = [round(side * ratio**k) for k in range(n)]
    noise = torch.randn(draws, side, side, generator=generator)
    means = torch.stack(
        [noise[:, (side - s) // 2 : (side + s) // 2, (side - s) // 2 : (side + s) // 2].mean((1, 2))
         for s in sides], -1
    )  # fmt: skip
    means = means / means.std(0)
    correlation = float((means[:, 2] * means[:, 3]).mean())
    assert correlation == pytest.approx(ratio, abs=0.05)  # ratio of heights
    measured = float(means.mean(-1).var()) * n
    limit = (1 + ratio) / (1 - ratio)  # of a long run; a short one has met less of it
    assert 0.4 * limit < measured < limit


def test_batch():
    heights = torch.tensor([5000.0, 500.0], dtype=torch.float64)
    speeds = torch.tensor([-100.0, -50.0], dtype=torch.float64)
    both = shared_error_inflation(heights, speeds, 5.0, math.radians(45), POINT)
    assert both[0] == pytest.approx(_inflation(5000.0, -100.0))
    assert both[1] == pytest.approx(_inflation(500.0, -50.0))
