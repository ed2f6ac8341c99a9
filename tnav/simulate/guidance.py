"""Guidance on the navigation state: coast, Apollo's quadratic law twice, a terminal descent.

The law (Klumpp 1974, "Apollo lunar descent guidance", Automatica 10, 133-146) commands the
acceleration that begins the quadratic-in-time one from here to a target state (r, v, a) at a time
T from now::

    a_now = 12 (r - p) / T^2 - 6 (v + v_now) / T + a

T is the root of the cubic that gives the profile a wanted jerk at the target along one axis. From
that, gravity and what the turning of L adds are taken away: what is left is the specific force
that the engines have to give. Only what navigation believes enters; the engines' limits, lags and
the ground are the lander's own.
"""

import math
from dataclasses import dataclass
from enum import IntEnum

import torch
from jaxtyping import Float64, Int64
from pydantic import Field
from torch import Tensor

from tnav.config import Recipe
from tnav.errors import ConfigError
from tnav.geometry.moon import (
    RADIUS_M,
    LocalFrame,
    gravity_L,
    up_L,
)
from tnav.simulate.lander import Orbit, forward_L, initial_orbit, turning_field_L

_NEWTON_STEPS = 4  # from the time-to-go of a step ago; more than that only where navigation jumps
_POINTING_M_S2 = 1e-3  # a command that turns the body and leaves the engines off


class Phase(IntEnum):
    """What the lander is doing; phases only go forwards."""

    COAST = 0
    BRAKING = 1
    APPROACH = 2
    TERMINAL = 3


class Gate(Recipe):
    """A target state over the site, seen from the direction of flight; acceleration in L."""

    height_m: float = Field(gt=0)  # above the ground at the site
    uprange_m: float = Field(default=0.0, ge=0)
    down_m_s: float = Field(gt=0)
    forward_m_s: float = Field(default=0.0, ge=0)
    up_m_s2: float  # acceleration
    back_m_s2: float = Field(default=0.0, ge=0)


class Guidance(Recipe):
    """Plan of a descent.

    The gates are chosen so that the last 10 km are flown nearly upright, and that the lander passes
    900 m at about 44 m/s, as RESILIENCE's plan did (press); the times, by flying it.
    """

    approach_azimuth_deg: float = 0.0  # direction of flight at the site
    orbit: Orbit = Orbit()
    coast_s: float = Field(default=10.0, ge=0)  # from the start to ignition
    ignition_downrange_m: float = Field(default=405e3, gt=0)  # along the ground, to the site
    braking_s: float = Field(default=435.0, gt=0)  # planned
    high_gate: Gate = Gate(
        height_m=10e3,
        uprange_m=2000.0,
        down_m_s=140.0,
        forward_m_s=40.0,
        up_m_s2=-1.0,
        back_m_s2=5.0,
    )
    low_gate: Gate = Gate(height_m=100.0, down_m_s=8.0, up_m_s2=1.1)
    approach_s: float = Field(default=135.0, gt=0)  # planned
    frozen_s: float = Field(default=8.0, gt=0)  # time-to-go under which it is not solved any more
    tilt_max_deg: float = Field(default=20.0, gt=0, lt=90)  # commanded, after braking
    # Nearly upright, the engines are not asked for all they have: 4 m/s^2 leaves 2.4 over the lunar
    # weight, somewhat more than RESILIENCE's last two reports show (1.85).
    lift_max_m_s2: float = Field(default=4.0, gt=0)  # commanded, after braking
    touchdown_m_s: float = Field(default=1.5, gt=0)
    touchdown_below_m: float = Field(default=10.0, gt=0)  # constant speed from here down
    descent_gain_1_s: float = Field(default=0.8, gt=0)  # of the terminal descent's speed
    drift_gain_1_s: float = Field(default=0.4, gt=0)  # of the horizontal velocity

    @property
    def start_downrange_m(self) -> float:
        """Arc to the site at the start, from which the coast leads to ignition."""
        ground_speed = self.orbit.perilune_speed_m_s / (1 + self.orbit.perilune_m / RADIUS_M)
        return self.ignition_downrange_m + self.coast_s * ground_speed


@dataclass(frozen=True, slots=True)
class Plan:
    """The recipe in numbers of one site, on one device. Rows of the tables are the phases."""

    guidance: Guidance
    frame: LocalFrame
    forward_L: Float64[Tensor, "3"]  # direction of flight, level at the site
    target_L: Float64[Tensor, "4 3"]  # m
    target_velocity_L: Float64[Tensor, "4 3"]  # m/s
    target_acceleration_L: Float64[Tensor, "4 3"]  # m/s^2
    axis_L: Float64[Tensor, "4 3"]  # along which time-to-go is solved
    jerk_m_s3: Float64[Tensor, "4"]  # wanted at the target along that axis
    ignition_m: float  # distance along forward_L to the high gate at ignition


@dataclass(frozen=True, slots=True)
class GuidanceState:
    """What guidance remembers from step to step."""

    t_s: float
    phase: Int64[Tensor, " b"]  # a Phase
    to_go_s: Float64[Tensor, " b"]  # to the target of the phase


def plan_descent(
    guidance: Guidance, frame: LocalFrame, ground_z_m: float, device: torch.device | str = "cpu"
) -> Plan:
    """Targets and jerks of a site.

    Args:
        guidance: the recipe.
        frame: local frame of the site; the target is above its origin.
        ground_z_m: height in L of the ground at the site, as the map has it.
        device: of the descents.

    Raises:
        ConfigError: the gates are out of order in height, in speed or along the track.
    """
    high, low = guidance.high_gate, guidance.low_gate
    start, velocity = initial_orbit(
        frame,
        guidance.orbit,
        torch.tensor([guidance.ignition_downrange_m], dtype=torch.float64),
        guidance.approach_azimuth_deg,
    )
    forward = forward_L(guidance.approach_azimuth_deg)
    ignition_m = float(-(start[0] @ forward)) - high.uprange_m
    _check(guidance, ground_z_m, ignition_m)
    up = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    rows = [_target(gate, forward, ground_z_m) for gate in (high, high, low, low)]
    braking_jerk = _jerk(
        guidance.braking_s,
        ignition_m,
        float(velocity[0] @ forward),
        high.forward_m_s,
        -high.back_m_s2,
    )
    approach_jerk = _jerk(
        guidance.approach_s,
        high.height_m - low.height_m,
        high.down_m_s,
        low.down_m_s,
        -low.up_m_s2,
    )
    return Plan(
        guidance=guidance,
        frame=frame,
        forward_L=forward.to(device),
        target_L=torch.stack([row[0] for row in rows]).to(device),
        target_velocity_L=torch.stack([row[1] for row in rows]).to(device),
        target_acceleration_L=torch.stack([row[2] for row in rows]).to(device),
        axis_L=torch.stack([forward, forward, -up, -up]).to(device),
        jerk_m_s3=torch.tensor(
            [braking_jerk, braking_jerk, approach_jerk, approach_jerk], dtype=torch.float64
        ).to(device),
        ignition_m=ignition_m,
    )


def _check(guidance: Guidance, ground_z_m: float, ignition_m: float) -> None:
    """Raises ConfigError where the parts of a plan do not follow one another."""
    high, low = guidance.high_gate, guidance.low_gate
    perilune_m = guidance.orbit.perilune_m - ground_z_m
    if not guidance.touchdown_below_m < low.height_m < high.height_m < perilune_m:
        raise ConfigError(
            f"guidance: touchdown_below_m {guidance.touchdown_below_m:g}, low_gate.height_m "
            f"{low.height_m:g}, high_gate.height_m {high.height_m:g}, perilune {perilune_m:g} m "
            "over the ground; expected each above the one before"
        )
    if not guidance.touchdown_m_s < low.down_m_s < high.down_m_s:
        raise ConfigError(
            f"guidance: touchdown_m_s {guidance.touchdown_m_s:g}, low_gate.down_m_s "
            f"{low.down_m_s:g}, high_gate.down_m_s {high.down_m_s:g}; expected each above the one "
            "before"
        )
    if ignition_m <= 0:
        raise ConfigError(
            f"guidance: ignition_downrange_m {guidance.ignition_downrange_m:g}, expected more than "
            f"high_gate.uprange_m, {high.uprange_m:g}"
        )


def before_guidance(plan: Plan, t_s: float, batch: int) -> GuidanceState:
    """Memory of descents that coast towards ignition."""
    return GuidanceState(
        t_s,
        torch.full((batch,), int(Phase.COAST), device=plan.forward_L.device),
        torch.full(
            (batch,), plan.guidance.braking_s, dtype=torch.float64, device=plan.forward_L.device
        ),
    )


def guide(
    plan: Plan,
    memory: GuidanceState,
    t_s: float,
    position_L: Float64[Tensor, "b 3"],
    velocity_L: Float64[Tensor, "b 3"],
    agl_m: Float64[Tensor, " b"],
) -> tuple[GuidanceState, Float64[Tensor, "b 3"]]:
    """What to remember, and the specific force wanted in L (m/s^2).

    Args:
        plan: the descent's plan.
        memory: of the step before.
        t_s: now.
        position_L: as navigation has it, m.
        velocity_L: as navigation has it, m/s.
        agl_m: height above the ground as navigation has it.
    """
    phase, to_go_s = _next_phase(plan, memory, t_s, position_L, velocity_L, agl_m)
    to_go_s = _solve_to_go(plan, phase, to_go_s, position_L, velocity_L)
    quadratic = _quadratic(plan, phase, to_go_s, position_L, velocity_L)
    terminal = _terminal(plan, position_L, velocity_L, agl_m)
    wanted = torch.where((phase == Phase.TERMINAL)[:, None], terminal, quadratic)
    field = gravity_L(position_L, plan.frame) + turning_field_L(position_L, velocity_L, plan.frame)
    force = wanted - field
    upright = _upright(plan.guidance, force, position_L)
    force = torch.where((phase >= Phase.APPROACH)[:, None], upright, force)
    pointing = _POINTING_M_S2 * force / force.norm(dim=-1, keepdim=True)
    force = torch.where((phase == Phase.COAST)[:, None], pointing, force)
    return GuidanceState(t_s, phase, to_go_s), force


def _next_phase(
    plan: Plan,
    memory: GuidanceState,
    t_s: float,
    position_L: Float64[Tensor, "b 3"],
    velocity_L: Float64[Tensor, "b 3"],
    agl_m: Float64[Tensor, " b"],
) -> tuple[Int64[Tensor, " b"], Float64[Tensor, " b"]]:
    """Phase now, and time-to-go before it is solved anew; at most one change a step."""
    guidance = plan.guidance
    was = memory.phase
    coasting, braking, approaching = (
        was == phase for phase in (Phase.COAST, Phase.BRAKING, Phase.APPROACH)
    )
    counted = memory.to_go_s - (t_s - memory.t_s)  # a clock between solutions
    distance = ((plan.target_L[Phase.COAST] - position_L) * plan.forward_L).sum(-1)
    coast_s = (distance - plan.ignition_m) / (velocity_L * plan.forward_L).sum(-1).clamp_min(1.0)
    ignite = coasting & (coast_s <= 0)
    pitch_up = braking & (counted <= 0)
    let_down = approaching & ((counted <= 0) | (agl_m <= guidance.low_gate.height_m))
    phase = was + (ignite | pitch_up | let_down).to(was.dtype)
    to_go_s = torch.where(coasting, guidance.braking_s + coast_s, counted)
    to_go_s = torch.where(pitch_up, torch.full_like(counted, guidance.approach_s), to_go_s)
    return phase, to_go_s


def _solve_to_go(
    plan: Plan,
    phase: Int64[Tensor, " b"],
    to_go_s: Float64[Tensor, " b"],
    position_L: Float64[Tensor, "b 3"],
    velocity_L: Float64[Tensor, "b 3"],
) -> Float64[Tensor, " b"]:
    """Root of ``j T^3 - 6 a T^2 + (6 v_now + 18 v) T - 24 d = 0`` (Klumpp 1974) by Newton.

    d is the distance to the target along the phase's axis, j, a, v the target's. While coasting,
    near the target and in the terminal descent the clock counts on.
    """
    axis = plan.axis_L[phase]
    distance = ((plan.target_L[phase] - position_L) * axis).sum(-1)
    speed = 6 * (velocity_L * axis).sum(-1)
    speed = speed + 18 * (plan.target_velocity_L[phase] * axis).sum(-1)
    a = (plan.target_acceleration_L[phase] * axis).sum(-1)
    jerk = plan.jerk_m_s3[phase]
    root = to_go_s
    for _ in range(_NEWTON_STEPS):
        value = ((jerk * root - 6 * a) * root + speed) * root - 24 * distance
        slope = (3 * jerk * root - 12 * a) * root + speed
        root = root - value / torch.where(slope.abs() < 1e-6, torch.ones_like(slope), slope)
    flying = (phase == Phase.BRAKING) | (phase == Phase.APPROACH)
    # Past the target there is no root ahead: then the clock goes on. Far from it Newton may leap.
    root = root.clamp_max(2 * max(plan.guidance.braking_s, plan.guidance.approach_s))
    return torch.where(flying & (root > 0) & (to_go_s > plan.guidance.frozen_s), root, to_go_s)


def _quadratic(
    plan: Plan,
    phase: Int64[Tensor, " b"],
    to_go_s: Float64[Tensor, " b"],
    position_L: Float64[Tensor, "b 3"],
    velocity_L: Float64[Tensor, "b 3"],
) -> Float64[Tensor, "b 3"]:
    """Acceleration in L towards the target of the phase.

    The gains grow without bound as time-to-go ends. So for the last seconds the target is moved on
    along its own path, and stays as far ahead as it was when they began.
    """
    ahead = to_go_s.clamp_min(plan.guidance.frozen_s)[:, None]
    further = ahead - to_go_s[:, None]
    a = plan.target_acceleration_L[phase]
    v = plan.target_velocity_L[phase]
    r = plan.target_L[phase] + (v + 0.5 * a * further) * further
    v = v + a * further
    return 12 * (r - position_L) / ahead.square() - 6 * (v + velocity_L) / ahead + a


def _terminal(
    plan: Plan,
    position_L: Float64[Tensor, "b 3"],
    velocity_L: Float64[Tensor, "b 3"],
    agl_m: Float64[Tensor, " b"],
) -> Float64[Tensor, "b 3"]:
    """Acceleration of the terminal descent: no drift, and a speed that height allows.

    ``v(h)^2 = v_touchdown^2 + 2 a (h - h_touchdown)`` with the deceleration a that leads there from
    the low gate; with a negative height the lander goes on down at the touchdown speed.
    """
    guidance, low = plan.guidance, plan.guidance.low_gate
    deceleration = (low.down_m_s**2 - guidance.touchdown_m_s**2) / (
        2 * (low.height_m - guidance.touchdown_below_m)
    )
    above = (agl_m - guidance.touchdown_below_m).clamp_min(0.0)
    down = (guidance.touchdown_m_s**2 + 2 * deceleration * above).sqrt()
    up = up_L(position_L)
    climb = (velocity_L * up).sum(-1, keepdim=True)
    drift = velocity_L - climb * up
    forwards = torch.where(above > 0, torch.full_like(above, deceleration), torch.zeros_like(above))
    lift = forwards - guidance.descent_gain_1_s * (down + climb[:, 0])
    return lift[:, None] * up - guidance.drift_gain_1_s * drift


def _upright(
    guidance: Guidance, force_L: Float64[Tensor, "b 3"], position_L: Float64[Tensor, "b 3"]
) -> Float64[Tensor, "b 3"]:
    """The force held within its limits after braking; first the lift, then what is level."""
    up = up_L(position_L)
    lift = (force_L * up).sum(-1, keepdim=True)
    aside = force_L - lift * up
    lift = lift.clamp(_POINTING_M_S2, guidance.lift_max_m_s2)  # the engines never push down
    most = math.tan(math.radians(guidance.tilt_max_deg)) * lift
    size = aside.norm(dim=-1, keepdim=True)
    return lift * up + aside * torch.where(size > most, most / size, torch.ones_like(size))


def _target(
    gate: Gate, forward: Float64[Tensor, "3"], ground_z_m: float
) -> tuple[Float64[Tensor, "3"], Float64[Tensor, "3"], Float64[Tensor, "3"]]:
    """Position, velocity and acceleration of a gate in L."""
    up = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    return (
        (ground_z_m + gate.height_m) * up - gate.uprange_m * forward,
        gate.forward_m_s * forward - gate.down_m_s * up,
        gate.up_m_s2 * up - gate.back_m_s2 * forward,
    )


def _jerk(
    time_s: float, distance_m: float, speed_m_s: float, target_m_s: float, target_m_s2: float
) -> float:
    """Jerk at the target, m/s^3, of the quadratic profile that takes a planned time."""
    return (
        24 * distance_m - (6 * speed_m_s + 18 * target_m_s) * time_s + 6 * target_m_s2 * time_s**2
    ) / time_s**3
