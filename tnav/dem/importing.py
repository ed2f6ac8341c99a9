"""From a product of the community to a checked tile: a COG and an entry in the user's manifest.

Read are PDS3 images through their labels, JPEG 2000, GeoTIFF, and whatever else GDAL opens with a
Moon CRS. Integers stay as they are (with their scale), floats become heights in metres.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from affine import Affine
from filelock import FileLock, Timeout
from rasterio.crs import CRS
from rasterio.errors import CRSError
from rasterio.io import DatasetReader

from tnav.config import datasets_dir
from tnav.dem import pds
from tnav.dem.cog import PRECISION_M, Block, Layout, Progress, windows_of, write_cog
from tnav.dem.manifest import TileEntry, add_entry, load_entries, sha256_of, user_dir
from tnav.dem.rasters import (
    DEGREE_M,
    GEOGRAPHIC,
    Grid,
    bounded_memory,
    grid_of,
    open_dataset,
    require_moon,
)
from tnav.dem.survey import (
    Posts,
    Reading,
    Survey,
    height_range_m,
    impossible,
    read_as_heights,
    read_block,
    survey,
)
from tnav.errors import TileError
from tnav.geometry.moon import RADIUS_M

_UNITS = {
    **dict.fromkeys(("m", "meter", "meters", "metre", "metres"), "m"),
    **dict.fromkeys(("km", "kilometer", "kilometers", "kilometre", "kilometres"), "km"),
}
_JPEG2000 = "JP2OpenJPEG"  # stores integers without a scale


@dataclass(frozen=True, slots=True)
class Claims:
    """What the user says of a source; None is "as the file says"."""

    product: str | None = None
    citation: str = "unknown"
    licence: str = "unknown"
    crs: str | None = None  # of a file that names none
    units: str | None = None  # m or km
    scale: float | None = None  # of a file that cannot name it
    nodata: float | None = None  # besides the file's own
    radius: bool | None = None  # True: distances from the centre; False: heights
    datum_radius_m: float = RADIUS_M  # that heights count from
    effective_resolution_m: float | None = None
    precision_m: float = PRECISION_M  # of float heights; 0 keeps every bit
    source: str | None = None
    source_sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Imported:
    """A tile that was written, and what there is to say of it."""

    name: str
    path: Path
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Source:
    """An open raster with what its label adds."""

    path: Path
    grid: Grid
    scale: float
    offset: float
    units: str | None
    nodata: float | None
    notes: tuple[str, ...]


def import_dem(
    path: Path,
    claims: Claims,
    progress: Progress,
    *,
    name: str | None = None,
    folder: Path | None = None,
    overwrite: bool = False,
) -> Imported:
    """Check a raster of heights and write it as a tile.

    Args:
        path: anything that GDAL reads, a PDS3 image by itself or by its label.
        claims: what the file does not say.
        progress: called with what is done and the share of it.
        name: of the entry; default: from the file's name.
        folder: of tile and manifest; default: the user's.
        overwrite: replace an entry of that name.

    Raises:
        TileError: unreadable, not of the Moon, ambiguous, impossible, or the name is taken.
    """
    folder = folder or user_dir()
    name = name or _name_of(path)
    require_free(folder, name, overwrite)
    folder.mkdir(parents=True, exist_ok=True)
    # The lock's file stays: who unlinks it lets a third in beside one who holds it already.
    try:
        with (
            FileLock(folder / f".{name}.lock", timeout=0),
            bounded_memory(),
            _open(path) as raster,
        ):
            require_free(folder, name, overwrite)  # another may have taken it meanwhile
            return _import(raster, path, claims, progress, name, folder)
    except Timeout as error:
        raise TileError(f"{name}: is being imported by another process; wait for it") from error


def _import(
    raster: DatasetReader,
    path: Path,
    claims: Claims,
    progress: Progress,
    name: str,
    folder: Path,
) -> Imported:
    source = _describe(raster, path, claims)
    progress("looking at every post", 0.0)
    found = survey(raster, source.path, source.nodata)
    reading = read_as_heights(
        found,
        source.path,
        scale=source.scale,
        offset=source.offset,
        units=source.units,
        radius=claims.radius,
        datum_radius_m=claims.datum_radius_m,
    )
    bogus = impossible(found, reading)
    holes = _holes(found, bogus)
    layout = _layout(raster, source.grid, reading, holes, claims.precision_m)
    target = folder / f"{name}.tif"
    fresh = folder / f".{name}.new.tif"
    blocks = _blocks(raster, source, reading, layout, tuple(bogus))
    try:
        write_cog(fresh, layout, blocks, progress)
        entry = _entry(fresh, source, reading, found, holes, claims, layout)
        with _in_place_of(target, fresh):
            add_entry(folder, name, entry.model_copy(update={"file": Path(target.name)}))
    finally:
        fresh.unlink(missing_ok=True)
    lines = [f"{reading.note}", *source.notes, *_suspect_lines(found, bogus, source.nodata)]
    lines.append(_hole_line(holes, found.posts, source.grid))
    return Imported(name, target, tuple(lines))


@contextmanager
def _in_place_of(target: Path, fresh: Path) -> Iterator[None]:
    """A file under its final name; the one it replaces comes back unless all goes well."""
    old = target.with_name(f".{target.name}.old")
    if target.exists():
        target.replace(old)
    try:
        fresh.replace(target)
        yield
    except BaseException:
        target.unlink(missing_ok=True)
        if old.exists():
            old.replace(target)
        raise
    old.unlink(missing_ok=True)


def _open(path: Path) -> DatasetReader:
    """By itself, or an image by the label beside it."""
    if not path.exists():
        raise TileError(f"{path}: no such file; expected a raster of heights")
    try:
        return open_dataset(path)
    except TileError:
        label_path = pds.find_label(path)
        if label_path is None and path.suffix.lower() == ".img":
            raise TileError(
                f"{path}: a PDS image without its label; put {path.stem}.LBL beside it"
            ) from None
        if label_path is None:
            raise
        if label_path != path:
            return open_dataset(label_path)
        image = pds.image_of(path, pds.read_label(path))
        if image is None:
            raise TileError(f"{path}: the image that it names is missing; put it beside") from None
        return open_dataset(image)


def _describe(raster: DatasetReader, path: Path, claims: Claims) -> _Source:
    if raster.count != 1:
        raise TileError(f"{path}: {raster.count} bands, expected one band of heights")
    label_path = pds.find_label(path)
    label = pds.read_label(label_path) if label_path else pds.Label()
    notes = []
    crs = _crs(raster, path, claims.crs)
    grid = grid_of(raster, crs)
    if raster.transform == Affine.identity() and not label:
        raise TileError(f"{path}: has no position on the Moon (no geotransform); georeference it")
    exact = pds.exact_transform(label, raster.transform) if not claims.crs else None
    if exact is not None:
        notes.append(
            "posting from MAP_RESOLUTION: MAP_SCALE is rounded, which would move the edge by "
            f"{abs(exact.c - raster.transform.c):.0f} m"
        )
        grid = grid_of(raster, crs, exact)
    scale, offset = float(raster.scales[0]), float(raster.offsets[0])
    if (scale, offset) == (1.0, 0.0) and label:
        scale = label.number("IMAGE.SCALING_FACTOR") or 1.0
        offset = label.number("IMAGE.OFFSET") or 0.0
    scale = claims.scale if claims.scale is not None else scale
    integer = np.dtype(raster.dtypes[0]).kind in "iu"
    if raster.driver == _JPEG2000 and integer and not label and claims.scale is None:
        raise TileError(
            f"{path}: JPEG 2000 holds no scale and there is no label beside it; put the .LBL there "
            "or pass --scale (0.5 for LOLA and SLDEM2015)"
        )
    named = (raster.units[0] or label.text("IMAGE.UNIT") or "").lower()
    nodata = claims.nodata
    if nodata is None:
        nodata = label.number("IMAGE.MISSING_CONSTANT")
    units = claims.units or _UNITS.get(named)
    return _Source(path, grid, scale, offset, units, nodata, tuple(notes))


def _crs(raster: DatasetReader, path: Path, claimed: str | None) -> CRS:
    if claimed is None:
        if raster.crs is None:
            raise TileError(
                f"{path}: no CRS; pass --crs {GEOGRAPHIC} if it is in latitude and longitude on "
                "the 1737.4 km sphere, or the CRS that it is in"
            )
        return require_moon(raster.crs, path)
    try:
        crs = CRS.from_user_input(claimed)
    except CRSError as error:
        raise TileError(f"--crs {claimed}: not a CRS that GDAL knows") from error
    if raster.crs is not None and raster.crs != crs:
        raise TileError(
            f"{path}: has a CRS of its own, {raster.crs.to_string()[:60]}; drop --crs, or relabel "
            "the file"
        )
    return require_moon(crs, path)


def _holes(found: Survey, bogus: dict[float, Posts]) -> Posts:
    holes = replace(found.missing)
    for posts in (found.huge, *bogus.values()):
        holes.merge(posts)
    return holes


def _layout(
    raster: DatasetReader, grid: Grid, reading: Reading, holes: Posts, precision_m: float
) -> Layout:
    integer = np.dtype(raster.dtypes[0]).kind in "iu"
    return Layout(
        crs=grid.crs,
        transform=grid.transform,
        width=raster.width,
        height=raster.height,
        dtype=raster.dtypes[0] if integer else "float32",
        scale=reading.scale if integer else 1.0,
        offset=reading.offset if integer else 0.0,
        masked=holes.count > 0,
        precision=precision_m,
    )


def _blocks(
    raster: DatasetReader,
    source: _Source,
    reading: Reading,
    layout: Layout,
    bogus: tuple[float, ...],
) -> Iterator[Block]:
    integer = np.dtype(layout.dtype).kind in "iu"
    for window in windows_of(layout.width, layout.height):
        values, valid = read_block(raster, source.path, window, source.nodata)
        numbers = values.astype(np.float64)
        valid = valid & ~np.isin(numbers, bogus)
        if not integer:
            valid &= np.abs(numbers) < 1e30
            numbers = reading.scale * numbers + reading.offset
        yield window, np.where(valid, values if integer else numbers, 0), valid


def _entry(
    target: Path,
    source: _Source,
    reading: Reading,
    found: Survey,
    holes: Posts,
    claims: Claims,
    layout: Layout,
) -> TileEntry:
    grid = source.grid
    with open_dataset(target) as written:
        crs = written.crs
    low, high = height_range_m(found, reading)
    return TileEntry(
        file=Path(target.name),
        product=claims.product or source.path.name,
        citation=claims.citation,
        licence=claims.licence,
        crs=GEOGRAPHIC if crs == CRS.from_string(GEOGRAPHIC) else crs.to_wkt(),
        datum_radius_m=RADIUS_M,
        units="m",
        scale=layout.scale,
        offset=layout.offset,
        posting_deg=grid.posting_m / DEGREE_M if grid.crs.is_geographic else None,
        effective_resolution_m=claims.effective_resolution_m or 2.0 * grid.posting_m,
        sha256=sha256_of(target),
        height_range_m=(round(low, 3), round(high, 3)),
        hole_share=holes.count / found.posts,
        source=claims.source or str(source.path),
        source_sha256=claims.source_sha256,
    )


def _suspect_lines(found: Survey, bogus: dict[float, Posts], nodata: float | None) -> Iterator[str]:
    for value, posts in bogus.items():
        yield f"{posts.count} posts hold {value:g}, no height on the Moon, undeclared: masked"
    if found.huge.count:
        yield f"{found.huge.count} posts are beyond 1e30, undeclared: masked"
    for value in found.suspects.keys() - bogus.keys():
        count = found.suspects[value].count
        if nodata != value and count > 1:
            yield f"{count} posts hold {value:g}: kept as a height; if it means missing, --nodata"


def _hole_line(holes: Posts, posts: int, grid: Grid) -> str:
    if holes.box is None:
        return "holes: none"
    first_row, last_row, first_column, last_column = holes.box
    t = grid.transform
    part = replace(
        grid,
        transform=t @ Affine.translation(first_column, first_row),
        width=last_column - first_column + 1,
        height=last_row - first_row + 1,
    )
    west, south, east, north = part.bounds_deg
    return (
        f"holes: {holes.count} of {posts} posts ({100 * holes.count / posts:.3g} %), rows "
        f"{first_row} to {last_row}, columns {first_column} to {last_column}; latitude "
        f"{south:.4f} to {north:.4f}, longitude {west:.4f} to {east:.4f} deg"
    )


def _name_of(path: Path) -> str:
    return re.sub(r"[^a-z0-9_.-]+", "_", path.stem.lower()).strip("_.") or "tile"


def require_free(folder: Path, name: str, overwrite: bool) -> None:
    """Refuse a name that is taken.

    Args:
        folder: of the manifest that it is for.
        name: of the tile.
        overwrite: an entry of the folder may be replaced.

    Raises:
        TileError: not a name, or a shipped tile's, or one of the folder.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise TileError(f"--name {name}: expected letters, digits, '_', '-' and '.'")
    if name in load_entries(datasets_dir()):
        raise TileError(f"{name}: the name of a tile that travels with tnav; pass another --name")
    path = folder / "manifest.yaml"
    if path.exists() and name in load_entries(folder) and not overwrite:
        raise TileError(f"{name}: already in {path}; pass --overwrite or another --name")
