"""What a rendered pixel's centre ray met: the channels a learner or a tester compares with."""

import math

import torch
from jaxtyping import Bool, Float32, Float64, Int32
from torch import Tensor

from tnav.records import SurfaceTruth


def dot(a_L: Float64[Tensor, "*#b 3"], b_L: Float64[Tensor, "*#b 3"]) -> Float64[Tensor, "*b"]:
    """Scalar products, by components: the same bits whatever the batch, as a matrix product's not.

    It is also three times as fast as a sum over a last axis of three.
    """
    (ax, ay, az), (bx, by, bz) = a_L.unbind(-1), b_L.unbind(-1)
    return (ax * bx).add_(ay * by).add_(az * bz)


def surface_truth(
    hit: Bool[Tensor, "b h w"],
    normal_L: Float64[Tensor, "b h w 3"],
    ray_L: Float64[Tensor, "b h w 3"],
    sun_L: Float64[Tensor, "#b #h #w 3"],
    sun_fraction: Float32[Tensor, "b h w"],
    level: Int32[Tensor, "b h w"],
) -> SurfaceTruth:
    """Photometric angles and light at points of the ground.

    Args:
        hit: where there is ground.
        normal_L: unit normals.
        ray_L: unit, from the camera to the points.
        sun_L: unit, to the Sun's centre.
        sun_fraction: share of the Sun's light that arrives.
        level: of the terrain that was hit.
    """

    def angle_rad(cosine: Tensor) -> Tensor:
        return torch.where(hit, torch.acos(cosine.clamp(-1.0, 1.0)), math.nan).float()

    return SurfaceTruth(
        normal_L=torch.where(hit[..., None], normal_L, math.nan).float(),
        incidence_rad=angle_rad(dot(normal_L, sun_L)),
        emission_rad=angle_rad(-dot(normal_L, ray_L)),
        phase_rad=angle_rad(-dot(ray_L, sun_L)),
        sun_fraction=torch.where(hit, sun_fraction, math.nan),
        level=torch.where(hit, level, -1),
    )
