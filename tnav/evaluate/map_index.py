"""A map's keypoints: what an image without a prior position is looked up in.

The map is rendered under one Sun as an orthophoto, tile by tile from so far above that every ray is
within 3 deg of the vertical, and described. A keypoint keeps its descriptor in half precision and
its point in L in single: 140 bytes with 64 channels.
"""

import math
import time
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float16, Float32, Float64
from torch import Tensor
from torch.nn.functional import avg_pool2d, grid_sample, max_pool2d

from tnav.errors import ConfigError
from tnav.geometry.camera import Camera
from tnav.geometry.moon import altitude_m
from tnav.geometry.pose import Pose
from tnav.match.keypoints import STRIDE_PX, Describe, Keypoints, select
from tnav.render.renderer import render
from tnav.terrain.heightfield import Terrain

# A level camera V that looks along -z of L, with north up in its image.
LEVEL_R_L_V = torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64))

_TILE_PX = 512  # of the orthophoto
_TILE_CONTEXT_PX = 32  # around a tile's own ground: what descriptors look at
_BLOCK_CELLS = 4  # the best keypoint of each half kilometre goes first: every view holds some
_REACH_CELLS = 3  # of what a descriptor looks at; a learned one sees farther, but faintly
_ORTHO_HEIGHT_M = 200e3  # the corner of a tile is seen under 3.7 deg from there


@dataclass(frozen=True, slots=True)
class Area:
    """A rectangle of L."""

    west_m: float
    south_m: float
    east_m: float
    north_m: float

    @property
    def km2(self) -> float:
        """Its area, km^2."""
        return (self.east_m - self.west_m) * (self.north_m - self.south_m) * 1e-6


def area_of(terrain: Terrain) -> Area:
    """The rectangle of the finest level."""
    level = terrain.levels[0]
    return Area(level.west_m, level.south_m, level.east_m, level.north_m)


@dataclass(frozen=True, slots=True)
class MapIndex:
    """Keypoints of a map under one Sun, by one describer."""

    terrain_map: Terrain
    sun_L: Float64[Tensor, "3"]
    describe: Describe
    area: Area
    gsd_m: float  # of the orthophoto
    descriptor: Float16[Tensor, "n d"]
    point_L: Float32[Tensor, "n 3"]  # m; rounded by 4 mm at 50 km
    ground_altitude_m: float  # mean over the keypoints, above the 1737.4 km sphere
    build_s: float

    @property
    def size_bytes(self) -> int:
        """Memory of descriptors and points."""
        return self.descriptor.numel() * 2 + self.point_L.numel() * 4

    @classmethod
    def build(
        cls,
        terrain_map: Terrain,
        describe: Describe,
        sun_L: Float64[Tensor, "3"],
        *,
        area: Area | None = None,
        gsd_m: float = 36.0,
        per_km2: float = 12.0,
    ) -> "MapIndex":
        """Render a map tile by tile and keep its keypoints.

        Args:
            terrain_map: the map, on the device to work on.
            describe: of keypoints; an image is looked up with the same.
            sun_L: towards the Sun.
            area: what to index; all of the map's finest level where absent.
            gsd_m: pixel of the orthophoto, about that of the images to come.
            per_km2: keypoints to keep.

        Raises:
            ConfigError: a pixel or a density that is not positive, or an area without any ground.
        """
        if not (gsd_m > 0 and per_km2 > 0):
            raise ConfigError(f"index: gsd_m {gsd_m}, per_km2 {per_km2}, expected both above 0")
        began = time.perf_counter()
        area = area or area_of(terrain_map)
        descriptors, points = [], []
        for tile in _tiles(area, gsd_m):
            found, point_L = _described_tile(terrain_map, describe, sun_L, tile, gsd_m, per_km2)
            descriptors.append(found.descriptor[0][found.valid[0]].half())
            points.append(point_L[found.valid[0]].float())
        descriptor, point_L = torch.cat(descriptors), torch.cat(points)
        if descriptor.shape[0] < 2:
            raise ConfigError(f"index: {descriptor.shape[0]} keypoints in {area}, expected ground")
        ground_m = float(altitude_m(point_L.double()).mean())
        seconds = time.perf_counter() - began
        return cls(
            terrain_map, sun_L, describe, area, gsd_m, descriptor, point_L, ground_m, seconds
        )


@dataclass(frozen=True, slots=True)
class _Tile:
    east_m: float  # centre
    north_m: float
    half_east_m: float  # of the ground that is its own
    half_north_m: float


def _tiles(area: Area, gsd_m: float) -> list[_Tile]:
    """Equal rectangles that cover an area, none larger than a rendered tile less its context."""
    own_m = (_TILE_PX - 2 * _TILE_CONTEXT_PX) * gsd_m
    columns = math.ceil((area.east_m - area.west_m) / own_m)
    rows = math.ceil((area.north_m - area.south_m) / own_m)
    east_m = (area.east_m - area.west_m) / columns
    north_m = (area.north_m - area.south_m) / rows
    return [
        _Tile(
            area.west_m + (c + 0.5) * east_m, area.south_m + (r + 0.5) * north_m,
            east_m / 2, north_m / 2,
        )
        for r in range(rows)
        for c in range(columns)
    ]  # fmt: skip


def _described_tile(
    terrain_map: Terrain,
    describe: Describe,
    sun_L: Float64[Tensor, "3"],
    tile: _Tile,
    gsd_m: float,
    per_km2: float,
) -> tuple[Keypoints, Float64[Tensor, "n 3"]]:
    """Keypoints on a tile's own ground, and their points."""
    device = terrain_map.device
    camera = Camera(_TILE_PX, _TILE_PX, _ORTHO_HEIGHT_M / gsd_m, _TILE_PX / 2, _TILE_PX / 2)
    middle = torch.tensor([[tile.east_m, tile.north_m]], dtype=torch.float64)
    ground_m = torch.nan_to_num(terrain_map.height_L(middle.to(device))[0])[:, None]
    position_L = torch.cat([middle.to(device), ground_m + _ORTHO_HEIGHT_M], -1)
    pose = Pose(LEVEL_R_L_V.to(device)[None], position_L)
    level = terrain_map.level_for(gsd_m, posts_per_pixel=1.0)
    view = render(terrain_map, camera, pose, sun_L, first_level=level)
    hit = view.hit[:, None]
    mean = (view.image * hit).sum() / hit.sum().clamp_min(1)
    descriptor, keypoint = describe(torch.where(hit, view.image, mean))
    own = (view.xyz_L[..., 0] - tile.east_m).abs() <= tile.half_east_m
    own = own & ((view.xyz_L[..., 1] - tile.north_m).abs() <= tile.half_north_m)
    cells = keypoint.shape[-2] * keypoint.shape[-1]
    wanted = math.ceil(4e-6 * tile.half_east_m * tile.half_north_m * per_km2)
    found = select(
        keypoint, descriptor, min(wanted, cells), block_cells=_BLOCK_CELLS,
        usable=pooled(own[:, None]) & away_from(~hit),
    )  # fmt: skip
    grid = (2 * found.uv_px.double() / _TILE_PX - 1)[:, None]
    xyz_L = torch.where(hit, view.xyz_L.permute(0, 3, 1, 2), 0.0)
    return found, grid_sample(xyz_L, grid, align_corners=False)[0, :, 0].T


def pooled(mask: Bool[Tensor, "b 1 h w"]) -> Bool[Tensor, "b 1 h4 w4"]:
    """Cells of descriptors of which all pixels are in the mask."""
    return avg_pool2d(mask.float(), STRIDE_PX) > 1 - 0.5 / STRIDE_PX**2


def away_from(hidden: Bool[Tensor, "b 1 h w"]) -> Bool[Tensor, "b 1 h4 w4"]:
    """Cells of descriptors that do not look at hidden pixels, but perhaps with their outer rim."""
    near = (~pooled(~hidden)).float()
    return max_pool2d(near, 2 * _REACH_CELLS + 1, stride=1, padding=_REACH_CELLS) < 0.5
