"""Generalised least squares under a map whose vertical error is a Gaussian field.

Residuals obey ``r = J_x dx - J_n n + eps`` with ``n ~ N(0, K)`` and ``eps ~ N(0, R)``, R block
diagonal, so that their covariance is ``S = R + J_n K J_n^T`` (2n x 2n). S is never formed. With
the diagonal ``D = J_n^T R^-1 J_n`` and ``B = I + D^1/2 K D^1/2`` (n x n, eigenvalues >= 1)::

    J_n^T S^-1 J_n = D^1/2 B^-1 D^1/2 = P
    J_n^T S^-1 v   = w - P K w,                  w = J_n^T R^-1 v
    J_x^T S^-1 v   = J_x^T R^-1 v - W_x^T K (J_n^T S^-1 v),  W_x = J_n^T R^-1 J_x

(Rasmussen and Williams 2006, eqs 2.41, 3.26 and A.9). A match with weight zero has ``D_i = 0``
and drops out exactly, so shapes stay fixed.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from tnav.estimate.refine import Linearisation, NormalSolution, inverse_2x2, solve_normal
from tnav.records import MapErrorModel, MapErrorPosterior


def kernel_m2(
    model: MapErrorModel, a_L: Float64[Tensor, "b n 3"], b_L: Float64[Tensor, "b m 3"]
) -> Float64[Tensor, "b n m"]:
    """Covariance of the map's vertical error between points, by their horizontal distance."""
    east = a_L[..., :, None, 0] - b_L[..., None, :, 0]
    north = a_L[..., :, None, 1] - b_L[..., None, :, 1]
    distance2 = east.square() + north.square()
    return model.sigma_m**2 * torch.exp(-0.5 * distance2 / model.correlation_m**2)


@dataclass(frozen=True, slots=True)
class FieldSolution:
    """Step of the pose and what goes with it. ``error_*`` are the field's posterior at matches."""

    normal: NormalSolution  # of dx, map error included
    if_map_perfect: Float64[Tensor, "b 6 6"]  # covariance of dx were K zero
    residual_px: Float64[Tensor, "b n 2"]  # r - J_x dx
    alpha: Float64[Tensor, "b n"]
    precision: Float64[Tensor, "b n n"]
    coupling: Float64[Tensor, "b n 6"]
    error_mean_m: Float64[Tensor, "b n"]
    distance2: Float64[Tensor, "b n"]  # of each residual from what all others predict
    chi2: Float64[Tensor, " b"]  # (r - J_x dx)^T S^-1 (r - J_x dx)
    solved: Bool[Tensor, " b"]


def solve_with_field(
    line: Linearisation,
    residual_px: Float64[Tensor, "b n 2"],
    covariance_px2: Float64[Tensor, "b n 2 2"],
    weight: Float64[Tensor, "b n"],
    kernel: Float64[Tensor, "b n n"],
    prior_information: Float64[Tensor, "6 6"],
    prior_right_side: Float64[Tensor, "b 6"],
) -> FieldSolution:
    """Solve for the pose step and for the map's error at the matches together.

    Args:
        line: Jacobians at the current pose and field.
        residual_px: residual with the field's own part put back, ``r = J_x dx - J_n n + eps``.
        covariance_px2: R_i.
        weight: in [0, 1]; R_i counts as ``R_i / weight``, and zero leaves a match out.
        kernel: K, m^2.
        prior_information: added to the normal matrix.
        prior_right_side: added to the right-hand side.
    """
    J_x, J_n = line.J_x, line.J_n
    inverse = weight[..., None, None] * inverse_2x2(covariance_px2)
    targets = torch.cat([J_x, residual_px[..., None]], -1)  # b n 2 7
    whitened = inverse @ targets
    onto_field = (J_n[..., None, :] @ whitened).squeeze(-2)  # w for (J_x, r), b n 7
    density = (J_n[..., None, :] @ inverse @ J_n[..., None]).squeeze(-1).squeeze(-1)  # D

    root = density.clamp_min(0.0).sqrt()
    eye = torch.eye(root.shape[1], dtype=root.dtype, device=root.device)
    factor, info = torch.linalg.cholesky_ex(eye + root[:, :, None] * kernel * root[:, None, :])
    half = torch.linalg.solve_triangular(factor, torch.diag_embed(root), upper=False)
    precision = half.mT @ half
    half_kernel = half @ kernel
    projected = onto_field - half.mT @ (half_kernel @ onto_field)  # J_n^T S^-1 (J_x, r)

    plain = torch.einsum("bnip,bniq->bpq", J_x, whitened)
    full = plain - onto_field[..., :6].mT @ (kernel @ projected)
    normal = solve_normal(full[..., :6] + prior_information, full[..., 6] + prior_right_side)
    perfect = solve_normal(plain[..., :6] + prior_information, prior_right_side)

    left_px = residual_px - (J_x @ normal.step[:, None, :, None]).squeeze(-1)
    coupling = projected[..., :6]
    alpha = (coupling @ normal.step[..., None]).squeeze(-1) - projected[..., 6]
    mean_m = (kernel @ alpha[..., None]).squeeze(-1)
    variance_m2 = kernel.diagonal(dim1=-2, dim2=-1) - half_kernel.square().sum(-2)
    weighted_left = (inverse @ left_px[..., None]).squeeze(-1)
    chi2 = (weighted_left * (left_px + J_n * mean_m[..., None])).sum((-1, -2))
    distance2 = _distance_from_others(
        left_px, J_n, covariance_px2, density, -(J_n * weighted_left).sum(-1), mean_m, variance_m2
    )
    solved = normal.solved & perfect.solved & (info == 0)
    return FieldSolution(
        normal, perfect.covariance, left_px, alpha, precision, coupling, mean_m, distance2, chi2,
        solved,
    )  # fmt: skip


def _distance_from_others(
    left_px: Float64[Tensor, "b n 2"],
    J_n: Float64[Tensor, "b n 2"],
    covariance_px2: Float64[Tensor, "b n 2 2"],
    density: Float64[Tensor, "b n"],
    linear: Float64[Tensor, "b n"],
    mean_m: Float64[Tensor, "b n"],
    variance_m2: Float64[Tensor, "b n"],
) -> Float64[Tensor, "b n"]:
    """Squared Mahalanobis distance of each residual from the prediction of all other matches.

    A match must not vouch for itself by bending the field at its own place. The field's posterior
    without match i follows from that with it by taking its factor ``exp(-D n^2/2 + linear n)``
    out (Rasmussen and Williams 2006, eq. 3.56).
    """
    remaining = 1 - density * variance_m2
    without_mean = (mean_m - variance_m2 * linear) / remaining
    without_variance = variance_m2 / remaining
    error = left_px + J_n * without_mean[..., None]
    spread = without_variance[..., None, None] * J_n[..., :, None] * J_n[..., None, :]
    inverse = inverse_2x2(covariance_px2 + spread)
    return (error * (inverse @ error[..., None]).squeeze(-1)).sum(-1)


@dataclass(frozen=True, slots=True)
class ErrorAtPoint:
    """Posterior of the map's vertical error (map minus ground) at one point a frame."""

    mean_m: Float64[Tensor, " b"]
    variance_m2: Float64[Tensor, " b"]
    covariance_with_pose: Float64[Tensor, "b 6"]  # with (dp_L, dtheta_L), both true minus estimate


def error_at(
    posterior: MapErrorPosterior,
    model: MapErrorModel,
    pose_covariance: Float64[Tensor, "b 6 6"],
    point_L: Float64[Tensor, "b 3"],
) -> ErrorAtPoint:
    """What one image says of the map's error at a point, jointly with the pose.

    Given dx the field is normal with mean ``-k^T J_n^T S^-1 (r - J_x dx)``; averaging over dx with
    covariance C gives, with ``c = coupling^T k``: mean ``k^T alpha``, variance
    ``k0 - k^T P k + c^T C c`` and ``cov(dx, n) = C c`` (Rasmussen and Williams 2006, eq. 2.42).
    """
    k = kernel_m2(model, point_L[:, None], posterior.point_L)  # b 1 n
    c = (k @ posterior.coupling).squeeze(1)
    cross = (pose_covariance @ c[..., None]).squeeze(-1)
    given_pose = model.sigma_m**2 - (k @ posterior.precision @ k.mT).squeeze(-1).squeeze(-1)
    mean = (k @ posterior.alpha[..., None]).squeeze(-1).squeeze(-1)
    return ErrorAtPoint(mean, given_pose.clamp_min(0.0) + (c * cross).sum(-1), cross)
