"""Descents of a point mass with a drawn map error: enough truth to test filter and monitor by.

No terrain and no images. The map is the plane z = 0 of L; it differs from the ground by a shift and
a field drawn once per descent. Truth is in closed form; inertial increments are its integrals by
Simpson's rule, so that they owe nothing to the filter's mechanisation. All descents of a batch fly
one path and differ in every error. Fixes have a stated 6 x 6 covariance, the map's share apart.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from tnav.geometry.moon import LocalFrame, gravity_L
from tnav.geometry.pose import skew, so3_exp, so3_log
from tnav.navigate.altimetry import beam_from_L, range_prediction, view_of
from tnav.navigate.filter import (
    propagate,
    update_altimeter,
    update_ground,
    update_star_tracker,
    update_vision,
)
from tnav.navigate.map_error import (
    Way,
    carried,
    extrapolated_m2,
    mean_kept,
    mean_share,
    places_m,
    rescaled,
    root_of,
    side_kept,
    travel,
    travelled,
)
from tnav.navigate.state import FilterConfig, FilterState, clone, initial_state
from tnav.records import (
    AltimeterReading,
    AltimeterSpec,
    InertialIncrements,
    Innovation,
    RangePrediction,
    StarTrackerReading,
    VisionFix,
)

F64 = torch.float64
FRAME = LocalFrame(60.5, -4.6)
DT_S = 0.05
KNEE_S, END_S = 84.5, 97.5  # 10 km at 150 m/s, 1.0 m/s^2 to 893 m at 66 m/s, then 1.85 m/s^2
EARLY, LATE = 1.0, 1.85
ACROSS = -0.6  # horizontal deceleration along x
POSITION_SIGMA_M, VELOCITY_SIGMA_M_S, ATTITUDE_SIGMA_RAD = 100.0, 0.5, 3e-4
STAR_SIGMA_RAD = 1.7e-4
# What one image alone knows of the map's error under the lander, less its mean: 0.6 m at 2.2 km and
# so much better coming down that each image is heard, even after one of 5 s before.
GROUND_SIGMA_M, GROUND_FROM_M, GROUND_POWER = 0.6, 2200.0, 3.0
FOOTPRINT = 2 * math.tan(math.radians(22.5))  # side of the ground in view over height: 45 deg
WAVES = 64  # cosines of a smooth map error
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
    return now.R_L_B.T @ (inertial - gravity_L(now.position_L, FRAME))


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
    checks: list[tuple[FilterState, Tensor]]  # state, error "b 26" (true minus estimate)
    stars: list[Innovation]
    grounds: list[Innovation]


class Draw:
    """All random numbers of a batch, from one seed."""

    def __init__(self, batch: int, seed: int, device: str = "cpu") -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self.batch, self.seed, self.device = batch, seed, device

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(self.batch, *shape, generator=self._generator, dtype=F64).to(self.device)

    def uniform(self) -> Tensor:
        return torch.rand(self.batch, generator=self._generator, dtype=F64).to(self.device)


def fix_covariance(height_m: float) -> Tensor:
    """Covariance of a fix on its map: metres grow with height, attitude couples to position."""
    lean = torch.eye(6, dtype=F64)
    lean[:3, 3:] = -skew(torch.tensor([0.0, 0.0, height_m], dtype=F64))
    spread = torch.tensor([1 + 3e-4 * height_m] * 2 + [1 + 6e-4 * height_m], dtype=F64)
    sigma = torch.cat([spread, torch.full((3,), 1e-4, dtype=F64)])
    return lean @ torch.diag(sigma.square()) @ lean.T


def map_covariance(height_m: float, config: FilterConfig) -> Tensor:
    """What the map's error adds to a fix: to its height, and a little to where it is.

    A mean with a Gaussian weight of standard deviation w per axis has of a field
    ``s^2 exp(-d^2 / (2 l^2))`` the variance ``s^2 / (1 + 2 w^2 / l^2)``; w as of the square seen.
    """
    patches = 2 * (FOOTPRINT * height_m / math.sqrt(12) / config.map_correlation_m) ** 2
    share = config.map_sigma_m**2 / (1 + patches)
    return torch.diag(share * torch.tensor([0.05, 0.05, 1.0, 0.0, 0.0, 0.0], dtype=F64))


class MapTruth:
    """What a map gets wrong, and the filter's notion of it, which moves along."""

    def __init__(self, draw: Draw, config: FilterConfig, smooth: bool) -> None:
        self._draw, self._config, self._smooth = draw, config, smooth
        self._features = draw.normal(WAVES, 2) / config.map_correlation_m
        self._phases = 2 * math.pi * draw.uniform()[:, None] + draw.normal(WAVES) * 100
        self.shift_m = config.map_shift_sigma_m * draw.normal(2)
        self.local_m = config.map_sigma_m * draw.normal()
        self.beam_m, self.mean_m = self.local_m, torch.zeros_like(self.local_m)
        self.side_m = torch.zeros_like(self.shift_m)
        self._beside = Draw(draw.batch, draw.seed + 7000, draw.device)  # its own source

    def travel(self, state: FilterState, here: Instant) -> FilterState:
        """Over the ground since the last time; a first-order error takes the filter's own step."""
        config = self._config
        agl_m = state.position_L[:, 2].clamp_min(0.0)
        view = view_of(state, agl_m, FOOTPRINT * agl_m, SPEC)
        if self._smooth:
            self._look(here)
        else:
            after_m = places_m(state.position_L, view.beam_m)
            way = Way(state.map_places_m, after_m, state.clone_position_L[:, :2])
            scales = config.map_sigma_m, config.map_correlation_m
            self._step(*travelled(way, view.footprint_m, state.map_mean_variance_m2, *scales))
            slow = mean_kept(way.nadir_m(), view.footprint_m, config.map_correlation_m)
            self._sideways(state, state.map_side_variance_m2, slow)
        return travel(state, view, config)

    def rescale(self, state: FilterState, share_m2: Tensor, side_m2: Tensor) -> None:
        """To a fix's footprint; the filter does it by itself when it takes the fix."""
        self._sideways(state, side_m2, side_kept(state.map_side_variance_m2, side_m2))
        if not self._smooth:
            sigma_m = self._config.map_sigma_m
            lengths_m = self._config.fix_floor_sigma_m, self._config.map_correlation_m
            after_m2 = mean_share(share_m2, sigma_m)
            apart_m = (state.map_places_m[:, 1] - state.map_places_m[:, 0]).norm(dim=-1)
            apart = apart_m / self._config.map_correlation_m
            own_m2 = extrapolated_m2(state.map_footprint_m, *lengths_m)
            before_m2 = state.map_mean_variance_m2
            self._step(*rescaled(before_m2, after_m2, sigma_m, apart, own_m2))

    def _look(self, here: Instant) -> None:
        """The field under the lander and where the beam meets the map, and the mean around."""
        height_m = float(here.position_L[2])
        tilt = here.R_L_B[:2, 2] / here.R_L_B[2, 2]
        nadir_m = here.position_L[:2]
        wave, beam = (
            torch.cos(self._features @ at.to(self._draw.device) + self._phases)
            for at in (nadir_m, nadir_m - height_m * tilt)
        )
        blur_m = FOOTPRINT * height_m / math.sqrt(12)
        seen = torch.exp(-0.5 * blur_m**2 * self._features.square().sum(-1))
        scale = self._config.map_sigma_m * math.sqrt(2 / WAVES)
        self.local_m, self.mean_m = scale * wave.sum(-1), scale * (wave * seen).sum(-1)
        self.beam_m = scale * beam.sum(-1)

    def _sideways(self, state: FilterState, after_m2: Tensor, correlation: Tensor) -> None:
        factor, news_m2 = carried(state.map_side_variance_m2, after_m2, correlation)
        news_m = news_m2.clamp_min(0.0).sqrt()[:, None] * self._beside.normal(2)
        self.side_m = factor[:, None] * self.side_m + news_m

    def _step(self, F: Tensor, Q: Tensor) -> None:
        """``x' = F x + w``, w drawn by Q's root, which may be singular."""
        x = torch.stack([self.mean_m, self.local_m, self.beam_m], -1)[..., None]
        x = (F @ x + root_of(Q) @ self._draw.normal(3)[..., None]).squeeze(-1)
        self.mean_m, self.local_m, self.beam_m = x.unbind(-1)


@dataclass(frozen=True)
class Pilot:
    """What every step of a batch shares."""

    draw: Draw
    config: FilterConfig
    fault: Fault
    map: MapTruth
    range_bias_m: Tensor
    kicks_L: list[Tensor]  # sum of the unsensed kicks until the end of each step

    def position_L(self, t_s: float) -> Tensor:
        """Truth, kicks included."""
        k = round(t_s / DT_S)
        return truth(t_s).position_L + self.kicks_L[min(k, len(self.kicks_L) - 1)]


class InertialTruth:
    """The unit's errors; its biases wander as the filter assumes."""

    def __init__(self, draw: Draw, config: FilterConfig) -> None:
        self._draw, self._config = draw, config
        self.gyro_bias = config.gyro_bias_sigma_rad_s * draw.normal(3)
        self.accelerometer_bias = config.accelerometer_bias_sigma_m_s2 * draw.normal(3)
        self.thrust_scale = config.thrust_scale_sigma * draw.normal(3)

    def increments(self, k: int, t_s: float) -> InertialIncrements:
        """What the unit puts out over step k; then the biases move on."""
        draw, config = self._draw, self._config
        delta_v, delta_theta = (x.to(draw.device) for x in ideal_increments(k))
        root = math.sqrt(DT_S)
        put_out = InertialIncrements(
            t_s=t_s,
            dt_s=DT_S,
            delta_v_B=delta_v
            + DT_S * self.accelerometer_bias
            + delta_v[2] * self.thrust_scale
            + config.accelerometer_random_walk_m_s_sqrts * root * draw.normal(3),
            delta_theta_B=delta_theta
            + DT_S * self.gyro_bias
            + config.gyro_random_walk_rad_sqrts * root * draw.normal(3),
        )
        lags = DT_S / config.gyro_bias_time_s, DT_S / config.accelerometer_bias_time_s
        self.gyro_bias = _markov(
            self.gyro_bias, lags[0], config.gyro_bias_sigma_rad_s, draw.normal(3)
        )
        self.accelerometer_bias = _markov(
            self.accelerometer_bias,
            lags[1],
            config.accelerometer_bias_sigma_m_s2,
            draw.normal(3),
        )
        return put_out


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
    fix_latency_s: float = 0.0,
    range_latency_s: float = 0.0,
) -> Flight:
    """Flies a batch.

    Args:
        smooth_map: a squared-exponential field (what maps do); otherwise the first-order
            Gauss-Markov process that the filter assumes, to which it must be consistent.
        fix_latency_s: of a fix, after its exposure.
        range_latency_s: of a range, which the filter is told.
    """
    config = config or FilterConfig()
    draw = Draw(batch, seed, device)
    unit, chart = InertialTruth(draw, config), MapTruth(draw, config, smooth_map)
    state = _begin(draw, start_s, config)
    first, late = round(start_s / DT_S), round(fix_latency_s / DT_S)
    kicks = [torch.zeros(3, dtype=F64)] * (first + 1)
    pilot = Pilot(draw, config, fault, chart, config.range_bias_sigma_m * draw.normal(), kicks)
    flight = Flight([], [], [], [])
    due: dict[int, float] = {}  # step of arrival: time of exposure
    for k in range(first, round(end_s / DT_S)):
        t_s = (k + 1) * DT_S
        state = propagate(state, unit.increments(k, t_s), FRAME, config)
        kicks.append(kicks[-1] + torch.tensor(fault.kick_L(t_s), dtype=F64))
        here = truth(t_s)
        if (k + 1) % round(fix_every_s / DT_S) == 0:
            state = clone(chart.travel(state, here))
            due[k + 1 + late] = t_s
        elif (k + 1) % 20 == 0:
            measured = so3_exp(STAR_SIGMA_RAD * draw.normal(3)) @ here.R_L_B.to(device)
            reading = StarTrackerReading(t_s, measured, STAR_SIGMA_RAD)
            state, star = update_star_tracker(state, reading, config)
            flight.stars.append(star)
        vision: Innovation | None = None
        if k + 1 in due:
            state, vision, ground = _fix(state, due[k + 1], pilot)
            flight.grounds.append(ground)
        if (k + 1) % 2 == 0:
            state = chart.travel(state, here)
            state, epoch = _range(state, t_s, range_latency_s, pilot)
            flight.epochs.append(replace(epoch, vision=vision))
        if k + 1 in due:
            flight.checks.append((state, _error(state, t_s, unit, pilot)))
    return flight


def _begin(draw: Draw, start_s: float, config: FilterConfig) -> FilterState:
    """The filter's start: truth plus a draw of the initial error."""
    here = truth(start_s)
    return initial_state(
        start_s,
        here.position_L.to(draw.device) + POSITION_SIGMA_M * draw.normal(3),
        here.velocity_L.to(draw.device) + VELOCITY_SIGMA_M_S * draw.normal(3),
        so3_exp(ATTITUDE_SIGMA_RAD * draw.normal(3)) @ here.R_L_B.to(draw.device),
        position_sigma_m=POSITION_SIGMA_M,
        velocity_sigma_m_s=VELOCITY_SIGMA_M_S,
        attitude_sigma_rad=ATTITUDE_SIGMA_RAD,
        config=config,
    )


def _error(state: FilterState, t_s: float, unit: InertialTruth, pilot: Pilot) -> Tensor:
    """True minus estimate, in the order of the covariance."""
    here, device, chart = truth(t_s), pilot.draw.device, pilot.map
    return torch.cat(
        [
            pilot.position_L(t_s).to(device) - state.position_L,
            here.velocity_L.to(device) - state.velocity_L,
            so3_log(here.R_L_B.to(device) @ state.R_L_B.mT),
            unit.gyro_bias - state.gyro_bias_B,
            unit.accelerometer_bias - state.accelerometer_bias_B,
            unit.thrust_scale - state.thrust_scale_B,
            chart.shift_m - state.map_shift_m,
            (chart.mean_m - state.map_mean_m)[:, None],
            (chart.local_m - state.map_local_m)[:, None],
            (chart.beam_m - state.map_beam_m)[:, None],
            (pilot.range_bias_m - state.range_bias_m)[:, None],
            chart.side_m - state.map_side_m,
        ],
        -1,
    )


def _markov(value: Tensor, lags: float, sigma: float, white: Tensor) -> Tensor:
    decay = math.exp(-lags)
    return value * decay + sigma * math.sqrt(-math.expm1(-2 * lags)) * white


def _fix(
    state: FilterState, exposed_s: float, pilot: Pilot
) -> tuple[FilterState, Innovation, Innovation]:
    """A fix of an exposure, and what its image says of the map under the lander."""
    draw, config, chart = pilot.draw, pilot.config, pilot.map
    here, seen = truth(exposed_s), pilot.fault.vision_sees(exposed_s)
    height_m = float(here.position_L[2])
    noise, of_map = fix_covariance(height_m), map_covariance(height_m, config)
    share_m2 = of_map[2, 2].to(draw.device).expand(draw.batch)
    if seen:
        chart.rescale(state, share_m2, of_map[0, 0].to(draw.device).expand(draw.batch))
    floor = torch.zeros_like(noise)
    floor[:2, :2] = config.fix_floor_sigma_m**2 * torch.eye(2, dtype=F64)
    root = torch.linalg.cholesky(noise + floor).to(draw.device)
    error = (root @ draw.normal(6)[..., None]).squeeze(-1)
    bias = torch.tensor(pilot.fault.vision_bias_L(exposed_s), dtype=F64).to(draw.device)
    of_chart = torch.cat([chart.shift_m + chart.side_m, chart.mean_m[:, None]], -1)
    fix = VisionFix(
        t_s=exposed_s,
        position_L=pilot.position_L(exposed_s).to(draw.device) + of_chart + error[:, :3] + bias,
        R_L_C=so3_exp(error[:, 3:]) @ (here.R_L_B @ R_B_C).to(draw.device),
        covariance=(noise + of_map).to(draw.device).expand(draw.batch, 6, 6),
        map_covariance=of_map.to(draw.device).expand(draw.batch, 6, 6),
    )
    available = torch.full((draw.batch,), seen).to(draw.device)
    state, vision = update_vision(state, fix, available, R_B_C.to(draw.device), config)
    # The solver's posterior of local - mean: the field's prior and the image together.
    sigma_m = GROUND_SIGMA_M * (height_m / GROUND_FROM_M) ** GROUND_POWER
    alone_m = chart.local_m - chart.mean_m + sigma_m * draw.normal()
    prior_m2 = config.map_sigma_m**2 - mean_share(share_m2, config.map_sigma_m)
    variance_m2 = 1 / (1 / prior_m2 + 1 / sigma_m**2)
    error_m = alone_m * variance_m2 / sigma_m**2
    state, ground = update_ground(state, error_m, variance_m2, available, config)
    return state, vision, ground


def at_truth(t_s: float, config: FilterConfig, batch: int = 1) -> FilterState:
    """A state at the truth, spread as a descent begins."""
    here = truth(t_s)
    return initial_state(
        t_s,
        here.position_L.repeat(batch, 1),
        here.velocity_L.repeat(batch, 1),
        here.R_L_B.repeat(batch, 1, 1),
        position_sigma_m=10.0,
        velocity_sigma_m_s=0.5,
        attitude_sigma_rad=3e-4,
        config=config,
    )


def fix_at(t_s: float, config: FilterConfig, off_m: tuple[float, float, float] = (0, 0, 0)):
    """A fix of one descent, off by so much, as of 2 km height; and that there is one."""
    here, of_map = truth(t_s), map_covariance(2000.0, config)
    fix = VisionFix(
        t_s=t_s,
        position_L=(here.position_L + torch.tensor(off_m, dtype=F64))[None],
        R_L_C=(here.R_L_B @ R_B_C)[None],
        covariance=(fix_covariance(2000.0) + of_map)[None],
        map_covariance=of_map[None],
    )
    return fix, torch.ones(1, dtype=torch.bool)


def plane_prediction(
    state: FilterState, config: FilterConfig, spec: AltimeterSpec = SPEC, age_s: float = 0.0
) -> tuple[RangePrediction, Tensor]:
    """Prediction over the map z = 0, in closed form."""
    direction = state.R_L_B @ torch.tensor(spec.boresight_B, dtype=F64).to(state.R_L_B.device)
    height_m = beam_from_L(state)[:, 2] - age_s * state.velocity_L[:, 2]
    range_m = -height_m / direction[:, 2]
    normal = torch.zeros_like(direction)
    normal[:, 2] = 1.0
    return range_prediction(state, direction, range_m, normal, range_m > 0, config, age_s)


def _range(state: FilterState, t_s: float, age_s: float, pilot: Pilot) -> tuple[FilterState, Epoch]:
    draw, fault, config = pilot.draw, pilot.fault, pilot.config
    then_s = t_s - age_s
    cosine = float(truth(then_s).R_L_B[2, 2])
    range_m = float(pilot.position_L(then_s)[2]) / cosine
    sigma = math.hypot(SPEC.noise_floor_m, SPEC.noise_fraction * range_m)
    sigma = sigma * fault.altimeter_noise(t_s)
    # A map above the ground makes the range longer than predicted, by more on a slanted beam.
    noisy = range_m + pilot.map.beam_m / cosine + pilot.range_bias_m + sigma * draw.normal()
    noisy = noisy + config.relief_sigma_m * draw.normal() + fault.altimeter_bias_m(t_s)
    promised = fault.altimeter_detects(t_s, range_m)
    valid = (draw.uniform() < SPEC.detection_probability) & promised
    reading = AltimeterReading(t_s, torch.where(valid, noisy, torch.nan), valid)
    prediction, H = plane_prediction(state, config, age_s=age_s)
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
