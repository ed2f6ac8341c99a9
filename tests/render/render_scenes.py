"""Small grounds and cameras for the renderer's tests."""

import math

import torch

from tnav.geometry.camera import Camera
from tnav.geometry.pose import Pose, so3_exp
from tnav.terrain.heightfield import Level, Terrain

NADIR = torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64))
CAMERA = Camera.from_field_of_view(48, 40, 40.0)


def ground(surface, half_m=640.0, post_m=10.0):
    """One level whose posts take their heights from a function of east and north."""
    count = round(2 * half_m / post_m) + 1
    axis = torch.linspace(-half_m, half_m, count)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return Terrain((Level(west_m=-half_m, south_m=-half_m, post_m=post_m, z_L=surface(x, y)),))


def flat(half_m=640.0):
    return ground(lambda x, y: 0 * x, half_m)


def hills():
    return ground(lambda x, y: 5 * torch.sin(x / 20) * torch.cos(y / 30))


def pose_over(x=0.0, y=0.0, z=500.0, tilt_deg=0.0):
    """Looks down, or tilted from that about the camera's x axis; image up is north."""
    tilt = torch.tensor([math.radians(tilt_deg), 0.0, 0.0], dtype=torch.float64)
    return Pose((so3_exp(tilt) @ NADIR)[None], torch.tensor([[x, y, z]], dtype=torch.float64))


def vector(*components):
    return torch.tensor(components, dtype=torch.float64)
