"""Least squares under a Gaussian field, against the same algebra written out densely."""

import math
from dataclasses import dataclass

import pytest
import torch
from pose_scenes import CAMERA, make_scene

from tnav.estimate.map_error import FieldSolution, error_at, kernel_m2, solve_with_field
from tnav.estimate.refine import Linearisation, linearise
from tnav.records import MapErrorModel, MapErrorPosterior

MODEL = MapErrorModel(sigma_m=3.0, correlation_m=300.0)
PRIOR = torch.diag(torch.tensor([0.0, 0, 0, 1e6, 1e6, 1e6], dtype=torch.float64))


@dataclass
class Case:
    line: Linearisation
    covariance_px2: torch.Tensor
    point_L: torch.Tensor
    weight: torch.Tensor
    kernel: torch.Tensor
    right: torch.Tensor

    def solve(self) -> FieldSolution:
        return solve_with_field(
            self.line, self.line.residual_px, self.covariance_px2, self.weight, self.kernel,
            PRIOR, self.right,
        )  # fmt: skip

    def dense(self, keep: list[int]) -> dict[str, torch.Tensor]:
        """The same with S (2n x 2n) formed, of some matches of frame 0."""
        k = len(keep)
        J_x = self.line.J_x[0, keep].reshape(2 * k, 6)
        r = self.line.residual_px[0, keep].reshape(2 * k)
        J_n = torch.zeros(2 * k, k, dtype=torch.float64)
        R = torch.zeros(2 * k, 2 * k, dtype=torch.float64)
        for row, i in enumerate(keep):
            J_n[2 * row : 2 * row + 2, row] = self.line.J_n[0, i]
            R[2 * row : 2 * row + 2, 2 * row : 2 * row + 2] = (
                self.covariance_px2[0, i] / self.weight[0, i]
            )
        K = self.kernel[0][keep][:, keep]
        S_inv = torch.linalg.inv(R + J_n @ K @ J_n.T)
        C = torch.linalg.inv(J_x.T @ S_inv @ J_x + PRIOR)
        dx = C @ (J_x.T @ S_inv @ r + self.right[0])
        left = r - J_x @ dx
        return {
            "C": C, "dx": dx, "left": left, "chi2": left @ S_inv @ left,
            "alpha": -J_n.T @ S_inv @ left, "P": J_n.T @ S_inv @ J_n,
            "coupling": J_n.T @ S_inv @ J_x, "S_inv": S_inv, "J_n": J_n,
        }  # fmt: skip


@pytest.fixture
def case() -> Case:
    scene = make_scene(7, n=30, map_error=MODEL, relief_m=20.0)
    draw = torch.Generator().manual_seed(1)
    root = 0.2 * torch.randn(1, 30, 2, 2, generator=draw, dtype=torch.float64)
    covariance = root @ root.mT + 0.05 * torch.eye(2, dtype=torch.float64)
    weight = torch.rand(1, 30, generator=draw, dtype=torch.float64) * 0.8 + 0.2
    point_L = scene.matches.point_L
    return Case(
        linearise(scene.truth, scene.matches.uv_px, point_L, CAMERA),
        covariance, point_L, weight, kernel_m2(MODEL, point_L, point_L),
        torch.full((1, 6), 0.1, dtype=torch.float64),
    )  # fmt: skip


def test_equals_dense_generalised_least_squares(case: Case) -> None:
    got, want = case.solve(), case.dense(list(range(30)))
    assert got.solved.all()
    assert torch.allclose(got.normal.covariance[0], want["C"], rtol=1e-7, atol=1e-16)
    assert torch.allclose(got.normal.step[0], want["dx"], rtol=1e-7, atol=1e-10)
    assert torch.allclose(got.alpha[0], want["alpha"], rtol=1e-6, atol=1e-8)
    assert torch.allclose(got.precision[0], want["P"], rtol=1e-6, atol=1e-8)
    assert torch.allclose(got.coupling[0], want["coupling"], rtol=1e-6, atol=1e-5)
    assert torch.allclose(got.chi2[0], want["chi2"], rtol=1e-8)


def test_a_match_of_weight_zero_is_not_there(case: Case) -> None:
    keep = [i for i in range(30) if i not in (0, 13, 29)]
    case.weight[0, [0, 13, 29]] = 0.0
    got, want = case.solve(), case.dense(keep)
    assert torch.allclose(got.normal.step[0], want["dx"], rtol=1e-7, atol=1e-10)
    assert torch.allclose(got.chi2[0], want["chi2"], rtol=1e-8)
    assert torch.equal(got.alpha[0, [0, 13, 29]], torch.zeros(3, dtype=torch.float64))


def test_distance_of_a_match_is_from_what_the_others_predict(case: Case) -> None:
    case.weight = torch.ones_like(case.weight)
    got = case.solve()
    left = got.residual_px[0]
    for i in (0, 11, 29):
        others = [j for j in range(30) if j != i]
        dense = case.dense(list(range(30)))
        rows = [2 * i, 2 * i + 1]
        rest = [r for r in range(60) if r not in rows]
        S = torch.linalg.inv(dense["S_inv"])
        gain = S[rows][:, rest] @ torch.linalg.inv(S[rest][:, rest])
        error = left[i] - gain @ left[others].reshape(-1)
        spread = S[rows][:, rows] - gain @ S[rest][:, rows]
        assert float(got.distance2[0, i]) == pytest.approx(
            float(error @ torch.linalg.solve(spread, error)), rel=1e-6
        )


def test_without_map_error_it_is_weighted_least_squares(case: Case) -> None:
    case.kernel = torch.zeros_like(case.kernel)
    got = case.solve()
    assert torch.allclose(got.normal.covariance, got.if_map_perfect, rtol=1e-10, atol=1e-18)
    assert torch.equal(got.error_mean_m, torch.zeros_like(got.error_mean_m))


def test_a_field_worsens_the_pose(case: Case) -> None:
    got = case.solve()
    worse = got.normal.covariance - got.if_map_perfect
    assert (torch.linalg.eigvalsh(worse[0]) > -1e-12).all()
    # Alone, a map wrong by 3 m over the footprint's 830 m moves the camera by metres.
    assert 0.5 < float(got.normal.covariance[0, 2, 2].sqrt()) < 3.0


def test_error_at_a_point_is_the_joint_posterior(case: Case) -> None:
    got, dense = case.solve(), case.dense(list(range(30)))
    where_L = torch.tensor([[40.0, -60.0, 0.0]], dtype=torch.float64)
    posterior = MapErrorPosterior(case.point_L, got.alpha, got.precision, got.coupling)
    at = error_at(posterior, MODEL, got.normal.covariance, where_L)

    # Joint normal of (dx, n*) from one big inverse: unknowns (dx, n at 30 matches, n*).
    J_n = dense["J_n"]
    points = torch.cat([case.point_L, where_L[:, None]], 1)
    K = kernel_m2(MODEL, points, points)[0] + 1e-7 * torch.eye(31, dtype=torch.float64)
    H = torch.cat([case.line.J_x[0].reshape(60, 6), -J_n], 1)
    H = torch.cat([H, torch.zeros(60, 1, dtype=torch.float64)], 1)
    scaled = case.covariance_px2[0] / case.weight[0, :, None, None]
    R_inv = torch.block_diag(*torch.linalg.inv(scaled))
    information = H.T @ R_inv @ H
    information[:6, :6] += PRIOR
    information[6:, 6:] += torch.linalg.inv(K)
    joint = torch.linalg.inv(information)
    right = H.T @ R_inv @ case.line.residual_px[0].reshape(60)
    right[:6] += case.right[0]
    assert float(at.mean_m[0]) == pytest.approx(float((joint @ right)[-1]), rel=1e-4)
    assert float(at.variance_m2[0]) == pytest.approx(float(joint[-1, -1]), rel=1e-4)
    assert torch.allclose(at.covariance_with_pose[0], joint[-1, :6], rtol=1e-3, atol=1e-7)


def test_far_from_all_matches_only_the_maker_is_known(case: Case) -> None:
    got = case.solve()
    posterior = MapErrorPosterior(case.point_L, got.alpha, got.precision, got.coupling)
    far_L = torch.tensor([[1e5, 0.0, 0.0]], dtype=torch.float64)
    at = error_at(posterior, MODEL, got.normal.covariance, far_L)
    assert float(at.mean_m[0]) == 0.0
    assert float(at.variance_m2[0]) == pytest.approx(9.0)


def test_kernel_counts_horizontal_distance_only() -> None:
    a = torch.tensor([[[0.0, 0.0, 500.0]]], dtype=torch.float64)
    b = torch.tensor([[[300.0, 0.0, -200.0]]], dtype=torch.float64)
    assert float(kernel_m2(MODEL, a, b)) == pytest.approx(9.0 * math.exp(-0.5))
