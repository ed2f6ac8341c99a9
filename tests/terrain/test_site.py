import math

import pytest
import torch

from tnav.dem.tiles import open_tile, sample_height_m
from tnav.errors import TileError
from tnav.geometry.moon import RADIUS_M
from tnav.terrain.site import MapQuality, Site, _subdivide, build_truth, degrade

SITE = Site(latitude_deg=60.5, longitude_deg=-4.6, cells=128, levels=6, finest_post_m=16.0)


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
    dem = sample_height_m(open_tile(SITE.dem), lat.numpy(), lon.numpy())
    # craters of 2.5 to 4 km and roughness under 4 km are added: tens of metres
    assert torch.allclose(height, torch.from_numpy(dem), atol=250.0)
    assert (level.z_L[0, 0] - level.z_L[64, 64]).abs() > 200  # sag of 618 m at 46 km


def test_resampling_is_the_fixed_point_of_the_dem():
    """Without relief the agreement is to float32: build the coarsest level alone."""
    from tnav.terrain.site import _resample

    z = _resample(SITE, 512.0)
    axis = torch.linspace(-64 * 512.0, 64 * 512.0, 129, dtype=torch.float64)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    lat, lon, height = SITE.frame.geodetic(torch.stack([x, y, z.double()], -1))
    dem = torch.from_numpy(sample_height_m(open_tile(SITE.dem), lat.numpy(), lon.numpy()))
    assert float((height - dem).abs().max()) < 2e-3
    assert float(z[0, 0]) < -(RADIUS_M - math.sqrt(RADIUS_M**2 - 2 * 32768.0**2)) + 2000


def test_subdivision_keeps_posts_and_reproduces_cubics():
    axis = torch.arange(33, dtype=torch.float64) / 8
    y, x = torch.meshgrid(axis, axis, indexing="ij")

    def surface(x, y):
        return x**3 - 2 * x * y**2 + 0.5 * y**3 + x - 7

    fine = _subdivide(surface(x, y).float())
    axis = 1.0 + torch.arange(33, dtype=torch.float64) / 16
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    assert fine.shape == (33, 33)
    assert torch.allclose(fine.double(), surface(x, y), atol=1e-5)


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
