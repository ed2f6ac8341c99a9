import os
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.transform import Affine
from rasters_made import DEGREE_M, NORTH_POLE, cylinder, polar, relief_m, write_tiff

from tnav.cli import main
from tnav.dem.mosaic import Mosaic, aligned, measure_offsets, open_dem
from tnav.dem.tiles import Tile, open_tile, sample_height_m
from tnav.errors import TileError

SHARED = Path(os.environ.get("TNAV_REAL_DEMS", "nowhere"))  # GLD100 and LOLA crops of Frigoris
FEATHER_M = 20e3


def _flat(path, height_m, *, rows=100, columns=200, hole=None, **more):
    values = np.full((rows, columns), height_m, np.float32)
    if hole is not None:
        values[hole] = np.nan
    return str(write_tiff(path, values, **more))


def _two(tmp_path, hole=None):
    """A tile of 100 m that ends at 60 N over a wider one of 0 m."""
    high = _flat(tmp_path / "high.tif", 100.0, north=60.0, hole=hole)
    low = _flat(tmp_path / "low.tif", 0.0, rows=220, columns=400, west=-10.0, north=64.0)
    return open_dem([high, low], FEATHER_M)


def test_a_name_alone_is_the_tile_itself(tmp_path):
    path = _flat(tmp_path / "one.tif", 1.0)
    assert open_dem(path) == open_tile(path)
    assert isinstance(open_dem([path]), Tile)
    with pytest.raises(TileError, match="no tile named"):
        open_dem([])
    with pytest.raises(TileError, match="feather of 0 m"):
        open_dem([path, path], 0.0)
    with pytest.raises(TileError, match=r"gone.tif: no such DEM"):
        open_dem([path, "gone.tif"])


def test_the_seam_is_a_smoothstep_of_the_stated_width(tmp_path):
    mosaic = _two(tmp_path)
    edge = 60.0 - 0.025  # the northernmost post of the higher tile
    inside_m = np.linspace(0, 1.5 * FEATHER_M, 61)[1:]
    latitude = edge - inside_m / DEGREE_M
    longitude = np.zeros_like(latitude)
    share = np.clip(inside_m / FEATHER_M, 0, 1)
    expected = 100 * share**2 * (3 - 2 * share)
    found = sample_height_m(mosaic, latitude, longitude)
    assert found == pytest.approx(expected, abs=2e-3)
    beyond = sample_height_m(mosaic, np.array([edge + 1e-3, 62.0]), np.array([0.0, 0.0]))
    assert beyond == pytest.approx(0.0, abs=1e-9)


def test_east_and_west_edges_are_feathered_in_ground_metres(tmp_path):
    mosaic = _two(tmp_path)
    latitude = np.array([57.5])
    for longitude_edge, sign in ((-5 + 0.025, 1), (5 - 0.025, -1)):
        half = FEATHER_M / 2 / (DEGREE_M * np.cos(np.deg2rad(57.5)))
        found = sample_height_m(mosaic, latitude, np.array([longitude_edge + sign * half]))
        assert found == pytest.approx(50.0, abs=0.01)


def test_a_hole_shows_the_lower_tile_and_its_border_is_continuous(tmp_path):
    mosaic = _two(tmp_path, hole=(slice(40, 50), slice(90, 110)))
    west, east = -5 + 90 * 0.05, -5 + 110 * 0.05
    longitude = np.linspace(west - 1.5, east + 1.5, 4001)
    latitude = np.full_like(longitude, 60 - 45 * 0.05)
    found = sample_height_m(mosaic, latitude, longitude)
    assert found[2000] == pytest.approx(0.0, abs=1e-6)
    assert found[0] == pytest.approx(100.0, abs=1e-6)
    # a smoothstep of 100 m over the feather rises by at most 1.5 * 100 / feather; bilinear
    # distances may double that where they turn a corner
    step_m = (longitude[1] - longitude[0]) * DEGREE_M * np.cos(np.deg2rad(latitude[0]))
    assert np.abs(np.diff(found)).max() <= 2 * 1.5 * 100 / FEATHER_M * step_m


def test_windows_do_not_change_what_is_found(tmp_path):
    mosaic = _two(tmp_path, hole=(slice(40, 50), slice(90, 110)))
    generator = np.random.default_rng(3)
    latitude, longitude = generator.uniform(55.5, 63, 300), generator.uniform(-9, 9, 300)
    whole = sample_height_m(mosaic, latitude, longitude)
    singly = [
        float(sample_height_m(mosaic, latitude[k : k + 1], longitude[k : k + 1])[0])
        for k in range(0, 300, 7)
    ]
    assert whole[::7] == pytest.approx(singly, abs=1e-6)


def test_tiles_of_the_same_ground_make_the_same_ground(tmp_path):
    fine = str(write_tiff(tmp_path / "fine.tif", cylinder(200, 200).astype(np.float32)))
    step = 3000.0
    grid = Affine(step, 0, -400 * step, 0, -step, 400 * step)
    values = polar(800, step).astype(np.float32)
    wide = str(write_tiff(tmp_path / "wide.tif", values, crs=NORTH_POLE, transform=grid))
    mosaic = open_dem([fine, wide], FEATHER_M)
    generator = np.random.default_rng(5)
    latitude, longitude = generator.uniform(53, 70, 200), generator.uniform(-10, 10, 200)
    found = sample_height_m(mosaic, latitude, longitude)
    assert found == pytest.approx(relief_m(latitude, longitude), abs=0.05)
    assert mosaic.posting_m == pytest.approx(0.05 * DEGREE_M)
    assert mosaic.effective_resolution_m == pytest.approx(6000.0)
    here = mosaic.resolution_m(np.array([57.0, 70.0, -10.0]), np.array([0.0, 0.0, 0.0]))
    assert here[:2] == pytest.approx([0.1 * DEGREE_M, 6000.0], rel=1e-3)
    assert np.isnan(here[2])


def test_where_no_tile_has_data_every_tile_says_why(tmp_path):
    mosaic = _two(tmp_path)
    with pytest.raises(TileError, match=r"2 of 3 points: no tile has them: high: .*; low: "):
        sample_height_m(mosaic, np.array([57.0, 20.0, 21.0]), np.zeros(3))


def test_offsets_are_measured_said_and_taken_out_only_when_asked_for(tmp_path, capsys):
    mosaic = _two(tmp_path)
    (offset,) = measure_offsets(mosaic)
    assert (offset.name, offset.reference) == ("low", "high")
    assert offset.median_m == pytest.approx(-100.0, abs=1e-3)
    assert offset.sigma_m == pytest.approx(0.0, abs=1e-3)
    assert mosaic.offsets_m == (0.0, 0.0)
    level = aligned(mosaic, (offset,))
    assert sample_height_m(level, np.array([62.0]), np.array([0.0])) == pytest.approx(100.0)
    assert level.fingerprint != mosaic.fingerprint
    far = _flat(tmp_path / "far.tif", 0.0, north=-10.0)
    apart = open_dem([str(tmp_path / "high.tif"), far])
    assert isinstance(apart, Mosaic)
    assert measure_offsets(apart) == ()
    with pytest.raises(SystemExit):
        main(["dem", "info", f"{tmp_path / 'high.tif'},{tmp_path / 'low.tif'}"])
    assert "low lies -100.00 m above high" in capsys.readouterr().out


def test_fingerprints_follow_the_data_the_order_and_the_feather(tmp_path):
    a, b = _flat(tmp_path / "a.tif", 1.0), _flat(tmp_path / "b.tif", 2.0)
    prints = {
        open_dem(a).fingerprint,
        open_dem(b).fingerprint,
        open_dem([a, b]).fingerprint,
        open_dem([b, a]).fingerprint,
        open_dem([a, b], 1e3).fingerprint,
    }
    assert len(prints) == 5
    assert open_dem([a, b]).fingerprint == open_dem([a, b]).fingerprint
    _flat(tmp_path / "a.tif", 3.0, rows=101)
    assert open_dem(a).fingerprint not in prints


def test_overviews_are_used_only_down_to_the_posting_asked_for(tmp_path):
    path = write_tiff(
        tmp_path / "o.tif", cylinder(512, 512).astype(np.float32), tiled=True, blockxsize=256
    )
    with rasterio.open(path, "r+") as raster:
        raster.build_overviews([2, 4], rasterio.enums.Resampling.average)
    tile = open_tile(str(path))
    assert tile.at_posting(1.9 * tile.posting_m) == tile
    coarse = tile.at_posting(3.9 * tile.posting_m)
    assert coarse.posting_m == pytest.approx(2 * tile.posting_m)
    assert tile.at_posting(1e6).posting_m == pytest.approx(4 * tile.posting_m)
    at = np.array([50.0, 45.0]), np.array([5.0, 10.0])
    assert sample_height_m(coarse, *at) == pytest.approx(sample_height_m(tile, *at), abs=1.0)


@pytest.mark.skipif(not SHARED.exists(), reason="TNAV_REAL_DEMS names no folder")
def test_gld100_over_lola_has_no_step_at_the_seam():
    names = [
        str(SHARED / "frigoris_gld100_256ppd_50_66N_20W_12E.tif"),
        str(SHARED / "lola_ldem16_35_75N_70W_70E.tif"),
    ]
    mosaic = open_dem(names)
    latitude = np.linspace(65.5, 66.5, 4001)
    height = sample_height_m(mosaic, latitude, np.full_like(latitude, -3.0))
    step_m = DEGREE_M * (latitude[1] - latitude[0])
    assert np.abs(np.diff(height)).max() < 0.6 * step_m  # 31 deg, no wall
    (offset,) = measure_offsets(mosaic)
    assert abs(offset.median_m) < 20
