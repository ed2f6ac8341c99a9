"""Synthetic matches with known truth: a sloping map, a ground that differs from it, a camera."""

from dataclasses import dataclass

import torch
from scipy.stats import chi2
from torch import Tensor

from tnav.geometry.camera import Camera
from tnav.geometry.distortion import BrownConrady, Fisheye
from tnav.geometry.pose import Pose, so3_exp, so3_log
from tnav.records import MapErrorModel, Matches, PoseSolution

CAMERA = Camera.from_field_of_view(1024, 1024, 45.0)
# A decentred barrel, 18 % short at its corners, and a fisheye that sees 71 deg from its axis there.
LENSES = (
    Camera.from_field_of_view(
        1024, 1024, 60.0, BrownConrady(k1=-0.28, k2=0.09, p1=8e-4, p2=-5e-4, k3=-0.012)
    ),
    Camera.from_field_of_view(1024, 1024, 100.0, Fisheye(k1=-0.015, k2=0.004)),
)
NADIR = torch.tensor([[1.0, 0, 0], [0, -1.0, 0], [0, 0, -1.0]], dtype=torch.float64)
PERFECT_MAP = MapErrorModel(sigma_m=0.0, correlation_m=300.0)


@dataclass(frozen=True)
class Scene:
    """What the solver gets, and the truth."""

    matches: Matches
    prior: Pose
    truth: Pose
    outlier: Tensor  # b n
    error_below_m: Tensor  # b: map minus ground straight below the camera
    error_ahead_m: Tensor  # b: and where the optical axis meets the map


def make_scene(
    seed: int,
    *,
    frames: int = 1,
    n: int = 100,
    height_m: float = 1000.0,
    outliers: float = 0.0,
    noise_px: float = 0.3,
    claimed_px: float | None = None,
    attitude_sigma_rad: float = 1e-3,
    map_error: MapErrorModel = PERFECT_MAP,
    tilt_rad: float = 0.2,
    relief_m: float = 0.0,
    slope: tuple[float, float] = (0.0, 0.0),
    camera: Camera = CAMERA,
) -> Scene:
    """Map points on a plane (plus white relief); images of ``map - n`` with noise and outliers."""
    draw = torch.Generator().manual_seed(seed)
    kind = {"generator": draw, "dtype": torch.float64}
    gradient = torch.tensor(slope, dtype=torch.float64)
    position_L = torch.zeros(frames, 3, dtype=torch.float64)
    position_L[:, 2] = height_m
    R_L_C = so3_exp(tilt_rad * (2 * torch.rand(frames, 3, **kind) - 1)) @ NADIR
    uv_map_px = torch.rand(frames, n, 2, **kind) * torch.tensor(
        [camera.width_px, camera.height_px], dtype=torch.float64
    )
    axis_px = torch.tensor([[[camera.cx_px, camera.cy_px]]], dtype=torch.float64)
    ray_L = camera.unproject(torch.cat([uv_map_px, axis_px.expand(frames, 1, 2)], 1)) @ R_L_C.mT
    relief = relief_m * torch.randn(frames, n + 1, **kind)
    relief[:, n] = 0.0
    reach = (relief - height_m) / (ray_L[..., 2] - (ray_L[..., :2] * gradient).sum(-1))
    on_map_L = position_L[:, None] + reach[..., None] * ray_L

    below_L = torch.zeros(frames, 1, 3, dtype=torch.float64)
    error_m = draw_field(torch.cat([on_map_L, below_L], 1), map_error, draw)
    point_L = on_map_L[:, :n]
    ground_L = torch.cat([point_L[..., :2], point_L[..., 2:] - error_m[:, :n, None]], -1)
    uv_px = camera.project((ground_L - position_L[:, None]) @ R_L_C)
    uv_px = uv_px + noise_px * torch.randn(frames, n, 2, **kind)
    outlier = torch.rand(frames, n, **kind) < outliers
    anywhere = torch.rand(frames, n, 2, **kind) * camera.width_px
    uv_px = torch.where(outlier[..., None], anywhere, uv_px)
    variance = (claimed_px or noise_px) ** 2
    matches = Matches(
        uv_map_px,
        uv_px,
        variance * torch.eye(2, dtype=torch.float64).repeat(frames, n, 1, 1),
        torch.ones(frames, n),
        point_L,
        torch.ones(frames, n, dtype=torch.bool),
        torch.zeros(frames, dtype=torch.bool),
    )
    truth = Pose(R_L_C, position_L)
    turned = so3_exp(attitude_sigma_rad * torch.randn(frames, 3, **kind)) @ R_L_C
    prior = Pose(turned, position_L + 100 * torch.randn(frames, 3, **kind))
    return Scene(matches, prior, truth, outlier, error_m[:, n + 1], error_m[:, n])


def draw_field(point_L: Tensor, model: MapErrorModel, draw: torch.Generator) -> Tensor:
    """A sample of the map's error at points, through a dense Cholesky factor."""
    distance2 = (point_L[:, :, None, :2] - point_L[:, None, :, :2]).square().sum(-1)
    unit = torch.exp(-0.5 * distance2 / model.correlation_m**2)
    jitter = 1e-9 * torch.eye(point_L.shape[1], dtype=torch.float64)
    white = torch.randn(*point_L.shape[:2], 1, generator=draw, dtype=torch.float64)
    return model.sigma_m * (torch.linalg.cholesky(unit + jitter) @ white).squeeze(-1)


def pose_error(solution: PoseSolution, truth: Pose) -> Tensor:
    """``(dp_L, dtheta_L)`` that takes the estimate to the truth."""
    turn = so3_log(truth.R_L_C @ solution.pose.R_L_C.mT)
    return torch.cat([truth.position_L - solution.pose.position_L, turn], -1)


def nees(error: Tensor, covariance: Tensor) -> Tensor:
    """Normalised estimation error squared."""
    return (error * torch.linalg.solve(covariance, error[..., None]).squeeze(-1)).sum(-1)


def mean_chi2_bounds(dof: int, n: int) -> tuple[float, float]:
    """Where the mean of n chi-squares lies with probability 0.999."""
    low, high = chi2.ppf([5e-4, 1 - 5e-4], dof * n) / n
    return float(low), float(high)


def shrink_by_inflation(dof: int) -> float:
    """Factor on a mean NEES when the covariance is scaled by max(1, s^2), s^2 ~ chi2(dof) / dof.

    Residuals and estimate are independent in a normal linear model, so it is E[min(1, 1 / s^2)].
    """
    quantiles = torch.linspace(0.0005, 0.9995, 1000, dtype=torch.float64).numpy()
    s2 = chi2.ppf(quantiles, dof) / dof
    return float((1 / s2.clip(1.0)).mean())


def replace_matches(matches: Matches, **changes: Tensor) -> Matches:
    """A copy with some fields changed."""
    names = ("uv_map_px", "uv_px", "covariance_px2", "score", "point_L", "valid", "learned")
    return Matches(*(changes.get(name, getattr(matches, name)) for name in names))
