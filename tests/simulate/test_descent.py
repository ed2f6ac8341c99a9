import math

import pytest
import torch

from tnav.errors import ConfigError
from tnav.geometry.moon import LocalFrame, gravity_L
from tnav.geometry.pose import so3_exp
from tnav.simulate.descent import DescentProfile, fly

FRAME = LocalFrame(60.5, -4.6)
GROUND_M = -2440.0


@pytest.fixture(scope="module")
def flight():
    return fly(DescentProfile(), FRAME, GROUND_M)


def _at_height(flight, height_m):
    return int(torch.argmin((flight.position_L[:, 2] - GROUND_M - height_m).abs()))


def test_passes_the_last_reported_states_of_resilience(flight):
    """893 m at 66 m/s and 192 m at 42 m/s; the first to the knee's smoothing."""
    assert flight.position_L[-1].tolist() == pytest.approx([0.0, 0.0, GROUND_M + 192.0], abs=1e-6)
    assert flight.velocity_L[-1].tolist() == pytest.approx([0.0, 0.0, -42.0], abs=1e-6)
    k = _at_height(flight, 893.0)
    assert float(-flight.velocity_L[k, 2]) == pytest.approx(66.0, abs=1.0)


def test_starts_high_and_flies_towards_its_azimuth(flight):
    assert float(flight.position_L[0, 2]) - GROUND_M == pytest.approx(10_000, abs=100)
    assert float(flight.velocity_L[0, 1]) > 30  # north
    assert float(flight.position_L[0, 1]) < -1000
    east = fly(DescentProfile(approach_azimuth_deg=90.0), FRAME, GROUND_M)
    assert float(east.velocity_L[0, 0]) == pytest.approx(float(flight.velocity_L[0, 1]))


def test_velocity_is_the_derivative_of_position(flight):
    dt = flight.dt_s
    numeric = (flight.position_L[2:] - flight.position_L[:-2]) / (2 * dt)
    assert torch.allclose(numeric, flight.velocity_L[1:-1], atol=1e-3)


def test_increments_integrate_back_to_the_flight(flight):
    """An independent strapdown integration (midpoint, inertial axes) lands where the truth does."""
    spin = FRAME.spin_L()
    p, v = flight.position_L[0].clone(), flight.velocity_L[0].clone()
    R, dt = flight.R_L_B[0].clone(), flight.dt_s
    for k in range(1, flight.t_s.numel()):
        middle = R @ so3_exp(flight.delta_theta_B[k] / 2)
        force = middle @ flight.delta_v_B[k] / dt
        half = p + v * dt / 2
        turning = torch.linalg.cross(spin, torch.linalg.cross(spin, half - FRAME.centre_L))
        coriolis = 2 * torch.linalg.cross(spin, v + dt / 2 * force)
        a = force + gravity_L(half, FRAME) - coriolis - turning
        p, v = p + v * dt + a * dt * dt / 2, v + a * dt
        R = so3_exp(-spin * dt) @ R @ so3_exp(flight.delta_theta_B[k])
    assert torch.allclose(p, flight.position_L[-1], atol=0.2)
    assert torch.allclose(v, flight.velocity_L[-1], atol=5e-3)
    assert torch.allclose(R, flight.R_L_B[-1], atol=1e-9)


def test_thrust_leans_against_the_motion(flight):
    up_B = flight.R_L_B[0, :, 2]
    assert float(up_B[1]) < -0.15  # thrust points back (south) while flying north
    assert math.degrees(math.acos(float(flight.R_L_B[-1, 2, 2]))) < 0.1  # vertical at the end


def test_an_impossible_knee_is_refused():
    with pytest.raises(ConfigError, match=r"descent: knee at .* expected between"):
        fly(DescentProfile(knee_speed_m_s=40.0), FRAME, GROUND_M)
    with pytest.raises(ConfigError, match=r"descent: knee"):
        fly(DescentProfile(start_height_m=500.0), FRAME, GROUND_M)


def test_nearest_entry(flight):
    assert flight.index_at(-1.0) == 0
    assert flight.index_at(1.02) == 20
    assert flight.index_at(1.03) == 21
    assert flight.index_at(1e9) == flight.t_s.numel() - 1
