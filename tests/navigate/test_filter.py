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
    at_truth,
    fix_at,
    fly,
    ideal_increments,
    map_covariance,
    plane_prediction,
    truth,
)
from scipy.integrate import solve_ivp
from scipy.stats import chi2
from torch import Tensor

from tnav.errors import ConfigError
from tnav.geometry.moon import GM_M3_S2, J2, J2_RADIUS_M, RADIUS_M, LocalFrame, gravity_L
from tnav.geometry.pose import so3_exp, so3_log
from tnav.navigate.altimetry import agl_sigma_m, over_map_L, predict_range
from tnav.navigate.filter import (
    propagate,
    update_altimeter,
    update_ground,
    update_star_tracker,
    update_vision,
)
from tnav.navigate.map_error import rescale
from tnav.navigate.mechanisation import (
    ACCELEROMETER_BIAS,
    ATTITUDE,
    CLONE_ATTITUDE,
    CLONE_POSITION,
    CORE,
    GYRO_BIAS,
    INERTIAL,
    MAP_BEAM,
    MAP_LOCAL,
    MAP_MEAN,
    MAP_SHIFT,
    MAP_SIDE,
    POSITION,
    RANGE_BIAS,
    STATES,
    THRUST_SCALE,
    VELOCITY,
    advance,
    frame_step,
    inertial_noise,
    transition,
)
from tnav.navigate.state import (
    SENSORS,
    FilterConfig,
    FilterState,
    clone,
    core_sigma,
    corrected,
    initial_state,
)
from tnav.records import (
    AltimeterReading,
    InertialIncrements,
    Sensor,
    StarTrackerReading,
    VisionFix,
)
from tnav.terrain.heightfield import Level, Terrain

CONFIG = FilterConfig(thrust_scale_sigma=3e-4)
# What a finite difference takes of each state.
SIZE = torch.tensor(
    [10.0] * 3 + [1.0] * 3 + [1e-4] * 3 + [1e-5] * 3 + [1e-3] * 3 + [1e-4] * 3
    + [1.0] * 8 + [10.0] * 3 + [1e-4] * 3,
    dtype=F64,
)  # fmt: skip


def start(t_s: float = 0.0, batch: int = 1, config: FilterConfig = CONFIG) -> FilterState:
    """A state at the truth, spread as a descent begins."""
    return at_truth(t_s, config, batch)


def step(t_s: float, delta_v_B: Tensor, delta_theta_B: Tensor, dt_s: float = DT_S):
    return InertialIncrements(t_s, dt_s, delta_v_B.reshape(-1, 3), delta_theta_B.reshape(-1, 3))


def perturbed(state: FilterState, i: int, size: float) -> FilterState:
    """The state with one error added, in the filter's own sense of one."""
    error = torch.zeros(1, STATES, dtype=F64)
    error[0, i] = size
    return corrected(state, error, state.covariance, state.rejected_run)


def difference(a: FilterState, b: FilterState) -> Tensor:
    """The error that leads from b to a."""
    error = torch.full((STATES,), torch.nan, dtype=F64)
    error[POSITION] = (a.position_L - b.position_L)[0]
    error[VELOCITY] = (a.velocity_L - b.velocity_L)[0]
    error[ATTITUDE] = so3_log(a.R_L_B @ b.R_L_B.mT)[0]
    error[GYRO_BIAS] = (a.gyro_bias_B - b.gyro_bias_B)[0]
    error[ACCELEROMETER_BIAS] = (a.accelerometer_bias_B - b.accelerometer_bias_B)[0]
    error[THRUST_SCALE] = (a.thrust_scale_B - b.thrust_scale_B)[0]
    error[MAP_SHIFT] = (a.map_shift_m - b.map_shift_m)[0]
    error[MAP_MEAN] = (a.map_mean_m - b.map_mean_m)[0]
    error[MAP_LOCAL] = (a.map_local_m - b.map_local_m)[0]
    error[MAP_BEAM] = (a.map_beam_m - b.map_beam_m)[0]
    error[RANGE_BIAS] = (a.range_bias_m - b.range_bias_m)[0]
    error[MAP_SIDE] = (a.map_side_m - b.map_side_m)[0]
    error[CLONE_POSITION] = (a.clone_position_L - b.clone_position_L)[0]
    error[CLONE_ATTITUDE] = so3_log(a.clone_R_L_B @ b.clone_R_L_B.mT)[0]
    return error


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
    """Coriolis, centrifugal, curved gravity and J2: fall for 100 s and compare with DOP853."""
    frame = LocalFrame(60.5, -4.6)
    position_L = torch.tensor([300.0, -200.0, 15_000.0], dtype=F64)
    velocity_L = torch.tensor([1600.0, 400.0, -50.0], dtype=F64)  # orbital speed shows Coriolis
    spin, centre = frame.spin_L().numpy(), frame.centre_L.numpy()
    r0 = position_L.numpy() - centre
    v0 = velocity_L.numpy() + np.cross(spin, r0)
    pole = spin / np.linalg.norm(spin)

    def motion(t: float, y: np.ndarray) -> np.ndarray:
        """Montenbruck and Gill 2000, section 3.2: the field of a flattened body."""
        r, along = np.linalg.norm(y[:3]), pole @ y[:3]
        flat = 1.5 * J2 * (J2_RADIUS_M / r) ** 2
        pull = y[:3] * (1 + flat * (1 - 5 * (along / r) ** 2)) + 2 * flat * along * pole
        return np.concatenate([y[3:], -GM_M3_S2 / r**3 * pull])

    fall = solve_ivp(
        motion,
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
    # Without Coriolis it would be off by |2 W x v| t^2 / 2 = 40 m, without J2 by 3 J2 g t^2 / 4
    # = 2 m and more: the bound can fail.
    assert so3_log(state.R_L_B[0]).norm() < 1e-12


def test_gravity_is_the_frames_own() -> None:
    """The mechanisation writes gravity out for its gradient's sake: it must be the same law."""
    still = LocalFrame(90.0, 0.0)
    p = torch.tensor([[0.0, 0.0, 5000.0]], dtype=F64)
    zero = torch.zeros(1, 3, dtype=F64)
    one = advance(p, zero, torch.eye(3, dtype=F64)[None], zero, zero, 1e-3, _frame(still, 1e-3))
    # no centrifugal at a pole
    assert torch.allclose(one.velocity_L / 1e-3, gravity_L(p, still), rtol=1e-9)
    eps = torch.eye(3, dtype=F64) * 100
    numeric = (gravity_L(p + eps, still) - gravity_L(p - eps, still)).T / 200
    # The gradient leaves J2 out, which is 6 J2 = 1.2e-3 of it at a pole.
    assert torch.allclose(one.gravity_gradient[0], numeric, rtol=2e-3, atol=1e-10)


def _frame(frame: LocalFrame, dt_s: float):
    return frame_step(frame, dt_s, 1000.0, 1000.0, torch.device("cpu"))


@pytest.mark.parametrize("t_s", [10.0, 86.0])
def test_transition_against_finite_differences(t_s: float) -> None:
    state = replace(
        start(t_s),
        gyro_bias_B=torch.full((1, 3), 1e-4, dtype=F64),
        accelerometer_bias_B=torch.full((1, 3), 0.01, dtype=F64),
        thrust_scale_B=torch.tensor([[1e-4, -2e-4, 3e-4]], dtype=F64),
        map_shift_m=torch.tensor([[1.0, -1.0]], dtype=F64),
        map_local_m=torch.full((1,), 2.0, dtype=F64),
    )
    increments = step(t_s + DT_S, *ideal_increments(round(t_s / DT_S)))
    columns = []
    for i in range(STATES):
        plus, minus = (
            propagate(perturbed(state, i, sign * float(SIZE[i])), increments, FRAME, CONFIG)
            for sign in (1, -1)
        )
        columns.append(difference(plus, minus) / (2 * SIZE[i]))
    numeric = torch.stack(columns, -1)
    constants = _frame(FRAME, DT_S)
    thrust_m_s = increments.delta_v_B[:, 2]
    scale = thrust_m_s[:, None] * state.thrust_scale_B
    moved = advance(
        state.position_L,
        state.velocity_L,
        state.R_L_B,
        increments.delta_v_B - DT_S * state.accelerometer_bias_B - scale,
        increments.delta_theta_B - DT_S * state.gyro_bias_B,
        DT_S,
        constants,
    )
    phi = transition(moved, thrust_m_s, DT_S, constants)[0]
    # In units of the prior spread, an error of one sigma goes astray by less than 1e-4 sigma.
    sigma = state.covariance[0].diagonal().sqrt()[:INERTIAL]
    astray = (numeric[:INERTIAL, :INERTIAL] - phi) * sigma / sigma[:, None]
    assert astray.abs().max() < 1e-4
    assert ((phi - torch.eye(INERTIAL)) * sigma / sigma[:, None]).abs().max() > 1e-3  # not vacuous
    assert (phi[VELOCITY, THRUST_SCALE].diagonal().abs() > 0.02).all()
    # Map, range bias and clone stay as they are, and nothing depends on them.
    rest = numeric.clone()
    rest[:INERTIAL, :INERTIAL] = torch.eye(INERTIAL)
    assert torch.allclose(rest, torch.eye(STATES, dtype=F64), atol=1e-8)

    # The covariance goes with it as a whole: F P F^T + Q, here of a full P.
    root = torch.randn(STATES, STATES, generator=torch.Generator().manual_seed(1), dtype=F64)
    P = root @ root.T
    F, Q = torch.eye(STATES, dtype=F64), torch.zeros(STATES, STATES, dtype=F64)
    F[:INERTIAL, :INERTIAL] = phi
    Q[:INERTIAL, :INERTIAL] = inertial_noise(
        DT_S,
        CONFIG.accelerometer_random_walk_m_s_sqrts,
        CONFIG.gyro_random_walk_rad_sqrts,
        CONFIG.accelerometer_bias_sigma_m_s2,
        CONFIG.accelerometer_bias_time_s,
        CONFIG.gyro_bias_sigma_rad_s,
        CONFIG.gyro_bias_time_s,
    )
    carried = propagate(replace(state, covariance=P[None]), increments, FRAME, CONFIG)
    assert torch.allclose(carried.covariance[0], F @ P @ F.T + Q, rtol=1e-12, atol=1e-12)


def test_clone_is_the_pose_of_now_and_stays_with_its_covariance() -> None:
    state = start(70.0)
    for k in range(20):
        state = propagate(
            state, step(70 + (k + 1) * DT_S, *ideal_increments(1400 + k)), FRAME, CONFIG
        )
    kept = clone(state)
    P, pose = kept.covariance[0], torch.tensor([0, 1, 2, 6, 7, 8])
    there = torch.arange(CORE, STATES)
    assert kept.clone_t_s == state.t_s
    assert torch.equal(kept.clone_position_L, state.position_L)
    assert torch.equal(kept.clone_R_L_B, state.R_L_B)
    assert torch.equal(P[:CORE, :CORE], state.covariance[0, :CORE, :CORE])
    assert torch.equal(P[there][:, there], P[pose][:, pose])
    assert torch.equal(P[there][:, :CORE], P[pose][:, :CORE])
    later = propagate(kept, step(71 + DT_S, *ideal_increments(1420)), FRAME, CONFIG)
    assert torch.equal(later.covariance[0, CORE:, CORE:], P[CORE:, CORE:])
    assert torch.equal(later.clone_position_L, kept.clone_position_L)
    assert later.clone_t_s == kept.clone_t_s


# Measurements -------------------------------------------------------------------------------------


def _innovation_of(sensor: Sensor, state: FilterState, age_s: float = 0.0) -> Tensor:
    """Innovation of one fixed measurement against a state."""
    here, one = truth(state.t_s), torch.ones(1, dtype=torch.bool)
    match sensor:
        case Sensor.STAR_TRACKER:
            reading = StarTrackerReading(state.t_s, here.R_L_B[None], 1e-4)
            return update_star_tracker(state, reading, CONFIG)[1].value[0]
        case Sensor.VISION:
            return update_vision(state, *fix_at(state.t_s, CONFIG), R_B_C, CONFIG)[1].value[0]
        case Sensor.GROUND:
            posterior = (torch.full((1,), x, dtype=F64) for x in (0.7, 2.0))
            return update_ground(state, *posterior, one, CONFIG)[1].value[0]
        case Sensor.ALTIMETER:
            prediction, H = plane_prediction(state, CONFIG, age_s=age_s)
            read = AltimeterReading(state.t_s, torch.full((1,), 2000.0, dtype=F64), one)
            return update_altimeter(state, read, prediction, H, SPEC, CONFIG)[1].value[0]


@pytest.mark.parametrize(
    ("sensor", "age_s"), [*((s, 0.0) for s in SENSORS), (Sensor.ALTIMETER, 0.2)]
)
def test_measurement_jacobians_against_finite_differences(sensor: Sensor, age_s: float) -> None:
    # At the scale of the fix, so that taking it does not change what the mean is over.
    of_map = map_covariance(2000.0, CONFIG)[None]
    state = rescale(start(70.0), of_map[:, 2, 2], CONFIG, of_map[:, 0, 0])
    columns = []
    for i in range(STATES):
        size = float(SIZE[i]) * 0.1
        plus, minus = (
            _innovation_of(sensor, perturbed(state, i, sign * size), age_s) for sign in (1, -1)
        )
        columns.append(-(plus - minus) / (2 * size))
    numeric = torch.stack(columns, -1)
    eye = torch.eye(STATES, dtype=F64)
    match sensor:
        case Sensor.ALTIMETER:
            expected = plane_prediction(state, CONFIG, age_s=age_s)[1][0]
            assert expected[0, 2] > 1.0
            assert expected[0, 5] == -age_s * expected[0, 2]
            assert expected[0, 6:9].norm() > 100
            assert expected[0, MAP_BEAM] == expected[0, 2]
            assert expected[0, MAP_LOCAL] == 0.0
            assert expected[0, RANGE_BIAS] == 1.0
        case Sensor.STAR_TRACKER:
            expected = eye[ATTITUDE]
        case Sensor.GROUND:
            expected = (eye[MAP_LOCAL] - eye[MAP_MEAN])[None]
        case Sensor.VISION:
            expected = torch.cat([eye[CLONE_POSITION], eye[CLONE_ATTITUDE]])
            expected[:2] += eye[MAP_SHIFT] + eye[MAP_SIDE]
            expected[2] += eye[MAP_MEAN]
    assert torch.allclose(numeric, expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))


def test_prediction_on_a_sloping_map_in_closed_form() -> None:
    """The ray caster's hit on a tilted plane, its Jacobian by moving the state over the map."""
    slope_x, slope_y, post_m, n = 0.12, -0.05, 20.0, 400
    axis = (torch.arange(n) - n / 2) * post_m
    z = slope_x * axis[None, :] + slope_y * axis[:, None] - 300.0
    terrain = Terrain([Level(float(axis[0]), float(axis[0]), post_m, z.float())])
    state = replace(
        start(70.0),
        position_L=torch.tensor([[120.0, 80.0, 1900.0]], dtype=F64),
        map_beam_m=torch.full((1,), 1.5, dtype=F64),
        range_bias_m=torch.full((1,), -0.4, dtype=F64),
    )
    age_s = 0.3
    prediction, H = predict_range(state, terrain, SPEC, CONFIG, age_s)

    normal = torch.tensor([-slope_x, -slope_y, 1.0], dtype=F64)
    normal = normal / normal.norm()

    def range_m(at: FilterState) -> Tensor:
        """To the ground, which lies lower than the map by the map's error."""
        d = -at.R_L_B[0, :, 2]
        ground = torch.stack([d[0] * 0, d[0] * 0, -300.0 - at.map_beam_m[0]])
        then = at.position_L[0] - age_s * at.velocity_L[0]
        return normal @ (ground - then) / (normal @ d) + at.range_bias_m[0]

    assert bool(prediction.defined[0])
    assert abs(float(prediction.range_m[0] - range_m(state))) < 0.01
    beam = -state.R_L_B[0, :, 2]
    expected_incidence = math.acos(-float(normal @ beam))
    assert float(prediction.incidence_rad[0]) == pytest.approx(expected_incidence, abs=1e-5)
    for i in range(STATES):
        size = float(SIZE[i]) * 0.1
        ahead, back = (range_m(perturbed(state, i, sign * size)) for sign in (1, -1))
        # The map is float32: slopes are good to 1e-6, and the beam's length multiplies that.
        reach_m = float(prediction.range_m[0]) if 6 <= i < 9 else 1.0
        numeric = float(ahead - back) / (2 * size)
        assert float(H[0, 0, i]) == pytest.approx(numeric, rel=1e-5, abs=1e-5 * reach_m), i
    variance = (H @ state.covariance @ H.mT).item() + CONFIG.relief_sigma_m**2
    assert float(prediction.sigma_m[0]) == pytest.approx(math.sqrt(variance))

    beyond = replace(state, position_L=state.position_L + 1e5)
    missed, H = predict_range(beyond, terrain, SPEC, CONFIG)
    assert not bool(missed.defined[0])
    assert bool(missed.range_m.isnan())
    assert not bool(H.any())


def test_height_over_ground_takes_the_map_out() -> None:
    state = replace(start(97.0), map_local_m=torch.full((1,), -2.0, dtype=F64))
    P = state.covariance.clone()
    P[:, 2, MAP_LOCAL] = P[:, MAP_LOCAL, 2] = -20.0  # a map too high puts the lander too high
    # A map 2 m under the ground: over it, the lander has to be 2 m lower to be as high.
    assert (over_map_L(state) - state.position_L)[0].tolist() == [0.0, 0.0, -2.0]
    sigma_m = agl_sigma_m(replace(state, covariance=P))
    # Over the nearby site the local vertical is z to 1e-3 rad.
    assert sigma_m.item() == pytest.approx(math.sqrt(10.0**2 + 3.0**2 - 2 * 20.0), rel=1e-4)


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
        map_sigma_m=1e-6,
        map_shift_sigma_m=1e-6,
        fix_floor_sigma_m=1e-9,
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
            vision = VisionFix(
                t_s=t_s,
                position_L=fix[None],
                R_L_C=(here.R_L_B @ R_B_C)[None],
                covariance=covariance[None],
                map_covariance=torch.zeros(1, 6, 6, dtype=F64),
            )
            one = torch.ones(1, dtype=torch.bool)
            state, _ = update_vision(clone(state), vision, one, R_B_C, config)
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


def _through(state: FilterState, first: int, last: int) -> FilterState:
    """Over real steps of a turning, braking descent, with increments that are off."""
    for k in range(first, last):
        delta_v, delta_theta = ideal_increments(k)
        increments = step((k + 1) * DT_S, delta_v * 1.001, delta_theta + 1e-6)
        state = propagate(state, increments, FRAME, CONFIG)
    return state


def _in_time_and_late(scale: float) -> tuple[FilterState, FilterState]:
    """A fix fused at its exposure, then 2 s of steps; the same with the fix after the steps."""
    exposed = clone(_through(start(69.0), 1380, 1400))
    fix, one = fix_at(70.0, CONFIG)
    off = torch.tensor([[6.0, -4.0, 9.0]], dtype=F64)
    turn = so3_exp(scale * torch.tensor([[1e-4, -2e-4, 5e-5]], dtype=F64))
    fix = replace(
        fix,
        position_L=exposed.position_L + scale * off,
        R_L_C=turn @ exposed.R_L_B @ R_B_C,
    )
    in_time = _through(update_vision(exposed, fix, one, R_B_C, CONFIG)[0], 1400, 1440)
    late = update_vision(_through(exposed, 1400, 1440), fix, one, R_B_C, CONFIG)[0]
    return in_time, late


def test_late_fix_equals_the_fix_in_time() -> None:
    """Where the fix confirms the state, both linearise alike: all 29 states equal to rounding.

    Where it turns the state by e (here under 2.5e-4 rad), the steps between have the transition of
    another state. That differs by e relatively, and so do the corrections: by at most e of them.
    """
    in_time, late = _in_time_and_late(0.0)
    sigma = late.covariance[0].diagonal().sqrt()
    apart = (in_time.covariance - late.covariance)[0] / sigma / sigma[:, None]
    assert apart.abs().max() < 1e-9
    assert (difference(in_time, late) / sigma).abs().max() < 1e-9
    assert in_time.clone_t_s == late.clone_t_s == pytest.approx(70.0)

    in_time, corrected_late = _in_time_and_late(1.0)
    moved = difference(corrected_late, late) / sigma
    assert moved.abs().max() > 0.3
    apart = difference(in_time, corrected_late) / sigma
    assert apart.abs().max() < 2.5e-4 * moved.abs().max()


# Consistency --------------------------------------------------------------------------------------

LANES = 60


@pytest.fixture(scope="module")
def flight() -> Flight:
    """Sixty descents whose errors are exactly those that the filter believes in."""
    return fly(LANES, seed=11, config=CONFIG, smooth_map=False, start_s=20.0)


@pytest.fixture(scope="module")
def late_flight() -> Flight:
    """The same where fixes come 0.5 s after their exposure and ranges are 0.2 s old."""
    return fly(
        LANES,
        seed=12,
        config=CONFIG,
        smooth_map=False,
        start_s=55.0,
        end_s=80.0,
        fix_latency_s=0.5,
        range_latency_s=0.2,
    )


@pytest.mark.parametrize("name", ["flight", "late_flight"])
def test_nees_lies_in_its_chi_square_bounds(name: str, request: pytest.FixtureRequest) -> None:
    """All 26 states of now, within bounds of 1e-5 each side: one false failure in 2000 seeds."""
    low, high = chi2.ppf([1e-5, 1 - 1e-5], CORE * LANES) / LANES
    checks = request.getfixturevalue(name).checks
    assert len(checks) == {"flight": 19, "late_flight": 6}[name]
    for state, error in checks:
        assert error.shape == (LANES, CORE)
        sigma = core_sigma(state)
        assert bool((sigma > 0).all())  # from the first fix on nothing is known for certain
        P = state.covariance[:, :CORE, :CORE] / sigma[:, :, None] / sigma[:, None, :]
        z = error / sigma
        nees = (z * torch.linalg.solve(P, z)).sum(-1).mean()
        assert low < float(nees) < high, (state.t_s, float(nees))
        # No state hides behind the others: each one's own mean square, too.
        one_low, one_high = chi2.ppf([1e-6, 1 - 1e-6], LANES) / LANES
        each = z.square().mean(0)
        assert bool(((one_low < each) & (each < one_high)).all()), (state.t_s, each)


@pytest.mark.parametrize("name", ["flight", "late_flight"])
def test_nis_lies_in_its_chi_square_bounds(name: str, request: pytest.FixtureRequest) -> None:
    """White innovations: their NIS over all descents and epochs adds up to chi-square."""
    log = request.getfixturevalue(name)
    visions = _visions(log)
    nis = {
        "stars": (3, torch.cat([i.nis[i.present] for i in log.stars])),
        "vision": (6, torch.cat([i.nis[i.present] for i in visions])),
        "altimeter": (
            1,
            torch.cat([e.altimeter.nis[e.altimeter.present] for e in log.epochs]),
        ),
        "ground": (1, torch.cat([i.nis[i.present] for i in log.grounds])),
    }
    for sensor, (degrees, values) in nis.items():
        assert len(values) >= 6 * LANES
        low, high = chi2.ppf([1e-4, 1 - 1e-4], degrees * len(values))
        assert low < float(values.sum()) < high, sensor


def _visions(log: Flight):
    return [e.vision for e in log.epochs if e.vision is not None]


def test_covariance_stays_symmetric_and_positive(flight: Flight) -> None:
    for state, _ in flight.checks:
        assert torch.equal(state.covariance, state.covariance.mT)
        P = state.covariance[:, :CORE, :CORE]
        sigma = P.diagonal(dim1=-2, dim2=-1).sqrt()
        assert torch.linalg.eigvalsh(P / sigma[:, :, None] / sigma[:, None, :]).min() > 1e-9


def test_healthy_gates_reject_at_their_stated_rate(flight: Flight) -> None:
    fused = torch.cat([e.altimeter.fused for e in flight.epochs])
    present = torch.cat([e.altimeter.present for e in flight.epochs])
    n, rejected = int(present.sum()), int((present & ~fused).sum())
    assert n > 20_000
    assert rejected <= 1e-4 * n + 5 * math.sqrt(1e-4 * n)
    assert not bool((fused & ~present).any())


# Borders ------------------------------------------------------------------------------------------


def test_same_numbers_and_no_waiting_on_an_accelerator() -> None:
    simulated_device.install()
    always = Fault(altimeter_detects=lambda t_s, range_m: True)

    def short(device: str) -> Flight:
        late = {"fix_latency_s": 0.5, "range_latency_s": 0.2}
        ends = {"start_s": 60.0, "end_s": 65.0}
        return fly(2, 5, always, CONFIG, device=device, smooth_map=False, **ends, **late)

    expected = short("cpu")
    with simulated_device.count_syncs() as syncs:
        actual = short(simulated_device.DEVICE)
    assert not syncs, syncs
    assert len(expected.checks) == 1
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


def test_a_noisier_sensor_is_weighed_as_one_that_says_so() -> None:
    """Seven times the noise, of one of two descents: as an altimeter of such a specification."""
    both = start(70.0, batch=2)
    prediction, H = plane_prediction(both, CONFIG)
    valid = torch.ones(2, dtype=torch.bool)
    reading = AltimeterReading(70.0, prediction.range_m + 3.0, valid)
    scale = torch.tensor([1.0, 7.0], dtype=F64)
    noisier = replace(
        SPEC, noise_floor_m=7 * SPEC.noise_floor_m, noise_fraction=7 * SPEC.noise_fraction
    )
    scaled, _ = update_altimeter(both, reading, prediction, H, SPEC, CONFIG, scale)
    for lane, spec in enumerate((SPEC, noisier)):
        plain, _ = update_altimeter(both, reading, prediction, H, spec, CONFIG)
        torch.testing.assert_close(plain.covariance[lane], scaled.covariance[lane])
        torch.testing.assert_close(plain.position_L[lane], scaled.position_L[lane])


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
    fix, one = fix_at(70.0, CONFIG)
    with pytest.raises(ConfigError, match=r"vision fix of t = 69\.500000 s.*clone at the exposure"):
        update_vision(state, replace(fix, t_s=69.5), one, R_B_C, CONFIG)
    prediction, H = plane_prediction(state, CONFIG)
    late_reading = AltimeterReading(70.2, prediction.range_m, one)
    with pytest.raises(ConfigError, match=r"altimeter at t = 70\.2"):
        update_altimeter(state, late_reading, prediction, H, SPEC, CONFIG)
