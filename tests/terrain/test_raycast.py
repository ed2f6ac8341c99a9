"""The ray caster against brute force, closed forms, and the faults of its kind."""

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from terrain_oracle import (
    brute_force,
    camera_rays,
    nested_terrain,
    rough_level,
    single_terrain,
    unit,
)
from torch import Tensor

from tnav.errors import ConfigError
from tnav.terrain.heightfield import Level, Terrain
from tnav.terrain.raycast import SHADOW_LIFT_M, cast, occluded
from tnav.terrain.site import MapQuality, Site, build_truth, degrade

TERRAINS = {"single": single_terrain(), "nested": nested_terrain()}


def _vector(*xyz: float) -> Tensor:
    return torch.tensor(xyz, dtype=torch.float64)


def _agree(terrain: Terrain, origin: Tensor, direction: Tensor, first_level: int = 0) -> float:
    """Assert equality with brute force; the share of rays that hit."""
    origin = origin.expand(direction.shape).contiguous()
    hits = cast(terrain, origin, direction, first_level=first_level)
    expected = brute_force(terrain, origin, direction, first_level)
    hit = hits.hit.numpy()
    np.testing.assert_array_equal(hit, np.isfinite(expected.range_m))
    error_m = np.abs(hits.range_m.numpy()[hit] - expected.range_m[hit])
    assert error_m.max(initial=0) < 1e-7
    assert torch.isnan(hits.range_m[~hits.hit]).all()
    assert torch.isnan(hits.normal_L[~hits.hit]).all()
    assert (hits.level[~hits.hit] == -1).all()
    # exactly on a seam the cells on both sides have a claim, with normals of their own
    same = np.abs(hits.normal_L.numpy() - expected.normal_L).max(-1) < 1e-6
    same &= hits.level.numpy() == expected.level
    point = (origin + hits.range_m[:, None] * direction).numpy()
    for k in np.flatnonzero(hit & ~same):
        assert _on_a_seam(terrain, point[k]), (k, point[k], hits.normal_L[k])
    blocked = occluded(terrain, origin, direction, first_level=first_level, lift_m=0.0)
    assert torch.equal(blocked, hits.hit)
    return float(hit.mean())


def _on_a_seam(terrain: Terrain, point: np.ndarray) -> bool:
    for level in terrain.levels:
        x = (point[0] - level.west_m) / level.post_m
        y = (point[1] - level.south_m) / level.post_m
        if min(abs(x - round(x)), abs(y - round(y))) < 1e-7:
            return True
    return False


@pytest.mark.parametrize("name", TERRAINS)
@pytest.mark.parametrize("heading_deg", [0.0, 90.0, 217.0])
@pytest.mark.parametrize(
    ("tilt_deg", "height_m", "least"), [(0, 90, 0.5), (35, 60, 0.3), (60, 50, 0.3), (60, 500, 0)]
)
def test_camera_views(
    name: str, tilt_deg: float, heading_deg: float, height_m: float, least: float
) -> None:
    origin = _vector(1.234, -3.21, height_m)
    share = _agree(TERRAINS[name], origin, camera_rays(tilt_deg, heading_deg))
    assert share >= least


@pytest.mark.parametrize("name", TERRAINS)
@pytest.mark.parametrize("height_m", [5.0, 20.0, 26.0])
def test_horizon_views(name: str, height_m: float) -> None:
    """Rays at most a degree off level, from among the peaks and just above them."""
    angle = torch.linspace(0, 2 * math.pi, 181, dtype=torch.float64)
    for slope in (-0.02, 0.0, 0.02):
        direction = unit(torch.stack([angle.cos(), angle.sin(), torch.full_like(angle, slope)], -1))
        _agree(TERRAINS[name], _vector(0.7, 2.3, height_m), direction)
        outside = _vector(-400.0, 10.0, height_m)
        _agree(TERRAINS[name], outside, direction)


def _aligned_directions() -> Tensor:
    steps = [(1.0, 0.0), (-1.0, 0.0), (0.0, 1.0), (0.0, -1.0), (0.0, 0.0), (1.0, 1.0), (-1.0, 1.0)]
    rows = [(x, y, z) for x, y in steps for z in (-2.0, -0.5, -0.05, 0.0, -0.0, 0.05) if (x, y, z)]
    rows += [(1e-16, 1.0, -0.3), (1.0, -1e-16, -0.3), (1e-300, -1.0, -0.3), (-0.0, -1.0, -0.3)]
    directions = torch.tensor(rows, dtype=torch.float64)
    return unit(directions[directions.norm(dim=1) > 0])


@pytest.mark.parametrize("name", TERRAINS)
@pytest.mark.parametrize("level", [0, -1])
def test_rays_along_post_lines(name: str, level: int) -> None:
    """Fault 1: dx == 0 or dy == 0 on every line of posts, borders too, and from posts."""
    terrain = TERRAINS[name]
    grid = terrain.levels[level]
    rows, cols = grid.z_L.shape
    x = grid.west_m + torch.arange(cols, dtype=torch.float64) * grid.post_m
    y = grid.south_m + torch.arange(rows, dtype=torch.float64) * grid.post_m
    starts = [
        torch.cartesian_prod(x, y[[0, rows // 2, -1]]),
        torch.cartesian_prod(x[[0, cols // 2, -1]], y),
        torch.cartesian_prod(x, _vector(-500.0, 1.1, 500.0)),
        torch.cartesian_prod(_vector(-500.0, 1.1, 500.0), y),
    ]
    direction = _aligned_directions()
    xy = torch.cat(starts)
    for height_m in (-3.0, 12.0, 40.0):
        origin = torch.cat([xy, torch.full_like(xy[:, :1], height_m)], 1)
        _agree(
            terrain,
            origin.repeat_interleave(len(direction), 0),
            direction.repeat(len(origin), 1),
        )


@pytest.mark.parametrize("name", TERRAINS)
def test_any_origin_and_direction(name: str) -> None:
    """Inside, outside, above and below, towards anywhere."""
    generator = torch.Generator().manual_seed(11)
    size = _vector(260.0, 260.0, 90.0)
    origin = (torch.rand(3000, 3, generator=generator, dtype=torch.float64) - 0.5) * size
    direction = unit(torch.randn(3000, 3, generator=generator, dtype=torch.float64))
    share = _agree(TERRAINS[name], origin, direction)
    assert 0.2 < share < 0.9


@pytest.mark.parametrize("first_level", [0, 1, 2])
def test_first_level_hides_the_finer_ones(first_level: int) -> None:
    terrain = TERRAINS["nested"]
    origin, direction = _vector(0.3, -0.4, 60.0), camera_rays(20, 30)
    _agree(terrain, origin, direction, first_level)
    hits = cast(terrain, origin.expand(direction.shape), direction, first_level=first_level)
    assert int(hits.level[hits.hit].min()) == first_level
    with pytest.raises(ConfigError, match="first_level: 3"):
        cast(terrain, origin.expand(direction.shape), direction, first_level=3)


def test_far_from_the_origin_and_fine() -> None:
    """Fault 5: 0.5 m posts 300 km out, seen from 20 km: cells are counted, not floored anew."""
    level = rough_level(0.5, 3e5, -2e5, (33, 33), 5, 0.6)
    terrain = Terrain([level])
    target = torch.rand(1500, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    target = target * _vector(16, 16, 0.2) + _vector(3e5, -2e5, 0.0)
    for origin in (_vector(3.1e5, -1.9e5, 2e4), _vector(2.9e5, -2e5 + 8.0, 300.0)):
        direction = unit(target - origin)
        rays = origin.expand(direction.shape).contiguous()
        hits = cast(terrain, rays, direction)
        expected = brute_force(terrain, rays, direction)
        hit = hits.hit.numpy()
        np.testing.assert_array_equal(hit, np.isfinite(expected.range_m))
        # float64 leaves 1e-10 m of a coordinate; grazing rays stretch it
        assert np.abs(hits.range_m.numpy()[hit] - expected.range_m[hit]).max() < 1e-5


def test_closed_form_of_a_tilted_plane() -> None:
    """z = 3 + 0.25 x - 0.5 y is bilinear, so plane and ray meet at (3 + n . o - z) / ..."""
    x = torch.arange(40.0) - 20
    z_L = 3 + 0.25 * x[None, :] - 0.5 * x[:, None]
    terrain = Terrain([Level(-20.0, -20.0, 1.0, z_L)])
    direction = camera_rays(25, 60)
    origin = _vector(0.1, 0.2, 12.0)
    hits = cast(terrain, origin.expand(direction.shape), direction)
    slope = _vector(-0.25, 0.5, 1.0)
    expected = (3 - slope @ origin) / (direction @ slope)
    assert hits.hit.sum() > 100
    assert torch.allclose(hits.range_m[hits.hit], expected[hits.hit], rtol=0, atol=1e-10)
    assert torch.allclose(hits.normal_L[hits.hit], slope / slope.norm(), rtol=0, atol=1e-12)


def test_camera_on_a_post_and_straight_down_and_under_the_ground() -> None:
    terrain = TERRAINS["single"]
    level = terrain.levels[0]
    rows, cols = level.z_L.shape
    i, j = (
        g.reshape(-1) for g in torch.meshgrid(torch.arange(rows), torch.arange(cols), indexing="ij")
    )
    z = level.z_L[i, j].double()
    post = torch.stack([level.west_m + 10.0 * j, level.south_m + 10.0 * i, z], -1)
    down = _vector(0, 0, -1).expand(post.shape)
    above = post + _vector(0, 0, 100)
    assert torch.equal(cast(terrain, above, down).range_m, torch.full_like(z, 100).add(z).sub(z))
    on = cast(terrain, post, down)
    assert on.hit.all()
    assert (on.range_m == 0).all()
    under = cast(terrain, post - _vector(0, 0, 5), -down)
    assert under.hit.all()
    assert (under.range_m == 0).all()
    assert not cast(terrain, above, -down).hit.any()
    assert cast(terrain, post - _vector(0, 0, 1e6), down).hit.all()


def test_rays_that_never_meet_the_rectangle_or_are_not_numbers() -> None:
    terrain = TERRAINS["nested"]
    origin = torch.stack([
        _vector(1e4, 0, 10), _vector(1e4, 0, 10), _vector(0, 0, math.nan), _vector(math.inf, 0, 0),
        _vector(0, 0, 50), _vector(0, 0, 1e300),
    ])  # fmt: skip
    direction = torch.stack([
        _vector(1, 0, 0), _vector(0, 0, -1), _vector(0, 0, -1), _vector(-1, 0, 0),
        _vector(0, math.nan, -1), _vector(0, 0, 1),
    ])  # fmt: skip
    hits = cast(terrain, origin, direction)
    assert not hits.hit.any()
    assert not occluded(terrain, origin, direction).any()
    none = cast(terrain, origin[:0], direction[:0])
    assert none.hit.shape == (0,)
    assert none.normal_L.shape == (0, 3)


def test_seams_have_no_cracks() -> None:
    """No ray at an inner border gets below the lower of the two surfaces that meet there."""
    terrain = TERRAINS["nested"]
    for level in (0, 1):
        inner = terrain.levels[level]
        along = torch.linspace(0, 1, 400, dtype=torch.float64)
        x = inner.west_m + along * (inner.east_m - inner.west_m)
        y = inner.south_m + along * (inner.north_m - inner.south_m)
        borders = [
            (torch.stack([torch.full_like(y, inner.west_m), y], 1), _vector(1, 0)),
            (torch.stack([torch.full_like(y, inner.east_m), y], 1), _vector(-1, 0)),
            (torch.stack([x, torch.full_like(x, inner.south_m)], 1), _vector(0, 1)),
            (torch.stack([x, torch.full_like(x, inner.north_m)], 1), _vector(0, -1)),
        ]
        for xy, inwards in borders:
            for lean in (-0.4, 0.0, 0.4):
                direction = unit(torch.cat([inwards * lean, _vector(-1)]))
                z_in, _ = terrain.height_L(xy, first_level=level)
                z_out, _ = terrain.height_L(xy, first_level=level + 1)
                target = torch.cat([xy, torch.minimum(z_in, z_out)[:, None]], 1)
                for shift in (-1e-9, 0.0, 1e-9):
                    origin = target - 100 * direction
                    origin[:, :2] += shift * inwards
                    rays = direction.expand(origin.shape).contiguous()
                    hits = cast(terrain, origin, rays)
                    assert hits.hit.all()
                    # nothing lets a ray fall below the lower side of the seam
                    z = origin[:, 2] + hits.range_m * direction[2]
                    assert (z >= torch.minimum(z_in, z_out) - 1e-6).all()
                    _agree(terrain, origin, rays)


def test_blended_rims_leave_depth_continuous() -> None:
    """With posts that line up and blended rims, both sides agree to float32 rounding."""
    coarse = rough_level(4.0, -40.0, -40.0, (21, 21), 6, 5.0)
    fine = rough_level(1.0, -16.0, -16.0, (33, 33), 7, 1.0)
    terrain = Terrain([fine, coarse], rim_posts=6)
    y = torch.linspace(-15.9, 15.9, 300, dtype=torch.float64)
    down = _vector(0, 0, -1).expand(300, 3)
    sides = []
    for x in (-16.0 - 1e-7, -16.0 + 1e-7):
        origin = torch.stack([torch.full_like(y, x), y, torch.full_like(y, 50.0)], 1)
        hits = cast(terrain, origin, down)
        sides.append(hits)
    assert (sides[0].level == 1).all()
    assert (sides[1].level == 0).all()
    assert (sides[0].range_m - sides[1].range_m).abs().max() < 5e-6


@pytest.mark.parametrize("surface", ["truth", "map"])
def test_a_site_is_continuous_over_every_border(surface: str) -> None:
    """Straight down on both sides of all borders: the step is below the finer posts' relief."""
    site = Site(latitude_deg=60.5, longitude_deg=-4.6, cells=128, levels=5, finest_post_m=2.0)
    terrain = build_truth(site, seed=1)
    if surface == "map":
        terrain = degrade(terrain, MapQuality(), seed=3)
    along = torch.linspace(0.003, 0.997, 500, dtype=torch.float64)
    for k, inner in enumerate(terrain.levels[:-1]):
        x = inner.west_m + along * (inner.east_m - inner.west_m)
        y = inner.south_m + along * (inner.north_m - inner.south_m)
        borders = [
            (torch.stack([torch.full_like(y, inner.west_m), y], 1), _vector(1, 0), inner.z_L[:, 0]),
            (
                torch.stack([torch.full_like(y, inner.east_m), y], 1),
                _vector(-1, 0),
                inner.z_L[:, -1],
            ),
            (torch.stack([x, torch.full_like(x, inner.south_m)], 1), _vector(0, 1), inner.z_L[0]),
            (torch.stack([x, torch.full_like(x, inner.north_m)], 1), _vector(0, -1), inner.z_L[-1]),
        ]
        for xy, inwards, rim_m in borders:
            sides = []
            for shift_m in (-1e-6, 1e-6):
                top = torch.full_like(xy[:, :1], 5000.0)
                origin = torch.cat([xy + shift_m * inwards, top], 1)
                sides.append(cast(terrain, origin, _vector(0, 0, -1).expand(origin.shape)))
            assert (sides[0].level == k + 1).all()
            assert (sides[1].level == k).all()
            relief_m = float(rim_m.diff().abs().max())  # from one of the finer posts to the next
            assert relief_m > 0.01
            step_m = (sides[0].range_m - sides[1].range_m).abs().max()
            assert step_m < min(relief_m, 1e-3)


# --- shadows ---


def _surface_points(terrain: Terrain) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(8)
    xy = (torch.rand(4000, 2, generator=generator, dtype=torch.float64) - 0.5) * 120
    origin = torch.cat([xy, torch.full_like(xy[:, :1], 80.0)], 1)
    down = _vector(0, 0, -1).expand(origin.shape)
    hits = cast(terrain, origin, down)
    return origin + hits.range_m[:, None] * down, hits.normal_L


@pytest.mark.parametrize("name", TERRAINS)
def test_shadows_agree_with_brute_force(name: str) -> None:
    terrain = TERRAINS[name]
    point, _ = _surface_points(terrain)
    for azimuth, elevation in ((0.4, 0.2), (2.0, 0.6), (math.pi / 2, 0.3), (0.0, 0.1)):
        c = math.cos(elevation)
        sun = _vector(c * math.sin(azimuth), c * math.cos(azimuth), math.sin(elevation))
        lifted = point + _vector(0, 0, SHADOW_LIFT_M)
        expected = brute_force(terrain, lifted, sun.expand(point.shape))
        blocked = occluded(terrain, point, sun)
        assert np.array_equal(blocked.numpy(), np.isfinite(expected.range_m))
        per_point = occluded(terrain, point, sun.expand(point.shape).contiguous())
        assert torch.equal(per_point, blocked)


def test_facets_that_face_away_are_occluded() -> None:
    """Fault 2: their shadow rays go underground at once, and that is a hit."""
    terrain = TERRAINS["single"]
    point, normal = _surface_points(terrain)
    sun = _vector(math.cos(0.3), 0, math.sin(0.3))
    away = normal @ sun < -1e-3
    assert away.sum() > 1000
    underground = point - _vector(0, 0, 1e-9)
    assert occluded(terrain, underground, sun, lift_m=0.0)[away].all()


def test_lit_needs_both_a_facing_normal_and_a_free_way() -> None:
    """Fault 3: behind a thin ridge a lifted ray clears the crest although the facet faces away."""
    z_L = torch.zeros(16, 16)
    z_L[:, 8] = 1.0
    terrain = Terrain([Level(0.0, 0.0, 1.0, z_L)])
    sun = _vector(math.cos(math.radians(30)), 0, math.sin(math.radians(30)))
    point = _vector(7.95, 8.3, 0.95)[
        None
    ]  # on the western flank, just under the crest; the Sun is east
    hits = cast(terrain, point + _vector(0, 0, 5), _vector(0, 0, -1)[None])
    assert float(hits.normal_L[0] @ sun) < 0
    assert bool(occluded(terrain, point, sun))
    assert not bool(occluded(terrain, point, sun, lift_m=0.1))  # free way, and still dark


def test_lift_shortens_a_shadow_by_lift_over_tangent() -> None:
    """Fault 4: the tip of a 10 m wall's shadow at 20 deg, with lifts of 1 mm and 1 m."""
    z_L = torch.zeros(64, 64)
    z_L[:, 40] = 10.0
    terrain = Terrain([Level(0.0, 0.0, 1.0, z_L)])
    tangent = math.tan(math.radians(20))
    sun = unit(_vector(1.0, 0, tangent))
    x = torch.linspace(1, 39, 380001, dtype=torch.float64)
    ground = torch.stack([x, torch.full_like(x, 30.3), torch.zeros_like(x)], 1)
    for lift_m in (1e-3, 1.0):
        tip_m = float(x[occluded(terrain, ground, sun, lift_m=lift_m)].min())
        assert tip_m == pytest.approx(40 - (10 - lift_m) / tangent, abs=2e-4)


# --- invariants ---


@example(x=26.0, y=30.5625, height_m=253.0, tilt=1.078125, heading=2.96875, first_level=0)
@settings(max_examples=150, deadline=None)
@given(
    x=st.floats(-60, 60), y=st.floats(-60, 60), height_m=st.floats(26, 5000),
    tilt=st.floats(0, 1.5), heading=st.floats(-4, 4), first_level=st.integers(0, 2),
)  # fmt: skip
def test_hit_points_lie_on_the_ground(
    x: float, y: float, height_m: float, tilt: float, heading: float, first_level: int
) -> None:
    terrain = TERRAINS["nested"]
    s = math.sin(tilt)
    direction = _vector(s * math.sin(heading), s * math.cos(heading), -math.cos(tilt))[None]
    target = _vector(x, y, 0.0)
    origin = target - direction * height_m / max(math.cos(tilt), 1e-3)
    hits = cast(terrain, origin, direction, first_level=first_level)
    if not bool(hits.hit):
        return
    point = origin + hits.range_m[:, None] * direction
    level = int(hits.level)
    z, inside = terrain.height_L(point[:, :2], first_level=level)
    if not bool(inside):  # on the very border of the outermost level
        outer = terrain.levels[-1]
        px, py = point[0, 0], point[0, 1]
        borders = (px - outer.west_m, px - outer.east_m, py - outer.south_m, py - outer.north_m)
        assert min(abs(float(b)) for b in borders) < 1e-9
        return
    if abs(float(point[0, 2] - z)) > 1e-6:
        # In a wall (a seam, or the outer border) the ray comes in between its top and its foot. A
        # point on a border may be rounded to either side of it: look a micrometre around.
        assert _in_a_wall(terrain, point[0])
        around = point[:, :2] + 1e-6 * torch.tensor([[1, 0], [-1, 0], [0, 1], [0, -1]]).double()
        sides, known = terrain.height_L(around, first_level=first_level)
        assert float(point[0, 2]) <= float(sides[known].max()) + 1e-4
        if bool(known.all()):  # outside the outermost level a wall has no foot
            assert float(point[0, 2]) >= float(sides.min()) - 1e-4


def _in_a_wall(terrain: Terrain, point: Tensor) -> bool:
    for level in terrain.levels:
        dx = min(abs(float(point[0]) - level.west_m), abs(float(point[0]) - level.east_m))
        dy = min(abs(float(point[1]) - level.south_m), abs(float(point[1]) - level.north_m))
        if min(dx, dy) < 1e-6:
            return True
    return False
