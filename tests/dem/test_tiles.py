import numpy as np
import pytest
import rasterio
from rasterio.transform import Affine

from tnav.dem import tiles
from tnav.errors import TileError


def _raster(path, heights, crs="IAU_2015:30100", **more):
    profile = {
        "driver": "GTiff",
        "count": 1,
        "dtype": heights.dtype.name,
        "height": heights.shape[0],
        "width": heights.shape[1],
        "transform": Affine(0.05, 0.0, -5.0, 0.0, -0.05, 62.0),
        "crs": crs,
    }
    with rasterio.open(path, "w", **{**profile, **more}) as raster:
        raster.write(heights, 1)
    return str(path)


def _quadratic(rows=80, columns=100):
    """Heights that a cubic spline reproduces: 3 lon^2 - 2 lat lon + 5 lat."""
    lon = -5.0 + 0.05 * (np.arange(columns) + 0.5)
    lat = 62.0 - 0.05 * (np.arange(rows) + 0.5)
    return (3 * lon**2 - 2 * lat[:, None] * lon + 5 * lat[:, None]).astype(np.float32)


def test_manifest_tile_is_sound_and_covers_mare_frigoris():
    tile = tiles.open_tile("lola_ldem16_frigoris")
    assert tile.posting_m == pytest.approx(1895.2, abs=0.1)
    assert tile.bounds == (-60.0, 44.0, 60.0, 70.0)
    height = tiles.sample_height_m(tile, np.array([60.5]), np.array([-4.6]))
    assert -2700 < float(height[0]) < -2200  # the mare's floor
    same = tiles.sample_height_m(tile, np.array([60.5]), np.array([355.4]))
    assert same == pytest.approx(height)


def test_spline_reproduces_a_quadratic(tmp_path):
    tile = tiles.open_tile(_raster(tmp_path / "q.tif", _quadratic()))
    generator = np.random.default_rng(0)
    lat, lon = generator.uniform(59.5, 60.5, 50), generator.uniform(-3.5, -1.5, 50)
    expected = 3 * lon**2 - 2 * lat * lon + 5 * lat
    assert tiles.sample_height_m(tile, lat, lon) == pytest.approx(expected, abs=2e-3)


def test_scale_and_offset_of_a_users_file_are_applied(tmp_path):
    path = _raster(tmp_path / "s.tif", np.full((80, 100), 10, np.int16))
    with rasterio.open(path, "r+") as raster:
        raster.scales, raster.offsets = (0.5,), (100.0,)
    tile = tiles.open_tile(path)
    assert tiles.sample_height_m(tile, np.array([60.0]), np.array([-3.0])) == pytest.approx(105.0)


def test_projected_moon_crs_is_read_through_its_projection(tmp_path):
    polar = "+proj=stere +lat_0=90 +lon_0=0 +k=1 +R=1737400 +units=m +no_defs"
    rows = columns = 200
    heights = np.tile(np.arange(columns, dtype=np.float32), (rows, 1))
    corner = (-1.2e6, 1.2e6)
    transform = Affine(12000.0, 0.0, corner[0], 0.0, -12000.0, corner[1])
    path = _raster(tmp_path / "p.tif", heights, crs=polar, transform=transform)
    tile = tiles.open_tile(path)
    # On the meridian of 90 E a polar stereographic x is 2 R tan(colatitude / 2)
    x = 2 * 1737400 * np.tan(np.radians(90 - 75) / 2)
    expected = (x - corner[0]) / 12000.0 - 0.5
    found = tiles.sample_height_m(tile, np.array([75.0]), np.array([90.0]))
    assert found == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ("crs", "message"),
    [("EPSG:4326", "radius 6378.1 km, expected the Moon"), (None, "no CRS; expected a Moon CRS")],
)
def test_wrong_crs_is_refused(tmp_path, crs, message):
    path = _raster(tmp_path / "e.tif", _quadratic(), crs=crs)
    with pytest.raises(TileError, match=message):
        tiles.open_tile(path)


@pytest.mark.parametrize("bad", [np.nan, -32768.0])
def test_nan_and_nodata_are_refused_where_they_are_asked_for(tmp_path, bad):
    heights = _quadratic()
    heights[40, 50] = bad
    tile = tiles.open_tile(_raster(tmp_path / "n.tif", heights, nodata=-32768.0))
    with pytest.raises(TileError, match=r"n.tif: 1 missing or NaN posts in rows"):
        tiles.sample_height_m(tile, np.array([60.0]), np.array([-2.5]))
    far = tiles.sample_height_m(tile, np.array([61.5]), np.array([-4.5]))
    assert np.isfinite(far).all()


def test_a_point_outside_is_refused_and_the_last_post_is_not(tmp_path):
    tile = tiles.open_tile(_raster(tmp_path / "o.tif", _quadratic()))
    edge = 62.0 - 0.025
    assert np.isfinite(tiles.sample_height_m(tile, np.array([edge]), np.array([-3.0]))).all()
    with pytest.raises(TileError, match="does not cover"):
        tiles.sample_height_m(tile, np.array([edge + 0.001]), np.array([-3.0]))


def test_missing_unreadable_and_damaged_files(tmp_path, monkeypatch):
    with pytest.raises(TileError, match=r"no such DEM; .*lola_ldem16_frigoris"):
        tiles.open_tile("nowhere.tif")
    (tmp_path / "text.tif").write_text("not a raster")
    with pytest.raises(TileError, match="not a raster that GDAL can read"):
        tiles.open_tile(str(tmp_path / "text.tif"))

    source = tiles.datasets_dir()
    (tmp_path / "tiles").mkdir()
    (tmp_path / "manifest.yaml").write_text((source / "manifest.yaml").read_text())
    monkeypatch.setenv("TNAV_DATASETS", str(tmp_path))
    with pytest.raises(TileError, match="missing file of tile"):
        tiles.open_tile("lola_ldem16_frigoris")
    name = "tiles/lola_ldem16_44_70N_60W_60E.tif"
    damaged = bytearray((source / name).read_bytes())
    damaged[5000] ^= 1
    (tmp_path / name).write_bytes(damaged)
    with pytest.raises(TileError, match=r"sha256 .* but manifest.yaml says"):
        tiles.open_tile("lola_ldem16_frigoris")


@pytest.mark.parametrize(("height", "accepted"), [(19_999.0, True), (20_001.0, False)])
def test_heights_that_no_moon_has_are_refused(tmp_path, height, accepted):
    heights = np.full((80, 100), height, np.float32)
    tile = tiles.open_tile(_raster(tmp_path / "h.tif", heights))
    here = np.array([60.0]), np.array([-2.5])
    if accepted:
        assert np.isfinite(tiles.sample_height_m(tile, *here)).all()
        return
    with pytest.raises(TileError, match="expected within 20 km of the sphere"):
        tiles.sample_height_m(tile, *here)


def test_posting_of_a_projection_in_kilometres(tmp_path):
    crs = "+proj=stere +lat_0=90 +lon_0=0 +k=1 +R=1737400 +units=km +no_defs"
    transform = Affine(12.0, 0.0, -1200.0, 0.0, -12.0, 1200.0)
    path = _raster(tmp_path / "k.tif", _quadratic(), crs=crs, transform=transform)
    assert tiles.open_tile(path).posting_m == pytest.approx(12_000.0)


def test_damaged_blocks_are_refused(tmp_path):
    path = _raster(tmp_path / "d.tif", _quadratic(400, 400), compress="deflate", tiled=True)
    data = bytearray((tmp_path / "d.tif").read_bytes())
    data[2000:-2000] = bytes(len(data) - 4000)
    (tmp_path / "d.tif").write_bytes(data)
    tile = tiles.open_tile(path)
    with pytest.raises(TileError, match="damaged, blocks cannot be read"):
        tiles.sample_height_m(tile, np.array([52.0]), np.array([5.0]))


def test_two_bands_are_refused(tmp_path):
    path = tmp_path / "b.tif"
    profile = {"driver": "GTiff", "dtype": "float32", "height": 8, "width": 8, "count": 2}
    transform = Affine(0.1, 0.0, 0.0, 0.0, -0.1, 1.0)
    with rasterio.open(path, "w", crs="IAU_2015:30100", transform=transform, **profile) as raster:
        raster.write(np.zeros((2, 8, 8), np.float32))
    with pytest.raises(TileError, match="2 bands"):
        tiles.open_tile(str(path))
