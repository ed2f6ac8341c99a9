"""Windows of DEMs as files of their own."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.errors import RasterioError
from rasterio.windows import Window

from tnav.dem.cog import PRECISION_M, Block, Layout, Progress, windows_of, write_cog
from tnav.dem.mosaic import Mosaic
from tnav.dem.rasters import DEGREE_M, GEOGRAPHIC, bounded_memory, open_dataset, posts_of
from tnav.dem.tiles import Tile
from tnav.errors import TileError


def cut(
    dem: Tile | Mosaic, bounds_deg: tuple[float, float, float, float], out: Path, progress: Progress
) -> Layout:
    """Write a window of a DEM as a COG, holes kept.

    A tile keeps its posts and values; a mosaic is sampled at its finest posting.

    Args:
        dem: tile or mosaic.
        bounds_deg: west, south, east, north; west may be larger than east (over the antimeridian).
        out: GeoTIFF.
        progress: called with what is done and the share of it.

    Raises:
        TileError: bounds that are empty or outside, or blocks that cannot be read.
    """
    west, south, east, north = bounds_deg
    if not (-90 <= south < north <= 90) or west == east:
        raise TileError(
            f"west {west:g}, south {south:g}, east {east:g}, north {north:g}: an empty window; "
            "expected south < north within -90 to 90, and west other than east"
        )
    span = (east - west) % 360.0 or 360.0
    if isinstance(dem, Mosaic):
        layout, blocks = _cut_mosaic(dem, west, south, span, north)
    else:
        layout, blocks = _cut_tile(dem, west, south, span, north)
    with bounded_memory():
        write_cog(out, layout, blocks, progress)
    return layout


def _cut_mosaic(
    mosaic: Mosaic, west: float, south: float, span: float, north: float
) -> tuple[Layout, Iterator[Block]]:
    step_deg = mosaic.posting_m / DEGREE_M
    width, height = max(1, round(span / step_deg)), max(1, round((north - south) / step_deg))
    layout = Layout(
        crs=CRS.from_string(GEOGRAPHIC),
        transform=Affine(span / width, 0.0, west, 0.0, -(north - south) / height, north),
        width=width,
        height=height,
        dtype="float32",
        scale=1.0,
        offset=0.0,
        masked=True,
        precision=PRECISION_M,
    )
    return layout, _sampled(mosaic, layout)


def _sampled(mosaic: Mosaic, layout: Layout) -> Iterator[Block]:
    t = layout.transform
    for window in windows_of(layout.width, layout.height):
        rows = window.row_off + np.arange(window.height) + 0.5
        columns = window.col_off + np.arange(window.width) + 0.5
        latitude, longitude = np.broadcast_arrays(
            (t.f + t.e * rows)[:, None], (t.c + t.a * columns)[None, :]
        )
        height_m = mosaic.heights_m(latitude, longitude)
        valid = np.isfinite(height_m)
        yield window, np.where(valid, height_m, 0.0), valid


def _cut_tile(
    tile: Tile, west: float, south: float, span: float, north: float
) -> tuple[Layout, Iterator[Block]]:
    grid = tile.grid
    s = np.linspace(0.0, 1.0, 65)
    u = np.concatenate([s, s, 0 * s, 1 + 0 * s])
    v = np.concatenate([0 * s, 1 + 0 * s, s, s])
    row, column = posts_of(grid, south + v * (north - south), west + u * span * (1 - 1e-12))
    if not (np.isfinite(row).all() and np.isfinite(column).all()):
        raise TileError(f"{tile.path}: its projection does not reach all of the window")
    top, bottom = _clip(row, grid.height)
    if grid.periodic:
        left, right = int(np.floor(column.min() + 0.5)), int(np.ceil(column.max() + 0.5))
    else:
        left, right = _clip(column, grid.width)
    if bottom <= top or right <= left:
        w, s_, e, n = grid.bounds_deg
        raise TileError(
            f"{tile.path}: the window lies outside; the tile spans latitude {s_:.4g} to {n:.4g}, "
            f"longitude {w:.4g} to {e:.4g} deg"
        )
    with open_dataset(tile.path) as raster:
        dtype = raster.dtypes[0]
    layout = Layout(
        crs=grid.crs,
        transform=grid.transform @ Affine.translation(left, top),
        width=right - left,
        height=bottom - top,
        dtype=dtype if np.dtype(dtype).kind in "iu" else "float32",
        scale=tile.scale,
        offset=tile.offset,
        masked=True,
        precision=0.0,
    )
    return layout, _copied(tile, layout, top, left)


def _clip(posts: NDArray[np.float64], count: int) -> tuple[int, int]:
    """First pixel and the one after the last that a span of posts touches."""
    return max(int(np.floor(posts.min() + 0.5)), 0), min(int(np.ceil(posts.max() + 0.5)), count)


def _copied(tile: Tile, layout: Layout, top: int, left: int) -> Iterator[Block]:
    with open_dataset(tile.path) as raster:
        for window in windows_of(layout.width, layout.height):
            parts, at = [], left + int(window.col_off)
            end = at + int(window.width)
            while at < end:
                start = at % tile.grid.width
                count = min(end - at, tile.grid.width - start)
                place = Window(start, top + window.row_off, count, window.height)
                try:
                    parts.append(raster.read(1, window=place, masked=True))
                except RasterioError as error:
                    raise TileError(f"{tile.path}: damaged, blocks cannot be read") from error
                at += count
            dn = np.ma.concatenate(parts, axis=1)
            valid = ~np.ma.getmaskarray(dn) & np.isfinite(dn.data)
            yield window, np.where(valid, dn.data, 0), valid
