"""Error-state Kalman filter over inertial propagation, for a batch of descents.

Sixteen error states in the order of ``tnav.navigate.mechanisation``: position (m), velocity (m/s)
and attitude (rad) in L, gyro bias (rad/s) and accelerometer bias (m/s^2) in B, and one bias of the
altimeter's range (m), which stands for the map's local vertical error plus the sensor's own bias.
The form is Sola 2017 (arXiv:1711.02508) with a perturbation in the local frame, the update
Joseph's. Fixes are taken as independent of one another: whoever fuses several of one ground
first widens the share of the map's error (``tnav.navigate.shared_error``).

**A gate never locks out for ever.** A measurement is rejected when its normalised innovation
squared is less likely than ``1 - gate_probability``. A rejection blames the sensor; a run of them
says as loudly that the *state* is wrong (Hakuto-R M1 discarded a healthy altimeter until it fell
from 5 km). So after ``*_gate_patience`` rejections in a row the next one is taken: the covariance
is first widened along the observed discrepancy r by ``r r^T``, the least rank-one widening under
which it is plausible (its NIS falls to nis / (1 + nis) < 1), and then the update is the ordinary
one. For the altimeter the widening is shared between altitude and range bias, because either may
be wrong; the next vision fix settles which. A vision fix that passes its own gate vouches for the
state, so it starts the altimeter's count anew: against two sources that agree the altimeter alone
must not win. The innovation that is reported stays the one before widening, so that a monitor sees
what happened.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from tnav.errors import ConfigError
from tnav.geometry.moon import LocalFrame
from tnav.geometry.pose import so3_exp, so3_log
from tnav.navigate.altimetry import range_jacobian
from tnav.navigate.mechanisation import (
    ACCELEROMETER_BIAS,
    ATTITUDE,
    GYRO_BIAS,
    POSITION,
    RANGE_BIAS,
    STATES,
    VELOCITY,
    advance,
    frame_step,
    inertial_noise,
    transition,
)
from tnav.records import (
    AltimeterReading,
    AltimeterSpec,
    InertialIncrements,
    Innovation,
    RangePrediction,
    Sensor,
    StarTrackerReading,
)
from tnav.terrain.heightfield import Terrain
from tnav.terrain.raycast import cast

SENSORS = tuple(Sensor)  # FilterState.rejected_run's columns
_ALTIMETER = SENSORS.index(Sensor.ALTIMETER)

# A measurement must be of the state's epoch: 1 ms is 0.15 m at 150 m/s, below every noise here.
_EPOCH_TOLERANCE_S = 1e-3


@dataclass(frozen=True, slots=True)
class FilterConfig:
    """What the filter believes of its sensors. Standard deviations are 1 sigma per axis."""

    # Navigation-grade inertial unit: 50 ug/sqrt(Hz), 100 ug, 0.01 deg/sqrt(h), 0.1 deg/h.
    accelerometer_random_walk_m_s_sqrts: float = 4.9e-4
    accelerometer_bias_sigma_m_s2: float = 9.8e-4
    gyro_random_walk_rad_sqrts: float = 2.9e-6
    gyro_bias_sigma_rad_s: float = 4.85e-7
    # Ten descents long: a turn-on bias that hardly moves, yet stays observable.
    accelerometer_bias_time_s: float = 1000.0
    gyro_bias_time_s: float = 1000.0
    # The map's vertical noise and its correlation along the ground (LOLA-like: 3 m, 300 m).
    range_bias_sigma_m: float = 3.0
    range_bias_correlation_m: float = 300.0
    # Relief under the map's resolution, new with every footprint: white in the range.
    relief_sigma_m: float = 1.0
    # On a more grazing beam the tangent plane says nothing of the footprint.
    altimeter_incidence_max_deg: float = 60.0
    # One healthy measurement in ten thousand is rejected: one altimeter reading in ten descents.
    gate_probability: float = 0.9999
    # Rejections in a row before one is taken. Altimeter: 5 s at 10 Hz, longer than the interval of
    # fixes, so that vision speaks first. Vision: the fourth fix in a row that is off; two are
    # enough for a monitor, so it has one interval to act on its verdict.
    altimeter_gate_patience: int = 50
    vision_gate_patience: int = 3
    star_tracker_gate_patience: int = 10

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if not getattr(self, name) > 0:
                raise ConfigError(f"filter.{name}: {getattr(self, name)}, expected > 0")
        if not self.gate_probability < 1:
            raise ConfigError(f"filter.gate_probability: {self.gate_probability}, expected below 1")


@dataclass(frozen=True, slots=True)
class FilterState:
    """Estimate and covariance of ``b`` descents at one epoch."""

    t_s: float
    position_L: Float64[Tensor, "b 3"]
    velocity_L: Float64[Tensor, "b 3"]
    R_L_B: Float64[Tensor, "b 3 3"]
    gyro_bias_B: Float64[Tensor, "b 3"]  # rad/s
    accelerometer_bias_B: Float64[Tensor, "b 3"]  # m/s^2
    range_bias_m: Float64[Tensor, " b"]  # reading minus range to the map
    covariance: Float64[Tensor, "b 16 16"]
    rejected_run: Float64[Tensor, "b 3"]  # rejections in a row, columns as SENSORS


def initial_state(
    t_s: float,
    position_L: Float64[Tensor, "b 3"],
    velocity_L: Float64[Tensor, "b 3"],
    R_L_B: Float64[Tensor, "b 3 3"],
    *,
    position_sigma_m: float,
    velocity_sigma_m_s: float,
    attitude_sigma_rad: float,
    config: FilterConfig,
) -> FilterState:
    """State at the start of a descent: isotropic sigmas, zero biases at their prior spread."""
    sigma = torch.zeros(STATES, dtype=torch.float64)
    sigma[POSITION] = position_sigma_m
    sigma[VELOCITY] = velocity_sigma_m_s
    sigma[ATTITUDE] = attitude_sigma_rad
    sigma[GYRO_BIAS] = config.gyro_bias_sigma_rad_s
    sigma[ACCELEROMETER_BIAS] = config.accelerometer_bias_sigma_m_s2
    sigma[RANGE_BIAS] = config.range_bias_sigma_m
    if not bool((sigma > 0).all()):  # a host tensor
        raise ConfigError("initial_state: every sigma must be > 0")
    batch, device = position_L.shape[0], position_L.device
    covariance = torch.diag(sigma.square()).to(device).expand(batch, STATES, STATES).contiguous()
    return FilterState(
        t_s=t_s,
        position_L=position_L,
        velocity_L=velocity_L,
        R_L_B=R_L_B,
        gyro_bias_B=torch.zeros_like(position_L),
        accelerometer_bias_B=torch.zeros_like(position_L),
        range_bias_m=torch.zeros_like(position_L[:, 0]),
        covariance=covariance,
        rejected_run=torch.zeros(batch, len(SENSORS), dtype=torch.float64, device=device),
    )


def propagate(
    state: FilterState, increments: InertialIncrements, frame: LocalFrame, config: FilterConfig
) -> FilterState:
    """Carries the state over one step of the inertial unit.

    The range bias forgets itself over ground distance, ``exp(-s / correlation)``: a first-order
    Gauss-Markov process, rougher than a map's smooth error and so never the more confident.

    Raises:
        ConfigError: the step does not begin where the state ends.
    """
    dt_s = increments.dt_s
    _check_epoch("inertial increments", increments.t_s - dt_s, state)
    device = state.position_L.device
    taus = (config.gyro_bias_time_s, config.accelerometer_bias_time_s)
    key_dt_s = round(dt_s, 9)  # so that rounding in a clock does not defeat the caches
    step = frame_step(frame, key_dt_s, *taus, device)
    moved = advance(
        state.position_L,
        state.velocity_L,
        state.R_L_B,
        increments.delta_v_B - dt_s * state.accelerometer_bias_B,
        increments.delta_theta_B - dt_s * state.gyro_bias_B,
        dt_s,
        step,
    )
    ground_m = (moved.position_L - state.position_L)[:, :2].norm(dim=-1)
    decay = torch.exp(ground_m / -config.range_bias_correlation_m)
    phi = transition(moved, decay, dt_s, step)
    covariance = phi @ state.covariance @ phi.mT + _noise(key_dt_s, config, device)
    covariance[:, RANGE_BIAS, RANGE_BIAS] += config.range_bias_sigma_m**2 * (1 - decay.square())
    return replace(
        state,
        t_s=increments.t_s,
        position_L=moved.position_L,
        velocity_L=moved.velocity_L,
        R_L_B=moved.R_L_B,
        gyro_bias_B=state.gyro_bias_B * (1 - dt_s / taus[0]),
        accelerometer_bias_B=state.accelerometer_bias_B * (1 - dt_s / taus[1]),
        range_bias_m=state.range_bias_m * decay,
        covariance=0.5 * (covariance + covariance.mT),
    )


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
    identity = torch.eye(STATES, dtype=residual.dtype, device=device)
    H = identity[ATTITUDE].expand(batch, 3, STATES)
    noise = reading.sigma_rad**2 * identity[:3, :3].expand(batch, 3, 3)
    present = torch.ones(batch, dtype=torch.bool, device=device)
    widening = residual[:, None, :] @ H
    return _fuse(state, Sensor.STAR_TRACKER, residual, H, noise, present, widening.mT, config)


def update_vision(
    state: FilterState,
    fix_position_L: Float64[Tensor, "b 3"],
    fix_R_L_C: Float64[Tensor, "b 3 3"],
    fix_covariance: Float64[Tensor, "b 6 6"],
    available: Bool[Tensor, " b"],
    R_B_C: Float64[Tensor, "3 3"],
    t_s: float,
    config: FilterConfig,
) -> tuple[FilterState, Innovation]:
    """Fuses a pose fix with its full covariance of ``(dp_L, dtheta_L)`` (m, rad).

    The camera's centre is the body's origin. The fix was solved with that epoch's star tracker
    reading, so its attitude is not independent of it: fuse one or the other.

    Args:
        available: where there is a fix; elsewhere the values may be anything.
        R_B_C: camera axes in B, as columns.
    """
    _check_epoch("vision fix", t_s, state)
    device = fix_position_L.device
    expected_R_L_C = state.R_L_B @ R_B_C.to(device)
    measured_R_L_C = torch.where(available[:, None, None], fix_R_L_C, expected_R_L_C)
    turned = so3_log(measured_R_L_C @ expected_R_L_C.mT)
    residual = torch.cat([fix_position_L - state.position_L, turned], -1)
    identity = torch.eye(STATES, dtype=residual.dtype, device=device)
    H = torch.cat([identity[POSITION], identity[ATTITUDE]]).expand(len(residual), 6, STATES)
    residual = torch.where(available[:, None], residual, torch.zeros_like(residual))
    widening = residual[:, None, :] @ H
    return _fuse(state, Sensor.VISION, residual, H, fix_covariance, available, widening.mT, config)


def predict_range(
    state: FilterState, terrain_map: Terrain, spec: AltimeterSpec, config: FilterConfig
) -> tuple[RangePrediction, Float64[Tensor, "b 1 16"]]:
    """Range that the altimeter should read: to the map along the boresight, plus the range bias.

    Returns:
        The prediction (NaN where the beam misses the map) and its Jacobian H.
    """
    direction_L = state.R_L_B @ _boresight(spec, state.position_L.device)
    hits = cast(terrain_map, state.position_L, direction_L)
    return range_prediction(state, direction_L, hits.range_m, hits.normal_L, hits.hit, config)


def range_prediction(
    state: FilterState,
    direction_L: Float64[Tensor, "b 3"],
    map_range_m: Float64[Tensor, " b"],
    normal_L: Float64[Tensor, "b 3"],
    hit: Bool[Tensor, " b"],
    config: FilterConfig,
) -> tuple[RangePrediction, Float64[Tensor, "b 1 16"]]:
    """The prediction from where a beam along ``direction_L`` meets the map, and its Jacobian."""
    H, incidence_rad = range_jacobian(direction_L, normal_L, map_range_m, hit)
    variance = (H @ state.covariance @ H.mT).flatten() + config.relief_sigma_m**2
    undefined = torch.full_like(map_range_m, torch.nan)
    prediction = RangePrediction(
        t_s=state.t_s,
        range_m=torch.where(hit, map_range_m + state.range_bias_m, undefined),
        sigma_m=torch.where(hit, variance.sqrt(), undefined),
        incidence_rad=torch.where(hit, incidence_rad, undefined),
        defined=hit,
    )
    return prediction, H


def update_altimeter(
    state: FilterState,
    reading: AltimeterReading,
    prediction: RangePrediction,
    H: Float64[Tensor, "b 1 16"],
    spec: AltimeterSpec,
    config: FilterConfig,
) -> tuple[FilterState, Innovation]:
    """Fuses a range against the prediction that was made from this very state.

    A reading counts as present where it is valid, the map predicts a range, and the beam is not
    too grazing for the tangent plane to mean something.
    """
    _check_epoch("altimeter", reading.t_s, state)
    steep = torch.rad2deg(prediction.incidence_rad) > config.altimeter_incidence_max_deg
    present = reading.valid & prediction.defined & ~steep
    residual = torch.where(present, reading.range_m - prediction.range_m, 0.0)[:, None]
    noise = spec.noise_sigma_m(prediction.range_m).square() + config.relief_sigma_m**2
    # Half of the discrepancy to altitude (along dr/dp), half to the range bias.
    by_position = H[:, 0, POSITION]
    along = by_position / by_position.square().sum(-1, keepdim=True).clamp_min(1e-12)
    share = residual * 0.5**0.5
    widening = torch.zeros(len(residual), STATES, 2, dtype=residual.dtype, device=residual.device)
    widening[:, POSITION, 0] = share * along
    widening[:, RANGE_BIAS, 1] = share[:, 0]
    noise = noise[:, None, None]
    return _fuse(state, Sensor.ALTIMETER, residual, H, noise, present, widening, config)


def _fuse(
    state: FilterState,
    sensor: Sensor,
    residual: Float64[Tensor, "b m"],
    H: Float64[Tensor, "b m 16"],
    noise: Float64[Tensor, "b m m"],
    present: Bool[Tensor, " b"],
    widening: Float64[Tensor, "b 16 k"],
    config: FilterConfig,
) -> tuple[FilterState, Innovation]:
    """Gated Joseph update. ``widening`` W adds W W^T to the covariance where patience is out."""
    m, column = residual.shape[-1], SENSORS.index(sensor)
    patience = {
        Sensor.STAR_TRACKER: config.star_tracker_gate_patience,
        Sensor.VISION: config.vision_gate_patience,
        Sensor.ALTIMETER: config.altimeter_gate_patience,
    }[sensor]
    eye = torch.eye(STATES, dtype=residual.dtype, device=residual.device)
    there = present[:, None, None]
    residual = torch.where(present[:, None], residual, 0.0)[..., None]
    noise = torch.where(there, noise, eye[:m, :m])
    P = state.covariance
    PHt = P @ H.mT
    S = H @ PHt + noise
    nis = (residual * torch.cholesky_solve(residual, torch.linalg.cholesky_ex(S).L)).flatten(1)
    nis = nis.sum(-1)
    passes = torch.special.gammaincc(torch.full_like(nis, m / 2), nis / 2) >= (
        1 - config.gate_probability
    )
    run = state.rejected_run[:, column]
    forced = present & ~passes & (run >= patience) & nis.isfinite()
    fused = (present & passes) | forced

    W = torch.where(forced[:, None, None], widening, 0.0)
    HW = H @ W
    P, PHt, S_wide = P + W @ W.mT, PHt + W @ HW.mT, S + HW @ HW.mT
    gain = torch.cholesky_solve(PHt.mT, torch.linalg.cholesky_ex(S_wide).L).mT
    gain = torch.where(fused[:, None, None], gain, 0.0)
    keep = eye - gain @ H
    P = keep @ P @ keep.mT + gain @ noise @ gain.mT
    runs = state.rejected_run.clone()
    runs[:, column] = torch.where(present, torch.where(fused, 0.0, run + 1), run)
    if sensor is Sensor.VISION:
        doubted = runs[:, _ALTIMETER]
        runs[:, _ALTIMETER] = torch.where(present & passes, 0.0, doubted)
    corrected = _correct(state, (gain @ residual).squeeze(-1), 0.5 * (P + P.mT), runs)
    innovation = Innovation(
        t_s=state.t_s,
        sensor=sensor,
        value=torch.where(present[:, None], residual.squeeze(-1), torch.nan),
        covariance=torch.where(there, S, torch.nan),
        nis=torch.where(present, nis, torch.nan),
        present=present,
        fused=fused,
    )
    return corrected, innovation


def _correct(
    state: FilterState,
    error: Float64[Tensor, "b 16"],
    covariance: Float64[Tensor, "b 16 16"],
    rejected_run: Float64[Tensor, "b 3"],
) -> FilterState:
    """Moves the estimated error into the estimate."""
    return FilterState(
        t_s=state.t_s,
        position_L=state.position_L + error[:, POSITION],
        velocity_L=state.velocity_L + error[:, VELOCITY],
        R_L_B=so3_exp(error[:, ATTITUDE]) @ state.R_L_B,
        gyro_bias_B=state.gyro_bias_B + error[:, GYRO_BIAS],
        accelerometer_bias_B=state.accelerometer_bias_B + error[:, ACCELEROMETER_BIAS],
        range_bias_m=state.range_bias_m + error[:, RANGE_BIAS],
        covariance=covariance,
        rejected_run=rejected_run,
    )


def _check_epoch(name: str, t_s: float, state: FilterState) -> None:
    if not abs(t_s - state.t_s) <= _EPOCH_TOLERANCE_S:
        raise ConfigError(
            f"{name} at t = {t_s:.6f} s against a state at {state.t_s:.6f} s: propagate first"
        )


@lru_cache(maxsize=64)
def _noise(dt_s: float, config: FilterConfig, device: torch.device) -> Float64[Tensor, "16 16"]:
    return inertial_noise(
        dt_s,
        config.accelerometer_random_walk_m_s_sqrts,
        config.gyro_random_walk_rad_sqrts,
        config.accelerometer_bias_sigma_m_s2,
        config.accelerometer_bias_time_s,
        config.gyro_bias_sigma_rad_s,
        config.gyro_bias_time_s,
    ).to(device)


@lru_cache(maxsize=8)
def _boresight(spec: AltimeterSpec, device: torch.device) -> Float64[Tensor, "3"]:
    return torch.tensor(spec.boresight_B, dtype=torch.float64).to(device)
