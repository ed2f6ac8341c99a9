"""What a laser altimeter should read from a state and a map, and how that depends on the state.

The beam from ``p`` along the unit vector ``d`` meets the tangent plane of the ground, with normal
``n``, at the range r. Moving the state moves the hit within that plane::

    dr/dp = -n / (n . d)        dr/dtheta = -r (d x n) / (n . d)        (d turns with Exp(dtheta))
"""

from functools import lru_cache

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from tnav.geometry.moon import up_L
from tnav.navigate.map_error import View
from tnav.navigate.mechanisation import (
    ATTITUDE,
    MAP_BEAM,
    MAP_LOCAL,
    POSITION,
    RANGE_BIAS,
    STATES,
    VELOCITY,
)
from tnav.navigate.state import FilterConfig, FilterState
from tnav.records import AltimeterSpec, RangePrediction
from tnav.terrain.heightfield import Terrain
from tnav.terrain.raycast import cast

# A beam that grazes the plane by less than 0.06 deg has no finite derivative worth using.
_MIN_COSINE = 1e-3
# Nor is it worth knowing where a beam within 3 deg of the horizon meets the ground.
_MIN_DOWN = 0.05


def beam_offset_m(
    direction_L: Float64[Tensor, "b 3"], agl_m: Float64[Tensor, " b"]
) -> Float64[Tensor, "b 2"]:
    """East and north from nadir to where a beam meets level ground.

    Args:
        direction_L: unit vectors of the beam.
        agl_m: height over that ground.
    """
    down = (-direction_L[:, 2]).clamp_min(_MIN_DOWN)
    return direction_L[:, :2] * (agl_m / down)[:, None]


def range_jacobian(
    direction_L: Float64[Tensor, "b 3"],
    normal_L: Float64[Tensor, "b 3"],
    range_m: Float64[Tensor, " b"],
    hit: Bool[Tensor, " b"],
) -> tuple[Float64[Tensor, "b 1 32"], Float64[Tensor, " b"]]:
    """Derivative of the range by the error state, and the angle of incidence.

    Args:
        direction_L: unit vectors of the beam.
        normal_L: upward unit normals of the ground where the beam meets it.
        range_m: along the beam; may be anything where ``hit`` is false.

    Returns:
        H, zero where nothing is hit, and the angle between beam and normal, rad.
    """
    cosine = -(normal_L * direction_L).sum(-1, keepdim=True)
    slope = normal_L / cosine.clamp_min(_MIN_COSINE)
    by_attitude = range_m[:, None] * torch.linalg.cross(direction_L, slope)
    H = torch.zeros(len(range_m), 1, STATES, dtype=range_m.dtype, device=range_m.device)
    H[:, 0, POSITION] = slope
    H[:, 0, ATTITUDE] = by_attitude
    H[:, 0, MAP_BEAM] = slope[:, 2]  # lower ground is farther away, as a higher lander is
    H[:, 0, RANGE_BIAS] = 1.0
    H = torch.where(hit[:, None, None], H, torch.zeros_like(H))
    return H, torch.acos(cosine.squeeze(-1).clamp(-1.0, 1.0))


def predict_range(
    state: FilterState,
    terrain_map: Terrain,
    spec: AltimeterSpec,
    config: FilterConfig,
    age_s: float = 0.0,
) -> tuple[RangePrediction, Float64[Tensor, "b 1 32"]]:
    """Range that the altimeter should read, from the map along the boresight.

    Args:
        age_s: of the reading at the state's epoch; the lander is taken back along its velocity.

    Returns:
        The prediction (NaN where the beam misses the map) and its Jacobian H.
    """
    direction_L = state.R_L_B @ _boresight(spec, state.position_L.device)
    hits = cast(terrain_map, beam_from_L(state) - age_s * state.velocity_L, direction_L)
    return range_prediction(
        state, direction_L, hits.range_m, hits.normal_L, hits.hit, config, age_s
    )


def over_map_L(state: FilterState) -> Float64[Tensor, "b 3"]:
    """Where the lander is over its map: as high over that as over the ground."""
    east, north, up = state.position_L.unbind(-1)
    return torch.stack([east, north, up + state.map_local_m], -1)


def beam_from_L(state: FilterState) -> Float64[Tensor, "b 3"]:
    """Where the lander's beam starts over its map: as high over where it ends as over ground."""
    east, north, up = state.position_L.unbind(-1)
    return torch.stack([east, north, up + state.map_beam_m], -1)


def view_of(
    state: FilterState,
    agl_m: Float64[Tensor, " b"],
    footprint_m: Float64[Tensor, " b"],
    spec: AltimeterSpec,
) -> View:
    """What a lander of this attitude has before it.

    Args:
        agl_m: height over the ground.
        footprint_m: side of the ground that the camera sees.
    """
    direction_L = state.R_L_B @ _boresight(spec, state.position_L.device)
    return View(footprint_m, beam_offset_m(direction_L, agl_m))


def relief_around_m2(
    state: FilterState, terrain_map: Terrain, spec: AltimeterSpec
) -> Float64[Tensor, " b"]:
    """Variance of the range over where the lander may be, beyond what the tangent plane says, m^2.

    A rim one sigma away changes the range by more than any slope under the beam: four more beams,
    one sigma to either side (the sigma points of the position's horizontal marginals; Julier and
    Uhlmann 2004, eq. 12). Zero where a beam misses the map.
    """
    direction_L = state.R_L_B @ _boresight(spec, state.position_L.device)
    sigma_m = state.covariance.diagonal(dim1=-2, dim2=-1)[:, :2].clamp_min(0.0).sqrt()
    axes = torch.eye(2, 3, dtype=sigma_m.dtype, device=sigma_m.device)
    step_L = sigma_m[:, :, None] * axes  # b 2 3
    here_L = beam_from_L(state)[:, None]
    five_L = torch.cat([here_L, here_L + step_L, here_L - step_L], 1)
    beams_L = direction_L[:, None].expand_as(five_L)
    hits = cast(terrain_map, five_L.reshape(-1, 3), beams_L.reshape(-1, 3).contiguous())
    range_m, hit = hits.range_m.view(-1, 5), hits.hit.view(-1, 5)
    H, _ = range_jacobian(direction_L, hits.normal_L.view(-1, 5, 3)[:, 0], range_m[:, 0], hit[:, 0])
    slope_m = (H[:, 0, None, POSITION] * step_L).sum(-1)
    plane_m = range_m[:, :1] + torch.cat([slope_m, -slope_m], 1)
    there = hit[:, :1] & hit[:, 1:]
    return torch.where(there, range_m[:, 1:] - plane_m, 0.0).square().mean(-1)


def range_prediction(
    state: FilterState,
    direction_L: Float64[Tensor, "b 3"],
    map_range_m: Float64[Tensor, " b"],
    normal_L: Float64[Tensor, "b 3"],
    hit: Bool[Tensor, " b"],
    config: FilterConfig,
    age_s: float = 0.0,
) -> tuple[RangePrediction, Float64[Tensor, "b 1 32"]]:
    """The prediction from where a beam along ``direction_L`` meets the map, and its Jacobian.

    Args:
        map_range_m: from `beam_from_L`, ``age_s`` ago.
    """
    H, incidence_rad = range_jacobian(direction_L, normal_L, map_range_m, hit)
    H[:, 0, VELOCITY] = -age_s * H[:, 0, POSITION]
    variance = (H @ state.covariance @ H.mT).flatten() + config.relief_sigma_m**2
    undefined = torch.full_like(map_range_m, torch.nan)
    prediction = RangePrediction(
        t_s=state.t_s,
        range_m=torch.where(hit, map_range_m + state.range_bias_m, undefined),
        sigma_m=torch.where(hit, variance.sqrt(), undefined),
        incidence_rad=torch.where(hit, incidence_rad, undefined),
        defined=hit,
    )
    return prediction, H


def agl_sigma_m(state: FilterState) -> Float64[Tensor, " b"]:
    """1-sigma of the height over the ground that `over_map_L` has over the map."""
    H = torch.zeros_like(state.covariance[:, :1])
    H[:, 0, POSITION] = up_L(state.position_L)
    H[:, 0, MAP_LOCAL] = 1.0
    return (H @ state.covariance @ H.mT).flatten().clamp_min(0.0).sqrt()


@lru_cache(maxsize=8)
def _boresight(spec: AltimeterSpec, device: torch.device) -> Float64[Tensor, "3"]:
    return torch.tensor(spec.boresight_B, dtype=torch.float64).to(device)
