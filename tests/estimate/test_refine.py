"""Linearisation and normal equations."""

import pytest
import torch
from pose_scenes import CAMERA, LENSES, make_scene

from tnav.estimate.refine import AttitudePrior, linearise, perturb, solve_normal
from tnav.geometry.camera import Camera
from tnav.geometry.pose import Pose, so3_exp


@pytest.mark.parametrize("camera", [CAMERA, *LENSES])
def test_jacobians_are_those_of_autograd(camera: Camera) -> None:
    scene = make_scene(3, n=6, relief_m=30.0, camera=camera)
    line = linearise(scene.prior, scene.matches.uv_px, scene.matches.point_L, camera)
    up = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)

    def projected(step: torch.Tensor, height_m: torch.Tensor) -> torch.Tensor:
        pose = Pose(so3_exp(step[3:]) @ scene.prior.R_L_C, scene.prior.position_L + step[:3])
        point_L = scene.matches.point_L + height_m * up
        return camera.project((point_L - pose.position_L[:, None]) @ pose.R_L_C)

    at = (torch.zeros(6, dtype=torch.float64), torch.zeros((), dtype=torch.float64))
    J_x, J_n = torch.autograd.functional.jacobian(projected, at)
    assert torch.allclose(line.J_x, J_x, rtol=1e-10, atol=1e-9)
    assert torch.allclose(line.J_n, J_n, rtol=1e-10, atol=1e-12)
    assert torch.allclose(line.residual_px, scene.matches.uv_px - projected(*at), atol=1e-9)


def test_a_point_behind_the_camera_is_marked_and_finite() -> None:
    scene = make_scene(4, n=2)
    point_L = scene.matches.point_L.clone()
    point_L[:, 0, 2] = 5000.0
    line = linearise(scene.truth, scene.matches.uv_px, point_L, CAMERA)
    assert line.seen.tolist() == [[False, True]]
    assert line.J_x.isfinite().all()
    assert line.residual_px.isfinite().all()


def test_a_point_beyond_the_fold_of_the_lens_is_marked() -> None:
    scene = make_scene(4, n=2, camera=LENSES[0])
    point_L = scene.matches.point_L.clone()
    point_L[:, 0, 0] += 5000.0  # 79 deg from the axis, where the lens would fold it back
    line = linearise(scene.truth, scene.matches.uv_px, point_L, LENSES[0])
    assert line.seen.tolist() == [[False, True]]
    assert line.J_x.isfinite().all()


def test_normal_equations_keep_their_digits_across_units() -> None:
    draw = torch.Generator().manual_seed(0)
    base = torch.randn(2, 20, 6, generator=draw, dtype=torch.float64)
    units = torch.tensor([1.0, 1.0, 1.0, 1e6, 1e6, 1e6], dtype=torch.float64)
    N = base.mT @ base * units[:, None] * units
    wanted = torch.randn(2, 6, generator=draw, dtype=torch.float64) / units
    solution = solve_normal(N, (N @ wanted[..., None]).squeeze(-1))
    assert solution.solved.all()
    assert torch.allclose(solution.step * units, wanted * units, rtol=1e-9)
    # Multiplied in units of one, where the identity is seen to 1e-9 in every place.
    identity = (N / units[:, None] / units) @ (solution.covariance * units[:, None] * units)
    assert torch.allclose(identity, torch.eye(6, dtype=torch.float64).expand(2, 6, 6), atol=1e-9)


@pytest.mark.parametrize("damage", ["zero", "indefinite", "nan"])
def test_a_matrix_that_is_not_positive_definite_is_not_solved(damage: str) -> None:
    N = torch.eye(6, dtype=torch.float64).repeat(2, 1, 1)
    if damage == "zero":
        N[0, 2, 2] = 0.0
    elif damage == "indefinite":
        N[0, 0, 1] = N[0, 1, 0] = 1.5
    else:
        N[0, 3, 3] = torch.nan
    assert solve_normal(N, torch.ones(2, 6, dtype=torch.float64)).solved.tolist() == [False, True]


def test_prior_pulls_towards_the_measured_attitude() -> None:
    scene = make_scene(5, attitude_sigma_rad=1e-2)
    prior = AttitudePrior(scene.prior.R_L_C, 0.01)
    step = solve_normal(
        prior.information()[None] + torch.diag(torch.tensor([1.0] * 3 + [0.0] * 3)).double(),
        prior.right_side(scene.truth),
    ).step
    moved = perturb(scene.truth, step)
    assert torch.allclose(moved.R_L_C, scene.prior.R_L_C, atol=1e-12)


def test_a_step_that_is_not_finite_moves_nothing() -> None:
    scene = make_scene(6)
    moved = perturb(scene.truth, torch.full((1, 6), torch.nan, dtype=torch.float64))
    assert torch.equal(moved.position_L, scene.truth.position_L)
    assert torch.equal(moved.R_L_C, scene.truth.R_L_C)
