import numpy as np
import pytest
import rasterio
from rasterio.transform import Affine
from rasters_made import cylinder, relief_m

from tnav.config import datasets_dir
from tnav.dem import sampling, tiles
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
    with pytest.raises(TileError, match=r"n.tif: 1 of 1 points: .*missing or NaN posts"):
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

    source = datasets_dir()
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


def test_a_raster_of_anything_gives_values_and_nan(tmp_path):
    albedo = np.linspace(0.05, 0.3, 8000).reshape(80, 100).astype(np.float32)
    albedo[40, 50] = np.nan
    path = _raster(tmp_path / "albedo.tif", albedo)
    raster = tiles.open_raster(tmp_path / "albedo.tif")
    latitude = 62.0 - 0.05 * (np.array([10, 40, 10]) + 0.5)
    longitude = -5.0 + 0.05 * (np.array([20.5, 50, 20]) + 0.5) + np.array([0.0, 0.0, 90.0])
    found = tiles.sample_value(raster, latitude, longitude)
    assert found[0] == pytest.approx((albedo[10, 20] + albedo[10, 21]) / 2)
    assert np.isnan(found[1:]).all()
    assert raster.fingerprint == tiles.open_tile(path).fingerprint


def test_points_in_holes_are_counted_and_placed(tmp_path):
    heights = _quadratic()
    heights[30:50, 40:60] = np.nan
    tile = tiles.open_tile(_raster(tmp_path / "h.tif", heights))
    lat, lon = np.meshgrid(np.linspace(58.5, 61.5, 31), np.linspace(-4.5, -0.5, 41), indexing="ij")
    with pytest.raises(TileError, match=r"\d+ of 1271 points: .*latitude 59\.\d+ to 60\.\d+, lon"):
        tiles.sample_height_m(tile, lat, lon)
    # beyond the reach of a stencil (two posts) heights are those of the surface
    beside = np.array([62.0 - 0.05 * (29.5 - 2.1)]), np.array([-2.5])
    expected = 3 * beside[1] ** 2 - 2 * beside[0] * beside[1] + 5 * beside[0]
    assert tiles.sample_height_m(tile, *beside) == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize("west", [0.0, -180.0])
def test_a_tile_around_the_moon_has_no_seam(tmp_path, west):
    step = 1.0
    path = _raster(
        tmp_path / "g.tif",
        cylinder(180, 360, west=west, north=90.0, step=step).astype(np.float64),
        transform=Affine(step, 0, west, 0, -step, 90.0),
    )
    tile = tiles.open_tile(path)
    assert tile.grid.periodic
    lon = np.linspace(west - 2, west + 2, 81)
    lat = np.full_like(lon, 33.3)
    found = tiles.sample_height_m(tile, lat, lon)
    assert found == pytest.approx(relief_m(lat, lon), abs=0.01)
    assert tiles.sample_height_m(tile, lat, lon + 360) == pytest.approx(found, abs=1e-6)


def test_a_tile_over_the_antimeridian_takes_both_conventions(tmp_path):
    path = _raster(
        tmp_path / "a.tif",
        cylinder(80, 100, west=178.0),
        transform=Affine(0.05, 0, 178.0, 0, -0.05, 62.0),
    )
    tile = tiles.open_tile(path)
    assert not tile.grid.periodic
    for lon in (181.2, -178.8, 541.2):
        at = np.array([60.3]), np.array([lon])
        assert tiles.sample_height_m(tile, *at) == pytest.approx(relief_m(*at), abs=0.01)
    with pytest.raises(TileError, match="does not cover 1 of 1"):
        tiles.sample_height_m(tile, np.array([60.3]), np.array([177.9]))


def test_large_windows_are_read_in_pieces_without_a_trace(tmp_path, monkeypatch):
    tile = tiles.open_tile(_raster(tmp_path / "p.tif", cylinder(300, 300)))
    generator = np.random.default_rng(1)
    lat, lon = generator.uniform(47.5, 61.5, 400), generator.uniform(-4.5, 9.5, 400)
    whole = tiles.sample_height_m(tile, lat, lon)
    monkeypatch.setattr(sampling, "_PIECE_POSTS", 4000)
    assert tiles.sample_height_m(tile, lat, lon) == pytest.approx(whole, abs=1e-4)


def test_a_projection_that_does_not_reach_is_outside(tmp_path):
    polar = "+proj=stere +lat_0=90 +lon_0=0 +k=1 +R=1737400 +units=m +no_defs"
    path = _raster(
        tmp_path / "p.tif", _quadratic(), crs=polar, transform=Affine(1e3, 0, -5e4, 0, -1e3, 4e4)
    )
    tile = tiles.open_tile(path)
    with pytest.raises(TileError, match="does not cover 2 of 2 points"):
        tiles.sample_height_m(tile, np.array([-90.0, 20.0]), np.array([0.0, 0.0]))
