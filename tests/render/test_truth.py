import math

import pytest
import torch
from render_scenes import CAMERA, NADIR, flat, ground, hills, pose_over
from terrain_oracle import brute_force, nested_terrain

from tnav.geometry.camera import Camera
from tnav.geometry.pose import Pose, so3_exp
from tnav.geometry.sun import direction_L
from tnav.render.renderer import render
from tnav.render.sunlight import Sunlight


def test_angles_on_a_tilted_plane():
    slope, sun_L = 0.1, direction_L(90.0, 30.0)
    terrain = ground(lambda x, y: slope * x)
    frame = render(terrain, CAMERA, pose_over(), sun_L, truth=True)
    surface = frame.surface
    normal = torch.tensor([-slope, 0.0, 1.0], dtype=torch.float64)
    normal = normal / normal.norm()
    ray_L = (frame.xyz_L - pose_over().position_L) / frame.range_m[..., None]
    assert torch.allclose(surface.normal_L.double(), normal.expand_as(ray_L), atol=1e-6)
    incidence = math.acos(float(normal @ sun_L))
    assert float((surface.incidence_rad - incidence).abs().max()) < 1e-6
    assert torch.allclose(surface.emission_rad.double(), torch.acos(-(ray_L @ normal)), atol=1e-6)
    assert torch.allclose(surface.phase_rad.double(), torch.acos(-(ray_L @ sun_L)), atol=1e-6)
    assert torch.equal(surface.sun_fraction, torch.ones_like(surface.sun_fraction))
    assert torch.equal(surface.level, torch.zeros_like(surface.level))


def test_phase_is_exact_at_opposition():
    """The Sun behind the camera: the angle from the image's centre, down to a thousandth of it."""
    camera = Camera.from_field_of_view(9, 9, 0.01)
    frame = render(flat(), camera, pose_over(), direction_L(0.0, 90.0), truth=True)
    away_px = (camera.pixel_centres("cpu") - 4.5).norm(dim=-1)
    expected = torch.atan(away_px / camera.focal_px)
    assert float((frame.surface.phase_rad[0] - expected).abs().max()) < 2e-8


def test_nothing_is_known_of_the_sky():
    frame = render(hills(), CAMERA, pose_over(z=30.0, tilt_deg=92.0), direction_L(0.0, 45.0),
                   truth=True)  # fmt: skip
    sky, surface = ~frame.hit, frame.surface
    assert 0 < int(sky.sum()) < sky.numel()
    for name in ("incidence_rad", "emission_rad", "phase_rad", "sun_fraction"):
        assert torch.equal(getattr(surface, name).isnan(), sky), name
    assert torch.equal(surface.normal_L.isnan().all(-1), sky)
    assert torch.equal(surface.level == -1, sky)


def test_truth_is_of_the_centre_whatever_the_samples():
    light = Sunlight(direction_L(108.0, 12.0), samples=4)
    one = render(hills(), CAMERA, pose_over(), light, truth=True)
    many = render(hills(), CAMERA, pose_over(), light, samples=9, truth=True)
    for name in one.surface.__slots__:
        assert torch.equal(getattr(one.surface, name), getattr(many.surface, name)), name


def test_truth_costs_nothing_unless_asked_for():
    assert render(hills(), CAMERA, pose_over(), direction_L(108.0, 12.0)).surface is None


def _in_a_seam(terrain, point_L):
    x, y = point_L[:, 0], point_L[:, 1]
    near = torch.zeros_like(x, dtype=torch.bool)
    for level in terrain.levels:
        for place, border in ((x, level.west_m), (x, level.east_m), (y, level.south_m),
                              (y, level.north_m)):  # fmt: skip
            near |= (place - border).abs() < 1e-6
    return near


@pytest.mark.parametrize("first_level", [0, 1])
@pytest.mark.parametrize("elevation_deg", [1.0, 25.0])
def test_shadows_and_channels_match_brute_force(first_level, elevation_deg):
    """Every pixel of a small nested scene, against rays by every cell in NumPy float64."""
    terrain = nested_terrain()
    camera = Camera.from_field_of_view(28, 24, 70.0)
    tilt = torch.tensor([0.5, 0.1, 0.2], dtype=torch.float64)
    pose = Pose((so3_exp(tilt) @ NADIR)[None], torch.tensor([[5.0, -40.0, 60.0]]).double())
    light = Sunlight(direction_L(200.0, elevation_deg), samples=4)
    frame = render(terrain, camera, pose, light, first_level=first_level, truth=True)
    rays_C = camera.unproject(camera.pixel_centres("cpu")).view(-1, 3)
    ray_L = rays_C / rays_C.norm(dim=-1, keepdim=True) @ pose.R_L_C[0].T
    origin_L = pose.position_L.expand_as(ray_L)
    oracle = brute_force(terrain, origin_L, ray_L, first_level)
    hit = torch.from_numpy(oracle.level >= 0)
    assert torch.equal(frame.hit[0].view(-1), hit)
    range_m = torch.from_numpy(oracle.range_m)
    assert torch.allclose(frame.range_m[0].view(-1)[hit], range_m[hit], atol=1e-6)
    # in the wall of an open seam both levels have a claim to the normal: leave these few out
    hit &= ~_in_a_seam(terrain, origin_L + range_m[:, None] * ray_L)
    assert float(hit.double().mean()) > 0.3
    point_L = (origin_L + range_m[:, None] * ray_L)[hit]
    normal_L = torch.from_numpy(oracle.normal_L)[hit]
    surface = frame.surface
    assert torch.equal(surface.level[0].view(-1)[hit].long(), torch.from_numpy(oracle.level)[hit])
    assert torch.allclose(surface.normal_L[0].view(-1, 3)[hit].double(), normal_L, atol=1e-5)
    lifted_L = point_L + torch.tensor([0.0, 0.0, 1e-3], dtype=torch.float64)
    seen = []
    for sun_L in torch.cat(light.rays_L()):
        way = brute_force(terrain, lifted_L, sun_L.expand_as(lifted_L), first_level)
        seen.append((normal_L @ sun_L > 0) & torch.from_numpy(way.level < 0))
    fraction = torch.stack(seen).float().mean(0)
    assert torch.equal(surface.sun_fraction[0].view(-1)[hit], fraction)
    assert torch.equal(frame.lit[0].view(-1)[hit], fraction >= 0.5)
    image = frame.image[0, 0].view(-1)[hit]
    assert torch.equal(image > 0, fraction > 0)
