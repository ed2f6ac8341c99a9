"""Poses: against PoseLib, against the truth's statistics, and at the edge of every status."""

import math
from dataclasses import replace

import poselib
import pytest
import torch
from pose_scenes import (
    CAMERA,
    LENSES,
    PERFECT_MAP,
    Scene,
    make_scene,
    mean_chi2_bounds,
    nees,
    pose_error,
    replace_matches,
    shrink_by_inflation,
)

from tnav.errors import ConfigError
from tnav.estimate.pnp import PoseConfig, fixes_on_host, solve_pose
from tnav.geometry.camera import Camera
from tnav.geometry.pose import Pose, so3_exp
from tnav.records import FIX_STATUSES, FixStatus, MapErrorModel, PoseSolution

AS_STATED = PoseConfig(calibration=1.0)  # here matches err as they say, each by itself
EASY = replace(AS_STATED, hypotheses=64)  # enough where few matches are wrong, and quick
ROUGH_MAP = MapErrorModel(sigma_m=3.0, correlation_m=300.0)


def solve(
    scene: Scene,
    *,
    sigma_rad: float = 1e-3,
    map_error: MapErrorModel = PERFECT_MAP,
    config: PoseConfig = AS_STATED,
    camera: Camera = CAMERA,
) -> PoseSolution:
    return solve_pose(
        scene.matches, camera, scene.prior,
        attitude_sigma_rad=sigma_rad, map_error=map_error, seed=0, config=config,
    )  # fmt: skip


def statuses(solution: PoseSolution) -> list[FixStatus]:
    return [FIX_STATUSES[code] for code in solution.status_code.tolist()]


# --- the optimum ---


@pytest.mark.parametrize("seed", range(5))
def test_ends_on_poselibs_optimum(seed: int) -> None:
    sigma_rad = math.radians(2.0)  # the consensus may lean on it, the optimum does not feel it
    scene = make_scene(
        seed, n=300, outliers=0.8, attitude_sigma_rad=math.radians(0.3), relief_m=40.0
    )
    # Weights as good as flat within 4 sigma, like PoseLib's squares within its threshold.
    flat = replace(AS_STATED, huber_sigma=3.999)
    solution = solve(scene, sigma_rad=sigma_rad, config=flat)
    assert statuses(solution) == [FixStatus.OK]
    found, _ = poselib.estimate_absolute_pose(
        scene.matches.uv_px[0].numpy(),
        scene.matches.point_L[0].numpy(),
        {
            "model": "PINHOLE", "width": CAMERA.width_px, "height": CAMERA.height_px,
            "params": [CAMERA.focal_px, CAMERA.focal_px, CAMERA.cx_px, CAMERA.cy_px],
        },
        {"max_reproj_error": 4 * 0.3, "seed": seed},
        {"loss_type": "TRIVIAL"},
    )  # fmt: skip
    R_C_L = torch.tensor(found.R)
    oracle = Pose(R_C_L.T[None], -(R_C_L.T @ torch.tensor(found.t))[None])
    difference = pose_error(solution, oracle)
    # A third of a sigma in all six together: the two keep a few different matches at the gate.
    assert float(nees(difference, solution.covariance)) < 0.3**2 * 6


@pytest.mark.parametrize("attitude_deg", [0.005, 0.05, 1.0])
def test_solves_every_frame_among_four_fifths_outliers(attitude_deg: float) -> None:
    sigma_rad = math.radians(attitude_deg)
    scene = make_scene(11, frames=25, n=330, outliers=0.8, attitude_sigma_rad=sigma_rad)
    solution = solve(scene, sigma_rad=sigma_rad)
    assert statuses(solution) == [FixStatus.OK] * 25
    assert not (solution.inlier & scene.outlier & (solution.residual_px.norm(dim=-1) > 3.0)).any()
    kept = (solution.inlier & ~scene.outlier).sum() / (~scene.outlier).sum()
    assert float(kept) > 0.99
    assert (nees(pose_error(solution, scene.truth), solution.covariance) < 35.0).all()


# --- the covariance ---


@pytest.mark.parametrize(
    ("sigma_rad", "outliers", "height_m"),
    [(1e-4, 0.0, 1000.0), (1e-3, 0.4, 1000.0), (1.7e-2, 0.0, 10000.0)],
)
def test_errors_are_as_large_as_the_covariance_says(
    sigma_rad: float, outliers: float, height_m: float
) -> None:
    scene = make_scene(
        21, frames=200, outliers=outliers, attitude_sigma_rad=sigma_rad, height_m=height_m
    )
    solution = solve(scene, sigma_rad=sigma_rad, config=EASY)
    assert statuses(solution) == [FixStatus.OK] * 200
    low, high = mean_chi2_bounds(6, 200)
    low *= shrink_by_inflation(2 * round(100 * (1 - outliers)) - 6)
    assert low < float(nees(pose_error(solution, scene.truth), solution.covariance).mean()) < high


@pytest.mark.parametrize("height_m", [100.0, 1000.0, 10000.0])
def test_they_are_so_with_a_map_that_is_wrong_by_a_field(height_m: float) -> None:
    scene = make_scene(22, frames=200, map_error=ROUGH_MAP, height_m=height_m, outliers=0.2)
    solution = solve(scene, map_error=ROUGH_MAP, config=EASY)
    assert statuses(solution) == [FixStatus.OK] * 200
    error = pose_error(solution, scene.truth)
    low, high = mean_chi2_bounds(6, 200)
    low *= shrink_by_inflation(2 * 80 - 6)
    assert low < float(nees(error, solution.covariance).mean()) < high
    if height_m <= 1000.0:  # and the covariance that knows no map error would have been a lie
        naive = solve(scene, map_error=MapErrorModel(1e-6, 300.0))
        ok = naive.status_code == FIX_STATUSES.index(FixStatus.OK)
        lied = nees(pose_error(naive, scene.truth)[ok], naive.covariance[ok])
        assert float(lied.mean()) > 3 * high


@pytest.mark.parametrize("camera", LENSES)
@pytest.mark.parametrize(("outliers", "sigma_rad"), [(0.0, 1e-3), (0.6, 1e-4)])
def test_a_lens_with_distortion_is_as_good_as_any(
    camera: Camera, outliers: float, sigma_rad: float
) -> None:
    scene = make_scene(
        24, frames=150, n=120, outliers=outliers, attitude_sigma_rad=sigma_rad, camera=camera
    )
    solution = solve(scene, sigma_rad=sigma_rad, config=EASY, camera=camera)
    assert statuses(solution) == [FixStatus.OK] * 150
    low, high = mean_chi2_bounds(6, 150)
    low *= shrink_by_inflation(2 * round(120 * (1 - outliers)) - 6)
    assert low < float(nees(pose_error(solution, scene.truth), solution.covariance).mean()) < high


def test_without_noise_the_pose_through_a_lens_is_exact() -> None:
    for camera in LENSES:
        scene = make_scene(25, n=60, noise_px=1e-6, attitude_sigma_rad=1e-6, camera=camera)
        solution = solve(scene, sigma_rad=1e-2, camera=camera)
        assert statuses(solution) == [FixStatus.OK]
        assert float(pose_error(solution, scene.truth)[:, :3].norm()) < 1e-4
        ideal = replace(camera, distortion=None)  # and the lens matters: without it, nothing fits
        assert statuses(solve(scene, sigma_rad=1e-2, camera=ideal)) != [FixStatus.OK]


def test_noisy_matches_widen_the_covariance_and_quiet_ones_do_not_shrink_it() -> None:
    worse = make_scene(23, frames=200, noise_px=0.6, claimed_px=0.2)
    solution = solve(worse, config=EASY)
    assert statuses(solution) == [FixStatus.OK] * 200
    low, high = mean_chi2_bounds(6, 200)
    # 200 residuals give the scale to 10 %, which adds 1 % to a mean of ratios; allow 5 %.
    assert (
        low
        < float(nees(pose_error(solution, worse.truth), solution.covariance).mean())
        < (1.05 * high)
    )
    better = make_scene(23, frames=50, noise_px=0.1, claimed_px=0.2)
    as_stated = make_scene(23, frames=50, noise_px=0.2)
    ratio = solve(better).covariance / solve(as_stated).covariance
    assert torch.allclose(
        ratio.diagonal(dim1=-2, dim2=-1).mean(), torch.ones((), dtype=torch.float64), atol=0.1
    )


def test_calibration_widens_matches_and_not_the_star_tracker() -> None:
    scene = make_scene(24, attitude_sigma_rad=1e-5)
    vague, tight = solve(scene, sigma_rad=1.0), solve(scene, sigma_rad=1e-5)
    doubled = replace(AS_STATED, calibration=2.0)
    vague2 = solve(scene, sigma_rad=1.0, config=doubled)
    tight2 = solve(scene, sigma_rad=1e-5, config=doubled)
    ratio = (vague2.covariance / vague.covariance).diagonal(dim1=-2, dim2=-1)
    assert torch.allclose(ratio, torch.full_like(ratio, 2.0), rtol=0.02)
    attitude = (tight2.covariance / tight.covariance).diagonal(dim1=-2, dim2=-1)[:, 3:]
    assert (attitude < 1.05).all()


@pytest.mark.parametrize("fov_deg", [20.0, 45.0, 70.0])
def test_altitude_sigma_is_the_closed_form(fov_deg: float) -> None:
    """sigma_Z / Z = sigma_px / (sqrt(N) W / sqrt(6)), nadir view of a plain, known attitude."""
    camera = Camera.from_field_of_view(1024, 1024, fov_deg)
    scene = make_scene(
        25, frames=5, n=400, tilt_rad=0.0, camera=camera, height_m=10e3, attitude_sigma_rad=1e-9
    )
    solution = solve(scene, sigma_rad=1e-7, camera=camera)
    expected_m = 10e3 * 0.3 / (math.sqrt(400) * 1024 / math.sqrt(6))
    sigma_m = solution.covariance[:, 2, 2].sqrt().mean()
    assert float(sigma_m) == pytest.approx(expected_m, rel=0.03)


# --- statuses, just over and just under ---


def with_valid(scene: Scene, count: int) -> Scene:
    valid = torch.zeros_like(scene.matches.valid)
    valid[:, :count] = True
    return replace(scene, matches=replace_matches(scene.matches, valid=valid))


def with_good(scene: Scene, good: int) -> Scene:
    """All but some matches thrown to places of their own."""
    draw = torch.Generator().manual_seed(9)
    uv_px = 1024 * torch.rand(*scene.matches.uv_px.shape, generator=draw, dtype=torch.float64)
    uv_px[:, :good] = scene.matches.uv_px[:, :good]
    return replace(scene, matches=replace_matches(scene.matches, uv_px=uv_px))


def test_too_few_matches() -> None:
    scene = make_scene(31, noise_px=0.05, claimed_px=0.3)
    assert statuses(solve(with_valid(scene, 12))) == [FixStatus.OK]
    assert statuses(solve(with_valid(scene, 11))) == [FixStatus.TOO_FEW_MATCHES]


@pytest.mark.parametrize("n", [0, 1, 2, 3])
def test_hardly_any_match_is_no_accident(n: int) -> None:
    scene = make_scene(32, frames=2, n=n)
    assert statuses(solve(scene, map_error=ROUGH_MAP)) == [FixStatus.TOO_FEW_MATCHES] * 2
    masked = with_valid(make_scene(32, n=20), n)
    assert statuses(solve(masked, map_error=ROUGH_MAP)) == [FixStatus.TOO_FEW_MATCHES]


def test_no_consensus() -> None:
    scene = make_scene(33, n=40, noise_px=0.05, claimed_px=0.3)
    assert statuses(solve(with_good(scene, 12))) == [FixStatus.OK]
    assert statuses(solve(with_good(scene, 11))) == [FixStatus.NO_CONSENSUS]


def thrown_about(scene: Scene, wrong: torch.Tensor, window_px: float) -> Scene:
    """Some matches moved at random within a search window about the right place."""
    draw = torch.Generator().manual_seed(8)
    uv_map_px = scene.matches.uv_map_px
    offset = torch.rand(uv_map_px.shape, generator=draw, dtype=torch.float64) - 0.5
    uv_px = torch.where(wrong[..., None], uv_map_px + window_px * offset, scene.matches.uv_px)
    return replace(scene, matches=replace_matches(scene.matches, uv_px=uv_px))


@pytest.mark.parametrize("map_error", [PERFECT_MAP, ROUGH_MAP])
def test_matches_by_chance_never_agree(map_error: MapErrorModel) -> None:
    scene = make_scene(34, frames=20, n=330, outliers=1.0)
    anywhere = solve(scene, map_error=map_error)
    within = solve(thrown_about(scene, scene.outlier, 128.0), map_error=map_error)
    for solution in (anywhere, within):  # no scale of the noise may grow to fit them
        assert statuses(solution) == [FixStatus.NO_CONSENSUS] * 20
        assert int(solution.inlier.sum(-1).max()) < 10


def test_solves_when_the_wrong_ones_lie_within_the_search_window() -> None:
    scene = make_scene(46, frames=20, n=330)
    wrong = torch.zeros_like(scene.matches.valid)
    wrong[:, 100:] = True
    solution = solve(thrown_about(scene, wrong, 128.0))
    assert statuses(solution) == [FixStatus.OK] * 20
    # About 0.2 % of the wrong ones are within 3 px, and look right.
    assert (nees(pose_error(solution, scene.truth), solution.covariance) < 40.0).all()


def test_ill_conditioned_by_its_threshold() -> None:
    scene = make_scene(35)
    solution = solve(scene)
    range_m = (scene.matches.point_L - solution.pose.position_L[:, None]).norm(dim=-1)
    relative = float(
        solution.covariance.diagonal(dim1=-2, dim2=-1)[:, :3].sum().sqrt()
        / (range_m * solution.inlier).sum() * solution.inlier.sum()
    )  # fmt: skip
    over, under = (replace(AS_STATED, max_relative_sigma=relative * f) for f in (1.02, 0.98))
    assert statuses(solve(scene, config=over)) == [FixStatus.OK]
    assert statuses(solve(scene, config=under)) == [FixStatus.ILL_CONDITIONED]


def test_ill_conditioned_when_all_matches_crowd_together() -> None:
    far = Camera(width_px=20, height_px=20, focal_px=1236.0, cx_px=10.0, cy_px=10.0)
    scene = make_scene(36, n=30, camera=far, attitude_sigma_rad=1e-2)
    solution = solve(scene, sigma_rad=1e-1, camera=far)
    assert statuses(solution) == [FixStatus.ILL_CONDITIONED]


def test_not_settled() -> None:
    scene = make_scene(37, map_error=ROUGH_MAP)
    hurried = replace(AS_STATED, descent_iterations=1, field_iterations=1)
    assert statuses(solve(scene, map_error=ROUGH_MAP, config=hurried)) == [FixStatus.NOT_SETTLED]
    assert statuses(solve(scene, map_error=ROUGH_MAP)) == [FixStatus.OK]


def test_implausible_below_its_points() -> None:
    scene = make_scene(38)
    flip = torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64))  # half a turn about x
    mirrored = replace(
        scene,
        matches=replace_matches(scene.matches, point_L=scene.matches.point_L @ flip),
        prior=Pose(flip @ scene.prior.R_L_C, scene.prior.position_L @ flip),
    )
    assert statuses(solve(scene)) == [FixStatus.OK]
    assert statuses(solve(mirrored)) == [FixStatus.IMPLAUSIBLE]


def test_implausible_against_the_star_tracker() -> None:
    scene = make_scene(39, n=330, attitude_sigma_rad=1e-9, noise_px=0.05)
    for sigmas, status in ((5.8, FixStatus.OK), (6.2, FixStatus.IMPLAUSIBLE)):
        turn = torch.tensor([[0.0, sigmas * 2e-3, 0.0]], dtype=torch.float64)
        prior = Pose(so3_exp(turn) @ scene.truth.R_L_C, scene.truth.position_L)
        assert statuses(solve(replace(scene, prior=prior), sigma_rad=2e-3)) == [status]


def test_a_failed_fix_has_no_pose() -> None:
    scene = make_scene(40, frames=3, outliers=0.1)
    uv_px = scene.matches.uv_px.clone()
    uv_px[1] = make_scene(41, outliers=1.0).matches.uv_px[0]
    solution = solve(replace(scene, matches=replace_matches(scene.matches, uv_px=uv_px)))
    assert solution.pose.position_L[1].isnan().all()
    assert solution.pose.R_L_C[1].isnan().all()
    assert solution.covariance[1].isnan().all()
    assert solution.residual_px[1].isnan().all()
    assert not solution.map_error.alpha[1].any()
    fixes = fixes_on_host(solution, scene.matches, [0.0, 0.5, 1.0])
    assert [f.status for f in fixes] == [FixStatus.OK, FixStatus.NO_CONSENSUS, FixStatus.OK]
    failed, good = fixes[1], fixes[2]
    assert (failed.position_L, failed.R_L_C, failed.covariance, failed.rms_px) == (None,) * 4
    assert failed.t_s == 0.5
    assert failed.n_matches == 100
    assert failed.n_inliers < 12
    assert good.position_L is not None
    assert good.R_L_C is not None
    assert good.covariance is not None
    assert torch.equal(good.position_L, solution.pose.position_L[2])
    assert torch.equal(good.R_L_C, solution.pose.R_L_C[2])
    assert torch.equal(good.covariance, solution.covariance[2])
    assert good.n_inliers == int(solution.inlier[2].sum())
    assert good.rms_px == pytest.approx(0.3 * math.sqrt(2), rel=0.2)


# --- batches, gaps, bad input ---


def test_a_frame_alone_gives_what_it_gives_in_a_batch() -> None:
    scene = make_scene(42, frames=4, outliers=0.5, map_error=ROUGH_MAP)
    together = solve(scene, map_error=ROUGH_MAP)
    for i in range(4):
        m = scene.matches
        only = replace(
            scene,
            matches=type(m)(
                *(t[i : i + 1] for t in (
                    m.uv_map_px, m.uv_px, m.covariance_px2, m.score, m.point_L, m.valid, m.learned,
                ))
            ),
            prior=scene.prior[i : i + 1],
        )  # fmt: skip
        alone = solve(only, map_error=ROUGH_MAP)
        assert torch.equal(alone.status_code[0], together.status_code[i])
        assert torch.equal(alone.inlier[0], together.inlier[i])
        assert torch.allclose(alone.pose.position_L[0], together.pose.position_L[i], atol=1e-6)
        assert torch.allclose(alone.covariance[0], together.covariance[i], rtol=1e-6, atol=1e-15)


def test_what_is_masked_or_not_finite_does_not_matter() -> None:
    scene = make_scene(43, map_error=ROUGH_MAP)
    clean = with_valid(scene, 90)
    m = clean.matches
    point_L, uv_px, covariance = m.point_L.clone(), m.uv_px.clone(), m.covariance_px2.clone()
    point_L[:, 90:93], uv_px[:, 93:96], covariance[:, 96:] = torch.nan, torch.inf, 0.0
    valid = m.valid.clone()
    valid[:, 93:] = True  # claimed valid, and not usable
    dirty = replace(clean, matches=replace_matches(
        m, point_L=point_L, uv_px=uv_px, covariance_px2=covariance, valid=valid
    ))  # fmt: skip
    expected, got = solve(clean, map_error=ROUGH_MAP), solve(dirty, map_error=ROUGH_MAP)
    assert torch.allclose(got.pose.position_L, expected.pose.position_L, atol=1e-6)
    assert not got.inlier[:, 90:].any()
    assert got.residual_px[:, 90:].isnan().all()


def test_residuals_are_of_the_map_as_it_stands() -> None:
    scene = make_scene(44, map_error=ROUGH_MAP)
    solution = solve(scene, map_error=ROUGH_MAP)
    offset = scene.matches.point_L - solution.pose.position_L[:, None]
    expected = scene.matches.uv_px - CAMERA.project(offset @ solution.pose.R_L_C)
    assert torch.allclose(solution.residual_px, expected, atol=1e-9)
    rms = expected[solution.inlier].square().sum(-1).mean().sqrt()
    assert torch.allclose(solution.rms_px[0], rms)


@pytest.mark.parametrize(
    ("field", "value"),
    [("hypotheses", 0), ("inlier_px", -1.0), ("inlier_px", math.nan), ("min_inliers", 3),
     ("calibration", 0.9), ("huber_sigma", 4.0)],
)  # fmt: skip
def test_a_setting_out_of_range_is_named(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"pose.{field}"):
        replace(PoseConfig(), **{field: value})


def test_bad_input_is_named() -> None:
    scene = make_scene(45, frames=2)
    with pytest.raises(ConfigError, match="attitude_sigma_rad: 0"):
        solve(scene, sigma_rad=0.0)
    with pytest.raises(ConfigError, match="sigma_m: -1"):
        solve(scene, map_error=MapErrorModel(-1.0, 300.0))
    with pytest.raises(ConfigError, match="correlation_m: 0"):
        solve(scene, map_error=MapErrorModel(1.0, 0.0))
    with pytest.raises(ConfigError, match="1 poses for 2 frames"):
        solve(replace(scene, prior=scene.prior[:1]))
    with pytest.raises(ConfigError, match="1 times for 2 fixes"):
        fixes_on_host(solve(scene), scene.matches, [0.0])
