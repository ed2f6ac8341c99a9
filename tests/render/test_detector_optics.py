"""Fall-off, point spread and radiometry against closed forms."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from render_scenes import ground, pose_over
from scipy import special

from tnav.errors import ConfigError
from tnav.geometry.camera import Camera
from tnav.geometry.distortion import Fisheye
from tnav.geometry.sun import direction_L
from tnav.render import optics
from tnav.render.detector import Detector, focal_plane
from tnav.render.optics import Radiometry, Vignetting
from tnav.render.reflectance import Lambert
from tnav.render.renderer import render

CPU = torch.device("cpu")


def _point(n=65):
    point = torch.zeros(1, 1, n, n)
    point[..., n // 2, n // 2] = 1.0
    return point


def _second_moment(spread):
    x = torch.arange(spread.shape[-1], dtype=torch.float64) - spread.shape[-1] // 2
    return float((spread[0, 0].double().sum(0) * x**2).sum())


def test_natural_vignetting_is_the_fourth_power_of_the_cosine():
    fall = optics.falloff(Vignetting(focal_px=50.0), 41, 61, CPU)
    assert fall[20, 30] == 1.0
    for row, col in ((0, 0), (20, 60), (40, 13)):
        field = math.atan(math.hypot(row - 20, col - 30) / 50.0)
        assert float(fall[row, col]) == pytest.approx(math.cos(field) ** 4, rel=1e-6)


def test_polynomial_falloff_is_one_in_the_middle_and_its_sum_in_the_corner():
    fall = optics.falloff(Vignetting(polynomial=(-0.2, 0.05)), 401, 601, CPU)
    assert fall[200, 300] == 1.0
    q2 = (200**2 + 300**2) / (200.5**2 + 300.5**2)
    assert float(fall[0, 0]) == pytest.approx(1 - 0.2 * q2 + 0.05 * q2**2, rel=1e-6)
    assert torch.equal(fall, fall.flip(0))
    assert torch.equal(fall, fall.flip(1))


def test_both_falloffs_multiply():
    both = optics.falloff(Vignetting(focal_px=40.0, polynomial=(-0.3,)), 30, 30, CPU)
    one = optics.falloff(Vignetting(focal_px=40.0), 30, 30, CPU)
    other = optics.falloff(Vignetting(polynomial=(-0.3,)), 30, 30, CPU)
    assert torch.allclose(both, one * other, rtol=1e-6)


@pytest.mark.parametrize("polynomial", [(-1.01,), (0.5, 0.6), (-4.0, 4.0 - 0.1)])
def test_a_falloff_beyond_its_range_is_refused(polynomial):
    with pytest.raises(ValidationError, match="leaves"):
        Vignetting(polynomial=polynomial)


@pytest.mark.parametrize("sigma", [0.05, 0.1, 0.3, 0.45, 0.6, 1.0, 2.5, 7.0])
def test_gaussian_spread_keeps_the_light_and_has_its_second_moment(sigma):
    spread = optics.blur(_point(), sigma)
    assert float(spread.double().sum()) == pytest.approx(1.0, abs=1e-6)
    assert float(spread.min()) >= 0.0
    assert torch.allclose(spread, spread.mT, atol=1e-9)
    assert _second_moment(spread) == pytest.approx(sigma**2, rel=3e-3)  # cut at 4 sigma


def test_gaussian_spread_is_the_discrete_one_and_tends_to_the_sampled_one():
    """exp(-t) I_n(t) by scipy; far above a pixel, exp(-n^2/2t) / sqrt(2 pi t)."""
    n = np.arange(-32, 33)
    for sigma in (0.3, 0.6, 2.0):
        found = optics.blur(_point(), sigma)[0, 0].double().sum(0).numpy()
        assert found == pytest.approx(special.ive(abs(n), sigma**2), abs=1e-4)
    found = optics.blur(_point(), 6.0)[0, 0].double().sum(0).numpy()
    sampled = np.exp(-(n**2) / 72) / math.sqrt(2 * math.pi * 36)
    assert found == pytest.approx(sampled, abs=0.005 * sampled.max())


def _edge_sigma(samples, psf_sigma_px):
    """Spread of the crease between two planes, seen at 20 places within a pixel."""
    terrain = ground(lambda x, y: -0.3 * x.clamp_min(0.0), half_m=200.0, post_m=1.0)
    camera = Camera(33, 5, 75_000.0, 16.5, 2.5)  # from 300 km: 4 m a pixel, all but parallel rays
    detector = Detector(psf_sigma_px=psf_sigma_px)
    steps, shifts = 20, []
    for k in range(steps):
        east_m = 4.0 * ((k + 0.37) / steps - 0.5)  # no sample lies on the crease itself
        pose = pose_over(east_m, 0.0, 3e5)
        light = direction_L(270.0, 40.0)
        frame = render(terrain, camera, pose, light, samples=samples, reflectance=Lambert())
        shifts.append(focal_plane(frame.image, detector)[0, 0, 2, 4:29].double())
    profile = torch.stack(shifts, 1).flatten()  # by place: pixel, then shift
    share = profile.diff() / (profile[-1] - profile[0])
    at = torch.arange(len(share), dtype=torch.float64) / steps
    mean = (share * at).sum()
    return float((share * (at - mean) ** 2).sum().sqrt())


@pytest.mark.parametrize("sigma", [0.3, 0.6])
def test_an_edge_has_the_spread_of_the_optics_and_of_a_pixels_side(sigma):
    """sqrt(sigma^2 + 1/12): samples, n a side, are a box of (1 - 1/n^2)/12; 1 is no box."""
    for samples, box in ((1, 0.0), (4, 0.75 / 12), (16, (1 - 1 / 16) / 12)):
        expected = math.sqrt(sigma**2 + box)
        assert _edge_sigma(samples, sigma) == pytest.approx(expected, rel=0.01)


def test_vignetting_is_about_the_principal_point():
    camera = Camera(61, 41, 50.0, 12.5, 30.5)
    fall = optics.falloff(Vignetting(focal_px=50.0), 41, 61, CPU, camera)
    assert fall[30, 12] == 1.0
    ray = camera.unproject(camera.pixel_centres(CPU))
    expected = (ray[..., 2] / ray.norm(dim=-1)) ** 4
    assert torch.allclose(fall.double(), expected, rtol=1e-6)
    fall = optics.falloff(Vignetting(polynomial=(-0.9,)), 41, 61, CPU, camera)
    assert fall[30, 12] == 1.0
    farthest = 48.0**2 + 30.0**2  # of a pixel's centre, the upper right one; half a px to the end
    assert float(fall.min()) == float(fall[0, 60])
    expected = 1 - 0.9 * farthest / (48.5**2 + 30.5**2)
    assert float(fall[0, 60]) == pytest.approx(expected, rel=1e-6)


def test_vignetting_of_a_centred_pinhole_needs_no_camera():
    law = Vignetting(focal_px=50.0, polynomial=(-0.1,))
    camera = Camera(61, 41, 50.0, 30.5, 20.5)
    assert torch.allclose(
        optics.falloff(law, 41, 61, CPU), optics.falloff(law, 41, 61, CPU, camera), rtol=1e-6
    )


def test_vignetting_of_a_fisheye_follows_its_angles():
    """Equidistant: r = f a, so that 80 px off are 1.6 rad, and beyond a right angle it is black."""
    camera = Camera(161, 3, 50.0, 80.5, 1.5, Fisheye())
    fall = optics.falloff(Vignetting(focal_px=50.0), 3, 161, CPU, camera)[1]
    for offset in (10, 40, 70):
        assert float(fall[80 + offset]) == pytest.approx(math.cos(offset / 50.0) ** 4, rel=1e-5)
    assert fall[160] == 0.0


def test_a_camera_of_another_size_is_refused():
    with pytest.raises(ConfigError, match="61 x 41"):
        optics.falloff(Vignetting(), 41, 60, CPU, Camera(61, 41, 50.0, 30.5, 20.5))


@pytest.mark.parametrize("diameter", [1.0, 2.0, 3.3, 8.0])
def test_defocus_is_a_disc(diameter):
    """Columns of its light by the closed form of a disc's marginal distribution."""
    spread = optics.defocus(_point(), diameter)
    assert float(spread.double().sum()) == pytest.approx(1.0, abs=1e-6)
    r = diameter / 2
    edges = [max(-r, min(r, k - 0.5)) for k in range(-32, 34)]
    below = [
        0.5 + (x * math.sqrt(r * r - x * x) + r * r * math.asin(x / r)) / (math.pi * r * r)
        for x in edges
    ]
    expected = torch.tensor(below, dtype=torch.float64).diff()
    # 16 subpixels a side: their columns err by half a subpixel of chord at each of two edges
    assert torch.allclose(spread[0, 0].double().sum(0), expected, atol=0.02 / diameter)
    assert torch.allclose(spread, spread.flip(2), atol=1e-7)
    assert torch.allclose(spread, spread.mT, atol=1e-7)


def test_a_disc_of_one_pixel_changes_nothing():
    assert torch.equal(optics.defocus(_point(), 1.0), _point())


def test_a_flat_scene_stays_flat_up_to_its_edges():
    flat = torch.full((2, 1, 40, 50), 0.37)
    out = focal_plane(flat, Detector(psf_sigma_px=1.3, airy_px=0.9, defocus_px=4.0))
    assert torch.allclose(out, flat, rtol=1e-5)


def test_diffraction_has_the_airy_peak():
    """Peak of the Airy pattern of unit energy: pi / 4 over (wavelength N / pitch)^2."""
    sigma = optics.diffraction_sigma_px(1.7)
    assert 1 / (2 * math.pi * sigma**2) == pytest.approx(math.pi / 4 / 1.7**2)


def test_spreads_add_in_quadrature():
    detector = Detector(psf_sigma_px=1.5, airy_px=4.0)
    sigma = math.hypot(1.5, math.sqrt(2) / math.pi * 4.0)
    assert _second_moment(focal_plane(_point(), detector)) == pytest.approx(sigma**2, rel=5e-3)


def test_neutral_optics_leave_the_scene_alone():
    scene = torch.rand(1, 1, 20, 30, generator=torch.Generator().manual_seed(0))
    assert torch.equal(focal_plane(scene, Detector(psf_sigma_px=0.0)), scene)


def test_the_sun_has_its_nominal_irradiance():
    """sigma T^4 (R/au)^2 = 1361 W/m^2; photons carry it: sum over bands of h c / wavelength."""
    edges = [100.0 * 1.02**k for k in range(198)]
    watts = 0.0
    for low, high in pairwise(edges):
        energy = 6.62607015e-34 * 299792458.0 / (0.5e-9 * (low + high))
        watts += energy * optics.sun_photons((low, high))
    assert watts == pytest.approx(0.995 * 1361.0, rel=0.01)  # up to 5 um: 99.5 % of a black body


def test_a_narrow_band_is_plancks_law():
    """1.83 W/m^2/nm at 550 nm by hand from pi B(5772 K) (R/au)^2."""
    per_nm = optics.sun_photons((549.5, 550.5)) * 6.62607015e-34 * 299792458.0 / 550e-9
    x = 6.62607015e-34 * 299792458.0 / (550e-9 * 1.380649e-23 * 5772.0)
    planck = 2 * 6.62607015e-34 * 299792458.0**2 / 550e-9**5 / math.expm1(x)
    expected = math.pi * planck * (695_700e3 / 149_597_870_700.0) ** 2 * 1e-9
    assert per_nm == pytest.approx(expected, rel=1e-5)


def test_electrons_follow_aperture_pixel_sun_and_efficiency():
    one = Radiometry().electrons_per_s
    expected = optics.sun_photons((450.0, 750.0)) * 0.8 * 0.5 / (4 * 4.0**2) * 5.5e-6**2
    assert one == pytest.approx(expected)
    assert Radiometry(f_number=8.0).electrons_per_s == pytest.approx(one / 4)
    assert Radiometry(pixel_pitch_um=11.0).electrons_per_s == pytest.approx(4 * one)
    assert Radiometry(quantum_efficiency=0.25).electrons_per_s == pytest.approx(one / 2)
    assert Radiometry(transmission=0.4).electrons_per_s == pytest.approx(one / 2)
    assert Radiometry(sun_distance_au=1.017).electrons_per_s == pytest.approx(one / 1.017**2)


@pytest.mark.parametrize("band", [(700.0, 600.0), (50.0, 600.0), (600.0, 6000.0)])
def test_a_band_that_is_none_is_refused(band):
    with pytest.raises(ValidationError, match="band_nm"):
        Radiometry(band_nm=band)
