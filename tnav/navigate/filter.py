"""Error-state Kalman filter over inertial propagation, for a batch of descents.

The states are those of ``tnav.navigate.mechanisation``: position (m), velocity (m/s) and attitude
(rad) in L, biases of gyros (rad/s) and accelerometers (m/s^2) and the thrust scale in B; then what
no sensor alone can tell from the state, and is estimated, or at least considered: the map's shift,
its vertical error as an image averages it and under the lander (``tnav.navigate.map_error``), and
the altimeter's own bias; and a clone of the pose at the last exposure, to which a fix that comes
later refers. The form is Sola 2017 (arXiv:1711.02508) with a
perturbation in the local frame, the update Joseph's (``tnav.navigate.gate``).
"""

from dataclasses import replace
from functools import lru_cache

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from tnav.errors import ConfigError
from tnav.geometry.moon import LocalFrame
from tnav.geometry.pose import so3_log
from tnav.navigate.gate import fuse
from tnav.navigate.map_error import extrapolated_m2, rescale
from tnav.navigate.mechanisation import (
    ATTITUDE,
    CLONE_ATTITUDE,
    CLONE_POSITION,
    INERTIAL,
    MAP_BEAM,
    MAP_LOCAL,
    MAP_MEAN,
    MAP_SHIFT,
    MAP_SIDE,
    POSITION,
    STATES,
    advance,
    frame_step,
    gravity_in_doubt,
    inertial_noise,
    transition,
)
from tnav.navigate.state import FilterConfig, FilterState
from tnav.records import (
    AltimeterReading,
    AltimeterSpec,
    InertialIncrements,
    Innovation,
    RangePrediction,
    Sensor,
    StarTrackerReading,
    VisionFix,
)

# What ranges do not correct: horizontal position, of now and of the clone, and the map's errors.
_SIDEWAYS = (0, 1, 18, 19, 24, 25, 26, 27)
# A measurement must be of the state's epoch: 1 ms is 0.15 m at 150 m/s, below every noise here.
_EPOCH_TOLERANCE_S = 1e-3
_SLEW_RAD = 1.4
# What an image says of the ground under the lander beside its mean is heard where its variance is
# below this share of the map's own, and below that share of the filter's: images of the same ground
# err alike, and the second of two says nothing.
_GROUND_NEWS, _GROUND_BETTER = 0.9, 0.5


def propagate(
    state: FilterState, increments: InertialIncrements, frame: LocalFrame, config: FilterConfig
) -> FilterState:
    """Carries the state over one step of the inertial unit.

    Raises:
        ConfigError: the step does not begin where the state ends.
    """
    dt_s = increments.dt_s
    _check_epoch("inertial increments", increments.t_s - dt_s, state)
    device = state.position_L.device
    taus = (config.gyro_bias_time_s, config.accelerometer_bias_time_s)
    key_dt_s = round(dt_s, 9)  # so that rounding in a clock does not defeat the caches
    step = frame_step(frame, key_dt_s, *taus, device)
    thrust_m_s = increments.delta_v_B[:, 2]
    moved = advance(
        state.position_L,
        state.velocity_L,
        state.R_L_B,
        increments.delta_v_B
        - dt_s * state.accelerometer_bias_B
        - thrust_m_s[:, None] * state.thrust_scale_B,
        increments.delta_theta_B - dt_s * state.gyro_bias_B,
        dt_s,
        step,
    )
    phi = transition(moved, thrust_m_s, dt_s, step)
    noise = _noise(key_dt_s, config, device) + _slewing(
        increments.delta_theta_B, moved.R_L_B, config
    )
    return replace(
        state,
        t_s=increments.t_s,
        position_L=moved.position_L,
        velocity_L=moved.velocity_L,
        R_L_B=moved.R_L_B,
        gyro_bias_B=state.gyro_bias_B * (1 - dt_s / taus[0]),
        accelerometer_bias_B=state.accelerometer_bias_B * (1 - dt_s / taus[1]),
        covariance=_carried(state.covariance, phi, noise),
    )


def _slewing(
    delta_theta_B: Float64[Tensor, "b 3"], R_L_B: Float64[Tensor, "b 3 3"], config: FilterConfig
) -> Float64[Tensor, "b 18 18"]:
    """What scale and misalignment of the gyros add to the attitude's covariance over a step.

    About each body axis: its own scale times the turn about it, and misalignment times the turn
    about the others. These errors last: over a slew of angle A they add up to s A, as steps of
    variance ``s^2 A |dtheta|`` do. A is that of the pitch-up, the one slew that counts.
    """
    angle = delta_theta_B.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    own = delta_theta_B.square() / angle
    across = (angle - own).clamp_min(0.0)
    variance_B = _SLEW_RAD * (
        config.gyro_scale_sigma**2 * own + config.gyro_misalignment_rad**2 * across
    )
    added = angle.new_zeros(len(angle), INERTIAL, INERTIAL)
    added[:, ATTITUDE, ATTITUDE] = (R_L_B * variance_B[:, None, :]) @ R_L_B.mT
    return added


def _carried(
    P: Float64[Tensor, "b 32 32"], phi: Float64[Tensor, "b 18 18"], Q: Float64[Tensor, "b 18 18"]
) -> Float64[Tensor, "b 32 32"]:
    """``F P F^T + Q`` with F the identity beside the inertial states: by blocks."""
    inertial = torch.baddbmm(Q, phi @ P[:, :INERTIAL, :INERTIAL], phi.mT)
    across = phi @ P[:, :INERTIAL, INERTIAL:]
    carried = torch.empty_like(P)
    carried[:, :INERTIAL, :INERTIAL] = 0.5 * (inertial + inertial.mT)
    carried[:, :INERTIAL, INERTIAL:] = across
    carried[:, INERTIAL:, :INERTIAL] = across.mT
    carried[:, INERTIAL:, INERTIAL:] = P[:, INERTIAL:, INERTIAL:]
    return carried


def update_star_tracker(
    state: FilterState, reading: StarTrackerReading, config: FilterConfig
) -> tuple[FilterState, Innovation]:
    """Fuses an attitude: innovation ``Log(R_reading R_hat^T)`` in L, rad.

    Not for an epoch with a vision fix that was solved with the same reading: that would count it
    twice.
    """
    _check_epoch("star tracker", reading.t_s, state)
    residual = so3_log(reading.R_L_B @ state.R_L_B.mT)
    batch, device = residual.shape[0], residual.device
    identity = _identity(device)
    H = identity[ATTITUDE].expand(batch, 3, STATES)
    noise = reading.sigma_rad**2 * identity[:3, :3].expand(batch, 3, 3)
    present = torch.ones(batch, dtype=torch.bool, device=device)
    widening = residual[:, None, :] @ H
    return fuse(state, Sensor.STAR_TRACKER, residual, H, noise, present, widening.mT, config)


def update_vision(
    state: FilterState,
    fix: VisionFix,
    available: Bool[Tensor, " b"],
    R_B_C: Float64[Tensor, "3 3"],
    config: FilterConfig,
) -> tuple[FilterState, Innovation]:
    """Fuses a pose fix of the last exposure with its full covariance of ``(dp_L, dtheta_L)``.

    The camera's centre is the body's origin. The fix was solved with the exposure's star tracker
    reading, so its attitude is not independent of it: fuse one or the other. The map's share of its
    position is in states, which the next image shares; what the map adds to attitude is noise.

    Args:
        available: where there is a fix; elsewhere the values may be anything.
        R_B_C: camera axes in B, as columns.

    Raises:
        ConfigError: no clone of the exposure was kept.
    """
    if not abs(fix.t_s - state.clone_t_s) <= _EPOCH_TOLERANCE_S:
        raise ConfigError(
            f"vision fix of t = {fix.t_s:.6f} s, but the pose that is kept is of "
            f"{state.clone_t_s:.6f} s: clone at the exposure"
        )
    there = available[:, None, None]
    share_m2 = torch.where(available, fix.map_covariance[:, 2, 2], state.map_mean_variance_m2)
    side_m2 = 0.5 * (fix.map_covariance[:, 0, 0] + fix.map_covariance[:, 1, 1])
    side_m2 = torch.where(available, side_m2, state.map_side_variance_m2)
    lengths_m = config.fix_floor_sigma_m, config.map_correlation_m
    own_m2 = extrapolated_m2(state.map_footprint_m, *lengths_m)
    own_m2 = torch.where(available, own_m2, 0.0)
    state = rescale(state, share_m2, config, side_m2, own_m2)
    expected_R_L_C = state.clone_R_L_B @ R_B_C.to(fix.position_L.device)
    measured_R_L_C = torch.where(there, fix.R_L_C, expected_R_L_C)
    turned = so3_log(measured_R_L_C @ expected_R_L_C.mT)
    moved = fix.position_L - state.clone_position_L
    across_m = moved[:, :2] - state.map_shift_m - state.map_side_m
    moved = torch.cat([across_m, moved[:, 2:] - state.map_mean_m[:, None]], -1)
    residual = torch.where(available[:, None], torch.cat([moved, turned], -1), 0.0)
    identity = _identity(residual.device)
    noise = fix.covariance - fix.map_covariance + _of_attitude(fix.map_covariance)
    noise[:, :2, :2] += config.fix_floor_sigma_m**2 * identity[:2, :2]
    by_pose = torch.cat([identity[CLONE_POSITION], identity[CLONE_ATTITUDE]])
    by_map = torch.zeros_like(by_pose)
    by_map[:2], by_map[2] = identity[MAP_SHIFT] + identity[MAP_SIDE], identity[MAP_MEAN]
    H = (by_pose + by_map).expand(len(residual), 6, STATES)
    widening = residual[:, None, :] @ by_pose
    # The error is of now as much as of the exposure.
    widening[:, :, POSITION] = residual[:, None, :3]
    widening[:, :, ATTITUDE] = residual[:, None, 3:]
    widening = torch.cat([widening.mT, gravity_in_doubt(state.R_L_B, residual[:, 2])], -1)
    return fuse(state, Sensor.VISION, residual, H, noise, available, widening, config)


def _of_attitude(covariance: Float64[Tensor, "b 6 6"]) -> Float64[Tensor, "b 6 6"]:
    """The covariance of the last three components alone; stays positive."""
    kept = torch.ones(6, dtype=covariance.dtype, device=covariance.device)
    kept[:3] = 0.0
    return kept[:, None] * covariance * kept


def update_ground(
    state: FilterState,
    error_m: Float64[Tensor, " b"],
    variance_m2: Float64[Tensor, " b"],
    available: Bool[Tensor, " b"],
    config: FilterConfig,
) -> tuple[FilterState, Innovation]:
    """Fuses what the last fix's image says of the map's error under the lander, beside its mean.

    The pose solver's posterior of ``local - mean`` holds the field's own prior, which the filter
    has, too. With prior variance s^2 and posterior variance v the image alone measured
    ``posterior mean / (1 - v / s^2)`` with the variance ``1 / (1/v - 1/s^2)``. Follows
    `update_vision` of the same fix.

    Args:
        error_m: posterior mean of height over ground minus height over the map, at the fix.
        variance_m2: variance of the solver's height over ground.
        available: where there is a fix.
    """
    prior_m2 = config.map_sigma_m**2 - state.map_mean_variance_m2
    P = state.covariance
    known_m2 = P[:, MAP_LOCAL, MAP_LOCAL] + P[:, MAP_MEAN, MAP_MEAN] - 2 * P[:, MAP_LOCAL, MAP_MEAN]
    better = variance_m2 < _GROUND_BETTER * known_m2
    present = available & better & (variance_m2 < _GROUND_NEWS * prior_m2)
    news = torch.where(present, 1 - variance_m2 / prior_m2, 1.0)
    residual = (error_m / news - (state.map_local_m - state.map_mean_m))[:, None]
    identity = _identity(residual.device)
    H = (identity[MAP_LOCAL] - identity[MAP_MEAN]).expand(len(residual), 1, STATES)
    noise = torch.where(present, variance_m2 / news, 1.0)[:, None, None]
    widening = torch.where(present[:, None], residual, 0.0)[:, None, :] * H.mT * 0.5**0.5
    return fuse(state, Sensor.GROUND, residual, H, noise, present, widening, config)


def update_altimeter(
    state: FilterState,
    reading: AltimeterReading,
    prediction: RangePrediction,
    H: Float64[Tensor, "b 1 32"],
    spec: AltimeterSpec,
    config: FilterConfig,
    noise_scale: Float64[Tensor, " b"] | None = None,
) -> tuple[FilterState, Innovation]:
    """Fuses a range against the prediction that was made from this very state.

    A reading counts as present where it is valid, the map predicts a range, and the beam is not
    too grazing for the tangent plane to mean something. Where the lander is horizontally is
    considered, not corrected: a slope under a place that is not known is no fix, and ten readings a
    second of it would add up to one.

    Args:
        noise_scale: of the sensor, by what its maker states; None: 1.
    """
    _check_epoch("altimeter", reading.t_s, state)
    steep = torch.rad2deg(prediction.incidence_rad) > config.altimeter_incidence_max_deg
    present = reading.valid & prediction.defined & ~steep
    residual = torch.where(present, reading.range_m - prediction.range_m, 0.0)[:, None]
    noise_m = spec.noise_sigma_m(prediction.range_m)
    if noise_scale is not None:
        noise_m = noise_m * noise_scale
    noise = noise_m.square() + config.relief_sigma_m**2
    # Half of the discrepancy to altitude (along dr/dp), half to the map under the lander: either
    # may be wrong, and the height over the ground is right with both. A sensor that is at fault is
    # vision's to name, which is heard before patience is out.
    by_position = H[:, 0, POSITION]
    along = by_position / by_position.square().sum(-1, keepdim=True).clamp_min(1e-12)
    share = residual * 0.5**0.5
    widening = torch.zeros(len(residual), STATES, 2, dtype=residual.dtype, device=residual.device)
    widening[:, POSITION, 0] = share * along
    of_map = share[:, 0] / H[:, 0, MAP_BEAM].clamp_min(1e-3)
    widening[:, MAP_LOCAL, 1], widening[:, MAP_BEAM, 1] = of_map, of_map
    widening = torch.cat([widening, gravity_in_doubt(state.R_L_B, share[:, 0])], -1)
    noise = noise[:, None, None]
    return fuse(
        state,
        Sensor.ALTIMETER,
        residual,
        H,
        noise,
        present,
        widening,
        config,
        considered=_SIDEWAYS,
    )


def _check_epoch(name: str, t_s: float, state: FilterState) -> None:
    if not abs(t_s - state.t_s) <= _EPOCH_TOLERANCE_S:
        raise ConfigError(
            f"{name} at t = {t_s:.6f} s against a state at {state.t_s:.6f} s: propagate first"
        )


@lru_cache(maxsize=64)
def _noise(dt_s: float, config: FilterConfig, device: torch.device) -> Float64[Tensor, "18 18"]:
    return inertial_noise(
        dt_s,
        config.accelerometer_random_walk_m_s_sqrts,
        config.gyro_random_walk_rad_sqrts,
        config.accelerometer_bias_sigma_m_s2,
        config.accelerometer_bias_time_s,
        config.gyro_bias_sigma_rad_s,
        config.gyro_bias_time_s,
        config.accelerometer_bias_walk_m_s2_sqrts,
        config.gyro_bias_walk_rad_s_sqrts,
    ).to(device)


@lru_cache(maxsize=4)
def _identity(device: torch.device) -> Float64[Tensor, "32 32"]:
    return torch.eye(STATES, dtype=torch.float64).to(device)
