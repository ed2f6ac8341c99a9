"""Cloud-optimised GeoTIFFs with mask and overviews, written block by block.

GDAL's COG driver only copies: the blocks go to a plain tiled GeoTIFF first, in a folder beside the
target that vanishes with it. Floats are LERC at a stated largest error, integers stay as they are.
"""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
import rasterio.shutil
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.errors import RasterioError
from rasterio.windows import Window

from tnav.errors import TileError

BLOCK = 512
PIECE = 4 * BLOCK  # read and written at once: 32 MiB of float64
PRECISION_M = 0.01
Progress = Callable[[str, float], None]
Block = tuple[Window, NDArray[np.generic], NDArray[np.bool_]]  # where, values, which are there


@dataclass(frozen=True, slots=True)
class Layout:
    """A raster to write."""

    crs: CRS
    transform: Affine
    width: int
    height: int
    dtype: str
    scale: float
    offset: float
    masked: bool  # there are holes
    precision: float  # largest error of a float value; 0 keeps every bit


def windows_of(width: int, height: int) -> Iterator[Window]:
    """Pieces of a raster, row by row."""
    for top in range(0, height, PIECE):
        for left in range(0, width, PIECE):
            yield Window(left, top, min(PIECE, width - left), min(PIECE, height - top))


def write_cog(path: Path, layout: Layout, blocks: Iterator[Block], progress: Progress) -> None:
    """Write a COG: aside first, then renamed.

    Args:
        path: target; its folder is made.
        layout: of the whole.
        blocks: all of it, in any order; values under the mask do not matter.
        progress: called with what is done and the share of it.

    Raises:
        TileError: GDAL could not write it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}-") as folder:
        plain, done = Path(folder) / "plain.tif", Path(folder) / "cog.tif"
        try:
            with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
                _write_plain(plain, layout, blocks, progress)
                progress("overviews", 0.7)
                rasterio.shutil.copy(plain, done, driver="COG", **_creation(layout))
        except RasterioError as error:
            raise TileError(f"{path}: could not be written: {error}") from error
        done.replace(path)
    progress("written", 1.0)


def _write_plain(path: Path, layout: Layout, blocks: Iterator[Block], progress: Progress) -> None:
    profile = {
        "driver": "GTiff",
        "count": 1,
        "dtype": layout.dtype,
        "width": layout.width,
        "height": layout.height,
        "crs": layout.crs,
        "transform": layout.transform,
        "tiled": True,
        "blockxsize": BLOCK,
        "blockysize": BLOCK,
        "compress": "zstd",
        "zstd_level": 1,
        "BIGTIFF": "IF_SAFER",
    }
    written, total = 0, layout.width * layout.height
    with rasterio.open(path, "w", **profile) as raster:
        raster.scales, raster.offsets = (layout.scale,), (layout.offset,)
        raster.units = ("m",)
        raster.update_tags(UNITS="scale * DN + offset = metres above the 1737.4 km sphere")
        for window, values, valid in blocks:
            raster.write(values.astype(layout.dtype), 1, window=window)
            if layout.masked:
                raster.write_mask(valid, window=window)
            written += values.size
            progress("heights", 0.7 * written / total)


def _creation(layout: Layout) -> dict[str, str]:
    options = {
        "BLOCKSIZE": str(BLOCK),
        "OVERVIEWS": "AUTO",
        "OVERVIEW_RESAMPLING": "AVERAGE",
        "BIGTIFF": "IF_SAFER",
        "NUM_THREADS": "ALL_CPUS",
    }
    if np.dtype(layout.dtype).kind == "f":
        return {**options, "COMPRESS": "LERC_ZSTD", "MAX_Z_ERROR": repr(layout.precision)}
    return {**options, "COMPRESS": "DEFLATE", "PREDICTOR": "YES"}
