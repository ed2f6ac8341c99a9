"""Matches against the map as rows of a linear problem, whitened under the map's error.

For a pose (p, R_L_C) of the camera on the map and a map point X that is ``n`` metres too high::

    r = uv - project(X) = J_x dx - J_n n + e,     dx = (dp_L, dtheta_L),  e ~ N(0, R)
    J_x = P R_L_C^T [-I, skew(X - p)],            J_n = P R_L_C^T z_L,    P = d project / d X_C
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from tnav.geometry.camera import Camera
from tnav.geometry.pose import skew, so3_exp
from tnav.navigate.state import FilterConfig, FilterState
from tnav.records import Matches


@dataclass(frozen=True, slots=True)
class MatchRows:
    """Residuals and Jacobians of ``n`` matches at a pose on the map."""

    residual_px: Float64[Tensor, "b n 2"]
    J_x: Float64[Tensor, "b n 2 6"]  # px per (m, rad)
    J_n: Float64[Tensor, "b n 2"]  # px per metre of the point's height
    seen: Bool[Tensor, "b n"]


def without_gaps(matches: Matches) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Matches with harmless numbers where they are masked, not finite or without covariance."""
    covariance = matches.covariance_px2
    determinant = covariance[..., 0, 0] * covariance[..., 1, 1] - covariance[..., 0, 1] ** 2
    valid = (
        matches.valid
        & matches.uv_px.isfinite().all(-1)
        & matches.point_L.isfinite().all(-1)
        & covariance.isfinite().all(-1).all(-1)
        & (determinant > 0)
        & (covariance[..., 0, 0] > 0)
    )
    keep = valid[..., None]
    eye = torch.eye(2, dtype=covariance.dtype, device=covariance.device)
    return (
        torch.where(keep, matches.uv_px, 0.0),
        torch.where(keep[..., None], covariance, eye),
        torch.where(keep, matches.point_L, 0.0),
        valid,
    )


def linearised(
    position_L: Float64[Tensor, "b 3"],
    R_L_C: Float64[Tensor, "b 3 3"],
    moved: Float64[Tensor, "b 6"],
    point_L: Float64[Tensor, "b n 3"],
    uv_px: Float64[Tensor, "b n 2"],
    camera: Camera,
) -> MatchRows:
    """Residuals and Jacobians at a pose moved by ``(dp_L, dtheta_L)``."""
    R = so3_exp(moved[:, 3:]) @ R_L_C
    offset_L = point_L - (position_L + moved[:, :3])[:, None]
    offset_C = offset_L @ R
    seen = camera.sees(offset_C)
    on_axis_C = torch.nn.functional.pad(torch.ones_like(offset_C[..., 2:]), (2, 0))
    safe_C = torch.where(seen[..., None], offset_C, on_axis_C)
    by_offset = camera.jacobian(safe_C) @ R.mT[:, None]
    J_x = torch.cat([-by_offset, by_offset @ skew(offset_L)], -1)
    return MatchRows(uv_px - camera.project(safe_C), J_x, by_offset[..., 2], seen)


def augmented(rows: MatchRows, moved: Float64[Tensor, "b 6"]) -> Float64[Tensor, "b n 2 7"]:
    """``[J_x | r + J_x moved]``: the residual as counted from the clone's pose."""
    residual_px = rows.residual_px[..., None] + rows.J_x @ moved[:, None, :, None]
    return torch.cat([rows.J_x, residual_px], -1)


def rest_of_map_m2(
    point_L: Float64[Tensor, "b n 3"],
    used: Bool[Tensor, "b n"],
    state: FilterState,
    config: FilterConfig,
) -> Float64[Tensor, "b n n"]:
    """Covariance of the map's vertical error at the points beyond the state MAP_MEAN, m^2."""
    east, north = (point_L[..., :, None, i] - point_L[..., None, :, i] for i in (0, 1))
    apart_m2 = east.square() + north.square()
    K = config.map_sigma_m**2 * torch.exp(apart_m2 / (-2 * config.map_correlation_m**2))
    weight = used.to(K.dtype) / used.sum(-1, keepdim=True).clamp_min(1)
    K = torch.where(used[:, :, None] & used[:, None, :], K, 0.0)
    onto = K @ weight[..., None]  # covariance of each point with the mean, b n 1
    mean_m2 = weight[:, None] @ onto
    beyond_m2 = (mean_m2 - state.map_mean_variance_m2[:, None, None]).clamp_min(0.0)
    return K - onto - onto.mT + mean_m2 + beyond_m2


def whitened(
    stacked: Float64[Tensor, "b n 2 7"],
    J_n: Float64[Tensor, "b n 2"],
    covariance_px2: Float64[Tensor, "b n 2 2"],
    used: Bool[Tensor, "b n"],
    field_m2: Float64[Tensor, "b n n"],
) -> Float64[Tensor, "b m 7"]:
    """Rows under ``S = blockdiag(R_i) + J_n F J_n^T`` with unit covariance, zero where not used.

    Each match is whitened by R_i and turned until the field acts on its first row alone. There the
    covariance is ``I + D^1/2 F D^1/2``, D the square of that row's slope: n x n, eigenvalues >= 1.
    """
    whitener = inverse_cholesky(covariance_px2)
    along = torch.where(used[..., None], (whitener @ J_n[..., None]).squeeze(-1), 0.0)
    slope = along.norm(dim=-1)
    flat = slope == 0
    a, b = (along / torch.where(flat, 1.0, slope)[..., None]).unbind(-1)
    a = torch.where(flat, 1.0, a)
    turn = torch.stack([a, b, -b, a], -1).unflatten(-1, (2, 2))
    rows = torch.where(used[..., None, None], turn @ whitener @ stacked, 0.0)
    first, second = rows.unbind(-2)
    eye = torch.eye(first.shape[1], dtype=first.dtype, device=first.device)
    factor, _ = torch.linalg.cholesky_ex(eye + slope[:, :, None] * field_m2 * slope[:, None, :])
    first = torch.linalg.solve_triangular(factor, first, upper=False)
    return torch.cat([first, second], 1)


def inverse_cholesky(m: Float64[Tensor, "*b 2 2"]) -> Float64[Tensor, "*b 2 2"]:
    """``L^-1`` of positive definite ``L L^T``, in closed form."""
    root = m[..., 0, 0].sqrt()
    lower = m[..., 1, 0] / root
    last = (m[..., 1, 1] - lower.square()).sqrt()
    parts = [1 / root, torch.zeros_like(root), -lower / (root * last), 1 / last]
    return torch.stack(parts, -1).unflatten(-1, (2, 2))


def distance2(
    residual: Float64[Tensor, "*b 2"], covariance: Float64[Tensor, "*b 2 2"]
) -> Float64[Tensor, "*b"]:
    """Squared Mahalanobis distances of 2-vectors."""
    return (inverse_cholesky(covariance) @ residual[..., None]).squeeze(-1).square().sum(-1)


def masked_median(
    values: Float64[Tensor, "b n"], mask: Bool[Tensor, "b n"]
) -> Float64[Tensor, "b 1"]:
    """Lower median of those that count; 0 where none does."""
    values = torch.nn.functional.pad(torch.where(mask, values, torch.inf), (0, 1), value=torch.inf)
    middle = (mask.sum(-1, keepdim=True) - 1).clamp_min(0) // 2
    median = values.sort(-1).values.gather(-1, middle)
    return torch.where(median.isfinite(), median, 0.0)
