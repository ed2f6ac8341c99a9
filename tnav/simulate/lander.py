"""A lander that flies on command: mass, throttle, attitude and the truth of its motion, batched.

With the frame's spin W against inertial space and the Moon's centre c (Groves 2013, section 5.3)::

    p' = v,   v' = f z_B + g(p) - 2 W x v - W x (W x (p - c)),   f = T / m,   m' = -T / (Isp g0)

Thrust follows its command with a first-order lag, and acts along body z. Attitude follows the
commanded direction with a first-order lag and a limit on its rate, on the shortest way, so that
the body never rolls: it keeps the heading that it was started with.
"""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float64
from pydantic import Field
from torch import Tensor

from tnav.config import Recipe
from tnav.geometry.moon import GM_M3_S2, RADIUS_M, SPIN_RAD_S, LocalFrame, gravity_L, up_L
from tnav.geometry.pose import body_from_thrust, so3_exp

STANDARD_GRAVITY_M_S2 = 9.80665  # defines specific impulse in seconds
# Two directions this far apart (rad) have no way between them to speak of.
_SAME_DIRECTION_RAD = 1e-12


class Lander(Recipe):
    """A lander of RESILIENCE's class.

    Public (ispace): about 1000 kg wet at launch, 340 kg dry, a cluster of small bipropellant
    engines. All else is chosen here: what is left to burn at perilune, the lags, and a thrust that
    brakes from a 100 x 20 km orbit in about seven minutes.
    """

    dry_mass_kg: float = Field(default=340.0, gt=0)
    propellant_kg: float = Field(default=385.0, gt=0)  # at the start of the powered descent
    thrust_max_n: float = Field(default=2500.0, gt=0)
    throttle_least: float = Field(default=0.1, ge=0, lt=1)  # of the maximum, while burning
    specific_impulse_s: float = Field(default=318.0, gt=0)
    throttle_lag_s: float = Field(default=0.2, gt=0)
    attitude_lag_s: float = Field(default=0.5, gt=0)
    slew_max_deg_s: float = Field(default=8.0, gt=0)
    idle_below_m_s2: float = Field(default=0.05, gt=0)  # a smaller command only points the body

    @property
    def exhaust_speed_m_s(self) -> float:
        """Effective exhaust speed."""
        return self.specific_impulse_s * STANDARD_GRAVITY_M_S2


class Orbit(Recipe):
    """The orbit that the descent starts from, near its perilune; a transfer orbit's usual one."""

    perilune_m: float = Field(default=20e3, gt=0)  # altitude above the 1737.4 km sphere
    apolune_m: float = Field(default=100e3, gt=0)

    @property
    def perilune_speed_m_s(self) -> float:
        """Inertial speed at perilune (vis-viva equation)."""
        near, far = RADIUS_M + self.perilune_m, RADIUS_M + self.apolune_m
        return math.sqrt(2 * GM_M3_S2 * far / (near * (near + far)))


@dataclass(frozen=True, slots=True)
class LanderState:
    """Truth of a batch of descents at one time."""

    t_s: float
    position_L: Float64[Tensor, "b 3"]
    velocity_L: Float64[Tensor, "b 3"]  # against L, which turns with the Moon
    R_L_B: Float64[Tensor, "b 3 3"]
    thrust_n: Float64[Tensor, " b"]
    propellant_kg: Float64[Tensor, " b"]
    landed: Bool[Tensor, " b"]  # touched the ground; all else is kept as it was at contact
    thrust_scale: Float64[Tensor, " b"]  # what the engines give of what they are told to


def forward_L(azimuth_deg: float) -> Float64[Tensor, "3"]:
    """Level unit vector at the site of an azimuth counted from north over east."""
    azimuth = math.radians(azimuth_deg)
    return torch.tensor([math.sin(azimuth), math.cos(azimuth), 0.0], dtype=torch.float64)


def initial_orbit(
    frame: LocalFrame,
    orbit: Orbit,
    downrange_m: Float64[Tensor, " b"],
    approach_azimuth_deg: float,
) -> tuple[Float64[Tensor, "b 3"], Float64[Tensor, "b 3"]]:
    """Perilune of an orbit whose ground track leads to the site.

    Args:
        frame: local frame of the site.
        orbit: its altitudes.
        downrange_m: arc along the 1737.4 km sphere from there to the site.
        approach_azimuth_deg: direction of flight at the site, from north over east.

    Returns:
        Position (m) and velocity (m/s) against L, which turns with the Moon: level, towards the
        site, and in inertial space as fast as at the perilune of a Kepler orbit.
    """
    angle = (downrange_m / RADIUS_M)[:, None]
    forward = forward_L(approach_azimuth_deg).to(downrange_m.device)
    up = torch.zeros_like(forward)
    up[2] = 1.0
    radial = torch.cos(angle) * up - torch.sin(angle) * forward
    along = torch.cos(angle) * forward + torch.sin(angle) * up
    spin = frame.spin_L().to(downrange_m.device).expand_as(radial)
    carried = (RADIUS_M + orbit.perilune_m) * torch.linalg.cross(spin, radial)  # by the Moon
    # |along * s + carried| is the inertial speed.
    half = (along * carried).sum(-1, keepdim=True)
    rest = carried.square().sum(-1, keepdim=True) - orbit.perilune_speed_m_s**2
    velocity = (-half + (half.square() - rest).sqrt()) * along
    # perilune * radial - RADIUS_M * up, without cancelling the radius.
    fall = -2 * RADIUS_M * torch.sin(0.5 * angle).square() * up
    position = orbit.perilune_m * radial + fall - RADIUS_M * torch.sin(angle) * forward
    return position, velocity


def at_start(
    lander: Lander,
    t_s: float,
    position_L: Float64[Tensor, "b 3"],
    velocity_L: Float64[Tensor, "b 3"],
    thrust_L: Float64[Tensor, "b 3"],
    forward_L: Float64[Tensor, "3"],
    thrust_scale: Float64[Tensor, " b"] | None = None,
) -> LanderState:
    """Landers with full tanks and engines off.

    Args:
        lander: the recipe.
        t_s: time of the start.
        position_L: positions, m.
        velocity_L: velocities against L, m/s.
        thrust_L: direction of body z, any length but zero.
        forward_L: direction of flight. Body x points to its right, so that body y looks up while
            the lander brakes and forward (``body_from_thrust``'s heading) when it stands upright.
        thrust_scale: true thrust over commanded thrust; None for one.
    """
    one = torch.ones_like(position_L[:, 0])
    right_L = torch.linalg.cross(forward_L.expand_as(position_L), up_L(position_L))
    return LanderState(
        t_s=t_s,
        position_L=position_L,
        velocity_L=velocity_L,
        R_L_B=body_from_thrust(thrust_L, torch.linalg.cross(thrust_L, right_L)),
        thrust_n=0.0 * one,
        propellant_kg=lander.propellant_kg * one,
        landed=torch.zeros_like(one, dtype=torch.bool),
        thrust_scale=one if thrust_scale is None else thrust_scale,
    )


def step(
    lander: Lander,
    state: LanderState,
    command_L: Float64[Tensor, "b 3"],
    frame: LocalFrame,
    dt_s: float,
) -> tuple[LanderState, Float64[Tensor, "b 3"], Float64[Tensor, "b 3"]]:
    """One step under a command that holds over it.

    The engines' share is exact (the rocket equation on the exact integral of the lagging thrust);
    the field of gravity and of the turning frame is taken at the middle of the step, which is
    second order: steps of 0.1 s are good to millimetres over a descent.

    Args:
        lander: the recipe.
        state: the start of the step.
        command_L: specific force wanted, m/s^2. Its size is kept to what the engines can do, and
            under ``idle_below_m_s2`` they are off; its direction is always followed.
        frame: the local frame.
        dt_s: length of the step.

    Returns:
        The end of the step, and what an ideal strapdown unit at the centre of mass sums up over
        it: integrals of specific force (m/s) and of the rate against inertial space (rad), both
        in the turning body axes. Both are zero for a lander that has landed.
    """
    delta_v, thrust_n, propellant_kg = _burn(lander, state, command_L, dt_s)
    turn_L = _turn(lander, state.R_L_B[..., 2], command_L, dt_s)
    # Thrust turns evenly over the step: the integral of Exp(s turn) z over s, to third order.
    z = state.R_L_B[..., 2]
    once = torch.linalg.cross(turn_L, z)
    thrust_axis = z + 0.5 * once + torch.linalg.cross(turn_L, once) / 6
    push_L = delta_v[:, None] * thrust_axis

    middle = state.position_L + (0.5 * dt_s) * state.velocity_L
    gravity = gravity_L(middle, frame)
    middle_velocity = state.velocity_L + 0.5 * (push_L + dt_s * gravity)
    field = gravity + turning_field_L(middle, middle_velocity, frame)
    velocity_L = state.velocity_L + push_L + dt_s * field
    position_L = state.position_L + (0.5 * dt_s) * (state.velocity_L + velocity_L)

    rotation_L = _against_inertial_space(turn_L, frame, dt_s)
    delta_theta_B = (state.R_L_B.mT @ rotation_L[..., None]).squeeze(-1)
    delta_v_B = torch.stack([torch.zeros_like(delta_v), torch.zeros_like(delta_v), delta_v], -1)

    landed, still = state.landed, ~state.landed
    keep = landed[:, None]
    after = LanderState(
        t_s=state.t_s + dt_s,
        position_L=torch.where(keep, state.position_L, position_L),
        velocity_L=torch.where(keep, state.velocity_L, velocity_L),
        R_L_B=torch.where(keep[..., None], state.R_L_B, so3_exp(turn_L) @ state.R_L_B),
        thrust_n=torch.where(landed, state.thrust_n, thrust_n),
        propellant_kg=torch.where(landed, state.propellant_kg, propellant_kg),
        landed=landed,
        thrust_scale=state.thrust_scale,
    )
    return after, delta_v_B * still[:, None], delta_theta_B * still[:, None]


def touch(state: LanderState, agl_m: Float64[Tensor, " b"]) -> LanderState:
    """The state with landers marked as landed whose height above the ground is not positive.

    Position, velocity and attitude stay those of the contact; the engines are off.
    """
    landed = state.landed | (agl_m <= 0)
    return replace(
        state,
        landed=landed,
        thrust_n=torch.where(landed, torch.zeros_like(state.thrust_n), state.thrust_n),
    )


def turning_field_L(
    position_L: Float64[Tensor, "b 3"], velocity_L: Float64[Tensor, "b 3"], frame: LocalFrame
) -> Float64[Tensor, "b 3"]:
    """Coriolis and centrifugal acceleration in L, m/s^2 (Groves 2013, eq. 5.30)."""
    a, b = _spin(frame)
    x, y, z = position_L.unbind(-1)
    u, v, w = velocity_L.unbind(-1)
    sweep = a * (z + RADIUS_M) - b * y  # x component of W x (p - c); the others are b x and -a x
    return torch.stack(
        [
            (a * a + b * b) * x - 2 * (a * w - b * v),
            -b * (sweep + 2 * u),
            a * (sweep + 2 * u),
        ],
        -1,
    )


def _spin(frame: LocalFrame) -> tuple[float, float]:
    """North and up components of L's spin, rad/s; numbers, because the east component is zero."""
    latitude = math.radians(frame.latitude_deg)
    return SPIN_RAD_S * math.cos(latitude), SPIN_RAD_S * math.sin(latitude)


def _against_inertial_space(
    turn_L: Float64[Tensor, "b 3"], frame: LocalFrame, dt_s: float
) -> Float64[Tensor, "b 3"]:
    """Rotation vector of ``Exp(W dt) Exp(turn)`` (Baker, Campbell, Hausdorff to second order).

    The next terms are under 1e-10 rad, because the Moon turns 3e-7 rad in 0.1 s.
    """
    a, b = (rate * dt_s for rate in _spin(frame))
    x, y, z = turn_L.unbind(-1)
    return torch.stack([x + 0.5 * (a * z - b * y), y + a + 0.5 * b * x, z + b - 0.5 * a * x], -1)


def _burn(
    lander: Lander, state: LanderState, command_L: Float64[Tensor, "b 3"], dt_s: float
) -> tuple[Float64[Tensor, " b"], Float64[Tensor, " b"], Float64[Tensor, " b"]]:
    """Speed gained along body z (m/s), thrust (N) and propellant (kg) at the end of the step."""
    mass_kg = lander.dry_mass_kg + state.propellant_kg
    wanted = command_L.norm(dim=-1)
    least_n = lander.throttle_least * lander.thrust_max_n
    told_n = (wanted * mass_kg).clamp(least_n, lander.thrust_max_n) * state.thrust_scale
    told_n = torch.where(wanted < lander.idle_below_m_s2, torch.zeros_like(told_n), told_n)
    lag = lander.throttle_lag_s
    decay = math.exp(-dt_s / lag)
    thrust_n = told_n + (state.thrust_n - told_n) * decay
    impulse_n_s = told_n * dt_s + (state.thrust_n - told_n) * (lag * -math.expm1(-dt_s / lag))
    burnt_kg = torch.minimum(impulse_n_s / lander.exhaust_speed_m_s, state.propellant_kg)
    propellant_kg = state.propellant_kg - burnt_kg
    delta_v = -lander.exhaust_speed_m_s * torch.log1p(-burnt_kg / mass_kg)
    thrust_n = torch.where(propellant_kg > 0, thrust_n, torch.zeros_like(thrust_n))
    return delta_v, thrust_n, propellant_kg


def _turn(
    lander: Lander, z_L: Float64[Tensor, "b 3"], command_L: Float64[Tensor, "b 3"], dt_s: float
) -> Float64[Tensor, "b 3"]:
    """Rotation vector of the body against L over a step, rad: the shortest way, no roll."""
    axis = torch.linalg.cross(z_L, command_L)
    sine, cosine = axis.norm(dim=-1), (z_L * command_L).sum(-1)
    angle = torch.atan2(sine, cosine)  # of an unscaled command; 0 where there is none
    wanted = angle * -math.expm1(-dt_s / lander.attitude_lag_s)
    turned = wanted.clamp_max(math.radians(lander.slew_max_deg_s) * dt_s)
    # A command exactly backwards has no shortest way; the body waits until it has.
    defined = sine > _SAME_DIRECTION_RAD * command_L.norm(dim=-1)
    scale = torch.where(defined, turned / sine, torch.zeros_like(sine))
    return scale[:, None] * axis
