"""Altitude in its three meanings from a solved pose and the map, each with its sigma.

The map lies ``n`` above the ground, so a ray from the camera (unit ``d``, surface normal ``N``)
meets the ground behind or before the map's surface::

    range = range_to_map + n N_z / |N . d|

to first order in n over the distance at which the slope changes. ``n`` is the posterior mean where
the ray meets the map (``tnav.estimate.map_error.error_at``). A map that is too high lifts the pose
and the surface alike: pose and ``n`` are strongly correlated, and the sigma of a range comes from
their joint covariance.
"""

from dataclasses import replace

import torch
from jaxtyping import Float64
from torch import Tensor

from tnav.estimate.map_error import error_at
from tnav.geometry.moon import RADIUS_M, altitude_m, up_L
from tnav.records import AltitudeEstimate, MapErrorModel, PoseSolution
from tnav.terrain.heightfield import Terrain
from tnav.terrain.raycast import Hits, cast

_BURIED_M = 1.0  # far over the ray caster's error of 1 cm, far under any depth that matters
_DEEPEST_SIGMA = 6.0  # of map error: a solved camera deeper than this below the map is not there


def estimate_altitude(
    solution: PoseSolution,
    terrain_map: Terrain,
    *,
    boresight_C: Float64[Tensor, "3"],
    map_error: MapErrorModel,
    first_level: int = 0,
) -> AltitudeEstimate:
    """Altitude, height above ground and range along a boresight for each frame.

    Args:
        solution: of ``solve_pose``, with the same ``map_error``.
        terrain_map: the map that its matches' points came from, on the solution's device.
        boresight_C: unit vector in the camera frame along which ``range_m`` counts.
        map_error: what the map's maker states of its vertical error.
        first_level: levels of the map finer than this one are not there.

    Returns:
        NaN in every field of a frame whose pose is not OK, in ``agl_m`` where the map does not
        reach below the camera and in ``range_m`` where the boresight misses the map
        (``range_valid``). A camera below the map's surface, by no more than its error explains,
        still has an ``agl_m``: it counts from the ground, not from the map.

    Raises:
        ConfigError: no such level.
        DeviceError: solution and map on different devices.
    """
    position_L = solution.pose.position_L
    up = up_L(position_L)
    altitude_variance = _quadratic(solution.covariance[:, :3, :3], up)

    down = -up
    lift_m = _DEEPEST_SIGMA * map_error.sigma_m
    lifted = cast(terrain_map, position_L + lift_m * up, down, first_level=first_level)
    below = replace(lifted, range_m=lifted.range_m - lift_m)
    below = _on_surface(below, terrain_map, position_L, down, first_level)
    # As the camera moves sideways its vertical turns: d(-up)/dp = -(I - up up^T) / radius.
    radius_m = (RADIUS_M + altitude_m(position_L))[:, None]
    level_normal = below.normal_L - (below.normal_L * up).sum(-1, keepdim=True) * up
    turning = below.range_m[:, None] * level_normal / radius_m
    by_pose = torch.cat([below.normal_L - turning, torch.zeros_like(up)], -1)
    agl_m, agl_sigma_m = _to_ground(solution, map_error, down, below, by_pose)

    direction = solution.pose.R_L_C @ boresight_C.to(position_L.device)
    ahead = cast(terrain_map, position_L, direction, first_level=first_level)
    ahead = _on_surface(ahead, terrain_map, position_L, direction, first_level)
    swing = ahead.range_m[:, None] * torch.linalg.cross(direction, ahead.normal_L)
    by_pose = torch.cat([ahead.normal_L, swing], -1)
    range_m, range_sigma_m = _to_ground(solution, map_error, direction, ahead, by_pose)

    return AltitudeEstimate(
        altitude_m=altitude_m(position_L),
        altitude_sigma_m=altitude_variance.sqrt(),
        agl_m=agl_m,
        agl_sigma_m=agl_sigma_m,
        range_m=range_m,
        range_sigma_m=range_sigma_m,
        range_valid=ahead.hit,
    )


def _on_surface(
    hits: Hits,
    terrain_map: Terrain,
    position_L: Float64[Tensor, "b 3"],
    direction_L: Float64[Tensor, "b 3"],
    first_level: int,
) -> Hits:
    """Hits without those below the surface: rays that start there, or enter by the map's edge."""
    point_L = position_L + hits.range_m[:, None] * direction_L
    height_m, _ = terrain_map.height_L(point_L[:, :2].nan_to_num(), first_level=first_level)
    # Not refused where the height is NaN: rounding may put a hit on the border just outside.
    buried = point_L[:, 2] < height_m - _BURIED_M
    return replace(
        hits,
        hit=hits.hit & ~buried,
        range_m=torch.where(buried, torch.nan, hits.range_m),
        normal_L=torch.where(buried[:, None], torch.nan, hits.normal_L),
    )


def _to_ground(
    solution: PoseSolution,
    map_error: MapErrorModel,
    direction_L: Float64[Tensor, "b 3"],
    hits: Hits,
    normal_by_pose: Float64[Tensor, "b 6"],
) -> tuple[Float64[Tensor, " b"], Float64[Tensor, " b"]]:
    """Range to the ground and its sigma.

    Args:
        normal_by_pose: derivative by ``(dp_L, dtheta_L)`` of the hit point's height along the
            normal at fixed range; the range itself then changes by ``-1 / (N . d)`` of it.
    """
    facing = (hits.normal_L * direction_L).sum(-1)  # negative: the ray comes from above
    by_pose = -normal_by_pose / facing[:, None]
    by_error = hits.normal_L[:, 2] / facing.abs()
    point_L = solution.pose.position_L + hits.range_m[:, None] * direction_L
    error = error_at(solution.map_error, map_error, solution.covariance, point_L)
    variance = (
        _quadratic(solution.covariance, by_pose)
        + 2 * by_error * (by_pose * error.covariance_with_pose).sum(-1)
        + by_error.square() * error.variance_m2
    )
    return hits.range_m + by_error * error.mean_m, variance.clamp_min(0.0).sqrt()


def _quadratic(
    matrix: Float64[Tensor, "b k k"], vector: Float64[Tensor, "b k"]
) -> Float64[Tensor, " b"]:
    return (vector[:, None] @ matrix @ vector[..., None]).squeeze(-1).squeeze(-1)
