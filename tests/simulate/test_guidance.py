"""Guidance: its law in closed form, and whole descents in closed loop with perfect navigation."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import simulated_device
import torch
from torch import Tensor

from tnav.errors import ConfigError
from tnav.geometry.moon import LocalFrame, altitude_m, gravity_L, up_L
from tnav.geometry.pose import so3_log
from tnav.navigate.mechanisation import advance, frame_step
from tnav.simulate.guidance import (
    Guidance,
    GuidanceState,
    Phase,
    before_guidance,
    guide,
    initial_orbit,
    plan_descent,
)
from tnav.simulate.lander import Lander, LanderState, Orbit, at_start, step, touch, turning_field_L

F64 = torch.float64
FRAME = LocalFrame(60.5, -4.6)
NORTH = torch.tensor([0.0, 1.0, 0.0], dtype=F64)
GROUND_M = -2440.0
GUIDANCE, LANDER = Guidance(), Lander()
PLAN = plan_descent(GUIDANCE, FRAME, GROUND_M)
DISPERSED = 200


def rows(*values):
    return torch.tensor(values, dtype=F64)


def agl_m(state: LanderState) -> Tensor:
    """Over a sphere at the height of the site."""
    return altitude_m(state.position_L) - GROUND_M


def speeds(state: LanderState) -> tuple[Tensor, Tensor]:
    """Downwards and level, m/s."""
    up = up_L(state.position_L)
    down = -(state.velocity_L * up).sum(-1)
    return down, (state.velocity_L + down[:, None] * up).norm(dim=-1)


def tilt_deg(state: LanderState) -> Tensor:
    cosine = (state.R_L_B[:, :, 2] * up_L(state.position_L)).sum(-1)
    return torch.rad2deg(torch.acos(cosine.clamp(-1, 1)))


@dataclass
class Descent:
    """What a batch of descents leaves."""

    start: LanderState
    end: LanderState
    tilt_below_8_km_deg: Tensor
    gate_agl_m: Tensor  # at the end of braking
    plan_speed_m_s: Tensor  # passing 900 m
    gained_m_s: Tensor  # sum of the inertial increments along body z, until contact
    landed_s: Tensor
    mechanised: tuple[Tensor, Tensor, Tensor]  # position, velocity, attitude

    def look(self, was: Tensor, now: Tensor, height_m: Tensor) -> None:
        """Keep what a step shows."""
        state = self.end
        low = (height_m < 8000) & ~state.landed
        self.tilt_below_8_km_deg = torch.maximum(
            self.tilt_below_8_km_deg, torch.where(low, tilt_deg(state), 0.0)
        )
        through = (was == Phase.BRAKING) & (now == Phase.APPROACH)
        passing = self.plan_speed_m_s.isnan() & (height_m < 900)
        speed = state.velocity_L.norm(dim=-1)
        self.gate_agl_m = torch.where(through, height_m, self.gate_agl_m)
        self.plan_speed_m_s = torch.where(passing, speed, self.plan_speed_m_s)


def fly(
    start: LanderState,
    memory: GuidanceState,
    wrong_m: Callable[[Tensor], Tensor],
    dt_s: float,
    every: int,
) -> Descent:
    """A closed loop on the true state, but for its height, guided every so many steps."""
    batch = start.position_L.shape[0]
    aside = torch.zeros(batch, 3, dtype=F64)
    state, height = start, agl_m(start)
    constants = frame_step(FRAME, dt_s, 1e9, 1e9, torch.device("cpu"))
    nav = (start.position_L, start.velocity_L, start.R_L_B)
    zero, nan = torch.zeros(batch, dtype=F64), torch.full((batch,), torch.nan, dtype=F64)
    out = Descent(start, start, zero, nan, nan, zero, nan, nav)
    for k in range(round(1200 / dt_s)):
        if k % every == 0:
            was, aside[:, 2] = memory.phase, wrong_m(height)
            believed, above = state.position_L + aside, height + aside[:, 2]
            memory, command = guide(PLAN, memory, state.t_s, believed, state.velocity_L, above)
            if k % 4 == 0 or not torch.equal(was, memory.phase):
                out.look(was, memory.phase, height)
        after, delta_v, delta_theta = step(LANDER, state, command, FRAME, dt_s)
        moved = advance(*nav, delta_v, delta_theta, dt_s, constants)
        keep = state.landed[:, None]
        nav = (
            torch.where(keep, nav[0], moved.position_L),
            torch.where(keep, nav[1], moved.velocity_L),
            torch.where(keep[..., None], nav[2], moved.R_L_B),
        )
        out.gained_m_s = out.gained_m_s + delta_v[:, 2]
        height = agl_m(after)
        new = touch(after, height)
        out.landed_s = torch.where(new.landed & ~state.landed, new.t_s, out.landed_s)
        out.end = state = new
        if bool(state.landed.all()):
            break
    out.mechanised = nav
    return out


def started(batch: int, generator: torch.Generator | None = None) -> LanderState:
    """Starts before ignition; the first is nominal, the others are dispersed where wanted."""
    arc = torch.full((batch,), GUIDANCE.start_downrange_m, dtype=F64)
    p, v = initial_orbit(FRAME, GUIDANCE.orbit, arc, GUIDANCE.approach_azimuth_deg)
    scale = torch.ones(batch, dtype=F64)
    if generator is not None:
        p[1:] += 1000 * torch.randn(batch - 1, 3, generator=generator, dtype=F64)
        v[1:] += 2 * torch.randn(batch - 1, 3, generator=generator, dtype=F64)
        scale[1:] += 0.02 * torch.randn(batch - 1, generator=generator, dtype=F64)
    _, command = guide(PLAN, before_guidance(PLAN, 0.0, batch), 0.0, p, v, altitude_m(p))
    return at_start(LANDER, 0.0, p, v, command, PLAN.forward_L, scale)


@pytest.fixture(scope="module")
def descents() -> Descent:
    """The nominal descent and 200 dispersed ones, at 10 Hz, guided at 5 Hz."""
    start = started(DISPERSED + 1, torch.Generator().manual_seed(11))
    memory = before_guidance(PLAN, 0.0, DISPERSED + 1)
    return fly(start, memory, torch.zeros_like, 0.1, 2)


@pytest.fixture(scope="module")
def misled() -> Descent:
    """From the high gate: 300 m too high, 3 km too low; four wrong until 893 m (RESILIENCE)."""
    always = rows(300.0, -3000.0, 0.0, 0.0, 0.0, 0.0)
    at_first = rows(0.0, 0.0, -500.0, 250.0, 750.0, 1500.0)
    position = (PLAN.target_L[1] - always[:, None] * NORTH.roll(1)).contiguous()
    velocity = PLAN.target_velocity_L[1].repeat(6, 1)
    start = at_start(LANDER, 0.0, position, velocity, NORTH.roll(1).repeat(6, 1), NORTH)
    start = replace(start, propellant_kg=rows(83.0).repeat(6))  # what braking leaves
    memory = GuidanceState(0.0, torch.full((6,), int(Phase.APPROACH)), rows(135.0).repeat(6))
    return fly(start, memory, lambda h: always + torch.where(h < 893, 0.0, at_first), 0.4, 1)


def test_all_dispersed_descents_land_softly_and_on_target(descents: Descent) -> None:
    end = descents.end
    assert bool(end.landed.all())
    down, level = speeds(end)
    assert float(down.min()) > 0.5
    assert float(down.max()) < 2.0
    assert float(level.max()) < 1.0
    assert float(end.position_L[:, :2].norm(dim=-1).max()) < 20.0
    assert float(end.propellant_kg.min()) > 0.05 * LANDER.propellant_kg
    assert float(descents.tilt_below_8_km_deg.max()) < 25.0
    assert float(descents.start.position_L[1:].std(0).min()) / 1000 > 0.5  # truly dispersed
    assert float(descents.start.thrust_scale.std()) > 0.01


def test_the_nominal_descent_is_the_one_that_was_planned(descents: Descent) -> None:
    assert 580 < float(descents.landed_s[0]) < 620
    assert float(descents.gate_agl_m[0]) == pytest.approx(GUIDANCE.high_gate.height_m, abs=50)
    assert float(descents.plan_speed_m_s[0]) == pytest.approx(44.0, abs=4.0)
    assert float(descents.end.propellant_kg[0]) == pytest.approx(31.8, abs=1.0)
    # It stands as it flew: upright, body y forward.
    assert float(tilt_deg(descents.end)[0]) < 0.5
    assert float(descents.end.R_L_B[0, :, 1] @ PLAN.forward_L) > 0.999


def test_propellant_follows_the_rocket_equation(descents: Descent) -> None:
    mass = LANDER.dry_mass_kg + descents.end.propellant_kg
    full = LANDER.dry_mass_kg + LANDER.propellant_kg
    gained = LANDER.exhaust_speed_m_s * torch.log(full / mass)
    assert torch.allclose(descents.gained_m_s, gained, rtol=1e-10)
    assert 1900 < float(gained[0]) < 2300  # 1.7 km/s of orbit, the rest is lost to gravity


def test_increments_mechanise_to_the_truth_over_a_descent(descents: Descent) -> None:
    """10 Hz, from the true start, by the navigation's own mechanisation."""
    position, velocity, R_L_B = descents.mechanised
    assert float((position - descents.end.position_L).norm(dim=-1).max()) < 0.5
    assert float((velocity - descents.end.velocity_L).norm(dim=-1).max()) < 2e-3
    assert float(so3_log(R_L_B @ descents.end.R_L_B.mT).norm(dim=-1).max()) < 1e-6


def test_believing_to_be_too_high_crashes(misled: Descent) -> None:
    down, _ = speeds(misled.end)
    assert bool(misled.end.landed[0])
    assert float(down[0]) > 10.0
    assert float(misled.end.propellant_kg[0]) > 0


def test_believing_to_be_too_low_hovers_until_the_tank_is_dry(misled: Descent) -> None:
    down, _ = speeds(misled.end)
    assert bool(misled.end.landed[1])
    assert float(misled.end.propellant_kg[1]) == 0.0
    assert float(down[1]) > 50.0  # it fell from kilometres
    assert float(misled.landed_s[1]) > float(misled.landed_s[0]) + 120


def test_height_found_in_time_is_recovered_from_and_found_late_is_not(misled: Descent) -> None:
    down, _ = speeds(misled.end)
    assert float(down[2:5].max()) < 2.5
    assert float(down[5]) > 10


def at(phase: Phase, position, velocity, agl=5000.0, to_go_s=100.0, plan=PLAN, batch=1):
    """One call of guidance in a phase."""
    memory = GuidanceState(
        0.0, torch.full((batch,), int(phase)), torch.full((batch,), to_go_s, dtype=F64)
    )
    height = torch.full((batch,), agl, dtype=F64) if isinstance(agl, float) else agl
    return guide(plan, memory, 0.0, position, velocity, height)


def acceleration(command, position, velocity):
    """What a commanded specific force makes of the velocity against L."""
    return command + gravity_L(position, FRAME) + turning_field_L(position, velocity, FRAME)


@pytest.mark.parametrize(("phase", "to_go_s"), [(Phase.BRAKING, 300.0), (Phase.APPROACH, 90.0)])
@pytest.mark.parametrize("guess", [0.6, 1.03, 1.5])  # navigation may jump
def test_a_state_on_a_quadratic_profile_is_flown_along_it(phase, to_go_s, guess):
    """Klumpp's law by its definition: profiles quadratic in time, with the plan's jerk."""
    T = to_go_s
    a, v, r = (
        table[phase]
        for table in (PLAN.target_acceleration_L, PLAN.target_velocity_L, PLAN.target_L)
    )
    jerk = rows(1e-4, -2e-4, 3e-4)
    axis = PLAN.axis_L[phase]
    jerk = jerk + (PLAN.jerk_m_s3[phase] - jerk @ axis) * axis
    snap = rows(1e-6, 2e-6, -1e-6) if phase is Phase.BRAKING else rows(1e-7, 1e-7, 1e-7)
    position = r - v * T + a * T**2 / 2 - jerk * T**3 / 6 + snap * T**4 / 24
    velocity = v - a * T + jerk * T**2 / 2 - snap * T**3 / 6
    now = a - jerk * T + snap * T**2 / 2
    memory, command = at(phase, position[None], velocity[None], to_go_s=guess * T)
    assert float(memory.to_go_s) == pytest.approx(T, abs=1e-6)
    if phase is Phase.BRAKING:  # in the approach limits bound the command
        assert torch.allclose(
            acceleration(command, position[None], velocity[None])[0], now, atol=1e-8
        )


def test_close_to_a_target_the_law_stays_gentle():
    """On the target's own path there is nothing to correct, however short the time-to-go."""
    for to_go_s in (7.9, 3.0, 0.1):
        a, v, r = PLAN.target_acceleration_L[1], PLAN.target_velocity_L[1], PLAN.target_L[1]
        position = (r - v * to_go_s + a * to_go_s**2 / 2)[None]
        velocity = (v - a * to_go_s)[None]
        memory, command = at(Phase.BRAKING, position, velocity, to_go_s=to_go_s)
        assert float(memory.to_go_s) == to_go_s  # the clock, not the cubic
        assert torch.allclose(acceleration(command, position, velocity)[0], a, atol=1e-9)
        off = position + rows([10.0, 0.0, 0.0])
        _, pushed = at(Phase.BRAKING, off, velocity, to_go_s=to_go_s)
        expected = 12 * 10.0 / GUIDANCE.frozen_s**2
        assert float((pushed - command).norm()) == pytest.approx(expected, rel=1e-3)


def test_ignites_at_its_place_and_not_before():
    arc = rows(GUIDANCE.ignition_downrange_m + 1.0, GUIDANCE.ignition_downrange_m - 1.0)
    position, velocity = initial_orbit(FRAME, GUIDANCE.orbit, arc, GUIDANCE.approach_azimuth_deg)
    memory, command = at(Phase.COAST, position, velocity, to_go_s=435.0, batch=2)
    assert memory.phase.tolist() == [Phase.COAST, Phase.BRAKING]
    size = command.norm(dim=-1)
    assert float(size[0]) < LANDER.idle_below_m_s2
    assert float(size[1]) > 2.0
    # The coasting body already points where it will push, and the plan's time is the cubic's.
    cosine = (command[0] @ command[1]) / size.prod()
    assert float(cosine) == pytest.approx(1.0, abs=1e-6)
    assert float(memory.to_go_s[1]) == pytest.approx(GUIDANCE.braking_s, abs=0.1)


def test_phases_change_at_their_thresholds_and_never_back():
    position, velocity = rows([0.0, 0.0, GROUND_M + 150.0]), rows([0.0, 0.0, -9.0])
    low = GUIDANCE.low_gate.height_m
    for phase, agl, to_go_s, expected in (
        (Phase.APPROACH, low + 0.01, 5.0, Phase.APPROACH),
        (Phase.APPROACH, low, 5.0, Phase.TERMINAL),
        (Phase.APPROACH, low + 500, 0.0, Phase.TERMINAL),
        (Phase.BRAKING, 5000.0, 0.01, Phase.BRAKING),
        (Phase.BRAKING, 50.0, 0.0, Phase.APPROACH),  # one change a step
        (Phase.TERMINAL, 5000.0, 100.0, Phase.TERMINAL),
    ):
        memory, _ = at(phase, position, velocity, agl, to_go_s)
        assert int(memory.phase) == expected, (phase, agl, to_go_s)


def test_terminal_speed_is_what_height_allows():
    """On the profile v^2 = v0^2 + 2 a (h - h0) the deceleration is a; below h0 it is none."""
    a = (8.0**2 - 1.5**2) / (2 * 90.0)
    for height, down, expected in (
        (100.0, 8.0, a),
        (55.0, None, a),
        (9.0, 1.5, 0.0),
        (-5.0, 1.5, 0),
    ):
        speed = down or math.sqrt(1.5**2 + 2 * a * (height - 10.0))
        position = rows([0.0, 0.0, GROUND_M + max(height, 0.0)])
        velocity = rows([0.0, 0.0, -speed])
        _, command = at(Phase.TERMINAL, position, velocity, height)
        felt = acceleration(command, position, velocity)
        assert float(felt[0, 2]) == pytest.approx(expected, abs=2e-5)
    _, command = at(Phase.TERMINAL, position, rows([0.5, 0.0, -1.5]), 5.0)
    felt = acceleration(command, position, rows([0.5, 0.0, -1.5]))
    assert float(felt[0, 0]) == pytest.approx(-0.5 * GUIDANCE.drift_gain_1_s, abs=1e-4)


@pytest.mark.parametrize("phase", [Phase.APPROACH, Phase.TERMINAL])
def test_limits_after_braking(phase):
    """Level force within the tilt, lift within its bounds: too fast, drifting, and rising."""
    position = rows([0.0, 0.0, GROUND_M + 300.0]).repeat(3, 1)
    velocity = rows([0.0, 0.0, -120.0], [90.0, 0.0, -20.0], [0.0, 0.0, 90.0])
    agl = rows(300.0, 300.0, 300.0)
    _, command = at(phase, position, velocity, agl, 20.0, batch=3)
    up = up_L(position)
    lift = (command * up).sum(-1)
    aside = (command - lift[:, None] * up).norm(dim=-1)
    assert float(lift[0]) == pytest.approx(GUIDANCE.lift_max_m_s2)
    assert float(lift[2]) < LANDER.idle_below_m_s2
    assert bool((lift > 0).all())
    tilt = torch.rad2deg(torch.atan2(aside, lift))
    assert float(tilt[1]) == pytest.approx(GUIDANCE.tilt_max_deg)
    assert float(tilt.max()) < GUIDANCE.tilt_max_deg + 1e-9


def test_past_its_target_the_clock_goes_on():
    """Flying away from the gate the cubic has no root ahead; the command stays finite."""
    memory, command = at(
        Phase.BRAKING, PLAN.target_L[1:2] + rows([0.0, 5e4, 0.0]), rows([0.0, 900.0, 0.0])
    )
    assert float(memory.to_go_s) == 100.0
    assert bool(command.isfinite().all())


def test_an_approach_from_the_east_is_the_same_plan_turned():
    east = plan_descent(Guidance(approach_azimuth_deg=90.0), FRAME, GROUND_M)
    assert torch.allclose(east.forward_L, rows(1.0, 0.0, 0.0), atol=1e-15)
    assert torch.allclose(east.target_L[0], rows(-2000.0, 0.0, GROUND_M + 10e3), atol=1e-9)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"touchdown_below_m": 100.0}, r"touchdown_below_m 100, low_gate.height_m 100, .*above"),
        ({"orbit": Orbit(perilune_m=7559.0)}, r".*high_gate.height_m 10000, perilune 9999 m over"),
        ({"touchdown_m_s": 8.0}, r"touchdown_m_s 8, low_gate.down_m_s 8, .*expected each above"),
        ({"ignition_downrange_m": 1900.0}, r"ignition_downrange_m 1900, expected .* 2000"),
    ],
)
def test_plans_that_cannot_be_flown_are_refused(wrong, said):
    with pytest.raises(ConfigError, match=f"guidance: {said}"):
        plan_descent(Guidance(**wrong), FRAME, GROUND_M)


def test_device_and_cpu_agree_without_waiting(simgpu):
    """A lane in every phase, for a few closed steps."""
    start = started(8, torch.Generator().manual_seed(2))
    low = rows([100.0, -300.0, GROUND_M + 900.0])
    position = torch.cat([start.position_L[:4], low.repeat(4, 1)])
    velocity = torch.cat([start.velocity_L[:4], rows([1.0, 8.0, -40.0]).repeat(4, 1)])
    start = replace(start, position_L=position, velocity_L=velocity)
    phase = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    to_go = rows(450.0, 440.0, 435.0, 5.0, 40.0, 3.0, 0.0, 0.0)

    def flown(device):
        plan = plan_descent(GUIDANCE, FRAME, GROUND_M, device)
        state = LanderState(
            0.0,
            *(
                getattr(start, name).to(device)
                for name in list(LanderState.__dataclass_fields__)[1:]
            ),
        )
        memory = GuidanceState(0.0, phase.to(device), to_go.to(device))
        with simulated_device.count_syncs(uploads=True) as syncs:
            for _ in range(3):
                p, v = state.position_L, state.velocity_L
                memory, command = guide(plan, memory, state.t_s, p, v, p[:, 2] - GROUND_M)
                state, _, _ = step(LANDER, state, command, FRAME, 0.1)
        assert not syncs
        return [memory.phase, memory.to_go_s, command, state.position_L, state.velocity_L]

    for there, here in zip(flown(simgpu), flown("cpu"), strict=True):
        assert there.device.type == simgpu
        assert torch.equal(there.cpu(), here)
