"""What instruments read of the truth: inertial unit, star tracker, laser altimeter.

Inertial errors: bias and white noise (velocity and angle random walk), as in Farrell 2008, chapter
11. Altimeter: ``z = range + b + n``, n ~ N(0, s0^2 + (k range)^2), valid with a probability that
falls off logistically beyond the specified range.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float64
from pydantic import Field, field_validator
from torch import Tensor

from tnav.config import Recipe
from tnav.geometry.pose import so3_exp
from tnav.records import AltimeterSpec
from tnav.simulate.descent import Trajectory
from tnav.terrain.heightfield import Terrain
from tnav.terrain.raycast import cast


class InertialUnit(Recipe):
    """A navigation-grade unit; 1-sigma figures."""

    accelerometer_bias_m_s2: float = Field(default=3e-4, ge=0)  # 30 ug
    velocity_random_walk_m_s_sqrt_s: float = Field(default=3e-4, ge=0)
    gyro_bias_rad_s: float = Field(default=5e-8, ge=0)  # 0.01 deg/h
    angle_random_walk_rad_sqrt_s: float = Field(default=1.5e-6, ge=0)  # 0.005 deg/sqrt(h)


class StarTracker(Recipe):
    """Attitude sensor with isotropic white error."""

    sigma_deg: float = Field(default=0.01, gt=0)
    rate_hz: float = Field(default=1.0, gt=0)


class Altimeter(Recipe):
    """Laser altimeter along a body axis, and how far its maker promises that it ranges."""

    boresight_B: tuple[float, float, float] = (0.0, 0.0, -1.0)  # made a unit vector
    misalignment_deg: float = Field(default=0.05, ge=0)  # 1 sigma, unknown to navigation
    range_max_m: float = Field(default=3000.0, gt=0)
    detection_probability: float = Field(default=0.99, gt=0.5, lt=1)
    incidence_max_deg: float = Field(default=30.0, gt=0, lt=90)
    noise_floor_m: float = Field(default=0.3, gt=0)
    noise_fraction: float = Field(default=0.001, ge=0)
    rate_hz: float = Field(default=10.0, gt=0)
    range_edge_m: float = Field(default=200.0, gt=0)  # beyond range_max, detection fades over this

    @field_validator("boresight_B")
    @classmethod
    def _unit(cls, value: tuple[float, float, float]) -> tuple[float, float, float]:
        length = math.hypot(*value)
        if length < 1e-6:
            raise ValueError("expected a direction, not a zero vector")
        x, y, z = (v / length for v in value)
        return (x, y, z)

    def spec(self) -> AltimeterSpec:
        """The promise, without what only truth knows."""
        return AltimeterSpec(
            boresight_B=self.boresight_B,
            range_max_m=self.range_max_m,
            detection_probability=self.detection_probability,
            incidence_max_deg=self.incidence_max_deg,
            noise_floor_m=self.noise_floor_m,
            noise_fraction=self.noise_fraction,
            rate_hz=self.rate_hz,
        )


@dataclass(frozen=True, slots=True)
class InertialLog:
    """Increments as read, on the trajectory's grid."""

    delta_v_B: Float64[Tensor, "n 3"]
    delta_theta_B: Float64[Tensor, "n 3"]


@dataclass(frozen=True, slots=True)
class AltimeterLog:
    """Readings of one altimeter, before its fault, with the true range."""

    t_s: Float64[Tensor, " n"]
    true_range_m: Float64[Tensor, " n"]
    range_m: Float64[Tensor, " n"]
    valid: Bool[Tensor, " n"]


def epochs_s(trajectory: Trajectory, rate_hz: float, first_s: float = 0.0) -> Float64[Tensor, " n"]:
    """Times at which a sensor of that rate speaks during a flight."""
    begin_s = float(trajectory.t_s[0]) + first_s
    count = math.floor((float(trajectory.t_s[-1]) - begin_s) * rate_hz + 1e-9) + 1
    return begin_s + torch.arange(max(count, 0), dtype=torch.float64) / rate_hz


def read_inertial(unit: InertialUnit, trajectory: Trajectory, seed: int) -> InertialLog:
    """Increments with a constant bias and white noise."""
    generator = torch.Generator().manual_seed(seed)
    n, dt_s = trajectory.t_s.numel(), trajectory.dt_s

    def noisy(true: Tensor, bias_sigma: float, walk: float) -> Tensor:
        bias = bias_sigma * torch.randn(3, generator=generator, dtype=torch.float64)
        white = torch.randn(n, 3, generator=generator, dtype=torch.float64)
        return true + bias * dt_s + walk * math.sqrt(dt_s) * white

    return InertialLog(
        noisy(
            trajectory.delta_v_B, unit.accelerometer_bias_m_s2, unit.velocity_random_walk_m_s_sqrt_s
        ),
        noisy(trajectory.delta_theta_B, unit.gyro_bias_rad_s, unit.angle_random_walk_rad_sqrt_s),
    )


def read_star_tracker(
    tracker: StarTracker, R_L_B: Float64[Tensor, "n 3 3"], seed: int
) -> Float64[Tensor, "n 3 3"]:
    """Attitudes with isotropic white error."""
    generator = torch.Generator().manual_seed(seed)
    error = torch.randn(R_L_B.shape[0], 3, generator=generator, dtype=torch.float64)
    return so3_exp(math.radians(tracker.sigma_deg) * error) @ R_L_B


def read_altimeter(
    altimeter: Altimeter, trajectory: Trajectory, truth: Terrain, seed: int
) -> AltimeterLog:
    """Ranges of a healthy altimeter at its own rate, all epochs in one cast.

    Args:
        altimeter: the instrument.
        trajectory: where it is.
        truth: the ground, on any device.
        seed: of misalignment, noise and detection.
    """
    generator = torch.Generator().manual_seed(seed)
    t_s = epochs_s(trajectory, altimeter.rate_hz)
    epochs = t_s.numel()
    index = [trajectory.index_at(float(t)) for t in t_s]
    tilt = math.radians(altimeter.misalignment_deg) * torch.randn(3, generator=generator).double()
    boresight_B = torch.tensor(altimeter.boresight_B, dtype=torch.float64)
    beam_B = so3_exp(tilt) @ (boresight_B / boresight_B.norm())
    beam_L = trajectory.R_L_B[index] @ beam_B
    hits = cast(truth, trajectory.position_L[index].to(truth.device), beam_L.to(truth.device))
    range_m, hit = hits.range_m.cpu(), hits.hit.cpu()
    sigma_m = altimeter.spec().noise_sigma_m(range_m)
    noise = torch.randn(epochs, generator=generator, dtype=torch.float64)
    # Logistic fade-out placed so that the promise holds up to range_max_m itself.
    scale_m = altimeter.range_edge_m / 4.394
    odds = math.log(altimeter.detection_probability / (1 - altimeter.detection_probability))
    chance = torch.sigmoid(odds + (altimeter.range_max_m - range_m) / scale_m)
    detected = torch.rand(epochs, generator=generator, dtype=torch.float64) < chance
    return AltimeterLog(t_s, range_m, range_m + sigma_m * noise, hit & detected)
