"""The ground that a dataset is rendered on: one site, or a corridor view by view."""

import math

import torch
from jaxtyping import Float64
from torch import Tensor

from tnav.dem.mosaic import open_dem
from tnav.errors import ConfigError
from tnav.evaluate.dataset import RenderRecipe
from tnav.geometry.moon import up_L
from tnav.terrain.cache import HeightCache, default_folder
from tnav.terrain.corridor import Corridor
from tnav.terrain.heightfield import Terrain
from tnav.terrain.raycast import cast
from tnav.terrain.site import build_truth

_POSTS_PER_PIXEL = 2.0  # of the nadir's pixel; finer posts only alias
_SAME_GROUND_M = 1.0
_PLANNING_POST_M = 32.0  # ground of a corridor on which heights above it are planned


class Ground:
    """Terrain by place. It synchronises with its device: it plans views, it does not render them.

    Attributes:
        device: where terrains are handed out.
    """

    def __init__(self, recipe: RenderRecipe, device: torch.device) -> None:
        """Build a site, or open a corridor.

        Raises:
            TileError: the DEM is missing, damaged, or does not cover the ground.
            ConfigError: a cache that cannot be written, or a corridor that does not fit.
        """
        self.device = device
        self._corridor: Corridor | None = None
        self._held: tuple[Terrain, Terrain] | None = None  # of a corridor: on the CPU, on device
        if recipe.corridor is not None:
            self._corridor = Corridor(recipe.corridor, recipe.seeds.terrain)
            return
        assert recipe.site is not None
        folder = default_folder()
        cache = HeightCache(folder) if folder else None
        self._site = build_truth(recipe.site, recipe.seeds.terrain, cache=cache).to(device)

    def under(self, position_L: Float64[Tensor, "3"], agl_m: float, focal_px: float) -> Terrain:
        """What a view from a position can see of the ground, on the device."""
        if self._corridor is None:
            return self._site
        finest_post_m = agl_m / focal_px / (2 * _POSTS_PER_PIXEL)
        return self._moved(self._corridor.terrain_at(position_L, finest_post_m=finest_post_m))

    def level(self, terrain: Terrain, agl_m: float, focal_px: float) -> int:
        """Finest level of a terrain that a view should look at."""
        return terrain.level_for(agl_m / focal_px, posts_per_pixel=_POSTS_PER_PIXEL)

    def height_L(self, xy_L: Float64[Tensor, "n 2"]) -> Float64[Tensor, " n"]:
        """Up coordinate of the ground at places, on the host; NaN outside a site."""
        if self._corridor is None:
            return self._site.height_L(xy_L.to(self.device))[0].cpu()
        heights = []
        for place in xy_L:
            position_L = torch.cat([place, place.new_zeros(1)])
            heights.append(self._planning(position_L).height_L(place[None])[0])
        return torch.cat(heights)

    def agl_m(self, position_L: Float64[Tensor, "n 3"]) -> Float64[Tensor, " n"]:
        """Height over the ground along the local vertical, on the host; NaN beside it.

        Over a corridor it is that over its coarser levels: enough to choose a view's levels by.
        """
        if self._corridor is None:
            return height_over(self._site, position_L.to(self.device)).cpu()
        each = [height_over(self._planning(p), p[None]) for p in position_L]
        return torch.cat(each)

    def _planning(self, position_L: Float64[Tensor, "3"]) -> Terrain:
        assert self._corridor is not None
        coarse_m = max(_PLANNING_POST_M, self._corridor.recipe.finest_post_m)
        return self._corridor.terrain_at(position_L, finest_post_m=coarse_m)

    def _moved(self, terrain: Terrain) -> Terrain:
        if self._held is None or self._held[0] is not terrain:
            self._held = None  # its memory may be needed
            self._held = (terrain, terrain.to(self.device))
        return self._held[1]


def height_over(terrain: Terrain, position_L: Float64[Tensor, "n 3"]) -> Float64[Tensor, " n"]:
    """Height over a terrain along the local vertical, m; NaN beside it, 0 on or under it.

    A vertical that comes into the terrain through its side meets no ground.
    """
    down_L = -up_L(position_L)
    hits = cast(terrain, position_L, down_L)
    foot_L = position_L + hits.range_m[:, None] * down_L
    ground_m, _ = terrain.height_L(foot_L[:, :2])
    side = (hits.range_m > 0) & ~((foot_L[:, 2] - ground_m).abs() < _SAME_GROUND_M)
    return torch.where(hits.hit & ~side, hits.range_m, math.nan)


def dem_fingerprint(recipe: RenderRecipe) -> str:
    """Hex digest of a recipe's DEM."""
    return open_dem(recipe.dem).fingerprint


def check_heights(agl_m: Float64[Tensor, " n"]) -> None:
    """Raises ConfigError for a pose beside the modelled ground, or on or under it."""
    for index, value in enumerate(agl_m.tolist()):
        if not value > 0:
            where = "on or under the ground" if value <= 0 else "not over the modelled ground"
            raise ConfigError(
                f"poses: number {index} of {len(agl_m)} is {where}; expected above it, within site "
                "or corridor"
            )
