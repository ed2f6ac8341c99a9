"""How lunar ground reflects sunlight: radiance factor I/F from the three photometric angles."""

import torch
from jaxtyping import Float
from torch import Tensor

# L(alpha) of the lunar-Lambert function, alpha in deg (McEwen 1996, LPSC XXVII, 841)
_LUNAR_LAMBERT = (1.0, -0.019, 2.42e-4, -1.46e-6)
_ALPHA_MAX_DEG = 140.0  # the cubic was fitted up to here; beyond it turns negative


def lunar_lambert(
    cos_incidence: Float[Tensor, "*b"],
    cos_emission: Float[Tensor, "*b"],
    phase_rad: Float[Tensor, "*b"],
) -> Float[Tensor, "*b"]:
    """Radiance factor for unit albedo: ``2 L mu0/(mu0 + mu) + (1 - L) mu0`` (McEwen 1991, eq. 1).

    Args:
        cos_incidence: mu0, between the normal and the Sun; the dark side returns 0.
        cos_emission: mu, between the normal and the observer.
        phase_rad: angle between Sun and observer at the surface.
    """
    mu0, mu = cos_incidence.clamp_min(0.0), cos_emission.clamp_min(0.0)
    alpha_deg = torch.rad2deg(phase_rad).clamp_max(_ALPHA_MAX_DEG)
    c0, c1, c2, c3 = _LUNAR_LAMBERT
    share = (c0 + alpha_deg * (c1 + alpha_deg * (c2 + alpha_deg * c3))).clamp(0.0, 1.0)
    total = (mu0 + mu).clamp_min(torch.finfo(mu.dtype).tiny)
    return 2 * share * mu0 / total + (1 - share) * mu0
