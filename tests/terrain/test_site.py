import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch

from tnav.dem.mosaic import open_dem
from tnav.dem.tiles import sample_height_m
from tnav.errors import TileError
from tnav.geometry.moon import RADIUS_M
from tnav.terrain.cache import HeightCache
from tnav.terrain.lattice import Window
from tnav.terrain.levels import Pyramid, restrict, up_in_L_
from tnav.terrain.site import MapQuality, Site, build_truth, degrade
from tnav.terrain.synthetic import Relief, Resolution, relief_m

SITE = Site(latitude_deg=60.5, longitude_deg=-4.6, cells=128, levels=6, finest_post_m=16.0)
RIM = 17  # posts that Terrain fades into the level around, and their neighbours
DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture(scope="module")
def truth():
    return build_truth(SITE, seed=1)


def test_levels_are_nested_around_the_site(truth):
    posts = [level.post_m for level in truth.levels]
    assert posts == [16.0, 32.0, 64.0, 128.0, 256.0, 512.0]
    for level in truth.levels:
        assert level.z_L.shape == (129, 129)
        assert level.west_m == -64 * level.post_m


def test_ground_follows_the_dem_and_the_sphere(truth):
    """At a post of the coarsest level the height over the sphere is the DEM's, but for relief."""
    level = truth.levels[-1]
    xy = torch.tensor([[-20e3, 10e3], [15e3, 25e3], [0.0, -30e3]], dtype=torch.float64)
    z, inside = truth.height_L(xy, first_level=5)
    assert bool(inside.all())
    p = torch.cat([xy, z[:, None]], -1)
    lat, lon, height = SITE.frame.geodetic(p)
    dem = sample_height_m(open_dem(SITE.dem), lat.numpy(), lon.numpy())
    # craters of 2.5 to 4 km and roughness under 4 km are added: tens of metres
    assert torch.allclose(height, torch.from_numpy(dem), atol=250.0)
    assert level.z_L.shape[0] == 129
    corner_m = RADIUS_M - math.sqrt(RADIUS_M**2 - 2 * 32768.0**2)  # 618 m of sag
    assert -corner_m - 3500 < float(level.z_L[0, 0]) < -corner_m - 1000  # the mare lies low


def test_every_level_averages_to_the_coarser(truth):
    for fine, coarse in zip(truth.levels, truth.levels[1:], strict=False):
        inner = fine.z_L[RIM:-RIM, RIM:-RIM].double()  # row 1 of it is row 18 of the level: even
        average = restrict(inner)
        row0 = round((fine.south_m - coarse.south_m) / coarse.post_m) + (RIM + 1) // 2
        n = average.shape[0]
        kept = coarse.z_L[row0 : row0 + n, row0 : row0 + n]
        assert torch.allclose(average.float(), kept, rtol=0, atol=4e-4)
        assert (inner[1::2, 1::2][:n, :n] - kept).abs().max() > 0.05


@pytest.mark.parametrize("cells", [64, 72, 128])
def test_a_site_is_windows_of_the_lattice(cells):
    """However narrow its levels are: what lies beyond them is computed where it is needed."""
    site = SITE.model_copy(update={"cells": cells, "levels": 3})
    built = build_truth(site, seed=1)
    pyramid = Pyramid(site.frame, 16.0, 3, open_dem(site.dem), site.relief, 1)
    for k, level in enumerate(built.levels):
        window = pyramid.window(k, -cells // 2, -cells // 2, cells + 1, cells + 1)
        inner = slice(RIM, -RIM) if k < 2 else slice(None)
        expected = up_in_L_(pyramid.rise_m(k, window), window)[inner, inner]
        assert torch.allclose(level.z_L[inner, inner], expected, rtol=0, atol=1e-3)
        assert (level.south_m, level.west_m) == (window.south_m, window.west_m)


def test_levels_are_kept_from_run_to_run(truth, tmp_path, monkeypatch):
    cache = HeightCache(tmp_path)
    first = build_truth(SITE, seed=1, cache=cache)
    other = build_truth(SITE, seed=2, cache=cache)
    monkeypatch.setattr("tnav.terrain.levels.relief_m", None)  # nothing is computed any more
    for kept, expected in ((build_truth(SITE, seed=1, cache=cache), truth), (first, truth)):
        for a, b in zip(kept.levels, expected.levels, strict=True):
            assert torch.equal(a.z_L, b.z_L)
    again = build_truth(SITE, seed=2, cache=cache)
    assert torch.equal(again.levels[0].z_L, other.levels[0].z_L)
    with pytest.raises(TypeError):
        build_truth(SITE, seed=3, cache=cache)


def test_progress_is_told_level_by_level():
    told = []
    build_truth(SITE.model_copy(update={"levels": 4}), seed=1, progress=told.append)
    assert told == [0.25, 0.5, 0.75, 1.0]


def test_the_relief_is_the_recipes(truth):
    rough = SITE.model_copy(update={"relief": Relief(rms_deviation_17m_m=3.0)})
    assert not torch.equal(build_truth(rough, seed=1).levels[0].z_L, truth.levels[0].z_L)


_MEASURED = """
import resource
import torch
from tnav.terrain.site import Site, build_truth
def resident_mb():
    with open("/proc/self/statm") as pages:
        return int(pages.read().split()[1]) * resource.getpagesize() / 1e6
torch.set_num_threads(1)
before = resident_mb()
site = Site(latitude_deg=60.5, longitude_deg=-4.6, cells=2048, levels=6, finest_post_m=4.0)
truth = build_truth(site, 1)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
print(peak - before)
"""


@pytest.mark.slow
def test_six_levels_of_2048_posts_take_less_than_600_mb():
    """The most that building and the finished terrain ever add to a fresh process."""
    run = subprocess.run(
        [sys.executable, "-c", _MEASURED], capture_output=True, text=True, check=True, timeout=300
    )
    added_mb = float(run.stdout)
    heights_mb = 6 * 2049**2 * 4 / 1e6
    assert heights_mb < added_mb < 600


@pytest.mark.parametrize(
    "dem",
    [
        "frigoris_gld100_256ppd_50_66N_20W_12E.tif",
        "frigoris_gld100_64ppd_40_72N_60W_60E.tif",
        "lola_ldem16_35_75N_70W_70E.tif",
    ],
)
def test_sites_over_larger_dems(dem):
    """Ground follows DEMs that are finer and coarser than its posts, over the LOLA tile."""
    if not (DATA / dem).exists():
        pytest.skip(f"{dem} is not here")
    site = Site(
        latitude_deg=60.5,
        longitude_deg=-4.6,
        cells=64,
        levels=6,
        finest_post_m=16.0,
        dem=[str(DATA / dem), "lola_ldem16_frigoris"],
    )
    built = build_truth(site, seed=1)
    for level in range(6):
        xy = torch.tensor([[96.0, -64.0], [0.0, 128.0]], dtype=torch.float64)
        z, _ = built.height_L(xy, first_level=level)
        lat, lon, height = site.frame.geodetic(torch.cat([xy, z[:, None]], -1))
        expected = sample_height_m(open_dem(site.dem), lat.numpy(), lon.numpy())
        assert torch.allclose(height, torch.from_numpy(expected), atol=100.0)


def test_a_mosaic_draws_no_relief_that_its_finer_tile_holds(tmp_path):
    """Inside it, the ground is that of the tile alone."""
    rows, cols, posting_deg = 300, 600, 0.02  # 606 m along a meridian
    wavy = 40 * np.sin(np.arange(rows) / 3)[:, None] * np.cos(np.arange(cols) / 5)[None, :] - 2400
    fine = tmp_path / "fine.tif"
    with rasterio.open(
        fine, "w", driver="GTiff", width=cols, height=rows, count=1, dtype="float32",
        crs="IAU_2015:30100",
        transform=rasterio.transform.Affine(posting_deg, 0, -10.6, 0, -posting_deg, 63.5),
    ) as raster:  # fmt: skip
        raster.write(wavy.astype("float32"), 1)
    coarse = "lola_ldem16_frigoris"
    shape = {"latitude_deg": 60.5, "longitude_deg": -4.6, "cells": 128, "levels": 4}
    alone, over = (
        build_truth(Site(finest_post_m=32.0, dem=dem, **shape), seed=1)
        for dem in ([str(fine)], [str(fine), coarse])
    )
    for a, b in zip(alone.levels, over.levels, strict=True):
        assert (a.z_L - b.z_L).abs().max() < 0.01


def test_where_a_finer_tile_ends_relief_begins_without_a_step(tmp_path):
    """Roughness of a wavelength fades in over the feather, as a function of place."""
    held = Resolution((100.0, 4000.0), lambda east, north: np.clip(100 + east, 100.0, 4000.0))
    window = Window(16.0, -64, -64, 513, 513)
    limits = {"diameter_max_m": 4000.0, "wavelength_max_m": 4000.0, "seed": 2}
    plain = Relief(boulders=False)
    z = relief_m(window, plain, resolution=held, **limits)
    part = relief_m(Window(16.0, 30, 100, 200, 150), plain, resolution=held, **limits)
    assert (z[94:294, 164:314] - part).abs().max() < 1e-3
    west, east = z[:, :60], z[:, -120:]
    full = relief_m(window, plain, **limits)
    assert (east - full[:, -120:]).abs().max() < 1e-4
    assert float(west.std()) < 0.3 * float(full[:, :60].std())
    step = z.diff(dim=1).abs().max(dim=0).values
    assert float(step.max()) < 1.2 * float(full.diff(dim=1).abs().max())


def test_seed_decides(truth):
    again = build_truth(SITE, seed=1)
    other = build_truth(SITE, seed=2)
    for a, b, c in zip(truth.levels, again.levels, other.levels, strict=True):
        assert torch.equal(a.z_L, b.z_L)
        assert not torch.equal(a.z_L, c.z_L)


def test_map_is_not_truth(truth):
    quality = MapQuality(vertical_rms_m=3.0, vertical_correlation_m=300.0, shift_m=2.0)
    terrain_map = degrade(truth, quality, seed=3)
    for true, seen in zip(truth.levels, terrain_map.levels, strict=True):
        assert seen.post_m == 2 * true.post_m
        shift = math.hypot(seen.west_m - true.west_m, seen.south_m - true.south_m)
        assert shift == pytest.approx(2.0)


def test_map_error_has_the_stated_size_and_correlation():
    """Over a smooth ground the map's error is the field itself: rms 3 m, exp(-d^2 / 2 L^2)."""
    site = Site(latitude_deg=60.5, longitude_deg=-4.6, cells=512, levels=2, finest_post_m=100.0)
    smooth = build_truth(site, seed=1)
    perfect = degrade(smooth, MapQuality(vertical_rms_m=0.0, shift_m=0.0), seed=0)
    squares, products = [], []
    for seed in range(8):
        quality = MapQuality(vertical_rms_m=3.0, vertical_correlation_m=300.0, shift_m=0.0)
        noisy = degrade(smooth, quality, seed=seed)
        error = (noisy.levels[0].z_L - perfect.levels[0].z_L)[20:-20, 20:-20].double()
        squares.append(float(error.square().mean()))
        products.append(float((error[:, 2:] * error[:, :-2]).mean()))  # 400 m apart
    variance = sum(squares) / 8
    # about 43 x 43 independent cells a draw, 8 draws: 2 % on the variance, allow 4 sigma
    assert variance == pytest.approx(9.0, rel=0.1)
    assert sum(products) / 8 / variance == pytest.approx(
        math.exp(-(400**2) / (2 * 300**2)), abs=0.05
    )


def test_map_error_is_one_field_over_all_levels(truth):
    """Where two levels overlap, they see the same error."""
    quality = MapQuality(vertical_rms_m=30.0, vertical_correlation_m=900.0, shift_m=0.0)
    perfect = degrade(truth, MapQuality(vertical_rms_m=0.0, shift_m=0.0), seed=3)
    noisy = degrade(truth, quality, seed=3)
    xy = torch.tensor([[0.0, 0.0], [128.0, -64.0]], dtype=torch.float64)
    errors = [
        noisy.height_L(xy, first_level=k)[0] - perfect.height_L(xy, first_level=k)[0]
        for k in range(3)
    ]
    assert float(errors[0].abs().max()) > 1
    assert torch.allclose(errors[0], errors[1], atol=0.1)
    assert torch.allclose(errors[0], errors[2], atol=0.4)


def test_a_site_wider_than_the_local_frame_is_refused():
    wide = {"latitude_deg": 60.5, "longitude_deg": -4.6, "cells": 1024, "finest_post_m": 1.0}
    assert Site(**wide, levels=11).levels == 11  # 1049 km
    with pytest.raises(ValueError, match="2097 km wide, expected at most 1200 km"):
        Site(**wide, levels=12)


def test_one_level_alone_is_built():
    one = Site(latitude_deg=60.5, longitude_deg=-4.6, cells=128, levels=1)
    assert bool(build_truth(one, seed=1).levels[0].z_L.isfinite().all())


def test_a_site_beyond_the_tile_is_refused():
    away = Site(latitude_deg=45.0, longitude_deg=-4.6, cells=128, levels=10, finest_post_m=16.0)
    with pytest.raises(TileError, match="does not cover"):
        build_truth(away, seed=1)
