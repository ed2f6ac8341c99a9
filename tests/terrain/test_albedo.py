import math

import numpy as np
import pytest
import rasterio
import simulated_device
import torch
from affine import Affine

from tnav.errors import ConfigError, TileError
from tnav.geometry.moon import RADIUS_M, LocalFrame
from tnav.terrain.albedo import AlbedoField, AlbedoRaster
from tnav.terrain.lattice import Window

WAVES = (8.0, 4000.0)


def _field(seed=2, contrast=0.05, waves=WAVES, **more):
    return AlbedoField.draw(seed, contrast=contrast, wavelengths_m=waves, **more)


def _grid(n, step_m, east=0.0, north=0.0):
    axis = torch.arange(n, dtype=torch.float64) * step_m
    y, x = torch.meshgrid(axis + north, axis + east, indexing="ij")
    return torch.stack([x, y], -1)


def _scattered(n, half_m, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(n, 2, generator=generator, dtype=torch.float64) * 2 - 1) * half_m


@pytest.mark.parametrize("contrast", [0.02, 0.05, 0.29])
def test_mean_is_one_and_sigma_the_contrast(contrast):
    """Points 200 km apart share no wave of 4 km: they are independent draws but for the tile."""
    a = _field(contrast=contrast).at(_scattered(400_000, 2e5)).double()
    assert float(a.mean()) == pytest.approx(1.0, abs=0.01 * contrast)
    assert float(a.std()) == pytest.approx(contrast, rel=0.02)
    assert float(a.min()) > 0.0


def test_the_logarithm_is_gaussian():
    log_a = _field(contrast=0.2).at(_scattered(400_000, 2e5)).double().log()
    z = (log_a - log_a.mean()) / log_a.std()
    assert float((z**3).mean()) == pytest.approx(0.0, abs=0.05)
    assert float((z**4).mean()) == pytest.approx(3.0, abs=0.1)


@pytest.mark.parametrize("exponent", [2.0, 2.4])
def test_power_spectrum_is_the_power_law_between_the_bounds(exponent):
    """Ring means of a periodogram over 8 km, Hann window, at 8 m: slope -n, nothing beyond."""
    n, step_m = 1024, 8.0
    field = _field(waves=(32.0, 2048.0), exponent=exponent)
    power = torch.zeros(n, n, dtype=torch.float64)
    window = torch.hann_window(n, dtype=torch.float64)
    for k in range(4):
        g = field.at(_grid(n, step_m, east=30e3 * k)).double().log()
        power += torch.fft.fft2((g - g.mean()) * window[:, None] * window).abs().square()
    f = torch.fft.fftfreq(n, step_m, dtype=torch.float64)
    k = (f[:, None] ** 2 + f**2).sqrt()

    def ring(longest_m, shortest_m):
        inside = (k > 1 / longest_m) & (k < 1 / shortest_m)
        return float((power * inside * k**exponent).sum() / inside.sum())

    levels = [ring(length, length / 2) for length in (1024.0, 512.0, 256.0, 128.0, 64.0)]
    middle = float(np.median(levels))
    # 4 windows of about 100 to 3e4 independent waves a ring, less what a Hann window joins
    assert all(0.7 < level / middle < 1.4 for level in levels), levels
    assert ring(24.0, 16.5) < 0.02 * middle


def test_every_octave_has_the_same_contrast_when_the_exponent_is_two():
    sigmas = [octave.sigma for octave in _field(exponent=2.0).octaves]
    assert max(sigmas) == pytest.approx(min(sigmas))
    assert sum(s**2 for s in sigmas) == pytest.approx(math.log1p(0.05**2))


def test_no_direction_is_preferred():
    """RMS differences over one baseline in 8 headings."""
    field, base = _field(), _scattered(100_000, 1e5)
    rms = []
    for k in range(8):
        step = 40.0 * torch.tensor([math.cos(k * math.pi / 8), math.sin(k * math.pi / 8)]).double()
        rms.append(float((field.at(base + step) - field.at(base)).square().mean().sqrt()))
    assert max(rms) / min(rms) < 1.05


def test_an_octave_alone_has_no_lattice_in_its_variance():
    """Variance at the tile's posts equals that amid them: nothing pulses with the lattice."""
    field = _field(waves=(16.0, 32.0), contrast=0.05)
    octave = field.octaves[0]
    u = torch.rand(2, 200_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    u = (u * 1024).floor()
    sigma = []
    for inside in (0.0, 0.5):
        turns = (u + inside) / 1024 - torch.tensor(octave.shift, dtype=torch.float64)[:, None]
        length_m = 16.0 * 1024 / 16
        c, s = math.cos(octave.heading_rad) * length_m, math.sin(octave.heading_rad) * length_m
        xy = torch.stack([c * turns[0] - s * turns[1], s * turns[0] + c * turns[1]], -1)
        sigma.append(float(field.at(xy).log().std()))
    assert sigma[1] / sigma[0] == pytest.approx(1.0, abs=0.03)


def test_leaving_short_waves_out_leaves_the_local_mean():
    """Means over 64 m squares of the whole field against the field without waves under 128 m."""
    field = _field(contrast=0.2, waves=(8.0, 2048.0))
    block = field.at(_grid(1024, 4.0)).reshape(64, 16, 64, 16).mean((1, 3)).double()
    coarse = field.at(_grid(64, 64.0, 30.0, 30.0), 128.0).double()
    assert float((block / coarse).mean()) == pytest.approx(1.0, abs=0.01)
    assert float((block / coarse).std()) < 0.35 * float(coarse.std())
    far = field.at(_scattered(200_000, 2e5), 128.0).double()
    kept = sum(octave.sigma**2 for octave in field.octaves if octave.shortest_m >= 128.0)
    assert float(far.mean()) == pytest.approx(1.0, abs=2e-3)
    assert float(far.std()) == pytest.approx(math.sqrt(math.expm1(kept)), rel=0.02)


@pytest.mark.parametrize("limit", [0.0, 1500.0, 3000.0])
def test_mean_is_one_while_an_octave_fades(limit):
    """Two octaves of strong contrast, the limit amid one of them: mean of a log-normal."""
    far = _field(contrast=0.6, waves=(1024.0, 4096.0)).at(_scattered(400_000, 2e5), limit).double()
    assert float(far.mean()) == pytest.approx(1.0, abs=0.012)


def test_limit_is_the_same_for_all_points_and_for_each():
    field, xy = _field(), _grid(50, 7.0)
    for limit in (0.0, 9.0, 16.0, 23.0, 100.0, 1e5):
        each = field.at(xy, torch.full((50, 50), limit))
        assert torch.allclose(each, field.at(xy, limit), atol=1e-6)
    assert torch.equal(field.at(xy, 1e5), torch.ones(50, 50))
    assert torch.equal(field.at(xy, 8.0), field.at(xy))  # at the shortest wave: all are kept
    assert not torch.equal(field.at(xy, 8.1), field.at(xy))


def test_what_one_point_leaves_out_another_keeps():
    """Limits from point to point, from none to beyond every wave: each as if it were alone."""
    field, xy = _field(), _grid(50, 7.0)
    limits = torch.logspace(-1.0, 4.5, 2500).view(50, 50)
    limits[0, 0] = 0.0
    together = field.at(xy, limits)
    rows = torch.cat([field.at(xy[k : k + 1], limits[k : k + 1]) for k in range(50)])
    assert torch.allclose(together, rows, rtol=0, atol=1e-6)
    for row, col in ((0, 0), (13, 7), (20, 20), (30, 41), (49, 49)):
        alone = field.at(xy[row, col][None], float(limits[row, col]))
        assert float(alone) == pytest.approx(float(together[row, col]), abs=1e-6)


def test_a_limit_that_is_nan_spoils_no_other_point():
    field, xy = _field(), _grid(20, 7.0)
    limits = torch.full((20, 20), 30.0)
    expected = field.at(xy, limits)
    limits[3, 4] = math.nan
    found = field.at(xy, limits)
    given = ~limits.isnan()
    assert torch.equal(found[given], expected[given])


def test_position_and_seed_decide_alone():
    field, xy = _field(), _grid(40, 5.0, 12e3, -7e3)
    whole = field.at(xy)
    assert torch.allclose(field.at(xy[10:20, 5:9]), whole[10:20, 5:9], atol=1e-6)
    assert torch.equal(_field().at(xy), whole)
    assert not torch.allclose(_field(seed=3).at(xy), whole, atol=1e-2)


def test_fields_of_one_seed_share_their_octaves():
    xy = _grid(30, 11.0)
    long = _field(waves=(64.0, 4096.0), contrast=0.05)
    both = _field(waves=(8.0, 4096.0), contrast=0.05)
    ratio = both.octaves[-1].sigma / long.octaves[-1].sigma
    filtered, expected = both.at(xy, 64.0).log(), long.at(xy).log()
    filtered, expected = filtered - filtered.mean(), expected - expected.mean()
    assert torch.allclose(filtered / ratio, expected, atol=1e-5)


def test_frozen_values():
    """The same on every machine: what seed 2 gives at four places, one of them 200 km away."""
    xy = torch.tensor([[0.0, 0.0], [123.4, -567.8], [-2.0e5, 1.5e5], [7.25, 4096.0]]).double()
    expected = torch.tensor([1.079764, 1.061379, 1.040857, 0.976471])
    assert torch.allclose(_field().at(xy), expected, atol=2e-4)


def test_fine_octaves_are_smooth_far_from_the_site():
    """Waves of 0.5 m, 250 km out, sampled every centimetre: no steps of float32."""
    field = _field(waves=(0.5, 2.0), contrast=0.05)
    x = 2.5e5 + 0.01 * torch.arange(2000, dtype=torch.float64)
    a = field.at(torch.stack([x, 0 * x + 1e5], -1)).double()
    step_max = 0.05 * 5 * 2 * math.pi / 0.5 * 0.01  # 5 sigma at the steepest wave
    assert float(a.diff().abs().max()) < step_max
    assert float((a.diff() == 0).double().mean()) < 0.05  # float32 places repeat a third of them


@pytest.mark.parametrize(
    ("contrast", "waves"),
    [(-0.01, WAVES), (1.0, WAVES), (0.1, (0.0, 5.0)), (0.1, (9.0, 9.0)), (0.1, (1e-4, 1e5))],
)
def test_nonsense_is_refused(contrast, waves):
    with pytest.raises(ConfigError, match="albedo"):
        _field(contrast=contrast, waves=waves)


FRAME = LocalFrame(60.5, -4.6)
POSTS_PER_DEG = 512  # 59 m posts


def _raster(path, values, west=-6.0, north=61.5, nodata=None):
    """A geographic raster on the Moon's sphere whose pixel centres carry given values."""
    profile = {
        "driver": "GTiff",
        "dtype": "float32",
        "count": 1,
        "width": values.shape[1],
        "height": values.shape[0],
        "crs": "IAU_2015:30100",
        "transform": Affine(1 / POSTS_PER_DEG, 0.0, west, 0.0, -1 / POSTS_PER_DEG, north),
        "nodata": nodata,
    }
    with rasterio.open(path, "w", **profile) as out:
        out.write(values.astype(np.float32), 1)
    return path


def _centres(rows, cols, west=-6.0, north=61.5):
    latitude = north - (np.arange(rows) + 0.5) / POSTS_PER_DEG
    longitude = west + (np.arange(cols) + 0.5) / POSTS_PER_DEG
    return latitude[:, None], longitude[None, :]


def _smooth(latitude, longitude):
    return 0.06 + 0.02 * np.sin(9 * np.deg2rad(latitude) * 60) + 0.01 * np.cos(longitude * 40)


@pytest.fixture
def raster_path(tmp_path):
    latitude, longitude = _centres(900, 1400)
    return _raster(tmp_path / "albedo.tif", _smooth(latitude, longitude))


WINDOW = Window(post_m=100.0, row0=-100, col0=-120, rows=201, cols=241)


def test_raster_is_resampled_with_curvature(raster_path):
    raster = AlbedoRaster.load(raster_path, FRAME, WINDOW)
    xy = _scattered(2000, 9e3)
    z = (RADIUS_M**2 - xy.square().sum(-1)).sqrt() - RADIUS_M
    latitude, longitude, _ = FRAME.geodetic(torch.cat([xy, z[:, None]], -1))
    expected = _smooth(latitude.numpy(), longitude.numpy())
    found = raster.at(xy).double().numpy()
    ratio = found / expected
    assert raster.missing == 0
    assert ratio.std() / ratio.mean() < 2e-3  # two bilinear lookups of waves of 5 km
    posts = raster.levels[0].double()
    assert float(posts.mean()) == pytest.approx(1.0, abs=1e-6)


def test_heights_move_the_lookup(raster_path):
    """A point 10 km east, 3 km up lies 17.3 m nearer to the site in longitude."""
    up = torch.full((WINDOW.rows, WINDOW.cols), 3000.0)
    flat = AlbedoRaster.load(raster_path, FRAME, WINDOW)
    high = AlbedoRaster.load(raster_path, FRAME, WINDOW, up)
    xy = torch.tensor([[10e3, 0.0]]).double()
    same_place = xy * (1 - 3000.0 / RADIUS_M)
    assert float(high.at(xy)) == pytest.approx(float(flat.at(same_place)), rel=2e-3)


def test_holes_and_outside_hold_the_mean(tmp_path):
    latitude, longitude = _centres(900, 1400)
    values = np.broadcast_to(np.float32(0.08) + 0 * latitude * longitude, (900, 1400)).copy()
    # a hole of 50 x 50 posts around the site's own column and row, and a dark half
    row, col = int((61.5 - 60.5) * POSTS_PER_DEG), int((-4.6 + 6.0) * POSTS_PER_DEG)
    values[:, col + 200 :] = 0.04
    values[row - 25 : row + 25, col - 25 : col + 25] = -9999.0
    path = _raster(tmp_path / "holes.tif", values, nodata=-9999.0)
    raster = AlbedoRaster.load(path, FRAME, WINDOW)
    here = raster.at(torch.tensor([[0.0, 0.0], [-5e3, 0.0], [1e6, 0.0]]).double())
    assert here[0] == 1.0
    assert float(here[1]) > 1.0
    assert here[2] == 1.0
    # Bilinear stencils touch the hole within 51 x 51 posts of 59.2 m north by 29.2 m east; a
    # post of the plane is missing where all four of its subposts, 50 m apart, lie inside.
    north, east = (51 * 59.2 - 50) / 100, (51 * 29.2 - 50) / 100
    assert math.floor(north) * math.floor(east) <= raster.missing
    assert raster.missing <= math.ceil(north) * math.ceil(east)
    assert float(raster.levels[0][raster.levels[0] != 1].mean()) == pytest.approx(1.0, abs=1e-6)


def test_a_finer_raster_is_averaged(tmp_path):
    """A checkerboard of single posts under a plane of 8 times coarser ones: its mean, not it."""
    i, j = np.mgrid[0:900, 0:1400]
    path = _raster(tmp_path / "check.tif", np.where((i + j) % 2 == 0, 0.05, 0.15))
    coarse = Window(post_m=475.0, row0=-10, col0=-10, rows=21, cols=21)
    raster = AlbedoRaster.load(path, FRAME, coarse)
    assert float(raster.levels[0].std()) < 0.1  # the board's own is 0.5


def test_short_waves_of_a_raster_are_averaged_away(raster_path):
    raster = AlbedoRaster.load(raster_path, FRAME, WINDOW)
    xy = _scattered(500, 8e3)
    assert torch.allclose(raster.at(xy, 200.0), raster.at(xy), atol=1e-6)  # two posts: all
    smoothed = raster.at(xy, 6400.0)
    assert float(smoothed.std()) < 0.8 * float(raster.at(xy).std())
    for limit in (0.0, 300.0, 777.0, 1e9):
        each = raster.at(xy, torch.full((500,), limit))
        assert torch.allclose(each, raster.at(xy, limit), atol=1e-5)
    mixed = torch.tensor([0.0, 100.0, 350.0, 900.0, 1e6]).repeat_interleave(100)
    apart = [raster.at(xy[k : k + 100], float(mixed[k])) for k in range(0, 500, 100)]
    assert torch.allclose(raster.at(xy, mixed), torch.cat(apart), atol=1e-5)
    # a plane stays itself on every level, so the levels lie where they should
    ramp = torch.arange(241.0).expand(201, 241)
    plane = AlbedoRaster(WINDOW, _levels_of(ramp), 0)
    inner = _scattered(500, 4e3)
    expected = (inner[:, 0] / 100.0 + 120).float()
    for limit in (0.0, 400.0, 600.0, 1600.0):
        assert torch.allclose(plane.at(inner, limit), expected, atol=1e-2)


def _levels_of(finest):
    from tnav.terrain.albedo import _halved

    return _halved(finest)


def test_a_raster_elsewhere_is_refused(raster_path):
    with pytest.raises(TileError, match=r"albedo\.tif: no positive value"):
        AlbedoRaster.load(raster_path, LocalFrame(-30.0, 100.0), WINDOW)


def test_simulated_accelerator_gives_the_same_without_waiting(simgpu, raster_path):
    xy, limit = _grid(60, 13.0), torch.logspace(0.5, 3.0, 3600).view(60, 60)
    for albedo in (_field(), AlbedoRaster.load(raster_path, FRAME, WINDOW)):
        expected = albedo.at(xy), albedo.at(xy, 30.0), albedo.at(xy, limit)
        there, xy_there, limit_there = albedo.to(simgpu), xy.to(simgpu), limit.to(simgpu)
        with simulated_device.count_syncs(uploads=True) as syncs:
            found = (
                there.at(xy_there),
                there.at(xy_there, 30.0),
                there.at(xy_there, limit_there),
            )
        assert not syncs, syncs
        for f, e in zip(found, expected, strict=True):
            assert f.device.type == simgpu
            assert torch.equal(f.cpu(), e)
