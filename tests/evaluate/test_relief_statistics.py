import json
import math

import numpy as np
import pytest
import torch

from tnav.evaluate import relief_statistics as statistics
from tnav.terrain.lattice import Window
from tnav.terrain.synthetic import Relief, relief


def test_the_default_relief_is_mare_by_every_figure():
    said = []
    rows, figure = statistics.measure_relief(0, said.append)
    assert [row.name for row in rows if row.passed is False] == []
    assert sum(row.passed is True for row in rows) >= 12
    assert said
    json.dumps(figure)
    assert set(figure) == {"counts", "slope", "deviation"}
    for chart in figure.values():
        assert chart["curves"]
        for points in chart["points"]:
            assert all(math.isfinite(v["y"]) for v in points["values"])


def test_a_relief_that_is_not_mare_fails():
    crowded = Relief(equilibrium=0.3)
    rows, _ = statistics.count_rows_and_points(1, crowded)
    assert [row.passed for row in rows[:3]] == [False, False, False]  # 2, 8 and 32 m
    rough = Relief(rms_deviation_17m_m=1.5)
    at_17 = statistics.survey(8.5, (2,), 0, rough)
    assert at_17.slope_deg[0] > 2.0 + 0.3


def test_bidirectional_slope_of_a_plane_is_its_gradient():
    row, col = torch.meshgrid(torch.arange(20.0), torch.arange(30.0), indexing="ij")
    plane = 2.0 * (0.03 * row + 0.04 * col)  # posts of 2 m
    slope = statistics.bidirectional_slope(plane, 3, 2.0)
    assert torch.allclose(slope, torch.full_like(slope, 0.05), atol=1e-6)
    assert slope.shape == (17 * 27,)


def test_mean_square_deviation_by_hand():
    z = torch.tensor([[0.0, 1.0], [2.0, 5.0]])
    assert statistics.mean_square_deviation_m2(z, 1) == pytest.approx((1 + 9 + 4 + 16) / 4)


def test_hurst_exponent_of_a_power_law_stops_at_the_breakover():
    baseline = np.array([50.0, 100.0, 400.0, 2000.0])
    deviation = 0.1 * baseline**0.76
    deviation[-1] = 1.0
    assert statistics.hurst_exponent(baseline, deviation) == pytest.approx(0.76)


def test_count_interval_is_garwoods_and_widens_with_clusters():
    low, high = statistics.count_interval(10, Relief(secondary_share=0.0))
    assert low == pytest.approx(4.795, abs=1e-3)  # tabulated
    assert high == pytest.approx(18.390, abs=1e-3)
    wider = statistics.count_interval(10, Relief(secondary_share=0.5))
    assert wider[0] < low < high < wider[1]
    assert statistics.count_interval(0, Relief(secondary_share=0.0)) == (
        0.0,
        pytest.approx(3.689, abs=1e-3),
    )


def test_apparent_depth_of_a_cone_and_of_a_slope():
    window = Window(1.0, -50, -50, 101, 101)
    east, north = window.axes_m()
    radius = torch.hypot(east[None, :], north[:, None])
    cone = (0.2 * radius).float()
    zero, diameter = np.zeros(1), np.array([40.0])
    # The ring at 20 m less the ring at 3 m, to the nearest post.
    ratio = statistics.apparent_depth_ratio(cone, window, zero, zero, diameter)
    assert ratio[0] == pytest.approx(0.2 * 17 / 40, abs=0.003)
    tilted = (0.1 * east).float().expand(101, 101).contiguous()
    flat = statistics.apparent_depth_ratio(tilted, window, zero, zero, diameter)
    assert flat[0] == pytest.approx(0.0, abs=1e-3)


def test_craters_buried_in_roughness_are_not_seen():
    buried = Relief(rms_deviation_17m_m=8.0, hurst=0.5)
    row, _ = statistics.seen_row_and_point(2.0, 0, buried)
    clear, _ = statistics.seen_row_and_point(2.0, 0, Relief(rms_deviation_17m_m=0.05))
    assert row.value < 1.0
    assert row.passed is False
    assert clear.value > 3.5


def test_levels_keep_the_depth_of_fresh_craters(monkeypatch):
    """And they would not, if a level lacked the craters that the finer one shows averaged."""
    assert statistics.built_depth_row(0, Relief()).passed
    monkeypatch.setattr(relief, "POSTS_PER_DIAMETER", 2.0)
    assert not statistics.built_depth_row(0, Relief()).passed
