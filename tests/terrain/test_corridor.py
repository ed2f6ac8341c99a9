import gc
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tnav.errors import ConfigError, TileError
from tnav.geometry.moon import RADIUS_M, LocalFrame
from tnav.terrain.corridor import Corridor, CorridorRecipe
from tnav.terrain.lattice import Window
from tnav.terrain.levels import restrict
from tnav.terrain.synthetic import Relief

SMALL = {
    "latitude_deg": 60.5,
    "longitude_deg": -4.6,
    "finest_post_m": 8.0,
    "levels": 4,
    "posts": 320,
    "tile_posts": 80,
    "memory_budget_mb": 16.0,
}
BARE = Relief(boulders=False, rms_deviation_17m_m=0.0)
RIM = 17  # posts that Terrain fades into the level around, and their neighbours


@dataclass(frozen=True)
class Sphere:
    """A DEM of height zero everywhere, without room for synthetic craters."""

    posting_m: float = 2000.0
    effective_resolution_m: float = 1.0
    fingerprint: str = "sphere"
    label: str = "sphere"

    def heights_m(self, latitude_deg, longitude_deg):
        return np.zeros_like(latitude_deg)

    def explain(self, latitude_deg, longitude_deg):
        return "nothing to explain"


@pytest.fixture(autouse=True)
def no_home(tmp_path, monkeypatch):
    """The disk cache stays in the test's own folder."""
    monkeypatch.setenv("TNAV_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def sphere(monkeypatch):
    monkeypatch.setattr("tnav.terrain.corridor.open_dem", lambda spec: Sphere())


@pytest.fixture(scope="module")
def shared():
    """One corridor without a disk cache, for tests that only read heights."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TNAV_CACHE", "off")
        return Corridor(CorridorRecipe(**SMALL), seed=3)


def at(east_m: float, north_m: float, up_m: float = 0.0) -> torch.Tensor:
    return torch.tensor([east_m, north_m, up_m], dtype=torch.float64)


def on_sphere(east_m: float) -> torch.Tensor:
    return at(east_m, 0.0, math.sqrt(RADIUS_M**2 - east_m**2) - RADIUS_M)


@given(
    level=st.integers(0, 3),
    row0=st.integers(-130, 60),
    col0=st.integers(-130, 60),
    rows=st.integers(1, 70),
    cols=st.integers(1, 70),
)
@settings(max_examples=12, deadline=None)
def test_tiles_give_the_heights_of_the_window(shared, level, row0, col0, rows, cols):
    """A window gathered from tiles, and the same window computed as one piece."""
    window = Window(8.0 * 2**level, row0, col0, rows, cols)
    whole = shared._pyramid.rise_m(level, window)
    # to the float32 in which the relief sums its waves
    assert torch.allclose(shared.rise_m(level, window), whole, rtol=0, atol=1e-3)


def test_no_seam_at_tile_borders(shared):
    """Second differences over borders between tiles are no larger than elsewhere."""
    z = shared.rise_m(0, Window(8.0, -160, -160, 320, 320)).double()
    for grid in (z, z.T):
        bend = grid[:-2] - 2 * grid[1:-1] + grid[2:]  # row i is around row i + 1
        rms = bend.square().mean(1).sqrt()
        row = torch.arange(1, 319)
        border = (row % 80 == 0) | (row % 80 == 79)
        assert int(border.sum()) == 6
        # both are means over 320 posts of the same statistics
        assert float(rms[border].mean()) == pytest.approx(float(rms[~border].mean()), rel=0.25)
        assert float(bend[border].abs().max()) <= float(bend[~border].abs().max())


def test_levels_nest_and_average_wherever_the_view_stands(shared):
    generator = torch.Generator().manual_seed(0)
    for east_m, north_m in (torch.rand(3, 2, generator=generator) * 2000 - 1000).tolist():
        terrain = shared.terrain_at(at(east_m, north_m))
        assert [level.post_m for level in terrain.levels] == [8.0, 16.0, 32.0, 64.0]
        for fine, coarse in zip(terrain.levels, terrain.levels[1:], strict=False):
            inner = fine.z_L[RIM:-RIM, RIM:-RIM].double()
            average = restrict(inner).float()
            row0 = round((fine.south_m - coarse.south_m) / coarse.post_m) + (RIM + 1) // 2
            col0 = round((fine.west_m - coarse.west_m) / coarse.post_m) + (RIM + 1) // 2
            n, m = average.shape
            kept = coarse.z_L[row0 : row0 + n, col0 : col0 + m]
            assert torch.allclose(average, kept, rtol=0, atol=4e-4)
        for level in terrain.levels:  # the point is in the middle, to half a tile
            middle = ((level.west_m + level.east_m) / 2, (level.south_m + level.north_m) / 2)
            assert abs(middle[0] - east_m) <= 41 * level.post_m
            assert abs(middle[1] - north_m) <= 41 * level.post_m


def test_views_agree_where_they_overlap(shared):
    """Flying on changes no height: the ground at a point is the same from two windows."""
    a, b = shared.terrain_at(at(0.0, 0.0)), shared.terrain_at(at(500.0, -400.0))
    assert a.levels[0].west_m != b.levels[0].west_m
    xy = torch.rand(200, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    xy = xy * torch.tensor([150.0, 100.0]) - torch.tensor([0.0, 150.0])  # inside both, off the rims
    assert torch.allclose(a.height_L(xy)[0], b.height_L(xy)[0], rtol=0, atol=1e-3)


def test_a_view_that_has_not_moved_is_the_same_object(shared):
    first = shared.terrain_at(at(700.0, 0.0))
    built = shared.tiles_built
    assert shared.terrain_at(at(710.0, 5.0, 2000.0)) is first
    assert shared.terrain_at(at(710.0 + 80 * 8.0, 5.0)) is not first
    assert shared.tiles_built > built


def test_levels_finer_than_the_pixel_are_not_built():
    corridor = Corridor(CorridorRecipe(**SMALL), seed=3)
    limits_m = (None, 1.0, 8.0, 8.1, 16.0, 16.1, 64.0, 900.0)
    assert [corridor.first_level(m) for m in limits_m] == [0, 0, 0, 1, 1, 2, 3, 3]
    high = corridor.terrain_at(at(0.0, 0.0), finest_post_m=20.0)
    assert [level.post_m for level in high.levels] == [32.0, 64.0]
    assert {level for level, _, _ in corridor._places} == {2, 3}
    assert corridor.tiles_built == 32  # 4 x 4 a level: none outside the windows is needed


def test_windows_follow_the_ground_below_not_the_point_itself(sphere):
    """At 250 km the vertical leans 8.2 deg: 100 km up is 14 km to the side."""
    recipe = CorridorRecipe(**SMALL)
    lean = math.asin(250e3 / RADIUS_M)
    radius_m = RADIUS_M + 100e3
    above = at(radius_m * math.sin(lean), 0.0, radius_m * math.cos(lean) - RADIUS_M)
    ground = at(250e3, 0.0, RADIUS_M * (math.cos(lean) - 1))
    assert float(above[0]) - 250e3 > 14e3
    corridor = Corridor(recipe, seed=3)
    assert corridor.terrain_at(ground) is corridor.terrain_at(above)


@pytest.mark.parametrize(("east_m", "north_m"), [(250e3, 0.0), (-177e3, 177e3), (0.0, -590e3)])
def test_heights_far_from_the_origin_are_the_spheres(sphere, east_m, north_m):
    """All levels, through tiles and prolongation, against sqrt(R^2 - x^2 - y^2) - R."""
    corridor = Corridor(CorridorRecipe(**SMALL, relief=BARE), seed=3)
    terrain = corridor.terrain_at(at(east_m, north_m))
    for level in terrain.levels:
        rows, cols = level.z_L.shape
        x = level.west_m + level.post_m * torch.arange(cols, dtype=torch.float64)
        y = level.south_m + level.post_m * torch.arange(rows, dtype=torch.float64)[:, None]
        s = x.square() + y.square()
        expected = -s / ((RADIUS_M**2 - s).sqrt() + RADIUS_M)
        # A level holds averages over the hat of its posts: h^2/12 times the curvature, 0.4 mm at
        # 64 m and twice that where the sphere leans. float32 rounds once, not level by level.
        half_ulp_m = float(np.spacing(np.float32(expected.abs().max()))) / 2
        error_m = (level.z_L.double() - expected)[RIM:-RIM, RIM:-RIM]
        assert float(error_m.abs().max()) < 1e-3 + half_ulp_m


def test_the_budget_is_never_exceeded():
    """By the corridor's own count, and by that of every tensor that is alive."""
    least_mb = CorridorRecipe(**SMALL).least_bytes / 1e6
    recipe = CorridorRecipe(**{**SMALL, "memory_budget_mb": least_mb + 0.2})
    budget_bytes = recipe.memory_budget_mb * 1e6

    def alive() -> int:
        gc.collect()
        found = {}
        for thing in gc.get_objects():
            if type(thing) is torch.Tensor and thing.dtype == torch.float32:
                storage = thing.untyped_storage()
                found[storage.data_ptr()] = storage.nbytes()
        return sum(found.values())

    before = alive()
    corridor = Corridor(recipe, seed=3)
    terrain = None
    for step in range(4):
        terrain = corridor.terrain_at(at(900.0 * step, 100.0 * step))
        # what exists is what is counted, and the room for tiles that are not there yet
        room = corridor._pool.nbytes - len(corridor._places) * 80 * 80 * 4
        assert alive() - before == corridor.resident_bytes + room < budget_bytes
    assert terrain is not None
    assert corridor.resident_bytes > 0.3 * budget_bytes
    assert 0.8 * budget_bytes < corridor.peak_bytes <= budget_bytes
    assert len(corridor._places) < corridor.tiles_built  # some had to go


def test_the_least_budget_does_not_make_tiles_over_and_over():
    recipe = CorridorRecipe(**SMALL)
    least = recipe.model_copy(
        update={"memory_budget_mb": math.ceil(recipe.least_bytes / 1e4) / 100}
    )
    for each, most in ((recipe, 76), (least, 3 * 64)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TNAV_CACHE", "off")
            corridor = Corridor(each, seed=3)
        corridor.terrain_at(at(0.0, 0.0))
        assert corridor.tiles_built == 64  # 4 levels of 4 x 4, each once
        for step in (1, 2):
            corridor.terrain_at(at(640.0 * step, 0.0))
        # ample: the first level moves by a tile twice, the second once; least: each once a view
        assert corridor.tiles_built <= most


def test_a_budget_too_small_for_a_view_is_refused():
    recipe = CorridorRecipe(**SMALL)
    needed_mb = math.ceil(recipe.least_bytes / 1e6)
    fits = recipe.model_copy(update={"memory_budget_mb": recipe.least_bytes / 1e6 + 1e-6})
    Corridor(fits, seed=1)
    short = recipe.model_copy(update={"memory_budget_mb": recipe.least_bytes / 1e6 - 1e-2})
    with pytest.raises(ConfigError, match=f"4 levels of 320 x 320 posts needs {needed_mb} MB"):
        Corridor(short, seed=1)


def test_the_view_is_as_large_as_stated(shared):
    terrain = shared.terrain_at(at(0.0, 0.0))
    packed = terrain.packed
    exact = 4 * (packed.posts_m.numel() + packed.maxima_m.numel())
    assert 0.98 * shared.recipe.view_bytes < exact <= shared.recipe.view_bytes


def test_the_disk_spares_the_work(tmp_path, monkeypatch):
    first = Corridor(CorridorRecipe(**SMALL, cache=tmp_path / "named"), seed=3)
    view = first.terrain_at(at(0.0, 0.0))
    files = list((tmp_path / "named").glob("**/*.npy"))
    assert len(files) == first.tiles_built > 0
    assert not (tmp_path / "cache").exists()  # named in the recipe, not by the environment
    second = Corridor(CorridorRecipe(**SMALL, cache=tmp_path / "named"), seed=3)
    again = second.terrain_at(at(0.0, 0.0))
    assert second.tiles_built == 0
    assert torch.equal(again.packed.posts_m, view.packed.posts_m)
    # damaged files are made again, and are whole afterwards
    for path in files[:3]:
        path.write_bytes(path.read_bytes()[:-40])
    third = Corridor(CorridorRecipe(**SMALL, cache=tmp_path / "named"), seed=3)
    mended = third.terrain_at(at(0.0, 0.0))
    assert third.tiles_built == 3
    assert torch.equal(mended.packed.posts_m, view.packed.posts_m)


@pytest.mark.parametrize(
    "change",
    [
        {"longitude_deg": -4.5},
        {"finest_post_m": 8.5},
        {"levels": 3},
        {"tile_posts": 100, "posts": 400},
        {"relief": Relief(rms_deviation_17m_m=0.2)},
        {"dem": ["lola_ldem16_frigoris", "other"]},
    ],
)
def test_whatever_heights_depend_on_is_in_the_key(change, monkeypatch):
    """A corridor that differs takes nothing from another's files."""
    monkeypatch.setattr(
        "tnav.terrain.corridor.open_dem", lambda spec: Sphere(fingerprint=str(spec))
    )
    one = Corridor(CorridorRecipe(**SMALL), seed=3)
    one.rise_m(2, Window(32.0, 0, 0, 80, 80))
    same = Corridor(CorridorRecipe(**SMALL), seed=3)
    same.rise_m(2, Window(32.0, 0, 0, 80, 80))
    assert same.tiles_built == 0
    for recipe, seed in ((CorridorRecipe(**{**SMALL, **change}), 3), (CorridorRecipe(**SMALL), 4)):
        other = Corridor(recipe, seed=seed)
        other.rise_m(2, Window(32.0, 0, 0, 80, 80))
        assert other.tiles_built > 0


def test_what_only_shapes_the_view_is_not_in_the_key():
    one = Corridor(CorridorRecipe(**SMALL), seed=3)
    one.rise_m(1, Window(16.0, 0, 0, 80, 80))
    wider = {**SMALL, "posts": 400, "memory_budget_mb": 20.0}
    other = Corridor(CorridorRecipe(**wider), seed=3)
    other.rise_m(1, Window(16.0, 0, 0, 80, 80))
    assert other.tiles_built == 0


def test_the_corridor_ends_where_the_frame_does(sphere):
    corridor = Corridor(CorridorRecipe(**SMALL), seed=3)
    half_m = 160 * 64.0
    inside_m = 600e3 - half_m - 40 * 64.0
    corridor.terrain_at(on_sphere(inside_m))
    with pytest.raises(ConfigError, match=r"64 m posts would reach 60\d km .* at most 600 km"):
        corridor.terrain_at(on_sphere(600e3 - half_m + 41 * 64.0))


def test_a_position_that_is_not_finite_is_refused(shared):
    with pytest.raises(ConfigError, match="expected finite numbers"):
        shared.terrain_at(at(math.nan, 0.0))


def test_ground_beyond_the_dem_is_refused(shared):
    with pytest.raises(TileError, match="does not cover"):
        shared.terrain_at(at(0.0, 400e3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"posts": 384, "tile_posts": 128}, "4 or more times tile_posts"),
        ({"posts": 350}, "4 or more times tile_posts"),
        ({"levels": 16}, "expected at most 1200 km"),
        ({"memory_budget_mb": 0}, "greater than 0"),
    ],
)
def test_recipes_that_cannot_be_flown_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        CorridorRecipe(**{**SMALL, **change})


def test_the_frame_is_the_recipes():
    assert CorridorRecipe(**SMALL).frame == LocalFrame(60.5, -4.6)
