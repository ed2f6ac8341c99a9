"""The map's error as three states: stationary, a martingale going down, a real field's means."""

import math
from dataclasses import replace

import numpy as np
import pytest
import simulated_device
import torch
from descent_model import F64, SPEC, at_truth
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tnav.navigate.altimetry import relief_around_m2
from tnav.navigate.filter import update_ground
from tnav.navigate.map_error import (
    View,
    Way,
    carried,
    extrapolated_m2,
    mean_kept,
    mean_share,
    rescale,
    rescaled,
    root_of,
    side_kept,
    travel,
    travelled,
)
from tnav.navigate.mechanisation import MAP_BEAM, MAP_LOCAL, MAP_MEAN, MAP_SIDE, STATES
from tnav.navigate.state import FilterConfig, FilterState
from tnav.terrain.heightfield import Level, Terrain

SIGMA_M, LENGTH_M = 3.0, 300.0
CONFIG = FilterConfig(map_sigma_m=SIGMA_M, map_correlation_m=LENGTH_M)
THREE = slice(MAP_MEAN, MAP_BEAM + 1)
HERE = torch.zeros(1, 2, 2, dtype=torch.float64)
# (what is done, how much of it): a distance in m, or a mean's share of the field's variance.
TRAVEL = st.tuples(st.just("travel"), st.floats(0.0, 5000.0))
RESCALE = st.tuples(st.just("rescale"), st.floats(0.0, 0.999))
LOOK = st.tuples(st.just("look"), st.floats(-2000.0, 2000.0))  # how far north the beam goes
STEPS = st.lists(st.one_of(TRAVEL, RESCALE), max_size=12)
WILD = st.lists(st.one_of(TRAVEL, RESCALE, LOOK), max_size=12)
PLACES = st.lists(st.floats(-2000.0, 2000.0), min_size=4, max_size=4)


def f64(*x: float) -> Tensor:
    return torch.tensor(x, dtype=F64)


def way(before_m: Tensor, after_m: Tensor, since_m: float = 0.0) -> Way:
    """From nadir and beam to nadir and beam; so far from the last image at its start."""
    west = f64(since_m, 0.0)
    return Way(before_m, after_m, before_m[:, 0] - west)


def places(x: list[float]) -> Tensor:
    """Nadir and beam."""
    return f64(*x).reshape(1, 2, 2)


def stated(mean_m2: Tensor, apart_m: float = 0.0) -> Tensor:
    """Covariance of (mean, local, beam) that a mean of variance m has a priori."""
    P = mean_m2[:, None, None].expand(-1, 3, 3).clone()
    lead_m2 = SIGMA_M**2 - mean_m2
    alike = math.exp(-0.5 * (apart_m / LENGTH_M) ** 2)
    for i, j, of_lead in ((1, 1, 1.0), (2, 2, 1.0), (1, 2, alike), (2, 1, alike)):
        P[:, i, j] += of_lead * lead_m2
    return P


def moved(state: FilterState, ground_m: float) -> FilterState:
    """The lander farther east by a distance."""
    east = torch.tensor([ground_m, 0.0, 0.0], dtype=F64).to(state.position_L.device)
    return replace(state, position_L=state.position_L + east)


def after(
    state: FilterState, steps: list[tuple[str, float]], footprint_m: float = 800.0
) -> FilterState:
    beam_m = state.position_L[:, :2] * 0.0
    view = View(torch.full_like(state.map_mean_m, footprint_m), beam_m)
    for what, amount in steps:
        if what == "rescale":
            share_m2 = torch.full_like(state.map_mean_m, amount * SIGMA_M**2)
            state = rescale(state, share_m2, CONFIG)
            continue
        if what == "look":
            north = torch.tensor([0.0, 1.0], dtype=F64).to(beam_m.device)
            view = View(view.footprint_m, beam_m + amount * north)
        state = travel(moved(state, amount if what == "travel" else 0.0), view, CONFIG)
    return state


@given(STEPS)
@settings(max_examples=60, deadline=None)
def test_stated_variances_are_kept_by_any_sequence(steps: list[tuple[str, float]]) -> None:
    state = after(at_truth(0.0, CONFIG), steps)
    P = state.covariance[:, THREE, THREE]
    assert torch.allclose(P, stated(state.map_mean_variance_m2), rtol=1e-9, atol=1e-9)
    shares = [amount for what, amount in steps if what == "rescale"] or [0.0]
    assert float(state.map_mean_variance_m2) == pytest.approx(shares[-1] * SIGMA_M**2)
    rest = [i for i in range(STATES) if i not in (MAP_MEAN, MAP_LOCAL, MAP_BEAM)]
    before = at_truth(0.0, CONFIG).covariance
    assert torch.equal(state.covariance[:, rest][:, :, rest], before[:, rest][:, :, rest])


@given(WILD)
@settings(max_examples=60, deadline=None)
def test_any_sequence_of_looks_leaves_a_covariance(steps: list[tuple[str, float]]) -> None:
    """All three stay within half of the field's variance of their stated ones.

    Footprints that change between two looks move the leads' correlation by a second order, which
    the conditional distribution of the exponential field then does not know of.
    """
    state = after(at_truth(0.0, CONFIG), steps)
    P = state.covariance[0, THREE, THREE]
    assert torch.allclose(P, P.mT, rtol=0, atol=1e-12)
    assert torch.linalg.eigvalsh(P).min() > -1e-9
    variances = [float(state.map_mean_variance_m2), SIGMA_M**2, SIGMA_M**2]
    assert P.diagonal().tolist() == pytest.approx(variances, abs=0.5 * SIGMA_M**2)


@given(PLACES, PLACES, st.floats(0.0, 0.999), st.floats(0.0, 900.0))
def test_a_way_of_two_places_keeps_the_field(
    old: list[float], new: list[float], share: float, since_m: float
) -> None:
    """From the stated covariance at any two places to that at any other two, also coincident."""
    m, before, then = f64(share * SIGMA_M**2), places(old), places(new)
    one = before[:, :1].expand(1, 2, 2)
    for start, end in ((before, then), (one, then), (then, one), (before, before)):
        F, Q = travelled(way(start, end, since_m), f64(800.0), m, SIGMA_M, LENGTH_M)
        apart = [float((x[0, 0] - x[0, 1]).norm()) for x in (start, end)]
        P = F @ stated(m, apart[0]) @ F.mT + Q
        assert torch.allclose(P, stated(m, apart[1]), rtol=0, atol=1e-8)
        assert torch.linalg.eigvalsh(Q).min() > -1e-9
        root = root_of(Q)
        assert torch.allclose(root @ root.mT, Q, rtol=0, atol=1e-10)


@given(PLACES, st.floats(0.0, 0.999))
def test_after_an_image_leads_go_as_a_gaussian_field_conditioned_on_its_values(
    old: list[float], share: float
) -> None:
    """The reference conditions the four points' dense covariance."""
    m, before = f64(share * SIGMA_M**2), places(old)
    assume(float((before[0, 0] - before[0, 1]).norm()) > 1.0)
    then = before + places([37.0, 0.0, -12.0, 9.0])
    four = torch.cat([then, before], 1)[0]
    K = torch.exp(-0.5 * (torch.cdist(four, four) / LENGTH_M) ** 2)
    W = torch.linalg.solve(K[2:, 2:], K[2:, :2]).T
    F, Q = travelled(way(before, then), f64(800.0), m, SIGMA_M, LENGTH_M)
    assert torch.allclose(F[0, 1:, 1:], W, rtol=0, atol=1e-5)
    news_m2 = float(Q[0, 0, 0])  # the mean's
    left = K[:2, :2] - W @ K[2:, :2]
    assert torch.allclose(Q[0, 1:, 1:] - news_m2, (SIGMA_M**2 - m) * left, rtol=0, atol=1e-5)


def test_who_comes_over_the_place_of_the_beam_knows_it() -> None:
    """The beam's lead, measured ahead, is the local one there; the nadir's is left behind."""
    before, then = places([0.0, 0.0, 260.0, 0.0]), places([260.0, 0.0, 520.0, 0.0])
    F, Q = travelled(way(before, then), f64(800.0), f64(0.0), SIGMA_M, LENGTH_M)
    assert F[0, 1, 1:].tolist() == pytest.approx([0.0, 1.0], abs=1e-12)
    assert float(Q[0, 1, 1]) == pytest.approx(0.0, abs=1e-12)
    one, two = math.exp(-0.5 * (260 / 300) ** 2), math.exp(-0.5 * (520 / 300) ** 2)
    assert F[0, 2, 1:].tolist() == pytest.approx([(two - one**2) / (1 - one**2),
                                                  one * (1 - two) / (1 - one**2)])  # fmt: skip


@given(st.floats(0.0, 100.0), st.floats(0.0, 100.0), st.floats(0.0, 100.0), st.floats(0.0, 0.999))
def test_travel_is_a_semigroup(since_m: float, a_m: float, b_m: float, share: float) -> None:
    """Two stages of a way are the whole way: how often it is renewed does not matter."""
    m, footprint = f64(share * SIGMA_M**2), f64(800.0)
    mid, end = HERE + f64(a_m, 0.0), HERE + f64(a_m + b_m, 0.0)
    ways = way(HERE, mid, since_m), way(mid, end, since_m + a_m), way(HERE, end, since_m)
    (F1, Q1), (F2, Q2), (F, Q) = (travelled(w, footprint, m, SIGMA_M, LENGTH_M) for w in ways)
    assert torch.allclose(F2 @ F1, F, atol=1e-12)
    assert torch.allclose(F2 @ Q1 @ F2.mT + Q2, Q, atol=1e-9)


@pytest.mark.parametrize(("since_m", "rate"), [(0.0, 0.0), (150.0, 0.5), (300.0, 1.0), (9e4, 1.0)])
def test_small_steps_forget_the_faster_the_longer_there_was_no_image(
    since_m: float, rate: float
) -> None:
    """The logarithmic derivative of exp(-D^2 / (2 l^2)) is D / l^2; from D = l on it is 1 / l."""
    step_m = 0.01
    end = HERE + f64(step_m, 0.0)
    F, _ = travelled(way(HERE, end, since_m), f64(800.0), f64(0.0), SIGMA_M, LENGTH_M)
    forgotten = -math.log(float(F[0, 1, 1:].sum())) * LENGTH_M / step_m
    assert forgotten == pytest.approx(rate, abs=1e-4)


@given(st.floats(1e-3, 0.999), st.floats(1e-3, 0.999))
def test_means_at_two_heights_are_correlated_as_a_martingale(one: float, other: float) -> None:
    """Correlation is the root of the ratio of the smaller variance to the larger, up or down.

    The three start as stated, so the covariance of the mean with its successor is F's first row
    times the first column.
    """
    before, behind = f64(one * SIGMA_M**2), f64(other * SIGMA_M**2)
    F, Q = rescaled(before, behind, SIGMA_M, f64(0.0))
    start = stated(before)
    across = (F @ start)[0, 0, 0]
    end = F @ start @ F.mT + Q
    correlation = float(across / (start[0, 0, 0] * end[0, 0, 0]).sqrt())
    expected = math.sqrt(min(one, other) / max(one, other))
    assert correlation == pytest.approx(expected, abs=1e-9)
    assert torch.linalg.eigvalsh(Q).min() > -1e-12


@given(st.floats(0.0, 0.9), st.floats(0.0, 0.9), st.floats(0.0, 2000.0))
def test_news_of_a_smaller_footprint_is_as_much_of_either_point(
    one: float, other: float, apart_m: float
) -> None:
    """The mean's covariance with local and beam is its own variance before and after."""
    small, large = sorted((one, other))
    alike = math.exp(-0.5 * (apart_m / LENGTH_M) ** 2)
    before, behind = f64(small * SIGMA_M**2), f64(large * SIGMA_M**2)
    F, Q = rescaled(before, behind, SIGMA_M, f64(apart_m / LENGTH_M))
    start = stated(before, apart_m)
    end = F @ start @ F.mT + Q
    assert torch.linalg.eigvalsh(Q).min() > -1e-12
    assert torch.equal(F[0, 1:], torch.eye(3, dtype=F64)[1:])  # the ground stays where it is
    if large - small < 0.5 * (1 - small) * (1 + alike) * 0.999:
        assert end[0, 0].tolist() == pytest.approx([float(behind)] * 3, abs=1e-9)
    else:
        # Two places apart say no more than their mean.
        assert end[0, 0, 0].item() == pytest.approx(float(behind))
        assert torch.allclose(F[0, 0], f64(0.0, 0.5, 0.5), atol=1e-3)


@given(st.floats(1e-3, 0.999), st.floats(1e-3, 0.999), st.floats(0.0, 20.0))
def test_an_images_own_share_is_not_the_next_ones(one: float, other: float, own_m2: float) -> None:
    """Less in common by it, but no less than by the ground under the lander alone, m m' / s^2.

    Beam and nadir are one place here; the mean's covariance with it is its own variance after.
    """
    before, behind = f64(one * SIGMA_M**2), f64(other * SIGMA_M**2)
    F, Q = rescaled(before, behind, SIGMA_M, f64(0.0), f64(own_m2))
    start = stated(before)
    end = F @ start @ F.mT + Q
    least = min(one, other)
    common = max(least - own_m2 / SIGMA_M**2, one * other) * SIGMA_M**2
    assert float((F @ start)[0, 0, 0]) == pytest.approx(common, abs=1e-9)
    assert end[0, 0].tolist() == pytest.approx([float(behind)] * 3, abs=1e-9)
    assert torch.linalg.eigvalsh(Q).min() > -1e-9
    none = rescaled(before, behind, SIGMA_M, f64(0.0), f64(0.0))
    for with_none, without in zip(none, rescaled(before, behind, SIGMA_M, f64(0.0)), strict=True):
        assert torch.equal(with_none, without)


def test_what_low_images_extrapolate_grows_as_the_square_of_length_over_view() -> None:
    """0.024 m in common, as a bend over 300 m has it seen from 62 m around: 0.56 m."""
    own_m2 = extrapolated_m2(f64(124.5, 249.0, math.inf), 0.024, LENGTH_M)
    assert own_m2.sqrt().tolist() == pytest.approx([0.5575, 0.5575 / 4, 0.0], rel=1e-3)


@given(st.floats(0.0, 4.0), st.floats(1e-3, 4.0))
def test_sideways_two_footprints_are_alike_by_their_ratio(one: float, other: float) -> None:
    kept = side_kept(f64(one, other), f64(other, one))
    assert kept.tolist() == pytest.approx([(min(one, other) / max(one, other)) ** (1 / 16)] * 2)


def test_nothing_changes_over_no_distance_at_equal_variance() -> None:
    two = HERE.expand(2, 2, 2) + torch.tensor([[0.0, 0.0], [90.0, 0.0]], dtype=F64)
    still = travelled(Way(two, two, two[:, 0]), f64(50.0, 5000.0), f64(0.0, 4.0), SIGMA_M, LENGTH_M)
    same = rescaled(f64(1e-3, 4.0), f64(1e-3, 4.0), SIGMA_M, f64(0.0, 1.0))
    for F, Q in (still, same):
        assert torch.allclose(F, torch.eye(3, dtype=F64).expand(2, 3, 3), rtol=0, atol=1e-14)
        assert torch.allclose(Q, torch.zeros_like(Q), rtol=0, atol=1e-14)
    state = after(at_truth(0.0, CONFIG), [("rescale", 0.4), ("travel", 100.0)])
    again = after(state, [("rescale", 0.4), ("travel", 0.0)])
    assert torch.allclose(again.covariance, state.covariance, rtol=0, atol=1e-12)


def test_a_long_way_forgets_and_the_estimate_goes_back_to_its_mean() -> None:
    state = after(at_truth(0.0, CONFIG), [("rescale", 0.3)])
    P = state.covariance.clone()
    P[:, THREE, THREE] = 0.1
    P[:, MAP_MEAN, MAP_LOCAL : THREE.stop] = P[:, MAP_LOCAL : THREE.stop, MAP_MEAN] = 0.0
    both = {"map_local_m": f64(-1.0), "map_beam_m": f64(-1.0)}
    state = replace(state, covariance=P, map_mean_m=f64(2.0), **both)
    # Over a footprint of 800 m the mean forgets more slowly than the local error.
    near = after(state, [("travel", 300.0)])
    slow, fast = math.exp(-300 / 1100), math.exp(-0.5)
    assert near.map_mean_m.item() == pytest.approx(2.0 * slow)
    for error_m in (near.map_local_m, near.map_beam_m):
        assert error_m.item() == pytest.approx(2.0 * slow + fast * (-1.0 - 2.0))
    assert near.covariance[0, MAP_MEAN, MAP_MEAN].item() == pytest.approx(
        0.1 * slow**2 + 0.3 * SIGMA_M**2 * (1 - slow**2)
    )
    far = after(state, [("travel", 50_000.0)])
    for error_m in (far.map_mean_m, far.map_local_m, far.map_beam_m):
        assert error_m.abs().item() < 1e-12
    assert torch.allclose(far.covariance[:, THREE, THREE], stated(far.map_mean_variance_m2))


def test_relief_around_is_news_of_the_points_alone() -> None:
    """A lander that does not know its place: (1 - r^2) of the relief, in the points' variance."""
    there = HERE + f64(150.0, 0.0)
    without, with_relief = (
        travelled(way(HERE, there), f64(800.0), f64(4.0), SIGMA_M, LENGTH_M, x)
        for x in (None, f64(49.0))
    )
    assert torch.equal(without[0], with_relief[0])
    extra = (with_relief[1] - without[1])[0]
    expected = torch.full((2, 2), 49.0 * (1 - math.exp(-0.25)), dtype=F64)
    assert torch.allclose(extra[1:, 1:], expected)
    extra[1:, 1:] = 0.0
    assert not bool(extra.any())


@given(st.floats(1e-3, 4.0), st.floats(0.0, 4.0), st.floats(0.0, 1.0))
def test_an_error_is_carried_from_one_variance_to_another(
    before_m2: float, after_m2: float, correlation: float
) -> None:
    factor, news_m2 = carried(f64(before_m2), f64(after_m2), f64(correlation))
    assert float(news_m2) >= -1e-12
    assert float(factor.square() * before_m2 + news_m2) == pytest.approx(after_m2, abs=1e-12)
    covariance = float(factor) * before_m2
    assert covariance == pytest.approx(correlation * math.sqrt(before_m2 * after_m2), abs=1e-9)


def test_sideways_an_error_stays_as_long_as_images_share_their_ground() -> None:
    """From 0.6 m^2 to 0.4 m^2 over 110 m of ground, the mean's variance from 1 to 2 m^2.

    Between footprints two of them are correlated by their ratio to the power of 1/16.
    """
    state = at_truth(0.0, CONFIG)
    first = rescale(state, f64(1.0), CONFIG, f64(0.6))
    assert first.covariance[0, MAP_SIDE, MAP_SIDE].tolist() == [[0.6, 0.0], [0.0, 0.6]]
    first = replace(first, map_side_m=torch.tensor([[1.0, -2.0]], dtype=F64))
    view = View(f64(800.0), torch.zeros(1, 2, dtype=F64))
    over = travel(moved(first, 110.0), view, CONFIG)
    slow = float(mean_kept(f64(110.0), f64(800.0), LENGTH_M))
    assert slow == pytest.approx(math.exp(-0.1))
    assert over.map_side_m[0].tolist() == pytest.approx([slow, -2 * slow])
    assert float(over.covariance[0, MAP_SIDE.start, MAP_SIDE.start]) == pytest.approx(0.6)
    second = rescale(over, f64(2.0), CONFIG, f64(0.4))
    factor = math.sqrt(0.4 / 0.6) * (0.4 / 0.6) ** (1 / 16)
    assert second.map_side_m[0].tolist() == pytest.approx([slow * factor, -2 * slow * factor])
    assert second.map_side_variance_m2.tolist() == [0.4]
    assert float(second.covariance[0, MAP_SIDE.start, MAP_SIDE.start]) == pytest.approx(0.4)
    # Without news of it, as with matches instead of a fix, it stays as it is.
    same = rescale(over, f64(2.0), CONFIG)
    assert torch.equal(same.map_side_m, over.map_side_m)


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
@pytest.mark.parametrize("noise_m2", [0.01, 2.0, 5.0])
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
    # Half of what the filter itself has of the lead; here that is the field's own.
    limit_m2 = 0.5 * 0.6 * SIGMA_M**2
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
    # Where the filter has lost the ground, an image must still know more than the field.
    P = state.covariance.clone()
    P[:, MAP_LOCAL, MAP_LOCAL] += 100.0**2
    lost, limit_m2 = replace(state, covariance=P), 0.9 * 0.6 * SIGMA_M**2
    assert not bool(_told(lost, 1.0, limit_m2 * 1.001)[1].present[0])
    assert bool(_told(lost, 1.0, limit_m2 * 0.999)[1].present[0])
    # The same image again is no news.
    _, seen = _told(told, 1.0, limit_m2 * 0.5)
    assert not bool(seen.present[0])
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
