import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tnav.dem.mosaic import open_dem
from tnav.dem.tiles import sample_height_m
from tnav.errors import TileError
from tnav.geometry.moon import RADIUS_M, LocalFrame
from tnav.terrain.lattice import Window
from tnav.terrain.levels import (
    Pyramid,
    averaged_dem_m,
    crop,
    hull,
    prolong,
    refined_by,
    resample_m,
    restrict,
    support,
    up_in_L_,
)
from tnav.terrain.synthetic import Relief

FRAME = LocalFrame(60.5, -4.6)
LOLA = "lola_ldem16_frigoris"
DEGREE_M = math.pi / 180 * RADIUS_M


@dataclass(frozen=True)
class Waves:
    """A DEM in closed form: waves in latitude and longitude over the sphere."""

    amplitude_m: float = 0.0
    wavelength_m: float = 20e3
    posting_m: float = 2000.0
    effective_resolution_m: float = 1.0
    fingerprint: str = "waves"
    label: str = "waves"

    def heights_m(self, latitude_deg, longitude_deg):
        k = 2 * np.pi * DEGREE_M / self.wavelength_m
        return self.amplitude_m * np.sin(k * latitude_deg) * np.cos(k / 2 * longitude_deg)

    def explain(self, latitude_deg, longitude_deg):
        return "nothing to explain"


@dataclass(frozen=True)
class Cliff(Waves):
    """A step of 9 km at a latitude."""

    def heights_m(self, latitude_deg, longitude_deg):
        return np.where(latitude_deg > 74.0, 9e3, 0.0)


def pyramid(dem=None, *, finest_post_m=16.0, levels=4, seed=5, relief=None):
    return Pyramid(
        frame=FRAME,
        finest_post_m=finest_post_m,
        levels=levels,
        dem=dem or open_dem(LOLA),
        relief=relief or Relief(),
        seed=seed,
    )


def ulps(a: torch.Tensor, b: torch.Tensor) -> float:
    """Greatest difference in units of the last place."""
    step = torch.from_numpy(np.spacing(a.abs().numpy()))
    return float(((a - b).abs() / step).max())


windows = st.builds(
    Window,
    post_m=st.just(8.0),
    row0=st.integers(-300, 300),
    col0=st.integers(-300, 300),
    rows=st.integers(1, 41),
    cols=st.integers(1, 41),
)


@given(coarse=windows, seed=st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_restriction_undoes_prolongation(coarse, seed):
    """R P = I for any heights, to what the truncated filter leaves."""
    fine = refined_by(coarse)
    held = support(fine)
    generator = torch.Generator().manual_seed(seed)
    z = 1e3 * torch.randn(held.rows, held.cols, generator=generator, dtype=torch.float64)
    averages = restrict(prolong(z, held, fine))
    assert averages.shape == (coarse.rows, coarse.cols)
    assert torch.allclose(averages, crop(z, held, coarse), rtol=0, atol=1e3 * 2e-8)


@given(fine=windows, seed=st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_prolongation_is_a_function_of_position(fine, seed):
    """Alone or in a larger window: the same heights, whatever the window's parity."""
    larger = Window(8.0, fine.row0 - 3, fine.col0 - 2, fine.rows + 7, fine.cols + 5)
    held = support(larger)
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(held.rows, held.cols, generator=generator, dtype=torch.float64)
    alone, within = prolong(z, held, fine), crop(prolong(z, held, larger), larger, fine)
    assert torch.allclose(alone, within, rtol=0, atol=1e-13)


def test_prolongation_is_subdivision_after_the_inverse_of_its_averages():
    """Against dense matrices of R and S on a ring of 128 posts."""
    n = 128
    subdivision, restriction = np.zeros((2 * n, n)), np.zeros((n, 2 * n))
    for i in range(n):
        subdivision[2 * i, i] = 1
        for k, w in zip(range(-2, 4), (3, -25, 150, 150, -25, 3), strict=True):
            subdivision[2 * i + 1, (i + k) % n] += w / 256
        for k, w in zip((-1, 0, 1), (1, 2, 1), strict=True):
            restriction[i, (2 * i + k) % (2 * n)] += w / 4
    inner = restriction @ subdivision
    response = np.linalg.eigvalsh((inner + inner.T) / 2)
    assert response.min() == pytest.approx(0.5)
    assert response.max() == pytest.approx(1.0)
    dense = subdivision @ np.linalg.inv(inner)
    z = np.random.default_rng(0).normal(size=(n, n))
    expected = torch.from_numpy(dense @ z @ dense.T)
    held, fine = Window(8.0, 0, 0, n, n), Window(4.0, 80, 91, 60, 33)
    found = prolong(torch.from_numpy(z), held, fine)
    assert torch.allclose(found, expected[80:140, 91:124], rtol=0, atol=2e-8)


def test_prolongation_finds_the_quintic_whose_averages_it_is_given():
    """P R p = p for polynomials of degree 5: neither a plain nor a sag leaves a mark."""
    fine = Window(0.5, 11, -7, 21, 30)
    around = refined_by(support(fine))
    x, y = (axis / 10 for axis in around.axes_m())
    p = (x**5 - 3 * x**3 + x)[None, :] * (y**2 + 1)[:, None] + (y**5 - y**4)[:, None]
    found = prolong(restrict(p), support(fine), fine)
    assert torch.allclose(found, crop(p, around, fine), rtol=0, atol=1e-6)


@given(fine=windows)
@settings(max_examples=100, deadline=None)
def test_windows_fit_into_one_another(fine):
    below = support(fine)
    around = refined_by(below)
    assert hull(around, fine) == around  # the detail that is averaged covers the window
    smaller = Window(8.0, fine.row0, fine.col0, fine.rows, fine.cols)
    assert hull(below, support(smaller)) == below


@pytest.mark.parametrize(("row0", "col0"), [(-40, -40), (37, -111), (2001, 2502)])
def test_the_finer_level_averages_to_the_coarser(row0, col0):
    """R z_fine = z_coarse everywhere, to float32, with craters, roughness and a DEM."""
    ground = pyramid()
    coarse = Window(32.0, row0, col0, 70, 65)
    fine = refined_by(coarse)
    rise_coarse = ground.rise_m(1, support(fine))
    z_fine = up_in_L_(ground.refine(fine, rise_coarse, support(fine)), fine)
    kept = up_in_L_(crop(rise_coarse, support(fine), coarse).clone(), coarse)
    assert float(z_fine.std()) > 1
    assert ulps(kept, restrict(z_fine.double()).float()) <= 1
    assert not torch.equal(kept, z_fine[1::2, 1::2])  # they are averages, not samples


@given(
    row0=st.integers(-400, 400),
    col0=st.integers(-400, 400),
    rows=st.integers(8, 40),
    cols=st.integers(8, 40),
    level=st.integers(0, 3),
)
@settings(max_examples=12, deadline=None)
def test_heights_are_a_function_of_position(row0, col0, rows, cols, level):
    """Two windows agree where they overlap, at any level, however they are cut."""
    ground = pyramid()
    a = ground.window(level, row0, col0, rows, cols)
    b = ground.window(level, row0 - 5, col0 + 3, rows, cols + 9)
    both = ground.window(level, row0, col0 + 3, rows - 5, cols - 3)
    z_a, z_b = (crop(ground.rise_m(level, w), w, both) for w in (a, b))
    # to the float32 in which the relief sums its waves, and its rounding that P hands on
    assert float((z_a - z_b).abs().max()) < 1e-3


def test_strips_leave_no_mark(monkeypatch):
    ground, fine = pyramid(levels=2), Window(16.0, -30, 12, 100, 20)
    whole = ground.rise_m(0, fine)
    monkeypatch.setattr("tnav.terrain.levels._STRIP_ROWS", 33)
    assert torch.allclose(whole, ground.rise_m(0, fine), rtol=0, atol=1e-3)


def test_seed_and_recipe_decide():
    window = Window(16.0, 0, 0, 40, 40)
    one = pyramid(levels=2).rise_m(0, window)
    assert torch.equal(one, pyramid(levels=2).rise_m(0, window))
    assert not torch.equal(one, pyramid(levels=2, seed=6).rise_m(0, window))
    smooth = pyramid(levels=2, relief=Relief(rms_deviation_17m_m=0.0))
    assert not torch.equal(one, smooth.rise_m(0, window))
    assert pyramid(seed=6).content() != pyramid().content()
    assert smooth.content() != pyramid(levels=2).content()
    assert smooth.content() == pyramid(levels=2, relief=smooth.relief).content()
    assert len(smooth.content()["arithmetic"]) == 64  # an older version's heights are not taken


@pytest.mark.parametrize("away_m", [0.0, 20e3, 250e3, 590e3])
def test_the_sphere_in_closed_form(away_m):
    """No relief, no height: z = sqrt(R^2 - x^2 - y^2) - R, far from the origin too."""
    window = Window(100.0, -20, round(away_m / 100) - 40, 40, 40)
    z = resample_m(Waves(), FRAME, window)
    x, y = window.axes_m()
    sphere = np.sqrt(np.longdouble(RADIUS_M) ** 2 - x.numpy() ** 2 - y.numpy()[:, None] ** 2)
    expected = torch.from_numpy((sphere - np.longdouble(RADIUS_M)).astype(np.float64))
    assert torch.allclose(z, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("centre_m", [(0.0, 0.0), (250e3, 0.0), (-180e3, 170e3), (550e3, 550e3)])
def test_resampling_is_the_fixed_point_of_the_dem(centre_m):
    """Back from L every post lies at the DEM's height: slopes of 30 deg, 250 km and more away."""
    dem = Waves(amplitude_m=2000.0)
    window = Window(250.0, round(centre_m[1] / 250), round(centre_m[0] / 250), 150, 90)
    z = resample_m(dem, FRAME, window)
    east, north = window.axes_m()
    y, x = torch.meshgrid(north, east, indexing="ij")
    lat, lon, height = FRAME.geodetic(torch.stack([x, y, z], -1))
    expected = sample_height_m(dem, lat.numpy(), lon.numpy())
    assert np.abs(height.numpy() - expected).max() < 2e-6
    assert np.ptp(expected) > 3000


def test_ground_that_overhangs_is_refused():
    """Where no point of the vertical lies on the ground, no height is made up."""
    window = Window(200.0, 0, 0, 8, 8)
    step_m = FRAME.local(*(torch.tensor(v, dtype=torch.float64) for v in (74.0, -4.6, 0.0)))
    row = round(float(step_m[1]) / 200) - 4
    with pytest.raises(TileError, match="overhangs"):
        resample_m(Cliff(), FRAME, Window(200.0, row - 20, 0, 60, 8))
    assert resample_m(Cliff(), FRAME, window).isfinite().all()


def test_the_local_frame_ends_behind_600_km():
    resample_m(Waves(), FRAME, Window(1000.0, 0, 619, 2, 2))
    with pytest.raises(TileError, match=r"621 km east or north .* at most 620 km"):
        resample_m(Waves(), FRAME, Window(1000.0, 0, 620, 2, 2))


def test_a_dem_finer_than_the_coarsest_posts_is_seen_by_finer_levels():
    """With no relief of ours, levels near the DEM's posting are the DEM, not a blur of it."""
    bare = Relief(boulders=False, rms_deviation_17m_m=0.0)
    dem = Waves(amplitude_m=50.0, wavelength_m=3000.0, posting_m=250.0)
    ground = pyramid(dem, finest_post_m=62.5, levels=4, relief=bare)  # to 500 m
    window = ground.window(0, -30, 55, 60, 50)
    exact = resample_m(dem, FRAME, window.grown(1))
    # What a level holds is the average over the hat of its posts, here to fourth order.
    rows = (exact[:-2] + 10 * exact[1:-1] + exact[2:]) / 12
    average = (rows[:, :-2] + 10 * rows[:, 1:-1] + rows[:, 2:]) / 12
    assert float(exact.std()) > 15
    error = up_in_L_(ground.rise_m(0, window), window).double() - average
    assert float(error.abs().max()) < 1e-2
    assert float((average - exact[1:-1, 1:-1]).abs().max()) > 5e-2


def test_coarse_posts_hold_averages_of_the_dem():
    """A wave shorter than two posts must not show up as a long one."""
    short = Waves(amplitude_m=50.0, wavelength_m=1100.0, posting_m=125.0)
    coarse = Window(500.0, 10, -20, 40, 40)
    sampled = resample_m(short, FRAME, coarse) - resample_m(Waves(), FRAME, coarse)
    averaged = averaged_dem_m(short, FRAME, coarse) - resample_m(Waves(), FRAME, coarse)
    assert float(sampled.std()) > 15
    assert float(averaged.std()) < 0.45 * float(sampled.std())


def test_a_window_outside_another_is_an_error():
    with pytest.raises(ValueError, match="is not inside"):
        crop(torch.zeros(4, 4), Window(1.0, 0, 0, 4, 4), Window(1.0, 1, 0, 4, 4))
