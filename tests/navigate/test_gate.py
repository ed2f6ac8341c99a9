"""Gates: what each policy does with readings that they call implausible, and the plain update."""

import inspect
import math
from dataclasses import replace

import pytest
import torch
from descent_model import (
    F64,
    R_B_C,
    SPEC,
    Fault,
    at_truth,
    fix_at,
    fly,
    map_covariance,
    plane_prediction,
)
from scipy.stats import chi2
from torch import Tensor

from tnav.geometry.pose import so3_exp
from tnav.navigate.filter import (
    _carried,
    update_altimeter,
    update_star_tracker,
    update_vision,
)
from tnav.navigate.gate import fuse
from tnav.navigate.map_error import rescale
from tnav.navigate.mechanisation import (
    ACCELEROMETER_BIAS,
    INERTIAL,
    MAP_BEAM,
    MAP_SHIFT,
    RANGE_BIAS,
    STATES,
    gravity_in_doubt,
)
from tnav.navigate.state import SENSORS, FilterConfig, FilterState, GatePolicy
from tnav.records import AltimeterReading, Innovation, Sensor, StarTrackerReading

CONFIG = FilterConfig()
POLICIES = {policy: replace(CONFIG, altimeter_gate=policy) for policy in GatePolicy}
PATIENT = [GatePolicy.TIMEOUT, GatePolicy.RESET, GatePolicy.TERRAIN_AWARE]
ALTIMETER = SENSORS.index(Sensor.ALTIMETER)


def range_off_by(
    state: FilterState, off_m: float | None = None, sigmas: float = 0.0, config=CONFIG
) -> tuple[FilterState, Innovation]:
    """A range that is off by so many metres, or sigmas of the innovation."""
    prediction, H = plane_prediction(state, config)
    S = (H @ state.covariance @ H.mT).flatten() + SPEC.noise_sigma_m(prediction.range_m) ** 2
    S = S + config.relief_sigma_m**2
    range_m = prediction.range_m + (sigmas * S.sqrt() if off_m is None else off_m)
    reading = AltimeterReading(state.t_s, range_m, torch.ones(1, dtype=torch.bool))
    return update_altimeter(state, reading, prediction, H, SPEC, config)


def rejected(count: int, config: FilterConfig, off_m: float = 3000.0) -> FilterState:
    """A state that has just rejected so many ranges."""
    state = at_truth(70.0, config)
    for n in range(count):
        state, seen = range_off_by(state, off_m, config=config)
        assert not bool(seen.fused[0])
        assert float(state.rejected_run[0, ALTIMETER]) == n + 1
    return state


def test_gate_just_under_and_just_over() -> None:
    gate = math.sqrt(chi2.ppf(CONFIG.gate_probability, 1))
    state = at_truth(70.0, CONFIG)
    under, seen = range_off_by(state, sigmas=gate * 0.999)
    assert bool(seen.fused[0])
    assert float(seen.nis[0]) == pytest.approx((gate * 0.999) ** 2)
    assert (under.position_L - state.position_L).norm() > 1.0
    over, seen = range_off_by(state, sigmas=-gate * 1.001)
    assert not bool(seen.fused[0])
    assert bool(seen.present[0])
    assert float(seen.nis[0]) == pytest.approx((gate * 1.001) ** 2)  # an output all the same
    assert torch.equal(over.position_L, state.position_L)
    assert torch.equal(over.covariance, state.covariance)
    assert over.rejected_run[0].tolist() == [0.0, 0.0, 1.0, 0.0]


@pytest.mark.parametrize("sensor", [Sensor.STAR_TRACKER, Sensor.VISION])
def test_gates_of_three_and_six_dimensions(sensor: Sensor) -> None:
    """The gate is chi-square's quantile at the measurement's own degrees of freedom."""
    dof = {Sensor.STAR_TRACKER: 3, Sensor.VISION: 6}[sensor]
    gate = math.sqrt(chi2.ppf(CONFIG.gate_probability, dof))
    state = at_truth(70.0, CONFIG)
    state = rescale(state, map_covariance(2000.0, CONFIG)[None, 2, 2], CONFIG)
    for sigmas, passes in ((gate * 0.999, True), (gate * 1.001, False)):
        if sensor is Sensor.STAR_TRACKER:
            turn = torch.tensor([[sigmas * math.hypot(3e-4, 1e-4), 0.0, 0.0]], dtype=F64)
            reading = StarTrackerReading(70.0, so3_exp(turn) @ state.R_L_B, 1e-4)
            _, seen = update_star_tracker(state, reading, CONFIG)
        else:
            _, still = update_vision(state, *fix_at(70.0, CONFIG), R_B_C, CONFIG)
            east = float(torch.linalg.inv(still.covariance[0])[0, 0]) ** -0.5
            fix = fix_at(70.0, CONFIG, (sigmas * east, 0.0, 0.0))
            _, seen = update_vision(state, *fix, R_B_C, CONFIG)
        assert bool(seen.fused[0]) is passes
        assert float(seen.nis[0]) == pytest.approx(sigmas**2, rel=1e-6)


def test_update_is_kalmans() -> None:
    """Joseph's form by factors equals (1 - K H) P of a dense update."""
    generator = torch.Generator().manual_seed(2)
    root = torch.randn(1, STATES, STATES, generator=generator, dtype=F64)
    H = torch.randn(1, 2, STATES, generator=generator, dtype=F64)
    state = replace(at_truth(70.0, CONFIG), covariance=root @ root.mT)
    P, noise = state.covariance, 0.5 * torch.eye(2, dtype=F64)[None]
    residual, one = torch.tensor([[0.3, -0.2]], dtype=F64), torch.ones(1, dtype=torch.bool)
    no_widening = torch.zeros(1, STATES, 1, dtype=F64)
    after, seen = fuse(state, Sensor.GROUND, residual, H, noise, one, no_widening, CONFIG)
    gain = P @ H.mT @ torch.linalg.inv(H @ P @ H.mT + noise)
    assert torch.allclose(after.covariance, P - gain @ H @ P, rtol=1e-9, atol=1e-9)
    moved = (gain @ residual[..., None]).squeeze(-1)
    assert torch.allclose(after.position_L - state.position_L, moved[:, :3], atol=1e-9)
    assert torch.allclose(seen.covariance, H @ P @ H.mT + noise)
    # Considered states: not corrected, keep their variance, and the rest is as good as before.
    kept = (0, 1, 18)
    considered, _ = fuse(state, Sensor.GROUND, residual, H, noise, one, no_widening, CONFIG, kept)
    some = gain.clone()
    some[:, list(kept)] = 0.0
    rest = torch.eye(STATES, dtype=F64) - some @ H
    dense = rest @ P @ rest.mT + some @ noise @ some.mT
    assert torch.allclose(considered.covariance, dense, rtol=1e-9, atol=1e-9)
    assert torch.equal(considered.position_L[:, :2], state.position_L[:, :2])
    diagonal = considered.covariance[0].diagonal()
    assert torch.allclose(diagonal[list(kept)], P[0].diagonal()[list(kept)])
    free = [i for i in range(STATES) if i not in kept]
    assert torch.allclose(diagonal[free], after.covariance[0].diagonal()[free])


def test_absent_readings_change_nothing_whatever_they_hold() -> None:
    state = at_truth(70.0, CONFIG)
    prediction, H = plane_prediction(state, CONFIG)
    reading = AltimeterReading(
        70.0, torch.full((1,), torch.nan, dtype=F64), torch.zeros(1, dtype=torch.bool)
    )
    after, seen = update_altimeter(state, reading, prediction, H, SPEC, CONFIG)
    fix, _ = fix_at(70.0, CONFIG)
    hollow = replace(
        fix,
        **{
            name: torch.full_like(getattr(fix, name), torch.nan)
            for name in ("position_L", "R_L_C", "covariance", "map_covariance")
        },
    )
    after, seen_fix = update_vision(after, hollow, reading.valid, R_B_C, CONFIG)
    for innovation in (seen, seen_fix):
        assert not bool(innovation.present[0])
        assert not bool(innovation.fused[0])
        assert bool(innovation.nis.isnan().all())
        assert bool(innovation.value.isnan().all())
    assert torch.equal(after.covariance, state.covariance)
    assert torch.equal(after.position_L, state.position_L)
    assert torch.allclose(after.R_L_B, state.R_L_B, rtol=0, atol=1e-15)


# Policies -----------------------------------------------------------------------------------------


def test_without_a_gate_everything_is_taken() -> None:
    config = POLICIES[GatePolicy.NONE]
    state = at_truth(70.0, config)
    for _ in range(3):
        state, seen = range_off_by(state, sigmas=100.0, config=config)
        assert bool(seen.fused[0])
        assert float(seen.nis[0]) == pytest.approx(1e4)
        assert float(state.rejected_run[0, ALTIMETER]) == 0.0
    fix = fix_at(70.0, config, (5000.0, 0.0, 0.0))  # the altimeter's policy is not vision's
    assert not bool(update_vision(at_truth(70.0, config), *fix, R_B_C, config)[1].fused[0])


def test_a_hard_gate_locks_out_for_ever() -> None:
    """Hakuto-R M1: the ground falls by 3 km, and every true range is thrown away."""
    config = POLICIES[GatePolicy.HARD]
    state = rejected(4 * CONFIG.altimeter_gate_patience, config)
    assert torch.equal(state.position_L, at_truth(70.0, config).position_L)
    assert torch.equal(state.covariance, at_truth(70.0, config).covariance)
    # It is not deaf: what is plausible is taken, and ends the run of rejections.
    state, seen = range_off_by(state, 1.0, config=config)
    assert bool(seen.fused[0])
    assert float(state.rejected_run[0, ALTIMETER]) == 0.0


@pytest.mark.parametrize("policy", PATIENT)
def test_after_its_patience_a_gate_takes_the_next(policy: GatePolicy) -> None:
    config = replace(POLICIES[policy], altimeter_gate_patience=4)
    before = rejected(4, config)
    after, seen = range_off_by(before, 3000.0, config=config)
    assert bool(seen.fused[0])
    assert float(after.rejected_run[0, ALTIMETER]) == 0.0
    prediction, H = plane_prediction(before, config)
    noise = SPEC.noise_sigma_m(prediction.range_m) ** 2 + config.relief_sigma_m**2
    assert float(seen.nis[0]) == pytest.approx(3000.0**2 / float(seen.covariance[0, 0, 0]))
    moved_m = float(after.position_L[0, 2] - before.position_L[0, 2])
    left_m = 3000.0 - float(plane_prediction(after, config)[0].range_m - prediction.range_m)
    if policy is GatePolicy.TIMEOUT:
        # As it is: the gain of a healthy reading, and a covariance that knows of no discrepancy.
        S = (H @ before.covariance @ H.mT).flatten() + noise
        gain = (before.covariance @ H.mT)[0, :, 0] / S
        assert moved_m == pytest.approx(3000.0 * float(gain[2]), rel=1e-9)
        assert after.covariance[0, 2, 2] < before.covariance[0, 2, 2]
    else:
        # Widened by what was seen: half to the altitude, half to the map under the lander.
        assert abs(left_m) < 0.01 * 3000
        assert moved_m == pytest.approx(1500.0 / float(H[0, 0, 2]), rel=0.1)
        for of_map_m in (after.map_local_m, after.map_beam_m):
            assert float(of_map_m * H[0, 0, MAP_BEAM]) == pytest.approx(1500.0, rel=0.1)
        assert after.covariance[0, 2, 2].sqrt() > 0.3 * 3000
    still = torch.equal(after.position_L[:, :2], before.position_L[:, :2])
    assert still  # ranges do not correct where the lander is horizontally
    assert bool((after.map_shift_m == 0).all())
    assert torch.allclose(
        after.covariance[:, MAP_SHIFT, MAP_SHIFT], before.covariance[:, MAP_SHIFT, MAP_SHIFT]
    )
    assert after.range_bias_m.abs().item() < 0.1 * 3000
    assert after.covariance[0, RANGE_BIAS, RANGE_BIAS] <= config.range_bias_sigma_m**2


def test_widening_makes_the_reading_plausible_by_the_closed_form() -> None:
    """With r r^T along the discrepancy the NIS falls to nis / (1 + nis); here along one state."""
    state = at_truth(70.0, CONFIG)
    state = replace(state, rejected_run=torch.full_like(state.rejected_run, 1e3))
    H = torch.zeros(1, 1, STATES, dtype=F64)
    H[..., 2] = 1.0
    residual, noise = torch.full((1, 1), 500.0, dtype=F64), torch.ones(1, 1, 1, dtype=F64)
    one = torch.ones(1, dtype=torch.bool)
    widening = residual[:, None, :] * H.mT
    after, seen = fuse(state, Sensor.VISION, residual, H, noise, one, widening, CONFIG)
    S = 10.0**2 + 1.0
    wide = S + 500.0**2
    assert float(seen.nis[0]) == pytest.approx(500.0**2 / S)  # reported as it was before
    moved_m = float(after.position_L[0, 2] - state.position_L[0, 2])
    assert moved_m == pytest.approx(500.0 * (wide - 1) / wide, rel=1e-9)
    assert after.covariance[0, 2, 2].item() == pytest.approx((wide - 1) / wide, rel=1e-9)
    nis = float(seen.nis[0])
    assert 500.0**2 / wide == pytest.approx(nis / (1 + nis))


@pytest.mark.parametrize("policy", PATIENT)
@pytest.mark.parametrize("off_m", [0.0, 5000.0])
def test_only_a_fix_that_passes_vouches_and_only_where_terrain_aware(
    policy: GatePolicy, off_m: float
) -> None:
    config = replace(POLICIES[policy], altimeter_gate_patience=4)
    state = rejected(4, config)
    fix = fix_at(70.0, config, (off_m, 0.0, 0.0))
    state, seen = update_vision(state, *fix, R_B_C, config)
    assert bool(seen.fused[0]) is (off_m == 0)
    anew = policy is GatePolicy.TERRAIN_AWARE and off_m == 0
    assert float(state.rejected_run[0, ALTIMETER]) == (0.0 if anew else 4.0)
    assert bool(range_off_by(state, 3000.0, config=config)[1].fused[0]) is not anew
    # Where there is no fix, nobody vouches.
    absent = torch.zeros(1, dtype=torch.bool)
    doubtful, _ = update_vision(rejected(4, config), fix[0], absent, R_B_C, config)
    assert float(doubtful.rejected_run[0, ALTIMETER]) == 4.0


def test_vision_patience() -> None:
    state, off = at_truth(70.0, CONFIG), (500.0, 0.0, 0.0)
    fused = []
    for _ in range(CONFIG.vision_gate_patience + 1):
        state, seen = update_vision(state, *fix_at(70.0, CONFIG, off), R_B_C, CONFIG)
        fused.append(bool(seen.fused[0]))
    assert fused == [False, False, False, True]
    assert (state.position_L - fix_at(70.0, CONFIG, off)[0].position_L).norm() < 10
    assert (state.clone_position_L - state.position_L).norm() < 1e-6


def test_a_height_that_jumps_leaves_gravity_in_doubt() -> None:
    """3 km of ground that is not there are 0.0056 m/s^2 of gravity: bias, along the vertical."""
    turned = so3_exp(torch.tensor([[0.4, -0.2, 1.3]], dtype=F64))
    doubt = gravity_in_doubt(turned, torch.tensor([3000.0], dtype=F64))[0, :, 0]
    assert float((turned[0] @ doubt[ACCELEROMETER_BIAS])[2]) == pytest.approx(0.0056, rel=0.01)
    assert (turned[0] @ doubt[ACCELEROMETER_BIAS])[:2].tolist() == pytest.approx([0.0, 0.0])
    assert float(doubt.norm()) == pytest.approx(float(doubt[ACCELEROMETER_BIAS].norm()))
    state, off = at_truth(70.0, CONFIG), (0.0, 0.0, 3000.0)
    before = state.covariance[0, ACCELEROMETER_BIAS, ACCELEROMETER_BIAS].trace()
    for _ in range(CONFIG.vision_gate_patience + 1):
        state, seen = update_vision(state, *fix_at(70.0, CONFIG, off), R_B_C, CONFIG)
        if not bool(seen.fused[0]):
            assert state.covariance[0, ACCELEROMETER_BIAS, ACCELEROMETER_BIAS].trace() == before
    after = state.covariance[0, ACCELEROMETER_BIAS, ACCELEROMETER_BIAS].trace()
    assert float(after - before) == pytest.approx(0.0056**2, rel=0.05)


def test_no_lock_out_of_a_healthy_altimeter() -> None:
    """Hakuto-R M1: the state is 500 m off, no camera. With patience it heals; without, never."""
    lost = Fault(
        kick_L=lambda t_s: (0.0, 0.0, 500.0 if abs(t_s - 61.0) < 1e-6 else 0.0),
        vision_sees=lambda t_s: False,
        altimeter_detects=lambda t_s, range_m: True,
    )

    def altitude_error_m(policy: GatePolicy) -> float:
        config = replace(POLICIES[policy], map_correlation_m=50.0)
        _, error = fly(8, 3, lost, config, start_s=60.0, end_s=80.0).checks[-1]
        return float(error[:, 2].abs().max())

    assert altitude_error_m(GatePolicy.HARD) > 400
    for policy in (GatePolicy.RESET, GatePolicy.TERRAIN_AWARE):
        assert altitude_error_m(policy) < 60


# Extremes -----------------------------------------------------------------------------------------


def _correlation_least(P: Tensor) -> float:
    sigma = P.diagonal(dim1=-2, dim2=-1).sqrt()
    sigma = torch.where(sigma > 0, sigma, 1.0)
    return float(torch.linalg.eigvalsh(P / sigma[:, :, None] / sigma[:, None, :]).min())


def test_covariance_stays_symmetric_and_positive_over_many_tiny_updates() -> None:
    """2e4 steps of almost no noise, a range in every hundredth: rounding must not break it."""
    carried = inspect.unwrap(_carried)  # the checks of annotations take longer than the step
    state = at_truth(70.0, CONFIG)
    generator = torch.Generator().manual_seed(8)
    phi = torch.eye(INERTIAL, dtype=F64)[None].clone()
    phi[:, :3, 3:6] += 0.05 * torch.eye(3, dtype=F64)
    phi[:, 3:6, 12:15] -= 0.05 * torch.eye(3, dtype=F64)
    phi[:, 3:6, 6:9] = 0.05 * torch.randn(3, 3, generator=generator, dtype=F64)
    Q = 1e-18 * torch.eye(INERTIAL, dtype=F64)
    H, noise = plane_prediction(state, CONFIG)[1], torch.full((1, 1, 1), 1e-4, dtype=F64)
    nothing, one = torch.zeros(1, 1, dtype=F64), torch.ones(1, dtype=torch.bool)
    widening = torch.zeros(1, STATES, 1, dtype=F64)
    for k in range(20_000):
        state = replace(state, covariance=carried(state.covariance, phi, Q))
        if k % 100 == 0:
            state, seen = fuse(state, Sensor.ALTIMETER, nothing, H, noise, one, widening, CONFIG)
            assert torch.equal(state.covariance, state.covariance.mT)
    assert bool(seen.fused[0])
    assert bool((state.covariance.diagonal(dim1=-2, dim2=-1) >= 0).all())
    assert _correlation_least(state.covariance) > -1e-6


@pytest.mark.parametrize(
    "fault",
    [
        Fault(altimeter_detects=lambda t_s, range_m: True),
        Fault(vision_sees=lambda t_s: False, altimeter_detects=lambda t_s, range_m: False),
    ],
    ids=["all", "none"],
)
@pytest.mark.parametrize("position_sigma_m", [1e-6, 1e5])
@pytest.mark.parametrize("tiny", [True, False])
def test_extremes_end_without_nan(
    fault: Fault, position_sigma_m: float, tiny: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Perfect sensors, a start that knows nothing or all, no measurement: numbers to the end."""
    names = (
        "accelerometer_random_walk_m_s_sqrts",
        "accelerometer_bias_sigma_m_s2",
        "gyro_random_walk_rad_sqrts",
        "gyro_bias_sigma_rad_s",
        "thrust_scale_sigma",
        "map_sigma_m",
        "map_shift_sigma_m",
        "range_bias_sigma_m",
    )
    config = replace(CONFIG, **dict.fromkeys(names, 1e-12)) if tiny else CONFIG
    monkeypatch.setattr("descent_model.POSITION_SIGMA_M", position_sigma_m)
    flight = fly(2, 6, fault, config, smooth_map=False, start_s=70.0, end_s=76.5)
    for state, error in flight.checks:
        assert bool(error.isfinite().all())
        assert bool(state.covariance.isfinite().all())
        assert torch.equal(state.covariance, state.covariance.mT)
        variance = state.covariance.diagonal(dim1=-2, dim2=-1)
        assert bool((variance >= 0).all())
        if position_sigma_m == 1e5 and fault.vision_sees(0.0):
            assert error[:, :3].abs().max() < 50
    assert len(flight.checks) == 2


@pytest.mark.parametrize(
    ("fix_interval_s", "rate_hz", "patience"),
    [(3.33, 10.0, 50), (3.34, 10.0, 51), (5.0, 10.0, 75), (8.0, 10.0, 120), (0.1, 1.0, 50)],
)
def test_vision_has_the_first_word(fix_interval_s: float, rate_hz: float, patience: int) -> None:
    """One and a half intervals of fixes, and never under 50 readings."""
    assert FilterConfig.heard_first(fix_interval_s, rate_hz) == patience
