import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from render_scenes import CAMERA, flat, ground, hills, pose_over

from tnav.errors import ConfigError
from tnav.geometry.camera import Camera
from tnav.geometry.sun import direction_L
from tnav.render.reflectance import Hapke, radiance_factor
from tnav.render.renderer import render
from tnav.render.sunlight import (
    LIMB_DARKENING,
    UNIFORM_DISC,
    Earthshine,
    Sunlight,
    disc_points,
    earth_irradiance_ratio,
    light_radius,
    sun_radius_rad,
)

RIDGE_M, ELEVATION_DEG = 40.0, 20.0


def _share_over(edge, darkening):
    """Light of the unit disc beyond a straight edge at a signed distance from its centre.

    A chord at x has half length c = sqrt(1 - x^2) and the light of 2 a0 c + a1 pi c^2 / 2 +
    a2 4/3 c^3; for the uniform disc its integral is the circular segment.
    """
    a0, a1, a2 = darkening

    def until(x):
        x = min(1.0, max(-1.0, x))
        c = math.sqrt(1 - x * x)
        flat_part = a0 * (x * c + math.asin(x))
        linear = a1 * math.pi / 2 * (x - x**3 / 3)
        quadratic = a2 * 4 / 3 * (x * c**3 / 4 + 3 / 8 * (x * c + math.asin(x)))
        return flat_part + linear + quadratic

    return (until(1.0) - until(edge)) / (until(1.0) - until(-1.0))


def test_the_uniform_closed_form_is_the_circular_segment():
    for s in (-0.7, 0.0, 0.3, 0.9):
        segment = (math.acos(s) - s * math.sqrt(1 - s * s)) / math.pi
        assert _share_over(s, UNIFORM_DISC) == pytest.approx(segment, abs=1e-12)


@pytest.mark.parametrize("darkening", [UNIFORM_DISC, LIMB_DARKENING])
@pytest.mark.parametrize("count", [8, 16, 64, 256])
def test_points_hold_the_light_beyond_any_edge(darkening, count):
    """At any distance and angle; the discrepancy of evenly spread points falls as n^(-3/4)."""
    x, y = torch.tensor(disc_points(count, 0.5, darkening), dtype=torch.float64).unbind(-1)
    worst = 0.0
    for angle in torch.linspace(0, math.pi, 25).tolist():
        across = x * math.cos(angle) + y * math.sin(angle)
        for edge in torch.linspace(-1, 1, 81).tolist():
            share = float((across > edge).double().mean())
            worst = max(worst, abs(share - _share_over(edge, darkening)))
    assert worst < 1.25 * count**-0.75


def test_shifted_points_fill_gaps():
    """Four patterns of 16 together do nearly as well as one of 64, and better than 16 alone."""
    shifts = [(k + 0.5) / 4 for k in range(4)]
    points = [p for shift in shifts for p in disc_points(16, shift, LIMB_DARKENING)]
    x = torch.tensor(points, dtype=torch.float64)[:, 0]
    edges = torch.linspace(-1, 1, 81).tolist()
    worst = max(
        abs(float((x > edge).double().mean()) - _share_over(edge, LIMB_DARKENING)) for edge in edges
    )
    assert worst < 1.5 * 64**-0.75


@given(st.floats(0.0, 1.0))
def test_light_radius_inverts_the_light_within(share):
    radius = light_radius(share, LIMB_DARKENING)
    a0, a1, a2 = LIMB_DARKENING
    r = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000
    mu = (1 - r * r).sqrt()
    light = (a0 + a1 * mu + a2 * mu**2) * r
    assert float(light[r < radius].sum() / light.sum()) == pytest.approx(share, abs=2e-4)
    assert light_radius(share, UNIFORM_DISC) == pytest.approx(math.sqrt(share), abs=1e-6)


@pytest.mark.parametrize("sun", [(0.0, 90.0), (90.0, 1.0), (270.0, -30.0), (10.0, -90.0)])
def test_rays_are_unit_and_within_the_disc(sun):
    light = Sunlight(direction_L(*sun), samples=32)
    rays_L = torch.cat(light.rays_L())
    assert torch.allclose(rays_L.norm(dim=-1), torch.ones(32, dtype=torch.float64), atol=1e-14)
    away_rad = torch.linalg.cross(rays_L, light.sun_L.expand_as(rays_L)).norm(dim=-1).asin()
    assert float(away_rad.max()) < light.angular_radius_rad
    assert float(away_rad.max()) > 0.9 * light.angular_radius_rad
    middle = rays_L.mean(0)
    assert float((middle - light.sun_L).norm()) < 0.05 * light.angular_radius_rad


def test_a_point_sun_is_its_centre():
    sun_L = direction_L(108.0, 12.0)
    (ray_L,) = Sunlight(sun_L).rays_L()
    assert torch.equal(ray_L[0], sun_L)


@pytest.mark.parametrize("length", [0.5, 1.0, 1.0 + 1e-7, 2.0, 1.5e11])
def test_vectors_of_any_length_become_unit(length):
    both_L = torch.stack([direction_L(108.0, 12.0), direction_L(10.0, 80.0)])
    light = Sunlight(length * both_L, samples=3, earth=Earthshine(length * both_L[0], 1e-4))
    assert torch.allclose(light.sun_L, both_L, rtol=0, atol=1e-15)
    assert torch.allclose(light.earth.earth_L, both_L[0], rtol=0, atol=1e-15)
    assert torch.equal(light.to(torch.device("cpu")).sun_L, light.sun_L)  # once is enough
    for ray_L in light.rays_L():
        assert torch.allclose(ray_L.norm(dim=-1), torch.ones(2, dtype=torch.float64), atol=1e-14)


def test_the_disc_is_half_a_degree_and_grows_as_it_nears():
    assert math.degrees(sun_radius_rad()) == pytest.approx(0.26645, abs=1e-5)
    assert sun_radius_rad(0.9833) / sun_radius_rad(1.0167) == pytest.approx(1.034, abs=1e-3)


def _penumbra(rays, darkening=UNIFORM_DISC, **options):
    """Fraction of the Sun on flat ground east of a ridge, and the fraction expected there."""
    terrain = ground(lambda x, y: torch.where(x.abs() < 5.0, RIDGE_M, 0.0), post_m=5.0)
    camera = Camera.from_field_of_view(96, 8, 35.0)
    light = Sunlight(direction_L(270.0, ELEVATION_DEG), samples=rays, limb_darkening=darkening)
    tip_m = RIDGE_M / math.tan(math.radians(ELEVATION_DEG))
    frame = render(terrain, camera, pose_over(tip_m, 3.0, 10.0), light, truth=True, **options)
    x_m = frame.xyz_L[0, 4, :, 0]
    radius = light.angular_radius_rad
    edge = (torch.atan(RIDGE_M / x_m) - math.radians(ELEVATION_DEG)) / radius
    expected = torch.tensor([_share_over(float(s), darkening) for s in edge])
    return frame, x_m, expected.float()


@pytest.mark.parametrize("darkening", [UNIFORM_DISC, LIMB_DARKENING])
def test_penumbra_is_the_circular_segment(darkening):
    frame, _, expected = _penumbra(64, darkening)
    fraction = frame.surface.sun_fraction[0, 4]
    assert float((fraction - expected).abs().max()) < 1.25 * 64**-0.75
    assert float((fraction - expected).square().mean().sqrt()) < 0.02


def test_penumbra_has_the_width_of_the_sun():
    """From where the upper limb shows, h cot(e + r), to where the whole Sun does, h cot(e - r)."""
    frame, x_m, _ = _penumbra(256)
    fraction = frame.surface.sun_fraction[0, 4]
    part = x_m[(fraction > 0) & (fraction < 1)]
    pixel_m = float(x_m[1] - x_m[0])
    e, r = math.radians(ELEVATION_DEG), sun_radius_rad()
    umbra_m, light_m = (RIDGE_M / math.tan(e + sign * r) for sign in (1, -1))
    assert light_m - umbra_m == pytest.approx(3.19, abs=0.01)
    # the outermost of 256 points is not quite at the limb: 2 % of the width, and a pixel
    margin_m = pixel_m + 0.02 * (light_m - umbra_m)
    assert float(part.min()) == pytest.approx(umbra_m, abs=margin_m)
    assert float(part.max()) == pytest.approx(light_m, abs=margin_m)


def test_radiance_follows_the_fraction():
    frame, _, _ = _penumbra(64)
    plain, _, _ = _penumbra(1)
    image, sharp = frame.image[0, 0, 4], plain.image[0, 0, 4]
    fraction = frame.surface.sun_fraction[0, 4]
    lit = (sharp > 0) & (fraction > 0)
    # the mean incidence of the part that is seen shifts by up to the Sun's radius
    slack = 1.5 * sun_radius_rad() / math.tan(math.radians(ELEVATION_DEG))
    ratio = image[lit] / (sharp[lit] * fraction[lit])
    assert float((ratio - 1).abs().max()) < slack


def test_samples_of_a_pixel_and_of_the_sun_share_their_rays():
    """16 samples with 4 points of the Sun each average as 64 points do."""
    many, _, _ = _penumbra(64)
    shared, _, _ = _penumbra(4, samples=16)
    single, _, _ = _penumbra(4)
    bright = float(many.image.max())
    assert float((shared.image - many.image)[0, 0, 4].abs().max()) < 0.05 * bright
    assert float((single.image - many.image)[0, 0, 4].abs().max()) > 0.1 * bright


def test_each_pose_has_its_own_sun():
    terrain, a, b = hills(), direction_L(108.0, 12.0), direction_L(250.0, 30.0)
    poses = pose_over(z=400.0)
    both = type(poses)(poses.R_L_C.repeat(2, 1, 1), poses.position_L.repeat(2, 1))
    frame = render(terrain, CAMERA, both, torch.stack([a, b]), truth=True)
    for k, sun_L in enumerate((a, b)):
        single = render(terrain, CAMERA, poses, sun_L, truth=True)
        assert torch.equal(frame.image[k], single.image[0])
        assert torch.equal(frame.surface.phase_rad[k], single.surface.phase_rad[0])


def test_the_earth_lights_what_the_sun_does_not():
    earth_L = direction_L(180.0, 30.0)
    light = Sunlight(direction_L(0.0, -10.0), earth=Earthshine(earth_L, 1e-4))
    frame = render(flat(), CAMERA, pose_over(), light, reflectance=Hapke(), truth=True)
    assert not bool(frame.lit.any())
    ray_L = (frame.xyz_L[0] - pose_over().position_L[0]) / frame.range_m[0][..., None]
    expected = 1e-4 * radiance_factor(
        Hapke(),
        torch.full(ray_L.shape[:2], 0.5, dtype=torch.float64),
        -ray_L[..., 2],
        torch.acos(-(ray_L @ earth_L)),
    )
    assert torch.allclose(frame.image[0, 0].double(), expected, rtol=1e-3)
    dark = render(flat(), CAMERA, pose_over(), direction_L(0.0, -10.0))
    assert float(dark.image.abs().max()) == 0.0


def test_earthshine_falls_with_phase_as_a_lambert_sphere():
    full = earth_irradiance_ratio(0.0)
    assert full * 1361 == pytest.approx(0.074, abs=0.001)  # W/m^2
    assert earth_irradiance_ratio(math.pi / 2) == pytest.approx(full / math.pi)
    assert earth_irradiance_ratio(math.pi) == pytest.approx(0.0, abs=1e-20)
    assert earth_irradiance_ratio(0.0, 2 * 3.844e8) == pytest.approx(full / 4)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Sunlight(direction_L(0.0, 1.0), samples=0), "sunlight.samples: 0"),
        (lambda: Sunlight(direction_L(0.0, 1.0), angular_radius_rad=0.2), "radius_rad: 0.2"),
        (lambda: Earthshine(direction_L(0.0, 1.0), -1.0), "irradiance_ratio: -1.0"),
        (lambda: earth_irradiance_ratio(4.0), "phase 4.0 rad"),
    ],
)
def test_nonsense_is_refused(make, words):
    with pytest.raises(ConfigError, match=words):
        make()


def test_suns_must_be_as_many_as_poses():
    with pytest.raises(ConfigError, match="sun: 2 vectors, expected 1 or 1"):
        render(flat(), CAMERA, pose_over(), direction_L(0.0, 9.0).expand(2, 3))
