"""Hillshade pictures of DEMs, holes marked.

Shade is Lambert's cosine of the angle between the surface normal and the Sun, with central
differences on the ground. Large rasters are read from their overviews.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.errors import RasterioError

from tnav.dem.mosaic import FEATHER_M, Mosaic
from tnav.dem.rasters import DEGREE_M, bounded_memory, open_dataset
from tnav.dem.tiles import Tile
from tnav.errors import TileError
from tnav.images import write_png8

HOLE_BGR = (60, 40, 200)  # red: no shade of grey is mistaken for it
_AMBIENT = 0.12  # of full light, so that shaded slopes keep their form
_RELIEF_MIN = 1.0
_RELIEF_SLOPE = 0.25  # standard deviation that slopes are exaggerated to, where they are gentler
_AVERAGED_POSTS = 1 << 26  # of a raster without overviews; larger ones give every k-th post
_WIDTH_MAX = 16_384


@dataclass(frozen=True, slots=True)
class Sun:
    """Where light comes from."""

    azimuth_deg: float = 315.0  # clockwise from north: north-west, as maps are lit
    elevation_deg: float = 35.0
    exaggeration: float | None = None  # of heights; None: enough for gentle ground to show


def hillshade(
    height_m: NDArray[np.float64],
    step_east_m: NDArray[np.float64],
    step_south_m: float,
    sun: Sun,
) -> NDArray[np.float64]:
    """Lambert shading of a north-up grid, in [0, 1].

    Args:
        height_m: rows from north to south; NaN is carried through to its neighbours.
        step_east_m: between columns, for each row.
        step_south_m: between rows.
        sun: the light.
    """
    slope_east = np.asarray(np.gradient(height_m, axis=1)) / step_east_m[:, None]
    slope_north = -np.asarray(np.gradient(height_m, axis=0)) / step_south_m
    factor = sun.exaggeration or _exaggeration(slope_east, slope_north)
    slope_east, slope_north = factor * slope_east, factor * slope_north
    azimuth, elevation = np.deg2rad(sun.azimuth_deg), np.deg2rad(sun.elevation_deg)
    toward_east = np.cos(elevation) * np.sin(azimuth)
    toward_north = np.cos(elevation) * np.cos(azimuth)
    cosine = np.sin(elevation) - slope_east * toward_east - slope_north * toward_north
    cosine = cosine / np.sqrt(1 + slope_east**2 + slope_north**2)
    return _AMBIENT + (1 - _AMBIENT) * np.clip(cosine, 0.0, 1.0)


def show(dem: Tile | Mosaic, out: Path, width_px: int, sun: Sun) -> tuple[int, int]:
    """Write a hillshade PNG of all of a DEM.

    Args:
        dem: tile (in its own projection) or mosaic (in latitude and longitude).
        out: PNG.
        width_px: of the picture.
        sun: the light.

    Returns:
        Width and height of the picture.

    Raises:
        TileError: unreadable, or a width or Sun that makes no picture.
    """
    if not 16 <= width_px <= _WIDTH_MAX:
        raise TileError(f"--width {width_px}: expected 16 to {_WIDTH_MAX} pixels")
    if not 0 < sun.elevation_deg <= 90:
        raise TileError(f"--sun-elevation {sun.elevation_deg:g}: expected above 0, at most 90 deg")
    if isinstance(dem, Mosaic):
        height_m, step_east_m, step_south_m = _sampled_grid(dem, width_px)
    elif dem.grid.transform.b or dem.grid.transform.d:  # rotated: turned north up by sampling
        alone = Mosaic((dem,), FEATHER_M, (0.0,))
        height_m, step_east_m, step_south_m = _sampled_grid(alone, width_px)
    else:
        height_m, step_east_m, step_south_m = _tile_grid(dem, width_px)
    holes = ~np.isfinite(height_m)
    if holes.all():
        raise TileError(f"{dem.label}: nothing but holes")
    filled = np.where(holes, np.nanmean(height_m), height_m)
    shade = hillshade(filled, step_east_m, step_south_m, sun)
    grey = np.rint(255 * shade).astype(np.uint8)
    picture = np.repeat(grey[..., None], 3, axis=2)
    picture[holes] = HOLE_BGR
    out.parent.mkdir(parents=True, exist_ok=True)
    write_png8(out, picture)
    return picture.shape[1], picture.shape[0]


def _exaggeration(slope_east: NDArray[np.float64], slope_north: NDArray[np.float64]) -> float:
    spread = float(np.sqrt(np.mean(slope_east**2 + slope_north**2) / 2))
    return max(_RELIEF_MIN, _RELIEF_SLOPE / max(spread, 1e-6))


def _tile_grid(tile: Tile, width_px: int) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Heights at the picture's pixels, north up as the raster has it, and their steps."""
    grid = tile.grid
    t = grid.transform
    _, south, _, north = grid.bounds_deg
    row_m, column_m = grid.spacing_m(np.array([0.5 * (south + north)]))
    width_px = min(width_px, grid.width)
    height_px = max(1, round(width_px * grid.height * row_m[0] / (grid.width * column_m[0])))
    height_px = min(height_px, grid.height)
    with bounded_memory(), open_dataset(tile.path) as raster:
        coarse = min(raster.overviews(1), default=0) > 0
        small = raster.width * raster.height <= _AVERAGED_POSTS
        how = Resampling.average if coarse or small else Resampling.nearest
        try:
            dn = raster.read(1, out_shape=(height_px, width_px), masked=True, resampling=how)
        except RasterioError as error:
            raise TileError(f"{tile.path}: damaged, blocks cannot be read; restore it") from error
    raw = np.ma.filled(dn.astype(np.float64), np.nan)
    raw[~np.isfinite(raw)] = np.nan
    height_m = tile.to_height_m(raw)
    south_up, mirrored = t.e > 0, t.a < 0
    height_m = height_m[:: -1 if south_up else 1, :: -1 if mirrored else 1]
    rows = (np.arange(height_px) + 0.5) / height_px
    latitude = north - rows * (north - south) if grid.x_per_degree else 0 * rows
    row_m, column_m = grid.spacing_m(latitude)
    return (
        height_m,
        np.maximum(column_m, 1e-3) * grid.width / width_px,
        float(row_m[0]) * grid.height / height_px,
    )


def _sampled_grid(
    mosaic: Mosaic, width_px: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    west, south, east, north = _union_deg(mosaic)
    middle = np.cos(np.deg2rad(0.5 * (south + north)))
    coarse = mosaic.at_posting((east - west) / width_px * middle * DEGREE_M)
    west, south, east, north = _union_deg(coarse)
    step_deg = (east - west) / width_px
    height_px = max(1, round((north - south) / (step_deg * middle)))
    latitude = north - (np.arange(height_px) + 0.5) * (north - south) / height_px
    longitude = west + (np.arange(width_px) + 0.5) * step_deg
    height_m = coarse.heights_m(*np.broadcast_arrays(latitude[:, None], longitude[None, :]))
    step_east_m = DEGREE_M * step_deg * np.maximum(np.cos(np.deg2rad(latitude)), 1e-6)
    return height_m, step_east_m, DEGREE_M * (north - south) / height_px


def _union_deg(mosaic: Mosaic) -> tuple[float, float, float, float]:
    """Bounds of all tiles' posts, longitudes turned to be near the first one's."""
    first = mosaic.tiles[0].grid.posts_bounds_deg
    middle = 0.5 * (first[0] + first[2])
    west, south, east, north = first
    for tile in mosaic.tiles[1:]:
        w, s, e, n = tile.grid.posts_bounds_deg
        turn = 360.0 * round((middle - 0.5 * (w + e)) / 360.0)
        west, east = min(west, w + turn), max(east, e + turn)
        south, north = min(south, s), max(north, n)
    return (west, south, east, north) if east - west < 360 else (-180.0, south, 180.0, north)
