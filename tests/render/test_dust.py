import math

import pytest
import torch
from render_scenes import CAMERA, flat, hills, pose_over

from tnav.geometry.sun import direction_L
from tnav.render.dust import DustPlume, henyey_greenstein, veil
from tnav.render.reflectance import Lambert
from tnav.render.renderer import render

SUN_DEG = 35.0
SUN_L = direction_L(120.0, SUN_DEG)


def _frames(agl_m, dust, terrain=None, **options):
    terrain = terrain or flat()
    plain = render(terrain, CAMERA, pose_over(z=agl_m), SUN_L, **options)
    return plain, render(terrain, CAMERA, pose_over(z=agl_m), SUN_L, dust=dust, **options)


@pytest.mark.parametrize("agl_m", [30.001, 100.0])
def test_above_the_onset_there_is_none(agl_m):
    plain, dusty = _frames(agl_m, DustPlume(onset_m=30.0))
    assert torch.equal(plain.image, dusty.image)


def test_beside_the_terrain_there_is_no_dust_and_no_nan():
    """The camera looks back at a ground that ends 10 m before it: no height over ground there."""
    terrain, pose = flat(200.0), pose_over(x=-210.0, z=20.0)
    plain = render(terrain, CAMERA, pose, SUN_L)
    dusty = render(terrain, CAMERA, pose, SUN_L, dust=DustPlume())
    assert 0.05 < float(plain.hit.double().mean()) < 0.95
    assert torch.equal(plain.image, dusty.image)


def test_just_under_the_onset_there_is_a_little():
    plain, dusty = _frames(29.0, DustPlume(onset_m=30.0, growth=1.0))
    change = (dusty.image - plain.image).abs().max()
    assert 0 < float(change) < 0.3 * float(plain.image.max())


def test_black_dust_dims_by_beer_and_lambert():
    """tau from the extinction k(h) = tau_v / H exp(-h / H), summed along both ways."""
    dust = DustPlume(albedo=0.0, scale_height_m=3.0)
    agl_m = 8.0
    plain, dusty = _frames(agl_m, dust, reflectance=Lambert())
    for row, col in ((20, 24), (0, 0), (39, 10)):
        point = plain.xyz_L[0, row, col]
        distance_m = math.hypot(float(point[0]), float(point[1]))
        column = dust.column * (1 - agl_m / 30.0) ** 2 / (1 + distance_m / 40.0)
        h = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
        extinction_m = column / 3.0
        range_m = float(plain.range_m[0, row, col])
        up = float(torch.exp(-h * agl_m / 3.0).mean()) * extinction_m * range_m
        way_m = 120.0 / math.sin(math.radians(SUN_DEG))  # to a height of 40 scale heights
        down = float(torch.exp(-h * 120.0 / 3.0).mean()) * extinction_m * way_m
        ratio = float(dusty.image[0, 0, row, col] / plain.image[0, 0, row, col])
        assert ratio == pytest.approx(math.exp(-up - down), rel=1e-5)


def test_airlight_is_the_light_scattered_once_along_the_ray():
    """Against a sum over the ray, of sunlight dimmed on its way in and again on its way out."""
    dust = DustPlume(albedo=0.8, asymmetry=0.3, scale_height_m=2.0, reach_m=1e9)
    camera_L = torch.tensor([0.0, 0.0, 5.0], dtype=torch.float64)
    point_L = torch.tensor([4.0, -3.0, 0.0], dtype=torch.float64)
    agl_m = torch.tensor(5.0, dtype=torch.float64)
    range_m = float((camera_L - point_L).norm())
    mu, mu_s = 5.0 / range_m, float(SUN_L[2])
    phase_rad = torch.acos(((camera_L - point_L) / range_m) @ SUN_L)
    through, air = veil(dust, camera_L, point_L, agl_m, SUN_L, phase_rad.float())
    column = dust.column * (1 - 5.0 / 30.0) ** 2
    n = 100_000
    h = (torch.arange(n, dtype=torch.float64) + 0.5) / n * 5.0  # on the ray, from the ground up
    over = column * torch.exp(-h / 2.0)
    between = over - column * math.exp(-5.0 / 2.0)
    step = column / 2.0 * torch.exp(-h / 2.0) * (5.0 / n) / mu
    scattered = step * torch.exp(-over / mu_s - between / mu)
    # I/F of scattering: pi I / F = albedo P / 4 (P has mean 1 over the sphere)
    expected = 0.8 * float(henyey_greenstein(0.3, phase_rad.float())) / 4 * float(scattered.sum())
    assert float(air) == pytest.approx(expected, rel=1e-4)
    below = column * (1 - math.exp(-5.0 / 2.0))
    assert float(through) == pytest.approx(math.exp(-column / mu_s - below / mu), rel=1e-6)


def test_thick_dust_hides_the_ground():
    """Contrast of the ground goes, and what is left is a haze of one brightness per direction."""
    dust = DustPlume(column=50.0, reach_m=1e9)
    plain, dusty = _frames(9.5, dust, hills())
    hidden, _ = _frames(9.5, dust, hills(), reflectance=Lambert(albedo=0.9))
    _, hidden_dusty = _frames(9.5, dust, hills(), reflectance=Lambert(albedo=0.9))
    assert float((hidden.image - plain.image).abs().max()) > 0.1
    assert torch.allclose(hidden_dusty.image, dusty.image, atol=1e-4)
    assert float(dusty.image.min()) > 0.0


def test_dust_thins_outwards_and_grows_downwards():
    dust = DustPlume()
    near, far = (dust.column_at(*torch.tensor([10.0, d]).double()) for d in (0.0, 40.0))
    assert float(far) == pytest.approx(float(near) / 2)
    low, high = (dust.column_at(*torch.tensor([h, 0.0]).double()) for h in (1.0, 20.0))
    assert float(low) > float(high) > 0
    assert float(dust.column_at(*torch.tensor([math.nan, 0.0]).double())) == 0.0
    assert float(dust.column_at(*torch.tensor([0.0, 0.0]).double())) == dust.column


@pytest.mark.parametrize("asymmetry", [-0.5, 0.0, 0.7])
def test_henyey_greenstein_has_mean_one_and_its_mean_cosine(asymmetry):
    cosine = torch.linspace(-1, 1, 200_001, dtype=torch.float64)  # of the scattering angle
    value = henyey_greenstein(asymmetry, torch.acos(-cosine).float()).double()
    assert float(value.mean()) == pytest.approx(1.0, abs=1e-3)
    assert float((value * cosine).mean()) == pytest.approx(asymmetry, abs=1e-3)


def test_no_airlight_under_a_sun_below_the_horizon():
    frame = render(flat(), CAMERA, pose_over(z=5.0), direction_L(0.0, -5.0), dust=DustPlume())
    assert float(frame.image.abs().max()) == 0.0


def test_dust_shows_over_shadow_and_not_in_the_sky():
    terrain = hills()
    tilted = pose_over(z=8.0, tilt_deg=95.0)
    frame = render(terrain, CAMERA, tilted, direction_L(0.0, 5.0), dust=DustPlume())
    assert bool((~frame.hit).any())
    assert float(frame.image[:, 0][~frame.hit].abs().max()) == 0.0
    shadow = frame.hit & ~frame.lit
    assert bool(shadow.any())
    assert float(frame.image[:, 0][shadow].min()) > 0.0


def test_the_defaults_hide_the_ground_as_on_apollo_12():
    """Sun 5 deg high: from 12 m about a twentieth of the ground's light is left, from 28 m most."""
    left = {}
    for agl_m in (12.0, 28.0):
        dust = DustPlume(albedo=0.0)
        plain, dusty = (
            render(flat(), CAMERA, pose_over(z=agl_m), direction_L(90.0, 5.19), dust=d)
            for d in (None, dust)
        )
        left[agl_m] = float(dusty.image[0, 0, 20, 24] / plain.image[0, 0, 20, 24])
    assert left[12.0] == pytest.approx(0.05, abs=0.02)
    assert left[28.0] > 0.9
