"""Placed without a prior on real renders, by descriptors without weights; refused where it must be.

The map is small (20 x 20 km, 50 m posts) and so is the image (160 px of 36 m).
"""

import math

import pytest
import torch
from torch import Tensor

from tnav.errors import ConfigError, ImageError
from tnav.evaluate.lost_in_space import (
    AltitudeBand,
    Located,
    LostConfig,
    _centres_at,
    _levelled,
    _Pairs,
    _Search,
    locate,
)
from tnav.evaluate.map_index import LEVEL_R_L_V, Area, MapIndex, area_of
from tnav.geometry.camera import Camera
from tnav.geometry.moon import altitude_m
from tnav.geometry.pose import Pose, so3_exp
from tnav.geometry.sun import direction_L
from tnav.match.keypoints import describe_gradients
from tnav.records import FixStatus, MapErrorModel
from tnav.render.detector import Detector, expose
from tnav.render.renderer import render
from tnav.terrain.albedo import AlbedoField
from tnav.terrain.heightfield import Terrain
from tnav.terrain.site import MapQuality, Site, build_truth, degrade

CAMERA = Camera(160, 160, 309.0, 80.0, 80.0)
SUN_L = direction_L(130.0, 12.0)
MAP_ERROR = MapErrorModel(3.0, 300.0)
SIGMA_RAD = 3e-4
HEIGHT_M = 11e3
PIXEL_M = HEIGHT_M / 309.0


@pytest.fixture(scope="module")
def truth() -> Terrain:
    site = Site(latitude_deg=60.5, longitude_deg=-4.6, finest_post_m=25.0, levels=1, cells=800)
    return build_truth(site, seed=5)


@pytest.fixture(scope="module")
def index(truth: Terrain) -> MapIndex:
    quality = MapQuality(coarser=1, vertical_rms_m=3.0, shift_m=1.0)
    return MapIndex.build(degrade(truth, quality, seed=6), describe_gradients, SUN_L)


def pose_at(
    truth: Terrain,
    east_m: float,
    north_m: float,
    *,
    heading_deg: float = 0.0,
    tilt_deg: float = 0.0,
) -> Pose:
    """A camera over a place, turned about the vertical and then tilted about the east axis."""
    xy_L = torch.tensor([[east_m, north_m]], dtype=torch.float64)
    position_L = torch.cat([xy_L, truth.height_L(xy_L)[0][:, None] + HEIGHT_M], -1)
    turns = torch.tensor(
        [[math.radians(tilt_deg), 0.0, 0.0], [0.0, 0.0, math.radians(heading_deg)]],
        dtype=torch.float64,
    )
    tilt, turn = so3_exp(turns)
    return Pose((tilt @ turn @ LEVEL_R_L_V)[None], position_L)


def photograph(truth: Terrain, pose: Pose, seed: int = 1) -> Tensor:
    albedo = AlbedoField.draw(seed, contrast=0.1, wavelengths_m=(8.0, 4000.0))
    view = render(truth, CAMERA, pose, SUN_L, samples=4, albedo=albedo)
    return expose(view.image, Detector(), seed, camera=CAMERA)


def band_of(index: MapIndex, low_m: float = 9.9e3, high_m: float = 12.1e3) -> AltitudeBand:
    return AltitudeBand(low_m + index.ground_altitude_m, high_m + index.ground_altitude_m)


def look(image: Tensor, pose: Pose, index: MapIndex, band: AltitudeBand | None = None) -> Located:
    return locate(
        image, CAMERA, pose.R_L_C, band or band_of(index), index,
        attitude_sigma_rad=SIGMA_RAD, map_error=MAP_ERROR, t_s=4.0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("east_m", "north_m", "heading_deg", "tilt_deg"),
    [(-5500.0, 4200.0, 0.0, 0.0), (3000.0, -2500.0, 112.0, -15.0)],
)
def test_an_image_is_placed_whatever_its_attitude(
    truth: Terrain,
    index: MapIndex,
    east_m: float,
    north_m: float,
    heading_deg: float,
    tilt_deg: float,
) -> None:
    pose = pose_at(truth, east_m, north_m, heading_deg=heading_deg, tilt_deg=tilt_deg)
    error = so3_exp(torch.tensor([[2e-4, -3e-4, 2e-4]], dtype=torch.float64))
    image = photograph(truth, pose)
    found = look(image, Pose(error @ pose.R_L_C, pose.position_L), index)
    assert found.fix.status is FixStatus.OK
    assert found.fix.t_s == 4.0
    assert found.fix.position_L is not None
    assert float((found.fix.position_L - pose.position_L[0]).norm()) < 1.0 * PIXEL_M
    assert found.agreement > 0.8
    assert found.verified == 1
    assert found.votes > 10


def test_ground_that_is_not_indexed_is_refused(truth: Terrain, index: MapIndex) -> None:
    """The image shows the west, the index holds the east; what was placed before no longer is."""
    whole = area_of(index.terrain_map)
    east = Area(1500.0, whole.south_m, whole.east_m, whole.north_m)
    half = MapIndex.build(index.terrain_map, describe_gradients, SUN_L, area=east)
    assert 0.3 < half.descriptor.shape[0] / index.descriptor.shape[0] < 0.6
    pose = pose_at(truth, -5500.0, 4200.0)
    found = look(photograph(truth, pose), pose, half)
    assert found.fix.status is not FixStatus.OK
    assert found.fix.position_L is None
    assert found.agreement < 0.2


@pytest.mark.parametrize("kind", ["blank", "black", "noise"])
def test_an_image_that_shows_nothing_is_refused(index: MapIndex, kind: str) -> None:
    image = {
        "blank": torch.full((1, 1, 160, 160), 0.4),
        "black": torch.zeros(1, 1, 160, 160),
        "noise": torch.rand(1, 1, 160, 160, generator=torch.Generator().manual_seed(3)),
    }[kind]
    pose = Pose(LEVEL_R_L_V[None], torch.zeros(1, 3, dtype=torch.float64))
    found = look(image, pose, index)
    assert found.fix.status is not FixStatus.OK
    assert found.fix.position_L is None


def test_an_altitude_outside_the_band_is_refused(truth: Terrain, index: MapIndex) -> None:
    pose = pose_at(truth, 1000.0, 2000.0)
    found = look(photograph(truth, pose), pose, index, band_of(index, 14e3, 16e3))
    assert found.fix.status is not FixStatus.OK
    assert found.fix.position_L is None


def test_keypoints_of_the_index_lie_on_the_map_and_cover_it_once(index: MapIndex) -> None:
    point_L = index.point_L.double()
    height_L, inside = index.terrain_map.height_L(point_L[:, :2])
    assert inside.all()
    off_m = (height_L - point_L[:, 2]).abs()
    assert float(off_m.quantile(0.95)) < 0.3 * PIXEL_M  # bilinear between pixels of broken ground
    per_quarter = torch.stack([point_L[:, 0] > 0, point_L[:, 1] > 0], -1).double().mean(0)
    assert bool(((per_quarter > 0.4) & (per_quarter < 0.6)).all())
    nearest = torch.cdist(point_L[:, :2], point_L[:, :2]).fill_diagonal_(math.inf).amin(-1)
    assert float(nearest.min()) > 2 * index.gsd_m  # tiles overlap, their own grounds do not
    n = index.descriptor.shape[0]
    assert index.size_bytes == n * (2 * 64 + 3 * 4)
    assert n > 500


def test_votes_follow_the_line_of_sight_to_an_altitude() -> None:
    g = torch.Generator().manual_seed(1)
    centre_L = torch.tensor([40e3, -30e3, 9e3], dtype=torch.float64)
    point_L = torch.randn(50, 3, generator=g).double() * torch.tensor([5e3, 5e3, 500.0])
    point_L = point_L + torch.tensor([40e3, -30e3, -4e3])
    ray_L = point_L - centre_L
    ray_L = ray_L / ray_L.norm(dim=-1, keepdim=True)
    pairs = _Pairs(torch.zeros(50, 2, dtype=torch.float64), ray_L, point_L)
    at = altitude_m(centre_L)
    voted_L = _centres_at(pairs, torch.stack([at, at + 1000.0]))
    torch.testing.assert_close(voted_L[0], centre_L.expand(50, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(altitude_m(voted_L[1]), (at + 1000.0).expand(50), atol=1e-5, rtol=0)


def test_a_levelled_image_is_what_a_level_camera_sees(truth: Terrain, index: MapIndex) -> None:
    pose = pose_at(truth, 500.0, -800.0, heading_deg=35.0, tilt_deg=12.0)
    image = render(truth, CAMERA, pose, SUN_L, samples=4).image
    search = _Search(
        image, CAMERA, pose.R_L_C, band_of(index), index, SIGMA_RAD, MAP_ERROR, 0.0, 0, LostConfig()
    )
    level, seen, camera_V = _levelled(search, 309.0)
    expected = render(truth, camera_V, Pose(LEVEL_R_L_V[None], pose.position_L), SUN_L, samples=4)
    both = seen & expected.hit[:, None]
    assert float(both.double().mean()) > 0.3
    assert camera_V.width_px % 16 == camera_V.height_px % 16 == 0

    def correlation(down_px: int, right_px: int) -> float:
        shifted = level.roll((down_px, right_px), (2, 3))
        pair = torch.stack([shifted[both], expected.image[both]])
        return float(torch.corrcoef(pair)[0, 1])

    # Interpolated once more than the render, so not 1; half a pixel off would make a tie.
    shifts = {(d, r): correlation(d, r) for d in (-1, 0, 1) for r in (-1, 0, 1)}
    assert shifts.pop((0, 0)) > max(0.95, *(c + 0.05 for c in shifts.values()))


def test_what_does_not_fit_is_said(truth: Terrain, index: MapIndex) -> None:
    pose = pose_at(truth, 0.0, 0.0)
    with pytest.raises(ConfigError, match="expected low < high"):
        AltitudeBand(3.0, 3.0)
    with pytest.raises(ImageError, match="expected its camera's 160 x 160"):
        look(torch.rand(1, 1, 96, 96), pose, index)
    with pytest.raises(ConfigError, match="expected above the map's mean ground"):
        look(torch.rand(1, 1, 160, 160), pose, index, band_of(index, -10.0, 9e3))
    upwards = Pose(torch.eye(3, dtype=torch.float64)[None], pose.position_L)
    with pytest.raises(ImageError, match="no ground"):
        look(torch.rand(1, 1, 160, 160), upwards, index)
    with pytest.raises(ConfigError, match="both above 0"):
        MapIndex.build(index.terrain_map, describe_gradients, SUN_L, per_km2=0.0)
