"""DEM tiles by name or path, checked, and sampled in latitude and longitude.

A tile is a raster of heights above a sphere, in any Moon CRS that GDAL knows. rasterio applies
neither scale nor offset, so both come from the manifest (or, for a file of the user's, its tags).
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from pydantic import Field
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.errors import CRSError, RasterioError
from rasterio.io import DatasetReader
from rasterio.warp import transform as transform_coordinates
from rasterio.windows import Window
from scipy import ndimage

from tnav.config import Recipe, datasets_dir, load_recipe
from tnav.errors import TileError
from tnav.geometry.moon import RADIUS_M

_GEOGRAPHIC = "IAU_2015:30100"  # latitude and longitude on the 1737.4 km sphere
_SPLINE_MARGIN_POSTS = 12  # a cubic spline's prefilter forgets its border within these
_RADIUS_TOLERANCE_M = 1.0
_HEIGHT_MAX_M = 20e3  # the Moon spans -9.2 to +10.8 km (LOLA)


class TileEntry(Recipe):
    """What the manifest says of one tile."""

    file: Path  # relative to the manifest
    product: str
    citation: str
    licence: str
    crs: str
    datum_radius_m: float
    units: str
    scale: float = Field(gt=0)
    offset: float
    posting_deg: float = Field(gt=0)
    effective_resolution_m: float = Field(gt=0)  # shorter features are not in the data
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class Manifest(Recipe):
    """All tiles that travel with tnav."""

    tiles: dict[str, TileEntry]


@dataclass(frozen=True, slots=True)
class Tile:
    """A DEM that passed its checks; heights are read when they are asked for."""

    path: Path
    name: str
    product: str
    crs: CRS
    scale: float
    offset: float
    posting_m: float  # along a meridian, or of the projected grid
    effective_resolution_m: float
    bounds: tuple[float, float, float, float]  # west, south, east, north in the CRS's units


def load_manifest() -> Manifest:
    """The manifest in the datasets folder."""
    return load_recipe(datasets_dir() / "manifest.yaml", Manifest)


def open_tile(name_or_path: str) -> Tile:
    """Find and check a tile.

    Args:
        name_or_path: an entry of the manifest, or the path of a raster with a Moon CRS.

    Raises:
        TileError: unknown, missing, damaged, not of the Moon, or not a height raster.
    """
    manifest = load_manifest()
    if name_or_path in manifest.tiles:
        entry = manifest.tiles[name_or_path]
        path = datasets_dir() / entry.file
        _check_hash(path, entry.sha256, name_or_path)
        with _open(path) as raster:
            return _checked(raster, path, name_or_path, entry)
    path = Path(name_or_path)
    if not path.exists():
        known = ", ".join(sorted(manifest.tiles))
        raise TileError(f"{path}: no such DEM; expected a file or one of the manifest: {known}")
    with _open(path) as raster:
        return _checked(raster, path, path.stem, None)


def sample_height_m(
    tile: Tile, latitude_deg: NDArray[np.float64], longitude_deg: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Heights above the 1737.4 km sphere by cubic spline (SciPy), of the shape of the arguments.

    Raises:
        TileError: a point lies outside the tile, or on missing data.
    """
    x, y = _to_crs(tile, latitude_deg, longitude_deg)
    with _open(tile.path) as raster:
        to_pixel = ~raster.transform
        column = to_pixel.a * x + to_pixel.b * y + to_pixel.c - 0.5  # from corners to posts
        row = to_pixel.d * x + to_pixel.e * y + to_pixel.f - 0.5
        first = [int(np.floor(v.min())) - _SPLINE_MARGIN_POSTS for v in (row, column)]
        last = [int(np.ceil(v.max())) + _SPLINE_MARGIN_POSTS for v in (row, column)]
        inside = row.min() >= 0 and row.max() <= raster.height - 1
        if not (inside and column.min() >= 0 and column.max() <= raster.width - 1):
            raise TileError(
                f"{tile.path}: asked for latitude {latitude_deg.min():.2f} to "
                f"{latitude_deg.max():.2f}, longitude {longitude_deg.min():.2f} to "
                f"{longitude_deg.max():.2f} deg, which the tile (bounds {tile.bounds}) does not "
                "cover; choose a site further inside or a larger tile"
            )
        top, left = max(first[0], 0), max(first[1], 0)
        height = min(last[0], raster.height - 1) - top + 1
        width = min(last[1], raster.width - 1) - left + 1
        try:
            dn = raster.read(1, window=Window(left, top, width, height), masked=True)
        except RasterioError as error:
            raise TileError(f"{tile.path}: damaged, blocks cannot be read; restore it") from error
    holes = int(np.ma.count_masked(dn)) + int(np.count_nonzero(~np.isfinite(dn.filled(0))))
    if holes:
        raise TileError(
            f"{tile.path}: {holes} missing or NaN posts in rows {top} to {top + height - 1}, "
            f"columns {left} to {left + width - 1}; fill the holes or choose another site"
        )
    grid = dn.data.astype(np.float64) * tile.scale + tile.offset
    extreme_m = float(grid.flat[np.abs(grid).argmax()])
    if abs(extreme_m) > _HEIGHT_MAX_M:
        raise TileError(
            f"{tile.path}: a height of {extreme_m:g} m, expected within {_HEIGHT_MAX_M / 1e3:g} km "
            "of the sphere; is it a radius, in other units, or a nodata value without its tag?"
        )
    return ndimage.map_coordinates(grid, [row - top, column - left], order=3, mode="nearest")


def _to_crs(
    tile: Tile, latitude_deg: NDArray[np.float64], longitude_deg: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if tile.crs.is_geographic:
        # Longitudes may be written from 0 or from -180: take the turn that meets the tile.
        west = tile.bounds[0]
        return west + (longitude_deg - west) % 360.0, latitude_deg
    source = CRS.from_string(_GEOGRAPHIC)
    try:
        xs, ys = transform_coordinates(
            source, tile.crs, longitude_deg.ravel(), latitude_deg.ravel()
        )
    except (CPLE_BaseError, RasterioError) as error:
        raise TileError(f"{tile.path}: its projection does not reach the site: {error}") from error
    x, y = np.reshape(xs, latitude_deg.shape), np.reshape(ys, latitude_deg.shape)
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise TileError(f"{tile.path}: its projection does not reach the site; use another DEM")
    return x, y


def _open(path: Path) -> DatasetReader:
    try:
        return rasterio.open(path)
    except RasterioError as error:
        reason = "no such file" if not path.exists() else "not a raster that GDAL can read"
        raise TileError(f"{path}: {reason}; expected a GeoTIFF, COG or PDS label") from error


def _check_hash(path: Path, sha256: str, name: str) -> None:
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise TileError(f"{path}: missing file of tile '{name}'; restore it") from error
    if found != sha256:
        raise TileError(
            f"{path}: sha256 {found[:12]}..., but manifest.yaml says {sha256[:12]}... for "
            f"'{name}'; the file was changed or damaged: restore it"
        )


def _checked(raster: DatasetReader, path: Path, name: str, entry: TileEntry | None) -> Tile:
    crs = raster.crs
    if crs is None:
        raise TileError(f"{path}: no CRS; expected a Moon CRS such as {_GEOGRAPHIC}")
    radius_m = _sphere_radius_m(crs)
    if radius_m is None or abs(radius_m - RADIUS_M) > _RADIUS_TOLERANCE_M:
        found = "unknown" if radius_m is None else f"{radius_m / 1e3:.1f} km"
        raise TileError(
            f"{path}: crs {crs.to_string()[:40]} has radius {found}, expected the Moon's "
            f"{RADIUS_M / 1e3} km (such as {_GEOGRAPHIC}); reproject or relabel the tile"
        )
    if raster.count != 1:
        raise TileError(f"{path}: {raster.count} bands, expected one band of heights")
    degree_m = np.pi / 180 * RADIUS_M
    unit_m = degree_m if crs.is_geographic else crs.linear_units_factor[1]
    posting_m = abs(raster.transform.e) * unit_m
    if entry and (crs != CRS.from_string(entry.crs) or raster.scales[0] != entry.scale):
        raise TileError(
            f"{path}: crs {crs.to_string()}, scale {raster.scales[0]}, but manifest.yaml says "
            f"{entry.crs}, {entry.scale} for '{name}'; mend the manifest or restore the file"
        )
    return Tile(
        path=path,
        name=name,
        product=entry.product if entry else path.name,
        crs=crs,
        scale=entry.scale if entry else raster.scales[0],
        offset=entry.offset if entry else raster.offsets[0],
        posting_m=float(posting_m),
        effective_resolution_m=entry.effective_resolution_m if entry else 2.0 * posting_m,
        bounds=tuple(raster.bounds),
    )


def _sphere_radius_m(crs: CRS) -> float | None:
    """Semi-major axis that a CRS names in its WKT, or None."""
    try:
        wkt = crs.to_wkt()
    except CRSError:
        return None
    for keyword in ("SPHEROID[", "ELLIPSOID["):
        if keyword in wkt:
            return float(wkt.split(keyword, 1)[1].split(",")[1])
    return None
