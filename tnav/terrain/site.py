"""Terrain around a landing site: the truth, and the degraded map that navigation carries.

The truth is a DEM resampled in float64 into the local frame (curvature baked in) at its coarsest
level, then refined by halves: each finer level is an interpolating subdivision (Deslauriers and
Dubuc 1989, six points) of the inner half of the coarser one plus its octave of synthetic relief.
"""

import math

import numpy as np
import torch
from jaxtyping import Float32, Float64
from pydantic import Field, model_validator
from torch import Tensor

from tnav.config import Recipe
from tnav.dem.tiles import open_tile, sample_height_m
from tnav.geometry.moon import RADIUS_M, LocalFrame
from tnav.records import MapErrorModel
from tnav.terrain.heightfield import Level, Terrain
from tnav.terrain.relief import MIN_POSTS_PER_DIAMETER, add_relief

_HALF_SPAN_MAX_M = 600e3  # beyond, the fixed point below no longer contracts
_SPHERE_ITERATIONS = 12  # the fixed point contracts by the slope of the Moon's limb: 0.15 at 260 km
_SUBDIVISION = (3 / 256, -25 / 256, 150 / 256, 150 / 256, -25 / 256, 3 / 256)
_MARGIN = 2  # posts beyond the inner half that six points need
_NOISE_WAVES = 512  # random Fourier features of the map's error field


class Site(Recipe):
    """Where, from which DEM, and how finely the ground is modelled."""

    latitude_deg: float = Field(ge=-90, le=90)
    longitude_deg: float = Field(ge=-180, le=360)
    dem: str = "lola_ldem16_frigoris"  # manifest entry or path of a raster
    finest_post_m: float = Field(default=0.5, gt=0)
    levels: int = Field(default=11, ge=1, le=16)  # posts double from level to level
    cells: int = Field(default=1024, ge=64, le=8192, multiple_of=8)  # along each side of a level

    @model_validator(mode="after")
    def _fits_the_moon(self) -> "Site":
        half_m = self.cells / 2 * self.finest_post_m * 2 ** (self.levels - 1)
        if half_m > _HALF_SPAN_MAX_M:
            raise ValueError(
                f"{2e-3 * half_m:.0f} km wide, expected at most {2e-3 * _HALF_SPAN_MAX_M:.0f} km: "
                "fewer levels, fewer cells or finer posts"
            )
        return self

    @property
    def frame(self) -> LocalFrame:
        """The local frame at the site."""
        return LocalFrame(self.latitude_deg, self.longitude_deg)


class MapQuality(Recipe):
    """How the navigation map differs from the ground."""

    coarser: int = Field(default=2, ge=1, le=64)  # map posting over image ground sample distance
    vertical_rms_m: float = Field(default=3.0, ge=0)
    vertical_correlation_m: float = Field(default=300.0, gt=0)
    shift_m: float = Field(default=1.0, ge=0)  # horizontal, in a seeded direction

    def error_model(self) -> MapErrorModel:
        """What the map's maker would state of it; a shift of unknown heading has two axes."""
        axis_m = self.shift_m / math.sqrt(2)
        return MapErrorModel(self.vertical_rms_m, self.vertical_correlation_m, axis_m)


def build_truth(site: Site, seed: int) -> Terrain:
    """The ground around a site, on the CPU: DEM, curvature, and SYNTHETIC relief below the DEM.

    Args:
        site: where and how fine.
        seed: of the relief.

    Raises:
        TileError: the DEM is missing, damaged, or does not cover the site.
    """
    tile = open_tile(site.dem)
    coarsest = site.levels - 1
    post_m = site.finest_post_m * 2**coarsest
    z_L = _resample(site, post_m)
    levels: list[Level] = []
    for k in range(coarsest, -1, -1):
        post_m = site.finest_post_m * 2**k
        if k < coarsest:
            z_L = _subdivide(z_L)
        scale_max_m = math.inf if k == coarsest else 4 * post_m
        z_L = add_relief(
            z_L,
            post_m,
            wavelength_max_m=min(scale_max_m, tile.effective_resolution_m),
            diameter_max_m=min(
                scale_max_m / 2 * MIN_POSTS_PER_DIAMETER, tile.effective_resolution_m
            ),
            generator=torch.Generator().manual_seed(seed * 64 + k),
        )
        half_m = site.cells / 2 * post_m
        levels.append(Level(west_m=-half_m, south_m=-half_m, post_m=post_m, z_L=z_L))
    return Terrain(tuple(reversed(levels)))


def degrade(truth: Terrain, quality: MapQuality, seed: int) -> Terrain:
    """The map: every level low-passed to twice its posts, displaced in height and in place.

    The height error is one Gaussian field over all levels (random Fourier features, Rahimi and
    Recht 2007) with covariance ``rms^2 exp(-d^2 / (2 L^2))``.

    Args:
        truth: the ground.
        quality: how bad the map is.
        seed: of the map's errors.
    """
    generator = torch.Generator().manual_seed(seed)
    heading = 2 * math.pi * float(torch.rand((), generator=generator))
    east_m, north_m = quality.shift_m * math.sin(heading), quality.shift_m * math.cos(heading)
    k_rad_m = torch.randn(2, _NOISE_WAVES, generator=generator, dtype=torch.float64)
    k_rad_m = k_rad_m / quality.vertical_correlation_m
    phase = 2 * math.pi * torch.rand(_NOISE_WAVES, generator=generator, dtype=torch.float64)
    amplitude_m = quality.vertical_rms_m * math.sqrt(2 / _NOISE_WAVES)
    levels = []
    for level in truth.levels:
        z_L = _low_pass_and_halve(level.z_L)
        west_m, south_m, post_m = level.west_m + east_m, level.south_m + north_m, 2 * level.post_m
        x_m = west_m + post_m * torch.arange(z_L.shape[1], dtype=torch.float64)
        y_m = south_m + post_m * torch.arange(z_L.shape[0], dtype=torch.float64)
        noise_m = amplitude_m * _waves(x_m, y_m, k_rad_m, phase)
        levels.append(Level(west_m=west_m, south_m=south_m, post_m=post_m, z_L=z_L + noise_m))
    return Terrain(tuple(levels))


def _waves(
    x_m: Float64[Tensor, " c"],
    y_m: Float64[Tensor, " r"],
    k_rad_m: Float64[Tensor, "2 w"],
    phase: Float64[Tensor, " w"],
) -> Float32[Tensor, "r c"]:
    """Sum of cos(kx x + ky y + phase) over a grid, as two matrix products."""
    ax = x_m[:, None] * k_rad_m[0]
    ay = y_m[:, None] * k_rad_m[1] + phase
    cos, sin = torch.cos, torch.sin
    return cos(ay).float() @ cos(ax).float().T - sin(ay).float() @ sin(ax).float().T


def _low_pass_and_halve(z_L: Float32[Tensor, "r c"]) -> Float32[Tensor, "r2 c2"]:
    """Binomial (1 2 1)/4 along both axes, then every other post; the border repeats itself."""
    padded = torch.nn.functional.pad(z_L[None, None], (1, 1, 1, 1), mode="replicate")[0, 0]
    rows = 0.25 * padded[:-2] + 0.5 * padded[1:-1] + 0.25 * padded[2:]
    columns = 0.25 * rows[:, :-2] + 0.5 * rows[:, 1:-1] + 0.25 * rows[:, 2:]
    return columns[::2, ::2].contiguous()


def _subdivide(z_L: Float32[Tensor, "r c"]) -> Float32[Tensor, "r c"]:
    """The inner half of a level at half its posts; posts that both have stay as they are."""
    cells = z_L.shape[0] - 1
    first, last = cells // 4 - _MARGIN, 3 * cells // 4 + _MARGIN + 1
    inner = z_L[first:last, first:last].double()
    for axis in (0, 1):
        count = cells // 2 + 1
        kept = inner.narrow(axis, _MARGIN, count)
        taps = [w * inner.narrow(axis, k, count - 1) for k, w in enumerate(_SUBDIVISION)]
        between = torch.stack(taps).sum(0)
        shape = list(kept.shape)
        shape[axis] = 2 * count - 1
        fine = kept.new_empty(shape)
        fine.movedim(axis, 0)[::2] = kept.movedim(axis, 0)
        fine.movedim(axis, 0)[1::2] = between.movedim(axis, 0)
        inner = fine
    return inner.float()


def _resample(site: Site, post_m: float) -> Float32[Tensor, "r c"]:
    """DEM heights in the local frame, by fixed point: where does the vertical of L meet them?"""
    tile = open_tile(site.dem)
    half_m = site.cells / 2 * post_m
    axis_m = torch.linspace(-half_m, half_m, site.cells + 1, dtype=torch.float64)
    y, x = torch.meshgrid(axis_m, axis_m, indexing="ij")
    z = (RADIUS_M**2 - x.square() - y.square()).sqrt() - RADIUS_M
    for _ in range(_SPHERE_ITERATIONS):
        latitude, longitude, _ = site.frame.geodetic(torch.stack([x, y, z], -1))
        height_m = torch.from_numpy(
            sample_height_m(tile, np.asarray(latitude), np.asarray(longitude))
        )
        z = ((RADIUS_M + height_m) ** 2 - x.square() - y.square()).sqrt() - RADIUS_M
    return z.float()
