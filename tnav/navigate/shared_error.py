"""Fixes over one place share the map's error; a filter that takes them as independent must know.

A vision fix averages the map's height error over its footprint. On a descent the footprints are
nested: the mean of a field over the smaller one correlates with that over the larger as the root of
their areas' ratio, that is as the ratio of heights (for a field of short correlation). From fix to
fix that is a first-order autoregressive error, and a mean over such errors is as good as one over
``(1 - rho) / (1 + rho)`` times as many independent ones (Box and Jenkins 1976, section 2.1). So the
map's share of a fix's covariance is multiplied by the inverse before it is fused.
"""

import math

import torch
from jaxtyping import Float64
from torch import Tensor

from tnav.records import MapErrorModel

_HALF_FOV_MAX_RAD = math.radians(75)  # a fisheye sees further, but learns no more out there
_INFLATION_MAX = 100.0  # a hovering camera sees one error for ever; there is no more to say


def shared_error_inflation(
    height_m: Float64[Tensor, " b"],
    descent_m_s: Float64[Tensor, " b"],
    interval_s: float,
    fov_rad: float,
    map_error: MapErrorModel,
) -> Float64[Tensor, " b"]:
    """Factor on the map's share of a fix's covariance, in [1, 100].

    Args:
        height_m: above ground.
        descent_m_s: speed along the vertical; its sign does not matter.
        interval_s: between fixes.
        fov_rad: of the camera, for its footprint.
        map_error: stated correlation length.
    """
    log_ratio = descent_m_s.abs() * interval_s / height_m.clamp_min(1.0)
    half_rad = min(fov_rad / 2, _HALF_FOV_MAX_RAD)
    footprint_m2 = (2 * math.tan(half_rad) * height_m).square()
    # A footprint within one correlation length sees one error, whatever its size.
    patches = footprint_m2 / (2 * math.pi * map_error.correlation_m**2)
    rho = torch.exp(-log_ratio * patches / (1 + patches))
    return ((1 + rho) / (1 - rho).clamp_min(1e-9)).clamp(1.0, _INFLATION_MAX)
