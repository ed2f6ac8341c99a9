"""The package's brute force against the tests' own, and against a plane."""

import numpy as np
import torch
from terrain_oracle import brute_force, camera_rays, single_terrain

from tnav.evaluate.brute_force import first_hits_m
from tnav.terrain.heightfield import Level, Terrain


def test_it_agrees_with_every_ray_against_every_cell():
    terrain = single_terrain()
    compass = torch.tensor([[1, 0, -0.1], [-1, 0, -0.1], [0, 1, -0.1], [0, 0, -1], [0, 0, 1]])
    compass = (compass / compass.norm(dim=1, keepdim=True)).double()
    rays = torch.cat([*(camera_rays(tilt, 90.0) for tilt in (0, 60, 88)), compass])
    # inside and beside the rectangle, off and on its lines of posts, above its highest post
    for position in ((3.3, -4.1, 60.0), (-200.0, 7.0, 40.0), (10.0, 20.0, 31.0)):
        origin = torch.tensor(position, dtype=torch.float64).expand(rays.shape).contiguous()
        expected = brute_force(terrain, origin, rays).range_m
        found = first_hits_m(terrain.levels[0], origin.numpy(), rays.numpy())
        np.testing.assert_array_equal(np.isfinite(found), np.isfinite(expected))
        hit = np.isfinite(found)
        assert hit.any()
        assert not hit.all()
        assert np.abs(found[hit] - expected[hit]).max() < 1e-8


def test_it_would_see_a_surface_that_is_off_by_two_millimetres():
    """More than the limit of `tnav bench render` (1 mm): a wrong caster does not pass it."""
    ground = single_terrain().levels[0]
    raised = Terrain([Level(ground.west_m, ground.south_m, ground.post_m, ground.z_L + 2e-3)])
    rays = camera_rays(20, 30)
    origin = torch.tensor([3.3, -4.1, 60.0], dtype=torch.float64).expand(rays.shape).contiguous()
    wrong = brute_force(raised, origin, rays).range_m
    found = first_hits_m(ground, origin.numpy(), rays.numpy())
    assert np.nanmax(np.abs(found - wrong)[np.isfinite(found)]) > 1e-3
