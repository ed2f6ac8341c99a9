"""The filter against closed forms, independent integrations, least squares and its own promises."""

import math
from dataclasses import replace

import numpy as np
import pytest
import simulated_device
import torch
from descent_model import (
    DT_S,
    F64,
    FRAME,
    R_B_C,
    SPEC,
    Fault,
    Flight,
    fix_covariance,
    fly,
    ideal_increments,
    plane_prediction,
    truth,
)
from scipy.integrate import solve_ivp
from scipy.stats import chi2
from torch import Tensor

from tnav.errors import ConfigError
from tnav.geometry.moon import GM_M3_S2, RADIUS_M, LocalFrame, gravity_L
from tnav.geometry.pose import so3_exp, so3_log
from tnav.navigate.filter import (
    SENSORS,
    FilterConfig,
    FilterState,
    initial_state,
    predict_range,
    propagate,
    update_altimeter,
    update_star_tracker,
    update_vision,
)
from tnav.navigate.mechanisation import RANGE_BIAS, STATES, advance, frame_step, transition
from tnav.records import AltimeterReading, InertialIncrements, Sensor, StarTrackerReading
from tnav.terrain.heightfield import Level, Terrain

CONFIG = FilterConfig()


def start(t_s: float = 0.0, batch: int = 1, config: FilterConfig = CONFIG) -> FilterState:
    """A state at the truth, spread as a descent begins."""
    here = truth(t_s)
    return initial_state(
        t_s,
        here.position_L.repeat(batch, 1),
        here.velocity_L.repeat(batch, 1),
        here.R_L_B.repeat(batch, 1, 1),
        position_sigma_m=10.0,
        velocity_sigma_m_s=0.5,
        attitude_sigma_rad=3e-4,
        config=config,
    )


def step(t_s: float, delta_v_B: Tensor, delta_theta_B: Tensor, dt_s: float = DT_S):
    return InertialIncrements(t_s, dt_s, delta_v_B.reshape(-1, 3), delta_theta_B.reshape(-1, 3))


def perturbed(state: FilterState, error: Tensor) -> FilterState:
    """The state plus an error, in the filter's own sense of one."""
    return replace(
        state,
        position_L=state.position_L + error[:3],
        velocity_L=state.velocity_L + error[3:6],
        R_L_B=so3_exp(error[6:9]) @ state.R_L_B,
        gyro_bias_B=state.gyro_bias_B + error[9:12],
        accelerometer_bias_B=state.accelerometer_bias_B + error[12:15],
        range_bias_m=state.range_bias_m + error[15],
    )


def difference(a: FilterState, b: FilterState) -> Tensor:
    """The error that leads from b to a."""
    return torch.cat(
        [
            (a.position_L - b.position_L)[0],
            (a.velocity_L - b.velocity_L)[0],
            so3_log(a.R_L_B @ b.R_L_B.mT)[0],
            (a.gyro_bias_B - b.gyro_bias_B)[0],
            (a.accelerometer_bias_B - b.accelerometer_bias_B)[0],
            a.range_bias_m - b.range_bias_m,
        ]
    )


# Mechanisation ------------------------------------------------------------------------------------


def test_piecewise_constant_acceleration_in_closed_form() -> None:
    """Ideal increments of the whole turning descent lead to where the closed form says."""
    state = start()
    for k in range(round(97.5 / DT_S)):
        state = propagate(state, step((k + 1) * DT_S, *ideal_increments(k)), FRAME, CONFIG)
    end = truth(97.5)
    # Second order: error of the step's own size cubed, a v'' dt^2 / 12 T, is a few millimetres.
    assert (state.position_L[0] - end.position_L).norm() < 0.02
    assert (state.velocity_L[0] - end.velocity_L).norm() < 1e-3
    assert so3_log(state.R_L_B[0] @ end.R_L_B.T).norm() < 1e-9


def test_free_fall_against_an_integration_in_the_inertial_frame() -> None:
    """Coriolis, centrifugal and curved gravity: fall for 100 s and compare with DOP853."""
    frame = LocalFrame(60.5, -4.6)
    position_L = torch.tensor([300.0, -200.0, 15_000.0], dtype=F64)
    velocity_L = torch.tensor([1600.0, 400.0, -50.0], dtype=F64)  # orbital speed shows Coriolis
    spin, centre = frame.spin_L().numpy(), frame.centre_L.numpy()
    r0 = position_L.numpy() - centre
    v0 = velocity_L.numpy() + np.cross(spin, r0)
    fall = solve_ivp(
        lambda t, y: np.concatenate([y[3:], -GM_M3_S2 * y[:3] / np.linalg.norm(y[:3]) ** 3]),
        (0, 100.0),
        np.concatenate([r0, v0]),
        method="DOP853",
        rtol=1e-12,
        atol=1e-6,
    )
    back = so3_exp(torch.from_numpy(-spin * 100.0)).numpy()
    expected = back @ fall.y[:3, -1] + centre

    state = initial_state(
        0.0,
        position_L[None],
        velocity_L[None],
        torch.eye(3, dtype=F64)[None],
        position_sigma_m=1.0,
        velocity_sigma_m_s=1.0,
        attitude_sigma_rad=1.0,
        config=CONFIG,
    )
    spin_B = frame.spin_L()
    for k in range(2000):  # the body keeps its attitude against L, so its gyros read L's spin
        increments = step((k + 1) * DT_S, torch.zeros(3, dtype=F64), spin_B * DT_S)
        state = propagate(state, increments, frame, CONFIG)
    assert np.abs(state.position_L[0].numpy() - expected).max() < 5e-3
    # Without Coriolis it would be off by |2 W x v| t^2 / 2 = 40 m: the bound can fail.
    assert so3_log(state.R_L_B[0]).norm() < 1e-12


def test_gravity_is_the_frames_own() -> None:
    """The mechanisation writes gravity out for its gradient's sake: it must be the same law."""
    still = LocalFrame(90.0, 0.0)
    p = torch.tensor([[0.0, 0.0, 5000.0]], dtype=F64)
    zero = torch.zeros(1, 3, dtype=F64)
    one = advance(p, zero, torch.eye(3, dtype=F64)[None], zero, zero, 1e-3, _frame(still, 1e-3))
    assert torch.allclose(
        one.velocity_L / 1e-3, gravity_L(p), rtol=1e-9
    )  # no centrifugal at a pole
    eps = torch.eye(3, dtype=F64) * 100
    numeric = (gravity_L(p + eps) - gravity_L(p - eps)).T / 200
    assert torch.allclose(one.gravity_gradient[0], numeric, rtol=1e-4, atol=1e-14)


def _frame(frame: LocalFrame, dt_s: float):
    return frame_step(frame, dt_s, 1000.0, 1000.0, torch.device("cpu"))


@pytest.mark.parametrize("t_s", [10.0, 86.0])
def test_transition_against_finite_differences(t_s: float) -> None:
    state = replace(
        start(t_s),
        gyro_bias_B=torch.full((1, 3), 1e-4, dtype=F64),
        accelerometer_bias_B=torch.full((1, 3), 0.01, dtype=F64),
        range_bias_m=torch.full((1,), 2.0, dtype=F64),
    )
    increments = step(t_s + DT_S, *ideal_increments(round(t_s / DT_S)))
    size = torch.tensor([10.0] * 3 + [1.0] * 3 + [1e-4] * 3 + [1e-5] * 3 + [1e-3] * 3 + [1.0])
    columns = []
    for i in range(STATES):
        e = torch.zeros(STATES, dtype=F64)
        e[i] = size[i]
        plus = propagate(perturbed(state, e), increments, FRAME, CONFIG)
        minus = propagate(perturbed(state, -e), increments, FRAME, CONFIG)
        columns.append(difference(plus, minus) / (2 * size[i]))
    numeric = torch.stack(columns, -1)
    step_constants = _frame(FRAME, DT_S)
    bias = (DT_S * state.accelerometer_bias_B, DT_S * state.gyro_bias_B)
    moved = advance(
        state.position_L,
        state.velocity_L,
        state.R_L_B,
        increments.delta_v_B - bias[0],
        increments.delta_theta_B - bias[1],
        DT_S,
        step_constants,
    )
    ground_m = (moved.position_L - state.position_L)[:, :2].norm(dim=-1)
    decay = torch.exp(-ground_m / CONFIG.range_bias_correlation_m)
    phi = transition(moved, decay, DT_S, step_constants)[0]
    # The range bias's decay depends on the speed; that second-order product is left out of phi.
    numeric[RANGE_BIAS, :RANGE_BIAS] = 0
    # In units of the prior spread, an error of one sigma goes astray by less than 1e-4 sigma.
    sigma = state.covariance[0].diagonal().sqrt()
    astray = (numeric - phi) * sigma[None, :] / sigma[:, None]
    assert astray.abs().max() < 1e-4
    assert ((phi - torch.eye(STATES)) * sigma / sigma[:, None]).abs().max() > 1e-3  # not vacuous


# Measurements -------------------------------------------------------------------------------------


def _innovation_of(sensor: Sensor, state: FilterState) -> Tensor:
    """Innovation of one fixed measurement against a state."""
    here = truth(state.t_s)
    if sensor is Sensor.STAR_TRACKER:
        reading = StarTrackerReading(state.t_s, here.R_L_B[None], 1e-4)
        return update_star_tracker(state, reading, CONFIG)[1].value[0]
    if sensor is Sensor.VISION:
        return update_vision(
            state,
            here.position_L[None],
            (here.R_L_B @ R_B_C)[None],
            fix_covariance(2000.0)[None],
            torch.ones(1, dtype=torch.bool),
            R_B_C,
            state.t_s,
            CONFIG,
        )[1].value[0]
    prediction, H = plane_prediction(state, CONFIG)
    reading_m = AltimeterReading(
        state.t_s, torch.full((1,), 2000.0, dtype=F64), torch.ones(1, dtype=torch.bool)
    )
    return update_altimeter(state, reading_m, prediction, H, SPEC, CONFIG)[1].value[0]


@pytest.mark.parametrize("sensor", SENSORS)
def test_measurement_jacobians_against_finite_differences(sensor: Sensor) -> None:
    state = start(70.0)
    size = torch.tensor([1.0] * 3 + [1.0] * 3 + [1e-5] * 3 + [1e-5] * 3 + [1e-3] * 3 + [1.0])
    columns = []
    for i in range(STATES):
        e = torch.zeros(STATES, dtype=F64)
        e[i] = size[i]
        change = _innovation_of(sensor, perturbed(state, e)) - _innovation_of(
            sensor, perturbed(state, -e)
        )
        columns.append(-change / (2 * size[i]))
    numeric = torch.stack(columns, -1)
    eye = torch.eye(STATES, dtype=F64)
    if sensor is Sensor.ALTIMETER:
        expected = plane_prediction(state, CONFIG)[1][0]
        assert expected[0, 2] > 1.0
        assert expected[0, 6:9].norm() > 100
    else:
        expected = eye[6:9] if sensor is Sensor.STAR_TRACKER else torch.cat([eye[:3], eye[6:9]])
    assert torch.allclose(numeric, expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))


def test_prediction_on_a_sloping_map_in_closed_form() -> None:
    """The ray caster's hit on a tilted plane, its Jacobian by moving the state over the map."""
    slope_x, slope_y, post_m, n = 0.12, -0.05, 20.0, 400
    axis = (torch.arange(n) - n / 2) * post_m
    z = slope_x * axis[None, :] + slope_y * axis[:, None] - 300.0
    terrain = Terrain([Level(float(axis[0]), float(axis[0]), post_m, z.float())])
    state = replace(start(70.0), range_bias_m=torch.full((1,), 1.5, dtype=F64))
    state = replace(state, position_L=torch.tensor([[120.0, 80.0, 1900.0]], dtype=F64))
    prediction, H = predict_range(state, terrain, SPEC, CONFIG)

    normal = torch.tensor([-slope_x, -slope_y, 1.0], dtype=F64)
    normal = normal / normal.norm()

    def range_m(at: FilterState) -> Tensor:
        d = -at.R_L_B[0, :, 2]
        origin = torch.tensor([0.0, 0.0, -300.0], dtype=F64)
        return normal @ (origin - at.position_L[0]) / (normal @ d) + at.range_bias_m[0]

    assert bool(prediction.defined[0])
    assert abs(float(prediction.range_m[0] - range_m(state))) < 0.01
    beam = -state.R_L_B[0, :, 2]
    expected_incidence = math.acos(-float(normal @ beam))
    assert float(prediction.incidence_rad[0]) == pytest.approx(expected_incidence, abs=1e-5)
    for i in (0, 1, 2, 6, 7, 8, 15):
        e = torch.zeros(STATES, dtype=F64)
        e[i] = 1e-5 if 6 <= i < 9 else 1.0
        numeric = (range_m(perturbed(state, e)) - range_m(perturbed(state, -e))) / (2 * e[i])
        # The map is float32: slopes are good to 1e-6, and the beam's length multiplies that.
        reach_m = float(prediction.range_m[0]) if 6 <= i < 9 else 1.0
        assert float(H[0, 0, i]) == pytest.approx(float(numeric), rel=1e-5, abs=1e-5 * reach_m)
    variance = (H @ state.covariance @ H.mT).item() + CONFIG.relief_sigma_m**2
    assert float(prediction.sigma_m[0]) == pytest.approx(math.sqrt(variance))

    beyond = replace(state, position_L=state.position_L + 1e5)
    missed, H = predict_range(beyond, terrain, SPEC, CONFIG)
    assert not bool(missed.defined[0])
    assert bool(missed.range_m.isnan())
    assert not bool(H.any())


def test_least_squares_of_the_same_fixes() -> None:
    """No process noise: the filter must be numpy's batch least squares, mean and sigma, to 1 %."""
    tiny = 1e-9
    config = FilterConfig(
        accelerometer_random_walk_m_s_sqrts=tiny,
        gyro_random_walk_rad_sqrts=1e-12,
        gyro_bias_sigma_rad_s=1e-12,
        accelerometer_bias_time_s=1e9,
        gyro_bias_time_s=1e9,
        gate_probability=1 - 1e-12,
    )
    generator = torch.Generator().manual_seed(4)
    here = truth(0.0)
    prior_sigma = np.repeat([20.0, 0.5, config.accelerometer_bias_sigma_m_s2], 3)
    offset = torch.randn(9, generator=generator, dtype=F64).numpy() * prior_sigma
    state = initial_state(
        0.0,
        (here.position_L - torch.from_numpy(offset[:3]))[None],
        (here.velocity_L - torch.from_numpy(offset[3:6]))[None],
        here.R_L_B[None],
        position_sigma_m=20.0,
        velocity_sigma_m_s=0.5,
        attitude_sigma_rad=1e-9,
        config=config,
    )
    # Unknowns: what to add to the starting position, velocity and accelerometer bias.
    information, right = np.diag(prior_sigma**-2), np.zeros(9)
    design = np.hstack([np.eye(3), np.zeros((3, 6))])
    rate = np.hstack([np.zeros((3, 3)), np.eye(3), np.zeros((3, 3))])
    spread = np.diag([3.0, 4.0, 6.0]) @ np.array([[1, 0, 0], [0.5, 1, 0], [-0.3, 0.2, 1]])
    covariance3 = torch.from_numpy(spread @ spread.T)
    covariance = torch.eye(6, dtype=F64)  # attitude all but unknown to the fix
    covariance[:3, :3] = covariance3
    free = start(0.0)  # the nominal without corrections
    free = replace(free, position_L=state.position_L, velocity_L=state.velocity_L)
    gradient = np.diag([-1.0, -1.0, 2.0]) * GM_M3_S2 / (RADIUS_M + 8000.0) ** 3  # of gravity
    bias_B = torch.from_numpy(offset[6:])  # the unit reads force plus bias, the filter assumes none
    for k in range(800):
        delta_v, delta_theta = ideal_increments(k)
        increments = step((k + 1) * DT_S, delta_v + DT_S * bias_B, delta_theta)
        R = truth((k + 0.5) * DT_S).R_L_B.numpy()
        push = np.hstack([np.zeros((3, 6)), -R]) + gradient @ design
        design = design + DT_S * (rate + 0.5 * DT_S * push)
        rate = rate + DT_S * push
        state, free = (propagate(s, increments, FRAME, config) for s in (state, free))
        if (k + 1) % 80 == 0:
            t_s = (k + 1) * DT_S
            here = truth(t_s)
            error = torch.from_numpy(spread) @ torch.randn(3, generator=generator, dtype=F64)
            fix = here.position_L + error
            weight = np.linalg.inv(covariance3.numpy())
            information += design.T @ weight @ design
            right += design.T @ weight @ (fix - free.position_L[0]).numpy()
            state, _ = update_vision(
                state,
                fix[None],
                (here.R_L_B @ R_B_C)[None],
                covariance[None],
                torch.ones(1, dtype=torch.bool),
                R_B_C,
                t_s,
                config,
            )
    solution, spread0 = np.linalg.solve(information, right), np.linalg.inv(information)
    sigma = np.sqrt(np.diag(design @ spread0 @ design.T))
    expected = free.position_L[0].numpy() + design @ solution
    assert np.abs(state.position_L[0].numpy() - expected).max() < 0.01 * sigma.min()
    assert state.covariance[0].diagonal()[:3].sqrt().numpy() == pytest.approx(sigma, rel=0.01)
    sigma_v = np.sqrt(np.diag(rate @ spread0 @ rate.T))
    expected_v = free.velocity_L[0].numpy() + rate @ solution
    assert np.abs(state.velocity_L[0].numpy() - expected_v).max() < 0.01 * sigma_v.min()
    sigma_b = np.sqrt(np.diag(spread0)[6:])
    assert np.abs(state.accelerometer_bias_B[0].numpy() - solution[6:]).max() < 0.01 * sigma_b.min()


# Consistency --------------------------------------------------------------------------------------

LANES = 60


@pytest.fixture(scope="module")
def flight() -> Flight:
    """Sixty descents whose errors are exactly those that the filter believes in."""
    return fly(LANES, seed=11, smooth_map=False)


def test_nees_lies_in_its_chi_square_bounds(flight: Flight) -> None:
    """Every check within bounds of 1e-5 each side: 24 checks, one false failure in 2000 seeds."""
    low, high = chi2.ppf([1e-5, 1 - 1e-5], STATES * LANES) / LANES
    for state, error in flight.checks:
        nees = (error * torch.linalg.solve(state.covariance, error)).sum(-1).mean()
        assert low < float(nees) < high, (state.t_s, float(nees))


def test_nis_lies_in_its_chi_square_bounds(flight: Flight) -> None:
    """White innovations: their NIS over all descents and epochs adds up to chi-square."""
    nis = {
        3: torch.cat([i.nis[i.present] for i in flight.stars]),
        6: torch.cat([e.vision.nis[e.vision.present] for e in flight.epochs if e.vision]),
        1: torch.cat([e.altimeter.nis[e.altimeter.present] for e in flight.epochs]),
    }
    for degrees, values in nis.items():
        assert len(values) > 1000
        low, high = chi2.ppf([1e-4, 1 - 1e-4], degrees * len(values))
        assert low < float(values.sum()) < high, degrees


def test_covariance_stays_symmetric_and_positive(flight: Flight) -> None:
    for state, _ in flight.checks:
        assert torch.equal(state.covariance, state.covariance.mT)
        sigma = state.covariance.diagonal(dim1=-2, dim2=-1).sqrt()
        correlation = state.covariance / sigma[:, :, None] / sigma[:, None, :]
        assert torch.linalg.eigvalsh(correlation).min() > 1e-9


def test_healthy_gates_reject_at_their_stated_rate(flight: Flight) -> None:
    fused = torch.cat([e.altimeter.fused for e in flight.epochs])
    present = torch.cat([e.altimeter.present for e in flight.epochs])
    n, rejected = int(present.sum()), int((present & ~fused).sum())
    assert n > 20_000
    assert rejected <= chi2.ppf(1 - 1e-4, 2 * (rejected + 1)) / 2
    assert rejected <= 1e-4 * n + 5 * math.sqrt(1e-4 * n)
    assert not bool((fused & ~present).any())


# Gates --------------------------------------------------------------------------------------------


def _range_off_by(state: FilterState, sigmas: float):
    prediction, H = plane_prediction(state, CONFIG)
    S = (H @ state.covariance @ H.mT).flatten() + SPEC.noise_sigma_m(prediction.range_m) ** 2
    S = S + CONFIG.relief_sigma_m**2
    reading = AltimeterReading(
        state.t_s, prediction.range_m + sigmas * S.sqrt(), torch.ones(1, dtype=torch.bool)
    )
    return update_altimeter(state, reading, prediction, H, SPEC, CONFIG)


def test_gate_just_under_and_just_over() -> None:
    gate = math.sqrt(chi2.ppf(CONFIG.gate_probability, 1))
    state = start(70.0)
    under, seen = _range_off_by(state, gate * 0.999)
    assert bool(seen.fused[0])
    assert float(seen.nis[0]) == pytest.approx((gate * 0.999) ** 2)
    assert (under.position_L - state.position_L).norm() > 1.0
    over, seen = _range_off_by(state, -gate * 1.001)
    assert not bool(seen.fused[0])
    assert bool(seen.present[0])
    assert float(seen.nis[0]) == pytest.approx((gate * 1.001) ** 2)  # an output all the same
    assert torch.equal(over.position_L, state.position_L)
    assert torch.equal(over.covariance, state.covariance)
    assert over.rejected_run[0].tolist() == [0.0, 0.0, 1.0]


def test_absent_readings_change_nothing_whatever_they_hold() -> None:
    state = start(70.0)
    prediction, H = plane_prediction(state, CONFIG)
    reading = AltimeterReading(
        70.0, torch.full((1,), torch.nan, dtype=F64), torch.zeros(1, dtype=torch.bool)
    )
    after, seen = update_altimeter(state, reading, prediction, H, SPEC, CONFIG)
    nan = torch.full((1, 6, 6), torch.nan, dtype=F64)
    after, fix = update_vision(
        after, nan[:, 0, :3], nan[:, :3, :3], nan, reading.valid, R_B_C, 70.0, CONFIG
    )
    for innovation in (seen, fix):
        assert not bool(innovation.present[0])
        assert not bool(innovation.fused[0])
        assert bool(innovation.nis.isnan().all())
        assert bool(innovation.value.isnan().all())
    assert torch.equal(after.covariance, state.covariance)
    assert torch.equal(after.position_L, state.position_L)
    assert torch.allclose(after.R_L_B, state.R_L_B, rtol=0, atol=1e-15)


def test_patience_ends_with_acceptance_and_a_fix_renews_it() -> None:
    state = start(70.0)
    for n in range(CONFIG.altimeter_gate_patience):
        state, seen = _range_off_by(state, 100.0)
        assert not bool(seen.fused[0])
        assert float(state.rejected_run[0, 2]) == n + 1
    here = truth(70.0)
    fix = (here.position_L[None], (here.R_L_B @ R_B_C)[None], fix_covariance(2000.0)[None])
    seen_one = torch.ones(1, dtype=torch.bool)
    vouched, _ = update_vision(state, *fix, seen_one, R_B_C, 70.0, CONFIG)
    assert float(vouched.rejected_run[0, 2]) == 0.0
    assert not bool(_range_off_by(vouched, 100.0)[1].fused[0])
    discrepancy = _range_off_by(state, 100.0)[1].value.item()
    state_in, seen = _range_off_by(state, 100.0)
    assert bool(seen.fused[0])
    assert float(seen.nis[0]) == pytest.approx(1e4)
    assert float(state_in.rejected_run[0, 2]) == 0.0
    # Shared between altitude and bias, and the two together explain the reading.
    moved = (
        plane_prediction(state_in, CONFIG)[0].range_m - plane_prediction(state, CONFIG)[0].range_m
    )
    assert moved.item() == pytest.approx(discrepancy, rel=0.01)
    assert state_in.range_bias_m.item() == pytest.approx(discrepancy / 2, rel=0.05)
    assert state_in.covariance[0, 2, 2].sqrt() > 0.3 * abs(discrepancy)


def test_no_lock_out_of_a_healthy_altimeter() -> None:
    """Hakuto-R M1: the state is 500 m off, no camera. With patience it heals; without, never."""
    lost = Fault(
        kick_L=lambda t_s: (0.0, 0.0, 500.0 if abs(t_s - 61.0) < 1e-6 else 0.0),
        vision_sees=lambda t_s: False,
        altimeter_detects=lambda t_s, range_m: True,
    )

    def altitude_error_m(config: FilterConfig) -> float:
        _, error = fly(8, 3, lost, config, start_s=60.0, end_s=80.0).checks[-1]
        return float(error[:, 2].abs().max())

    tight = replace(CONFIG, range_bias_correlation_m=50.0)
    assert altitude_error_m(replace(tight, altimeter_gate_patience=10_000)) > 400
    assert altitude_error_m(tight) < 60


def test_vision_patience() -> None:
    state = start(70.0)
    here = truth(70.0)
    off = here.position_L + torch.tensor([500.0, 0.0, 0.0], dtype=F64)
    fused = []
    for _ in range(CONFIG.vision_gate_patience + 1):
        state, seen = update_vision(
            state,
            off[None],
            (here.R_L_B @ R_B_C)[None],
            fix_covariance(2000.0)[None],
            torch.ones(1, dtype=torch.bool),
            R_B_C,
            70.0,
            CONFIG,
        )
        fused.append(bool(seen.fused[0]))
    assert fused == [False, False, False, True]
    assert (state.position_L[0] - off).norm() < 10


# Borders ------------------------------------------------------------------------------------------


def test_same_numbers_and_no_waiting_on_an_accelerator() -> None:
    simulated_device.install()
    always = Fault(altimeter_detects=lambda t_s, range_m: True)

    expected = fly(2, 5, always, start_s=60.0, end_s=64.0)
    with simulated_device.count_syncs() as syncs:
        actual = fly(2, 5, always, start_s=60.0, end_s=64.0, device=simulated_device.DEVICE)
    assert not syncs, syncs
    for (want, want_error), (got, got_error) in zip(expected.checks, actual.checks, strict=True):
        assert got.covariance.device.type == simulated_device.DEVICE
        assert torch.equal(got.covariance.cpu(), want.covariance)
        assert torch.equal(got_error.cpu(), want_error)
    for want_epoch, got_epoch in zip(expected.epochs, actual.epochs, strict=True):
        nis = got_epoch.altimeter.nis.cpu()
        assert torch.equal(nis.nan_to_num(-1.0), want_epoch.altimeter.nis.nan_to_num(-1.0))


def test_batch_of_two_is_two_batches_of_one() -> None:
    both = start(70.0, batch=2)
    prediction, H = plane_prediction(both, CONFIG)
    range_m = prediction.range_m + torch.tensor([3.0, 400.0], dtype=F64)
    valid = torch.ones(2, dtype=torch.bool)
    after, _ = update_altimeter(
        both, AltimeterReading(70.0, range_m, valid), prediction, H, SPEC, CONFIG
    )
    for i in range(2):
        one = start(70.0)
        p, h = plane_prediction(one, CONFIG)
        reading = AltimeterReading(70.0, range_m[i : i + 1], valid[:1])
        alone, _ = update_altimeter(one, reading, p, h, SPEC, CONFIG)
        assert torch.allclose(alone.covariance[0], after.covariance[i], rtol=1e-12, atol=1e-18)
        assert torch.allclose(alone.position_L[0], after.position_L[i], rtol=0, atol=1e-9)


def test_bad_input_in_one_line() -> None:
    with pytest.raises(ConfigError, match=r"filter\.relief_sigma_m: -1.0, expected > 0"):
        FilterConfig(relief_sigma_m=-1.0)
    with pytest.raises(ConfigError, match=r"gate_probability: 1\.5"):
        FilterConfig(gate_probability=1.5)
    with pytest.raises(ConfigError, match="every sigma"):
        initial_state(
            0.0,
            torch.zeros(1, 3, dtype=F64),
            torch.zeros(1, 3, dtype=F64),
            torch.eye(3, dtype=F64)[None],
            position_sigma_m=0.0,
            velocity_sigma_m_s=1.0,
            attitude_sigma_rad=1.0,
            config=CONFIG,
        )
    state = start(70.0)
    with pytest.raises(ConfigError, match=r"star tracker at t = 70\.2"):
        update_star_tracker(state, StarTrackerReading(70.2, state.R_L_B, 1e-4), CONFIG)
    late = step(70.1, torch.zeros(3, dtype=F64), torch.zeros(3, dtype=F64))
    with pytest.raises(ConfigError, match=r"inertial increments at t = 70\.05"):
        propagate(state, late, FRAME, CONFIG)
