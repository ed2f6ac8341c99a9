"""Rasters on the Moon: opened, checked, and addressed by latitude and longitude.

A post is the centre of a pixel; rows and columns here count posts from 0, so GDAL's corner-based
transform is half a pixel off. GDAL has already turned a GeoTIFF's "pixel is point" into corners.
"""

import re
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.errors import CRSError, NotGeoreferencedWarning, RasterioError
from rasterio.io import DatasetReader
from rasterio.warp import transform as transform_coordinates

from tnav.errors import TileError
from tnav.geometry.moon import RADIUS_M

GEOGRAPHIC = "IAU_2015:30100"  # latitude and longitude on the 1737.4 km sphere
DEGREE_M = np.pi / 180 * RADIUS_M  # along a meridian
_RADIUS_TOLERANCE_M = 1.0
_CACHE_MB = 256  # GDAL would take a twentieth of the machine's memory for blocks
_EDGE_TOLERANCE_POSTS = 1e-6  # rounding of a projection, not ground
_POLE_TOLERANCE_POSTS = 0.1  # from an outer pixel edge to the pole that it is meant to be


@dataclass(frozen=True, slots=True)
class Grid:
    """Where the posts of a raster lie on the Moon."""

    crs: CRS
    transform: Affine  # from pixel corners to the CRS, as GDAL has it
    width: int
    height: int
    x_per_degree: float | None  # of longitude, where x and y are linear in degrees, else None
    periodic: bool  # the columns close around the Moon
    pole_first: bool = False  # the outer edge of the first row is a pole
    pole_last: bool = False  # and that of the last row

    @property
    def unit_m(self) -> float:
        """Metres in one unit of y."""
        return float(DEGREE_M if self.crs.is_geographic else self.crs.linear_units_factor[1])

    @property
    def posting_m(self) -> float:
        """Step from row to row, in the projection."""
        return float(np.hypot(self.transform.b, self.transform.e)) * self.unit_m

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """West, south, east, north of the outer pixel edges, in the CRS's units."""
        x, y = self._edge(1)
        return float(x.min()), float(y.min()), float(x.max()), float(y.max())

    @property
    def bounds_deg(self) -> tuple[float, float, float, float]:
        """West, south, east, north in degrees; a raster that holds a pole spans all longitudes."""
        x, y = self._edge(64)
        longitude, latitude = _degrees(self.crs, x, y)
        if self.x_per_degree is not None:
            # Linear: unfold what PROJ folds at the antimeridian.
            longitude = longitude[0] + (x - x[0]) / self.x_per_degree
        else:
            longitude = np.rad2deg(np.unwrap(np.deg2rad(longitude)))
        west, east = float(longitude.min()), float(longitude.max())
        south, north = float(latitude.min()), float(latitude.max())
        for pole in (-90.0, 90.0):
            if self.x_per_degree is None and self._holds(pole):
                west, east = -180.0, 180.0
                south, north = min(south, pole), max(north, pole)
        return west, south, east, north

    @property
    def posts_bounds_deg(self) -> tuple[float, float, float, float]:
        """West, south, east, north of the outermost posts: half a post inside the bounds."""
        inner = self.transform @ Affine.translation(0.5, 0.5)
        return replace(
            self, transform=inner, width=self.width - 1, height=self.height - 1
        ).bounds_deg

    def spacing_m(
        self, latitude_deg: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Ground distance from row to row and from column to column at latitudes."""
        t = self.transform
        if self.x_per_degree is None:
            ones = np.ones_like(latitude_deg)
            return self.posting_m * ones, float(np.hypot(t.a, t.d)) * self.unit_m * ones
        east_m = DEGREE_M * np.cos(np.deg2rad(latitude_deg)) / self.x_per_degree
        north_m = self.unit_m
        return np.hypot(t.b * east_m, t.e * north_m), np.hypot(t.a * east_m, t.d * north_m)

    def _edge(self, steps: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        s = np.linspace(0.0, 1.0, steps + 1)
        column = np.concatenate([s, 1 + 0 * s, s[::-1], 0 * s]) * self.width
        row = np.concatenate([0 * s, s, 1 + 0 * s, s[::-1]]) * self.height
        t = self.transform
        return t.a * column + t.b * row + t.c, t.d * column + t.e * row + t.f

    def _holds(self, latitude_deg: float) -> bool:
        row, column = posts_of(self, np.array([latitude_deg]), np.array([0.0]))
        inside = (row >= -0.5) & (row <= self.height - 0.5)
        return bool((inside & (column >= -0.5) & (column <= self.width - 0.5))[0])


def bounded_memory() -> rasterio.Env:
    """A context in which GDAL keeps few blocks; enter it before the first block is read."""
    return rasterio.Env(GDAL_CACHEMAX=_CACHE_MB)


def open_dataset(path: Path, overview: int | None = None) -> DatasetReader:
    """A raster opened by GDAL, or one of its overviews (0 is the finest).

    Raises:
        TileError: no such file, or none that GDAL can read.
    """
    options = {} if overview is None else {"overview_level": overview}
    try:
        with warnings.catch_warnings():  # what has no position is refused where that matters
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            return rasterio.open(path, **options)
    except RasterioError as error:
        reason = "not a raster that GDAL can read" if path.exists() else "no such file"
        raise TileError(f"{path}: {reason}; expected a GeoTIFF, COG or PDS label") from error


def require_moon(crs: CRS | None, path: Path) -> CRS:
    """The CRS, if it is one of the Moon.

    Raises:
        TileError: none, or of another body.
    """
    if crs is None:
        raise TileError(f"{path}: no CRS; expected a Moon CRS such as {GEOGRAPHIC}")
    radius_m = sphere_radius_m(crs)
    if radius_m is None or abs(radius_m - RADIUS_M) > _RADIUS_TOLERANCE_M:
        found = "unknown" if radius_m is None else f"{radius_m / 1e3:.1f} km"
        raise TileError(
            f"{path}: crs {crs.to_string()[:40]} has radius {found}, expected the Moon's "
            f"{RADIUS_M / 1e3} km (such as {GEOGRAPHIC}); reproject or relabel the tile"
        )
    return crs


def sphere_radius_m(crs: CRS) -> float | None:
    """Semi-major axis that a CRS names in its WKT, or None."""
    try:
        wkt = crs.to_wkt()
    except CRSError:
        return None
    for keyword in ("SPHEROID[", "ELLIPSOID["):
        if keyword in wkt:
            return float(wkt.split(keyword, 1)[1].split(",")[1])
    return None


def grid_of(raster: DatasetReader, crs: CRS, transform: Affine | None = None) -> Grid:
    """The grid of an open raster whose CRS was checked, with a transform of its own or another."""
    t = transform or raster.transform
    per_degree = _x_per_degree(crs)
    grid = Grid(crs, t, raster.width, raster.height, per_degree, False)
    if per_degree is None or t.b != 0 or t.d != 0:
        return grid
    periodic = bool(abs(abs(t.a) * raster.width - 360.0 * per_degree) < 0.5 * abs(t.a))
    _, y = _project(grid, np.array([90.0, -90.0]), np.zeros(2))
    rows = (y - t.f) / t.e - 0.5
    first = np.abs(rows + 0.5) < _POLE_TOLERANCE_POSTS
    last = np.abs(rows - (raster.height - 0.5)) < _POLE_TOLERANCE_POSTS
    return replace(
        grid, periodic=periodic, pole_first=bool(first.any()), pole_last=bool(last.any())
    )


def files_state(raster: DatasetReader) -> tuple[tuple[str, int, int], ...]:
    """Name, bytes and time of change (ns) of every file that a raster is read from, sorted.

    GDAL lists the direct sources of a VRT only, and a PDS label without its image: each source is
    opened in its turn.

    Raises:
        TileError: a source that lies in no file of this machine, so that nothing tells its changes.
    """
    found: dict[str, tuple[str, int, int]] = {}
    waiting = list(raster.files) or [raster.name]
    opened = {str(Path(raster.name).resolve())}
    sources = raster.driver == "VRT"
    while waiting:
        place = waiting.pop()
        path = _on_disk(place, raster.name)
        stat = path.stat()
        found[str(path)] = (str(path), stat.st_size, stat.st_mtime_ns)
        if sources and str(path) not in opened:
            opened.add(str(path))
            waiting += _files_of(place)
    return tuple(sorted(found.values()))


def _files_of(place: str) -> list[str]:
    """Files of a source; none where it is no raster by itself (a sidecar, a raw image)."""
    try:
        with (
            warnings.catch_warnings(action="ignore", category=NotGeoreferencedWarning),
            rasterio.open(place) as raster,
        ):
            return list(raster.files)
    except RasterioError:
        return []


def _on_disk(place: str, of: str) -> Path:
    """The file of a name that GDAL uses, or the archive that it lies in (``/vsizip/...``)."""
    path = Path(place.split("/", 2)[2] if re.match("/vsi[a-z]+/", place) else place)
    for candidate in (path, *path.parents):
        if candidate.is_file():
            return candidate.resolve()
    raise TileError(f"{of}: reads {place}, which is no file here; put a copy on this disk")


def posts_of(
    grid: Grid, latitude_deg: NDArray[np.float64], longitude_deg: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Fractional rows and columns of points, of any longitude convention.

    NaN where the projection does not reach. Columns of a raster that closes around the Moon may
    run beyond it, so that neighbours stay neighbours over its seam. Rows of a raster whose outer
    edge is a pole stop at the last posts, half a post from it.
    """
    x, y = _project(grid, latitude_deg, longitude_deg)
    if grid.x_per_degree is not None and not grid.periodic:
        # Longitudes may be written from 0 or from -180: take the turn that meets the raster.
        turn = 360.0 * grid.x_per_degree
        west = grid.bounds[0]
        x = west + (x - west) % turn
    inverse = ~grid.transform
    column = inverse.a * x + inverse.b * y + inverse.c - 0.5
    row = inverse.d * x + inverse.e * y + inverse.f - 0.5
    row = _settled(row, grid.height)
    # No post lies between the outermost row and the pole: its heights hold up to there.
    margin = 0.5 + _POLE_TOLERANCE_POSTS
    if grid.pole_first:
        row = np.where((row < 0) & (row >= -margin), 0.0, row)
    if grid.pole_last:
        last = grid.height - 1.0
        row = np.where((row > last) & (row <= last + margin), last, row)
    return row, (_unfolded(column, grid.width) if grid.periodic else _settled(column, grid.width))


def _project(
    grid: Grid, latitude_deg: NDArray[np.float64], longitude_deg: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if grid.crs.is_geographic:
        return longitude_deg, latitude_deg
    try:
        xs, ys = transform_coordinates(
            CRS.from_string(GEOGRAPHIC), grid.crs, longitude_deg.ravel(), latitude_deg.ravel()
        )
    except (CPLE_BaseError, RasterioError):
        # GDAL refuses the whole list for one point out of reach.
        if latitude_deg.size <= 1:
            return np.full_like(latitude_deg, np.nan), np.full_like(latitude_deg, np.nan)
        half = latitude_deg.size // 2
        lat, lon = latitude_deg.ravel(), longitude_deg.ravel()
        first = _project(grid, lat[:half], lon[:half])
        last = _project(grid, lat[half:], lon[half:])
        xs, ys = (np.concatenate(pair) for pair in zip(first, last, strict=True))
    x, y = np.reshape(xs, latitude_deg.shape), np.reshape(ys, latitude_deg.shape)
    reached = np.isfinite(x) & np.isfinite(y)
    return np.where(reached, x, np.nan), np.where(reached, y, np.nan)


def _degrees(
    crs: CRS, x: NDArray[np.float64], y: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if crs.is_geographic:
        return x, y
    longitude, latitude = transform_coordinates(crs, CRS.from_string(GEOGRAPHIC), x, y)
    return np.asarray(longitude), np.asarray(latitude)


def _x_per_degree(crs: CRS) -> float | None:
    """Units of x in a degree of longitude where the CRS is linear in degrees, else None."""
    if crs.is_geographic:
        return 1.0
    words = crs.to_dict()
    if words.get("proj") != "eqc":
        return None
    lon_0 = float(words.get("lon_0", 0.0))
    target = [lon_0, lon_0 + 90.0], [0.0, 0.0]
    x, _ = transform_coordinates(CRS.from_string(GEOGRAPHIC), crs, *target)
    return (x[1] - x[0]) / 90.0


def _settled(posts: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Rounding errors beyond the outermost posts taken back."""
    posts = np.where((posts < 0) & (posts > -_EDGE_TOLERANCE_POSTS), 0.0, posts)
    last = count - 1.0
    return np.where((posts > last) & (posts < last + _EDGE_TOLERANCE_POSTS), last, posts)


def _unfolded(column: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """Columns on a circle, cut where that leaves the narrower window."""
    from_first = column % width
    from_middle = (column + width / 2) % width - width / 2
    if not np.isfinite(column).any():
        return column
    spans = [np.nanmax(c) - np.nanmin(c) for c in (from_first, from_middle)]
    return from_first if spans[0] <= spans[1] else from_middle
