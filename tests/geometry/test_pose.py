import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from tnav.geometry.pose import (
    body_from_thrust,
    matrix_from_quaternion,
    quaternion_from_matrix,
    skew,
    so3_exp,
    so3_log,
)

unit = st.tuples(*[st.floats(-1, 1)] * 3).filter(lambda v: sum(x * x for x in v) > 1e-4)


@settings(max_examples=100, deadline=None)
@given(unit, st.floats(0, math.pi - 1e-3))
def test_exp_agrees_with_scipy_and_log_inverts_it(axis, angle):
    v = torch.tensor(axis, dtype=torch.float64)
    v = v / v.norm() * angle
    R = so3_exp(v)
    assert torch.allclose(R, torch.from_numpy(Rotation.from_rotvec(v.numpy()).as_matrix()))
    assert torch.allclose(so3_log(R), v, atol=1e-9)


@pytest.mark.parametrize("angle", [0.0, 1e-12, 9.9e-5, 1.01e-4, 1e-3])
def test_exp_is_smooth_through_its_series(angle):
    v = torch.tensor([angle, 0.0, 0.0], dtype=torch.float64)
    expected = torch.from_numpy(Rotation.from_rotvec(v.numpy()).as_matrix())
    assert torch.allclose(so3_exp(v), expected, rtol=0, atol=1e-15)
    assert torch.allclose(so3_log(so3_exp(v)), v, rtol=1e-8, atol=1e-15)


@settings(max_examples=100, deadline=None)
@given(unit, st.floats(0, math.pi))
def test_quaternions_round_trip_at_every_angle(axis, angle):
    v = torch.tensor(axis, dtype=torch.float64)
    R = so3_exp(v / v.norm() * angle)
    q = quaternion_from_matrix(R)
    assert abs(float(q.norm()) - 1) < 1e-12
    assert float(q[0]) >= 0
    assert torch.allclose(matrix_from_quaternion(q), R, atol=1e-12)


def test_skew_is_the_cross_product():
    a, b = torch.randn(2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose((skew(a) @ b[..., None])[..., 0], torch.linalg.cross(a, b))


def test_body_axes_follow_thrust_and_heading():
    thrust = torch.tensor([[0.1, -0.4, 2.0]], dtype=torch.float64)
    north = torch.tensor([[0.0, 1.0, 0.0]], dtype=torch.float64)
    R = body_from_thrust(thrust, north)[0]
    assert torch.allclose(R @ R.T, torch.eye(3, dtype=torch.float64), atol=1e-12)
    assert float(torch.linalg.det(R)) == pytest.approx(1)
    assert torch.allclose(R[:, 2], thrust[0] / thrust[0].norm())
    assert float(R[1, 1]) > 0.9  # body y leans north
