"""Consensus on the camera centre when the attitude is known: two matches make a hypothesis.

With ``R_L_C`` known a pixel is a ray ``d_L``, and its point X and the centre C obey
``(I - d d^T) (X - C) = 0``. Two pixels give four equations for three unknowns, solved here in
closed form. Scores are MSAC (Torr and Zisserman 2000): truncated squares instead of a count.
"""

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from tnav.geometry.camera import Camera

# Two rays nearer than this (1 - cos^2, so 1e-4 rad) do not fix the distance.
_PARALLEL = 1e-8


def two_point_centre(
    ray_L: Float64[Tensor, "*b 2 3"], point_L: Float64[Tensor, "*b 2 3"]
) -> Float64[Tensor, "*b 3"]:
    """Camera centre from two unit rays (away from the camera) and the points that they meet.

    The point nearest to both lines ``X_i - s_i d_i``, which is the least-squares solution of the
    3 x 3 system ``sum_i (I - d_i d_i^T) (X_i - C) = 0``. NaN where the rays are parallel or where
    a point would lie behind the camera.
    """
    d0, d1 = ray_L.unbind(-2)
    x0, x1 = point_L.unbind(-2)
    offset = x0 - x1
    cosine = (d0 * d1).sum(-1, keepdim=True)
    along0 = (offset * d0).sum(-1, keepdim=True)
    along1 = (offset * d1).sum(-1, keepdim=True)
    # 1 - cos^2 through the cross product, which keeps its digits for nearly parallel rays.
    sine2 = torch.linalg.cross(d0, d1).square().sum(-1, keepdim=True)
    usable = sine2 > _PARALLEL
    safe = torch.where(usable, sine2, torch.ones_like(sine2))
    s0 = (along0 - cosine * along1) / safe
    s1 = (cosine * along0 - along1) / safe
    centre = 0.5 * (x0 - s0 * d0 + x1 - s1 * d1)
    usable = usable & (s0 > 0) & (s1 > 0)
    return torch.where(usable, centre, torch.full_like(centre, torch.nan))


def consensus_centre(
    uv_px: Float64[Tensor, "b n 2"],
    point_L: Float64[Tensor, "b n 3"],
    valid: Bool[Tensor, "b n"],
    R_L_C: Float64[Tensor, "b 3 3"],
    camera: Camera,
    *,
    threshold_px: float,
    hypotheses: int,
    seed: int,
) -> Float64[Tensor, "b 3"]:
    """Camera centre in L that most matches agree with, for a known attitude.

    Every frame of a batch takes the same random draws, so a frame alone gives the same answer.
    Masked entries must be finite. Where no hypothesis stands the centre is NaN.

    Args:
        threshold_px: distance beyond which a match counts as an outlier.
        hypotheses: pairs tried in each frame.
        seed: of the draws.
    """
    if uv_px.shape[1] < 2:
        return torch.full_like(point_L.new_empty(uv_px.shape[0], 3), torch.nan)
    pairs = _valid_pairs(valid, hypotheses, seed)
    ray_L = _unit(camera.unproject(uv_px)) @ R_L_C.mT
    centres_L = two_point_centre(_take(ray_L, pairs), _take(point_L, pairs))
    cost = _msac(centres_L, uv_px, point_L, valid, R_L_C, camera, threshold_px)
    best = cost.argmin(-1)[:, None, None].expand(-1, 1, 3)
    return centres_L.gather(1, best).squeeze(1)


def _valid_pairs(valid: Bool[Tensor, "b n"], hypotheses: int, seed: int) -> Tensor:
    """Indices ``b h 2`` of two different valid matches each (of any, where fewer than 2 are)."""
    generator = torch.Generator().manual_seed(seed)
    draw = torch.rand(hypotheses, 2, generator=generator, dtype=torch.float64).to(valid.device)
    order = (~valid).to(torch.int8).argsort(dim=-1, stable=True)  # valid matches first
    count = valid.sum(-1).clamp_min(2)[:, None]
    first = (draw[:, 0] * count).long().minimum(count - 1)
    step = 1 + (draw[:, 1] * (count - 1)).long().minimum(count - 2)
    second = (first + step) % count
    ranks = torch.stack([first, second], -1)
    return order.gather(1, ranks.flatten(1)).unflatten(1, (hypotheses, 2))


def _take(values: Float64[Tensor, "b n 3"], pairs: Tensor) -> Float64[Tensor, "b h 2 3"]:
    index = pairs.flatten(1)[..., None].expand(-1, -1, 3)
    return values.gather(1, index).unflatten(1, pairs.shape[1:])


def _msac(
    centres_L: Float64[Tensor, "b h 3"],
    uv_px: Float64[Tensor, "b n 2"],
    point_L: Float64[Tensor, "b n 3"],
    valid: Bool[Tensor, "b n"],
    R_L_C: Float64[Tensor, "b 3 3"],
    camera: Camera,
    threshold_px: float,
) -> Tensor:
    """Cost ``b h`` of each centre; infinite for NaN.

    The error of a match is ``J (X - C) / (d . (X - C))`` in px, with d its unit ray and J the
    camera's Jacobian there: exact to first order in it, whatever the lens. In float32 about the
    points' mean, where one part in 1e7 of the range is 1e-3 px, well under any threshold; the work
    is memory-bound and halves.
    """
    weight = valid.to(point_L.dtype)[..., None]
    mean_L = (point_L * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True).clamp_min(1.0)
    point_C = (point_L - mean_L) @ R_L_C
    centre_C = ((centres_L - mean_L) @ R_L_C).float()
    ray_C = _unit(camera.unproject(uv_px))
    rows = torch.cat([ray_C[:, :, None], camera.jacobian(ray_C)], -2)  # b n 3 3
    at_point = (rows @ point_C[..., None]).squeeze(-1).float()
    rows = rows.float()

    def offset_along(row: int) -> Tensor:
        return at_point[:, None, :, row] - centre_C @ rows[:, :, row].mT

    distance = offset_along(0)
    ahead = distance > 0
    inverse = torch.where(ahead, distance, torch.ones_like(distance)).reciprocal()
    error2 = (offset_along(1) * inverse).square() + (offset_along(2) * inverse).square()
    limit = threshold_px**2
    error2 = torch.where(ahead, error2, torch.full_like(error2, limit)).clamp_max(limit)
    cost = (error2 * valid[:, None, :]).sum(-1)
    return torch.where(cost.isfinite(), cost, torch.full_like(cost, torch.inf))


def _unit(v: Float64[Tensor, "*b 3"]) -> Float64[Tensor, "*b 3"]:
    return v / v.norm(dim=-1, keepdim=True)
