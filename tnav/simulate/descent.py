"""The flown descent: a prescribed acceleration, integrated under lunar gravity.

The vertical profile is anchored at the last two states that RESILIENCE sent (893 m at 66 m/s,
192 m at 42 m/s; press reports): between them the mean deceleration is 1.85 m/s^2. Earlier, the
vertical and the horizontal deceleration are constants of the recipe. The body's axis follows the
thrust, and inertial increments are those of an ideal unit on that body.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from pydantic import Field
from torch import Tensor

from tnav.config import Recipe
from tnav.errors import ConfigError
from tnav.geometry.moon import LocalFrame, gravity_L
from tnav.geometry.pose import body_from_thrust, so3_exp, so3_log

_SUBSTEPS = 10  # integration steps in one inertial step


class DescentProfile(Recipe):
    """The last part of a descent, anchored at its end."""

    end_height_m: float = Field(default=192.0, gt=0)  # above the ground under the end
    end_speed_m_s: float = Field(default=42.0, gt=0)  # downwards
    late_deceleration_m_s2: float = Field(default=1.85, gt=0)  # net, below the knee
    knee_speed_m_s: float = Field(default=66.0, gt=0)
    early_deceleration_m_s2: float = Field(default=1.0, gt=0)  # net, above the knee
    knee_smoothing_s: float = Field(default=4.0, gt=0)  # thrust and attitude do not jump
    start_height_m: float = Field(default=10_000.0, gt=0)
    approach_azimuth_deg: float = 0.0  # direction of flight
    horizontal_deceleration_m_s2: float = Field(default=0.5, ge=0)
    vertical_flight_s: float = Field(default=20.0, ge=0)  # no horizontal motion at the end
    inertial_rate_hz: float = Field(default=20.0, gt=0)


@dataclass(frozen=True, slots=True)
class Trajectory:
    """Truth on the inertial time grid; entry 0 is the start, increments end at each entry."""

    t_s: Float64[Tensor, " n"]
    position_L: Float64[Tensor, "n 3"]
    velocity_L: Float64[Tensor, "n 3"]
    R_L_B: Float64[Tensor, "n 3 3"]
    delta_v_B: Float64[Tensor, "n 3"]  # entry 0 is zero
    delta_theta_B: Float64[Tensor, "n 3"]  # against inertial space; entry 0 is zero

    @property
    def dt_s(self) -> float:
        """Inertial step."""
        return float(self.t_s[1] - self.t_s[0])

    def index_at(self, t_s: float) -> int:
        """Entry nearest to a time."""
        return min(max(round((t_s - float(self.t_s[0])) / self.dt_s), 0), self.t_s.numel() - 1)


def fly(profile: DescentProfile, frame: LocalFrame, ground_z_m: float) -> Trajectory:
    """Integrate the profile.

    Args:
        profile: the recipe.
        frame: local frame at the target; the flight ends over its origin.
        ground_z_m: ground height in L at the target.

    Raises:
        ConfigError: the profile's speeds cannot be reached.
    """
    dt_s = 1.0 / profile.inertial_rate_hz
    acceleration_L, position_0, velocity_0, steps = _commanded(profile, ground_z_m, dt_s)
    h = dt_s / _SUBSTEPS
    # Trapezoid for the velocity, and the matching quadratic for the position, on the fine grid.
    mean = 0.5 * (acceleration_L[1:] + acceleration_L[:-1])
    velocity = velocity_0 + torch.cat([torch.zeros(1, 3).double(), mean.cumsum(0) * h])
    step = velocity[:-1] * h + (2 * acceleration_L[:-1] + acceleration_L[1:]) * h * h / 6
    position = position_0 + torch.cat([torch.zeros(1, 3).double(), step.cumsum(0)])
    spin_L = frame.spin_L()
    spin = spin_L.expand_as(velocity)
    from_centre = position - frame.centre_L
    inertial_L = acceleration_L + 2 * torch.linalg.cross(spin, velocity)
    inertial_L = inertial_L + torch.linalg.cross(spin, torch.linalg.cross(spin, from_centre))
    force_L = inertial_L - gravity_L(position, frame)
    azimuth = math.radians(profile.approach_azimuth_deg)
    heading_L = torch.tensor([[math.sin(azimuth), math.cos(azimuth), 0.0]], dtype=torch.float64)
    R_L_B = body_from_thrust(force_L, heading_L.expand_as(force_L))
    delta_v_B, delta_theta_B = _increments(R_L_B, force_L, spin_L, h, steps)
    coarse = slice(None, None, _SUBSTEPS)
    t_s = torch.arange(steps + 1, dtype=torch.float64) * dt_s
    return Trajectory(
        t_s, position[coarse], velocity[coarse], R_L_B[coarse], delta_v_B, delta_theta_B
    )


def _increments(
    R_L_B: Float64[Tensor, "m 3 3"],
    force_L: Float64[Tensor, "m 3"],
    spin_L: Float64[Tensor, "3"],
    h: float,
    steps: int,
) -> tuple[Float64[Tensor, "n 3"], Float64[Tensor, "n 3"]]:
    """What an ideal strapdown unit sums over each step, in its turning body axes."""
    force_B = (R_L_B.transpose(1, 2) @ force_L[..., None])[..., 0]
    mean_B = 0.5 * (force_B[1:] + force_B[:-1])
    delta_v_B = mean_B.unflatten(0, (steps, _SUBSTEPS)).sum(1) * h
    start, end = R_L_B[:-1:_SUBSTEPS], R_L_B[_SUBSTEPS::_SUBSTEPS]
    # The frame turns under the body: R_end = Exp(-W dt) R_start Exp(delta_theta).
    frame_turn = so3_exp(spin_L * (h * _SUBSTEPS))
    delta_theta_B = so3_log(start.transpose(1, 2) @ frame_turn @ end)
    zero = torch.zeros(1, 3, dtype=torch.float64)
    return torch.cat([zero, delta_v_B]), torch.cat([zero, delta_theta_B])


def _commanded(
    profile: DescentProfile, ground_z_m: float, dt_s: float
) -> tuple[Float64[Tensor, "m 3"], Float64[Tensor, "3"], Float64[Tensor, "3"], int]:
    """Acceleration on the fine grid, with the start that leads to the profile's end."""
    late_s = (profile.knee_speed_m_s - profile.end_speed_m_s) / profile.late_deceleration_m_s2
    knee_m = profile.end_height_m + (profile.knee_speed_m_s**2 - profile.end_speed_m_s**2) / (
        2 * profile.late_deceleration_m_s2
    )
    if late_s <= 0 or profile.start_height_m <= knee_m:
        raise ConfigError(
            f"descent: knee at {knee_m:.0f} m and {profile.knee_speed_m_s} m/s, expected between "
            f"the end ({profile.end_height_m} m, {profile.end_speed_m_s} m/s) and the start "
            f"({profile.start_height_m} m)"
        )
    rise_m, a = profile.start_height_m - knee_m, profile.early_deceleration_m_s2
    start_speed = math.sqrt(profile.knee_speed_m_s**2 + 2 * a * rise_m)
    total_s = (start_speed - profile.knee_speed_m_s) / a + late_s
    steps = math.ceil(total_s / dt_s)
    to_go_s = torch.arange(steps * _SUBSTEPS, -1, -1, dtype=torch.float64) * dt_s / _SUBSTEPS
    blend = 0.5 * (1 + torch.tanh((late_s - to_go_s) / (profile.knee_smoothing_s / 4)))
    vertical = a + (profile.late_deceleration_m_s2 - a) * blend
    moving = 0.5 * (
        1 + torch.tanh((to_go_s - profile.vertical_flight_s) / (profile.knee_smoothing_s / 4))
    )
    along = -profile.horizontal_deceleration_m_s2 * moving
    azimuth = math.radians(profile.approach_azimuth_deg)
    acceleration_L = torch.stack(
        [along * math.sin(azimuth), along * math.cos(azimuth), vertical], -1
    )
    # Integrate backwards from the end to find the start.
    h = dt_s / _SUBSTEPS
    mean = 0.5 * (acceleration_L[1:] + acceleration_L[:-1])
    end_velocity = torch.tensor([0.0, 0.0, -profile.end_speed_m_s], dtype=torch.float64)
    velocity_0 = end_velocity - mean.sum(0) * h
    velocity = velocity_0 + torch.cat([torch.zeros(1, 3).double(), mean.cumsum(0) * h])
    travelled = velocity[:-1] * h + (2 * acceleration_L[:-1] + acceleration_L[1:]) * h * h / 6
    end = torch.tensor([0.0, 0.0, ground_z_m + profile.end_height_m], dtype=torch.float64)
    return acceleration_L, end - travelled.sum(0), velocity_0, steps
