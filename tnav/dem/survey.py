"""What a raster of heights holds before it is trusted: range, holes, datum, units.

The Moon's surface lies between -9.1 km (Antoniadi) and +10.8 km (Korolev's rim) of the 1737.4 km
sphere (Smith et al. 2010, LOLA). A number outside is a radius, in other units, or no height.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader
from rasterio.windows import Window

from tnav.dem.cog import windows_of
from tnav.errors import TileError
from tnav.geometry.moon import RADIUS_M

LOWEST_M, HIGHEST_M = -9.5e3, 11e3
_RADIUS_KM = (1720.0, 1755.0)
_KM_MAX = 12.0  # heights in kilometres stay below; in metres they would be a plain
# Values that products use for "nothing here" without always saying so.
_SENTINELS = (-32768.0, -32767.0, 32767.0, -9999.0, -99999.0, 65535.0, -2147483648.0)
_HUGE = 1e30  # ISIS, ESRI and GDAL mark missing floats by numbers near -3.4e38


@dataclass(slots=True)
class Posts:
    """How many posts, and the rows and columns that they span."""

    count: int = 0
    box: tuple[int, int, int, int] | None = None  # first row, last row, first column, last column

    def add(self, mask: NDArray[np.bool_], window: Window) -> None:
        """Count the posts that are set in a window."""
        found = int(np.count_nonzero(mask))
        if not found:
            return
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        top, left = int(window.row_off), int(window.col_off)
        box = (top + rows[0], top + rows[-1], left + columns[0], left + columns[-1])
        self.merge(Posts(found, (int(box[0]), int(box[1]), int(box[2]), int(box[3]))))

    def merge(self, other: "Posts") -> None:
        """Take in others."""
        self.count += other.count
        if self.box is None or other.box is None:
            self.box = self.box or other.box
            return
        a, b = self.box, other.box
        self.box = (min(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), max(a[3], b[3]))


@dataclass(slots=True)
class Survey:
    """One pass over the raw values of a raster."""

    posts: int = 0
    low: float = np.inf  # of values that are neither missing nor suspect
    high: float = -np.inf
    missing: Posts = field(default_factory=Posts)  # declared, NaN, infinite
    suspects: dict[float, Posts] = field(default_factory=dict)  # undeclared, by value
    huge: Posts = field(default_factory=Posts)  # undeclared, beyond 1e30


@dataclass(frozen=True, slots=True)
class Reading:
    """How raw values become heights above the 1737.4 km sphere: ``scale * DN + offset`` metres."""

    scale: float
    offset: float
    note: str


def read_block(
    raster: DatasetReader, path: Path, window: Window, nodata: float | None
) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
    """Raw values of a window, and which of them are there.

    Raises:
        TileError: blocks of the file cannot be read.
    """
    try:
        dn = raster.read(1, window=window, masked=True)
    except RasterioError as error:
        raise TileError(f"{path}: damaged, blocks cannot be read; fetch it again") from error
    values = np.asarray(dn.data)
    valid = ~np.ma.getmaskarray(dn) & np.isfinite(values)
    if nodata is not None and _fits(nodata, values):
        valid &= values != np.asarray(nodata).astype(values.dtype)
    return values, valid


def survey(
    raster: DatasetReader, path: Path, nodata: float | None, blocks: Iterator[Window] | None = None
) -> Survey:
    """Look at every post once.

    Args:
        raster: open.
        path: for messages.
        nodata: a value that is missing besides those that the file declares.
        blocks: what to look at; all of it by default.
    """
    found = Survey()
    for window in blocks or windows_of(raster.width, raster.height):
        values, valid = read_block(raster, path, window, nodata)
        found.posts += values.size
        found.missing.add(~valid, window)
        if not valid.any():
            continue
        numbers = values.astype(np.float64)
        if float(np.abs(numbers[valid]).max()) > _HUGE:
            huge = valid & (np.abs(numbers) > _HUGE)
            found.huge.add(huge, window)
            valid = valid & ~huge
        for sentinel in _SENTINELS:
            same = valid & (numbers == sentinel)
            if same.any():
                found.suspects.setdefault(sentinel, Posts()).add(same, window)
                valid = valid & ~same
        if valid.any():
            found.low = min(found.low, float(numbers[valid].min()))
            found.high = max(found.high, float(numbers[valid].max()))
    return found


def read_as_heights(
    found: Survey,
    path: Path,
    *,
    scale: float,
    offset: float,
    units: str | None,
    radius: bool | None,
    datum_radius_m: float,
) -> Reading:
    """Decide how raw values become heights, from what is declared and from their size.

    Args:
        found: of the raster.
        path: for messages.
        scale: as the file or label declares.
        offset: as the file or label declares.
        units: "m", "km" or None where neither the file nor the user says.
        radius: True for distances from the centre, False for heights, None for "look".
        datum_radius_m: of the sphere that heights count from.

    Raises:
        TileError: empty, ambiguous, or of a size that no place on the Moon has.
    """
    if found.low > found.high:
        raise TileError(f"{path}: no post has a height; expected at least one value besides holes")
    ends = scale * found.low + offset, scale * found.high + offset
    radius, units = _guess(ends, path, offset, units, radius)
    unit_m = {"m": 1.0, "km": 1e3}[units]
    base_m = 0.0 if radius else datum_radius_m
    offset_m = offset * unit_m + (base_m - RADIUS_M)
    low_m, high_m = (unit_m * end + (base_m - RADIUS_M) for end in ends)
    if low_m < LOWEST_M or high_m > HIGHEST_M:
        what = "radius" if radius else "heights"
        raise TileError(
            f"{path}: read as {what} in {units}, it spans {low_m:.6g} to {high_m:.6g} m of the "
            f"1737.4 km sphere, and the Moon spans {LOWEST_M:g} to {HIGHEST_M:g} m; pass --units, "
            "--radius or --heights, --nodata or --datum-radius as its label says"
        )
    note = f"radius in {units} less {RADIUS_M / 1e3:g} km" if radius else f"heights in {units}"
    if base_m not in (0.0, RADIUS_M):
        note += f" above {base_m / 1e3:g} km, moved to {RADIUS_M / 1e3:g} km"
    offset_m = 0.0 if abs(offset_m) < 1e-6 else offset_m  # rounding: the offset is the datum
    scale_m = scale * unit_m
    return Reading(scale_m, offset_m, f"{note}: height = {scale_m:g} * DN + {offset_m:g} m")


def impossible(found: Survey, reading: Reading) -> dict[float, Posts]:
    """Suspects that are no heights once read: the values to mask."""
    outside = {}
    for value, posts in found.suspects.items():
        height_m = reading.scale * value + reading.offset
        if not LOWEST_M <= height_m <= HIGHEST_M:
            outside[value] = posts
    return outside


def height_range_m(found: Survey, reading: Reading) -> tuple[float, float]:
    """Lowest and highest post."""
    kept = found.suspects.keys() - impossible(found, reading).keys()
    heights = [reading.scale * dn + reading.offset for dn in (found.low, found.high, *kept)]
    return min(heights), max(heights)


def _guess(
    ends: tuple[float, float], path: Path, offset: float, units: str | None, radius: bool | None
) -> tuple[bool, str]:
    """Radius or heights, and their units, where that can be told; else a TileError."""
    low, high = ends
    if radius is not False:
        for unit, factor in (("km", 1.0), ("m", 1e3)):
            if units not in (None, unit):
                continue
            if not (_RADIUS_KM[0] * factor <= low and high <= _RADIUS_KM[1] * factor):
                continue
            sure = unit == "m" or units == unit or radius or _is_datum(offset)
            if not sure:
                raise TileError(
                    f"{path}: values span {low:.7g} to {high:.7g}: a radius in km, or heights in "
                    "m? pass --radius --units km or --heights --units m"
                )
            return True, unit
    if radius:
        return True, units or "m"
    if units is None and max(abs(low), abs(high)) < _KM_MAX:
        raise TileError(
            f"{path}: values span {low:.4g} to {high:.4g} without a unit: heights in km, or a "
            "plain in m? pass --units km or --units m"
        )
    return False, units or "m"


def _is_datum(offset: float) -> bool:
    """A label's offset that makes a radius of heights (LOLA GDR, SLDEM2015)."""
    return any(abs(offset - r) < 1e-3 * f for r, f in ((1737.4, 1.0), (1737.4e3, 1e3)))


def _fits(value: float, values: NDArray[np.generic]) -> bool:
    """Whether a number can occur in an array of that type."""
    if values.dtype.kind == "f":
        return True
    info = np.iinfo(values.dtype.name)
    return value == int(value) and info.min <= value <= info.max
