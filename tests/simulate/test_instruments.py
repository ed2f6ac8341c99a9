import math

import pytest
import torch

from tnav.geometry.moon import LocalFrame
from tnav.simulate.descent import DescentProfile, fly
from tnav.simulate.faults import Bias, Dropout, LateAcquisition, NoFault, apply_fault
from tnav.simulate.instruments import (
    Altimeter,
    InertialUnit,
    StarTracker,
    epochs_s,
    read_altimeter,
    read_inertial,
    read_star_tracker,
)
from tnav.terrain.heightfield import Level, Terrain

FRAME = LocalFrame(60.5, -4.6)


@pytest.fixture(scope="module")
def flight():
    return fly(DescentProfile(), FRAME, 0.0)


@pytest.fixture(scope="module")
def plain():
    return _plain()


def _plain():
    level = Level(west_m=-8e3, south_m=-8e3, post_m=250.0, z_L=torch.zeros(65, 65))
    return Terrain((level,))


def test_altimeter_measures_the_slant_to_a_plain(flight, plain):
    altimeter = Altimeter(misalignment_deg=0.0)
    log = read_altimeter(altimeter, flight, plain, seed=0)
    k = flight.index_at(float(log.t_s[100]))
    slant = flight.position_L[k, 2] / flight.R_L_B[k, 2, 2]
    assert float(log.true_range_m[100]) == pytest.approx(float(slant), rel=1e-6)


def test_altimeter_noise_grows_as_specified(flight, plain):
    logs = [read_altimeter(Altimeter(), flight, plain, seed=s) for s in range(30)]
    errors = torch.stack([log.range_m - log.true_range_m for log in logs])
    for epoch, n in ((50, 30), (900, 30)):
        window = errors[:, epoch - 20 : epoch + 20]
        range_m = float(logs[0].true_range_m[epoch])
        expected = math.hypot(0.3, 0.001 * range_m)
        assert float(window.std()) == pytest.approx(expected, rel=4 / math.sqrt(2 * 40 * n) + 0.03)


def test_altimeter_keeps_its_promise_and_fades_beyond(flight, plain):
    altimeter = Altimeter(misalignment_deg=0.0)
    logs = [read_altimeter(altimeter, flight, plain, seed=s) for s in range(20)]
    range_m = torch.stack([log.true_range_m for log in logs])
    valid = torch.stack([log.valid for log in logs])
    near = valid[(range_m < 3000) & (range_m > 2500)].double()
    far = valid[range_m > 3600]
    assert float(near.mean()) >= 0.99
    assert float(far.double().mean()) < 0.01


def test_boresight_is_made_a_unit_vector_and_zero_is_refused():
    assert Altimeter(boresight_B=(0.0, 0.0, -2.0)).spec().boresight_B == (0.0, 0.0, -1.0)
    with pytest.raises(ValueError, match="not a zero vector"):
        Altimeter(boresight_B=(0.0, 0.0, 0.0))


@pytest.mark.parametrize("rate_hz", [1.0, 3.0, 9.5, 9.7, 10.0, 1 / 3])
def test_epochs_cover_the_flight_and_no_more(flight, rate_hz):
    t_s = epochs_s(flight, rate_hz)
    end_s = float(flight.t_s[-1])
    assert float(t_s[-1]) <= end_s + 1e-6
    assert float(t_s[-1]) + 1 / rate_hz > end_s
    assert read_altimeter(Altimeter(rate_hz=rate_hz), flight, _plain(), 0).t_s.shape == t_s.shape
    assert epochs_s(flight, rate_hz, end_s + 1.0).numel() == 0


def test_inertial_errors_have_their_sizes(flight):
    unit = InertialUnit(accelerometer_bias_m_s2=0.0, gyro_bias_rad_s=0.0)
    log = read_inertial(unit, flight, seed=1)
    walk = (log.delta_v_B - flight.delta_v_B).std() / math.sqrt(flight.dt_s)
    assert float(walk) == pytest.approx(unit.velocity_random_walk_m_s_sqrt_s, rel=0.04)
    turn = (log.delta_theta_B - flight.delta_theta_B).std() / math.sqrt(flight.dt_s)
    assert float(turn) == pytest.approx(unit.angle_random_walk_rad_sqrt_s, rel=0.04)


def test_inertial_bias_is_constant(flight):
    unit = InertialUnit(velocity_random_walk_m_s_sqrt_s=0.0, angle_random_walk_rad_sqrt_s=0.0)
    error = read_inertial(unit, flight, seed=2).delta_v_B - flight.delta_v_B
    assert torch.allclose(error, error[:1].expand_as(error), atol=1e-15)
    assert 0 < float(error[0].norm()) / flight.dt_s < 5 * unit.accelerometer_bias_m_s2


def test_star_tracker_error_is_isotropic(flight):
    sigma = math.radians(0.01)
    readings = read_star_tracker(StarTracker(sigma_deg=0.01), flight.R_L_B, seed=3)
    turned = readings @ flight.R_L_B.mT
    vector = torch.stack([turned[:, 2, 1], turned[:, 0, 2], turned[:, 1, 0]], -1)
    for axis in range(3):
        n = vector.shape[0]
        assert float(vector[:, axis].std()) == pytest.approx(sigma, rel=4 / math.sqrt(2 * n))


T_S = torch.arange(0, 100, 0.1, dtype=torch.float64)
RANGE_M = 3000 - 25 * T_S
VALID = torch.ones(1000, dtype=torch.bool)


def test_no_fault_changes_nothing():
    range_m, valid = apply_fault(NoFault(), T_S, RANGE_M, VALID, seed=0)
    assert torch.equal(range_m, RANGE_M)
    assert torch.equal(valid, VALID)


def test_late_acquisition_is_a_logistic_in_range():
    fault = LateAcquisition(kind="late_acquisition", range_max_m=893.0, edge_m=200.0)
    drawn = torch.stack([apply_fault(fault, T_S, RANGE_M, VALID, seed=s)[1] for s in range(400)])
    share = drawn.double().mean(0)
    for range_m, expected in ((893.0, 0.5), (793.0, 0.9), (993.0, 0.1)):
        near = (RANGE_M - range_m).abs() < 10
        assert float(share[near].mean()) == pytest.approx(expected, abs=0.04)
    assert not bool(drawn[:, RANGE_M > 1500].any())
    assert bool(drawn[:, RANGE_M < 600].float().mean() > 0.99)


def test_late_acquisition_never_makes_an_invalid_range_valid():
    fault = LateAcquisition(kind="late_acquisition")
    _, valid = apply_fault(fault, T_S, RANGE_M, torch.zeros_like(VALID), seed=0)
    assert not bool(valid.any())


def test_dropout_covers_its_window_and_nothing_else():
    _, valid = apply_fault(
        Dropout(kind="dropout", start_s=10.0, duration_s=5.0), T_S, RANGE_M, VALID, 0
    )
    gone = T_S[~valid]
    assert float(gone.min()) == pytest.approx(10.0)
    assert float(gone.max()) == pytest.approx(14.9)
    assert gone.numel() == 50


def test_bias_begins_at_its_time():
    range_m, _ = apply_fault(Bias(kind="bias", start_s=50.0, bias_m=-300.0), T_S, RANGE_M, VALID, 0)
    moved = range_m - RANGE_M
    assert float(moved[T_S < 49.95].abs().max()) == 0
    assert torch.equal(moved[T_S > 50.0], torch.full_like(moved[T_S > 50.0], -300.0))
