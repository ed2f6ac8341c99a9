"""How lunar ground reflects sunlight: radiance factor I/F from the three photometric angles.

``I/F = pi r`` with ``r`` the bidirectional reflectance, so that a Lambert surface of albedo 1 under
the overhead Sun has I/F = 1. Five models, told apart by ``kind`` in a recipe. Lambert,
Lommel-Seeliger, Lunar-Lambert and Minnaert are disk functions scaled to a normal albedo: they say
how brightness changes with slope, not how it falls with phase. Hapke's says both. A disk of Hapke
mare fades from 10 to 110 deg of phase as the Moon does, to 0.3 mag (tests); at 90 deg one of
Lommel-Seeliger is 1.4 mag too bright, of Lunar-Lambert 1.0.
"""

import math
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from tnav.config import Recipe

# Normal albedo (I/F at i = e = 0) of mare in visible light lies between 0.1 and 0.15.
_MARE_NORMAL_ALBEDO = 0.13

# L(alpha) of the Lunar-Lambert function, alpha in deg (McEwen 1996, LPSC XXVII, 841)
_LUNAR_LAMBERT = (1.0, -0.019, 2.42e-4, -1.46e-6)
_ALPHA_MAX_DEG = 140.0  # the cubic was fitted up to here; beyond it turns negative

# Minnaert's function grows without bound towards the limb: beyond 89.4 deg it is held.
_MINNAERT_LEAST_COSINE = 0.01

_Albedo = Annotated[float, Field(gt=0, le=1)]


class Lambert(Recipe):
    """``A mu0``: equally bright from everywhere."""

    kind: Literal["lambert"] = "lambert"
    albedo: _Albedo = _MARE_NORMAL_ALBEDO  # of all light that falls on it


class LommelSeeliger(Recipe):
    """``2 A mu0 / (mu0 + mu)``: single scattering in dark ground (Seeliger 1887).

    Grazing light would leave with more energy than it brought where A exceeds 1/4.
    """

    kind: Literal["lommel_seeliger"] = "lommel_seeliger"
    albedo: _Albedo = _MARE_NORMAL_ALBEDO  # I/F at i = e = 0


class LunarLambert(Recipe):
    """``A (2 L mu0 / (mu0 + mu) + (1 - L) mu0)``, L falling with phase (McEwen 1991, eq. 1)."""

    kind: Literal["lunar_lambert"] = "lunar_lambert"
    albedo: _Albedo = _MARE_NORMAL_ALBEDO  # I/F at i = e = 0


class Minnaert(Recipe):
    """``A mu0^k mu^(k - 1)`` (Minnaert 1941, Astrophys. J. 93, 403); k = 1 is Lambert's law."""

    kind: Literal["minnaert"] = "minnaert"
    albedo: _Albedo = _MARE_NORMAL_ALBEDO  # I/F at i = e = 0
    exponent: float = Field(default=0.5, gt=0, le=1)  # k; 0.5 has no limb darkening at full Moon


class Hapke(Recipe):
    """Hapke's model of porous, rough, particulate ground (Sato et al. 2014, appendix A).

    ::

        I/F = K w/4 mu0e/(mu0e + mue) [p (1 + B_S0 B_S) + H(mu0e/K) H(mue/K) - 1]
              (1 + B_C0 B_C) S

    with the effective cosines mu0e, mue and the shadowing S of macroscopic roughness. Defaults are
    mare at 643 nm after Sato et al. (2014, "Resolved Hapke parameter maps of the Moon", J. Geophys.
    Res. Planets 119, 1775): b and h_S as printed for the maria (section 3.4), c from b by their
    eq. 2 (3.29 exp(-17.4 b^2) - 0.908), B_S0 from w p(0) B_S0 = 2.459 w + 0.078 (eq. 4, table 2),
    roughness, K and no coherent backscatter as they fixed them (table 1). They print no w for
    mare: 0.27 is the 16th percentile of their 643 nm map within 30 deg of the equator.
    """

    kind: Literal["hapke"] = "hapke"
    w: float = Field(default=0.27, ge=0, le=1)  # single-scattering albedo
    b: float = Field(default=0.26, ge=0, lt=1)  # sharpness of both lobes of p
    c: float = Field(default=0.107, ge=-1, le=1)  # the lobe towards the Sun has (1 + c) / 2 of p
    B_S0: float = Field(default=1.85, ge=0)  # height of the shadow-hiding opposition surge
    h_S: float = Field(default=0.050, gt=0)  # its width: tan(g / 2) at half height
    B_C0: float = Field(default=0.0, ge=0, le=1)  # coherent backscatter: height ...
    h_C: float = Field(default=0.01, gt=0)  # ... and width
    roughness_deg: float = Field(default=23.4, ge=0, le=60)  # mean slope theta-bar of the facets
    porosity_factor: float = Field(default=1.0, ge=1)  # K; 1: particles far apart
    h_function: Literal["hapke_2002", "hapke_1981"] = "hapke_2002"


ReflectanceModel = Annotated[
    Lambert | LommelSeeliger | LunarLambert | Minnaert | Hapke, Field(discriminator="kind")
]


def radiance_factor(
    model: ReflectanceModel,
    cos_incidence: Float[Tensor, "*b"],
    cos_emission: Float[Tensor, "*b"],
    phase_rad: Float[Tensor, "*b"],
) -> Float[Tensor, "*b"]:
    """Radiance factor I/F; 0 where the surface faces away from the Sun or from the observer.

    Args:
        model: which law, with its albedo.
        cos_incidence: mu0, between the normal and the Sun.
        cos_emission: mu, between the normal and the observer.
        phase_rad: angle g between Sun and observer at the surface, in [0, pi].
    """
    seen = (cos_incidence > 0) & (cos_emission > 0)
    # Where nothing is seen the formula still runs, and its gradient must not be NaN.
    mu0 = torch.where(seen, cos_incidence, 0.5).clamp_max(1.0)
    mu = torch.where(seen, cos_emission, 0.5).clamp_max(1.0)
    match model:
        case Lambert():
            value = model.albedo * mu0
        case LommelSeeliger():
            value = 2 * model.albedo * mu0 / (mu0 + mu)
        case LunarLambert():
            share = _lunar_lambert_share(phase_rad)
            value = model.albedo * mu0 * (2 * share / (mu0 + mu) + 1 - share)
        case Minnaert():
            held = mu0.clamp_min(_MINNAERT_LEAST_COSINE) * mu.clamp_min(_MINNAERT_LEAST_COSINE)
            value = model.albedo * mu0 * torch.exp((model.exponent - 1) * torch.log(held))
        case Hapke():
            value = _hapke(model, mu0, mu, phase_rad)
    return torch.where(seen, value, 0.0)


def _lunar_lambert_share(phase_rad: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """Share L of single scattering."""
    alpha_deg = torch.rad2deg(phase_rad).clamp_max(_ALPHA_MAX_DEG)
    c0, c1, c2, c3 = _LUNAR_LAMBERT
    return (c0 + alpha_deg * (c1 + alpha_deg * (c2 + alpha_deg * c3))).clamp(0.0, 1.0)


def _hapke(
    model: Hapke,
    mu0: Float[Tensor, "*b"],
    mu: Float[Tensor, "*b"],
    phase_rad: Float[Tensor, "*b"],
) -> Float[Tensor, "*b"]:
    mu0_e, mu_e, shadowing = _roughen(mu0, mu, phase_rad, math.radians(model.roughness_deg))
    K = model.porosity_factor
    tan_half = torch.tan(0.5 * phase_rad).clamp_min(0.0)  # negative only by rounding at pi
    surge = 1 + model.B_S0 / (1 + tan_half / model.h_S)  # Hapke 1986, Icarus 67, 264
    coherent = 1 + model.B_C0 * _coherent_backscatter(tan_half / model.h_C)
    multiple = _chandrasekhar_h(model, mu0_e / K) * _chandrasekhar_h(model, mu_e / K) - 1
    single = _henyey_greenstein(model.b, model.c, torch.cos(phase_rad)) * surge
    scale = 0.25 * K * model.w * mu0_e / (mu0_e + mu_e)
    return scale * (single + multiple) * coherent * shadowing


def _henyey_greenstein(b: float, c: float, cos_g: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """Phase function of a particle with two lobes, as Sato et al. (2014) use it; mean 1."""
    # x sqrt(x) and not x ** 1.5, which torch rounds by an element's place in its batch
    behind = 1 - 2 * b * cos_g + b * b
    ahead = 1 + 2 * b * cos_g + b * b
    backward = 1 / (behind * behind.sqrt())  # peaks at g = 0
    forward = 1 / (ahead * ahead.sqrt())
    return 0.5 * (1 - b * b) * ((1 + c) * backward + (1 - c) * forward)


def _coherent_backscatter(y: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """``(1 + (1 - exp(-y)) / y) / (2 (1 + y)^2)``, ``y = tan(g/2) / h_C`` (Hapke 2002)."""
    small = y < 1e-4
    safe = torch.where(small, 1.0, y)
    mean = torch.where(small, 1 - 0.5 * y, -torch.expm1(-safe) / safe)
    return (1 + mean) / (2 * (1 + y).square())


def _chandrasekhar_h(model: Hapke, x: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """Chandrasekhar's H(x) for isotropic scatterers, as approximated by Hapke (2002, 1981)."""
    gamma = math.sqrt(1 - model.w)
    if model.h_function == "hapke_1981":
        return (1 + 2 * x) / (1 + 2 * x * gamma)
    r0 = (1 - gamma) / (1 + gamma)
    logarithm = torch.log1p(1 / x)
    return 1 / (1 - model.w * x * (r0 + (0.5 - r0 * x) * logarithm))


def _roughen(
    mu0: Float[Tensor, "*b"],
    mu: Float[Tensor, "*b"],
    phase_rad: Float[Tensor, "*b"],
    slope_rad: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Effective cosines of incidence and emission, and shadowing S, of a rough surface.

    Hapke (1984, Icarus 59, 41) gives one set of formulas where i < e and its mirror image where
    e < i. Both are one for the smaller and the larger angle, so the pair is sorted and put back.
    """
    if slope_rad == 0.0:
        return mu0, mu, torch.ones_like(mu)
    tan_slope = math.tan(slope_rad)
    chi = 1 / math.sqrt(1 + math.pi * tan_slope**2)
    cos_s, cos_l = torch.maximum(mu0, mu), torch.minimum(mu0, mu)  # smaller and larger angle
    sin_s, sin_l = _sine(cos_s), _sine(cos_l)
    e1_s, e2_s = _tilt_terms(cos_s / sin_s / tan_slope)
    e1_l, e2_l = _tilt_terms(cos_l / sin_l / tan_slope)

    # Azimuth psi between the planes of incidence and emission.
    edge = 4 * torch.finfo(mu.dtype).eps  # acos and sqrt have no slope at +-1
    cos_psi = (torch.cos(phase_rad) - mu0 * mu) / (sin_s * sin_l)
    cos_psi = cos_psi.clamp(edge - 1, 1 - edge)
    half = 0.5 * (1 - cos_psi)  # sin^2(psi / 2)
    hidden = torch.exp(-2 * ((1 - cos_psi) / (1 + cos_psi)).sqrt())  # f(psi)

    share = tan_slope / (2 - e1_l - torch.acos(cos_psi) / math.pi * e1_s)
    effective_s = chi * (cos_s + sin_s * share * (cos_psi * e2_l + half * e2_s))
    effective_l = chi * (cos_l + sin_l * share * (e2_l - half * e2_s))
    level_s = chi * (cos_s + sin_s * tan_slope * e2_s / (2 - e1_s))  # eta
    level_l = chi * (cos_l + sin_l * tan_slope * e2_l / (2 - e1_l))

    sun_higher = mu0 >= mu
    mu0_e = torch.where(sun_higher, effective_s, effective_l)
    mu_e = torch.where(sun_higher, effective_l, effective_s)
    shadowing = mu_e * mu0 * chi / (level_s * level_l)
    return mu0_e, mu_e, shadowing / (1 - hidden + hidden * chi * cos_s / level_s)


def _sine(cosine: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """Sine of an angle, held above rounding: at the zenith it divides, and there it cancels."""
    return ((1 - cosine) * (1 + cosine)).clamp_min(torch.finfo(cosine.dtype).eps).sqrt()


def _tilt_terms(cot_product: Float[Tensor, "*b"]) -> tuple[Tensor, Tensor]:
    """E1 and E2 of ``cot(angle) cot(theta-bar)``: facets tilted out of sight."""
    e1 = torch.exp(-2 / math.pi * cot_product)
    return e1, torch.exp(-cot_product.square() / math.pi)
