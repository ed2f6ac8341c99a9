"""What there is to say of a DEM, and whether its file is what the manifest says."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rasterio.errors import RasterioError

from tnav.dem.cog import windows_of
from tnav.dem.manifest import check_hash, load_manifest
from tnav.dem.mosaic import Mosaic, measure_offsets
from tnav.dem.rasters import bounded_memory, open_dataset
from tnav.dem.sampling import read_window
from tnav.dem.tiles import Tile, open_tile
from tnav.errors import TileError

_WHOLE_POSTS = 1 << 26  # a larger raster is described from an overview


def describe(tile: Tile) -> Iterator[str]:
    """Lines on a tile: product, file, CRS, posting, bounds, heights, holes."""
    west, south, east, north = tile.grid.bounds_deg
    entry = load_manifest().tiles.get(tile.name)
    entry = entry if entry is not None and entry.file == tile.path else None
    yield f"{tile.name}: {tile.product}"
    yield f"  file {tile.path}"
    if entry is not None:
        yield f"  cite {entry.citation}; licence: {entry.licence}"
        if entry.source:
            yield f"  from {entry.source}"
    yield f"  crs {tile.crs.to_string()}"
    yield f"  height = {tile.scale:g} * DN + {tile.offset:g} m above the 1737.4 km sphere"
    yield f"  {tile.grid.width} x {tile.grid.height} posts, posting {tile.posting_m:.4g} m, " + (
        f"features from {tile.effective_resolution_m:.4g} m"
    )
    yield f"  latitude {south:.6g} to {north:.6g}, longitude {west:.6g} to {east:.6g} deg"
    if entry is not None and entry.height_range_m is not None and entry.hole_share is not None:
        low_m, high_m = entry.height_range_m
        share, about = entry.hole_share, ""
    else:
        low_m, high_m, share, about = _look(tile)
    if low_m > high_m:
        yield "  nothing but holes"
        return
    yield f"  heights {about}{low_m:.6g} to {high_m:.6g} m, holes {100 * share:.3g} %"


def describe_offsets(mosaic: Mosaic) -> Iterator[str]:
    """Lines on how far the lower tiles of a mosaic lie above the first."""
    found = {offset.name: offset for offset in measure_offsets(mosaic)}
    for tile in mosaic.tiles[1:]:
        if tile.name not in found:
            yield f"{tile.name} and {mosaic.tiles[0].name}: no common ground"
            continue
        offset = found[tile.name]
        yield (
            f"{tile.name} lies {offset.median_m:+.2f} m above {offset.reference} in the median, "
            f"spread {offset.sigma_m:.2f} m (1.48 MAD), {offset.points} points; not taken out"
        )


def verify(name: str) -> None:
    """Check a tile of the manifest: file, every byte's hash, CRS, every block, every height.

    Raises:
        TileError: what is wrong.
    """
    tiles = load_manifest().tiles
    if name not in tiles:
        known = ", ".join(sorted(tiles))
        raise TileError(f"{name}: no such entry; the manifests have: {known}")
    entry = tiles[name]
    check_hash(entry.file, entry.sha256, name, always=True)
    tile = open_tile(name)
    with bounded_memory(), open_dataset(tile.path) as raster:
        for window in windows_of(raster.width, raster.height):
            tile.to_height_m(read_window(raster, tile.path, window))


def _look(tile: Tile) -> tuple[float, float, float, str]:
    """Lowest and highest height, share of holes, and a word where an overview was read."""
    overview, about = _overview(tile.path)
    low_m, high_m, holes, posts = np.inf, -np.inf, 0, 0
    with bounded_memory(), open_dataset(tile.path, overview) as raster:
        for window in windows_of(raster.width, raster.height):
            height_m = tile.to_height_m(read_window(raster, tile.path, window))
            there = np.isfinite(height_m)
            posts += height_m.size
            holes += int(np.count_nonzero(~there))
            if there.any():
                low_m = min(low_m, float(height_m[there].min()))
                high_m = max(high_m, float(height_m[there].max()))
    return low_m, high_m, holes / posts, about


def _overview(path: Path) -> tuple[int | None, str]:
    """The finest overview that is small enough, where the raster is not."""
    with open_dataset(path) as raster:
        posts = raster.width * raster.height
        try:
            factors = raster.overviews(1)
        except RasterioError as error:
            raise TileError(f"{path}: damaged, overviews cannot be read; restore it") from error
    if posts <= _WHOLE_POSTS or not factors:
        return None, ""
    small = [k for k, factor in enumerate(factors) if posts / factor**2 <= _WHOLE_POSTS]
    chosen = small[0] if small else len(factors) - 1
    return chosen, f"(averages over {factors[chosen]} posts) "
