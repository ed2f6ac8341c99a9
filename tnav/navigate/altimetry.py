"""What a laser altimeter should read from a state and a map, and how that depends on the state.

The beam from ``p`` along the unit vector ``d`` meets the tangent plane of the ground, with normal
``n``, at the range r. Moving the state moves the hit within that plane::

    dr/dp = -n / (n . d)        dr/dtheta = -r (d x n) / (n . d)        (d turns with Exp(dtheta))
"""

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from tnav.navigate.mechanisation import ATTITUDE, MAP_LOCAL, POSITION, RANGE_BIAS, STATES

# A beam that grazes the plane by less than 0.06 deg has no finite derivative worth using.
_MIN_COSINE = 1e-3


def range_jacobian(
    direction_L: Float64[Tensor, "b 3"],
    normal_L: Float64[Tensor, "b 3"],
    range_m: Float64[Tensor, " b"],
    hit: Bool[Tensor, " b"],
) -> tuple[Float64[Tensor, "b 1 29"], Float64[Tensor, " b"]]:
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
    H[:, 0, MAP_LOCAL] = slope[:, 2]  # lower ground is farther away, as a higher lander is
    H[:, 0, RANGE_BIAS] = 1.0
    H = torch.where(hit[:, None, None], H, torch.zeros_like(H))
    return H, torch.acos(cosine.squeeze(-1).clamp(-1.0, 1.0))
