"""Altitude, height above ground and range: closed forms, and errors against their sigma."""

import math

import pytest
import torch
from pose_scenes import CAMERA, PERFECT_MAP, make_scene, mean_chi2_bounds

from tnav.estimate.altitude import estimate_altitude
from tnav.estimate.pnp import PoseConfig, solve_pose
from tnav.estimate.refine import perturb
from tnav.geometry.moon import RADIUS_M
from tnav.geometry.pose import Pose
from tnav.records import (
    FIX_STATUSES,
    AltitudeEstimate,
    FixStatus,
    MapErrorModel,
    MapErrorPosterior,
    PoseSolution,
)
from tnav.terrain.heightfield import Level, Terrain

AXIS_C = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
ROUGH_MAP = MapErrorModel(sigma_m=3.0, correlation_m=300.0)
SLOPE = (0.1, -0.05)


def plane(slope: tuple[float, float] = (0.0, 0.0), half_m: float = 16384.0) -> Terrain:
    # Posts 64 m apart and slopes of few digits: heights are exact in float32 to 0.1 mm.
    posts = torch.arange(-half_m, half_m + 1, 64.0, dtype=torch.float64)
    z_L = slope[0] * posts[None, :] + slope[1] * posts[:, None]
    return Terrain([Level(-half_m, -half_m, 64.0, z_L.float())])


def solved_at(pose: Pose, covariance: torch.Tensor | None = None) -> PoseSolution:
    """A solution without matches that says anything of the map."""
    b = len(pose)
    if covariance is None:
        covariance = 1e-6 * torch.eye(6, dtype=torch.float64).repeat(b, 1, 1)
    zeros = torch.zeros(b, 1, dtype=torch.float64)
    return PoseSolution(
        pose, covariance, torch.zeros_like(covariance), torch.zeros(b, dtype=torch.int64),
        torch.zeros(b, 1, dtype=torch.bool), torch.zeros(b, 1, 2, dtype=torch.float64),
        torch.zeros(b, dtype=torch.float64),
        MapErrorPosterior(
            torch.zeros(b, 1, 3, dtype=torch.float64), zeros, zeros[..., None],
            torch.zeros(b, 1, 6, dtype=torch.float64),
        ),
    )  # fmt: skip


def estimate(
    solution: PoseSolution, terrain: Terrain, map_error: MapErrorModel = PERFECT_MAP
) -> AltitudeEstimate:
    return estimate_altitude(solution, terrain, boresight_C=AXIS_C, map_error=map_error)


def nadir_pose(*position_m: float) -> Pose:
    R = torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64))
    return Pose(R[None], torch.tensor([position_m], dtype=torch.float64))


def test_three_altitudes_of_a_tilted_camera_over_a_plane() -> None:
    angle = 0.3  # optical axis leans to the east
    lean = torch.tensor(
        [[math.cos(angle), 0, math.sin(angle)], [0, 1, 0], [-math.sin(angle), 0, math.cos(angle)]],
        dtype=torch.float64,
    )
    nadir = nadir_pose(0.0, 0.0, 1000.0)
    pose = Pose(lean.T @ nadir.R_L_C, nadir.position_L)
    got = estimate(solved_at(pose), plane((0.1, 0.0)))
    assert float(got.altitude_m) == pytest.approx(1000.0, abs=1e-6)
    assert float(got.agl_m) == pytest.approx(1000.0, abs=1e-3)
    # The plane z = 0.1 x against (sin a, 0, -cos a): t = h / (cos a + 0.1 sin a).
    assert float(got.range_m) == pytest.approx(
        1000.0 / (math.cos(angle) + 0.1 * math.sin(angle)), abs=1e-3
    )
    assert got.range_valid.all()


def test_vertical_is_the_local_one() -> None:
    east_m = 8000.0
    got = estimate(solved_at(nadir_pose(east_m, 0.0, 2000.0)), plane())
    lean = math.atan2(east_m, RADIUS_M + 2000.0)
    assert float(got.agl_m) == pytest.approx(2000.0 / math.cos(lean), abs=1e-4)
    radius = math.hypot(east_m, RADIUS_M + 2000.0)
    assert float(got.altitude_m) == pytest.approx(radius - RADIUS_M, abs=1e-6)


@pytest.mark.parametrize("axis", range(6))
def test_sigmas_follow_the_pose_by_finite_differences(axis: int) -> None:
    """A pose unsure along one axis only: sigma is the slope of the range along that axis."""
    terrain = plane(SLOPE)
    scene = make_scene(51, tilt_rad=0.3)
    pose = Pose(scene.truth.R_L_C, scene.truth.position_L + 700.0)
    covariance = torch.zeros(1, 6, 6, dtype=torch.float64)
    covariance[0, axis, axis] = 1.0
    got = estimate(solved_at(pose, covariance), terrain)
    step = 0.5 if axis < 3 else 2e-4
    ends = []
    for sign in (-1, 1):
        move = torch.zeros(1, 6, dtype=torch.float64)
        move[0, axis] = sign * step
        ends.append(estimate(solved_at(perturb(pose, move)), terrain))
    for name in ("altitude", "agl", "range"):
        slope = (getattr(ends[1], f"{name}_m") - getattr(ends[0], f"{name}_m")) / (2 * step)
        sigma = float(getattr(got, f"{name}_sigma_m"))
        assert sigma == pytest.approx(abs(float(slope)), rel=1e-3, abs=2e-3), name


def test_without_matches_the_map_errs_as_its_maker_says() -> None:
    pose = nadir_pose(0.0, 0.0, 1000.0)
    nothing = torch.zeros(1, 6, 6, dtype=torch.float64)
    got = estimate(solved_at(pose, nothing), plane(), ROUGH_MAP)
    assert float(got.agl_sigma_m) == pytest.approx(3.0)
    assert float(got.range_sigma_m) == pytest.approx(3.0)
    assert float(got.altitude_sigma_m) == 0.0


@pytest.mark.parametrize(
    ("height_m", "slope"), [(100.0, (0.0, 0.0)), (1000.0, SLOPE), (3000.0, SLOPE)]
)
def test_height_above_ground_is_corrected_and_its_sigma_is_true(
    height_m: float, slope: tuple[float, float]
) -> None:
    scene = make_scene(52, frames=250, n=100, height_m=height_m, map_error=ROUGH_MAP, slope=slope)
    solution = solve_pose(
        scene.matches, camera=CAMERA, prior=scene.prior, attitude_sigma_rad=1e-3,
        map_error=ROUGH_MAP, seed=0, config=PoseConfig(calibration=1.0, hypotheses=64),
    )  # fmt: skip
    assert not solution.status_code.any()
    terrain = plane(slope)
    got = estimate(solution, terrain, ROUGH_MAP)
    true_map = estimate(solved_at(scene.truth), terrain)
    axis_L = scene.truth.R_L_C[..., 2]
    normal = torch.tensor([-slope[0], -slope[1], 1.0], dtype=torch.float64)
    stretch = 1 / -(axis_L @ normal)  # range per metre of map error, N_z / |N . d|
    low, high = mean_chi2_bounds(1, 250)

    agl_error_m = true_map.agl_m + scene.error_below_m - got.agl_m
    assert low < float((agl_error_m / got.agl_sigma_m).square().mean()) < high
    range_error_m = true_map.range_m + stretch * scene.error_ahead_m - got.range_m
    assert low < float((range_error_m / got.range_sigma_m).square().mean()) < high
    altitude_error_m = true_map.altitude_m - got.altitude_m
    assert low < float((altitude_error_m / got.altitude_sigma_m).square().mean()) < high

    uncorrected = estimate(solution, terrain, MapErrorModel(0.0, 300.0))
    before_m2 = float((true_map.agl_m + scene.error_below_m - uncorrected.agl_m).square().mean())
    after_m2 = float(agl_error_m.square().mean())
    print(f"{height_m:g} m: AGL rms {before_m2**0.5:.3f} m uncorrected, {after_m2**0.5:.3f} m")
    if height_m <= 1000.0:  # measured: 5.4 times at 1 km, 126 times at 100 m
        assert after_m2 < before_m2 / 4**2


def test_what_is_missing_is_nan() -> None:
    up = Pose(torch.eye(3, dtype=torch.float64)[None], nadir_pose(0.0, 0.0, 500.0).position_L)
    looking_up = estimate(solved_at(up), plane())
    assert not looking_up.range_valid.any()
    assert looking_up.range_m.isnan().all()
    assert looking_up.range_sigma_m.isnan().all()
    assert looking_up.agl_m.isfinite().all()
    assert looking_up.agl_sigma_m.isfinite().all()

    outside = estimate(solved_at(nadir_pose(3e4, 0.0, 500.0)), plane())
    assert outside.agl_m.isnan().all()
    assert not outside.range_valid.any()
    assert outside.altitude_m.isfinite().all()


def test_below_the_map_and_above_the_ground() -> None:
    """Map error 3 m: 18 m below its surface (and 1 m of rounding) is explained, 20 m is not."""
    nothing = torch.zeros(1, 6, 6, dtype=torch.float64)
    for depth_m, known in ((2.0, True), (18.0, True), (20.0, False)):
        got = estimate(solved_at(nadir_pose(0.0, 0.0, -depth_m), nothing), plane(), ROUGH_MAP)
        assert got.agl_m.isfinite().all() == known
        assert not got.range_valid.any()
        assert got.range_m.isnan().all()
        if known:
            assert float(got.agl_m) == pytest.approx(-depth_m, abs=1e-3)
            assert float(got.agl_sigma_m) == pytest.approx(3.0)


def test_a_failed_fix_has_no_altitude() -> None:
    scene = make_scene(53, frames=2)
    valid = scene.matches.valid.clone()
    valid[1] = False
    matches = type(scene.matches)(
        scene.matches.uv_map_px, scene.matches.uv_px, scene.matches.covariance_px2,
        scene.matches.score, scene.matches.point_L, valid, scene.matches.learned,
    )  # fmt: skip
    solution = solve_pose(
        matches, CAMERA, scene.prior, attitude_sigma_rad=1e-3, map_error=PERFECT_MAP, seed=0
    )
    assert FIX_STATUSES[int(solution.status_code[1])] is FixStatus.TOO_FEW_MATCHES
    got = estimate(solution, plane())
    for name in ("altitude_m", "altitude_sigma_m", "agl_m", "agl_sigma_m", "range_m"):
        values = getattr(got, name)
        assert values.isnan().tolist() == [False, True], name
    assert got.range_valid.tolist() == [True, False]
