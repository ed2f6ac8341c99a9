"""Seeded relief below the DEM's resolution: craters and fractal roughness of lunar mare.

SYNTHETIC: everything that this module adds is invented within published statistics, and every
output that shows it says so. Each octave of scales belongs to one level of posts, so that a finer
level only ever adds to what its coarser neighbour holds.

Sources: equilibrium density 5 % of geometric saturation (Trask 1966; Gault 1970), production
N(>1 km) and its slope of mare of 3.3 Ga (Neukum et al. 2001, rounded), depth, rim and ejecta of
simple craters (Pike 1977; McGetchin et al. 1973), degraded depths (Mahanti et al. 2018), RMS
deviation and Hurst exponent of mare (Rosenburg et al. 2011, rounded).
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float32
from torch import Tensor

_EQUILIBRIUM_M2 = 0.079  # N(>D) = this * D^-2 per m^2, D in m
_PRODUCTION_1KM_M2 = 4e-9  # craters over 1 km per m^2
_PRODUCTION_SLOPE = -3.4  # of the cumulative count below 1 km
_DEPTH_RATIO_MIN, _DEPTH_RATIO_SPAN = 0.03, 0.16  # depth/diameter, oldest; oldest to freshest
_DEPTH_RATIO_POWER = 2.2  # a crater spends most of its life shallow: median 0.065
_RIM_SHARE = 0.2  # rim height over rim-to-floor depth
_EJECTA_REACH_RADII = 3.0  # ejecta thickness ~ r^-3, tapered to zero here
_HURST = 0.76
_RMS_DEVIATION_17M = 0.35  # m over a 17 m baseline, beside what craters add
_DIAMETERS = 64  # knots of the tabulated size distribution of one octave
_STAMP_SAMPLES = 2_000_000  # posts of craters worked on at once: bounds memory to some 100 MB
_MAX_DIAMETER_SHARE = 0.25  # of the grid: a larger crater belongs to a coarser level

MIN_POSTS_PER_DIAMETER = 5.0  # coarser sampling would alias a crater


@dataclass(frozen=True, slots=True)
class CraterOctave:
    """Craters of one level, in posts of that level."""

    column: Float32[Tensor, " k"]  # centre
    row: Float32[Tensor, " k"]
    radius_posts: Float32[Tensor, " k"]
    depth_m: Float32[Tensor, " k"]  # rim to floor


def cumulative_density_m2(diameter_m: float) -> float:
    """Craters over a diameter per m^2: production, cut off by equilibrium."""
    production = _PRODUCTION_1KM_M2 * (diameter_m / 1e3) ** (
        _PRODUCTION_SLOPE if diameter_m < 1e3 else -2.0
    )
    return min(production, _EQUILIBRIUM_M2 / diameter_m**2)


def add_relief(
    z_L: Float32[Tensor, "rows columns"],
    post_m: float,
    *,
    wavelength_max_m: float,
    diameter_max_m: float,
    generator: torch.Generator,
) -> Float32[Tensor, "rows columns"]:
    """Heights with one level's share of craters and roughness added.

    Args:
        z_L: heights, m.
        post_m: spacing.
        wavelength_max_m: roughness from two posts up to this wavelength is added.
        diameter_max_m: craters from five posts up to this diameter are added.
        generator: the terrain's randomness for this level, on the CPU.
    """
    diameter_min_m = MIN_POSTS_PER_DIAMETER * post_m
    diameter_max_m = min(diameter_max_m, _MAX_DIAMETER_SHARE * min(z_L.shape) * post_m)
    rough = fractal_octaves(z_L.shape, post_m, wavelength_max_m, generator)
    if diameter_max_m <= diameter_min_m:
        return z_L + rough
    craters = draw_craters(z_L.shape, post_m, diameter_min_m, diameter_max_m, generator)
    return stamp_craters(z_L + rough, craters)


def draw_craters(
    shape: torch.Size,
    post_m: float,
    diameter_min_m: float,
    diameter_max_m: float,
    generator: torch.Generator,
) -> CraterOctave:
    """Poisson-distributed craters between two diameters, uniform over a grid."""
    rows, columns = shape
    edges = torch.logspace(
        math.log10(diameter_min_m), math.log10(diameter_max_m), _DIAMETERS, dtype=torch.float64
    )
    above = torch.tensor([cumulative_density_m2(float(d)) for d in edges], dtype=torch.float64)
    expected = float(above[0] - above[-1]) * rows * columns * post_m**2
    count = int(torch.poisson(torch.tensor(expected), generator=generator))
    draws = torch.rand(4, count, generator=generator, dtype=torch.float64)
    level = above[-1] + draws[0] * (above[0] - above[-1])
    # Invert the falling cumulative count by interpolation in its reversed table.
    index = torch.searchsorted(above.flip(0), level).clamp(1, _DIAMETERS - 1)
    low, high = above.flip(0)[index - 1], above.flip(0)[index]
    share = (level - low) / (high - low)
    diameter_m = torch.lerp(edges.flip(0)[index - 1], edges.flip(0)[index], share)
    ratio = _DEPTH_RATIO_MIN + _DEPTH_RATIO_SPAN * draws[1] ** _DEPTH_RATIO_POWER
    return CraterOctave(
        column=(draws[2] * (columns - 1)).float(),
        row=(draws[3] * (rows - 1)).float(),
        radius_posts=(diameter_m / 2 / post_m).float(),
        depth_m=(ratio * diameter_m).float(),
    )


def crater_profile(
    radius: Float32[Tensor, "*k"], depth_m: Float32[Tensor, "*k"]
) -> Float32[Tensor, "*k"]:
    """Height over the plain (m) of a simple crater at a distance in rim radii."""
    rim_m = _RIM_SHARE * depth_m
    bowl = rim_m - depth_m * (1 - radius.square())
    reach = _EJECTA_REACH_RADII
    taper = ((reach - radius) / (reach - 1)).clamp(0, 1)
    ejecta = rim_m * radius.clamp_min(1.0) ** -3 * taper
    return torch.where(radius < 1, bowl, ejecta)


def stamp_craters(
    z_L: Float32[Tensor, "rows columns"], craters: CraterOctave
) -> Float32[Tensor, "rows columns"]:
    """Heights with craters superposed, from the smallest octave of radii to the largest."""
    out = z_L.clone()
    octave = craters.radius_posts.clamp_min(1.0).log2().floor().long()
    for k in octave.unique().tolist():
        chosen = octave == k
        reach = math.ceil(2.0 ** (k + 1) * _EJECTA_REACH_RADII) + 1
        chunk = max(1, _STAMP_SAMPLES // (2 * reach + 1) ** 2)
        parts = (craters.column, craters.row, craters.radius_posts, craters.depth_m)
        for part in zip(*(p[chosen].split(chunk) for p in parts), strict=True):
            _stamp(out, CraterOctave(*part), reach)
    return out


def _stamp(out: Float32[Tensor, "rows columns"], craters: CraterOctave, reach: int) -> None:
    """Add craters to heights in place, each within a window of ``reach`` posts around it."""
    rows, columns = out.shape
    offset = torch.arange(-reach, reach + 1)
    column, row = craters.column[:, None], craters.row[:, None]
    cs, rs = column.round().long() + offset, row.round().long() + offset
    radius = ((cs - column)[:, None, :].square() + (rs - row)[:, :, None].square()).sqrt()
    radius = radius / craters.radius_posts[:, None, None]
    height = crater_profile(radius, craters.depth_m[:, None, None].expand_as(radius))
    inside = ((cs >= 0) & (cs < columns))[:, None, :] & ((rs >= 0) & (rs < rows))[:, :, None]
    index = rs.clamp(0, rows - 1)[:, :, None] * columns + cs.clamp(0, columns - 1)[:, None, :]
    out.view(-1).index_add_(0, index.flatten(), (height * inside).flatten())


def octave_variance_m2(wavelength_min_m: float, wavelength_max_m: float) -> float:
    """Variance of an isotropic fractal surface between two wavelengths.

    With power spectrum P(k) = a k^(-2H-2) the RMS deviation over a baseline L is
    nu^2 = 4 pi a L^2H 2^-2H Gamma(1-H) / (2H Gamma(1+H)) (integral of 1 - J0, Gradshteyn 6.561),
    which gives a from the published deviation at 17 m.
    """
    h = _HURST
    integral = 2 ** (-2 * h) * math.gamma(1 - h) / (2 * h * math.gamma(1 + h))
    a = _RMS_DEVIATION_17M**2 / (4 * math.pi * 17.0 ** (2 * h) * integral)
    k_low, k_high = 2 * math.pi / wavelength_max_m, 2 * math.pi / wavelength_min_m
    return 2 * math.pi * a * (k_low ** (-2 * h) - k_high ** (-2 * h)) / (2 * h)


def fractal_octaves(
    shape: torch.Size, post_m: float, wavelength_max_m: float, generator: torch.Generator
) -> Float32[Tensor, "rows columns"]:
    """Gaussian roughness (m) with wavelengths from two posts up to a longest one."""
    rows, columns = shape
    if wavelength_max_m <= 2 * post_m:  # posts this coarse cannot carry it
        return torch.zeros(shape)
    size = 1 << (max(rows, columns) - 1).bit_length()
    while size * 3 // 4 >= max(rows, columns):  # a 3-smooth length wastes less
        size = size * 3 // 4
    white = torch.randn(size, size, generator=generator, dtype=torch.float32)
    ky = torch.fft.fftfreq(size, post_m)[:, None]
    kx = torch.fft.rfftfreq(size, post_m)[None, :]
    cycles_m = (kx.square() + ky.square()).sqrt()
    # Waves longer than the grid are the DEM's affair, or a coarser level's.
    wavelength_max_m = min(wavelength_max_m, size * post_m)
    band = (cycles_m >= (1 - 1e-6) / wavelength_max_m) & (cycles_m <= 1 / (2 * post_m))
    gain = torch.where(band, cycles_m.clamp_min(1 / (size * post_m)) ** (-_HURST - 1), 0.0)
    # Columns of the half spectrum stand for two, but for the first and the last.
    weight = torch.full((1, kx.shape[1]), 2.0)
    weight[0, 0] = weight[0, -1] = 1.0
    variance = (gain.double().square() * weight).sum() / size**2
    target_m2 = octave_variance_m2(2 * post_m, wavelength_max_m)
    gain = gain * (target_m2 / variance).sqrt().float()
    return torch.fft.irfft2(torch.fft.rfft2(white) * gain, s=(size, size))[:rows, :columns]
