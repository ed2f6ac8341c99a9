"""Terrain around a landing site: the truth, and the degraded map that navigation carries.

The truth is a DEM resampled in float64 into the local frame (curvature baked in) with SYNTHETIC
relief below its resolution, as nested levels of which each averages to the coarser one.
"""

import math

import torch
from jaxtyping import Float32, Float64
from pydantic import Field, model_validator
from torch import Tensor

from tnav.config import Recipe
from tnav.dem.mosaic import open_dem
from tnav.geometry.moon import LocalFrame
from tnav.records import MapErrorModel
from tnav.terrain.cache import HeightCache, content_hash
from tnav.terrain.heightfield import Level, Terrain
from tnav.terrain.lattice import Window
from tnav.terrain.levels import HALF_SPAN_MAX_M, Progress, Pyramid, crop, hull, support, up_in_L_
from tnav.terrain.synthetic import Relief

_NOISE_WAVES = 512  # random Fourier features of the map's error field


class Site(Recipe):
    """Where, from which DEM, and how finely the ground is modelled."""

    latitude_deg: float = Field(ge=-90, le=90)
    longitude_deg: float = Field(ge=-180, le=360)
    # manifest entry or path of a raster, or several in order of priority
    dem: str | list[str] = "lola_ldem16_frigoris"
    relief: Relief = Relief()
    finest_post_m: float = Field(default=0.5, gt=0)
    levels: int = Field(default=11, ge=1, le=16)  # posts double from level to level
    cells: int = Field(default=1024, ge=64, le=8192, multiple_of=8)  # along each side of a level

    @model_validator(mode="after")
    def _fits_the_moon(self) -> "Site":
        half_m = self.cells / 2 * self.finest_post_m * 2 ** (self.levels - 1)
        if half_m > HALF_SPAN_MAX_M:
            raise ValueError(
                f"{2e-3 * half_m:.0f} km wide, expected at most {2e-3 * HALF_SPAN_MAX_M:.0f} km: "
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


def build_truth(
    site: Site,
    seed: int,
    *,
    cache: HeightCache | None = None,
    progress: Progress | None = None,
) -> Terrain:
    """The ground around a site, on the CPU: DEM, curvature, and SYNTHETIC relief below the DEM.

    Args:
        site: where and how fine.
        seed: of the relief.
        cache: where levels are kept from run to run; None computes them.
        progress: called with the share of the work that is done, after each level.

    Raises:
        TileError: the DEM is missing, damaged, or does not cover the site.
    """
    pyramid = Pyramid(
        frame=site.frame,
        finest_post_m=site.finest_post_m,
        levels=site.levels,
        dem=open_dem(site.dem),
        relief=site.relief,
        seed=seed,
    )
    half, posts = site.cells // 2, site.cells + 1
    shown = [pyramid.window(k, -half, -half, posts, posts) for k in range(site.levels)]
    needed = shown[:1]
    for window in shown[1:]:
        needed.append(hull(window, support(needed[-1])))
    rises: list[Float32[Tensor, "r c"]] = []
    for k in reversed(range(site.levels)):
        rises.append(_rise_m(pyramid, k, needed, rises[-1] if rises else None, cache))
        if progress is not None:
            progress((site.levels - k) / site.levels)
    levels = [
        Level(w.west_m, w.south_m, w.post_m, up_in_L_(crop(rise, held, w), w))
        for w, held, rise in zip(shown, needed, reversed(rises), strict=True)
    ]
    return Terrain(levels)


def _rise_m(
    pyramid: Pyramid,
    level: int,
    windows: list[Window],
    coarse_m: Float32[Tensor, "r c"] | None,
    cache: HeightCache | None,
) -> Float32[Tensor, "rows cols"]:
    window = windows[level]
    where = [level, window.row0, window.col0, window.rows, window.cols]
    key = content_hash({**pyramid.content(), "window": where})
    kept = cache.get(key) if cache else None
    if kept is not None:
        return kept
    if coarse_m is None:
        rise_m = pyramid.coarsest_m(window)
    else:
        rise_m = pyramid.refine(window, coarse_m, windows[level + 1])
    if cache:
        cache.put(key, rise_m)
    return rise_m


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
    """Binomial (1 2 1)/4 along both axes at every other post; the border repeats itself."""
    rows, columns = z_L.shape
    for axis, size in enumerate((rows, columns)):
        at = torch.arange(0, size, 2)
        before, after = (at - 1).clamp(min=0), (at + 1).clamp(max=size - 1)
        sides = z_L.index_select(axis, before).add_(z_L.index_select(axis, after))
        z_L = z_L.index_select(axis, at).mul_(0.5).add_(sides, alpha=0.25)
    return z_L
