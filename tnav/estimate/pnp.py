"""Camera pose from matches with a map: consensus, robust descent, generalised least squares.

Minimises ``(r - J_x dx)^T S^-1 (r - J_x dx) + |dtheta - dtheta_prior|^2 / sigma^2`` with
``S = blockdiag(R_i) + J_n K J_n^T``: matches by their own covariances, the map's vertical error as
a Gaussian field (``tnav.estimate.map_error``), the attitude of a star tracker as one measurement.
Its covariance is ``(J_x^T S^-1 J_x + A)^-1`` (Aitken 1935; Triggs et al. 2000, "Bundle adjustment:
a modern synthesis", section 3).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor

from tnav.errors import ConfigError
from tnav.estimate.map_error import FieldSolution, kernel_m2, solve_with_field
from tnav.estimate.ransac import consensus_centre
from tnav.estimate.refine import (
    AttitudePrior,
    Linearisation,
    inverse_2x2,
    linearise,
    mahalanobis2,
    perturb,
    robust_descent,
)
from tnav.geometry.camera import Camera
from tnav.geometry.moon import up_L
from tnav.geometry.pose import Pose
from tnav.records import (
    FIX_STATUSES,
    FixStatus,
    MapErrorModel,
    MapErrorPosterior,
    Matches,
    PoseFix,
    PoseSolution,
)

# Median of a chi-square with two degrees of freedom, 2 ln 2.
_MEDIAN_CHI2_2 = 1.3862943611198906
# Variance that no matcher reaches (1e-4 px); keeps a quotient finite where no match is valid.
_FLOOR_PX2 = 1e-8


@dataclass(frozen=True, slots=True)
class PoseConfig:
    """Settings of ``solve_pose``; the reason of each default stands beside it."""

    hypotheses: int = 512  # at 80 % outliers none is clean with probability 0.96^512 = 1e-9
    inlier_px: float = 3.0  # what "solved" means in the matcher's figures; ten times its noise
    min_inliers: int = 12  # of 330 random matches in a 128 px window 8 agree at most (tests)
    descent_iterations: int = 8  # each halves the tolerance: 2^8 takes any threshold to its floor
    field_iterations: int = 16  # 99 % settle in 6 where noise is understated; the rest cycles,
    undamped_iterations: int = 4  # and settles under damped weights, slowly: 2 of 60 views were
    # still at 0.21 sigma a step after 10, 600 m over ground with boulders
    gate_sigma: float = 4.0  # P(chi-square with 2 dof > 16) = 3e-4: a tenth of a good match a frame
    huber_sigma: float = 2.5  # touches 4 % of normal errors, and widens sigma by 2 %
    settled_sigma: float = 0.2  # a last step under this adds under 1 % to a NEES of 6
    max_relative_sigma: float = 0.05  # of range, map error apart: beyond it no linear model
    attitude_gate_sigma: float = 6.0  # P(chi-square with 3 dof > 36) = 7e-8 for an honest tracker
    calibration: float = 1.5  # of match covariance: sigma came out 1.1 to 1.4 too small as
    # neighbouring patches share their errors, and 1.22^2 = 1.5 is the middle of that

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if not getattr(self, name) > 0:
                raise ConfigError(f"pose.{name}: {getattr(self, name)}, expected > 0")
        if self.min_inliers < 4:
            raise ConfigError(
                f"pose.min_inliers: {self.min_inliers}, expected >= 4 (three leave four poses)"
            )
        if not self.huber_sigma < self.gate_sigma:
            raise ConfigError(
                f"pose.huber_sigma: {self.huber_sigma}, expected < gate_sigma {self.gate_sigma}"
            )
        if self.calibration < 1:
            raise ConfigError(f"pose.calibration: {self.calibration}, expected >= 1")


_DEFAULT = PoseConfig()


def solve_pose(
    matches: Matches,
    camera: Camera,
    prior: Pose,
    *,
    attitude_sigma_rad: float,
    map_error: MapErrorModel,
    seed: int,
    config: PoseConfig = _DEFAULT,
) -> PoseSolution:
    """Pose of each frame of a batch, on the matches' device and without touching the host.

    Args:
        matches: camera pixels against points of the map.
        camera: the one that took the image.
        prior: its attitude is a measurement of this epoch, apart from the image and from any
            filter. Its position is not used.
        attitude_sigma_rad: 1-sigma error of that attitude about each axis.
        map_error: what the map's maker states of its vertical error.
        seed: of the consensus draws.
        config: settings.

    Returns:
        Poses with covariance of ``(dp_L, dtheta_L)`` and status. Where the status is not OK pose,
        covariance and residuals are NaN, and the map's posterior is its prior (zeros).
        ``residual_px`` is camera pixel minus projection of the map's point as it stands.

    Raises:
        ConfigError: negative or zero sigma, or batches that differ.
    """
    _check(matches, prior, attitude_sigma_rad, map_error)
    uv_px, covariance_px2, point_L, valid = _without_gaps(matches)
    attitude = AttitudePrior(prior.R_L_C, attitude_sigma_rad)

    # A wrong attitude bends the image by up to this at its corners after the centre has adapted.
    half_diagonal_px = 0.5 * (camera.width_px**2 + camera.height_px**2) ** 0.5
    threshold_px = (config.inlier_px**2 + (attitude_sigma_rad * half_diagonal_px) ** 2) ** 0.5
    centre_L = consensus_centre(
        uv_px, point_L, valid, prior.R_L_C, camera,
        threshold_px=threshold_px, hypotheses=config.hypotheses, seed=seed,
    )  # fmt: skip
    found = centre_L.isfinite().all(-1)
    start = Pose(prior.R_L_C, torch.where(found[:, None], centre_L, torch.zeros_like(centre_L)))

    floor_px = config.inlier_px / config.gate_sigma
    slack_px = tuple(max(threshold_px * 0.5**k, floor_px) for k in range(config.descent_iterations))
    pose, distance2 = robust_descent(
        start, uv_px, covariance_px2, point_L, valid, camera, attitude,
        map_sigma_m=map_error.sigma_m, slack_px=slack_px, gate_sigma=config.gate_sigma,
    )  # fmt: skip
    inlier = distance2 < config.gate_sigma**2
    usable = _Inputs(uv_px, covariance_px2, point_L, valid, camera, attitude, map_error, config)
    fit = _fit_with_field(usable, pose, inlier)
    status_code = _status(usable, fit, found)
    return _solution(usable, fit, status_code)


@dataclass(frozen=True, slots=True)
class _Inputs:
    """Matches without gaps, and what they are solved with."""

    uv_px: Float64[Tensor, "b n 2"]
    covariance_px2: Float64[Tensor, "b n 2 2"]
    point_L: Float64[Tensor, "b n 3"]
    valid: Bool[Tensor, "b n"]
    camera: Camera
    attitude: AttitudePrior
    map_error: MapErrorModel
    config: PoseConfig


@dataclass(frozen=True, slots=True)
class _Fit:
    """A converged (or not) fit, before its status is known."""

    pose: Pose
    field: FieldSolution
    line: Linearisation  # at the pose, against the map's points as they stand
    inlier: Bool[Tensor, "b n"]
    settled: Bool[Tensor, " b"]


def _check(
    matches: Matches, prior: Pose, attitude_sigma_rad: float, map_error: MapErrorModel
) -> None:
    if not attitude_sigma_rad > 0:
        raise ConfigError(f"attitude_sigma_rad: {attitude_sigma_rad}, expected > 0")
    if not map_error.sigma_m >= 0:
        raise ConfigError(f"map_error.sigma_m: {map_error.sigma_m}, expected >= 0")
    if not map_error.correlation_m > 0:
        raise ConfigError(f"map_error.correlation_m: {map_error.correlation_m}, expected > 0")
    if len(prior) != matches.valid.shape[0]:
        raise ConfigError(
            f"prior: {len(prior)} poses for {matches.valid.shape[0]} frames of matches"
        )


def _without_gaps(matches: Matches) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Matches with harmless numbers where they are masked, not finite or without covariance."""
    covariance = matches.covariance_px2
    determinant = covariance[..., 0, 0] * covariance[..., 1, 1] - covariance[..., 0, 1] ** 2
    valid = (
        matches.valid
        & matches.uv_px.isfinite().all(-1)
        & matches.point_L.isfinite().all(-1)
        & (determinant > 0)
        & (covariance[..., 0, 0] > 0)
        & covariance.isfinite().all(-1).all(-1)
    )
    keep = valid[..., None]
    eye = torch.eye(2, dtype=covariance.dtype, device=covariance.device)
    return (
        torch.where(keep, matches.uv_px, torch.zeros_like(matches.uv_px)),
        torch.where(keep[..., None], covariance, eye),
        torch.where(keep, matches.point_L, torch.zeros_like(matches.point_L)),
        valid,
    )


def _fit_with_field(given: _Inputs, pose: Pose, inlier: Bool[Tensor, "b n"]) -> _Fit:
    """Iterate pose, field, weights and noise scale; then once more with the calibrated noise.

    The scale of the match covariances follows the residuals upwards only: matches may be worse
    than they say, never better. The calibration enters at the end, as errors that neighbours
    share do not show in residuals.
    """
    config = given.config
    kernel = kernel_m2(given.map_error, given.point_L, given.point_L)
    first = linearise(pose, given.uv_px, given.point_L, given.camera)
    worst = _worst_scale(given)
    scale = _robust_scale(first, given, inlier).minimum(worst)
    weight = inlier.to(given.uv_px.dtype)
    error_m = torch.zeros_like(weight)
    settled = inlier.new_zeros(inlier.shape[0])
    consistency = _consistency(config)

    for iteration in range(config.field_iterations):
        pose, field, line = _field_step(given, pose, kernel, weight, scale, error_m)
        settled = field.normal.step_sigma2 < config.settled_sigma**2
        freedom = consistency * (2 * (weight > 0).sum(-1) - 6).clamp_min(1)
        error_m = field.error_mean_m
        distance = field.distance2.clamp_min(torch.finfo(torch.float64).tiny).sqrt()
        inlier = given.valid & line.seen & (distance < config.gate_sigma)
        chosen = inlier * _hampel_weight(distance, config)
        # Weights and pose can chase each other round; half-way steps end such a cycle.
        share = 1.0 if iteration < config.undamped_iterations else 0.5
        weight = torch.lerp(weight, chosen, share)
        scale = (scale * field.chi2 / freedom).clamp_min(1.0).minimum(worst)

    pose, field, _ = _field_step(given, pose, kernel, weight, scale * config.calibration, error_m)
    line = linearise(pose, given.uv_px, given.point_L, given.camera)
    return _Fit(pose, field, line, inlier & line.seen, settled & field.solved)


def _field_step(
    given: _Inputs,
    pose: Pose,
    kernel: Float64[Tensor, "b n n"],
    weight: Float64[Tensor, "b n"],
    scale: Float64[Tensor, " b"],
    error_m: Float64[Tensor, "b n"],
) -> tuple[Pose, FieldSolution, Linearisation]:
    """One Gauss-Newton step on pose and field, linearised at both."""
    ground_L = torch.cat([given.point_L[..., :2], given.point_L[..., 2:] - error_m[..., None]], -1)
    line = linearise(pose, given.uv_px, ground_L, given.camera)
    field = solve_with_field(
        line,
        line.residual_px - line.J_n * error_m[..., None],
        scale[:, None, None, None] * given.covariance_px2,
        weight * line.seen,
        kernel,
        given.attitude.information(),
        given.attitude.right_side(pose),
    )
    return perturb(pose, field.normal.step), field, line


def _hampel_weight(distance: Float64[Tensor, "*b"], config: PoseConfig) -> Float64[Tensor, "*b"]:
    """1 up to ``huber_sigma``, then falling without a step to 0 at ``gate_sigma`` (Hampel 1974).

    A weight that jumps at the gate lets a match there flip in and out, and nothing settles.
    """
    falling = (config.gate_sigma - distance) / (config.gate_sigma - config.huber_sigma)
    return (config.huber_sigma / distance).clamp_max(1.0) * falling.clamp(0.0, 1.0)


def _consistency(config: PoseConfig) -> float:
    """Half the mean of weight times square for normal errors in two dimensions (Rayleigh)."""
    edges = torch.linspace(0.0, config.gate_sigma, 513, dtype=torch.float64)
    t = 0.5 * (edges[1:] + edges[:-1])
    density = t * torch.exp(-0.5 * t.square())
    mean = (_hampel_weight(t, config) * t.square() * density).sum() * (edges[1] - edges[0])
    return 0.5 * float(mean)  # on the CPU whatever the device of the batch


def _worst_scale(given: _Inputs) -> Float64[Tensor, " b"]:
    """Scale at which the gate of an ordinary match reaches ``inlier_px``, at least 1.

    Without a limit random matches widen the scale, and the scale lets in more random matches.
    """
    variance_px2 = 0.5 * given.covariance_px2.diagonal(dim1=-2, dim2=-1).sum(-1)
    limit_px2 = (given.config.inlier_px / given.config.gate_sigma) ** 2
    return (limit_px2 / _mean_of(variance_px2, given.valid).clamp_min(_FLOOR_PX2)).clamp_min(1.0)


def _robust_scale(
    line: Linearisation, given: _Inputs, inlier: Bool[Tensor, "b n"]
) -> Float64[Tensor, " b"]:
    """Median of the inliers' normalised squares over its expectation, at least 1."""
    if inlier.shape[1] == 0:
        return given.uv_px.new_ones(inlier.shape[0])
    d2 = mahalanobis2(line.residual_px, inverse_2x2(given.covariance_px2))
    ordered = torch.where(inlier, d2, torch.full_like(d2, torch.inf)).sort(-1).values
    middle = (inlier.sum(-1, keepdim=True) - 1).clamp_min(0) // 2
    median = ordered.gather(-1, middle).squeeze(-1) / _MEDIAN_CHI2_2
    return torch.where(median.isfinite(), median, torch.ones_like(median)).clamp_min(1.0)


def _status(given: _Inputs, fit: _Fit, found: Bool[Tensor, " b"]) -> Int[Tensor, " b"]:
    """First reason, in the order below, why there is no pose; OK where there is none."""
    config = given.config
    n_inliers = fit.inlier.sum(-1)
    range_m = _mean_of(fit.line.range_m, fit.inlier)
    # Without the map's error: a poor map makes a fix unsure, only poor geometry makes it unsound.
    perfect = fit.field.if_map_perfect.diagonal(dim1=-2, dim2=-1)[..., :3].sum(-1)
    well_conditioned = fit.field.solved & (perfect < (config.max_relative_sigma * range_m).square())
    up = up_L(fit.pose.position_L)
    height_m = ((fit.pose.position_L[:, None] - given.point_L) * up[:, None]).sum(-1)
    turned_rad = given.attitude.offset_rad(fit.pose).norm(dim=-1)
    plausible = (_mean_of(height_m, fit.inlier) > 0) & (
        turned_rad < config.attitude_gate_sigma * given.attitude.sigma_rad
    )
    refusals = (
        (FixStatus.IMPLAUSIBLE, plausible),
        (FixStatus.NOT_SETTLED, fit.settled),
        (FixStatus.ILL_CONDITIONED, well_conditioned),
        (FixStatus.NO_CONSENSUS, found & (n_inliers >= config.min_inliers)),
        (FixStatus.TOO_FEW_MATCHES, given.valid.sum(-1) >= config.min_inliers),
    )
    code = torch.full_like(n_inliers, FIX_STATUSES.index(FixStatus.OK))
    for status, passed in refusals:  # the last written is the first reason
        code = torch.where(passed, code, torch.full_like(code, FIX_STATUSES.index(status)))
    return code


def _mean_of(values: Float64[Tensor, "b n"], mask: Bool[Tensor, "b n"]) -> Float64[Tensor, " b"]:
    return (values * mask).sum(-1) / mask.sum(-1).clamp_min(1)


def _solution(given: _Inputs, fit: _Fit, status_code: Int[Tensor, " b"]) -> PoseSolution:
    """The record, with NaN in place of what a failed fix does not have."""
    ok = status_code == FIX_STATUSES.index(FixStatus.OK)

    def or_else(values: Tensor, other: float) -> Tensor:
        mask = ok.reshape(-1, *[1] * (values.dim() - 1))
        return torch.where(mask, values, torch.full_like(values, other))

    field = fit.field
    residual_px = or_else(fit.line.residual_px, torch.nan)
    mean_square = _mean_of(fit.line.residual_px.square().sum(-1), fit.inlier)
    return PoseSolution(
        pose=Pose(or_else(fit.pose.R_L_C, torch.nan), or_else(fit.pose.position_L, torch.nan)),
        covariance=or_else(field.normal.covariance, torch.nan),
        map_covariance=or_else(field.normal.covariance - field.if_map_perfect, torch.nan),
        status_code=status_code,
        inlier=fit.inlier,
        residual_px=torch.where(given.valid[..., None], residual_px, torch.nan),
        rms_px=or_else(mean_square.sqrt(), torch.nan),
        map_error=MapErrorPosterior(
            given.point_L,
            or_else(field.alpha, 0.0),
            or_else(field.precision, 0.0),
            or_else(field.coupling, 0.0),
        ),
    )


def fixes_on_host(solution: PoseSolution, matches: Matches, t_s: Sequence[float]) -> list[PoseFix]:
    """Fixes as the filter takes them. The one function here that waits for the device.

    Args:
        solution: of ``solve_pose``.
        matches: those it was solved from.
        t_s: time of each frame.

    Raises:
        ConfigError: a time is missing or left over.
    """
    n_frames = solution.status_code.shape[0]
    if len(t_s) != n_frames:
        raise ConfigError(f"t_s: {len(t_s)} times for {n_frames} fixes")
    counts = [solution.status_code, matches.valid.sum(-1), solution.inlier.sum(-1)]
    columns = [
        torch.stack(counts, -1).double(),
        solution.rms_px[:, None],
        solution.pose.position_L,
        solution.pose.R_L_C.flatten(1),
        solution.covariance.flatten(1),
        solution.map_covariance.flatten(1),
    ]
    fixes = []
    for time, row in zip(t_s, torch.cat(columns, -1).cpu(), strict=True):  # one transfer
        code, n_matches, n_inliers = (int(v) for v in row[:3])
        status = FIX_STATUSES[code]
        if status is FixStatus.OK:
            fixes.append(
                PoseFix(
                    time, status, n_matches, n_inliers, float(row[3]), row[4:7].clone(),
                    row[7:16].reshape(3, 3).clone(), row[16:52].reshape(6, 6).clone(),
                    row[52:].reshape(6, 6).clone(),
                )
            )  # fmt: skip
        else:
            fixes.append(PoseFix(time, status, n_matches, n_inliers, None, None, None, None, None))
    return fixes
