"""Values of a raster between its posts, and how far each point lies from missing data.

Cubic B-spline interpolation (Unser 1999, as in SciPy) for heights, bilinear for other values. Only
the window that holds the points is read, in pieces of bounded size.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader
from rasterio.windows import Window
from scipy import ndimage

from tnav.dem.rasters import Grid, bounded_memory, open_dataset, posts_of
from tnav.errors import TileError

_SPLINE_MARGIN_POSTS = 12  # a cubic spline's prefilter forgets its border within these
_PIECE_POSTS = 1 << 24  # in one window: 128 MiB of float64
_STENCIL_POSTS = 3.0  # beyond this distance from a hole no stencil touches it: 2 * sqrt(2)


class Samples(NamedTuple):
    """What was found at points, each array of their shape."""

    value: NDArray[np.float64]  # DN; NaN outside and in holes
    outside: NDArray[np.bool_]
    distance_m: NDArray[np.float64]  # to the nearest edge or hole, at most the reach asked for


class _Piece(NamedTuple):
    dn: NDArray[np.float64]
    valid: NDArray[np.bool_]
    top: int
    left: int


def sample_dn(
    path: Path,
    grid: Grid,
    latitude_deg: NDArray[np.float64],
    longitude_deg: NDArray[np.float64],
    *,
    order: int = 3,
    reach_m: float = 0.0,
    overview: int | None = None,
) -> Samples:
    """Interpolate raw values of the first band.

    Args:
        path: the raster.
        grid: its grid.
        latitude_deg: points, any shape.
        longitude_deg: the same shape, any convention.
        order: 3 (cubic spline) or 1 (bilinear).
        reach_m: how far to look for edges and holes; 0 leaves distances at 0.
        overview: of the raster, whose grid it is then; None is the full one.

    Raises:
        TileError: blocks of the file cannot be read.
    """
    shape = latitude_deg.shape
    lat = latitude_deg.ravel()
    row, column = posts_of(grid, lat, longitude_deg.ravel())
    inside = (row >= 0) & (row <= grid.height - 1)
    if not grid.periodic:
        inside &= (column >= 0) & (column <= grid.width - 1)
    value = np.full(lat.shape, np.nan)
    distance_m = np.zeros(lat.shape)
    chosen = np.flatnonzero(inside)
    if chosen.size:
        with bounded_memory(), open_dataset(path, overview) as raster:
            for part in _pieces(row, column, chosen, grid):
                piece = _read(raster, path, grid, row[part], column[part], reach_m)
                value[part] = _interpolate(piece, row[part], column[part], order)
                if reach_m > 0:
                    near = _distance_m(piece, grid, lat[part], row[part], column[part], reach_m)
                    distance_m[part] = near
    distance_m[np.isnan(value)] = 0.0
    return Samples(value.reshape(shape), ~inside.reshape(shape), distance_m.reshape(shape))


def read_window(raster: DatasetReader, path: Path, window: Window) -> NDArray[np.float64]:
    """Raw values of a window of the first band, NaN where they are missing.

    Raises:
        TileError: blocks of the file cannot be read.
    """
    try:
        dn = raster.read(1, window=window, masked=True)
    except RasterioError as error:
        raise TileError(f"{path}: damaged, blocks cannot be read; restore it") from error
    grid = np.asarray(dn.data, dtype=np.float64)
    missing = np.ma.getmaskarray(dn) | ~np.isfinite(grid)
    grid[missing] = np.nan
    return grid


def _pieces(
    row: NDArray[np.float64],
    column: NDArray[np.float64],
    chosen: NDArray[np.intp],
    grid: Grid,
) -> list[NDArray[np.intp]]:
    """Points in groups, each within a window of bounded size."""
    waiting, done = [chosen], []
    while waiting:
        part = waiting.pop()
        spans = [float(np.ptp(v[part])) for v in (row, column)]
        sides = [s + 2 * _SPLINE_MARGIN_POSTS + 2 for s in spans]
        if sides[0] * sides[1] <= _PIECE_POSTS or max(spans) < 1:
            done.append(part)
            continue
        along = row[part] if spans[0] >= spans[1] else column[part]
        low = along <= 0.5 * (along.min() + along.max())
        waiting += [part[low], part[~low]]
    return done


def _read(
    raster: DatasetReader,
    path: Path,
    grid: Grid,
    row: NDArray[np.float64],
    column: NDArray[np.float64],
    reach_m: float,
) -> _Piece:
    row_m, column_m = _hole_metric_m(grid)
    margins = [
        int(max(_SPLINE_MARGIN_POSTS, np.ceil(reach_m / m) + _STENCIL_POSTS + 1))
        for m in (row_m, column_m)
    ]
    top = max(int(np.floor(row.min())) - margins[0], 0)
    bottom = min(int(np.ceil(row.max())) + margins[0], grid.height - 1)
    left, right = int(np.floor(column.min())) - margins[1], int(np.ceil(column.max())) + margins[1]
    if not grid.periodic:
        left, right = max(left, 0), min(right, grid.width - 1)
    parts, at = [], left
    while at <= right:  # a window over the seam is read in parts
        start = at % grid.width
        count = min(right - at + 1, grid.width - start)
        parts.append(read_window(raster, path, Window(start, top, count, bottom - top + 1)))
        at += count
    dn = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
    return _Piece(dn, np.isfinite(dn), top, left)


def _interpolate(
    piece: _Piece, row: NDArray[np.float64], column: NDArray[np.float64], order: int
) -> NDArray[np.float64]:
    dn, at = piece.dn, [row - piece.top, column - piece.left]
    if piece.valid.all():
        return ndimage.map_coordinates(dn, at, order=order, mode="nearest")
    if not piece.valid.any():
        return np.full(row.shape, np.nan)
    # Holes take their nearest neighbour's value: the spline still passes through every post that
    # is there, and no point whose own stencil touches a hole is kept.
    nearest = ndimage.distance_transform_edt(
        ~piece.valid, return_distances=False, return_indices=True
    )
    found = ndimage.map_coordinates(dn[tuple(nearest)], at, order=order, mode="nearest")
    # Four posts of a cubic run from one before a point to two behind it, two of a line likewise.
    touched = ndimage.maximum_filter(~piece.valid, size=order + 1, origin=-1)
    last = np.array(dn.shape) - 1
    r = np.clip(np.floor(at[0]).astype(np.intp), 0, last[0])
    c = np.clip(np.floor(at[1]).astype(np.intp), 0, last[1])
    found[touched[r, c]] = np.nan
    return found


def _hole_metric_m(grid: Grid) -> tuple[float, float]:
    """Post spacings for distances to holes: those at the raster's middle latitude everywhere."""
    _, south, _, north = grid.bounds_deg
    row_m, column_m = grid.spacing_m(np.array([0.5 * (south + north)]))
    return float(row_m[0]), float(column_m[0])


def _distance_m(
    piece: _Piece,
    grid: Grid,
    latitude_deg: NDArray[np.float64],
    row: NDArray[np.float64],
    column: NDArray[np.float64],
    reach_m: float,
) -> NDArray[np.float64]:
    row_m, column_m = grid.spacing_m(latitude_deg)
    to_edges = [
        np.full_like(row, np.inf) if grid.pole_first else row * row_m,
        np.full_like(row, np.inf) if grid.pole_last else (grid.height - 1 - row) * row_m,
    ]
    near = np.minimum(*to_edges)
    if not grid.periodic:
        near = np.minimum(near, np.minimum(column, grid.width - 1 - column) * column_m)
    if not piece.valid.all():
        metric = _hole_metric_m(grid)
        away_m = ndimage.distance_transform_edt(piece.valid, sampling=metric)
        at = [row - piece.top, column - piece.left]
        hole_m = ndimage.map_coordinates(away_m, at, order=1, mode="nearest")
        near = np.minimum(near, hole_m - _STENCIL_POSTS * max(metric))
    return np.clip(near, 0.0, reach_m)
