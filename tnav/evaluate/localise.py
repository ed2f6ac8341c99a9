"""One image to one fix: render the map at the prediction, match, solve, and again until it settles.

The chain sees an image, a map, the Sun, a star tracker's attitude and a predicted position: never
the truth.
"""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float32, Float64
from torch import Tensor

from tnav.estimate.altitude import estimate_altitude
from tnav.estimate.pnp import fixes_on_host, solve_pose
from tnav.geometry.camera import Camera
from tnav.geometry.moon import altitude_m, up_L
from tnav.geometry.pose import Pose, so3_log
from tnav.match.channels import Channel
from tnav.match.matcher import match
from tnav.match.weights import LearnedModel, warn_once
from tnav.records import (
    AltitudeEstimate,
    FixStatus,
    Frame,
    MapErrorModel,
    Matches,
    PoseFix,
    PoseSolution,
)
from tnav.render.renderer import render
from tnav.terrain.heightfield import Terrain
from tnav.terrain.raycast import cast

_MAX_RENDERS = 4
# A view that moves by less than a match's own error, or a solution that moves by less than half
# its own sigma, cannot tell more. Low over the ground the second comes first: height and the map's
# local error trade places there, and the solution wanders within its sigma while the view scales.
_SETTLED_PX, _SETTLED_SIGMAS = 0.2, 0.5
_UNSETTLED_PX, _UNSETTLED_SIGMAS = 2.0, 1.5  # a solution that still moves by both is none
_REFINE_RADIUS_PX = 6.0  # of a view rendered at a solved pose
_SEARCH_SIGMAS = 4.0
_SEARCH_MIN_PX = 8.0
_LEAST_HEIGHT_M = 1.0


@dataclass(frozen=True, slots=True)
class Navigation:
    """What navigation carries beside the image: map, its stated error, the Sun, the camera."""

    terrain_map: Terrain
    map_error: MapErrorModel
    map_coarser: float  # map posting over image ground sample distance, at least
    camera: Camera
    sun_L: Float64[Tensor, "3"]
    boresight_C: Float64[Tensor, "3"]  # of the altimeter
    solver_seed: int
    model: LearnedModel | None = None  # of the matcher; features made by hand alone without it


@dataclass(frozen=True, slots=True)
class Prediction:
    """Where the camera should be: position from the filter, attitude from the star tracker."""

    t_s: float
    pose: Pose  # one frame
    position_covariance: Float64[Tensor, "3 3"]
    attitude_sigma_rad: float


@dataclass(frozen=True, slots=True)
class Localisation:
    """A fix with all that led to it. ``altitude`` is None where the fix failed."""

    fix: PoseFix
    altitude: AltitudeEstimate | None
    solution: PoseSolution
    matches: Matches
    map_view: Frame
    renders: int
    out_of_contract: tuple[str, ...]  # what of the image the network was not trained for
    ground_sample_distance_m: float  # at the prediction


def localise(
    image: Float32[Tensor, "1 1 h w"], prediction: Prediction, nav: Navigation
) -> Localisation:
    """Find the camera of one image.

    Args:
        image: what the camera saw, linear, on the map's device.
        prediction: where it should be.
        nav: the map and the rest.
    """
    pose = prediction.pose
    agl_m = _agl_over_map(nav.terrain_map, pose)
    gsd_m = nav.camera.ground_sample_distance_m(agl_m)
    radius_px = _search_radius_px(prediction, nav.camera, agl_m)
    network = nav.model.network if nav.model is not None else None
    channel: Channel | None = None
    unusual = _out_of_contract(prediction, nav, agl_m, gsd_m)
    for renders in range(1, _MAX_RENDERS + 1):
        level = nav.terrain_map.level_for(
            nav.camera.ground_sample_distance_m(_agl_over_map(nav.terrain_map, pose)),
            posts_per_pixel=1 / nav.map_coarser,
        )
        view = render(nav.terrain_map, nav.camera, pose, nav.sun_L, first_level=level)
        matches = match(
            view, image, search_radius_px=radius_px, network=network, fine_channel=channel
        )
        # The first view is off by the prior's error: features are chosen on the second one.
        if renders > 1:
            channel = Channel.LEARNED if bool(matches.learned[0]) else Channel.SIGNED_GRADIENT
        solution = solve_pose(
            matches,
            nav.camera,
            Pose(prediction.pose.R_L_C, pose.position_L),
            attitude_sigma_rad=prediction.attitude_sigma_rad,
            map_error=nav.map_error,
            seed=nav.solver_seed,
        )
        fix = fixes_on_host(solution, matches, [prediction.t_s])[0]
        if fix.status is not FixStatus.OK:
            return Localisation(fix, None, solution, matches, view, renders, unusual, gsd_m)
        moved_px = _moved_px(pose, solution.pose, nav.camera, agl_m)
        moved_sigmas = _moved_sigmas(pose, solution)
        pose, radius_px = solution.pose, _REFINE_RADIUS_PX
        if moved_px < _SETTLED_PX or moved_sigmas < _SETTLED_SIGMAS:
            break
    if moved_px > _UNSETTLED_PX and moved_sigmas > _UNSETTLED_SIGMAS:
        fix = _refused(fix, FixStatus.NOT_SETTLED)
        return Localisation(fix, None, solution, matches, view, renders, unusual, gsd_m)
    altitude = estimate_altitude(
        solution,
        nav.terrain_map,
        boresight_C=nav.boresight_C,
        map_error=nav.map_error,
        first_level=level,
    )
    return Localisation(fix, altitude, solution, matches, view, renders, unusual, gsd_m)


def _out_of_contract(
    prediction: Prediction, nav: Navigation, agl_m: float, gsd_m: float
) -> tuple[str, ...]:
    """Warns once a process, and says for every image, what the network was not trained for."""
    if nav.model is None:
        return ()
    position_L = prediction.pose.position_L
    axis_L, up = prediction.pose.R_L_C[0, :, 2], up_L(position_L)[0]
    level = nav.terrain_map.level_for(gsd_m, posts_per_pixel=1 / nav.map_coarser)
    return warn_once(
        nav.model.contract,
        ground_sample_distance_m=gsd_m,
        sun_elevation_deg=math.degrees(math.asin(float((nav.sun_L * up).sum()))),
        agl_m=agl_m,
        tilt_deg=math.degrees(math.acos(min(1.0, max(-1.0, float(-(axis_L * up).sum()))))),
        map_coarser=nav.terrain_map.levels[level].post_m / gsd_m,
        image_side_px=min(nav.camera.width_px, nav.camera.height_px),
    )


def _agl_over_map(terrain_map: Terrain, pose: Pose) -> float:
    """Height for choosing a scale; the map's sphere stands in where a prediction misses the map.

    A prediction under the ground gets the least height: its view shows nothing that matches.
    """
    hits = cast(terrain_map, pose.position_L, -up_L(pose.position_L))
    height_m = hits.range_m[0] if bool(hits.hit[0]) else altitude_m(pose.position_L)[0].abs()
    return max(float(height_m), _LEAST_HEIGHT_M)


def _search_radius_px(prediction: Prediction, camera: Camera, agl_m: float) -> float:
    """Reach of the position's error in the image: across, and along the view by scale."""
    variance = torch.linalg.eigvalsh(prediction.position_covariance.cpu())[-1]
    sigma_m = float(variance.clamp_min(0.0).sqrt())
    sigma_px = math.hypot(
        camera.focal_px * sigma_m / agl_m, camera.focal_px * prediction.attitude_sigma_rad
    )
    limit_px = 0.45 * min(camera.width_px, camera.height_px)
    return min(max(_SEARCH_SIGMAS * sigma_px, _SEARCH_MIN_PX), limit_px)


def _moved_px(before: Pose, after: Pose, camera: Camera, agl_m: float) -> float:
    """How far the view moves between two poses: translation and rotation, in pixels."""
    shift = (after.position_L - before.position_L).norm(dim=-1) / agl_m
    turn = so3_log(after.R_L_C @ before.R_L_C.mT).norm(dim=-1)
    return float(camera.focal_px * (shift + turn)[0])


def _moved_sigmas(before: Pose, solution: PoseSolution) -> float:
    """The same step as a Mahalanobis distance under the solution's covariance."""
    turn = so3_log(solution.pose.R_L_C @ before.R_L_C.mT)
    step = torch.cat([solution.pose.position_L - before.position_L, turn], -1)[0].cpu()
    return float((step @ torch.linalg.solve(solution.covariance[0].cpu(), step)).sqrt())


def _refused(fix: PoseFix, status: FixStatus) -> PoseFix:
    return replace(
        fix, status=status, position_L=None, R_L_C=None, covariance=None, map_covariance=None
    )
