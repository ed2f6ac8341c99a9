"""What the navigation filter believes of its sensors, and its estimate with covariance."""

import math
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import Any

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from tnav.errors import ConfigError
from tnav.geometry.moon import RADIUS_M
from tnav.geometry.pose import so3_exp
from tnav.navigate.mechanisation import (
    ACCELEROMETER_BIAS,
    ATTITUDE,
    CLONE_ATTITUDE,
    CLONE_POSITION,
    CORE,
    GYRO_BIAS,
    MAP_BEAM,
    MAP_LOCAL,
    MAP_MEAN,
    MAP_SHIFT,
    MAP_SIDE,
    POSITION,
    RANGE_BIAS,
    STATES,
    THRUST_SCALE,
    VELOCITY,
)
from tnav.records import Sensor

SENSORS = tuple(Sensor)  # FilterState.rejected_run's columns


class GatePolicy(StrEnum):
    """What becomes of an altimeter reading that its gate calls implausible."""

    NONE = "none"  # there is no gate
    HARD = "hard"  # discarded, however often: Hakuto-R M1
    TIMEOUT = "timeout"  # after some in a row the next is taken as if it had passed
    RESET = "reset"  # after some in a row the height over ground is reset to what it says
    TERRAIN_AWARE = "terrain_aware"  # the gate knows the relief around, and vision is heard first


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
    # How far they walk beside that, per square root of a second.
    accelerometer_bias_walk_m_s2_sqrts: float = 1e-15
    gyro_bias_walk_rad_s_sqrts: float = 1e-15
    # Scale along the thrust and misalignment across it: one sigma, the larger of both.
    thrust_scale_sigma: float = 1e-9
    # Of the gyros: no states, but noise that is as large over a slew.
    gyro_scale_sigma: float = 1e-9
    gyro_misalignment_rad: float = 1e-9
    # The map's vertical noise and its correlation along the ground (LOLA-like: 3 m, 300 m).
    map_sigma_m: float = 3.0
    map_correlation_m: float = 300.0
    map_shift_sigma_m: float = 0.7
    # What all matches of an image have in common sideways, new with every image.
    fix_floor_sigma_m: float = 0.024
    # Of the altimeter itself.
    range_bias_sigma_m: float = 0.1
    # Relief under the map's resolution, new with every footprint: white in the range.
    relief_sigma_m: float = 1.0
    # On a more grazing beam the tangent plane says nothing of the footprint.
    altimeter_incidence_max_deg: float = 60.0
    # One healthy measurement in ten thousand is rejected: one altimeter reading in ten descents.
    gate_probability: float = 0.9999
    altimeter_gate: GatePolicy = GatePolicy.TERRAIN_AWARE
    # Rejections in a row before one is taken. Altimeter: 5 s at 10 Hz; must be longer than the
    # interval of fixes (`heard_first`), so that vision speaks first. Vision: the fourth fix in a
    # row that is off; two are enough for a monitor, so it has one interval to act on its verdict.
    altimeter_gate_patience: int = 50
    vision_gate_patience: int = 3
    star_tracker_gate_patience: int = 10

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if not isinstance(value, GatePolicy) and not value > 0:
                raise ConfigError(f"filter.{name}: {value}, expected > 0")
        if not self.gate_probability < 1:
            raise ConfigError(f"filter.gate_probability: {self.gate_probability}, expected below 1")

    @staticmethod
    def heard_first(fix_interval_s: float, altimeter_rate_hz: float) -> int:
        """Patience with an altimeter that leaves vision the first word, one late fix allowed."""
        return max(50, math.ceil(1.5 * fix_interval_s * altimeter_rate_hz))

    def patience(self, sensor: Sensor) -> float:
        """Rejections in a row after which a reading of a sensor is taken all the same."""
        match sensor:
            case Sensor.STAR_TRACKER:
                return float(self.star_tracker_gate_patience)
            case Sensor.VISION | Sensor.GROUND:
                return float(self.vision_gate_patience)
            case Sensor.ALTIMETER:
                hard = self.altimeter_gate is GatePolicy.HARD
                return math.inf if hard else float(self.altimeter_gate_patience)


@dataclass(frozen=True, slots=True)
class FilterState:
    """Estimate and covariance of ``b`` descents at one epoch.

    The covariance is of 32 errors in the order of ``tnav.navigate.mechanisation``. Map errors are
    of a map minus the ground: a fix stands ``map_mean_m`` too high, and an altimeter reads
    ``map_beam_m`` more than the distance to the map; ``map_local_m`` is the error under the lander.
    """

    t_s: float
    position_L: Float64[Tensor, "b 3"]
    velocity_L: Float64[Tensor, "b 3"]
    R_L_B: Float64[Tensor, "b 3 3"]
    gyro_bias_B: Float64[Tensor, "b 3"]  # rad/s
    accelerometer_bias_B: Float64[Tensor, "b 3"]  # m/s^2
    thrust_scale_B: Float64[Tensor, "b 3"]  # error of specific force over thrust along body z
    map_shift_m: Float64[Tensor, "b 2"]
    map_mean_m: Float64[Tensor, " b"]
    map_local_m: Float64[Tensor, " b"]
    map_beam_m: Float64[Tensor, " b"]
    range_bias_m: Float64[Tensor, " b"]
    map_side_m: Float64[Tensor, "b 2"]
    clone_t_s: float  # of the last exposure ...
    clone_position_L: Float64[Tensor, "b 3"]  # ... and the pose then, as it is known now
    clone_R_L_B: Float64[Tensor, "b 3 3"]
    covariance: Float64[Tensor, "b 32 32"]
    # A priori, at the last fix's scale: of the mean, and of each of the two sideways.
    map_mean_variance_m2: Float64[Tensor, " b"]
    map_side_variance_m2: Float64[Tensor, " b"]
    # East and north of nadir and beam on the ground, where the map's errors were last renewed.
    map_places_m: Float64[Tensor, "b 2 2"]
    map_footprint_m: Float64[Tensor, " b"]  # side of the ground in view, then
    rejected_run: Float64[Tensor, "b 4"]  # rejections in a row, columns as SENSORS


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
    sigma[THRUST_SCALE] = config.thrust_scale_sigma
    sigma[MAP_SHIFT] = config.map_shift_sigma_m
    sigma[MAP_LOCAL] = sigma[MAP_BEAM] = config.map_sigma_m
    sigma[RANGE_BIAS] = config.range_bias_sigma_m
    if not bool((sigma[:MAP_MEAN] > 0).all()):  # a host tensor
        raise ConfigError("initial_state: every sigma must be > 0")
    batch, device = position_L.shape[0], position_L.device
    prior = torch.diag(sigma.square())
    # Nadir and beam are one place, until the first look.
    prior[MAP_LOCAL, MAP_BEAM] = prior[MAP_BEAM, MAP_LOCAL] = config.map_sigma_m**2
    covariance = prior.to(device).expand(batch, STATES, STATES).contiguous()
    nothing, none = torch.zeros_like(position_L), torch.zeros_like(position_L[:, 0])
    state = FilterState(
        t_s=t_s,
        position_L=position_L,
        velocity_L=velocity_L,
        R_L_B=R_L_B,
        gyro_bias_B=nothing,
        accelerometer_bias_B=nothing,
        thrust_scale_B=nothing,
        map_shift_m=nothing[:, :2],
        # Before the first image the mean is over everything: none, and known.
        map_mean_m=none,
        map_local_m=none,
        map_beam_m=none,
        range_bias_m=none,
        map_side_m=nothing[:, :2],
        clone_t_s=t_s,
        clone_position_L=position_L,
        clone_R_L_B=R_L_B,
        covariance=covariance,
        map_mean_variance_m2=none,
        map_side_variance_m2=none,
        map_places_m=position_L[:, None, :2].expand(batch, 2, 2),
        map_footprint_m=torch.full_like(none, 2 * RADIUS_M),
        rejected_run=torch.zeros(batch, len(SENSORS), dtype=torch.float64, device=device),
    )
    return clone(state)


def clone(state: FilterState) -> FilterState:
    """Keeps the pose of this epoch for a fix of it that comes later (Roumeliotis 2002, eq. 8)."""
    kept = torch.arange(STATES)
    kept[CLONE_POSITION], kept[CLONE_ATTITUDE] = kept[POSITION], kept[ATTITUDE]
    kept = kept.to(state.covariance.device)
    return replace(
        state,
        clone_t_s=state.t_s,
        clone_position_L=state.position_L,
        clone_R_L_B=state.R_L_B,
        covariance=state.covariance.index_select(1, kept).index_select(2, kept),
    )


def corrected(
    state: FilterState,
    error: Float64[Tensor, "b 32"],
    covariance: Float64[Tensor, "b 32 32"],
    rejected_run: Float64[Tensor, "b 4"],
) -> FilterState:
    """Moves an estimated error into the estimate."""
    return replace(
        state,
        position_L=state.position_L + error[:, POSITION],
        velocity_L=state.velocity_L + error[:, VELOCITY],
        R_L_B=so3_exp(error[:, ATTITUDE]) @ state.R_L_B,
        gyro_bias_B=state.gyro_bias_B + error[:, GYRO_BIAS],
        accelerometer_bias_B=state.accelerometer_bias_B + error[:, ACCELEROMETER_BIAS],
        thrust_scale_B=state.thrust_scale_B + error[:, THRUST_SCALE],
        map_shift_m=state.map_shift_m + error[:, MAP_SHIFT],
        map_mean_m=state.map_mean_m + error[:, MAP_MEAN],
        map_local_m=state.map_local_m + error[:, MAP_LOCAL],
        map_beam_m=state.map_beam_m + error[:, MAP_BEAM],
        range_bias_m=state.range_bias_m + error[:, RANGE_BIAS],
        map_side_m=state.map_side_m + error[:, MAP_SIDE],
        clone_position_L=state.clone_position_L + error[:, CLONE_POSITION],
        clone_R_L_B=so3_exp(error[:, CLONE_ATTITUDE]) @ state.clone_R_L_B,
        covariance=covariance,
        rejected_run=rejected_run,
    )


def core_sigma(state: FilterState) -> Float64[Tensor, "b 26"]:
    """1-sigma of the errors of now, in the covariance's order."""
    return state.covariance.diagonal(dim1=-2, dim2=-1)[:, :CORE].clamp_min(0.0).sqrt()


def chosen(here: Bool[Tensor, " b"], a: FilterState, b: FilterState) -> FilterState:
    """State ``a`` where true, ``b`` elsewhere; of one epoch, cloned at one exposure."""
    parts: dict[str, Any] = {}
    for field in fields(FilterState):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if isinstance(x, Tensor):
            parts[field.name] = torch.where(here.view(-1, *([1] * (x.dim() - 1))), x, y)
    return replace(b, **parts)
