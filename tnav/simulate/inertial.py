"""What an inertial unit reads of the truth: increments of three accelerometers and three gyros.

Of each triad, in body axes (Groves 2013, section 4.4, equations 4.16 to 4.18, without the terms of
gyros in acceleration)::

    read = clamp(true + (M true) + b dt + w sqrt(dt) n,  -limit dt, limit dt)      n ~ N(0, 1)

``b`` is the bias, ``w`` the random walk of the sum (white noise of the rate), ``M`` holds scale
factors on its diagonal and the small angles between sensitive and body axes off it. Bias and M are
drawn once a descent; the noise is new with every step. An error whose sigma is zero draws nothing.
"""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float64
from pydantic import Field
from torch import Tensor

from tnav.config import Recipe
from tnav.simulate.descent import Trajectory


class InertialUnit(Recipe):
    """A navigation-grade unit; 1-sigma figures, of this project's choice within that grade."""

    accelerometer_bias_m_s2: float = Field(default=3e-4, ge=0)  # 30 ug
    velocity_random_walk_m_s_sqrt_s: float = Field(default=3e-4, ge=0)
    gyro_bias_rad_s: float = Field(default=5e-8, ge=0)  # 0.01 deg/h
    angle_random_walk_rad_sqrt_s: float = Field(default=1.5e-6, ge=0)  # 0.005 deg/sqrt(h)
    accelerometer_scale: float = Field(default=0.0, ge=0, lt=0.1)  # 1e-4 is 100 ppm
    gyro_scale: float = Field(default=0.0, ge=0, lt=0.1)
    # Small angle of each sensitive axis about each of the two others, which need not stay normal.
    accelerometer_misalignment_deg: float = Field(default=0.0, ge=0, lt=5)
    gyro_misalignment_deg: float = Field(default=0.0, ge=0, lt=5)
    # Far above a healthy descent. A unit that meets its limit is what misled Schiaparelli.
    accelerometer_max_m_s2: float = Field(default=100.0, gt=0)
    gyro_max_rad_s: float = Field(default=7.0, gt=0)  # 400 deg/s
    # How far biases walk in flight (walk_biases).
    accelerometer_bias_walk_m_s2_sqrt_s: float = Field(default=0.0, ge=0)
    gyro_bias_walk_rad_s_sqrt_s: float = Field(default=0.0, ge=0)


@dataclass(frozen=True, slots=True)
class InertialErrors:
    """What is wrong with the units of ``b`` descents, besides noise; zero is perfect."""

    accelerometer_bias_B: Float64[Tensor, "b 3"]  # m/s^2
    gyro_bias_B: Float64[Tensor, "b 3"]  # rad/s
    accelerometer_matrix: Float64[Tensor, "b 3 3"]  # read minus true = matrix @ true
    gyro_matrix: Float64[Tensor, "b 3 3"]

    def to(self, device: torch.device | str) -> "InertialErrors":
        """The same errors on another device."""
        return InertialErrors(
            self.accelerometer_bias_B.to(device),
            self.gyro_bias_B.to(device),
            self.accelerometer_matrix.to(device),
            self.gyro_matrix.to(device),
        )


@dataclass(frozen=True, slots=True)
class InertialLog:
    """Increments as read, on the trajectory's grid."""

    delta_v_B: Float64[Tensor, "n 3"]
    delta_theta_B: Float64[Tensor, "n 3"]


@dataclass(frozen=True, slots=True)
class _Triad:
    """Three like sensors: accelerometers in m and s, gyros in rad and s."""

    bias_sigma: float
    walk: float
    scale_sigma: float
    misalignment_rad: float
    limit: float


def draw_inertial(unit: InertialUnit, batch: int, generator: torch.Generator) -> InertialErrors:
    """Errors of the units of a batch of descents.

    Args:
        unit: the recipe.
        batch: number of descents.
        generator: of the units' errors, on the CPU.

    Returns:
        The errors, on the CPU: move them once, with ``to``, to where descents are flown.
    """
    accelerometers, gyros = _triads(unit)
    accelerometer_bias_B, accelerometer_matrix = _draw(accelerometers, batch, generator)
    gyro_bias_B, gyro_matrix = _draw(gyros, batch, generator)
    return InertialErrors(accelerometer_bias_B, gyro_bias_B, accelerometer_matrix, gyro_matrix)


def read_increments(
    unit: InertialUnit,
    errors: InertialErrors,
    delta_v_B: Float64[Tensor, "b 3"],
    delta_theta_B: Float64[Tensor, "b 3"],
    dt_s: float,
    generator: torch.Generator,
) -> tuple[Float64[Tensor, "b 3"], Float64[Tensor, "b 3"]]:
    """One step's increments as the units read them.

    Args:
        unit: the recipe.
        errors: of these descents, on their device.
        delta_v_B: true integral of specific force over the step, m/s.
        delta_theta_B: true rotation against inertial space over the step, rad.
        dt_s: the step. Limits hold for the mean rate over it.
        generator: of the noise, on the CPU.

    Returns:
        The two increments as read, m/s and rad.
    """
    accelerometers, gyros = _triads(unit)
    bias, matrix = errors.accelerometer_bias_B, errors.accelerometer_matrix
    read_v_B = _read(accelerometers, bias, matrix, delta_v_B, dt_s, generator)
    bias, matrix = errors.gyro_bias_B, errors.gyro_matrix
    return read_v_B, _read(gyros, bias, matrix, delta_theta_B, dt_s, generator)


def walk_biases(
    unit: InertialUnit, errors: InertialErrors, dt_s: float, generator: torch.Generator
) -> InertialErrors:
    """Errors after a step, in which each bias took one step of its random walk."""
    bias_B, gyro_bias_B = errors.accelerometer_bias_B, errors.gyro_bias_B
    root_s = math.sqrt(dt_s)
    force = _normal(unit.accelerometer_bias_walk_m_s2_sqrt_s * root_s, bias_B.shape, generator)
    rate = _normal(unit.gyro_bias_walk_rad_s_sqrt_s * root_s, gyro_bias_B.shape, generator)
    return replace(
        errors,
        accelerometer_bias_B=bias_B + force.to(bias_B.device),
        gyro_bias_B=gyro_bias_B + rate.to(gyro_bias_B.device),
    )


def read_inertial(unit: InertialUnit, trajectory: Trajectory, seed: int) -> InertialLog:
    """A whole flight's increments by one unit, whose biases do not walk.

    Args:
        unit: the recipe.
        trajectory: the flown truth.
        seed: of the unit's errors and noise.
    """
    generator = torch.Generator().manual_seed(seed)
    read = []
    truths = (trajectory.delta_v_B, trajectory.delta_theta_B)
    for triad, true in zip(_triads(unit), truths, strict=True):
        bias, matrix = _draw(triad, 1, generator)
        read.append(_read(triad, bias, matrix, true, trajectory.dt_s, generator))
    return InertialLog(*read)


def _triads(unit: InertialUnit) -> tuple[_Triad, _Triad]:
    """Accelerometers and gyros."""
    return (
        _Triad(
            unit.accelerometer_bias_m_s2,
            unit.velocity_random_walk_m_s_sqrt_s,
            unit.accelerometer_scale,
            math.radians(unit.accelerometer_misalignment_deg),
            unit.accelerometer_max_m_s2,
        ),
        _Triad(
            unit.gyro_bias_rad_s,
            unit.angle_random_walk_rad_sqrt_s,
            unit.gyro_scale,
            math.radians(unit.gyro_misalignment_deg),
            unit.gyro_max_rad_s,
        ),
    )


def _draw(
    triad: _Triad, batch: int, generator: torch.Generator
) -> tuple[Float64[Tensor, "b 3"], Float64[Tensor, "b 3 3"]]:
    """Bias and matrix of a triad."""
    bias = _normal(triad.bias_sigma, (batch, 3), generator)
    scale = torch.diag_embed(_normal(triad.scale_sigma, (batch, 3), generator))
    tilt = _normal(triad.misalignment_rad, (batch, 3, 3), generator)
    return bias, scale + tilt * (1 - torch.eye(3, dtype=torch.float64))


def _read(
    triad: _Triad,
    bias: Float64[Tensor, "#b 3"],
    matrix: Float64[Tensor, "#b 3 3"],
    true: Float64[Tensor, "b 3"],
    dt_s: float,
    generator: torch.Generator,
) -> Float64[Tensor, "b 3"]:
    """Increments of a triad."""
    noise = _normal(triad.walk * math.sqrt(dt_s), true.shape, generator).to(true.device)
    read = true + bias * dt_s + noise + (matrix * true[:, None, :]).sum(-1)
    return read.clamp(-triad.limit * dt_s, triad.limit * dt_s)


def _normal(sigma: float, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Normal numbers on the CPU; without a sigma, zeros that draw nothing."""
    if sigma == 0:
        return torch.zeros(shape, dtype=torch.float64)
    return sigma * torch.randn(shape, generator=generator, dtype=torch.float64)
