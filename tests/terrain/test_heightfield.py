"""Levels, their blending, their maximum mipmaps and heights at points."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_device import count_syncs
from terrain_oracle import nested_terrain, rough_level, single_terrain
from torch import Tensor

from tnav.errors import ConfigError, TileError
from tnav.terrain.heightfield import Level, Terrain


def _points(n: int, half_m: float, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(n, 2, generator=generator, dtype=torch.float64) * 2 - 1) * half_m


def test_height_at_posts_and_borders_is_the_post() -> None:
    terrain = single_terrain()
    level = terrain.levels[0]
    rows, cols = level.z_L.shape
    y = level.south_m + level.post_m * torch.arange(rows, dtype=torch.float64)
    x = level.west_m + level.post_m * torch.arange(cols, dtype=torch.float64)
    xy = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)
    z, inside = terrain.height_L(xy)
    assert inside.all()
    assert torch.equal(z, level.z_L.double())
    assert (level.east_m, level.north_m) == (90.0, 120.0)


def test_height_is_exact_for_a_bilinear_ground() -> None:
    """z = 1 + 0.5 x - 0.25 y + 0.125 x y is its own bilinear patch."""
    x = torch.arange(17.0)[None, :] - 8
    y = torch.arange(9.0)[:, None] - 4
    terrain = Terrain([Level(-8.0, -4.0, 1.0, 1 + 0.5 * x - 0.25 * y + 0.125 * x * y)])
    xy = _points(2000, 4.0)
    z, inside = terrain.height_L(xy.view(4, 500, 2))
    expected = 1 + 0.5 * xy[:, 0] - 0.25 * xy[:, 1] + 0.125 * xy[:, 0] * xy[:, 1]
    assert inside.all()
    assert torch.allclose(z.view(-1), expected, rtol=0, atol=1e-12)


def test_outside_is_nan_and_flagged() -> None:
    terrain = single_terrain()
    level = terrain.levels[0]
    e = 1e-6
    xy = torch.tensor(
        [[level.west_m - e, 0], [level.east_m + e, 0], [0, level.south_m - e],
         [0, level.north_m + e], [math.nan, 0], [math.inf, 0], [1e300, -1e300], [0, 0]],
        dtype=torch.float64,
    )  # fmt: skip
    z, inside = terrain.height_L(xy)
    assert inside.tolist() == [False] * 7 + [True]
    assert torch.isnan(z[:7]).all()
    assert torch.isfinite(z[7])


def test_the_finest_level_there_is_asked() -> None:
    flat = [Level(-s, -s, s / 8, torch.full((17, 17), s)) for s in (8.0, 32.0, 128.0)]
    terrain = Terrain(flat, rim_posts=0)
    xy = torch.tensor([[0.0, 0.0], [8.0, -8.0], [8.1, 0.0], [0.0, 33.0]], dtype=torch.float64)
    assert terrain.height_L(xy)[0].tolist() == [8, 8, 32, 128]
    assert terrain.height_L(xy, first_level=1)[0].tolist() == [32, 32, 32, 128]
    assert terrain.height_L(xy, first_level=2)[0].tolist() == [128] * 4
    for bad in (-1, 3):
        with pytest.raises(ConfigError, match=f"first_level: {bad}, expected 0 to 2"):
            terrain.height_L(xy, first_level=bad)


@pytest.mark.parametrize(
    ("gsd_m", "posts_per_pixel", "level"),
    [(0.0, 2.0, 0), (2.0, 2.0, 0), (2.0001, 2.0, 1), (8.0, 2.0, 1), (8.0001, 2.0, 2),
     (1e4, 2.0, 2), (4.0, 1.0, 1), (4.0001, 1.0, 2)],
)  # fmt: skip
def test_level_for_a_ground_sample_distance(
    gsd_m: float, posts_per_pixel: float, level: int
) -> None:
    """Posts of 1, 4 and 16 m: just under and just over each threshold."""
    levels = [Level(-s * 8, -s * 8, s, torch.zeros(17, 17)) for s in (1.0, 4.0, 16.0)]
    terrain = Terrain(levels)
    assert terrain.level_for(gsd_m, posts_per_pixel=posts_per_pixel) == level


def test_rims_fade_into_the_level_around() -> None:
    """At the border the outer height, rim posts inside the own one, half of each in between."""
    inner = Level(-20.0, -20.0, 1.0, torch.full((41, 41), 3.0))
    outer = Level(-100.0, -100.0, 8.0, torch.full((26, 26), -1.0))
    z = Terrain([inner, outer], rim_posts=4).levels[0].z_L
    assert z[20, :6].tolist() == [-1.0, -1 + 4 * 0.15625, 1.0, -1 + 4 * 0.84375, 3.0, 3.0]
    assert torch.equal(z, z.T)
    assert torch.equal(z, z.flip(0))
    assert torch.equal(z, z.flip(1))
    assert (z[4:-4, 4:-4] == 3).all()
    assert (z[0] == -1).all()


def test_a_rim_follows_an_outer_level_that_was_itself_blended() -> None:
    terrain = Terrain(nested_terrain().levels, rim_posts=3)
    for k in (0, 1):
        level = terrain.levels[k]
        n = level.z_L.shape[0]
        y = level.south_m + level.post_m * torch.arange(n, dtype=torch.float64)
        xy = torch.stack([torch.full_like(y, level.west_m), y], 1)
        around, _ = terrain.height_L(xy, first_level=k + 1)
        assert torch.allclose(level.z_L[:, 0].double(), around, rtol=0, atol=1e-5)


def test_blending_leaves_the_input_and_the_coarsest_level_alone() -> None:
    levels = nested_terrain().levels
    before = [level.z_L.clone() for level in levels]
    terrain = Terrain(levels)
    assert all(torch.equal(a, b.z_L) for a, b in zip(before, levels, strict=True))
    assert torch.equal(terrain.levels[-1].z_L, before[-1])


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(8, 90), cols=st.integers(8, 90), seed=st.integers(0, 99))
def test_mipmaps_bound_their_cells(rows: int, cols: int, seed: int) -> None:
    """Every node holds the greatest of the posts of its 4^k x 4^k cells, and no more."""
    level = rough_level(1.0, 0.0, 0.0, (rows, cols), seed, 9.0)
    packed = Terrain([level]).packed
    layout = packed.layout[0].tolist()
    assert layout[:3] == [rows, cols, 0]
    for k in range(1, layout[3] + 1):
        size = 4**k
        across, up = math.ceil((cols - 1) / size), math.ceil((rows - 1) / size)
        start = layout[3 + k]
        nodes = packed.maxima_m[start : start + up * across].view(up, across)
        for i in range(up):
            for j in range(across):
                cells = level.z_L[i * size : (i + 1) * size + 1, j * size : (j + 1) * size + 1]
                assert nodes[i, j] == cells.max()
    assert across == up == 1
    assert packed.origin_m[0, 3] == level.z_L.max()


def test_heights_are_stored_once() -> None:
    terrain = nested_terrain()
    base = terrain.packed.posts_m.untyped_storage().data_ptr()
    assert all(level.z_L.untyped_storage().data_ptr() == base for level in terrain.levels)


def _flat(west_m: float, south_m: float, post_m: float, posts: int) -> Level:
    return Level(west_m, south_m, post_m, torch.zeros(posts, posts))


def _with_hole() -> Level:
    level = rough_level(1.0, 0.0, 0.0, (9, 9), 0, 1.0)
    level.z_L[3, 4] = math.nan
    return level


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ([], "no level"),
        ([Level(0.0, 0.0, 1.0, torch.zeros(8, 7))], r"\(8, 7\) posts, expected 8"),
        ([_with_hole()], "level 0 .* 1 heights are not finite"),
        ([Level(math.nan, 0.0, 1.0, torch.zeros(8, 8))], "finite"),
        ([Level(0.0, 0.0, 0.0, torch.zeros(8, 8))], "positive"),
        ([Level(0.0, 0.0, -1.0, torch.zeros(8, 8))], "positive"),
        ([Level(0.0, 0.0, math.inf, torch.zeros(8, 8))], "positive"),
        # touching the outer border from inside, then reaching over it, then the order reversed
        ([_flat(0.0, 1.0, 1.0, 8), _flat(0.0, 0.0, 2.0, 8)], "strictly"),
        ([_flat(8.0, 1.0, 1.0, 8), _flat(0.0, 0.0, 2.0, 8)], "strictly"),
        ([_flat(0.0, 0.0, 2.0, 8), _flat(2.0, 2.0, 1.0, 8)], "strictly"),
        ([_flat(2.0, 2.0, 3.0, 8), _flat(0.0, 0.0, 2.0, 40)], "coarser"),
    ],
)  # fmt: skip
def test_bad_levels_are_refused_in_one_line(levels: list[Level], message: str) -> None:
    with pytest.raises(TileError, match=message) as caught:
        Terrain(levels)
    assert "\n" not in str(caught.value)


def test_terrain_is_immutable() -> None:
    with pytest.raises(AttributeError, match="immutable"):
        single_terrain().levels = ()  # type: ignore[misc]


def test_moving_keeps_everything_and_blends_nothing_again(simgpu: str) -> None:
    terrain = Terrain(nested_terrain().levels, rim_posts=4)
    assert terrain.to("cpu") is terrain
    there = terrain.to(simgpu)
    assert there.device.type == simgpu
    assert terrain.device.type == "cpu"
    for a, b in zip(terrain.levels, there.levels, strict=True):
        assert torch.equal(a.z_L, b.z_L.cpu())
        assert (a.west_m, a.south_m, a.post_m) == (b.west_m, b.south_m, b.post_m)
    assert torch.equal(terrain.packed.maxima_m, there.packed.maxima_m.cpu())


def test_heights_on_a_simulated_accelerator_never_wait(simgpu: str) -> None:
    terrain = nested_terrain()
    xy = _points(3000, 90.0)
    z, inside = terrain.height_L(xy)
    there, xy_there = terrain.to(simgpu), xy.to(simgpu)
    with count_syncs(uploads=True) as syncs:
        z_there, inside_there = there.height_L(xy_there)
    assert not syncs
    assert torch.equal(inside, inside_there.cpu())
    assert 0.5 < inside.double().mean() < 1
    torch.testing.assert_close(z_there.cpu(), z, rtol=0, atol=0, equal_nan=True)


def test_terrain_built_on_a_simulated_accelerator_is_the_same(simgpu: str) -> None:
    levels = nested_terrain().levels
    here = Terrain(levels, rim_posts=4)
    there = Terrain(
        [Level(v.west_m, v.south_m, v.post_m, v.z_L.to(simgpu)) for v in levels], rim_posts=4
    )
    assert there.device.type == simgpu
    assert torch.equal(there.packed.posts_m.cpu(), here.packed.posts_m)
    assert torch.equal(there.packed.maxima_m.cpu(), here.packed.maxima_m)
