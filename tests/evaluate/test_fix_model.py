"""The error model of fixes: its file and its draws."""

import dataclasses
import math

import pytest
import simulated_device
import torch
import yaml
from fix_models import F64, ONE, at, document, eye, factor, knot, model_of, scale, share
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, chi2

from tnav.errors import ConfigError
from tnav.evaluate.fix_model import (
    draw_fixes,
    gsd_ratio_of,
    load_fix_model,
    news_sigma_m,
    write_fix_model,
)
from tnav.evaluate.fix_runs import KNOTS_M, SUN_ELEVATIONS_DEG
from tnav.evaluate.fix_trials import OUTLIER_NEES
from tnav.terrain.heightfield import Level, Terrain

SUN = torch.tensor([12.0], dtype=F64)


# Interpolation -----------------------------------------------------------------------------------


def test_knots_are_met_and_between_them_sigma_is_a_power_law():
    low = knot(100.0, availability=share(0.4), outlier_rate=share(0.2), bias=[3.0, 0, 0, 0, 0, 0])
    high = knot(10000.0, correlation=eye(6))
    found = at(model_of([high, low]), [10000.0, 1000.0, 100.0])
    own = found.covariance.diagonal(dim1=1, dim2=2).clone()
    own[:, 3:] -= torch.tensor([1e-4, 1e-4, 1e-5], dtype=F64).square()
    sigma = own.sqrt()
    assert torch.allclose(sigma[0], torch.tensor(high["sigma"], dtype=F64))
    assert torch.allclose(sigma[2], torch.tensor(low["sigma"], dtype=F64))
    assert torch.allclose(sigma[1], (sigma[0] * sigma[2]).sqrt())  # the middle in the logarithm
    assert torch.allclose(found.availability, torch.tensor([1.0, 0.7, 0.4], dtype=F64))
    assert torch.allclose(found.outlier_rate, torch.tensor([0.0, 0.1, 0.2], dtype=F64))
    assert torch.allclose(found.bias[:, 0], torch.tensor([0.0, 1.5, 3.0], dtype=F64))
    coupling = found.covariance[:, 0, 4] / (sigma[:, 0] * sigma[:, 4])
    assert torch.allclose(coupling, torch.tensor([0.0, -0.45, -0.9], dtype=F64))
    news_m = math.sqrt(high["ground_sigma_m"] * low["ground_sigma_m"])
    assert float(found.agl_sigma_m[1]) == pytest.approx(1 / math.sqrt(news_m**-2 + 3.0**-2))
    place = torch.diag(torch.tensor([0.2, 0.2, 1.5], dtype=F64).square())
    assert torch.allclose(found.map_position_covariance, place.expand(3, 3, 3))


def test_there_are_fixes_only_where_there_were_trials():
    model = model_of()
    inside, outside = 1.0, 0.0
    heights = at(model, [9000.0, 9001.0, 100.0, 99.0, -5.0])
    assert heights.availability.tolist() == [inside, outside, inside, outside, outside]
    for ratio, expected in ((14.0, inside), (14.1, outside)):
        assert float(at(model, 1000.0, ratio=ratio).availability[0]) == expected
    for sun_deg, expected in ((0.1, inside), (0.0, outside), (-3.0, outside)):
        assert float(at(model, 1000.0, sun_deg=sun_deg).availability[0]) == expected


def test_factors_apply_to_their_components_relative_to_the_usual_posting():
    sigma = [[ONE] * 4, [scale(v) for v in (2.0, 3.0, 4.0, 5.0)]]
    of_map = [[ONE] * 4, [scale(v) for v in (0.5, 1.5, 0.25, 2.5)]]
    gsd = factor(
        [1.0, 2.0],
        sigma=sigma,
        map_sigma=of_map,
        position_scale=[ONE, scale(4.0)],
        availability=[ONE, scale(0.6)],
        ground_sigma=[ONE, scale(3.0)],
    )
    model = model_of(gsd=gsd)
    usual, coarse, middle = (at(model, 1000.0, ratio=3.0 * 2**k) for k in (0.0, 1.0, 0.5))
    m = torch.tensor(knot(1000.0)["sigma"], dtype=F64)
    expected = m * torch.tensor([2.0, 2.0, 3.0, 4.0, 4.0, 5.0], dtype=F64)
    turn = torch.tensor([0.25e-4, 0.25e-4, 2.5e-5], dtype=F64)
    diagonal = coarse.covariance[0].diagonal()
    assert torch.allclose(diagonal[:3].sqrt(), expected[:3])
    assert torch.allclose(diagonal[3:], expected[3:].square() + turn.square())
    place = coarse.map_position_covariance[0].diagonal().sqrt()
    assert torch.allclose(place, torch.tensor([0.1, 0.1, 2.25], dtype=F64))
    assert torch.allclose(coarse.scale[0], torch.tensor([2.0] * 3 + [1.0] * 3, dtype=F64))
    assert float(coarse.availability[0]) == pytest.approx(0.6)
    news_m = [float(news_sigma_m(x.agl_sigma_m, 3.0)[0]) for x in (usual, coarse)]
    assert news_m[1] / news_m[0] == pytest.approx(3.0)
    root = middle.covariance[0, 0, 0] / usual.covariance[0, 0, 0]
    assert float(root) == pytest.approx(2.0)  # sigma by sqrt 2: log-linear
    finer = at(model, 1000.0, ratio=1.0)
    assert torch.equal(finer.covariance, usual.covariance)


@settings(max_examples=50, deadline=None)
@given(
    agl_m=st.floats(100.0, 9000.0),
    sun_deg=st.floats(0.5, 60.0),
    ratio=st.floats(0.5, 14.0),
)
def test_covariances_are_positive_definite_everywhere(agl_m, sun_deg, ratio):
    found = at(model_of(), agl_m, sun_deg, ratio)
    for covariance in (found.covariance, found.map_position_covariance):
        sigma = covariance.diagonal(dim1=1, dim2=2).sqrt()
        unit = covariance / (sigma[:, :, None] * sigma[:, None, :])
        assert torch.allclose(unit, unit.mT)
        assert float(torch.linalg.eigvalsh(unit)[0, 0]) > 0
    assert 0 <= float(found.availability[0]) <= 1


@pytest.mark.parametrize(
    ("height_m", "coarser"),
    [(h, c) for h in (50.0, 404.0, 1300.0, 9000.0, 90000.0) for c in (1.0, 2.0, 8.0)],
)
def test_the_ratio_is_that_of_the_level_that_is_shown(height_m, coarser):
    flat = torch.zeros(9, 9)
    levels = [Level(-8.0 * 2**k, -8.0 * 2**k, 2.0 * 2**k, flat) for k in range(11)]
    gsd_m = height_m / 1236.0
    level = Terrain(levels).level_for(gsd_m, posts_per_pixel=1 / coarser)
    ratio = gsd_ratio_of(torch.tensor([height_m], dtype=F64), 1236.0, coarser, 2.0)
    assert float(ratio[0]) == pytest.approx(levels[level].post_m / gsd_m)


# Draws -------------------------------------------------------------------------------------------


def test_draws_have_the_moments_of_the_model():
    b = 40_000
    bias = [0.3, 0.0, -0.2, 0.0, 1e-4, 0.0]
    ends = [
        knot(
            h,
            bias=bias,
            position_scale=scale(2.25),
            attitude_scale=scale(0.64),
            ground_scale=scale(1.44),
        )
        for h in (9000.0, 100.0)
    ]
    model = model_of([dict(k, availability=share(0.3)) for k in ends])
    heights = torch.full((b,), 1000.0, dtype=F64)
    drawn = draw_fixes(
        model, heights, SUN, torch.tensor([3.0], dtype=F64), torch.Generator().manual_seed(0)
    )
    here = at(model, 1000.0)
    scales = torch.tensor([1.5] * 3 + [0.8] * 3, dtype=F64)
    S = here.covariance[0] * scales[:, None] * scales[None, :]
    e = drawn.error - torch.tensor(bias, dtype=F64)
    assert bool((e.mean(0).abs() < 5 * (S.diagonal() / b).sqrt()).all())
    sigma = S.diagonal().sqrt()
    sample = (e.T @ e / b) / (sigma[:, None] * sigma[None, :])
    # A sample covariance of unit normals errs by sqrt((1 + rho^2) / b) an entry (Wishart).
    unit = S / (sigma[:, None] * sigma[None, :])
    assert bool(((sample - unit).abs() < 5 * math.sqrt(2 / b)).all())
    low, high = binom.ppf([1e-6, 1 - 1e-6], b, 0.3)
    assert low < int(drawn.available.sum()) < high
    assert torch.equal(drawn.covariance[0], here.covariance[0])
    assert torch.equal(drawn.map_position_covariance[0], here.map_position_covariance[0])
    assert not bool(drawn.outlier.any())
    low, high = chi2.ppf([1e-6, 1 - 1e-6], b)
    assert low < float((drawn.agl_error / 1.2).square().sum()) < high
    assert torch.equal(drawn.agl_sigma_m[:1], here.agl_sigma_m)


def test_outliers_come_at_their_rate_and_lie_beyond_the_gate():
    b = 40_000
    model = model_of([knot(h, outlier_rate=share(0.1)) for h in (9000.0, 100.0)])
    heights = torch.full((b,), 1000.0, dtype=F64)
    drawn = draw_fixes(
        model, heights, SUN, torch.tensor([3.0], dtype=F64), torch.Generator().manual_seed(1)
    )
    low, high = binom.ppf([1e-6, 1 - 1e-6], b, 0.1)
    assert low < int(drawn.outlier.sum()) < high
    nees = (drawn.error * torch.linalg.solve(drawn.covariance, drawn.error)).sum(-1)
    far = nees[drawn.outlier]
    assert bool((far > OUTLIER_NEES * (1 - 1e-6)).all())
    assert bool((far < OUTLIER_NEES * 20**2 * (1 + 1e-6)).all())
    near = nees[~drawn.outlier]
    n = near.numel()
    assert chi2.ppf(1e-6, 6 * n) < float(near.sum()) < chi2.ppf(1 - 1e-6, 6 * n)


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_the_ends_of_availability_and_of_outliers_are_certain(probability):
    ends = [
        knot(h, availability=share(probability), outlier_rate=share(probability))
        for h in (9000.0, 100.0)
    ]
    heights = torch.full((5000,), 900.0, dtype=F64)
    drawn = draw_fixes(
        model_of(ends),
        heights,
        SUN,
        torch.tensor([3.0], dtype=F64),
        torch.Generator().manual_seed(2),
    )
    assert drawn.available.tolist() == [probability == 1.0] * 5000
    assert drawn.outlier.tolist() == [probability == 1.0] * 5000


def test_a_seed_gives_the_same_fixes_and_a_call_takes_the_same_numbers():
    heights = torch.tensor([50.0, 500.0, 5000.0], dtype=F64)
    ratio = torch.tensor([3.0], dtype=F64)
    generators = [torch.Generator().manual_seed(3) for _ in range(3)]
    quiet = model_of([knot(h, availability=share(0.0)) for h in (9000.0, 100.0)])
    a, b = (draw_fixes(model_of(), heights, SUN, ratio, g) for g in generators[:2])
    draw_fixes(quiet, heights, SUN, ratio, generators[2])
    assert torch.equal(a.error, b.error)
    assert torch.equal(a.available, b.available)
    following = [torch.rand(4, generator=g) for g in generators]
    assert torch.equal(following[0], following[2])


def test_the_same_fixes_on_the_simulated_accelerator_without_waiting(simgpu):
    model = model_of([knot(h, availability=share(0.5)) for h in (9000.0, 700.0, 100.0)])
    heights = torch.logspace(1.5, 4.2, 200, dtype=F64)
    light, ratio = torch.linspace(-2.0, 40.0, 200, dtype=F64), torch.linspace(1, 20, 200).double()
    expected = draw_fixes(model, heights, light, ratio, torch.Generator().manual_seed(4))
    there = [t.to(simgpu) for t in (heights, light, ratio)]
    with simulated_device.count_syncs() as syncs:
        found = draw_fixes(model, *there, torch.Generator().manual_seed(4))
        shown = gsd_ratio_of(there[0], 1236.0, 2.0, 1.0)
    assert not syncs, syncs
    for field in dataclasses.fields(expected):
        value = getattr(found, field.name)
        assert value.device.type == simgpu
        assert torch.equal(value.cpu(), getattr(expected, field.name))
    assert torch.equal(shown.cpu(), gsd_ratio_of(heights, 1236.0, 2.0, 1.0))


# The file ----------------------------------------------------------------------------------------


def test_a_model_survives_its_file(tmp_path, monkeypatch):
    model = model_of()
    write_fix_model(model, tmp_path / "fix_model.yaml")
    assert load_fix_model(tmp_path / "fix_model.yaml") == model
    monkeypatch.setenv("TNAV_DATASETS", str(tmp_path))
    assert load_fix_model() == model
    assert [p.name for p in tmp_path.iterdir()] == ["fix_model.yaml"]


def _asymmetric():
    rows = eye(6)
    rows[0][1] = 0.5
    return rows


def _indefinite():
    rows = eye(3)
    rows[0][1] = rows[1][0] = 1.0
    return rows


@pytest.mark.parametrize(
    ("spoiled", "said"),
    [
        (document(surprise=1), "surprise: unknown key"),
        (document([knot(100.0), knot(1000.0)]), "strictly decreasing"),
        (document([knot(100.0), knot(100.0)]), "strictly decreasing"),
        (document([knot(100.0)]), "at least 2"),
        (document([knot(9000.0, availability=share(1.2)), knot(9.0)]), "availability.value"),
        (document([knot(9000.0, outlier_rate=share(-0.1)), knot(9.0)]), "outlier_rate.value"),
        (document([knot(9000.0, sigma=[0.0] * 6), knot(9.0)]), "greater than 0"),
        (document([knot(9000.0, correlation=_asymmetric()), knot(9.0)]), "symmetric"),
        (
            document([knot(9000.0, map_position_correlation=_indefinite()), knot(9.0)]),
            "positive definite",
        ),
        (
            document([knot(9e3, map_attitude_correlation=[[2, 0, 0], *eye(3)[1:]]), knot(9.0)]),
            "ones on the diagonal",
        ),
        (document(sun=factor([12.0, 4.0])), "strictly increasing"),
        (document(gsd=factor([1.0, 2.0], sigma=[[ONE] * 4])), "expected 2 entries"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_in_one_line(tmp_path, spoiled, said):
    path = tmp_path / "fix_model.yaml"
    path.write_text(yaml.safe_dump(spoiled), encoding="utf-8")
    with pytest.raises(ConfigError, match=said) as caught:
        load_fix_model(path)
    assert str(path) in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: cannot be read"):
        load_fix_model(tmp_path / "nowhere.yaml")


def test_the_shipped_model_covers_the_descent():
    model = load_fix_model()
    assert [k.agl_m for k in model.knots] == list(KNOTS_M)
    assert model.trials >= 50
    assert list(model.sun.at) == sorted(SUN_ELEVATIONS_DEG)
    for agl_m in (9000.0, 3000.0, 900.0):  # the demo's fixes all come
        assert float(at(model, agl_m).availability[0]) > 0.9
    sigma = at(model, [8000.0, 900.0]).covariance.diagonal(dim1=1, dim2=2).sqrt()
    assert bool((sigma[0, :3] > sigma[1, :3]).all())  # position gets better on the way down
