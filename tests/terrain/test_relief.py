import math
from itertools import pairwise

import pytest
import torch

from tnav.terrain import relief


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_crater_profile_by_hand():
    depth = torch.tensor(10.0)
    at = relief.crater_profile(torch.tensor([0.0, 1.0, 2.0, 3.0, 5.0]), depth.expand(5))
    assert at[0] == -8.0  # floor under the plain: depth less the rim's 20 %
    assert at[1] == pytest.approx(2.0)  # rim
    assert at[2] == pytest.approx(2.0 / 8 / 2)  # r^-3, half tapered
    assert at[3] == 0.0
    assert at[4] == 0.0


def test_profile_is_continuous_at_rim_and_reach():
    depth = torch.full((2,), 7.0)
    for edge in (1.0, 3.0):
        inside, outside = relief.crater_profile(torch.tensor([edge - 1e-4, edge + 1e-4]), depth)
        assert abs(float(inside - outside)) < 5e-3


def test_crater_counts_follow_the_stated_density():
    shape, post = torch.Size([2000, 2000]), 1.0
    craters = relief.draw_craters(shape, post, 5.0, 10.0, _generator())
    area = 2000.0**2
    for diameter in (5.0, 6.0, 8.0):
        expected = area * (
            relief.cumulative_density_m2(diameter) - relief.cumulative_density_m2(10.0)
        )
        found = int((craters.radius_posts * 2 > diameter).sum())
        assert abs(found - expected) < 4 * math.sqrt(expected)  # Poisson, 4 sigma


def test_density_is_production_cut_by_equilibrium():
    assert relief.cumulative_density_m2(1000.0) == pytest.approx(4e-9)
    assert relief.cumulative_density_m2(10.0) == pytest.approx(0.079 / 100)
    diameters = [2.0 * 1.3**k for k in range(30)]
    counts = [relief.cumulative_density_m2(d) for d in diameters]
    assert all(a > b for a, b in pairwise(counts))


def test_roughness_has_the_stated_rms_deviation():
    """nu(17 m) = 0.35 m and nu ~ L^0.76 at baselines well inside the band that is drawn."""
    post = 2.0
    z = relief.fractal_octaves(torch.Size([1024, 1024]), post, 2000.0, _generator())
    for lag in (8, 16, 32):
        nu = float((z[:, lag:] - z[:, :-lag]).square().mean().sqrt())
        expected = 0.35 * (lag * post / 17.0) ** 0.76
        assert nu == pytest.approx(expected, rel=0.12)


def test_octave_variances_add_up():
    whole = relief.octave_variance_m2(4.0, 64.0)
    parts = sum(relief.octave_variance_m2(4.0 * 2**k, 8.0 * 2**k) for k in range(4))
    assert parts == pytest.approx(whole)
    rough = relief.fractal_octaves(torch.Size([700, 500]), 2.0, 64.0, _generator())
    assert rough.shape == (700, 500)
    assert float(rough.var()) == pytest.approx(whole, rel=0.15)


def test_stamp_superposes_one_crater_at_its_place():
    one = relief.CraterOctave(
        column=torch.tensor([20.25]),
        row=torch.tensor([31.5]),
        radius_posts=torch.tensor([4.0]),
        depth_m=torch.tensor([2.0]),
    )
    z = relief.stamp_craters(torch.zeros(64, 48), one)
    row, column = torch.meshgrid(torch.arange(64.0), torch.arange(48.0), indexing="ij")
    radius = ((column - 20.25) ** 2 + (row - 31.5) ** 2).sqrt() / 4.0
    expected = relief.crater_profile(radius, torch.full_like(radius, 2.0))
    assert torch.allclose(z, expected, atol=1e-6)


def test_craters_over_the_border_do_not_wrap():
    corner = relief.CraterOctave(
        column=torch.tensor([0.0]),
        row=torch.tensor([0.0]),
        radius_posts=torch.tensor([3.0]),
        depth_m=torch.tensor([1.0]),
    )
    z = relief.stamp_craters(torch.zeros(40, 40), corner)
    assert float(z[0, 0]) < 0
    assert float(z[20:, :].abs().max()) == 0
    assert float(z[:, 20:].abs().max()) == 0


def test_posts_too_coarse_for_any_relief_stay_as_they_are():
    z = torch.zeros(65, 65)
    changed = relief.add_relief(
        z, 512.0, wavelength_max_m=947.0, diameter_max_m=947.0, generator=_generator()
    )
    assert torch.equal(changed, z)
    just = relief.fractal_octaves(z.shape, 512.0, 1025.0, _generator())
    assert bool(just.isfinite().all())


def test_a_fine_grid_alone_leaves_craters_larger_than_itself_out():
    craters_up_to_4_km = relief.add_relief(
        torch.zeros(257, 257), 0.5, wavelength_max_m=4e3, diameter_max_m=4e3, generator=_generator()
    )
    assert bool(craters_up_to_4_km.isfinite().all())
    assert float(craters_up_to_4_km.std()) > 0.1


def test_same_seed_same_relief_other_seed_other():
    def make(seed):
        return relief.add_relief(
            torch.zeros(129, 129),
            1.0,
            wavelength_max_m=4.0,
            diameter_max_m=10.0,
            generator=_generator(seed),
        )

    assert torch.equal(make(1), make(1))
    assert not torch.equal(make(1), make(2))
