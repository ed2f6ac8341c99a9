"""Six-degree-of-freedom Gauss-Newton on matches: linearisation, normal equations, robust descent.

Residual and Jacobians, for a pose perturbed as in ``tnav.geometry.pose`` and a map point that is
``n`` metres too high (``X_map = X_ground + n z_L``)::

    r = uv - project(X_map - n0 z_L) = J_x dx - J_n (n - n0) + eps,    dx = (dp_L, dtheta_L)
    J_x = P R_L_C^T [-I, skew(X - p)],    J_n = P R_L_C^T z_L,    P = d project / d X_C
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from tnav.geometry.camera import Camera
from tnav.geometry.pose import Pose, skew, so3_exp, so3_log


@dataclass(frozen=True, slots=True)
class Linearisation:
    """Residuals and Jacobians of ``n`` matches at a pose. Meaningless where not ``seen``."""

    residual_px: Float64[Tensor, "b n 2"]
    J_x: Float64[Tensor, "b n 2 6"]  # px per (m, rad)
    J_n: Float64[Tensor, "b n 2"]  # px per metre of height of the point
    seen: Bool[Tensor, "b n"]  # the camera can form an image of the point
    range_m: Float64[Tensor, "b n"]  # from the camera to the point


def linearise(
    pose: Pose,
    uv_px: Float64[Tensor, "b n 2"],
    point_L: Float64[Tensor, "b n 3"],
    camera: Camera,
) -> Linearisation:
    """Residuals of matches against points, and their derivatives by pose and by height."""
    offset_L = point_L - pose.position_L[:, None]
    offset_C = offset_L @ pose.R_L_C
    seen = camera.sees(offset_C)
    on_axis_C = torch.nn.functional.pad(torch.ones_like(offset_C[..., 2:]), (2, 0))
    safe_C = torch.where(seen[..., None], offset_C, on_axis_C)
    residual_px = uv_px - camera.project(safe_C)
    by_offset = camera.jacobian(safe_C) @ pose.R_L_C.mT[:, None]  # d uv / d X_L
    J_x = torch.cat([-by_offset, by_offset @ skew(offset_L)], -1)
    return Linearisation(residual_px, J_x, by_offset[..., 2], seen, offset_L.norm(dim=-1))


def perturb(pose: Pose, step: Float64[Tensor, "b 6"]) -> Pose:
    """Pose moved by ``(dp_L, dtheta_L)``; a step that is not finite moves nothing."""
    step = torch.where(step.isfinite().all(-1, keepdim=True), step, torch.zeros_like(step))
    return Pose(so3_exp(step[:, 3:]) @ pose.R_L_C, pose.position_L + step[:, :3])


def inverse_2x2(m: Float64[Tensor, "*b 2 2"]) -> Float64[Tensor, "*b 2 2"]:
    """Inverse of positive definite 2 x 2 matrices, in closed form."""
    a, b, c, d = m[..., 0, 0], m[..., 0, 1], m[..., 1, 0], m[..., 1, 1]
    determinant = a * d - b * c
    return torch.stack([d, -b, -c, a], -1).unflatten(-1, (2, 2)) / determinant[..., None, None]


def mahalanobis2(
    residual: Float64[Tensor, "*b 2"], inverse: Float64[Tensor, "*b 2 2"]
) -> Float64[Tensor, "*b"]:
    """``r^T V^-1 r`` of 2-vectors."""
    return (residual * (inverse @ residual[..., None]).squeeze(-1)).sum(-1)


@dataclass(frozen=True, slots=True)
class NormalSolution:
    """Solution of ``N dx = g`` for positive definite N, with its inverse."""

    step: Float64[Tensor, "b 6"]
    covariance: Float64[Tensor, "b 6 6"]
    step_sigma2: Float64[Tensor, " b"]  # dx^T N dx
    solved: Bool[Tensor, " b"]


def solve_normal(N: Float64[Tensor, "b 6 6"], g: Float64[Tensor, "b 6"]) -> NormalSolution:
    """Solve normal equations by Cholesky after scaling their diagonal to one.

    The scaling takes metres against radians out of the condition number, so that what is left is
    geometry. Where N is not positive definite ``solved`` is false and the step means nothing.
    """
    N = 0.5 * (N + N.mT)
    diagonal = N.diagonal(dim1=-2, dim2=-1)
    positive = (diagonal > 0).all(-1) & diagonal.isfinite().all(-1)
    scale = torch.where(diagonal > 0, diagonal, torch.ones_like(diagonal)).rsqrt()
    eye = torch.eye(6, dtype=N.dtype, device=N.device)
    scaled = torch.where(
        positive[:, None, None], scale[:, :, None] * N * scale[:, None, :], eye.expand_as(N)
    )
    factor, info = torch.linalg.cholesky_ex(scaled)
    covariance = scale[:, :, None] * torch.cholesky_solve(eye.expand_as(N), factor) * scale[:, None]
    covariance = 0.5 * (covariance + covariance.mT)
    step = (covariance @ g[..., None]).squeeze(-1)
    solved = positive & (info == 0) & step.isfinite().all(-1)
    return NormalSolution(step, covariance, (step * g).sum(-1), solved)


@dataclass(frozen=True, slots=True)
class AttitudePrior:
    """Attitude measured apart from the image, with isotropic error (a star tracker's)."""

    R_L_C: Float64[Tensor, "b 3 3"]
    sigma_rad: float

    def offset_rad(self, pose: Pose) -> Float64[Tensor, "b 3"]:
        """Rotation vector in L from a pose to the measured attitude."""
        return so3_log(self.R_L_C @ pose.R_L_C.mT)

    def information(self) -> Float64[Tensor, "6 6"]:
        """Its term of the normal matrix."""
        weights = [0.0, 0.0, 0.0] + [self.sigma_rad**-2] * 3
        return torch.tensor(weights, dtype=self.R_L_C.dtype).diag().to(self.R_L_C.device)

    def right_side(self, pose: Pose) -> Float64[Tensor, "b 6"]:
        """Its term of the right-hand side."""
        offset = self.offset_rad(pose) / self.sigma_rad**2
        return torch.cat([torch.zeros_like(offset), offset], -1)


def robust_descent(
    pose: Pose,
    uv_px: Float64[Tensor, "b n 2"],
    covariance_px2: Float64[Tensor, "b n 2 2"],
    point_L: Float64[Tensor, "b n 3"],
    valid: Bool[Tensor, "b n"],
    camera: Camera,
    prior: AttitudePrior,
    *,
    map_sigma_m: float,
    slack_px: tuple[float, ...],
    gate_sigma: float,
) -> tuple[Pose, Float64[Tensor, "b n"]]:
    """Iteratively reweighted Gauss-Newton whose tolerance shrinks (graduated non-convexity).

    Weights are Geman and McClure's ``(1 + d^2 / gate^2)^-2`` of the Mahalanobis distance under
    ``R_i + sigma_m^2 J_n J_n^T + slack^2 I``: errors of the map count here as if independent,
    which is enough for a start (Yang et al. 2020, "Graduated non-convexity").

    Args:
        slack_px: the added standard deviation in each iteration, wide first.
        gate_sigma: distance at which a weight has fallen to a quarter.

    Returns:
        The pose, and squared Mahalanobis distances at it under the last slack (infinite where a
        match is masked or its point is out of the camera's sight).
    """
    eye = torch.eye(2, dtype=uv_px.dtype, device=uv_px.device)

    def distances(slack: float) -> tuple[Linearisation, Tensor, Tensor, Tensor]:
        line = linearise(pose, uv_px, point_L, camera)
        spread = map_sigma_m**2 * line.J_n[..., :, None] * line.J_n[..., None, :]
        inverse = inverse_2x2(covariance_px2 + spread + slack**2 * eye)
        usable = valid & line.seen
        return line, inverse, usable, mahalanobis2(line.residual_px, inverse)

    for slack in slack_px:
        line, inverse, usable, d2 = distances(slack)
        weight = usable / (1 + d2 / gate_sigma**2).square()
        weighted = weight[..., None, None] * (inverse @ line.J_x)
        normal = torch.einsum("bnip,bniq->bpq", line.J_x, weighted) + prior.information()
        right = torch.einsum("bnip,bni->bp", weighted, line.residual_px) + prior.right_side(pose)
        pose = perturb(pose, solve_normal(normal, right).step)
    _, _, usable, d2 = distances(slack_px[-1])
    return pose, torch.where(usable, d2, torch.full_like(d2, torch.inf))
