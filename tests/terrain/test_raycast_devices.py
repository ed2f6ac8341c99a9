"""The ray caster on threads, under bounds checks, on a simulated accelerator and on CUDA."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from simulated_device import count_syncs
from terrain_oracle import camera_rays, nested_terrain, single_terrain, unit
from torch import Tensor

from tnav.errors import DeviceError
from tnav.terrain import raycast
from tnav.terrain.raycast import cast, occluded

TERRAINS = {"single": single_terrain(), "nested": nested_terrain()}


def _vector(*xyz: float) -> Tensor:
    return torch.tensor(xyz, dtype=torch.float64)


_UNDER_BOUNDS_CHECKS = """
import torch
import warp as wp

wp.config.mode = "debug"  # every array access is checked, nothing is optimised away
from terrain_oracle import camera_rays, nested_terrain
from tnav.terrain import raycast

raycast._BAND_RAYS = 50
torch.set_num_threads(4)
terrain = nested_terrain()
views = [camera_rays(tilt, 90.0) for tilt in (0, 60, 88)]
compass = torch.tensor([[1, 0, -0.1], [-1, 0, -0.1], [0, 1, -0.1], [0, -1, -0.1]]).double()
rays = torch.cat([*views, compass.repeat(500, 1)])
for corner in ((-83.0, -77.0), (60.0, 79.0), (-9.3, -12.1), (0.0, 0.0)):
    origin = torch.tensor([*corner, 25.0]).double().expand(rays.shape)
    hits = raycast.cast(terrain, origin, rays)
    raycast.occluded(terrain, origin + hits.range_m[:, None] * rays, -rays)
print(int(hits.hit.sum()))
"""


def test_threads_stay_inside_their_arrays() -> None:
    """Warp's debug build, whose bounds checks abort, and whose launches once shared a pointer."""
    done = subprocess.run(
        [sys.executable, "-c", _UNDER_BOUNDS_CHECKS],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 1000


def test_bands_of_threads_are_bit_identical_to_one_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    terrain = TERRAINS["nested"]
    direction = camera_rays(50, 10, side=150)
    origin = _vector(0, 0, 70.0).expand(direction.shape)
    sun = unit(_vector(1, 1, 0.5))
    monkeypatch.setattr(raycast.torch, "get_num_threads", lambda: 1)
    one, dark = cast(terrain, origin, direction), occluded(terrain, origin, sun)
    monkeypatch.setattr(raycast.torch, "get_num_threads", lambda: 5)
    monkeypatch.setattr(raycast, "_BAND_RAYS", 100)
    many = cast(terrain, origin, direction)
    assert torch.equal(one.hit, many.hit)
    assert torch.equal(one.level, many.level)
    assert torch.equal(one.range_m.nan_to_num(-1), many.range_m.nan_to_num(-1))
    assert torch.equal(one.normal_L.nan_to_num(-1), many.normal_L.nan_to_num(-1))
    assert torch.equal(dark, occluded(terrain, origin, sun))


def test_rays_and_terrain_must_share_a_device(simgpu: str) -> None:
    rays = _vector(0, 0, 1)[None]
    with pytest.raises(DeviceError, match="terrain on cpu"):
        cast(TERRAINS["single"], rays.to(simgpu), rays.to(simgpu))


def test_simulated_accelerator_gives_the_same_and_never_waits(simgpu: str) -> None:
    terrain = TERRAINS["nested"]
    direction = camera_rays(50, 10)
    origin = _vector(0, 0, 70.0).expand(direction.shape).contiguous()
    sun = unit(_vector(1, 1, 0.5))
    hits = cast(terrain, origin, direction)
    dark = occluded(terrain, origin, sun)
    there = terrain.to(simgpu)
    origin_d, direction_d, sun_d = origin.to(simgpu), direction.to(simgpu), sun.to(simgpu)
    with count_syncs(uploads=True) as syncs:
        hits_d = cast(there, origin_d, direction_d)
        dark_d = occluded(there, origin_d, sun_d)
    assert not syncs
    assert hits_d.range_m.device.type == simgpu
    for name in ("range_m", "hit", "normal_L", "level"):
        torch.testing.assert_close(
            getattr(hits_d, name).cpu(), getattr(hits, name), rtol=0, atol=0, equal_nan=True
        )
    assert torch.equal(dark_d.cpu(), dark)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_agrees_with_the_cpu() -> None:
    """Fused multiply-adds change the last bits: ranges by tolerance, silhouettes by count."""
    direction = camera_rays(50, 10, side=300)
    origin = _vector(0, 0, 70.0).expand(direction.shape).contiguous()
    sun = unit(_vector(1, 1, 0.5))
    for terrain in TERRAINS.values():
        hits = cast(terrain, origin, direction)
        there = terrain.to("cuda")
        hits_d = cast(there, origin.cuda(), direction.cuda())
        both = hits.hit & hits_d.hit.cpu()
        assert int((hits.hit != hits_d.hit.cpu()).sum()) <= 2
        far = (hits.range_m - hits_d.range_m.cpu())[both].abs() > 1e-6
        assert int(far.sum()) <= 4
        dark = occluded(terrain, origin, sun)
        assert int((dark != occluded(there, origin.cuda(), sun.cuda()).cpu()).sum()) <= 2
