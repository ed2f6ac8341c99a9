"""Strapdown mechanisation in a frame that turns with the Moon, and its error dynamics.

With the frame's spin W against inertial space and the Moon's centre c (Groves 2013, section 5.3)::

    p' = v
    v' = R f + g(p) - 2 W x v - W x (W x (p - c))      g with J2, its gradient without
    R' = R [w x] - [W x] R

The error state is ``(dp_L, dv_L, dtheta_L, gyro bias, accelerometer bias, thrust scale)``, then
the errors of map and altimeter, which no inertial unit sees, and the pose at the last exposure (a
clone, Roumeliotis and Burdick 2002), with ``R = Exp(dtheta_L) R_hat``.

The thrust scale is the part of the accelerometers' scale and misalignment that a descent can show:
as the engine pushes along one body axis, the matrix of nine errors acts through its column there.
The functions here know tensors only; the filter keeps the records.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float64
from torch import Tensor

from tnav.geometry.moon import GM_M3_S2, J2, J2_RADIUS_M, RADIUS_M, LocalFrame
from tnav.geometry.pose import skew, so3_exp

POSITION = slice(0, 3)
VELOCITY = slice(3, 6)
ATTITUDE = slice(6, 9)
GYRO_BIAS = slice(9, 12)
ACCELEROMETER_BIAS = slice(12, 15)
THRUST_SCALE = slice(15, 18)
INERTIAL = 18  # states before this one move with the inertial unit
MAP_SHIFT = slice(18, 20)  # of the whole map, east and north, m
MAP_MEAN = 20  # the map's vertical error (map minus ground) as one image averages it, m
MAP_LOCAL = 21  # the same under the lander, m
MAP_BEAM = 22  # the same where the altimeter's beam meets the ground, m
RANGE_BIAS = 23  # the altimeter's own, m
MAP_SIDE = slice(24, 26)  # the map's error as one image sees it sideways, east and north, m
CORE = 26  # states before this one are of now
CLONE_POSITION = slice(26, 29)
CLONE_ATTITUDE = slice(29, 32)
STATES = 32


@dataclass(frozen=True, slots=True)
class FrameStep:
    """What one step of the local frame contributes, the same for every descent."""

    centre_L: Float64[Tensor, "3"]  # the Moon's centre, m
    coriolis: Float64[Tensor, "3 3"]  # -2 [W x], 1/s
    centrifugal: Float64[Tensor, "3 3"]  # -[W x]^2, 1/s^2
    turn: Float64[Tensor, "3 3"]  # Exp(-W dt)
    pole_L: Float64[Tensor, "3"]
    dynamics: Float64[Tensor, "18 18"]  # constant part of the error dynamics times dt
    identity: Float64[Tensor, "18 18"]


@dataclass(frozen=True, slots=True)
class Advance:
    """A mechanised step, and what the error dynamics need of it."""

    position_L: Float64[Tensor, "b 3"]
    velocity_L: Float64[Tensor, "b 3"]
    R_L_B: Float64[Tensor, "b 3 3"]
    mean_R_L_B: Float64[Tensor, "b 3 3"]  # over the step, to second order (not a rotation)
    delta_v_L: Float64[Tensor, "b 3"]  # integral of specific force, m/s
    gravity_gradient: Float64[Tensor, "b 3 3"]  # dg/dp at the middle of the step, 1/s^2


@lru_cache(maxsize=64)
def frame_step(
    frame: LocalFrame,
    dt_s: float,
    gyro_bias_time_s: float,
    accelerometer_bias_time_s: float,
    device: torch.device,
) -> FrameStep:
    """Constants of a step; cached, because building them costs more than the step itself."""
    spin = frame.spin_L()
    cross = skew(spin)
    dynamics = torch.zeros(INERTIAL, INERTIAL, dtype=torch.float64)
    eye = torch.eye(3, dtype=torch.float64)
    dynamics[POSITION, VELOCITY] = eye
    dynamics[VELOCITY, POSITION] = -cross @ cross
    dynamics[VELOCITY, VELOCITY] = -2 * cross
    dynamics[ATTITUDE, ATTITUDE] = -cross
    dynamics[GYRO_BIAS, GYRO_BIAS] = -eye / gyro_bias_time_s
    dynamics[ACCELEROMETER_BIAS, ACCELEROMETER_BIAS] = -eye / accelerometer_bias_time_s
    return FrameStep(
        centre_L=frame.centre_L.to(device),
        coriolis=(-2 * cross).to(device),
        centrifugal=(-cross @ cross).to(device),
        turn=so3_exp(-spin * dt_s).to(device),
        dynamics=(dynamics * dt_s).to(device),
        pole_L=frame.pole_L.to(device),
        identity=torch.eye(INERTIAL, dtype=torch.float64).to(device),
    )


def advance(
    position_L: Float64[Tensor, "b 3"],
    velocity_L: Float64[Tensor, "b 3"],
    R_L_B: Float64[Tensor, "b 3 3"],
    delta_v_B: Float64[Tensor, "b 3"],
    delta_theta_B: Float64[Tensor, "b 3"],
    dt_s: float,
    step: FrameStep,
) -> Advance:
    """One step of the mechanisation, second order in ``dt_s``.

    Args:
        delta_v_B: integral of specific force in the turning body axes, bias removed, m/s.
        delta_theta_B: integral of body rate against inertial space, bias removed, rad.
    """
    # Body axes turn while they sum up the specific force: Savage's rotation compensation.
    once_B = torch.linalg.cross(delta_theta_B, delta_v_B)
    compensated_B = delta_v_B + 0.5 * once_B + torch.linalg.cross(delta_theta_B, once_B) / 6
    delta_v_L = (R_L_B @ compensated_B[..., None]).squeeze(-1)
    R_next = step.turn @ R_L_B @ so3_exp(delta_theta_B)

    radial = position_L + (0.5 * dt_s) * velocity_L - step.centre_L  # at the middle of the step
    radius2 = radial.square().sum(-1, keepdim=True)
    gm_r3 = GM_M3_S2 / (radius2 * radius2.sqrt())
    along_pole = (radial * step.pole_L).sum(-1, keepdim=True)
    flattening = (1.5 * J2 * J2_RADIUS_M**2) / radius2
    oblate = (1 - 5 * along_pole.square() / radius2) * radial + 2 * along_pole * step.pole_L
    gravity = -gm_r3 * (radial + flattening * oblate)
    middle_velocity = velocity_L + 0.5 * (delta_v_L + dt_s * gravity)
    field = gravity + radial @ step.centrifugal.mT + middle_velocity @ step.coriolis.mT
    velocity_next = velocity_L + delta_v_L + dt_s * field
    outer = radial[..., :, None] * radial[..., None, :]
    gradient = (3 * gm_r3 / radius2)[..., None] * outer - gm_r3[..., None] * step.identity[:3, :3]
    return Advance(
        position_L=position_L + (0.5 * dt_s) * (velocity_L + velocity_next),
        velocity_L=velocity_next,
        R_L_B=R_next,
        mean_R_L_B=0.5 * (R_L_B + R_next),
        delta_v_L=delta_v_L,
        gravity_gradient=gradient,
    )


def transition(
    moved: Advance, thrust_m_s: Float64[Tensor, " b"], dt_s: float, step: FrameStep
) -> Float64[Tensor, "b 18 18"]:
    """Transition matrix of the inertial states over a step, ``I + A dt + (A dt)^2 / 2``.

    Args:
        thrust_m_s: velocity gained along the body axis of thrust over the step.
    """
    batch = moved.position_L.shape[0]
    a_dt = step.dynamics.expand(batch, INERTIAL, INERTIAL).clone()
    a_dt[:, VELOCITY, POSITION] += dt_s * moved.gravity_gradient
    a_dt[:, VELOCITY, ATTITUDE] = -skew(moved.delta_v_L)
    coupling = -dt_s * moved.mean_R_L_B
    a_dt[:, VELOCITY, ACCELEROMETER_BIAS] = coupling
    a_dt[:, ATTITUDE, GYRO_BIAS] = coupling
    a_dt[:, VELOCITY, THRUST_SCALE] = -thrust_m_s[:, None, None] * moved.mean_R_L_B
    return torch.baddbmm(a_dt + step.identity, a_dt, a_dt, alpha=0.5)


def inertial_noise(
    dt_s: float,
    accelerometer_random_walk: float,
    gyro_random_walk: float,
    accelerometer_bias_sigma: float,
    accelerometer_bias_time_s: float,
    gyro_bias_sigma: float,
    gyro_bias_time_s: float,
    accelerometer_bias_walk: float = 0.0,
    gyro_bias_walk: float = 0.0,
) -> Float64[Tensor, "18 18"]:
    """Covariance that white and bias-driving noise add over a step (on the host).

    White acceleration noise of density n integrates to ``n^2 (dt^3/3, dt^2/2, dt)`` in position,
    position with velocity, and velocity (Groves 2013, eq. 14.82 to second order). A Gauss-Markov
    bias keeps its variance: it is driven by ``sigma^2 (1 - exp(-2 dt / tau))``. A walk adds its
    density times the step.
    """
    eye = torch.eye(3, dtype=torch.float64)
    q = torch.zeros(INERTIAL, INERTIAL, dtype=torch.float64)
    a2 = accelerometer_random_walk**2
    q[POSITION, POSITION] = a2 * dt_s**3 / 3 * eye
    q[POSITION, VELOCITY] = q[VELOCITY, POSITION] = a2 * dt_s**2 / 2 * eye
    q[VELOCITY, VELOCITY] = a2 * dt_s * eye
    q[ATTITUDE, ATTITUDE] = gyro_random_walk**2 * dt_s * eye
    for bias, sigma, time_s, walk in (
        (GYRO_BIAS, gyro_bias_sigma, gyro_bias_time_s, gyro_bias_walk),
        (
            ACCELEROMETER_BIAS,
            accelerometer_bias_sigma,
            accelerometer_bias_time_s,
            accelerometer_bias_walk,
        ),
    ):
        q[bias, bias] = (walk**2 * dt_s - sigma**2 * math.expm1(-2 * dt_s / time_s)) * eye
    return q


def gravity_in_doubt(
    R_L_B: Float64[Tensor, "b 3 3"], height_m: Float64[Tensor, " b"]
) -> Float64[Tensor, "b 32 1"]:
    """Gravity's error where a height that jumps is the ground's: to the accelerometers it is bias.

    Who believes himself 3 km higher than he is misses 0.006 m/s^2 (dg/dr = 2 g / r).
    """
    doubt = torch.zeros(len(height_m), STATES, 1, dtype=height_m.dtype, device=height_m.device)
    up_B = R_L_B[:, 2]  # third row: the vertical in body axes
    doubt[:, ACCELEROMETER_BIAS, 0] = 2 * GM_M3_S2 / RADIUS_M**3 * height_m[:, None] * up_B
    return doubt
