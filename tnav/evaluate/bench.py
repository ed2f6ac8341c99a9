"""Measurements that print a table. Times are medians of repeats on this machine, as it is."""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from tnav.errors import ConfigError
from tnav.estimate.pnp import solve_pose
from tnav.evaluate.archive import arrays_of
from tnav.evaluate.bench_corridor import measure_corridor
from tnav.evaluate.bench_render import measure_render
from tnav.evaluate.calibration import measure_calibration
from tnav.evaluate.limits import Row, rows_of
from tnav.evaluate.match_covariance import measure_covariance
from tnav.evaluate.metrics import score
from tnav.evaluate.relief_statistics import measure_relief
from tnav.evaluate.run import run
from tnav.evaluate.scenario import load_scenario
from tnav.evaluate.world import R_B_C, World, build_world
from tnav.geometry.camera import Camera
from tnav.geometry.pose import Pose, so3_exp
from tnav.records import FIX_STATUSES, FixStatus, MapErrorModel, Matches
from tnav.terrain.raycast import cast, occluded

Say = Callable[[str], None]
NAMES = ("demo", "render", "match", "covariance", "pose", "fix", "relief", "corridor")
_FIX_HEIGHTS_M = (9000.0, 5000.0, 2500.0, 1200.0, 600.0)
_FIX_MAPS = 12
_COVARIANCE_PAIRS = 8
RELIEF_SEED = 0
_REPEATS = 5


def measure(name: str, device: torch.device, seeds: int, say: Say) -> list[Row]:
    """Run one benchmark; that of the matcher, which has options of its own, is `bench_match`.

    Raises:
        ConfigError: no benchmark of that name.
    """
    match name:
        case "demo":
            return measure_demo(device, seeds, say)
        case "render":
            return [*measure_render(device, say), *measure_nested(device, say)]
        case "covariance":
            return measure_covariance(device, _COVARIANCE_PAIRS, say)
        case "pose":
            return measure_pose(device, say)
        case "fix":
            return measure_fix(device, say)
        case "relief":
            return measure_relief(RELIEF_SEED, say)[0]
        case "corridor":
            return measure_corridor(say)
    raise ConfigError(f"bench '{name}': not known; expected one of {', '.join(NAMES)}")


def measure_demo(device: torch.device, seeds: int, say: Say) -> list[Row]:
    """The demo and its healthy twin over several draws, against what they must reach."""
    rows = []
    for seed in range(seeds):
        say(f"seed {seed + 1} of {seeds}: terrain")
        world = build_world(load_scenario("resilience").with_seed(seed), device)
        for label, each in (("fault", world), ("healthy", world.healthy_twin())):

            def tell(text: str, _: float, label: str = label, seed: int = seed) -> None:
                say(f"seed {seed + 1} of {seeds}, {label}: {text}")

            log = run(each, tell, lambda _: None)
            document = score(arrays_of(log, seed))
            for row in rows_of(document):
                rows.append(replace(row, name=f"seed {seed}, {label}: {row.name}"))
            seconds = round(document.summary.seconds, 1)
            name = f"seed {seed}, {label}: wall clock"
            rows.append(Row(name, seconds, "s", None, None, 1, str(device)))
    return rows


def measure_nested(device: torch.device, say: Say) -> list[Row]:
    """Primary and shadow rays of one million pixels over the demo's ground."""
    world = build_world(load_scenario("resilience"), device)
    sun_L = world.sun.sun_L.to(device)
    rows = []
    views = (("nadir 10 km", 10e3, 0.0), ("nadir 1 km", 1e3, 0.0), ("60 deg, 5 km", 5e3, 60.0))
    for name, height_m, tilt_deg in views:
        say(name)
        pose = _pose_over_site(world, height_m, tilt_deg)
        gsd_m = world.camera.ground_sample_distance_m(height_m)
        level = world.truth.level_for(gsd_m)
        ray_C = world.camera.unproject(world.camera.pixel_centres(device).view(-1, 2))
        ray_L = (ray_C / ray_C.norm(dim=-1, keepdim=True)) @ pose.R_L_C[0].T
        origin_L = pose.position_L.expand_as(ray_L).contiguous()
        hits = cast(world.truth, origin_L, ray_L, first_level=level)
        point_L = origin_L + hits.range_m[:, None] * ray_L

        def primary(o: torch.Tensor = origin_L, d: torch.Tensor = ray_L, k: int = level) -> None:
            cast(world.truth, o, d, first_level=k)

        def shadow(p: torch.Tensor = point_L, k: int = level) -> None:
            occluded(world.truth, p, sun_L, first_level=k)

        for what, call in (("primary", primary), ("shadow", shadow)):
            rows.append(_time_row(f"nested levels, {name}: {what}", call, device))
    return rows


def measure_fix(device: torch.device, say: Say) -> list[Row]:
    """Whether a fix misses by as much as its covariance says, over maps, heights and attitudes."""
    world = build_world(load_scenario("resilience"), device)
    poses = {f"{h:.0f} m": _pose_over_site(world, h, tilt_deg=5.0) for h in _FIX_HEIGHTS_M}
    return measure_calibration(world, poses, _FIX_MAPS, say)


def measure_pose(device: torch.device, say: Say) -> list[Row]:
    """The solver on 100 synthetic matches, 0.3 px noise, 80 % outliers, attitude to 0.01 deg."""
    runs, noise_px = 200, 0.3
    camera = Camera.from_field_of_view(1024, 1024, 45.0)
    generator = torch.Generator().manual_seed(0)
    say(f"{runs} problems")
    matches, truth, prior = _pose_problems(camera, runs, noise_px, generator)
    matches, prior = _matches_to(matches, device), prior.to(device)

    def solve() -> torch.Tensor:
        solution = solve_pose(
            matches,
            camera,
            prior,
            attitude_sigma_rad=math.radians(0.01),
            map_error=MapErrorModel(1e-3, 300.0),
            seed=0,
        )
        ok = solution.status_code == FIX_STATUSES.index(FixStatus.OK)
        error_m = (solution.pose.position_L - truth.to(device)).norm(dim=-1)
        return torch.where(ok, error_m, torch.inf)

    error_m = solve()
    solved = error_m < 24.3  # three pixels at 10 km
    share, median_m = 100 * float(solved.double().mean()), float(error_m.median())
    rows = [
        Row("solved", round(share, 1), "%", "= 100", share == 100, runs, str(device)),
        Row("position error, median", round(median_m, 2), "m", None, None, runs, str(device)),
    ]
    batch = _time_row("batch of 200", solve, device)
    return [*rows, batch]


def _pose_over_site(world: World, height_m: float, tilt_deg: float) -> Pose:
    """Camera that looks at the site from a distance along a ray tilted towards the north."""
    tilt = torch.tensor([math.radians(tilt_deg), 0.0, 0.0], dtype=torch.float64)
    R_L_C = so3_exp(tilt) @ R_B_C
    ground, _ = world.truth.height_L(torch.zeros(1, 2, dtype=torch.float64).to(world.device))
    site_L = torch.tensor([0.0, 0.0, float(ground[0])], dtype=torch.float64)
    position_L = site_L - height_m * R_L_C[:, 2]
    return Pose(R_L_C[None], position_L[None]).to(world.device)


def _pose_problems(
    camera: Camera, runs: int, noise_px: float, generator: torch.Generator
) -> tuple[Matches, torch.Tensor, Pose]:
    n, outliers, height_m = 100, 80, 10e3

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    size = torch.tensor([camera.width_px, camera.height_px], dtype=torch.float64)
    R_true = R_B_C.expand(runs, 3, 3)
    position_L = torch.tensor([0.0, 0.0, height_m], dtype=torch.float64) + 100 * normal(runs, 3)
    uv = uniform(runs, n, 2) * size
    ray_L = camera.unproject(uv) @ R_true.mT
    relief_m = 100 * normal(runs, n, 1)
    depth = (relief_m - position_L[:, None, 2:]) / ray_L[..., 2:]
    point_L = position_L[:, None] + depth * ray_L
    seen = uv + noise_px * normal(runs, n, 2)
    seen[:, :outliers] = uniform(runs, outliers, 2) * size
    covariance = noise_px**2 * torch.eye(2, dtype=torch.float64).expand(runs, n, 2, 2)
    valid = torch.ones(runs, n, dtype=torch.bool)
    matches = Matches(
        uv, seen, covariance, torch.ones(runs, n), point_L, valid, valid[:, 0] & False
    )
    attitude = so3_exp(math.radians(0.01) * normal(runs, 3)) @ R_true
    return matches, position_L, Pose(attitude, position_L + 200 * normal(runs, 3))


def _matches_to(matches: Matches, device: torch.device) -> Matches:
    return Matches(
        matches.uv_map_px.to(device),
        matches.uv_px.to(device),
        matches.covariance_px2.to(device),
        matches.score.to(device),
        matches.point_L.to(device),
        matches.valid.to(device),
        matches.learned.to(device),
    )


def _time_row(name: str, call: Callable[[], object], device: torch.device) -> Row:
    """Median wall clock of a call; the first one, which compiles or allocates, is not counted."""
    call()
    seconds = []
    for _ in range(_REPEATS):
        _wait(device)
        began = time.perf_counter()
        call()
        _wait(device)
        seconds.append(time.perf_counter() - began)
    value = round(1e3 * statistics.median(seconds), 1)
    return Row(f"{name}, median time", value, "ms", None, None, _REPEATS, str(device))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
