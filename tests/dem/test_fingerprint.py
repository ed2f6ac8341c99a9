"""A tile's fingerprint changes with every file that its heights come from."""

import gzip
import os
from pathlib import Path

import numpy as np
import pytest
import rasterio.shutil
from rasterio.io import MemoryFile
from rasters_made import MOON, cylinder, write_ldem, write_tiff

from tnav.dem import manifest
from tnav.dem.importing import Claims, import_dem
from tnav.dem.tiles import open_raster, open_tile, sample_height_m
from tnav.errors import TileError

_VRT = """<VRTDataset rasterXSize="80" rasterYSize="80"><SRS>{crs}</SRS>
<GeoTransform>-5,0.05,0,62,0,-0.05</GeoTransform><VRTRasterBand dataType="Float32" band="1">
<SimpleSource><SourceFilename relativeToVRT="{beside}">{source}</SourceFilename>
<SourceBand>1</SourceBand></SimpleSource></VRTRasterBand></VRTDataset>"""


def _vrt(path, source, beside=1):
    path.write_text(_VRT.format(crs=MOON, source=source, beside=beside))
    return path


def _heights(path, shift_m=0.0):
    return write_tiff(path, (cylinder(80, 80) + shift_m).astype(np.float32))


def _later(path):
    """The same size, another time: what a clock of any grain shows sooner or later."""
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_vrt_changes_with_its_sources_however_deep(tmp_path, depth):
    source = _heights(tmp_path / "v0.tif")
    for level in range(1, depth + 1):
        suffix = "tif" if level == 1 else "vrt"
        top = _vrt(tmp_path / f"v{level}.vrt", f"v{level - 1}.{suffix}")
    before = open_raster(top).fingerprint
    assert open_raster(top).fingerprint == before
    _later(source)
    changed = open_raster(top).fingerprint
    assert changed != before
    _later(tmp_path / "v1.vrt")
    assert open_raster(top).fingerprint not in (before, changed)


def test_a_label_changes_with_its_image_and_so_does_a_vrt_over_it(tmp_path):
    label = write_ldem(tmp_path)
    rasterio.shutil.copy(label, tmp_path / "l.vrt", driver="VRT")
    before = open_raster(label).fingerprint, open_raster(tmp_path / "l.vrt").fingerprint
    _later(label.with_suffix(".IMG"))
    after = open_raster(label).fingerprint, open_raster(tmp_path / "l.vrt").fingerprint
    assert before[0] != after[0]
    assert before[1] != after[1]


def test_an_archive_stands_for_what_lies_in_it(tmp_path):
    _heights(tmp_path / "a.tif")
    packed = tmp_path / "a.tif.gz"
    packed.write_bytes(gzip.compress((tmp_path / "a.tif").read_bytes()))
    top = _vrt(tmp_path / "z.vrt", f"/vsigzip/{packed}", beside=0)
    before = open_raster(top).fingerprint
    _later(packed)
    assert open_raster(top).fingerprint != before


def test_a_source_that_nothing_can_be_told_of_is_refused(tmp_path):
    data = _heights(tmp_path / "a.tif").read_bytes()
    with MemoryFile(data, filename="m.tif") as memory:
        top = _vrt(tmp_path / "m.vrt", memory.name, beside=0)
        with pytest.raises(TileError, match=r"m.vrt: reads /vsimem/.*put a copy on this disk"):
            open_raster(top)


@pytest.mark.parametrize("hashed", [True, False])
def test_a_tile_too_large_to_hash_at_every_opening_changes_with_its_file(
    tmp_path, monkeypatch, hashed
):
    import_dem(_heights(tmp_path / "s.tif"), Claims(), lambda text, share: None, name="t")
    tile = open_tile("t")
    size = tile.path.stat().st_size
    monkeypatch.setattr(manifest, "_HASH_BYTES", size if hashed else size - 1)
    before = open_tile("t").fingerprint
    assert (before == tile.fingerprint) == hashed
    _later(tile.path)  # the bytes are what they were: a hash says so, a time does not
    assert (open_tile("t").fingerprint == before) == hashed
    data = bytearray(tile.path.read_bytes())
    data[len(data) // 2] ^= 1
    tile.path.write_bytes(data)
    if hashed:
        with pytest.raises(TileError, match="sha256"):
            open_tile("t")
    else:
        assert open_tile("t").fingerprint != before


def test_a_file_beside_a_hashed_tile_counts(tmp_path):
    import_dem(_heights(tmp_path / "s.tif"), Claims(), lambda text, share: None, name="t")
    before = open_tile("t")
    beside = Path(f"{before.path}.aux.xml")
    beside.write_text("<PAMDataset></PAMDataset>")
    assert open_tile("t").fingerprint != before.fingerprint
    at = np.array([60.0]), np.array([-3.0])
    assert sample_height_m(open_tile("t"), *at) == sample_height_m(before, *at)
