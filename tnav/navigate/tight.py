"""Tight vision update: matches of one exposure against the map, without a pose fix between.

A pose solver needs a dozen matches; a single one already narrows two directions of the state. Each
match is linearised at the filter's own clone of the exposure's pose. The map's shift and its mean
height error displace all points alike, so that what an image sees is the *pose on the map*
``(p + (shift, mean), R)``, six numbers however many matches there are::

    r = uv - project(X) = J dx - J_n n + e        dx of the pose on the map, e ~ N(0, R)
    J = P R_L_C^T [-I, skew(X - p)],              J_n = P R_L_C^T z_L,  P = d project / d X_C

with n the rest of the map's vertical error at the points. All rows are whitened and reduced by an
orthogonal triangulation to six, which say the same of dx (Bierman 1977, "Factorization Methods",
chapter IV), also where they determine it in part only.

**The rest of the map's error** is what is left of a Gaussian field
``K = s^2 exp(-d^2 / (2 l^2))`` when its mean over the matches is taken out, ``(I - 1 w^T) K
(I - w 1^T)``, and that mean's own variance as far as it exceeds the m of the state MAP_MEAN:
``max(0, w^T K w - m)``, common to all. So one match has the variance s^2 - m, many over the whole
view only what tilts and bends. Approximations: the mean is taken with equal weights, and its
covariance with the rest is neglected, as is that of the rest with the error under the lander.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from tnav.errors import ConfigError
from tnav.geometry.camera import Camera
from tnav.geometry.pose import so3_log
from tnav.navigate.gate import fuse
from tnav.navigate.map_error import mean_share, rescale
from tnav.navigate.match_rows import (
    MatchRows,
    augmented,
    distance2,
    inverse_cholesky,
    linearised,
    masked_median,
    rest_of_map_m2,
    whitened,
    without_gaps,
)
from tnav.navigate.mechanisation import (
    ATTITUDE,
    CLONE_ATTITUDE,
    CLONE_POSITION,
    MAP_MEAN,
    MAP_SHIFT,
    POSITION,
    STATES,
)
from tnav.navigate.state import FilterConfig, FilterState
from tnav.records import Innovation, Matches, Sensor, StarTrackerReading

# A measurement must be of the clone's epoch, as in `tnav.navigate.filter`.
_EPOCH_TOLERANCE_S = 1e-3
# P(chi-square with 2 dof > 16) = 3e-4: a tenth of a good match of three hundred is lost.
_GATE2 = 16.0
# Median of a chi-square with two degrees of freedom, 2 ln 2.
_MEDIAN_CHI2_2 = 2 * math.log(2.0)
# Of fewer matches a median of residuals says little, and the prior alone judges them.
_FEW = 8
_ITERATIONS = 6
# Matches three times worse than they say; beyond that it is the state that is wrong, or all of
# them, and the filter's gate must see it.
_SCALE_MAX = 9.0
# Where fewer than this share of the matches fits the prior, it is the prior that is in doubt:
# they choose among themselves, under its sigma times a hundred.
_DOUBT_SHARE = 0.25
_DOUBT_WIDENS = 1e4
# Directions of the innovation under this share of the largest variance are not widened.
_RELATIVE_FLOOR = 1e-9


@dataclass(frozen=True, slots=True)
class TightMeasurement:
    """What matches say of the pose on the map, ``residual = H dx + e``, whitened: no units.

    ``dx = (dp_L, dtheta_L)`` (m, rad) counts from the clone's pose; the errors of the map's shift
    and mean height have the columns of the position. Rows that no match fills are zero, with the
    noise one.
    """

    residual: Float64[Tensor, "b 6"]
    H: Float64[Tensor, "b 6 6"]
    noise: Float64[Tensor, "b 6 6"]


def pose_on_map(
    state: FilterState, R_B_C: Float64[Tensor, "3 3"]
) -> tuple[Float64[Tensor, "b 3"], Float64[Tensor, "b 3 3"]]:
    """Position and R_L_C at the exposure, displaced as the map is."""
    of_map = torch.cat([state.map_shift_m, state.map_mean_m[:, None]], -1)
    return state.clone_position_L + of_map, state.clone_R_L_B @ R_B_C.to(of_map.device)


def update_tight(
    state: FilterState,
    t_s: float,
    matches: Matches,
    camera: Camera,
    R_B_C: Float64[Tensor, "3 3"],
    star: StarTrackerReading | None,
    config: FilterConfig,
) -> tuple[FilterState, Innovation]:
    """Fuses the matches of the last exposure, as few as one, without a pose fix.

    An iterated update (Bell and Cathey 1993): the linearisation follows the matches and the prior.
    Matches that stand out are left out (`inliers`), and the covariance of those left grows with
    their scatter, never shrinks. The innovation is whitened: its six numbers have no unit. Its
    gate counts six degrees of freedom; one or two matches fill two or four of them, and then it is
    their own gates that decide. Do not fuse a fix of the same matches as well.

    Args:
        t_s: of the exposure.
        matches: camera pixels with covariance against points of the map.
        R_B_C: camera axes in B, as columns.
        star: attitude at the exposure, if `update_star_tracker` did not fuse it before the clone.
            It counts only where a match does.

    Raises:
        ConfigError: no clone of the exposure was kept.
    """
    for name, of_s in (("matches", t_s), ("star tracker", t_s if star is None else star.t_s)):
        if not abs(of_s - state.clone_t_s) <= _EPOCH_TOLERANCE_S:
            raise ConfigError(
                f"{name} of t = {of_s:.6f} s, but the pose that is kept is of "
                f"{state.clone_t_s:.6f} s: clone at the exposure"
            )
    uv_px, covariance_px2, point_L, valid = without_gaps(matches)
    share_m2 = _footprint_variance_m2(state, point_L, valid, camera, config)
    anything = valid.any(-1)
    # A mean by weights that are all positive: it extrapolates nothing, and has no sideways part.
    state = rescale(state, torch.where(anything, share_m2, state.map_mean_variance_m2), config)
    used, moved, scale = inliers(
        state, uv_px, covariance_px2, point_L, valid, camera, R_B_C, star, config
    )
    measured = compress(
        point_L, uv_px, scale[:, None, None, None] * covariance_px2, used, camera, R_B_C, state,
        config, star, moved,
    )  # fmt: skip
    present = used.any(-1)
    H = measured.H @ _selection(measured.H.device)
    widening = _blamed(state, measured)
    return fuse(
        state, Sensor.VISION, measured.residual, H, measured.noise, present, widening, config
    )


def compress(
    point_L: Float64[Tensor, "b n 3"],
    uv_px: Float64[Tensor, "b n 2"],
    covariance_px2: Float64[Tensor, "b n 2 2"],
    used: Bool[Tensor, "b n"],
    camera: Camera,
    R_B_C: Float64[Tensor, "3 3"],
    state: FilterState,
    config: FilterConfig,
    star: StarTrackerReading | None = None,
    moved: Float64[Tensor, "b 6"] | None = None,
) -> TightMeasurement:
    """Reduces matches (and an attitude) to six rows that say the same of the pose on the map.

    Exact for the linearised problem and the stated covariances: ``H^T H = J^T S^-1 J`` and
    ``H^T residual = J^T S^-1 r``.

    Args:
        point_L: points of the map, m; finite where used.
        used: the matches that count.
        star: attitude of the body at the exposure.
        moved: where to linearise, as ``(dp_L, dtheta_L)`` from the clone's pose on the map.
    """
    point_L = torch.where(used[..., None], point_L, 0.0)
    position_L, R_L_C = pose_on_map(state, R_B_C)
    moved = torch.zeros_like(position_L).repeat(1, 2) if moved is None else moved
    rows = linearised(position_L, R_L_C, moved, point_L, uv_px, camera)
    used = used & rows.seen
    field_m2 = rest_of_map_m2(point_L, used, state, config)
    stacked = whitened(augmented(rows, moved), rows.J_n, covariance_px2, used, field_m2)
    stacked = torch.nn.functional.pad(stacked, (0, 0, 0, 7))  # as many as columns, at the least
    triangle = torch.linalg.qr(_with_star(stacked, star, state), mode="r").R
    eye = torch.eye(6, dtype=triangle.dtype, device=triangle.device)
    noise = eye.expand(len(triangle), 6, 6)
    return TightMeasurement(triangle[:, :6, 6], triangle[:, :6, :6], noise)


def inliers(
    state: FilterState,
    uv_px: Float64[Tensor, "b n 2"],
    covariance_px2: Float64[Tensor, "b n 2 2"],
    point_L: Float64[Tensor, "b n 3"],
    valid: Bool[Tensor, "b n"],
    camera: Camera,
    R_B_C: Float64[Tensor, "3 3"],
    star: StarTrackerReading | None,
    config: FilterConfig,
) -> tuple[Bool[Tensor, "b n"], Float64[Tensor, "b 6"], Float64[Tensor, " b"]]:
    """Matches that agree with the prior and with each other.

    First each match by itself against the prior, whose spread its own includes, unless nearly all
    fail: no gate here may keep from the filter's own that the state is wrong. Then weights of
    Geman and McClure about a pose that follows matches and prior, in a scale that is the median of
    the squared distances over its expectation, at least 1. The map's error counts here as if
    independent from match to match, as in any start of a robust solver.

    Returns:
        Which are used, the pose ``(dp_L, dtheta_L)`` from the clone's on the map that they and the
        prior agree on, and the scale of their covariances; 1 for fewer than eight.
    """
    position_L, R_L_C = pose_on_map(state, R_B_C)
    T = _selection(position_L.device)
    prior = T @ state.covariance @ T.mT
    moved = torch.zeros_like(position_L).repeat(1, 2)

    def look() -> tuple[MatchRows, Tensor]:
        rows = linearised(position_L, R_L_C, moved, point_L, uv_px, camera)
        by_map = rows.J_n[..., :, None] * rows.J_n[..., None, :]
        return rows, covariance_px2 + config.map_sigma_m**2 * by_map

    rows, noise_px2 = look()
    spread_px2 = noise_px2 + rows.J_x @ prior[:, None] @ rows.J_x.mT
    candidate, usable = distance2(rows.residual_px, spread_px2) < _GATE2, valid & rows.seen
    doubt = (candidate & usable).sum(-1) < _DOUBT_SHARE * usable.sum(-1)
    candidate = usable & (candidate | doubt[:, None])
    prior = torch.where(doubt[:, None, None], _DOUBT_WIDENS * prior, prior)
    few = (candidate.sum(-1) < _FEW)[:, None]
    used, weight = candidate, candidate.to(uv_px.dtype)
    scale = torch.ones_like(position_L[:, :1])
    for _ in range(_ITERATIONS):
        whitener = inverse_cholesky(noise_px2) * (weight / scale).sqrt()[..., None, None]
        stacked = (whitener @ augmented(rows, moved)).flatten(1, 2)
        moved = _posterior(prior, _with_star(stacked, star, state))
        rows, noise_px2 = look()
        d2 = distance2(rows.residual_px, noise_px2)
        scale = masked_median(d2, candidate) / _MEDIAN_CHI2_2
        scale = torch.where(few, 1.0, scale.clamp_min(1.0))
        relative = d2 / (_GATE2 * scale)
        used = candidate & rows.seen & (few | (relative < 1.0))
        soft = torch.where(few, 1.0, (1 + relative).pow(-2))
        weight = torch.where(candidate & rows.seen, soft, 0.0)
    return used, moved, scale[:, 0].clamp_max(_SCALE_MAX)


def _footprint_variance_m2(
    state: FilterState,
    point_L: Float64[Tensor, "b n 3"],
    valid: Bool[Tensor, "b n"],
    camera: Camera,
    config: FilterConfig,
) -> Float64[Tensor, " b"]:
    """Variance of the map's error averaged over the ground in view.

    With a Gaussian weight of the view's standard deviation per axis, w, for the view's square: the
    field ``s^2 exp(-d^2 / (2 l^2))`` keeps ``s^2 / (1 + 2 w^2 / l^2)``. A property of the view and
    not of the matches, of which there may be one.
    """
    distance_m = (point_L - state.clone_position_L[:, None]).norm(dim=-1)
    range_m = (distance_m * valid).sum(-1) / valid.sum(-1).clamp_min(1)
    side = math.sqrt(camera.width_px * camera.height_px) / camera.focal_px
    w_m = range_m * side / math.sqrt(12)
    share_m2 = config.map_sigma_m**2 / (1 + 2 * (w_m / config.map_correlation_m).square())
    return mean_share(share_m2, config.map_sigma_m)


def _with_star(
    rows: Float64[Tensor, "b m 7"], star: StarTrackerReading | None, state: FilterState
) -> Float64[Tensor, "b k 7"]:
    """Whitened rows, and three of an attitude of the body at the exposure if there is one."""
    if star is None:
        return rows
    turned = so3_log(star.R_L_B @ state.clone_R_L_B.mT)
    eye = torch.eye(3, dtype=turned.dtype, device=turned.device).expand(len(turned), 3, 3)
    more = torch.cat([torch.zeros_like(eye), eye, turned[..., None]], -1) / star.sigma_rad
    return torch.cat([rows, more], 1)


def _posterior(
    prior: Float64[Tensor, "b 6 6"], rows: Float64[Tensor, "b m 7"]
) -> Float64[Tensor, "b 6"]:
    """Mean given whitened rows and a prior about zero, whose covariance may be singular.

    ``x = (I + P N)^-1 P g``, in the prior's own units so that metres and radians do not mix.
    """
    sigma = prior.diagonal(dim1=-2, dim2=-1).clamp_min(0.0).sqrt()
    unit = torch.where(sigma > 0, sigma, 1.0)
    P = prior / unit[:, :, None] / unit[:, None, :]
    A = rows[..., :6] * unit[:, None]
    N, g = A.mT @ A, A.mT @ rows[..., 6:]
    eye = torch.eye(6, dtype=P.dtype, device=P.device)
    x, _ = torch.linalg.solve_ex(eye + P @ N, P @ g)
    x = unit * x.squeeze(-1)
    return torch.where(x.isfinite().all(-1, keepdim=True), x, torch.zeros_like(x))


def _blamed(state: FilterState, measured: TightMeasurement) -> Float64[Tensor, "b 32 1"]:
    """W with ``H W = residual``, the discrepancy as the prior divides it: of now and of then."""
    T = _selection(measured.H.device)
    PHt = T @ state.covariance @ T.mT @ measured.H.mT
    A = measured.H @ PHt
    floor = _RELATIVE_FLOOR * A.diagonal(dim1=-2, dim2=-1).amax(-1)
    A = A + floor[:, None, None].clamp_min(1e-300) * measured.noise
    factor, _ = torch.linalg.cholesky_ex(0.5 * (A + A.mT))
    offset = (PHt @ torch.cholesky_solve(measured.residual[..., None], factor)).squeeze(-1)
    W = torch.zeros_like(state.covariance[:, :, :1])
    W[:, POSITION, 0] = W[:, CLONE_POSITION, 0] = offset[:, :3]
    W[:, ATTITUDE, 0] = W[:, CLONE_ATTITUDE, 0] = offset[:, 3:]
    return W


def _selection(device: torch.device) -> Float64[Tensor, "6 32"]:
    """Error of the pose on the map from the error state."""
    T = torch.zeros(6, STATES, dtype=torch.float64, device=device)
    eye = torch.eye(6, dtype=torch.float64, device=device)
    T[:, CLONE_POSITION], T[:, CLONE_ATTITUDE] = eye[:, :3], eye[:, 3:]
    T[:, MAP_SHIFT], T[:, MAP_MEAN] = eye[:, :2], eye[:, 2]
    return T
