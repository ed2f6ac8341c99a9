"""What one closed-loop descent leaves: truth beside navigation, innovations, and the touchdown.

Everything needed to score or draw the descent without flying it again. Errors are estimate minus
truth. L is the local frame at the site, B the body; a series has one row an epoch.
"""

from dataclasses import dataclass
from typing import Any, Literal

from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from tnav.records import Sensor

Fidelity = Literal["model", "image"]  # fixes drawn from an error model, or every image solved
Outcome = Literal["landed", "crashed", "ran_dry", "timeout"]

# Error states of the filter's estimate of now, in the order of its covariance and of
# DescentSeries.sigma. Position (m), velocity (m/s) and attitude (rad) are along L's axes, biases
# (rad/s, m/s^2) and the thrust scale (1) along B's, errors of map and altimeter in m.
FILTER_STATES: tuple[str, ...] = (
    "position_east", "position_north", "position_up",
    "velocity_east", "velocity_north", "velocity_up",
    "attitude_east", "attitude_north", "attitude_up",
    "gyro_bias_x", "gyro_bias_y", "gyro_bias_z",
    "accelerometer_bias_x", "accelerometer_bias_y", "accelerometer_bias_z",
    "thrust_scale_x", "thrust_scale_y", "thrust_scale_z",
    "map_shift_east", "map_shift_north", "map_mean", "map_local", "map_beam",
    "range_bias", "map_side_east", "map_side_north",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class DescentSeries:
    """Truth and navigation over time."""

    t_s: Float64[Tensor, " n"]  # strictly increasing
    position_L: Float64[Tensor, "n 3"]  # m
    velocity_L: Float64[Tensor, "n 3"]  # m/s
    R_L_B: Float64[Tensor, "n 3 3"]
    agl_m: Float64[Tensor, " n"]  # over the true ground; NaN beside it
    propellant_kg: Float64[Tensor, " n"]  # left
    thrust_n: Float64[Tensor, " n"]
    phase: Int64[Tensor, " n"]  # of guidance
    position_nav_L: Float64[Tensor, "n 3"]  # m
    velocity_nav_L: Float64[Tensor, "n 3"]  # m/s
    R_nav_L_B: Float64[Tensor, "n 3 3"]
    agl_nav_m: Float64[Tensor, " n"]  # navigation's position over its map; NaN beside it
    sigma: Float64[Tensor, "n 26"]  # 1 sigma of FILTER_STATES, in that order and those units


@dataclass(frozen=True, slots=True)
class InnovationSeries:
    """Innovations of one sensor. Where none is present, a row's numbers mean nothing."""

    sensor: Sensor
    t_s: Float64[Tensor, " m"]  # strictly increasing
    value: Float64[Tensor, "m k"]  # measurement minus prediction
    covariance: Float64[Tensor, "m k k"]
    nis: Float64[Tensor, " m"]  # normalised innovation squared, k degrees of freedom
    present: Bool[Tensor, " m"]  # a measurement was there
    fused: Bool[Tensor, " m"]  # and the filter took it


@dataclass(frozen=True, slots=True)
class Touchdown:
    """The end of a descent: against the ground, and navigation against the truth."""

    t_s: float
    speed_down_m_s: float  # along the local vertical
    speed_horizontal_m_s: float
    miss_m: float  # horizontal distance from the target
    propellant_kg: float  # left
    outcome: Outcome
    agl_error_m: float  # of navigation, along the local vertical
    horizontal_error_m: float  # of navigation, a length
    velocity_error_m_s: float  # of navigation, a length


@dataclass(frozen=True, slots=True)
class DescentRecord:
    """One descent, with all that it takes to fly it again."""

    name: str  # of the scenario
    fidelity: Fidelity
    policy: str  # what decided on the sensors and the controls
    seed: int  # number of the draw
    latitude_deg: float  # of L's origin
    longitude_deg: float
    series: DescentSeries
    innovations: tuple[InnovationSeries, ...]  # one a sensor
    touchdown: Touchdown | None  # None: the record ends in flight
    recipe: dict[str, Any]  # of the scenario, as strict JSON holds it
