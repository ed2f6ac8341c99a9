"""Cylindrical tiles up to the poles: half a post lies between the last row and the pole."""

import numpy as np
import pytest
from rasterio.transform import Affine
from rasters_made import cylinder, relief_m, write_ldem, write_tiff

from tnav.dem.importing import Claims, import_dem
from tnav.dem.mosaic import Mosaic
from tnav.dem.tiles import open_raster, open_tile, sample_height_m
from tnav.errors import TileError

STEP = 1.0


def _global(path, *, west=0.0, south_up=False):
    values = cylinder(180, 360, west=west, north=90.0, step=STEP).astype(np.float64)
    transform = Affine(STEP, 0, west, 0, -STEP, 90.0)
    if south_up:
        values, transform = values[::-1].copy(), Affine(STEP, 0, west, 0, STEP, -90.0)
    return open_raster(write_tiff(path, values, transform=transform))


@pytest.mark.parametrize("south_up", [False, True])
@pytest.mark.parametrize("west", [0.0, -180.0])
def test_a_global_tile_has_heights_wherever_it_says_it_covers(tmp_path, west, south_up):
    tile = _global(tmp_path / "g.tif", west=west, south_up=south_up)
    latitude, longitude = np.meshgrid(
        [-90.0, -89.75, -89.5, 0.0, 89.5, 89.75, 90.0], np.linspace(-360.0, 360.0, 97)
    )
    found = sample_height_m(tile, latitude, longitude)
    last = np.clip(latitude, -89.5, 89.5)  # the outermost posts hold up to the pole
    assert found == pytest.approx(sample_height_m(tile, last, longitude), abs=1e-9)
    assert found == pytest.approx(relief_m(latitude, longitude), abs=0.6)


def test_beyond_the_pole_there_is_nothing(tmp_path):
    tile = _global(tmp_path / "g.tif")
    with pytest.raises(TileError, match="does not cover 2 of 2"):
        sample_height_m(tile, np.array([90.2, -90.2]), np.zeros(2))


@pytest.mark.parametrize(("gap_posts", "reaches"), [(0.0, True), (0.05, True), (0.2, False)])
def test_a_tile_that_ends_short_of_the_pole_ends_there(tmp_path, gap_posts, reaches):
    north = 90.0 - gap_posts * STEP
    values = cylinder(30, 360, west=0.0, north=north, step=STEP)
    tile = open_raster(write_tiff(tmp_path / "c.tif", values, west=0.0, north=north, step=STEP))
    assert (tile.grid.pole_first, tile.grid.pole_last) == (reaches, False)
    found = tile.samples(np.array([90.0, north - 0.4 * STEP, 60.2]), np.zeros(3))
    assert (~found.outside).tolist() == [reaches, reaches, False]


def test_posts_on_the_pole_itself_need_no_clamp(tmp_path):
    north = 90.0 + STEP / 2
    values = cylinder(31, 360, west=0.0, north=north, step=STEP)
    tile = open_raster(write_tiff(tmp_path / "p.tif", values, west=0.0, north=north, step=STEP))
    assert not tile.grid.pole_first
    assert sample_height_m(tile, np.array([90.0]), np.array([7.5])) == pytest.approx(100.0)


def test_a_projected_global_product_and_its_overviews_reach_the_poles(tmp_path):
    done = import_dem(write_ldem(tmp_path), Claims(), lambda text, share: None)
    tile = open_tile(done.name)
    latitude = np.array([90.0, 89.9, -90.0, -89.8])
    longitude = np.array([0.0, 359.99, 180.0, -0.01])
    for each in (tile, tile.at_posting(4 * tile.posting_m)):
        assert (each.grid.pole_first, each.grid.pole_last) == (True, True)
        found = sample_height_m(each, latitude, longitude)
        assert found == pytest.approx(relief_m(latitude, longitude), abs=2.0)


def test_a_pole_is_no_edge_for_a_seam(tmp_path):
    tile = _global(tmp_path / "g.tif")
    reach_m = 50e3
    found = tile.samples(np.array([90.0, 89.6, -89.6]), np.zeros(3), reach_m=reach_m)
    assert found.distance_m == pytest.approx(reach_m)
    below = _global(tmp_path / "b.tif")
    mosaic = Mosaic((tile, below), reach_m, (0.0, 1000.0))
    at = np.array([90.0]), np.array([3.0])
    assert mosaic.heights_m(*at) == pytest.approx(tile.heights_m(*at))
