"""Descents of a point mass with a drawn map error: enough truth to test filter and monitor by.

No terrain and no images. The map is the plane z = 0 of L; the ground differs from it by a field
drawn once per descent. Truth is in closed form; inertial increments are its integrals by Simpson's
rule, so that they owe nothing to the filter's mechanisation. All descents of a batch fly one path
and differ in every error. Fixes have a stated 6 x 6 covariance.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from tnav.geometry.moon import LocalFrame, gravity_L
from tnav.geometry.pose import skew, so3_exp, so3_log
from tnav.navigate.filter import (
    FilterConfig,
    FilterState,
    initial_state,
    propagate,
    range_prediction,
    update_altimeter,
    update_star_tracker,
    update_vision,
)
from tnav.records import (
    AltimeterReading,
    AltimeterSpec,
    InertialIncrements,
    Innovation,
    RangePrediction,
    StarTrackerReading,
)

F64 = torch.float64
FRAME = LocalFrame(60.5, -4.6)
DT_S = 0.05
KNEE_S, END_S = 84.5, 97.5  # 10 km at 150 m/s, 1.0 m/s^2 to 893 m at 66 m/s, then 1.85 m/s^2
EARLY, LATE = 1.0, 1.85
ACROSS = -0.6  # horizontal deceleration along x
POSITION_SIGMA_M, VELOCITY_SIGMA_M_S, ATTITUDE_SIGMA_RAD = 100.0, 0.5, 3e-4
STAR_SIGMA_RAD = 1.7e-4
SPEC = AltimeterSpec(
    boresight_B=(0.0, 0.0, -1.0),
    range_max_m=3000.0,
    detection_probability=0.99,
    incidence_max_deg=30.0,
    noise_floor_m=0.3,
    noise_fraction=0.001,
    rate_hz=10.0,
)
R_B_C = so3_exp(torch.tensor([math.pi, 0.0, 0.0], dtype=F64))  # looks along -z of the body


@dataclass(frozen=True)
class Instant:
    """Truth at a time."""

    position_L: Tensor
    velocity_L: Tensor
    acceleration_L: Tensor
    R_L_B: Tensor


@cache
def truth(t_s: float, late_side: bool = True) -> Instant:
    """Truth at a time; at the knee itself, on the stated side."""
    early_s = min(t_s, KNEE_S)
    late_s = max(t_s - KNEE_S, 0.0)
    knee_speed = -150.0 + EARLY * early_s
    z = 10_000.0 - 150.0 * early_s + EARLY * early_s**2 / 2
    z += knee_speed * late_s + LATE * late_s**2 / 2
    late = t_s > KNEE_S or (t_s == KNEE_S and late_side)
    x0, vx0 = -3000.0, 60.0
    position = [x0 + vx0 * t_s + ACROSS * t_s**2 / 2, 200.0, z]
    velocity = [vx0 + ACROSS * t_s, 0.0, knee_speed + LATE * late_s]
    acceleration = [ACROSS, 0.0, LATE if late else EARLY]
    tilt = -math.radians(18.0) * (1 - t_s / 110.0)
    turn = torch.tensor([0.05 * math.sin(t_s / 7), tilt, 0.3 + 0.002 * t_s], dtype=F64)
    as_f64 = [torch.tensor(v, dtype=F64) for v in (position, velocity, acceleration)]
    return Instant(as_f64[0], as_f64[1], as_f64[2], so3_exp(turn))


def specific_force_B(now: Instant) -> Tensor:
    """What an ideal accelerometer triad feels."""
    spin = FRAME.spin_L()
    inertial = now.acceleration_L + 2 * torch.linalg.cross(spin, now.velocity_L)
    offset = now.position_L - FRAME.centre_L
    inertial = inertial + torch.linalg.cross(spin, torch.linalg.cross(spin, offset))
    return now.R_L_B.T @ (inertial - gravity_L(now.position_L))


@cache
def ideal_increments(k: int) -> tuple[Tensor, Tensor]:
    """Velocity and angle that an ideal unit sums over step ``k``, ending at ``(k + 1) DT_S``."""
    start_s, end_s = k * DT_S, (k + 1) * DT_S
    a, b, c = truth(start_s), truth(start_s + DT_S / 2), truth(end_s, late_side=False)
    delta_v = DT_S / 6 * (specific_force_B(a) + 4 * specific_force_B(b) + specific_force_B(c))
    delta_theta = so3_log(a.R_L_B.T @ so3_exp(FRAME.spin_L() * DT_S) @ c.R_L_B)
    return delta_v, delta_theta


@dataclass(frozen=True)
class Fault:
    """What goes wrong: functions of time (and of true range)."""

    altimeter_detects: Callable[[float, float], bool] = lambda t_s, range_m: range_m < 3100.0
    altimeter_bias_m: Callable[[float], float] = lambda t_s: 0.0
    altimeter_noise: Callable[[float], float] = lambda t_s: 1.0
    vision_bias_L: Callable[[float], tuple[float, float, float]] = lambda t_s: (0.0, 0.0, 0.0)
    vision_sees: Callable[[float], bool] = lambda t_s: True
    kick_L: Callable[[float], tuple[float, float, float]] = lambda t_s: (0.0, 0.0, 0.0)  # unsensed


HEALTHY = Fault()


@dataclass(frozen=True)
class Epoch:
    """What the monitor gets at an altimeter epoch, for the whole batch."""

    t_s: float
    prediction: RangePrediction
    reading: AltimeterReading
    altimeter: Innovation
    vision: Innovation | None


@dataclass(frozen=True)
class Flight:
    """A batch of descents: epochs, and the filter's error at each fix and at the end."""

    epochs: list[Epoch]
    checks: list[tuple[FilterState, Tensor]]  # state, error "b 16" (true minus estimate)
    stars: list[Innovation]


class Draw:
    """All random numbers of a batch, from one seed."""

    def __init__(self, batch: int, seed: int, device: str = "cpu") -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self.batch, self.device = batch, device

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(self.batch, *shape, generator=self._generator, dtype=F64).to(self.device)

    def uniform(self) -> Tensor:
        return torch.rand(self.batch, generator=self._generator, dtype=F64).to(self.device)


def fix_covariance(height_m: float) -> Tensor:
    """Covariance of a fix: metres that grow with height, attitude coupled to position."""
    lean = torch.eye(6, dtype=F64)
    lean[:3, 3:] = -skew(torch.tensor([0.0, 0.0, height_m], dtype=F64))
    spread = torch.tensor([1 + 3e-4 * height_m] * 2 + [1 + 6e-4 * height_m], dtype=F64)
    sigma = torch.cat([spread, torch.full((3,), 1e-4, dtype=F64)])
    return lean @ torch.diag(sigma.square()) @ lean.T


def fly(
    batch: int,
    seed: int,
    fault: Fault = HEALTHY,
    config: FilterConfig | None = None,
    smooth_map: bool = True,
    fix_every_s: float = 4.0,
    start_s: float = 0.0,
    end_s: float = END_S,
    device: str = "cpu",
) -> Flight:
    """Flies a batch.

    Args:
        smooth_map: a squared-exponential field (what maps do); otherwise the first-order
            Gauss-Markov process that the filter assumes, to which it must be consistent.
    """
    config = config or FilterConfig()
    draw = Draw(batch, seed, device)
    gyro_bias = config.gyro_bias_sigma_rad_s * draw.normal(3)
    accelerometer_bias = config.accelerometer_bias_sigma_m_s2 * draw.normal(3)
    features, phases = draw.normal(64), 2 * math.pi * draw.uniform()
    phases = phases[:, None] + draw.normal(64) * 100
    markov = config.range_bias_sigma_m * draw.normal()
    here = truth(start_s)
    state = initial_state(
        start_s,
        here.position_L.to(device) + POSITION_SIGMA_M * draw.normal(3),
        here.velocity_L.to(device) + VELOCITY_SIGMA_M_S * draw.normal(3),
        so3_exp(ATTITUDE_SIGMA_RAD * draw.normal(3)) @ here.R_L_B.to(device),
        position_sigma_m=POSITION_SIGMA_M,
        velocity_sigma_m_s=VELOCITY_SIGMA_M_S,
        attitude_sigma_rad=ATTITUDE_SIGMA_RAD,
        config=config,
    )
    taus = (config.gyro_bias_time_s, config.accelerometer_bias_time_s)
    epochs: list[Epoch] = []
    checks: list[tuple[FilterState, Tensor]] = []
    stars: list[Innovation] = []
    kick = torch.zeros(3, dtype=F64)
    for k in range(round(start_s / DT_S), round(end_s / DT_S)):
        t_s, previous = (k + 1) * DT_S, here
        here = truth(t_s)
        delta_v, delta_theta = (x.to(device) for x in ideal_increments(k))
        root = math.sqrt(DT_S)
        increments = InertialIncrements(
            t_s=t_s,
            dt_s=DT_S,
            delta_v_B=delta_v
            + DT_S * accelerometer_bias
            + config.accelerometer_random_walk_m_s_sqrts * root * draw.normal(3),
            delta_theta_B=delta_theta
            + DT_S * gyro_bias
            + config.gyro_random_walk_rad_sqrts * root * draw.normal(3),
        )
        state = propagate(state, increments, FRAME, config)
        step_L = torch.tensor(fault.kick_L(t_s), dtype=F64)
        kick = kick + step_L
        position_L = (here.position_L + kick).to(device)
        gyro_bias = _markov(gyro_bias, DT_S / taus[0], config.gyro_bias_sigma_rad_s, draw.normal(3))
        accelerometer_bias = _markov(
            accelerometer_bias, DT_S / taus[1], config.accelerometer_bias_sigma_m_s2, draw.normal(3)
        )
        ground_m = float((here.position_L - previous.position_L)[:2].norm())
        markov = _markov(
            markov,
            ground_m / config.range_bias_correlation_m,
            config.range_bias_sigma_m,
            draw.normal(),
        )

        vision: Innovation | None = None
        fix = (k + 1) % round(fix_every_s / DT_S) == 0
        if fix:
            state, vision = _fix(state, here, position_L, t_s, fault, draw, config)
        elif (k + 1) % 20 == 0:
            reading = StarTrackerReading(
                t_s,
                so3_exp(STAR_SIGMA_RAD * draw.normal(3)) @ here.R_L_B.to(device),
                STAR_SIGMA_RAD,
            )
            state, star = update_star_tracker(state, reading, config)
            stars.append(star)
        field = markov
        if smooth_map:
            beam_x = here.position_L[0] + here.position_L[2] * here.R_L_B[0, 2]
            wave = torch.cos(features * (float(beam_x) / config.range_bias_correlation_m) + phases)
            field = config.range_bias_sigma_m * math.sqrt(2 / 64) * wave.sum(-1)
        if (k + 1) % 2 == 0:
            height_m = float(here.position_L[2] + kick[2])
            state, epoch = _range(
                state, here, height_m, t_s, fault, draw, config, field, smooth_map
            )
            epochs.append(replace(epoch, vision=vision))
        if fix:
            error = torch.cat(
                [
                    position_L - state.position_L,
                    here.velocity_L.to(device) - state.velocity_L,
                    so3_log(here.R_L_B.to(device) @ state.R_L_B.mT),
                    gyro_bias - state.gyro_bias_B,
                    accelerometer_bias - state.accelerometer_bias_B,
                    (field - state.range_bias_m)[:, None],
                ],
                -1,
            )
            checks.append((state, error))
    return Flight(epochs, checks, stars)


def _markov(value: Tensor, lags: float, sigma: float, white: Tensor) -> Tensor:
    decay = math.exp(-lags)
    return value * decay + sigma * math.sqrt(-math.expm1(-2 * lags)) * white


def _fix(
    state: FilterState,
    here: Instant,
    position_L: Tensor,
    t_s: float,
    fault: Fault,
    draw: Draw,
    config: FilterConfig,
) -> tuple[FilterState, Innovation]:
    covariance = fix_covariance(float(here.position_L[2]))
    root = torch.linalg.cholesky(covariance).to(draw.device)
    error = (root @ draw.normal(6)[..., None]).squeeze(-1)
    bias = torch.tensor(fault.vision_bias_L(t_s), dtype=F64).to(draw.device)
    available = torch.full((draw.batch,), fault.vision_sees(t_s)).to(draw.device)
    return update_vision(
        state,
        position_L + error[:, :3] + bias,
        so3_exp(error[:, 3:]) @ (here.R_L_B @ R_B_C).to(draw.device),
        covariance.to(draw.device).expand(draw.batch, 6, 6),
        available,
        R_B_C.to(draw.device),
        t_s,
        config,
    )


def plane_prediction(
    state: FilterState, config: FilterConfig, spec: AltimeterSpec = SPEC
) -> tuple[RangePrediction, Tensor]:
    """Prediction over the map z = 0, in closed form."""
    direction = state.R_L_B @ torch.tensor(spec.boresight_B, dtype=F64).to(state.R_L_B.device)
    range_m = -state.position_L[:, 2] / direction[:, 2]
    normal = torch.zeros_like(direction)
    normal[:, 2] = 1.0
    return range_prediction(state, direction, range_m, normal, range_m > 0, config)


def _range(
    state: FilterState,
    here: Instant,
    height_m: float,
    t_s: float,
    fault: Fault,
    draw: Draw,
    config: FilterConfig,
    field: Tensor,
    smooth_map: bool,
) -> tuple[FilterState, Epoch]:
    cosine = float(here.R_L_B[2, 2])
    range_m = height_m / cosine
    sigma = math.hypot(SPEC.noise_floor_m, SPEC.noise_fraction * range_m) * fault.altimeter_noise(
        t_s
    )
    # A map above the ground makes the range longer than predicted, by more on a slanted beam.
    noisy = range_m + (field / cosine if smooth_map else field) + sigma * draw.normal()
    noisy = noisy + config.relief_sigma_m * draw.normal() + fault.altimeter_bias_m(t_s)
    promised = fault.altimeter_detects(t_s, range_m)
    valid = (draw.uniform() < SPEC.detection_probability) & promised
    reading = AltimeterReading(t_s, torch.where(valid, noisy, torch.nan), valid)
    prediction, H = plane_prediction(state, config)
    state, innovation = update_altimeter(state, reading, prediction, H, SPEC, config)
    return state, Epoch(t_s, prediction, reading, innovation, None)


def lane(epoch: Epoch, i: int) -> Epoch:
    """One descent of an epoch, as a batch of one."""
    return Epoch(
        epoch.t_s,
        RangePrediction(
            epoch.t_s,
            *(
                getattr(epoch.prediction, name)[i : i + 1]
                for name in ("range_m", "sigma_m", "incidence_rad", "defined")
            ),
        ),
        AltimeterReading(
            epoch.t_s, epoch.reading.range_m[i : i + 1], epoch.reading.valid[i : i + 1]
        ),
        _lane(epoch.altimeter, i),
        _lane(epoch.vision, i) if epoch.vision is not None else None,
    )


def _lane(innovation: Innovation, i: int) -> Innovation:
    names = ("value", "covariance", "nis", "present", "fused")
    return Innovation(
        innovation.t_s,
        innovation.sensor,
        *(getattr(innovation, name)[i : i + 1] for name in names),
    )
