import math

import pytest
import simulated_device
import torch

from tnav.errors import ConfigError
from tnav.geometry.camera import Camera
from tnav.geometry.pose import Pose, so3_exp
from tnav.geometry.sun import direction_L
from tnav.render.reflectance import lunar_lambert
from tnav.render.renderer import AlbedoField, render
from tnav.terrain.heightfield import Level, Terrain

NADIR = torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64))
CAMERA = Camera.from_field_of_view(48, 40, 40.0)


def _terrain(surface, half_m=640.0, post_m=10.0):
    count = round(2 * half_m / post_m) + 1
    axis = torch.linspace(-half_m, half_m, count)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return Terrain((Level(west_m=-half_m, south_m=-half_m, post_m=post_m, z_L=surface(x, y)),))


def _pose(x=0.0, y=0.0, z=500.0, tilt_deg=0.0):
    tilt = torch.tensor([math.radians(tilt_deg), 0.0, 0.0], dtype=torch.float64)
    return Pose((so3_exp(tilt) @ NADIR)[None], torch.tensor([[x, y, z]], dtype=torch.float64))


def test_a_tilted_plane_has_one_radiance_and_exact_points():
    slope = 0.1
    terrain = _terrain(lambda x, y: slope * x)
    sun_L = direction_L(90.0, 30.0)
    frame = render(terrain, CAMERA, _pose(), sun_L)
    assert bool(frame.hit.all())
    assert bool(frame.lit.all())
    xyz = frame.xyz_L[0]
    assert torch.allclose(xyz[..., 2], slope * xyz[..., 0], atol=1e-4)
    # each pixel's point projects to its centre
    point_C = (xyz - _pose().position_L[0]) @ NADIR
    assert torch.allclose(CAMERA.project(point_C), CAMERA.pixel_centres("cpu"), atol=1e-6)
    normal = torch.tensor([-slope, 0.0, 1.0], dtype=torch.float64)
    normal = normal / normal.norm()
    ray = (xyz - _pose().position_L[0]) / frame.range_m[0][..., None]
    expected = 0.13 * lunar_lambert(
        (normal @ sun_L).expand(ray.shape[:2]), -(ray @ normal), torch.acos(-(ray @ sun_L))
    )
    assert torch.allclose(frame.image[0, 0].double(), expected, atol=1e-5)


def test_a_wall_casts_a_shadow_of_the_right_length():
    """A 40 m wall at x = 0 under a Sun in the west at 20 deg: 40 / tan 20 = 110 m to the east."""
    terrain = _terrain(lambda x, y: torch.where(x.abs() < 5.0, 40.0, 0.0), post_m=5.0)
    frame = render(terrain, CAMERA, _pose(z=600.0), direction_L(270.0, 20.0))
    row = frame.xyz_L[0, 20]
    lit, x = frame.lit[0, 20], row[:, 0]
    flat = row[:, 2].abs() < 0.1
    tip = 40.0 / math.tan(math.radians(20.0))
    pixel_m = CAMERA.ground_sample_distance_m(600.0)
    dark = flat & ~lit
    assert float(x[dark].max()) == pytest.approx(tip, abs=pixel_m + 5.0)
    assert bool(lit[flat & (x > tip + pixel_m + 5.0)].all())
    assert bool(lit[flat & (x < -10)].all())
    assert float(frame.image[0, 0, 20][dark].max()) == 0.0


def test_a_slope_that_faces_away_is_dark():
    terrain = _terrain(lambda x, y: -0.5 * x)
    frame = render(terrain, CAMERA, _pose(), direction_L(270.0, 20.0))  # slope of 26 deg
    assert not bool(frame.lit.any())
    assert float(frame.image.max()) == 0.0


def test_sky_is_no_hit():
    frame = render(
        _terrain(lambda x, y: 0 * x), CAMERA, _pose(tilt_deg=180.0), direction_L(0.0, 45.0)
    )
    assert not bool(frame.hit.any())
    assert not bool(frame.lit.any())
    assert torch.equal(frame.image, torch.zeros_like(frame.image))


def test_samples_average_a_checkerboard_that_one_sample_aliases():
    """Facets much smaller than a pixel: more samples, less variance from pixel to pixel."""
    generator = torch.Generator().manual_seed(0)
    rough = torch.randn(257, 257, generator=generator) * 0.2
    terrain = Terrain((Level(west_m=-256.0, south_m=-256.0, post_m=2.0, z_L=rough),))
    spread = {}
    for samples in (1, 4, 16):
        frame = render(terrain, CAMERA, _pose(z=600.0), direction_L(90.0, 30.0), samples=samples)
        spread[samples] = float(frame.image.std())
    assert spread[4] < 0.65 * spread[1]
    assert spread[16] < 0.65 * spread[4]


def test_samples_leave_geometry_at_the_pixel_centre():
    terrain = _terrain(lambda x, y: 5 * torch.sin(x / 20))
    one = render(terrain, CAMERA, _pose(), direction_L(90.0, 30.0))
    four = render(terrain, CAMERA, _pose(), direction_L(90.0, 30.0), samples=4)
    assert torch.equal(one.xyz_L, four.xyz_L)
    assert torch.equal(one.lit, four.lit)


@pytest.mark.parametrize("samples", [0, 2, 3, 5])
def test_samples_must_be_a_square(samples):
    with pytest.raises(ConfigError, match="expected a square"):
        render(
            _terrain(lambda x, y: 0 * x), CAMERA, _pose(), direction_L(0.0, 45.0), samples=samples
        )


def test_batch_equals_singles():
    terrain = _terrain(lambda x, y: 5 * torch.sin(x / 20) * torch.cos(y / 30))
    a, b = _pose(10.0, 0.0, 400.0, 5.0), _pose(-30.0, 20.0, 700.0, -8.0)
    both = Pose(torch.cat([a.R_L_C, b.R_L_C]), torch.cat([a.position_L, b.position_L]))
    sun_L = direction_L(108.0, 12.0)
    batch = render(terrain, CAMERA, both, sun_L)
    for k, single in enumerate((a, b)):
        frame = render(terrain, CAMERA, single, sun_L)
        assert torch.equal(batch.image[k], frame.image[0])
        assert torch.equal(batch.xyz_L[k], frame.xyz_L[0])


def test_albedo_is_a_factor_with_the_stated_contrast():
    terrain = _terrain(lambda x, y: 0 * x)
    albedo = AlbedoField.draw(0, contrast=0.1, wavelengths_m=(20.0, 100.0))
    plain = render(terrain, CAMERA, _pose(), direction_L(90.0, 30.0))
    painted = render(terrain, CAMERA, _pose(), direction_L(90.0, 30.0), albedo=albedo)
    ratio = (painted.image / plain.image)[0, 0]
    expected = albedo.at(plain.xyz_L[0, ..., :2])
    assert torch.allclose(ratio, expected, atol=1e-5)
    points = 2e4 * torch.rand(100_000, 2, generator=torch.Generator().manual_seed(1)).double()
    assert float(albedo.at(points).std()) == pytest.approx(0.1, rel=0.1)
    assert float(albedo.at(points).mean()) == pytest.approx(1.0, abs=0.01)


def test_simulated_accelerator_gives_the_same_picture_without_waiting(simgpu):
    terrain = _terrain(lambda x, y: 5 * torch.sin(x / 20) * torch.cos(y / 30))
    albedo = AlbedoField.draw(0, contrast=0.1, wavelengths_m=(20.0, 100.0))
    sun_L = direction_L(108.0, 12.0)
    expected = render(terrain, CAMERA, _pose(), sun_L, samples=4, albedo=albedo)
    there, pose, sun = terrain.to(simgpu), _pose().to(simgpu), sun_L.to(simgpu)
    with simulated_device.count_syncs() as syncs:
        frame = render(there, CAMERA, pose, sun, samples=4, albedo=albedo)
    assert frame.image.device.type == simgpu
    assert torch.equal(frame.image.cpu(), expected.image)
    assert torch.equal(frame.xyz_L.cpu(), expected.xyz_L)
    assert not syncs, syncs
