import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tnav.terrain.lattice import Window
from tnav.terrain.synthetic import Relief, boulders, craters, profile, relief_m, roughness
from tnav.terrain.synthetic.stamping import Features, stamped_heights

MARE = Relief()
FROZEN_HEIGHTS_M = [-0.092877, -1.423002, 0.410083]


def _relief(window, recipe=MARE, seed=1, diameter_max_m=1000.0, wavelength_max_m=2000.0):
    return relief_m(
        window,
        recipe,
        diameter_max_m=diameter_max_m,
        wavelength_max_m=wavelength_max_m,
        seed=seed,
    )


def test_relief_is_the_same_on_every_machine():
    z = _relief(Window(2.0, 100, -40, 65, 65), seed=5)
    assert z[[0, 10, 64], [0, 33, 64]].tolist() == pytest.approx(FROZEN_HEIGHTS_M, abs=1e-4)


@settings(max_examples=12, deadline=None)
@given(
    row=st.integers(-20000, 20000),
    col=st.integers(-20000, 20000),
    post_m=st.sampled_from([0.5, 0.7, 4.0, 64.0]),
    shift=st.tuples(st.integers(0, 40), st.integers(0, 40)),
)
def test_overlapping_windows_agree(row, col, post_m, shift):
    whole = _relief(Window(post_m, row, col, 110, 120))
    part = _relief(Window(post_m, row + shift[0], col + shift[1], 50, 60))
    overlap = whole[shift[0] : shift[0] + 50, shift[1] : shift[1] + 60]
    assert float((overlap - part).abs().max()) < 1e-4


def test_seeds_differ_and_repeat():
    window = Window(1.0, 0, 0, 60, 60)
    assert torch.equal(_relief(window, seed=2), _relief(window, seed=2))
    assert float((_relief(window, seed=2) - _relief(window, seed=3)).std()) > 0.05


def _averaged(fine):
    """(1 2 1)/4 along both axes, and every other post."""
    kernel = torch.tensor([0.25, 0.5, 0.25], dtype=torch.float64)
    square = (kernel[:, None] * kernel)[None, None]
    return torch.nn.functional.conv2d(fine[None, None].double(), square, stride=2)[0, 0]


@pytest.mark.parametrize("post_m", [1.0, 16.0])
def test_a_level_shows_the_average_of_the_next_finer_one(post_m):
    """But for what only the finer one can carry: craters under two posts and one octave."""
    recipe = Relief(boulders=False)
    coarse = _relief(Window(post_m, 10, 20, 200, 200), recipe).double()
    averaged = _averaged(_relief(Window(post_m / 2, 2 * 10 - 1, 2 * 20 - 1, 401, 401), recipe))
    error = coarse - averaged
    assert float(error.std()) < 0.01 * post_m
    assert float(error.abs().max()) < 0.15 * post_m
    # Sampled without averaging, the finer level is further off.
    picked = _relief(Window(post_m / 2, 20, 40, 399, 399), recipe)[::2, ::2]
    assert float((coarse - picked).std()) > 1.5 * float(error.std())


def test_the_same_crater_is_sharper_on_finer_posts_and_in_the_same_place():
    one = Features(*(np.array([v]) for v in (3.3, -1.7, 8.0, 2.0, 0.0)))
    floors = []
    for post_m in (8.0, 4.0, 1.0, 0.25):
        half = round(40 / post_m)
        z = stamped_heights(
            Window(post_m, -half, -half, 2 * half + 1, 2 * half + 1), one, profile.crater_table()
        )
        floors.append(float(z.min()))
        row, col = divmod(int(z.argmin()), z.shape[1])
        assert abs((row - half) * post_m + 1.7) <= post_m / 2 + 1e-9
        assert abs((col - half) * post_m - 3.3) <= post_m / 2 + 1e-9
    assert floors == sorted(floors, reverse=True)
    assert floors[-1] == pytest.approx(2.0 * (profile.RIM_SHARE - 1), rel=0.02)


def test_fresh_profile_by_hand():
    at = profile.fresh_height(np.array([0.0, 1.0, 2.0, 4.0, 5.0]))
    rim = 0.036 / 0.196
    assert at[0] == pytest.approx(rim - 1)
    assert at[1] == pytest.approx(rim)
    assert at[2] == pytest.approx(rim * (1 / 8 - 1 / 64) / (1 - 1 / 64))
    assert at[3] == at[4] == 0.0


def test_ejecta_hold_what_the_bowl_lost_fresh_and_worn():
    table = profile.crater_table().height.double().numpy()
    nodes = np.arange(table.shape[1]) / 96
    volume = 2 * math.pi * (table * nodes).sum(1) / 96
    assert abs(volume[0]) < 1e-3  # of depth x radius^2; the bowl alone is 1.0
    assert np.abs(volume[:28]).max() < 0.03  # states up to 0.3: a little has left the reach


def test_worn_profile_solves_the_diffusion_equation():
    """A second way: explicit steps on a square grid, to a state of 0.1."""
    step, half = 1 / 16, 80
    axis = np.arange(-half, half + 1) * step
    radius = np.hypot(axis[:, None], axis)
    z = profile.fresh_height(radius)
    dx = step**2 / 8
    for _ in range(round(0.1 / dx)):
        lap = -4 * z[1:-1, 1:-1] + z[2:, 1:-1] + z[:-2, 1:-1] + z[1:-1, 2:] + z[1:-1, :-2]
        z[1:-1, 1:-1] += dx / step**2 * lap
    row, share = profile.crater_table().rows(np.array([0.1]))
    table = profile.crater_table().height.double().numpy()
    line = table[row[0]] * (1 - share[0]) + table[row[0] + 1] * share[0]
    along = np.interp(axis[half:][axis[half:] < 3], np.arange(len(line)) / 96, line)
    assert z[half, half:][axis[half:] < 3] == pytest.approx(along, abs=4e-3)


def test_stamps_add_up_as_one_by_one(monkeypatch):
    """Many at a time, one by one, and by the table itself; over borders, too."""
    window = Window(2.0, -30, 10, 70, 50)
    rng = np.random.default_rng(0)
    n = 40
    found = Features(
        rng.uniform(-60, 200, n), rng.uniform(-150, 160, n), rng.uniform(2, 30, n),
        rng.uniform(0.1, 3, n), rng.uniform(0, 1, n),
    )  # fmt: skip
    table = profile.crater_table()
    both = stamped_heights(window, found, table)
    east, north = window.axes_m()
    row, share = table.rows(found.state + profile.hat_wear(2.0, found.radius_m))
    expected = np.zeros((70, 50))
    heights = table.height.double().numpy()
    for k in range(n):
        line = heights[row[k]] * (1 - share[k]) + heights[row[k] + 1] * share[k]
        de, dn = east.numpy() - found.east_m[k], north.numpy() - found.north_m[k]
        radius = np.hypot(de[None, :], dn[:, None]) / found.radius_m[k]
        expected += found.height_m[k] * np.interp(radius * 96, np.arange(len(line)), line)
    assert both.numpy() == pytest.approx(expected, abs=2e-5)
    monkeypatch.setattr("tnav.terrain.synthetic.stamping._BOX_POSTS", 0)
    assert torch.allclose(stamped_heights(window, found, table), both, atol=1e-6)


def test_craters_leave_the_mean_height_alone():
    smooth = Relief(rms_deviation_17m_m=0, boulders=False)
    means = [
        float(_relief(Window(4.0, 9000 * k, 0, 513, 513), smooth, diameter_max_m=256.0).mean())
        for k in range(4)
    ]
    # Craters over the border move a window's mean; by themselves they hold their volume.
    assert abs(np.mean(means)) < 0.1


def test_roughness_has_the_stated_deviation_at_every_baseline():
    recipe = Relief(hurst=0.7, rms_deviation_17m_m=0.5)
    window = Window(2.0, 0, 0, 1025, 1025)
    z = roughness.rough_heights(window, recipe, wavelength_max_m=32000.0, seed=2)
    for lag in (8, 16, 32):
        squares = [(z[:, lag:] - z[:, :-lag]).square(), (z[lag:] - z[:-lag]).square()]
        nu = math.sqrt(sum(float(s.mean()) for s in squares) / 2)
        assert nu == pytest.approx(0.5 * (lag * 2.0 / 17) ** 0.7, rel=0.1)


def test_roughness_is_the_same_in_all_directions():
    z = roughness.rough_heights(Window(1.0, 0, 0, 900, 900), MARE, wavelength_max_m=64.0, seed=2)
    along = float((z[:, 10:] - z[:, :-10]).square().mean())
    across = float((z[10:] - z[:-10]).square().mean())
    oblique = float((z[7:, 7:] - z[:-7, :-7]).square().mean())  # over 9.9 m
    assert across == pytest.approx(along, rel=0.06)
    assert oblique == pytest.approx(along, rel=0.06)


def test_posts_too_coarse_for_any_relief_stay_flat():
    window = Window(512.0, -5, -5, 40, 40)
    z = _relief(window, diameter_max_m=511.0, wavelength_max_m=947.0)
    assert float(z.abs().max()) == 0.0


def test_smooth_recipe_draws_nothing():
    recipe = Relief(rms_deviation_17m_m=0)
    z = _relief(Window(1.0, 0, 0, 40, 40), recipe, diameter_max_m=1.0)
    assert float(z.abs().max()) == 0.0


def _one_crater(diameter_m, age_gyr):
    none = np.zeros(1)
    return craters.Craters(
        none, none, np.array([diameter_m]), none, none, np.array([age_gyr]), np.array([True])
    )


def _expected_boulders(octave, source):
    """Integral of the density over the plane."""
    radius_m = source.diameter_m[0] / 2
    edge = np.linspace(1, 6, 2001)
    r = 0.5 * (edge[1:] + edge[:-1]) * radius_m
    size = np.full(len(r), 2.0**octave)
    density = boulders.density_per_m2(r, 0 * r, size, octave, source)
    return float((2 * math.pi * r * density).sum() * (r[1] - r[0]))


def test_boulders_of_linne_are_as_many_as_were_counted():
    """12 000 over 4.4 m, the largest 30.8 m (Pajola et al. 2019)."""
    linne = _one_crater(2200.0, 0.0)
    assert boulders.largest_boulder_m(np.array([2200.0]))[0] == pytest.approx(30.8)
    over_4 = sum(_expected_boulders(k, linne) for k in (2, 3))
    assert over_4 * (4.4 / 4) ** -4.03 == pytest.approx(12000, rel=0.02)


def test_half_the_boulders_are_gone_after_sixty_million_years():
    young, old = (_expected_boulders(1, _one_crater(300.0, age)) for age in (0.0, 0.06))
    assert old == pytest.approx(young / 2)


def test_drawn_boulders_follow_the_density(monkeypatch):
    source = _one_crater(120.0, 0.01)
    monkeypatch.setattr(craters, "craters_near", lambda *a, **k: source)
    found = boulders.boulders_near(
        (-400.0, -400.0, 400.0, 400.0), MARE, diameter_min_m=1.0, diameter_max_m=1e3, seed=3
    )
    expected = _expected_boulders(0, source)
    first = found.radius_m < 1.0
    assert abs(int(first.sum()) - expected) < 4 * math.sqrt(expected)
    out_radii = np.hypot(found.east_m, found.north_m) / 60.0
    assert out_radii.min() >= 1.0
    # Half of the density r exp(-(r - 1) / 0.7) lies within 1.79 radii: (r + 0.7) exp(...) = 0.85.
    within = float((out_radii < 1.789).mean())
    assert abs(within - 0.5) < 4 * math.sqrt(0.25 / len(found))
    assert 2 * found.radius_m.max() <= boulders.largest_boulder_m(source.diameter_m)[0]


def test_boulders_stand_only_by_craters_through_the_regolith():
    box = (-600.0, -600.0, 600.0, 600.0)
    none = boulders.boulders_near(box, MARE, diameter_min_m=1.0, diameter_max_m=29.0, seed=1)
    some = boulders.boulders_near(box, MARE, diameter_min_m=1.0, diameter_max_m=999.0, seed=1)
    assert len(none) == 0
    assert len(some) > 50


def test_recipe_without_boulders_has_none_and_small_ones_are_left_out():
    """Around a window on which boulders of over 2 m lie."""
    near = {"diameter_max_m": 1e3, "seed": 1}
    box = (-1200.0, -1200.0, 1200.0, 1200.0)
    thrown = boulders.boulders_near(box, MARE, diameter_min_m=2.0, **near)
    largest = int(thrown.radius_m.argmax())
    col, row = round(thrown.east_m[largest] / 0.5) - 50, round(thrown.north_m[largest] / 0.5) - 50
    window = Window(0.5, row, col, 101, 101)
    without = _relief(window, Relief(boulders=False))
    bumps = _relief(window) - without
    assert float(bumps.min()) > -1e-6
    assert float(bumps.max()) > 0.3 * thrown.height_m[largest]
    tall = 2 * float(thrown.radius_m[largest]) + 0.01
    none = _relief(window, Relief(boulder_diameter_min_m=tall))
    assert torch.equal(none, without)


@pytest.mark.parametrize(
    "wrong", [{"age_gyr": 0}, {"hurst": 1.0}, {"secondary_share": 1.0}, {"unknown": 1}]
)
def test_a_wrong_recipe_is_refused(wrong):
    with pytest.raises(ValidationError):
        Relief(**wrong)
