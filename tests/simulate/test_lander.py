"""The lander against closed forms, conservation laws and an independent integrator."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import simulated_device
import torch
from pydantic import ValidationError
from scipy.integrate import solve_ivp

from tnav.geometry.moon import GM_M3_S2, J2, J2_RADIUS_M, LocalFrame, gravity_L, up_L
from tnav.geometry.pose import so3_exp, so3_log
from tnav.simulate.lander import (
    Lander,
    Orbit,
    at_start,
    forward_L,
    initial_orbit,
    step,
    touch,
    turning_field_L,
)

F64 = torch.float64
FRAME = LocalFrame(60.5, -4.6)
LANDER = Lander()
EYE = torch.eye(3, dtype=F64)
NORTH, UP = EYE[1], EYE[2]


def rows(*values):
    return torch.tensor(values, dtype=F64)


def upright(batch=1, lander=LANDER, thrust=UP, height_m=5000.0, **changes):
    """Landers at rest over the site."""
    p = rows([0.0, 0.0, height_m]).repeat(batch, 1)
    state = at_start(lander, 0.0, p, 0 * p, thrust.expand(batch, 3), NORTH)
    return replace(state, **changes)


def run(state, command_L, steps, dt_s=0.1, lander=LANDER):
    """States after each step, and the increments."""
    states, increments = [state], []
    for _ in range(steps):
        state, delta_v, delta_theta = step(lander, state, command_L, FRAME, dt_s)
        states.append(state)
        increments.append((delta_v, delta_theta))
    return states, increments


def potential(p_M):
    r = p_M.norm(dim=-1)
    sine = p_M[..., 2] / r
    return GM_M3_S2 / r * (1 - J2 * (J2_RADIUS_M / r) ** 2 * (1.5 * sine**2 - 0.5))


def inertial(position_L, velocity_L):
    """Moon-centred position and inertial velocity along the axes of L."""
    radial = position_L - FRAME.centre_L
    return radial, velocity_L + torch.linalg.cross(FRAME.spin_L().expand_as(radial), radial)


def energy(state):
    radial, velocity = inertial(state.position_L, state.velocity_L)
    return 0.5 * velocity.square().sum(-1) - potential(radial @ FRAME.R_M_L.T)


@pytest.mark.parametrize("azimuth", [0.0, 90.0, 231.0])
def test_initial_orbit_is_a_perilune_that_leads_to_the_site(azimuth):
    orbit, arc_m = Orbit(), rows(300e3, 420e3)
    position, velocity = initial_orbit(FRAME, orbit, arc_m, azimuth)
    radial, moving = inertial(position, velocity)
    r = radial.norm(dim=-1)
    assert torch.allclose(r, rows(1757.4e3, 1757.4e3), rtol=1e-14)
    assert torch.allclose((velocity * up_L(position)).sum(-1), rows(0.0, 0.0), atol=1e-9)
    # vis viva: the semi-major axis lies half-way between perilune and apolune
    axis = 1 / (2 / r - moving.square().sum(-1) / GM_M3_S2)
    assert torch.allclose(axis, rows(1797.4e3, 1797.4e3), rtol=1e-12)
    # the great circle of position and velocity holds the site, at the arc's angle
    site = UP.expand(2, 3)
    normal = torch.linalg.cross(radial, velocity)
    assert float((normal * site).sum(-1).abs().max() / normal.norm(dim=-1).max()) < 1e-12
    angle = torch.acos((radial / r[:, None] * site).sum(-1))
    assert torch.allclose(angle * 1737.4e3, arc_m, rtol=1e-10)
    assert bool(((velocity * forward_L(azimuth)).sum(-1) > 1600).all())


def test_falls_freely_with_its_energy():
    """Ten minutes without thrust; the step is second order, so half of it errs a quarter."""
    position, velocity = initial_orbit(FRAME, Orbit(), rows(420e3), 0.0)
    start = at_start(LANDER, 0.0, position, velocity, UP[None], NORTH)
    ends = []
    for dt_s in (4.0, 2.0, 1.0):
        states, increments = run(start, torch.zeros(1, 3, dtype=F64), int(600 / dt_s), dt_s)
        assert not any(bool(dv.any()) for dv, _ in increments)
        ends.append(states[-1])
    change = [float((b.position_L - a.position_L).norm()) for a, b in pairwise(ends)]
    assert change[0] / change[1] == pytest.approx(4.0, rel=0.05)
    assert change[1] < 1.0  # so 3 mm with steps of 0.1 s
    assert float((energy(ends[-1]) / energy(start) - 1).abs()) < 2e-8
    assert torch.equal(ends[-1].propellant_kg, start.propellant_kg)


def test_turning_field_is_the_cross_products():
    generator = torch.Generator().manual_seed(3)
    p = 1e5 * torch.randn(50, 3, generator=generator, dtype=F64)
    v = 1e3 * torch.randn(50, 3, generator=generator, dtype=F64)
    spin = FRAME.spin_L().expand_as(p)
    radial = p - FRAME.centre_L
    expected = -2 * torch.linalg.cross(spin, v) - torch.linalg.cross(
        spin, torch.linalg.cross(spin, radial)
    )
    assert torch.allclose(turning_field_L(p, v, FRAME), expected, atol=1e-13)


def test_a_manoeuvre_by_an_independent_integrator():
    """DOP853 on the differential equations, thrust in closed form, axis turning evenly a step."""
    dt_s, steps = 0.1, 100
    commands = [rows([1.0, -2.0, 3.0]), rows([-2.0, 0.5, 2.0]), rows([0.0, 0.0, 0.0])]
    position, velocity = initial_orbit(FRAME, Orbit(), rows(420e3), 0.0)
    state = at_start(LANDER, 0.0, position, velocity, rows([0.0, -1.0, 0.3]), NORTH)
    y = np.concatenate([position[0], velocity[0], [LANDER.dry_mass_kg + LANDER.propellant_kg]])
    for k in range(steps):
        command = commands[k * 3 // steps]
        after, _, _ = step(LANDER, state, command, FRAME, dt_s)
        turn = so3_log(after.R_L_B @ state.R_L_B.mT)[0]
        told = float(command.norm()) * y[6]
        told = min(told, LANDER.thrust_max_n)
        z, thrust_0 = state.R_L_B[0, :, 2], float(state.thrust_n)

        def rate(t, y, told=told, thrust_0=thrust_0, turn=turn, z=z):
            p, v = torch.from_numpy(y[None, :3]), torch.from_numpy(y[None, 3:6])
            field = (gravity_L(p, FRAME) + turning_field_L(p, v, FRAME))[0].numpy()
            thrust = told + (thrust_0 - told) * math.exp(-t / LANDER.throttle_lag_s)
            axis = (so3_exp(turn * (t / dt_s)) @ z).numpy()
            flow = -thrust / (LANDER.specific_impulse_s * 9.80665)
            return np.concatenate([y[3:6], field + thrust / y[6] * axis, [flow]])

        y = solve_ivp(rate, (0, dt_s), y, method="DOP853", rtol=1e-12, atol=1e-9).y[:, -1]
        state = after
    assert float(state.velocity_L[0].norm()) - float(velocity.norm()) < -5  # it did something
    assert np.abs(state.position_L[0].numpy() - y[:3]).max() < 5e-3
    assert np.abs(state.velocity_L[0].numpy() - y[3:6]).max() < 5e-4
    assert float(state.propellant_kg) + LANDER.dry_mass_kg == pytest.approx(y[6], abs=1e-9)


def test_increments_are_an_ideal_units():
    """Specific force by the rocket equation along body z; the turn against inertial space."""
    states, increments = run(upright(), rows([1.0, -0.5, 3.0]), 30)
    spin_turn = so3_exp(FRAME.spin_L() * 0.1)
    for (before, after), (delta_v, delta_theta) in zip(pairwise(states), increments, strict=True):
        mass = [LANDER.dry_mass_kg + float(s.propellant_kg) for s in (before, after)]
        expected = LANDER.exhaust_speed_m_s * math.log(mass[0] / mass[1])
        assert delta_v[0].tolist() == pytest.approx([0.0, 0.0, expected], abs=1e-12)
        turned = so3_log(before.R_L_B.mT @ spin_turn @ after.R_L_B)
        assert torch.allclose(delta_theta, turned, atol=1e-10)
    assert float(increments[5][1].norm()) > 1e-3


def test_hanging_in_the_air_feels_gravity():
    g = -(gravity_L(rows([0.0, 0.0, 5000.0]), FRAME) + 0.0)
    states, increments = run(upright(), g, 100)
    assert float(increments[-1][0][0, 2]) / 0.1 == pytest.approx(float(g.norm()), rel=2e-4)
    # It fell while thrust came up: g tau, and then not any more.
    fall = float(g.norm()) * LANDER.throttle_lag_s
    assert float(states[-1].velocity_L[0, 2]) == pytest.approx(-fall, rel=0.05)


def test_thrust_follows_with_its_lag():
    command = rows([0.0, 0.0, 2.0])
    once, _, _ = step(LANDER, upright(), command, FRAME, LANDER.throttle_lag_s)
    told = 2.0 * (LANDER.dry_mass_kg + LANDER.propellant_kg)
    assert float(once.thrust_n) == pytest.approx(told * (1 - math.exp(-1)))
    # The burn is the integral of the lag: tau / e of a full step's.
    burnt = told * LANDER.throttle_lag_s * math.exp(-1) / LANDER.exhaust_speed_m_s
    assert LANDER.propellant_kg - float(once.propellant_kg) == pytest.approx(burnt)


@pytest.mark.parametrize(
    ("wanted_m_s2", "told_n"),
    [
        (LANDER.idle_below_m_s2 * 0.999, 0.0),
        (LANDER.idle_below_m_s2, 250.0),
        (249.0 / 725, 250.0),
        (251.0 / 725, 251.0),
        (2499.0 / 725, 2499.0),
        (2501.0 / 725, 2500.0),
        (1e6, 2500.0),
    ],
)
def test_thrust_is_kept_to_what_the_engines_can_do(wanted_m_s2, told_n):
    assert LANDER.dry_mass_kg + LANDER.propellant_kg == 725
    settled = Lander(throttle_lag_s=1e-3)
    after, _, _ = step(settled, upright(), wanted_m_s2 * UP[None], FRAME, 0.1)
    assert float(after.thrust_n) == pytest.approx(told_n, abs=1e-9)
    weak = upright(thrust_scale=rows(0.97))
    after, _, _ = step(settled, weak, wanted_m_s2 * UP[None], FRAME, 0.1)
    assert float(after.thrust_n) == pytest.approx(0.97 * told_n, abs=1e-9)


def test_attitude_follows_with_lag_and_limit_and_never_rolls():
    small = math.radians(1.0)
    command = rows([math.sin(small), 0.0, math.cos(small)])
    states, _ = run(upright(), 2 * command, 5)  # one lag of 0.5 s
    left = torch.acos((states[-1].R_L_B[0, :, 2] * command).sum())
    assert float(left) == pytest.approx(small * math.exp(-1), rel=1e-6)

    states, _ = run(upright(), rows([0.0, 1.0, -1.0]), 30)
    for before, after in pairwise(states):
        turn = so3_log(after.R_L_B @ before.R_L_B.mT)[0]
        assert math.degrees(float(turn.norm())) <= 0.1 * LANDER.slew_max_deg_s * (1 + 1e-9)
        assert abs(float(turn @ before.R_L_B[0, :, 2])) < 1e-12  # no roll
    assert math.degrees(float(turn.norm())) == pytest.approx(0.1 * LANDER.slew_max_deg_s)
    assert torch.allclose(states[-1].R_L_B @ states[-1].R_L_B.mT, EYE, atol=1e-13)
    # The body turned about its x, which points east: y still leans north, and down by now.
    assert torch.allclose(states[-1].R_L_B[0, :, 0], EYE[0], atol=1e-12)


@pytest.mark.parametrize("command", [[0.0, 0.0, 0.0], [0.0, 0.0, -3.0]])
def test_no_direction_or_the_opposite_one_turns_nothing(command):
    after, _, _ = step(LANDER, upright(), rows(command), FRAME, 0.1)
    assert torch.equal(after.R_L_B, upright().R_L_B)


def test_start_attitude_keeps_the_right_side_through_horizontal_thrust():
    """Body y is up while braking, on both sides of the horizontal, and forward when upright."""
    thrust = rows([0.0, -1.0, 0.2], [0.0, -1.0, -0.2], [0.0, 0.0, 1.0])
    state = at_start(LANDER, 0.0, 0 * thrust, 0 * thrust, thrust, NORTH)
    assert torch.allclose(state.R_L_B[:, :, 0], EYE[0].expand(3, 3), atol=1e-15)
    assert bool((state.R_L_B[:2, 2, 1] > 0.9).all())
    assert torch.allclose(state.R_L_B[2], EYE, atol=1e-15)


def test_runs_dry():
    state = upright(propellant_kg=rows(0.05), height_m=5000.0)
    states, increments = run(state, rows([0.0, 0.0, 3.0]), 12)
    gained = sum(float(dv[0, 2]) for dv, _ in increments)
    least = LANDER.dry_mass_kg
    assert gained == pytest.approx(LANDER.exhaust_speed_m_s * math.log1p(0.05 / least), rel=1e-12)
    assert float(states[-1].propellant_kg) == 0.0
    assert float(states[-1].thrust_n) == 0.0
    assert not bool(increments[-1][0].any())
    change = states[-1].velocity_L - states[-2].velocity_L
    assert float(change[0, 2]) == pytest.approx(
        0.1 * float(gravity_L(rows([0, 0, 5e3]), FRAME)[0, 2]), rel=1e-4
    )


def test_touches_the_ground_once_and_stays():
    state = upright(3, velocity_L=rows([1.0, 0.0, -2.0]).repeat(3, 1), thrust_n=rows(9.0, 9.0, 9.0))
    touched = touch(state, rows(1e-9, 0.0, -1.0))
    assert touched.landed.tolist() == [False, True, True]
    assert touched.thrust_n.tolist() == [9.0, 0.0, 0.0]
    after, delta_v, delta_theta = step(LANDER, touched, 3 * UP.expand(3, 3), FRAME, 0.1)
    for name in ("position_L", "velocity_L", "R_L_B", "propellant_kg", "thrust_n"):
        assert torch.equal(getattr(after, name)[1:], getattr(touched, name)[1:])
        assert name == "R_L_B" or not torch.equal(
            getattr(after, name)[0], getattr(touched, name)[0]
        )
    assert after.t_s == pytest.approx(0.1)
    assert not bool(delta_v[1:].any() | delta_theta[1:].any())
    assert bool(delta_v[0].any())
    assert touch(after, rows(5.0, 5.0, 5.0)).landed.tolist() == [False, True, True]


@pytest.mark.parametrize(
    "wrong",
    [{"dry_mass_kg": 0.0}, {"throttle_least": 1.0}, {"throttle_lag_s": 0.0}, {"thrust_n": 1.0}],
)
def test_a_recipe_that_makes_no_lander_is_refused(wrong):
    with pytest.raises(ValidationError):
        Lander(**wrong)


def test_device_and_cpu_agree_without_waiting(simgpu):
    generator = torch.Generator().manual_seed(7)
    batch = 6
    p = rows([0.0, -4e5, -2e4]) + 1e3 * torch.randn(batch, 3, generator=generator, dtype=F64)
    v = rows([0.0, 1600.0, 430.0]) + torch.randn(batch, 3, generator=generator, dtype=F64)
    commands = 3 * torch.randn(4, batch, 3, generator=generator, dtype=F64)
    agl = rows(5.0, 4.0, 0.0, -1.0, 3.0, 2.0)

    def flown(device):
        state = at_start(
            LANDER, 0.0, p.to(device), v.to(device), commands[0].to(device), NORTH.to(device)
        )
        with simulated_device.count_syncs() as syncs:
            for command in commands:
                state, delta_v, delta_theta = step(LANDER, state, command.to(device), FRAME, 0.1)
                state = touch(state, agl.to(device))
        assert not syncs
        return [
            state.position_L,
            state.velocity_L,
            state.R_L_B,
            state.thrust_n,
            state.propellant_kg,
            state.landed,
            delta_v,
            delta_theta,
        ]

    for there, here in zip(flown(simgpu), flown("cpu"), strict=True):
        assert there.device.type == simgpu
        assert torch.equal(there.cpu(), here)
    on_device = initial_orbit(FRAME, Orbit(), rows(4e5).to(simgpu), 10.0)
    for there, here in zip(on_device, initial_orbit(FRAME, Orbit(), rows(4e5), 10.0), strict=True):
        assert torch.equal(there.cpu(), here)
