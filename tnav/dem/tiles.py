"""DEM tiles by name or path, checked, and sampled in latitude and longitude.

A tile is a raster of heights above a sphere, in any Moon CRS that GDAL knows. rasterio applies
neither scale nor offset, so both come from the manifest (or, for a file of the user's, its tags).
"""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.io import DatasetReader

from tnav.dem.manifest import Manifest, TileEntry, check_hash, load_manifest
from tnav.dem.rasters import Grid, files_state, grid_of, open_dataset, require_moon
from tnav.dem.sampling import Samples, sample_dn
from tnav.errors import TileError

__all__ = [
    "Dem",
    "Manifest",
    "Tile",
    "TileEntry",
    "load_manifest",
    "open_raster",
    "open_tile",
    "sample_height_m",
    "sample_value",
]

_HEIGHT_MAX_M = 20e3  # the Moon spans -9.2 to +10.8 km (LOLA)


@runtime_checkable
class Dem(Protocol):
    """Heights of the Moon, from one tile or from several."""

    @property
    def posting_m(self) -> float:
        """Finest distance between posts."""

    @property
    def effective_resolution_m(self) -> float:
        """Shorter features may be missing from the data."""

    @property
    def fingerprint(self) -> str:
        """Hex digest that changes with the data."""

    @property
    def label(self) -> str:
        """Name for messages."""

    def heights_m(
        self, latitude_deg: NDArray[np.float64], longitude_deg: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Heights above the 1737.4 km sphere, NaN outside and in holes."""

    def explain(self, latitude_deg: NDArray[np.float64], longitude_deg: NDArray[np.float64]) -> str:
        """Why there is no height at such points."""


@dataclass(frozen=True, slots=True)
class Tile:
    """A DEM that passed its checks; heights are read when they are asked for."""

    path: Path
    name: str
    product: str
    grid: Grid
    scale: float
    offset: float
    effective_resolution_m: float
    fingerprint: str  # of the files and of how their numbers are read
    overview: int | None = None  # that heights are read from; None is the full raster

    @property
    def crs(self) -> CRS:
        """Of the raster."""
        return self.grid.crs

    @property
    def posting_m(self) -> float:
        """Along a meridian, or of the projected grid."""
        return self.grid.posting_m

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """West, south, east, north in the CRS's units."""
        return self.grid.bounds

    @property
    def label(self) -> str:
        """Name for messages."""
        return str(self.path)

    def heights_m(
        self, latitude_deg: NDArray[np.float64], longitude_deg: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Heights above the 1737.4 km sphere, NaN outside and in holes."""
        return self.to_height_m(self.samples(latitude_deg, longitude_deg).value)

    def samples(
        self,
        latitude_deg: NDArray[np.float64],
        longitude_deg: NDArray[np.float64],
        *,
        order: int = 3,
        reach_m: float = 0.0,
    ) -> Samples:
        """Raw values at points; see ``sample_dn``."""
        return sample_dn(
            self.path,
            self.grid,
            latitude_deg,
            longitude_deg,
            order=order,
            reach_m=reach_m,
            overview=self.overview,
        )

    def at_posting(self, posting_m: float) -> "Tile":
        """The same tile, read from its coarsest overview that is not coarser than a posting."""
        with open_dataset(self.path) as raster:
            factors = raster.overviews(1)
        finer = [k for k, factor in enumerate(factors) if factor * self.posting_m <= posting_m]
        if not finer or self.overview is not None:
            return self
        with open_dataset(self.path, finer[-1]) as raster:
            grid = grid_of(raster, self.crs)
        coarser_m = max(self.effective_resolution_m, 2.0 * grid.posting_m)
        return replace(self, grid=grid, overview=finer[-1], effective_resolution_m=coarser_m)

    def to_height_m(self, dn: NDArray[np.float64]) -> NDArray[np.float64]:
        """Heights of raw values.

        Raises:
            TileError: one that no place on the Moon has.
        """
        height_m = dn * self.scale + self.offset
        extreme_m = float(np.nanmax(np.abs(height_m), initial=0.0))
        if extreme_m > _HEIGHT_MAX_M:
            raise TileError(
                f"{self.path}: a height of {extreme_m:g} m, expected within "
                f"{_HEIGHT_MAX_M / 1e3:g} km of the sphere; is it a radius, in other units, or a "
                "nodata value without its tag? 'tnav dem import' mends all three"
            )
        return height_m

    def explain(self, latitude_deg: NDArray[np.float64], longitude_deg: NDArray[np.float64]) -> str:
        """Why there is no height at such points: outside first, else the holes."""
        outside = self.samples(latitude_deg, longitude_deg).outside
        if outside.any():
            west, south, east, north = self.grid.bounds_deg
            return (
                f"asked for {_extent(latitude_deg, longitude_deg)}, of which the tile (latitude "
                f"{south:.4g} to {north:.4g}, longitude {west:.4g} to {east:.4g} deg) does not "
                f"cover {int(outside.sum())} of {outside.size} points; choose a site further "
                "inside or a larger tile"
            )
        return (
            f"{latitude_deg.size} points on or beside missing or NaN posts, "
            f"{_extent(latitude_deg, longitude_deg)}; fill the holes, add a tile below this one "
            "or choose another site"
        )


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
        hashed = check_hash(entry.file, entry.sha256, name_or_path, always=False)
        with open_dataset(entry.file) as raster:
            return _of_entry(raster, name_or_path, entry, hashed)
    path = Path(name_or_path)
    if not path.exists():
        known = ", ".join(sorted(manifest.tiles))
        raise TileError(f"{path}: no such DEM; expected a file or one of the manifest: {known}")
    return open_raster(path)


def open_raster(path: Path) -> Tile:
    """A raster of one band of anything with a Moon CRS: heights, albedo.

    Raises:
        TileError: missing, unreadable, not of the Moon, or of several bands.
    """
    with open_dataset(path) as raster:
        grid = _grid(raster, path)
        return Tile(
            path=path,
            name=path.stem,
            product=path.name,
            grid=grid,
            scale=float(raster.scales[0]),
            offset=float(raster.offsets[0]),
            effective_resolution_m=2.0 * grid.posting_m,
            fingerprint=_fingerprint(files_state(raster), raster.scales[0], raster.offsets[0]),
        )


def sample_height_m(
    source: Dem, latitude_deg: NDArray[np.float64], longitude_deg: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Heights above the 1737.4 km sphere by cubic spline (SciPy), of the shape of the arguments.

    Args:
        source: a tile or a mosaic.
        latitude_deg: planetocentric.
        longitude_deg: east, from -180 or from 0.

    Raises:
        TileError: a point lies outside, or on missing data.
    """
    height_m = source.heights_m(latitude_deg, longitude_deg)
    missing = ~np.isfinite(height_m)
    if missing.any():
        why = source.explain(latitude_deg[missing], longitude_deg[missing])
        raise TileError(f"{source.label}: {int(missing.sum())} of {missing.size} points: {why}")
    return height_m


def sample_value(
    tile: Tile, latitude_deg: NDArray[np.float64], longitude_deg: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Values of a raster of anything, bilinear, NaN outside and in holes."""
    found = tile.samples(latitude_deg, longitude_deg, order=1)
    return found.value * tile.scale + tile.offset


def _extent(latitude_deg: NDArray[np.float64], longitude_deg: NDArray[np.float64]) -> str:
    return (
        f"latitude {latitude_deg.min():.2f} to {latitude_deg.max():.2f}, "
        f"longitude {longitude_deg.min():.2f} to {longitude_deg.max():.2f} deg"
    )


def _of_entry(raster: DatasetReader, name: str, entry: TileEntry, hashed: bool) -> Tile:
    path = entry.file
    grid = _grid(raster, path)
    if grid.crs != CRS.from_string(entry.crs) or raster.scales[0] != entry.scale:
        raise TileError(
            f"{path}: crs {grid.crs.to_string()}, scale {raster.scales[0]}, but manifest.yaml says "
            f"{entry.crs}, {entry.scale} for '{name}'; mend the manifest or restore the file"
        )
    # What was not hashed just now (a large tile, files beside it) is told by name, size and time.
    unhashed = [s for s in files_state(raster) if not hashed or s[0] != str(path.resolve())]
    return Tile(
        path=path,
        name=name,
        product=entry.product,
        grid=grid,
        scale=entry.scale,
        offset=entry.offset,
        effective_resolution_m=entry.effective_resolution_m,
        fingerprint=_fingerprint(entry.sha256, *unhashed, entry.scale, entry.offset),
    )


def _grid(raster: DatasetReader, path: Path) -> Grid:
    crs = require_moon(raster.crs, path)
    if raster.count != 1:
        raise TileError(f"{path}: {raster.count} bands, expected one band of heights")
    return grid_of(raster, crs)


def _fingerprint(*parts: object) -> str:
    return hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest()
