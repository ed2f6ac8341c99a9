"""Consensus on the camera centre."""

import pytest
import torch
from pose_scenes import CAMERA, LENSES, make_scene

from tnav.estimate.ransac import consensus_centre, two_point_centre
from tnav.geometry.camera import Camera


def unit(rows: list[list[float]]) -> torch.Tensor:
    rays = torch.tensor(rows, dtype=torch.float64)
    return rays / rays.norm(dim=-1, keepdim=True)


def test_two_rays_meet_at_the_centre() -> None:
    centre = torch.tensor([10.0, -20.0, 500.0], dtype=torch.float64)
    rays = unit([[0.3, 0.1, -1.0], [-0.2, 0.05, -1.0]])
    points = centre + torch.tensor([[700.0], [450.0]], dtype=torch.float64) * rays
    assert torch.allclose(two_point_centre(rays, points), centre, atol=1e-9)


def test_skew_rays_give_the_solution_of_the_3_x_3_system() -> None:
    rays = unit([[0.3, 0.1, -1.0], [-0.2, 0.05, -1.0]])
    points = torch.tensor([[200.0, 10.0, 3.0], [-150.0, 40.0, -8.0]], dtype=torch.float64)
    across = torch.eye(3, dtype=torch.float64) - rays[:, :, None] * rays[:, None, :]
    expected = torch.linalg.solve(across.sum(0), (across @ points[..., None]).sum(0)).squeeze(-1)
    assert torch.allclose(two_point_centre(rays, points), expected, atol=1e-9)


def test_parallel_rays_and_points_behind_give_no_centre() -> None:
    points = torch.tensor([[0.0, 0.0, 0.0], [100.0, 0.0, 0.0]], dtype=torch.float64)
    parallel = unit([[0.0, 0.0, -1.0], [5e-5, 0.0, -1.0]])  # half the limit of 1e-4 rad
    assert two_point_centre(parallel, points).isnan().all()
    just_apart = unit([[0.0, 0.0, -1.0], [2e-4, 0.0, -1.0]])
    assert two_point_centre(just_apart, points).isfinite().all()
    diverging = unit([[0.2, 0.0, -1.0], [-0.2, 0.0, -1.0]])  # meet below the ground
    assert two_point_centre(diverging, points).isnan().all()


@pytest.mark.parametrize("camera", [CAMERA, *LENSES])
def test_finds_the_centre_among_four_fifths_outliers(camera: Camera) -> None:
    scene = make_scene(1, frames=50, n=330, outliers=0.8, attitude_sigma_rad=1e-4, camera=camera)
    m = scene.matches
    centre = consensus_centre(
        m.uv_px, m.point_L, m.valid, scene.prior.R_L_C, camera,
        threshold_px=3.0, hypotheses=512, seed=0,
    )  # fmt: skip
    # Two pixels with 0.3 px noise, some hundred px apart: a few in a thousand of 1000 m.
    assert ((centre - scene.truth.position_L).norm(dim=-1) < 15.0).all()


def test_masked_matches_are_never_drawn() -> None:
    scene = make_scene(2, n=40, noise_px=0.01, attitude_sigma_rad=1e-9)
    m = scene.matches
    valid = torch.zeros_like(m.valid)
    valid[:, 7], valid[:, 31] = True, True  # the only pair there is
    uv_px = torch.where(valid[..., None], m.uv_px, torch.zeros_like(m.uv_px))
    centre = consensus_centre(
        uv_px, m.point_L, valid, scene.prior.R_L_C, CAMERA,
        threshold_px=3.0, hypotheses=4, seed=0,
    )  # fmt: skip
    assert torch.allclose(centre, scene.truth.position_L, atol=0.5)
