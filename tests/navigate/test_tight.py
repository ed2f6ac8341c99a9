"""The tight update against a pose fix of the same matches, drawn fields and its own promises."""

from dataclasses import dataclass, replace

import pytest
import simulated_device
import torch
from descent_model import R_B_C, truth
from scipy.stats import chi2
from torch import Tensor

from tnav.errors import ConfigError
from tnav.geometry.camera import Camera
from tnav.geometry.pose import so3_exp, so3_log
from tnav.navigate.filter import update_star_tracker, update_vision
from tnav.navigate.map_error import rescale
from tnav.navigate.match_rows import linearised, rest_of_map_m2
from tnav.navigate.mechanisation import (
    CLONE_ATTITUDE,
    CLONE_POSITION,
    CORE,
    MAP_BEAM,
    MAP_LOCAL,
    MAP_MEAN,
    MAP_SHIFT,
    STATES,
)
from tnav.navigate.state import SENSORS, FilterConfig, FilterState, clone, corrected, initial_state
from tnav.navigate.tight import compress, inliers, pose_on_map, update_tight
from tnav.records import Matches, Sensor, StarTrackerReading, VisionFix

F64 = torch.float64
CAMERA = Camera.from_field_of_view(512, 512, 45.0)
NOISE_PX = 0.3
# Of a map without errors, and matches that have none in common.
PERFECT = FilterConfig(map_sigma_m=1e-9, map_shift_sigma_m=1e-9, fix_floor_sigma_m=1e-9)
MAP = FilterConfig()
T_S = 70.0


@dataclass
class Exposure:
    """Matches of one exposure, the state's prior and the truth, for a batch."""

    state: FilterState
    matches: Matches
    position_L: Tensor  # true
    R_L_C: Tensor


def matches_of(uv_px: Tensor, covariance_px2: Tensor, point_L: Tensor, valid: Tensor) -> Matches:
    b, n = valid.shape
    score, learned = torch.ones(b, n), torch.zeros(b, dtype=torch.bool)
    device = uv_px.device
    return Matches(
        uv_px, uv_px, covariance_px2, score.to(device), point_L, valid, learned.to(device)
    )


def field_m(points_L: Tensor, config: FilterConfig, normal: Tensor) -> Tensor:
    """A draw of the map's error at the points, each batch its own."""
    apart = torch.cdist(points_L[..., :2], points_L[..., :2])
    K = torch.exp(-0.5 * (apart / config.map_correlation_m) ** 2)
    K = K + 1e-9 * torch.eye(K.shape[-1], dtype=F64)
    return config.map_sigma_m * (torch.linalg.cholesky(K) @ normal[..., None]).squeeze(-1)


def exposure(
    batch: int,
    n: int,
    seed: int,
    config: FilterConfig,
    height_m: float = 2000.0,
    sigmas: tuple[float, float, float] = (20.0, 0.5, 1e-3),
    spread: float = 1.0,
    drawn: bool = True,
    noise: float = 1.0,
) -> Exposure:
    """Matches spread over the image, on ground with 100 m of relief, and a prior drawn about it.

    Args:
        drawn: the map's error is drawn as a field; otherwise there is none.
        noise: of the pixels, over the stated.
    """
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=F64)

    here = truth(T_S)
    position_L = torch.tensor([300.0, -200.0, height_m], dtype=F64).expand(batch, 3)
    R_L_B = here.R_L_B.expand(batch, 3, 3)
    R_L_C = R_L_B @ R_B_C
    uv_px = 256 + spread * 500 * (torch.rand(batch, n, 2, generator=draw, dtype=F64) - 0.5)
    ray_L = CAMERA.unproject(uv_px) @ R_L_C.mT
    ground_z = 0.05 * height_m * (torch.rand(batch, n, generator=draw, dtype=F64) - 0.5)
    reach = (ground_z - position_L[:, None, 2]) / ray_L[..., 2]
    ground_L = position_L[:, None] + reach[..., None] * ray_L
    offset_L = torch.zeros_like(ground_L)
    shift = config.map_shift_sigma_m * normal(batch, 2)
    if drawn:
        offset_L[..., :2] = shift[:, None]
        offset_L[..., 2] = field_m(ground_L, config, normal(batch, n))
    root = NOISE_PX * torch.tensor([[1.0, 0.0], [0.4, 0.8]], dtype=F64)
    noisy = uv_px + noise * normal(batch, n, 2) @ root.T
    covariance = (root @ root.T).expand(batch, n, 2, 2)
    valid = torch.ones(batch, n, dtype=torch.bool)
    matches = matches_of(noisy, covariance, ground_L + offset_L, valid)
    error = sigmas[0] * normal(batch, 3), sigmas[2] * normal(batch, 3)
    state = initial_state(
        T_S,
        position_L - error[0],
        here.velocity_L.repeat(batch, 1),
        so3_exp(-error[1]) @ R_L_B,
        position_sigma_m=sigmas[0],
        velocity_sigma_m_s=sigmas[1],
        attitude_sigma_rad=sigmas[2],
        config=config,
    )
    return Exposure(state, matches, position_L, R_L_C)


def errors_of(state: FilterState, seen: Exposure) -> Tensor:
    """True minus estimate of the clone's pose, ``b 6``."""
    estimated = state.clone_R_L_B @ R_B_C
    turned = so3_log(seen.R_L_C @ estimated.mT)
    return torch.cat([seen.position_L - state.clone_position_L, turned], -1)


def pose_covariance(state: FilterState) -> Tensor:
    return state.covariance[:, CORE:, CORE:]


def gauss_newton(seen: Exposure, star: StarTrackerReading | None) -> tuple[Tensor, Tensor, Tensor]:
    """Position, R_L_C and covariance of the fix, in loops over matches: no field, no prior."""
    position, R = seen.position_L[0].clone(), seen.R_L_C[0].clone()
    covariance = torch.zeros(6, 6, dtype=F64)
    for _ in range(10):
        N, g = torch.zeros(6, 6, dtype=F64), torch.zeros(6, dtype=F64)
        for uv, point, V in zip(
            seen.matches.uv_px[0], seen.matches.point_L[0], seen.matches.covariance_px2[0],
            strict=True,
        ):  # fmt: skip
            x = R.T @ (point - position)
            slope = (
                CAMERA.focal_px
                / x[2]
                * torch.tensor([[1, 0, -x[0] / x[2]], [0, 1, -x[1] / x[2]]], dtype=F64)
            )
            lever = point - position
            turn = torch.stack(
                [torch.linalg.cross(e, lever) for e in torch.eye(3, dtype=F64)], -1
            )  # of the point, were the camera still; the camera's turn is the opposite
            J = torch.cat([-slope @ R.T, -slope @ R.T @ turn], -1)
            r = uv - (CAMERA.focal_px * x[:2] / x[2] + 256)
            weight = torch.linalg.inv(V)
            N, g = N + J.T @ weight @ J, g + J.T @ weight @ r
        if star is not None:
            off = so3_log(star.R_L_B[0] @ R_B_C @ R.T)
            N[3:, 3:] += torch.eye(3, dtype=F64) / star.sigma_rad**2
            g[3:] += off / star.sigma_rad**2
        covariance = torch.linalg.inv(N)
        step = covariance @ g
        position, R = position + step[:3], so3_exp(step[3:]) @ R
    return position, R, covariance


@pytest.mark.parametrize("with_star", [False, True])
def test_equals_the_fix_of_the_same_matches(with_star: bool) -> None:
    """A perfect map, small offsets: all states as after `update_vision` of the Gauss-Newton fix."""
    seen = exposure(1, 40, 3, PERFECT, sigmas=(2e-4, 0.01, 1e-7), drawn=False)
    here = seen.R_L_C @ R_B_C.T
    turned = so3_exp(torch.tensor([[2e-8, -1e-8, 3e-8]], dtype=F64)) @ here
    star = StarTrackerReading(T_S, turned, 1e-7) if with_star else None
    # Noise so small that the problem is linear over it, and the gates are idle.
    quiet = replace(
        seen.matches,
        uv_px=CAMERA.project((seen.matches.point_L - seen.position_L[:, None]) @ seen.R_L_C)
        + 1e-5 * torch.randn(1, 40, 2, generator=torch.Generator().manual_seed(9), dtype=F64),
        covariance_px2=1e-10 * seen.matches.covariance_px2 / NOISE_PX**2,
    )
    used, _, scale = inliers(
        seen.state, quiet.uv_px, quiet.covariance_px2, quiet.point_L, quiet.valid, CAMERA, R_B_C,
        star, PERFECT,
    )  # fmt: skip
    assert bool(used.all())
    assert 1.0 <= float(scale) < 1.7  # of eighty draws
    seen.matches = replace(quiet, covariance_px2=quiet.covariance_px2 * scale)
    position, R, covariance = gauss_newton(seen, star)
    fix = VisionFix(T_S, position[None], R[None], covariance[None], torch.zeros(1, 6, 6, dtype=F64))
    by_fix, _ = update_vision(seen.state, fix, torch.ones(1, dtype=torch.bool), R_B_C, PERFECT)
    tight, innovation = update_tight(seen.state, T_S, quiet, CAMERA, R_B_C, star, PERFECT)
    assert bool(innovation.fused.all())
    sigma = by_fix.covariance[0].diagonal().clamp_min(1e-30).sqrt()
    apart = (tight.covariance - by_fix.covariance)[0] / sigma / sigma[:, None]
    moving = [0, 1, 2, 3, 4, 5, 6, 7, 8, *range(CORE, STATES)]
    assert apart[moving][:, moving].abs().max() < 1e-6
    moved = tight.clone_position_L - by_fix.clone_position_L
    assert (moved[0] / sigma[CLONE_POSITION]).abs().max() < 1e-6
    turn = so3_log(tight.clone_R_L_B @ by_fix.clone_R_L_B.mT)
    assert (turn[0] / sigma[CLONE_ATTITUDE]).abs().max() < 1e-6
    assert (tight.position_L - tight.clone_position_L).abs().max() < 1e-9


def test_jacobians_against_finite_differences() -> None:
    seen = exposure(2, 7, 5, MAP)
    points = seen.matches.point_L
    position_L, R_L_C = pose_on_map(seen.state, R_B_C)
    moved = torch.tensor([[3.0, -2.0, 4.0, 2e-3, -1e-3, 3e-3]] * 2, dtype=F64)
    # Perturbed about the moved pose: in the frame of L, as the error state is.
    position_L, R_L_C = position_L + moved[:, :3], so3_exp(moved[:, 3:]) @ R_L_C
    still = torch.zeros_like(moved)
    rows = linearised(position_L, R_L_C, still, points, seen.matches.uv_px, CAMERA)
    for i, size in enumerate([1.0] * 3 + [1e-4] * 3):
        step = torch.zeros_like(moved)
        step[:, i] = size
        plus, minus = (
            linearised(position_L, R_L_C, s * step, points, seen.matches.uv_px, CAMERA)
            for s in (1, -1)
        )
        numeric = -(plus.residual_px - minus.residual_px) / (2 * size)
        assert torch.allclose(numeric, rows.J_x[..., i], rtol=1e-5, atol=1e-5 / size)
    higher = points + torch.tensor([0.0, 0.0, 0.5], dtype=F64)
    lower = points - torch.tensor([0.0, 0.0, 0.5], dtype=F64)
    plus, minus = (
        linearised(position_L, R_L_C, still, p, seen.matches.uv_px, CAMERA) for p in (higher, lower)
    )
    assert torch.allclose(plus.residual_px - minus.residual_px, -rows.J_n, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("which", [MAP_MEAN, MAP_SHIFT.start, MAP_SHIFT.start + 1])
def test_map_states_displace_all_points_alike(which: int) -> None:
    """A state of the map moves the residual as the points, moved by the map's error, do."""
    seen = exposure(1, 30, 6, MAP, sigmas=(1e-3, 0.01, 1e-7))
    m = seen.matches
    one = (m.valid, CAMERA, R_B_C)
    step = torch.zeros(1, STATES, dtype=F64)
    step[0, which] = 0.01
    state = seen.state
    nudged = corrected(state, step, state.covariance, state.rejected_run)
    axis = {MAP_MEAN: 2}.get(which, which - MAP_SHIFT.start)
    back = m.point_L.clone()
    back[..., axis] -= 0.01
    by_state = compress(m.point_L, m.uv_px, m.covariance_px2, *one, nudged, MAP)
    by_points = compress(back, m.uv_px, m.covariance_px2, *one, state, MAP)
    rest = compress(m.point_L, m.uv_px, m.covariance_px2, *one, state, MAP)
    information = by_state.H.mT @ by_state.H
    expected = by_points.H.mT @ by_points.H
    assert torch.allclose(information, expected, rtol=1e-6, atol=1e-6 * float(expected.max()))
    shifted, plain, likewise = (
        (x.H.mT @ x.residual[..., None]).flatten() for x in (by_state, rest, by_points)
    )
    assert torch.allclose(shifted, likewise, rtol=1e-6)
    assert (shifted - plain).norm() > 1e-5 * plain.norm()


def test_compression_against_the_dense_normal_equations() -> None:
    """H^T H = J^T S^-1 J with S written out, under the map's error; unused matches leave none."""
    seen = exposure(2, 25, 7, MAP, height_m=800.0)
    state = rescale(seen.state, torch.full((2,), 2.0, dtype=F64), MAP)
    m = seen.matches
    used = m.valid.clone()
    used[0, 3:9] = False
    broken = m.point_L.clone()
    broken[0, 3:9] = torch.nan
    got = compress(broken, m.uv_px, m.covariance_px2, used, CAMERA, R_B_C, state, MAP)
    rows = linearised(
        *pose_on_map(state, R_B_C), torch.zeros(2, 6, dtype=F64), m.point_L, m.uv_px, CAMERA
    )
    field = rest_of_map_m2(m.point_L, used, state, MAP)
    for i in range(2):
        keep = used[i]
        J, r = rows.J_x[i, keep].flatten(0, 1), rows.residual_px[i, keep].flatten()
        k = int(keep.sum())
        along = torch.zeros(2 * k, k, dtype=F64)
        for j in range(k):
            along[2 * j : 2 * j + 2, j] = rows.J_n[i, keep][j]
        S = torch.block_diag(*m.covariance_px2[i, keep]) + along @ field[i][keep][:, keep] @ along.T
        N, g = J.T @ torch.linalg.solve(S, J), J.T @ torch.linalg.solve(S, r)
        assert torch.allclose(got.H[i].T @ got.H[i], N, rtol=1e-8, atol=1e-10 * float(N.max()))
        assert torch.allclose(got.H[i].T @ got.residual[i], g, rtol=1e-7)


def test_rest_of_the_map_adds_up() -> None:
    """With the state's mean: the whole field for one match; no more than it, for a close group."""
    config = MAP
    state = replace(exposure(1, 1, 1, config).state)
    state = rescale(state, torch.full((1,), 4.0, dtype=F64), config)
    points = torch.zeros(1, 5, 3, dtype=F64)
    points[0, :, 0] = torch.tensor([0.0, 1.0, 2.0, 3.0, 2e5])
    one = torch.tensor([[True, False, False, False, False]])
    s2, m = config.map_sigma_m**2, 4.0
    assert rest_of_map_m2(points, one, state, config)[0, 0, 0].item() == pytest.approx(s2 - m)
    close = torch.tensor([[True, True, True, True, False]])
    rest = rest_of_map_m2(points, close, state, config)[0, :4, :4]
    assert torch.allclose(rest, torch.full((4, 4), s2 - m, dtype=F64), atol=1e-3)
    far = torch.tensor([[True, False, False, False, True]])
    rest = rest_of_map_m2(points, far, state, config)[0][[0, 4]][:, [0, 4]]
    # Their mean has s^2 / 2 of itself, beyond the m of the state; their difference 2 s^2.
    assert rest.mean().item() == pytest.approx(s2 / 2 - m)
    assert (rest[0, 0] + rest[1, 1] - 2 * rest[0, 1]).item() == pytest.approx(2 * s2)


def nees_now(state: FilterState, seen: Exposure) -> tuple[Tensor, Tensor]:
    """NEES of the clone's pose, and squares of its six errors over sigma."""
    error, P = errors_of(state, seen), pose_covariance(state)
    sigma = P.diagonal(dim1=1, dim2=2).sqrt()
    z = error / sigma
    correlation = P / sigma[:, :, None] / sigma[:, None, :]
    return (z * torch.linalg.solve(correlation, z)).sum(-1), z.square()


def nees_of(seen: Exposure, config: FilterConfig) -> tuple[Tensor, Tensor, Tensor]:
    """`nees_now` after the update, and NIS, of the lanes that fused."""
    state, innovation = update_tight(seen.state, T_S, seen.matches, CAMERA, R_B_C, None, config)
    assert int(innovation.fused.sum()) > 0.98 * len(innovation.fused)
    fused = innovation.fused
    nees, each = nees_now(state, seen)
    return nees[fused], each[fused], innovation.nis[fused]


@pytest.mark.parametrize("attitude_rad", [3e-4, 1e-5])
@pytest.mark.parametrize(
    ("n", "height_m"), [(1, 2000.0), (3, 2000.0), (60, 6000.0), (60, 2000.0), (60, 300.0)]
)
def test_coverage_on_drawn_fields(n: int, height_m: float, attitude_rad: float) -> None:
    """NEES of the pose within chi-square bounds of 1e-5 each side, maps drawn from their field."""
    lanes = 300
    sigmas = (10.0, 0.5, attitude_rad)
    nees, each, nis = nees_of(exposure(lanes, n, 20 + n, MAP, height_m, sigmas), MAP)
    low, high = (chi2.ppf(p, 6 * len(nees)) / len(nees) for p in (1e-5, 1 - 1e-5))
    assert low < float(nees.mean()) < high, float(nees.mean())
    one_low, one_high = (chi2.ppf(p, len(nees)) / len(nees) for p in (1e-6, 1 - 1e-6))
    assert bool(((one_low < each.mean(0)) & (each.mean(0) < one_high)).all()), each.mean(0)
    freedom = min(2 * n, 6)
    low, high = (chi2.ppf(p, freedom * len(nis)) / len(nis) for p in (1e-5, 1 - 1e-5))
    assert low < float(nis.mean()) < high, float(nis.mean())


def at_begin(state: FilterState) -> FilterState:
    """The state with the spread that a map with errors has."""
    P = state.covariance.clone()
    P[:, MAP_SHIFT, MAP_SHIFT] = MAP.map_shift_sigma_m**2 * torch.eye(2, dtype=F64)
    # The lander hangs upright: its beam meets the ground at the nadir.
    P[:, MAP_LOCAL : MAP_BEAM + 1, MAP_LOCAL : MAP_BEAM + 1] = MAP.map_sigma_m**2
    return replace(state, covariance=P)


@pytest.mark.parametrize("n", [4, 40])
def test_coverage_of_images_that_share_their_ground(n: int) -> None:
    """Five exposures from 3 km down to 200 m, one field under all of them, known moves between.

    What the images share of the map's error is a state, or NEES would grow with every image.
    """
    lanes, heights_m = 300, (3000.0, 1500.0, 800.0, 400.0, 200.0)
    looks = [
        exposure(lanes, n, 90 + i, PERFECT, h, (10.0, 0.5, 3e-4), drawn=False)
        for i, h in enumerate(heights_m)
    ]
    draw = torch.Generator().manual_seed(99)
    every_L = torch.cat([x.matches.point_L for x in looks], 1)
    field = field_m(every_L, MAP, torch.randn(lanes, 5 * n, generator=draw, dtype=F64))
    shift = MAP.map_shift_sigma_m * torch.randn(lanes, 1, 2, generator=draw, dtype=F64)
    offset = torch.cat([shift.expand(-1, 5 * n, 2), field[..., None]], -1).split(n, 1)
    state = replace(looks[0].state, covariance=at_begin(looks[0].state).covariance)
    for i, seen in enumerate(looks):
        if i > 0:
            down = seen.position_L - looks[i - 1].position_L
            state = clone(replace(state, position_L=state.position_L + down))
        m = replace(seen.matches, point_L=seen.matches.point_L + offset[i])
        state, innovation = update_tight(state, T_S, m, CAMERA, R_B_C, None, MAP)
        assert bool(innovation.fused.all())
        nees, each = nees_now(state, seen)
        low, high = (chi2.ppf(p, 6 * lanes) / lanes for p in (1e-5, 1 - 1e-5))
        assert low < float(nees.mean()) < high, (i, float(nees.mean()))
        one_low, one_high = (chi2.ppf(p, lanes) / lanes for p in (1e-6, 1 - 1e-6))
        assert bool(((one_low < each.mean(0)) & (each.mean(0) < one_high)).all()), each.mean(0)
        # Innovations are no larger than they should be; a bit smaller, by what is approximate.
        assert float(innovation.nis.mean()) < high


def test_a_white_map_would_not_cover() -> None:
    """The same draws under a correlation of a metre: neighbours do share their errors."""
    white = replace(MAP, map_correlation_m=1.0)
    nees, _, _ = nees_of(exposure(300, 60, 80, MAP, 300.0, (10.0, 0.5, 1e-5)), white)
    assert float(nees.mean()) > 8.0


def test_one_match_narrows_two_directions_and_no_more() -> None:
    seen = exposure(1, 1, 8, PERFECT, drawn=False)
    m = seen.matches
    measured = compress(
        m.point_L, m.uv_px, m.covariance_px2, m.valid, CAMERA, R_B_C, seen.state, PERFECT
    )
    assert int(torch.linalg.matrix_rank(measured.H[0])) == 2
    state, innovation = update_tight(seen.state, T_S, m, CAMERA, R_B_C, None, PERFECT)
    assert bool(innovation.fused)
    before, after = pose_covariance(seen.state)[0], pose_covariance(state)[0]
    sigma = before.diagonal().sqrt()
    kept = torch.linalg.eigvalsh(after / sigma / sigma[:, None])
    assert torch.allclose(kept[2:], torch.ones(4, dtype=F64), atol=1e-9)
    H = measured.H[0]
    gained = torch.linalg.eigvalsh(H @ before @ H.T)[-2:]  # signal over noise in the whole image
    assert torch.allclose(kept[:2].sort().values, (1 / (1 + gained)).sort().values, rtol=1e-2)
    assert bool((gained > 100.0).all())  # 20 m are 6 px
    # Along the ray nothing is learnt: of the position given the attitude, only across it.
    ray_L = m.point_L[0, 0] - seen.state.clone_position_L[0]
    ray_L = ray_L / ray_L.norm()
    assert (ray_L @ after[:3, :3] @ ray_L).item() == pytest.approx(400.0, rel=1e-3)


@pytest.mark.parametrize("share", [0.1, 0.3])
def test_outliers_are_left_out(share: float) -> None:
    """Matches wrong by up to 60 px, under a prior wide enough to admit most of them."""
    lanes, n = 50, 100
    seen = exposure(lanes, n, 30, MAP, sigmas=(30.0, 0.5, 3e-4))
    wrong = torch.arange(n) < round(share * n)
    draw = torch.Generator().manual_seed(31)
    off = 120 * (torch.rand(lanes, n, 2, generator=draw, dtype=F64) - 0.5)
    off = torch.where(wrong[:, None] & (off.norm(dim=-1, keepdim=True) > 8.0), off, 0.0)
    m = replace(seen.matches, uv_px=seen.matches.uv_px + off)
    used, _, scale = inliers(
        seen.state, m.uv_px, m.covariance_px2, m.point_L, m.valid, CAMERA, R_B_C, None, MAP
    )
    bad = off.norm(dim=-1) > 0
    assert float(used[bad].double().mean()) < 0.01
    assert float(used[~bad].double().mean()) > 0.99
    assert float(scale.max()) < 3.0
    seen.matches = m
    nees, _, _ = nees_of(seen, MAP)
    low, high = (chi2.ppf(p, 6 * lanes) / lanes for p in (1e-5, 1 - 1e-5))
    assert low < float(nees.mean()) < high


def test_scatter_widens_and_quiet_does_not_narrow() -> None:
    """Noise of twice the stated sigma: scale four; of half: one; of ten times: nine, no more."""
    for noise, low, high in ((2.0, 3.0, 5.2), (0.5, 1.0, 1.0), (10.0, 9.0, 9.0)):
        seen = exposure(20, 120, 33, PERFECT, drawn=False, noise=noise)
        m = seen.matches
        _, _, scale = inliers(
            seen.state, m.uv_px, m.covariance_px2, m.point_L, m.valid, CAMERA, R_B_C, None, PERFECT
        )
        assert low <= float(scale.min()) <= float(scale.max()) <= high


@pytest.mark.parametrize("n", [2, 60])
def test_a_wrong_state_is_rejected_for_a_while_and_then_corrected(n: int) -> None:
    """No lock-out: matches that contradict the state count as rejections, and the fourth is taken.

    With sixty the pose is then right; two narrow four of its six directions.
    """
    seen = exposure(1, n, 40, MAP, sigmas=(1.0, 0.1, 1e-4))
    column = SENSORS.index(Sensor.VISION)
    off = torch.tensor([[150.0, -80.0, 60.0]], dtype=F64)
    state = replace(
        seen.state,
        position_L=seen.state.position_L + off,
        clone_position_L=seen.state.clone_position_L + off,
    )
    for k in range(3):
        state, innovation = update_tight(state, T_S, seen.matches, CAMERA, R_B_C, None, MAP)
        assert bool(innovation.present)
        assert not bool(innovation.fused)
        assert float(state.rejected_run[0, column]) == k + 1
    state, innovation = update_tight(state, T_S, seen.matches, CAMERA, R_B_C, None, MAP)
    assert bool(innovation.fused)
    assert float(innovation.nis) > 1000.0
    _, again = update_tight(state, T_S, seen.matches, CAMERA, R_B_C, None, MAP)
    assert float(again.nis) < 28.0
    if n > 2:
        # The widening follows the discrepancy; what is left is the noise of the image.
        assert (state.position_L - seen.position_L).norm() < 20.0


def test_star_tracker_beside_equals_star_tracker_before() -> None:
    """A reading given along is a reading fused before the clone."""
    seen = exposure(1, 30, 50, PERFECT, sigmas=(2e-3, 0.01, 1e-6), drawn=False, noise=1e-3)
    m = replace(seen.matches, covariance_px2=1e-4 * seen.matches.covariance_px2)
    turned = so3_exp(torch.tensor([[2e-6, -1e-6, 3e-6]], dtype=F64)) @ seen.state.R_L_B
    star = StarTrackerReading(T_S, turned, 1e-6)
    beside, _ = update_tight(seen.state, T_S, m, CAMERA, R_B_C, star, PERFECT)
    fused, _ = update_star_tracker(seen.state, star, PERFECT)
    before, _ = update_tight(fused, T_S, m, CAMERA, R_B_C, None, PERFECT)
    sigma = before.covariance[0].diagonal().sqrt()[CORE:]
    apart = torch.cat(
        [
            beside.clone_position_L - before.clone_position_L,
            so3_log(beside.clone_R_L_B @ before.clone_R_L_B.mT),
        ],
        -1,
    )
    assert (apart[0] / sigma).abs().max() < 1e-3
    assert torch.allclose(beside.covariance[0].diagonal().sqrt()[CORE:], sigma, rtol=1e-4)


def _mixed() -> Exposure:
    """Lanes: many matches, one, none valid, none at all seen, garbage where masked."""
    seen = exposure(4, 12, 60, MAP)
    m = seen.matches
    valid, uv, point = m.valid.clone(), m.uv_px.clone(), m.point_L.clone()
    valid[1, 1:] = False
    valid[2] = False
    uv[2], point[2] = torch.nan, torch.nan
    point[3, :, 2] += 1e5  # above the camera, which looks down
    seen.matches = replace(m, valid=valid, uv_px=uv, point_L=point)
    return seen


def test_lanes_without_matches_stay_as_they_are() -> None:
    seen = _mixed()
    state, innovation = update_tight(seen.state, T_S, seen.matches, CAMERA, R_B_C, None, MAP)
    assert innovation.present.tolist() == [True, True, False, False]
    assert innovation.fused.tolist() == [True, True, False, False]
    for i in (2, 3):
        assert torch.equal(state.position_L[i], seen.state.position_L[i])
        inertial = state.covariance[i, :18, :18]
        assert torch.allclose(inertial, seen.state.covariance[i, :18, :18], rtol=1e-12)
    assert bool(state.covariance.isfinite().all())
    empty = matches_of(
        torch.zeros(4, 0, 2, dtype=F64),
        torch.zeros(4, 0, 2, 2, dtype=F64),
        torch.zeros(4, 0, 3, dtype=F64),
        torch.zeros(4, 0, dtype=torch.bool),
    )
    same, innovation = update_tight(seen.state, T_S, empty, CAMERA, R_B_C, None, MAP)
    assert not bool(innovation.present.any())
    assert torch.equal(same.position_L, seen.state.position_L)


def _on(record, device: str):
    """A record with its tensors on a device."""
    moved = {
        name: value.to(device)
        for name in record.__slots__
        if isinstance(value := getattr(record, name), Tensor)
    }
    return replace(record, **moved)


def test_same_numbers_and_no_waiting_on_an_accelerator(simgpu: str) -> None:
    seen = _mixed()
    star = StarTrackerReading(T_S, seen.state.R_L_B, 1e-4)
    want, want_innovation = update_tight(seen.state, T_S, seen.matches, CAMERA, R_B_C, star, MAP)
    state, matches, reading = (_on(r, simgpu) for r in (seen.state, seen.matches, star))
    with simulated_device.count_syncs() as syncs:
        got, innovation = update_tight(state, T_S, matches, CAMERA, R_B_C, reading, MAP)
    assert not syncs, syncs
    assert got.covariance.device.type == simgpu
    assert torch.equal(got.covariance.cpu(), want.covariance)
    assert torch.equal(got.clone_R_L_B.cpu(), want.clone_R_L_B)
    assert torch.equal(innovation.fused.cpu(), want_innovation.fused)


def test_bad_input_in_one_line() -> None:
    seen = exposure(1, 2, 70, MAP)
    with pytest.raises(ConfigError, match=r"matches of t = 69\.500000 s.*clone at the exposure"):
        update_tight(seen.state, 69.5, seen.matches, CAMERA, R_B_C, None, MAP)
    late = StarTrackerReading(T_S + 1.0, seen.state.R_L_B, 1e-4)
    with pytest.raises(ConfigError, match=r"star tracker of t = 71"):
        update_tight(seen.state, T_S, seen.matches, CAMERA, R_B_C, late, MAP)
