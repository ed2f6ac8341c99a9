"""Fixes of rendered images, one at a time, for the error model of fixes: plan, trials, file.

A trial exposes the truth from one pose, localises the image on a map of its own with the error of
a filter's prediction, and keeps what was stated and by how much it was wrong. Two trials share each
exposed view, on different maps: one on the scenario's map posting, one on a coarser map.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float32
from torch import Tensor

from tnav.errors import RunFileError
from tnav.evaluate.calibration import drawn_prediction, fix_error
from tnav.evaluate.fix_trials import (
    FILE,
    FixTrial,
    Half,
    Matrix6,
    append_trial,
    read_trials,
)
from tnav.evaluate.localise import Localisation, Navigation, localise
from tnav.evaluate.run import fix_for_filter
from tnav.evaluate.scenario import Scenario
from tnav.evaluate.world import R_B_C, World, agl_over, navigation_of, true_view
from tnav.geometry.pose import Pose, so3_exp
from tnav.geometry.sun import SunPosition, direction_L
from tnav.records import FixStatus
from tnav.render.detector import expose
from tnav.terrain.cache import content_hash
from tnav.terrain.heightfield import Terrain
from tnav.terrain.site import degrade

# From where the widest nested level still fills the view to where the finest map posts, 12 pixels
# wide, leave next to nothing to match.
KNOTS_M = (14000.0, 8000.0, 5500.0, 3000.0, 1700.0, 900.0, 450.0, 220.0, 100.0)
SUN_ELEVATIONS_DEG = (12.0, 4.0, 25.0)
COARSER = (2.0, 4.0, 8.0)  # the first in every view, one of the others beside it
ROUNDS = 2  # over all knots, Suns and halves
_TILT_MAX_DEG = 20.0
_SUN_AZIMUTHS_DEG = (90.0, 270.0)  # of a northern site
_OFFSET = 0.05  # of the height, horizontally, 1 sigma: levels are nested around the site
_SEED_STEP = 17
_SEEN = ("site", "map", "camera", "detector", "imaging")  # of a scenario, by a fix
_SEEDS = ("terrain", "albedo", "map", "camera", "star_tracker", "initial", "solver")

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class View:
    """One pose under one Sun, and the trials that look at it."""

    number: int
    half: Half
    knot_m: float
    sun_elevation_deg: float
    coarser: tuple[float, ...]


def plan(rounds: int = ROUNDS) -> list[View]:
    """Views in the order of work: any beginning of it is spread over heights, Suns and halves."""
    return list(_planned(rounds))


def _planned(rounds: int) -> Iterator[View]:
    number = 0
    for turn in range(rounds):
        for step in range(len(SUN_ELEVATIONS_DEG)):
            for at, knot_m in enumerate(KNOTS_M):
                for side, half in enumerate[Half](("fit", "held out")):
                    sun_deg = SUN_ELEVATIONS_DEG[(step + at) % len(SUN_ELEVATIONS_DEG)]
                    other = COARSER[1 + (turn + step + at + side) % 2]
                    yield View(number, half, knot_m, sun_deg, (COARSER[0], other))
                    number += 1


def setup_of(scenario: Scenario, model_sha256: str | None) -> str:
    """Hash of what trials depend on beside their number."""
    recipe = scenario.model_dump(mode="json", include=set(_SEEN))
    seeds = scenario.seeds.model_dump(include=set(_SEEDS))
    limits = [_TILT_MAX_DEG, *_SUN_AZIMUTHS_DEG, _OFFSET, _SEED_STEP]
    content = {
        "scenario": recipe,
        "seeds": seeds,
        "star_tracker_deg": scenario.star_tracker.sigma_deg,
        "model": model_sha256,
        "kept": sorted(FixTrial.model_fields),
        "plan": [*KNOTS_M, *SUN_ELEVATIONS_DEG, *COARSER, *limits],
    }
    return content_hash(content)


def run_trials(world: World, views: list[View], out: Path, say: Say) -> list[FixTrial]:
    """Run the trials of the views that are not in the folder yet.

    Args:
        world: ground and camera; its own map, flight and Sun are not used.
        views: the plan.
        out: folder of the trials' file, made where it is not there.
        say: told of progress.

    Returns:
        All trials of the views, in the order of their numbers.

    Raises:
        RunFileError: the folder's file is damaged, or holds trials of another set-up.
    """
    path, nav = out / FILE, navigation_of(world.scenario, world.terrain_map)
    setup = setup_of(world.scenario, nav.model.contract.sha256 if nav.model else None)
    done = {trial.number: trial for trial in read_trials(path)}
    for trial in done.values():
        if trial.setup != setup:
            raise RunFileError(
                f"{path}: trials of set-up {trial.setup[:8]}, expected {setup[:8]}; take another "
                "folder, or delete the file"
            )
    ground = world.truth.to("cpu")
    for view in views:
        missing = [k for k in range(len(view.coarser)) if _trial_number(view, k) not in done]
        if not missing:
            continue
        say(
            f"view {view.number + 1} of {len(views)}: {view.knot_m:.0f} m, "
            f"Sun {view.sun_elevation_deg:.0f} deg"
        )
        under, pose = _under_sun(world, view), pose_of(world, view)
        radiance = true_view(under, pose).image
        for k in missing:
            seed = world.scenario.seeds.map + _SEED_STEP * (_trial_number(view, k) + 1)
            terrain_map = degrade(ground, world.scenario.map, seed).to(world.device)
            on_map = replace(
                nav,
                terrain_map=terrain_map,
                map_coarser=view.coarser[k],
                sun_L=under.sun.sun_L.to(world.device),
            )
            trial = _trial(under, view, k, pose, radiance, on_map, seed, setup)
            append_trial(path, trial)
            done[trial.number] = trial
    wanted = [_trial_number(v, k) for v in views for k in range(len(v.coarser))]
    return [done[number] for number in wanted]


def pose_of(world: World, view: View) -> Pose:
    """A drawn camera at the view's height: any heading, any roll, tilted up to 20 deg."""
    seed = world.scenario.seeds.initial + _SEED_STEP * (view.number + 1)
    generator = torch.Generator().manual_seed(seed)
    u = torch.rand(3, generator=generator, dtype=torch.float64)
    offset = torch.randn(2, generator=generator, dtype=torch.float64) * _OFFSET * view.knot_m
    tilt_rad = math.radians(_TILT_MAX_DEG) * float(u[0])
    heading_rad, roll_rad = 2 * math.pi * float(u[1]), 2 * math.pi * float(u[2])
    turns = torch.tensor(
        [[0.0, 0.0, heading_rad], [tilt_rad, 0.0, 0.0], [0.0, 0.0, roll_rad]], dtype=torch.float64
    )
    heading, tilt, roll = so3_exp(turns)
    R_L_C = heading @ tilt @ R_B_C @ roll
    ground, _ = world.truth.height_L(offset[None].to(world.device))
    target_L = torch.cat([offset, ground.cpu()])
    position_L = target_L - view.knot_m / math.cos(tilt_rad) * R_L_C[:, 2]
    return Pose(R_L_C[None], position_L[None]).to(world.device)


def _trial_number(view: View, k: int) -> int:
    return len(view.coarser) * view.number + k


def _under_sun(world: World, view: View) -> World:
    seed = world.scenario.seeds.camera + _SEED_STEP * (view.number + 1)
    u = torch.rand((), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    low, high = _SUN_AZIMUTHS_DEG
    azimuth_deg = low + (high - low) * float(u)
    sun_L = direction_L(azimuth_deg, view.sun_elevation_deg)
    return replace(world, sun=SunPosition(azimuth_deg, view.sun_elevation_deg, sun_L))


def _trial(
    world: World,
    view: View,
    k: int,
    pose: Pose,
    radiance: Float32[Tensor, "1 1 h w"],
    nav: Navigation,
    map_seed: int,
    setup: str,
) -> FixTrial:
    number, seeds = _trial_number(view, k), world.scenario.seeds
    image = expose(
        radiance, world.scenario.detector, seeds.camera * 4096 + number, camera=world.camera
    )
    generator = torch.Generator().manual_seed(seeds.star_tracker + _SEED_STEP * (number + 1))
    found = localise(image, drawn_prediction(world, pose, generator), nav)
    fix, agl_m = found.fix, agl_over(world.truth, pose.position_L)
    gsd_m = world.camera.ground_sample_distance_m(agl_m)
    level = nav.terrain_map.level_for(gsd_m, posts_per_pixel=1 / nav.map_coarser)
    solved = fix.status is FixStatus.OK
    axis_z = float(pose.R_L_C[0, 2, 2])
    ground = _of_ground(found, agl_m, nav.terrain_map)
    return FixTrial(
        setup=setup,
        number=number,
        half=view.half,
        knot_m=view.knot_m,
        agl_m=agl_m,
        tilt_deg=math.degrees(math.acos(min(1.0, -axis_z))),
        sun_elevation_deg=view.sun_elevation_deg,
        coarser=nav.map_coarser,
        gsd_ratio=nav.terrain_map.levels[level].post_m / gsd_m,
        map_seed=map_seed,
        map_shift_m=_shift_m(world.truth, nav.terrain_map),
        map_shift_sigma_m=nav.map_error.horizontal_sigma_m,
        status=fix.status,
        n_matches=fix.n_matches,
        n_inliers=fix.n_inliers,
        error=tuple(fix_error(pose, found).tolist()) if solved else None,
        covariance=_rows(fix.covariance),
        map_covariance=_rows(fix.map_covariance),
        agl_error_m=ground[0],
        agl_sigma_m=ground[1],
        map_news_m=ground[2],
    )


def _of_ground(
    found: Localisation, agl_m: float, terrain_map: Terrain
) -> tuple[float | None, float | None, float | None]:
    """Error and sigma of the height over ground, m, and its distance from that over the map."""
    if found.fix.status is not FixStatus.OK or found.altitude is None:
        return None, None, None
    _, news_m, variance_m2 = fix_for_filter(found, terrain_map.to("cpu"))
    if not bool((news_m.isfinite() & variance_m2.isfinite()).all()):
        return None, None, None  # the map does not reach below the camera
    found_m = float(found.altitude.agl_m[0])
    return found_m - agl_m, float(variance_m2[0].sqrt()), float(news_m[0])


def _shift_m(truth: Terrain, terrain_map: Terrain) -> tuple[float, float]:
    """East and north, of a map against the ground that it was made of."""
    ground, level = truth.levels[0], terrain_map.levels[0]
    return level.west_m - ground.west_m, level.south_m - ground.south_m


def _rows(matrix: Tensor | None) -> Matrix6 | None:
    if matrix is None:
        return None
    a, b, c, d, e, f = ((r[0], r[1], r[2], r[3], r[4], r[5]) for r in matrix.tolist())
    return a, b, c, d, e, f
