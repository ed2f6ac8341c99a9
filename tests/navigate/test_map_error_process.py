"""The map's error as two states: stationary, a martingale going down, and a real field's means."""

import math
from dataclasses import replace

import numpy as np
import pytest
import simulated_device
import torch
from descent_model import F64, SPEC, at_truth
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tnav.navigate.filter import relief_around_m2, update_ground
from tnav.navigate.map_error import mean_share, rescale, rescaled, travel, travelled
from tnav.navigate.mechanisation import MAP_LOCAL, MAP_MEAN
from tnav.navigate.state import FilterConfig, FilterState
from tnav.terrain.heightfield import Level, Terrain

SIGMA_M, LENGTH_M = 3.0, 300.0
CONFIG = FilterConfig(map_sigma_m=SIGMA_M, map_correlation_m=LENGTH_M)
PAIR = slice(MAP_MEAN, MAP_LOCAL + 1)
# (what is done, how much of it): a distance in m, or a mean's share of the field's variance.
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("travel"), st.floats(0.0, 5000.0)),
        st.tuples(st.just("rescale"), st.floats(0.0, 0.999)),
    ),
    max_size=12,
)


def f64(*x: float) -> Tensor:
    return torch.tensor(x, dtype=F64)


def stated(mean_m2: Tensor) -> Tensor:
    """Covariance of (mean, local) that a mean of variance m has a priori."""
    both = mean_m2.expand_as(mean_m2)
    local = torch.full_like(both, SIGMA_M**2)
    return torch.stack([torch.stack([both, both], -1), torch.stack([both, local], -1)], -2)


def moved(state: FilterState, ground_m: float) -> FilterState:
    """The lander farther east by a distance."""
    east = torch.tensor([ground_m, 0.0, 0.0], dtype=F64).to(state.position_L.device)
    return replace(state, position_L=state.position_L + east)


def after(state: FilterState, steps: list[tuple[str, float]]) -> FilterState:
    for what, amount in steps:
        if what == "travel":
            footprint_m = torch.full_like(state.map_mean_m, 800.0)
            state = travel(moved(state, amount), footprint_m, CONFIG)
        else:
            share_m2 = torch.full_like(state.map_mean_m, amount * SIGMA_M**2)
            state = rescale(state, share_m2, CONFIG)
    return state


@given(STEPS)
@settings(max_examples=60, deadline=None)
def test_stated_variances_are_kept_by_any_sequence(steps: list[tuple[str, float]]) -> None:
    state = after(at_truth(0.0, CONFIG), steps)
    P = state.covariance[:, PAIR, PAIR]
    assert torch.allclose(P, stated(state.map_mean_variance_m2), rtol=1e-9, atol=1e-9)
    shares = [amount for what, amount in steps if what == "rescale"] or [0.0]
    assert float(state.map_mean_variance_m2) == pytest.approx(shares[-1] * SIGMA_M**2)
    rest = [i for i in range(29) if i not in (MAP_MEAN, MAP_LOCAL)]
    before = at_truth(0.0, CONFIG).covariance
    assert torch.equal(state.covariance[:, rest][:, :, rest], before[:, rest][:, :, rest])


@given(st.floats(0.0, 5000.0), st.floats(0.0, 5000.0), st.floats(0.0, 0.999))
def test_travel_is_a_semigroup(a_m: float, b_m: float, share: float) -> None:
    """Two stages of a way are the whole way: how often it is renewed does not matter."""
    m, footprint = f64(share * SIGMA_M**2), f64(800.0)
    (F1, Q1), (F2, Q2), (F, Q) = (
        travelled(f64(d), footprint, m, SIGMA_M, LENGTH_M) for d in (a_m, b_m, a_m + b_m)
    )
    assert torch.allclose(F2 @ F1, F, atol=1e-12)
    assert torch.allclose(F2 @ Q1 @ F2.mT + Q2, Q, atol=1e-9)


@given(st.floats(1e-3, 0.999), st.floats(1e-3, 0.999))
def test_means_at_two_heights_are_correlated_as_a_martingale(one: float, other: float) -> None:
    """Correlation is the root of the ratio of the smaller variance to the larger, up or down.

    The pair starts as stated, so the covariance of the mean with its successor is F's first row
    times the first column.
    """
    before, behind = f64(one * SIGMA_M**2), f64(other * SIGMA_M**2)
    F, Q = rescaled(before, behind, SIGMA_M)
    start = stated(before)
    across = (F @ start)[0, 0, 0]
    end = F @ start @ F.mT + Q
    correlation = float(across / (start[0, 0, 0] * end[0, 0, 0]).sqrt())
    expected = math.sqrt(min(one, other) / max(one, other))
    assert correlation == pytest.approx(expected, abs=1e-9)
    assert torch.linalg.eigvalsh(Q).min() > -1e-12


def test_nothing_changes_over_no_distance_at_equal_variance() -> None:
    still = travelled(f64(0.0, 0.0), f64(50.0, 5000.0), f64(0.0, 4.0), SIGMA_M, LENGTH_M)
    same = rescaled(f64(1e-3, 4.0), f64(1e-3, 4.0), SIGMA_M)
    for F, Q in (still, same):
        assert torch.equal(F, torch.eye(2, dtype=F64).expand(2, 2, 2))
        assert not bool(Q.any())
    state = after(at_truth(0.0, CONFIG), [("rescale", 0.4), ("travel", 100.0)])
    again = after(state, [("rescale", 0.4), ("travel", 0.0)])
    assert torch.allclose(again.covariance, state.covariance, rtol=0, atol=1e-12)


def test_a_long_way_forgets_and_the_estimate_goes_back_to_its_mean() -> None:
    state = after(at_truth(0.0, CONFIG), [("rescale", 0.3)])
    P = state.covariance.clone()
    P[:, PAIR, PAIR] = 0.1 * torch.eye(2, dtype=F64)
    state = replace(state, covariance=P, map_mean_m=f64(2.0), map_local_m=f64(-1.0))
    # A footprint of 800 m: the mean forgets over 1100 m what the local error forgets over 300 m.
    near = after(state, [("travel", 300.0)])
    slow, fast = math.exp(-300 / 1100), math.exp(-1)
    assert near.map_mean_m.item() == pytest.approx(2.0 * slow)
    assert near.map_local_m.item() == pytest.approx(2.0 * slow + fast * (-1.0 - 2.0))
    assert near.covariance[0, MAP_MEAN, MAP_MEAN].item() == pytest.approx(
        0.1 * slow**2 + 0.3 * SIGMA_M**2 * (1 - slow**2)
    )
    far = after(state, [("travel", 50_000.0)])
    assert far.map_mean_m.abs().item() < 1e-12
    assert far.map_local_m.abs().item() < 1e-12
    assert torch.allclose(far.covariance[:, PAIR, PAIR], stated(far.map_mean_variance_m2))


def test_relief_around_is_news_of_the_local_error_alone() -> None:
    """A lander that does not know its place: (1 - r^2) of the relief, in the local variance."""
    without, with_relief = (
        travelled(f64(150.0), f64(800.0), f64(4.0), SIGMA_M, LENGTH_M, x) for x in (None, f64(49.0))
    )
    assert torch.equal(without[0], with_relief[0])
    extra = (with_relief[1] - without[1])[0]
    assert float(extra[1, 1]) == pytest.approx(49.0 * (1 - math.exp(-1.0)))
    extra[1, 1] = 0.0
    assert not bool(extra.any())


def test_mean_share_is_kept_under_a_points() -> None:
    share = mean_share(f64(-1.0, 4.0, 8.99, 8.995, 100.0), SIGMA_M)
    assert share.tolist() == pytest.approx([0.0, 4.0, 8.99, 8.991, 8.991])


def test_box_means_of_a_field_are_such_a_martingale() -> None:
    """4000 Gaussian fields of a correlation far shorter than the squares that are averaged.

    For nested squares the means' covariance is the larger square's variance, so the correlation is
    the ratio of sides; and the lead from the mean to the centre's value is uncorrelated with it.
    """
    rng = np.random.default_rng(3)
    side, draws, sides = 64, 4000, (60, 44, 30)
    kx, ky = np.meshgrid(np.fft.rfftfreq(side), np.fft.fftfreq(side))
    blur = np.exp(-2 * math.pi**2 * 0.7**2 * (kx**2 + ky**2))  # correlation length 0.7 * sqrt(2)
    field = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((draws, side, side))) * blur)
    field /= field.std()
    boxes = [slice((side - s) // 2, (side + s) // 2) for s in sides]
    means = np.stack([field[:, box, box].mean((1, 2)) for box in boxes])
    variance = means.var(1)
    measured = np.corrcoef(means)
    for i, j in ((0, 1), (1, 2), (0, 2)):
        # 4000 draws measure a correlation c to (1 - c^2) / sqrt(4000) < 0.013.
        assert measured[i, j] == pytest.approx(math.sqrt(variance[i] / variance[j]), abs=0.05)
        assert measured[i, j] == pytest.approx(sides[j] / sides[i], abs=0.05)
    lead = field[:, side // 2, side // 2] - means[2]
    assert lead.var() == pytest.approx(1 - variance[2], abs=0.07)  # 3 sqrt(2 / 4000)
    assert abs(np.corrcoef(lead, means[2])[0, 1]) < 0.05


# What one image says of the ground under the lander ----------------------------------------------


def _told(state: FilterState, error_m: float, variance_m2: float):
    there = torch.ones(1, dtype=torch.bool)
    return update_ground(state, f64(error_m), f64(variance_m2), there, CONFIG)


@pytest.mark.parametrize("share", [0.0, 0.4])
@pytest.mark.parametrize("noise_m2", [0.01, 2.0, 40.0])
def test_the_images_likelihood_is_found_again(share: float, noise_m2: float) -> None:
    """A posterior whose prior the filter shares gives back that posterior, mean and variance."""
    state = after(at_truth(70.0, CONFIG), [("rescale", share)])
    prior_m2, measured_m = (1 - share) * SIGMA_M**2, 1.3
    variance_m2 = 1 / (1 / prior_m2 + 1 / noise_m2)
    told, seen = _told(state, measured_m * variance_m2 / noise_m2, variance_m2)
    assert bool(seen.fused[0])
    assert seen.value.item() == pytest.approx(measured_m)
    assert seen.nis.item() == pytest.approx(measured_m**2 / (prior_m2 + noise_m2))
    lead_m = (told.map_local_m - told.map_mean_m).item()
    assert lead_m == pytest.approx(measured_m * variance_m2 / noise_m2)
    P = told.covariance[0]
    lead_m2 = P[MAP_LOCAL, MAP_LOCAL] + P[MAP_MEAN, MAP_MEAN] - 2 * P[MAP_LOCAL, MAP_MEAN]
    assert lead_m2.item() == pytest.approx(variance_m2)
    assert P[MAP_MEAN, MAP_MEAN].item() == pytest.approx(share * SIGMA_M**2, abs=1e-12)


def test_an_image_without_news_changes_nothing() -> None:
    state = after(at_truth(70.0, CONFIG), [("rescale", 0.4)])
    limit_m2 = 0.9 * 0.6 * SIGMA_M**2
    for error_m, variance_m2 in ((1.0, limit_m2 * 1.001), (1.0, 50.0), (1.0, math.nan)):
        same, seen = _told(state, error_m, variance_m2)
        assert not bool(seen.present[0])
        assert not bool(seen.fused[0])
        assert torch.equal(same.covariance, state.covariance)
        assert torch.equal(same.map_local_m, state.map_local_m)
        assert torch.equal(same.rejected_run, state.rejected_run)
    told, seen = _told(state, 1.0, limit_m2 * 0.999)
    assert bool(seen.fused[0])
    assert told.map_local_m.item() == pytest.approx(1.0, rel=0.01)
    absent = torch.zeros(1, dtype=torch.bool)
    same, seen = update_ground(state, f64(math.nan), f64(math.nan), absent, CONFIG)
    assert not bool(seen.present[0])
    assert torch.equal(same.covariance, state.covariance)


# Relief around a place that is not known ----------------------------------------------------------


def _over(z: Tensor) -> Terrain:
    axis = (torch.arange(z.shape[0]) - z.shape[0] / 2) * 5.0
    return Terrain([Level(float(axis[0]), float(axis[0]), 5.0, z.float())])


def _hanging(tilt_rad: float = 0.0) -> FilterState:
    """400 m up, pointing down, not knowing its place to 20 m east and 30 m north."""
    state = at_truth(70.0, CONFIG)
    P = state.covariance.clone()
    P[:, 0, 0], P[:, 1, 1] = 20.0**2, 30.0**2
    turn = torch.eye(3, dtype=F64)
    c, s = math.cos(tilt_rad), math.sin(tilt_rad)
    turn[0, 0], turn[0, 2], turn[2, 0], turn[2, 2] = c, s, -s, c
    at = torch.tensor([[1.0, 2.0, 400.0]], dtype=F64)
    return replace(state, covariance=P, position_L=at, R_L_B=turn[None])


def test_a_cliff_one_sigma_away_counts_by_the_sigma_points() -> None:
    east_m = ((torch.arange(200) - 100) * 5.0).expand(200, 200)
    for edge_m, depth_m, off in ((15.0, 60.0, 1), (30.0, 60.0, 0), (-5.0, 60.0, 3)):
        terrain = _over(torch.where(east_m >= edge_m, -depth_m, 0.0))
        relief_m2 = relief_around_m2(_hanging(), terrain, SPEC)
        # One beam of four ends lower; from beyond the edge (-5 m) it is one that ends higher.
        expected = depth_m**2 / 4 if off else 0.0
        assert relief_m2.item() == pytest.approx(expected, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("tilt_rad", [0.0, 0.2])
def test_a_plane_adds_nothing_however_it_slopes(tilt_rad: float) -> None:
    axis = (torch.arange(200) - 100) * 5.0
    terrain = _over(0.2 * axis[None, :] - 0.1 * axis[:, None])
    relief_m2 = relief_around_m2(_hanging(tilt_rad), terrain, SPEC)
    assert relief_m2.item() < 1e-5  # heights are float32: 1e-5 m, over a cosine


def test_beams_beside_the_map_count_nothing() -> None:
    terrain = _over(torch.zeros(200, 200))
    edge = replace(_hanging(), position_L=torch.tensor([[490.0, 0.0, 400.0]], dtype=F64))
    beyond = replace(_hanging(), position_L=torch.tensor([[5e4, 0.0, 400.0]], dtype=F64))
    for state in (edge, beyond):
        assert relief_around_m2(state, terrain, SPEC).item() == pytest.approx(0.0, abs=1e-8)


def test_same_numbers_on_an_accelerator() -> None:
    simulated_device.install()
    there, z = simulated_device.DEVICE, torch.zeros(200, 200)
    z[:, 103:] = -60.0
    here = _hanging()
    want = after(here, [("rescale", 0.2), ("travel", 90.0), ("rescale", 0.1)])
    carried = replace(
        here,
        **{
            name: getattr(here, name).to(there)
            for name in here.__slots__
            if isinstance(getattr(here, name), Tensor)
        },
    )
    terrain = _over(z).to(there)
    with simulated_device.count_syncs() as syncs:
        got = after(carried, [("rescale", 0.2), ("travel", 90.0), ("rescale", 0.1)])
    assert not syncs, syncs
    assert torch.equal(got.covariance.cpu(), want.covariance)
    relief_m2 = relief_around_m2(carried, terrain, SPEC).cpu()
    assert torch.equal(relief_m2, relief_around_m2(here, _over(z), SPEC))
